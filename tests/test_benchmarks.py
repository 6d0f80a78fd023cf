"""Every benchmark tells how it is run, and their shared table is what a calculation by hand gives."""

from __future__ import annotations

import argparse
import doctest
import importlib
import math
import sys
from pathlib import Path

import pandas as pd
import pytest
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
    save_rows(_seeds(), file)
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
