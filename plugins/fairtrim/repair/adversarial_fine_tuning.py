"""Adversarial fine-tuning: a critic learns to predict the bias of a batch, and the network learns to please it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairtrim.data.batches import Batch
from fairtrim.errors import InputError
from fairtrim.measures.group_counts import GroupCounts, bias
from fairtrim.measures.scores import label_losses
from fairtrim.preservation import preserved_random_state

from .post_processor import PostProcessor
from .working_copy import Workspace

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
        >>> len(method.fit(torch.nn.Linear(3, 2), people, progress=False).history)
        2
    """

    epochs: int = 32
    critic_steps: int = 201
    actor_steps: int = 301
    learning_rate: float = 1e-4
    critic_learning_rate: float = 1e-3
    training_batch_size: int = 64
    strength: float = 10.0

    def check(self) -> None:
        """Refuse settings that can't work.

        Raises:
            InputError: One is out of range.
        """
        super().check()
        steps = {name: getattr(self, name) for name in ("epochs", "critic_steps", "actor_steps")}
        positive = self.learning_rate, self.critic_learning_rate, self.strength
        if min(steps.values()) < 1 or self.training_batch_size < 2 or not all(value > 0 for value in positive):
            raise InputError(
                f"{steps}, training_batch_size={self.training_batch_size}, learning_rate={self.learning_rate}, "
                f"critic_learning_rate={self.critic_learning_rate}, "
                f"strength={self.strength}; expected positive numbers and batches of at least 2"
            )

    def _edit(self, workspace: Workspace) -> None:
        size = min(self.training_batch_size, len(workspace.edit))
        rows, batch = self._batch(workspace, size)
        with torch.no_grad():
            width = workspace.features(batch)[0].shape[1]
        critic = self._critic(size * width, workspace)
        watch = torch.optim.Adam(critic.parameters(), lr=self.critic_learning_rate)
        act = torch.optim.Adam(workspace.trainable(), lr=self.learning_rate)
        with workspace.bar(self.epochs * (self.critic_steps + self.actor_steps), "adversarial fine-tuning") as bar:
            for epoch in range(self.epochs):
                for _ in range(self.critic_steps):
                    if workspace.exhausted():
                        return
                    rows, batch = self._batch(workspace, size)
                    with torch.no_grad():
                        features, scores = workspace.features(batch)
                        truth = self._batch_bias(workspace, scores, rows)
                    error = F.mse_loss(critic(features.flatten()[None])[0, 0], truth.to(features))
                    watch.zero_grad()
                    error.backward()  # type: ignore[no-untyped-call]
                    watch.step()
                    bar.update()
                for _ in range(self.actor_steps):
                    if workspace.exhausted():
                        return
                    rows, batch = self._batch(workspace, size)
                    features, scores = workspace.features(batch)
                    suspected = critic(features.flatten()[None])[0, 0].abs()
                    factor = (self.strength * (suspected - workspace.objective.bound) + 1).clamp(min=1)
                    own = None if workspace.edit.weight is None else workspace.edit.weight[rows].to(scores)
                    loss = factor * self._cross_entropy(scores, batch.target, own)
                    act.zero_grad()
                    loss.backward()
                    act.step()
                    bar.update()
                workspace.offer(epoch=epoch)

    def _critic(self, n_inputs: int, workspace: Workspace) -> nn.Module:
        seed = int(torch.randint(2**31, (), generator=workspace.generator))
        with preserved_random_state():
            torch.manual_seed(seed)
            critic = nn.Sequential(nn.Linear(n_inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
        like = workspace.head.module.weight
        return critic.to(device=like.device, dtype=like.dtype)

    def _batch(self, workspace: Workspace, size: int) -> tuple[Tensor, Batch]:
        """A batch that the bias is defined for; drawn again as long as a group or a label of a group is missing."""
        people = workspace.edit
        for _ in range(_REDRAWS):
            rows = torch.randperm(len(people), generator=workspace.generator)[:size]
            given = torch.ones(size, 1)
            own = None if people.weight is None else people.weight[rows]
            counts = GroupCounts.of(
                given, people.target[rows], people.group[rows], n_groups=people.n_groups, weight=own
            )
            if bool(torch.isfinite(bias(self.measure, counts))):
                chosen = people.take(rows)
                return rows, next(batch for _, batch in chosen.batches(size, workspace.device))
        raise InputError(
            f"none of {_REDRAWS} batches of {size} people holds every sensitive group that {self.measure} compares; "
            "expected a larger training_batch_size"
        )

    def _batch_bias(self, workspace: Workspace, scores: Tensor, rows: Tensor) -> Tensor:
        people = workspace.edit
        decided = scores > 0 if scores.shape[1] == 1 else (scores[:, 1] > scores[:, 0])[:, None]
        counts = GroupCounts.of(
            decided.cpu().double(),
            people.target[rows],
            people.group[rows],
            n_groups=people.n_groups,
            weight=None if people.weight is None else people.weight[rows],
        )
        return bias(self.measure, counts, signed=people.n_groups == 2)

    @staticmethod
    def _cross_entropy(scores: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        losses = label_losses(scores, target)
        return losses.mean() if weight is None else (losses * weight).sum() / weight.sum()
