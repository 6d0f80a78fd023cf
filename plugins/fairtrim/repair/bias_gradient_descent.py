"""Bias gradient descent or ascent: fine-tune on the bias itself for a few epochs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fairtrim.errors import InputError
from fairtrim.measures.differentiable_bias import proxy_bias
from fairtrim.measures.group_counts import bias, rates
from fairtrim.measures.scores import probabilities
from fairtrim.registry import Standing

from .candidates import Candidates
from .post_processor import PostProcessor
from .working_copy import WorkingCopy

__all__ = ["BiasGradientDescent"]


@dataclass(kw_only=True)
class BiasGradientDescent(PostProcessor):
    """Gradient descent on ±μ (Marcinkevics, Ozkan, Vogt, MLHC 2022).

    The differentiable proxy μ of the bias is followed downhill if the given network's is positive, uphill if it is
    negative; nothing holds the performance, so the networks passed on the way are the candidates. Optimizer, step and
    batch size are ours; so are more than two groups, or several rates (equalized odds, K > 2 classes): the largest
    difference goes down.

    Args:
        epochs: Passes over the edit people.
        learning_rate: Of Adam.
        training_batch_size: Samples a step.
        evaluate_every: Steps between candidates.
        performance_floor: Published selection: the least-biased candidate and threshold with a performance of at
            least this. None selects by φ, as the other post-processors do.

    Example:
        >>> x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
        >>> people = [(x, (x[:, 0] > 0).long(), (x[:, 1] + x[:, 0] > 0).long())]
        >>> repair = BiasGradientDescent(epochs=2, epsilon=0.2).repair(torch.nn.Linear(3, 2), people, progress=False)
        >>> repair.within_bound
        True
    """

    name: ClassVar[str] = "bias-gradient-descent"
    does: ClassVar[str] = "moves all layers down the bias itself while the performance stays above a floor"
    when: ClassVar[str] = "to compare with what was published"
    source: ClassVar[str] = "Marcinkevics, Ozkan, Vogt, MLHC 2022"
    standing: ClassVar[Standing] = "published"
    remark: ClassVar[str] = "optimizer and step are ours"

    epochs: int = 10
    learning_rate: float = 1e-3
    training_batch_size: int = 256
    evaluate_every: int = 5
    performance_floor: float | None = None

    multiclass: ClassVar[bool] = True

    def check(self) -> None:
        """Refuse settings that can't work; see ``PostProcessor.check``."""
        super().check()
        if min(self.epochs, self.evaluate_every) < 1 or self.training_batch_size < 2 or not self.learning_rate > 0:
            raise InputError(
                f"epochs={self.epochs}, evaluate_every={self.evaluate_every}, "
                f"training_batch_size={self.training_batch_size}, learning_rate={self.learning_rate}; "
                "expected positive numbers and batches of at least 2"
            )
        if self.performance_floor is not None and not 0 <= self.performance_floor <= 1:
            raise InputError(f"performance_floor={self.performance_floor}; expected a performance in [0, 1], or None")

    def _set_up(self, working: WorkingCopy, candidates: Candidates) -> None:
        candidates.performance_floor = self.performance_floor

    def _edit(self, working: WorkingCopy, candidates: Candidates) -> None:
        people = working.people
        counts = working.counts(probabilities(working.scores(people)))
        # of several rates the one that differs most, which may be another in every batch: down its size
        several = rates(self.measure, counts).shape[-2] > 1
        sign = 1.0 if several or float(proxy_bias(self.measure, counts)) >= 0 else -1.0
        optimizer = torch.optim.Adam(working.trainable(), lr=self.learning_rate)
        per_epoch = -(-len(people) // self.training_batch_size)
        step = 0
        with working.bar(self.epochs * per_epoch, "bias gradient descent") as bar:
            for epoch in range(self.epochs):
                for rows, batch in people.batches(self.training_batch_size, working.device, working.generator):
                    if candidates.exhausted():
                        return
                    counts = working.counts(probabilities(working.network.scores(batch)), rows)
                    slope = bias(self.measure, counts) if several else sign * proxy_bias(self.measure, counts)
                    bar.update()
                    step += 1
                    optimizer.zero_grad()
                    slope.backward()  # type: ignore[no-untyped-call]
                    # a device is waited for when it has enough to do
                    if bool(torch.isfinite(slope)):  # else a group is missing in the batch
                        optimizer.step()
                    if step % self.evaluate_every == 0 or step == self.epochs * per_epoch:
                        candidates.offer(epoch=epoch, step=step)
