"""Reports as HTML: every figure is that of the measurements, nothing is missing, and nothing else is needed."""

from __future__ import annotations

import base64
import dataclasses
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from fairtrim_adapters.report import Report, report_networks, report_sweep
from fairtrim_adapters.report.contents import Picture
from tests.report_cases import (
    NETWORKS,
    QUICK,
    Page,
    batches,
    cell,
    hostile,
    markdown_tables,
    needs_jinja,
    needs_matplotlib,
    network,
    rate,
)


@needs_jinja
def test_html_shows_the_measurements(report: Report, rows: dict[str, dict[str, Any]]) -> None:
    tables = Page(report.to_html()).tables
    for metric, gap in (
        ("accuracy", "accuracy_score_difference"),
        ("true_positive_rate", "equalized_odds_difference"),
        ("false_positive_rate", "equalized_odds_difference"),
        ("selection_rate", "demographic_parity_difference"),
    ):
        caption = next(name for name in tables if name.startswith(metric.replace("_", " ").capitalize()))
        header, *body = tables[caption]
        assert [lines[0] for lines in header][:5] == ["Network", "everybody", "F", "M", "X"]
        assert header[2][1] == f"n = {rows['dense']['people[F]']}"
        assert header[-1][0] == gap.replace("_", " ")
        assert [line[0][0] for line in body] == list(NETWORKS)
        for name, line in zip(NETWORKS, body, strict=True):
            changes = name != "dense"
            assert line[1] == cell(rows[name], metric, change=changes)
            for place, group in enumerate("FMX", 2):
                assert line[place] == cell(rows[name], metric, f"[{group}]", changes)
            assert line[-1] == cell(rows[name], gap, change=changes)
            if "true" in metric or "false" in metric:
                values = [rows[name][f"{metric}[{group}]"] for group in "FMX"]
                assert line[-2] == [rate(max(values) - min(values))]
    overall = {line[0][0]: line[1:] for line in tables["Over everybody, with the gaps between sensitive groups"]}
    for metric in ("worst_group_accuracy", "balanced_accuracy", "equalized_odds_difference"):
        for place, name in enumerate(NETWORKS):
            assert overall[metric.replace("_", " ")][place] == cell(rows[name], metric, change=name != "dense")
    changed = tables["Share of people whose predicted label differs from that of 'dense'"]
    assert changed[1][3] == cell(rows["pruned"], "changed_predictions", "[M]", change=False)


@needs_jinja
def test_markdown_and_html_have_the_same_tables(report: Report) -> None:
    of_page, of_card = Page(report.to_html()).tables, markdown_tables(report.to_markdown())
    assert list(of_page) == list(of_card)
    assert len(of_card) > 10
    for caption, table in of_page.items():
        assert of_card[caption] == table


@needs_jinja
def test_flags_stand_first_and_beside_each_name() -> None:
    constant = network(0)
    with torch.no_grad():
        constant[2].weight.zero_(), constant[2].bias.copy_(torch.tensor([0.0, 1.0]))
    found = report_networks({"dense": NETWORKS["dense"], "constant one": constant}, {"test": batches()}, **QUICK)
    assert ("constant classifier", "constant one") in [(flag.kind, flag.network) for flag in found.flags]
    page = Page(found.to_html())
    first = next(attributes["id"] for tag, attributes in page.tags if tag == "section")
    assert first == "flags"
    assert "Constant classifier: constant one: everybody is given label 1" in page.text
    names = [line[0] for table in page.tables.values() for line in table if line[0][0] == "constant one"]
    assert ["constant one", "⚑ constant classifier"] in [lines[:2] for lines in names]
    assert "Nothing was flagged" not in page.text
    quiet = dataclasses.replace(found, flags=())
    assert "Nothing was flagged" in quiet.to_html() and 'class="quiet"' in quiet.to_html()


@needs_jinja
def test_html_escapes() -> None:
    page = Page(hostile().to_html())
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count("<script>alert(1)</script>") > 10
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["alt"] for image in images] == [hostile().pictures[0].description]


@needs_jinja
def test_html_needs_nothing_else(report: Report) -> None:
    picture = Picture("p", "c", "d", "Data", "", base64.b64encode(b"\x89PNG").decode())
    text = dataclasses.replace(report, pictures=(picture,)).to_html()
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        assert "srcset" not in attributes and not any(name.startswith("on") for name in attributes)
        if "src" in attributes:
            assert str(attributes["src"]).startswith("data:image/")
        if "href" in attributes:
            assert tag == "a" and re.match(r"#|https://", str(attributes["href"]))
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style
    identifiers = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    anchors = {str(a["href"])[1:] for tag, a in page.tags if tag == "a" and str(a["href"]).startswith("#")}
    assert anchors and anchors <= identifiers


@needs_jinja
def test_html_is_accessible(report: Report) -> None:
    page = Page(report.to_html())
    assert page.headings[0] == "h1" and page.headings.count("h1") == 1 and set(page.headings) == {"h1", "h2"}
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in page.tags if tag == "th")
    assert dict(page.tags)["html"] == {"lang": "en"}
    regions = [attributes for _, attributes in page.tags if attributes.get("class") == "scroll"]
    assert len(regions) == len(page.tables) and all(region["aria-label"] for region in regions)


@needs_jinja
def test_captions_stay_in_view_while_tables_scroll(report: Report) -> None:
    """What scrolls is the table alone, in a box of its own; its caption wraps with the page."""
    text = report.to_html()
    assert "<caption" not in text
    tables = re.findall(
        r'<div class="table">\n<p class="caption">.*?</p>\n<div class="scroll"[^>]*>\n<table.*?</table>', text, re.S
    )
    assert len(tables) == len(Page(text).tables) == text.count("<table")
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert re.search(r"\.scroll \{ overflow-x: auto; \}", style) and not re.search(r"\.caption \{[^}]*nowrap", style)
    printed = style.partition("@media print {")[2]
    assert "break-inside: avoid" in printed and "--page: #ffffff" in printed and "attr(href)" in printed


@needs_jinja
def test_wide_tables_are_continued_below() -> None:
    groups = tuple(f"g{k:03}" for k in range(20))
    networks = {f"n{k}": network(k) for k in range(7)}
    found = report_networks(networks, {"test": batches(200, groups=groups)}, n_boot=None, **QUICK)
    page = Page(found.to_html())
    assert all(len(table[0]) <= 13 for table in page.tables.values())
    (caption,) = (name for name in page.tables if name.startswith("Accuracy:"))
    assert len(page.tables[caption]) == 1 + 1 + len(found.data.people) + 1 and len(page.tables[caption][0]) == 8


@pytest.mark.slow
@needs_jinja
@needs_matplotlib
def test_a_browser_shows_it_without_complaints(swept: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs chromium")
    page, shot = report_sweep(swept[0]).save(tmp_path / "report.html"), tmp_path / "report.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,3000", f"--screenshot={shot}"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=180, check=True)
    assert shot.stat().st_size > 50_000
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
