"""The examples run as a user runs them, and show what the README says they show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _run(name: str, *arguments: str, cwd: Path) -> str:
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / name), *arguments]
    finished = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


@pytest.mark.slow
def test_prune_adult(tmp_path: Path) -> None:
    text = _run("prune_adult.py", "--epochs", "6", cwd=tmp_path)
    assert (tmp_path / "prune_adult.png").stat().st_size > 10_000
    assert text.startswith("At 50 % of the channels, against 'dense'")
    assert len(text.splitlines()) <= 40 and max(map(len, text.splitlines())) < 100
    rows = re.findall(r"^(\w[\w, ]*?) +(0\.\d+) \[.+\] +(0\.\d+) \[.+\] +(0\.\d+) \[.+\]$", text, re.M)
    accuracy = {name: (float(everybody), float(male)) for name, everybody, _, male in rows}
    names = {"dense", "magnitude", "Taylor", "mean damage", "group saliency", "worst group"}
    assert set(accuracy) == names | {"magnitude, refitted", "compensated, refitted"}
    assert 0.83 < accuracy["dense"][0] < 0.88
    for name in ("worst group", "compensated, refitted"):
        assert accuracy[name][0] > accuracy["dense"][0] - 0.02
    for k in range(2):
        assert accuracy["magnitude, refitted"][k] > accuracy["magnitude"][k]


@pytest.mark.slow
def test_existing_script(tmp_path: Path) -> None:
    text = _run("existing_script.py", cwd=tmp_path)
    assert text.count("skipped by Torch-Pruning: none") == 3
    assert float(text.rsplit(":", 1)[1]) == 0


@pytest.mark.slow
def test_colored_digits(tmp_path: Path) -> None:
    text = _run("colored_digits.py", "--share", "0.05", "--pruning-ratio", "0.5", cwd=tmp_path)
    assert (tmp_path / "colored_digits.png").stat().st_size > 10_000
    rows = re.findall(r"^ *(?:0\.\d+ +)*(\D[\w, ]+?) +(0\.\d+) +0\.\d+ +0\.\d+$", text, re.M)
    unbiased = {name.strip(): float(value) for name, value in rows}
    assert {"ERM", "ERM, mined", "magnitude", "Taylor, mined", "DENP", "DCWP", "DENP, true conflicts"} <= set(unbiased)
    assert 0.3 < unbiased["ERM"] < 0.9
    assert unbiased["DENP, true conflicts"] > unbiased["magnitude"]


@pytest.mark.slow
def test_repair_adult(tmp_path: Path) -> None:
    text = _run("repair_adult.py", "--epochs", "6", cwd=tmp_path)
    assert (tmp_path / "repair_adult.png").stat().st_size > 10_000
    table = text[text.index("test people") :]
    rows = re.findall(r"^(\D+?) +(0\.\d+) +(0\.\d+) +0\.\d+ +0\.\d+ +0\.\d+ +0\.\d+$", table, re.M)
    figures = {name: (float(accuracy), float(gap)) for name, accuracy, gap in rows}
    assert {"threshold alone", "parity, output layer", "ThresholdOptimizer (sees the sex)"} <= set(figures)
    assert figures["best threshold"][1] > 0.2  # there is something to repair
    for name in ("parity, output layer", "parity, all layers"):
        assert figures[name][1] < 0.1
        assert figures[name][0] > figures["threshold alone"][0] + 0.1


@pytest.mark.slow
def test_aif360_german(tmp_path: Path) -> None:
    text = _run("aif360_german.py", cwd=tmp_path)
    assert (tmp_path / "aif360_german.png").stat().st_size > 10_000
    rows = re.findall(r"^([a-z][\D]+?) +(0\.\d+) +([-+]0\.\d+)", text, re.M)
    figures = {name.strip(): (float(accuracy), abs(float(gap))) for name, accuracy, gap in rows}
    assert len(figures) > 8
    assert all(0.4 < accuracy < 0.9 and gap < 0.7 for accuracy, gap in figures.values())


@pytest.mark.slow
def test_help_and_wrong_argument() -> None:
    assert "--pruning-ratio" in _run("prune_adult.py", "--help", cwd=ROOT)
    script = str(ROOT / "examples" / "prune_adult.py")
    finished = subprocess.run(
        [sys.executable, script, "--pruning-ratio", "2"], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 2 and "expected a share between 0 and 1" in finished.stderr


@pytest.mark.slow
def test_sweep_adult(tmp_path: Path) -> None:
    arguments = ["--seeds", "1", "--pruning-ratio", "0.65"]
    text = _run("sweep_adult.py", *arguments, cwd=tmp_path)
    made = {path.name for path in (tmp_path / "sweep_adult").iterdir()}
    assert {"pareto.png", "groups.png", "report.html", "report.md", "report.json", "sweep.csv"} <= made
    rows = re.findall(r"^ *\*? +(\D+?) +(0\.\d+) +(\S.*?) +([01]\.\d+) +(0\.\d+) ", text, re.M)
    accuracy = {(criterion, repair): float(value) for criterion, _, repair, _, value in rows}
    assert 0.84 < accuracy["dense", "none"] < 0.87
    assert accuracy["worst group", "none"] > accuracy["magnitude", "none"]
    assert accuracy["worst group", "parity fine-tuning"] > accuracy["dense", "none"] - 0.02
    assert _run("sweep_adult.py", *arguments, cwd=tmp_path) == text  # taken up again, with nothing left to do


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/compare.md"])
def test_command_lines(page: str, tmp_path: Path) -> None:
    """The commands of a page run in their order, word for word, and the gate opens."""
    if not (command := Path(sys.executable).with_name("fairtrim")).exists():
        pytest.skip("fairtrim is not installed, only on the path")
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```sh\n(.*?)```", text, re.S) if block.startswith("fairtrim ")]
    assert blocks
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "people.py").write_text(re.findall(r"```python\n(.*?)```", text, re.S)[0])
    environment = {**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
    script = "set -e\n" + "\n".join(blocks)
    finished = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "ok " in finished.stdout and (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_refit_any_script(tmp_path: Path) -> None:
    text = _run("refit_any_script.py", cwd=tmp_path)
    assert (tmp_path / "refit_any_script.png").stat().st_size > 10_000
    assert max(map(len, text.splitlines())) < 100
    rows = re.findall(r"(?:other|White) +(0\.\d+) +(0\.\d+) +(0\.\d+) +(0\.\d+)$", text, re.M)
    assert len(rows) == 4
    for dense, pruned, refitted, chosen in (map(float, row) for row in rows):
        assert pruned < dense - 0.05
        assert min(refitted, chosen) > dense - 0.05
