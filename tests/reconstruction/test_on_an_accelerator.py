"""Refits on a device: those of the CPU, whatever lies where, and no batch of a layer is waited for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim.arguments import drawn_seed
from fairtrim.reconstruction import Reader, Reconstruction, least_squares, passes, reconstruct
from fairtrim.reconstruction.readers import layer_rows
from tests.pretend_accelerator import Accelerator, PretendAccelerator
from tests.reconstruction.cases import CASES, KEPT

CPU = torch.device("cpu")


class Net(nn.Module):
    """A convolution with a BatchNorm and a sum behind it, one over tokens, and the output, for so many channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(5)
        self.body, self.skip = nn.Conv2d(width, 5, 3, padding=1, bias=False), nn.Conv2d(3, 5, 3)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(self.body(torch.relu(self.stem(x)))) + self.skip(x)
        scores: Tensor = self.head(torch.relu(inner).flatten(2).mean(2))
        return scores


READERS = [Reader("body", range(5)), Reader("head", range(4))]


def _networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    dense, pruned = Net(7).eval(), Net(4).eval()
    dense.norm.running_mean.uniform_(-1, 1)
    state = dict(dense.state_dict())
    for name, axis in (("stem.weight", 0), ("stem.bias", 0), ("body.weight", 1)):
        state[name] = state[name].narrow(axis, 0, 4)
    pruned.load_state_dict(state)
    return dense, pruned


def _batches(n_samples: int = 37, size: int = 9, *, at: torch.device = CPU) -> list[Any]:
    x = torch.randn(n_samples, 3, 7, 6, generator=torch.Generator().manual_seed(1))
    return [(part.to(at), torch.zeros(len(part), device=at), _people(part).to(at)) for part in x.split(size)]


def _people(part: Tensor) -> Tensor:
    return (part[:, 0, 0, 0] > 0).long()


def _refitted(device: torch.device, loader: Any, **options: Any) -> tuple[dict[str, Any], Reconstruction]:
    dense, pruned = (network.to(device) for network in _networks())
    done = reconstruct(pruned, dense, loader, READERS, progress=False, **options)
    return {name: value.cpu() for name, value in pruned.state_dict().items()}, done


def _told(done: Reconstruction) -> list[Any]:
    return [[layer.module, layer.ridge, layer.why, layer.before, layer.after] for layer in done.layers]


@pytest.mark.parametrize(("joined", "there"), [(True, False), (True, True), (False, True)])
def test_as_on_the_cpu(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, joined: bool, there: bool) -> None:
    if not joined:
        monkeypatch.setattr(passes, "_MAX_ACTIVATION_BYTES", 0)
    expected, done = _refitted(CPU, _batches(), weigh_groups=True)
    own = _batches(at=accelerator.device if there else CPU)
    found, told = _refitted(accelerator.device, own, weigh_groups=True)
    accelerator.check_same(found, expected)
    accelerator.check_same(_told(told), _told(done))
    assert all(not layer.why for layer in done.layers)


def test_pinned_batches_and_a_cut(accelerator: Accelerator) -> None:
    x = torch.cat([batch[0] for batch in _batches()])
    data = TensorDataset(x, torch.zeros(len(x)))
    expected, _ = _refitted(CPU, DataLoader(data, batch_size=8), max_samples=27)
    found, _ = _refitted(accelerator.device, DataLoader(data, batch_size=8, pin_memory=True), max_samples=27)
    accelerator.check_same(found, expected)


def test_a_generator_of_the_device(accelerator: Accelerator) -> None:
    generators = [torch.Generator(accelerator.device).manual_seed(5) for _ in range(2)]
    expected, _ = _refitted(CPU, _batches(), random_state=drawn_seed(generators[0]))
    found, _ = _refitted(accelerator.device, _batches(), random_state=generators[1])
    accelerator.check_same(found, expected)


@pytest.mark.parametrize(
    ("case", "wide"),
    [
        ("conv2d grouped", True),
        ("grid of tokens", False),
        *(
            pytest.param(case, wide, marks=pytest.mark.slow)
            for case in ("conv3d", "transposed 2d grouped", "inputs by outputs")
            for wide in (True, False)
        ),
    ],
)
def test_every_form(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, case: str, wide: bool) -> None:
    monkeypatch.setattr(least_squares, "_SOLVED_WHERE_SUMMED", 4)  # some are solved there, and some here
    if wide:
        monkeypatch.setattr(least_squares, "MAX_UNKNOWNS", 1)
        monkeypatch.setattr(passes, "MAX_UNKNOWNS", 1)
        monkeypatch.setattr(passes, "MAX_ROWS", 16)
    found = []
    for device in (CPU, accelerator.device):
        torch.manual_seed(2)
        dense, pruned = (network.to(device) for network in CASES[case].networks(KEPT))
        rows = layer_rows(dense.get_submodule("1"), CASES[case].input_axis)
        assert not isinstance(rows, str)
        batches = [(part, torch.zeros(len(part))) for part in CASES[case].inputs(20).to(device).split(11)]
        reader = Reader("1", range(rows.outputs), CASES[case].input_axis)
        done = reconstruct(pruned, dense, batches, [reader], progress=False)
        found.append((_told(done), [parameter.detach().cpu() for parameter in pruned.parameters()]))
    accelerator.check_same(found[1], found[0])


def test_padding(accelerator: Accelerator) -> None:
    class Sentences(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed, self.down = nn.Embedding(11, width), nn.Linear(width, 3)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            scores: Tensor = self.down(self.embed(input_ids)) * attention_mask[..., None]
            return scores.sum(1)

    ids = torch.randint(0, 11, (23, 6), generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(6) < torch.arange(23)[:, None] % 5 + 2).long()
    found = []
    for device in (CPU, accelerator.device):
        torch.manual_seed(4)
        dense, pruned = Sentences(5).eval(), Sentences(3).eval()
        with torch.no_grad():
            pruned.embed.weight.copy_(dense.embed.weight[:, :3])
            pruned.down.weight.copy_(dense.down.weight[:, :3])
        batches = [({"input_ids": ids[k], "attention_mask": mask[k]}, torch.zeros(len(ids[k]))) for k in _halves(23)]
        done = reconstruct(pruned.to(device), dense.to(device), batches, [Reader("down", range(3))], progress=False)
        found.append((_told(done), pruned.down.weight.detach().cpu()))
    accelerator.check_same(found[1], found[0])


def _halves(number: int) -> list[slice]:
    return [slice(0, number // 2), slice(number // 2, None)]


@pytest.mark.parametrize("wide", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_without_float64(pretend: PretendAccelerator, monkeypatch: pytest.MonkeyPatch, wide: bool) -> None:
    if wide:
        monkeypatch.setattr(least_squares, "MAX_UNKNOWNS", 8)
        monkeypatch.setattr(passes, "MAX_UNKNOWNS", 8)
    expected, done = _refitted(CPU, _batches())
    pretend.refuses_float64 = True
    found, told = _refitted(pretend.device, _batches())
    assert [layer.ridge for layer in told.layers] == [layer.ridge for layer in done.layers]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("joined", [True, False])
def test_waits_are_few_a_layer_and_none_a_batch(
    pretend: PretendAccelerator, monkeypatch: pytest.MonkeyPatch, joined: bool
) -> None:
    if not joined:
        monkeypatch.setattr(passes, "_MAX_ACTIVATION_BYTES", 0)
    waits, blocking = [], []
    for size in (19, 5):
        networks, batches = [network.to(pretend.device) for network in _networks()], _batches(size=size)
        pretend.forget()
        reconstruct(networks[1], networks[0], batches, READERS, progress=False)
        by_line = {line: count for (_, line), count in pretend.waits.items()}
        reading = ("running_sums.py", "devices.py")  # of the spread of the targets, and of all sums of a fit
        waits.append((sum(by_line.values()), sum(c for line, c in by_line.items() if any(r in line for r in reading))))
        blocking.append(sum(count for (kind, _), count in pretend.copies.items() if kind != "non_blocking"))
    assert waits[0] == waits[1]
    assert waits[0][1] == 2 * len(READERS)
    assert blocking[0] == blocking[1]
