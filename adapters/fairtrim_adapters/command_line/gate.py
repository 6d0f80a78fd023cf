"""Whether a check has learned anything: what shuts the gate although no bound is broken."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fairtrim_adapters.fairlearn.flags import CONSTANT, FEWEST, NOBODY, OF_NONE, ONE_LABEL
from fairtrim_adapters.fairlearn.intervals import GAPS

from .bounds import Bound, counted_over

__all__ = ["flags_of", "groups_of", "shut"]

_WHOM = {"people": "", "positives": " with a positive label", "negatives": " with a negative label"}
_OF_LABEL = {"positives": " with label ", "negatives": " without label "}


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
        >>> for part in shut([], row, row)[0].split("; "):
        ...     print(part)
        group M has 7 people, fewer than --min-people 30: a standard error of up to 0.19
        expected more people, or --min-people 7
    """
    return list(dict.fromkeys(_reasons(bounds, row, reference, min_people)))


def _reasons(
    bounds: Sequence[Bound], row: Mapping[str, Any], reference: Mapping[str, Any], min_people: int
) -> Iterator[str]:
    nobody = [flag for flag in flags_of(row) if min_people and flag.startswith(NOBODY) and flag.endswith(OF_NONE)]
    yield from (flag for flag in flags_of(row) if flag.partition(":")[0] in (CONSTANT, ONE_LABEL) or flag in nobody)
    if any(bound.is_change for bound in bounds):
        yield from (f"of the dense network, {flag}" for flag in flags_of(reference) if flag.startswith(CONSTANT))
    for group in groups_of(reference):
        if group not in groups_of(row):
            yield f"people: the figures of the dense network have {group}, those of this network don't"
    few = {group: _fewest(bounds, row, group) for group in groups_of(row)}
    few = {group: (number, whom) for group, (number, whom) in few.items() if number < min_people}
    fine = _too_fine(bounds, row) if min_people else {}
    # one value that accepts all of them: a bound that is too fine stays so with any but 0
    accepted = 0 if nobody or fine else min((number for number, _ in few.values()), default=0)
    for group in groups_of(row):
        said = []
        if group in few:
            number, whom = few[group]
            error = f": a standard error of up to {0.5 / number**0.5:.2f}" if number else ""
            said.append(f"group {group} has {_counted(number, whom)}, fewer than --min-people {min_people}{error}")
        if group in fine:
            number, whom, bound = fine[group]
            start = "" if said else f"group {group}: "
            said.append(
                f"{start}one of {_counted(number, whom)} moves a rate by {1 / number:.4f}, so that {bound} is too fine"
            )
        if said:
            yield f"{', and '.join(said)}; expected more people{_or_wider(group in fine)}, or --min-people {accepted}"


def _or_wider(fine: bool) -> str:
    return ", a wider bound" if fine else ""


def _counted(number: int, whom: str) -> str:
    kind, _, label = whom.partition("_of_")
    return f"{number} {'person' if number == 1 else 'people'}{_OF_LABEL[kind] + label if label else _WHOM[kind]}"


def _fewest(bounds: Sequence[Bound], row: Mapping[str, Any], group: str) -> tuple[int, str]:
    """The smallest number of people of a group that a rate is over, and of whom."""
    over = (counted_over(bound.name, row) for bound in bounds if group in _compared(bound, row))
    numbers = [(row.get(f"{word}[{group}]", 0), word) for word in ("people", *itertools.chain.from_iterable(over))]
    # of nobody the figure is undefined, which its own verdict says
    return min((entry for entry in numbers if entry[0]), key=lambda entry: entry[0], default=(0, "people"))


def _compared(bound: Bound, row: Mapping[str, Any]) -> list[str]:
    """The groups whose own rates a figure is made of."""
    return [bound.group] if bound.group else groups_of(row) if bound.name in GAPS else []


def _too_fine(bounds: Sequence[Bound], row: Mapping[str, Any]) -> dict[str, tuple[int, str, Bound]]:
    """By group the bound on a gap that one person of it can break, the finest: it holds by coincidence."""
    found: dict[str, tuple[int, str, Bound]] = {}
    for bound in bounds:
        if bound.kind != "max" or bound.name not in GAPS:
            continue
        numbers = [
            (row.get(f"{word}[{group}]", 0), word, group)
            for group in groups_of(row)
            for word in counted_over(bound.name, row) or ["people"]
        ]
        number, word, group = min(numbers, key=lambda entry: entry[0], default=(0, "", ""))
        if number and bound.value < 1 / number and (group not in found or bound.value < found[group][2].value):
            found[group] = number, word, bound
    return found
