"""Reports as Markdown."""

from __future__ import annotations

import re
from pathlib import Path

from fairtrim_adapters.report import Report
from fairtrim_adapters.report.model_card import END
from tests.report_cases import (
    batches,
    hostile,
    markdown_tables,
)


def test_people_are_counted_by_label(report: Report) -> None:
    table = markdown_tables(report.to_markdown())["People by sensitive group and label"]
    for line in table[1:-1]:
        group = line[0][0]
        labels = [int(t) for _, target, names in batches() for t, n in zip(target, names, strict=True) if n == group]
        assert [line[1][0], line[2][0], line[3][0]] == [str(len(labels)), str(labels.count(0)), str(labels.count(1))]
    assert report.data.classes == ("no", "yes")


def test_markdown_escapes(tmp_path: Path) -> None:
    text = hostile().to_markdown(tmp_path / "pictures")
    assert "<script" not in text and END not in text
    widths = [
        {len(re.split(r"(?<!\\)\|", line)) for line in block.splitlines()}
        for block in re.findall(r"(?:^\|.*\n)+", text, re.M)
    ]
    assert widths and all(len(width) == 1 for width in widths)
    assert [line for line in text.splitlines() if line.startswith("# ")] == []
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["-up.png"]
