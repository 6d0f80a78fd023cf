"""What is held out of a training, and that the epoch is kept which does best on it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import InputError, fine_tune
from fairtrim.network.held_out import held_out_samples
from tests.snapshot import Snapshot

N, EPOCHS = 83, 6
FLAGS = torch.arange(N) % 11 < 2


def _generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _data(n_classes: int = 3) -> TensorDataset:
    """Flagged samples contradict the first feature; a third of all labels are noise, so that epochs differ."""
    generator = _generator(5)
    y = torch.randint(n_classes, (N,), generator=generator)
    x = torch.randn(N, 4, generator=generator, dtype=torch.float64)
    x[:, 0] += 2.0 * torch.where(FLAGS, (y + 1) % n_classes, y)
    x[:, 1] += y
    noise = torch.randint(n_classes, (N,), generator=generator)
    return TensorDataset(x, torch.where(torch.arange(N) % 3 == 0, noise, y))


def _network(n_scores: int = 3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, n_scores)).double()


def _train(model: nn.Module, data: TensorDataset, **options: Any) -> nn.Module:
    loader = DataLoader(data, batch_size=7, shuffle=True)
    return fine_tune(model, loader, learning_rate=0.05, random_state=_generator(), progress=False, **options)


def _accuracy_of_cells(model: nn.Module, data: TensorDataset, held_out: Tensor, flags: Tensor | None) -> float:
    """Sample by sample."""
    cells: dict[tuple[int, bool], list[float]] = {}
    for n in held_out.nonzero().flatten().tolist():
        x, y = data[n]
        with torch.no_grad():
            label = int(copy.deepcopy(model).eval()(x[None])[0].argmax())
        cells.setdefault((int(y), flags is not None and bool(flags[n])), []).append(float(label == int(y)))
    return sum(sum(right) / len(right) for right in cells.values()) / len(cells)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("flags", [None, FLAGS], ids=["classes", "classes and flags"])
def test_the_best_epoch_by_a_slow_loop_is_kept(flags: Tensor | None, weighted: bool) -> None:
    """Trained anew on the other samples alone for every number of epochs; no sample that is held out is ever seen."""
    data, held_out = _data(), torch.arange(N) % 4 == 1
    weights = 1.0 + 5 * FLAGS.double() if weighted else None
    seen: list[Tensor] = []

    def loss_fn(scores: Tensor, target: Tensor) -> Tensor:
        seen.append(target)
        return F.cross_entropy(scores, target)

    epochs: list[nn.Module] = []
    model = _network()
    kept = _train(
        model,
        data,
        epochs=EPOCHS,
        held_out=held_out,
        conflicting=flags,
        sample_weights=weights,
        loss_fn=loss_fn,
        after_epoch=lambda epoch: epochs.append(copy.deepcopy(model)),
    )
    n_trained = int((~held_out).sum())
    assert sum(len(target) for target in seen) == EPOCHS * n_trained and len(epochs) == EPOCHS
    accuracy = [_accuracy_of_cells(network, data, held_out, flags) for network in epochs]
    assert len(set(accuracy)) > 1  # else nothing was chosen
    best = max(range(EPOCHS), key=lambda epoch: (accuracy[epoch], -epoch))
    assert best < EPOCHS - 1
    for name, tensor in kept.state_dict().items():
        assert torch.equal(tensor, epochs[best].state_dict()[name]), name
    if not weighted and flags is None:  # the samples alone, each once an epoch, in the same order
        order, other = _generator(), _network().train()
        optimizer, step, total = torch.optim.Adam(other.parameters(), lr=0.05), 0, EPOCHS * -(-n_trained // 7)
        x, y = data.tensors
        for epoch in range(EPOCHS):
            torch.randint(2**31, (), generator=order)  # the seed of the epoch's dropout
            drawn = torch.tensor([n for n in torch.randperm(N, generator=order).tolist() if not held_out[n]])
            torch.randint(2**62, (), generator=order)  # of its workers
            for indices in drawn.split(7):
                optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / total)
                optimizer.zero_grad()
                F.cross_entropy(other(x[indices]), y[indices]).backward()
                optimizer.step()
                step += 1
            for left, right in zip(other.parameters(), epochs[epoch].parameters(), strict=True):
                torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def test_judging_changes_nothing_of_the_training() -> None:
    """Epochs as with a share of the samples that is judged by hand; the caller's random state decides nothing."""
    data, states = _data(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        model = _train(_network().eval(), data, epochs=3, held_out=0.3, conflicting=FLAGS)
        assert torch.equal(before, torch.get_rng_state()) and not model.training
        assert all(p.grad is None for p in model.parameters())
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("share", [0.1, 0.35, 0.95])
def test_a_share_of_every_class_and_of_its_mined_samples(share: float) -> None:
    target = torch.tensor([0] * 31 + [1] * 40 + [2] * 12)
    flags = torch.zeros(N, dtype=torch.bool)
    flags[[0, 1, 2, 3, 4, 31, 32, 71]] = True  # five, two and one
    held = held_out_samples(share, target, flags, random_state=4)
    for label in range(3):
        for flag in (False, True):
            members = (target == label) & (flags == flag)
            n = int(members.sum())
            assert int(held[members].sum()) == min(max(1, round(share * n)), n - 1), (label, flag)
    assert torch.equal(held, held_out_samples(share, target, flags, _generator(4)))
    assert not torch.equal(held, held_out_samples(share, target, flags, 5))


def test_a_single_logit_is_judged() -> None:
    data, calls = _data(2), []

    def loss_fn(scores: Tensor, target: Tensor) -> Tensor:
        calls.append(len(target))
        return F.binary_cross_entropy_with_logits(scores[:, 0], target.double())

    _train(_network(1), data, epochs=2, held_out=0.25, loss_fn=loss_fn)
    held = held_out_samples(0.25, data.tensors[1], None, _generator())
    assert sum(calls) == 2 * int((~held).sum())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out": 0.0}, "held_out=0.0; expected above 0, below 1, a share of the samples, or flags"),
        ({"held_out": 1}, "held_out=1; expected above 0, below 1"),
        ({"held_out": "tenth"}, "held_out='tenth'; expected a finite number"),
        ({"held_out": FLAGS[:9]}, rf"held_out is torch.bool of shape \(9,\); .* one flag for each of {N} samples"),
        ({"held_out": FLAGS.long()}, r"held_out is torch.int64 of shape"),
        ({"held_out": FLAGS | True}, f"held_out holds {N} of {N} samples out; expected some, and others"),
        ({"held_out": FLAGS & False}, "held_out holds 0 of"),
        ({"held_out": 0.1, "conflicting": FLAGS[:8]}, f"8 mined flags for {N} samples"),
        ({"held_out": FLAGS, "sample_weights": FLAGS.double()}, "expected one finite weight .* not all of them 0"),
    ],
)
def test_what_can_not_be_held_out_is_refused(options: dict[str, Any], message: str) -> None:
    model = _network()
    before = Snapshot(model)
    with pytest.raises(InputError, match=message):
        _train(model, _data(), **options)
    before.assert_unchanged()


def test_nothing_to_hold_out() -> None:
    data = TensorDataset(torch.eye(4, dtype=torch.float64)[:2], torch.arange(2))
    with pytest.raises(InputError, match="none of 2 samples has another of its class"):
        _train(_network(), data, held_out=0.5)
