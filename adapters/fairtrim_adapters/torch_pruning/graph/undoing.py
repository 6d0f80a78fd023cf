"""Put back whatever a pruner of Torch-Pruning removed, to the very tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim.preservation import insist

__all__ = ["Held", "undone"]

_OWN = ("torch_pruning", "fairtrim_adapters")
"""Packages whose objects hold what a step changes: the graph, its maps, the counts of channels and heads."""

_WHOLE = frozenset({str, int, float, bool, type(None)})
"""Nothing is inside of these, and most of what a graph holds is places, numbers by the thousand."""


class Held:
    """What a pruner, its graph and its network hold: to be put back as often as it is changed."""

    def __init__(self, graph: tp.DependencyGraph, pruner: tp.pruner.BasePruner | None = None) -> None:
        self._dicts: list[tuple[dict[Any, Any], list[tuple[Any, Any]]]] = []
        self._lists: list[tuple[list[Any], list[Any]]] = []
        self._sets: list[tuple[set[Any], list[Any]]] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._arrays: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
        self._keep: list[Any] = []
        seen: set[int] = set()
        waiting: list[Any] = [graph, pruner, *graph.model.modules()]
        while waiting:
            value = waiting.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            self._keep.append(value)  # an id means something only as long as its owner lives
            waiting.extend(part for part in self._note(value) if type(part) not in _WHOLE)

    def _note(self, value: Any) -> list[Any]:
        """Write down what a value holds, and give what to look at next."""
        if isinstance(value, dict):
            entries = list(value.items())
            self._dicts.append((value, entries))
            return [part for entry in entries for part in entry]
        if isinstance(value, list):
            self._lists.append((value, list(value)))
            return list(value)
        if isinstance(value, set):
            self._sets.append((value, list(value)))
            return list(value)
        if isinstance(value, tuple):
            return list(value)
        if isinstance(value, np.ndarray):
            self._arrays.append((value, value.copy()))
            return []
        if isinstance(value, Tensor):
            if isinstance(value, nn.Parameter):
                self._tensors.append((value, value.data))
            return []
        if isinstance(value, (tp.importance.Importance, type)):
            return []
        if isinstance(value, nn.Module):
            # a config, say: what it keeps itself
            return [vars(value), *(vars(entry) for entry in vars(value).values() if _is_plain(entry))]
        of_host = isinstance(value, (tp.pruner.BasePruner, tp.DependencyGraph))  # a class of the caller's own, too
        if of_host or (type(value).__module__.partition(".")[0] in _OWN and hasattr(value, "__dict__")):
            return [vars(value)]
        return []

    def restore(self) -> None:
        """Put everything back that has changed."""
        for held, entries in self._dicts:
            if len(held) != len(entries) or any(
                a is not c or b is not d for (a, b), (c, d) in zip(held.items(), entries, strict=True)
            ):
                held.clear()
                held.update(entries)
        for listed, values in self._lists:
            if len(listed) != len(values) or any(a is not b for a, b in zip(listed, values, strict=True)):
                listed[:] = values
        for together, members in self._sets:
            if len(together) != len(members) or not together.issuperset(members):
                together.clear()
                together.update(members)
        for array, numbers in self._arrays:
            np.copyto(array, numbers)
        for tensor, data in self._tensors:
            if tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape:
                tensor.data = data  # a pruner of one's own may have given it other data


def _is_plain(value: Any) -> bool:
    """Whether something that a module keeps is an object with attributes of its own."""
    machinery = (nn.Module, Tensor, FunctionType, MethodType, ModuleType, type)
    return hasattr(value, "__dict__") and isinstance(vars(value), dict) and not isinstance(value, machinery)


@contextmanager
def undone(held: Held, *, only_on_error: bool = False) -> Iterator[None]:
    """Whatever is removed inside of the block is there again behind it.

    Torch-Pruning replaces parameters and buffers by shorter ones and writes sizes into layers, its graph and itself;
    these are put back as they were, the very tensors with their versions, and with them the attributes of modules, what
    lists, dicts, sets and arrays among them hold, and the attributes of plain objects such as a config. Numbers that
    are written into parameters or buffers in place don't come back. It costs no copy of the network.

    With ``only_on_error`` what was done stays where the block ends without an error.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> importance = tp.importance.GroupMagnitudeImportance()
        >>> pruner = tp.pruner.BasePruner(
        ...     model, model[0].weight[:2], importance=importance, pruning_ratio=0.5, ignored_layers=[model[2]]
        ... )
        >>> weight = model[0].weight
        >>> with undone(Held(pruner.DG, pruner)):
        ...     pruner.step()
        ...     print(tuple(model[0].weight.shape))
        (2, 3)
        >>> model[0].weight is weight, model[0].out_features, pruner.current_step
        (True, 4, 0)
    """
    try:
        yield
    except BaseException:
        insist(held.restore)
        raise
    if not only_on_error:
        insist(held.restore)
