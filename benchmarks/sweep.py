"""Independent runs through joblib: in this process, in several, or wherever ``joblib.parallel_config`` sends them.

with joblib.parallel_config(backend="dask"):  # or "ray", after its register_ray()
sweep(run, cases)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from joblib import Parallel, delayed
from tqdm.auto import tqdm

__all__ = ["add_jobs", "sweep"]

Case = TypeVar("Case")
Result = TypeVar("Result")


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """The option that all sweeps share.

    Args:
        parser: Gets ``--jobs``.
    """
    parser.add_argument("--jobs", type=int, default=None, help="runs at a time; times are only true for one")


def sweep(run: Callable[[Case], Result], cases: Sequence[Case], jobs: int | None = None) -> list[Result]:
    """Run every case.

    Args:
        run: One run.
        cases: What to run.
        jobs: How many at a time; None leaves it to ``joblib.parallel_config``, by default one.

    Returns:
        The results, in the order of the cases.
    """
    results: Any = Parallel(n_jobs=jobs, return_as="generator")(delayed(run)(case) for case in cases)
    return list(tqdm(results, total=len(cases), desc="runs", leave=False))
