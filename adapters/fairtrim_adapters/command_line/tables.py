"""Figures as text for a terminal."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from fairtrim import predict
from fairtrim.comparison.network_size import network_size
from fairtrim.comparison.predictions import Predictions
from fairtrim.comparison.verdicts import GroupChange, verdict_of, verdict_of_one
from fairtrim.devices import model_device
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.printing import WIDTH, Block, Printed, TextTable, figure
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
    return figure(row.get(column), *(row.get(column_of(column, end)) for end in ("_low", "_high")))


def _verdict(rows: Mapping[str, Mapping[str, Any]]) -> str:
    reference, *others = rows
    groups = groups_of(rows[reference])
    if not others:
        return verdict_of_one(reference, {group: rows[reference][f"accuracy[{group}]"] for group in groups})

    def changes(row: Mapping[str, Any]) -> list[GroupChange]:
        columns = ("accuracy_change", "accuracy_change_low", "accuracy_change_high")
        return [GroupChange(group, *(row.get(f"{c}[{group}]", math.nan) for c in columns)) for group in groups]

    return verdict_of(reference, {name: changes(rows[name]) for name in others})


@dataclass(frozen=True)
class _Audit(Printed):
    """Rows of ``audit_rows``."""

    rows: Mapping[str, Mapping[str, Any]]

    def blocks(self) -> Iterator[Block]:
        reference, names = next(iter(self.rows)), list(self.rows)
        groups = groups_of(self.rows[reference])
        told = "; [95 % interval over people]" if any("accuracy_low" in row for row in self.rows.values()) else ""
        yield _verdict(self.rows)
        columns = [column for column in _OVERALL if any(column in row for row in self.rows.values())]
        yield TextTable(
            ["", *names],
            [[column, *(_figure(row, column) for row in self.rows.values())] for column in columns],
            title=f"Everybody (changes against {reference!r}{told})",
        )
        columns = [c for c in _BY_GROUP if any(f"{c}[{group}]" in self.rows[reference] for group in groups)]
        yield TextTable(
            ["group", "network", *columns],
            [
                [group, name, *(_figure(row, f"{column}[{group}]") for column in columns)]
                for group in groups
                for name, row in self.rows.items()
            ],
            names=2,
            title="By sensitive group",
        )
        of_classes = [
            [group, str(label), name, *(_figure(row, f"{rate}_of_{label}[{group}]") for rate in RATES_OF_TWO_CLASSES)]
            for group in groups
            for label in range(MAX_CLASSES)
            for name, row in self.rows.items()
            if f"selection_rate_of_{label}[{group}]" in row
        ]
        if of_classes:
            heads = ["group", "class", "network", *RATES_OF_TWO_CLASSES]
            yield TextTable(heads, of_classes, names=3, title="Each class against the rest")
        flags = [f"  {name}: {flag}" for name, row in self.rows.items() for flag in flags_of(row)]
        if flags:
            yield "\n".join(["Flags", *flags])


def audit_text(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables for people to read: a verdict, everybody, each sensitive group, flags.

    Args:
        rows: From ``audit_rows``.

    Returns:
        Text.
    """
    return str(_Audit(rows))


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
    columns = [column for column in dict.fromkeys([*_SHOWN, *_GAPS, *(objectives or {})]) if column in means]
    names = ["criterion", "pruning_ratio", "post_processor"]
    if (means["post_processor"] == "none").all():
        names.remove("post_processor")
    rows = [
        [
            *(f"{row[name]:g}" if name == "pruning_ratio" else str(row[name]) for name in names),
            "*" if member else "",
            *(figure(float(row[column])) for column in columns),
        ]
        for (_, row), member in zip(means.iterrows(), pareto_set(means, objectives), strict=True)
    ]
    n_seeds = table["seed"].nunique()
    title = f"Means over {n_seeds} seed{'s' if n_seeds > 1 else ''}; * in the Pareto set"
    shown = TextTable([*names, "pareto", *columns], rows, names=len(names), title=title)
    return f"{textwrap.fill(_best_of(means), WIDTH)}\n\n{shown}"


def _best_of(means: pd.DataFrame) -> str:
    """Who keeps the worst group where most was removed."""
    ratio = means["pruning_ratio"].max()
    if not ratio:
        return "Nothing was pruned."
    there = means[means["pruning_ratio"] == ratio]
    there = there[there["worst_group_accuracy"].notna()] if "worst_group_accuracy" in there else there[:0]
    if there.empty:
        return f"At a pruning ratio of {ratio:g} no network has a worst group."
    accuracy = there["worst_group_accuracy"]
    best, worst = there.loc[accuracy.idxmax()], there.loc[accuracy.idxmin()]
    least = f", least with {_run(worst)}, {worst['worst_group_accuracy']:.3f}" if len(there) > 1 else ""
    most = f"{_run(best)}, {best['worst_group_accuracy']:.3f}{least}"
    return f"At a pruning ratio of {ratio:g} the worst group keeps most accuracy with {most}."


def _run(row: pd.Series) -> str:
    repaired = row["post_processor"]
    return str(row["criterion"]) if repaired == "none" else f"{row['criterion']} and {repaired}"
