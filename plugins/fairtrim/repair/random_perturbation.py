"""Random perturbation: multiply every weight by noise, many times, and keep the best network with its threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fairtrim.arguments import random_generator
from fairtrim.errors import InputError
from fairtrim.registry import Standing

from .candidates import Candidates
from .post_processor import PostProcessor
from .working_copy import WorkingCopy

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
        >>> repair = RandomPerturbation(trials=5, epsilon=0.2).repair(torch.nn.Linear(3, 2), people, progress=False)
        >>> len(repair.history)  # the network as given, and five trials
        6
    """

    name: ClassVar[str] = "random-perturbation"
    does: ClassVar[str] = (
        "multiplies every weight by noise, many times, and keeps the best within the bound on the bias"
    )
    when: ClassVar[str] = "to compare with what was published"
    source: ClassVar[str] = "Savani, White, Govindarajulu, NeurIPS 2020"
    link: ClassVar[str] = "https://arxiv.org/abs/2006.08564"
    standing: ClassVar[Standing] = "published"

    trials: int = 101
    deviation: float = 0.1

    edits_on_data: ClassVar[bool] = False
    multiclass: ClassVar[bool] = True

    def check(self) -> None:
        """Refuse settings that can't work; see ``PostProcessor.check``."""
        super().check()
        if self.trials < 1 or not self.deviation > 0:
            raise InputError(
                f"trials={self.trials}, deviation={self.deviation}; expected at least 1 trial and a positive deviation"
            )

    def _edit(self, working: WorkingCopy, candidates: Candidates) -> None:
        # draws on the network's device, with a generator of it
        device, generator = working.device, random_generator(working.generator, working.device)
        entries = [(p, p.detach().clone()) for p in working.model.parameters() if p.is_floating_point()]
        with working.bar(self.trials, "random perturbation") as bar, torch.no_grad():
            for trial in range(self.trials):
                if candidates.exhausted():
                    break
                for parameter, original in entries:
                    noise = torch.randn(original.shape, generator=generator, dtype=torch.float32, device=device).to(
                        original
                    )
                    parameter.copy_(original * (1 + self.deviation * noise))
                candidates.offer(trial=trial)
                bar.update()
