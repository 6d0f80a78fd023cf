"""Copies to the CPU are there when they are read; a pretend device lands those that nobody waits for too late."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairtrim import collect_damage
from fairtrim.comparison.changed_samples import changed_samples
from fairtrim.comparison.predictions import predict
from fairtrim.damage.channel_groups import ChannelGroup, ChannelPlace
from fairtrim.damage.scoring_run import ScoringRun
from fairtrim.data.validation_set import ValidationSet
from fairtrim.devices import to_device

CPU = torch.device("cpu")


class FarTensor(torch.Tensor):
    """A tensor of another device: a copy of it to the CPU that nobody waits for is still empty."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.Tensor.to and torch.device("cpu") in args:
            plain = args[0].as_subclass(Tensor)
            return torch.zeros_like(plain) if kwargs.get("non_blocking") else plain.clone()
        return super().__torch_function__(function, types, args, kwargs)


def _far(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(FarTensor)


def _people() -> tuple[Tensor, Tensor, list[str]]:
    x = torch.arange(1.0, 9.0).reshape(4, 2) * torch.tensor([[1.0, -1.0]])
    return x, torch.tensor([1, 0, 1, 0]), ["a", "b", "a", "b"]


def test_the_pretend_device_shows_the_fault() -> None:
    assert _far(torch.ones(2)).to(CPU, non_blocking=True).tolist() == [0, 0]
    assert _far(torch.ones(2)).to(CPU).tolist() == [1, 1]


def test_nested_inputs_have_landed() -> None:
    moved = to_device({"x": (_far(torch.ones(2)), [_far(torch.ones(1))]), "name": "a"}, CPU)
    assert moved["x"][0].tolist() == [1, 1] and moved["x"][1][0].tolist() == [1] and moved["name"] == "a"


def test_copies_towards_a_device_do_not_wait_but_for_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def to(self: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
        asked.append((device.type, non_blocking))
        return self

    monkeypatch.setattr(torch.Tensor, "to", to)
    for device in ("cuda", "mps", "cpu"):
        to_device(torch.ones(1), torch.device(device))
    assert asked == [("cuda", True), ("mps", False), ("cpu", False)]


def test_validation_sets_predictions_and_changed_samples() -> None:
    x, y, a = _people()
    loader = [(_far(x), _far(y), a)]
    people = ValidationSet.from_loader(loader, progress=False)
    assert torch.equal(people.inputs, x) and torch.equal(people.target, y)
    model = nn.Linear(2, 2)
    expected = predict(model, [(x, y, a)], progress=False)
    found = predict(model, loader, progress=False)
    assert found.scores["model"].tolist() == expected.scores["model"].tolist()
    assert found.target.tolist() == expected.target.tolist()
    swapped = nn.Sequential(model, nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        swapped[1].weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    changed = changed_samples(model, swapped, loader, progress=False)
    assert len(changed) == 4 and sorted(changed.inputs.tolist()) == sorted(x.tolist())


def _digests(monkeypatch: pytest.MonkeyPatch, loader: list[Any], folder: Any) -> str:
    """What a run with ``folder=`` remembers its samples by."""
    found = []
    finish = ScoringRun.finish

    def watch(run: ScoringRun) -> None:
        found.append(run._read.hexdigest())
        finish(run)

    monkeypatch.setattr(ScoringRun, "finish", watch)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    group = ChannelGroup("0", 3, (ChannelPlace("2", "input", range(3), range(3), channel_axis=-1),))
    collect_damage(model, loader, [group], folder=folder, progress=False)
    monkeypatch.undo()
    return found[0]


def test_samples_are_told_apart_wherever_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    x, y, a = _people()
    near = _digests(monkeypatch, [(x, y, a)], tmp_path)
    assert near == _digests(monkeypatch, [(_far(x), _far(y), a)], tmp_path)
    assert near != _digests(monkeypatch, [(_far(-x), _far(y), a)], tmp_path)


def test_samples_are_read_before_they_are_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A device that spoils what it gets: only what was read before is as the loader gave it."""
    x, y, a = _people()
    near = _digests(monkeypatch, [(x, y, a)], tmp_path)
    moved: list[Any] = []

    def spoil(value: Any, device: torch.device) -> Any:
        moved.append(value)
        return value if isinstance(value, list) else F.relu(value)

    monkeypatch.setattr("fairtrim.damage.scoring_run.to_device", spoil)
    assert near == _digests(monkeypatch, [(x, y, a)], tmp_path) and len(moved) == 2


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield
