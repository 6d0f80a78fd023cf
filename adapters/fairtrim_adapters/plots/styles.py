"""Who looks how in every picture: sensitive groups are filled marks, networks hollow ones of other colours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from fairtrim.printing import figure, points

__all__ = [
    "COLOURS",
    "DENSE_LINE",
    "EVERYBODY",
    "MARKERS",
    "MOST_GROUPS",
    "MOST_NETWORKS",
    "Style",
    "amount",
    "axis_label",
    "better",
    "group_name",
    "group_styles",
    "in_words",
    "network_styles",
    "quoted",
    "short_names",
]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Of sensitive groups: Okabe and Ito, "Color universal design" (2008); without black, which is everybody's, and yellow,
pale on white."""

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "<", ">", "h", "d")
"""Of sensitive groups; they tell them apart without colours, too."""

MOST_GROUPS = 24
"""Sensitive groups on one pair of axes: of more, lines can't be told apart."""

DENSE_LINE = (0, (5, 2.5))
"""Dashes: the dense network, in every picture."""

EVERYBODY = "black"

_NETWORK_COLOURS = ("#332288", "#882255", "#8A7B1F", "#6A3D9A", "#8C510A", "#44858F", "#555555")
"""Of networks: dark ones near Tol's "muted" (2021), none of them a group's."""

_NETWORK_MARKERS = ("o", "s", "^", "D", "v", "p", "<", ">", "h", "d", "P", "X")
_DENSE_MARKER = "*"

MOST_NETWORKS = len(_NETWORK_MARKERS)
"""Networks, criteria or methods on one pair of axes, beside the dense one."""


@dataclass(frozen=True)
class Style:
    """A colour and a marker; ``filled`` for people, hollow for networks."""

    colour: str
    marker: str
    filled: bool = True

    def marks(self, size: float = 6.0) -> dict[str, Any]:
        """Arguments of ``Axes.plot`` for its marks."""
        face = self.colour if self.filled else "white"
        return {
            "color": self.colour,
            "marker": self.marker,
            "markersize": size,
            "markerfacecolor": face,
            "markeredgecolor": self.colour,
            "markeredgewidth": 1.4,
        }


def group_name(group: object) -> str:
    """What a sensitive group is called in pictures.

    Args:
        group: A name, or a tuple of them for a crossing.

    Returns:
        Text.

    Example:
        >>> group_name(("Male", "Black")), group_name("Female")
        ('Male, Black', 'Female')
    """
    return ", ".join(map(str, group)) if isinstance(group, tuple) else str(group)


def group_styles(groups: Iterable[object]) -> dict[str, Style]:
    """One look for each sensitive group of the data, whichever comes first.

    Args:
        groups: Names of all groups of the data, or tuples of crossings, in any order.

    Returns:
        Styles by name, by the place of the name among all, sorted; in the order given.

    Example:
        >>> group_styles(["b", "a"]) == group_styles(["a", "b"]), group_styles(["b", "a"])["a"].marker
        (True, 'o')
    """
    names = list(dict.fromkeys(map(group_name, groups)))
    place = {name: k for k, name in enumerate(sorted(names))}
    return {
        name: Style(COLOURS[place[name] % len(COLOURS)], MARKERS[(place[name] + place[name] // 12) % len(MARKERS)])
        for name in names
    }


def network_styles(names: Iterable[str], dense: str | None = "dense") -> dict[str, Style]:
    """One look for each network, criterion or method, whichever comes first.

    Args:
        names: In any order.
        dense: The one that the others are compared with: a black star.

    Returns:
        Styles by name, in the order given.

    Example:
        >>> styles = network_styles(["dense", "worst group", "magnitude"])
        >>> styles["dense"].marker, styles["magnitude"] == network_styles(["magnitude", "worst group"])["magnitude"]
        ('*', True)
    """
    names = list(dict.fromkeys(names))
    others = sorted((name for name in names if name != dense), key=lambda name: (name.casefold(), name))
    place = {name: k for k, name in enumerate(others)}
    return {
        name: Style(EVERYBODY, _DENSE_MARKER)
        if name == dense
        else Style(
            _NETWORK_COLOURS[place[name] % len(_NETWORK_COLOURS)],
            _NETWORK_MARKERS[place[name] % MOST_NETWORKS],
            filled=False,
        )
        for name in names
    }


_SMALLER = r"parameters|macs|latency|loss|error|perplexity|changed.predictions|false.positive.rate|false.negative.rate"
_NO_SHARE = r"(?<!zero.one.)loss|perplexity|latency|parameters|macs|squared.error|absolute.error"
_LARGER = r"accuracy|true.positive.rate|true.negative.rate|recall|precision|f1|auc|confidence"


def amount(change: float, metric: str) -> str:
    """The size of a change of a metric, as part of a sentence: of a share in points of a hundred.

    Args:
        change: At least 0.
        metric: Its name.

    Returns:
        Text.

    Example:
        >>> amount(0.054, "accuracy"), amount(0.054, "log loss"), amount(0.1, "zero_one_loss")
        ('5.4 points', '0.054', '10.0 points')
    """
    return figure(change) if re.search(_NO_SHARE, metric) else points(change, sign=False)


def better(metric: str) -> str | None:
    """Whether more or less of a metric is better.

    Args:
        metric: Its name, with spaces or underscores.

    Returns:
        ``"max"``, ``"min"``, or None where neither is.

    Example:
        >>> better("worst_group_accuracy"), better("equalized odds difference"), better("selection rate")
        ('max', 'min', None)
    """
    metric = metric.partition("[")[0]
    if metric.endswith(("difference", "_gap", " gap")) or re.match(rf"({_SMALLER})", metric):
        return "min"
    return "max" if re.search(_LARGER, metric) else None


def in_words(metric: str) -> str:
    """What a metric is called in pictures.

    Args:
        metric: Its name.

    Returns:
        Text.

    Example:
        >>> in_words("worst_group_accuracy"), in_words("true_positive_rate")
        ('accuracy of the worst group', 'true positive rate')
    """
    return {"worst_group_accuracy": "accuracy of the worst group"}.get(metric, metric.replace("_", " "))


def quoted(name: str) -> str:
    """A network's name, in quotes where its comma would run into the sentence.

    Args:
        name: The name.

    Returns:
        Text.

    Example:
        >>> quoted("magnitude"), quoted("magnitude, 90 %")
        ('magnitude', '“magnitude, 90 %”')
    """
    return f"“{name}”" if "," in name else name


def axis_label(metric: str, way: str | None, *, vertical: bool = True) -> str:
    """A metric in words, and where better is.

    Args:
        metric: Its name.
        way: As ``better`` gives it.
        vertical: Of the vertical axis; else the horizontal one, whose values rise to the right.

    Returns:
        Text.

    Example:
        >>> axis_label("accuracy", "max"), axis_label("parameters", "min", vertical=False)
        ('accuracy (higher is better ↑)', 'parameters (less is better ←)')
    """
    words = in_words(metric)
    if way is None:
        return words
    comparative = {"max": "higher", "min": "lower"}[way] if vertical else {"max": "more", "min": "less"}[way]
    arrow = {"max": "↑" if vertical else "→", "min": "↓" if vertical else "←"}[way]
    return f"{words} ({comparative} is better {arrow})"


def short_names(names: Sequence[str]) -> list[str]:
    """Module paths without what all of them begin with; none becomes like another.

    Args:
        names: Dotted, distinct.

    Returns:
        As many; what is left begins with a word, not a number, unless the whole path is numbers.

    Example:
        >>> short_names(["bert.encoder.layer.0.output.dense", "bert.encoder.layer.10.output.dense"])
        ['layer.0.output.dense', 'layer.10.output.dense']
        >>> short_names(["0", "2"]), short_names(["model.stem", "model.blocks.3.conv"]), short_names(["net.fc"])
        (['0', '2'], ['stem', 'blocks.3.conv'], ['fc'])
    """
    paths = [name.split(".") for name in names]
    shared = len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*(path[:-1] for path in paths), strict=False))))
    while shared and any(path[shared].isdigit() for path in paths):
        shared -= 1
    return [".".join(path[shared:]) for path in paths]
