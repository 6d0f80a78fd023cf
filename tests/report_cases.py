"""Networks and people for reports, and what reads their pages and tables again."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import json
import re
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

from fairtrim_adapters.report import Report, report_networks
from fairtrim_adapters.report.contents import Flag, Picture
from fairtrim_adapters.report.model_card import END

HAS_JINJA, HAS_MATPLOTLIB = bool(find_spec("jinja2")), bool(find_spec("matplotlib"))


needs_jinja = pytest.mark.skipif(not HAS_JINJA, reason="needs jinja2")


needs_matplotlib = pytest.mark.skipif(not HAS_MATPLOTLIB, reason="needs matplotlib")


QUICK: dict[str, Any] = {"latency_rounds": 0, "pictures": False, "progress": False}


def network(seed: int, n_classes: int = 2, n_features: int = 5) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(n_features, 7), nn.ReLU(), nn.Linear(7, n_classes)).eval()


def batches(n: int = 230, n_classes: int = 2, groups: tuple[str, ...] = ("F", "M", "X"), seed: int = 0) -> list[Any]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=draw)
    target = torch.randint(0, n_classes, (n,), generator=draw)
    share = torch.arange(1.0, len(groups) + 1)
    group = torch.multinomial(share, n, replacement=True, generator=draw)
    names = [groups[g] for g in group.tolist()]
    cut = n // 3
    return [(x[part], target[part], names[part]) for part in (slice(0, cut), slice(cut, n)) if len(names[part])]


NETWORKS = {"dense": network(0), "pruned": network(1), "other one": network(2)}


def in_json(report: Report) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    content = json.loads(report.to_json(), parse_constant=refuse)
    assert (content.pop("format"), content.pop("format_version")) == ("fairtrim report", 1)
    return content


def plain(report: Report) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(report)))


CARD = "---\nlicense: mit\ntags:\n- pruning\n---\n\n# My network\n\nText | of *mine*.\n"


class Page(html.parser.HTMLParser):
    """Tables by caption (rows of cells, each a list of lines), and every tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[list[str]]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.text = ""
        self._rows: list[list[list[str]]] = []
        self._caption: str | None = None
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append([""])
        elif tag == "span":
            self._rows[-1][-1].append("")
        elif dict(attrs).get("class") == "caption":
            self._caption, self._inside[-1] = "", "caption"
        elif tag in ("h1", "h2", "h3"):
            self.headings.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() not in (tag, "caption"):
            pass
        if tag == "table":
            assert self._caption is not None, "a table without a caption"
            self.tables[self._caption], self._caption = self._rows, None

    def handle_data(self, data: str) -> None:
        if "style" in self._inside:
            return
        self.text += data
        if "caption" in self._inside:
            self._caption = f"{self._caption}{data}"
        elif {"td", "th"} & set(self._inside):
            self._rows[-1][-1][-1] += data.strip("\n")


def markdown_tables(text: str) -> dict[str, list[list[list[str]]]]:
    found: dict[str, list[list[list[str]]]] = {}
    for block in re.findall(r"^\*\*(.+)\*\*\n\n((?:\|.*\n)+)", text, re.MULTILINE):
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block[1].splitlines()]
        del lines[1]
        found[unescaped(block[0])] = [
            [[unescaped(part.strip().strip("*")) for part in cell.split("<br>")] for cell in line] for line in lines
        ]
    return found


def unescaped(text: str) -> str:
    text = re.sub(r"^\[(.*)\]\(https://\S+\)$", r"\1", text)
    return html.unescape(re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", text))


def rate(value: float) -> str:
    text = f"{value:.3f}".replace("-", "−")
    return "0.000" if text == "−0.000" else text


def signed(value: float) -> str:
    text = f"{value:+.3f}".replace("-", "−")
    return "0.000" if text[1:] == "0.000" else text


def cell(row: dict[str, Any], metric: str, group: str = "", change: bool = True) -> list[str]:
    def of(suffix: str) -> float:
        return float(row[f"{metric}{suffix}{group}"])

    lines = [rate(of("")), f"[{rate(of('_low'))}, {rate(of('_high'))}]"]
    if change:
        lines.append(f"Δ {signed(of('_change'))} [{signed(of('_change_low'))}, {signed(of('_change_high'))}]")
    return lines


def missing(found: Report, words: str) -> bool:
    return any(words in sentence for sentence in found.not_measured)


def hostile() -> Report:
    """Whatever a name may hold."""
    name = "<script>alert(1)</script> | `x` *y* [z](javascript:1) \n\n# $h$"
    one = [(torch.ones(2, 5), torch.tensor([1, 0]), [name, "b | c"])]
    data = {"test": one, "name": name, "description": f"{name} {END}", "class_names": [name, "k"]}
    found = report_networks(
        {name: network(0), "-": network(1)}, data, title=name, n_boot=2, method={name: name}, **QUICK
    )
    png = base64.b64encode(b"\x89PNG").decode()
    picture = Picture("../../up", name, f'"><script>{name}', "Networks compared", "", png)
    return dataclasses.replace(found, pictures=(picture,), flags=(Flag("empty cell", "", name),))
