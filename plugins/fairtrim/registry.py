"""Methods that describe themselves, found by name: those of a room, those of other packages, those of a script."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import warnings
from collections.abc import Callable, ItemsView, Iterator, Mapping, Sequence, ValuesView
from contextlib import suppress
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, ClassVar, Literal, TypeVar, get_args

from .arguments import Renamed, did_you_mean
from .errors import InputError
from .printing import Block, Printed

__all__ = ["Described", "Registry", "Standing", "what_it_is"]

_logger = logging.getLogger("fairtrim.registry")

Standing = Literal["published", "reconstruction", "ours", "baseline"]

Method = TypeVar("Method", bound=type[Any])


class Described:
    """A method that says what it is.

    Attributes:
        name: Lower-case words joined by hyphens; a class without one of its own is not offered by name.
        does: What it does, to whom, in a line.
        when: When to take it: what stands behind "take it ..."; methods of others may lack it.
        source: Paper or library that it comes from.
        link: Where that can be read.
        standing: ``published``, ``reconstruction`` (only the idea is public), ``ours`` or ``baseline``.
        remark: Where it departs from its source.

    Raises:
        InputError: A subclass has a name and doesn't say the rest, its standing is none of these, or it implements a
            method under its former name.
    """

    name: ClassVar[str]
    does: ClassVar[str]
    when: ClassVar[str] = ""
    source: ClassVar[str] = ""
    link: ClassVar[str] = ""
    standing: ClassVar[Standing]
    remark: ClassVar[str] = ""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if (name := _own_name(cls)) is not None:
            if "when" not in vars(cls):
                cls.when = ""  # that of what it is derived from is of another method
            unsaid = [f"{entry}=" for entry in ("does", "standing") if entry not in vars(cls)]
            if unsaid:
                raise InputError(
                    f"{cls.__qualname__} has name={name!r}, by which registries would offer it, and doesn't say "
                    f"{', '.join(unsaid)} beside it"
                )
            if not isinstance(cls.when, str) or cls.when.endswith("."):
                raise InputError(
                    f"{cls.__qualname__} has when={cls.when!r}; expected what stands behind 'take it', such as 'where "
                    "groups are small', without a full stop"
                )
            if cls.standing not in get_args(Standing):
                raise InputError(
                    f"{cls.__qualname__} has standing={cls.standing!r}; expected one of "
                    f"{', '.join(map(repr, get_args(Standing)))}"
                )
        for old in vars(cls):
            former = next((vars(base)[old] for base in cls.__mro__[1:] if old in vars(base)), None)
            if isinstance(former, Renamed) and former.new not in vars(cls):
                raise InputError(f"{cls.__qualname__} implements {old}; expected {former.new}, as it is called now")


class _UnknownMethodError(InputError, KeyError):
    """A wrong argument, and for whoever treats the registry as a dict a missing key."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would show the message in quotation marks


def what_it_is(method: Any) -> str:
    """What a method does and when to take it, in a line.

    Args:
        method: A class that describes itself, or whatever says as much.

    Returns:
        The line; empty of one that says nothing.

    Example:
        >>> from fairtrim import ThresholdSelection
        >>> what_it_is(ThresholdSelection).partition(". Take it ")[2]
        'where weights must stay, and as the rival of every edit'
    """
    does, when = (str(getattr(method, entry, "")) for entry in ("does", "when"))
    return ". Take it ".join(filter(None, (does, when)))


class Registry(Printed, Mapping[str, type[Any]]):
    """Classes by name; print it for what each does, and when to take it.

    Every module of a package is read at the first look-up, so that a new method is one new file. Names that other
    packages announce come from their metadata; such a class is imported when it is asked for, so that a package that
    can't be imported troubles only who asks for what it announces. ``values`` and ``items`` are those of ``loaded``.

    Args:
        kind: What messages call a member.
        packages: The package, or packages, whose modules hold members: classes with a ``name`` of their own.
        base: What a member is a subclass of.
        group: Entry-point group of other packages.
        default: Name of the member that is taken where none is named, if there is one.

    Example:
        >>> from fairtrim.repair import POST_PROCESSORS
        >>> POST_PROCESSORS["parity-fine-tuning"].__name__
        'ParityFineTuning'
    """

    def __init__(self, kind: str, packages: str | Sequence[str], base: type, group: str, default: str = "") -> None:
        self.kind, self.base, self.group, self.default = kind, base, group, default
        owner = base.__module__.partition(".")[0]
        self._base = base.__qualname__ if owner == "fairtrim" else f"{owner}'s {base.__qualname__}"
        self._packages = (packages,) if isinstance(packages, str) else tuple(packages)
        self._known: dict[str, type[Any]] = {}
        self._read = False
        self._own: set[str] = set()
        self._announced: dict[str, list[EntryPoint]] | None = None

    def add(self, cls: Method, name: str | None = None) -> Method:
        """Add a class.

        Args:
            cls: A subclass of the base.
            name: Lower-case words joined by hyphens; default its own.

        Returns:
            The class, so that this serves as a decorator.

        Raises:
            InputError: The name is taken by another class or malformed, or the class is of another kind.
        """
        self._read_packages()
        return self._add(cls, getattr(cls, "name", None) if name is None else name)

    def named(self, name: str) -> Callable[[Method], Method]:
        """A decorator that adds a class under a name; see ``add``.

        Args:
            name: Lower-case words joined by hyphens.

        Returns:
            The decorator.
        """
        return lambda cls: self.add(cls, name)

    def remove(self, name: str) -> type[Any]:
        """Forget a class that was added.

        Args:
            name: Its name.

        Returns:
            The class.

        Raises:
            InputError: There is none of that name.
        """
        cls = self[name]
        del self._known[name]
        return cls

    def refresh(self) -> None:
        """Look for packages that were installed since."""
        self._announced = None

    def _add(self, cls: Method, name: Any) -> Method:
        if not isinstance(name, str) or name != name.lower() or not all(part.isalnum() for part in name.split("-")):
            raise InputError(f"{self.kind} name {name!r}; expected lower-case words joined by hyphens")
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            raise InputError(f"{self.kind} {name!r} is {cls!r}; expected a subclass of {self._base}")
        if (known := self._known.get(name, cls)) is not cls:
            raise InputError(f"{self.kind} name {name!r} is taken by {known.__qualname__}; choose another")
        self._known[name] = cls
        return cls

    def _read_packages(self) -> None:
        if self._read:
            return
        for name in self._packages:
            for module in pkgutil.iter_modules(importlib.import_module(name).__path__, f"{name}."):
                for cls in _own_classes(importlib.import_module(module.name)):
                    if issubclass(cls, self.base) and (own := _own_name(cls)) is not None:
                        self._add(cls, own)
                        self._own.add(own)
        self._read = True  # only now: after an error the next look-up meets it again

    def announced(self) -> dict[str, list[EntryPoint]]:
        """Entry points by name: those of other packages, and of our own for what is in no room of the registry.

        Returns:
            Several of a name where packages disagree.
        """
        if self._announced is None:
            announced: dict[str, list[EntryPoint]] = {}
            for entry_point in entry_points(group=self.group):
                announced.setdefault(entry_point.name, []).append(entry_point)
            self._announced = announced  # complete: other threads may look
            return announced
        return self._announced

    def __getitem__(self, name: str) -> type[Any]:
        self._read_packages()
        if name in self._known:
            return self._known[name]
        if name not in self.announced():
            self.refresh()
        found = self.announced().get(name)
        if not found:
            meant = did_you_mean(str(name).replace("_", "-"), self)
            raise _UnknownMethodError(f"{self.kind} {name!r} is unknown{meant}; expected one of {sorted(self)}")
        found = [entry_point for entry_point in found if _is_ours(entry_point)] or found
        packages = sorted({_package_of(entry_point) for entry_point in found})
        if len(packages) > 1:
            raise InputError(
                f"{self.kind} {name!r} is announced by several packages, {' and '.join(packages)}; expected one: "
                "uninstall the others, or import the class you mean"
            )
        try:
            cls: type[Any] = self._add(found[0].load(), name)
        except (Exception, SystemExit) as error:  # whatever a foreign package does when it is imported
            remedy = "expected the package to be mended, updated or uninstalled"
            if _is_ours(found[0]):
                remedy = "expected fairtrim to be installed anew, with all that it needs"
            raise InputError(
                f"{self.kind} {name!r} of the package {packages[0]} can't be loaded "
                f"({type(error).__name__}: {error}); {remedy}"
            ) from error
        if not _is_ours(found[0]):
            _logger.info("%s %r is that of the package %s", self.kind, name, packages[0])
        return cls

    def __contains__(self, name: object) -> bool:
        self._read_packages()
        return name in self._known or name in self.announced()

    def __iter__(self) -> Iterator[str]:
        self._read_packages()
        return iter({**self._known, **self.announced()})

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def known(self) -> dict[str, type[Any]]:
        """Classes by name that are there without another import: those of the rooms, and what was loaded or added.

        Returns:
            The classes.
        """
        self._read_packages()
        return dict(self._known)

    def values(self) -> ValuesView[type[Any]]:
        """The classes that can be loaded; see ``loaded``."""
        return self.loaded().values()

    def items(self) -> ItemsView[str, type[Any]]:
        """The classes that can be loaded, with their names; see ``loaded``."""
        return self.loaded().items()

    def loaded(self) -> dict[str, type[Any]]:
        """Every class by name, those of other packages loaded for it; what can't be loaded is left out with a warning.

        Returns:
            The classes.
        """
        self._read_packages()
        for name, found in self.announced().items():
            others = [entry_point for entry_point in found if not _is_ours(entry_point)]
            if others and (name in self._own or len(others) < len(found)):
                packages = ", ".join(map(_package_of, others))
                warnings.warn(
                    f"left out: {packages} announces {name!r}, which is fairtrim's own; rename it", stacklevel=3
                )
        classes = {}
        for name in self:
            try:
                classes[name] = self[name]
            except InputError as error:
                warnings.warn(f"left out: {error}", stacklevel=3)
        return classes

    def __repr__(self) -> str:
        return f"{self.kind}s {sorted(self)}"

    def lines(self) -> dict[str, str]:
        """What each member does and when to take it, by name, the default's marked; none of others is loaded for it.

        Returns:
            Lines; that of one that another package announces says only that.
        """
        known, announced = self.known(), self.announced()
        found = {}
        for name in self:
            entries = announced.get(name, [])
            if name not in known and any(map(_is_ours, entries)):
                with suppress(InputError):  # what it needs isn't installed: then it says no more than those of others
                    known[name] = self[name]
            packages = " or ".join(map(_package_of, entries))
            line = what_it_is(known[name]) if name in known else f"of the package {packages}"
            found[name] = f"(default) {line}" if name == self.default else line
        return found

    def blocks(self) -> Iterator[Block]:
        """How many there are, and a line each."""
        yield f"{len(self)} {self.kind}s"
        yield "\n".join(f"{name}: {line}" for name, line in sorted(self.lines().items()))


def _own_classes(module: ModuleType) -> Iterator[type[Any]]:
    return (cls for cls in vars(module).values() if isinstance(cls, type) and cls.__module__ == module.__name__)


def _own_name(cls: type[Any]) -> str | None:
    """The name that a class gives itself; a property or a field called so is none."""
    name = vars(cls).get("name")
    return name if isinstance(name, str) else None


def _is_ours(entry_point: EntryPoint) -> bool:
    """Whether our own distribution announces it."""
    return _package_of(entry_point) == __name__.partition(".")[0]


def _package_of(entry_point: EntryPoint) -> str:
    distribution = getattr(entry_point, "dist", None)
    return str(distribution.name) if distribution else getattr(entry_point, "value", entry_point.name)
