"""``fairtrim check`` opens only if its people can tell that the bounds hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairtrim import Predictions
from fairtrim_adapters.command_line import main
from fairtrim_adapters.command_line.bounds import judge, parse_bounds
from fairtrim_adapters.command_line.gate import shut
from fairtrim_adapters.command_line.tables import _empty_crossings
from fairtrim_adapters.fairlearn.flags import FEWEST, model_flags

SCRIPT = '''
import torch
from torch import nn

def people(n=(300, 300), positives=(0.5, 0.5), second=None, names={"sex": ["Female", "Male"]}):
    """The first column is the label, the second the group, the third 1."""
    groups = enumerate(zip(n, positives))
    rows = [(float(i < round(share * size)), float(g), 1.0) for g, (size, share) in groups for i in range(size)]
    x = torch.tensor(rows)
    sensitive = x[:, 1].long()
    if second is not None:
        sensitive = torch.stack([sensitive, torch.zeros(len(x), dtype=torch.long)], 1)
    return {"test": [(x, x[:, 0].long(), sensitive)], "sensitive_names": names}

def both(): return people()
def men(): return people((0, 300), (0, 0.5))
def men_unnamed(): return people((0, 300), (0, 0.5), names=["sex"])
def no_positives(): return people((300, 300), (0, 0.5))
def few(): return people((300, 12))
def few_positives(): return people((300, 300), (0.5, 0.02))
def one_label(): return people(positives=(1, 1))
def one_city(): return people(second=0, names=["sex", "city"])
def absent(): return people(names={"sex": ["Female", "Male", "Other"]})
def no_other_women():
    data = people((300, 600), names={"sex": ["Female", "Male"], "race": ["w", "o"]})
    (x, y, sex), = data["test"]
    race = ((torch.arange(len(x)) % 2) * sex)
    data["test"] = [(x, y, torch.stack([sex, race], 1))]
    return data
def many_classes():
    data = people()
    data["test"] = [(x, y + (torch.arange(len(y)) % 3 == 0).long(), s) for x, y, s in data["test"]]
    return data

def layer(weight, bias=(0.0, 0.0)):
    linear = nn.Linear(3, len(weight))
    linear.weight.data, linear.bias.data = torch.tensor(weight), torch.tensor(bias)
    return linear

def right(): return layer([[0.0, 0, 0], [2.0, 0, -1]])
def constant(): return layer([[0.0, 0, 0], [0.0, 0, 1]])
def same_for_men(): return layer([[0.0, 0, 0], [2.0, -9, -1]])
def three(): return layer([[0.0, 0, 0], [2.0, 0, -1], [-9.0, 0, -9]], (0.0, 0.0, 0.0))
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gated.py").write_text(SCRIPT)
    monkeypatch.delitem(__import__("sys").modules, "gated", raising=False)
    return tmp_path


def check(network: str, data: str, *arguments: str) -> int:
    work = ["--model", f"gated.py:{network}", "--data", f"gated.py:{data}", "-q", "--bootstrap", "20"]
    return main(["check", *work, *arguments])


GAP, PARITY = ("--max", "equalized_odds_difference=0.05"), ("--max", "demographic_parity_difference=0.05")
RIGHT = ("--min", "accuracy=0.9")


@pytest.mark.parametrize(
    ("network", "data", "arguments", "failed", "flagged"),
    [
        ("right", "both", [*GAP, *PARITY], [], []),
        ("constant", "both", [*GAP, *PARITY], ["constant classifier: everybody is given label 1"], []),
        ("constant", "both", ["--min", "accuracy=0.4"], ["constant classifier"], []),
        ("constant", "both", [*GAP, "--min-people", "0"], ["constant classifier"], []),
        (
            "right",
            "men",
            PARITY,
            ["undefined for these people, who are one sensitive group, Male", "'Female'"],
            ["one v"],
        ),
        (
            "right",
            "men",
            ["--min", "worst_group_accuracy=0.5", "--min-people", "0"],
            ["one sensitive group"],
            ["nobody"],
        ),
        ("right", "men_unnamed", GAP, ["who are one sensitive group, 1"], ["one value"]),
        ("right", "men_unnamed", RIGHT, [], ["one value: sex"]),
        ("right", "no_positives", GAP, ["undefined for these people: Female has no positives"], ["empty cell: Female"]),
        ("right", "no_positives", ["--max", "demographic_parity_difference=0.6"], [], ["empty cell: Female"]),
        ("right", "no_positives", ["--min", "true_positive_rate[Female]=0"], ["Female has no positives"], ["empty"]),
        ("right", "no_positives", ["--min", "true_positive_rate[Male]=0.9"], [], ["empty cell"]),
        (
            "right",
            "few",
            RIGHT,
            ["group Male has 12 people, fewer than --min-people 30: a st"],
            [],
        ),
        ("right", "few", [*RIGHT, "--min-people", "12"], [], []),
        ("right", "few_positives", GAP, ["group Male has 6 people with a positive label, fewer", "too fine"], []),
        ("right", "no_other_women", PARITY, [], ["nobody: Female, o"]),
        ("right", "few_positives", [*GAP, "--min-people", "0"], [], []),
        ("right", "few_positives", RIGHT, [], []),
        ("right", "one_label", RIGHT, ["one label: everybody is of class 1"], ["empty cell"]),
        ("right", "one_city", PARITY, [], ["one value: city"]),
        ("right", "absent", PARITY, ["nobody: sex is 'Other' of none of the test people"], []),
        ("right", "absent", [*PARITY, "--min-people", "0"], [], ["nobody: sex is 'Other'"]),
        ("same_for_men", "both", RIGHT, ["accuracy = 0.75"], ["same label: Male: all 300 people are given 0"]),
        (
            "right",
            "both",
            ["--max", "demographic_parity_difference=0.003"],
            ["one of 300 people moves"],
            [],
        ),
        ("right", "both", ["--max", "demographic_parity_difference=0.004", "--confident"], ["over the whole"], []),
        ("three", "many_classes", ["--max", "accuracy_score_difference=0.05"], [], []),
    ],
)
def test_the_gate(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    network: str,
    data: str,
    arguments: list[str],
    failed: list[str],
    flagged: list[str],
) -> None:
    code = check(network, data, *arguments)
    lines = capsys.readouterr().out.splitlines()
    for kind, expected in (("FAILED", failed), ("flag", flagged)):
        found = [line for line in lines if line.startswith(kind)]
        assert all(any(text in line for line in found) for text in expected), lines
        assert bool(found) is bool(expected), lines
    assert code == (1 if failed else 0)
    assert any(line.startswith("ok") for line in lines) is not bool(failed)


def test_a_metric_that_there_isnt(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("three", "many_classes", "--min", "true_positive_rate=0.5") == 2
    assert "label 1 of two classes" in (told := capsys.readouterr().err) and "true_positive_rate_of_1" in told
    assert check("right", "both", *GAP, "--min-people", "-1") == 2


def test_of_many_classes_each_counts_against_the_rest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which label a group has too few people of, and a bound on the rate of one."""
    assert check("three", "many_classes", *GAP) == 0
    assert check("three", "many_classes", "--min", "true_positive_rate_of_2[Male]=0.1") == 1
    capsys.readouterr()
    assert check("three", "many_classes", *GAP, "--min-people", "60") == 1
    assert "has 50 people with label 2, fewer than --min-people 60" in capsys.readouterr().out
    assert main(["audit", "--model", "gated.py:three", "--data", "gated.py:many_classes", "--bootstrap", "0"]) == 0
    told = capsys.readouterr().out.partition("Each class against the rest\n")[2].splitlines()
    rates = ["selection_rate", "true_positive_rate", "false_positive_rate"]
    assert told[0].split() == ["group", "class", "network", *rates]
    assert len(told[: told.index("") if "" in told else None]) == 1 + 2 * 3


def test_figures_within_a_bound_by_chance_say_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("right", "both", "--min", "accuracy=0.999") == 0
    assert "ok accuracy = 1.0000" in (text := capsys.readouterr().out) and "the interval reaches beyond it" in text
    assert check("right", "both", "--min", "accuracy=0.9") == 0
    assert "reaches beyond" not in capsys.readouterr().out


def test_changes_from_a_constant_network_say_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fairtrim import save_pruned

    namespace: dict[str, Any] = {}
    exec(SCRIPT, namespace)
    save_pruned("right.st", namespace["right"]())
    drop = ["--checkpoint", "right.st", "--max-drop", "accuracy=0"]
    assert check("constant", "both", *drop) == 1
    assert "FAILED of the dense network, constant classifier" in capsys.readouterr().out
    assert check("right", "both", *drop) == 0


def test_audits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An audit of a version that lacks what the gate needs is refused, and shown are the people of each label."""
    command = ["audit", "--model", "gated.py:right", "--data", "gated.py:few_positives", "--json", "a.json", "-q"]
    assert main(command) == 0
    assert "positives" in capsys.readouterr().out
    assert main(["check", "--audit", "a.json", *GAP]) == 1
    assert "group Male has 6 people with a positive label" in capsys.readouterr().out
    content = json.loads(Path("a.json").read_text())
    content["version"] = 1
    Path("a.json").write_text(json.dumps(content))
    assert main(["check", "--audit", "a.json", *GAP]) == 2
    assert "is of version 1; expected 4" in capsys.readouterr().err


def test_no_interval_no_confidence() -> None:
    figures = {"m": 0.1, "m_low": float("nan"), "m_high": float("nan")}
    bounds = parse_bounds("max", ["m=0.5"])
    assert judge(bounds, figures)[0].holds
    (verdict,) = judge(bounds, figures, confident=True)
    assert not verdict.holds and "has no interval" in verdict.text


def test_groups_that_only_the_dense_network_has() -> None:
    row = {"people[F]": FEWEST, "flags": ""}
    (line,) = shut([], row, {**row, "people[M]": 50})
    assert "M" in line
    assert shut([], row, row) == []


@pytest.mark.parametrize(
    "bound",
    [("--max", "demographic_parity_difference=10"), ("--min", "accuracy=-0.1"), ("--max-drop", "accuracy[Male]=2")],
)
def test_bounds_that_no_network_can_break(
    folder: Path, capsys: pytest.CaptureFixture[str], bound: tuple[str, str]
) -> None:
    """Such as 10 for ten per cent."""
    from fairtrim import save_pruned

    namespace: dict[str, Any] = {}
    exec(SCRIPT, namespace)
    save_pruned("right.st", namespace["right"]())
    assert check("right", "both", "--checkpoint", "right.st", *bound) == 2
    assert "no network can break it" in capsys.readouterr().err
    assert check("right", "both", "--max", "parameters=100") == 0


def test_few_people_with_one_label_are_no_surprise() -> None:
    target = np.array([0, 1] * 40)
    label = {"net": np.where(np.arange(80) < 8, 0, target)}
    people = Predictions(target, label, {}, {"team": np.where(np.arange(80) < 8, "few", "many")})
    assert model_flags(people, "net") == []
    all_of_half = Predictions(target, {"net": target * (np.arange(80) >= 40)}, {}, {"half": np.arange(80) // 40 == 0})
    assert model_flags(all_of_half, "net") == [("net", "same label", "True: all 40 people are given 0")]


def test_one_line_for_each_group_and_one_number_that_accepts_all() -> None:
    """Of several bounds; the number is that of the smallest of all, or 0 if a bound is too fine for any."""
    counts = {"F": (40, 25, 15), "M": (12, 5, 7), "X": (90, 45, 45)}
    row: dict[str, Any] = {"flags": ""}
    for group, numbers in counts.items():
        row |= {f"{word}[{group}]": n for word, n in zip(("people", "positives", "negatives"), numbers, strict=True)}
    wide = parse_bounds("max", ["equalized_odds_difference=0.3", "accuracy_score_difference=0.3"])
    lines = shut([*wide, *parse_bounds("min", ["true_positive_rate[M]=0.1"])], row, row)
    assert [line.partition(":")[0] for line in lines] == [
        "group F has 15 people with a negative label, fewer than --min-people 30",
        "group M has 5 people with a positive label, fewer than --min-people 30",
    ]
    assert all(line.endswith("or --min-people 5") for line in lines)
    assert shut(wide, row, row, min_people=5) == []
    fine = [*parse_bounds("max", ["equalized_odds_difference=0.1", "demographic_parity_difference=0.01"]), *wide]
    lines = shut(fine, row, row)
    assert len(lines) == 2 and all(line.endswith("or --min-people 0") for line in lines)
    assert lines[1].count("--min-people") == 2 and "is too fine" in lines[1]
    (line,) = shut(fine, row, row, min_people=5)
    assert line.startswith("group M: one of 12 people moves a rate by 0.0833")
    assert shut(fine, row, row, min_people=0) == []
    (line,) = shut([], {"people[F]": 1, "flags": ""}, {"flags": ""}, min_people=2)
    assert line.startswith("group F has 1 person, fewer than --min-people 2")


def test_of_many_crossings_that_nobody_is_in_some_are_named() -> None:
    columns = {name: np.array([f"{name}{k}" for k in range(5)]) for name in "abc"}
    flags = list(_empty_crossings(Predictions(np.zeros(5, dtype=np.int64), {}, {}, columns)))
    assert flags[0] == "nobody: a0, b0, c1" and len(flags) == 11
    assert flags[-1] == "nobody: 110 more crossings"  # of 125, with somebody in 5
