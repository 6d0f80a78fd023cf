"""Mining on a device: equal to the CPU, wherever inputs lie, and waiting for it no more often than counted here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import ChannelGroup, ChannelPlace, InputError
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.mining import (
    MINERS,
    GivenConfidence,
    KnownSamples,
    LossMiner,
    MinedSamples,
    label_probabilities,
)
from fairtrim.mining.accumulated_confidence import AccumulatedConfidence
from fairtrim.mining.contrastive_gates import gate_slopes, learn_gates
from fairtrim.mining.contrastive_objective import ContrastiveObjective
from fairtrim.mining.contrastive_weight_masks import learn_weight_masks, masked_network
from tests.pretend_accelerator import Accelerator, PretendAccelerator

CPU = torch.device("cpu")
N = 23
FLAGS = torch.arange(N) % 5 == 1
LOGITS = torch.linspace(-1, 1, 20).view(4, 5)
GROUPS = (
    ChannelGroup("0", 5, (ChannelPlace("2", "input", range(5), range(5)),)),
    ChannelGroup("2", 4, (ChannelPlace("4", "input", [3, 1, 0, 2], [0, 2, 1, 3], weight=0.5),)),
)


def _network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))


def _loader(device: torch.device, where: str = "on the CPU") -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(N, 3, generator=generator), torch.arange(N) % 2
    x[:, 0] += torch.where(FLAGS, -2.0, 2.0) * (2 * y - 1)
    columns = [column.to(device) if where == "there" else column for column in (x, y)]
    pin = where == "pinned" and device.type != "cpu"
    return DataLoader(TensorDataset(*columns), batch_size=8, pin_memory=pin)


def _halved(
    model: nn.Module, samples: IndexedSamples, levels: Sequence[float], generator: torch.Generator
) -> Iterator[float]:
    """Closes one channel of the first layer after the other."""
    for number, level in enumerate(levels):
        with torch.no_grad():
            for parameter in model[0].parameters():  # type: ignore[index]
                parameter[number] = 0
        yield level


def _mined(miner: Any, device: torch.device, where: str = "on the CPU") -> Any:
    return vars(miner.mine(_network().to(device), _loader(device, where), progress=False))


def _objective(device: torch.device) -> ContrastiveObjective:
    return ContrastiveObjective(conflicting=FLAGS.to(device), upweight="published")


def _samples(device: torch.device, where: str = "on the CPU") -> IndexedSamples:
    return IndexedSamples(_loader(device, where))


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.state_dict())


def _chosen(device: torch.device) -> Any:
    """Sets and sampling weights of what was mined, all of it on the device."""
    scores = torch.linspace(0, 1, N).square().to(device)
    cut, target = FLAGS.to(device), (torch.arange(N) % 3).to(device)
    mined = MinedSamples(scores, target, cut, levels=(0.0,), confidence=scores[None])
    chosen = mined.conflicting()
    return (
        vars(mined),
        chosen,
        mined.conflicting(deviations=1.0),
        mined.sample_weights(cut),
        mined.sample_weights(soft=True),
    )


EVERYTHING: dict[str, Callable[[torch.device], Any]] = {
    **{
        name: lambda device, miner=miner: _mined(miner(epochs=2), device)
        for name, miner in MINERS.known().items()
        if any(field.name == "epochs" for field in dataclasses.fields(miner))
    },
    "given": lambda device: _mined(GivenConfidence(), device, "there"),
    "label probabilities": lambda device: label_probabilities(
        _network().to(device), IndexedSamples(_loader(device, "pinned"))
    ),
    "known": lambda device: _mined(KnownSamples(FLAGS.to(device)), device),
    "accumulated": lambda device: _mined(AccumulatedConfidence(prune=_halved, levels=[0.2, 0.4]), device, "pinned"),
    "gates": lambda device: learn_gates(
        _network().to(device), _samples(device, "there"), GROUPS, _objective(device), iterations=4, progress=False
    ),
    "weight masks": lambda device: learn_weight_masks(
        _network().to(device), _loader(device, "pinned"), _objective(CPU), iterations=4, progress=False
    ),
    "slopes": lambda device: gate_slopes(
        _network().to(device), _samples(device), GROUPS, _objective(CPU), progress=False
    ),
    "masked": lambda device: _parameters(
        masked_network(_network().to(device), {"2.weight": LOGITS.to(device)}, sparsity=0.3)
    ),
    "chosen": lambda device: _chosen(device),
}


@pytest.mark.usefixtures("same_draws")
@pytest.mark.parametrize("what", EVERYTHING)
def test_equal_to_the_cpu(accelerator: Accelerator, what: str) -> None:
    if isinstance(accelerator, PretendAccelerator):
        accelerator.refuses_float64 = True
    elif what in ("gates", "weight masks"):
        pytest.skip("a real device has draws of its own")
    accelerator.check_same(EVERYTHING[what](accelerator.device), EVERYTHING[what](CPU))


def test_generators_of_the_device_draw(accelerator: Accelerator) -> None:
    def drawn() -> Any:
        generator, device = torch.Generator(accelerator.device).manual_seed(6), accelerator.device
        mined = LossMiner(epochs=1, random_state=generator).mine(_network().to(device), _loader(device), progress=False)
        draws = list(mined.sampler(random_state=generator))
        gates = learn_gates(
            _network().to(device), _samples(device), GROUPS, _objective(CPU), iterations=2, random_state=generator,
            progress=False,
        )  # fmt: skip
        return mined.scores, draws, gates

    accelerator.check_same(drawn(), drawn())


def test_waits_of_miners(pretend: PretendAccelerator) -> None:
    """Of every batch that a network is asked about one wait; of a step of its training two at most."""
    epochs, n_batches = 3, len(_loader(CPU))
    LossMiner(epochs=epochs).mine(_network().to(pretend.device), _loader(pretend.device), progress=False)
    asked = sum(count for (_, line), count in pretend.waits.items() if "mining/miner.py" in line)
    assert asked == (1 + epochs) * n_batches
    assert sum(pretend.waits.values()) <= asked + 2 * epochs * n_batches
    copies = sum(count for (_, line), count in pretend.copies.items() if "tests" not in line)
    assert copies <= 6 + (1 + 3 * epochs) * n_batches  # inputs, and targets for training; the network


def test_steps_of_gates_cost_their_batches(pretend: PretendAccelerator) -> None:
    def counted(iterations: int) -> tuple[int, int]:
        pretend.forget()
        samples = _samples(pretend.device)
        learn_gates(
            _network().to(pretend.device), samples, GROUPS, _objective(CPU), iterations=iterations, progress=False
        )
        return sum(pretend.waits.values()), sum(pretend.copies.values())

    (waits, copies), (later, more) = counted(1), counted(3)
    assert later - waits <= 2 * 2  # whether somebody attracts somebody, and whether the loss is finite
    assert more - copies <= 3 * 2  # inputs, targets, and who is mined


def test_labels_are_read_before_they_look_scores_up(pretend: PretendAccelerator) -> None:
    data = TensorDataset(*(column.clone() for column in _loader(CPU).dataset.tensors))  # type: ignore[attr-defined]
    data.tensors[1][FLAGS] = 2
    loader, model = DataLoader(data, batch_size=8), _network().to(pretend.device)
    for learn in (
        lambda: learn_gates(model, IndexedSamples(loader), GROUPS, _objective(CPU), progress=False),
        lambda: gate_slopes(model, IndexedSamples(loader), GROUPS, _objective(CPU), progress=False),
        lambda: learn_weight_masks(model, loader, _objective(CPU), progress=False),
    ):
        with pytest.raises(InputError, match=r"labels reach from . to 2"):
            learn()
        assert not pretend.asserted
