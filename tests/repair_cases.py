"""People, networks and post-processors that the tests of repair share, and the plain statement of the objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairtrim import (
    AdversarialFineTuning,
    AdversarialProjection,
    BiasGradientDescent,
    LayerwiseOptimization,
    ParityFineTuning,
    PostProcessor,
    RandomPerturbation,
    Repair,
    ValidationSet,
)
from tests.plain_measures import plain_bias, plain_performance

_METHODS: dict[str, Callable[..., PostProcessor]] = {
    "random perturbation": lambda **k: RandomPerturbation(**{"trials": 7, **k}),
    "layer-wise": lambda **k: LayerwiseOptimization(**{"tensors": 3, "max_evaluations": 13, **k}),
    "parity, output": lambda **k: ParityFineTuning(**{"penalties": (0.5, 3.0, 20.0), **k}),
    "parity, all": lambda **k: ParityFineTuning(
        **{"layers": "all", "penalties": (1.0, 8.0), "epochs": 2, "learning_rate": 2e-2, "training_batch_size": 70, **k}
    ),
    "bias descent": lambda **k: BiasGradientDescent(
        **{"epochs": 2, "evaluate_every": 3, "training_batch_size": 17, "learning_rate": 1e-2, **k}
    ),
    "adversarial": lambda **k: AdversarialFineTuning(
        **{"epochs": 2, "critic_steps": 4, "actor_steps": 3, "training_batch_size": 23, "learning_rate": 1e-2, **k}
    ),
    "projection": lambda **k: AdversarialProjection(
        **{"epochs": 2, "evaluate_every": 3, "training_batch_size": 17, "learning_rate": 1e-2, **k}
    ),
}


def _as_measured(method: Callable[..., PostProcessor]) -> Callable[..., PostProcessor]:
    return lambda **settings: method(**{"confidence": None, **settings})


METHODS = {name: _as_measured(method) for name, method in _METHODS.items()}
"""Judged by biases as they are measured, as published: what is done about chance has tests of its own."""


def plain_flags(repair: Repair) -> tuple[str, ...]:
    """The flags without those that say what moved, which have tests of their own."""
    moved = ("the selection rate moved", "accuracy fell", "accuracy rose")
    return tuple(flag for flag in repair.flags if not flag.startswith(moved) and "fell a lot" not in flag)


LEARNS_BY_STEPS = ["parity, all", "bias descent", "adversarial", "projection"]


def some_people(
    n_samples: int = 97,
    *,
    seed: int = 0,
    n_groups: int = 2,
    n_classes: int = 2,
    weighted: bool = False,
    privileged: Any = None,
) -> ValidationSet:
    """People whose groups differ in what predicts the label; numbers of labels and of groups have no common factor."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_samples, 4, dtype=torch.float64, generator=generator)
    noise = torch.randn(n_samples, 2, dtype=torch.float64, generator=generator)
    order = (x[:, 0] + 0.8 * x[:, 2] + 0.5 * noise[:, 0]).argsort()
    target = torch.empty(n_samples, dtype=torch.int64)
    target[order] = torch.arange(n_samples) * n_classes // (n_samples + 11)
    order = (x[:, 0] + 0.5 * x[:, 1] + 0.4 * noise[:, 1]).argsort()
    group = torch.empty(n_samples, dtype=torch.int64)
    group[order] = torch.arange(n_samples) * n_groups // n_samples
    people = ValidationSet(x, target, group, tuple("abcde"[:n_groups]), features=("team",))
    if weighted:
        people = replace(people, weight=torch.randint(2, 17, (n_samples,), generator=generator) / 8)  # sums are exact
    return people if privileged is None else people.with_sides(privileged)


def begun_network(
    n_outputs: int = 2, *, seed: int = 0, hidden: int | None = 5, dtype: Any = torch.float64
) -> nn.Sequential:
    """A network that has begun to predict the label, and leans on the group by doing so: edits can gain much."""
    people = some_people(101, seed=100, n_classes=max(2, n_outputs))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(4, n_outputs)] if hidden is None else [nn.Linear(4, hidden), nn.Tanh()]
        layers += [] if hidden is None else [nn.Linear(hidden, n_outputs)]
        model = nn.Sequential(*layers).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    x = people.inputs.to(dtype)
    for _ in range(12):
        optimizer.zero_grad()
        cross_entropy(model(x), people.target).backward()
        optimizer.step()
    model.zero_grad()
    return model


def cross_entropy(scores: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    weight = torch.ones(len(target)) if weight is None else weight
    both = torch.cat([torch.zeros_like(scores), scores], 1) if scores.shape[1] == 1 else scores
    losses = -both.log_softmax(1).gather(1, target[:, None])[:, 0]
    return (weight.to(scores) * losses).sum() / weight.to(scores).sum()


# The plain statement of the objective: every threshold in a loop.


def margins_of(model: nn.Module, people: ValidationSet) -> np.ndarray:
    with torch.no_grad():
        scores = model(people.inputs).double()
    return (scores[:, 0] if scores.shape[1] == 1 else scores[:, 1] - scores[:, 0]).numpy()


def labels_by(model: nn.Module, people: ValidationSet) -> np.ndarray:
    with torch.no_grad():
        scores = model(people.inputs)
    return ((scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(1)).numpy()


def judgement_of(
    method: PostProcessor, labels: np.ndarray, people: ValidationSet, n_classes: int = 2
) -> tuple[float, float]:
    """Bias and performance of decisions."""
    options = {"weight": None if people.weight is None else people.weight.numpy(), "n_classes": n_classes}
    return (
        plain_bias(
            method.measure,
            labels,
            people.target,
            people.group,
            n_groups=people.n_groups,
            signed=people.sides,
            **options,
        ),
        plain_performance(method.performance, labels, people.target, **options),
    )


@dataclass(frozen=True)
class Best:
    """The best threshold of a network, by φ; by bias if none is within the bound."""

    within: bool
    bias: float
    performance: float
    threshold: float

    @property
    def key(self) -> tuple[bool, float, float]:
        if self.within:
            return True, self.performance, -abs(self.bias)
        return False, -abs(self.bias), self.performance


def best_threshold(method: PostProcessor, margin: np.ndarray, people: ValidationSet) -> Best:
    distinct = sorted(set(margin.tolist()), reverse=True)
    best = None
    for upper, lower in pairwise(distinct):  # without nobody and everybody
        threshold = (upper + lower) / 2
        bias, performance = judgement_of(method, (margin > threshold).astype(int), people)
        point = Best(abs(bias) < method.epsilon - method.margin, bias, performance, threshold)
        if best is None or point.key > best.key:
            best = point
    assert best is not None
    return best


def history_key(entry: dict[str, Any], method: PostProcessor) -> tuple[bool, float, float]:
    within = abs(entry["bias"]) < method.epsilon - method.margin
    return Best(within, entry["bias"], entry["performance"], 0.0).key


# The caller's network.


class Peculiar(nn.Module):
    """BatchNorm, dropout and a buffer; an output layer with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.drop, self.head = (
            nn.Linear(4, 6),
            nn.BatchNorm1d(6),
            nn.Dropout(0.5),
            nn.Linear(6, 2),
        )
        self.register_buffer("offset", torch.tensor([0.1, -0.2, 0.3, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.body(x + self.offset)).relu()))


def batches_of(people: ValidationSet | None = None) -> list[tuple[Any, ...]]:
    people = some_people() if people is None else people
    x, y, a = people.inputs.float(), people.target, people.group
    return [(x[rows], y[rows], a[rows]) for rows in torch.arange(len(people)).split(40)]


P = some_people()


X, Y, A = P.inputs.float(), P.target, P.group
