"""The network, its flags, gradients, hooks, buffers and all random states are as before, also after errors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fairtrim.repair.candidates
import fairtrim.unlearning.output_layer_problem
from fairtrim import (
    ColumnFlip,
    InputError,
    UnsupportedModelError,
)
from tests.repair_cases import plain_flags
from tests.snapshot import Snapshot
from tests.unlearning_cases import METHODS, A, P, X, Y


def _noisy() -> DataLoader[Any]:
    class Noisy(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            x, y = super().__getitem__(index)
            x = x.clone()
            x[1] += torch.rand(()) * 1e-3 + np.random.rand() * 1e-3
            return x, y

    return DataLoader(Noisy(X, Y), batch_size=33, shuffle=True)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("form", METHODS)
def test_success_leaves_no_trace(form: str, grad: bool, model: Any) -> None:
    with torch.set_grad_enabled(grad):
        before = Snapshot(model)
        repair = METHODS[form]().repair(model, _noisy(), progress=False)
        before.assert_unchanged()
    repaired = repair.model
    assert [m.training for m in repaired.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in repaired.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in repaired.parameters())
    assert len(repaired.head._forward_pre_hooks) == 1 and not repaired.head._forward_hooks
    for key in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "offset", "body.bias"):
        assert torch.equal(repaired.state_dict()[key], model.state_dict()[key]), key


@pytest.mark.parametrize("form", METHODS)
def test_in_place_changes_values_only(form: str, model: Any) -> None:
    before = Snapshot(model)
    people = replace(P, inputs=X)
    repair = METHODS[form](
        measure="counterfactual_bias", max_performance_loss=1.0, max_cross_entropy_rise=9.0, strengths=(2.0, 20.0)
    ).repair(model, people, selection_loader=people, inplace=True, progress=False)
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before.tensors[k])]
    assert form == "published" or (repair.chosen.candidate > 0 and "head.weight" in changed)
    assert not {k for k in changed if "norm.r" in k or k in ("offset", "body.bias")}
    if form != "all":
        assert set(changed) <= {"head.weight", "head.bias"}
    with torch.no_grad():
        for key in changed:
            model.state_dict()[key].copy_(before.tensors[key])
    before.assert_unchanged()


class BrokenError(Exception):
    pass


def _raise(error: BaseException) -> Any:
    raise error


def _interrupted(error: BaseException) -> Any:
    yield X[:40], Y[:40]
    raise error


FAULTS: dict[str, tuple[Any, dict[str, Any], dict[str, Any], type[BaseException], str | None]] = {
    "no pairs": (
        [(X, Y)],
        {"counterfactual": None},
        {},
        InputError,
        r"inputs are a Tensor and counterfactual is None; expected pairs \(inputs, flipped inputs\), or counterfactual",
    ),
    "three of a kind": (
        [((X, X, X), Y)],
        {"counterfactual": None},
        {},
        InputError,
        "inputs are a tuple and counterfactual is None; expected pairs",
    ),
    "named inputs": ([({"x": X}, Y)], {"counterfactual": None}, {}, InputError, "inputs are a dict and counterfactual"),
    "columns that are not there": (
        [(X, Y)],
        {"counterfactual": ColumnFlip(one_hot=[2, 9])},
        {},
        InputError,
        r"inputs are \(83, 5\); expected a tensor \(N, D\) with at least 10 columns",
    ),
    "values that are not there": (
        [(X, Y)],
        {"counterfactual": ColumnFlip(binary={0: (0.0, 1.0)})},
        {},
        InputError,
        r"column 0 holds .*; expected 0\.0 or 1\.0 only",
    ),
    "somebody is lost": (
        [(X, Y)],
        {"counterfactual": lambda x: x[1:]},
        {},
        InputError,
        r"have \[83, 82, 83, 83\] rows; expected as many of each",
    ),
    "NaN counterfactuals": (
        [(X, Y)],
        {"counterfactual": lambda x: x * math.nan},
        {},
        InputError,
        "scores of the counterfactuals are not finite; look at what the flip makes of the inputs",
    ),
    "NaN inputs": (
        [(X * math.nan, Y)],
        {"counterfactual": lambda x: x},
        {},
        InputError,
        "scores are not finite; the network itself gives them: look at its inputs",
    ),
    "empty loader": ([], {}, {}, InputError, "gave no sample"),
    "labels from 1": ([(X, Y + 1)], {}, {}, InputError, "labels reach from 1 to 2; expected 0 to 1 for 2 classes"),
    "one label": ([(X, Y * 0)], {}, {}, InputError, "everybody in the validation data has label 0"),
    "labels with fractions": ([(X, Y + 0.5)], {}, {}, InputError, "expected whole class labels"),
    "other groups select": (
        [(X, Y, A)],
        {},
        {"selection_loader": [(X, Y, A + 1)]},
        InputError,
        r"selection data have the sensitive groups \['1', '2'\]; expected \['0', '1'\]",
    ),
    "groups are needed": (
        [(X, Y)],
        {"measure": "equal_opportunity_difference"},
        {},
        InputError,
        r"batch 0 of the loader is \(inputs, target\); expected \(inputs, target, sensitive\)",
    ),
    "probabilities": (
        [(X, Y)],
        {},
        {"output_transform": lambda output: output.softmax(1)},
        UnsupportedModelError,
        "no linear head.*expected logits",
    ),
    "a tuple": ([(X, Y)], {}, {"forward_fn": lambda m, x: (m(x),)}, UnsupportedModelError, "pass output_transform"),
    "the user's flip": ([(X, Y)], {"counterfactual": lambda x: _raise(BrokenError())}, {}, BrokenError, None),
    "the user's loader": (lambda: _interrupted(BrokenError()), {}, {}, BrokenError, None),
    "interrupt": (lambda: _interrupted(KeyboardInterrupt()), {}, {}, KeyboardInterrupt, None),
}


@pytest.mark.parametrize("form", METHODS)
@pytest.mark.parametrize("fault", FAULTS)
def test_errors_leave_no_trace(fault: str, form: str, model: nn.Module) -> None:
    data, settings, options, error, message = FAULTS[fault]
    before = Snapshot(model)
    with pytest.raises(error, match=message):
        METHODS[form](**settings).repair(
            model, data() if callable(data) else data, inplace=True, progress=False, **options
        )
    before.assert_unchanged()


@pytest.mark.parametrize("form", METHODS)
def test_interrupted_in_the_middle(form: str, model: Any) -> None:
    """By the user's own code, after some candidates."""

    class Fuse:
        left = 12

        def __deepcopy__(self, memo: Any) -> Fuse:
            return self

        def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.left -= 1
            if not self.left:
                raise BrokenError

    model.norm.register_forward_pre_hook(Fuse())
    before = Snapshot(model)
    with pytest.raises(BrokenError):
        METHODS[form]().repair(model, [(X, Y)], inplace=True, progress=False)
    before.assert_unchanged()


def test_steps_that_are_too_large_are_left_out(model: nn.Module) -> None:
    before = Snapshot(model)
    for form, settings in (("all", {"learning_rate": 1e25}), ("published", {"strengths": [1e300, 0.0, 1e200]})):
        repair = METHODS[form](**settings).repair(model, [(X, Y)], progress=False)
        before.assert_unchanged()
        assert repair.flags[0] == "some candidates had scores that are not finite and were left out; take smaller steps"
        assert repair.flags[1].startswith("the network is returned as it was given: the others had scores that are not")
        assert len(plain_flags(repair)) == 2
        assert repair.chosen.candidate == 0 and repair.bias == repair.bias_before
        assert [math.isnan(entry["bias"]) for entry in repair.history] == [False, True, form == "all", True][
            : len(repair.history)
        ]
        torch.testing.assert_close(repair.model.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("form", METHODS)
def test_heads(form: str) -> None:
    for layers, message in (
        ([nn.Linear(5, 2, bias=False)], "head '0' has no bias"),
        ([nn.Linear(5, 2), nn.Softmax(1)], "no linear head"),
        (
            [nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 2)],
            "'0' is a BatchNorm1d without running statis",
        ),
    ):
        model = nn.Sequential(*layers)
        before = Snapshot(model)
        with pytest.raises(UnsupportedModelError, match=message):
            METHODS[form]().repair(model, [(X, Y)], progress=False)
        before.assert_unchanged()


def test_frozen_networks_are_not_fine_tuned(model: nn.Module) -> None:
    model.requires_grad_(False)
    before = Snapshot(model)
    with pytest.raises(UnsupportedModelError, match="every parameter is frozen; expected some with requires_grad=True"):
        METHODS["all"]().repair(model, [(X, Y)], progress=False)
    before.assert_unchanged()


@pytest.mark.parametrize("form", ["output", "published"])
def test_large_layers_need_no_hessian(form: str, monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
    """The same by conjugate gradients, and without a trace."""
    small = METHODS[form]().repair(model, [(X, Y)], progress=False)
    monkeypatch.setattr(fairtrim.unlearning.output_layer_problem, "_MAX_PARAMETERS", 13)  # the head has 2 × 7
    monkeypatch.setattr(fairtrim.unlearning.output_layer_problem.OutputLayerProblem, "hessian", None)
    before = Snapshot(model)
    large = METHODS[form]().repair(model, [(X, Y)], progress=False)
    before.assert_unchanged()
    assert large.chosen.candidate == small.chosen.candidate
    torch.testing.assert_close(large.model.state_dict(), small.model.state_dict(), rtol=1e-5, atol=1e-6)
