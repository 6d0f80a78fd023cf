"""Bounds on the figures of a network, for a gate: ``equalized_odds_difference=0.1``."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fairtrim import InputError
from fairtrim.measures.measure_names import BIAS_MEASURE_NAMES, canonical_measure
from fairtrim_adapters.fairlearn.intervals import GAPS, MAX_CLASSES, RATES_OF_TWO_CLASSES
from fairtrim_adapters.fairlearn.measurements import column_of

__all__ = ["Bound", "Verdict", "counted_over", "judge", "parse_bounds"]

_SHARES = {"accuracy", "balanced_accuracy", "worst_group_accuracy", "changed_predictions", *GAPS, *RATES_OF_TWO_CLASSES}

_OVER = {
    "true_positive_rate": ("positives",),
    "false_positive_rate": ("negatives",),
    "equalized_odds_difference": ("positives", "negatives"),
}

Kind = Literal["max", "min", "max-drop", "max-rise"]


@dataclass(frozen=True)
class Bound:
    """One bound.

    Attributes:
        kind: ``max`` or ``min`` of the figure itself; ``max-drop`` or ``max-rise`` of its change against the reference.
        metric: Name of the figure, such as ``accuracy`` or ``accuracy[Female]``.
        value: The bound.
    """

    kind: Kind
    metric: str
    value: float

    @property
    def name(self) -> str:
        """The metric without the sensitive group."""
        return self.metric.partition("[")[0]

    @property
    def group(self) -> str:
        """The sensitive group; empty for everybody."""
        return self.metric.partition("[")[2].removesuffix("]")

    @property
    def is_change(self) -> bool:
        """Whether it is of the change against the reference."""
        return self.kind in ("max-drop", "max-rise")

    @property
    def column(self) -> str:
        """The column that is compared."""
        return column_of(self.metric, "_change") if self.is_change else self.metric

    def __str__(self) -> str:
        return f"--{self.kind} {self.metric}={self.value:g}"


@dataclass(frozen=True)
class Verdict:
    """Whether a bound holds.

    Attributes:
        bound: The bound.
        holds: Whether.
        text: One line: the figure, its interval, the bound.
    """

    bound: Bound
    holds: bool
    text: str


def parse_bounds(kind: Kind, texts: Iterable[str]) -> list[Bound]:
    """Read bounds of one kind.

    Args:
        kind: Which.
        texts: ``metric=value``; dashes and spaces in the name are underscores, and AIF360's name of a measure is
            Fairlearn's.

    Returns:
        The bounds.

    Raises:
        InputError: One has no value, no finite number for it, or the former name of a measure.

    Example:
        >>> parse_bounds("max", ["equalized-odds-difference=0.1"])[0].metric
        'equalized_odds_difference'
    """
    bounds = []
    for text in texts:
        metric, _, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not metric or not math.isfinite(number):
            raise InputError(f"--{kind} {text!r}: expected metric=number, e.g. --{kind} accuracy=0.01")
        name, bracket, group = metric.partition("[")
        name = name.strip().replace("-", "_").replace(" ", "_")
        try:
            name = canonical_measure(name, [name])  # of figures that are no bias measures, their own
        except InputError as error:
            raise InputError(f"--{kind} {text!r}: {error}") from error
        bounds.append(Bound(kind, name + bracket + group, number))
    return bounds


def judge(bounds: Iterable[Bound], figures: Mapping[str, Any], *, confident: bool = False) -> list[Verdict]:
    """Compare figures with bounds.

    Args:
        bounds: The bounds.
        figures: A row of ``fairtrim_adapters.fairlearn.measurements``.
        confident: Whether the worse end of the 95 % interval must be within the bound too. A bound that is met on the
            point alone may be met by chance.

    Returns:
        Verdicts in the order of the bounds.

    Raises:
        InputError: There is no such figure, or no interval of it, or no network can break a bound.

    Example:
        >>> figures = {"accuracy": 0.8, "accuracy_low": 0.7, "accuracy_high": 0.9}
        >>> [verdict.holds for verdict in judge(parse_bounds("min", ["accuracy=0.75"]), figures)]
        [True]
        >>> print(judge(parse_bounds("min", ["accuracy=0.75"]), figures, confident=True)[0].text)
        accuracy = 0.8000 [0.7000, 0.9000], asked for: at least 0.75 over the whole interval
    """
    return [_verdict(bound, figures, confident) for bound in bounds]


def _verdict(bound: Bound, figures: Mapping[str, Any], confident: bool) -> Verdict:
    column = bound.column
    if column not in figures:
        raise InputError(f"{bound}: {_unknown(bound, figures)}")
    low, high = (figures.get(column_of(column, end)) for end in ("_low", "_high"))
    if bound.name.partition("_of_")[0] in _SHARES and (bound.value < 0 if bound.kind == "min" else bound.value > 1):
        raise InputError(
            f"{bound}: no network can break it, since {bound.name} is a share between 0 and 1; expected one such, e.g. "
            f"--{bound.kind} {bound.metric}=0.1 for 10 %"
        )
    if confident and (low is None or high is None):
        raise InputError(
            f"{bound}: there is no interval of {column}; expected a figure with one, and --bootstrap above 0"
        )
    sign = -1.0 if bound.kind == "max-drop" else 1.0
    least = bound.kind == "min"
    value = figures[column]
    end = low if least or sign < 0 else high
    worst = end if confident else value
    one_group = _one_group(bound, figures)
    if _is_none(value) or one_group:
        why = one_group or _nobody(bound, figures)
        return Verdict(bound, False, f"{bound.metric} is undefined for these people{why}; asked for: {bound}")
    if _is_none(worst):
        return Verdict(bound, False, f"{bound.metric} has no interval for these people; asked for: {bound}")

    def within(number: Any) -> bool:
        return bool(number >= bound.value if least else sign * number <= bound.value)

    holds = within(worst)
    ends = sorted([sign * low, sign * high]) if low is not None and high is not None else None
    what = {"max": "", "min": "", "max-drop": "drop of ", "max-rise": "rise of "}[bound.kind]
    text = f"{what}{bound.metric} = {sign * value + 0.0:.4f}"
    text += f" [{ends[0] + 0.0:.4f}, {ends[1] + 0.0:.4f}]" if ends else ""
    text += f", asked for: at {'least' if least else 'most'} {bound.value:g}"
    if confident:
        text += " over the whole interval"
    elif holds and not _is_none(end) and not within(end):
        text += "; the interval reaches beyond it"
    return Verdict(bound, holds, text)


def _is_none(value: Any) -> bool:
    return value is None or math.isnan(value)


def _one_group(bound: Bound, figures: Mapping[str, Any]) -> str:
    """Why there is nothing to compare."""
    groups = [name for name in figures if name.startswith("people[")]
    if len(groups) != 1 or bound.name not in (*GAPS, "worst_group_accuracy"):
        return ""
    return f", who are one sensitive group, {groups[0][len('people[') : -1]}"


def _nobody(bound: Bound, figures: Mapping[str, Any]) -> str:
    """Which label the figure lacks people of."""
    words = counted_over(bound.name, figures) or counted_over("equalized_odds_difference", figures)
    empty = [
        f"{group.removesuffix(']')} has {_none_of(word)}"
        for name in figures
        for word, bracket, group in [name.partition("[")]
        if bracket and word in words and not figures[name]
        if group.removesuffix("]") == bound.group or not bound.group
    ]
    return f": {', '.join(empty)}" if empty else ""


def _none_of(word: str) -> str:
    kind, _, label = word.partition("_of_")
    return f"nobody {'with' if kind == 'positives' else 'without'} label {label}" if label else f"no {word}"


def counted_over(name: str, figures: Mapping[str, Any]) -> list[str]:
    """Which numbers of people a figure is a rate of, or compares rates of, beside those of all people.

    Args:
        name: The figure, without a group.
        figures: A row of ``fairtrim_adapters.fairlearn.measurements``.

    Returns:
        Names of columns without a group: ``positives`` and ``negatives``, or those of each class.

    Example:
        >>> row = {"positives_of_0[F]": 3, "negatives_of_0[F]": 4}
        >>> counted_over("equalized_odds_difference", row), counted_over("false_positive_rate_of_0", row)
        (['positives_of_0', 'negatives_of_0'], ['negatives_of_0'])
    """
    rate, _, label = name.partition("_of_")
    words = dict.fromkeys(column.partition("[")[0] for column in figures if "[" in column)
    kinds = _OVER.get(rate, ())
    if label:
        return [f"{kind}_of_{label}" for kind in kinds]
    return [word for word in words if word.partition("_of_")[0] in kinds]


def _unknown(bound: Bound, figures: Mapping[str, Any]) -> str:
    ends = ("_low", "_high", "_change")
    names = [
        name
        for name, value in figures.items()
        if isinstance(value, int | float) and not name.partition("[")[0].endswith(ends)
    ]
    if bound.name in GAPS:
        return (
            f"it compares rates of each class, of up to {MAX_CLASSES} classes, and these data have more; expected "
            "accuracy or a figure made of it"
        )
    if bound.name in RATES_OF_TWO_CLASSES:
        return (
            "it is the rate of label 1 of two classes, and these data have more; expected that of one class, such as "
            f"{bound.name}_of_1, of up to {MAX_CLASSES} classes"
        )
    if bound.name in BIAS_MEASURE_NAMES:
        return (
            "no such figure; expected equalized_odds_difference, the larger difference of true and false positive "
            f"rates, than which {bound.name} is never larger"
        )
    near = difflib.get_close_matches(bound.metric, names, 1, cutoff=0.5)
    meant = f"did you mean {near[0]!r}? " if near else ""
    overall = [name for name in names if "[" not in name]
    groups = sorted({name.partition("[")[2].removesuffix("]") for name in names if "[" in name})
    example = f"accuracy[{groups[0]}]" if groups else "accuracy[name]"
    return f"no such figure; {meant}expected one of {overall}, or one of a sensitive group, such as {example}"
