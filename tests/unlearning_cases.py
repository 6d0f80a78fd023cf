"""People whose labels lean on an attribute, networks that lean on it, and the forms of counterfactual unlearning."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import (
    ColumnFlip,
    CounterfactualUnlearning,
    ValidationSet,
)

DOUBLE = {"dtype": torch.float64}


# counterfactual_bias.


def plain_figures(scores: Tensor, flipped: Tensor, target: Tensor) -> dict[str, float]:
    """The figures of pairs, one pair after the other."""

    def probabilities(row: list[float]) -> list[float]:
        row = [0.0, *row] if len(row) == 1 else row
        powers = [math.exp(score - max(row)) for score in row]
        return [power / sum(powers) for power in powers]

    def entropy(row: list[float], label: int) -> float:
        row = [0.0, *row] if len(row) == 1 else row
        return max(row) - row[label] + math.log(sum(math.exp(score - max(row)) for score in row))

    def decision(row: list[float]) -> int:
        row = [0.0, *row] if len(row) == 1 else row
        return row.index(max(row))

    def centred(row: list[float]) -> list[float]:
        if len(row) <= 2:
            return [row[-1] - (row[0] if len(row) == 2 else 0.0)]
        return [score - sum(row) / len(row) for score in row]

    rows = list(zip(scores.double().tolist(), flipped.double().tolist(), target.tolist(), strict=True))
    values = np.array([centred(here) for here, _, _ in rows])
    changes = [abs(a - b) for here, there, _ in rows for a, b in zip(centred(here), centred(there), strict=True)]
    return {
        "mean_change": float(
            np.mean([abs(probabilities(here)[y] - probabilities(there)[y]) for here, there, y in rows])
        ),
        "flips": float(np.mean([decision(here) != decision(there) for here, there, _ in rows])),
        "relative_change": float(np.mean(changes) / values.std(0).mean()),
        "cross_entropy": float(np.mean([entropy(here, y) for here, _, y in rows])),
    }


# People: two figures, the attribute one-hot, and an interaction. The labels that networks learn lean on the attribute.

FLIP = ColumnFlip(one_hot=[2, 3], interactions={4: [0, 3]})


def leaning_people(
    n_samples: int = 101, n_classes: int = 2, *, n_groups: int = 2, seed: int = 0, lean: float = 0.3
) -> ValidationSet:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_samples, 5, generator=generator, **DOUBLE)
    noise = torch.randn(n_samples, 2, generator=generator, **DOUBLE)
    x[:, 3] = (x[:, 2] > 0).double()
    x[:, 2] = 1 - x[:, 3]
    x[:, 4] = x[:, 0] * x[:, 3]
    order = (x[:, 0] + x[:, 1] + lean * x[:, 3] + 0.5 * noise[:, 0]).argsort()
    target = torch.empty(n_samples, dtype=torch.int64)
    target[order] = torch.arange(n_samples) * n_classes // (n_samples + 7)
    order = (x[:, 3] + 0.5 * noise[:, 1]).argsort()
    group = torch.empty(n_samples, dtype=torch.int64)
    group[order] = torch.arange(n_samples) * n_groups // n_samples
    return ValidationSet(x, target, group, tuple("abcde"[:n_groups]))


def loader_of(people: ValidationSet, *, sensitive: bool = False, batch_size: int = 40) -> DataLoader[Any]:
    columns = [people.inputs, people.target] + ([people.group] if sensitive else [])
    return DataLoader(TensorDataset(*columns), batch_size=batch_size)


def losses_of(scores: Tensor, target: Tensor) -> Tensor:
    if scores.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(scores[:, 0], target.to(scores.dtype), reduction="none")
    return F.cross_entropy(scores, target, reduction="none")


def trained_on(model: nn.Module, x: Tensor, target: Tensor, steps: int = 60) -> Any:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        losses_of(model(x), target).mean().backward()
        optimizer.step()
    model.zero_grad()
    return model


def seeded_by(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double()


def leaning_network(n_outputs: int = 2) -> Any:
    people = leaning_people(149, max(2, n_outputs), seed=100, lean=2.0)
    model = seeded_by(lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, n_outputs)))
    return trained_on(model, people.inputs, people.target)


class Witness:
    """A hook that notes the weights whenever the network runs without gradients: those of every candidate."""

    def __init__(self, model: nn.Module) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.written: list[int] = []
        model.register_forward_pre_hook(self)

    def __deepcopy__(self, memo: Any) -> Witness:
        return self

    def __call__(self, module: nn.Module, args: Any) -> None:
        if torch.is_grad_enabled():
            return
        # how often the weights were written, since a candidate may equal the one before it, to the last digit
        written = [value._version for value in module.state_dict(keep_vars=True).values()]
        if written != self.written:
            self.states.append({name: value.detach().clone() for name, value in module.state_dict().items()})
            self.written = written


def candidates_of(method: CounterfactualUnlearning, model: nn.Module, *data: Any, **options: Any) -> tuple[Any, ...]:
    """The repair, and all candidates' networks, the given one first."""
    watched = copy.deepcopy(model)
    witness = Witness(watched)
    repair = method.repair(watched, *data, progress=False, **options)
    n_candidates = len(repair.history)
    assert n_candidates <= len(witness.states) <= n_candidates + 1  # then the chosen one once more, unless the last
    networks = []
    for state in witness.states[:n_candidates]:
        network = copy.deepcopy(model)
        network.load_state_dict(state)
        networks.append(network)
    return repair, networks


METHODS: dict[str, Callable[..., CounterfactualUnlearning]] = {
    "output": lambda **k: CounterfactualUnlearning(**{"counterfactual": FLIP, **k}),
    "published": lambda **k: CounterfactualUnlearning(**{"counterfactual": FLIP, "form": "published", **k}),
    "all": lambda **k: CounterfactualUnlearning(
        **{
            "counterfactual": FLIP,
            "layers": "all",
            "strengths": (0.5, 4.0),
            "epochs": 4,
            "learning_rate": 0.02,
            "training_batch_size": 17,
            **k,
        }
    ),
}


# A candidate, judged once more.


def judgement_of(
    network: nn.Module, people: ValidationSet, method: CounterfactualUnlearning, n_outputs: int
) -> dict[str, Any]:
    """A candidate's figures, performance, and who is right, in loops and by hand."""
    flipped = FLIP(people.inputs) if people.counterfactual is None else people.counterfactual
    with torch.no_grad():
        scores, of_flipped = network(people.inputs), network(flipped)
    labels = (scores[:, 0] > 0).long() if n_outputs == 1 else scores.argmax(1)
    right = (labels == people.target).double().numpy()
    weight = np.ones(len(right))
    if method.performance == "balanced_accuracy":
        counts = np.bincount(people.target.numpy(), minlength=max(2, n_outputs))
        weight = 1 / counts[people.target.numpy()]
    share = weight / weight.sum()
    figures = plain_figures(scores, of_flipped, people.target)
    return figures | {
        "performance": float(share @ right),
        "right": right,
        "share": share,
        "constant": len(set(labels.tolist())) == 1,
    }


# A network with everything that an edit could leave changed.


class Peculiar(nn.Module):
    """BatchNorm, dropout and a buffer; an output layer with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.drop = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.head = nn.Linear(6, 2)
        self.register_buffer("offset", torch.tensor([0.1, -0.2, 0.3, 0.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.body(x + self.offset)).relu()))


P = leaning_people(83)


X, Y, A = P.inputs.float(), P.target, P.group
