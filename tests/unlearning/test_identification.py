"""Attributes ranked by counterfactual bias, against a plain loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fairtrim import ColumnFlip, InputError, ValidationSet, biased_attributes, counterfactual_bias
from tests.repair_cases import begun_network, some_people
from tests.snapshot import Snapshot

FLIPS = {
    "first": lambda x: torch.cat([-x[:, :1], x[:, 1:]], 1),
    "last": lambda x: torch.cat([x[:, :3], -x[:, 3:]], 1),
    "none": lambda x: x,
}


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_figures_are_the_plain_ones(n_outputs: int, weighted: bool) -> None:
    people, model = some_people(83, n_classes=max(2, n_outputs), weighted=weighted), begun_network(n_outputs)
    before = Snapshot(model)
    found = biased_attributes(model, people, FLIPS, 0.02, batch_size=17)
    before.assert_unchanged()
    assert [entry.bias for entry in found] == sorted((entry.bias for entry in found), reverse=True)
    w = np.ones(83) if people.weight is None else people.weight.numpy()
    for entry in found:
        changes, flips = [], []
        for k in range(83):
            with torch.no_grad():
                sides = [
                    model(x)[0] for x in (people.inputs[k : k + 1], FLIPS[entry.attribute](people.inputs[k : k + 1]))
                ]
            both = [torch.cat([s * 0, s]) if n_outputs == 1 else s for s in sides]
            y = int(people.target[k])
            changes.append(abs(float(both[0].softmax(0)[y] - both[1].softmax(0)[y])))
            flips.append(float(both[0].argmax() != both[1].argmax()))
        assert entry.bias == pytest.approx(np.average(changes, weights=w), abs=1e-12)
        assert entry.flips == pytest.approx(np.average(flips, weights=w))
        if not weighted:
            error = np.sqrt(np.var(changes) / 83 + 1 / 83**2)
            assert entry.high - entry.bias == pytest.approx(1.959964 * error, rel=1e-6)
        assert entry.low <= entry.bias <= entry.high and entry.biased == (entry.low > 0.02)
    assert found[-1].attribute == "none" and found[-1].bias == 0 and not found[-1].biased


def test_what_is_refused() -> None:
    people, model = some_people(), begun_network()
    with pytest.raises(InputError, match=r"attributes=\{\}; expected flips by name"):
        biased_attributes(model, people, {})
    with pytest.raises(InputError, match="delta"):
        biased_attributes(model, people, FLIPS, -0.1)
    with pytest.raises(InputError, match="rows; expected as many of each"):
        biased_attributes(model, people, {"short": lambda x: x[:-1]})
    nobody = ValidationSet(torch.zeros(0, 4).double(), torch.zeros(0), torch.zeros(0), ("all",))
    with pytest.raises(InputError, match="the people are nobody"):
        biased_attributes(model, nobody, FLIPS)


def test_a_flip_may_not_reach_the_caller_s_people() -> None:
    people, model = some_people(), begun_network()
    before = people.inputs.clone()
    biased_attributes(model, people, {"in place": lambda x: x.mul_(-1)})
    assert torch.equal(people.inputs, before)
    table = ValidationSet((before > 0).double(), people.target, people.group, people.groups)
    assert biased_attributes(model, table, {"sex": ColumnFlip(binary={1: (0.0, 1.0)})})[0].attribute == "sex"


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_attributes_of_many_values(n_outputs: int) -> None:
    """The mean over the other values of each person, and the worst of them."""
    model = begun_network(n_outputs)
    people = some_people(83, n_classes=max(2, n_outputs))
    x = people.inputs.clone()
    x[:, 0] = torch.arange(83) % 3
    people = replace(people, inputs=x)
    town = ColumnFlip(codes={0: (0.0, 1.0, 2.0)})
    (found,) = biased_attributes(model, people, {"town": town.every()})
    with torch.no_grad():
        scores, *others = (model(flip(x)) for flip in (lambda x: x, *town.every()))
    figures = counterfactual_bias(scores, others, people.target)
    assert (found.bias, found.flips, found.worst_bias, found.any_flip) == pytest.approx(
        (figures.mean_change, figures.flips, figures.worst_change, figures.any_flip)
    )
    assert found.worst_bias > found.bias and found.low <= found.bias <= found.high
    (one,) = biased_attributes(model, people, {"town": town})
    assert (one.worst_bias, one.any_flip) == (one.bias, one.flips) and one.bias != found.bias
    with pytest.raises(InputError, match=r"\['town'\] have no flips"):
        biased_attributes(model, people, {"town": []})


def test_what_has_no_figures_is_refused() -> None:
    people, model, one = some_people(83), begun_network(2), {"first": FLIPS["first"]}
    massless = replace(people, weight=torch.zeros(83))
    with pytest.raises(InputError, match="the people are nobody, or have no weight"):
        biased_attributes(model, massless, one)
    with pytest.raises(InputError, match=r"attributes=\[3\]; expected flips by name, e\.g\. \{'sex'"):
        biased_attributes(model, people, [3])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\['first'\] have no flips"):
        biased_attributes(model, people, {"first": 3})  # type: ignore[dict-item]
    with pytest.raises(InputError, match=r"batch_size=2\.5; expected a whole number"):
        biased_attributes(model, people, one, batch_size=2.5)  # type: ignore[arg-type]
    for n_outputs, transform in ((2, lambda f: f.softmax(1)), (1, lambda f: (9 * (f - f.mean()) / f.std()).sigmoid())):
        with pytest.raises(InputError, match="the network returns probabilities"):
            biased_attributes(begun_network(n_outputs), people, one, output_transform=transform)
