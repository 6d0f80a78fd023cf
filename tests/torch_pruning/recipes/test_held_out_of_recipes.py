"""What is held out stays so through a recipe, and a run that goes on has all that was mined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairtrim import InputError
from fairtrim.network import fine_tuning as core_training
from fairtrim.network.held_out import held_out_samples
from fairtrim_adapters.plots import plot_confidence
from fairtrim_adapters.torch_pruning import AccumulatedConfidence
from fairtrim_adapters.torch_pruning.recipes import sparse_run
from tests.recipe_cases import FLAGS, SMALL, FixedMiner, N, assert_same_result, data_of_recipes, mlp, run_recipe


class CutShortError(Exception):
    pass


def _watched(monkeypatch: pytest.MonkeyPatch, fails: int = 0) -> list[dict[str, Any]]:
    """What the recipe asks of each fine-tuning, one of which fails."""
    asked: list[dict[str, Any]] = []

    def watching(model: nn.Module, samples: Any, **options: Any) -> nn.Module:
        asked.append(options)
        if len(asked) == fails:
            raise CutShortError
        return core_training.fine_tune(model, samples, **options)

    monkeypatch.setattr(sparse_run, "fine_tune", watching)
    return asked


@pytest.mark.parametrize(("online", "contrastive_weight"), [(False, 0.1), (True, 0.0)])
def test_every_training_of_a_run_holds_the_same_samples_out(
    online: bool, contrastive_weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the run's seed, drawn once, though the mined set changes; the mined samples are cells of their own."""
    asked = _watched(monkeypatch)
    settings = {"held_out": 0.25, "contrastive_weight": contrastive_weight, "random_state": 3, "online": online}
    result = run_recipe("denp", mlp(), cut={"share_per_class": 0.2}, **settings)
    mined = FixedMiner().mine(mlp(), data_of_recipes())
    held_out = held_out_samples(0.25, mined.target, mined.conflicting(share_per_class=0.2), 3)
    assert len(asked) == (5 if online else 3)
    assert all(torch.equal(options["held_out"], held_out) for options in asked)
    assert all(options["conflicting"].shape == (N,) for options in asked)
    assert torch.equal(asked[-1]["conflicting"], result.conflicting)


SLOW = pytest.mark.slow
RUNS: dict[str, tuple[str, dict[str, Any], int]] = {
    "a share": ("denp", {"held_out": 0.25}, 3),
    "online": ("denp", {"held_out": 0.25, "online": True, "cut": {"share_per_class": 0.2}}, 4),
    "flags": ("denp", {"held_out": torch.arange(N) % 5 == 0}, 2),
    "dcwp": ("dcwp", {"held_out": 0.25}, 1),
}


@pytest.mark.parametrize("run", ["online", "dcwp", *(pytest.param(run, marks=SLOW) for run in ("a share", "flags"))])
def test_a_run_with_held_out_samples_goes_on(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, options, fails = RUNS[run]
    options = {**options, "random_state": 4, "learning_rate": 0.05, "epochs": 2}
    whole = run_recipe(recipe, mlp(), **options)
    with monkeypatch.context() as patch:
        _watched(patch, fails)
        with pytest.raises(CutShortError):
            run_recipe(recipe, mlp(), folder=tmp_path, **options)
    assert_same_result(run_recipe(recipe, mlp(), folder=tmp_path, **options), whole)
    with pytest.raises(InputError, match="of a run with another held_out"):
        run_recipe(recipe, mlp(), folder=tmp_path, **{**options, "held_out": 0.3})


@pytest.mark.parametrize("recipe", SMALL)
@pytest.mark.parametrize(
    ("held_out", "message"), [(2.0, "held_out=2.0; expected above 0"), (FLAGS[:7], r"shape \(7,\); .* of 60 samples")]
)
def test_what_can_not_be_held_out_is_refused_before_the_mining(
    recipe: str, held_out: float | Tensor, message: str
) -> None:
    miner = FixedMiner()
    with pytest.raises(InputError, match=message):
        run_recipe(recipe, mlp(), held_out=held_out, miner=miner)
    assert miner.calls == 0


@pytest.mark.parametrize("fails", [pytest.param(1, marks=SLOW), 3, pytest.param(0, marks=SLOW)])
def test_levels_and_confidence_come_back(fails: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an interruption in any step, and of a finished run; so that confidence can be looked at."""
    options: dict[str, Any] = {"miner": AccumulatedConfidence(levels=(0.25, 0.5)), "cut": {"share_per_class": 0.15}}
    whole = run_recipe("denp", mlp(), **options).mined
    with monkeypatch.context() as patch:
        _watched(patch, fails)
        if fails:
            with pytest.raises(CutShortError):
                run_recipe("denp", mlp(), folder=tmp_path, **options)
        else:
            run_recipe("denp", mlp(), folder=tmp_path, **options)
    result = run_recipe("denp", mlp(), folder=tmp_path, **options)
    assert result.mined.levels == whole.levels == (0.0, 0.25, 0.5)
    assert whole.confidence is not None and result.mined.confidence is not None
    assert torch.equal(result.mined.confidence, whole.confidence)
    ax = plot_confidence(result.mined, conflicting=result.conflicting)
    assert [line.get_xdata()[-1] for line in ax.get_lines()] == [0.5] * len(ax.get_lines())


def test_a_miner_without_levels_has_none_after_an_interruption(tmp_path: Path) -> None:
    for _ in range(2):
        mined = run_recipe("denp", mlp(), folder=tmp_path).mined
        assert mined.levels == () and mined.confidence is None
