"""Reports: every figure is that of the measurements, in all three forms, and what is absent is said to be."""

from __future__ import annotations

import base64
import copy
import dataclasses
import html.parser
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from fairtrim import InputError, predict
from fairtrim_adapters.fairlearn import measurements
from fairtrim_adapters.report import Report, report_networks, report_sweep
from fairtrim_adapters.report.contents import Figure, Flag, Picture
from fairtrim_adapters.report.facts import CRITERION_FACTS, POST_PROCESSOR_FACTS
from fairtrim_adapters.report.model_card import BEGIN, END
from fairtrim_adapters.sweep import POST_PROCESSORS, DataSplits, sweep
from fairtrim_adapters.sweep.named_methods import HOST_CRITERIA
from fairtrim_adapters.torch_pruning import IMPORTANCES

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


@pytest.fixture(scope="module")
def report() -> Report:
    data = DataSplits(test=batches(), name="drawn", description="drawn at random", class_names=["no", "yes"])
    method = {
        "seed": 3,
        "fine-tuning": "none",
        "pruned": {"criterion": "worst-group:selection=single", "ratio": 0.5},
        "other one": {"criterion": "mine", "post_processor": "parity-fine-tuning"},
    }
    return report_networks(NETWORKS, data, method=method, n_boot=40, latency_rounds=6, pictures=False, progress=False)


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    predictions = predict(NETWORKS, batches(), progress=False)
    return {name: measurements(predictions, name, "dense", n_boot=40) for name in NETWORKS}


def in_json(report: Report) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    content = json.loads(report.to_json(), parse_constant=refuse)
    assert (content.pop("format"), content.pop("format_version")) == ("fairtrim report", 1)
    return content


def plain(report: Report) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(report)))


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
        elif tag == "caption":
            self._caption = ""
        elif tag in ("h1", "h2", "h3"):
            self.headings.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
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


# The figures.


@needs_jinja
def test_html_shows_the_measurements(report: Report, rows: dict[str, dict[str, Any]]) -> None:
    tables = Page(report.to_html()).tables
    for metric, gap in (
        ("accuracy", "accuracy_difference"),
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


@needs_jinja
def test_markdown_and_html_have_the_same_tables(report: Report) -> None:
    of_page, of_card = Page(report.to_html()).tables, markdown_tables(report.to_markdown())
    assert list(of_page) == list(of_card)
    assert len(of_card) > 10
    for caption, table in of_page.items():
        assert of_card[caption] == table


def test_people_are_counted_by_label(report: Report) -> None:
    table = markdown_tables(report.to_markdown())["People by sensitive group and label"]
    for line in table[1:-1]:
        group = line[0][0]
        labels = [int(t) for _, target, names in batches() for t, n in zip(target, names, strict=True) if n == group]
        assert [line[1][0], line[2][0], line[3][0]] == [str(len(labels)), str(labels.count(0)), str(labels.count(1))]
    assert report.data.classes == ("no", "yes")


def test_latency_is_told_only_if_it_was_timed(report: Report) -> None:
    dense = report.networks[0]
    assert dense.latency_ms is not None and dense.latency_ms.value is not None and dense.latency_ms.value > 0
    assert dense.latency_ratio == Figure(1.0, 1.0, 1.0)
    assert "latency, ms" in report.to_markdown()
    without = report_networks(NETWORKS, {"test": batches()}, **QUICK)
    assert without.timing is None and all(entry.latency_ms is None for entry in without.networks)
    assert "latency, ms" not in without.to_markdown()


def test_methods_are_looked_up(report: Report) -> None:
    worst, mine, parity = report.methods
    assert (worst.kind, worst.standing, worst.settings) == ("criterion", "ours", {"selection": "single"})
    assert "most hurt" in worst.does
    assert mine.does == "not described here"
    assert parity.kind == "post-processor" and "penalty" in parity.does
    assert report.seeds == (3,) and report.settings == {"fine-tuning": "none"}
    assert report.networks[1].facts == {"criterion": "worst-group:selection=single", "ratio": "0.5"}


def test_every_registered_method_is_described() -> None:
    assert set(CRITERION_FACTS) == {*HOST_CRITERIA, *(n for n, c in IMPORTANCES.items() if "fairtrim" in c.__module__)}
    assert set(POST_PROCESSOR_FACTS) == set(POST_PROCESSORS)


# Flags.


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


# What was not measured.


def missing(found: Report, words: str) -> bool:
    return any(words in sentence for sentence in found.not_measured)


def test_what_was_not_measured_follows_from_what_is_there(report: Report) -> None:
    bare = report_networks(NETWORKS, {"test": batches()}, n_boot=None, **QUICK)
    assert missing(bare, "no network was timed") and not missing(report, "no network was timed")
    assert missing(report, "Latency on other hardware")
    assert missing(bare, "Uncertainty over people") and not missing(report, "Uncertainty over people")
    assert missing(bare, "no seed was recorded") and missing(report, "(one seed)")
    several = report_networks(NETWORKS, {"test": batches()}, method={"seeds": [0, 1]}, **QUICK)
    assert not missing(several, "(one seed)") and missing(several, "each is one training")
    assert missing(bare, "Crossings of sensitive features: only ")
    small = [n for n in "FMX" if report.data.people[n] < 100]
    assert missing(report, f"fewer than 100 people: their figures are mostly chance: F ({report.data.people['F']})")
    assert 0 < len(small) < 3
    assert not missing(report, "nobody of") and not missing(report, "Rates of single classes")
    large = report_networks(NETWORKS, {"test": batches(901)}, n_boot=None, **QUICK)
    assert not missing(large, "fewer than 100 people")
    assert missing(bare, "Calibration") and missing(bare, "Validity of the labels")


def test_crossings_and_nobody() -> None:
    x, target = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 0, 1, 0, 0])
    people = {"sex": ["F", "F", "M", "M", "M", "M"], "age": ["old", "old", "old", "young", "old", "young"]}
    found = report_networks(NETWORKS, {"test": [(x, target, people)]}, n_boot=3, **QUICK)
    assert found.data.people == {"F, old": 2, "M, old": 2, "M, young": 2}
    assert found.data.sensitive_features == ("sex", "age")
    assert missing(found, "nobody of the data belongs to: F, young.")
    assert missing(found, "only the crossings of sex, age are shown")
    assert missing(found, "nobody of: M, old: class 1.")
    assert ("empty cell", "") in [(flag.kind, flag.network) for flag in found.flags]


@pytest.mark.parametrize("n_classes", [2, 3])
def test_one_person_one_network(n_classes: int) -> None:
    one = [(torch.ones(1, 5), torch.tensor([1]), ["only <one> | of *them*"])]
    found = report_networks({"a": network(0, n_classes)}, {"test": one}, n_boot=2, **QUICK)
    assert found.data.counts == {"only <one> | of *them*": tuple(int(k == 1) for k in range(n_classes))}
    assert found.networks[0].overall["accuracy"].value in (0.0, 1.0)
    assert ("true_positive_rate" in found.networks[0].overall) == (n_classes == 2)
    assert missing(found, "Rates of single classes") == (n_classes == 3)
    assert in_json(found) == plain(found)
    assert found.to_markdown().startswith("## ")
    if HAS_JINJA:
        assert "only &lt;one&gt; | of *them*" in found.to_html()


def test_labels_of_tokens_are_compared_without_samples() -> None:
    class Tokens(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x, -x], dim=-1)

    class Others(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([-x, x], dim=-1)

    batch = (torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.randint(0, 2, (4, 3)), list("aabb"))
    found = report_networks({"one": Tokens(), "two": Others()}, {"test": [batch]}, n_boot=None, **QUICK)
    assert found.data.n_people == 12 and found.changed == ()
    assert missing(found, "Which people get another prediction")


# The changed samples.


def test_changed_samples_are_those_that_differ(report: Report) -> None:
    labels = {name: predict(model, batches(), progress=False).label["model"] for name, model in NETWORKS.items()}
    target = np.concatenate([batch[1].numpy() for batch in batches()])
    group = np.asarray([name for batch in batches() for name in batch[2]])
    assert [changed.network for changed in report.changed] == ["pruned", "other one"]
    for changed in report.changed:
        differs = labels["dense"] != labels[changed.network]
        for name, people, number, share, gained, lost in changed.by_group.rows:
            members = np.ones(len(group), dtype=bool) if name == "everybody" else group == name
            here = differs & members
            assert (people, number) == (members.sum(), here.sum())
            assert share == pytest.approx(here.sum() / members.sum())
            assert gained == (here & (labels[changed.network] == target)).sum()
            assert lost == (here & (labels["dense"] == target)).sum()
        assert changed.samples is not None and len(changed.samples.rows) == min(20, differs.sum())
        for row, who, label, before, after, *_ in changed.samples.rows:
            assert differs[row] and who == group[row] and label == ("no", "yes")[target[row]]
            assert [before, after] == [("no", "yes")[labels[name][row]] for name in ("dense", changed.network)]


def test_samples_of_people_can_be_left_out() -> None:
    data = {"test": batches(), "feature_names": list("abcde")}
    none = report_networks(NETWORKS, data, n_boot=None, samples=0, **QUICK)
    assert all(changed.samples is None for changed in none.changed) and len(none.changed) == 2
    some = report_networks(NETWORKS, data, n_boot=None, samples=4, **QUICK).changed[0].samples
    assert some is not None and len(some.rows) == 4
    x = torch.cat([batch[0] for batch in batches()])
    row = some.rows[0]
    assert row[-1] == ", ".join(f"{n} = {v:.3g}" for n, v in zip("abcde", x[int(str(row[0]))].tolist(), strict=True))


# Pictures.


@needs_matplotlib
def test_pictures_of_tables_images_and_damage(tmp_path: Path) -> None:
    from matplotlib import pyplot

    draw = torch.Generator().manual_seed(0)
    images = torch.randn(60, 1, 6, 6, generator=draw)
    data = {"test": [(images, torch.randint(0, 2, (60,), generator=draw), ["a", "b", "b"] * 20)]}
    models = {name: nn.Sequential(nn.Flatten(), network(seed, n_features=36)) for seed, name in enumerate("pq")}
    found = report_networks(models, data, n_boot=5, latency_rounds=0, progress=False)
    assert [picture.section for picture in found.pictures] == ["Sensitive groups"] * 2 + ["Changed predictions"]
    assert found.pictures[-1].network == "q" and not found.pictures[-1].svg
    for picture in found.pictures:
        assert base64.b64decode(picture.png).startswith(b"\x89PNG")
    assert b"<svg" in base64.b64decode(found.pictures[0].svg)
    assert pyplot.get_fignums() == []
    assert in_json(found) == plain(found)
    again = report_networks(models, data, n_boot=5, latency_rounds=0, progress=False)
    assert again.pictures == found.pictures
    text = found.to_markdown(tmp_path / "the pictures")
    linked = re.findall(r"!\[[^\]]+\]\((\S+)\)", text)
    assert len(linked) == 3
    for link, picture in zip(linked, found.pictures, strict=True):
        assert (tmp_path / link.replace("%20", " ")).read_bytes() == base64.b64decode(picture.png)
    assert "3 pictures are left out" in found.to_markdown() and "left out" not in text


@needs_matplotlib
def test_damage_is_drawn() -> None:
    from fairtrim import ChannelGroup, ChannelPlace, collect_damage

    group = ChannelGroup("0", 7, (ChannelPlace("2", "input", range(7), range(7), channel_axis=-1),))
    table = collect_damage(NETWORKS["dense"], batches(), [group], progress=False)
    found = report_networks(NETWORKS, {"test": batches()}, damage=table, n_boot=None, latency_rounds=0, progress=False)
    assert "Predicted damage" in [picture.section for picture in found.pictures]
    assert not missing(found, "no damage table")
    assert missing(report_networks(NETWORKS, {"test": batches()}, n_boot=None, **QUICK), "no damage table")


# The forms.


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


@needs_jinja
def test_html_escapes() -> None:
    page = Page(hostile().to_html())
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count("<script>alert(1)</script>") > 10
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["alt"] for image in images] == [hostile().pictures[0].description]


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


# Model cards.

CARD = "---\nlicense: mit\ntags:\n- pruning\n---\n\n# My network\n\nText | of *mine*.\n"


def test_model_card_gets_a_section(report: Report, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = report.to_model_card(hub.ModelCard(CARD))
    assert isinstance(card, hub.ModelCard) and card.data.license == "mit"
    assert str(card) == f"{CARD}\n{BEGIN}\n{report.to_markdown().strip()}\n{END}\n"
    behind = f"{card}\n## More\n\nof mine\n"
    later = dataclasses.replace(report, title="Another title")
    changed = later.to_model_card(behind)
    assert str(changed) == behind.replace(report.to_markdown().strip(), later.to_markdown().strip())
    assert str(later.to_model_card(changed)) == str(changed)
    path = tmp_path / "README.md"
    path.write_text(CARD, encoding="utf-8")
    assert str(report.to_model_card(path)) == str(card)
    assert path.read_text(encoding="utf-8") == CARD


@pytest.mark.parametrize("marks", [BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}{END}\n{BEGIN}{END}"])
def test_model_card_with_broken_comments(report: Report, marks: str) -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(InputError, match="mend the card"):
        report.to_model_card(CARD + marks)


def test_model_card_of_another_kind(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(InputError, match="is no file"):
        report.to_model_card(tmp_path / "README.md")
    with pytest.raises(InputError, match="card is a int"):
        report.to_model_card(3)  # type: ignore[arg-type]


# Manners.


def test_networks_are_left_as_they_were() -> None:
    models = {name: copy.deepcopy(model).train() for name, model in NETWORKS.items()}
    kept = {name: copy.deepcopy(model.state_dict()) for name, model in models.items()}
    state = torch.get_rng_state()
    report_networks(models, {"test": batches()}, n_boot=3, latency_rounds=6, pictures=HAS_MATPLOTLIB, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    for name, model in models.items():
        assert model.training and all(parameter.grad is None for parameter in model.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        for key, value in model.state_dict().items():
            torch.testing.assert_close(value, kept[name][key], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": {}}, "expected networks by name"),
        ({"models": {"a": 3}}, r"models\['a'\] is a int"),
        ({"reference": "densr"}, "'densr' is not one of the networks"),
        ({"n_boot": 0}, "n_boot=0"),
        ({"latency_rounds": 3}, "latency_rounds=3"),
        ({"samples": -1}, "samples=-1"),
        ({"method": [1]}, "method is a list"),
        ({"method": {"prund": {"ratio": 0.5}}}, "'prund'"),
        ({"method": {"seed": "one"}}, "seeds"),
        ({"damage": 3}, "expected a DamageTable"),
        ({"data": {"test": batches(), "feature_names": ["a"]}}, "1 feature_names for 5 features"),
        ({"data": {"test": batches(), "class_names": ["a"]}}, "1 class_names for 2 classes"),
        ({"data": {"test": [batch[:2] for batch in batches()]}}, "expected .inputs, target, sensitive"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], words: str) -> None:
    arguments = {"models": NETWORKS, "data": {"test": batches()}, "n_boot": None, **QUICK, **changes}
    with pytest.raises(InputError, match=words):
        report_networks(**arguments)


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


# Sweeps.


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("sweep")
    data = DataSplits(test=batches(), scoring=batches(), validation=batches(seed=1), name="drawn")
    table = sweep(
        network,
        data,
        ["magnitude", "worst-group:selection=single"],
        [0.6],
        [0, 4],
        post_processors={"moved": "threshold-selection:epsilon=0.2"},
        n_boot=10,
        latency_rounds=6,
        folder=folder,
        progress=False,
    )
    return folder, table


def test_a_sweep_is_told_by_means_over_seeds(swept: tuple[Path, pd.DataFrame]) -> None:
    folder, table = swept
    found = report_sweep(folder, pictures=False)
    assert len(found.networks) == 2 * (1 + 2) and found.seeds == (0, 4)
    for entry in found.networks:
        criterion, ratio, repair = (entry.facts[name] for name in ("criterion", "ratio", "post-processor"))
        runs = table[
            (table["criterion"] == criterion) & (table["ratio"] == float(ratio)) & (table["post_processor"] == repair)
        ]
        assert len(runs) == 2 == entry.n_seeds
        for metric in ("accuracy", "worst_group_accuracy", "equalized_odds_difference"):
            figure = entry.overall[metric]
            assert figure.value == pytest.approx(runs[metric].mean())
            assert figure.low == pytest.approx(runs[f"{metric}_low"].mean())
            assert figure.change == pytest.approx(runs[f"{metric}_change"].mean())
            assert (figure.lowest, figure.highest) == pytest.approx((runs[metric].min(), runs[metric].max()))
        for group in "FMX":
            value = entry.by_group[group]["true_positive_rate"].value
            assert value == pytest.approx(runs[f"true_positive_rate[{group}]"].mean())
        assert entry.latency_ms is not None and entry.latency_ms.value == pytest.approx(runs["latency_ms"].mean())
    assert found.data.people == {g: int(table[f"people[{g}]"].iloc[0]) for g in "FMX"}
    assert found.data.n_people == 230 and found.n_boot == 10 and found.timing is not None
    assert found.timing.batch_size == 32 and found.timing.rounds == 6
    assert found.runs is not None and len(found.runs.rows) == len(table)
    assert {method.name: method.settings.get("epsilon") for method in found.methods}["moved"] == "0.2"
    assert in_json(found) == plain(found)
    assert not missing(found, "(one seed)") and not missing(found, "no network was timed")
    assert missing(found, "How many people of each label")


def test_the_pareto_set_of_a_sweep(swept: tuple[Path, pd.DataFrame]) -> None:
    found = report_sweep(swept[0], objectives={"accuracy": "max", "parameters": "min"}, pictures=False)
    points = [(-float(str(n.overall["accuracy"].value)), n.parameters) for n in found.networks]
    for entry, point in zip(found.networks, points, strict=True):
        beaten = any(all(a <= b for a, b in zip(other, point, strict=True)) and other != point for other in points)
        assert entry.pareto == (not beaten)
    table = markdown_tables(found.to_markdown())["Over everybody, with the gaps between sensitive groups"]
    shown = {n.name for n in found.networks if n.pareto} | {"dense"}
    names = [line[0][0] for line in table[1:]] if table[0][0] == ["Network"] else [lines[0] for lines in table[0][1:]]
    assert set(names) == shown and len(names) == len(shown)
    outside = markdown_tables(found.to_markdown())["Networks that are not in the Pareto set"]
    assert len(outside) > 1


def test_flags_of_runs_are_taken_apart() -> None:
    run = {"seed": 1, "criterion": "magnitude", "ratio": 0.5, "parameters": 4, "accuracy": 0.5}
    run |= {
        "worst_group_accuracy": 0.5,
        "people[a]": 3,
        "people[b]": 2,
        "accuracy[a]": 0.5,
        "accuracy[b]": float("nan"),
    }
    flags = (
        "empty cell: a: nobody of class 0; constant classifier: everybody is given label 1; gaps mean nothing; "
        "levelling down: accuracy difference fell; the bound was not met; the search stopped early"
    )
    table = pd.DataFrame(
        [
            {**run, "post_processor": "none", "flags": "empty cell: a: nobody of class 0"},
            {**run, "post_processor": "mine", "flags": flags},
            {
                **run,
                "post_processor": "other",
                "flags": "constant classifier: everybody is given label 0; gaps mean nothing",
            },
        ]
    )
    found = report_sweep(table, facts={"versions": {"torch": "2"}, "latency": {"n_jobs": 2}}, pictures=False)
    assert list(found.flags) == [
        Flag("empty cell", "", "a: nobody of class 0"),
        Flag("constant classifier", "magnitude, 50 %, mine", "everybody is given label 1; gaps mean nothing", 1),
        Flag("levelling down", "magnitude, 50 %, mine", "accuracy difference fell", 1),
        Flag("post-processor", "magnitude, 50 %, mine", "the bound was not met; the search stopped early", 1),
        Flag("constant classifier", "magnitude, 50 %, other", "everybody is given label 0; gaps mean nothing", 1),
    ]
    assert "⚑ constant classifier" in found.to_markdown()
    assert found.networks[0].by_group == {"a": {"accuracy": Figure(0.5)}, "b": {}}
    assert missing(found, "no network was timed") and missing(found, "(one seed)")
    assert found.versions == {"torch": "2"} and not missing(found, "Versions")
    assert missing(report_sweep(table, pictures=False), "Versions of the software")


@needs_matplotlib
def test_a_sweep_with_pictures(swept: tuple[Path, pd.DataFrame]) -> None:
    from matplotlib import pyplot

    found = report_sweep(swept[0])
    assert [picture.name for picture in found.pictures] == ["pareto", "groups-accuracy", "groups-true-positive-rate"]
    assert pyplot.get_fignums() == []
    dense = swept[1][swept[1]["criterion"] == "dense"]
    assert report_sweep(dense).pictures == ()
    if HAS_JINJA:
        page = Page(found.to_html())
        assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [
            p.description for p in found.pictures
        ]
        runs = page.tables["Every run: figures over everybody, and each sensitive group's accuracy"]
        assert len(runs) == 1 + len(swept[1]) and ["accuracy[F]"] in runs[0] and ["accuracy low"] not in runs[0]


def test_a_sweep_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished sweep"):
        report_sweep(tmp_path, pictures=False)
    with pytest.raises(InputError, match="criterion"):
        report_sweep(pd.DataFrame({"seed": [0]}), pictures=False)
    whole = {"seed": [0], "criterion": ["dense"], "ratio": [0.0], "post_processor": ["none"], "parameters": [3]}
    with pytest.raises(InputError, match="people"):
        report_sweep(pd.DataFrame({**whole, "accuracy": [0.5]}), pictures=False)


# In a browser.


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


def test_a_report_runs_each_network_once_over_the_people() -> None:
    rows: dict[str, int] = {}

    class Counted(nn.Linear):
        def __init__(self, name: str) -> None:
            super().__init__(4, 2)
            self.name = name

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows[self.name] = rows.get(self.name, 0) + len(x)
            return super().forward(x)

    x = torch.randn(900, 4, generator=torch.Generator().manual_seed(0))
    batches = [(part, (part[:, 0] > 0).long(), ["a", "b"] * 15) for part in x.split(30)]
    networks = {name: Counted(name) for name in ("dense", "one", "two", "three")}
    made = report_networks(networks, {"test": batches}, latency_rounds=0, pictures=False, n_boot=None, progress=False)
    assert len(made.changed) == 3 and any(change.samples for change in made.changed)
    extra = len(batches[0][0])  # one batch, in which operations are counted
    assert set(rows) == set(networks) and all(900 <= number <= 900 + extra for number in rows.values()), rows


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_report_reads_the_people_once_however_many_networks(number: int) -> None:
    """A first batch for operations and latencies, one pass for all networks, and one to show changed samples."""
    read: list[int] = []

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            for i, batch in enumerate(batches()):
                read.append(i)
                yield batch

    networks = {f"network {seed}": network(seed) for seed in range(number)}
    quiet: dict[str, Any] = {"latency_rounds": 6, "pictures": False, "n_boot": None, "progress": False}
    report_networks(networks, {"test": Loader()}, samples=0, **quiet)
    assert read == [0, 0, 1]
    report_networks(networks, {"test": Loader()}, **quiet)
    assert read[3:] == ([0, 0, 1] if number == 1 else [0, 0, 1, 0, 1])
