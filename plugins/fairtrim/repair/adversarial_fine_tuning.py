"""Adversarial fine-tuning: a critic learns to predict the bias of a batch, and the network learns to please it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairtrim.data.batches import Batch
from fairtrim.devices import to_device
from fairtrim.errors import InputError
from fairtrim.measures.group_counts import bias
from fairtrim.measures.objective import labels_given
from fairtrim.preservation import seeded
from fairtrim.registry import Standing

from .candidates import Candidates
from .post_processor import PostProcessor
from .working_copy import WorkingCopy

__all__ = ["AdversarialFineTuning"]

_REDRAWS = 100


@dataclass(kw_only=True)
class AdversarialFineTuning(PostProcessor):
    """Intra-processing by adversarial fine-tuning (Savani, White, Govindarajulu, NeurIPS 2020, algorithm 3).

    In turn, ``critic_steps`` of a critic that predicts the bias of a batch's decisions from the batch's penultimate
    activations (concatenated; squared error), and ``actor_steps`` of the network with the loss
    max(1, λ(|critic| − ε + margin) + 1) · cross-entropy. Steps, batch size, epochs and learning rates are the authors';
    the critic's width (two layers of 64) and λ are ours. The network is offered after every epoch, not only at the end.

    Args:
        epochs: The authors' 32.
        critic_steps: The authors' 201 an epoch.
        actor_steps: The authors' 301 an epoch.
        learning_rate: Of Adam, for the network; the authors' 1e-4.
        critic_learning_rate: Of Adam, for the critic; the 1e-3 of the authors' code, Adam's own default.
        training_batch_size: The authors' 64.
        strength: λ.

    Example:
        >>> x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
        >>> people = [(x, (x[:, 0] > 0).long(), ["a", "b"] * 150)]
        >>> method = AdversarialFineTuning(epochs=1, critic_steps=3, actor_steps=3, epsilon=0.2)
        >>> len(method.repair(torch.nn.Linear(3, 2), people, progress=False).history)
        2
    """

    name: ClassVar[str] = "adversarial-fine-tuning"
    does: ClassVar[str] = "trains all layers against a critic that predicts a batch's bias"
    when: ClassVar[str] = "to compare with what was published"
    source: ClassVar[str] = "Savani, White, Govindarajulu, NeurIPS 2020"
    link: ClassVar[str] = "https://arxiv.org/abs/2006.08564"
    standing: ClassVar[Standing] = "published"
    remark: ClassVar[str] = "the critic's size and its weight are ours"

    epochs: int = 32
    critic_steps: int = 201
    actor_steps: int = 301
    learning_rate: float = 1e-4
    critic_learning_rate: float = 1e-3
    training_batch_size: int = 64
    strength: float = 10.0

    multiclass: ClassVar[bool] = True

    def check(self) -> None:
        """Refuse settings that can't work; see ``PostProcessor.check``."""
        super().check()
        steps = {name: getattr(self, name) for name in ("epochs", "critic_steps", "actor_steps")}
        positive = self.learning_rate, self.critic_learning_rate, self.strength
        if min(steps.values()) < 1 or self.training_batch_size < 2 or not all(value > 0 for value in positive):
            raise InputError(
                f"{steps}, training_batch_size={self.training_batch_size}, learning_rate={self.learning_rate}, "
                f"critic_learning_rate={self.critic_learning_rate}, "
                f"strength={self.strength}; expected positive numbers and batches of at least 2"
            )

    def _edit(self, working: WorkingCopy, candidates: Candidates) -> None:
        size = min(self.training_batch_size, len(working.people))
        _, batch = self._batch(working, size)
        with torch.no_grad():
            width = working.head.features(working.network, batch)[0].shape[1]
        critic = self._critic(size * width, working)
        watch = torch.optim.Adam(critic.parameters(), lr=self.critic_learning_rate)
        act = torch.optim.Adam(working.trainable(), lr=self.learning_rate)
        with working.bar(self.epochs * (self.critic_steps + self.actor_steps), "adversarial fine-tuning") as bar:
            for epoch in range(self.epochs):
                for step in range(self.critic_steps + self.actor_steps):
                    if candidates.exhausted():
                        return
                    rows, batch = self._batch(working, size)
                    if step < self.critic_steps:
                        self._step(watch, self._critic_loss(working, critic, rows, batch))
                    else:
                        self._step(act, self._actor_loss(working, critic, rows, batch, candidates.objective.bound))
                    bar.update()
                candidates.offer(epoch=epoch)

    @staticmethod
    def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """One step down a loss."""
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def _critic_loss(self, working: WorkingCopy, critic: nn.Module, rows: Tensor, batch: Batch) -> Tensor:
        """Squared error of the predicted bias of a batch."""
        with torch.no_grad():
            features, scores = working.head.features(working.network, batch)
            counts = working.counts(labels_given(scores.cpu()), rows)
            truth = bias(self.measure, counts, signed=counts.n_groups == 2)
        truth = to_device(truth.to(features.dtype), features.device)
        return F.mse_loss(critic(features.flatten()[None])[0, 0], truth)

    def _actor_loss(self, working: WorkingCopy, critic: nn.Module, rows: Tensor, batch: Batch, bound: float) -> Tensor:
        """max(1, λ(|critic| − bound) + 1) · cross-entropy."""
        features, scores = working.head.features(working.network, batch)
        suspected: Tensor = critic(features.flatten()[None])[0, 0].abs()
        factor = (self.strength * (suspected - bound) + 1).clamp(min=1)
        return factor * working.cross_entropy(scores, rows)

    def _critic(self, n_inputs: int, working: WorkingCopy) -> nn.Module:
        with seeded(working.generator):
            sizes = ((n_inputs, 64), (64, 64), (64, 1))
            first, second, last = (nn.Linear(*size, device="cpu") for size in sizes)
            critic = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
        like = working.head.module.weight
        return critic.to(device=like.device, dtype=like.dtype)

    def _batch(self, working: WorkingCopy, size: int) -> tuple[Tensor, Batch]:
        """A batch that the bias is defined for; drawn again as long as a group or a label of a group is missing."""
        people = working.people
        for _ in range(_REDRAWS):
            rows = torch.randperm(len(people), generator=working.generator, device="cpu")[:size]
            anything = torch.ones(size, 1 if working.n_classes == 2 else working.n_classes, device="cpu")
            if bool(torch.isfinite(bias(self.measure, working.counts(anything, rows)))):
                chosen = people.take(rows)
                return rows, next(batch for _, batch in chosen.batches(size, working.device))
        raise InputError(
            f"none of {_REDRAWS} batches of {size} people holds every sensitive group that {self.measure} compares; "
            "expected a larger training_batch_size"
        )
