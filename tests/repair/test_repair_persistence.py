"""A repaired network is a plain network: it can be stored, exported, pruned, and may have been pruned before."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fairtrim import (
    ParityFineTuning,
    PostProcessor,
    RandomPerturbation,
    Repair,
    ValidationSet,
    load_pruned,
    save_pruned,
)
from fairtrim_adapters.onnx_export import export_onnx, onnx_outputs
from fairtrim_adapters.torch_pruning import WorstGroupImportance
from tests.networks import Case, Residual


class TwoBranches(Residual):
    """The residual network with another number of outputs."""

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(6, n_outputs)


def _plain(n_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 9, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(9, 7),
        nn.ReLU(),
        nn.Linear(7, n_outputs),
    )


CASES: dict[str, tuple[Case, PostProcessor]] = {
    "two scores": (Case(lambda: _plain(2), (2, 5, 4)), RandomPerturbation(trials=9, deviation=0.3, epsilon=0.2)),
    "one logit": (Case(lambda: _plain(1), (2, 5, 4)), ParityFineTuning(penalties=[0.5, 5.0], epsilon=1.0)),
    "residual": (Case(lambda: TwoBranches(2), (2, 6, 4)), RandomPerturbation(trials=9, deviation=0.3, epsilon=1.0)),
    "three classes": (Case(lambda: TwoBranches(3), (2, 6, 4)), ParityFineTuning(penalties=[2.0, 9.0], epsilon=1.0)),
}


def _network(case: Case, seed: int = 0) -> nn.Module:
    return case.model(seed).float().eval()


def _people(case: Case, n_classes: int, n_samples: int = 113) -> ValidationSet:
    """The label is in the first channel, which the second sensitive group has more of."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(n_samples, *case.shape, generator=generator)
    group = torch.arange(n_samples) % 2
    x[:, 0] += 0.4 * group[:, None, None]
    ranks = (x[:, 0].mean((1, 2)) + 0.1 * torch.randn(n_samples, generator=generator)).argsort().argsort()
    return ValidationSet(x, ranks * n_classes // n_samples, group, ("a", "b"))


def _repair(name: str, model: nn.Module) -> tuple[Repair, ValidationSet]:
    case, method = CASES[name]
    people = _people(case, 3 if name == "three classes" else 2)
    return method.repair(model, people, progress=False), people


@pytest.fixture(scope="module", params=CASES)
def repaired(request: pytest.FixtureRequest) -> tuple[Case, nn.Module, Tensor]:
    """A case, its repaired network, and inputs."""
    case, _ = CASES[request.param]
    model = _network(case)
    repair, people = _repair(request.param, model)
    with torch.no_grad():
        change = (repair.model(people.inputs) - model(people.inputs)).abs().max()
    assert repair.chosen.candidate > 0 and float(change) > 0.01  # there is something to lose
    return case, repair.model, people.inputs[:11]


def _assert_same(found: Any, model: nn.Module, x: Tensor, **tolerances: float) -> None:
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(torch.as_tensor(found), expected, **(tolerances or {"rtol": 0, "atol": 0}))
    decide = (lambda scores: scores > 0) if expected.shape[1] == 1 else (lambda scores: scores.argmax(1))
    assert torch.equal(decide(torch.as_tensor(found)), decide(expected))


def test_state_dict(repaired: Any) -> None:
    case, model, x = repaired
    stored = io.BytesIO()
    torch.save(model.state_dict(), stored)
    stored.seek(0)
    fresh = _network(case, seed=1)
    assert fresh.load_state_dict(torch.load(stored, weights_only=True), strict=True)
    _assert_same(fresh(x).detach(), model, x)
    assert type(model) is type(fresh) and str(model) == str(fresh)  # nothing was added
    assert list(model.state_dict()) == list(fresh.state_dict())


def test_safetensors(repaired: Any, tmp_path: Path) -> None:
    case, model, x = repaired
    save_pruned(tmp_path / "pruned.safetensors", model)
    loaded = load_pruned(tmp_path / "pruned.safetensors", _network(case, seed=2))
    _assert_same(loaded(x).detach(), model, x)
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    fresh = _network(case, seed=3)
    fresh.load_state_dict(load_file(tmp_path / "plain.safetensors"))
    _assert_same(fresh(x).detach(), model, x)


@pytest.mark.parametrize("name", ["two scores", "three classes"])
def test_whole_repair_is_pickled(name: str) -> None:
    model = _network(CASES[name][0])
    repair, people = _repair(name, model)
    if name == "two scores":  # its class is of torch's, not of a test
        loaded = pickle.loads(pickle.dumps(repair))
        assert (loaded.chosen, loaded.trade_off, loaded.flags) == (repair.chosen, repair.trade_off, repair.flags)
    else:
        loaded = copy.deepcopy(repair)
    _assert_same(loaded.model(people.inputs).detach(), repair.model, people.inputs)
    epsilon = repair.trade_off[0].believed + repair.objective.margin + 1e-9
    _assert_same(loaded.model_at(epsilon)(people.inputs).detach(), repair.model_at(epsilon), people.inputs)


def test_torch_export(repaired: Any) -> None:
    _, model, x = repaired
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    stored = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about what it stores
        torch.export.save(program, stored)
        stored.seek(0)
        loaded = torch.export.load(stored)
    for inputs in (x, x[:4]):
        _assert_same(loaded.module()(inputs).detach(), model, inputs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("repaired", ["one logit", "residual"], indirect=True)
def test_onnx(repaired: Any, tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    _, model, x = repaired
    path = export_onnx(tmp_path / "network.onnx", model, x, tolerance=1e-5)
    for inputs in (x, x[:4], x[:1]):
        (scores,) = onnx_outputs(path, inputs).values()
        assert scores.dtype == np.float32
        _assert_same(scores, model, inputs, rtol=0, atol=1e-5)


def _prune(case: Case, model: nn.Module, people: ValidationSet, ratio: float = 0.4) -> None:
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model.double(), importance, pruning_ratio=ratio, global_pruning=True)
    importance.fit(pruner, [(people.inputs.double(), people.target, people.group)])
    pruner.step()
    model.float().eval()


def _n_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["two scores", "residual", "three classes"])
def test_pruned_networks_are_repaired(name: str, tmp_path: Path) -> None:
    case, _ = CASES[name]
    dense = _network(case)
    people = _people(case, 3 if name == "three classes" else 2)
    model = copy.deepcopy(dense)
    _prune(case, model, people)
    assert _n_parameters(model) < 0.8 * _n_parameters(dense)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    repair, _ = _repair(name, model)
    assert repair.within_bound and repair.chosen.candidate > 0
    assert {key: value.shape for key, value in repair.model.state_dict().items()} == shapes
    save_pruned(tmp_path / "network.safetensors", repair.model)
    loaded = load_pruned(tmp_path / "network.safetensors", copy.deepcopy(dense))
    _assert_same(loaded(people.inputs).detach(), repair.model, people.inputs)


@pytest.mark.parametrize("name", ["two scores", "residual", "three classes"])
def test_repaired_networks_are_pruned(name: str, tmp_path: Path) -> None:
    case, _ = CASES[name]
    repair, people = _repair(name, _network(case))
    model = copy.deepcopy(repair.model)
    _prune(case, model, people)
    assert _n_parameters(model) < 0.8 * _n_parameters(repair.model)
    head, before = case.head(model), case.head(repair.model)
    assert torch.equal(head.bias, before.bias)  # the threshold is still there
    assert head.in_features < before.in_features
    assert bool(torch.isfinite(model(people.inputs)).all())
    save_pruned(tmp_path / "network.safetensors", model)
    loaded = load_pruned(tmp_path / "network.safetensors", _network(case, seed=4))
    _assert_same(loaded(people.inputs).detach(), model, people.inputs)
    # and once more, as a user does who watches the bias
    again, _ = _repair(name, model)
    assert again.within_bound
