"""Importances by name: for scripts that choose with a string, and for third parties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch_pruning as tp

from fairtrim import InputError
from fairtrim.registry import Registry

__all__ = ["IMPORTANCES", "register", "register_importance"]

ImportanceClass = TypeVar("ImportanceClass", bound=type[Any])

IMPORTANCES = Registry(
    "importance",
    "fairtrim_adapters.torch_pruning.importances",
    tp.importance.Importance,
    "fairtrim.criteria",
    default="mean-damage",
)
"""Importance classes by name, e.g. ``IMPORTANCES["worst-group"]``; an InputError names them if there is none. Classes
that other packages announce under the entry-point group ``fairtrim.criteria`` are among them."""


def register_importance(name: str) -> Callable[[ImportanceClass], ImportanceClass]:
    """Add an importance class under a name; one with a ``name`` of its own in a file of this room needs none of it.

    Args:
        name: Lower-case words joined by hyphens.

    Returns:
        A class decorator.

    Raises:
        InputError: When it is applied: the name is taken by another class, malformed, or the class is no importance.

    Example:
        >>> import torch
        >>> import torch_pruning as tp
        >>> @register_importance("first-come")
        ... class FirstComeImportance(tp.importance.Importance):
        ...     def __call__(self, group):
        ...         return torch.arange(len(group[0].idxs)).double()
        >>> IMPORTANCES.remove("first-come").__name__
        'FirstComeImportance'
    """
    return IMPORTANCES.named(name)


def register() -> dict[str, type[Any]]:
    """Put every importance on ``torch_pruning.importance`` under its class name.

    A script that selects with ``getattr(tp.importance, name)`` then finds them. Classes that other packages announce
    under the entry-point group ``fairtrim.criteria`` are loaded for it; one that can't be is left out with a warning.

    Returns:
        The registered classes by name.

    Raises:
        InputError: A class name is one that Torch-Pruning uses for something else.

    Example:
        >>> import torch_pruning as tp
        >>> sorted(register())[:2]
        ['accumulated-confidence', 'contrastive']
        >>> tp.importance.WorstGroupImportance.__name__
        'WorstGroupImportance'
    """
    IMPORTANCES.refresh()
    classes = IMPORTANCES.loaded()
    for cls in classes.values():
        if getattr(tp.importance, cls.__name__, cls) is not cls:
            raise InputError(f"torch_pruning.importance.{cls.__name__} exists already; rename the class")
        setattr(tp.importance, cls.__name__, cls)
    return classes
