"""The command line: what it writes is what the library gives, gates open and shut, and mistakes end in one line."""

from __future__ import annotations

import builtins
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import nn

from fairtrim import ParityFineTuning, load_pruned, predict, save_pruned
from fairtrim_adapters.command_line import main
from fairtrim_adapters.command_line.examples import EXAMPLES
from fairtrim_adapters.fairlearn import measurements
from fairtrim_adapters.sweep import prune_copy, read_sweep
from fairtrim_adapters.torch_pruning import MeanDamageImportance
from tests.sweep_cases import announced, network, splits

WORK = ["--model", "work:net", "--data", "work:people"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    monkeypatch.delitem(sys.modules, "work", raising=False)
    (tmp_path / "work.py").write_text(
        "from tests.sweep_cases import network, splits\n"
        "net = network\n"
        "def people():\n    return splits(name='made-up people')\n"
        "def pairs():\n    return {'test': splits().test}\n"
        "def train(model, seed):\n    model[-1].bias.data += seed\n"
        "def options(model):\n    return {'ignored_layers': [model[0]]}\n"
        "def fails():\n    raise KeyError('no such column')\n"
        "def stops():\n    raise SystemExit('the data come with a dependency')\n"
        "number = 3\n"
    )
    return tmp_path


def run(*arguments: str) -> int:
    return main([*arguments])


def test_prune_writes_what_the_library_prunes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prune", *WORK, "-o", "pruned.safetensors", "--pruning-ratio", "0.5", "-q", "--bootstrap", "5") == 0
    text = capsys.readouterr().out
    expected = prune_copy(network(), MeanDamageImportance(compensated=True), splits(), 0.5, progress=False)
    pruned = load_pruned("pruned.safetensors", network(4))
    for mine, theirs in zip(pruned.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert "Removed 11 of 22 channels" in text and "Change of the mean loss: predicted" in text
    predictions = predict({"dense": network(), "pruned": expected}, splits().test, sensitive_names={"sex": ["F", "M"]})
    assert f"{measurements(predictions, 'pruned', 'dense', n_boot=None)['accuracy']:.3f}" in text


def test_notes_of_the_library(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the standard error, as many as asked for; the logger is as before."""
    logger = logging.getLogger("fairtrim")
    before = (logger.level, list(logger.handlers))
    options = ["--folder", "s", "--criterion", "magnitude", "--pruning-ratio", "0.5", "--bootstrap", "5"]
    command = ["sweep", *WORK, *options, "--latency-rounds", "0"]
    shown = {}
    for flag in ("-q", "", "--verbose", "-v"):
        assert run(*command, *[flag] * bool(flag)) == 0
        shown[flag] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fairtrim.")]
        assert (logger.level, logger.handlers) == before
    kept = "fairtrim.sweep: 2 of 2 runs are kept in s"
    assert (shown["-q"], shown[""]) == ([], [kept])
    assert shown["-v"] == shown["--verbose"] and shown["-v"][0] == kept
    assert shown["-v"][1].startswith("fairtrim.sweep: made with python ")


def test_prune_with_and_without_a_refit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By default there is one; the output layer may be fitted to labels at last."""
    ways: dict[str, dict[str, Any]] = {
        "--no-reconstruct": {"reconstruct": False},
        "--reconstruct": {"reconstruct": True},
        "--recalibrate-output=output": {"recalibrate_output": "output"},
    }
    for option, settings in ways.items():
        asked = ["--criterion", "magnitude", "--pruning-ratio", "0.5", option]
        assert run("prune", *WORK, *asked, "-o", "pruned.st", "-q", "--bootstrap", "0") == 0
        magnitude = tp.importance.GroupMagnitudeImportance()
        expected = prune_copy(network(), magnitude, splits(), 0.5, progress=False, **settings)
        for mine, theirs in zip(load_pruned("pruned.st", network()).parameters(), expected.parameters(), strict=True):
            assert torch.equal(mine, theirs)
    capsys.readouterr()
    assert run("prune", *WORK, "--recalibrate-output", "bias", "-o", "p.st") == 2
    assert "--recalibrate-output 'bias'; expected output or threshold" in capsys.readouterr().err


def test_prune_with_everything(folder: Path) -> None:
    options = [
        "--criterion",
        "taylor",
        "--iterative-steps",
        "2",
        "--fine-tuning",
        "1",
        "--global",
        "--pruner-options",
        "work:options",
    ]
    assert run("prune", *WORK, *options, "-o", "p.st", "--onnx", "p.onnx", "-q", "--bootstrap", "0") == 0
    pruned = load_pruned("p.st", network())
    assert isinstance(pruned[0], nn.Linear) and pruned[0].out_features == 12
    from fairtrim_adapters.onnx_export import onnx_outputs

    x = torch.randn(3, 6)
    found = next(iter(onnx_outputs("p.onnx", x).values()))
    torch.testing.assert_close(torch.from_numpy(found), pruned.eval()(x), rtol=1e-4, atol=1e-4)
    assert run("prune", *WORK, "--checkpoint", "p.st", "--criterion", "magnitude", "-o", "again.st", "-q") == 0
    assert load_pruned("again.st", network())[3].out_features < pruned[3].out_features  # type: ignore[union-attr]


def test_repair_writes_what_the_library_repairs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "parity-fine-tuning:epsilon=0.2"
    assert run("repair", *WORK, "--post-processor", text, "-o", "repaired.st", "-q", "--seed", "1") == 0
    data = splits()
    expected = ParityFineTuning(epsilon=0.2, random_state=1).repair(
        network(1), data.validation, sensitive_names=data.sensitive_names, progress=False
    )
    repaired = load_pruned("repaired.st", network())
    for mine, theirs in zip(repaired.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert "selected on" in capsys.readouterr().out


def test_a_repair_that_misses_its_bound_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tight = "random-perturbation:trials=1,measure=equalized_odds_difference,epsilon=0.0101,confidence=null"
    command = ["repair", *WORK, "--post-processor", tight, "-o", "r.st", "-q"]
    assert run(*command, "--bootstrap", "0") == 0
    assert "repaired: bound not met" in capsys.readouterr().out
    assert run(*command, "--bootstrap", "0", "--require-bound") == 1
    loose = ["--post-processor", "threshold-selection:epsilon=0.9", "-o", "r.st", "-q", "--require-bound"]
    assert run("repair", *WORK, *loose) == 0


def test_a_table_says_what_else_is_in_the_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "sweep",
        *WORK,
        "--folder",
        "s",
        "--pruning-ratio",
        "0.5",
        "--latency-rounds",
        "0",
        "--bootstrap",
        "0",
        "-q",
    ]
    assert run(*command, "--criterion", "magnitude") == 0
    assert "not in this table" not in capsys.readouterr().out
    assert run(*command, "--criterion", "random") == 0
    assert "1 runs in s are not in this table" in capsys.readouterr().out


def test_audit_and_the_gate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The gate opens for the network itself and shuts for one that gives everybody the same label."""
    constant = network()
    with torch.no_grad():
        constant[-1].bias.copy_(torch.tensor([50.0, 0.0]))
    save_pruned("constant.st", constant)
    save_pruned("same.st", network())
    assert (
        run("audit", *WORK, "--checkpoint", "same.st", "--checkpoint", "bad=constant.st", "--json", "a.json", "-q") == 0
    )
    text = capsys.readouterr().out
    assert "constant classifier" in text and "Female" in text
    content = json.loads(Path("a.json").read_text())
    assert list(content["networks"]) == ["dense", "same", "bad"] and content["data"] == "made-up people"
    bounds = ["--max-drop", "accuracy=0.01", "--max", "equalized_odds_difference=0.9", "--min", "accuracy[Female]=0.7"]
    for checkpoint, code, failed in (
        ("same.st", 0, []),
        ("constant.st", 1, ["drop of accuracy", "accuracy[Female]", "constant classifier"]),
    ):
        assert run("check", *WORK, "--checkpoint", checkpoint, *bounds, "-q") == code
        printed = capsys.readouterr().out.splitlines()
        lines = [line for line in printed if not line.startswith("flag ")]
        assert any("levelling down" in line for line in printed) is bool(failed)
        assert [line for line in lines if line.startswith("FAILED")] == (lines if failed else [])
        assert len(lines) == (len(failed) or 3)
        assert all(any(name in line for line in lines) for name in failed)
    assert run("check", "--audit", "a.json", *bounds) == 1
    assert run("check", "--audit", "a.json", "--network", "same", *bounds) == 0
    assert run("check", "--audit", "a.json", "--network", "same", "--min", "accuracy=0.7", "--confident") == 0
    row = content["networks"]["same"]
    between = (row["accuracy"] + row["accuracy_low"]) / 2
    assert run("check", "--audit", "a.json", "--network", "same", "--min", f"accuracy={between}") == 0
    assert run("check", "--audit", "a.json", "--network", "same", "--min", f"accuracy={between}", "--confident") == 1
    assert run("check", *WORK, "--min", "accuracy=0.99", "-q") == 1


def test_sweep_and_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--folder",
        "s",
        "--criterion",
        "magnitude",
        "--criterion",
        "worst-group:selection=single",
        "--pruning-ratio",
        "0.5",
    ]
    more = ["--seeds", "2", "--train", "work:train", "--post-processor", "threshold-selection", "--bootstrap", "5"]
    command = ["sweep", *WORK, *options, *more, "--latency-rounds", "0", "-q", "--objective", "accuracy=max"]
    assert run(*command) == 0
    table, facts = read_sweep("s")
    assert len(table) == 2 * 3 * 2 and list(facts["criteria"]) == ["magnitude", "worst-group:selection=single"]
    shown = capsys.readouterr().out
    assert "*" in shown and "2 seeds" in shown
    assert run("report", "--sweep", "s", "-o", "r.html", "-o", "r.md", "-o", "r.json") == 0
    assert run("report", *WORK, "-o", "n.html", "--title", "Made up", "--bootstrap", "5", "-q") == 0
    assert "Made up" in Path("n.html").read_text() and "<html" in Path("r.html").read_text()
    json.loads(Path("r.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "--model", "wrk:net", "--data", "work:people", "-o", "x"], "no module 'wrk'.*did you mean work"),
        (["prune", "--model", "nowhere/work.py:net", "--data", "work:people", "-o", "x"], "no file nowhere/work.py"),
        (["prune", "--model", "work:nett", "--data", "work:people", "-o", "x"], "did you mean work:net"),
        (["prune", "--model", "work", "--data", "work:people", "-o", "x"], "expected module:function"),
        (["prune", "--model", "work:people", "--data", "work:people", "-o", "x"], "expected a torch.nn.Module"),
        (["prune", "--model", "work:fails", "--data", "work:people", "-o", "x"], "raised KeyError: 'no such column'"),
        (["prune", "--model", "work:net", "--data", "work:stops", "-o", "x"], "the data come with a dependency"),
        (["prune", "--model", "work:net", "--data", "work:number", "-o", "x"], "the data are a int"),
        (["prune", *WORK, "-o", "no/x"], "folder no doesn't exist"),
        (["prune", *WORK, "-o", "x", "--onnx", "no/x"], "folder no doesn't exist"),
        (["prune", *WORK, "-o", "x", "--criterion", "worst_group"], "did you mean 'worst-group'"),
        (["prune", *WORK, "-o", "x", "--criterion", "group-saliency"], "group-saliency:privileged="),
        (["prune", *WORK, "-o", "x", "--pruning-ratio", "1.5"], "a share of the channels"),
        (["prune", "--model", "work:net", "--data", "work:pairs", "-o", "x"], "needs the split 'scoring'"),
        (["prune", *WORK, "-o", "x", "--pruner-options", "work:number"], "expected a function of the network"),
        (["repair", "--model", "work:net", "--data", "work:pairs", "-o", "x"], "needs the split 'validation'"),
        (["repair", *WORK, "-o", "x", "--post-processor", "parity"], "is unknown"),
        (
            ["repair", *WORK, "-o", "x", "--post-processor", "parity-fine-tuning:epsilon=low"],
            "expected a finite number",
        ),
        (["prune", *WORK, "-o", "."], "is a folder; expected the name of a file"),
        (["prune", *WORK, "-o", "x", "--onnx", "./x"], "is the file of --output"),
        (["repair", *WORK, "-o", "x", "--onnx", "."], "is a folder; expected the name of a file"),
        (["audit", *WORK, "--json", "."], "is a folder; expected the name of a file"),
        (["audit", *WORK, "--checkpoint", "none.st"], "none.st doesn't exist"),
        (["audit", *WORK, "--checkpoint", "dense=none.st"], "is taken"),
        (["audit", *WORK, "--json", "no/a.json"], "folder no doesn't exist"),
        (["check", *WORK], "no bound to check"),
        (["check", "--max", "accuracy=1"], "nothing to check"),
        (["check", *WORK, "--max", "accuracy"], "expected metric=number"),
        (["check", *WORK, "--max", "acuracy=1", "-q"], "did you mean 'accuracy'"),
        (["check", *WORK, "--max-drop", "accuracy=1", "-q"], "expected --checkpoint"),
        (["check", *WORK, "--max", "accuracy=1", "--network", "other", "-q"], "expected one of .'dense'."),
        (["check", "--audit", "none.json", "--max", "accuracy=1"], "no such file"),
        (["check", "--audit", "work.py", "--max", "accuracy=1"], "is no JSON"),
        (["check", "--audit", "a.json", *WORK, "--max", "accuracy=1"], "stands alone"),
        (["check", *WORK, "--max", "accuracy=1", "--confident", "--bootstrap", "0", "-q"], "no interval"),
        (["sweep", *WORK, "--folder", "s", "--objective", "accuracy"], "column=max or column=min"),
        (["report", "-o", "r.pdf", *WORK], "ends in .html, .md or .json"),
        (["report", "-o", "r.html"], "nothing to report on"),
        (["report", "-o", "r.html", "--sweep", "none"], "holds no finished sweep"),
        (["report", "-o", "r.html", "--sweep", "s", *WORK], "stands alone"),
    ],
)
def test_mistakes_end_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = sorted(folder.rglob("*"))
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("fairtrim: ")
    assert re.search(message, line), line
    assert [path for path in sorted(folder.rglob("*")) if "__pycache__" not in str(path)] == before


def test_a_script_that_ends_python_doesnt_open_the_gate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("leaves.py").write_text("import sys\nsys.exit(0)\n")
    assert run("check", "--model", "leaves.py:net", "--data", "work:people", "--max", "accuracy=2") == 2
    assert "importing leaves stopped: 0" in capsys.readouterr().err
    Path("late.py").write_text(
        "import sys\nfrom tests.sweep_cases import splits\n"
        "class Leaving(list):\n    def __iter__(self):\n        sys.exit(0)\n"
        "def people():\n    return {'test': Leaving()}\n"
    )
    assert run("check", "--model", "work:net", "--data", "late.py:people", "--max", "accuracy=2", "-q") == 2
    assert "exit code 0" in capsys.readouterr().err


def test_two_files_of_one_name_are_told_apart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("other").mkdir()
    Path("other/work.py").write_text("def people():\n    return {'test': []}\n")
    assert run("audit", "--model", "work.py:net", "--data", "other/work.py:people", "-q") == 2
    assert "is that of another module" in capsys.readouterr().err
    Path("json.py").write_text("def net():\n    raise AssertionError('never called')\n")
    assert run("audit", "--model", "json.py:net", "--data", "work:people", "-q") == 2
    assert "is that of another module" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["prune", "--modle", "x"], ["bogus"], ["prune"], ["prune", "--pruning-ratio", "x"]]
)
def test_usage_errors(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(*arguments) == 2
    assert "Usage: fairtrim" in capsys.readouterr().err


def test_debug_shows_where(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prune", "--model", "work:fails", "--data", "work:people", "-o", "x", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_what_nobody_foresaw(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("something\nbroke")

    monkeypatch.setattr("fairtrim_adapters.command_line.app.audited", broken)
    assert run("audit", *WORK) == 3
    assert (
        capsys.readouterr().err.strip() == "fairtrim: not foreseen: RuntimeError: something broke; --debug shows where"
    )
    monkeypatch.setattr(
        "fairtrim_adapters.command_line.app.audited", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert run("audit", *WORK) == 130


def test_without_typer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "typer":
            raise ModuleNotFoundError("No module named 'typer'", name="typer")
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert run("prune") == 2
    assert "pip install 'fairtrim[cli]'" in capsys.readouterr().err


def test_help_shows_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert "1    a bound of check" in text and all(f"\n  {command} " in text for command in EXAMPLES)
    for command, example in EXAMPLES.items():
        assert run(command, "--help") == 0
        text = capsys.readouterr().out
        assert all(line.strip() in text for line in example.strip().splitlines())


def test_the_installed_command() -> None:
    script = Path(sys.executable).with_name("fairtrim")
    if not script.exists():
        pytest.skip("fairtrim is not installed, only on the path")
    finished = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert finished.stdout.startswith("fairtrim ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "--audit", "a.json", "--min", "accuracy=0.5", "--bootstrap", "5"], "belong to fairtrim audit"),
        (["check", "--audit", "a.json", "--min", "accuracy=0.5", "--seed", "3"], "belong to fairtrim audit"),
        (["report", "--sweep", "folder", "-o", "r.html", "--bootstrap", "5"], "no effect on a finished sweep"),
        (["report", *WORK, "-o", "r.html", "--objective", "accuracy=max"], "--objective is of a sweep's Pareto set"),
        (
            ["repair", *WORK, "-o", "r.st", "--post-processor", "parity-fine-tuning:random_state=3"],
            "random_state is the seed of the run",
        ),
    ],
)
def test_options_without_effect(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_methods_of_other_packages(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with announced():
        quick = ["--bootstrap", "0", "-q"]
        assert run("prune", *WORK, "-o", "pruned.safetensors", "--criterion", "others", *quick) == 0
        assert run("repair", *WORK, "-o", "repaired.safetensors", "--post-processor", "other-threshold", *quick) == 0
    assert "threshold" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("prune", "--ratio", "--pruning-ratio"),
        ("sweep", "--ratio", "--pruning-ratio"),
        ("prune", "--steps", "--iterative-steps"),
        ("sweep", "--fine-tune", "--fine-tuning"),
    ],
)
def test_old_options_say_the_new_one(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, old: str, new: str
) -> None:
    target = ["-o", "x.safetensors"] if command == "prune" else ["--folder", "x"]
    assert run(command, *WORK, *target, old, "1") == 2
    assert f"there is no {old}; it is called {new}" in capsys.readouterr().err
