"""The slope of the bias in the gates, against finite differences and against a plain loop, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairtrim import InputError
from fairtrim.damage.parity_gradient import parity_gradient
from fairtrim.measures.group_counts import BIAS_MEASURES
from fairtrim.oracle import explicit_gates
from tests.networks import CASES, Case
from tests.snapshot import Snapshot

N_SAMPLES = 29


def _people(case: Case, n_classes: int, n_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    x, _ = case.batch(N_SAMPLES)
    generator = torch.Generator().manual_seed(n_groups)
    cells = torch.arange(N_SAMPLES) % (n_classes * n_groups)  # every label in every group
    cells = cells[torch.randperm(N_SAMPLES, generator=generator)]
    return x, cells % n_classes, cells // n_classes


def _batches(x: Tensor, *columns: Tensor, sizes: tuple[int, ...] = (11, 1, 17)) -> list[tuple[Tensor, ...]]:
    return [tuple(parts) for parts in zip(*(column.split(list(sizes)) for column in (x, *columns)), strict=True)]


def _transform(n_outputs: int) -> Callable[[Tensor], Tensor]:
    return lambda scores: scores[:, :n_outputs]


def _rows(measure: str, p: Tensor, target: Tensor, group: Tensor, n_groups: int) -> list[list[Tensor]]:
    """Rates of probabilities (N, K) by plain means: one row a rate, one entry a group."""
    members = [group == g for g in range(n_groups)]
    if measure == "accuracy_score_difference":
        return [[p.gather(1, target[:, None])[member].mean() for member in members]]
    rows = []
    for k in [1] if p.shape[1] == 2 else range(p.shape[1]):
        selected = [p[member, k].mean() for member in members]
        true = [p[member & (target == k), k].mean() for member in members]
        false = [p[member & (target != k), k].mean() for member in members]
        rows += {
            "demographic_parity_difference": [selected],
            "equal_opportunity_difference": [true],
            "average_odds_difference": [[(t + f) / 2 for t, f in zip(true, false, strict=True)]],
            "equalized_odds_difference": [true, false],
        }[measure]
    return rows


def _bias(rows: list[list[Tensor]], signed: bool) -> Tensor:
    if signed:
        return max((row[0] - row[1] for row in rows), key=abs)
    return max(a - b for row in rows for a in row for b in row)


def _of_gates(
    case: Case, model: nn.Module, measure: str, people: tuple[Tensor, ...], n_outputs: int, n_groups: int
) -> tuple[Callable[[dict[str, Tensor]], Tensor], dict[str, Tensor]]:
    groups = case.plan(model).groups
    x, target, group = people

    def bias(gates: dict[str, Tensor]) -> Tensor:
        with explicit_gates(model, groups, gates):
            scores = _transform(n_outputs)(model.eval()(x))
        p = torch.cat([1 - scores.sigmoid(), scores.sigmoid()], 1) if n_outputs == 1 else scores.softmax(1)
        return _bias(_rows(measure, p, target, group, n_groups), n_groups == 2)

    return bias, {g.name: torch.ones(g.size, dtype=torch.float64) for g in groups}


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
@pytest.mark.parametrize("measure", BIAS_MEASURES)
def test_equals_finite_differences_of_the_bias_of_everybody(measure: str, n_outputs: int) -> None:
    case, n_groups = CASES["residual"], 2 if n_outputs < 3 else 4
    model = case.model()
    people = _people(case, max(2, n_outputs), n_groups)
    found = parity_gradient(
        model, _batches(*people), case.plan(model).groups, measure, output_transform=_transform(n_outputs),
        progress=False,
    )  # fmt: skip
    bias, ones = _of_gates(case, model, measure, people, n_outputs, n_groups)
    with torch.no_grad():
        assert found.bias == pytest.approx(float(bias(ones)), abs=1e-12)
        step = 1e-5
        for name, gate in ones.items():
            for channel in range(len(gate)):
                move = step * F.one_hot(torch.tensor(channel), len(gate))
                up, down = (float(bias({**ones, name: gate + sign * move})) for sign in (1, -1))
                assert float(found.slopes[name][channel]) == pytest.approx((up - down) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("name", ["mlp", "concatenation", "split", "attention", "shared", "dict output"])
def test_equals_a_sum_over_single_people(name: str) -> None:
    """Statistical parity: everybody counts by 1/n_unprivileged or −1/n_privileged."""
    case = CASES[name]
    model = case.model()
    x, target, group = _people(case, 2, 3)
    groups = case.plan(model).groups
    found = parity_gradient(
        model, _batches(x, target, group, sizes=(1, 28)), groups, privileged=2,
        output_transform=(lambda output: (case.transform(output) if case.transform else output)[:, :2]), progress=False,
    )  # fmt: skip
    assert found.sensitive_groups == ("unprivileged", "privileged")
    expected = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in groups}
    bias = 0.0
    for n in range(N_SAMPLES):
        gates = {g.name: torch.ones(g.size, dtype=torch.float64, requires_grad=True) for g in groups}
        with explicit_gates(model, groups, gates):
            output = model.eval()(x[n : n + 1])
        p = (case.transform(output) if case.transform else output)[0, :2].softmax(0)[1]
        share = -1 / int((group == 2).sum()) if group[n] == 2 else 1 / int((group != 2).sum())
        bias += share * float(p.detach())
        slopes = torch.autograd.grad(p, list(gates.values()), allow_unused=True)
        for key, slope in zip(gates, slopes, strict=True):
            expected[key] += share * (0 if slope is None else slope)
    assert found.bias == pytest.approx(bias, abs=1e-12)
    for key, slopes_of_group in expected.items():
        torch.testing.assert_close(found.slopes[key], slopes_of_group, rtol=1e-9, atol=1e-12)


def test_network_is_left_as_it_was_and_batches_do_not_matter() -> None:
    case = CASES["plain"]
    model = case.model().train()
    people = _people(case, 3, 2)
    measure, options = "equalized_odds_difference", {"progress": False}
    groups = case.plan(model).groups
    before = Snapshot(model)
    parts = parity_gradient(model, _batches(*people), groups, measure, **options)
    whole = parity_gradient(model, _batches(*people, sizes=(N_SAMPLES,)), groups, measure, **options)
    before.assert_unchanged()
    for name, slope in whole.slopes.items():
        torch.testing.assert_close(parts.slopes[name], slope, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, a: (x, y), "without sensitive features"),
        (lambda x, y, a: (x, y, 0 * a), "at least two groups to compare"),
        (lambda x, y, a: (x, (a == 0).long() * y, a), r"\['1'\] have nobody for a rate of equal_opp"),
        (lambda x, y, a: (x, y + 1, a), "reach from 1 to 3"),
        (lambda x, y, a: (x + torch.inf, y, a), "not finite"),
    ],
)  # fmt: skip
def test_refusals(change: Any, message: str) -> None:
    case = CASES["mlp"]
    model = case.model()
    groups = case.plan(model).groups
    people = [change(*batch) for batch in _batches(*_people(case, 3, 2))]
    with pytest.raises(InputError, match=message):
        parity_gradient(model, people, groups, "equal_opportunity_difference", progress=False)


def test_refused_arguments() -> None:
    case = CASES["mlp"]
    model = case.model()
    groups, people = case.plan(model).groups, _batches(*_people(case, 3, 2))
    for arguments, message in (
        ({"measure": "parity"}, "not a bias measure"),
        ({"loss_fn": F.cross_entropy}, "loss_fn= would have no effect"),
        ({"privileged": [0, 1]}, "takes in every sensitive group"),
        ({"privileged": 7}, "is not a sensitive group"),
    ):
        with pytest.raises(InputError, match=message):
            parity_gradient(model, people, groups, progress=False, **arguments)


def test_probabilities_are_no_scores() -> None:
    """A softmax of a softmax is a smaller bias; a sigmoid's output selects everybody."""
    case = CASES["mlp"]
    model, (x, y, a) = case.model(), _people(case, 3, 2)
    groups, first = case.plan(model).groups, model(x).detach()[:, :1]
    middle, width = first.median(), first.std()
    for labels, transform, message in (
        (y, lambda scores: scores.softmax(1), "the network returns probabilities: the scores of every sample"),
        (
            (y > 0).long(),
            lambda scores: (4 * (scores[:, :1] - middle) / width).sigmoid(),
            "the network returns probabilities: its 29 scores lie in",
        ),
    ):
        with pytest.raises(InputError, match=message):
            parity_gradient(model, _batches(x, labels, a), groups, output_transform=transform, progress=False)
