"""Adversarial projection: fine-tune against an adversary that tells the sensitive group from the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairtrim.arguments import require_number
from fairtrim.devices import to_device
from fairtrim.measures.scores import label_probability, probabilities
from fairtrim.preservation import seeded
from fairtrim.registry import Standing

from .candidates import Candidates
from .post_processor import PostProcessor
from .working_copy import WorkingCopy

__all__ = ["AdversarialProjection"]


@dataclass(kw_only=True)
class AdversarialProjection(PostProcessor):
    """Adversarial projection (Zhang, Lemoine, Mitchell, AIES 2018), after training.

    An adversary learns to predict the sensitive group from what the bias measure compares, the network to minimise its
    cross-entropy L_P by steps that don't help the adversary: along ∇L_P − proj_∇L_A ∇L_P − α ∇L_A, L_A the adversary's
    cross-entropy, the projection over all weights together. Both take a step of Adam a batch; the networks passed on
    the way are the candidates.

    As published the adversary is linear in s = σ((1 + |c|) f), c learned, for statistical parity; in
    [s, s y, s (1 − y)] for equalized odds; and sees those with y = 1 alone for equal opportunity. Ours: K classes, by
    probabilities of each (under equal opportunity that of the own label, label by label), the own label's for
    differences of accuracy, and any number of groups. Steps and α are ours: the paper trains from scratch.

    Args:
        epochs: Passes over the edit people.
        learning_rate: Of Adam, for the network.
        adversary_learning_rate: Of Adam, for the adversary.
        strength: α.
        training_batch_size: Samples a step.
        evaluate_every: Steps between candidates.

    Example:
        >>> x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
        >>> people = [(x, (x[:, 0] > 0).long(), ["a", "b"] * 150)]
        >>> method = AdversarialProjection(epochs=2, evaluate_every=3, epsilon=0.2)
        >>> len(method.repair(torch.nn.Linear(3, 2), people, progress=False).history)
        3
    """

    name: ClassVar[str] = "adversarial-projection"
    does: ClassVar[str] = "trains all layers by steps that don't help an adversary to tell the sensitive group"
    when: ClassVar[str] = "to compare with what was published"
    source: ClassVar[str] = "Zhang, Lemoine, Mitchell, AIES 2018"
    link: ClassVar[str] = "https://arxiv.org/abs/1801.07593"
    standing: ClassVar[Standing] = "published"
    remark: ClassVar[str] = "published for training from scratch; steps, and more than two classes or groups, are ours"

    epochs: int = 10
    learning_rate: float = 3e-3
    adversary_learning_rate: float = 3e-2
    strength: float = 3.0
    training_batch_size: int = 64
    evaluate_every: int = 20

    multiclass: ClassVar[bool] = True

    def check(self) -> None:
        """Refuse settings that can't work; see ``PostProcessor.check``."""
        super().check()
        for name in ("epochs", "evaluate_every"):
            require_number(name, getattr(self, name), at_least=1, whole=True)
        require_number("training_batch_size", self.training_batch_size, at_least=2, whole=True)
        for name in ("learning_rate", "adversary_learning_rate"):
            require_number(name, getattr(self, name), above=0)
        require_number("strength", self.strength, at_least=0)

    def _edit(self, working: WorkingCopy, candidates: Candidates) -> None:
        people, parameters = working.people, working.trainable()
        mass = people.mass
        if self._of_label_1(working.n_classes):
            mass = mass * (people.target == 1)
        adversary = self._adversary(working)
        optimizers = [
            torch.optim.Adam(parameters, lr=self.learning_rate),
            torch.optim.Adam(adversary.parameters(), lr=self.adversary_learning_rate),
        ]
        n_steps = self.epochs * -(-len(people) // self.training_batch_size)
        step = 0
        with working.bar(n_steps, "adversarial projection") as bar:
            for epoch in range(self.epochs):
                for rows, batch in people.batches(self.training_batch_size, working.device, working.generator):
                    if candidates.exhausted():
                        return
                    scores = working.network.scores(batch)
                    if bool(mass[rows].to(scores.dtype).any()):  # else nobody in the batch is compared
                        rows = to_device(rows, working.device)
                        told = self._adversary_loss(working, adversary, scores, batch.target, rows, mass)
                        self._set_gradients(working.cross_entropy(scores, rows), told, parameters, adversary)
                        for optimizer in optimizers:
                            optimizer.step()
                    bar.update()
                    step += 1
                    if step % self.evaluate_every == 0 or step == n_steps:
                        candidates.offer(epoch=epoch, step=step)

    def _set_gradients(self, loss: Tensor, told: Tensor, parameters: Sequence[Tensor], adversary: nn.Module) -> None:
        """∇L_P − proj_∇L_A ∇L_P − α ∇L_A for the network, ∇L_A for the adversary."""
        own = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        parts = [*parameters, *adversary.parameters()]
        against = torch.autograd.grad(told, parts, materialize_grads=True)
        on_cpu = told.device.type == "cpu"
        wide = torch.float64 if on_cpu else torch.promote_types(torch.float32, told.dtype)  # MPS has no float64
        nothing = torch.zeros((), dtype=wide, device=told.device)
        length = sum((a.to(wide).square().sum() for a in against[: len(own)]), nothing)
        along = sum(((g.to(wide) * a.to(wide)).sum() for g, a in zip(own, against[: len(own)], strict=True)), nothing)
        factor: Tensor | float = (along / length).where(length > 0, 0.0)
        factor = float(factor) if on_cpu else factor  # which stays on a device: nothing has to wait for it
        for parameter, g, a in zip(parameters, own, against[: len(own)], strict=True):
            parameter.grad = (g - (factor + self.strength) * a).to(g.dtype)
        for parameter, a in zip(adversary.parameters(), against[len(own) :], strict=True):
            parameter.grad = a

    def _adversary_loss(
        self, working: WorkingCopy, adversary: _Adversary, scores: Tensor, target: Tensor, rows: Tensor, mass: Tensor
    ) -> Tensor:
        """Cross-entropy of the sensitive groups, by the people's weights, (N,)."""
        weight, group = working.beside(scores, mass, rows), working.beside(scores, working.people.group, rows)
        losses = F.cross_entropy(adversary(scores, target), group, reduction="none")
        return (losses * weight).sum() / weight.sum()

    def _of_label_1(self, n_classes: int) -> bool:
        """Whether only people of label 1 are compared."""
        return n_classes == 2 and self.objective().measure == "equal_opportunity_difference"

    def _adversary(self, working: WorkingCopy) -> _Adversary:
        measure = self.objective().measure
        sees = "scores" if self._of_label_1(working.n_classes) else _SEEN[measure]
        with seeded(working.generator):
            adversary = _Adversary(sees, working.n_classes, working.people.n_groups)
        like = working.head.module.weight
        return adversary.to(device=like.device, dtype=like.dtype)


_SEEN = {
    "demographic_parity_difference": "scores",
    "equal_opportunity_difference": "own score by label",
    "average_odds_difference": "scores by label",
    "equalized_odds_difference": "scores by label",
    "accuracy_score_difference": "own score",
}
"""What the adversary sees, by the measure."""


class _Adversary(nn.Module):
    """Predicts the sensitive group, (N, G), linearly from probabilities of sharpened scores."""

    def __init__(self, sees: str, n_classes: int, n_groups: int) -> None:
        super().__init__()
        n_labels = 1 if n_classes == 2 else n_classes
        self.sees, self.n_classes = sees, n_classes
        width = {
            "scores": n_labels,
            "scores by label": n_labels * (1 + n_classes),
            "own score by label": n_classes,
            "own score": 1,
        }[sees]
        self.sharpness = nn.Parameter(torch.zeros((), device="cpu"))
        self.linear = nn.Linear(width, n_groups, device="cpu")

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """Scores of the groups."""
        scores = (1 + self.sharpness.abs()) * scores
        if self.sees == "own score":
            seen = label_probability(scores, target)[:, None]
        else:
            of_label = F.one_hot(target, self.n_classes).to(scores)
            if self.sees == "own score by label":
                seen = of_label * label_probability(scores, target)[:, None]
            else:
                seen = probabilities(scores)
                if self.sees == "scores by label":
                    seen = torch.cat([seen, (seen[:, :, None] * of_label[:, None]).flatten(1)], 1)
        told: Tensor = self.linear(seen)
        return told
