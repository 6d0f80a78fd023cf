"""The order and the words of a report: the same headings, tables and pictures for HTML and Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from fairtrim_adapters.fairlearn.flags import KINDS

from .blocks import Block, Bullets, Entry, Fold, Grid, Image, Paragraph, Section
from .contents import Cell, Figure, Flag, Network, ReportContents, Table

__all__ = ["sections"]

NONE = "–"
MOST_FINDINGS = 6  # of one kind that are read at once
MOST_COLUMNS = 5  # sensitive groups that stand side by side; more stand below each other
MOST_FIGURES = 12  # columns of figures of a table; more are continued below, beside the names of the rows


def _rate(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}".replace("-", "−").replace("−0.000", "0.000")


def _signed(value: float) -> str:
    text = f"{value:+.3f}".replace("-", "−")
    return "0.000" if text[1:] == "0.000" else text


def _count(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}".replace("%", " %")


def _figure(figure: Figure | None, *, change: bool = True) -> Entry:
    """A rate, its interval, its range over seeds, and its change."""
    if figure is None or figure.value is None:
        return Entry(NONE)
    details: list[tuple[str, bool]] = []
    if figure.low is not None and figure.high is not None:
        details.append((f"[{_rate(figure.low)}, {_rate(figure.high)}]", False))
    if figure.lowest is not None and figure.highest is not None and figure.lowest != figure.highest:
        details.append((f"seeds {_rate(figure.lowest)} to {_rate(figure.highest)}", False))
    if change and figure.change is not None:
        text, certain = f"Δ {_signed(figure.change)}", False
        if figure.change_low is not None and figure.change_high is not None:
            text += f" [{_signed(figure.change_low)}, {_signed(figure.change_high)}]"
            certain = figure.change_low > 0 or figure.change_high < 0
        details.append((text, certain))
    return Entry(_rate(figure.value), tuple(details))


def _plain(value: Cell) -> str:
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return (f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}").replace("-", "−")
    return value


def _grid(table: Table, words: bool = False) -> Grid:
    rows = tuple(tuple(Entry(_plain(value)) for value in row) for row in table.rows)
    return Grid(table.caption, tuple(map(Entry, table.columns)), rows, words)


def sections(report: ReportContents) -> list[Section]:
    """Everything that a report says, in order.

    Args:
        report: The report.

    Returns:
        Sections that hold something.
    """
    found = [
        Section("Flags", tuple(_flags(report))),
        Section("Networks compared", tuple(_overview(report))),
        Section("Sensitive groups", tuple(_by_group(report))),
        Section("Pairs of sentences", tuple(map(_grid, report.tables))),
        Section("Changed predictions", tuple(_changed(report))),
        Section("Predicted damage", tuple(_images(report, "Predicted damage"))),
        Section("Method", tuple(_method(report))),
        Section("Size and latency", tuple(_size(report))),
        Section("Data", tuple(_data(report))),
        Section("Not measured", (Bullets(report.not_measured),)),
        Section("Limits", (Bullets(report.limits),)),
        Section("How it was made", tuple(_provenance(report))),
    ]
    return [Section(section.title, tuple(_narrowed(section.blocks))) for section in found if section.blocks]


def _narrowed(blocks: Sequence[Block]) -> Iterator[Block]:
    """The same blocks, tables of too many columns cut into several."""
    for block in blocks:
        if isinstance(block, Fold):
            yield Fold(block.summary, tuple(_narrowed(block.blocks)))  # type: ignore[arg-type]  # a fold holds no fold
        elif isinstance(block, Grid) and len(block.header) > MOST_FIGURES + 1:
            starts = range(1, len(block.header), MOST_FIGURES)
            for number, start in enumerate(starts, 1):
                part = slice(start, start + MOST_FIGURES)
                rows = tuple((row[0], *row[part]) for row in block.rows)
                caption = f"{block.caption} ({number} of {len(starts)})"
                yield Grid(caption, (block.header[0], *block.header[part]), rows, block.words)
        else:
            yield block


def _images(report: ReportContents, section: str) -> Iterator[Block]:
    yield from (Image(picture) for picture in report.pictures if picture.section == section)


def _flags(report: ReportContents) -> Iterator[Block]:
    if not report.flags and report.data.counted == "texts":
        yield Paragraph("Nothing was flagged: no share whose interval holds 50 %, and no category of few sentences.")
        return
    if not report.flags:
        yield Paragraph(
            "Nothing was flagged. Looked for: constant classifiers, sensitive groups in which everybody is given one "
            "label, gaps that fell while every sensitive group lost accuracy (levelling down), each by more than its "
            "error, classes that a sensitive group has nobody of, and people of one label or one sensitive group."
        )
        return
    kinds: dict[str, list[Flag]] = {kind: [] for kind in KINDS}
    for flag in report.flags:
        kinds.setdefault(flag.kind, []).append(flag)
    for kind, flags in ((kind, flags) for kind, flags in kinds.items() if flags):
        items = tuple(map(_finding, flags))
        kind = kind.capitalize()
        if len(items) > MOST_FINDINGS:
            flagged = len({flag.network for flag in flags} - {""})
            where = f", in {flagged} of {_number(len(report.networks), 'network')}" if flagged else ""
            yield Fold(f"{kind}: {len(items)} findings{where}", (Bullets(items),))
        else:
            yield Bullets(tuple(f"{kind}: {item}" for item in items))


OVERALL = (
    "perplexity",
    "perplexity_ratio",
    "accuracy",
    "worst_group_accuracy",
    "accuracy_score_difference",
    "equalized_odds_difference",
    "demographic_parity_difference",
    "balanced_accuracy",
    "changed_predictions",
)


def _reading(report: ReportContents) -> str:
    """How to read the cells."""
    parts = []
    several = any(network.n_seeds > 1 for network in report.networks)
    if several:
        parts.append("Figures are means over seeds; the smallest and the largest of the seeds stand below.")
    if report.intervals:
        mean = ", means of the ends of the seeds' intervals" if several else ""
        number = "" if report.n_boot is None else f" ({report.n_boot} bootstrap samples, where it is resampled)"
        parts.append(f"In brackets: 95 % interval over {report.data.counted}{number}{mean}.")
    parts.append(f"Δ: change against {report.reference!r}")
    parts[-1] += ", bold where its paired interval leaves out 0." if report.intervals else "."
    return " ".join(parts)


def _shown(report: ReportContents) -> list[Network]:
    """The networks of which every sensitive group is shown: of a sweep, the reference and the Pareto set."""
    if not report.objectives:
        return list(report.networks)
    return [network for network in report.networks if network.pareto or network.name == report.reference]


def _overview(report: ReportContents) -> Iterator[Block]:
    networks = _shown(report)
    yield Paragraph(_reading(report))
    if report.objectives:
        aims = ", ".join(
            f"{'large' if way == 'max' else 'small'} {name.replace('_', ' ')}"
            for name, way in report.objectives.items()
        )
        yield Paragraph(
            f"Shown are the reference and the Pareto set: {sum(bool(n.pareto) for n in report.networks)} of "
            f"{len(report.networks)} networks than which no other is at least as good in every objective and better in "
            f"one. Objectives: {aims}."
        )
    texts = report.data.counted == "texts"
    caption = "Over all texts and pairs" if texts else "Over everybody, with the gaps between sensitive groups"
    yield _overall_grid(report, networks, caption)
    yield from _images(report, "Networks compared")
    others = [network for network in report.networks if network not in networks]
    if others:
        grid = _overall_grid(report, others, "Networks that are not in the Pareto set")
        yield Fold(f"{_number(len(others), 'network')} outside the Pareto set", (grid,))
    if report.runs is not None:
        yield Fold(f"All {_number(len(report.runs.rows), 'run')}", (_grid(_main_columns(report.runs)),))


def _overall_grid(report: ReportContents, networks: Sequence[Network], caption: str) -> Grid:
    """Networks side by side if they are few, else below each other."""
    present = dict.fromkeys(name for network in networks for name in network.overall)
    further = [name for name in present if name not in OVERALL and name.partition("_of_")[0] not in _RATES]
    columns = [
        (Entry("parameters"), [Entry(_count(n.parameters), _share(n.parameters_ratio)) for n in networks]),
        *(
            (
                Entry(metric.replace("_", " ")),
                [_figure(n.overall.get(metric), change=n.name != report.reference) for n in networks],
            )
            for metric in [*(name for name in OVERALL if name in present), *further]
        ),
    ]
    return _turned(
        "Network",
        [_name(report, network) for network in networks],
        "Figure",
        columns,
        caption,
        len(networks) <= MOST_COLUMNS,
    )


def _turned(
    row_title: str,
    rows: Sequence[Entry],
    column_title: str,
    columns: Sequence[tuple[Entry, list[Entry]]],
    caption: str,
    turn: bool,
) -> Grid:
    """A table, or the same with rows as columns."""
    if turn:
        return Grid(caption, (Entry(column_title), *rows), tuple((name, *cells) for name, cells in columns))
    body = tuple((name, *(cells[i] for _, cells in columns)) for i, name in enumerate(rows))
    return Grid(caption, (Entry(row_title), *(name for name, _ in columns)), body)


_OF_A_RUN = ("parameters_ratio", "macs_ratio", "latency_ratio", "accuracy", "worst_group_accuracy")
_SIDE_BY_SIDE = 6  # sensitive groups whose accuracy stands in the table of runs


def _main_columns(table: Table) -> Table:
    """Of a sweep's many columns those that a reader compares; all of them are in the JSON."""
    place = {name: k for k, name in enumerate(table.columns)}
    keys = [name for name in ("criterion", "pruning_ratio", "post_processor", "seed") if name in place]
    groups = [name for name in place if name.startswith("accuracy[")]
    kept = [
        *(name for name in _OF_A_RUN if name in place),
        *(groups if len(groups) <= _SIDE_BY_SIDE else ()),
        *(name for name in place if name.endswith("_difference") and "[" not in name and "_of_" not in name),
    ]
    rows = tuple(
        (", ".join(_plain(row[place[key]]) for key in keys), *(row[place[name]] for name in kept)) for row in table.rows
    )
    head = ", ".join(key.replace("_", " ") for key in keys)
    return Table(table.caption, (head, *(name.replace("_", " ") for name in kept)), rows)


def _name(report: ReportContents, network: Network) -> Entry:
    """The name with its flags, so that no figure is read without them."""
    details = [(f"{network.n_seeds} seeds", False)] if network.n_seeds > 1 else []
    found: dict[str, set[int | None]] = {}
    for flag in report.flags:
        if flag.network == network.name:
            found.setdefault(flag.kind, set()).add(flag.seed)
    for kind, seeds in found.items():
        some = f" ({len(seeds)} of {network.n_seeds})" if network.n_seeds > 1 else ""
        details.append((f"⚑ {kind}{some}", True))
    return Entry(network.name, tuple(details))


def _finding(flag: Flag) -> str:
    where = flag.network if flag.seed is None else f"{flag.network}, seed {flag.seed}"
    return f"{where}: {flag.detail}" if where else flag.detail


def _share(ratio: float | None) -> tuple[tuple[str, bool], ...]:
    return () if ratio is None else ((_percent(ratio), False),)


_RATES = {
    "perplexity": "exp of the mean loss of a token",
    "perplexity_ratio": "perplexity over that of the reference, on the same texts",
    "accuracy": "share of people whose predicted label is right",
    "true_positive_rate": "share of those labelled {positive} who are predicted so",
    "false_positive_rate": "share of those labelled {negative} who are predicted {positive}",
    "selection_rate": "share of people who are predicted {positive}",
}
_GAPS = {
    "accuracy": ("accuracy_score_difference",),
    "true_positive_rate": ("equalized_odds_difference",),
    "false_positive_rate": ("equalized_odds_difference",),
    "selection_rate": ("demographic_parity_difference",),
}


def _classes(report: ReportContents) -> dict[str, str]:
    names = report.data.classes if len(report.data.classes) == 2 else ("class 0", "class 1")
    return {"negative": repr(names[0]), "positive": repr(names[1])}


def _by_group(report: ReportContents) -> Iterator[Block]:
    networks = _shown(report)
    for metric, meaning in _RATES.items():
        if any(metric in network.overall for network in networks):
            words = meaning.format(**_classes(report))
            yield _group_grid(report, networks, metric, f"{metric.replace('_', ' ').capitalize()}: {words}")
    for label, name in enumerate(report.data.classes):
        grids = tuple(
            _group_grid(report, networks, metric, f"{rate.replace('_', ' ').capitalize()}: {words}")
            for rate, meaning in _RATES.items()
            if any((metric := f"{rate}_of_{label}") in network.overall for network in networks)
            for words in [meaning.format(positive=repr(name), negative="otherwise")]
        )
        if grids:
            yield Fold(f"Rates of {name!r} against the rest", grids)
    yield from _images(report, "Sensitive groups")


def _difference(network: Network, metric: str) -> float | None:
    values = [figures[metric].value for figures in network.by_group.values() if metric in figures]
    present = [value for value in values if value is not None]
    return max(present) - min(present) if present else None


def _group_grid(report: ReportContents, networks: Sequence[Network], metric: str, caption: str) -> Grid:
    """Everybody, each sensitive group and the gap between them, beside each other."""
    groups = list(report.data.people)
    columns: list[tuple[Entry, list[Entry]]] = []

    def entries(figure_of: dict[str, Figure | None]) -> list[Entry]:
        return [
            _figure(figure_of[network.name], change=network.name != report.reference) if network.name in figure_of
            else Entry(NONE)
            for network in networks
        ]  # fmt: skip

    everybody = entries({network.name: network.overall.get(metric) for network in networks})
    whole = "all texts" if report.data.counted == "texts" else "everybody"
    columns.append((Entry(whole, ((f"n = {report.data.n_people:,}", False),)), everybody))
    for group in groups:
        of_group = entries({network.name: network.by_group.get(group, {}).get(metric) for network in networks})
        columns.append((Entry(group, ((f"n = {report.data.people[group]:,}", False),)), of_group))
    gaps = _GAPS.get(metric, ())
    if "accuracy_score_difference" not in gaps and "demographic_parity_difference" not in gaps and gaps:
        columns.append(
            (Entry("largest difference"), [Entry(_rate(_difference(network, metric))) for network in networks])
        )
    for gap in gaps:
        if any(gap in network.overall for network in networks):
            name = Entry(gap.replace("_", " "))
            columns.append((name, entries({network.name: network.overall.get(gap) for network in networks})))
    return _turned(
        "Network",
        [_name(report, network) for network in networks],
        report.data.counted.capitalize(),
        columns,
        caption,
        len(groups) > max(MOST_COLUMNS, len(networks) - 1),
    )


def _changed(report: ReportContents) -> Iterator[Block]:
    networks = [network for network in _shown(report) if network.name != report.reference]
    if any("changed_predictions" in network.overall for network in networks):
        caption = f"Share of people whose predicted label differs from that of {report.reference!r}"
        yield _group_grid(report, networks, "changed_predictions", caption)
    for changed in report.changed:
        blocks: list[Paragraph | Bullets | Grid | Image] = [_grid(changed.by_group)]
        if changed.samples is not None:
            blocks.append(_grid(changed.samples, words=True))
        blocks += [
            Image(picture)
            for picture in report.pictures
            if picture.section == "Changed predictions" and picture.network == changed.network
        ]
        yield Fold(f"Which people: {changed.network}", tuple(blocks))


def _method(report: ReportContents) -> Iterator[Block]:
    if report.methods:
        rows = tuple(
            (
                Entry(method.name, ((method.kind, False),)),
                Entry(method.does),
                Entry(
                    method.source or NONE, link=method.link if re.fullmatch(r"https://[\w./-]+", method.link) else ""
                ),
                Entry(method.standing or NONE),
                Entry(", ".join(f"{key} = {value}" for key, value in method.settings.items()) or NONE),
            )
            for method in report.methods
        )
        header = ("Name", "What it does, and to whom", "Source", "Published or not", "Settings")
        yield Grid("Criteria and post-processors", tuple(map(Entry, header)), rows, words=True)
    if any(network.facts for network in report.networks) and report.runs is None:
        names = list(dict.fromkeys(name for network in report.networks for name in network.facts))
        made = tuple(
            (Entry(network.name), *(Entry(network.facts.get(name, NONE)) for name in names))
            for network in report.networks
        )
        yield Grid("How each network was made", tuple(map(Entry, ("Network", *names))), made, words=True)
    if report.settings:
        pairs = tuple((Entry(name), Entry(value)) for name, value in report.settings.items())
        yield Grid("Settings of all networks", (Entry("Setting"), Entry("Value")), pairs, words=True)


def _size(report: ReportContents) -> Iterator[Block]:
    timed = report.timing is not None
    class_named = any(network.class_name for network in report.networks)
    header = (
        "Network",
        *(["class"] if class_named else []),
        "parameters",
        "multiply-accumulates of one sample",
        *(["latency, ms", "latency / reference"] if timed else []),
    )
    rows = []
    for network in report.networks if report.runs is None else _shown(report):
        row = [Entry(network.name)]
        row += [Entry(network.class_name)] if class_named else []
        row += [
            Entry(_count(network.parameters), _share(network.parameters_ratio)),
            Entry(_count(network.macs), _share(network.macs_ratio)),
        ]
        if timed:
            row += [_figure(network.latency_ms, change=False), _figure(network.latency_ratio, change=False)]
        rows.append(tuple(row))
    caption = "Size"
    if report.timing is not None:
        t = report.timing
        batch = "" if t.batch_size is None else f" of {_number(t.batch_size, 'sample')}"
        how = [_number(n, word) for n, word in ((t.rounds, "round"), (t.threads, "thread")) if n is not None]
        caption = f"Size, and median latency of a forward pass{batch} ({', '.join([*how, t.machine])})"
    yield Grid(caption, tuple(map(Entry, header)), tuple(rows))


def _number(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def _data(report: ReportContents) -> Iterator[Block]:
    data = report.data
    by = "whom" if data.counted == "people" else "which"
    yield Paragraph(f"{data.name}: {data.n_people:,} {data.counted} by {by} the networks are compared.")
    if data.description:
        yield Paragraph(data.description)
    if data.sensitive_features:
        yield Paragraph(f"Sensitive features: {', '.join(data.sensitive_features)}.")
    total = max(1, data.n_people)
    if data.counts:
        rows = [
            (Entry(group), Entry(f"{data.people[group]:,}", _share(data.people[group] / total)),
             *(Entry(f"{number:,}") for number in data.counts[group]))
            for group in data.people
        ]  # fmt: skip
        sums = [sum(counts[k] for counts in data.counts.values()) for k in range(len(data.classes))]
        rows.append((Entry("everybody"), Entry(f"{data.n_people:,}"), *(Entry(f"{number:,}") for number in sums)))
        header = tuple(map(Entry, ("Sensitive group", "people", *data.classes)))
        yield Grid("People by sensitive group and label", header, tuple(rows))
    else:
        people = [(Entry(g), Entry(f"{n:,}", _share(n / total))) for g, n in data.people.items()]
        if people:
            caption = f"{data.counted.capitalize()} by sensitive group"
            yield Grid(caption, (Entry("Sensitive group"), Entry(data.counted)), tuple(people))


def _provenance(report: ReportContents) -> Iterator[Block]:
    seeds = ", ".join(map(str, report.seeds)) if report.seeds else "not recorded"
    rows = [("date", report.date), ("seeds", seeds)]
    rows += [(name, text) for name, text in report.versions.items()]
    yield Grid(
        "Versions",
        (Entry("What"), Entry("Value")),
        tuple((Entry(name), Entry(text)) for name, text in rows),
        words=True,
    )
