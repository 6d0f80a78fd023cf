"""Influence on bias against retraining without a sample, and unlearning against fitting the output layer from scratch.

The oracles are a general optimiser, autograd and dense algebra in float64; the bias is stated once more in plain numpy.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import fairtrim.unlearning.output_layer_problem
from fairtrim import (
    BiasInfluence,
    FairtrimError,
    InputError,
    UnsupportedModelError,
    ValidationSet,
    influence_on_bias,
    unlearn_samples,
)
from tests.snapshot import Snapshot

DOUBLE = {"dtype": torch.float64}


# Data, and networks whose output layer leans on the sensitive attribute (the last column).


def _rows(n_samples: int, n_classes: int, *, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_samples, 3, generator=generator, **DOUBLE)
    x[:, 2] = (x[:, 2] > 0).double()
    noise = torch.randn(n_samples, generator=generator, **DOUBLE)
    order = (x[:, 0] + 0.8 * x[:, 2] + 0.9 * noise).argsort()
    target = torch.empty(n_samples, dtype=torch.int64)
    target[order] = torch.arange(n_samples) * n_classes // n_samples
    return x, target


def _flip(x: Tensor) -> Tensor:
    return torch.cat([x[:, :2], 1 - x[:, 2:]], 1)


def _people(n_samples: int, n_classes: int, *, n_groups: int = 2, seed: int = 7) -> ValidationSet:
    x, target = _rows(n_samples, n_classes, seed=seed)
    noise = torch.randn(n_samples, generator=torch.Generator().manual_seed(seed + 1), **DOUBLE)
    order = (x[:, 2] + x[:, 1] + 0.3 * noise).argsort()
    group = torch.empty(n_samples, dtype=torch.int64)
    group[order] = torch.arange(n_samples) * n_groups // n_samples
    return ValidationSet(x, target, group, tuple("abcde"[:n_groups]), counterfactual=_flip(x))


def _seeded(make: Callable[[], Any], seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double()


def _network(n_outputs: int) -> nn.Sequential:
    return _seeded(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, n_outputs)))


def _loader(x: Any, target: Tensor, batch_size: int = 13, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, target), batch_size=batch_size, **options)


# The oracles.


def _with_ones(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones(len(features), 1, **DOUBLE)], 1).detach()


def _losses(scores: Tensor, target: Tensor) -> Tensor:
    if scores.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(scores[:, 0], target.double(), reduction="none")
    return F.cross_entropy(scores, target, reduction="none")


def _optimum(
    features: Tensor, target: Tensor, n_outputs: int, ridge: float, *, share: Tensor | None = None, start: Any = None
) -> Tensor:
    """Output layer (K, D + 1) with the least mean loss plus ½ ridge ‖θ‖², by a general optimiser."""
    shape = (n_outputs, features.shape[1])
    rows = features.numpy()
    weights = np.full(len(target), 1 / len(target)) if share is None else share.numpy()
    onehot = F.one_hot(target, max(2, n_outputs)).double().numpy()

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        theta = flat.reshape(shape)
        scores = rows @ theta.T
        if n_outputs == 1:
            scores = np.concatenate([0 * scores, scores], 1)
        scores = scores - scores.max(1, keepdims=True)
        logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        residual = ((np.exp(logs) - onehot) * weights[:, None])[:, -n_outputs:]
        loss = -weights @ (logs * onehot).sum(1) + ridge / 2 * (theta**2).sum()
        return float(loss), (residual.T @ rows + ridge * theta).reshape(-1)

    start = np.zeros(n_outputs * features.shape[1]) if start is None else start.reshape(-1).numpy()
    found = minimize(value, start, jac=True, method="BFGS", options={"gtol": 1e-9})
    return torch.from_numpy(found.x).reshape(shape)


def _plain_bias(measure: str, sides: list[np.ndarray], people: ValidationSet) -> float:
    """The bias of probabilities, from scores of the people and of their counterfactuals."""

    def probabilities(scores: np.ndarray) -> np.ndarray:
        if scores.shape[1] == 1:
            scores = np.concatenate([0 * scores, scores], 1)
        powers = np.exp(scores - scores.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    here, y, group = probabilities(sides[0]), people.target.numpy(), people.group.numpy()
    if measure == "counterfactual_bias":
        there = probabilities(sides[1])
        return float(np.mean([abs(here[n, y[n]] - there[n, y[n]]) for n in range(len(y))]))
    members = [group == g for g in range(people.n_groups)]
    labels = [1] if here.shape[1] == 2 else list(range(here.shape[1]))
    selection = [[here[m, k].mean() for m in members] for k in labels]
    true_positive = [[here[m & (y == k), k].mean() for m in members] for k in labels]
    false_positive = [[here[m & (y != k), k].mean() for m in members] for k in labels]
    rows = {
        "demographic_parity_difference": selection,
        "equal_opportunity_difference": true_positive,
        "equalized_odds_difference": true_positive + false_positive,
        "average_odds_difference": [
            [(t + f) / 2 for t, f in zip(*both, strict=True)]
            for both in zip(true_positive, false_positive, strict=True)
        ],
        "accuracy_score_difference": [[np.mean([here[n, y[n]] for n in np.flatnonzero(m)]) for m in members]],
    }[measure]
    return float(max(abs(a - b) for row in rows for a, b in combinations(row, 2)))


@dataclass(frozen=True)
class Situation:
    """A network, its training samples and the people whom its bias is measured on."""

    model: nn.Sequential
    x: Tensor
    target: Tensor
    people: ValidationSet
    n_outputs: int

    @classmethod
    def of(cls, n_outputs: int, *, n_samples: int = 43, n_people: int = 59, n_groups: int = 2) -> Situation:
        n_classes = max(2, n_outputs)
        x, target = _rows(n_samples, n_classes, seed=1)
        people = _people(n_people, n_classes, n_groups=n_groups)
        return cls(_network(n_outputs), x, target, people, n_outputs)

    def features(self, x: Tensor) -> Tensor:
        return _with_ones(self.model[:2](x))

    def bias(self, measure: str, theta: Tensor) -> float:
        sides = [self.features(x) @ theta.T for x in (self.people.inputs, self.people.counterfactual)]
        return _plain_bias(measure, [side.numpy() for side in sides], self.people)

    def head(self, theta: Tensor) -> None:
        with torch.no_grad():
            self.model[2].weight.copy_(theta[:, :-1])
            self.model[2].bias.copy_(theta[:, -1])

    def slope(self, measure: str, theta: Tensor) -> Tensor:
        """∇B by central differences."""
        slope = torch.empty_like(theta).reshape(-1)
        for entry in range(theta.numel()):
            step = torch.zeros(theta.numel(), **DOUBLE)
            step[entry] = 1e-5
            there, back = (self.bias(measure, theta + sign * step.reshape(theta.shape)) for sign in (1, -1))
            slope[entry] = (there - back) / 2e-5
        return slope.reshape(theta.shape)


def _theta(layer: nn.Linear) -> Tensor:
    return torch.cat([layer.weight, layer.bias[:, None]], 1).detach()


# Influence is what retraining shows.

RETRAINED = [
    (2, 2, "counterfactual_bias"),
    (1, 2, "counterfactual_bias"),
    (3, 2, "counterfactual_bias"),
    (2, 2, "demographic_parity_difference"),
    (1, 3, "demographic_parity_difference"),
    (2, 3, "equal_opportunity_difference"),
    (1, 2, "accuracy_score_difference"),
    (2, 2, "average_odds_difference"),
    (3, 3, "accuracy_score_difference"),
]


@pytest.mark.parametrize(("n_outputs", "n_groups", "measure"), RETRAINED)
def test_influence_equals_leaving_one_out(n_outputs: int, n_groups: int, measure: str) -> None:
    ridge, case = 0.02, Situation.of(n_outputs, n_groups=n_groups)
    influence = influence_on_bias(
        case.model, _loader(case.x, case.target), case.people, measure=measure, ridge=ridge, progress=False
    )
    features, n_samples = case.features(case.x), len(case.target)
    full = _optimum(features, case.target, n_outputs, ridge)
    before = case.bias(measure, full)
    assert influence.scores.shape == (n_samples,) and influence.scores.dtype == torch.float64
    assert influence.measure == measure and influence.bias == pytest.approx(before, abs=1e-6) and before > 0.01
    changes = []
    for k in range(n_samples):
        share = torch.full((n_samples,), 1 / n_samples, **DOUBLE)
        share[k] = 0.0
        without = _optimum(features, case.target, n_outputs, ridge, share=share, start=full)
        changes.append(case.bias(measure, without) - before)
    predicted = [influence.predicted_change(torch.tensor([k])) for k in range(n_samples)]
    assert spearmanr(predicted, changes).statistic >= 0.95
    error = np.linalg.norm(np.subtract(predicted, changes)) / np.linalg.norm(changes)
    assert error < 0.25  # first-order: the rest is the curvature
    assert min(changes) < -1e-5 and max(changes) > 1e-5
    for k in range(0, n_samples, 17):
        assert predicted[k] == pytest.approx(-float(influence.scores[k]) / n_samples)


@pytest.mark.parametrize(("n_outputs", "n_groups", "measure"), [*RETRAINED, (3, 2, "equalized_odds_difference")])
def test_influence_equals_the_formula(n_outputs: int, n_groups: int, measure: str) -> None:
    """−∇B(θ)ᵀ H⁻¹ ∇ℓ(z_k, θ) at the given weights, all by autograd and finite differences."""
    ridge, case = 0.3, Situation.of(n_outputs, n_samples=29, n_people=71, n_groups=n_groups)
    influence = influence_on_bias(
        case.model,
        _loader(case.x, case.target),
        case.people,
        measure=measure,
        ridge=ridge,
        newton_steps=0,
        progress=False,
    )
    theta, features = _theta(case.model[2]), case.features(case.x)
    assert influence.bias == pytest.approx(case.bias(measure, theta), abs=1e-12)

    def loss(flat: Tensor) -> Tensor:
        scores = features @ flat.reshape(theta.shape).T
        return _losses(scores, case.target).mean() + ridge / 2 * flat.square().sum()

    hessian = torch.autograd.functional.hessian(loss, theta.reshape(-1))
    direction = torch.linalg.solve(hessian, case.slope(measure, theta).reshape(-1))
    for k in range(len(case.target)):
        moving = theta.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(_losses(features[k : k + 1] @ moving.T, case.target[k : k + 1])[0], moving)
        expected = float(-direction @ gradient.reshape(-1))
        assert float(influence.scores[k]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_several_samples_left_out() -> None:
    """The first-order changes of several samples add up, and are close to what retraining shows for a few of them."""
    case, ridge = Situation.of(2, n_samples=211), 0.02
    loader = _loader(case.x, case.target, batch_size=50)
    influence = influence_on_bias(case.model, loader, case.people, ridge=ridge, progress=False)
    rows = influence.most_harmful(5)
    alone = [influence.predicted_change(row[None]) for row in rows]
    assert influence.predicted_change(rows) == pytest.approx(sum(alone))
    assert influence.predicted_change(torch.empty(0, dtype=torch.int64)) == 0
    features = case.features(case.x)
    share = torch.full((211,), 1 / 211, **DOUBLE)
    share[rows] = 0.0
    changed = case.bias("counterfactual_bias", _optimum(features, case.target, 2, ridge, share=share))
    assert changed - influence.bias == pytest.approx(influence.predicted_change(rows), rel=0.2)
    assert changed < influence.bias


@pytest.mark.parametrize("measure", ["counterfactual_bias", "equal_opportunity_difference"])
def test_single_logit_and_two_scores_have_the_same_influence(measure: str) -> None:
    """Scores (−f/2, f/2) are the logit f, and their ridge 2r is the logit's r."""
    one, two = Situation.of(1), Situation.of(2)
    two.head(torch.cat([-_theta(one.model[2]) / 2, _theta(one.model[2]) / 2]))
    found = [
        influence_on_bias(
            case.model, _loader(case.x, case.target), case.people, measure=measure, ridge=ridge, progress=False
        )
        for case, ridge in ((one, 0.1), (two, 0.2))
    ]
    torch.testing.assert_close(found[0].scores, found[1].scores, rtol=1e-6, atol=1e-9)
    assert found[0].bias == pytest.approx(found[1].bias)


def test_newton_steps_bring_the_layer_to_its_optimum() -> None:
    case = Situation.of(3)
    loader = _loader(case.x, case.target)
    found = [
        influence_on_bias(case.model, loader, case.people, ridge=0.05, newton_steps=steps, progress=False)
        for steps in (0, 1, 2, 50, 60)
    ]
    torch.testing.assert_close(found[3].scores, found[4].scores, rtol=1e-8, atol=1e-10)
    away = [float((influence.scores - found[4].scores).norm()) for influence in found[:3]]
    assert away[0] > away[1] > away[2] > 1e-7
    given = case.bias("counterfactual_bias", _theta(case.model[2]))
    assert found[0].bias == pytest.approx(given) and abs(found[4].bias - given) > 0.01


@pytest.mark.parametrize("layers", ["output", "all"])
def test_order_is_the_dataset_s(layers: str) -> None:
    case = Situation.of(2, n_samples=37)
    plain, shuffled = (
        influence_on_bias(
            case.model,
            _loader(case.x, case.target, batch_size, shuffle=shuffle),
            case.people,
            layers=layers,
            ridge=0.1,
            damping=0.1,
            progress=False,
        )
        for batch_size, shuffle in ((37, False), (10, True))
    )
    torch.testing.assert_close(plain.scores, shuffled.scores, rtol=1e-3, atol=1e-5)
    reverse = influence_on_bias(
        case.model,
        _loader(case.x.flip(0), case.target.flip(0), 10),
        case.people,
        layers=layers,
        ridge=0.1,
        damping=0.1,
        progress=False,
    )
    torch.testing.assert_close(reverse.scores.flip(0), plain.scores, rtol=1e-3, atol=1e-5)


def test_most_harmful() -> None:
    influence = BiasInfluence(torch.tensor([0.3, -0.1, 0.0, 0.7, 0.3, -2.0, 0.2]), 0.1, "counterfactual_bias")
    assert influence.most_harmful(3).tolist() == [3, 0, 4]
    assert influence.most_harmful(1).tolist() == [3]
    assert influence.most_harmful(0).tolist() == []
    assert influence.most_harmful(100).tolist() == [3, 0, 4, 6]  # never those that lower the bias
    assert influence.predicted_change(torch.tensor([0, 5])) == pytest.approx(1.7 / 7)
    assert replace(influence, scores=-influence.scores.abs()).most_harmful(5).tolist() == []


# Every layer.


def _dense(
    model: nn.Module,
    scores: Callable[[nn.Module, Any], Tensor],
    train: tuple[Any, Tensor],
    people: ValidationSet,
    measure: str,
    damping: float,
) -> Tensor:
    """−∇Bᵀ (G + damping I)⁻¹ ∇ℓ_k with the Gauss-Newton matrix G = 1/N Σ Jᵀ (diag p − p pᵀ) J in memory."""
    model = copy.deepcopy(model).double()
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    sizes = [model.get_parameter(name).numel() for name in names]
    theta = torch.cat([model.get_parameter(name).detach().reshape(-1) for name in names])

    def at(flat: Tensor, inputs: Any) -> Tensor:
        parts = zip(names, torch.split(flat, sizes), strict=True)
        values = {name: part.reshape(model.get_parameter(name).shape) for name, part in parts}

        class Called(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = model

            def forward(self, inputs: Any) -> Tensor:
                return scores(self.inner, inputs)

        renamed = {f"inner.{name}": value for name, value in values.items()}
        given: Tensor = torch.func.functional_call(Called(), renamed, (inputs,))
        return torch.cat([torch.zeros_like(given), given], 1) if given.shape[1] == 1 else given

    inputs, target = train
    with torch.no_grad():
        p = at(theta, inputs).softmax(1)
    jacobian = torch.func.jacrev(lambda flat: at(flat, inputs))(theta).detach()  # (N, K, P)
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    gauss_newton = torch.einsum("nkp,nkj,njq->pq", jacobian, curvature, jacobian) / len(target)
    residual = p - F.one_hot(target, p.shape[1])
    gradients = torch.einsum("nkp,nk->np", jacobian, residual)

    def bias(flat: np.ndarray) -> float:
        with torch.no_grad():
            sides = [at(torch.from_numpy(flat), x).numpy() for x in (people.inputs, people.counterfactual)]
        return _plain_bias(measure, sides, people)

    slope = np.empty(len(theta))
    for entry in range(len(theta)):
        step = np.zeros(len(theta))
        step[entry] = 1e-5
        slope[entry] = (bias(theta.numpy() + step) - bias(theta.numpy() - step)) / 2e-5
    damped = gauss_newton + damping * torch.eye(len(theta), **DOUBLE)
    return -gradients @ torch.linalg.solve(damped, torch.from_numpy(slope))


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
@pytest.mark.parametrize("measure", ["counterfactual_bias", "demographic_parity_difference"])
def test_all_layers_of_a_linear_network_equal_the_closed_form(n_outputs: int, measure: str) -> None:
    """The Gauss-Newton matrix of a linear network is its Hessian, and the damping a ridge."""
    n_classes = max(2, n_outputs)
    x, target = _rows(47, n_classes, seed=1)
    people = _people(53, n_classes)
    model = _seeded(lambda: nn.Linear(3, n_outputs))
    options = {"measure": measure, "progress": False}
    every = influence_on_bias(
        model, _loader(x, target), people, layers="all", damping=0.05, max_iterations=300, **options
    )
    closed = influence_on_bias(model, _loader(x, target), people, ridge=0.05, newton_steps=0, **options)
    torch.testing.assert_close(every.scores, closed.scores, rtol=1e-3, atol=2e-4 * float(closed.scores.abs().max()))
    assert every.bias == pytest.approx(closed.bias) and every.measure == measure
    assert float(every.scores.abs().max()) > 0.01


@pytest.mark.parametrize(
    ("n_outputs", "measure", "frozen"),
    [
        (2, "counterfactual_bias", False),
        (1, "counterfactual_bias", False),
        (3, "counterfactual_bias", True),
        (2, "equalized_odds_difference", True),
        (1, "demographic_parity_difference", False),
    ],
)
def test_all_layers_equal_dense_algebra(n_outputs: int, measure: str, frozen: bool) -> None:
    case = Situation.of(n_outputs, n_samples=37, n_people=41, n_groups=2)
    if frozen:
        case.model[0].weight.requires_grad_(False)
    damping = 0.01
    found = influence_on_bias(
        case.model,
        _loader(case.x, case.target, 10),
        case.people,
        measure=measure,
        layers="all",
        damping=damping,
        max_iterations=500,
        progress=False,
    )
    expected = _dense(case.model, lambda m, x: m(x), (case.x, case.target), case.people, measure, damping)
    torch.testing.assert_close(found.scores, expected, rtol=1e-3, atol=2e-4 * float(expected.abs().max()))
    output = influence_on_bias(
        case.model, _loader(case.x, case.target), case.people, measure=measure, newton_steps=0, progress=False
    )
    assert found.bias == pytest.approx(output.bias)  # measured where the network is


class Two(nn.Module):
    """Takes two inputs, or a dict of them; returns a dict whose scores are not named logits."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(2, 4), nn.Linear(1, 4), nn.Linear(4, 2)

    def forward(self, near: Tensor, far: Tensor) -> dict[str, Tensor]:
        return {"answer": self.head(torch.tanh(self.left(near) + self.right(far)))}


class Named(Dataset[Any]):
    def __init__(self, x: Tensor, target: Tensor, kind: str) -> None:
        self.x, self.target, self.kind = x, target, kind

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: int) -> Any:
        return _structured(self.x[index], self.kind), self.target[index]


def _structured(x: Tensor, kind: str) -> Any:
    near, far = x[..., :2], x[..., 2:]
    return {"near": near, "far": far} if kind == "dict" else (near, far)


@pytest.mark.parametrize("layers", ["output", "all"])
@pytest.mark.parametrize("kind", ["dict", "tuple", "forward_fn"])
def test_inputs_and_outputs_of_any_form(kind: str, layers: str) -> None:
    x, target = _rows(31, 2, seed=1)
    people = _people(37, 2)
    model = _seeded(Two, seed=2)
    options: dict[str, Any] = {"output_transform": lambda output: output["answer"]}
    if kind == "forward_fn":  # a tensor, which the network itself does not take
        options["forward_fn"] = lambda m, x: m(x[:, :2], x[:, 2:])
        loader, there = _loader(x, target, 8), people
    else:
        loader = DataLoader(Named(x, target, kind), batch_size=8)
        inputs, flipped = (_structured(side, kind) for side in (people.inputs, people.counterfactual))
        there = replace(people, inputs=inputs, counterfactual=flipped)
    settings = {"layers": layers, "ridge": 0.1, "damping": 0.02, "max_iterations": 300, "progress": False}
    found = influence_on_bias(model, loader, there, **settings, **options)
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        plain[0].weight.copy_(torch.cat([model.left.weight, model.right.weight], 1))
        plain[0].bias.copy_(model.left.bias + model.right.bias)
    plain[2].load_state_dict(model.head.state_dict())
    assert found.bias == pytest.approx(influence_on_bias(plain, _loader(x, target), people, **settings).bias)
    if layers == "all":
        expected = _dense(
            model, lambda m, x: m(x[:, :2], x[:, 2:])["answer"], (x, target), people, "counterfactual_bias", 0.02
        )
        torch.testing.assert_close(found.scores, expected, rtol=1e-3, atol=2e-4 * float(expected.abs().max()))
    else:
        expected = influence_on_bias(plain, _loader(x, target), people, **settings).scores
        torch.testing.assert_close(found.scores, expected, rtol=1e-9, atol=1e-12)
    repaired = unlearn_samples(model, loader, torch.tensor([0, 5, 6]), ridge=0.1, progress=False, **options)
    same = unlearn_samples(plain, _loader(x, target), torch.tensor([0, 5, 6]), ridge=0.1, progress=False)
    torch.testing.assert_close(_theta(repaired.head), _theta(same[2]), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("layers", ["output", "all"])
def test_single_precision(layers: str) -> None:
    case = Situation.of(2, n_samples=37)
    people = replace(case.people, inputs=case.people.inputs.float(), counterfactual=case.people.counterfactual.float())
    options = {"layers": layers, "damping": 0.05, "ridge": 0.05, "max_iterations": 200, "progress": False}
    exact = influence_on_bias(case.model, _loader(case.x, case.target), case.people, **options)
    model = copy.deepcopy(case.model).float()
    rough = influence_on_bias(model, _loader(case.x.float(), case.target), people, **options)
    assert rough.scores.dtype == torch.float64
    torch.testing.assert_close(rough.scores, exact.scores, rtol=1e-3, atol=1e-3 * float(exact.scores.abs().max()))


# Unlearning.


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
@pytest.mark.parametrize("replaced", [False, True], ids=["left out", "counterfactual"])
def test_unlearning_equals_a_fit_from_scratch(n_outputs: int, replaced: bool) -> None:
    case, ridge = Situation.of(n_outputs), 0.02
    rows = torch.tensor([3, 40, 7, 8, 20, 33])
    repaired = unlearn_samples(
        case.model,
        _loader(case.x, case.target, shuffle=True),
        rows,
        counterfactual=_flip if replaced else None,
        ridge=ridge,
        progress=False,
    )
    stays = torch.ones(43, dtype=torch.bool)
    if replaced:
        x, target = case.x.clone(), case.target
        x[rows] = _flip(case.x[rows])
    else:
        stays[rows] = False
        x, target = case.x[stays], case.target[stays]
    expected = _optimum(case.features(x), target, n_outputs, ridge)
    torch.testing.assert_close(_theta(repaired[2]), expected, rtol=1e-5, atol=1e-7)
    assert float((expected - _optimum(case.features(case.x), case.target, n_outputs, ridge)).abs().max()) > 1e-3
    torch.testing.assert_close(repaired[0].state_dict(), case.model[0].state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
@pytest.mark.parametrize("replaced", [False, True], ids=["left out", "counterfactual"])
def test_inexact_unlearning_is_one_newton_step(n_outputs: int, replaced: bool) -> None:
    """θ + H⁻¹ 1/n Σ [∇ℓ(z_k) − ∇ℓ(z̄_k)], by autograd at the optimum for all samples."""
    case, ridge = Situation.of(n_outputs), 0.04
    rows = torch.tensor([41, 2, 9, 30])
    theta = _optimum(case.features(case.x), case.target, n_outputs, ridge)

    def gradient(x: Tensor) -> Tensor:
        moving = theta.clone().requires_grad_(True)
        losses = _losses(case.features(x) @ moving.T, case.target[rows])
        return torch.autograd.grad(losses.sum() / len(case.target), moving)[0].reshape(-1)

    def loss(flat: Tensor) -> Tensor:
        scores = case.features(case.x) @ flat.reshape(theta.shape).T
        return _losses(scores, case.target).mean() + ridge / 2 * flat.square().sum()

    push = gradient(case.x[rows]) - (gradient(_flip(case.x[rows])) if replaced else 0)
    step = torch.linalg.solve(torch.autograd.functional.hessian(loss, theta.reshape(-1)), push)
    repaired, exact = (
        unlearn_samples(
            case.model,
            _loader(case.x, case.target),
            rows,
            counterfactual=_flip if replaced else None,
            exact=exact,
            ridge=ridge,
            progress=False,
        )
        for exact in (False, True)
    )
    torch.testing.assert_close(_theta(repaired[2]), theta + step.reshape(theta.shape), rtol=1e-5, atol=1e-7)
    assert float((_theta(repaired[2]) - _theta(exact[2])).abs().max()) > 1e-4


def test_unlearning_the_most_harmful_samples_lowers_the_bias() -> None:
    case, ridge = Situation.of(2, n_samples=151), 0.02
    loader = _loader(case.x, case.target)
    influence = influence_on_bias(case.model, loader, case.people, ridge=ridge, progress=False)
    rows = influence.most_harmful(12)
    assert len(rows) == 12
    for exact in (False, True):
        repaired = unlearn_samples(case.model, loader, rows, exact=exact, ridge=ridge, progress=False)
        after = influence_on_bias(repaired, loader, case.people, ridge=ridge, newton_steps=0, progress=False).bias
        assert after < influence.bias - 0.5 * abs(influence.predicted_change(rows))


def test_nothing_to_unlearn_is_a_refit() -> None:
    case, ridge = Situation.of(3), 0.05
    nobody = torch.empty(0, dtype=torch.int64)
    repaired = unlearn_samples(case.model, _loader(case.x, case.target), nobody, ridge=ridge, progress=False)
    expected = _optimum(case.features(case.x), case.target, 3, ridge)
    torch.testing.assert_close(_theta(repaired[2]), expected, rtol=1e-5, atol=1e-7)


def test_all_samples_may_be_replaced() -> None:
    case, ridge = Situation.of(2), 0.05
    loader, everyone = _loader(case.x, case.target), torch.arange(43)
    repaired = unlearn_samples(case.model, loader, everyone, counterfactual=_flip, ridge=ridge, progress=False)
    expected = _optimum(case.features(_flip(case.x)), case.target, 2, ridge)
    torch.testing.assert_close(_theta(repaired[2]), expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(InputError, match="all 43 samples are to be unlearned; expected some to stay"):
        unlearn_samples(case.model, loader, everyone, ridge=ridge, progress=False)


def test_rows_are_a_list_or_any_whole_numbers_and_count_once() -> None:
    case = Situation.of(2, n_samples=23)
    loader = _loader(case.x, case.target)
    first, *others = (
        _theta(unlearn_samples(case.model, loader, rows, ridge=0.1, progress=False)[2])
        for rows in (torch.tensor([4, 9]), [9, 4], torch.tensor([9, 9, 4], dtype=torch.int32), np.array([4, 9]))
    )
    for other in others:
        assert torch.equal(first, other)


# The network, its flags, gradients, hooks, buffers and all random states are as before.


class Peculiar(nn.Module):
    """BatchNorm, dropout and a buffer that the network counts in."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.drop = nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.tanh(self.norm(self.body(x)))))


@pytest.fixture
def model() -> nn.Module:
    """A network in a state of its own: mixed flags, a gradient, a frozen parameter, the user's hook."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Peculiar().train()
        model(torch.randn(30, 3))
        model.norm.eval()
        model(torch.randn(8, 3)).square().sum().backward()
    model.body.bias.requires_grad_(False)
    model.head.register_forward_pre_hook(lambda module, args: None)
    return model


def _noisy(generator: torch.Generator | None = None) -> DataLoader[Any]:
    class Noisy(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            x, y = super().__getitem__(index)
            return x + torch.rand(()) * 1e-3 + np.random.rand() * 1e-3, y

    x, y = _rows(37, 2, seed=1)
    return DataLoader(Noisy(x.float(), y), batch_size=10, shuffle=True, generator=generator)


def _single(people: ValidationSet) -> ValidationSet:
    return replace(people, inputs=people.inputs.float(), counterfactual=people.counterfactual.float())


RUNS: dict[str, Callable[..., Any]] = {
    "output": lambda m, loader, people, **k: influence_on_bias(m, loader, people, **{"progress": False, **k}),
    "all": lambda m, loader, people, **k: influence_on_bias(
        m, loader, people, **{"layers": "all", "damping": 0.3, "progress": False, **k}
    ),
    "unlearning": lambda m, loader, people, **k: unlearn_samples(
        m, loader, torch.tensor([3, 4]), counterfactual=_flip, **{"progress": False, **k}
    ),
}


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("run", RUNS)
def test_success_leaves_no_trace(run: str, grad: bool, model: nn.Module) -> None:
    people, generator = _single(_people(41, 2)), torch.Generator().manual_seed(8)
    loader, state = _noisy(generator), generator.get_state()
    with torch.set_grad_enabled(grad):
        before = Snapshot(model)
        result = RUNS[run](model, loader, people)
        before.assert_unchanged()
    assert torch.equal(generator.get_state(), state)
    if run != "unlearning":
        assert not result.scores.requires_grad and bool(torch.isfinite(result.scores).all())
        return
    assert result is not model
    changed = [k for k, v in result.state_dict().items() if not torch.equal(v, model.state_dict()[k])]
    assert changed == ["head.weight", "head.bias"]
    assert [m.training for m in result.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in result.parameters()] == [p.requires_grad for p in model.parameters()]
    assert len(result.head._forward_pre_hooks) == 1 and not result.head._forward_hooks


def test_grad_mode_changes_nothing() -> None:
    case = Situation.of(2, n_samples=23, n_people=19)
    for layers in ("output", "all"):
        found = []
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                loader = _loader(case.x, case.target)
                influence = influence_on_bias(
                    case.model, loader, case.people, layers=layers, damping=0.1, progress=False
                )
                found.append(influence.scores)
        torch.testing.assert_close(*found, rtol=0, atol=0)


class BrokenError(Exception):
    pass


class Breaks(Dataset[Any]):
    """Fails at the last sample."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 8:
            raise BrokenError
        return torch.zeros(3), index % 2


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


def _raise(error: BaseException) -> Any:
    raise error


P = _single(_people(41, 2))
X, Y = (part.float() if part.is_floating_point() else part for part in _rows(37, 2, seed=1))
PAIRLESS, ONE_GROUP = replace(P, counterfactual=None), replace(P, group=P.group * 0, groups=("a",))
SPD = {"measure": "demographic_parity_difference"}
FAULTS: dict[str, tuple[Any, ValidationSet, dict[str, Any], type[BaseException], str | None]] = {
    "unknown layers": (_loader(X, Y), P, {"layers": "last"}, InputError, "layers='last'; expected 'output' or 'all'"),
    "unknown measure": (
        _loader(X, Y),
        P,
        {"measure": "counterfactual_flips"},
        InputError,
        r"measure='counterfactual_flips' is not a bias measure \(did you mean 'counterfactual_bias'\?\)",
    ),
    "no counterfactuals": (_loader(X, Y), PAIRLESS, {}, InputError, "no counterfactuals; expected ValidationSet"),
    "negative ridge": (_loader(X, Y), P, {"ridge": -0.1}, InputError, r"ridge=-0\.1.*expected a ridge and steps of"),
    "no number": (_loader(X, Y), P, {"ridge": float("nan")}, InputError, "ridge=nan"),
    "negative steps": (_loader(X, Y), P, {"newton_steps": -1}, InputError, "newton_steps=-1"),
    "no damping": (_loader(X, Y), P, {"damping": 0.0}, InputError, r"damping=0\.0.*a positive damping"),
    "no iterations": (_loader(X, Y), P, {"max_iterations": 0}, InputError, "max_iterations=0.*at least one iteration"),
    "a list": ([(X, Y)], P, {}, InputError, "the loader is a list; expected a DataLoader over a dataset with"),
    "no indices": (DataLoader(Endless()), P, {}, InputError, "dataset is a Endless, which has no stable indices"),
    "one sample": (_loader(X[:1], Y[:1]), P, {}, InputError, "the dataset has 1 samples; expected at least 2"),
    "labels with fractions": (_loader(X, Y + 0.5), P, {}, InputError, "the target is torch.float.*integer labels"),
    "labels of the people": (
        _loader(X, Y),
        replace(P, target=P.target + 1),
        {},
        InputError,
        "labels reach from 1 to 2; expected 0 to 1 for 2 classes",
    ),
    "one label": (_loader(X, Y), replace(P, target=P.target * 0), {}, InputError, "validation data has label 0"),
    "one group": (_loader(X, Y), ONE_GROUP, SPD, InputError, "is of the sensitive group 'a'; expected at least two"),
    "a group without the label": (
        _loader(X, Y),
        replace(P, target=P.target * P.group),
        {"measure": "equal_opportunity_difference"},
        InputError,
        "sensitive group 'a' has nobody with label 1 in the validation data",
    ),
    "scores in a tuple": (
        _loader(X, Y),
        P,
        {"forward_fn": lambda m, x: (m(x),)},
        UnsupportedModelError,
        "pass output_transform",
    ),
    "probabilities": (
        _loader(X, Y),
        P,
        {"output_transform": lambda output: output.softmax(1)},
        UnsupportedModelError,
        "no linear head",
    ),
    "the loader breaks": (DataLoader(Breaks(), batch_size=4), P, {}, BrokenError, None),
    "the user's function breaks": (
        _loader(X, Y),
        P,
        {"output_transform": lambda output: _raise(KeyboardInterrupt())},
        KeyboardInterrupt,
        None,
    ),
}


@pytest.mark.parametrize("run", ["output", "all"])
@pytest.mark.parametrize("fault", FAULTS)
def test_errors_leave_no_trace(fault: str, run: str, model: nn.Module) -> None:
    loader, people, options, error, message = FAULTS[fault]
    before = Snapshot(model)
    with pytest.raises(error, match=message):
        RUNS[run](model, loader, people, **options)
    before.assert_unchanged()


def test_one_group_will_do_for_pairs(model: nn.Module) -> None:
    for run in ("output", "all"):
        alone, grouped = (RUNS[run](model, _loader(X, Y), people).scores for people in (ONE_GROUP, P))
        assert torch.equal(alone, grouped)


def test_counterfactuals_are_not_needed_for_groups(model: nn.Module) -> None:
    for run in ("output", "all"):
        without, with_them = (RUNS[run](model, _loader(X, Y), people, **SPD).scores for people in (PAIRLESS, P))
        assert torch.equal(without, with_them)


UNLEARNING_FAULTS: dict[str, tuple[Any, Any, dict[str, Any], type[BaseException], str | None]] = {
    "beyond the end": (_loader(X, Y), torch.tensor([3, 37]), {}, InputError, "not positions in a dataset of 37"),
    "negative": (
        _loader(X, Y),
        torch.tensor([-1]),
        {},
        InputError,
        "rows are not positions in a dataset of 37 samples",
    ),
    "fractions": (_loader(X, Y), torch.tensor([0.5]), {}, InputError, "rows are not positions in a dataset of 37"),
    "everything": (_loader(X, Y), torch.arange(37), {}, InputError, "all 37 samples are to be unlearned"),
    "a list": ([(X, Y)], torch.tensor([1]), {}, InputError, "the loader is a list"),
    "NaN": (_loader(X * float("nan"), Y), torch.tensor([1]), {}, InputError, "the Hessian is not finite"),
    "the user's flip": (
        _loader(X, Y),
        torch.tensor([1]),
        {"counterfactual": lambda x: _raise(BrokenError())},
        BrokenError,
        None,
    ),
    "the loader breaks": (DataLoader(Breaks(), batch_size=4), torch.tensor([1]), {}, BrokenError, None),
    "another output": (
        _loader(X, Y),
        torch.tensor([1]),
        {"output_transform": lambda output: output[:, :1]},
        UnsupportedModelError,
        "head 'head' has 2 outputs and the network 1 scores",
    ),
}


@pytest.mark.parametrize("fault", UNLEARNING_FAULTS)
def test_failed_unlearning_leaves_no_trace(fault: str, model: nn.Module) -> None:
    loader, rows, options, error, message = UNLEARNING_FAULTS[fault]
    before = Snapshot(model)
    with pytest.raises(error, match=message):
        unlearn_samples(model, loader, rows, progress=False, **options)
    before.assert_unchanged()


def test_not_finite(model: nn.Module) -> None:
    before = Snapshot(model)
    with pytest.raises(InputError, match="the Hessian is not finite; expected finite features and scores"):
        RUNS["output"](model, _loader(X * float("nan"), Y), P)
    before.assert_unchanged()


@pytest.mark.parametrize("run", RUNS)
def test_heads(run: str) -> None:
    for layers, message in (
        ([nn.Linear(3, 2, bias=False)], "head '0' has no bias"),
        ([nn.Linear(3, 2), nn.Softmax(1)], "no linear head"),
        (
            [nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2)],
            "'0' is a BatchNorm1d without running statis",
        ),
    ):
        model = nn.Sequential(*layers)
        before = Snapshot(model)
        with pytest.raises(UnsupportedModelError, match=message):
            RUNS[run](model, _loader(X, Y), P)
        before.assert_unchanged()


def test_frozen_networks(model: nn.Module) -> None:
    """The output layer's closed form needs no gradients; every layer has none."""
    open_scores = RUNS["output"](model, _loader(X, Y), P).scores
    model.requires_grad_(False)
    before = Snapshot(model)
    assert torch.equal(RUNS["output"](model, _loader(X, Y), P).scores, open_scores)
    with pytest.raises(UnsupportedModelError, match="every parameter is frozen; expected some with requires_grad=True"):
        RUNS["all"](model, _loader(X, Y), P)
    before.assert_unchanged()


def test_without_curvlinops(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    before = Snapshot(model)
    with pytest.raises(InputError, match=r"needs curvlinops: pip install 'fairtrim\[influence\]'.*or use layers='outp"):
        RUNS["all"](model, _loader(X, Y), P)
    before.assert_unchanged()
    RUNS["output"](model, _loader(X, Y), P)


def test_large_layers_need_no_hessian(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
    """The same by conjugate gradients, and without a trace."""
    small = {run: RUNS[run](model, _loader(X, Y), P) for run in ("output", "unlearning")}
    monkeypatch.setattr(fairtrim.unlearning.output_layer_problem, "_MAX_PARAMETERS", 13)  # the head has 2 × 7
    monkeypatch.setattr(fairtrim.unlearning.output_layer_problem.OutputLayerProblem, "hessian", None)
    before = Snapshot(model)
    large = {run: RUNS[run](model, _loader(X, Y), P) for run in ("output", "unlearning")}
    before.assert_unchanged()
    torch.testing.assert_close(large["output"].scores, small["output"].scores, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(large["unlearning"].state_dict(), small["unlearning"].state_dict(), rtol=1e-5, atol=1e-6)


def test_progress_bars(model: nn.Module, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRTRIM_PROGRESS", "always")
    RUNS["output"](model, _loader(X, Y), P)
    assert capsys.readouterr().err == ""
    for run, word in (("output", "features"), ("all", "conjugate gradients"), ("unlearning", "features")):
        RUNS[run](model, _loader(X, Y), P, progress=True)
        assert word in capsys.readouterr().err


def test_a_mask_names_the_samples_where_it_is_true() -> None:
    case = Situation.of(2, n_samples=23)
    mask = torch.zeros(23, dtype=torch.bool)
    mask[[5, 11]] = True
    by_mask, by_rows = (
        unlearn_samples(case.model, _loader(case.x, case.target), rows, ridge=0.1, progress=False)
        for rows in (mask, torch.tensor([5, 11]))
    )
    torch.testing.assert_close(_theta(by_mask[2]), _theta(by_rows[2]), rtol=0, atol=0)
    with pytest.raises(InputError, match="rows is a mask of 7 samples; expected 23, or positions"):
        unlearn_samples(case.model, _loader(case.x, case.target), mask[:7], progress=False)


def test_an_empty_list_names_nobody() -> None:
    case = Situation.of(2, n_samples=23)
    loader = _loader(case.x, case.target)
    listed = unlearn_samples(case.model, loader, [], ridge=0.1, progress=False)
    tensor = unlearn_samples(case.model, loader, torch.empty(0, dtype=torch.int64), ridge=0.1, progress=False)
    assert torch.equal(_theta(listed[2]), _theta(tensor[2]))


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("n_outputs", [1, 2])
def test_training_labels_out_of_range(n_outputs: int, run: str) -> None:
    model = _network(n_outputs).float()
    with pytest.raises(FairtrimError, match="training labels reach from 1 to 2; expected 0 to 1"):
        RUNS[run](model, _loader(X, Y + 1), P)


@pytest.mark.parametrize("layers", ["output", "all"])
@pytest.mark.parametrize("measure", ["counterfactual_bias", "demographic_parity_difference"])
def test_weights_of_people_count_as_copies(measure: str, layers: str) -> None:
    case = Situation.of(2, n_samples=23)
    copies = torch.arange(59) % 3
    weighted = replace(case.people, weight=copies.double())
    repeated = case.people.take(torch.arange(59).repeat_interleave(copies))
    found = [
        influence_on_bias(
            case.model,
            _loader(case.x, case.target),
            people,
            measure=measure,
            layers=layers,
            ridge=0.1,
            damping=0.1,
            progress=False,
        )
        for people in (weighted, repeated)
    ]
    assert found[0].bias == pytest.approx(found[1].bias)
    torch.testing.assert_close(found[0].scores, found[1].scores, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("options", [{}, SPD], ids=["pairs", "groups"])
def test_people_are_a_set(options: dict[str, Any], model: nn.Module) -> None:
    with pytest.raises(InputError, match="expected a ValidationSet"):
        RUNS["output"](model, _loader(X, Y), [(X, Y, Y)], **options)


def test_old_names_of_the_loader() -> None:
    loader = _loader(X, Y)
    for function in (influence_on_bias, unlearn_samples):
        with pytest.raises(InputError, match=f"{function.__name__} has no train_loader=; it is called loader="):
            function(nn.Linear(2, 2), train_loader=loader)


def test_aif360_s_name_of_the_measure() -> None:
    case, options = Situation.of(2, n_groups=2), {"ridge": 0.1, "progress": False}
    ours, theirs = (
        influence_on_bias(case.model, _loader(case.x, case.target), case.people, measure=measure, **options)
        for measure in ("demographic_parity_difference", "statistical_parity_difference")
    )
    assert torch.equal(ours.scores, theirs.scores) and theirs.measure == "demographic_parity_difference"
