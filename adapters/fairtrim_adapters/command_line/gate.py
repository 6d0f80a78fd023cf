"""Whether a check has learned anything: what shuts the gate although no bound is broken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fairtrim_adapters.fairlearn.flags import CONSTANT, FEWEST, NOBODY, ONE_LABEL
from fairtrim_adapters.fairlearn.intervals import GAPS

from .bounds import Bound

__all__ = ["flags_of", "groups_of", "shut"]

_OVER = {
    "true_positive_rate": ("positives",),
    "false_positive_rate": ("negatives",),
    "equalized_odds_difference": ("positives", "negatives"),
}


def flags_of(row: Mapping[str, Any]) -> list[str]:
    """The flags of one network.

    Args:
        row: Of ``measurements``.

    Returns:
        ``kind: detail`` each.

    Example:
        >>> flags_of({"flags": "empty cell: F; one label: everybody is of class 1"})
        ['empty cell: F', 'one label: everybody is of class 1']
    """
    return [flag for flag in row.get("flags", "").split("; ") if flag]


def groups_of(row: Mapping[str, Any]) -> list[str]:
    """The sensitive groups of a row.

    Args:
        row: Of ``measurements``.

    Returns:
        Their names.

    Example:
        >>> groups_of({"people[F]": 3, "accuracy[F]": 1.0})
        ['F']
    """
    return [column[len("people[") : -1] for column in row if column.startswith("people[")]


def shut(
    bounds: Sequence[Bound], row: Mapping[str, Any], reference: Mapping[str, Any], *, min_people: int = FEWEST
) -> list[str]:
    """Why a check of these figures would say nothing, whether its bounds hold or not.

    Args:
        bounds: The bounds.
        row: Of the network, from ``measurements``.
        reference: Of the network that changes are measured from.
        min_people: How many people a sensitive group must have at least; 0 to take any.

    Returns:
        A line each; none for a check that can tell.

    Example:
        >>> row = {"people[F]": 40, "people[M]": 7, "flags": ""}
        >>> shut([], row, row)
        ['people: 7 are M, too few: a standard error of up to 0.19; expected at least 30, or --min-people 7']
    """
    return list(dict.fromkeys(_reasons(bounds, row, reference, min_people)))


def _reasons(
    bounds: Sequence[Bound], row: Mapping[str, Any], reference: Mapping[str, Any], min_people: int
) -> Iterator[str]:
    deciding = [CONSTANT, ONE_LABEL, *([NOBODY] if min_people else [])]
    yield from (flag for flag in flags_of(row) if flag.partition(":")[0] in deciding)
    if any(bound.is_change for bound in bounds):
        yield from (f"of the dense network, {flag}" for flag in flags_of(reference) if flag.startswith(CONSTANT))
    for group in groups_of(reference):
        if group not in groups_of(row):
            yield f"people: the figures of the dense network have {group}, those of this network don't"
    for group in groups_of(row):
        yield from _few(row[f"people[{group}]"], f"are {group}", min_people)
    for bound in bounds:
        for group in _compared(bound, row):
            for word in _OVER.get(bound.name, ()):
                number = row.get(f"{word}[{group}]", 0)
                # of nobody the figure is undefined, which its own verdict says
                yield from _few(
                    number, f"are {group} and {word}, whom {bound.name} is over", min_people if number else 0
                )
        yield from _too_fine(bound, row, min_people)


def _few(number: int, what: str, min_people: int) -> Iterator[str]:
    if number < min_people:
        error = f": a standard error of up to {0.5 / number**0.5:.2f}" if number else ""
        yield f"people: {number} {what}, too few{error}; expected at least {min_people}, or --min-people {number}"


def _compared(bound: Bound, row: Mapping[str, Any]) -> list[str]:
    """The groups whose own rates a figure is made of."""
    return [bound.group] if bound.group else groups_of(row) if bound.name in GAPS else []


def _too_fine(bound: Bound, row: Mapping[str, Any], min_people: int) -> Iterator[str]:
    """A bound on a gap that one person can break: it holds by coincidence."""
    if bound.kind != "max" or bound.name not in GAPS or not min_people:
        return
    numbers = {
        f"{group}" + ("" if word == "people" else f" and {word}"): row.get(f"{word}[{group}]", 0)
        for group in groups_of(row)
        for word in _OVER.get(bound.name, ("people",))
    }
    if not numbers or not min(numbers.values()):
        return
    what, fewest = min(numbers.items(), key=lambda entry: entry[1])
    if bound.value < 1 / fewest:
        yield (
            f"{bound}: too fine for these people: one of the {fewest} who are {what} moves a rate by {1 / fewest:.4f}; "
            "expected a bound of at least that, more people, or --min-people 0"
        )
