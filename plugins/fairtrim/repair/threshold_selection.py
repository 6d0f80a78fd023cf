"""The decision threshold alone: what every other post-processor has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fairtrim.registry import Standing

from .candidates import Candidates
from .post_processor import PostProcessor
from .working_copy import WorkingCopy

__all__ = ["ThresholdSelection"]


@dataclass(kw_only=True)
class ThresholdSelection(PostProcessor):
    """Move the one decision threshold that all people share, and nothing else.

    The baseline of Savani, White, Govindarajulu (NeurIPS 2020): the given network is the only candidate. With
    ``epsilon=1`` it tunes the threshold for performance.

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 60)[:, None]
        >>> people = [(x, (x[:, 0] > 0.3).long(), ["a", "b", "b"] * 20)]
        >>> given = torch.nn.Linear(1, 1)
        >>> with torch.no_grad():
        ...     _ = given.weight.fill_(1.0), given.bias.zero_()
        >>> ThresholdSelection(epsilon=1.0).repair(given, people, progress=False).performance
        1.0
    """

    name: ClassVar[str] = "threshold-selection"
    does: ClassVar[str] = "moves the threshold that all people share until the bias is within its bound"
    when: ClassVar[str] = "where weights must stay, and as the rival of every edit"
    standing: ClassVar[Standing] = "baseline"

    edits_on_data: ClassVar[bool] = False

    def _edit(self, working: WorkingCopy, candidates: Candidates) -> None:
        return
