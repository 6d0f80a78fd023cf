"""Figures as text for a terminal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from fairtrim import predict
from fairtrim.comparison.network_size import network_size
from fairtrim.comparison.predictions import Predictions
from fairtrim.devices import model_device
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim_adapters.fairlearn.flags import NOBODY, OF_NONE
from fairtrim_adapters.fairlearn.intervals import MAX_CLASSES, RATES_OF_TWO_CLASSES
from fairtrim_adapters.fairlearn.measurements import column_of, joined_flags, measurements
from fairtrim_adapters.pareto import Direction, mean_over_seeds, pareto_set
from fairtrim_adapters.sweep import DataSplits

from .gate import flags_of, groups_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["audit_rows", "audit_text", "sweep_text"]

_OVERALL = [
    "parameters",
    "macs",
    "accuracy",
    "balanced_accuracy",
    "worst_group_accuracy",
    "accuracy_score_difference",
    "equalized_odds_difference",
    "demographic_parity_difference",
    "changed_predictions",
]
_BY_GROUP = [
    "people",
    "positives",
    "negatives",
    "accuracy",
    "accuracy_change",
    "true_positive_rate",
    "false_positive_rate",
    "changed_predictions",
]

_CROSSINGS_SHOWN = 10  # of several features there may be thousands that nobody is in


def audit_rows(
    networks: Mapping[str, nn.Module], data: DataSplits, *, n_boot: int | None, seed: int, progress: bool
) -> dict[str, dict[str, Any]]:
    """Figures of networks on the test people.

    Args:
        networks: By name; changes are measured from the first.
        data: The splits.
        n_boot: Bootstrap samples, or None.
        seed: Of the bootstrap.
        progress: Show a progress bar.

    Returns:
        Rows of ``measurements`` by name, with ``parameters`` and ``macs``.
    """
    predictions = predict(networks, data.test, sensitive_names=data.sensitive_names, progress=progress, **data.calling)
    absent = _absent(predictions, data)
    reference = next(iter(networks))
    batch = data.first_batch("test", model_device(networks[reference]))
    rows: dict[str, dict[str, Any]] = {}
    for name, model in networks.items():
        row = measurements(predictions, name, reference, n_boot=n_boot, random_state=seed)
        row["flags"] = "; ".join(filter(None, [row["flags"], absent]))
        rows[name] = {**network_size(ScoredNetwork(model, **data.calling), batch), **row}
    return rows


def _absent(predictions: Predictions, data: DataSplits) -> str:
    """Flags for values of sensitive features that are named, but nobody has, and for crossings that nobody is in."""
    named = data.sensitive_names if isinstance(data.sensitive_names, Mapping) else {}
    values_of_nobody = (
        f"{NOBODY}: {feature} is {value!r} {OF_NONE}"
        for feature, values in named.items()
        for value in (values.values() if isinstance(values, Mapping) else values or ())
        if feature in predictions.sensitive and str(value) not in predictions.sensitive[feature]
    )
    return joined_flags([*values_of_nobody, *_empty_crossings(predictions)])


def _empty_crossings(predictions: Predictions) -> Iterator[str]:
    """Crossings of values that somebody has, without anybody in them."""
    columns = [values.astype(str).tolist() for values in predictions.sensitive.values()]
    present = set(zip(*columns, strict=True))
    values = [sorted(set(column)) for column in columns]
    empty = (crossing for crossing in itertools.product(*values) if crossing not in present)
    yield from (f"{NOBODY}: {', '.join(crossing)}" for crossing in itertools.islice(empty, _CROSSINGS_SHOWN))
    more = math.prod(map(len, values)) - len(present) - _CROSSINGS_SHOWN
    if more > 0:
        yield f"{NOBODY}: {more:,} more crossings"


def _figure(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    low, high = (row.get(column_of(column, end)) for end in ("_low", "_high"))
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def audit_text(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables for people to read: everybody, each sensitive group, flags.

    Args:
        rows: From ``audit_rows``.

    Returns:
        Text.
    """
    import pandas as pd

    reference = next(iter(rows))
    overall = pd.DataFrame(
        {name: {column: _figure(row, column) for column in _OVERALL if column in row} for name, row in rows.items()}
    )
    groups = groups_of(rows[reference])
    by_group = pd.DataFrame(
        {
            (name, group): {c: _figure(row, f"{c}[{group}]") for c in _BY_GROUP if f"{c}[{group}]" in row}
            for group in groups
            for name, row in rows.items()
        }
    ).T
    by_group.index = pd.MultiIndex.from_tuples([(group, name) for name, group in by_group.index])
    interval = "; [95 % interval over people]" if any("accuracy_low" in row for row in rows.values()) else ""
    lines = [
        f"Everybody (changes against {reference!r}{interval})",
        overall.to_string(),
        "",
        "By sensitive group",
        by_group.to_string(),
    ]
    of_classes = {
        (group, label, name): {rate: _figure(row, f"{rate}_of_{label}[{group}]") for rate in RATES_OF_TWO_CLASSES}
        for group in groups
        for label in range(MAX_CLASSES)
        for name, row in rows.items()
        if f"selection_rate_of_{label}[{group}]" in row
    }
    if of_classes:
        lines += ["", "Each class against the rest", pd.DataFrame(of_classes).T.to_string()]
    flags = [f"  {name}: {flag}" for name, row in rows.items() for flag in flags_of(row)]
    return "\n".join([*lines, *(["", "Flags", *flags] if flags else [])])


_SHOWN = ["parameters_ratio", "macs_ratio", "latency_ratio", "accuracy", "worst_group_accuracy"]
_GAPS = ["accuracy_score_difference", "equalized_odds_difference", "demographic_parity_difference"]


def sweep_text(table: pd.DataFrame, objectives: Mapping[str, Direction] | None) -> str:
    """Means over seeds, the Pareto set marked.

    Args:
        table: Of a sweep.
        objectives: Of the Pareto set, or None for the usual ones.

    Returns:
        Text.
    """
    means = mean_over_seeds(table)
    columns = [column for column in [*_SHOWN, *_GAPS, *(objectives or {})] if column in means]
    shown = means[["criterion", "pruning_ratio", "post_processor", *dict.fromkeys(columns)]].copy()
    shown.insert(0, "pareto", ["*" if member else "" for member in pareto_set(means, objectives)])
    if (shown["post_processor"] == "none").all():
        shown = shown.drop(columns="post_processor")
    n_seeds = table["seed"].nunique()
    head = f"Means over {n_seeds} seed{'s' if n_seeds > 1 else ''}; * in the Pareto set"
    return f"{head}\n{shown.to_string(index=False, float_format=lambda value: f'{value:.3f}')}"
