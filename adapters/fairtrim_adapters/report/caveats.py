"""What was not measured, found out from what is there, and what the figures can't tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from fairtrim.arguments import few_of

from .contents import Data, ReportContents

__all__ = ["LARGE_ENOUGH", "with_caveats"]

Report = TypeVar("Report", bound=ReportContents)

LARGE_ENOUGH = 100
"""Fewer people than this are named: a rate of 100 people has a standard error of up to .05."""

_MOST_NAMED = 12


def _named(words: Sequence[str]) -> str:
    return few_of(words, most=_MOST_NAMED)


def with_caveats(report: Report, *, nobody: Sequence[str] = (), disturbed: bool = False) -> Report:
    """The report with its last two sections.

    Args:
        report: With everything else.
        nobody: Crossings that nobody belongs to.
        disturbed: Whether latencies were measured while other runs ran.

    Returns:
        The report with what it doesn't tell, and what its figures can't.
    """
    return dataclasses.replace(report, limits=_limits(report, disturbed), not_measured=_not_measured(report, nobody))


def _not_measured(report: ReportContents, nobody: Sequence[str]) -> tuple[str, ...]:
    """What is absent from a report."""
    found = []
    if report.timing is None:
        found.append("Latency: no network was timed. Fewer parameters need not be faster.")
    else:
        machine = report.timing.machine
        found.append(f"Latency on other hardware, batch sizes and numbers of threads than those timed ({machine}).")
    found.append("Memory and energy.")
    if not report.intervals:
        found.append("Uncertainty over people: no intervals were computed, so chance differences are not told apart.")
    if len(report.seeds) < 2:
        one = "one seed" if report.seeds else "no seed was recorded: each network is one training and one pruning"
        found.append(f"Variation over training and pruning ({one}). Another seed may favour other networks.")
    elif report.runs is None:
        found.append("Variation over seeds of each network by itself: each is one training and one pruning.")
    found += _people(report.data)
    if nobody:
        found.append(f"Crossings that nobody of the data belongs to: {_named(nobody)}.")
    rates = ("true_positive_rate", "true_positive_rate_of_0")
    if not all(any(rate in network.overall for rate in rates) for network in report.networks):
        found.append("Rates of single classes, such as true positive rates of each of more than two classes.")
    found.append("Calibration of probabilities, and other decision thresholds: decisions are the largest score.")
    found.append("Robustness to noise, to attacks and to drift, and other data than these test people.")
    found.append("Validity of the labels: a label that is wrong more often for some people is taken as it is.")
    found.append("What decisions do to people: costs of the errors differ, and are not weighed here.")
    if not report.changed and (report.runs is not None or len(report.networks) > 1):
        found.append("Which people get another prediction: only their share is given.")
    if all(picture.section != "Predicted damage" for picture in report.pictures):
        found.append("Where in the network the damage arises: no damage table was given.")
    if not report.versions:
        found.append("Versions of the software: not recorded.")
    return tuple(found)


def _people(data: Data) -> list[str]:
    found = []
    features = _named(data.sensitive_features)
    if len(data.sensitive_features) == 1:
        found.append(f"Crossings of sensitive features: only {features} was given.")
    elif len(data.sensitive_features) > 1:
        found.append(f"Each sensitive feature by itself: only the crossings of {features} are shown.")
    elif not any(", " in group for group in data.people):
        found.append("Crossings of sensitive features.")
    found.append(
        "Sensitive features other than "
        + (features or "the one by which people are grouped")
        + ", and people for whom it is not recorded."
    )
    small = [f"{group} ({n:,})" for group, n in data.people.items() if n < LARGE_ENOUGH]
    if small:
        found.append(
            f"Certainty about sensitive groups of fewer than {LARGE_ENOUGH} people: their figures are mostly chance: "
            f"{_named(small)}."
        )
    empty = [
        f"{group}: {data.classes[k]}"
        for group, counts in data.counts.items()
        for k, number in enumerate(counts)
        if number == 0
    ]
    if empty:
        found.append(f"Rates of classes that a sensitive group has nobody of: {_named(empty)}.")
    if not data.counts:
        found.append("How many people of each label a sensitive group has: not recorded.")
    return found


def _limits(report: ReportContents, disturbed: bool) -> tuple[str, ...]:
    """What the figures can't tell."""
    found = [
        "A gap that closes is not a repair: it closes too when those who were served better are served worse. Look at "
        "each sensitive group's absolute figures.",
        "Differences between sensitive groups of a few dozen people are mostly chance.",
        "Figures hold for people drawn like these. If they also trained, scored, repaired or chose a network, its "
        "figures are too good.",
    ]
    if report.intervals:
        found.append(
            "Intervals are of other people drawn like these, each figure by itself: they don't cover training, and of "
            "many figures some leave out 0 by chance. Rates have Wilson's interval, their changes Agresti and Min's. A "
            "gap's reaches from the largest lower end to the largest upper end of the differences between any two "
            "groups, so that it may begin at 0; one that begins above 0 is more than chance. Changes of gaps have "
            "bootstrapped ones, which hold the truth a little less often where one of the gaps is close to 0."
        )
    if report.runs is not None and len(report.seeds) > 1:
        found.append("Means over seeds hide single networks that are worse; the range over seeds shows them.")
    if disturbed:
        found.append("Latencies were measured while other runs ran beside: they tell little.")
    if report.runs is not None:
        found.append(
            "The Pareto set was chosen by these figures, of these people: the best of many are a little too good. "
            "Judge the network that you take on people who had no part in the choice."
        )
    return tuple(found)
