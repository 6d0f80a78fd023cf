"""Findings that make the figures of a comparison mean less than they seem to."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from fairtrim.predictions import Predictions

__all__ = ["empty_cells", "model_flags"]

_ROUNDING = 1e-9  # differences of rates below this are rounding errors


def empty_cells(sensitive: pd.DataFrame, predictions: Predictions) -> list[tuple[str, str, str]]:
    """Classes that a sensitive group has nobody of: its rates for them are undefined, whatever is printed."""
    cells = pd.crosstab([sensitive[feature] for feature in sensitive], predictions.target)
    cells = cells.reindex(columns=range(predictions.n_classes), fill_value=0)
    return [
        ("(data)", "empty cell", f"{group}: nobody of class {label}, so rates of that class are undefined")
        for group, row in cells.iterrows()
        for label, number in row.items()
        if number == 0
    ]


def model_flags(
    predictions: Predictions, by_group: Mapping[str, pd.DataFrame], overall: pd.DataFrame, reference: str
) -> list[tuple[str, str, str]]:
    """Constant classifiers, and gaps that fell while every group lost."""
    found = []
    gaps = [column for column in overall.columns if column.endswith(" difference")]
    for name, columns in by_group.items():
        labels = np.unique(predictions.label[name])
        if len(labels) == 1:
            found.append((name, "constant classifier", f"everybody is given label {labels[0]}; gaps mean nothing"))
        change = columns["change in accuracy"].dropna()
        fell = [gap for gap in gaps if overall.loc[name, gap] < overall.loc[reference, gap] - _ROUNDING]
        if name != reference and fell and (change < -_ROUNDING).all():
            lost = f"{-change.max():.3f} to {-change.min():.3f}"
            detail = f"{', '.join(fell)} fell while every group lost accuracy (by {lost})"
            found.append((name, "levelling down", detail))
    return found
