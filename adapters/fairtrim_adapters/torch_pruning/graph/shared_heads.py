"""Heads of keys and values that several query heads share, as Torch-Pruning counts and maps them.

Torch-Pruning maps such keys and values to no queries. Here a head of keys and values goes when all query heads that
share it go. Where they go together channels of a key belong to those of its first query head, and to the same unit;
where query heads go by themselves, the same number from each key, keys belong to none of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from types import MethodType
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning._helpers import _HybridIndex

from .corrections import correct_graph

__all__ = ["SharedHeads", "correct_traced_graph", "is_shared", "recounted", "shared_by"]


class SharedHeads(int):
    """How many heads of keys and values one layer gives beside the ``queries`` of each.

    Torch-Pruning takes a third of a layer that gives all three for queries: it divides its outputs by three times the
    heads. Three times these heads is so many that a head's part is that of its queries.

    Example:
        >>> heads = SharedHeads(2, queries=4)  # 8 query heads and twice 2 heads of keys and values, of 5 dimensions
        >>> 60 // (heads * 3), heads - 1, (heads - 1).queries
        (20, 1, 4)
    """

    queries: int

    def __new__(cls, heads: int, queries: int = 1) -> SharedHeads:
        """Count."""
        self = super().__new__(cls, heads)
        self.queries = queries
        return self

    def __mul__(self, times: Any) -> Any:
        return Fraction(int(self) * (self.queries + 2), self.queries) if times == 3 else int(self) * times

    def __sub__(self, removed: Any) -> SharedHeads:
        return SharedHeads(int(self) - int(removed), self.queries)


def recounted(known: int | None, heads: int) -> int:
    """Another number of heads, which says what the number known before says beside.

    Example:
        >>> recounted(4, 3), recounted(SharedHeads(4, queries=2), 3).queries
        (3, 2)
    """
    return SharedHeads(heads, known.queries) if isinstance(known, SharedHeads) else heads


class _Repeat(torch.autograd.Function):
    """Repeats heads, (N, T, C) -> (N, T, times · C), and says to Torch-Pruning's graph how channels are mapped."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, size: int, times: Callable[[], int], together: bool) -> Tensor:
        ctx.maps_of_outputs = _ToQueries(size, times), _ToKeys(size, times, together)
        n, length, _ = states.shape
        return states.view(n, length, -1, 1, size).expand(-1, -1, -1, times(), -1).reshape(n, length, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        raise NotImplementedError("made to be traced")


class _ToQueries:
    """Channels of keys or values -> those of all queries that share them, in their order."""

    def __init__(self, size: int, times: Callable[[], int]) -> None:
        self._size, self._times = size, times

    def __call__(self, idxs: Sequence[Any]) -> list[Any]:
        size, times = self._size, self._times()
        every = [
            _HybridIndex(idx=(i.idx // size * times + k) * size + i.idx % size, root_idx=i.root_idx)
            for i in idxs
            for k in range(times)
        ]
        return sorted(every, key=lambda i: i.idx)


class _ToKeys:
    """Channels of all the queries that share a key -> its channels; as long as one of them is missing it stays."""

    def __init__(self, size: int, times: Callable[[], int], together: bool) -> None:
        self._size, self._times, self._together = size, times, together

    def __call__(self, idxs: Sequence[Any]) -> list[Any]:
        size, times = self._size, self._times()
        present = {i.idx for i in idxs}
        return [
            _HybridIndex(
                idx=i.idx // (size * times) * size + i.idx % size, root_idx=i.root_idx if self._together else None
            )
            for i in idxs
            if i.idx // size % times == 0 and all(i.idx + k * size in present for k in range(times))
        ]


def shared_by(states: Tensor, *, size: int, times: Callable[[], int], together: bool = True) -> Tensor:
    """Keys or values for the queries that share them, in an operation that can only be traced.

    ``states`` are (N, T, C) with heads of ``size`` dimensions; gives (N, T, times · C), each head so often as
    ``times()`` says, which is asked again after each step. ``together``: whether query heads go with their keys only.

    Example:
        >>> shared_by(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), size=2, times=lambda: 2).tolist()
        [[[1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]]]
    """
    apply: Callable[..., Tensor] = _Repeat.apply  # typed in some versions of torch
    return apply(states, size, times, together)


def is_shared(graph: tp.DependencyGraph, layer: nn.Module) -> bool:
    """Whether a layer gives keys or values that were traced by ``shared_by``."""
    return any(hasattr(reader.grad_fn, "maps_of_outputs") for reader in graph.module2node[layer].outputs)


def correct_traced_graph() -> None:
    """Called in a forward pass that Torch-Pruning traces: let its graph map channels right, whoever asks it for groups.

    Torch-Pruning hands a forward function nothing but the network, and its own importances nothing that is fairtrim's.
    """
    frame = sys._getframe(1)
    while frame is not None:
        graph = frame.f_locals.get("self")
        if isinstance(graph, tp.DependencyGraph):
            vars(graph)["get_pruning_group"] = MethodType(_group_of_corrected, graph)
            return
        frame = frame.f_back  # type: ignore[assignment]


def _group_of_corrected(graph: tp.DependencyGraph, *args: Any, **kwargs: Any) -> tp.Group:
    correct_graph(graph)
    return type(graph).get_pruning_group(graph, *args, **kwargs)
