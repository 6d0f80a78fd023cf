"""One sentence on who pays for the compression of a language model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from .language_figures import CHANGE, SCORE, SHARE, TIMES

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["language_verdict"]

_LISTED = 3  # networks that a sentence names each


def language_verdict(reference: str, overall: pd.DataFrame, texts_by_group: pd.DataFrame) -> str:
    """Say which texts are predicted worse by how much; without texts, what became of the preference of stereotypes.

    Args:
        reference: Name of the network that changes are measured from.
        overall: Index model.
        texts_by_group: Index (model, sensitive features …), or empty.

    Returns:
        The sentence. A rise of the perplexity is told where the 95 % interval of the same texts says that it is one.

    Example:
        >>> import pandas as pd
        >>> columns = {"perplexity": [38.8, 43.1], TIMES: [1.0, 1.11], f"{TIMES} low": [1.0, 1.05]}
        >>> language_verdict("dense", pd.DataFrame(columns, ["dense", "pruned"]), pd.DataFrame())
        "Against 'dense', pruned's perplexity is 1.11 times as high."
    """
    others = [str(name) for name in overall.index if name != reference]
    if not others:
        row = overall.loc[reference]
        figures = {"perplexity": "{:.2f}", SHARE: "{:.1f} % of pairs", SCORE: "{:.1f} %"}
        told = [f"{name} {text.format(row[name])}" for name, text in figures.items() if name in overall]
        return f"One network, {reference!r}: {told[0]}."
    if TIMES in overall:
        return f"Against {reference!r}, {_perplexities(others, overall, texts_by_group)}."
    clause: Callable[[str], str] = lambda name: _preference(name, overall.loc[name], overall.loc[reference])  # noqa: E731
    return f"Against {reference!r}, {_joined(others, clause)}."


def _joined(names: list[str], clause: Callable[[str], str]) -> str:
    more = f"; {len(names) - _LISTED} more networks are below" if len(names) > _LISTED else ""
    return "; ".join(clause(name) for name in names[:_LISTED]) + more


def _perplexities(others: list[str], overall: pd.DataFrame, texts_by_group: pd.DataFrame) -> str:
    """The worst group of texts of each network; of many networks the one whose group is worst."""
    worst: dict[str, tuple[str, pd.Series]] = {}
    for name in others:
        rows = overall.loc[[name]]
        if len(texts_by_group):
            rows = texts_by_group.xs(name, level="model").dropna(subset=[TIMES])
        certain = rows[rows[f"{TIMES} low"].fillna(math.inf) > 1] if f"{TIMES} low" in rows else rows
        label = (certain if len(certain) else rows)[TIMES].idxmax()
        whom = (label if isinstance(label, str) else ", ".join(map(str, label))) if len(texts_by_group) else ""
        worst[name] = whom, rows.loc[label]

    def clause(name: str) -> str:
        whom, row = worst[name]
        group = f" for {whom}" if whom else ""
        if row[TIMES] <= 1:
            return f"{name}'s perplexity rises for no texts" if whom else f"{name}'s perplexity doesn't rise"
        if row.get(f"{TIMES} low", math.nan) <= 1:
            return f"a rise of {name}'s perplexity can't be told from chance (largest: {row[TIMES]:.2f} times{group})"
        return f"{name}'s perplexity is {row[TIMES]:.2f} times as high{group}"

    if len(others) <= _LISTED:
        return _joined(others, clause)
    ordered = sorted(others, key=lambda name: -float(worst[name][1][TIMES]))
    between = f"{len(others) - 2} of {len(others)} networks are between"
    return f"{clause(ordered[0])}; {clause(ordered[-1])}; {between}"


def _preference(name: str, row: pd.Series, before: pd.Series) -> str:
    if SHARE not in row:
        return f"{name}'s stereotype score is {row[SCORE]:.1f} % instead of {before[SCORE]:.1f}"
    told = f"{name} prefers the stereotype in {row[SHARE]:.1f} % of pairs instead of {before[SHARE]:.1f}"
    chance = row[f"{CHANGE} low"] <= 0 <= row[f"{CHANGE} high"]
    return f"{told}, which may be chance" if chance and row[CHANGE] else told
