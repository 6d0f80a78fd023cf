"""What a report says, as plain data: the one source of its HTML, Markdown and JSON."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Changed",
    "Data",
    "Figure",
    "Flag",
    "Method",
    "Network",
    "Picture",
    "ReportContents",
    "Table",
    "Timing",
    "figure_of",
    "finite",
]

Cell = str | int | float | bool | None


def finite(value: Any) -> float | None:
    """A number, or None for what is none: JSON has no NaN.

    Args:
        value: A number, or None.

    Returns:
        The number as a float.

    Example:
        >>> finite(float("nan")), finite(2)
        (None, 2.0)
    """
    return None if value is None or not math.isfinite(value) else float(value)


@dataclass(frozen=True)
class Figure:
    """A number with all that belongs to it; None for what was not measured.

    Attributes:
        value: The number; over several seeds their mean.
        low: Lower end of the 95 % interval over people; over several seeds the mean of their ends.
        high: Upper end.
        change: Against the reference.
        change_low: Lower end of the paired 95 % interval.
        change_high: Upper end.
        lowest: Smallest of the seeds.
        highest: Largest of the seeds.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    lowest: float | None = None
    highest: float | None = None


def figure_of(row: Mapping[str, Any], metric: str, group: str | None = None) -> Figure:
    """A figure out of a flat row.

    Args:
        row: As ``fairtrim_adapters.fairlearn.measurements`` gives it.
        metric: Its name.
        group: The sensitive group, or None for everybody.

    Returns:
        The figure; a metric that the row doesn't have is one without a value.

    Example:
        >>> figure_of({"accuracy[F]": 0.5, "accuracy_change[F]": float("nan")}, "accuracy", "F").value
        0.5
    """
    bracket = "" if group is None else f"[{group}]"
    suffixes = ("", "_low", "_high", "_change", "_change_low", "_change_high")
    return Figure(*(finite(row.get(f"{metric}{suffix}{bracket}")) for suffix in suffixes))


@dataclass(frozen=True)
class Data:
    """The people by whom networks are compared.

    Attributes:
        name: Of the data.
        description: Where they come from, and what the label and the sensitive features are.
        n_people: N, or rows if there are several to a person, such as tokens.
        sensitive_features: Names; empty if they are not recorded.
        classes: Names of the K classes; empty if not known.
        people: Number of people in each sensitive group.
        counts: Number of people of each class in each sensitive group, K each; empty if not known.
        counted: What is counted: ``people``, or ``texts`` of language models.
    """

    name: str
    description: str
    n_people: int
    sensitive_features: tuple[str, ...]
    classes: tuple[str, ...]
    people: dict[str, int]
    counts: dict[str, tuple[int, ...]]
    counted: str = "people"


@dataclass(frozen=True)
class Timing:
    """How latencies were measured.

    Attributes:
        batch_size: Samples of the timed forward pass; None if not recorded.
        rounds: How often each network was timed; None if not recorded.
        threads: Threads of torch on the CPU; None if not recorded.
        machine: Kind of processor.
    """

    batch_size: int | None
    rounds: int | None
    threads: int | None
    machine: str


@dataclass(frozen=True)
class Network:
    """One network; in a sweep one (criterion, pruning ratio, post-processor), over its seeds.

    Attributes:
        name: Of the network.
        class_name: Of its Python class; empty if not recorded.
        parameters: Number of them; a mean over seeds.
        parameters_ratio: Of the reference's.
        macs: Multiply-accumulate operations of one sample.
        macs_ratio: Of the reference's.
        latency_ms: Median milliseconds of a forward pass; None if not measured.
        latency_ratio: Of the reference's; None if not measured.
        facts: How it was made.
        overall: Figures over everybody by metric.
        by_group: Figures by sensitive group and metric.
        n_seeds: How many runs the figures are means of.
        pareto: Whether no other is at least as good in all objectives and better in one; None if not asked.
    """

    name: str
    class_name: str
    parameters: float
    parameters_ratio: float | None
    macs: float
    macs_ratio: float | None
    latency_ms: Figure | None
    latency_ratio: Figure | None
    facts: dict[str, str]
    overall: dict[str, Figure]
    by_group: dict[str, dict[str, Figure]]
    n_seeds: int = 1
    pareto: bool | None = None


@dataclass(frozen=True)
class Method:
    """What a criterion or a post-processor does, and where it comes from.

    Attributes:
        name: As it was asked for.
        kind: ``criterion`` or ``post-processor``.
        does: What it does, and to whom.
        source: Of the method.
        link: Address of the paper; empty if there is none.
        standing: ``published``, ``reconstruction``, ``ours``, or what of it is which.
        settings: By name.
    """

    name: str
    kind: str
    does: str
    source: str
    link: str
    standing: str
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Flag:
    """Something that makes figures mean less than they seem to.

    Attributes:
        kind: Such as ``constant classifier``.
        network: Which; empty for the data.
        detail: What was found.
        seed: Of the run; None for networks without seeds.
    """

    kind: str
    network: str
    detail: str
    seed: int | None = None


@dataclass(frozen=True)
class Picture:
    """A picture with its description.

    Attributes:
        name: File name without suffix.
        caption: Below it.
        description: For those who don't see it.
        section: Heading under which it stands.
        network: Which it shows; empty for several.
        png: Base64.
        svg: Base64; empty if there is none.
    """

    name: str
    caption: str
    description: str
    section: str
    network: str
    png: str
    svg: str = ""


@dataclass(frozen=True)
class Table:
    """A table of plain values.

    Attributes:
        caption: What it shows.
        columns: Names; the first is that of the rows.
        rows: As many values each.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Changed:
    """Samples whose predicted label differs from the reference's.

    Attributes:
        network: Which.
        by_group: Their number and share in each sensitive group.
        samples: Some of them; None if they are not shown.
    """

    network: str
    by_group: Table
    samples: Table | None


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


@dataclass(frozen=True, kw_only=True)
class ReportContents:
    """What is known about networks compared on the same people, and what is not.

    Attributes:
        title: Of the report.
        date: When it was made, ISO 8601.
        data: The people.
        reference: Name of the network that changes are measured from.
        networks: The networks.
        methods: What the criteria and post-processors do, and to whom.
        settings: What all networks share, by name.
        versions: Of Python and of the packages.
        seeds: Of the runs; empty if not recorded.
        intervals: Whether figures have intervals over people.
        n_boot: Bootstrap samples of the intervals; None if there are none, or not recorded.
        timing: How latencies were measured; None if they were not.
        flags: What makes figures mean less than they seem to.
        objectives: ``max`` or ``min`` by column, of the Pareto set; empty if there is none.
        changed: Samples whose predicted label differs from the reference's, by network.
        pictures: The pictures.
        runs: Every run of a sweep; None for networks.
        tables: Further tables: of language models, shares by category.
        limits: What the figures can't tell.
        not_measured: What is absent.
    """

    title: str
    date: str = field(default_factory=_today)
    data: Data
    reference: str
    networks: tuple[Network, ...]
    methods: tuple[Method, ...]
    settings: dict[str, str]
    versions: dict[str, str]
    seeds: tuple[int, ...]
    intervals: bool
    n_boot: int | None
    timing: Timing | None
    flags: tuple[Flag, ...]
    objectives: dict[str, str] = field(default_factory=dict)
    changed: tuple[Changed, ...] = ()
    pictures: tuple[Picture, ...]
    runs: Table | None = None
    tables: tuple[Table, ...] = ()
    limits: tuple[str, ...] = ()
    not_measured: tuple[str, ...] = ()
