"""The copy that is edited: heads, one logit or two scores, precision, what can't be copied."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fairtrim import (
    RandomPerturbation,
    UnsupportedModelError,
)
from tests.repair_cases import (
    LEARNS_BY_STEPS,
    METHODS,
    batches_of,
    begun_network,
    judgement_of,
    labels_by,
    margins_of,
    some_people,
)
from tests.snapshot import Snapshot

# One logit or two scores.


def _as_two_scores(model: nn.Sequential) -> nn.Sequential:
    """The same probabilities from scores −f/2 and f/2."""
    two = copy.deepcopy(model)
    two[-1] = nn.Linear(model[-1].in_features, 2).double()
    with torch.no_grad():
        two[-1].weight.copy_(torch.cat([-model[-1].weight / 2, model[-1].weight / 2]))
        two[-1].bias.copy_(torch.cat([-model[-1].bias / 2, model[-1].bias / 2]))
    return two


@pytest.mark.parametrize("name", ["parity, output", "bias descent", "adversarial"])
def test_one_logit_is_repaired_as_two_scores_are(name: str) -> None:
    """A step of Adam moves the difference of two scores twice as far, so one logit has twice the rate.

    The output layer's ridge is relative, and so the same.
    """
    edit, selection = some_people(61, seed=1), some_people(67, seed=2)
    one = begun_network(1, hidden=None)
    slow = {} if name == "parity, output" else {"learning_rate": 0.01}
    fast = {} if name == "parity, output" else {"learning_rate": 0.02}
    if name == "adversarial":
        # the critic has the network's rate, so it must not matter
        slow = {"strength": 1e-9, "learning_rate": 0.05, "epochs": 4}
        fast = {"strength": 1e-9, "learning_rate": 0.1, "epochs": 4}
    repairs = [
        METHODS[name](epsilon=0.15, **rate).repair(model, edit, selection_loader=selection, progress=False)
        for model, rate in ((one, fast), (_as_two_scores(one), slow))
    ]
    for left, right in zip(repairs[0].history, repairs[1].history, strict=True):
        for key in ("bias", "performance"):
            assert left[key] == pytest.approx(right[key], abs=1e-9), (left, right)
    assert repairs[0].chosen.candidate == repairs[1].chosen.candidate
    assert len({entry["bias"] for entry in repairs[0].history}) > 1
    np.testing.assert_allclose(*(margins_of(repair.model, selection) for repair in repairs), atol=2e-3)


@pytest.mark.parametrize("name", METHODS)
def test_one_logit(name: str) -> None:
    class Flat(nn.Module):
        """Returns (N,)."""

        def __init__(self) -> None:
            super().__init__()
            self.body = begun_network(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).squeeze(1)

    people = some_people(149)
    repairs = [METHODS[name](epsilon=0.2).repair(model, people, progress=False) for model in (begun_network(1), Flat())]
    assert repairs[0].within_bound and repairs[0].chosen == repairs[1].chosen
    with torch.no_grad():
        torch.testing.assert_close(repairs[0].model(people.inputs)[:, 0], repairs[1].model(people.inputs))


def test_inputs_and_outputs_of_any_form() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = begun_network()

        def forward(self, left: Tensor, right: Tensor) -> tuple[str, Tensor]:
            return "scores", self.body(torch.cat([left, right], 1))

    people, plain = some_people(), begun_network()
    x, y, a = people.inputs, people.target, people.group
    batches = [
        (
            {"left": x[rows, :1], "right": x[rows, 1:]},
            y[rows].double()[:, None],
            {"team": [str(g) for g in a[rows].tolist()]},
        )
        for rows in torch.arange(97).split(30)
    ]
    for name, make in METHODS.items():
        expected = make(epsilon=0.2).repair(plain, people, progress=False)
        repair = make(epsilon=0.2).repair(Named(), batches, output_transform=lambda output: output[1], progress=False)
        assert repair.chosen == expected.chosen, name
        torch.testing.assert_close(repair.model.body.state_dict(), expected.model.state_dict(), rtol=0, atol=0)
    repair = make(
        epsilon=0.2
    ).repair(  # the last of them
        Named(), [(x, y, a)], forward_fn=lambda m, x: m(x[:, :1], x[:, 1:])[1], progress=False
    )
    assert repair.chosen == expected.chosen


def _headless(kind: str) -> tuple[nn.Module, str]:
    body = [nn.Linear(4, 6), nn.ReLU()]
    if kind == "softmax":
        return nn.Sequential(*body, nn.Linear(6, 2), nn.Softmax(1)), "no linear head: .*ends in a softmax or sigmoid"
    if kind == "sigmoid":
        return nn.Sequential(*body, nn.Linear(6, 1), nn.Sigmoid()), "no linear head"
    if kind == "convolution":
        return (
            nn.Sequential(*body, nn.Unflatten(1, (6, 1)), nn.Conv1d(6, 2, 1), nn.Flatten()),
            r"no linear head: .*one of its linear layers \(\['0'\]\)",
        )
    if kind == "no bias":
        return nn.Sequential(*body, nn.Linear(6, 2, bias=False)), (
            r"head '2' has no bias, .*expected one: model.get_submodule\('2'\).bias = nn.Parameter\(torch.zeros\(2\)\)"
        )
    return nn.Sequential(*body), "no linear head"


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "convolution", "no bias", "ReLU"])
def test_heads_that_take_no_threshold(kind: str) -> None:
    model, message = _headless(kind)
    before = Snapshot(model)
    for make in METHODS.values():
        with pytest.raises(UnsupportedModelError, match=message):
            make().repair(model, batches_of(), inplace=True, progress=False)
    before.assert_unchanged()


def test_the_remedy_for_a_head_without_bias_is_one() -> None:
    model = begun_network()
    model[2].bias = None
    with pytest.raises(UnsupportedModelError, match="no bias"):
        RandomPerturbation(trials=2).repair(model, some_people(), progress=False)
    model.get_submodule("2").bias = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    assert RandomPerturbation(trials=2, epsilon=0.3).repair(model, some_people(), progress=False).within_bound


@pytest.mark.parametrize("name", LEARNS_BY_STEPS)
def test_frozen_networks_are_not_fine_tuned(name: str, model: nn.Module) -> None:
    model.requires_grad_(False)
    before = Snapshot(model)
    with pytest.raises(UnsupportedModelError, match="every parameter is frozen; expected some with requires_grad=True"):
        METHODS[name]().repair(model, batches_of(), progress=False)
    before.assert_unchanged()


@pytest.mark.parametrize("name", METHODS)
def test_parametrised_heads_are_refused(name: str) -> None:
    model = begun_network()
    nn.utils.parametrizations.weight_norm(model[2])
    before = Snapshot(model)
    with pytest.raises(UnsupportedModelError, match=r"weights of the head '2' are computed from others.*remove_param"):
        METHODS[name]().repair(model, some_people(), progress=False)
    before.assert_unchanged()
    nn.utils.parametrize.remove_parametrizations(model[2], "weight")
    assert METHODS[name](epsilon=0.3).repair(model, some_people(), progress=False).within_bound


def test_sigmoid_in_place_is_no_linear_head() -> None:
    class Probability(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = begun_network(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).sigmoid_()

    with pytest.raises(UnsupportedModelError, match=r"outputs of the head 'body\.2' are changed before"):
        RandomPerturbation(trials=1).repair(Probability(), some_people(), progress=False)


def test_network_that_can_t_be_copied() -> None:
    class Keeper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 5).double(), nn.Linear(5, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            self.features = self.body(x)
            return self.head(self.features)

    people, model = some_people(), Keeper()
    model(people.inputs)
    with pytest.raises(UnsupportedModelError, match="can't be copied"):
        RandomPerturbation(trials=1).repair(model, people, progress=False)


def test_half_precision() -> None:
    people = replace(some_people(), inputs=some_people().inputs.bfloat16())
    for name, make in METHODS.items():
        model = begun_network(dtype=torch.bfloat16)
        method = make(epsilon=0.3, selection_share=0.5)
        repair = method.repair(model, people, progress=False)
        selection = people.take(repair.selection_rows)
        judged = judgement_of(method, labels_by(repair.model, selection), selection)
        assert (repair.bias, repair.performance) == pytest.approx(judged), name
        assert {p.dtype for p in repair.model.parameters()} == {torch.bfloat16}
    people = replace(some_people(), inputs=some_people().inputs.half())
    with pytest.raises(UnsupportedModelError, match="in float16, whose range is too small for fine-tuning"):
        METHODS["bias descent"]().repair(begun_network().half(), people, progress=False)


def test_networks_that_normalise_by_the_batch() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 2)).double()
    before = Snapshot(model)
    with pytest.raises(UnsupportedModelError, match="'1' is a BatchNorm1d without running statistics"):
        RandomPerturbation().repair(model, some_people(), progress=False)
    before.assert_unchanged()
