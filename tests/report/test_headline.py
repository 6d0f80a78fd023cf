"""The top of a report: who pays how much for which network, with figures that are those of the tables."""

from __future__ import annotations

import dataclasses
from typing import Any

from fairtrim_adapters.report import Report
from fairtrim_adapters.report.contents import Data, Figure, Network
from fairtrim_adapters.report.headline import headline
from tests.report_cases import Page, needs_jinja


def _network(name: str, share: float, changes: dict[str, float], **more: Any) -> Network:
    groups = {g: {"accuracy": Figure(0.9 + c, 0.8, 0.95, c, c - 0.01, c + 0.01)} for g, c in changes.items()}
    mean = sum(changes.values()) / max(1, len(changes))
    return Network(
        name, "", 1000 * share, share, 0.0, None, None, None, {}, {"accuracy": Figure(0.9 + mean)}, groups, **more
    )


def _report(report: Report, *networks: Network) -> Report:
    dense = _network("dense", 1.0, dict.fromkeys("FM", 0.0))
    return dataclasses.replace(report, networks=(dense, *networks))


def test_the_smallest_that_costs_no_group_more_than_a_point_is_told(report: Report) -> None:
    large = _network("large", 0.6, {"F": -0.001, "M": -0.002})
    small = _network("small", 0.25, {"F": -0.008, "M": 0.01})
    smaller = _network("smaller, 90 %", 0.1, {"F": -0.002, "M": -0.051})
    found = headline(_report(report, large, smaller, small))
    assert found.verdict == (
        "At 25 % of the parameters, against 'dense', a loss by small can't be told from chance (largest: F 0.8 "
        "points); “smaller, 90 %” costs M 5.1 points of accuracy."
    )
    assert [figure.value for figure in found.figures] == ["25 %", "0.901", "−0.8 points"]
    assert found.figures[2].words.startswith("F: ") and found.figures[2].note == "95 % interval −1.8 to +0.2"
    assert found.figures[1].note == "dense: 0.900"


def test_where_all_cost_more_the_least_loss_is_told(report: Report) -> None:
    two = [_network("a", 0.2, {"F": -0.05, "M": 0.0}), _network("b", 0.4, {"F": 0.0, "M": -0.03})]
    told = headline(_report(report, *two)).verdict
    assert told.startswith("At 40 % of the parameters, against 'dense', b costs M 3.0 points of accuracy;")
    gains = _network("c", 1.0, {"F": 0.01, "M": 0.02})
    found = headline(_report(report, gains))
    assert found.verdict == "Against 'dense', c costs no group accuracy among these people."
    assert found.figures[2].value == "+1.0 points" and "the least gain" in found.figures[2].words
    more = _network("d", 0.9, {"F": 0.03, "M": 0.04})
    assert headline(_report(report, gains, more)).verdict.endswith("; c costs no group accuracy among these people.")


def test_without_changes_they_are_taken_from_the_reference(report: Report) -> None:
    other = _network("other", 0.5, {"F": -0.02, "M": 0.0})
    bare = {g: {"accuracy": Figure(figures["accuracy"].value)} for g, figures in other.by_group.items()}
    found = headline(_report(report, dataclasses.replace(other, by_group=bare)))
    assert "other costs F 2.0 points" in found.verdict and found.figures[2].note == ""


def test_one_network_is_told_by_whom_it_serves_worst(report: Report) -> None:
    found = headline(_report(report))
    assert (
        found.verdict
        == "dense has an accuracy of 0.900, 0.900 for F, whom it serves worst; nothing is compared with it."
    )


def test_without_a_reference_the_best_for_the_worst_group_is_told(report: Report) -> None:
    bare = [
        dataclasses.replace(_network(name, 0.5, {}), by_group={"F": {"accuracy": Figure(value)}})
        for name, value in (("a", 0.7), ("b", 0.8))
    ]
    found = headline(dataclasses.replace(report, networks=tuple(bare)))
    assert found.verdict.startswith("b has an accuracy of") and "0.800 for F" in found.verdict


def test_language_models_are_told_by_perplexity(report: Report) -> None:
    texts = Data("t", "", 9, (), (), {"x": 4, "y": 5}, {}, counted="texts")

    def model(name: str, share: float, ratios: dict[str, float]) -> Network:
        groups = {g: {"perplexity_ratio": Figure(ratio)} for g, ratio in ratios.items()}
        overall = {"perplexity": Figure(20.0 / share)}
        return Network(name, "", 1000 * share, share, 0.0, None, None, None, {}, overall, groups)

    both = (model("dense", 1.0, {"x": 1.0, "y": 1.0}), model("pruned", 0.8, {"x": 1.2, "y": 1.5}))
    found = headline(dataclasses.replace(report, data=texts, networks=both))
    assert (
        found.verdict == "At 80 % of the parameters, pruned multiplies the perplexity of y by 1.50, most of all groups."
    )
    assert [figure.value for figure in found.figures] == ["80 %", "25.00", "× 1.50"]
    alone = headline(dataclasses.replace(report, data=texts, networks=both[:1]))
    assert alone.verdict == "dense has a perplexity of 20.00; nothing is compared with it."


@needs_jinja
def test_every_form_begins_with_the_verdict(report: Report) -> None:
    top = headline(report)
    losses = {
        (n.name, group): -(figures["accuracy"].change or 0.0)
        for n in report.networks
        if n.name != report.reference
        for group, figures in n.by_group.items()
    }
    (_, group), loss = max(losses.items(), key=lambda entry: entry[1])
    assert report.verdict() == top.verdict and f"{group} {100 * loss:.1f}" in top.verdict
    page = Page(report.to_html())
    assert page.text.index(top.verdict) < page.text.index("Flags")
    assert page.text.count(top.verdict) == 1 and all(figure.value in page.text for figure in top.figures)
    lines = report.to_markdown().splitlines()
    assert lines[0].startswith("## ") and lines[2].startswith("**") and lines[4].startswith("- **")
