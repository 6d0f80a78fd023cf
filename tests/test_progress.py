"""Progress bars: seen where somebody looks, one line each, and nothing left behind."""

import io
import re
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import fairtrim.progress
from fairtrim import InputError, predict
from fairtrim.progress import progress_bar, say_beside_bars

BATCH = (torch.eye(2), torch.tensor([0, 1]), ["a", "b"])


class Terminal(io.StringIO):
    """A terminal of which one sees what was written."""

    def isatty(self) -> bool:
        return True

    def left(self) -> list[str]:
        """Lines on the screen in the end: carriage returns, and the moves up of nested bars."""
        lines, row, column = [""], 0, 0
        for part in re.split(r"(\r|\n|\x1b\[A)", self.getvalue()):
            if part == "\r":
                column = 0
            elif part == "\n":
                row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            elif part == "\x1b[A":
                row -= 1
            else:
                line = lines[row].ljust(column)
                lines[row] = line[:column] + part + line[column + len(part) :]
                column += len(part)
        return [line.strip() for line in lines if line.strip()]


def terminal_in(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """In place of the standard error; no fixture, for pytest puts its own one there between a fixture and its test."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def test_quiet_beside_a_log_and_where_it_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    predict(nn.Identity(), [BATCH])
    assert capsys.readouterr() == ("", "")


def test_quick_work_shows_none_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_in(monkeypatch)
    predict(nn.Identity(), [BATCH])
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("shown", [True, False])
def test_long_work_shows_one(monkeypatch: pytest.MonkeyPatch, shown: bool) -> None:
    terminal = terminal_in(monkeypatch)
    monkeypatch.setattr(fairtrim.progress, "_DELAY", 0.01)
    bar = progress_bar(range(5), description="slow", shown=shown, mininterval=0)
    for _ in bar:
        time.sleep(0.005)
    assert ("slow" in terminal.getvalue()) is shown
    assert terminal.left() == []


def test_nested_bars_leave_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_in(monkeypatch)
    monkeypatch.setenv("FAIRTRIM_PROGRESS", "always")
    for _ in progress_bar(range(2), description="outer", mininterval=0):
        for _ in progress_bar(range(2), description="inner", mininterval=0):
            with progress_bar(description="innermost", total=2, mininterval=0) as bar:
                bar.update()
    assert all(word in terminal.getvalue() for word in ("outer", "inner", "innermost"))
    assert terminal.left() == []


@pytest.mark.parametrize(("told", "seen"), [("always", True), ("never", False)])
def test_told_by_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, told: str, seen: bool
) -> None:
    monkeypatch.setenv("FAIRTRIM_PROGRESS", told)
    monkeypatch.setattr(fairtrim.progress, "_is_looked_at", lambda: True)
    predict(nn.Identity(), [BATCH])
    assert ("predicting" in capsys.readouterr().err) is seen
    predict(nn.Identity(), [BATCH], progress=False)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FAIRTRIM_PROGRESS", "yes")
    with pytest.raises(InputError, match="FAIRTRIM_PROGRESS='yes' in the environment; expected always or never"):
        predict(nn.Identity(), [BATCH])


@pytest.mark.parametrize(("config", "shown"), [({"IPKernelApp": {}}, True), ({}, False)])
def test_in_a_notebook(monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], shown: bool) -> None:
    """Where nothing is a terminal; a kernel is told by its configuration, IPython in a pipe isn't one."""
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(config=config)))
    assert fairtrim.progress._is_looked_at() is shown


def test_without_a_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under pythonw."""
    monkeypatch.setattr(sys, "stderr", None)
    assert list(progress_bar(range(2), description="none")) == [0, 1]


def test_said_beside_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_in(monkeypatch)
    monkeypatch.setenv("FAIRTRIM_PROGRESS", "always")
    for _ in progress_bar(range(2), description="open", mininterval=0):
        say_beside_bars("about 3 minutes")
    assert terminal.left() == ["about 3 minutes", "about 3 minutes"]
