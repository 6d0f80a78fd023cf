"""Reports as JSON and as files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fairtrim import InputError
from fairtrim_adapters.report import Report, report_networks
from tests.report_cases import (
    CARD,
    HAS_JINJA,
    NETWORKS,
    batches,
    hostile,
    in_json,
    plain,
)


def test_json_holds_the_measurements(report: Report, rows: dict[str, dict[str, Any]]) -> None:
    content = json.loads(report.to_json())
    for entry in content["networks"]:
        row = rows[entry["name"]]
        for metric, figure in entry["overall"].items():
            assert figure["value"] == row[metric] and figure["low"] == row[f"{metric}_low"]
            assert figure["change"] == row.get(f"{metric}_change")
        for group in "FMX":
            for metric, figure in entry["by_group"][group].items():
                assert figure["value"] == row[f"{metric}[{group}]"]
                assert figure["change_high"] == row.get(f"{metric}_change_high[{group}]")
        assert entry["parameters"] == sum(p.numel() for p in NETWORKS[entry["name"]].parameters())
        assert entry["macs"] == 5 * 7 + 7 * 2
    assert content["timing"]["batch_size"] == 32 and content["timing"]["rounds"] == 6


def test_json_holds_everything(report: Report) -> None:
    assert in_json(report) == plain(report)
    assert in_json(hostile()) == plain(hostile())


def test_save_by_suffix(report: Report, tmp_path: Path) -> None:
    path = report.save(tmp_path / "report.json")
    assert path.read_text(encoding="utf-8") == report.to_json()
    assert report.save(str(tmp_path / "report.md")).read_text(encoding="utf-8") == report.to_markdown()
    assert not (tmp_path / "report_pictures").exists()
    if HAS_JINJA:
        assert report.save(tmp_path / "report.html").read_text(encoding="utf-8") == report.to_html()
    before = sorted(tmp_path.iterdir())
    for name, words in (("report.pdf", "expected .html, .md or .json"), ("no/report.md", "a folder that exists")):
        with pytest.raises(InputError, match=words):
            report.save(tmp_path / name)
    with pytest.raises(InputError, match="is a file"):
        report.to_markdown(tmp_path / "report.md")
    assert sorted(tmp_path.iterdir()) == before


def test_missing_packages_are_named(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("jinja2", "matplotlib", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"fairtrim\[report\]"):
        report.to_html()
    with pytest.raises(InputError, match=r"fairtrim\[report\]"):
        report_networks(NETWORKS, {"test": batches()}, progress=False)
    with pytest.raises(InputError, match=r"fairtrim\[card\]"):
        report.to_model_card(CARD)
    assert report.to_markdown() and report.to_json()
