"""The pretend accelerator behaves as devices do: what follows from it is worth something only then."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.pretend_accelerator import Accelerator, PretendAccelerator


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


def test_loaders_pin(pretend: PretendAccelerator) -> None:
    (batch,) = DataLoader(TensorDataset(torch.ones(4, 2)), batch_size=4, pin_memory=True)
    assert batch[0].is_pinned()
