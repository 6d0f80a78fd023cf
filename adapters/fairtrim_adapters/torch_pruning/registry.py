"""Importances by name: for scripts that choose with a string, and for third parties."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeVar

import torch_pruning as tp

from fairtrim import InputError

from .importance import (
    GroupSaliencyImportance,
    MeanDamageImportance,
    ShareBalancedImportance,
    TailRiskImportance,
    WorstGroupImportance,
)
from .unlabelled import AccumulatedConfidenceImportance, ContrastiveImportance

__all__ = ["IMPORTANCES", "register", "register_importance"]

ENTRY_POINTS = "fairtrim.criteria"

ImportanceClass = TypeVar("ImportanceClass", bound=type[Any])


class _UnknownImportanceError(InputError, KeyError):
    """No importance has the name: a wrong argument, and for whoever treats the registry as a dict a missing key."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would show the message in quotation marks


class _Importances(dict[str, type[Any]]):
    """A dict that says which names there are."""

    def __missing__(self, name: object) -> type[Any]:
        near = difflib.get_close_matches(str(name).lower().replace("_", "-"), self, 1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise _UnknownImportanceError(f"importance {name!r} is unknown{meant}; expected one of {sorted(self)}")


IMPORTANCES: dict[str, type[Any]] = _Importances()
"""Importance classes by name, e.g. ``IMPORTANCES["worst-group"]``; an InputError names them if there is none."""


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
        if IMPORTANCES.get(name, cls) is not cls:
            raise InputError(f"importance name {name!r} is taken by {IMPORTANCES[name].__qualname__}; choose another")
        IMPORTANCES[name] = cls
        return cls

    return add


def register() -> dict[str, type[Any]]:
    """Put every importance on ``torch_pruning.importance`` under its class name.

    A script that selects with ``getattr(tp.importance, name)`` then finds them. Classes that other packages
    announce under the entry-point group ``fairtrim.criteria`` are added first.

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
    for entry_point in entry_points(group=ENTRY_POINTS):
        register_importance(entry_point.name)(entry_point.load())
    for cls in IMPORTANCES.values():
        if getattr(tp.importance, cls.__name__, cls) is not cls:
            raise InputError(f"torch_pruning.importance.{cls.__name__} exists already; rename the class")
        setattr(tp.importance, cls.__name__, cls)
    return dict(IMPORTANCES)


register_importance("group-saliency")(GroupSaliencyImportance)
register_importance("mean-damage")(MeanDamageImportance)
register_importance("worst-group")(WorstGroupImportance)
register_importance("tail-risk")(TailRiskImportance)
register_importance("share-balanced")(ShareBalancedImportance)
register_importance("accumulated-confidence")(AccumulatedConfidenceImportance)
register_importance("contrastive")(ContrastiveImportance)
