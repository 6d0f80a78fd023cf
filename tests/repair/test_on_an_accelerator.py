"""Repairs of a network on another device: those of the CPU, and how often it is waited for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import (
    POST_PROCESSORS,
    AdversarialFineTuning,
    AdversarialProjection,
    BiasGradientDescent,
    LayerwiseOptimization,
    ParityFineTuning,
    PostProcessor,
    RandomPerturbation,
    Repair,
    ThresholdSelection,
    ValidationSet,
    load_pruned,
    save_pruned,
)
from fairtrim.arguments import random_generator
from tests.pretend_accelerator import Accelerator, PretendAccelerator
from tests.repair_cases import begun_network, some_people

_ELSEWHERE = {"counterfactual-unlearning", "column-erasure"}  # tests of unlearning
_NEVER: dict[str, Any] = {"evaluate_every": 10**6}
_ODDS: dict[str, Any] = {"measure": "equalized_odds_difference"}
# a method each, and the number of outputs; random perturbation, which draws on the device, has a test of its own
CASES: dict[str, tuple[PostProcessor, int]] = {
    "threshold": (ThresholdSelection(epsilon=0.3), 1),
    "layer-wise": (LayerwiseOptimization(tensors=2, max_evaluations=6, epsilon=0.3, confidence=None), 2),
    "parity, output": (ParityFineTuning(penalties=(1.0,), selection_share=0.5, confidence=None), 3),
    "parity, all": (ParityFineTuning(layers="all", penalties=(4.0,), epochs=1, training_batch_size=60), 2),
    "bias descent": (BiasGradientDescent(epochs=1, evaluate_every=2, training_batch_size=27, confidence=None), 3),
    "adversarial": (
        AdversarialFineTuning(epochs=1, critic_steps=2, actor_steps=2, training_batch_size=23, confidence=None),
        2,
    ),
    "projection": (AdversarialProjection(epochs=1, evaluate_every=2, training_batch_size=27, **_ODDS), 1),
    "equal opportunity": (AdversarialProjection(epochs=1, measure="equal_opportunity_difference"), 2),
}


def _people(**settings: Any) -> ValidationSet:
    people = some_people(**settings)
    return replace(people, inputs=people.inputs.float())


def _network(n_outputs: int = 2) -> nn.Module:
    return begun_network(n_outputs, dtype=torch.float32)


def _refusing(accelerator: Accelerator) -> None:
    if isinstance(accelerator, PretendAccelerator):
        accelerator.refuses_float64 = True


def _check_same(accelerator: Accelerator, actual: Repair, expected: Repair, **options: bool) -> None:
    told = [
        {
            "history": [{k: v for k, v in entry.items() if k != "seconds"} for entry in repair.history],
            "weights": dict(repair.model.state_dict()),
            "figures": [list(figure) for figure in repair.figures],
            "trade_off": [(p.candidate, p.margin_threshold, p.bias, p.performance) for p in repair.trade_off],
            "chosen": (repair.chosen.candidate, repair.chosen.margin_threshold, repair.bias, repair.performance),
        }
        for repair in (actual, expected)
    ]
    accelerator.check_same(*told, **options)


def test_all_methods_are_here() -> None:
    tested = {method.name for method, _ in CASES.values()} | {RandomPerturbation.name}
    assert tested == {name for name, method in POST_PROCESSORS.items() if name not in _ELSEWHERE}


@pytest.mark.parametrize("name", CASES)
def test_those_of_the_cpu(accelerator: Accelerator, name: str) -> None:
    method, n_outputs = CASES[name]
    people = _people(n_classes=max(2, n_outputs), n_groups=5 - n_outputs, weighted=n_outputs != 2)
    expected = method.repair(_network(n_outputs), people, progress=False)
    assert len(expected.history) > 1 or name == "threshold"
    _refusing(accelerator)
    model = _network(n_outputs).to(accelerator.device)
    actual = method.repair(model, people, progress=False)
    # sums of the projection that are double on the CPU are single there
    _check_same(accelerator, actual, expected, other_kernels=isinstance(method, AdversarialProjection))
    for repaired in (actual.model, actual.model_at(1.0)):
        assert {parameter.device for parameter in repaired.parameters()} == {accelerator.device}


def test_of_a_continuous_feature(accelerator: Accelerator) -> None:
    x, y = _people().inputs, _people().target
    people = ValidationSet.from_loader([(x, y, 40 + 9 * x[:, 0] + 3 * x[:, 1])], bins=3, progress=False)
    method, _ = CASES["parity, all"]
    expected = method.repair(_network(), people, progress=False)
    _refusing(accelerator)
    actual = method.repair(_network().to(accelerator.device), people, progress=False)
    _check_same(accelerator, actual, expected)


@pytest.mark.parametrize("where", ["there", "inputs there", "pinned"])
def test_wherever_the_people_are(accelerator: Accelerator, where: str) -> None:
    people, method = _people(), BiasGradientDescent(epochs=1, training_batch_size=17, confidence=None)
    expected = method.repair(_network(), people, progress=False)
    data: list[torch.Tensor] = [people.inputs, people.target, people.group]
    moved = {"there": 3, "inputs there": 1, "pinned": 0}[where]
    data = [tensor.to(accelerator.device) for tensor in data[:moved]] + data[moved:]
    loader: Any = [tuple(data)]
    if where == "pinned":
        loader = DataLoader(TensorDataset(*data), batch_size=23, pin_memory=True)
    _refusing(accelerator)
    model, names = _network().to(accelerator.device), {"team": ["a", "b"]}
    _check_same(accelerator, method.repair(model, loader, sensitive_names=names, progress=False), expected)
    if where != "pinned":  # and a set of the caller's own
        of_tensors = ValidationSet(*data, people.groups)
        _check_same(accelerator, method.repair(model, of_tensors, progress=False), expected)


def test_noise_is_drawn_there(accelerator: Accelerator) -> None:
    people, settings = _people(), {"confidence": None, "epsilon": 0.3}
    _refusing(accelerator)
    method = RandomPerturbation(trials=4, deviation=0.3, random_state=5, **settings)
    repair = method.repair(_network().to(accelerator.device), people, progress=False)
    generator = random_generator(torch.Generator().manual_seed(5), accelerator.device)
    for entry in repair.history[1:]:
        model = _network()
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator, device=accelerator.device).cpu()
                parameter.copy_(parameter * (1 + 0.3 * noise))
        by_hand = ThresholdSelection(**settings).repair(model, people, progress=False).history[0]
        names = ("threshold", "bias", "performance")
        accelerator.check_same([entry[name] for name in names], [by_hand[name] for name in names])
        if entry["candidate"] == repair.chosen.candidate:
            accelerator.check_same(repair.model[0].weight, model[0].weight)
    assert repair.chosen.candidate > 0


def test_generator_of_the_device(accelerator: Accelerator) -> None:
    people, state = _people(), torch.get_rng_state()
    for method in (RandomPerturbation(trials=2), AdversarialProjection(epochs=1, **_NEVER)):
        generators = [torch.Generator(accelerator.device).manual_seed(7) for _ in range(3)]
        first, second = (
            method.set_params(random_state=generator).repair(_network().to(accelerator.device), people, progress=False)
            for generator in generators[:2]
        )
        _check_same(accelerator, first, second)
        assert torch.equal(generators[0].get_state(), generators[1].get_state())
        assert not torch.equal(generators[0].get_state(), generators[2].get_state())  # it was drawn from
    assert torch.equal(torch.get_rng_state(), state)


def test_waits_and_copies_of_a_candidate(pretend: PretendAccelerator) -> None:
    people, repairs = _people(n_samples=57), []

    def counted(trials: int, **settings: Any) -> tuple[int, int]:
        pretend.forget()
        method = RandomPerturbation(trials=trials, batch_size=10, epsilon=1.0, **settings)
        repairs.append(method.repair(_network().to(pretend.device), people, progress=False))
        return sum(pretend.waits.values()), sum(pretend.copies.values())

    few, many = counted(2), counted(7)
    # the scores; which weights differ; and those of a candidate that may still be wanted
    assert many[0] - few[0] <= 3 * 5
    assert many[1] == few[1]
    # four of six batches of 10 people with 4 features, of single precision
    few, many = (counted(trials, kept_bytes=4 * 10 * 4 * 4 + 100) for trials in (2, 7))
    assert many[0] - few[0] <= 3 * 5
    assert many[1] - few[1] == 5 * 2 * 2  # inputs and targets of the others, each time
    assert all(kind == "non_blocking" for kind, line in pretend.copies if "devices.py" in line)
    counted(7, kept_bytes=0)
    for repair in repairs[3:]:  # the same, wherever they lay
        _check_same(pretend, repair, repairs[1])


def test_waits_of_a_step(pretend: PretendAccelerator) -> None:
    people = _people(n_samples=59)

    def waits(method: type[PostProcessor], epochs: int, **settings: Any) -> int:
        pretend.forget()
        by: Any = method
        by(epochs=epochs, training_batch_size=10, selection_share=0.5, **settings).repair(
            _network().to(pretend.device), people, progress=False
        )
        return sum(pretend.waits.values())

    parity: dict[str, Any] = {"layers": "all", "penalties": (1.0,)}
    for method, settings, candidates in ((ParityFineTuning, parity, 1), (AdversarialProjection, _NEVER, 0)):
        few, many = (waits(method, epochs, **settings) for epochs in (1, 2))
        assert many - few <= 3 * candidates, pretend.told()  # of a second epoch; no step waits
    few, many = (waits(BiasGradientDescent, epochs, **_NEVER) for epochs in (1, 2))
    assert many - few <= 3  # one for each of its steps, whether all groups are there


def test_stored_and_in_place(accelerator: Accelerator, tmp_path: Path) -> None:
    people, method = _people(), ThresholdSelection(epsilon=1.0)
    expected = method.repair(_network(), people, progress=False)
    _refusing(accelerator)
    model = _network().to(accelerator.device)
    repaired = method.repair(model, people, progress=False)
    stored: nn.Module = repaired.model
    if isinstance(accelerator, PretendAccelerator):  # whose tensors are of a class of their own, which isn't stored
        stored = _network()
        stored.load_state_dict(repaired.model.state_dict())
    save_pruned(tmp_path / "repaired.safetensors", stored)
    loaded = load_pruned(tmp_path / "repaired.safetensors", _network())
    accelerator.check_same(dict(loaded.state_dict()), dict(expected.model.state_dict()))
    there = load_pruned(tmp_path / "repaired.safetensors", _network().to(accelerator.device))
    accelerator.check_same(dict(there.state_dict()), dict(expected.model.state_dict()))
    version = model[0].weight._version
    assert method.repair(model, people, inplace=True, progress=False).model is model
    accelerator.check_same(dict(model.state_dict()), dict(expected.model.state_dict()))
    assert model[0].weight._version == version  # only what was changed is written
