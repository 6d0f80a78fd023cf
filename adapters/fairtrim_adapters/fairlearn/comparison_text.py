"""A comparison as it is printed: a sentence, a table of the sensitive groups, one of everybody, flags."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fairtrim.comparison.verdicts import GroupChange, verdict_of, verdict_of_one
from fairtrim.printing import Block, TextTable, figure

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["comparison_blocks", "comparison_verdict"]

CHANGE, CHANGED = "change in accuracy", "changed predictions"
_ENDS = (" low", " high")
_HIDDEN = (CHANGE, CHANGED, "excess change", "people", "accuracy")


def comparison_verdict(reference: str, by_group: pd.DataFrame, at: str) -> str:
    """The sentence of a comparison.

    Args:
        reference: Name of the network that changes are measured from.
        by_group: Index (model, sensitive features …).
        at: What the networks have in common.

    Returns:
        The sentence; of one network its worst group.

    Example:
        >>> import pandas as pd
        >>> rows = pd.MultiIndex.from_tuples([("dense", "a"), ("dense", "b")], names=["model", "team"])
        >>> comparison_verdict("dense", pd.DataFrame({"accuracy": [0.9, 0.8]}, rows), "")
        "One network, 'dense': its accuracy is lowest for b, 0.800."
    """
    others = [name for name in by_group.index.unique("model") if name != reference]
    if others:
        return verdict_of(reference, {str(name): _changes(by_group.loc[[name]]) for name in others}, at)
    return verdict_of_one(reference, {_group(index): value for index, value in by_group["accuracy"].items()})


def _changes(rows: pd.DataFrame) -> list[GroupChange]:
    ends = [f"{CHANGE}{end}" for end in _ENDS if f"{CHANGE}{end}" in rows]
    return [
        GroupChange(_group(index), float(row[CHANGE]), *(float(row[end]) for end in ends))
        for index, row in rows.iterrows()
    ]


def _group(index: Any) -> str:
    """A group's name of (model, sensitive features …)."""
    return ", ".join(map(str, index[1:]))


def comparison_blocks(
    verdict: str, reference: str, by_group: pd.DataFrame, overall: pd.DataFrame, flags: pd.DataFrame, left: str
) -> Iterator[Block]:
    """What a comparison shows.

    Args:
        verdict: Its sentence.
        reference: Name of the network that changes are measured from.
        by_group: Index (model, sensitive features …).
        overall: Index model.
        flags: model, flag, detail.
        left: What isn't shown; may be empty.

    Yields:
        Sentences and tables.
    """
    told = "; [interval over people]" if any(name.endswith(_ENDS) for name in by_group) else ""
    yield verdict
    yield _groups(reference, by_group, f"By sensitive group (changes against {reference!r}{told})")
    everybody = list(overall.iterrows())
    figures = [name for name in overall if not name.endswith(_ENDS) and " rate of " not in name]
    rows = [
        [name, *("-" if name == CHANGED and model == reference else _shown(row, name) for model, row in everybody)]
        for name in figures
    ]
    yield TextTable(["", *map(str, overall.index)], rows, title="Everybody")
    if left:
        yield left
    if len(flags):
        yield "\n".join(["Flags", *(f"  {model}: {flag}: {detail}" for model, flag, detail in flags.to_numpy())])


def _groups(reference: str, by_group: pd.DataFrame, title: str) -> TextTable:
    features = by_group.index.names[1:]
    rates = [
        name
        for name in by_group
        if name not in _HIDDEN and not name.endswith(_ENDS) and " rate of " not in name  # three a class: too many
    ]
    first = [name for name in ("people", "accuracy", CHANGE, CHANGED) if name in by_group]
    heads = ["change" if name == CHANGE else name for name in first]
    rows = []
    for index, row in by_group.iterrows():
        if row.drop(labels="people", errors="ignore").isna().all():
            continue  # a crossing that nobody belongs to
        changes = [] if index[0] == reference else [CHANGE, CHANGED]
        cells = [
            _shown(row, name, sign=name == CHANGE) if name in changes or name not in (CHANGE, CHANGED) else "-"
            for name in [*first, *rates]
        ]
        rows.append([str(index[0]), _group(index), *cells])
    return TextTable(["model", ", ".join(map(str, features)), *heads, *rates], rows, names=2, title=title)


def _shown(row: pd.Series, name: str, *, sign: bool = False) -> str:
    value = float(row[name])
    if name == "people" and value == value:
        return figure(int(value))
    low, high = (row.get(f"{name}{end}") for end in _ENDS)
    return figure(value, low, high, sign=sign)
