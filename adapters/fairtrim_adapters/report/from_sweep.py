"""A report of a finished sweep."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import pandas as pd

from fairtrim import InputError
from fairtrim_adapters.fairlearn.flags import CONSTANT, KINDS, OF_DATA
from fairtrim_adapters.pareto import (
    DEFAULT_OBJECTIVES,
    Direction,
    column_called,
    mean_over_seeds,
    now_called,
    pareto_set,
)
from fairtrim_adapters.sweep import read_sweep
from fairtrim_adapters.sweep.cell import DENSE, UNREPAIRED

from .caveats import with_caveats
from .contents import Cell, Data, Figure, Flag, Method, Network, Picture, Table, Timing, figure_of, finite
from .document import Report
from .methods import method_of
from .pictures import closed_picture, need_matplotlib

__all__ = ["report_sweep"]

_NEEDED = ("seed", "criterion", "pruning_ratio", "post_processor", "parameters", "accuracy")


def report_sweep(
    sweep: str | os.PathLike[str] | pd.DataFrame,
    *,
    facts: Mapping[str, Any] | None = None,
    objectives: Mapping[str, str] | None = None,
    pictures: bool = True,
    title: str = "Sweep of compressions by sensitive group",
) -> Report:
    """Tell what a sweep found, and what it did not measure.

    Args:
        sweep: The folder of a finished sweep, or its table.
        facts: What the sweep was about, with the entries of its ``sweep.json``, such as ``data``, ``description``,
            ``post_processors`` and ``versions``; on top of those of the folder.
        objectives: Columns and ``max`` or ``min``, of the Pareto set; default
            ``fairtrim_adapters.pareto.DEFAULT_OBJECTIVES``.
        pictures: Whether to draw; needs matplotlib.
        title: Of the report.

    Returns:
        The report.

    Raises:
        InputError: The folder holds no finished sweep, the table is not of one, or matplotlib is missing.

    Example:
        >>> run = {"seed": 0, "pruning_ratio": 0.5, "post_processor": "none", "people[a]": 2, "people[b]": 3}
        >>> table = pd.DataFrame(
        ...     [
        ...         {**run, "criterion": "magnitude", "parameters": 8, "accuracy": 0.6, "worst_group_accuracy": 0.5},
        ...         {**run, "criterion": "worst-group", "parameters": 8, "accuracy": 0.8, "worst_group_accuracy": 0.7},
        ...     ]
        ... )
        >>> report = report_sweep(table, pictures=False)
        >>> [network.name for network in report.networks if network.pareto]
        ['worst-group, 50 %']
    """
    if pictures:
        need_matplotlib()
    table, about = (sweep, {}) if isinstance(sweep, pd.DataFrame) else read_sweep(sweep)
    about = {**about, **(facts or {})}
    _check_table(table)
    asked = DEFAULT_OBJECTIVES if objectives is None else cast(Mapping[str, Direction], objectives)
    chosen = {column_called(table, column): direction for column, direction in asked.items()}
    means = mean_over_seeds(table)
    optimal = pareto_set(means, chosen)
    data = _data(table, about)
    networks = tuple(_network(row, bool(best), data) for row, best in zip(_records(means), optimal, strict=True))
    timing = _timing(table, about)
    intervals = "accuracy_low" in table and bool(table["accuracy_low"].notna().any())
    n_boot = about.get("n_boot")
    report = Report(
        title=title,
        data=data,
        reference=DENSE,
        networks=networks,
        methods=_methods(table, about),
        settings=_settings(about),
        versions={str(name): str(number) for name, number in about.get("versions", {}).items()},
        seeds=tuple(sorted({int(seed) for seed in table["seed"]})),
        intervals=intervals,
        n_boot=n_boot if intervals and isinstance(n_boot, int) else None,
        timing=timing,
        flags=tuple(_flags(table)),
        objectives={str(column): str(direction) for column, direction in chosen.items()},
        pictures=_pictures(table) if pictures else (),
        runs=_runs(table),
    )
    disturbed = timing is not None and about.get("latency", {}).get("n_jobs") not in (None, 1)
    return with_caveats(report, disturbed=disturbed)


def _check_table(table: pd.DataFrame) -> None:
    missing = [name for name in _NEEDED if name not in table]
    groups = [name for name in table if name.startswith("people[")]
    if missing or not groups or not len(table):
        lacks = missing or (["people[...]"] if len(table) else ["any row"])
        former = now_called(table, missing)
        raise InputError(f"the table lacks {lacks}{former}; expected what fairtrim_adapters.sweep.sweep gave")


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _data(table: pd.DataFrame, about: Mapping[str, Any]) -> Data:
    columns = sorted(name for name in table if name.startswith("people["))
    people = {name[len("people[") : -1]: int(table[name].max()) for name in columns if table[name].notna().any()}
    return Data(
        name=str(about.get("data", "the data")),
        description=str(about.get("description", "")),
        n_people=sum(people.values()),
        sensitive_features=(),
        classes=(),
        people=people,
        counts={},
    )


def _run_name(criterion: str, pruning_ratio: float, post_processor: str) -> str:
    name = DENSE if criterion == DENSE else f"{criterion}, {100 * pruning_ratio:g} %"
    return name if post_processor == UNREPAIRED else f"{name}, {post_processor}"


def _network(row: Mapping[str, Any], optimal: bool, data: Data) -> Network:
    metrics = [
        name
        for name in row
        if "[" not in name
        and (f"{name}_change" in row or name in ("accuracy", "worst_group_accuracy", "changed_predictions"))
    ]
    groups = {
        group: [metric for metric in metrics if finite(row.get(f"{metric}[{group}]")) is not None]
        for group in data.people
    }
    milliseconds, ratio = finite(row.get("latency_ms")), finite(row.get("latency_ratio"))
    facts = {"criterion": str(row["criterion"]), "pruning ratio": f"{row['pruning_ratio']:g}"}
    return Network(
        name=_run_name(row["criterion"], row["pruning_ratio"], row["post_processor"]),
        class_name="",
        parameters=float(row["parameters"]),
        parameters_ratio=finite(row.get("parameters_ratio")),
        macs=float(row.get("macs", np.nan)),
        macs_ratio=finite(row.get("macs_ratio")),
        latency_ms=None if milliseconds is None else Figure(milliseconds),
        latency_ratio=None if ratio is None else Figure(ratio),
        facts={**facts, "post-processor": str(row["post_processor"])},
        overall={metric: _over_seeds(row, metric) for metric in metrics},
        by_group={group: {metric: figure_of(row, metric, group) for metric in groups[group]} for group in groups},
        n_seeds=int(row["seeds"]),
        pareto=optimal,
    )


def _over_seeds(row: Mapping[str, Any], metric: str) -> Figure:
    lowest, highest = finite(row.get(f"{metric}_lowest")), finite(row.get(f"{metric}_highest"))
    return dataclasses.replace(figure_of(row, metric), lowest=lowest, highest=highest)


def _timing(table: pd.DataFrame, about: Mapping[str, Any]) -> Timing | None:
    if "latency_ms" not in table or not table["latency_ms"].notna().any():
        return None
    how = about.get("latency", {})
    machine = str(about.get("machine", "a machine that was not recorded"))
    return Timing(how.get("batch_size"), how.get("rounds"), how.get("threads"), machine)


def _methods(table: pd.DataFrame, about: Mapping[str, Any]) -> tuple[Method, ...]:
    criteria = [name for name in dict.fromkeys(table["criterion"]) if name != DENSE]
    labels = [name for name in dict.fromkeys(table["post_processor"]) if name != UNREPAIRED]
    chosen, repairs = about.get("criteria"), about.get("post_processors", {})
    names = {name: own.get("name") if "name" in own else name for name, own in repairs.items()}
    stands_for = chosen if isinstance(chosen, Mapping) else {}
    return (
        *(_method("criterion", label, stands_for.get(label, label)) for label in criteria),
        *(
            _method("post-processor", label, names.get(label, label), repairs.get(label, {}).get("post_processor"))
            for label in labels
        ),
    )


def _method(kind: str, label: str, stands_for: Any, settings: Mapping[str, Any] | None = None) -> Method:
    """What a label stands for: a name with settings, or something without a name."""
    if not isinstance(stands_for, str):
        every = {name: str(value) for name, value in (settings or {}).items()}
        return Method(label, kind, "not described here", "", "", "", every)
    try:
        return dataclasses.replace(method_of(kind, stands_for, settings), name=label)
    except InputError:  # a table alone doesn't tell which of its labels are names
        return _method(kind, label, None, settings)


def _settings(about: Mapping[str, Any]) -> dict[str, str]:
    pruning = {str(name).replace("_", " "): _words(value) for name, value in about.get("pruning", {}).items()}
    ratios = about.get("pruning_ratios")
    return {**({} if ratios is None else {"shares of channels removed": _words(ratios)}), **pruning}


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _flags(table: pd.DataFrame) -> Iterator[Flag]:
    """Each finding once, with the runs that it was made in; findings about the data are in every run."""
    if "flags" not in table:
        return
    found: dict[tuple[str, str], list[tuple[str, int | None]]] = {}
    for row in _records(table):
        run = _run_name(row["criterion"], row["pruning_ratio"], row["post_processor"]), int(row["seed"])
        for kind, detail in _findings(str(row["flags"]) if isinstance(row["flags"], str) else ""):
            found.setdefault((kind, detail), []).append(("", None) if kind in OF_DATA else run)
    for (kind, detail), runs in found.items():
        for name, seed in dict.fromkeys(runs):
            yield Flag(kind, name, detail, seed)


def _findings(flags: str) -> Iterator[tuple[str, str]]:
    """Split what is joined by a semicolon, which a detail may hold too."""
    starts = "|".join(map(re.escape, KINDS))
    for part in re.split(rf"; (?=(?:{starts}): )", flags):
        kind, separator, detail = part.partition(": ")
        if separator and kind in KINDS:
            yield from _with_repair(kind, detail)
        elif part:
            yield "post-processor", part


def _with_repair(kind: str, detail: str) -> Iterator[tuple[str, str]]:
    """What a post-processor tells comes last, without a kind."""
    first, separator, rest = detail.partition("; ")
    if kind == CONSTANT and rest.startswith("gaps mean nothing"):
        _, separator, rest = rest.partition("; ")
        first = f"{first}; gaps mean nothing"
    yield kind, first
    if separator and rest:
        yield "post-processor", rest


def _runs(table: pd.DataFrame) -> Table:
    columns = tuple(map(str, table.columns))
    rows = tuple(tuple(_plain(row[name]) for name in columns) for row in _records(table))
    return Table("Every run: figures over everybody, and each sensitive group's accuracy", columns, rows)


def _plain(value: Any) -> Cell:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and finite(value) is None):
        return None
    return value if isinstance(value, str | bool | int | float) else str(value)


def _is_known(table: pd.DataFrame, metric: str) -> bool:
    """Whether there is the figure, and it is defined for these people."""
    return metric in table and bool(table[metric].notna().any())


def _pictures(table: pd.DataFrame) -> tuple[Picture, ...]:
    from fairtrim_adapters.plots import plot_group_metric, plot_pareto

    if (table["criterion"] == DENSE).all():
        return ()
    pruned = table[table["criterion"] != DENSE]
    size = "parameters_ratio" if _is_known(table, "parameters_ratio") else "parameters"
    gaps = ("equalized_odds_difference", "accuracy_score_difference")
    gap = next((name for name in gaps if _is_known(table, name)), None)
    drawn = []
    for post_processor in dict.fromkeys(pruned["post_processor"]):
        for column in filter(None, ("worst_group_accuracy", gap)):
            if not _is_known(pruned[pruned["post_processor"] == post_processor], column):
                continue
            words, after = column.replace("_", " "), f", {post_processor}" if post_processor != UNREPAIRED else ""
            axes = plot_pareto(table, x=size, y=column, post_processor=post_processor)
            drawn.append(
                closed_picture(
                    axes,
                    f"{column}-{post_processor}".replace("_", "-").removesuffix(f"-{UNREPAIRED}"),
                    f"{words.capitalize()} at each size{after}: a line for each criterion; dashed: the dense network; "
                    "bars: over seeds, or 95 % intervals of one seed; shaded: another network is better in both.",
                    f"Line chart of {words} against size by criterion{after}; the same figures are in the tables.",
                    "Networks compared",
                )
            )
    for metric in ("accuracy", "true_positive_rate"):
        if _is_known(table, metric):
            panels = plot_group_metric(table, metric)
            words = metric.replace("_", " ")
            drawn.append(
                closed_picture(
                    panels.flat[0],
                    f"groups-{metric.replace('_', '-')}",
                    f"{words.capitalize()} of each sensitive group against the share of channels removed, without "
                    "post-processor.",
                    f"Line charts of the {words} by criterion and sensitive group; figures are in the tables.",
                    "Sensitive groups",
                )
            )
    return tuple(drawn)
