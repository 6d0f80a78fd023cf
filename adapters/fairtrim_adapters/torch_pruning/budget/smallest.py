"""The smallest network within which no sensitive group loses more than is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Unpack

import torch
import torch_pruning as tp
from torch import nn

from fairtrim.arguments import drawn_seed, few_of, require_choice, require_number
from fairtrim.errors import InputError
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.preservation import preserved_random_state, seeded
from fairtrim.progress import progress_bar

from .candidates import Candidates
from .measuring import LOSS, Allowed, allowed_drops, degenerate, drops, measured, of_judges, unjudged
from .outcome import PrunedToBudget, Stop
from .preparation import BudgetOptions, Prepared, prepared
from .prune_to import flags_of, history_of, worse_than_told
from .sizes import COSTS, Budget, Cost, Shares

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["smallest"]


@dataclass(frozen=True)
class _Point:
    amount: int
    network: ScoredNetwork | None  # only of one that may still be kept
    shares: Shares
    predicted: pd.DataFrame
    measured: pd.DataFrame
    drops: pd.DataFrame
    reconstruction: Any

    @property
    def passes(self) -> bool:
        return bool(self.drops["passes"].all())


def smallest(
    model: nn.Module,
    loader: Iterable[Any],
    example_inputs: Any,
    *,
    held_out: Iterable[Any],
    max_drop: Mapping[Any, float] | None = None,
    by: Cost = "macs",
    importance: tp.importance.Importance | None = None,
    confidence: float | None = 0.95,
    grid: float = 0.02,
    **options: Unpack[BudgetOptions],
) -> PrunedToBudget:
    """Find the smallest network within which no sensitive group's metric falls by more than allowed.

    Channels are ranked once. Networks of different size are pruned from the dense one by that order, refitted and
    measured on ``held_out``, in a bisection that ends when sizes differ by ``grid`` or a single channel; it takes for
    granted that a smaller network loses more.

    A network passes if for every group the upper end of the one-sided interval of its drop is at most what is allowed:
    the paired drop plus the normal quantile times the root of its squared standard error and the square of what one
    person makes (for accuracy that is about Agresti and Min's interval; for other metrics the standard error is the
    jackknife's, which leaves out each person in turn). For a group of so few people that not even an unchanged network
    would pass, nothing can pass: the network as given comes back, and the flags name the group and how many people it
    takes.
    Because the people of ``held_out`` choose the network, measure it once more on others for a figure to publish.

    Args:
        model: The network; untouched.
        loader: Batches of (inputs, target) or (inputs, target, sensitive), by which channels are ranked and layers
            refitted.
        example_inputs: What networks are counted, or timed, on.
        held_out: Who judges; other people than those of the loader.
        max_drop: How far each metric may fall, by its name (``"accuracy"``, ``"balanced accuracy"``, ``"recall"``, any
            other of Fairlearn or scikit-learn of which more is better) or as a function of labels and predicted labels;
            ``"loss"``, the mean of ``loss_fn``, may rise so much. Default ``{"accuracy": 0.01}``.
        by: What should be small: ``"macs"``, ``"parameters"`` or ``"latency"``.
        importance: As for ``prune_to``.
        confidence: Of the interval, in (0.5, 1); None takes drops as measured.
        grid: How close in size the network that passes and the one that doesn't are in the end.
        options: See ``BudgetOptions``.

    Returns:
        The network, with who stopped it and all that was tried; if nothing smaller passes, a copy of the network as
        given, flagged.

    Raises:
        InputError: An argument or the data is wrong, or nothing can be pruned.
        UnsupportedModelError: The network can't be scored, pruned or copied.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> network = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 2))
        >>> x = torch.randn(900, 4)
        >>> people = [(x, network(x).argmax(1), ["a", "b", "b"] * 300)]  # who are all recognised
        >>> magnitude, others = tp.importance.GroupMagnitudeImportance(), [tuple(part[:600] for part in people[0])]
        >>> done = smallest(network, [tuple(part[600:] for part in people[0])], x[:1], held_out=others,
        ...                 max_drop={"accuracy": 0.05}, importance=magnitude, progress=False)
        >>> done.macs < 0.9, bool((done.measured["accuracy change"] > -0.05).all())
        (True, True)
    """
    require_choice("by", by, COSTS)
    if confidence is not None:
        require_number("confidence", confidence, above=0.5, below=1, remedy=", e.g. 0.95, or None")
    require_number("grid", grid, above=0, below=1, remedy=", a share of the size")
    allowed = allowed_drops({"accuracy": 0.01} if max_drop is None else max_drop)
    if held_out is None:
        raise InputError("held_out is None; expected a loader of people who had no part in choosing channels")
    seed = drawn_seed(options.get("random_state", 0))
    with seeded(torch.Generator().manual_seed(seed)), preserved_random_state(loader):
        work = prepared(model, loader, example_inputs, by, importance, held_out, options, seed, "smallest")
        search = _Search(work, by, allowed, confidence)
        few = search.too_few()
        if few:
            return search.unchanged(few)
        return search.bisected(grid)


class _Search:
    def __init__(self, work: Prepared, cost: Cost, allowed: tuple[Allowed, ...], confidence: float | None) -> None:
        self._work, self._cost, self._allowed = work, cost, allowed
        self._confidence = confidence
        self._points: list[_Point] = []

    def _judged(self, network: ScoredNetwork) -> tuple[pd.DataFrame, pd.DataFrame]:
        work = self._work
        judges, reading = work.judges, work.task.reading
        figures = measured(work.dense.model, network.model, judges, reading)
        networks = work.dense.model, network.model
        found = drops(figures, self._allowed, *networks, judges, reading, confidence=self._confidence)
        if bool(found["before"].isna().all()):
            raise InputError(
                "the targets are no labels, so that there is no accuracy to keep; expected class labels (N,), or "
                "prune_to with a budget, which measures losses"
            )
        return figures, found

    def too_few(self) -> list[str]:
        """The groups of so few people that an unchanged network wouldn't pass, each with what it takes."""
        import pandas as pd

        self._figures, found = self._judged(self._work.dense)
        z = 0.0 if self._confidence is None else float(NormalDist().inv_cdf(self._confidence))
        few = []
        for _, row in found[~found["passes"]].iterrows():
            needed = row["people"] * row["least"] / row["allowed"] if row["allowed"] else math.inf
            needed = 2 if row["metric"] == LOSS else needed
            if pd.isna(row["drop"]):
                few.append(f"{row['metric']} is not defined for {row['sensitive_group']}")
                continue
            takes = f"about {math.ceil(needed):,}" if math.isfinite(needed) and z else "no number would do"
            few.append(
                f"{row['sensitive_group']} ({row['people']:g}; {takes} for {row['metric']} within {row['allowed']:g})"
            )
        return few

    def unchanged(self, few: list[str]) -> PrunedToBudget:
        """The network as given, because these people can't tell."""
        why = (
            f"nothing was pruned: too few people to tell a drop, even of an unchanged network: {few_of(few, '; ')}. "
            "Expected more held-out people, a larger max_drop, or confidence=None, which takes drops as measured"
        )
        return self._result(None, None, (why,))

    def bisected(self, grid: float) -> PrunedToBudget:
        """The smallest that passes, sizes told apart as far as the grid."""
        work = self._work
        candidates = Candidates(work.dense, work.task)
        passing, best, failing = 0, None, candidates.most + 1
        stopping: _Point | None = None
        largest, least = 1.0, candidates.shares(candidates.most).of(self._cost)
        bar = progress_bar(
            description="sizes tried",
            total=max(1, math.ceil(math.log2(max(1.0, (largest - least) / grid)))) + 1,
            shown=work.task.reading.progress,
            unit="network",
        )
        with bar:
            while failing - passing > 1 and (largest - least > grid or failing > candidates.most):
                amount = self._between(candidates, passing, failing, (largest + least) / 2)
                if amount is None:
                    break
                point = self._point(candidates, amount)
                bar.update()
                if point.passes:
                    passing, best, largest = amount, point, point.shares.of(self._cost)
                else:
                    failing, stopping, least = amount, point, point.shares.of(self._cost)
        return self._result(best, stopping, ())

    def _between(self, candidates: Candidates, passing: int, failing: int, share: float) -> int | None:
        """The amount nearest to a share that is neither known to pass nor to fail; None if none has another size."""
        amount, _ = candidates.reached(self._cost, share)
        amount = min(max(amount, passing + 1), failing - 1)
        now = candidates.shares(passing).of(self._cost)
        while amount < failing and candidates.shares(amount).of(self._cost) == now:
            amount += 1
        return amount if amount < failing else None

    def _point(self, candidates: Candidates, amount: int) -> _Point:
        network, refitted = candidates.pruned(amount)
        figures, found = self._judged(network)
        shares, predicted = candidates.shares(amount), of_judges(candidates.predicted(amount), figures)
        keep = network if bool(found["passes"].all()) else None
        point = _Point(amount, keep, shares, predicted, figures, found, refitted.reconstruction)
        self._points.append(point)
        return point

    def _result(self, best: _Point | None, stopping: _Point | None, flags: tuple[str, ...]) -> PrunedToBudget:
        import pandas as pd

        work = self._work
        history = [
            _with_metrics(history_of(k + 1, 1, p.shares, p.predicted, p.measured, p is best), p.drops)
            for k, p in enumerate(self._points)
        ]
        network, shares = work.dense, Shares(1.0, 1.0, 1.0 if self._cost == "latency" else None)
        figures, predicted = self._figures, pd.DataFrame({"sensitive_group": [], "predicted change": []})
        reconstruction = None
        if best is not None and best.network is not None:
            network, shares, figures, predicted = best.network, best.shares, best.measured, best.predicted
            reconstruction = best.reconstruction
            suspicious = degenerate(work.dense.model, network.model, work.judges, work.task.reading)
            worse = worse_than_told(figures, predicted)
            if worse:
                flags = (*flags, f"{', '.join(worse)}: measured worse than predicted: rely on what was measured")
            flags = (*flags, *suspicious, *flags_of(reconstruction))
        elif not flags:
            flags = ("nothing smaller passes: this is the network as it was given",)
        tried = pd.concat([p.predicted for p in self._points]) if self._points else predicted
        flags = (*flags, *unjudged(tried.drop_duplicates("sensitive_group"), figures))
        if stopping is not None and stopping.shares.of(self._cost) >= 1:
            flags = (*flags, f"the smaller network that was tried has no lower {COSTS[self._cost]}")
        flags += tuple(
            f"max_drop: all of {a.name} may go; one point is 0.01"
            for a in self._allowed
            if a.drop == 1 and a.name != LOSS
        )
        if best is not None and stopping is None:
            flags = (*flags, "the smallest network that there is passes: every layer keeps a tenth of its channels")
        if len(self._points) > 1:
            flags = (
                *flags,
                f"chosen among {len(self._points)} networks by the people who judge: measure it once more on others",
            )
        return PrunedToBudget(
            model=network.model,
            budget=Budget(self._cost, shares.of(self._cost)),
            macs=shares.macs,
            parameters=shares.parameters,
            latency=shares.latency,
            predicted=predicted,
            measured=figures,
            history=pd.concat(history, ignore_index=True) if history else pd.DataFrame(),
            flags=(*work.flags, *flags),
            stopped_by=None if stopping is None else self._stop(stopping),
            reconstruction=reconstruction,
            predicted_of=work.task.predicted_of,
        )

    def _stop(self, point: _Point) -> Stop:
        lost = point.drops[~point.drops["passes"]]
        excess = (lost["upper"] - lost["allowed"]).fillna(math.inf)
        row = lost.loc[excess.idxmax()]
        share = point.shares.of(self._cost)
        values = (float(row[name]) for name in ("drop", "upper", "allowed"))
        return Stop(row["sensitive_group"], row["metric"], share, *values)


def _with_metrics(rows: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """History with a drop, its upper end, what was allowed and whether it passes for each metric."""
    for metric, of_metric in found.groupby("metric", sort=False):
        by_group = of_metric.set_index("sensitive_group")
        for name in ("drop", "upper", "allowed", "passes"):
            rows[f"{metric} {name}"] = by_group[name].reindex(rows["sensitive_group"]).to_numpy()
    return rows
