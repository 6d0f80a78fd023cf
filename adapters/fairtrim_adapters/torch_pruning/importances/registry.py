"""Importances by name: for scripts that choose with a string, and for third parties."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, ItemsView, Iterator, MutableMapping, ValuesView
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

import torch_pruning as tp

from fairtrim import InputError

from .damage_importances import (
    GroupSaliencyImportance,
    MeanDamageImportance,
    ShareBalancedImportance,
    TailRiskImportance,
    WorstGroupImportance,
)
from .mined_importances import AccumulatedConfidenceImportance, ContrastiveImportance

__all__ = ["IMPORTANCES", "register", "register_importance"]

ENTRY_POINTS = "fairtrim.criteria"

ImportanceClass = TypeVar("ImportanceClass", bound=type[Any])


class _UnknownImportanceError(InputError, KeyError):
    """No importance has the name: a wrong argument, and for whoever treats the registry as a dict a missing key."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would show the message in quotation marks


class _Importances(MutableMapping[str, type[Any]]):
    """Classes by name, those that other packages announce among them; those are looked for and loaded when asked for.

    Names come from the metadata of the installed packages, and a class is imported when its name is looked up: a
    package that can't be imported troubles only who asks for what it announces.
    """

    def __init__(self) -> None:
        self.loaded: dict[str, type[Any]] = {}
        self._announced: dict[str, list[EntryPoint]] | None = None

    def announced(self, *, again: bool = False) -> dict[str, list[EntryPoint]]:
        """Entry points by name.

        Args:
            again: Look for packages that were installed since.

        Returns:
            Several of a name where packages disagree.
        """
        if self._announced is None or again:
            self._announced = {}
            for entry_point in entry_points(group=ENTRY_POINTS):
                self._announced.setdefault(entry_point.name, []).append(entry_point)
        return self._announced

    def __getitem__(self, name: str) -> type[Any]:
        if name in self.loaded:
            return self.loaded[name]
        found = self.announced().get(name) or self.announced(again=True).get(name)
        if not found:
            near = difflib.get_close_matches(str(name).lower().replace("_", "-"), self, 1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise _UnknownImportanceError(f"importance {name!r} is unknown{meant}; expected one of {sorted(self)}")
        packages = sorted({_package(entry_point) for entry_point in found})
        if len(packages) > 1:
            raise InputError(
                f"importance {name!r} is announced by several packages, {' and '.join(packages)}; expected one: "
                "uninstall the others, or import the class you mean"
            )
        try:
            cls: type[Any] = register_importance(name)(found[0].load())
            return cls
        except Exception as error:  # whatever a foreign package does when it is imported
            raise InputError(
                f"importance {name!r} of the package {packages[0]} can't be loaded "
                f"({type(error).__name__}: {error}); expected the package to be mended, updated or uninstalled"
            ) from error

    def __setitem__(self, name: str, cls: type[Any]) -> None:
        self.loaded[name] = cls

    def __delitem__(self, name: str) -> None:
        del self.loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self.loaded or name in self.announced()

    def __iter__(self) -> Iterator[str]:
        return iter({**self.loaded, **self.announced()})

    def __len__(self) -> int:
        return len({**self.loaded, **self.announced()})

    def clear(self) -> None:
        """Forget every class; packages are looked for anew."""
        self.loaded.clear()
        self._announced = None

    def values(self) -> ValuesView[type[Any]]:
        """Every class, those of other packages loaded for it; what can't be loaded is left out with a warning."""
        self._load_all()
        return self.loaded.values()

    def items(self) -> ItemsView[str, type[Any]]:
        """Every name with its class, as ``values``."""
        self._load_all()
        return self.loaded.items()

    def _load_all(self) -> None:
        for name in [*self.announced()]:
            try:
                _ = self[name]
            except InputError as error:
                warnings.warn(f"left out: {error}", stacklevel=4)

    def __repr__(self) -> str:
        return f"importances {sorted(self)}"


def _package(entry_point: EntryPoint) -> str:
    distribution = getattr(entry_point, "dist", None)
    return str(distribution.name) if distribution else getattr(entry_point, "value", entry_point.name)


_IMPORTANCES = _Importances()
IMPORTANCES: MutableMapping[str, type[Any]] = _IMPORTANCES
"""Importance classes by name, e.g. ``IMPORTANCES["worst-group"]``; an InputError names them if there is none. Classes
that other packages announce under the entry-point group ``fairtrim.criteria`` are among them."""


def register_importance(name: str) -> Callable[[ImportanceClass], ImportanceClass]:
    """Add an importance class under a name.

    Args:
        name: Lower-case words joined by hyphens.

    Returns:
        A class decorator.

    Raises:
        InputError: The name is taken by another class, malformed, or the class is not an importance.

    Example:
        >>> import torch_pruning as tp
        >>> @register_importance("first-come")
        ... class FirstComeImportance(tp.importance.Importance):
        ...     def __call__(self, group):
        ...         return torch.arange(len(group[0].idxs)).double()
        >>> IMPORTANCES.pop("first-come").__name__
        'FirstComeImportance'
    """
    if not name or name != name.lower() or not all(part.isalnum() for part in name.split("-")):
        raise InputError(f"importance name {name!r}; expected lower-case words joined by hyphens")

    def add(cls: ImportanceClass) -> ImportanceClass:
        if not (isinstance(cls, type) and issubclass(cls, tp.importance.Importance)):
            raise InputError(f"importance {name!r} is {cls!r}; expected a subclass of torch_pruning's Importance")
        if (known := _IMPORTANCES.loaded.get(name, cls)) is not cls:
            raise InputError(f"importance name {name!r} is taken by {known.__qualname__}; choose another")
        IMPORTANCES[name] = cls
        return cls

    return add


def register() -> dict[str, type[Any]]:
    """Put every importance on ``torch_pruning.importance`` under its class name.

    A script that selects with ``getattr(tp.importance, name)`` then finds them. Classes that other packages announce
    under the entry-point group ``fairtrim.criteria`` are loaded for it; one that can't be is left out with a warning.

    Returns:
        The registered classes by name.

    Raises:
        InputError: A class name is one that the host uses for something else.

    Example:
        >>> import torch_pruning as tp
        >>> sorted(register())[:2]
        ['accumulated-confidence', 'contrastive']
        >>> tp.importance.WorstGroupImportance.__name__
        'WorstGroupImportance'
    """
    _IMPORTANCES.announced(again=True)
    classes = dict(_IMPORTANCES.items())
    for name, entry_points_of_name in _IMPORTANCES.announced().items():
        if name in _BUILT_IN:
            packages = ", ".join(map(_package, entry_points_of_name))
            warnings.warn(f"left out: {packages} announces {name!r}, which is fairtrim's own; rename it", stacklevel=2)
    for cls in classes.values():
        if getattr(tp.importance, cls.__name__, cls) is not cls:
            raise InputError(f"torch_pruning.importance.{cls.__name__} exists already; rename the class")
        setattr(tp.importance, cls.__name__, cls)
    return classes


register_importance("group-saliency")(GroupSaliencyImportance)
register_importance("mean-damage")(MeanDamageImportance)
register_importance("worst-group")(WorstGroupImportance)
register_importance("tail-risk")(TailRiskImportance)
register_importance("share-balanced")(ShareBalancedImportance)
register_importance("accumulated-confidence")(AccumulatedConfidenceImportance)
register_importance("contrastive")(ContrastiveImportance)

_BUILT_IN = frozenset(_IMPORTANCES.loaded)
