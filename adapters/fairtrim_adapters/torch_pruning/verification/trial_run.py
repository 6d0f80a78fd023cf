"""One pass of a network that goes on trial: what comes out of it, and how its failure is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fairtrim import UnsupportedModelError
from fairtrim.data.batches import Batch

__all__ = ["Run", "at_least_two", "failing", "same_shape"]


@dataclass(frozen=True)
class Run:
    """What came out of one pass: the scores, None where training mode returns none, and the layers that ran.

    ``precision`` is the distance from 1 to the next number in the coarsest type that layers gave out, as far as they
    were watched.
    """

    scores: Tensor | None
    reached: frozenset[str]
    precision: float

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the scores."""
        return None if self.scores is None else tuple(self.scores.shape)


def at_least_two(batch: Batch) -> Batch:
    """A batch of one taken twice, which norms over a batch want in training mode."""
    if len(batch) != 1:
        return batch

    def twice(leaf: Any) -> Any:
        return torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == 1 else leaf

    return Batch(tree_map(twice, batch.inputs), twice(batch.target), None, batch.index)


@contextmanager
def failing(where: str, cause: str = "") -> Iterator[None]:
    """Say where a network fails that ran before.

    ``where``: without which channels, and in which mode. ``cause``: what hides a layer from Torch-Pruning and what
    helps, if it is known.
    """
    try:
        yield
    except (UnsupportedModelError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a network may raise
        raise UnsupportedModelError(
            f"{where} the network fails: {type(error).__name__}: {_first_line(error)}. {cause or _ANY_CAUSE}, or add "
            "the layers whose channels go to ignored_layers; if your script writes sizes into the network after each "
            "step, pass that function as after_step="
        ) from error


_ANY_CAUSE = (
    "Torch-Pruning sees only what one differentiable pass in eval mode shows, not frozen layers, buffers with a number "
    "for each channel, parts under no_grad, products with a bare parameter, or the network's own input in a sum: let "
    "these require gradients while the pruner is made"
)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def same_shape(where: str, now: Run, before: Run) -> None:
    """Refuse a network that gives other scores than before."""
    if now.shape != before.shape:
        raise UnsupportedModelError(
            f"{where} the network gives scores of shape {now.shape}; expected {before.shape}, as before. Add the "
            "layers that produce them to ignored_layers"
        )
