"""Many compressions of one network side by side: criteria x pruning ratios x seeds x post-processors."""

from __future__ import annotations

import copy
import inspect
import logging
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch_pruning as tp
from torch import nn

from fairtrim import InputError, PostProcessor
from fairtrim.arguments import renamed, require_known
from fairtrim.data.data_splits import DataSplits
from fairtrim.files.resumption import fingerprint
from fairtrim.files.run_settings import described, plain_settings
from fairtrim.placement import require_whole
from fairtrim.progress import progress_bar

from .cell import DENSE, PEOPLE, UNREPAIRED, Cell, Dense, run_cell, run_dense
from .named_methods import DEFAULT_CRITERIA, CriterionFactory, by_label, criteria_by_label, post_processors_by_label
from .store import Row, RunKey, SweepStore, as_table
from .sweep_options import DEFAULT_PRUNING_RATIOS, Settings, SweepOptions
from .versions import versions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["sweep"]

_logger = logging.getLogger("fairtrim.sweep")

NetworkFactory = Callable[..., nn.Module]
Train = Callable[[nn.Module, int], Any]


@renamed(
    data="splits",
    ratios="pruning_ratios",
    fine_tune="fine_tuning",
    learning_rate="fine_tuning={'learning_rate': ...}",
    random_state="seeds",
)
def sweep(
    model: nn.Module | NetworkFactory,
    splits: DataSplits | Mapping[str, Any],
    criteria: str | Sequence[str] | Mapping[str, str | Callable[[], tp.importance.Importance]] = DEFAULT_CRITERIA,
    pruning_ratios: float | Sequence[float] = DEFAULT_PRUNING_RATIOS,
    seeds: int | Sequence[int] = (0,),
    *,
    post_processors: str | Sequence[str] | Mapping[str, str | PostProcessor] | None = None,
    train: Train | None = None,
    folder: str | os.PathLike[str] | None = None,
    n_jobs: int | None = None,
    progress: bool = True,
    **options: Unpack[SweepOptions],
) -> pd.DataFrame:
    """Prune, repair and measure a network in many ways.

    With ``folder=`` each run's row and network are written as soon as it is finished, completely or not at all; called
    again with the same arguments, a sweep that was cut short goes on with what is missing. Dense networks are kept
    too: ``train`` is not called again for them, a factory is.

    Args:
        model: A trained network, untouched; or a function that gives one, called with the seed if it has a parameter of
            that name.
        splits: The data; criteria that look at data need ``scoring`` (or ``train``), post-processors ``validation``. A
            dict of the arguments of ``DataSplits`` will do.
        criteria: Names, with settings if need be (``"worst-group:selection=single"``): those of
            ``fairtrim_adapters.torch_pruning.IMPORTANCES`` and Torch-Pruning's ``random``, ``magnitude`` and
            ``taylor``; or a dict of labels and names or functions that make an importance.
        pruning_ratios: Shares of the channels to remove.
        seeds: Of everything random: the factory, fine-tuning, random criteria, post-processors, and bootstraps. A
            number S stands for seeds 0 to S − 1.
        post_processors: Names of ``fairtrim.POST_PROCESSORS`` with settings (``"parity-fine-tuning:epsilon=0.1"``), or
            a dict of labels and names or post-processors. Each is run on every pruned network and on the dense ones,
            beside the networks as they are.
        train: Trains what ``model`` gives, in place: ``train(network, seed)``.
        folder: Where to keep what is finished.
        n_jobs: Runs at a time, through joblib; None leaves it to ``joblib.parallel_config``, by default one. Latencies
            are only true for one.
        progress: Show a progress bar.
        options: How networks are pruned and measured; see ``PruningOptions`` and ``MeasuringOptions``.

    Returns:
        One row a run: ``criterion`` (``dense`` for the unpruned network), ``pruning_ratio``, ``post_processor``
        (``none``), ``seed``; ``reconstructed``, whether it was refitted; ``parameters``, ``macs`` of one sample, both
        also as ratios to the dense network of the seed; ``latency_ms`` (median, one batch) and ``latency_ratio``; the
        figures of ``fairtrim_adapters.fairlearn.measurements`` over everybody and for each sensitive group, with
        intervals and changes against the dense network of the seed; ``flags``; ``checkpoint``, relative to the folder,
        for ``fairtrim.load_pruned``; ``seconds`` of the run.

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
        >>> table[["criterion", "pruning_ratio", "parameters"]].values.tolist()
        [['dense', 0.0, 66], ['worst-group', 0.5, 34]]
    """
    known = [name for name in inspect.signature(sweep).parameters if name != "options"]
    require_known("sweep", options, [*known, *SweepOptions.__annotations__])
    splits = DataSplits.of(splits)
    factories = criteria_by_label(criteria)
    if n_jobs == 0:
        raise InputError("n_jobs=0; expected at least 1, -1 for all processors, or None")
    named, repairs = by_label(criteria), by_label(post_processors)
    looking = [label for label, value in named.items() if value not in ("random", "magnitude")]
    if looking:
        splits.need("scoring", f"a criterion such as {looking[0]!r}")
    settings = Settings.of(splits, post_processors_by_label(post_processors), options)
    if not isinstance(model, nn.Module) and not callable(model):
        raise InputError(f"model is a {type(model).__name__}; expected a network or a function that gives one")
    plan = _Plan(
        settings,
        factories,
        {label: value if isinstance(value, str) else described(value) for label, value in named.items()},
        {label: value if isinstance(value, str) else vars(type(value)).get("name") for label, value in repairs.items()},
        _shares(pruning_ratios),
        _seeds(seeds),
    )
    network = fingerprint(model) if isinstance(model, nn.Module) else described(model)
    store = SweepStore(folder, {"network": network, "train": described(train), **settings.of_measuring})
    table = as_table(_run(plan, model, train, store, n_jobs, progress))
    store.describe(plan.facts(n_jobs))
    store.write_table(table)
    return table


@dataclass(frozen=True)
class _Plan:
    """Every run of a sweep, in the order of the table.

    ``chosen`` and ``named`` tell what each label stands for: of criteria as JSON can hold it, of post-processors the
    name, None for those without.
    """

    settings: Settings
    factories: Mapping[str, CriterionFactory]
    chosen: Mapping[str, Any]
    named: Mapping[str, str | None]
    pruning_ratios: list[float]
    seeds: list[int]

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the post-processors, the network as it is first."""
        return (UNREPAIRED, *self.settings.post_processors)

    @cached_property
    def cells(self) -> list[tuple[int, str, float]]:
        dense = [(seed, DENSE, 0.0) for seed in self.seeds]
        return dense + [
            (s, name, ratio) for s in self.seeds for name in self.factories for ratio in self.pruning_ratios
        ]

    @property
    def keys(self) -> list[RunKey]:
        return [RunKey(*cell, label) for cell in self.cells for label in self.labels]

    @cached_property
    def repairs(self) -> dict[str, Any]:
        """Settings of each post-processor, as JSON can hold them."""
        methods = self.settings.post_processors.items()
        named = {label: {"method": type(method).__name__, **method.get_params()} for label, method in methods}
        return {UNREPAIRED: {}, **{label: {"post_processor": plain_settings(own)} for label, own in named.items()}}

    def described(self, key: RunKey) -> dict[str, Any]:
        """What must be the same for a run to be taken up again, beside what all share."""
        dense = key.criterion == DENSE
        pruned = {} if dense else {"criterion": self.chosen[key.criterion], **self.settings.of_pruning}
        return {**self.repairs[key.post_processor], **pruned}

    def missing(self, seed: int, rows: Mapping[RunKey, Row]) -> list[Cell]:
        """The cells of a seed that aren't finished, with the post-processors that are left."""
        cells = [
            Cell(*cell, tuple(label for label in self.labels if RunKey(*cell, label) not in rows))
            for cell in self.cells
            if cell[0] == seed
        ]
        return [cell for cell in cells if cell.post_processors]

    def facts(self, n_jobs: int | None) -> dict[str, Any]:
        """What the sweep is about."""
        settings = self.settings
        return {
            "data": settings.splits.name,
            "description": settings.splits.description,
            "criteria": dict(self.chosen),
            "pruning_ratios": self.pruning_ratios,
            "seeds": self.seeds,
            "post_processors": {label: {"name": self.named.get(label), **own} for label, own in self.repairs.items()},
            "pruning": settings.of_pruning,
            "n_boot": settings.n_boot,
            "latency": {
                "rounds": settings.latency_rounds,
                "batch_size": settings.latency_batch_size,
                "n_jobs": n_jobs,
            },
            "versions": versions(),
            "machine": platform.machine(),
        }


def _run(
    plan: _Plan,
    model: nn.Module | NetworkFactory,
    train: Train | None,
    store: SweepStore,
    n_jobs: int | None,
    progress: bool,
) -> list[Row]:
    """Rows of all runs, those that are missing run and kept."""
    kept = {key: store.finished(key, plan.described(key)) for key in plan.keys}
    rows = {key: found[0] for key, found in kept.items() if found is not None}
    if rows:
        _logger.info("%d of %d runs are kept in %s", len(rows), len(kept), store.folder)
    _logger.debug("made with %s", ", ".join(f"{name} {number}" for name, number in versions().items()))
    options: Any = {"initial": len(rows), "smoothing": 0}  # runs of a sweep take different times
    with progress_bar(description="sweep", total=len(kept), shown=progress, unit="run", **options) as bar:
        for seed in plan.seeds:
            if not plan.missing(seed, rows):
                continue
            dense = _dense(model, train, seed, plan, store)
            for finished in _run_seed(plan, dense, seed, rows, store, n_jobs):
                rows |= finished
                bar.update(len(finished))
                for key, row in finished:
                    _logger.debug("%s: %.1f s", key, row["seconds"])
    return [rows[key] for key in plan.keys]


def _run_seed(
    plan: _Plan, dense: Dense, seed: int, rows: Mapping[RunKey, Row], store: SweepStore, n_jobs: int | None
) -> Iterator[list[tuple[RunKey, Row]]]:
    """What is missing of a seed, the dense network as it is first."""
    from joblib import Parallel, delayed

    todo = plan.missing(seed, rows)
    if UNREPAIRED in todo[0].post_processors and todo[0].criterion == DENSE:
        # kept before any run that is measured against it, or those would go on from another training of it
        first = replace(todo[0], post_processors=(UNREPAIRED,))
        yield _run_cell(first, dense, plan, store)
        repairs = todo[0].post_processors[1:]
        todo = [*([replace(todo[0], post_processors=repairs)] if repairs else []), *todo[1:]]
    in_parallel = Parallel(n_jobs=n_jobs, return_as="generator_unordered")
    yield from in_parallel(delayed(_run_cell)(cell, dense, plan, store) for cell in todo)


def _run_cell(cell: Cell, dense: Dense, plan: _Plan, store: SweepStore) -> list[tuple[RunKey, Row]]:
    settings = {label: plan.described(cell.key(label)) for label in plan.labels}
    return run_cell(cell, dense, plan.factories.get(cell.criterion), plan.settings, store, settings)


def _dense(model: nn.Module | NetworkFactory, train: Train | None, seed: int, plan: _Plan, store: SweepStore) -> Dense:
    """The dense network of a seed: as it was kept, or made and trained."""
    if isinstance(model, nn.Module):
        require_whole(model)
    network = copy.deepcopy(model) if isinstance(model, nn.Module) else _made(model, seed)
    plan.settings.check_network(network)
    key = RunKey(seed, DENSE, 0.0, UNREPAIRED)
    kept = store.finished(key, plan.described(key))
    if kept is not None and store.restored(key, network) is not None:
        dense = run_dense(network, plan.settings)
        same_labels = np.array_equal(dense.predictions.label[DENSE], kept[1])
        if not same_labels or dense.people != kept[0][PEOPLE]:
            raise InputError(
                f"{store.folder}: the test data, or their order, are others than when the sweep began (the dense "
                f"network of seed {seed} tells); expected the same, or another folder"
            )
        return dense
    if train is not None:
        train(network, seed)
    return run_dense(network, plan.settings)


def _made(factory: NetworkFactory, seed: int) -> nn.Module:
    takes_seed = "seed" in inspect.signature(factory).parameters
    network = factory(seed=seed) if takes_seed else factory()
    if not isinstance(network, nn.Module):
        raise InputError(
            f"the network factory gave a {type(network).__name__}; expected a torch.nn.Module (a trained one, or pass "
            "train= as well)"
        )
    return network


def _shares(pruning_ratios: float | Sequence[float]) -> list[float]:
    shares = [float(ratio) for ratio in (pruning_ratios if isinstance(pruning_ratios, Sequence) else [pruning_ratios])]
    if not shares or not all(0 < ratio < 1 for ratio in shares) or len(set(shares)) < len(shares):
        raise InputError(
            f"pruning_ratios={pruning_ratios}; expected different shares of the channels between 0 and 1, both excluded"
        )
    return shares


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    numbers = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise InputError(f"seeds={seeds}; expected a number of seeds of at least 1, or different seeds of at least 0")
    return numbers
