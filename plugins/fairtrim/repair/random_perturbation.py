"""Random perturbation: multiply every weight by noise, many times, and keep the best network with its threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fairtrim.errors import InputError

from .post_processor import PostProcessor
from .working_copy import Workspace

__all__ = ["RandomPerturbation"]


@dataclass(kw_only=True)
class RandomPerturbation(PostProcessor):
    """Intra-processing by random perturbation (Savani, White, Govindarajulu, NeurIPS 2020, algorithm 1).

    Every trial multiplies each parameter of the *given* network by N(1, deviation²); the trial and the threshold with
    the largest φ win. The edit sees no data, so that all people select.

    Args:
        trials: T; the paper's 101.
        deviation: Standard deviation of the noise; the paper's 0.1.

    Example:
        >>> x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
        >>> people = [(x, (x[:, 0] > 0).long(), ["a", "b"] * 30)]
        >>> repair = RandomPerturbation(trials=5, epsilon=0.2).fit(torch.nn.Linear(3, 2), people, progress=False)
        >>> len(repair.history)  # the network as given, and five trials
        6
    """

    trials: int = 101
    deviation: float = 0.1

    edits_on_data: ClassVar[bool] = False

    def check(self) -> None:
        """Refuse settings that can't work.

        Raises:
            InputError: One is out of range.
        """
        super().check()
        if self.trials < 1 or not self.deviation > 0:
            raise InputError(
                f"trials={self.trials}, deviation={self.deviation}; expected at least 1 trial and a positive deviation"
            )

    def _edit(self, workspace: Workspace) -> None:
        entries = [(p, p.detach().clone()) for p in workspace.model.parameters() if p.is_floating_point()]
        with workspace.bar(self.trials, "random perturbation") as bar, torch.no_grad():
            for trial in range(self.trials):
                if workspace.exhausted():
                    break
                for parameter, original in entries:
                    noise = torch.randn(original.shape, generator=workspace.generator).to(original)
                    parameter.copy_(original * (1 + self.deviation * noise))
                workspace.offer(trial=trial)
                bar.update()
