"""The caller's network, and all random states, are as before, also after errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import (
    InputError,
    UnsupportedModelError,
)
from tests.repair_cases import METHODS, A, P, X, Y, batches_of, some_people
from tests.snapshot import Snapshot


def _noisy_loader() -> DataLoader[Any]:
    class Noisy(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            x, y, a = super().__getitem__(index)
            return x + torch.rand(()) * 1e-3 + np.random.rand() * 1e-3, y, a

    people = some_people()
    return DataLoader(Noisy(people.inputs.float(), people.target, people.group), batch_size=33, shuffle=True)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("name", METHODS)
def test_success_leaves_no_trace(name: str, grad: bool, model: nn.Module) -> None:
    with torch.set_grad_enabled(grad):
        before = Snapshot(model)
        repair = METHODS[name](epsilon=0.2).repair(model, _noisy_loader(), progress=False)
        before.assert_unchanged()
    repaired = repair.model
    assert [m.training for m in repaired.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in repaired.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in repaired.parameters())
    assert len(repaired.head._forward_pre_hooks) == 1 and not repaired.head._forward_hooks
    for key in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "offset"):
        assert torch.equal(repaired.state_dict()[key], model.state_dict()[key]), key
    if name != "random perturbation" and name != "layer-wise":
        assert torch.equal(repaired.body.bias, model.body.bias)  # frozen


@pytest.mark.parametrize("name", METHODS)
def test_in_place_changes_values_only(name: str, model: nn.Module) -> None:
    before = Snapshot(model)
    METHODS[name](epsilon=1.0).repair(model, _noisy_loader(), progress=False, inplace=True)
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before.tensors[k])]
    assert "head.bias" in changed and not {k for k in changed if "norm.r" in k or k == "offset"}
    with torch.no_grad():
        for key in changed:
            model.state_dict()[key].copy_(before.tensors[key])
    before.assert_unchanged()


class BrokenError(Exception):
    pass


def _interrupted(error: BaseException) -> Iterator[tuple[Any, ...]]:
    yield batches_of()[0]
    raise error


FAULTS: dict[str, tuple[Any, dict[str, Any], dict[str, Any], type[BaseException], str | None]] = {
    "empty loader": ([], {}, {}, InputError, "gave no sample"),
    "no sensitive features": ([(X, Y)], {}, {}, InputError, r"batch 0 of the loader is \(inputs, target\)"),
    "weights for groups": ([(X, Y, torch.rand(97, 2))], {}, {}, InputError, "'sensitive_0' holds 0.*expected codes"),
    "labels from 1": ([(X, Y + 1, A)], {}, {}, InputError, "labels reach from 1 to 2; expected 0 to 1 for 2 classes"),
    "soft labels": ([(X, F.one_hot(Y), A)], {}, {}, InputError, r"target has shape \(97, 2\).*expected whole class"),
    "labels with fractions": ([(X, Y + 0.5, A)], {}, {}, InputError, "expected whole class labels"),
    "one label": ([(X, Y * 0, A)], {}, {}, InputError, "everybody in the validation data has label 0; expected people"),
    "one group": ([(X, Y, A * 0)], {}, {}, InputError, "is of the sensitive group '0'; expected at least two groups"),
    "a group without the label": (
        [(X, Y * (A == 1), A)],
        {"measure": "equal_opportunity_difference"},
        {},
        InputError,
        "sensitive group '0' has nobody with label 1 in the validation data",
    ),
    "a group without the other label": (
        [(X, Y | (A == 1), A)],
        {"measure": "equalized_odds_difference"},
        {},
        InputError,
        "sensitive group '1' has nobody without label 1 in the validation data",
    ),
    "a group missing among the selection data": (
        [(X, Y, A)],
        {},
        {"selection_loader": [(X, Y, A * 0)]},
        InputError,
        r"selection data have the sensitive groups \['0'\]; expected \['0', '1'\]",
    ),
    "a group with nobody": (
        replace(P, inputs=X, groups=("a", "b", "c")),
        {},
        {},
        InputError,
        "nobody in the validation data is of c; expected people of",
    ),
    "NaN input": ([(X * math.nan, Y, A)], {}, {}, InputError, "not finite; the network itself gives them: look at its"),
    "infinite scores": ([(X * 1e39, Y, A)], {}, {}, InputError, "scores are not finite"),
    "privileged is nobody": (
        [(X, Y, A)],
        {"privileged": "z"},
        {},
        InputError,
        "privileged='z' is not a sensitive group",
    ),
    "privileged is everybody": (
        [(X, Y, A)],
        {"privileged": ["0", "1"]},
        {},
        InputError,
        "is everybody in the data.*nobody is left to compare with",
    ),
    "unnamed value": (
        [(X, Y, A)],
        {},
        {"sensitive_names": {"team": ["a"]}},
        InputError,
        "has the value 1, which sensitive_names does not name",
    ),
    "inputs of two lengths": ([(X, Y, A), (X[:, :3], Y, A)], {}, {}, InputError, "shapes .* expected one shape: pad"),
    "another output": (
        [(X, Y, A)],
        {},
        {"output_transform": lambda output: output.softmax(1)},
        UnsupportedModelError,
        "no linear head.*expected logits",
    ),
    "part of the output": (
        [(X, Y, A)],
        {},
        {"output_transform": lambda output: output[:, :1]},
        UnsupportedModelError,
        "head 'head' has 2 outputs and the network 1 scores; expected as many",
    ),
    "no tensor": (
        [(X, Y, A)],
        {},
        {"forward_fn": lambda m, x: (m(x),)},
        UnsupportedModelError,
        "pass output_transform",
    ),
    "user's loader": (lambda: _interrupted(BrokenError()), {}, {}, BrokenError, None),
    "interrupt": (lambda: _interrupted(KeyboardInterrupt()), {}, {}, KeyboardInterrupt, None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_errors_leave_no_trace(model: nn.Module, fault: str) -> None:
    data, settings, options, error, message = FAULTS[fault]
    before = Snapshot(model)
    for name in ("random perturbation", "bias descent"):
        with pytest.raises(error, match=message):
            METHODS[name](**settings).repair(
                model, data() if callable(data) else data, inplace=True, progress=False, **options
            )
        before.assert_unchanged()


@pytest.mark.parametrize("name", METHODS)
def test_interrupted_in_the_middle(name: str, model: nn.Module) -> None:
    """By the user's own code, after some candidates."""

    class Fuse:
        left = 5

        def __deepcopy__(self, memo: Any) -> Fuse:
            return self

        def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.left -= 1
            if not self.left:
                raise BrokenError

    model.norm.register_forward_pre_hook(Fuse())
    before = Snapshot(model)
    with pytest.raises(BrokenError):
        METHODS[name](penalties=[1.0] * 9).repair(model, batches_of(), inplace=True, progress=False) if (
            name == "parity, output"
        ) else METHODS[name]().repair(model, batches_of(), inplace=True, progress=False)
    before.assert_unchanged()
