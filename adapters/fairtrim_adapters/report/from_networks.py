"""A report of networks that are at hand."""

from __future__ import annotations

import dataclasses
import itertools
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairtrim import ChangedSamples, DamageTable, InputError, measure_latency, predict
from fairtrim.arguments import RandomState, drawn_seed, renamed
from fairtrim.comparison.changed_samples import changed_between
from fairtrim.comparison.latency import FEWEST_ROUNDS, Latency
from fairtrim.comparison.network_size import network_size
from fairtrim.comparison.predictions import Predictions
from fairtrim.data.batches import Batch, slice_samples
from fairtrim.devices import model_device, to_device
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.progress import progress_bar
from fairtrim_adapters.fairlearn import Comparison, compare_predictions, measurements, plot_comparison
from fairtrim_adapters.fairlearn.flags import OF_DATA
from fairtrim_adapters.fairlearn.measurements import group_names
from fairtrim_adapters.sweep import DataSplits, versions

from .caveats import with_caveats
from .contents import Changed, Data, Figure, Flag, Method, Network, Picture, Table, Timing, figure_of, finite
from .document import Report
from .methods import method_of
from .pictures import closed_picture, need_matplotlib

__all__ = ["report_networks"]

LATENCY_BATCH = 32
_MOST_FEATURES = 16  # in the cell of one sample
_MOST_IMAGES = 24


@renamed(data="splits")
def report_networks(
    models: Mapping[str, nn.Module],
    splits: DataSplits | Mapping[str, Any],
    *,
    reference: str | None = None,
    method: Mapping[str, Any] | None = None,
    n_boot: int | None = 200,
    latency_rounds: int = 30,
    damage: DamageTable | None = None,
    samples: int = 20,
    pictures: bool = True,
    title: str = "Compressed networks by sensitive group",
    random_state: RandomState = 0,
    progress: bool = True,
) -> Report:
    """Compare networks on the test people of the data, and tell what was not measured.

    Args:
        models: Networks by name, e.g. ``{"dense": ..., "pruned": ...}``; left as they were.
        splits: ``test`` judges; names and description are shown. A dict of the arguments of ``DataSplits`` will do.
        reference: The network that changes are measured from; default the first.
        method: How the networks were made: plain values by name for all of them, and by the name of a network a dict
            of its own. ``criterion`` and ``post_processor`` are looked up, ``seed`` or ``seeds`` recorded:
            ``{"seed": 0, "pruned": {"criterion": "worst-group", "pruning_ratio": 0.5, "iterative_steps": 1}}``.
        n_boot: Bootstrap samples of the 95 % intervals, or None.
        latency_rounds: How often each network is timed, at least 6; 0 for not at all.
        damage: Predicted damage, drawn by layer and sensitive group.
        samples: At most so many changed samples of each network are shown, 0 for none: with tables they are records of
            single people, with images pictures of them.
        pictures: Whether to draw; needs matplotlib.
        title: Of the report.
        random_state: Seed of the bootstrap, or a torch.Generator, from which one is drawn.
        progress: Show progress bars.

    Returns:
        The report.

    Raises:
        InputError: An argument is wrong, the data have no sensitive features, or matplotlib is missing.

    Example:
        >>> people = [(torch.eye(3), torch.tensor([0, 1, 0]), ["a", "b", "b"])]
        >>> dense, pruned = nn.Linear(3, 2), nn.Linear(3, 2)
        >>> report = report_networks({"dense": dense, "pruned": pruned}, {"test": people, "name": "three people"},
        ...                          latency_rounds=0, pictures=False, progress=False)
        >>> report.data.people, report.networks[1].name
        ({'a': 1, 'b': 2}, 'pruned')
    """
    splits = DataSplits.of(splits)
    reference = _checked_names(models, reference)
    _check_numbers(n_boot, latency_rounds, samples)
    seed = drawn_seed(random_state)
    if damage is not None and not isinstance(damage, DamageTable):
        raise InputError(f"damage is a {type(damage).__name__}; expected a DamageTable, e.g. importance.damage_")
    made = _method_facts(method, list(models))
    if pictures:
        need_matplotlib()
    test = _read(models, splits, reference, samples, progress)
    rows = {
        name: measurements(test.people, name, reference, n_boot=n_boot, random_state=seed)
        for name in progress_bar(models, description="measuring", shown=progress, unit="network")
    }
    latency, timing = _latency(models, test, latency_rounds, progress)
    data_facts = _data_facts(test)
    report = Report(
        title=title,
        data=data_facts,
        reference=reference,
        networks=_networks(models, test, rows, latency, data_facts, made.of_network),
        methods=made.methods,
        settings=made.of_all,
        versions=versions(),
        seeds=made.seeds,
        intervals=n_boot is not None,
        n_boot=n_boot,
        timing=timing,
        flags=_flags(rows),
        changed=tuple(_changed(name, change, splits, samples) for name, change in test.changes.items()),
        pictures=_pictures(test, rows, damage, samples) if pictures else (),
    )
    return with_caveats(report, nobody=_nobody(test))


@dataclass(frozen=True)
class _TestPeople:
    """All that is read of the test people, however many networks there are: one batch, and one pass for them all."""

    splits: DataSplits
    reference: str
    batch: Batch  # the first, on the CPU
    predictions: Predictions
    people: Predictions  # labels only, and crossings as one feature, so that those of nobody don't come up
    changes: Mapping[str, ChangedSamples]  # none if a sample has several labels


def _read(
    models: Mapping[str, nn.Module], splits: DataSplits, reference: str, samples: int, progress: bool
) -> _TestPeople:
    """Run each network once; the loader is read again only to show inputs of changed samples."""
    batch = splits.first_batch("test", torch.device("cpu"))
    _check_features(splits, batch)
    predictions = predict(
        models, splits.test, sensitive_names=splits.sensitive_names, progress=progress, **splits.calling
    )
    name = " × ".join(predictions.sensitive) or "sensitive group"
    people = dataclasses.replace(predictions, scores={}, sensitive={name: group_names(predictions)})
    changes: Mapping[str, ChangedSamples] = {}
    if batch.target.ndim == 1 or batch.target.numel() == len(batch):  # one label a sample
        shown = isinstance(batch.inputs, Tensor) and batch.inputs.ndim in (2, 3, 4) and samples > 0
        inputs = splits.test if shown and len(models) > 1 else None
        changes = changed_between(predictions, reference, inputs=inputs, progress=progress)
    return _TestPeople(splits, reference, batch, predictions, people, changes)


def _checked_names(models: Mapping[str, nn.Module], reference: str | None) -> str:
    if not isinstance(models, Mapping) or not models:
        raise InputError(
            f"models is a {type(models).__name__}; expected networks by name: {{'dense': ..., 'pruned': ...}}"
        )
    for name, model in models.items():
        if not isinstance(name, str) or not isinstance(model, nn.Module):
            raise InputError(f"models[{name!r}] is a {type(model).__name__}; expected a torch.nn.Module under a string")
    if reference is not None and reference not in models:
        raise InputError(f"reference={reference!r} is not one of the networks: {list(models)}")
    return next(iter(models)) if reference is None else reference


def _check_numbers(n_boot: int | None, latency_rounds: int, samples: int) -> None:
    if (n_boot is not None and n_boot < 1) or (latency_rounds != 0 and latency_rounds < FEWEST_ROUNDS) or samples < 0:
        raise InputError(
            f"n_boot={n_boot}, latency_rounds={latency_rounds}, samples={samples}; expected at least 1 or None, 0 or "
            f"at least {FEWEST_ROUNDS}, and at least 0"
        )


def _check_features(splits: DataSplits, batch: Batch) -> None:
    if splits.feature_names is None or not isinstance(batch.inputs, Tensor) or batch.inputs.ndim != 2:
        return
    if len(splits.feature_names) != batch.inputs.shape[1]:
        raise InputError(
            f"{len(splits.feature_names)} feature_names for {batch.inputs.shape[1]} features; expected as many"
        )


@dataclass(frozen=True)
class _Made:
    """How networks were made: settings of all and of each, what is known about their methods, and the seeds."""

    of_all: dict[str, str]
    of_network: dict[str, dict[str, str]]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]


def _method_facts(method: Mapping[str, Any] | None, names: Sequence[str]) -> _Made:
    """What the user tells of how networks were made, sorted."""
    if method is not None and not isinstance(method, Mapping):
        raise InputError(f"method is a {type(method).__name__}; expected facts by name: {{'criterion': 'worst-group'}}")
    own = {key: value for key, value in (method or {}).items() if isinstance(value, Mapping)}
    shared = {str(key): value for key, value in (method or {}).items() if key not in own}
    for key in own:
        if key not in names:
            raise InputError(f"method[{key!r}] holds facts of a network, but the networks are {list(names)}")
    methods: dict[tuple[str, str], Method] = {}
    for facts in (shared, *own.values()):
        for key, kind in (("criterion", "criterion"), ("post_processor", "post-processor")):
            for text in _several(facts.get(key)):
                if text not in ("dense", "none", None):
                    methods[kind, str(text)] = method_of(kind, str(text))
    seeds = [seed for key in ("seed", "seeds") for seed in _several(shared.pop(key, None)) if seed is not None]
    if not all(isinstance(seed, int) for seed in seeds):
        raise InputError(f"method has seeds {seeds}; expected whole numbers")
    of_network = {name: _in_words(facts) for name, facts in own.items()}
    return _Made(_in_words(shared), of_network, tuple(methods.values()), tuple(seeds))


def _in_words(facts: Mapping[Any, Any]) -> dict[str, str]:
    return {str(key).replace("_", " "): _words(value) for key, value in facts.items()}


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _nobody(test: _TestPeople) -> list[str]:
    """Crossings of values that somebody has, without anybody in them."""
    values = [np.unique(column).tolist() for column in test.predictions.sensitive.values()]
    (present,) = test.people.sensitive.values()
    found = set(present.tolist())
    return [name for name in (", ".join(crossing) for crossing in itertools.product(*values)) if name not in found]


def _data_facts(test: _TestPeople) -> Data:
    """Who the test people are, and how many of each label."""
    splits, people = test.splits, test.people
    K = people.n_classes
    if splits.class_names is not None and len(splits.class_names) != K:
        raise InputError(f"{len(splits.class_names)} class_names for {K} classes; expected as many")
    (group,) = people.sensitive.values()
    names = sorted(set(group.tolist()))
    counts = {name: np.bincount(people.target[group == name], minlength=K) for name in names}
    return Data(
        name=splits.name,
        description=splits.description,
        n_people=len(people.target),
        sensitive_features=tuple(map(str, test.predictions.sensitive)),
        classes=tuple(map(str, splits.class_names or (f"class {k}" for k in range(K)))),
        people={name: int(counts[name].sum()) for name in names},
        counts={name: tuple(counts[name].tolist()) for name in names},
    )


def _flags(rows: Mapping[str, Mapping[str, Any]]) -> tuple[Flag, ...]:
    """Those of the people once, however many networks they were found for."""
    found = [
        Flag(kind, "" if kind in OF_DATA else name, detail)
        for name, row in rows.items()
        for flag in filter(None, row["flags"].split("; "))
        for kind, _, detail in [flag.partition(": ")]
    ]
    return tuple(dict.fromkeys(found))


def _latency(
    models: Mapping[str, nn.Module], test: _TestPeople, rounds: int, progress: bool
) -> tuple[Latency | None, Timing | None]:
    """Latencies, and how they were measured."""
    if not rounds:
        return None, None
    device = model_device(models[test.reference])
    inputs = to_device(slice_samples(test.batch.inputs, slice(0, LATENCY_BATCH)), device)
    ordered = {test.reference: models[test.reference], **models}
    latency = measure_latency(ordered, inputs, rounds=rounds, forward_fn=test.splits.forward_fn, progress=progress)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    if device.type not in ("cpu", "cuda"):
        machine += f", {device.type}"
    return latency, Timing(min(LATENCY_BATCH, len(test.batch)), rounds, latency.threads, machine)


def _networks(
    models: Mapping[str, nn.Module],
    test: _TestPeople,
    rows: Mapping[str, Mapping[str, Any]],
    latency: Latency | None,
    data: Data,
    made: Mapping[str, dict[str, str]],
) -> tuple[Network, ...]:
    """Each network with its size, its latency and its figures."""
    sizes = {name: _size(model, test) for name, model in models.items()}
    of_reference = sizes[test.reference]
    networks = []
    for name, model in models.items():
        row, size = rows[name], sizes[name]
        ratios = {what: size[what] / of_reference[what] if of_reference[what] else None for what in size}
        metrics = [column for column in row if f"{column}_change" in row or column == "changed_predictions"]
        by_person = [metric for metric in metrics if f"{metric}[{next(iter(data.people))}]" in row]
        times = None if latency is None else (latency.median(name), latency.ratio(name))
        networks.append(
            Network(
                name=name,
                class_name=type(model).__name__,
                parameters=float(size["parameters"]),
                parameters_ratio=ratios["parameters"],
                macs=float(size["macs"]),
                macs_ratio=ratios["macs"],
                latency_ms=times and Figure(*(finite(1e3 * value) for value in times[0])),
                latency_ratio=times and Figure(*map(finite, times[1])),
                facts=made.get(name, {}),
                overall={metric: figure_of(row, metric) for metric in metrics},
                by_group={group: {m: figure_of(row, m, group) for m in by_person} for group in data.people},
            )
        )
    return tuple(networks)


def _size(model: nn.Module, test: _TestPeople) -> dict[str, int]:
    batch, device = test.batch, model_device(model)
    there = dataclasses.replace(batch, inputs=to_device(batch.inputs, device), target=batch.target.to(device))
    return network_size(ScoredNetwork(model, **test.splits.calling), there)


# The changed samples.


def _changed(name: str, change: ChangedSamples, splits: DataSplits, samples: int) -> Changed:
    frame = change.by_group().reset_index()
    columns = ("sensitive group", "people", "changed", "share", "now right", "now wrong")
    by_group = Table(
        f"{name}: people whose predicted label changed",
        columns,
        tuple(map(_by_group_row, frame.itertuples(index=False))),
    )
    return Changed(name, by_group, _sample_table(name, change, splits, samples) if samples and len(change) else None)


def _by_group_row(row: Sequence[Any]) -> tuple[Any, ...]:
    group, people, changed, share, gained, lost = row
    return str(group), int(people), int(changed), float(share), int(gained), int(lost)


def _sample_table(name: str, change: ChangedSamples, splits: DataSplits, samples: int) -> Table:
    """The samples whose target lost most probability first."""

    def label(k: int) -> str:
        return str(k) if splits.class_names is None else str(splits.class_names[k])

    tabular = isinstance(change.inputs, Tensor) and change.inputs.ndim == 2
    columns = ["row", *map(str, change.sensitive), "label", "before", "after", "p before", "p after"]
    rows = [
        (
            int(change.row[i]),
            *(str(values[i]) for values in change.sensitive.values()),
            label(int(change.target[i])),
            label(int(change.before[i])),
            label(int(change.after[i])),
            finite(change.probability_before[i]),
            finite(change.probability_after[i]),
            *([_features(change.inputs[i], splits.feature_names)] if tabular else []),
        )
        for i in range(min(samples, len(change)))
    ]
    caption = f"{name}: {len(rows)} of {len(change):,} changed samples, those first whose label lost most probability p"
    return Table(caption, (*columns, *(["features other than 0"] if tabular else [])), tuple(rows))


def _features(values: Tensor, names: Sequence[str] | None) -> str:
    named = [
        f"{f'feature {d}' if names is None else names[d]} = {value:.3g}"
        for d, value in enumerate(values.tolist())
        if value
    ]
    more = f", and {len(named) - _MOST_FEATURES} more" if len(named) > _MOST_FEATURES else ""
    return ", ".join(named[:_MOST_FEATURES]) + more


# The pictures.


def _pictures(
    test: _TestPeople, rows: Mapping[str, Mapping[str, Any]], damage: DamageTable | None, samples: int
) -> tuple[Picture, ...]:
    """Rates of each sensitive group, the predicted damage, and images that changed."""
    return (*_pictures_of_rates(test, rows), *_picture_of_damage(damage), *_pictures_of_changes(test, samples))


def _pictures_of_rates(test: _TestPeople, rows: Mapping[str, Mapping[str, Any]]) -> Iterator[Picture]:
    comparison = compare_predictions(test.people, reference=test.reference, progress=False)
    for metric in ("accuracy", "true_positive_rate"):
        words = metric.replace("_", " ")
        if words in comparison.by_group:
            axes = plot_comparison(_with_intervals(comparison, rows, metric), metric=words)
            yield closed_picture(
                axes,
                metric.replace("_", "-"),
                f"{words.capitalize()} of each network: a mark for each sensitive group, a bar for everybody; "
                f"dashed: {comparison.reference!r}; vertical lines: 95 % intervals, if there are any.",
                f"Dot chart of the {words} by network and sensitive group; the table above has the figures.",
                "Sensitive groups",
            )


def _picture_of_damage(damage: DamageTable | None) -> Iterator[Picture]:
    from fairtrim_adapters.plots import plot_damage

    if damage is not None:
        yield closed_picture(
            plot_damage(damage),
            "damage",
            "Predicted rise of each sensitive group's loss when channels are removed, by layer.",
            "Heat map of the predicted damage by layer and sensitive group.",
            "Predicted damage",
        )


def _pictures_of_changes(test: _TestPeople, samples: int) -> Iterator[Picture]:
    from fairtrim_adapters.plots import plot_changed_images

    for number, (name, change) in enumerate(test.changes.items()):
        if isinstance(change.inputs, Tensor) and change.inputs.ndim in (3, 4) and len(change):
            names = test.splits.class_names
            yield closed_picture(
                plot_changed_images(change, number=min(samples, _MOST_IMAGES), class_names=names),
                f"changed-images-{number}",
                "Changed samples, those first whose label lost most probability.",
                f"Images that {name} gives another label than {test.reference}; the table lists the labels.",
                "Changed predictions",
                network=name,
                vector=False,
            )


def _with_intervals(comparison: Comparison, rows: Mapping[str, Mapping[str, Any]], metric: str) -> Comparison:
    """Fairlearn's figures beside the intervals of the row, which cost less than Fairlearn's bootstrap."""
    words = metric.replace("_", " ")
    table = comparison.by_group.copy()
    figures = [figure_of(rows[name], metric, group) for name, group in table.index]
    table[words] = [np.nan if figure.value is None else figure.value for figure in figures]  # undefined, not 0
    if any(figure.low is not None for figure in figures):
        table[f"{words} low"] = [np.nan if figure.low is None else figure.low for figure in figures]
        table[f"{words} high"] = [np.nan if figure.high is None else figure.high for figure in figures]
    return dataclasses.replace(comparison, by_group=table)
