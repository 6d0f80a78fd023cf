"""Miners that train, against a loop by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import InputError
from fairtrim.mining import (
    EpochEnsemble,
    GeneralizedCrossEntropyMiner,
    LossMiner,
    Miner,
    MisclassifiedMiner,
)
from fairtrim.network.fine_tuning import fine_tune, reinitialized
from fairtrim.network.losses import generalized_cross_entropy
from fairtrim_adapters.torch_pruning import AccumulatedConfidence, ContrastiveImportance
from tests.mining_cases import CASE, N, data_of, loader_of_shortcut, shortcut
from tests.snapshot import Snapshot

MINERS: dict[str, Miner] = {
    "generalized cross-entropy": GeneralizedCrossEntropyMiner(epochs=3, learning_rate=0.01),
    "epoch ensemble": EpochEnsemble(epochs=4, learning_rate=0.01),
    "loss": LossMiner(epochs=2, learning_rate=0.01),
    "misclassified": MisclassifiedMiner(epochs=2, learning_rate=0.01),
    "accumulated confidence": AccumulatedConfidence(learning_rate=0.01),
    "accumulated correctness": AccumulatedConfidence(learning_rate=0.01, accumulate="correctness"),
}


@pytest.mark.parametrize("name", MINERS)
def test_finds_samples_that_contradict_the_shortcut(name: str, trained: nn.Sequential) -> None:
    """One score a sample, in the order of the dataset whatever the loader's; the caller's network as it was."""
    before = Snapshot(trained)
    mined = MINERS[name].mine(trained, loader_of_shortcut(), progress=False)
    before.assert_unchanged()
    _, y, conflicting = shortcut()
    assert mined.scores.shape == (N,) and mined.scores.dtype == torch.float64
    assert torch.equal(mined.target, y)
    assert roc_auc_score(conflicting, mined.scores) > 0.9
    again = MINERS[name].mine(trained, loader_of_shortcut(shuffle=False), progress=False)
    assert torch.equal(mined.scores, again.scores)


def test_own_decision_and_robust_cut(trained: nn.Sequential) -> None:
    """Nearly all that are cut conflict, and nearly all that conflict are cut."""
    conflicting = shortcut()[2]
    for name in ("generalized cross-entropy", "misclassified", "loss"):
        found = MINERS[name].mine(trained, loader_of_shortcut(), progress=False).conflicting()
        assert int((found & conflicting).sum()) >= 13 and int((found & ~conflicting).sum()) <= 3


Rows = list[tuple[Tensor, Tensor]]


def _epochs(make_loss: Callable[[Rows], Callable[[Tensor, Tensor], Tensor]], epochs: int) -> tuple[Tensor, Tensor]:
    """p of the label and whether it wins, after each epoch of a new network."""
    (x, y), generator = CASE.batch(13), torch.Generator().manual_seed(4)
    fresh = reinitialized(CASE.model(), generator)
    rows: Rows = []

    def watch(_: int = -1) -> None:
        fresh.eval()
        with torch.no_grad():
            scores = torch.cat([fresh(x[n : n + 1]) for n in range(13)])
        fresh.train()
        rows.append((torch.softmax(scores, 1)[torch.arange(13), y], scores.argmax(1) == y))

    watch()
    fine_tune(
        fresh.train(),
        data_of(),
        epochs=epochs,
        loss_fn=make_loss(rows),
        random_state=generator,
        after_epoch=watch,
        progress=False,
    )
    p, correct = (torch.stack(column) for column in zip(*rows[1:], strict=True))
    return p, correct


def _confident(rows: Rows) -> Callable[[Tensor, Tensor], Tensor]:
    y = CASE.batch(13)[1]

    def loss(scores: Tensor, target: Tensor) -> Tensor:
        sure = []
        for n, label in enumerate(target.tolist()):
            of_class = sorted(rows[-1][0][y == label].tolist())
            rarely_sure = sum(p <= 0.3 for p in of_class) >= len(of_class) / 2
            if rarely_sure or torch.softmax(scores[n], 0)[label] > 0.3:
                sure.append(n)
        return F.cross_entropy(scores[sure], target[sure]) if sure else scores.sum() * 0

    return loss


def test_training_miners_equal_a_loop_by_hand() -> None:
    def check(miner: Miner, scores: Tensor, cut: Tensor | None) -> None:
        mined = miner.mine(CASE.model(), data_of(), progress=False)
        torch.testing.assert_close(mined.scores, scores)
        assert (mined.cut is None) == (cut is None) and (cut is None or torch.equal(mined.conflicting(), cut))

    p, correct = _epochs(lambda _: lambda s, t: generalized_cross_entropy(s, t, q=0.4), 2)
    check(GeneralizedCrossEntropyMiner(epochs=2, q=0.4, random_state=4), 1 - p[1], ~correct[1])
    p, _ = _epochs(_confident, 3)
    check(EpochEnsemble(epochs=3, confidence=0.3, cut=0.6, random_state=4), 1 - p.mean(0), 1 - p.mean(0) > 0.6)
    p, correct = _epochs(lambda _: F.cross_entropy, 3)
    check(LossMiner(epochs=3, random_state=4), -p[2].log(), None)
    check(MisclassifiedMiner(epochs=3, random_state=4), (~correct[2]).double(), ~correct[2])


def test_seed_decides_and_the_trained_weights_do_not() -> None:
    left, right, other = (
        LossMiner(epochs=1, random_state=seed).mine(CASE.model(of_model), data_of(), progress=False).scores
        for seed, of_model in ((1, 0), (1, 7), (2, 0))
    )
    assert torch.equal(left, right) and not torch.equal(left, other)


def test_network_of_the_user_repeats_itself_and_draws_nothing() -> None:
    """network= builds with torch's global random state: the miner's seed decides, and that state stays."""
    built: list[nn.Module] = []

    def network() -> nn.Module:
        built.append(CASE.make().double())
        return built[-1]

    miner, scores = LossMiner(epochs=1, network=network), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = Snapshot(CASE.model())
        scores.append(miner.mine(CASE.model(), data_of(), progress=False).scores)
        before.assert_unchanged()
    assert len(built) == 2
    assert torch.equal(*scores)


@pytest.mark.parametrize("miner", [GeneralizedCrossEntropyMiner, EpochEnsemble, LossMiner, MisclassifiedMiner])
def test_no_epoch_to_mine_from(miner: Any) -> None:
    with pytest.raises(InputError, match="epochs=0; expected at least 1"):
        miner(epochs=0)


# What a review found ---------------------------------------------------------------------------------------


def test_epoch_ensemble_trains_with_many_classes() -> None:
    """An even guess among 50 classes is below the published confidence of 0.05."""
    y = torch.arange(200) % 50
    x = F.one_hot(y, 50).float() + 0.01 * torch.randn(200, 50, generator=torch.Generator().manual_seed(2))
    loader = DataLoader(TensorDataset(x, y), batch_size=20)
    scores = EpochEnsemble(epochs=6, learning_rate=0.3).mine(nn.Linear(50, 50), loader, progress=False).scores
    assert float(scores.mean()) < 0.9


def test_epoch_ensemble_loses_none_of_thirty_classes() -> None:
    """20 samples of each of 29 around a circle, 3 of the last: without the rule four to six classes are never learned,
    the rare one among them, and every one of their samples has a score of 1."""
    y = torch.arange(29 * 20 + 3) // 20
    angle = 2 * math.pi * y / 30
    x = 3 * torch.stack([angle.cos(), angle.sin()], 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 30))
    loader = DataLoader(TensorDataset(x, y), batch_size=97)
    mined = EpochEnsemble(epochs=15, learning_rate=0.1).mine(model, loader, progress=False)
    assert max(float(mined.scores[y == label].min()) for label in range(30)) < 0.99


def test_the_seed_is_called_random_state() -> None:
    for one in (LossMiner(), AccumulatedConfidence(), ContrastiveImportance(torch.tensor([True, False]))):
        with pytest.raises(AttributeError, match="has no seed; it is called random_state"):
            one.seed  # noqa: B018


def test_other_settings_of_accumulated_confidence() -> None:
    miner = dataclasses.replace(AccumulatedConfidence("magnitude"), epochs=2)
    assert (miner.criterion, miner.epochs) == ("magnitude", 2)
