"""Training and refitting on another device: as on the CPU, wherever the samples are, and how often it is waited for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import (
    ChannelGroup,
    ChannelPlace,
    InputError,
    collect_damage,
    fine_tune,
    recalibrate_batchnorm,
    recalibrate_output,
)
from fairtrim.network.fine_tuning import reinitialized
from fairtrim.network.late_blocks import LateBlocks
from fairtrim.network.losses import generalized_cross_entropy, negative_margin
from fairtrim.network.sample_loss import SampleLoss
from tests.pretend_accelerator import Accelerator, PretendAccelerator

GENERATOR = torch.Generator().manual_seed(8)
X = torch.randn(31, 4, generator=GENERATOR)
TARGET = (X[:, 0] > 0).long()
FLAGS = torch.arange(31) % 3 == 0


def _network(n_outputs: int = 2) -> nn.Module:
    network = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, n_outputs))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network


def _loader(device: torch.device, *, batch_size: int = 8, pinned: bool = False) -> DataLoader[Any]:
    data = TensorDataset(X.to(device), TARGET.to(device))
    return DataLoader(data, batch_size=batch_size, pin_memory=pinned)


CASES: dict[str, Callable[[nn.Module, Any], nn.Module]] = {
    "fine-tune": lambda model, loader: fine_tune(model, loader, progress=False),
    "by weight": lambda model, loader: fine_tune(
        model, loader, sample_weights=1.0 + FLAGS.to(_device(model)), held_out=0.3, epochs=2, progress=False
    ),
    "contrast": lambda model, loader: fine_tune(
        model, loader, conflicting=FLAGS.to(_device(model)), contrastive_weight=0.1, held_out=FLAGS, progress=False
    ),
    "BatchNorm": lambda model, loader: recalibrate_batchnorm(model, loader, progress=False),
    "output": lambda model, loader: recalibrate_output(model, loader, balanced=True, progress=False),
    "output, flags": lambda model, loader: recalibrate_output(
        model, loader, conflicting=FLAGS.to(_device(model)), progress=False
    ),
    "threshold": lambda model, loader: recalibrate_output(model, loader, layer="threshold", progress=False),
    "new": lambda model, loader: reinitialized(model, 3),
}


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of L-BFGS are the CPU's anyway."""
    monkeypatch.setattr("fairtrim.network.recalibration._MAX_ITERATIONS", 3)


@pytest.mark.parametrize("name", CASES)
def test_as_on_the_cpu(accelerator: Accelerator, name: str) -> None:
    expected = CASES[name](_network(), _loader(torch.device("cpu")))
    if isinstance(accelerator, PretendAccelerator):
        accelerator.refuses_float64 = True
    for where in ("here", "there", "pinned"):
        device = accelerator.device if where == "there" else torch.device("cpu")
        model = _network().to(accelerator.device)
        found = CASES[name](model, _loader(device, pinned=where == "pinned"))
        if name != "new":  # torch's own draws for a device
            accelerator.check_same(dict(found.state_dict()), dict(expected.state_dict()))
        assert _device(found) == accelerator.device


def test_generator_of_the_device(accelerator: Accelerator) -> None:
    states = []
    for _ in range(2):
        generator = torch.Generator(accelerator.device).manual_seed(5)
        model = _network().to(accelerator.device)
        fine_tune(model, _loader(torch.device("cpu")), random_state=generator, progress=False)
        recalibrate_output(model, _loader(torch.device("cpu")), random_state=generator, progress=False)
        states.append(dict(model.state_dict()))
    accelerator.check_same(*states)


def test_losses_that_are_not_finite_change_nothing(accelerator: Accelerator) -> None:
    model = _network().to(accelerator.device)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    with pytest.raises(InputError, match="the loss of batch 0 is nan"):
        fine_tune(model, _loader(accelerator.device), loss_fn=lambda f, y: f.sum() * torch.nan, progress=False)
    accelerator.check_same(dict(model.named_parameters()), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_waits_and_copies_of_a_batch(pretend: PretendAccelerator) -> None:
    def counted(name: str, batch_size: int) -> tuple[int, int]:
        pretend.forget()
        CASES[name](_network().to(pretend.device), _loader(torch.device("cpu"), batch_size=batch_size))
        return sum(pretend.waits.values()), sum(pretend.copies.values())

    # per batch: the loss; nothing; the features
    for name, waits in (("fine-tune", 1), ("BatchNorm", 0), ("output", 1)):
        two, four = (counted(name, batch_size) for batch_size in (16, 8))
        assert four[0] - two[0] <= 2 * waits, pretend.told()
        assert four[1] - two[1] <= 2 * 2
        assert not any(kind == "blocking" and "data/" in line for kind, line in pretend.copies)


def test_late_blocks(accelerator: Accelerator) -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    model = Stack().eval()
    found = []
    for device in (torch.device("cpu"), accelerator.device):
        model.to(device)
        x = X.to(device)
        blocks = LateBlocks(model, None, 1, lambda x=x: model(x))  # type: ignore[misc]
        kept: dict[str, Any] = {}
        runs = [blocks.scores(lambda x=x: model(x), kept).detach() for _ in range(2)]  # type: ignore[misc]
        with blocks.noted() as notes:
            model(x).sum().backward()
        slopes = [zero.grad for _, zero in notes.values()]
        found.append([list(blocks.layers), runs, slopes, blocks.weight("blocks.2.0")])
    accelerator.check_same(found[1], found[0])


LOSSES: dict[str, Callable[[torch.device], Any]] = {
    "plain": lambda device: F.cross_entropy,
    "weights": lambda device: nn.CrossEntropyLoss(torch.tensor([1.0, 2.0]).to(device)),
    "smoothing": lambda device: partial(F.cross_entropy, label_smoothing=0.1),
    "margin": lambda device: nn.MultiMarginLoss(),
    "ours": lambda device: partial(generalized_cross_entropy, q=0.5),
    "ours, margin": lambda device: negative_margin,
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("where", ["here", "there"])
def test_labels_are_read_before_they_look_scores_up(pretend: PretendAccelerator, loss: str, where: str) -> None:
    """A kernel of CUDA would assert that they are in range, and nothing would run there any more."""
    device = pretend.device if where == "there" else torch.device("cpu")
    target = TARGET.clone()
    target[13] = 2
    loader = DataLoader(TensorDataset(X.to(device), target.to(device)), batch_size=8)
    model, loss_fn = _network().to(pretend.device), LOSSES[loss](pretend.device)
    group = ChannelGroup("0", 5, (ChannelPlace("3", "input", range(5), range(5)),))
    options: dict[str, Any] = {"loss_fn": loss_fn, "progress": False}
    calls: list[Callable[[], Any]] = [
        lambda: fine_tune(model, loader, **options),
        lambda: collect_damage(model, loader, [group], curvature="empirical", **options),
    ]
    for call in calls:
        with pytest.raises(InputError, match="labels reach from 0 to 2; expected 0 to 1 for 2 scores"):
            call()
        assert not pretend.asserted
        assert all(parameter.grad is None for parameter in model.parameters())


def test_logits_are_refused_where_a_loss_takes_probabilities(pretend: PretendAccelerator) -> None:
    scores = torch.tensor([[0.3], [1.5]], device=pretend.device)
    with pytest.raises(InputError, match=r"reach from 0\.3 to 1\.5, and the loss takes probabilities"):
        SampleLoss(nn.BCELoss())(scores, torch.tensor([0.0, 1.0], device=pretend.device))
    assert not pretend.asserted
    expected = F.binary_cross_entropy(scores[:1].cpu(), torch.ones(1, 1))
    found = SampleLoss(nn.BCELoss())(scores[:1], torch.ones(1, device=pretend.device))
    pretend.check_same(found, expected[None])


class _Elsewhere(nn.Module):
    """Gives its scores on the CPU, wherever it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _network()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.inner(x).cpu()
        return scores


def test_scores_and_losses_may_come_elsewhere(accelerator: Accelerator) -> None:
    def computed(device: torch.device, loss_fn: Any) -> list[Tensor]:
        model = _Elsewhere().to(device)
        group = ChannelGroup("0", 5, (ChannelPlace("inner.3", "input", range(5), range(5)),))
        table = collect_damage(model, _loader(torch.device("cpu")), [group], loss_fn=loss_fn, progress=False)
        fine_tune(model, _loader(torch.device("cpu")), loss_fn=loss_fn, progress=False)
        return [table.slope, table.curvature, *model.parameters()]

    for loss_fn in (F.cross_entropy, lambda scores, y: F.cross_entropy(scores.cpu(), y.cpu())):
        accelerator.check_same(computed(accelerator.device, loss_fn), computed(torch.device("cpu"), loss_fn))


def test_losses_are_tensors() -> None:
    with pytest.raises(InputError, match="loss_fn gives a float; expected a tensor"):
        SampleLoss(lambda scores, y: F.cross_entropy(scores, y).item())(torch.eye(2), torch.tensor([0, 1]))
