"""Comparisons of networks on another device: those of the CPU, wherever the samples are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import changed_samples, measure_latency, predict
from fairtrim.comparison.changed_samples import changed_between
from tests.pretend_accelerator import Accelerator, PretendAccelerator

NAMES = {"team": ["a", "b", "c"]}


def _networks(n_outputs: int = 3) -> dict[str, nn.Module]:
    generator = torch.Generator().manual_seed(1)
    networks: dict[str, nn.Module] = {}
    for name in ("dense", "other"):
        networks[name] = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, n_outputs))
        with torch.no_grad():
            for parameter in networks[name].parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return networks


def _loader(where: str, device: torch.device) -> Any:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(23, 4, generator=generator)
    data: list[Tensor] = [x, torch.arange(23) % 3, torch.arange(23) % 7 % 3]
    if where == "pinned":
        return DataLoader(TensorDataset(*data), batch_size=9, pin_memory=True)
    moved = {"there": 3, "inputs there": 1, "here": 0}[where]
    data = [tensor.to(device) for tensor in data[:moved]] + data[moved:]
    return [tuple(tensor[start : start + 9] for tensor in data) for start in range(0, 23, 9)]


@pytest.fixture
def there(accelerator: Accelerator) -> dict[str, nn.Module]:
    if isinstance(accelerator, PretendAccelerator):
        accelerator.refuses_float64 = True
    return {name: network.to(accelerator.device) for name, network in _networks().items()}


@pytest.mark.parametrize("where", ["here", "there", "inputs there", "pinned"])
def test_those_of_the_cpu(accelerator: Accelerator, there: dict[str, nn.Module], where: str) -> None:
    options: dict[str, Any] = {"sensitive_names": NAMES, "progress": False}
    here, loader = _networks(), _loader(where, accelerator.device)
    expected = predict(here, _loader("here", accelerator.device), **options)
    found = predict(there, loader, **options)
    accelerator.check_same(vars(found), vars(expected))
    if where == "here":  # and one network on each device
        mixed = predict({"dense": here["dense"], "other": there["other"]}, loader, **options)
        accelerator.check_same(mixed.scores, expected.scores)
    same = changed_samples(*here.values(), _loader("here", accelerator.device), **options)
    changed = changed_samples(*there.values(), loader, **options)
    between = changed_between(found, "dense", inputs=loader, progress=False)["other"]
    assert 0 < len(same) < 23
    for one in (changed, between):
        accelerator.check_same(vars(one), vars(same))
        assert one.inputs.device == torch.device("cpu")


def test_tokens(accelerator: Accelerator) -> None:
    x, y = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(3)), torch.arange(18).reshape(3, 6) % 4 - 1
    network = _networks()["dense"]
    expected = predict(network, [(x, y)], progress=False)
    found = predict(network.to(accelerator.device), [(x.to(accelerator.device), y)], progress=False)
    accelerator.check_same(vars(found), vars(expected), other_kernels=True)  # a linear layer of three axes


def test_waits_and_copies_of_a_batch(pretend: PretendAccelerator, there: dict[str, nn.Module]) -> None:
    def counted(n_batches: int, compare: Any, loader: list[Any]) -> tuple[int, int]:
        pretend.forget()
        compare(loader[:n_batches])
        return sum(pretend.waits.values()), sum(pretend.copies.values())

    for compare in (
        lambda loader: predict(there, loader, progress=False),
        lambda loader: changed_samples(*there.values(), loader, progress=False),
    ):
        one, three = (counted(n, compare, _loader("here", pretend.device)) for n in (1, 3))
        assert three[0] - one[0] <= 2 * 2  # the scores of each network
        assert three[1] - one[1] == 2  # the inputs, for both


def test_latency(accelerator: Accelerator, there: dict[str, nn.Module]) -> None:
    latency = measure_latency(there, torch.ones(2, 4), rounds=6, warm_up=1, progress=False)
    assert all((seconds > 0).all() for seconds in latency.seconds.values())
    if isinstance(accelerator, PretendAccelerator):  # the clock is read when the device has done what it was given
        waits = sum(
            n for (kind, line), n in accelerator.waits.items() if kind == "synchronize" and "latency.py" in line
        )
        assert waits >= 2 * 6 * len(there)
