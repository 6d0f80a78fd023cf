"""Selection by what a device computed: the orders and masks of the CPU, and moments of inputs wait for no batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import ChannelGroup, ChannelPlace, ValidationSet, collect_damage, prune_by_group_saliency
from fairtrim.arguments import RandomState, drawn_seed
from fairtrim.criteria import MeanDamage, WorstGroup
from fairtrim.damage import input_moments as module
from fairtrim.damage.input_moments import ReadInputs, input_moments
from fairtrim.selection import (
    compensated_selection,
    joint_selection,
    negative_columns,
    share_balanced_order,
    single_selection,
)
from tests.pretend_accelerator import Accelerator, PretendAccelerator

CPU = torch.device("cpu")
GROUPS = [
    ChannelGroup("0", 5, (ChannelPlace("2", "input", range(5), range(5)),)),
    ChannelGroup("2", 4, (ChannelPlace("5", "input", range(8), [c // 2 for c in range(8)], channel_axis=-1),)),
]


def _network() -> nn.Module:
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 4, 3)
    return nn.Sequential(first, nn.ReLU(), second, nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten(), nn.Linear(8, 3)).eval()


def _people(n: int = 33) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(n, 2, 11, 10, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(n) % 3, torch.arange(n) // 3 % 2


def _batches(size: int = 14, at: torch.device = CPU) -> list[tuple[Tensor, ...]]:
    return list(zip(*(column.to(at).split(size) for column in _people()), strict=True))


def _selected(device: torch.device, loader: Any) -> list[Any]:
    model = _network().to(device)
    with input_moments(model, GROUPS) as moments:
        table = collect_damage(model, loader, GROUPS, interactions=True, progress=False)
    inputs = moments.read()
    found = [
        compensated_selection(table, WorstGroup(), inputs),
        joint_selection(table, WorstGroup()),
        single_selection(table, MeanDamage()),
        share_balanced_order(table),
    ]
    return [
        _numbers(inputs),
        negative_columns(table.columns, found[2], (), joint=False),
        *([s.order, s.change] for s in found),
    ]


def _numbers(inputs: ReadInputs) -> list[Any]:
    return [inputs.unmixed, *([r.weight, r.moments, r.mean, r.n_rows] for r in inputs.readers)]


def test_orders_are_those_of_the_cpu(accelerator: Accelerator) -> None:
    expected = _selected(CPU, _batches())
    mixed = [*_batches(at=accelerator.device)[:1], *_batches()[1:]]
    accelerator.check_same(_selected(accelerator.device, mixed), expected)


def test_pinned_batches(accelerator: Accelerator) -> None:
    data = TensorDataset(*_people())
    found = _selected(accelerator.device, DataLoader(data, batch_size=14, pin_memory=True))
    accelerator.check_same(found, _selected(CPU, DataLoader(data, batch_size=14)))


@contextmanager
def _moments_of(model: nn.Module, batches: list[Any]) -> Iterator[ReadInputs]:
    with input_moments(model, GROUPS) as moments, torch.no_grad():
        for x, *_ in batches:
            model(x.to(next(model.parameters()).device))
    yield moments.read()


def test_a_generator_of_the_device(accelerator: Accelerator) -> None:
    def moments(device: torch.device, random_state: RandomState) -> list[Any]:
        model = _network().to(device)
        with input_moments(model, GROUPS, random_state=random_state) as found, torch.no_grad():
            model(_people()[0].to(device))
        return _numbers(found.read())

    generators = [torch.Generator(accelerator.device).manual_seed(5) for _ in range(2)]
    expected = moments(CPU, drawn_seed(generators[0]))
    accelerator.check_same(moments(accelerator.device, generators[1]), expected)


def test_moments_without_float64(pretend: PretendAccelerator) -> None:
    with _moments_of(_network(), _batches(4)) as expected:
        pretend.refuses_float64 = True
        with _moments_of(_network().to(pretend.device), _batches(4)) as found:
            torch.testing.assert_close(_numbers(found), _numbers(expected), rtol=2.0**-40, atol=2.0**-40)


@pytest.mark.parametrize("room", [0, 1, None])
def test_no_batch_of_a_layer_is_waited_for_within_the_room(
    pretend: PretendAccelerator, monkeypatch: pytest.MonkeyPatch, room: int | None
) -> None:
    within = 2 if room is None else room
    if room is not None:  # of bytes for as many layers
        monkeypatch.setattr(module, "ON_DEVICE_BYTES", room * 8 * 5 * 5)
    with _moments_of(_network(), _batches()) as expected:
        pass
    model = _network().to(pretend.device)
    waits, blocking = [], []
    for size in (33, 7):  # 1 batch, and 5
        batches = _batches(size, at=pretend.device)
        pretend.forget()
        with _moments_of(model, batches) as found:
            waits.append(sum(pretend.waits.values()))
            # nothing but the draws of positions goes there in a batch, of the one layer that has many
            kinds = Counter(kind for kind, _ in pretend.copies.elements())
            assert kinds["non_blocking"] == len(batches)
            blocking.append(kinds["blocking"])
    assert blocking[0] == blocking[1]
    beyond = 2 - within
    assert waits[1] - waits[0] == 4 * beyond  # one a batch more
    assert waits[0] == 3 * within + 3 * beyond  # at the end its sums and its weight are read
    with _moments_of(model, _batches()) as found:
        pretend.check_same(_numbers(found), _numbers(expected))


def test_padding_on_a_device(accelerator: Accelerator) -> None:
    class Sentences(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.down = nn.Embedding(11, 5), nn.Linear(5, 3)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            scores: Tensor = self.down(self.embed(input_ids)).mean(1)
            return scores

    channels = [ChannelGroup("embed", 5, (ChannelPlace("down", "input", range(5), range(5), channel_axis=-1),))]
    ids = torch.randint(0, 11, (3, 600), generator=torch.Generator().manual_seed(2))
    found = []
    for device in (CPU, accelerator.device):
        torch.manual_seed(3)
        model = Sentences().to(device)
        with input_moments(model, channels) as moments, torch.no_grad():
            for lengths in ([600, 580, 560], [9, 600, 20]):  # some positions are drawn, or all taken
                mask = (torch.arange(600) < torch.tensor(lengths)[:, None]).long()
                model(ids.to(device), attention_mask=mask.to(device))
                model(input_ids=ids.to(device), attention_mask=mask.to(device))
        found.append(_numbers(moments.read()))
    accelerator.check_same(found[1], found[0])
    assert found[0][1][3] == 2 * (3 * 512 + 629)


@pytest.mark.parametrize("there", [False, True])
def test_masks_are_those_of_the_cpu(accelerator: Accelerator, there: bool) -> None:
    accelerator.check_same(_masked(accelerator.device, accelerator.device if there else CPU), _masked(CPU, CPU))


def test_masks_without_float64(pretend: PretendAccelerator) -> None:
    expected = _masked(CPU, CPU)
    pretend.refuses_float64 = True
    torch.testing.assert_close(_masked(pretend.device, CPU), expected, rtol=1e-6, atol=1e-6)


def _masked(device: torch.device, at: torch.device) -> list[Any]:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(3, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).eval()
    batches = [(x[:, 0, 0, :3].to(at), y.to(at), people.to(at)) for x, y, people in _batches()]
    held_out = ValidationSet.from_loader(batches, progress=False)
    done = prune_by_group_saliency(
        model.to(device), batches, held_out=held_out, privileged=0, iterative_steps=2, progress=False
    )
    assert len(done.history) == 3
    weights = [parameter.detach().cpu() for parameter in done.model_at(1).parameters()]
    return [weights, [[*step.gaps.values(), step.pruning_ratio, step.accuracy] for step in done.history]]
