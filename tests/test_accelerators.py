"""The pretend accelerator behaves as devices do, and every public name that takes tensors is tested on it."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import MINERS, POST_PROCESSORS
from fairtrim_adapters.torch_pruning import IMPORTANCES
from tests.pretend_accelerator import Accelerator, PretendAccelerator

ROOT = Path(__file__).parent.parent


def test_results_are_those_of_the_cpu(accelerator: Accelerator) -> None:
    network, x = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(4, 3)
    network(x).sum().backward()
    expected = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    network.zero_grad()
    network.to(accelerator.device)(x.to(accelerator.device)).sum().backward()
    accelerator.check_same([parameter.grad for parameter in network.parameters()], expected)


def test_devices_are_not_mixed(accelerator: Accelerator) -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(2) + torch.ones(2, device=accelerator.device)
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(2, device=accelerator.device, generator=torch.Generator())
    with pytest.raises(TypeError, match="numpy"):
        torch.ones(2, device=accelerator.device).numpy()


def test_draws_are_apart_from_the_cpu(accelerator: Accelerator) -> None:
    before = torch.get_rng_state()
    torch.randn(2, device=accelerator.device)
    assert torch.equal(before, torch.get_rng_state())
    generator = torch.Generator(device=accelerator.device).manual_seed(1)
    again = torch.Generator(device=accelerator.device).manual_seed(1)
    assert generator.device == accelerator.device
    first, second = (torch.randn(3, device=accelerator.device, generator=g) for g in (generator, again))
    assert first.tolist() == second.tolist()


def test_copies_arrive_late(pretend: PretendAccelerator) -> None:
    there = torch.ones(2).to(pretend.device)
    early = there.to("cpu", non_blocking=True)
    assert early.tolist() == [0, 0]
    assert float(there.sum()) == 2
    assert early.tolist() == [1, 1]
    assert sum(pretend.waits.values()) == 1
    assert sum(pretend.copies.values()) == 1
    assert "item" in pretend.told()


def test_double_precision_is_refused(pretend: PretendAccelerator) -> None:
    there = torch.ones(2, device=pretend.device)
    assert there.double().dtype is torch.float64
    pretend.refuses_float64 = True
    with pytest.raises(TypeError, match="float64"):
        there.double()
    with pytest.raises(TypeError, match="float64"):
        torch.ones(2, dtype=torch.float64).to(pretend.device)
    assert there.cpu().double().dtype is torch.float64


def test_labels_that_can_t_be_stop_the_device(pretend: PretendAccelerator) -> None:
    scores = torch.zeros(2, 3, device=pretend.device)
    with pytest.raises(RuntimeError, match="device-side assert"):
        nn.functional.cross_entropy(scores, torch.tensor([0, 3], device=pretend.device))
    with pytest.raises(RuntimeError, match="device-side assert"):
        scores.sum()
    assert pretend.asserted


def test_loaders_pin(pretend: PretendAccelerator) -> None:
    (batch,) = DataLoader(TensorDataset(torch.ones(4, 2)), batch_size=4, pin_memory=True)
    assert batch[0].is_pinned()


# Every public name is tested on a device.

_RESULT = "a result of functions that are named"
_BASE = "a base class"
_TABLES = "works on tables, which lie on the CPU"
_FIGURES = "works on figures, which lie on the CPU"

NOT_ON_A_DEVICE: dict[str, str] = {
    **dict.fromkeys(
        ("BiasInfluence", "ChangedSamples", "DamageTable", "GroupSaliencyPruning", "MinedSamples"), _RESULT
    ),
    **dict.fromkeys(("PrunedForPairs", "PrunedToBudget", "RecipeResult", "Repair", "Report", "Selection"), _RESULT),
    **dict.fromkeys(
        ("DatasetTensors", "MeasuredChange", "ParityGradient", "SentenceFigures", "SentenceRepair"), _RESULT
    ),
    "Trace": _RESULT,
    **dict.fromkeys(
        ("ChannelImportance", "DamageImportance", "Miner", "PostProcessor", "TrainedMiner", "TrainingMiner"), _BASE
    ),
    **dict.fromkeys(("break_ties", "ranked"), _TABLES),
    **dict.fromkeys(("plot_confidence",), _FIGURES),
    "DataSplits": "holds loaders",
    "SensitiveBins": "works on sensitive features, which are read on the CPU",
    "describe_layer": "takes a class",
    "forget_layer": "takes a class",
    "report_language_models": "tells what functions that are named find",
    "require_class_scores": "looks at shapes",
    "share_of_process": "works on the numbers of samples",
    "traceable": "is for recurrent layers, which the pretend device hasn't",
}
"""Public names that take a network, a loader or tensors, and are named in no test of a device: why."""

_DOORS = (
    *("", ".damage", ".mining", ".reconstruction", ".repair", ".selection", ".unlearning"),
    *(".damage.measured_change", ".damage.parity_gradient", ".damage.weight_saliency", ".network.losses"),
)
"""Modules of the core that users import from, and those of which docs/api shows what reads a network or scores."""

_KINDS = re.compile(r"\b(Tensor|Module|DataLoader|Generator|SentencePairs|ValidationSet)\b")
_ROLES = {"dataset", "loader", "loaders", "model", "models", "network", "networks", "people", "pruner"}


def _takes_tensors(value: Any) -> bool:
    """Whether it, or a public method of a class, takes a network, a loader or tensors."""
    methods = [m for name, m in inspect.getmembers(value, inspect.isroutine) if not name.startswith("_")]
    for function in [value, *methods] if inspect.isclass(value) else [value]:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # a name of before, or a method of a built-in class
            continue
        if any(p.name in _ROLES or _KINDS.search(str(p.annotation)) for p in parameters):
            return True
    return False


def _offered() -> dict[str, Any]:
    """What users import, from the doors of the core and from adapters."""
    adapters = [p for p in (ROOT / "adapters" / "fairtrim_adapters").iterdir() if p.suffix in ("", ".py")]
    doors = [f"fairtrim_adapters.{path.stem}" for path in adapters if path.stem[0] != "_"]
    found: dict[str, Any] = {}
    for name in (*(f"fairtrim{door}" for door in _DOORS), *doors):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:  # an extra is missing
            continue
        values = ((each, getattr(module, each)) for each in module.__all__)
        found |= {each: value for each, value in values if inspect.isclass(value) or inspect.isfunction(value)}
    return {name: value for name, value in found.items() if value.__module__.startswith("fairtrim")}


def _named_on_a_device() -> set[str]:
    """Words of all tests on a device, and classes whose names in a registry are among their strings, or all of it."""
    text = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*on_an_accelerator.py"))
    registries: dict[str, Any] = {"IMPORTANCES": IMPORTANCES, "MINERS": MINERS, "POST_PROCESSORS": POST_PROCESSORS}
    by_name = {
        method.__name__
        for registry, methods in registries.items()
        for name, method in methods.items()
        if f'"{name}"' in text or f"{registry}.known()" in text
    }
    return by_name | set(re.findall(r"\w+", text))


def test_every_public_name_is_tested_on_a_device() -> None:
    named = _named_on_a_device()
    missing = [name for name, value in _offered().items() if _takes_tensors(value) and name not in named]
    missing = sorted(set(missing) - set(NOT_ON_A_DEVICE))
    assert not missing, f"in no tests/**/test_*on_an_accelerator.py: {', '.join(missing)}"


def test_exceptions_are_offered() -> None:
    for extra in ("aif360", "matplotlib"):  # without them some adapters offer nothing
        pytest.importorskip(extra)
    offered = _offered()
    needless = [name for name in NOT_ON_A_DEVICE if name not in offered or not _takes_tensors(offered[name])]
    assert not needless, f"take off the list: {', '.join(needless)}"
