"""Random scores from a source of their own."""

from __future__ import annotations

import torch
import torch_pruning as tp
from torch import Tensor

from fairtrim.arguments import RandomState, random_generator, renamed

__all__ = ["RandomImportance"]


@renamed(generator="random_state")
class RandomImportance(tp.importance.Importance):  # type: ignore[misc]
    """Random scores from a generator of its own; Torch-Pruning's draws from the global one."""

    def __init__(self, random_state: RandomState = 0) -> None:
        self._generator = random_generator(random_state)

    def __call__(self, group: tp.Group) -> Tensor:
        """Scores of one dependency group, (C,)."""
        return torch.rand(len(group[0].idxs), generator=self._generator, dtype=torch.float32, device="cpu")
