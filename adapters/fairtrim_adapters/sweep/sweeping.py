"""Many compressions of one network side by side: criteria x ratios x seeds x post-processors."""

from __future__ import annotations

import copy
import difflib
import inspect
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch_pruning as tp
from joblib import Parallel, delayed
from torch import nn
from tqdm.auto import tqdm

from fairtrim import InputError, PostProcessor
from fairtrim.comparison.latency import FEWEST_ROUNDS
from fairtrim.data.data_splits import DataSplits
from fairtrim.files.resumption import fingerprint
from fairtrim.files.run_settings import described, plain_settings
from fairtrim_adapters.fairlearn.measurements import check_metrics
from fairtrim_adapters.fairlearn.responses import Metric
from fairtrim_adapters.torch_pruning.graph.pruner_options import PrunerOptions
from fairtrim_adapters.torch_pruning.prune_copy import Training, has_batchnorm, trains

from .cell import (
    DENSE,
    PEOPLE,
    UNREPAIRED,
    Cell,
    Dense,
    Settings,
    run_cell,
    run_dense,
)
from .named_methods import CriterionFactory, criteria_by_label, post_processors_by_label
from .store import Row, RunKey, SweepStore, as_table

__all__ = ["sweep", "versions"]

PACKAGES = ("fairtrim", "torch", "torch-pruning", "fairlearn", "numpy", "pandas", "scikit-learn")

NetworkFactory = Callable[..., nn.Module]


def versions() -> dict[str, str]:
    """What a result was made with.

    Returns:
        Versions of Python and of the packages that figures depend on, by name.

    Example:
        >>> sorted(versions())[:2]
        ['fairlearn', 'fairtrim']
    """
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def sweep(
    model: nn.Module | NetworkFactory,
    data: DataSplits | Mapping[str, Any],
    criteria: str | Sequence[str] | Mapping[str, str | Callable[[], tp.importance.Importance]] = (
        "magnitude",
        "mean-damage",
        "worst-group",
    ),
    ratios: float | Sequence[float] = (0.25, 0.5, 0.75),
    seeds: int | Sequence[int] = (0,),
    *,
    post_processors: str | Sequence[str] | Mapping[str, str | PostProcessor] | None = None,
    train: Callable[[nn.Module, int], Any] | None = None,
    fine_tune: Training = 0,
    learning_rate: float = 1e-3,
    iterative_steps: int = 1,
    ignored_layers: Sequence[str] = (),
    pruner_options: PrunerOptions = None,
    recalibrate: bool = True,
    metrics: Mapping[str, Metric] | None = None,
    n_boot: int | None = 200,
    latency_rounds: int = 30,
    latency_batch_size: int = 32,
    folder: str | os.PathLike[str] | None = None,
    n_jobs: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Prune, repair and measure a network in many ways.

    With ``folder=`` each run's row and network are written as soon as it is finished, completely or not at all; called
    again with the same arguments, a sweep that was cut short goes on with what is missing. Dense networks are kept
    too: ``train`` is not called again for them, a factory is.

    Args:
        model: A trained network, untouched; or a function that gives one, called with the seed if it has a parameter of
            that name.
        data: The splits; criteria that look at data need ``scoring`` (or ``train``), post-processors ``validation``.
        criteria: Names, with settings if need be (``"worst-group:selection=single"``): those of
            ``fairtrim_adapters.torch_pruning.IMPORTANCES`` and Torch-Pruning's ``random``, ``magnitude`` and
            ``taylor``; or a dict of labels and names or functions that make an importance.
        ratios: Shares of the channels to remove.
        seeds: Of everything random: the factory, fine-tuning, random criteria, post-processors, and bootstraps. A
            number S stands for seeds 0 to S − 1.
        post_processors: Names of ``POST_PROCESSORS`` with settings (``"parity-fine-tuning:epsilon=0.1"``), or a dict of
            labels and names or post-processors. Each is run on every pruned network and on the dense ones, beside the
            networks as they are.
        train: Trains what ``model`` gives, in place: ``train(network, seed)``.
        fine_tune: Epochs on ``data.train`` after pruning, or one's own loop ``fine_tune(network, seed)``.
        learning_rate: Of the fine-tuning, at its start.
        iterative_steps: In how many steps to prune; scores are computed again before each.
        ignored_layers: Names of layers whose outputs stay, beside the layer that gives the scores.
        pruner_options: Further arguments of Torch-Pruning's ``BasePruner``, e.g. ``{"global_pruning": True}``, or a
            function of the network that gives them.
        recalibrate: Whether BatchNorm statistics are computed again after pruning, where nothing is fine-tuned.
        metrics: Further metrics by name, as MetricFrame takes them.
        n_boot: Bootstrap samples for the 95 % intervals, or None.
        latency_rounds: How often each network is timed, beside the dense one; 0 for not at all.
        latency_batch_size: Samples of the timed forward pass, at most a batch of the test data.
        folder: Where to keep what is finished.
        n_jobs: Runs at a time, through joblib; None leaves it to ``joblib.parallel_config``, by default one. Latencies
            are only true for one.
        progress: Show a progress bar.

    Returns:
        One row a run: ``criterion`` (``dense`` for the unpruned network), ``ratio``, ``post_processor`` (``none``),
        ``seed``; ``parameters``, ``macs`` of one sample, both also as ratios to the dense network of the seed;
        ``latency_ms`` (median, one batch) and ``latency_ratio``; the figures of
        ``fairtrim_adapters.fairlearn.measurements`` over everybody and for each sensitive group, with intervals and
        changes against the dense network of the seed; ``flags``; ``checkpoint``, relative to the folder, for
        ``fairtrim.load_pruned``; ``seconds`` of the run.

    Raises:
        InputError: An argument or the data is wrong, or the folder holds another sweep.
        UnsupportedModelError: A network can't be pruned; the message names the run.

    Example:
        >>> import torch
        >>> x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
        >>> people = [(x, (x[:, 0] > 0).long(), ["a", "b", "b", "b"] * 10)]
        >>> network = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> table = sweep(network, {"test": people, "scoring": people}, "worst-group", 0.5, n_boot=None,
        ...               latency_rounds=0, progress=False)
        >>> table[["criterion", "ratio", "parameters"]].values.tolist()
        [['dense', 0.0, 66], ['worst-group', 0.5, 34]]
    """
    splits = DataSplits.of(data)
    factories = criteria_by_label(criteria)
    methods = post_processors_by_label(post_processors)
    if n_jobs == 0:
        raise InputError("n_jobs=0; expected at least 1, -1 for all processors, or None")
    ratios = _shares(ratios)
    seeds = _seeds(seeds)
    _check_numbers(iterative_steps, fine_tune, learning_rate, n_boot, latency_rounds, latency_batch_size)
    _check_splits(splits, factories, methods, fine_tune)
    check_metrics(metrics)
    if isinstance(ignored_layers, str):
        raise InputError(f"ignored_layers is the string {ignored_layers!r}; expected a list: [{ignored_layers!r}]")
    if not isinstance(model, nn.Module) and not callable(model):
        raise InputError(f"model is a {type(model).__name__}; expected a network or a function that gives one")
    training: Training = fine_tune
    if isinstance(fine_tune, int) and fine_tune:
        training = {"epochs": fine_tune, "learning_rate": learning_rate}
    settings = Settings(
        data=splits,
        post_processors=methods,
        fine_tuning=training,
        iterative_steps=iterative_steps,
        ignored_layers=list(ignored_layers),
        pruner_options=pruner_options,
        recalibrate=recalibrate,
        metrics=metrics,
        n_boot=n_boot,
        latency_rounds=latency_rounds,
        latency_batch_size=latency_batch_size,
    )
    shared = {
        "network": fingerprint(model) if isinstance(model, nn.Module) else described(model),
        "train": described(train),
        "data": splits.name,
        "metrics": sorted(metrics or ()),
        "n_boot": n_boot,
        "latency": [latency_rounds, latency_batch_size],
        "calling": plain_settings(splits.calling),
        "loss_fn": described(splits.loss_fn),
    }
    store = SweepStore(folder, shared)
    pruning = {
        "fine_tune": described(fine_tune) if callable(fine_tune) else [fine_tune, learning_rate],
        "iterative_steps": iterative_steps,
        "ignored_layers": list(ignored_layers),
        "pruner_options": described(pruner_options) if callable(pruner_options) else plain_settings(pruner_options),
        "recalibrate": recalibrate,
    }
    labels = (UNREPAIRED, *methods)
    own = {
        label: plain_settings(
            {"post_processor": {"method": type(methods[label]).__name__, **methods[label].get_params()}}
            if label != UNREPAIRED
            else {}
        )
        for label in labels
    }

    named = criteria if isinstance(criteria, Mapping) else {label: label for label in factories}
    chosen = {label: value if isinstance(value, str) else described(value) for label, value in named.items()}

    def run_settings(key: RunKey) -> dict[str, Any]:
        pruned = {} if key.criterion == DENSE else {"criterion": chosen[key.criterion], **pruning}
        return {**own[key.post_processor], **pruned}

    cells = [(seed, DENSE, 0.0) for seed in seeds]
    cells += [(seed, name, ratio) for seed in seeds for name in factories for ratio in ratios]
    keys = [RunKey(*cell, label) for cell in cells for label in labels]
    rows: dict[RunKey, Row] = {}
    for key in keys:
        if (kept := store.finished(key, run_settings(key))) is not None:
            rows[key] = kept[0]
    with tqdm(total=len(keys), initial=len(rows), desc="sweep", unit="run", disable=not progress, smoothing=0) as bar:
        for seed in seeds:
            todo = [
                Cell(*cell, tuple(label for label in labels if RunKey(*cell, label) not in rows))
                for cell in cells
                if cell[0] == seed
            ]
            todo = [cell for cell in todo if cell.post_processors]
            if not todo:
                continue
            dense = _dense(model, train, seed, settings, store, run_settings)
            if (first := RunKey(seed, DENSE, 0.0, UNREPAIRED)) not in rows:
                # kept before any run that is measured against it, or those would go on from another training of it
                unrepaired = Cell(seed, DENSE, 0.0, (UNREPAIRED,))
                rows |= run_cell(unrepaired, dense, None, settings, store, {UNREPAIRED: run_settings(first)})
                bar.update()
                repairs = tuple(label for label in todo[0].post_processors if label != UNREPAIRED)
                todo = [*([replace(todo[0], post_processors=repairs)] if repairs else []), *todo[1:]]
            results: Iterable[list[tuple[RunKey, Row]]] = Parallel(n_jobs=n_jobs, return_as="generator_unordered")(
                delayed(run_cell)(
                    cell,
                    dense,
                    factories.get(cell.criterion),
                    settings,
                    store,
                    {label: run_settings(cell.key(label)) for label in labels},
                )
                for cell in todo
            )
            for finished in results:
                rows |= finished
                bar.update(len(finished))
    table = as_table([rows[key] for key in keys])
    store.describe(
        {
            "data": splits.name,
            "description": splits.description,
            "criteria": list(factories),
            "ratios": ratios,
            "seeds": seeds,
            "post_processors": own,
            "pruning": pruning,
            "n_boot": n_boot,
            "latency": {"rounds": latency_rounds, "batch_size": latency_batch_size, "n_jobs": n_jobs},
            "versions": versions(),
            "machine": platform.machine(),
        }
    )
    store.write_table(table)
    return table


def _dense(
    model: nn.Module | NetworkFactory,
    train: Callable[[nn.Module, int], Any] | None,
    seed: int,
    settings: Settings,
    store: SweepStore,
    run_settings: Callable[[RunKey], Mapping[str, Any]],
) -> Dense:
    """The dense network of a seed: as it was kept, or made and trained."""
    network = copy.deepcopy(model) if isinstance(model, nn.Module) else _made(model, seed)
    _check_network(network, settings)
    key = RunKey(seed, DENSE, 0.0, UNREPAIRED)
    kept = store.finished(key, run_settings(key))
    if kept is not None and store.restored(key, network) is not None:
        dense = run_dense(network, settings)
        same_labels = np.array_equal(dense.predictions.label[DENSE], kept[1])
        if not same_labels or dense.people != kept[0][PEOPLE]:
            raise InputError(
                f"{store.folder}: the test data, or their order, are others than when the sweep began (the dense "
                f"network of seed {seed} tells); expected the same, or another folder"
            )
        return dense
    if train is not None:
        train(network, seed)
    return run_dense(network, settings)


def _check_network(network: nn.Module, settings: Settings) -> None:
    """Refuse what would fail after hours of training."""
    names = [name for name, _ in network.named_modules() if name]
    unknown = [name for name in settings.ignored_layers if name not in names]
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), names, 1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(
            f"ignored_layers holds {unknown[0]!r}{meant}; expected names of the network's layers: {names[:20]}"
        )
    if settings.recalibrate and not trains(settings.fine_tuning) and has_batchnorm(network):
        settings.data.need("scoring", "recalibrating BatchNorm (turn it off with recalibrate=False)")


def _made(factory: NetworkFactory, seed: int) -> nn.Module:
    takes_seed = "seed" in inspect.signature(factory).parameters
    network = factory(seed=seed) if takes_seed else factory()
    if not isinstance(network, nn.Module):
        raise InputError(
            f"the network factory gave a {type(network).__name__}; expected a torch.nn.Module (a trained one, or pass "
            "train= as well)"
        )
    return network


def _shares(ratios: float | Sequence[float]) -> list[float]:
    shares = [float(ratio) for ratio in (ratios if isinstance(ratios, Sequence) else [ratios])]
    if not shares or not all(0 < ratio < 1 for ratio in shares) or len(set(shares)) < len(shares):
        raise InputError(f"ratios={ratios}; expected different shares of the channels between 0 and 1, both excluded")
    return shares


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    numbers = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise InputError(f"seeds={seeds}; expected a number of seeds of at least 1, or different seeds of at least 0")
    return numbers


def _check_numbers(
    steps: int, fine_tune: Training, learning_rate: float, n_boot: int | None, rounds: int, batch_size: int
) -> None:
    if steps < 1 or (isinstance(fine_tune, int) and fine_tune < 0) or not learning_rate > 0:
        raise InputError(
            f"iterative_steps={steps}, fine_tune={fine_tune}, learning_rate={learning_rate}; expected at least 1, "
            "epochs of at least 0 or a function, and a positive number"
        )
    if learning_rate != 1e-3 and (callable(fine_tune) or not fine_tune):
        raise InputError(f"learning_rate={learning_rate} would have no effect; expected epochs with it: fine_tune=5")
    if (n_boot is not None and n_boot < 1) or 0 < rounds < FEWEST_ROUNDS or rounds < 0 or batch_size < 1:
        raise InputError(
            f"n_boot={n_boot}, latency_rounds={rounds}, latency_batch_size={batch_size}; expected at least 1 or None, "
            f"0 or at least {FEWEST_ROUNDS} (fewer have no interval), and at least 1"
        )


def _check_splits(
    splits: DataSplits,
    factories: Mapping[str, CriterionFactory],
    methods: Mapping[str, PostProcessor],
    fine_tune: Training,
) -> None:
    """Refuse what would fail in the middle of the sweep."""
    if set(factories) - {"random", "magnitude"}:
        splits.need("scoring", f"a criterion such as {sorted(set(factories) - {'random', 'magnitude'})[0]!r}")
    if methods:
        splits.need("validation", f"post-processor {next(iter(methods))!r}")
    if not callable(fine_tune) and fine_tune:
        splits.need("train", f"fine_tune={fine_tune}")
