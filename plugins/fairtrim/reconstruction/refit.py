"""Refit every layer that reads a removed channel to the outputs it had, layer by layer, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fairtrim.arguments import RandomState
from fairtrim.data.batches import ForwardFunction

from .readers import Reader

__all__ = ["LayerRefit", "Reconstruction", "reconstruct"]


@dataclass(frozen=True)
class LayerRefit:
    """What became of one layer.

    Attributes:
        module: Its name.
        inputs: Unknowns of one output: kept inputs times kernel positions.
        rows: Samples times positions it was fitted on.
        ridge: The ridge that was best on held-out samples, e.g. ``"0.01 of each input's own"``; empty if left as it is.
        before: Held-out squared error of the pruned layer as it was, as a share of the outputs' variance.
        after: The same after the refit; equal to ``before`` where the layer is left.
        why: Why the layer is left as it is; empty if it was refitted.
    """

    module: str
    inputs: int
    rows: int
    ridge: str
    before: float
    after: float
    why: str = ""


@dataclass(frozen=True)
class Reconstruction:
    """What a refit did, layer by layer in the order of computation; print it."""

    layers: tuple[LayerRefit, ...]


def reconstruct(
    model: nn.Module,
    dense: nn.Module,
    loader: Iterable[Any],
    readers: Sequence[Reader],
    *,
    forward_fn: ForwardFunction | None = None,
    weigh_groups: bool = False,
    max_samples: int = 4096,
    random_state: RandomState = 0,
    distributed: bool | None = None,
    progress: bool = True,
) -> Reconstruction:
    """Refit in place; see the brief."""
    raise NotImplementedError
