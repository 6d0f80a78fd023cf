"""Every benchmark tells how it is run, and their shared table is what a calculation by hand gives."""

from __future__ import annotations

import argparse
import doctest
import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from benchmarks import tables
from benchmarks.tables import add_rows, differences, save_rows, with_intervals

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "sweep"))
def test_help(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"python -m benchmarks.{name}" in text  # the command, from the module's docstring
    assert "options:" in text


def _printed(
    name: str,
    rows: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *more: str,
) -> str:
    """What a benchmark prints if its runs give these rows."""
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(module, "run", lambda case, **options: rows(case))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *more])
    module.main()
    return capsys.readouterr().out


HALF = 4.3027 * 0.01 / math.sqrt(3)
"""Half-width of the interval of three figures that are 0.01 apart."""


def test_table_of_adult_pruning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.adult_pruning.load_adult", lambda: None)

    def rows(seed: int) -> list[dict[str, Any]]:
        cells = [("dense", 0), ("worst group, joint", 0), ("worst group, joint", 1)]
        shift = 0.01 * (seed - 1)
        return [
            {
                "pruning_ratio": 0.5,
                "seed": seed,
                "criterion": name,
                "epochs": epochs,
                "accuracy": 0.8 + epochs / 20 + shift,
            }
            for name, epochs in cells
        ]

    file = tmp_path / "rows.csv"
    text = _printed("adult_pruning", rows, monkeypatch, capsys, "--pruning-ratios", "0.5", "--rows", str(file))
    assert "50% of the channels removed, 3 seeds" in text
    lines = {line[:20].strip(): line[20:].split("  ") for line in text.splitlines()}
    assert [part.strip() for part in lines["dense"] if part.strip()] == [f"0.800 ± {HALF:.3f}"]
    assert [part.strip() for part in lines["worst group, joint"] if part.strip()] == [
        f"0.800 ± {HALF:.3f}",
        f"0.850 ± {HALF:.3f}",
    ]
    assert len(pd.read_csv(file)) == 9


def test_table_of_residual_cnn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def rows(seed: int) -> list[dict[str, Any]]:
        cells = [("none", "dense", "as trained", 0.9)]
        cells += [("25%, 1 step", "tp Taylor", kind, 0.5) for kind in ("as trained", "recalibrated")]
        return [
            {"seed": seed, "pruning": a, "criterion": b, "BatchNorm": c, "all": d + 0.01 * (seed - 1), "minority": d}
            for a, b, c, d in cells
        ]

    text = _printed("residual_cnn", rows, monkeypatch, capsys)
    assert text.count(f"0.500 ± {HALF:.3f}") == 2 and text.count("0.500 ± 0.000") == 2
    assert text.count("0.900 ±") == 2 and "nan" not in text.lower()


def test_tables_of_mining_cuts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def rows(case: tuple[str, str, float, float, int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        key = dict(zip(("bias", "network", "share", "wrong labels", "seed"), case, strict=True))
        figure = key["share"] + 0.5 * (key["wrong labels"] > 0)
        miners = [{**key, "miner": name, "AP": figure} for name in ("loss", "AC")]
        return miners, [{**key, "cut": "halfway", "F1": figure, "precision": 1.0, "recall": 10 * figure}]

    text = _printed("mining_cuts", rows, monkeypatch, capsys, "--bias", "colour", "--network", "perceptron")
    assert "0.02         0.02   0.52  0.52" in text  # with wrong labels
    (line,) = (line for line in text.splitlines() if line.startswith("halfway"))
    assert line.split() == ["halfway", "0.01", "0.03", "1.00", "to", "1.00", "0.10", "to", "0.50"]


def test_marks_of_mining_cuts_follow_the_class() -> None:
    """In each class the share that conflicts, and wrong labels only beside it."""
    module = importlib.import_module("benchmarks.mining_cuts")
    labels = torch.arange(230) % 10
    found = module.biased(torch.rand(230, 1, 8, 7), labels, "stripes", 0.09, 0.05, seed=3)
    assert found.images.shape == (230, 3, 8, 7)
    assert int(found.mislabelled.sum()) == 12 and not bool((found.mislabelled & found.conflicting).any())
    clean = found.labels[~found.mislabelled]
    assert torch.bincount(clean, minlength=10).sum() == 218
    assert torch.bincount(found.labels[found.conflicting]).tolist() == [2] * 10


def test_tables_of_colored_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows(case: tuple[float, int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        share, seed = case
        label, shift = {"share": share, "seed": seed}, 0.01 * (seed - 1)
        miners = [{**label, "miner": m, "AUROC": 0.9 + shift, "epochs": 5, "time": math.nan} for m in ("x", "y")]
        return miners, [{**label, "way": "dense", "removed": 0.0, "unbiased": share * 10 + shift}]

    file = tmp_path / "rows.csv"
    text = _printed("colored_digits", rows, monkeypatch, capsys, "--pruning-ratio", "--rows", str(file))
    assert text.count(f"0.900 ± {HALF:.3f}") == 4 and "nan" not in text.lower()
    assert f"10.0 ± {100 * HALF:.1f}" in text and f"50.0 ± {100 * HALF:.1f}" in text
    assert len(pd.read_csv(file)) == 2 * 3 * 3


def test_tables_of_pairs_against_erasure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows(case: tuple[str, int]) -> list[dict[str, Any]]:
        work, seed = case
        label = {"work": work, "seed": seed, "flips": {"married": 0.2, "digits": 0.5}[work] + 0.01 * (seed - 1)}
        figures = {"change of p": 0.1, "cross-entropy": 0.3, "balanced acc": 0.7}
        return [{**label, "method": name, **figures, "CPU s": second} for name, second in (("given", None), ("x", 2.5))]

    file = tmp_path / "rows.csv"
    text = _printed("pairs_against_erasure", rows, monkeypatch, capsys, "--rows", str(file))
    assert text.count(f"0.200 ± {HALF:.3f}") == 2 and text.count(f"0.500 ± {HALF:.3f}") == 2
    assert text.count("2.5 ± 0.0") == 2 and "nan" not in text.lower()
    assert max(map(len, text.splitlines())) <= 100
    assert len(pd.read_csv(file)) == 2 * 3 * 2
    text = _printed("pairs_against_erasure", rows, monkeypatch, capsys, "--work", "digits", "--seeds", "1")
    assert "digits, 200 pairs" in text and "married" not in text


@pytest.mark.slow
def test_ways_of_colored_digits_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are asked for, by parts of their names, in one epoch each; no way fails on what a library refuses."""
    module = importlib.import_module("benchmarks.colored_digits")
    for name in ("ERM_EPOCHS", "EPOCHS"):
        monkeypatch.setattr(module, name, 1)
    miners, ways = module.run((0.05, 0), "digits", [0.5], ["dense", "magnitude", "LfF"])
    assert all(row["miner"].endswith(("0.5", "0.6", "0.8")) for row in miners)
    names = [row["way"] for row in ways]
    assert len(set(names)) == len(names) == 10 and not any("DENP" in name for name in names)
    assert all(0 <= row["worst group"] <= row["unbiased"] <= 1 for row in ways)


def test_example_in_the_docstring() -> None:
    found = doctest.testmod(tables, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 1 and found.failed == 0


def test_intervals_by_hand() -> None:
    """Three, two, one and no figures; t of 2 and 1 degrees of freedom from a printed table."""
    frame = pd.DataFrame(
        {
            "way": ["x", "y", "x", "y", "x", "z"],
            "accuracy": [0.1, 0.5, 0.4, 0.7, 0.7, 0.2],
            "seconds": [4.0, None, 4.0, 8.0, 4.0, None],
        }
    )
    table = with_intervals(frame, "way", decimals={"seconds": 1})
    assert list(table.index) == ["x", "y", "z"]
    three = 4.3027 * math.sqrt(((0.1 - 0.4) ** 2 + 0 + (0.7 - 0.4) ** 2) / 2) / math.sqrt(3)
    two = 12.7062 * math.sqrt((0.5 - 0.6) ** 2 + (0.7 - 0.6) ** 2) / math.sqrt(2)
    assert table["accuracy"].tolist() == [f"0.400 ± {three:.3f}", f"0.600 ± {two:.3f}", "0.200"]
    assert table["seconds"].tolist() == ["4.0 ± 0.0", "8.0", ""]
    narrower = with_intervals(frame, "way", decimals=2, level=0.9)
    assert narrower.loc["x", "accuracy"] == f"0.40 ± {2.9200 * 0.3 / math.sqrt(3):.2f}"


def test_cells_of_two_columns_keep_their_order() -> None:
    frame = pd.DataFrame(
        {"ratio": ["50%", "25%"] * 2, "way": ["b", "a", "b", "a"], "loss": [1.0, 2.0, 1.5, 2.0]},
    )
    table = with_intervals(frame, ["ratio", "way"], decimals=2)
    assert table.index.tolist() == [("50%", "b"), ("25%", "a")]
    assert table["loss"].tolist() == [f"1.25 ± {12.7062 * 0.25:.2f}", "2.00 ± 0.00"]


def _seeds() -> pd.DataFrame:
    """Three seeds that differ by much, two methods that differ by 0.01, 0.02 and 0.03; another place first."""
    plain = [{"seed": s, "ratio": "25%", "way": w, "loss": 9.0, "note": "n"} for s in range(3) for w in "xy"]
    losses = {"x": [0.1, 0.5, 0.9], "y": [0.11, 0.52, 0.93]}
    cells = [(s, w) for w in losses for s in (2, 0, 1)]
    rows = [{"seed": s, "ratio": "50%", "way": w, "loss": losses[w][s], "note": "n"} for s, w in cells]
    return pd.DataFrame(plain + rows)


def test_differences_within_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.csv"
    other = pd.DataFrame({"seed": [0, 0], "ratio": "50%", "miner": ["m", "n"], "AP": [0.1, 0.2]})
    save_rows(pd.concat([_seeds(), other]), file)
    command = ["tables.py", str(file), "--by", "way", "--where", "ratio=50%", "--minus", "x"]
    monkeypatch.setattr(sys, "argv", command)
    tables.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split(maxsplit=1) == ["y", f"0.020 ± {4.3027 * 0.01 / math.sqrt(3):.3f}"]
    assert not any(line.startswith("x") for line in lines)


def test_differences_refuse() -> None:
    frame = _seeds().drop(columns=["ratio", "note"])
    with pytest.raises(SystemExit, match="several rows of the same seed and way"):
        differences(frame, "way", "x")
    with pytest.raises(SystemExit, match=r"no way 'z', expected one of \['x', 'y'\]"):
        differences(frame, "way", "z")


def test_rows_are_written_where_asked(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_rows(parser)
    frame = pd.DataFrame({"seed": [0, 1, 2], "accuracy": [0.1, 0.2, 1 / 3]})
    save_rows(frame, parser.parse_args([]).rows)
    assert not list(tmp_path.iterdir())
    file = tmp_path / "rows.csv"
    save_rows(frame, parser.parse_args(["--rows", str(file)]).rows)
    pd.testing.assert_frame_equal(pd.read_csv(file), frame)
