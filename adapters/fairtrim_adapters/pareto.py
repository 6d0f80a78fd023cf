"""What a sweep leaves to choose from: means over seeds, and the rows that no other row beats in everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from fairtrim import InputError
from fairtrim.measures.measure_names import SAME_MEASURES, refuse_other_measure

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DEFAULT_OBJECTIVES", "Direction", "column_called", "mean_over_seeds", "now_called", "pareto_set"]

Direction = Literal["max", "min"]
"""Whether more of a column is better, or less."""

DEFAULT_OBJECTIVES: Mapping[str, Direction] = {"accuracy": "max", "worst_group_accuracy": "max", "parameters": "min"}
"""What ``pareto_set`` compares unless told otherwise."""

_RUN = ("criterion", "pruning_ratio", "post_processor")
_SPREADS = ("accuracy", "worst_group_accuracy")
_FORMER = {"ratio": "pruning_ratio", "accuracy_difference": "accuracy_score_difference"}


def mean_over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each (criterion, pruning ratio, post-processor) of a sweep.

    A mean is NaN if the figure of any seed is, so that each mean is over as many seeds as ``seeds`` says. Ends of
    intervals are averaged like everything else: such an interval tells how uncertain the figures of the people
    are, not how much seeds differ; for that there are the extremes.

    Args:
        frame: One row a run, as ``fairtrim_adapters.sweep.sweep`` gives it.

    Returns:
        In the order of the frame: ``criterion``, ``pruning_ratio``, ``post_processor``; ``seeds``, their number; the
        means of the numeric columns under their names; for accuracy, worst-group accuracy and all columns whose name
        ends in ``_difference``, the extremes over the seeds, ``<column>_lowest`` and ``<column>_highest``; and
        ``flags``, those of any seed. ``seed`` and ``checkpoint`` are left out.

    Raises:
        InputError: A column that tells runs apart is missing, or a run is there twice.

    Example:
        >>> import pandas as pd
        >>> run = {"criterion": "mean-damage", "pruning_ratio": 0.5, "post_processor": "none"}
        >>> runs = pd.DataFrame([{"seed": 0, **run, "accuracy": 0.75}, {"seed": 1, **run, "accuracy": 0.25}])
        >>> mean_over_seeds(runs)[["seeds", "accuracy", "accuracy_lowest", "accuracy_highest"]].iloc[0].tolist()
        [2.0, 0.5, 0.25, 0.75]
    """
    import pandas as pd

    _check_columns(frame, ("seed", *_RUN))
    twice = frame.duplicated(["seed", *_RUN])
    if twice.any():
        run = frame.loc[twice, ["seed", *_RUN]].iloc[0].to_dict()
        raise InputError(f"the run {run} is in the frame more than once; expected a row for each run")
    numeric = [name for name in frame.select_dtypes("number") if name not in ("seed", *_RUN)]
    runs = frame.groupby(list(_RUN), sort=False)
    columns = {"seeds": runs["seed"].nunique()}
    for name in numeric:
        columns[name] = runs[name].agg(_mean)
        if name in _SPREADS or name.endswith("_difference"):
            columns[f"{name}_lowest"], columns[f"{name}_highest"] = runs[name].min(), runs[name].max()
    if "flags" in frame:
        columns["flags"] = runs["flags"].agg(_all_flags)
    return pd.DataFrame(columns).reset_index()


def _mean(values: pd.Series) -> float:
    return float(values.mean(skipna=False))


def _all_flags(values: pd.Series) -> str:
    return "; ".join(dict.fromkeys(flag for flags in values.dropna() for flag in str(flags).split("; ") if flag))


def pareto_set(frame: pd.DataFrame, objectives: Mapping[str, Direction] | None = None) -> pd.Series:
    """Which rows no other row beats.

    A row is in the set unless another row is at least as good in every objective and better in one. Equal rows are all
    in it or all out. A row with NaN in an objective can't be compared: it is never in the set and beats nothing.
    Figures are compared as they are, without their intervals: what is in the set by a hair may be out on other people.

    Args:
        frame: One row a choice, such as ``mean_over_seeds`` of a sweep.
        objectives: Columns (AIF360's names of gaps will do), and whether their values should be large (``"max"``) or
            small (``"min"``); default ``{"accuracy": "max", "worst_group_accuracy": "max", "parameters": "min"}``.
            With a gap, for example:
            ``{"accuracy": "max", "equalized_odds_difference": "min", "parameters": "min"}``; a gap can be small because
            everybody is treated badly, so keep an absolute figure beside it.

    Returns:
        Booleans with the frame's index.

    Raises:
        InputError: A column is missing, isn't numeric or is there twice, a direction is neither ``"max"`` nor
            ``"min"``, or there are no objectives.

    Example:
        >>> import pandas as pd
        >>> runs = pd.DataFrame({"accuracy": [0.9, 0.8, 0.7], "parameters": [100, 50, 60]})
        >>> pareto_set(runs, {"accuracy": "max", "parameters": "min"}).tolist()
        [True, True, False]
    """
    import pandas as pd

    objectives = DEFAULT_OBJECTIVES if objectives is None else objectives
    if not isinstance(objectives, Mapping) or not objectives:
        raise InputError(f"objectives is {objectives!r}; expected columns with 'max' or 'min': {DEFAULT_OBJECTIVES}")
    wrong = {column: direction for column, direction in objectives.items() if direction not in ("max", "min")}
    if wrong:
        raise InputError(f"objectives holds the directions {wrong}; expected 'max' or 'min' for each column")
    _check_columns(frame, ())
    objectives = {column_called(frame, column): direction for column, direction in objectives.items()}
    _check_columns(frame, tuple(objectives))
    costs = np.empty((len(frame), len(objectives)))
    for place, (column, direction) in enumerate(objectives.items()):
        costs[:, place] = _numbers(frame, column) * (1 if direction == "min" else -1)
    return pd.Series(_undominated(costs), index=frame.index, dtype=bool, name="pareto")


def _undominated(costs: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Rows of (N, M) costs that no other row is at most as high as everywhere and below somewhere, (N,).

    Of any number of columns, in N² comparisons; equal rows stay together. A post-processor's front, of two columns and
    a row for each threshold, is sorted instead: ``fairtrim.measures.objective.non_dominated``.
    """
    kept: npt.NDArray[np.bool_] = np.logical_not(np.isnan(costs).any(axis=1))
    comparable = costs[kept]
    kept[kept] = [not bool(((comparable <= row).all(1) & (comparable < row).any(1)).any()) for row in comparable]
    return kept


def _numbers(frame: pd.DataFrame, column: str) -> npt.NDArray[np.float64]:
    import pandas as pd

    if frame.columns.tolist().count(column) > 1:
        raise InputError(f"the frame has several columns called {column!r}; expected one")
    try:
        values = pd.to_numeric(frame[column])
    except (TypeError, ValueError):
        raise InputError(f"the column {column!r} is of type {frame[column].dtype}; expected numbers") from None
    numbers: npt.NDArray[np.float64] = values.to_numpy(dtype=np.float64, na_value=np.nan)
    return numbers


def _check_columns(frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"the sweep is a {type(frame).__name__}; expected a pandas DataFrame with one row a run")
    missing = [name for name in columns if name not in frame]
    if missing:
        former = now_called(frame, missing)
        raise InputError(f"the frame has no column {missing}{former}; its columns are {frame.columns.tolist()}")


def column_called(frame: pd.DataFrame, name: str) -> str:
    """The column that a name means: AIF360's names of measures, too, mean Fairlearn's columns.

    Args:
        frame: Of a sweep.
        name: Of a column, or another one of its measure.

    Returns:
        The column's name; the name itself where there is none.

    Raises:
        InputError: It is the name of another measure, which these frames never have.

    Example:
        >>> import pandas as pd
        >>> column_called(pd.DataFrame({"demographic_parity_difference": [0.1]}), "statistical_parity_difference")
        'demographic_parity_difference'
    """
    if name in frame or name in _FORMER:
        return name
    refuse_other_measure(name)
    return SAME_MEASURES.get(name, name)


def now_called(frame: pd.DataFrame, missing: Sequence[str]) -> str:
    """What columns are called now, for a message about those that are missing.

    Args:
        frame: Of a sweep, perhaps one of before.
        missing: Columns that it lacks, perhaps asked for under a former name.

    Returns:
        Text with a semicolon before it; nothing if no former name is the cause.

    Example:
        >>> import pandas as pd
        >>> now_called(pd.DataFrame({"ratio": [0.5]}), ["pruning_ratio"])
        "; 'ratio' is called 'pruning_ratio' now"
    """
    asked = {old: new for old, new in _FORMER.items() if old in missing}
    held = {old: new for old, new in _FORMER.items() if old in frame and new not in frame}
    told = asked | (held if set(held.values()) & set(missing) else {})
    return "; " + " and ".join(f"{old!r} is called {new!r} now" for old, new in told.items()) if told else ""
