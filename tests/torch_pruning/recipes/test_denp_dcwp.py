"""DENP and DCWP in one call: what they prune, that they go on where they were cut short, and what they refuse."""

from __future__ import annotations

import copy
import logging
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_pruning as tp
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import MINERS, FairtrimError, InputError, LossMiner, UnsupportedModelError
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.mining import MinedSamples, MisclassifiedMiner, label_probabilities
from fairtrim.network import fine_tuning as core_training
from fairtrim.network.fine_tuning import fine_tune
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim_adapters.torch_pruning import (
    AccumulatedConfidence,
    AccumulatedConfidenceImportance,
    ContrastiveImportance,
    dcwp,
    denp,
)
from fairtrim_adapters.torch_pruning.graph.level_pruner import pruner_of_levels
from fairtrim_adapters.torch_pruning.recipes import sparse_run
from tests.networks import CASES, Case
from tests.recipe_cases import (
    FLAGS,
    SMALL,
    Evil,
    FixedMiner,
    N,
    assert_same_result,
    data_of_recipes,
    mlp,
    mlp_of,
    run_recipe,
)
from tests.registries import keep
from tests.snapshot import Snapshot


def _case_data(case: Case) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*case.batch(N)), batch_size=16, shuffle=True)


# What they do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", SMALL)
def test_whole_recipe_with_its_own_miner(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The caller's network and the random states stay; half of 16 and 12 channels go; nothing is printed."""
    model = fine_tune(mlp(), data_of_recipes(), epochs=5, learning_rate=0.01, progress=False).train()
    model[1].eval()  # type: ignore[index]
    before = Snapshot(model)
    result = run_recipe(recipe, model, data_of_recipes(noisy=True), miner=None, cut={"share_per_class": 0.15})
    before.assert_unchanged()
    sparse: Any = result.model
    assert (sparse[0].out_features, sparse[2].out_features, sparse[4].in_features) == (8, 6, 6)
    assert not any(module.training for module in sparse.modules())
    assert all(p.requires_grad and p.grad is None for p in sparse.parameters())
    assert result.mined.scores.shape == (N,) and torch.equal(
        result.conflicting, result.mined.conflicting(share_per_class=0.15)
    )
    assert int(result.conflicting.sum()) == round(0.15 * 24) + round(0.15 * 36)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("recipe", SMALL)
def test_history(recipe: str) -> None:
    """A row for mining and one for each step, the last of them as the network that is returned."""
    result = run_recipe(recipe, mlp())
    history = result.history
    assert (
        history["what"].tolist()
        == {
            "denp": ["mined", "pruned and fine-tuned", "pruned and fine-tuned", "fine-tuned"],
            "dcwp": ["mined", "pruned", "fine-tuned"],
        }[recipe]
    )
    assert history["level"].tolist() == {"denp": [0.0, 0.25, 0.5, 0.5], "dcwp": [0.0, 0.5, 0.5]}[recipe]
    assert history["step"].tolist() == list(range(len(history)))
    assert set(history["mined"]) == {int(FLAGS.sum())}
    sizes = {"denp": [278, 12 * 3 + 9 * 13 + 2 * 10, 8 * 3 + 6 * 9 + 2 * 7], "dcwp": [278, 8 * 3 + 6 * 9 + 2 * 7]}
    assert history["parameters"].tolist() == [*sizes[recipe], sizes[recipe][-1]]
    p, correct, _ = label_probabilities(result.model, IndexedSamples(data_of_recipes()))
    last = history.iloc[-1]
    assert last["confidence in mined"] == pytest.approx(float(p[FLAGS].mean()))
    assert last["confidence in others"] == pytest.approx(float(p[~FLAGS].mean()))
    assert last["training accuracy"] == pytest.approx(float(correct.double().mean()))
    p, _, _ = label_probabilities(mlp(), IndexedSamples(data_of_recipes()))
    assert history.iloc[0]["confidence in mined"] == pytest.approx(float(p[FLAGS].mean()))


@pytest.mark.parametrize("recipe", SMALL)
def test_ranked_across_layers(recipe: str) -> None:
    model: Any = run_recipe(recipe, mlp(), pruner_options={"global_pruning": True}).model
    assert model[0].out_features + model[2].out_features == 14
    kept: Any = run_recipe(recipe, mlp(), ignored_layers=["2"]).model
    assert (kept[0].out_features, kept[2].out_features) == (8, 12)


@pytest.mark.parametrize("online", [False, True])
def test_denp_equals_a_loop_by_hand(online: bool) -> None:
    """Prune by the damage of the mined samples, fine-tune with them in half of every batch; at the end once more."""
    model, loader = mlp(), data_of_recipes()
    cut: dict[str, float] = {"share_per_class": 0.15}
    options = {"iterative_steps": 3, "final_epochs": 2, "learning_rate": 0.01, "contrastive_weight": 0.1}
    result = run_recipe("denp", model, online=online, cut=cut, pruning_ratio=0.6, random_state=5, **options)

    mine, generator, samples = copy.deepcopy(model), torch.Generator().manual_seed(5), IndexedSamples(loader)
    mined = FixedMiner().mine(model, loader)
    pruner = pruner_of_levels(
        ScoredNetwork(mine), samples.first(torch.device("cpu")), [0.6 / 3, 1.2 / 3, 1.8 / 3], None
    )
    for step in range(4):
        if step < 3:
            b = mined.conflicting(**cut)
            pruner.importance = AccumulatedConfidenceImportance(b, progress=False).fit(pruner, loader)
            pruner.step()
        if online and step < 3:
            fine_tune(mine, samples, learning_rate=0.01, random_state=generator, progress=False)
            ac = 1 - mined.scores
            n_terms = 1 + step
            ac = (n_terms * ac + label_probabilities(mine, samples)[0]) / (n_terms + 1)
            mined = replace(mined, scores=1 - ac, cut=None)
        b = mined.conflicting(**cut)
        fine_tune(
            mine,
            samples,
            epochs=2 if step == 3 else 1,
            learning_rate=0.01,
            sample_weights=mined.sample_weights(b),
            conflicting=b,
            contrastive_weight=0.1,
            random_state=generator,
            progress=False,
        )
    assert [p.shape for p in mine.parameters()] == [p.shape for p in result.model.parameters()]
    for left, right in zip(mine.parameters(), result.model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.mined.scores, mined.scores)


@pytest.mark.parametrize("name", ["mlp", "plain", "residual"])
@pytest.mark.parametrize("cost_weight", [0.0, 0.05])
def test_dcwp_without_a_ratio_removes_exactly_the_closed_gates(name: str, cost_weight: float) -> None:
    case = CASES[name]
    model, loader = case.model(), _case_data(case)
    gates = {"upweight": 9.0, "iterations": 30, "cost_weight": cost_weight, "random_state": 3}
    result = run_recipe("dcwp", model, loader, pruning_ratio=None, epochs=0, gate_learning_rate=0.3, **gates)
    mine = copy.deepcopy(model)
    importance = ContrastiveImportance(FLAGS, learning_rate=0.3, progress=False, **gates)  # type: ignore[arg-type]
    pruner = case.pruner(mine, importance)
    importance.fit(pruner, loader)
    columns, pi = importance.plan_.columns, importance.selection_.change
    assert 0 < int((pi < 0).sum()) < len(columns)
    for group in importance.negative_groups(pruner):
        group.prune()
    kept = importance.report().layers.set_index("layer")["kept"]
    assert kept.to_dict() == {
        layer: max(1, int((pi[columns.section(layer)] >= 0).sum())) for layer in importance.plan_.columns.sizes
    }
    for left, right in zip(result.model.parameters(), mine.parameters(), strict=True):
        assert torch.equal(left, right)
    assert result.history["what"].tolist() == ["mined", "pruned", "fine-tuned"]
    assert result.history["level"].isna().tolist() == [False, True, True]


def test_dcwp_with_a_ratio_takes_the_smallest_gates() -> None:
    """Half of each layer, of the smallest π; then what remains is fine-tuned with the contrastive loss."""
    model, loader = mlp(), data_of_recipes()
    result = run_recipe("dcwp", model, contrastive_weight=0.2, learning_rate=0.01, upweight=11.0, random_state=2)
    mine = copy.deepcopy(model)
    importance = ContrastiveImportance(
        FLAGS, upweight=11.0, contrastive_weight=0.2, iterations=5, learning_rate=0.3, random_state=2, progress=False
    )
    pruner = pruner_of_levels(ScoredNetwork(mine), IndexedSamples(loader).first(torch.device("cpu")), [0.5], importance)
    importance.fit(pruner, loader)
    pruner.step()
    fine_tune(
        mine,
        loader,
        learning_rate=0.01,
        sample_weights=MinedSamples(FLAGS.double(), FLAGS.long(), FLAGS).sample_weights(),
        conflicting=FLAGS,
        contrastive_weight=0.2,
        random_state=torch.Generator().manual_seed(2),
        progress=False,
    )
    for left, right in zip(result.model.parameters(), mine.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("recipe", SMALL)
def test_seed_decides(recipe: str) -> None:
    left, right, other = (run_recipe(recipe, mlp(), random_state=seed, learning_rate=0.01) for seed in (1, 1, 2))
    assert_same_result(left, right)
    assert any(
        a.shape != b.shape or not torch.equal(a, b)
        for a, b in zip(left.model.parameters(), other.model.parameters(), strict=True)
    )


class Classifier(nn.Module):
    """Ends in log-probabilities, of a layer that is not called head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.classifier = nn.Linear(2, 10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(x).relu()).log_softmax(1)


@pytest.mark.parametrize("recipe", SMALL)
def test_scores_that_no_layer_gives(recipe: str) -> None:
    """The last layer is named by hand, the features too; without that the message names the argument."""
    model = Classifier()
    options = {"contrastive_weight": 0.1}
    before = Snapshot(model)
    with pytest.raises(UnsupportedModelError, match="add 'classifier' to ignored_layers"):
        run_recipe(recipe, model, **options)
    with pytest.raises(UnsupportedModelError, match="feature_layer="):
        run_recipe(recipe, model, ignored_layers=["classifier"], **options)
    before.assert_unchanged()
    if recipe == "dcwp":
        options["feature_layer"] = "classifier"  # type: ignore[assignment]
    else:
        options["contrastive_weight"] = 0.0
    result: Any = run_recipe(recipe, model, ignored_layers=["classifier"], **options)
    assert result.model.body.out_features == 5


@pytest.mark.parametrize("recipe", SMALL)
@pytest.mark.parametrize("name", ["plain", "residual", "concatenation", "depthwise", "tuple output", "dict output"])
def test_every_network(recipe: str, name: str) -> None:
    case = CASES[name]
    model = case.model()
    options = {"output_transform": case.transform, "pruning_ratio": 0.4}
    result = run_recipe(recipe, model, _case_data(case), **options)
    direct = copy.deepcopy(model)
    case.pruner(direct, tp.importance.GroupMagnitudeImportance()).step()
    assert [p.shape for p in result.model.parameters()] == [p.shape for p in direct.parameters()]


@pytest.mark.parametrize("iterative_steps", [1, 2, 3, 6])
def test_number_of_steps_does_not_change_how_many_channels_go(iterative_steps: int) -> None:
    """3 · 0.2 / 3 is more than 0.2 in floating point, and 5 · (1 − that) less than 4."""
    model: Any = run_recipe("denp", mlp_of(10, 5), pruning_ratio=0.2, iterative_steps=iterative_steps).model
    assert (model[0].out_features, model[2].out_features) == (8, 4)


def test_importance_of_the_user() -> None:
    asked: list[Tensor] = []

    def importance(flags: Tensor) -> ContrastiveImportance:
        asked.append(flags)
        return ContrastiveImportance(flags, form="first-order")

    model: Any = run_recipe("denp", mlp(), importance=importance).model
    assert len(asked) == 3 and all(torch.equal(flags, FLAGS) for flags in asked[1:])  # the first is made up
    assert (model[0].out_features, model[2].out_features) == (8, 6)


def test_options_of_the_pruner_hold_for_denp_s_own_miner() -> None:
    """4 channels at the miner's highest level are none; ranked across layers, as asked, one stays."""
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3), nn.ReLU(), nn.Linear(3, 2))
    cut: dict[str, float] = {"share_per_class": 0.15}
    options = {"global_pruning": True}
    result = run_recipe("denp", model, miner=None, cut=cut, pruner_options=options, pruning_ratio=0.4)
    assert sum(p.shape[0] for p in result.model.parameters() if p.ndim == 2) < 16 + 3 + 2


@pytest.mark.parametrize("recipe", SMALL)
def test_option_that_names_layers_of_the_caller_s_network_is_not_lost(recipe: str) -> None:
    """The copy has other modules: such an option holds for it, or is refused."""
    model = mlp()
    try:
        result: Any = run_recipe(recipe, model, pruner_options={"pruning_ratio_dict": {model[0]: 0.25}}).model
    except InputError as error:
        assert "pruner_options" in str(error)
        return
    assert (result[0].out_features, result[2].out_features) == (12, 6)


# Taking up ------------------------------------------------------------------------------------------------


class CutShortError(Exception):
    pass


def _cut_short(monkeypatch: pytest.MonkeyPatch, call: int) -> list[int]:
    """Let the call-th fine-tuning of the recipe fail; returns the calls."""
    calls: list[int] = []

    def failing(*arguments: Any, **options: Any) -> nn.Module:
        calls.append(len(calls) + 1)
        if calls[-1] == call:
            raise CutShortError
        return core_training.fine_tune(*arguments, **options)

    monkeypatch.setattr(sparse_run, "fine_tune", failing)
    return calls


RUNS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "denp": ("denp", "mlp", {}, 3),
    "denp, online": ("denp", "mlp", {"online": True, "cut": {"share_per_class": 0.15}}, 5),
    "denp, global": ("denp", "residual", {"pruner_options": {"global_pruning": True}, "iterative_steps": 3}, 4),
    "denp, local": ("denp", "plain", {"pruning_ratio": 0.4}, 3),
    "denp, split": ("denp", "split", {"pruning_ratio": 0.4}, 3),
    "dcwp": ("dcwp", "mlp", {}, 1),
    "dcwp, weights": ("dcwp", "residual", {"level": "weight", "pruning_ratio": 0.3}, 1),
    "dcwp, closed gates": ("dcwp", "residual", {"pruning_ratio": None, "cost_weight": 3.0, "upweight": 5.0}, 1),
}


@pytest.mark.parametrize(
    ("run", "call"), [(name, call) for name, (*_, calls) in RUNS.items() for call in range(1, calls + 1)]
)
def test_run_that_was_cut_short_goes_on(run: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same network, history and mined set to the last bit; finished steps and mining are not done again."""
    recipe, name, options, n_calls = RUNS[run]
    case, miner = CASES[name], FixedMiner()
    model, loader = case.model().train(), _case_data(case)
    whole = run_recipe(recipe, model, loader, random_state=4, learning_rate=0.01, **options)
    again = {"folder": tmp_path / "run", "miner": miner, "random_state": 4, "learning_rate": 0.01, **options}
    before = Snapshot(model)
    calls = _cut_short(monkeypatch, call)
    with pytest.raises(CutShortError):
        run_recipe(recipe, model, loader, **again)
    assert len(calls) == call
    calls = _cut_short(monkeypatch, 0)
    torch.manual_seed(call)
    before.random = (*before.random[:2], torch.get_rng_state())
    assert_same_result(run_recipe(recipe, model, loader, **again), whole)
    done_twice = 1 if options.get("online") and call % 2 == 0 else 0  # the step's ordinary epoch
    assert len(calls) == n_calls - (call - 1) + done_twice and miner.calls == 1
    assert_same_result(run_recipe(recipe, model, loader, **again), whole)  # finished: nothing is done
    assert len(calls) == n_calls - (call - 1) + done_twice and miner.calls == 1
    before.assert_unchanged()
    files = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert files == ["mined.safetensors", "progress.safetensors"]


def _first_order(flags: Tensor) -> ContrastiveImportance:
    return ContrastiveImportance(flags, form="first-order")


OTHER: list[tuple[str, dict[str, Any], str]] = [
    *(
        (recipe, options, key)
        for recipe in SMALL
        for options, key in [
            ({"random_state": 9}, "random_state"),
            ({"pruning_ratio": 0.4}, "levels"),
            ({"cut": {"share_per_class": 0.3}}, "cut"),
            ({"mined_weight": 2.0}, "mined_weight"),
            ({"miner": MisclassifiedMiner(epochs=1)}, "miner"),
            ({"ignored_layers": ["0"]}, "ignored_layers"),
            ({"epochs": 3}, "epochs"),
            ({"learning_rate": 0.02}, "learning_rate"),
            ({"contrastive_weight": 0.7}, "weight"),
            ({"pruner_options": {"global_pruning": True}}, "pruner_options"),
        ]
    ),
    ("denp", {"iterative_steps": 3}, "levels"),
    ("denp", {"online": True}, "online"),
    ("denp", {"final_epochs": 2}, "epochs"),
    ("denp", {"importance": _first_order}, "importance"),
    ("dcwp", {"iterations": 6}, "iterations"),
    ("dcwp", {"gate_learning_rate": 0.1}, "learning_rate"),
    ("dcwp", {"upweight": 3.0}, "weight"),
    ("dcwp", {"batchnorm": "train"}, "batchnorm"),
    ("dcwp", {"level": "weight"}, "level"),
    ("dcwp", {"cost_weight": 0.3}, "weight"),
    ("dcwp", {"cost": "macs"}, "cost"),
    ("dcwp", {"pruning_ratio": None}, "pruning_ratio"),
    ("dcwp", {"feature_layer": "4"}, "feature_layer"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A folder of a finished run of each recipe."""
    folders = {recipe: tmp_path_factory.mktemp(recipe) for recipe in SMALL}
    for recipe, folder in folders.items():
        run_recipe(recipe, mlp(), folder=folder)
    return folders


@pytest.mark.parametrize(("recipe", "options", "key"), OTHER, ids=[f"{r}-{next(iter(o))}" for r, o, _ in OTHER])
def test_run_with_other_settings_is_refused(
    recipe: str, options: dict[str, Any], key: str, finished: Mapping[str, Path]
) -> None:
    model = mlp()
    before = Snapshot(model)
    with pytest.raises(InputError, match=rf"is of a run with another .*{key}.*; use another folder, or delete it"):
        run_recipe(recipe, model, folder=finished[recipe], **options)
    before.assert_unchanged()


def test_run_of_another_network_miner_recipe_or_dataset_is_refused(
    finished: Mapping[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="another network; use"):
        run_recipe("denp", mlp(1), folder=finished["denp"])
    with pytest.raises(InputError, match=r"another .*recipe"):
        run_recipe("dcwp", mlp(), folder=finished["denp"])
    x, y = data_of_recipes().dataset.tensors  # type: ignore[attr-defined]
    fewer = DataLoader(TensorDataset(x[:40], y[:40]), batch_size=16)
    with pytest.raises(InputError, match="another samples"):
        run_recipe("denp", mlp(), fewer, folder=finished["denp"])
    run_recipe("denp", mlp(), miner=MisclassifiedMiner(epochs=1), cut={"share_per_class": 0.2}, folder=tmp_path)
    with pytest.raises(InputError, match=r"another .*miner"):
        run_recipe("denp", mlp(), miner=MisclassifiedMiner(epochs=2), cut={"share_per_class": 0.2}, folder=tmp_path)


DAMAGE: dict[str, Callable[[Path, bytes], Any]] = {
    "truncated": lambda path, data: path.write_bytes(data[:-7]),
    "half": lambda path, data: path.write_bytes(data[: len(data) // 2]),
    "empty": lambda path, data: path.write_bytes(b""),
    "header of noise": lambda path, data: path.write_bytes(data[:8] + b"?" * (len(data) - 8)),
    "no metadata": lambda path, data: save_file({"scores": torch.ones(3)}, path),
    "metadata not JSON": lambda path, data: save_file({"s": torch.ones(3)}, path, {"fairtrim-recipe": "{"}),
    "another version": lambda path, data: path.write_bytes(data.replace(b'\\"version\\": 1', b'\\"version\\": 7')),
    "pickle": lambda path, data: path.write_bytes(pickle.dumps(Evil(path.with_name("evil")))),
    "torch.save": lambda path, data: torch.save(Evil(path.with_name("evil")), path),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("recipe", SMALL)
def test_damaged_progress_is_refused(
    recipe: str, damage: str, finished: Mapping[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fairtrim.torch_pruning")
    data = (finished[recipe] / "progress.safetensors").read_bytes()
    path = tmp_path / "progress.safetensors"
    path.write_bytes(data)
    run_recipe(recipe, mlp(), folder=tmp_path)  # as it is, it is taken up
    assert re.fullmatch(rf"the recipe goes on after step \d+, kept in {re.escape(str(path))}", caplog.messages[0])
    DAMAGE[damage](path, data)
    left = path.read_bytes()
    assert left != data
    model = mlp()
    before = Snapshot(model)
    with pytest.raises(InputError, match="delete it to begin again"):
        run_recipe(recipe, model, folder=tmp_path)
    before.assert_unchanged()
    assert path.read_bytes() == left and [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing unpickled


# Refusals -------------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[dict[str, Any], type[FairtrimError], str]] = {
    "no channel goes": ({"pruning_ratio": 0.0}, InputError, "pruning_ratio=0.0"),
    "every channel goes": ({"pruning_ratio": 1.0}, InputError, r"pruning_ratio=1.0.*expected a share in \(0, 1\)"),
    "no channel is left": (
        {"pruning_ratio": 0.93, "ignored_layers": ["0"]},
        InputError,
        r"level 0.93.* leaves no channel of the layers \{'2': 12\}",
    ),
    "none mined": ({"miner": FixedMiner(FLAGS & False)}, InputError, "no sample was mined.*share_per_class"),
    "all mined": ({"miner": FixedMiner(FLAGS | True)}, InputError, "all 60 samples were mined"),
    "unknown layer": ({"ignored_layers": ["neck"]}, InputError, r"ignored_layers holds \['neck'\]"),
    "no epochs": ({"epochs": -1}, InputError, "epochs=-1"),
    "learning rate": ({"learning_rate": 0.0}, InputError, "learning_rate=0.0"),
    "two cuts": ({"cut": {"threshold": 0.5, "deviations": 3.0}}, InputError, "not several"),
    "list": ({"loader": [data_of_recipes().dataset[:4]]}, InputError, "the loader is a list; expected a DataLoader"),
    "single class": (
        {"loader": DataLoader(TensorDataset(torch.randn(N, 2), torch.ones(N).long()), batch_size=16)},
        InputError,
        "every sample has label 1",
    ),
    "float target": (
        {"loader": DataLoader(TensorDataset(torch.randn(N, 2), torch.rand(N)), batch_size=16)},
        InputError,
        "expected integer labels",
    ),
    "NaN": (
        {"loader": DataLoader(TensorDataset(torch.full((N, 2), torch.nan), FLAGS.long()), batch_size=16)},
        InputError,
        "not finite",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("recipe", SMALL)
def test_errors_leave_the_network_alone(recipe: str, fault: str) -> None:
    options, error, message = FAULTS[fault]
    model = mlp().train()
    model[1].eval()
    before = Snapshot(model)
    with pytest.raises(error, match=message):
        run_recipe(recipe, model, **options)
    before.assert_unchanged()


def test_arguments_of_one_recipe() -> None:
    model = mlp()
    with pytest.raises(InputError, match="iterative_steps=0"):
        run_recipe("denp", model, iterative_steps=0)
    with pytest.raises(InputError, match="or None for the closed gates"):
        run_recipe("dcwp", model, pruning_ratio=-0.5)
    with pytest.raises(InputError, match="cost='latency'"):
        run_recipe("dcwp", model, cost="latency")
    with pytest.raises(InputError, match="feature_layer='neck' is not a module"):
        run_recipe("dcwp", model, feature_layer="neck")
    with pytest.raises(InputError, match=r"level 0.8.* leaves no channel"):
        small = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
        run_recipe("denp", small, miner=AccumulatedConfidence(levels=(0.4, 0.8)))


# What a review found ---------------------------------------------------------------------------------------


def test_frozen_layers_stay_frozen() -> None:
    model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    for layer in (model[0], model[1]):
        layer.requires_grad_(False)
    sparse = run_recipe("denp", model, pruning_ratio=0.5).model
    assert [p.requires_grad for p in sparse.parameters()] == [p.requires_grad for p in model.parameters()]
    assert int(sparse[1].num_batches_tracked) == 0
    kept = [c for c in range(8) if any(torch.equal(model[0].weight[c], row) for row in sparse[0].weight)]
    assert len(kept) == sparse[0].out_features == 4  # rows of the frozen layer, unchanged
    model.requires_grad_(False)
    with pytest.raises(InputError, match="every parameter is frozen"):
        run_recipe("denp", model, pruning_ratio=0.5)


class Softmaxed(nn.Module):
    """Its scores are no linear layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(2, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.log_softmax(self.fc(input=self.body(x).relu()), 1)


@pytest.mark.parametrize("global_pruning", [False, True])
def test_layer_of_the_scores_is_never_pruned(global_pruning: bool) -> None:
    options = {"pruner_options": {"global_pruning": global_pruning}}
    with pytest.raises(UnsupportedModelError, match="add 'fc' to ignored_layers"):
        run_recipe("denp", Softmaxed(), **options)
    assert run_recipe("denp", Softmaxed(), ignored_layers=["fc"], **options).model.fc.out_features == 2


@pytest.mark.parametrize("recipe", ["denp", "dcwp"])
def test_features_are_looked_for_before_anything_is_mined(recipe: str) -> None:
    miner = FixedMiner()
    with pytest.raises(UnsupportedModelError, match="feature_layer="):
        run_recipe(recipe, Softmaxed(), ignored_layers=["fc"], contrastive_weight=0.1, miner=miner)
    assert miner.calls == 0
    run_recipe(recipe, Softmaxed(), ignored_layers=["fc"], contrastive_weight=0.1, feature_layer="fc")


@pytest.mark.parametrize("recipe", ["denp", "dcwp"])
def test_batchnorm_is_recalibrated_where_nothing_is_fine_tuned(recipe: str) -> None:
    model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    epochs = {"epochs": 0} | ({"final_epochs": 0} if recipe == "denp" else {})
    sparse = run_recipe(recipe, model, pruning_ratio=0.5, **epochs).model
    x, _ = (torch.stack(column) for column in zip(*data_of_recipes().dataset, strict=True))
    torch.testing.assert_close(sparse[1].running_mean, sparse[0](x).mean(0), rtol=1e-4, atol=1e-5)


def test_run_with_other_samples_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader, model = data_of_recipes(), mlp()
    run_recipe("denp", model, loader, folder=tmp_path)
    x, y = loader.dataset.tensors
    permuted = DataLoader(TensorDataset(x.flip(0), y.flip(0)), batch_size=16, shuffle=True)
    with pytest.raises(InputError, match="saw other samples"):
        run_recipe("denp", model, permuted, folder=tmp_path)
    with pytest.raises(InputError, match="another batch_size"):
        run_recipe("denp", model, DataLoader(loader.dataset, batch_size=8), folder=tmp_path)


def test_mining_is_kept_when_the_cut_is_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fairtrim.torch_pruning")
    miner = FixedMiner()
    with pytest.raises(InputError, match=r"no sample.*cut=\{'share_per_class': ...\}"):
        run_recipe("denp", mlp(), folder=tmp_path, miner=miner, cut={"threshold": 2.0})
    run_recipe("denp", mlp(), folder=tmp_path, miner=miner, cut={"share_per_class": 0.1})
    assert miner.calls == 1
    assert caplog.messages == [f"nothing is mined again: kept in {tmp_path / 'mined.safetensors'}"]


def test_heads_are_counted_on_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["separate heads"]
    loader, model = _case_data(case), case.model()
    heads = {"num_heads": {"query": 2, "key": 2, "value": 2}, "prune_num_heads": True, "head_pruning_ratio": 0.5}
    options = {"pruner_options": {**heads, "prune_head_dims": False}, "pruning_ratio": 0.4}
    whole = run_recipe("denp", model, loader, **options)
    with monkeypatch.context() as patch:
        _cut_short(patch, 2)
        with pytest.raises(CutShortError):
            run_recipe("denp", model, loader, folder=tmp_path, **options)
    assert_same_result(run_recipe("denp", model, loader, folder=tmp_path, **options), whole)


def test_no_closed_gate_is_said() -> None:
    with pytest.warns(UserWarning, match="no gate is closed"):
        run_recipe("dcwp", mlp(), pruning_ratio=None, cost_weight=0.0, iterations=1, gate_learning_rate=1e-3)


def test_a_kind_of_layer_is_no_name_of_a_layer() -> None:
    """``customized_pruners`` of Torch-Pruning has classes for keys."""
    options = {"pruner_options": {"customized_pruners": {nn.GRU: type(tp.prune_linear_out_channels.__self__)()}}}
    assert run_recipe("denp", mlp(), pruning_ratio=0.5, **options).model[0].out_features == 8


def test_very_few_mined_samples_are_pointed_out() -> None:
    flags = torch.zeros(N, dtype=torch.bool)
    flags[3] = True
    with pytest.warns(UserWarning, match=f"only 1 of {N} samples were mined, for 2 classes"):
        run_recipe("denp", mlp(), miner=FixedMiner(flags), pruning_ratio=0.5)


OLD: list[tuple[Any, str, str]] = [
    (denp, "steps", "iterative_steps="),
    (denp, "seed", "random_state="),
    (denp, "learning_rate", "fine_tuning={'learning_rate': ...}"),
    (dcwp, "gate_learning_rate", "gate_training={'learning_rate': ...}"),
    (dcwp, "iterations", "gate_training={'iterations': ...}"),
    (dcwp, "epochs", "fine_tuning={'epochs': ...}"),
]


@pytest.mark.parametrize(("recipe", "old", "new"), OLD)
def test_old_names_say_the_new_ones(recipe: Any, old: str, new: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"{recipe.__name__} has no {old}=; it is called {new}")):
        recipe(mlp(), data_of_recipes(), **{old: 1})


def test_settings_in_dicts_are_looked_at() -> None:
    with pytest.raises(InputError, match=r"dcwp has no 'mminer' \(did you mean 'miner'\?\)"):
        dcwp(mlp(), data_of_recipes(), mminer=FixedMiner())  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"fine_tuning has no 'epoch' \(did you mean 'epochs'\?\)"):
        denp(mlp(), data_of_recipes(), fine_tuning={"epoch": 1})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(InputError, match=r"gate_training has no 'iteration' \(did you mean 'iterations'\?\)"):
        dcwp(mlp(), data_of_recipes(), gate_training={"iteration": 1})  # type: ignore[typeddict-unknown-key]
    for name in ("fine_tuning", "gate_training"):
        with pytest.raises(InputError, match=f"{name} is a int; expected a dict such as"):
            dcwp(mlp(), data_of_recipes(), **{name: 3})  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", SMALL)
def test_a_generator_gives_the_seed_by_one_draw(recipe: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(8)
    drawn = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(8)))
    left, right = (run_recipe(recipe, mlp(), random_state=state) for state in (generator, drawn))
    assert_same_result(left, right)
    with pytest.raises(InputError, match="random_state is a Generator beside folder=; expected a whole number"):
        run_recipe(recipe, mlp(), random_state=generator, folder=tmp_path)


def test_whole_numbers_of_numpy_are_seeds(tmp_path: Path) -> None:
    plain, kept = (run_recipe("dcwp", mlp(), random_state=s, folder=f) for s, f in ((3, None), (np.int64(3), tmp_path)))
    assert_same_result(plain, kept)


@pytest.mark.parametrize("recipe", SMALL)
def test_a_miner_by_its_name(recipe: str) -> None:
    own = {"denp": "accumulated-confidence", "dcwp": "generalized-cross-entropy"}[recipe]
    options: dict[str, Any] = {"cut": {"share_per_class": 0.15}, "random_state": 5}
    assert_same_result(*(run_recipe(recipe, mlp(), miner=miner, **options) for miner in (None, own)))
    by_name, made = (run_recipe(recipe, mlp(), miner=m, **options) for m in ("loss", LossMiner(random_state=5)))
    assert_same_result(by_name, made)
    with pytest.raises(InputError, match=r"miner 'epoch-ensembel' is unknown \(did you mean 'epoch-ensemble'\?\)"):
        run_recipe(recipe, mlp(), miner="epoch-ensembel")


@pytest.mark.parametrize("recipe", SMALL)
def test_known_flags_take_the_place_of_a_miner(recipe: str, tmp_path: Path) -> None:
    """The same network as where a miner finds these samples, in whatever form they are given; other flags: refused."""
    mined = run_recipe(recipe, mlp())
    scored = FixedMiner().mine(mlp(), data_of_recipes())
    known: list[Any] = [FLAGS.numpy(), scored]
    for flags in known:
        result = run_recipe(recipe, mlp(), miner=flags)
        assert torch.equal(result.conflicting, FLAGS)
        for name, tensor in mined.model.state_dict().items():
            assert torch.equal(tensor, result.model.state_dict()[name]), name
    again = run_recipe(recipe, mlp(), miner=scored, cut={"share_per_class": 0.3})
    assert torch.equal(again.conflicting, scored.conflicting(share_per_class=0.3))
    run_recipe(recipe, mlp(), miner=FLAGS, folder=tmp_path)
    with pytest.raises(InputError, match="is of a run with another miner"):
        run_recipe(recipe, mlp(), miner=FLAGS.roll(1), folder=tmp_path)


def test_a_miner_that_a_name_can_t_make(monkeypatch: pytest.MonkeyPatch) -> None:
    class Needy(FixedMiner):
        def __init__(self, flags: Tensor) -> None:
            super().__init__(flags)

    keep(MINERS, monkeypatch)
    MINERS.add(FixedMiner, "fixed")
    MINERS.add(Needy, "needy")
    assert torch.equal(run_recipe("dcwp", mlp(), miner="fixed").conflicting, FLAGS)
    with pytest.raises(InputError, match=r"miner 'needy' can't be made by its name \(.*flags.*\); pass a Needy"):
        run_recipe("dcwp", mlp(), miner="needy")


def test_unknown_options_are_told_all_there_are() -> None:
    for recipe in (denp, dcwp):
        with pytest.raises(
            InputError, match=r"has no 'ratio' \(did you mean 'pruning_ratio'\?\); .*'fine_tuning'.*'cut'"
        ):
            recipe(mlp(), data_of_recipes(), ratio=0.5)  # type: ignore[call-arg]


def test_options_of_the_pruner_by_a_function_of_the_copy() -> None:
    def options(model: nn.Module) -> dict[str, Any]:
        first = model.get_submodule("0")
        return {"ignored_layers": [first], "forward_fn": lambda traced, inputs: traced(inputs)}

    model: Any = run_recipe("denp", mlp(), pruner_options=options).model
    assert (model[0].out_features, model[2].out_features) == (16, 6)
