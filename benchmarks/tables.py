"""Tables of the benchmarks: means over seeds with their 95 % intervals, and the figures of every seed as a file."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from scipy.stats import t

__all__ = ["INTERVAL", "add_rows", "save_rows", "with_intervals"]

INTERVAL = "mean ± half-width of the 95 % t-interval over seeds"
"""What the tables of ``with_intervals`` show, for their titles."""


def with_intervals(
    frame: pd.DataFrame, by: str | Sequence[str], decimals: int | Mapping[str, int] = 3, *, level: float = 0.95
) -> pd.DataFrame:
    """Mean ± half-width of Student's t-interval, s · t_{n−1}((1 + level) / 2) / √n, over the n rows of a cell.

    With three seeds t is 4.30, so that the half-width is 2.48 sample standard deviations.

    Args:
        frame: One row a seed and cell; missing figures are left out of their cell.
        by: The columns that name a cell.
        decimals: Places after the point, of all columns or by column (3 for those without).
        level: Share of such intervals that hold the mean of all seeds, if the figures are normal.

    Returns:
        Texts by cell, in the order of the first row of each: the mean alone of a single figure, empty without any.

    Example:
        >>> rows = pd.DataFrame({"way": ["a", "a", "a", "b"], "accuracy": [0.7, 0.8, 0.9, 0.6]})
        >>> print(with_intervals(rows, "way"))
                  accuracy
        way
        a    0.800 ± 0.248
        b            0.600
    """
    grouped = frame.groupby(by, sort=False)
    mean, deviation, number = grouped.mean(), grouped.std(ddof=1), grouped.count()
    half = deviation / number**0.5 * t.ppf((1 + level) / 2, (number - 1).clip(lower=1))

    def text(column: str) -> list[str]:
        places = decimals if isinstance(decimals, int) else decimals.get(column, 3)
        return [
            "" if n == 0 else f"{m:.{places}f}" if n == 1 else f"{m:.{places}f} ± {h:.{places}f}"
            for m, h, n in zip(mean[column], half[column], number[column], strict=True)
        ]

    return pd.DataFrame({column: text(column) for column in mean}, index=mean.index)


def add_rows(parser: argparse.ArgumentParser) -> None:
    """The option that all benchmarks over seeds share.

    Args:
        parser: Gets ``--rows``.
    """
    parser.add_argument("--rows", type=Path, default=None, metavar="FILE", help="write each seed's figures there (CSV)")


def save_rows(frame: pd.DataFrame, file: Path | None) -> None:
    """Write the figures of every seed.

    Args:
        frame: One row a seed and cell.
        file: Where; None for nowhere.
    """
    if file is not None:
        frame.to_csv(file, index=False)
