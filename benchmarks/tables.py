"""Tables of the benchmarks: means over seeds with their 95 % intervals, and the figures of every seed as a file.

    python -m benchmarks.adult_pruning --rows rows.csv
    python -m benchmarks.tables rows.csv --by criterion --where pruning_ratio=0.5 epochs=0 --minus "tp magnitude"

All methods of a seed start from the same network, so their differences vary less over seeds than they do themselves:
the second command prints each method minus one of them, within seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from scipy.stats import t

__all__ = ["INTERVAL", "add_rows", "differences", "save_rows", "with_intervals"]

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


def differences(frame: pd.DataFrame, by: str, minus: str) -> pd.DataFrame:
    """Each method's figures minus those of one method with the same seed.

    Args:
        frame: One row a seed and method; the other columns are figures.
        by: The column of the methods.
        minus: The method that is subtracted.

    Returns:
        As the frame, without rows of the method that is subtracted.

    Raises:
        SystemExit: There are several rows of a method and seed, or no such method.

    Example:
        >>> rows = pd.DataFrame({"seed": [0, 1, 0, 1], "way": list("aabb"), "accuracy": [0.5, 0.7, 0.6, 0.9]})
        >>> print(differences(rows, "way", "a").round(3).to_string(index=False))
        seed way  accuracy
           0   b       0.1
           1   b       0.2
    """
    if minus not in set(frame[by]):
        raise SystemExit(f"got no {by} {minus!r}, expected one of {list(frame[by].unique())}")
    if frame.duplicated(["seed", by]).any():
        raise SystemExit(f"got several rows of the same seed and {by}: choose among them with --where COLUMN=VALUE")
    table = frame.set_index(["seed", by])
    base = table.xs(minus, level=by).reindex(table.index.get_level_values("seed")).to_numpy()
    return (table - base).drop(index=minus, level=by).reset_index()


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="what --rows wrote")
    parser.add_argument("--by", required=True, help="the column of the methods")
    parser.add_argument("--minus", required=True, help="the method that is subtracted")
    parser.add_argument(
        "--where", nargs="*", default=[], metavar="COLUMN=VALUE", help="only rows with this in the file"
    )
    arguments = parser.parse_args()
    frame = pd.read_csv(arguments.file).dropna(subset=[arguments.by])  # a file may hold several tables
    for column, value in (condition.split("=", 1) for condition in arguments.where):
        frame = frame[frame[column].astype(str) == value].drop(columns=column)
    figures = [name for name in frame.select_dtypes("number") if name not in ("seed", arguments.by)]
    parts = differences(
        frame[["seed", arguments.by, *figures]].dropna(axis=1, how="all"), arguments.by, arguments.minus
    )
    print(f"Difference from {arguments.minus!r} with the same seed, {INTERVAL}")
    print(with_intervals(parts.drop(columns="seed"), arguments.by).to_string())


if __name__ == "__main__":
    main()
