"""What a sweep keeps: taken up again it gives the same table, and something else is refused."""

from __future__ import annotations

import importlib.metadata
import logging
import os
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
from torch import nn

from fairtrim import InputError, ThresholdSelection, load_pruned, predict
from fairtrim.files.resumption import Resumption
from fairtrim_adapters.sweep import DataSplits, read_sweep, sweep
from fairtrim_adapters.sweep.store import RunKey
from fairtrim_adapters.torch_pruning import WorstGroupImportance
from tests.sweep_cases import network, people, quick, same, splits


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


@pytest.mark.parametrize("after", [pytest.param(0, marks=pytest.mark.slow), 3])
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


def test_only_what_is_missing_is_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls = []
    caplog.set_level(logging.DEBUG, "fairtrim.sweep")

    def factory(seed: int) -> nn.Module:
        calls.append(seed)
        return network(seed)

    first = quick(factory, splits(), "magnitude", 0.5, [0, 1], folder=tmp_path)
    again = quick(factory, splits(), "magnitude", 0.5, [0, 1], folder=tmp_path)
    assert calls == [0, 1]
    pd.testing.assert_frame_equal(first, again)
    more = quick(factory, splits(), ["magnitude", "worst-group"], 0.5, [0, 1], folder=tmp_path)
    assert calls == [0, 1, 0, 1]
    notes = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert notes == [f"{kept} of {n} runs are kept in {tmp_path}" for kept, n in ((4, 4), (4, 6))]
    made, *runs = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG][-3:]
    assert made.startswith("made with python ") and f"torch {importlib.metadata.version('torch')}," in made
    assert all(run.startswith("criterion 'worst-group', pruning ratio 0.5") for run in runs)
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
    others: list[dict[str, Any]] = [
        {"n_boot": 11},
        {"iterative_steps": 2},
        {"fine_tuning": 1},
        {"ignored_layers": ["0"]},
    ]
    for options in (*others, {"latency_rounds": 6}, {"latency_batch_size": 3}):
        with pytest.raises(InputError, match="another"):
            quick(network(), splits(), "magnitude", 0.5, folder=tmp_path, **options)
    with pytest.raises(InputError, match="another network"):
        quick(network(1), splits(), "magnitude", 0.5, folder=tmp_path)
    with pytest.raises(InputError, match="test data"):
        quick(network(), splits(test=people(200, 9)), "worst-group", 0.5, folder=tmp_path)
    with pytest.raises(InputError, match="is a file"):
        quick(network(), splits(), "magnitude", 0.5, folder=tmp_path / "sweep.csv")


def test_a_folder_of_an_earlier_form_is_refused_as_such(tmp_path: Path) -> None:
    row, label = {"ratio": 0.0}, {"label": torch.zeros(3, dtype=torch.int32)}
    Resumption(tmp_path / "runs", {"data": "the data"}, "seed-0-dense-0-none-12345678").save(1, row, label)
    with pytest.raises(InputError, match=r"made by an earlier form of the sweep.*expected another folder"):
        quick(network(), splits(), "magnitude", 0.5, folder=tmp_path)


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


def test_files_of_runs_differ() -> None:
    labels = ["a b", "a-b", "a/b", "A" * 90, "A" * 91]
    files = {RunKey(0, label, 0.5, "none").file for label in labels}
    assert len(files) == len(labels) and all(set(file) & set("/ ") == set() for file in files)
