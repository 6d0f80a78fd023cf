"""Who pays for a smaller network: its accuracy and loss by sensitive group beside the dense one's, to be printed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fairtrim.comparison.verdicts import GroupChange, worst_of
from fairtrim.printing import TextTable, count, figure, movement, points

from .measuring import EVERYBODY

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ends_of", "group_table", "who_pays"]

_Z = 1.959963984540054
_OF = {
    "": "without a refit",
    "after a refit": "after the refit",
    "(sum of single)": "without a refit, as the sum of single channels",
}
"""Of what a prediction is, by what stands behind "predicted change" in the name of its column."""


def ends_of(row: Any, kind: str) -> tuple[float, float]:
    """The 95 % interval of a change: as it was measured, else by its standard error.

    Args:
        row: Of a measured table.
        kind: ``"loss"`` or ``"accuracy"``.

    Returns:
        Its ends; NaN where there is none.
    """
    if f"{kind} low" in row:
        return float(row[f"{kind} low"]), float(row[f"{kind} high"])
    change, half = float(row[f"{kind} change"]), _Z * float(row[f"{kind} standard error"])
    return change - half, change + half


def who_pays(measured: pd.DataFrame) -> str:
    """The largest loss of a sensitive group, and what becomes of everybody, as part of a sentence.

    Args:
        measured: What ``measured_by_group`` gives.

    Returns:
        Text; it says so where the group's loss may be chance.

    Example:
        >>> import pandas as pd
        >>> row = {"sensitive_group": "Male", "people": 9, "accuracy dense": 0.75, "accuracy pruned": 0.5}
        >>> row |= {"accuracy change": -0.25, "accuracy standard error": 0.1}
        >>> who_pays(pd.DataFrame([row, row | {"sensitive_group": "everybody"}]))
        'accuracy of everybody falls from 0.750 to 0.500, judged on 9 people'
    """
    overall = measured.iloc[-1]
    kind = "loss" if math.isnan(overall["accuracy change"]) else "accuracy"
    groups = measured[measured["sensitive_group"] != EVERYBODY]
    text = f"{kind} of everybody {movement(overall[f'{kind} dense'], overall[f'{kind} pruned'])}"
    if len(groups) > 1 and (worst := worst_of([_change_of(row, kind) for _, row in groups.iterrows()])) is not None:
        told, remark = worst
        shown = points(told.change, told.low, told.high)
        if kind == "loss":
            shown = figure(-told.change, -told.high, -told.low, sign=True)
        text += f", worst for {told.group} ({shown}{remark})"
    return f"{text}, judged on {count(overall['people'])} people"


def _change_of(row: Any, kind: str) -> GroupChange:
    """What a group loses; of a mean loss, which is worse the larger it is, with the other sign."""
    change, low, high = float(row[f"{kind} change"]), *ends_of(row, kind)
    group = row["sensitive_group"]
    return GroupChange(group, -change, -high, -low) if kind == "loss" else GroupChange(group, change, low, high)


def group_table(
    measured: pd.DataFrame, predicted: pd.DataFrame | None, *, on: str, predicted_of: str = ""
) -> TextTable:
    """Accuracy and loss by sensitive group.

    Args:
        measured: What ``measured_by_group`` gives.
        predicted: Columns ``sensitive_group`` and one that begins with ``predicted change``, of the mean loss; or None.
        on: Which people judge.
        predicted_of: Of which network the prediction is; default as the name of its column says.

    Returns:
        The table.
    """
    column = "" if predicted is None else next((n for n in predicted if str(n).startswith("predicted change")), "")
    told = _told(predicted, column) if predicted is not None and column else {}
    level = "loss" if measured["accuracy change"].isna().all() else "accuracy"
    heads = ["group", "people", "dense", "pruned", *(["accuracy change, 95 %"] if level == "accuracy" else [])]
    heads += [*(["predicted"] if told else []), "loss change, 95 %"]
    rows = []
    for _, row in measured.iterrows():
        group = row["sensitive_group"]
        cells = [group, count(row["people"]), figure(row[f"{level} dense"]), figure(row[f"{level} pruned"])]
        if level == "accuracy":
            cells.append(_change(row, "accuracy"))
        rows.append([*cells, *([told.get(group, "-")] if told else []), _change(row, "loss")])
    title = f"{level.capitalize()} of the dense and the pruned network on {on}, changes person by person"
    if told:
        of = predicted_of or _OF.get(column.removeprefix("predicted change").strip(), "")
        title += f"; predicted: the change of the mean loss {of}, on the data that the importance saw"
    return TextTable(heads, rows, title=f"{title}.")


def _change(row: Any, kind: str) -> str:
    return figure(row[f"{kind} change"], *ends_of(row, kind), sign=True)


def _told(predicted: pd.DataFrame, column: str) -> Mapping[str, str]:
    return {
        group if isinstance(group, str) else ", ".join(group): _of(change)
        for group, change in zip(predicted["sensitive_group"], predicted[column], strict=True)
    }


def _of(change: float) -> str:
    return "impossible" if math.isnan(change) else figure(change, sign=True)
