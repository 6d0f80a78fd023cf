"""Unlearning of output layers whose Hessian would not fit: like that of small ones, and it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fairtrim.unlearning.output_layer_problem
from fairtrim import ColumnFlip, CounterfactualUnlearning, ValidationSet, influence_on_bias, unlearn_samples
from fairtrim.unlearning.output_layer_problem import OutputLayerProblem
from tests.unlearning_cases import METHODS, candidates_of, leaning_network, leaning_people


@pytest.mark.parametrize("form", ["output", "published"])
@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_candidates_are_those_of_the_dense_solution(n_outputs: int, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    edit, selection = (leaning_people(n, max(2, n_outputs), seed=s) for n, s in ((61, 1), (67, 2)))
    model = leaning_network(n_outputs)
    found = []
    for most in (2000, 0):
        monkeypatch.setattr(fairtrim.unlearning.output_layer_problem, "_MAX_PARAMETERS", most)
        repair, networks = candidates_of(METHODS[form](), model, edit, selection_loader=selection)
        assert not any("rough" in flag for flag in repair.flags)
        found.append(networks)
    assert len(found[0]) == len(found[1]) > 10
    for dense, by_products in zip(*found, strict=True):
        # a residual of 1e-8 times condition numbers of up to some 1e4
        torch.testing.assert_close(by_products.state_dict(), dense.state_dict(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", ["output", "published"])
def test_a_rough_solution_is_flagged(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem: Any = fairtrim.unlearning.output_layer_problem
    given, people, model = problem.conjugate_gradients, leaning_people(61, 3), leaning_network(3)
    monkeypatch.setattr(problem, "_MAX_PARAMETERS", 0)
    monkeypatch.setattr(problem, "conjugate_gradients", lambda *a, **k: given(*a, **k, max_iterations=2))
    repair = METHODS[form](strengths=(0.3,)).repair(model, people, progress=False)
    assert any(flag.startswith("the solution of strength 0.3 is rough: after 2 iterations") for flag in repair.flags)


@pytest.mark.slow
def test_a_head_of_100_classes_and_512_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OutputLayerProblem, "hessian", None)  # 21 GB
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 512), nn.ReLU(), nn.Linear(512, 100))
    x, y = torch.randn(250, 20, generator=generator), torch.arange(250) % 100
    x[:, 19] = (x[:, 19] > 0).float()
    flip, loader = ColumnFlip(binary={19: (0.0, 1.0)}), DataLoader(TensorDataset(x, y), batch_size=130)
    people = ValidationSet(x[:101], y[:101], torch.zeros(101), ("all",), counterfactual=flip(x[:101]))
    influence = influence_on_bias(model, loader, people, ridge=1e-2, progress=False)  # a rough one would warn
    assert bool(torch.isfinite(influence.scores).all()) and influence.scores.std() > 0
    harmful = influence.most_harmful(30)
    nobody = torch.empty(0, dtype=torch.int64)
    refit, without = (unlearn_samples(model, loader, rows, ridge=1e-2, progress=False) for rows in (nobody, harmful))

    def bias(network: nn.Module) -> float:
        with torch.no_grad():
            sides = [network(side).softmax(1) for side in (people.inputs, people.counterfactual)]
        here, there = (side.gather(1, people.target[:, None]) for side in sides)
        return float((here - there).abs().mean())

    change = bias(without) - bias(refit)
    assert change < 0 and change == pytest.approx(influence.predicted_change(harmful), rel=0.5)
    repair = CounterfactualUnlearning(counterfactual=flip, strengths=(0.3, 3.0)).repair(model, [(x, y)], progress=False)
    assert repair.bias < repair.bias_before and not any("rough" in flag for flag in repair.flags)
