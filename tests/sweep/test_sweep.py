"""Sweeps: each row equals the same thing done by hand; a sweep that was cut short ends as if it hadn't been."""

from __future__ import annotations

import copy
import importlib.metadata
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch_pruning as tp
from sklearn.metrics import accuracy_score
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fairtrim import InputError, ParityFineTuning, ThresholdSelection, load_pruned, predict
from fairtrim.comparison.network_size import network_size
from fairtrim.data.batches import Batch
from fairtrim_adapters.fairlearn import measurements
from fairtrim_adapters.sweep import DataSplits, prune_copy, read_sweep, sweep
from fairtrim_adapters.sweep.named_methods import criteria_by_label, parse_named, post_processors_by_label
from fairtrim_adapters.sweep.store import RunKey
from fairtrim_adapters.torch_pruning import WorstGroupImportance
from tests.sweep_cases import network, people, quick, same, splits


def test_rows_equal_the_same_done_by_hand() -> None:
    dense, data = network(), splits()
    table = quick(dense, data, ["magnitude", "worst-group"], [0.25, 0.5], post_processors="parity-fine-tuning")
    assert len(table) == (1 + 2 * 2) * 2
    pruned = copy.deepcopy(dense)
    importance = WorstGroupImportance()
    pruner = tp.pruner.BasePruner(
        pruned, torch.randn(2, 6), importance=importance, pruning_ratio=0.5, ignored_layers=[pruned[-1]]
    )
    importance.fit(pruner, data.scoring, sensitive_names=data.sensitive_names, progress=False)
    pruner.step()
    from fairtrim import recalibrate_batchnorm

    recalibrate_batchnorm(pruned, data.scoring, progress=False)
    repaired = ParityFineTuning(random_state=0).repair(
        pruned, data.validation, sensitive_names=data.sensitive_names, progress=False
    )
    models = {"dense": dense, "pruned": pruned, "repaired": repaired.model}
    predictions = predict(models, data.test, sensitive_names=data.sensitive_names, progress=False)
    rows = table.set_index(["criterion", "ratio", "post_processor"])
    for name, key in {
        "dense": ("dense", 0.0, "none"),
        "pruned": ("worst-group", 0.5, "none"),
        "repaired": ("worst-group", 0.5, "parity-fine-tuning"),
    }.items():
        expected = measurements(predictions, name, "dense", n_boot=10, random_state=0)
        flags = expected.pop("flags")
        row = rows.loc[key]
        for column, value in expected.items():
            assert row[column] == pytest.approx(value, abs=1e-12), (name, column)
        assert row["parameters"] == sum(p.numel() for p in models[name].parameters())
        assert row["flags"].startswith(flags)
    dense_parameters = sum(p.numel() for p in dense.parameters())
    assert rows.loc[("worst-group", 0.5, "none"), "parameters_ratio"] == pytest.approx(
        sum(p.numel() for p in pruned.parameters()) / dense_parameters
    )
    assert rows.loc[("worst-group", 0.5, "none"), "macs"] == 6 * 6 + 6 * 5 + 5 * 2
    assert (rows.xs("dense")["macs_ratio"] == 1).all()


def test_taylor_sums_gradients_over_the_scoring_data() -> None:
    dense, data = network(), splits()
    by_hand = copy.deepcopy(dense)
    for x, y, _ in data.scoring:
        nn.functional.cross_entropy(by_hand(x), y, reduction="sum").backward()
    importance = tp.importance.GroupTaylorImportance()
    tp.pruner.BasePruner(
        by_hand, torch.randn(2, 6), importance=importance, pruning_ratio=0.5, ignored_layers=[by_hand[-1]]
    ).step()
    pruned = prune_copy(dense, tp.importance.GroupTaylorImportance(), data, 0.5, recalibrate=False, progress=False)
    for mine, theirs in zip(pruned.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert all(parameter.grad is None for parameter in pruned.parameters())


def test_several_steps_reach_the_ratio() -> None:
    pruned = prune_copy(network(), WorstGroupImportance(), splits(), 0.5, iterative_steps=3, progress=False)
    assert [pruned[0].out_features, pruned[3].out_features] == [6, 5]


def test_seeds_make_their_own_networks_and_draws() -> None:
    asked: list[int] = []

    def factory(seed: int) -> nn.Module:
        asked.append(seed)
        return network(seed)

    table = quick(factory, splits(), "random", 0.5, seeds=[3, 8])
    assert asked == [3, 8]
    accuracy = table.set_index(["criterion", "seed"])["accuracy"]
    assert accuracy["dense", 3] != accuracy["dense", 8]
    one = quick(network(), splits(), "random", 0.5, seeds=3)
    assert one.query("criterion == 'dense'")["accuracy"].nunique() == 1
    assert one.query("criterion == 'random'")["changed_predictions"].nunique() > 1


def test_training_and_fine_tuning_of_ones_own() -> None:
    calls = []

    def train(model: nn.Module, seed: int) -> None:
        calls.append(("train", seed, model[0].out_features))  # type: ignore[index]

    def finish(model: nn.Module, seed: int) -> None:
        calls.append(("finish", seed, model[0].out_features))  # type: ignore[index]
        with torch.no_grad():
            model[-1].bias.copy_(torch.tensor([100.0, 0.0]))  # type: ignore[index]

    table = quick(network, splits(), "magnitude", 0.5, seeds=[5], train=train, fine_tune=finish)
    assert calls == [("train", 5, 12), ("finish", 5, 6)]
    assert "constant classifier" in table["flags"].iloc[1] and table["selection_rate"].iloc[1] == 0


def test_fine_tuning_by_epochs() -> None:
    before, after = (quick(network(), splits(), "magnitude", 0.5, fine_tune=epochs) for epochs in (0, 3))
    assert after["accuracy"].iloc[1] > before["accuracy"].iloc[1]


def test_nothing_of_the_callers_changes() -> None:
    dense, data = network().train(), splits()
    state = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    torch.manual_seed(1)
    random = torch.get_rng_state()
    quick(dense, data, ["random", "taylor", "worst-group"], 0.5, post_processors="threshold-selection", fine_tune=1)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, state[name]) for name, tensor in dense.state_dict().items())
    assert dense.training and all(parameter.grad is None for parameter in dense.parameters())


# Taking up again ------------------------------------------------------------------------------------------


class Stopped(BaseException):
    pass


def stopping(after: int) -> dict[str, Callable[[], tp.importance.Importance]]:
    made = []

    def make(kind: Callable[[], tp.importance.Importance]) -> tp.importance.Importance:
        made.append(kind)
        if len(made) > after:
            raise Stopped
        return kind()

    return {
        "magnitude": lambda: make(tp.importance.GroupMagnitudeImportance),
        "worst-group": lambda: make(WorstGroupImportance),
    }


@pytest.mark.parametrize("after", [0, 3])
def test_taken_up_again_it_gives_the_same_table(tmp_path: Path, after: int) -> None:
    def run(folder: Path, criteria: Any) -> pd.DataFrame:
        return quick(network, splits(), criteria, 0.5, 2, post_processors="threshold-selection", folder=folder)

    whole = run(tmp_path / "whole", stopping(100))
    with pytest.raises(Stopped):
        run(tmp_path / "cut", stopping(after))
    with pytest.raises(InputError, match="has begun there"):
        read_sweep(tmp_path / "cut")
    kept = len(list((tmp_path / "cut" / "runs").glob("*.safetensors")))
    assert kept == 2 * (1 + after + after // 2)  # the second seed's dense network, after two criteria of the first
    same(run(tmp_path / "cut", stopping(100)), whole)
    same(read_sweep(tmp_path / "cut")[0], whole)
    assert not list((tmp_path / "cut").rglob(".*"))


def test_only_what_is_missing_is_run(tmp_path: Path) -> None:
    calls = []

    def factory(seed: int) -> nn.Module:
        calls.append(seed)
        return network(seed)

    first = quick(factory, splits(), "magnitude", 0.5, [0, 1], folder=tmp_path)
    again = quick(factory, splits(), "magnitude", 0.5, [0, 1], folder=tmp_path)
    assert calls == [0, 1]
    pd.testing.assert_frame_equal(first, again)
    more = quick(factory, splits(), ["magnitude", "worst-group"], 0.5, [0, 1], folder=tmp_path)
    assert calls == [0, 1, 0, 1]
    same(more.query("criterion != 'worst-group'").reset_index(drop=True), first)
    repaired = quick(factory, splits(), "magnitude", 0.5, 2, post_processors="threshold-selection", folder=tmp_path)
    same(repaired.query("post_processor == 'none'").reset_index(drop=True), first)


def test_trained_networks_are_not_trained_again(tmp_path: Path) -> None:
    calls = []

    def train(model: nn.Module, seed: int) -> None:
        calls.append(seed)
        with torch.no_grad():
            model[-1].bias += torch.rand(2)  # type: ignore[index,operator]  # never the same twice

    first = quick(network, splits(), "magnitude", 0.5, train=train, folder=tmp_path)
    more = quick(network, splits(), ["magnitude", "worst-group"], 0.5, train=train, folder=tmp_path)
    assert calls == [0]
    same(more.iloc[:2], first)


def test_another_sweep_is_refused(tmp_path: Path) -> None:
    quick(network(), splits(), "magnitude", 0.5, folder=tmp_path)
    others: list[dict[str, Any]] = [{"n_boot": 11}, {"iterative_steps": 2}, {"fine_tune": 1}, {"ignored_layers": ["0"]}]
    for options in (*others, {"latency_rounds": 6}, {"latency_batch_size": 3}):
        with pytest.raises(InputError, match="another"):
            quick(network(), splits(), "magnitude", 0.5, folder=tmp_path, **options)
    with pytest.raises(InputError, match="another network"):
        quick(network(1), splits(), "magnitude", 0.5, folder=tmp_path)
    with pytest.raises(InputError, match="test data"):
        quick(network(), splits(test=people(200, 9)), "worst-group", 0.5, folder=tmp_path)
    with pytest.raises(InputError, match="is a file"):
        quick(network(), splits(), "magnitude", 0.5, folder=tmp_path / "sweep.csv")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("worst-group", "worst-group:selection=single"),
        ("magnitude", "worst-group"),
        (lambda: WorstGroupImportance(shrinkage=3.0), lambda: WorstGroupImportance(shrinkage=4.0)),
    ],
    ids=["settings", "names", "functions"],
)
def test_a_label_with_another_criterion_is_refused(tmp_path: Path, first: Any, second: Any) -> None:
    before = quick(network(), splits(), {"mine": first}, 0.5, folder=tmp_path)
    with pytest.raises(InputError, match="another criterion"):
        quick(network(), splits(), {"mine": second}, 0.5, folder=tmp_path)
    same(quick(network(), splits(), {"mine": first}, 0.5, folder=tmp_path), before)


def test_a_label_with_another_post_processor_is_refused(tmp_path: Path) -> None:
    quick(network(), splits(), "magnitude", 0.5, post_processors={"mine": "threshold-selection"}, folder=tmp_path)
    with pytest.raises(InputError, match="another post_processor"):
        quick(network(), splits(), "magnitude", 0.5, post_processors={"mine": "random-perturbation"}, folder=tmp_path)


def test_the_dense_network_is_kept_before_what_is_measured_against_it(tmp_path: Path) -> None:
    """With several processes a pruned network could be finished first, and a killed sweep train another dense one."""
    present = []

    def made() -> tp.importance.Importance:
        present.append([path.name.startswith("seed-0-dense") for path in (tmp_path / "runs").iterdir()])
        return tp.importance.GroupMagnitudeImportance()

    def train(model: nn.Module, seed: int) -> None:
        trained.append(seed)
        with torch.no_grad():
            model[-1].bias += torch.rand(2)  # type: ignore[index,operator]  # never the same twice

    trained: list[int] = []
    repairs = {"broken": Broken()}
    with pytest.raises(InputError, match=r"post-processor 'broken'.*broken on purpose"):
        quick(network, splits(), {"mine": made}, 0.5, train=train, post_processors=repairs, folder=tmp_path)
    first = quick(network, splits(), {"mine": made}, 0.5, train=train, folder=tmp_path)
    assert trained == [0] and present == [[True]]
    assert first["criterion"].tolist() == ["dense", "mine"]


class Broken(ThresholdSelection):
    """A repair that fails."""

    def repair(self, *arguments: Any, **options: Any) -> Any:
        raise InputError("broken on purpose")


def test_what_would_fail_after_training_is_refused_before(tmp_path: Path) -> None:
    def train(model: nn.Module, seed: int) -> None:
        raise AssertionError("trained nevertheless")

    only_test = DataSplits(test=people(90, 3))
    with pytest.raises(InputError, match=r"recalibrating BatchNorm.*'scoring'"):
        quick(network, only_test, "magnitude", 0.5, train=train)
    with pytest.raises(InputError, match=r"'00'.*did you mean '0'"):
        quick(network, splits(), "magnitude", 0.5, train=train, ignored_layers=["00"])
    for name in ("accuracy", "f1[macro]", "f1_low", "equalized_odds", ""):
        with pytest.raises(InputError, match="metrics holds"):
            quick(network, splits(), "magnitude", 0.5, train=train, metrics={name: accuracy_score})
    with pytest.raises(InputError, match="no dict of functions"):
        quick(network, splits(), "magnitude", 0.5, train=train, metrics={"f1": 0.5})


def test_a_changed_result_is_refused(tmp_path: Path) -> None:
    quick(network(), splits(), "magnitude", 0.5, folder=tmp_path)
    run = next((tmp_path / "runs").glob("*magnitude*"))
    content = bytearray(run.read_bytes())
    content[-3] ^= 1
    run.write_bytes(content)
    with pytest.raises(InputError, match="changed since it was written"):
        quick(network(), splits(), "magnitude", 0.5, folder=tmp_path)


def test_checkpoints_are_the_networks_of_their_rows(tmp_path: Path) -> None:
    table = quick(network, splits(), "worst-group", 0.5, 2, post_processors="threshold-selection", folder=tmp_path)
    data = splits()
    for row in table.to_dict("records"):
        model = load_pruned(tmp_path / row["checkpoint"], network(99))
        labels = predict(model, data.test, progress=False).label["model"]
        assert np.mean(labels == torch.cat([y for _, y, _ in data.test]).numpy()) == pytest.approx(row["accuracy"])


def test_table_and_facts_are_read_again(tmp_path: Path) -> None:
    table = sweep(network(), splits(name="n"), "worst-group", 0.5, n_boot=5, folder=tmp_path, progress=False)
    read, facts = read_sweep(tmp_path)
    pd.testing.assert_frame_equal(read, table)
    assert (
        facts["data"] == "n"
        and facts["seeds"] == [0]
        and facts["versions"]["torch"] == importlib.metadata.version("torch")
    )
    assert (table["latency_ms"] > 0).all() and table["latency_ratio"].iloc[0] == 1


@pytest.mark.slow
def test_killed_and_taken_up_again(tmp_path: Path) -> None:
    """Killed without warning, in the middle of whatever it was doing."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            sys.path.insert(0, {str(Path(__file__).parents[2])!r})
            from tests.sweep_cases import network, quick, splits
            quick(network, splits(), ["magnitude", "worst-group", "taylor"], [0.25, 0.5], 2, folder=sys.argv[1])
            """
        )
    )

    def command(folder: Path) -> list[str]:
        return [sys.executable, str(script), str(folder)]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    runs, killed = tmp_path / "cut" / "runs", 0
    while True:
        began = len(list(runs.glob("seed*")))
        process = subprocess.Popen(command(tmp_path / "cut"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(runs.glob("seed*"))) < began + 5:
            time.sleep(0.01)
        if process.poll() is not None:
            assert process.returncode == 0
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
    assert killed >= 2
    same(read_sweep(tmp_path / "cut")[0], read_sweep(tmp_path / "whole")[0])


@pytest.mark.slow
def test_several_processes_give_the_same_table() -> None:
    criteria = {"worst-group": WorstGroupImportance, "magnitude": "magnitude"}
    one, two = (quick(network, splits(), criteria, [0.25, 0.5], 2, n_jobs=jobs) for jobs in (1, 2))
    same(one, two)


# What people get wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criteria": "worst_group"}, "did you mean 'worst-group'"),
        ({"criteria": "group-saliency"}, "needs privileged"),
        ({"criteria": "contrastive"}, "needs the mined samples"),
        ({"criteria": "magnitude:p=1"}, "takes no settings"),
        ({"criteria": []}, "no criteria"),
        ({"criteria": {"dense": "magnitude"}}, "labelled 'dense'"),
        ({"criteria": {"mine": 3}}, "is a int"),
        ({"criteria": {"mine": WorstGroupImportance()}}, "a function that makes"),
        ({"criteria": {"mine": lambda: 3}}, "gave a int"),
        ({"criteria": {"hessian": tp.importance.GroupHessianImportance}}, "needs gradients"),
        ({"post_processors": "parity"}, "unknown"),
        ({"post_processors": "parity-fine-tuning:epsilom=1"}, "did you mean 'epsilon'"),
        ({"post_processors": {"none": "threshold-selection"}}, "labelled 'none'"),
        ({"post_processors": {"x": 1}}, "expected a name or a PostProcessor"),
        ({"ratios": 1.0}, "between 0 and 1"),
        ({"ratios": [0.5, 0.5]}, "different shares"),
        ({"ratios": 0.99}, "leaves no channel"),
        ({"ignored_layers": ["0", "3"]}, "nothing was removed"),
        ({"seeds": 0}, "at least 1"),
        ({"seeds": [1, 1]}, "different seeds"),
        ({"iterative_steps": 0}, "at least 1"),
        ({"n_jobs": 0}, "n_jobs=0"),
        ({"n_boot": 0}, "n_boot=0"),
        ({"latency_rounds": 5}, "at least 6"),
        ({"latency_batch_size": 0}, "at least 1"),
        ({"ignored_layers": "0"}, "expected a list"),
        ({"ignored_layers": ["nowhere"]}, "names of the network's layers"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    given = {"criteria": "magnitude", "ratios": 0.5, **options}
    with pytest.raises(InputError, match=message):
        quick(network(), splits(), **given)


def test_wrong_data_and_models() -> None:
    for data, message in (
        ({"tests": []}, "did you mean 'test'"),
        ({"scoring": people(9, 0)}, "no 'test'"),
        ([1], "the data are a list"),
        ({"test": iter([1])}, "only once"),
        ({"test": 5}, "expected a DataLoader"),
    ):
        with pytest.raises(InputError, match=message):
            quick(network(), data, "magnitude", 0.5)
    test = people(50, 0)
    for needs, message in (
        ({"criteria": "worst-group"}, "needs the split 'scoring'"),
        ({"criteria": "magnitude", "post_processors": "threshold-selection"}, "needs the split 'validation'"),
        ({"criteria": "magnitude", "fine_tune": 1}, "needs the split 'train'"),
    ):
        with pytest.raises(InputError, match=message):
            quick(network(), {"test": test}, ratios=0.5, **needs)
    with pytest.raises(InputError, match="no sensitive features"):
        quick(network(), {"test": [batch[:2] for batch in test], "scoring": test}, "magnitude", 0.5)
    with pytest.raises(InputError, match="factory gave a str"):
        quick(lambda: "network", splits(), "magnitude", 0.5)
    with pytest.raises(InputError, match="model is a str"):
        quick("network", splits(), "magnitude", 0.5)

    class Turning:
        def __init__(self) -> None:
            self.batches, self.random = list(people(150, 0)), random.Random(0)

        def __iter__(self) -> Any:
            self.random.shuffle(self.batches)
            return iter(self.batches)

    with pytest.raises(InputError, match="shuffle=False"):
        quick(network(), splits(test=Turning()), "magnitude", 0.5)


def test_an_error_names_its_run() -> None:
    with pytest.raises(InputError, match=r"criterion 'magnitude', ratio 0.95, post-processor 'none', seed 0"):
        quick(network(), splits(), "magnitude", 0.95)


# Parts ----------------------------------------------------------------------------------------------------


def test_more_than_two_classes_and_dicts() -> None:
    class OfDicts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network(n_classes=3)

        def forward(self, values: Tensor) -> dict[str, Tensor]:
            return {"logits": self.layers(values)}

    def dicts(loader: DataLoader[tuple[Tensor, ...]]) -> list[dict[str, Tensor]]:
        return [{"values": x, "labels": y, "sensitive_features": s} for x, y, s in loader]

    data = DataSplits(scoring=dicts(people(90, 1, 3)), test=dicts(people(110, 2, 3)))
    table = sweep(OfDicts().eval(), data, "worst-group", 0.5, n_boot=5, latency_rounds=6, progress=False)
    assert "equalized_odds_difference" not in table and {"accuracy[0]", "accuracy_low[1]"} <= set(table)
    assert table["macs"].tolist() == [6 * 12 + 12 * 10 + 10 * 3, 6 * 6 + 6 * 5 + 5 * 3]


def test_pruner_options_by_function_and_by_name() -> None:
    def options(model: nn.Module) -> dict[str, Any]:
        return {"ignored_layers": [model[0]], "global_pruning": True}  # type: ignore[index]

    by_function = prune_copy(
        network(), tp.importance.GroupMagnitudeImportance(), splits(), 0.5, pruner_options=options, progress=False
    )
    by_name = prune_copy(
        network(),
        tp.importance.GroupMagnitudeImportance(),
        splits(),
        0.5,
        ignored_layers=["0"],
        pruner_options={"global_pruning": True},
        progress=False,
    )
    assert by_function[0].out_features == by_name[0].out_features == 12
    assert by_function[3].out_features == by_name[3].out_features == 5


def test_macs_of_a_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * 8 * 4, 2))
    size = network_size(model, Batch(torch.ones(7, 3, 8, 4), torch.zeros(7), None, 0))
    assert size["macs"] == 3 * 5 * 9 * 8 * 4 + 5 * 8 * 4 * 2


class LastOfSequence(nn.Module):
    """A recurrent layer, of which the last output is classified."""

    def __init__(self, layer: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.layer(x)[0][:, -1])
        return scores


def torch_flags() -> tuple[bool, ...]:
    backends = torch.backends
    enabled = torch._C._get_mkldnn_enabled(), backends.cudnn.enabled, backends.mha.get_fastpath_enabled()
    return (*enabled, backends.cuda.flash_sdp_enabled(), backends.cuda.math_sdp_enabled())


@pytest.mark.parametrize(
    ("model", "width", "macs"),
    [
        (LastOfSequence(nn.LSTM(5, 6, batch_first=True), 6), 5, 3 * 4 * 6 * (5 + 6) + 6 * 2),
        (LastOfSequence(nn.GRU(5, 6, batch_first=True, bidirectional=True), 12), 5, 2 * 3 * 3 * 6 * 11 + 12 * 2),
        (
            nn.Sequential(nn.TransformerEncoderLayer(8, 2, dim_feedforward=10, batch_first=True), nn.Flatten()),
            8,
            3 * (8 * 24 + 8 * 8 + 2 * 8 * 10) + 2 * 3 * 3 * 8,
        ),
    ],
    ids=["LSTM", "GRU", "encoder"],
)
def test_macs_of_layers_that_torch_runs_in_one_piece(model: nn.Module, width: int, macs: int) -> None:
    """Of T = 3 positions, in eval mode without gradients, where torch fuses them."""
    before = torch_flags()
    batch = Batch(torch.ones(7, 3, width), torch.zeros(7), None, 0)
    assert network_size(model.eval(), batch)["macs"] == macs
    assert torch_flags() == before


def test_names_with_settings() -> None:
    assert parse_named("a:x=1,y=b c,z=null") == ("a", {"x": 1, "y": "b c", "z": None})
    with pytest.raises(InputError, match="'x' is no setting"):
        parse_named("a:x")
    made = criteria_by_label("worst-group:selection=single")["worst-group:selection=single"](0)
    assert made.selection == "single"
    assert post_processors_by_label({"mine": ParityFineTuning(epsilon=0.3)})["mine"].epsilon == 0.3
    assert post_processors_by_label(None) == {}


def test_files_of_runs_differ() -> None:
    labels = ["a b", "a-b", "a/b", "A" * 90, "A" * 91]
    files = {RunKey(0, label, 0.5, "none").file for label in labels}
    assert len(files) == len(labels) and all(set(file) & set("/ ") == set() for file in files)
