"""Accumulated confidence against a loop by hand, and with the channels of Torch-Pruning."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import nn

from fairtrim import InputError, UnsupportedModelError
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.mining import (
    Trace,
)
from fairtrim.mining.accumulated_confidence import AccumulatedConfidence as CoreAccumulatedConfidence
from fairtrim.mining.accumulated_confidence import accumulated
from fairtrim.network.fine_tuning import fine_tune
from fairtrim.network.losses import negative_margin
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim_adapters.torch_pruning import AccumulatedConfidence
from fairtrim_adapters.torch_pruning.recipes.gradual import gradual_channel_pruning, pruner_of_levels
from tests.mining_cases import N, data_of, loader_of_shortcut, mlp
from tests.networks import CASES, Case
from tests.snapshot import Snapshot

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


def test_levels_that_were_not_pruned_are_not_reported() -> None:
    def fewer(*args: Any) -> Iterator[float]:
        yield from list(_zeroing(*args))[:2]

    case = CASES["mlp"]
    miner = CoreAccumulatedConfidence(prune=fewer, levels=(0.3, 0.6, 0.9), epochs=0)
    with pytest.raises(InputError, match=r"prune gave 2 levels; expected one for each of \(0\.3, 0\.6, 0\.9\)"):
        miner.mine(case.model(), data_of(case), progress=False)
    with pytest.raises(InputError, match="prune is a NoneType; expected a function"):
        CoreAccumulatedConfidence(prune=None)  # type: ignore[arg-type]


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
        random_state=4,
    )
    mined = miner.mine(model, data_of(case), progress=False)
    before.assert_unchanged()

    mine, generator = copy.deepcopy(model), torch.Generator().manual_seed(4)
    order, confidence, wrong = torch.randperm(7, generator=generator), [], []
    for n_zero in (2, 4, 6):
        with torch.no_grad():
            mine[0].weight[order[:n_zero]] = 0  # type: ignore[index]
        fine_tune(
            mine,
            data_of(case),
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
    assert mined.levels == (0.0, 0.3, 0.6, 0.9)
    torch.testing.assert_close(mined.confidence, torch.stack([dense, *confidence]))
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
        ({"levels": ()}, r"levels=\(\); expected increasing shares between 0 and 1"),
        ({"levels": (0.2, 0.2)}, "levels="),
        ({"levels": (0.3, 0.2)}, "levels="),
        ({"levels": (0.0, 0.2)}, "levels="),
        ({"levels": (0.5, 1.0)}, "levels="),
        ({"levels": 0.3}, r"levels=0\.3; expected increasing"),
        ({"levels": ("low", "high")}, "levels="),
        ({"n_jobs": "2"}, "n_jobs='2'"),
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
    """As many channels go as with one step of the host's to the last level; the caller's network stays."""
    case = CASES[name]
    model = case.model()
    shrinking: list[nn.Module] = []

    def prune(copied: nn.Module, *arguments: Any) -> Iterator[float]:
        shrinking.append(copied)
        yield from gradual_channel_pruning(criterion, output_transform=case.transform)(copied, *arguments)

    before = Snapshot(model)
    miner = CoreAccumulatedConfidence(prune=prune, levels=(0.2, 0.4), output_transform=case.transform)
    mined = miner.mine(model, data_of(case), progress=False)
    before.assert_unchanged()
    assert mined.scores.shape == (13,) and bool(torch.isfinite(mined.scores).all())
    if (criterion, name) == ("random", "split"):
        return  # the host skips the group where chance would empty a part of it
    direct = copy.deepcopy(model)
    case.pruner(direct, tp.importance.GroupMagnitudeImportance()).step()
    assert [p.shape for p in shrinking[0].parameters()] == [p.shape for p in direct.parameters()]


def test_levels_are_shares_of_the_channels_at_the_start() -> None:
    """16 and 12 channels at 25, 50 and 75 %."""
    model = mlp()
    steps = gradual_channel_pruning()(model, IndexedSamples(loader_of_shortcut()), [0.25, 0.5, 0.75], torch.Generator())
    widths = [(level, model[0].out_features, model[2].out_features) for level in steps]
    assert widths == [(0.25, 12, 9), (0.5, 8, 6), (0.75, 4, 3)]


def test_ratio_of_single_layers_is_the_last_level_s() -> None:
    model = mlp()
    pruner = pruner_of_levels(
        ScoredNetwork(model),
        IndexedSamples(loader_of_shortcut()).first(torch.device("cpu")),
        [0.25, 0.5],
        tp.importance.GroupMagnitudeImportance(),
        pruner_options={"pruning_ratio_dict": {model[0]: 0.25}},
    )
    pruner.step()
    pruner.step()
    assert (model[0].out_features, model[2].out_features) == (12, 6)


def test_criterion_of_the_user_and_layers_that_stay() -> None:
    model, asked = mlp(), []

    def criterion(copied: nn.Module, samples: IndexedSamples) -> tp.importance.Importance:
        asked.append((copied, samples.n_samples))
        return tp.importance.GroupMagnitudeImportance()

    miner = AccumulatedConfidence(criterion, ignored_layers=["2"], levels=(0.25, 0.5), epochs=0)
    miner.mine(model, loader_of_shortcut(), progress=False)
    ((copied, n_samples),) = asked
    assert copied is not model and n_samples == N
    assert (copied[0].out_features, copied[2].out_features) == (8, 12)
    with pytest.raises(InputError, match="criterion='l2'; expected 'random', 'magnitude' or a function"):
        AccumulatedConfidence("l2").mine(model, loader_of_shortcut(), progress=False)  # type: ignore[arg-type]


def test_level_that_leaves_no_channel() -> None:
    """int(16 · (1 − 0.95)) = 0; ranked across layers, each keeps one."""
    model = mlp()
    before = Snapshot(model)
    with pytest.raises(InputError, match=r"level 0.95 leaves no channel of .*'0': 16.* a lower ratio") as error:
        AccumulatedConfidence(levels=(0.5, 0.95)).mine(model, loader_of_shortcut(), progress=False)
    assert "'2': 12" in str(error.value)
    with pytest.raises(InputError, match=r"ignored_layers holds \['3.conv'\]"):
        AccumulatedConfidence(ignored_layers=["3.conv"]).mine(model, loader_of_shortcut(), progress=False)
    AccumulatedConfidence(levels=(0.5,), pruner_options={"global_pruning": True}).mine(
        model, loader_of_shortcut(), progress=False
    )
    before.assert_unchanged()


def test_scores_from_a_convolution() -> None:
    """The last layer is none that can be told from outside: the message names the argument, which then works."""
    case = Case(
        lambda: nn.Sequential(nn.Conv2d(2, 7, 3), nn.ReLU(), nn.Conv2d(7, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        (2, 5, 4),
    )
    model = case.model()
    with pytest.raises(UnsupportedModelError, match="add '2' to ignored_layers"):
        AccumulatedConfidence(levels=(0.3,)).mine(model, data_of(case), progress=False)
    mined = AccumulatedConfidence(levels=(0.3,), ignored_layers=["2"]).mine(model, data_of(case), progress=False)
    assert mined.scores.shape == (13,) and model[0].out_channels == 7  # type: ignore[index]


@pytest.mark.slow
def test_repeats_are_averaged_wherever_they_run(trained: nn.Sequential) -> None:
    options: dict[str, Any] = {"levels": (0.25, 0.5), "random_state": 3}
    once = [
        AccumulatedConfidence(**{**options, "random_state": 3 + r}).trace(
            trained, loader_of_shortcut(), progress=False
        )[0]
        for r in range(2)
    ]
    for n_jobs in (None, 2):
        trace, _ = AccumulatedConfidence(**options, repeats=2, n_jobs=n_jobs).trace(
            trained, loader_of_shortcut(), progress=False
        )
        torch.testing.assert_close(trace.probability, torch.cat([t.probability for t in once]), rtol=0, atol=0)
    mined = AccumulatedConfidence(**options, repeats=2).mine(trained, loader_of_shortcut(), progress=False)
    assert mined.confidence is not None and mined.confidence.shape == (3, N)
    torch.testing.assert_close(mined.confidence[1:], (once[0].probability + once[1].probability) / 2)
    with pytest.raises(InputError, match="repeats=0; expected at least 1"):
        AccumulatedConfidence(repeats=0)
    with pytest.raises(InputError, match="n_jobs=0; expected how many run at a time, -1"):
        AccumulatedConfidence(n_jobs=0)
