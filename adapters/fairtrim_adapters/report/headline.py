"""What a report says in one sentence and three figures, before all its tables."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fairtrim.comparison.verdicts import GroupChange, clause_of, verdict_of
from fairtrim.printing import points
from fairtrim_adapters.plots.styles import quoted

from .contents import Figure, Network, ReportContents

__all__ = ["Headline", "KeyFigure", "headline"]

ALLOWED = 0.01
"""Of two networks within which no group loses more of its accuracy the smaller one is told first."""


@dataclass(frozen=True)
class KeyFigure:
    """A figure to be read from afar.

    Attributes:
        value: The figure.
        words: What it is.
        note: Of whom, and how sure.
    """

    value: str
    words: str
    note: str = ""


@dataclass(frozen=True)
class Headline:
    """The top of a report.

    Attributes:
        verdict: One sentence.
        figures: Three of them: size, performance, and whoever loses most.
    """

    verdict: str
    figures: tuple[KeyFigure, ...]


def headline(report: ReportContents) -> Headline:
    """Who pays how much for which network.

    Of several networks the smallest is told that costs no sensitive group more than a point of accuracy, else the one
    whose largest loss is least; and the one whose largest loss is largest.

    Args:
        report: The report.

    Returns:
        Its top.
    """
    dense = next((network for network in report.networks if network.name == report.reference), None)
    others = [network for network in report.networks if network.name != report.reference]
    if report.data.counted == "texts" and dense is not None:
        return _of_texts(dense, others)
    losses = {n.name: lost for n in others for lost in [_largest_loss(n, dense)] if lost is not None}
    told = [network for network in others if network.name in losses]
    if not told:
        return _alone(dense or max(others, key=_lowest_accuracy))
    within = [network for network in told if losses[network.name][0] <= ALLOWED]
    chosen = (
        min(within, key=lambda n: (n.parameters, losses[n.name][0]))
        if within
        else min(told, key=lambda n: losses[n.name][0])
    )
    worst = max(told, key=lambda n: losses[n.name][0])
    loss, group, change = losses[chosen.name]
    at = _size(chosen)
    verdict = verdict_of(report.reference, {quoted(chosen.name): list(_changes(chosen, dense))}, at).removesuffix(".")
    if worst is not chosen and points(losses[worst.name][0]) != points(loss):
        verdict += f"; {clause_of(quoted(worst.name), list(_changes(worst, dense)))}"
    of_accuracy = "the largest loss of accuracy" if loss > 0 else "the least gain in accuracy"
    over_all = chosen.overall.get("accuracy", Figure(None))
    figures = (
        _size_figure(chosen),
        KeyFigure(_number(over_all.value), "accuracy of everybody", _against(over_all, dense)),
        KeyFigure(points(-loss).replace("-", "−"), f"{group}: {of_accuracy} of any group", _interval(change)),
    )
    return Headline(f"{verdict}.", figures)


def _largest_loss(network: Network, dense: Network | None) -> tuple[float, str, Figure] | None:
    """How much accuracy the group loses that loses most, who that is, and its figure."""
    known = [entry for entry in _changes(network, dense) if not math.isnan(entry.change)]
    lowest = min(known, key=lambda entry: entry.change, default=None)
    if lowest is None:
        return None
    return -lowest.change, lowest.group, network.by_group[lowest.group]["accuracy"]


def _changes(network: Network, dense: Network | None) -> Iterator[GroupChange]:
    """What becomes of the accuracy of each sensitive group; NaN where it isn't known."""
    for group, figures in network.by_group.items():
        figure = figures.get("accuracy", Figure(None))
        before = None if dense is None else dense.by_group.get(group, {}).get("accuracy", Figure(None)).value
        change = figure.change
        if change is None and figure.value is not None and before is not None:
            change = figure.value - before
        ends = (change, figure.change_low, figure.change_high)
        yield GroupChange(group, *(math.nan if value is None else value for value in ends))


def _of_texts(dense: Network, others: list[Network]) -> Headline:
    """Of language models: by how much perplexity rises, and for whose texts most."""
    if not others:
        perplexity = _number(dense.overall.get("perplexity", Figure(None)).value, 2)
        return Headline(
            f"{dense.name} has a perplexity of {perplexity}; nothing is compared with it.",
            tuple(_size_figures(dense, perplexity)),
        )
    network = min(others, key=lambda n: n.parameters)
    rises = {group: figures["perplexity_ratio"] for group, figures in network.by_group.items()
             if "perplexity_ratio" in figures and figures["perplexity_ratio"].value is not None}  # fmt: skip
    figures = list(_size_figures(network, _number(network.overall.get("perplexity", Figure(None)).value, 2)))
    if not rises:
        return Headline(
            f"{_at(network)}{network.name} has a perplexity of {figures[1].value}.",
            tuple(figures),
        )
    group = max(rises, key=lambda name: rises[name].value or 0.0)
    ratio = _number(rises[group].value, 2)
    figures.append(KeyFigure(f"× {ratio}", f"{group}: the largest rise of perplexity", _ends(rises[group], 2)))
    return Headline(
        f"{_at(network)}{network.name} multiplies the perplexity of {group} by {ratio}, most of all groups.",
        tuple(figures),
    )


def _size_figures(network: Network, perplexity: str) -> Iterator[KeyFigure]:
    yield _size_figure(network)
    yield KeyFigure(perplexity, "perplexity of all texts", network.name)


def _lowest_accuracy(network: Network) -> float:
    values = [figures.get("accuracy", Figure(None)).value for figures in network.by_group.values()]
    return min((value for value in values if value is not None), default=-math.inf)


def _alone(dense: Network) -> Headline:
    """Of one network: whom it serves worst."""
    accuracy = dense.overall.get("accuracy", Figure(None))
    known = [
        (figures["accuracy"].value, group, figures["accuracy"])
        for group, figures in dense.by_group.items()
        if "accuracy" in figures and figures["accuracy"].value is not None
    ]
    figures = [_size_figure(dense), KeyFigure(_number(accuracy.value), "accuracy of everybody", _ends(accuracy))]
    verdict = f"{dense.name} has an accuracy of {_number(accuracy.value)}"
    if known:
        value, group, figure = min(known, key=lambda entry: entry[0])
        figures.append(KeyFigure(_number(value), f"{group}: the lowest accuracy of any group", _ends(figure)))
        verdict += f", {_number(value)} for {group}, whom it serves worst"
    return Headline(f"{verdict}; nothing is compared with it.", tuple(figures))


def _size(network: Network) -> str:
    ratio = network.parameters_ratio
    return "" if ratio is None or ratio == 1 else f"{100 * ratio:.3g} % of the parameters"


def _at(network: Network) -> str:
    """The size as the beginning of a sentence."""
    size = _size(network)
    return f"At {size}, " if size else ""


def _size_figure(network: Network) -> KeyFigure:
    ratio, count = network.parameters_ratio, f"{network.parameters:,.0f}"
    if ratio is None:
        return KeyFigure(count, "parameters", network.name)
    return KeyFigure(f"{100 * ratio:.3g} %", "of the parameters are left", f"{network.name}: {count}")


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _ends(figure: Figure, digits: int = 3) -> str:
    if figure.low is None or figure.high is None:
        return ""
    return f"95 % interval {_number(figure.low, digits)} to {_number(figure.high, digits)}"


def _interval(figure: Figure) -> str:
    if figure.change_low is None or figure.change_high is None:
        return ""
    ends = (points(end).removesuffix(" points").replace("-", "−") for end in (figure.change_low, figure.change_high))
    return f"95 % interval {' to '.join(ends)}"


def _against(figure: Figure, dense: Network | None) -> str:
    if dense is None:
        return ""
    before = dense.overall.get("accuracy", Figure(None)).value
    return "" if before is None or figure.value is None else f"{dense.name}: {_number(before)}"
