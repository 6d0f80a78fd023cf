"""What a repair gives back: thresholds folded in, the same network in place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fairtrim import (
    RandomPerturbation,
)
from tests.repair_cases import METHODS, begun_network, labels_by, margins_of, some_people
from tests.snapshot import Snapshot


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n_outputs", [1, 2])
def test_folded_threshold_decides_as_the_candidate_with_its_threshold(dtype: Any, n_outputs: int) -> None:
    people = some_people(151)
    people = replace(people, inputs=people.inputs.to(dtype))
    model = begun_network(n_outputs, dtype=dtype)
    for epsilon in (0.05, 0.2):
        # a trial of almost no noise: the candidate is the given network
        repair = RandomPerturbation(trials=1, deviation=1e-12, epsilon=epsilon).repair(model, people, progress=False)
        threshold = repair.chosen.margin_threshold
        assert abs(threshold) > 0.05
        assert (labels_by(repair.model, people) == (margins_of(model, people) > threshold)).all()
        with torch.no_grad():
            scores = model(people.inputs)
            probability = scores.sigmoid()[:, 0] if n_outputs == 1 else scores.softmax(1)[:, 1]
        assert (labels_by(repair.model, people) == (probability.double() > repair.threshold).numpy()).all()
        assert f"threshold {repair.threshold:.4f}" in str(repair)


def test_a_bound_with_a_margin_says_what_it_is_made_of() -> None:
    people, model = some_people(), begun_network()
    repair = RandomPerturbation(trials=1, epsilon=0.1, margin=0.01).repair(model, people, progress=False)
    assert "asked for: at most 0.09 either way (epsilon 0.1 − margin 0.01)" in str(repair)
    repair = RandomPerturbation(trials=1, epsilon=0.1, margin=0.0).repair(model, people, progress=False)
    assert "asked for: at most 0.1 either way\n" in str(repair)


@pytest.mark.parametrize("name", METHODS)
def test_in_place_gives_the_same_weights_to_the_same_network(name: str) -> None:
    people, model = some_people(), begun_network()
    given = Snapshot(model)
    parameters = dict(model.named_parameters())
    other = METHODS[name](epsilon=0.1).repair(model, people, progress=False)
    given.assert_unchanged()
    assert other.model is not model
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in other.model.parameters()}
    repair = METHODS[name](epsilon=0.1).repair(model, people, progress=False, inplace=True)
    assert repair.model is model
    assert all(dict(model.named_parameters())[k] is p for k, p in parameters.items())
    torch.testing.assert_close(model.state_dict(), other.model.state_dict(), rtol=0, atol=0)
    assert any(not torch.equal(v, given.tensors[k]) for k, v in model.state_dict().items())
    assert repair.chosen == other.chosen
    if name == "parity, output":
        assert all(torch.equal(v, given.tensors[k]) for k, v in model.state_dict().items() if not k.startswith("2."))
    # other points of the curve don't depend on what becomes of the network
    point = repair.trade_off[0]
    expected = other.model_at(abs(point.bias) + 1e-12).state_dict()
    torch.testing.assert_close(repair.model_at(abs(point.bias) + 1e-12).state_dict(), expected, rtol=0, atol=0)
