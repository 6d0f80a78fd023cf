"""Budgets from the command line: what is written is what the library gives."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fairtrim import load_pruned
from fairtrim_adapters.command_line import main
from fairtrim_adapters.torch_pruning import prune_to, smallest
from tests import sweep_cases

pytest.importorskip("typer", reason="needs the extra cli")

network: Any = sweep_cases.network
splits: Any = sweep_cases.splits
WORK = ["--model", "work:net", "--data", "work:people", "-o", "p.st", "-q", "--bootstrap", "0"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    monkeypatch.delitem(sys.modules, "work", raising=False)
    (tmp_path / "work.py").write_text(
        "from tests.sweep_cases import network, splits\n"
        "net = network\n"
        "def people():\n    return splits()\n"
        "def pairs():\n    return {'test': splits().test, 'scoring': splits().scoring}\n"
    )
    return tmp_path


def test_prune_to_a_budget_writes_what_the_library_prunes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", *WORK, "--macs", "0.5"]) == 0
    text, data = capsys.readouterr().out, splits()
    expected = prune_to(
        network(),
        data.scoring,
        torch.ones(1, 6),
        macs=0.5,
        held_out=data.validation,
        sensitive_names=data.sensitive_names,
        progress=False,
    )
    assert str(expected) in text and "Measured on the validation people" in text and "network: p.st" in text
    written = load_pruned("p.st", network())
    for mine, theirs in zip(written.state_dict().values(), expected.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_budget_that_cannot_be_met_exits_with_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", *WORK, "--macs", "0.001"]) == 1
    text = capsys.readouterr().out
    assert "not the 0.1 % asked for" in text and "network: p.st" in text
    assert text.index("Measured on the validation people") < text.index("On the test people:")


def test_smallest_writes_what_the_library_finds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--max-drop", "accuracy=0.06", "--max-drop", "recall=0.2", "--by", "parameters"]
    assert main(["smallest", *WORK, *options, "--criterion", "magnitude", "--no-reconstruct"]) == 0
    text, data = capsys.readouterr().out, splits()
    import torch_pruning as tp

    expected = smallest(
        network(),
        data.scoring,
        torch.ones(1, 6),
        held_out=data.validation,
        max_drop={"accuracy": 0.06, "recall": 0.2},
        by="parameters",
        importance=tp.importance.GroupMagnitudeImportance(),
        reconstruct=False,
        sensitive_names=data.sensitive_names,
        progress=False,
    )
    assert str(expected) in text
    assert load_pruned("p.st", network())[0].out_features == expected.model[0].out_features


def test_the_test_people_judge_where_nobody_else_does(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = [*WORK[:3], "work:pairs", *WORK[4:]]
    assert main(["prune", *work, "--parameters", "0.4", "--criterion", "mean-damage", "--iterative-steps", "2"]) == 0
    assert "Measured on the test people, for there is no validation split" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "--macs", "0.5", "--parameters", "0.5"], "exactly one"),
        (["prune", "--macs", "0.5", "--pruning-ratio", "0.5"], "--pruning-ratio has no place beside --macs"),
        (["prune", "--macs", "0.5", "--fine-tuning", "1"], "--fine-tuning has no place"),
        (["prune", "--macs", "1.5"], "macs"),
        (["smallest", "--max-drop", "accuracy"], "expected metric=number"),
        (["smallest", "--max-drop", "accuracy[Female]=0.1"], "names a group"),
        (["smallest", "--by", "channels"], "by"),
    ],
)
def test_mistakes_end_in_one_line(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *options = arguments
    assert main([command, *WORK, *options]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and said.count("\n") == 0 and not Path("p.st").exists()
