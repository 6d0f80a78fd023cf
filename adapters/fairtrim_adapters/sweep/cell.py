"""One cell of a sweep: prune a dense network, measure it, and repair and measure it with each post-processor."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from fairtrim import FairtrimError, InputError, Predictions, measure_latency, predict
from fairtrim.comparison.network_size import network_size
from fairtrim.data.batches import Batch, slice_samples
from fairtrim.data.data_splits import DataSplits
from fairtrim.devices import model_device
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.repair.post_processor import PostProcessor
from fairtrim_adapters.fairlearn.measurements import joined_flags, measurements
from fairtrim_adapters.torch_pruning.prune_copy import prune_copy

from .named_methods import CriterionFactory
from .store import Row, RunKey, SweepStore
from .sweep_options import Settings

__all__ = [
    "DENSE",
    "PEOPLE",
    "UNREPAIRED",
    "Cell",
    "Dense",
    "run_cell",
    "run_dense",
]

DENSE, UNREPAIRED = "dense", "none"

PEOPLE = "_people"
"""Entry of a kept row that tells the test data from others; not a column of the table."""


@dataclass(frozen=True)
class Dense:
    """The dense network of one seed.

    Attributes:
        model: The network, in eval mode.
        predictions: Of the test data by the network ``dense``, labels only: scores are large.
        size: Parameters and macs.
        people: Digest of the test data.
    """

    model: nn.Module
    predictions: Predictions
    size: Mapping[str, int]
    people: str


@dataclass(frozen=True)
class Cell:
    """One dense network pruned one way, with whatever post-processors are still to be run.

    Attributes:
        seed: Of everything random.
        criterion: Its label; ``dense`` for no pruning.
        pruning_ratio: Share of the channels.
        post_processors: Labels of those to run, ``none`` for the pruned network as it is.
    """

    seed: int
    criterion: str
    pruning_ratio: float
    post_processors: tuple[str, ...]

    def key(self, post_processor: str) -> RunKey:
        """The key of one of its runs.

        Args:
            post_processor: Its label.

        Returns:
            The key.
        """
        return RunKey(self.seed, self.criterion, self.pruning_ratio, post_processor)


def _people_digest(predictions: Predictions) -> str:
    """Tells test data from others, by labels and sensitive features in their order."""
    columns = [predictions.target, *predictions.sensitive.values()]
    return hashlib.sha256(repr([column.tolist() for column in columns]).encode()).hexdigest()


def run_dense(model: nn.Module, settings: Settings) -> Dense:
    """Look at a dense network once.

    Args:
        model: The network.
        settings: Of the sweep.

    Returns:
        The network with its predictions and size.

    Raises:
        InputError: The test data have no sensitive features.
    """
    splits = settings.splits
    model = model.eval()
    predictions = predict(
        {DENSE: model}, splits.test, sensitive_names=splits.sensitive_names, progress=False, **splits.calling
    )
    if not predictions.sensitive:
        raise InputError(
            "the test data have no sensitive features, by which networks are compared; expected batches of "
            "(inputs, target, sensitive)"
        )
    size = network_size(ScoredNetwork(model, **splits.calling), splits.first_batch("test", model_device(model)))
    return Dense(model, replace(predictions, scores={}), size, _people_digest(predictions))


def run_cell(
    cell: Cell,
    dense: Dense,
    make: CriterionFactory | None,
    settings: Settings,
    store: SweepStore,
    described: Mapping[str, Mapping[str, Any]],
) -> list[tuple[RunKey, Row]]:
    """Prune, repair and measure; each run is kept as soon as it is finished.

    Args:
        cell: What to do.
        dense: The network to prune.
        make: Makes the importance; None for the dense network.
        settings: Of the sweep.
        store: Where runs are kept.
        described: Settings of each run by label of its post-processor, which must be the same to take it up again.

    Returns:
        The rows by key.

    Raises:
        FairtrimError: Something is wrong; the message names the run.
    """
    began = time.perf_counter()
    key = cell.key(UNREPAIRED)
    try:
        pruned: nn.Module | None = dense.model
        if make is not None:  # taken up again, if only repairs are missing
            kept = store.finished(key, described[UNREPAIRED]) is not None
            pruned = store.restored(key, copy.deepcopy(dense.model)) if kept else None
            pruned = _pruned(cell, dense, make(cell.seed), settings) if pruned is None else pruned
        assert pruned is not None
        rows = []
        for label in cell.post_processors:
            key = cell.key(label)
            model: nn.Module = pruned
            flags: list[str] = []
            if label != UNREPAIRED:
                model, flags = _repaired(pruned, settings.post_processors[label], cell.seed, settings.splits)
            row, predicted = _measured(key, model, dense, flags, settings)
            row["seconds"] = time.perf_counter() - began
            rows.append((key, store.finish(key, described[label], row, predicted, model)))
            began = time.perf_counter()
        return rows
    except FairtrimError as error:
        raise type(error)(f"{key}: {error}") from error


def _pruned(cell: Cell, dense: Dense, importance: Any, settings: Settings) -> nn.Module:
    return prune_copy(
        dense.model,
        importance,
        settings.splits,
        cell.pruning_ratio,
        random_state=cell.seed,
        fine_tuning=settings.fine_tuning,
        reconstruct=settings.refitted,
        recalibrate=settings.recalibrate,
        recalibrate_output=settings.recalibrate_output,
        iterative_steps=settings.iterative_steps,
        ignored_layers=settings.ignored_layers,
        pruner_options=settings.pruner_options,
        progress=False,
    )


def _repaired(
    pruned: nn.Module, post_processor: PostProcessor, seed: int, splits: DataSplits
) -> tuple[nn.Module, list[str]]:
    method = copy.copy(post_processor).set_params(random_state=seed)
    repair = method.repair(
        pruned,
        splits.need("validation", type(post_processor).__name__),
        sensitive_names=splits.sensitive_names,
        progress=False,
        **splits.calling,
    )
    return repair.model.eval(), list(repair.flags)


def _measured(
    key: RunKey, model: nn.Module, dense: Dense, flags: Sequence[str], settings: Settings
) -> tuple[Row, npt.NDArray[np.int64]]:
    splits, before = settings.splits, dense.predictions
    name = key.criterion if model is dense.model else "this network"
    if model is dense.model:
        both = before
    else:
        after = predict(
            {name: model}, splits.test, sensitive_names=splits.sensitive_names, progress=False, **splits.calling
        )
        if _people_digest(after) != dense.people:
            raise InputError(
                "the test data came in another order than before; expected a loader that gives the same people in the "
                "same order each time: shuffle=False"
            )
        labels = {**before.label, name: after.label[name]}
        both = replace(before, label=labels, n_classes=max(before.n_classes, after.n_classes))
    figures = measurements(both, name, DENSE, n_boot=settings.n_boot, random_state=key.seed, metrics=settings.metrics)
    batch = splits.first_batch("test", model_device(model))
    size = dense.size if model is dense.model else network_size(ScoredNetwork(model, **splits.calling), batch)
    row: Row = {
        "criterion": key.criterion,
        "pruning_ratio": key.pruning_ratio,
        "post_processor": key.post_processor,
        "seed": key.seed,
        "reconstructed": key.criterion != DENSE and settings.refitted,
        **size,
        "parameters_ratio": size["parameters"] / dense.size["parameters"],
        "macs_ratio": size["macs"] / dense.size["macs"] if dense.size["macs"] else float("nan"),
        **_latency(model, dense.model, batch, settings),
        **figures,
        "checkpoint": "",
        PEOPLE: dense.people,
    }
    row["flags"] = "; ".join(filter(None, [figures["flags"], joined_flags(flags)]))
    return row, both.label[name]


def _latency(model: nn.Module, dense: nn.Module, batch: Batch, settings: Settings) -> dict[str, float]:
    if not settings.latency_rounds:
        return {}
    inputs = slice_samples(batch.inputs, slice(0, settings.latency_batch_size))
    networks = {DENSE: dense} if model is dense else {DENSE: dense, "this network": model}
    latency = measure_latency(
        networks, inputs, rounds=settings.latency_rounds, forward_fn=settings.splits.forward_fn, progress=False
    )
    name = list(networks)[-1]
    return {
        "latency_ms": 1e3 * latency.median(name).median,
        "latency_ratio": 1.0 if model is dense else latency.ratio(name).median,
    }
