"""The check of a device runs, tiny, on the CPU and on a pretend device; what fails is told, and the rest goes on."""

from __future__ import annotations

import json
import math
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import gpu_check
from benchmarks.gpu import figures
from benchmarks.gpu.networks import SMALL
from benchmarks.gpu.reading import Operations, Row, counted_waits, kept_bytes
from torch import nn

from tests.pretend_accelerator import Accelerator, PretendAccelerator

CPU = torch.device("cpu")
SLOW = ["attention-flash", "attention-math", "operations", "refit", "saliency", "scoring"]


def _check(rows: list[Row]) -> None:
    assert rows and all(math.isfinite(row.value) and row.value >= 0 for row in rows)
    assert len({row.what for row in rows}) == len(rows)


@pytest.mark.parametrize("name", ["agreement", "products", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_figures_on_the_cpu(name: str) -> None:
    _check(figures.FIGURES[name][0](SMALL, CPU))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scoring", "saliency"])
def test_figures_on_a_device(name: str, accelerator: Accelerator) -> None:
    _check(figures.FIGURES[name][0](SMALL, accelerator.device))


def test_damages_agree(accelerator: Accelerator) -> None:
    """In single precision with those in float64."""
    for row in figures.agreement(SMALL, accelerator.device)[:2]:
        assert row.what.startswith("float32: ") and row.value < 1e-3


def test_operations_by_hand() -> None:
    layer, x = nn.Linear(3, 5, bias=False), torch.randn(7, 3)
    with Operations() as counter, kept_bytes(layer) as kept:
        layer(x).sum().backward()
        assert kept() == 4 * 7 * 3  # the weights are the network's
    forward, sizes = 2 * 7 * 3 * 5, (7 * 3, 3 * 5, 7 * 5)
    assert counter.counts[0] == 2 * forward  # and once more for the gradient of the weights
    assert counter.counts[1] >= 2 * 4 * sum(sizes)


def test_waits_are_what_torch_warns_of(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with counted_waits(torch.device("cuda")) as (device, counts):
        for _ in range(3):  # from one line
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        warnings.warn("Synchronization debug mode is a prototype feature", UserWarning, stacklevel=1)
        assert device.type == "cuda" and counts() == {"waits": 3}
    assert modes == ["warn", 0]


@pytest.mark.slow
def test_waits_are_counted_where_torch_can_pretend(pretend: PretendAccelerator) -> None:
    del pretend  # skips where there is none
    rows = figures.waits(SMALL, CPU)
    _check(rows)
    assert [row.what.rpartition(": ")[2] for row in rows] == ["waits", "waits beside", "copies", "copies beside"] * 2


def test_nothing_is_run_without_a_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "check.json"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--output", str(file)])
    gpu_check.main()
    assert "there is no cuda here" in capsys.readouterr().out and not file.exists()


def test_what_fails_is_told_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    told: dict[str, dict[str, Any]] = {
        "scoring": {"error": "OutOfMemoryError: 3 GiB\nmore", "traceback": "...", "seconds": 2.0},
        "waits": {"rows": [{"what": "w" * 60, "value": 8.75, "unit": "a batch", "target": 2.0}], "seconds": 1.5},
    }
    limits = []

    def boxed(name: str, sizes: Any, device: str, limit: float) -> dict[str, Any]:
        limits.append(limit)
        return told[name]

    file = tmp_path / "check.json"
    monkeypatch.setattr(gpu_check, "boxed", boxed)
    monkeypatch.setattr(gpu_check, "marked_tests", lambda limit: {"tests": 5, "skipped": 2, "failures": {"a::b": "no"}})
    command = ["gpu_check.py", "--device", "cpu", "--only", "tests", "scoring", "waits", "--output", str(file)]
    monkeypatch.setattr(sys, "argv", [*command, "--minutes", "1", "--batch", "3"])
    gpu_check.main()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[1].startswith("networks are tiny")
    assert lines[2] == "tests: 3 ran, 2 skipped, 1 failed" and lines[3].strip() == "a::b"
    assert "failed: OutOfMemoryError: 3 GiB" in lines[5] and "8.75 a batch (MISSED, at most 2)" in lines[-1]
    written = json.loads(file.read_text())
    assert written["figures"] == told and written["sizes"]["batch"] == 3
    assert all(0 < limit <= 60 for limit in limits) and len(limits) == 2


def test_figures_without_time_are_told() -> None:
    result = gpu_check.check(["tests", "scoring"], SMALL, "cpu", 0.0, None)
    assert result["tests"] == {"error": "no time was left"} == result["figures"]["scoring"]
    assert "failed: no time was left" in gpu_check.table_of(result)


def test_report_of_tests() -> None:
    text = """<testsuites><testsuite>
      <testcase classname="tests.a" name="one"/><testcase classname="tests.a" name="two"><skipped/></testcase>
      <testcase classname="tests.b" name="three"><failure message="short">all of it</failure></testcase>
      <testcase classname="tests.b" name="four"><error message="short"/></testcase>
    </testsuite></testsuites>"""
    failures = {"tests.b::three": "all of it", "tests.b::four": "short"}
    assert gpu_check.told_by(ElementTree.fromstring(text)) == {"tests": 4, "skipped": 1, "failures": failures}


@pytest.mark.slow
def test_each_figure_has_a_process_and_a_time_box() -> None:
    assert "not done after" in gpu_check.boxed("scoring", SMALL, "cpu", 0.01)["error"]
    assert "cuda" in gpu_check.boxed("agreement", SMALL, "cuda:99", 120)["error"].lower()
    assert gpu_check.boxed("products", SMALL, "cpu", 120)["rows"]
