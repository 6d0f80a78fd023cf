"""Miners against loops written by hand, on a shortcut that a few samples contradict, and what their scores become."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fairtrim import InputError, UnsupportedModelError
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.mining import (
    EpochEnsemble,
    GeneralizedCrossEntropyMiner,
    LossMiner,
    MinedSamples,
    Miner,
    MisclassifiedMiner,
    Trace,
    label_probabilities,
)
from fairtrim.mining.accumulated_confidence import AccumulatedConfidence as CoreAccumulatedConfidence
from fairtrim.mining.accumulated_confidence import accumulated
from fairtrim.mining.miner import require_some_mined
from fairtrim.network.fine_tuning import fine_tune, reinitialized
from fairtrim.network.losses import generalized_cross_entropy, negative_margin
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim_adapters.torch_pruning import AccumulatedConfidence
from fairtrim_adapters.torch_pruning.graph.level_pruner import pruner_of_levels
from fairtrim_adapters.torch_pruning.recipes.gradual import gradual_channel_pruning
from tests.networks import CASES, Case
from tests.snapshot import Snapshot

N, N_CONFLICTING = 300, 15


def _shortcut() -> tuple[Tensor, Tensor, Tensor]:
    """A large feature tells the class of all but a few samples, a small and noisy one of every sample."""
    generator = torch.Generator().manual_seed(1)
    y = (torch.arange(N) % 5 < 2).long()
    conflicting = torch.zeros(N, dtype=torch.bool)
    conflicting[torch.randperm(N, generator=generator)[:N_CONFLICTING]] = True
    sign = 2.0 * y - 1
    x = torch.stack([3 * torch.where(conflicting, -sign, sign), 0.5 * sign], 1)
    return x + 0.4 * torch.randn(N, 2, generator=generator), y, conflicting


def _loader(shuffle: bool = True) -> DataLoader[Any]:
    x, y, _ = _shortcut()
    return DataLoader(TensorDataset(x, y), batch_size=32, shuffle=shuffle)


def _mlp() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))


@pytest.fixture(scope="module")
def trained() -> nn.Sequential:
    return fine_tune(_mlp(), _loader(), epochs=10, learning_rate=0.01, progress=False)  # type: ignore[return-value]


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
    mined = MINERS[name].fit(trained, _loader(), progress=False)
    before.assert_unchanged()
    _, y, conflicting = _shortcut()
    assert mined.scores.shape == (N,) and mined.scores.dtype == torch.float64
    assert torch.equal(mined.target, y)
    assert roc_auc_score(conflicting, mined.scores) > 0.9
    again = MINERS[name].fit(trained, _loader(shuffle=False), progress=False)
    assert torch.equal(mined.scores, again.scores)


def test_own_decision_and_robust_cut(trained: nn.Sequential) -> None:
    """Nearly all that are cut conflict, and nearly all that conflict are cut."""
    conflicting = _shortcut()[2]
    for name in ("generalized cross-entropy", "misclassified", "loss"):
        found = MINERS[name].fit(trained, _loader(), progress=False).conflicting()
        assert int((found & conflicting).sum()) >= 13 and int((found & ~conflicting).sum()) <= 3


# Miners by hand -------------------------------------------------------------------------------------------

CASE = CASES["plain"]


def _data(case: Case = CASE, n_samples: int = 13) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*case.batch(n_samples)), batch_size=5, shuffle=True)


def _epochs(loss_fn: Callable[[Tensor, Tensor], Tensor], epochs: int) -> tuple[Tensor, Tensor]:
    """p of the label and whether it wins, after each epoch of a new network."""
    (x, y), generator = CASE.batch(13), torch.Generator().manual_seed(4)
    fresh = reinitialized(CASE.model(), generator)
    rows = []

    def watch(_: int) -> None:
        fresh.eval()
        with torch.no_grad():
            scores = torch.cat([fresh(x[n : n + 1]) for n in range(13)])
        fresh.train()
        rows.append((torch.softmax(scores, 1)[torch.arange(13), y], scores.argmax(1) == y))

    fine_tune(
        fresh.train(),
        _data(),
        epochs=epochs,
        loss_fn=loss_fn,
        random_state=generator,
        after_epoch=watch,
        progress=False,
    )
    p, correct = (torch.stack(column) for column in zip(*rows, strict=True))
    return p, correct


def _confident(scores: Tensor, target: Tensor) -> Tensor:
    sure = [n for n in range(len(target)) if torch.softmax(scores[n], 0)[target[n]] > 0.3]
    return F.cross_entropy(scores[sure], target[sure]) if sure else scores.sum() * 0


def test_training_miners_equal_a_loop_by_hand() -> None:
    def check(miner: Miner, scores: Tensor, cut: Tensor | None) -> None:
        mined = miner.fit(CASE.model(), _data(), progress=False)
        torch.testing.assert_close(mined.scores, scores)
        assert (mined.cut is None) == (cut is None) and (cut is None or torch.equal(mined.conflicting(), cut))

    p, correct = _epochs(lambda s, t: generalized_cross_entropy(s, t, q=0.4), 2)
    check(GeneralizedCrossEntropyMiner(epochs=2, q=0.4, seed=4), 1 - p[1], ~correct[1])
    p, _ = _epochs(_confident, 3)
    check(EpochEnsemble(epochs=3, confidence=0.3, cut=0.6, seed=4), 1 - p.mean(0), 1 - p.mean(0) > 0.6)
    p, correct = _epochs(F.cross_entropy, 3)
    check(LossMiner(epochs=3, seed=4), -p[2].log(), None)
    check(MisclassifiedMiner(epochs=3, seed=4), (~correct[2]).double(), ~correct[2])


def test_seed_decides_and_the_trained_weights_do_not() -> None:
    left, right, other = (
        LossMiner(epochs=1, seed=seed).fit(CASE.model(of_model), _data(), progress=False).scores
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
        scores.append(miner.fit(CASE.model(), _data(), progress=False).scores)
        before.assert_unchanged()
    assert len(built) == 2
    assert torch.equal(*scores)


def test_label_probabilities_equal_a_loop() -> None:
    model, (x, y) = CASE.model().train(), CASE.batch(13)
    before = Snapshot(model)
    p, correct, target = label_probabilities(model, IndexedSamples(_data()))
    before.assert_unchanged()
    model.eval()
    with torch.no_grad():
        rows = [torch.softmax(model(x[n : n + 1]), 1)[0] for n in range(13)]
    torch.testing.assert_close(p, torch.stack([row[y[n]] for n, row in enumerate(rows)]))
    assert correct.tolist() == [int(row.argmax()) == int(y[n]) for n, row in enumerate(rows)]
    assert torch.equal(target, y)


# Accumulated confidence -----------------------------------------------------------------------------------


def _zeroing(
    model: Any, samples: IndexedSamples, levels: Sequence[float], generator: torch.Generator
) -> Iterator[float]:
    """Prune without a pruner: outputs of the first layer to 0."""
    order = torch.randperm(7, generator=generator)
    for level in levels:
        with torch.no_grad():
            model[0].weight[order[: round(7 * level)]] = 0
        yield level


@pytest.mark.parametrize("epochs", [0, 2])
@pytest.mark.parametrize("accumulate", ["confidence", "drop", "correctness"])
def test_accumulated_confidence_equals_a_loop_by_hand(accumulate: Any, epochs: int) -> None:
    case = CASES["mlp"]
    model, (x, y) = case.model(), case.batch(13)
    before = Snapshot(model)
    miner = CoreAccumulatedConfidence(
        prune=_zeroing,
        levels=(0.3, 0.6, 0.9),
        epochs=epochs,
        learning_rate=0.02,
        loss_fn=negative_margin,
        accumulate=accumulate,
        seed=4,
    )
    mined = miner.fit(model, _data(case), progress=False)
    before.assert_unchanged()

    mine, generator = copy.deepcopy(model), torch.Generator().manual_seed(4)
    order, confidence, wrong = torch.randperm(7, generator=generator), [], []
    for n_zero in (2, 4, 6):
        with torch.no_grad():
            mine[0].weight[order[:n_zero]] = 0  # type: ignore[index]
        fine_tune(
            mine,
            _data(case),
            epochs=epochs,
            learning_rate=0.02,
            loss_fn=negative_margin,
            random_state=generator,
            progress=False,
        )
        with torch.no_grad():
            scores = mine(x)
        confidence.append(torch.softmax(scores, 1)[torch.arange(13), y])
        wrong.append((scores.argmax(1) != y).double())
    with torch.no_grad():
        dense = torch.softmax(model(x), 1)[torch.arange(13), y]
    expected = {
        "confidence": 1 - sum(confidence) / 3,
        "drop": sum(dense - p for p in confidence) / 3,
        "correctness": sum(wrong) / 3,
    }
    torch.testing.assert_close(mined.scores, expected[accumulate])
    assert mined.cut is None


def test_accumulations_by_hand() -> None:
    """Two sparsities, three samples: kept, lost at once, lost late."""
    trace = Trace(
        torch.tensor([[0.9, 0.2, 0.8], [0.7, 0.1, 0.3]], dtype=torch.float64),
        torch.tensor([[True, False, True], [True, False, False]]),
        torch.tensor([0, 1, 1]),
    )
    dense = torch.tensor([1.0, 0.75, 0.85], dtype=torch.float64)
    for accumulate, scores in (
        ("confidence", [0.2, 0.85, 0.45]),
        ("drop", [0.2, 0.6, 0.3]),
        ("correctness", [0.0, 1.0, 0.5]),
    ):
        found = accumulated(trace, dense, accumulate)  # type: ignore[arg-type]
        torch.testing.assert_close(found, torch.tensor(scores, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": ()}, r"levels=\[\]; expected increasing shares between 0 and 1"),
        ({"levels": (0.2, 0.2)}, "levels="),
        ({"levels": (0.3, 0.2)}, "levels="),
        ({"levels": (0.0, 0.2)}, "levels="),
        ({"levels": (0.5, 1.0)}, "levels="),
        ({"accumulate": "loss"}, "accumulate='loss'; expected 'confidence', 'drop' or 'correctness'"),
        ({"epochs": -1}, "epochs=-1; expected at least 0"),
    ],
)
def test_accumulated_confidence_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CoreAccumulatedConfidence(prune=_zeroing, **options)
    with pytest.raises(InputError, match=message):
        AccumulatedConfidence(**options)


def _has_heads(case: Case) -> bool:
    return bool(case.options(case.model()))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not _has_heads(case)])
@pytest.mark.parametrize("criterion", ["random", "magnitude"])
def test_every_way_of_coupling_is_pruned_level_by_level(name: str, criterion: Any) -> None:
    """As many channels go as with one step of Torch-Pruning's to the last level; the caller's network stays."""
    case = CASES[name]
    model = case.model()
    shrinking: list[nn.Module] = []

    def prune(copied: nn.Module, *arguments: Any) -> Iterator[float]:
        shrinking.append(copied)
        yield from gradual_channel_pruning(criterion, output_transform=case.transform)(copied, *arguments)

    before = Snapshot(model)
    miner = CoreAccumulatedConfidence(prune=prune, levels=(0.2, 0.4), output_transform=case.transform)
    mined = miner.fit(model, _data(case), progress=False)
    before.assert_unchanged()
    assert mined.scores.shape == (13,) and bool(torch.isfinite(mined.scores).all())
    if (criterion, name) == ("random", "split"):
        return  # Torch-Pruning skips the group where chance would empty a part of it
    direct = copy.deepcopy(model)
    case.pruner(direct, tp.importance.GroupMagnitudeImportance()).step()
    assert [p.shape for p in shrinking[0].parameters()] == [p.shape for p in direct.parameters()]


def test_levels_are_shares_of_the_channels_at_the_start() -> None:
    """16 and 12 channels at 25, 50 and 75 %."""
    model = _mlp()
    steps = gradual_channel_pruning()(model, IndexedSamples(_loader()), [0.25, 0.5, 0.75], torch.Generator())
    widths = [(level, model[0].out_features, model[2].out_features) for level in steps]
    assert widths == [(0.25, 12, 9), (0.5, 8, 6), (0.75, 4, 3)]


def test_ratio_of_single_layers_is_the_last_level_s() -> None:
    model = _mlp()
    pruner = pruner_of_levels(
        ScoredNetwork(model),
        IndexedSamples(_loader()).first(torch.device("cpu")),
        [0.25, 0.5],
        tp.importance.GroupMagnitudeImportance(),
        pruner_options={"pruning_ratio_dict": {model[0]: 0.25}},
    )
    pruner.step()
    pruner.step()
    assert (model[0].out_features, model[2].out_features) == (12, 6)


def test_criterion_of_the_user_and_layers_that_stay() -> None:
    model, asked = _mlp(), []

    def criterion(copied: nn.Module, samples: IndexedSamples) -> tp.importance.Importance:
        asked.append((copied, samples.n_samples))
        return tp.importance.GroupMagnitudeImportance()

    miner = AccumulatedConfidence(criterion, ignored_layers=["2"], levels=(0.25, 0.5), epochs=0)
    miner.fit(model, _loader(), progress=False)
    ((copied, n_samples),) = asked
    assert copied is not model and n_samples == N
    assert (copied[0].out_features, copied[2].out_features) == (8, 12)
    with pytest.raises(InputError, match="criterion='l2'; expected 'random', 'magnitude' or a function"):
        AccumulatedConfidence("l2").fit(model, _loader(), progress=False)  # type: ignore[arg-type]


def test_level_that_leaves_no_channel() -> None:
    """int(16 · (1 − 0.95)) = 0; ranked across layers, each keeps one."""
    model = _mlp()
    before = Snapshot(model)
    with pytest.raises(InputError, match=r"level 0.95 leaves no channel of .*'0': 16.* a lower ratio") as error:
        AccumulatedConfidence(levels=(0.5, 0.95)).fit(model, _loader(), progress=False)
    assert "'2': 12" in str(error.value)
    with pytest.raises(InputError, match=r"ignored_layers holds \['3.conv'\]"):
        AccumulatedConfidence(ignored_layers=["3.conv"]).fit(model, _loader(), progress=False)
    AccumulatedConfidence(levels=(0.5,), pruner_options={"global_pruning": True}).fit(model, _loader(), progress=False)
    before.assert_unchanged()


def test_scores_from_a_convolution() -> None:
    """The last layer is none that can be told from outside: the message names the argument, which then works."""
    case = Case(
        lambda: nn.Sequential(nn.Conv2d(2, 7, 3), nn.ReLU(), nn.Conv2d(7, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        (2, 5, 4),
    )
    model = case.model()
    with pytest.raises(UnsupportedModelError, match="add '2' to ignored_layers"):
        AccumulatedConfidence(levels=(0.3,)).fit(model, _data(case), progress=False)
    mined = AccumulatedConfidence(levels=(0.3,), ignored_layers=["2"]).fit(model, _data(case), progress=False)
    assert mined.scores.shape == (13,) and model[0].out_channels == 7  # type: ignore[index]


# No trace -------------------------------------------------------------------------------------------------


class Noisy(TensorDataset):
    """Draws from every random state there is."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        x, y = super().__getitem__(index)
        return x + random.random() * 1e-3 + np.random.rand() * 1e-3 + torch.rand(()) * 1e-3, y


@pytest.mark.parametrize(
    "miner",
    [
        GeneralizedCrossEntropyMiner(epochs=1),
        EpochEnsemble(epochs=1),
        LossMiner(epochs=1),
        MisclassifiedMiner(epochs=1),
        AccumulatedConfidence(levels=(0.2, 0.4)),
        AccumulatedConfidence("magnitude", levels=(0.4,)),
    ],
    ids=lambda miner: type(miner).__name__,
)
def test_mining_leaves_no_trace(miner: Miner) -> None:
    case = CASES["residual"]
    model = case.model().train()
    model.norm.eval()
    x, y = case.batch(4)
    F.cross_entropy(model(x), y).backward()
    model.stem.bias.requires_grad_(False)
    model.head.register_forward_pre_hook(lambda module, args: None)
    loader = DataLoader(Noisy(*case.batch(9)), batch_size=4, shuffle=True)
    before = Snapshot(model)
    miner.fit(model, loader, progress=False)
    before.assert_unchanged()


FAULTS: dict[str, tuple[Any, str]] = {
    "single class": (lambda x, y: (x, torch.ones_like(y)), "every sample has label 1; expected at least two classes"),
    "label too large": (lambda x, y: (x, y + 1), "labels reach from .* to 3; expected 0 to 2"),
    "negative label": (lambda x, y: (x, y - 1), "labels reach from -1 to .*; expected 0 to 2"),
    "NaN": (lambda x, y: (x * torch.nan, y), "not finite|is nan"),
    "float target": (lambda x, y: (x, y / 2), "expected integer labels"),
}


@pytest.mark.parametrize("miner", [LossMiner(), AccumulatedConfidence(levels=(0.4,))], ids=["training", "pruning"])
@pytest.mark.parametrize("fault", FAULTS)
def test_data_that_can_t_be_mined(miner: Miner, fault: str) -> None:
    make, message = FAULTS[fault]
    model = CASE.model()
    dataset: Dataset[Any] = TensorDataset(*make(*CASE.batch(13)))
    before = Snapshot(model)
    with pytest.raises(InputError, match=message):
        miner.fit(model, DataLoader(dataset, batch_size=5), progress=False)
    before.assert_unchanged()


@pytest.mark.parametrize("miner", [GeneralizedCrossEntropyMiner, EpochEnsemble, LossMiner, MisclassifiedMiner])
def test_no_epoch_to_mine_from(miner: Any) -> None:
    with pytest.raises(InputError, match="epochs=0; expected at least 1"):
        miner(epochs=0)


# What was mined -------------------------------------------------------------------------------------------


def _mined(cut: Tensor | None = None) -> MinedSamples:
    """Classes of 10, 7 and 3 samples, mixed."""
    generator = torch.Generator().manual_seed(2)
    target = torch.tensor([0] * 10 + [4] * 7 + [1] * 3)[torch.randperm(20, generator=generator)]
    return MinedSamples(torch.rand(20, generator=generator, dtype=torch.float64), target, cut)


def test_threshold() -> None:
    mined = _mined(torch.zeros(20, dtype=torch.bool))
    level = float(mined.scores.median())
    assert mined.conflicting(threshold=level).tolist() == [s > level for s in mined.scores.tolist()]


@pytest.mark.parametrize(("share", "counts"), [(0.3, (3, 2, 1)), (0.1, (1, 1, 1)), (0.5, (5, 4, 2)), (0.9, (9, 6, 3))])
@pytest.mark.parametrize("tied", [False, True])
def test_share_of_every_class(share: float, counts: tuple[int, ...], tied: bool) -> None:
    """Exact counts, those with the highest scores, at least one; also where all scores are equal."""
    mined = _mined()
    if tied:
        mined = MinedSamples(torch.zeros(20), mined.target)
    chosen = mined.conflicting(share_per_class=share)
    for label, count in zip((0, 4, 1), counts, strict=True):
        members = mined.target == label
        assert int((chosen & members).sum()) == count
        if count < int(members.sum()):
            assert mined.scores[chosen & members].min() >= mined.scores[~chosen & members].max()


@pytest.mark.parametrize("k", [0.5, 1.0, 3.0])
def test_robust_deviations(k: float) -> None:
    mined = _mined()
    scores, target = mined.scores.numpy(), mined.target.numpy()
    expected = np.zeros(20, dtype=bool)
    for label in (0, 1, 4):
        of_class = scores[target == label]
        median = np.median(of_class)
        deviation = 1.4826 * np.median(np.abs(of_class - median))
        expected[target == label] = of_class > median + k * deviation
    assert mined.conflicting(deviations=k).tolist() == expected.tolist()


def test_robust_deviations_by_hand() -> None:
    """Median 0.2, MAD 0.1: six deviations end at 1.08956; the other class is on another level altogether."""
    scores = torch.tensor([0.0, 0.1, 0.2, 0.3, 1.08, 1.10, 0.2, 5.0, 5.1, 5.2], dtype=torch.float64)
    mined = MinedSamples(scores, torch.tensor([0] * 7 + [1] * 3))
    assert mined.conflicting(deviations=6).nonzero().flatten().tolist() == [5]
    assert mined.conflicting(deviations=5.9).nonzero().flatten().tolist() == [4, 5]


def test_own_decision_is_the_default_and_gives_way() -> None:
    """Without one the robust cut decides, at 10 deviations: 4.7 are too few, 12 enough."""
    cut = torch.arange(20) % 6 == 0
    mined = _mined(cut)
    assert torch.equal(mined.conflicting(), cut)
    assert int(mined.conflicting(share_per_class=0.3).sum()) == 6
    scores = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.2, 0.15, 0.25, 0.9, 2.0], dtype=torch.float64)
    without = MinedSamples(scores, torch.zeros(9, dtype=torch.int64))
    assert without.conflicting().nonzero().flatten().tolist() == [8]


@pytest.mark.parametrize("mass", [0.5, 0.2])
def test_mined_samples_get_their_share_of_the_draws(mass: float) -> None:
    mined = _mined(torch.arange(20) % 6 == 0)  # 4 samples
    weights = mined.sample_weights(mass=mass)
    assert weights.dtype == torch.float64
    expected = [20 * (mass / 4 if n % 6 == 0 else (1 - mass) / 16) for n in range(20)]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    assert weights.mean().item() == pytest.approx(1, abs=1e-12)
    other = mined.sample_weights(torch.arange(20) < 3, mass=mass)
    assert float(other[:3].sum() / other.sum()) == pytest.approx(mass)
    counts = torch.zeros(20)
    sampler = mined.sampler(weights, generator=torch.Generator().manual_seed(0))
    for _ in range(200):
        drawn = torch.tensor(list(sampler))
        assert len(drawn) == 20
        counts += torch.bincount(drawn, minlength=20)
    assert float(counts[::6].sum() / counts.sum()) == pytest.approx(mass, abs=0.03)


def test_sampler_by_default() -> None:
    mined = _mined(torch.arange(20) == 5)
    drawn = torch.tensor([n for _ in range(50) for n in mined.sampler(generator=torch.Generator().manual_seed(0))])
    left, right = (list(mined.sampler(generator=torch.Generator().manual_seed(1))) for _ in range(2))
    assert left == right
    assert float((drawn == 5).double().mean()) == pytest.approx(0.5, abs=0.2)


def test_soft_weights() -> None:
    mined = _mined()
    weights = mined.sample_weights(soft=True)
    torch.testing.assert_close(weights, mined.scores / mined.scores.mean())
    shifted = MinedSamples(mined.scores - 0.5, mined.target).sample_weights(soft=True)
    assert float(shifted.min()) == 0 and float(shifted.mean()) == pytest.approx(1)
    with pytest.raises(InputError, match="every score is 0"):
        MinedSamples(torch.zeros(20), mined.target).sample_weights(soft=True)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: m.conflicting(threshold=0.5, deviations=3), "expected one of threshold=, share_per_class= and"),
        (lambda m: m.conflicting(share_per_class=0.5, deviations=3), "not several"),
        (lambda m: m.conflicting(share_per_class=0.0), "share_per_class=0.0; expected a share between 0 and 1"),
        (lambda m: m.conflicting(share_per_class=1.0), "share_per_class=1.0"),
        (lambda m: m.conflicting(deviations=0.0), "deviations=0.0; expected a positive number"),
        (lambda m: m.sample_weights(mass=0.0), "mass=0.0; expected a share between 0 and 1"),
        (lambda m: m.sample_weights(mass=1.0), "mass=1.0"),
        (lambda m: m.sample_weights(m.conflicting(threshold=9)), r"no sample was mined.*share_per_class=\.\.\."),
        (lambda m: m.sample_weights(m.conflicting(threshold=-9)), "all 20 samples were mined"),
        (lambda m: m.sampler(), "no sample was mined"),
        (lambda m: require_some_mined(torch.ones(3).bool()), "all 3 samples"),
    ],
)
def test_refuses(ask: Callable[[MinedSamples], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask(_mined(torch.zeros(20, dtype=torch.bool)))


# What a review found ---------------------------------------------------------------------------------------


def test_epoch_ensemble_trains_with_many_classes() -> None:
    """An even guess among 50 classes is below the published confidence of 0.05."""
    y = torch.arange(200) % 50
    x = F.one_hot(y, 50).float() + 0.01 * torch.randn(200, 50, generator=torch.Generator().manual_seed(2))
    loader = DataLoader(TensorDataset(x, y), batch_size=20)
    scores = EpochEnsemble(epochs=6, learning_rate=0.3).fit(nn.Linear(50, 50), loader, progress=False).scores
    assert float(scores.mean()) < 0.9
    stuck = EpochEnsemble(epochs=6, learning_rate=0.3, confidence=0.05).fit(nn.Linear(50, 50), loader, progress=False)
    assert float(stuck.scores.min()) > 0.95


@pytest.mark.parametrize("miner", [LossMiner(epochs=1), AccumulatedConfidence(levels=(0.3,), epochs=0)])
def test_single_logit_networks_are_told_what_to_do(miner: Miner) -> None:
    loader = DataLoader(TensorDataset(torch.randn(12, 3), torch.arange(12) % 2), batch_size=4)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    with pytest.raises(InputError, match=r"output_transform=lambda f: torch\.cat"):
        miner.fit(model, loader, progress=False)


def test_scores_that_are_all_the_same_are_no_outliers() -> None:
    scores = torch.full((20,), 1e-9, dtype=torch.float64)
    scores[3] = 2e-9
    assert not MinedSamples(scores, torch.arange(20) % 2).conflicting(deviations=8).any()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (torch.tensor([0, 5]), r"int64 of shape \(2,\); expected one flag for each sample"),
        (torch.ones(20, 1).bool(), r"shape \(20, 1\)"),
        ([True] * 20, "the mined set is list"),
        (torch.arange(19) == 3, "19 flags for 20 samples"),
    ],
)
def test_what_is_no_mined_set(flags: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _mined().sample_weights(flags)


def test_mined_samples_print_in_a_line() -> None:
    assert repr(MinedSamples(torch.tensor([0.5, 0.25]).double(), torch.tensor([0, 1]))) == (
        "MinedSamples(2 samples, 2 classes, scores 0.25 to 0.5)"
    )


def test_repeats_are_averaged_wherever_they_run(trained: nn.Sequential) -> None:
    options: dict[str, Any] = {"levels": (0.25, 0.5), "seed": 3}
    once = [
        AccumulatedConfidence(**{**options, "seed": 3 + r}).trace(trained, _loader(), progress=False)[0]
        for r in range(2)
    ]
    for n_jobs in (None, 2):
        trace, _ = AccumulatedConfidence(**options, repeats=2, n_jobs=n_jobs).trace(trained, _loader(), progress=False)
        torch.testing.assert_close(trace.probability, torch.cat([t.probability for t in once]), rtol=0, atol=0)
    with pytest.raises(InputError, match="repeats=0; expected at least 1"):
        AccumulatedConfidence(repeats=0)
    with pytest.raises(InputError, match="n_jobs=0; expected how many run at a time, -1"):
        AccumulatedConfidence(n_jobs=0)
