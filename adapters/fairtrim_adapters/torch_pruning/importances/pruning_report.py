"""What Torch-Pruning did with the scores: it says nothing of its own."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fairtrim import DamageTable
from fairtrim.damage.measured_change import MeasuredChange, worse_than_predicted
from fairtrim.damage.sample_sketch import SampleSketch
from fairtrim.measures.shrinkage import own_shares
from fairtrim.printing import Block, Printed, TextTable, count, figure
from fairtrim.selection.ranking import Selection
from fairtrim_adapters.torch_pruning.graph.plan import PruningPlan, removed_units, rounded_quota

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["UNLEARNED_BEFORE", "PruningReport", "asked_of_layers", "predicted_change", "pruning_report"]


_NOT_REFITTED = (
    "the refit is missing: the predicted change is that of a network whose layers were refitted, and these weren't; "
    "take the step in a block, with reconstructed(pruner, loader): pruner.step()"
)

UNLEARNED_BEFORE = (
    "the network was unlearned from counterfactual pairs before it was pruned, which pruning undoes: unlearn last, or "
    "once more (CounterfactualUnlearning)"
)
"""Said where a network remembers that it was unlearned."""

_GO_BY_MEASUREMENT = (
    "the predicted change serves to order channels, and may be far too small: go by what is measured after the refit"
)

_BEYOND_CHANCE = 1.96  # standard errors


@dataclass(frozen=True)
class PruningReport(Printed):
    """Channels removed since the last fit, layer by layer.

    Attributes:
        layers: One row a dependency group: layer, before, asked (what ratio and ranking, or the rule, ask of it),
            removed, kept, skipped. Where a normalizer changes the ranking between layers it isn't known what is asked.
        predicted: One row a sensitive group: people, loss before, predicted change of the mean loss (NaN where what the
            expansion gives is impossible; of compensated importances the change after a refit) and, if it was measured,
            the change of the network as it is now with its standard error; empty without a damage table.
        unscored: Dependency groups that were left as they are because gates can't describe them, with the reason.
        flags: Sentences on what to look at: impossible predictions, changes worse than predicted, a refit that is
            missing, layers that lost nearly everything, sensitive groups of too few people to be told from everybody.
        measured: On how many samples the change was measured, or why it wasn't.

    Example:
        >>> import torch
        >>> import torch_pruning as tp
        >>> from torch import nn
        >>> from fairtrim_adapters.torch_pruning import WorstGroupImportance
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> importance, x = WorstGroupImportance(), torch.randn(6, 3)
        >>> settings = {"importance": importance, "pruning_ratio": 0.5, "ignored_layers": [model[2]]}
        >>> pruner = tp.pruner.BasePruner(model, x, **settings)
        >>> fitted = importance.fit(pruner, [(x, torch.arange(6) % 2, ["a", "b", "b"] * 2)], progress=False)
        >>> pruner.step()
        >>> report = importance.report()
        >>> report.layers[["layer", "before", "asked", "removed"]].values.tolist(), report.skipped
        ([['0', 8, 4, 4]], [])
        >>> list(report.predicted.columns)[-3:], report.measured
        (['predicted change', 'measured change', 'standard error'], 'measured on 6 of 6 samples')
    """

    layers: pd.DataFrame
    predicted: pd.DataFrame
    unscored: dict[str, str]
    flags: tuple[str, ...] = ()
    measured: str = ""

    @property
    def skipped(self) -> list[str]:
        """Layers that were to lose channels and lost none: Torch-Pruning skips a group whole, without a word."""
        return list(self.layers.loc[self.layers["skipped"], "layer"])

    def verdict(self) -> str:
        """One sentence: how much went, and whose mean loss rises most by that.

        Returns:
            The sentence; the rise as measured, or where it wasn't, as predicted.
        """
        removed, before = int(self.layers["removed"].sum()), int(self.layers["before"].sum())
        gone = f"Removed {figure(removed)} of {figure(before)} channels"
        gone += f" that were scored{_left(len(self.unscored))}" if self.unscored else ""
        if not removed:
            return f"{gone}: no step since the fit, or none was asked for."
        return f"{gone}; {self._rise()}." if len(self.predicted) else f"{gone}."

    def _rise(self) -> str:
        how = "measured" if "measured change" in self.predicted else "predicted"
        changes = self.predicted[next(name for name in self.predicted if name.startswith(f"{how} change"))]
        if changes.isna().all():
            return f"no group's change of the mean loss is {how}"
        row = self.predicted.loc[changes.idxmax()]
        error = float(row["standard error"]) if how == "measured" else math.nan
        if changes.max() <= 0:
            return f"no group's mean loss rises ({how})"
        rise = f"{figure(float(changes.max()), digits=4)}{_plus_minus(error)} ({how})"
        chance = ", which may be chance" if changes.max() < _BEYOND_CHANCE * error else ""
        return f"the mean loss rises most for {row['sensitive_group']}, by {rise}{chance}"

    def blocks(self) -> Iterator[Block]:
        """The verdict, layers, changes of the loss, and what to look at."""
        yield self.verdict()
        columns = ["before", "asked", "removed", "kept"]
        yield TextTable(
            ["layer", *columns],
            [[str(row["layer"]), *(_count(row[name]) for name in columns)] for _, row in self.layers.iterrows()],
        )
        yield "\n".join(
            [
                "skipped by Torch-Pruning: " + (", ".join(self.skipped) or "none"),
                *(f"not scored: {name}: {_first_sentence(reason)}" for name, reason in self.unscored.items()),
            ]
        )
        if len(self.predicted):
            yield self._changes()
        told = [*([self.measured] if self.measured else []), *(f"! {flag}" for flag in self.flags)]
        if told:
            yield "\n".join(told)

    def _changes(self) -> TextTable:
        """Of each group; the head of a column says what the whole table is of."""
        rows = []
        for _, row in self.predicted.iterrows():
            cells = [str(row["sensitive_group"]), count(row["people"]), f"{row['loss before']:.4f}"]
            for name, value in row.iloc[3:].items():
                if name == "standard error":
                    cells[-1] += _plus_minus(value)
                elif str(name).startswith("predicted"):
                    cells.append("impossible" if np.isnan(value) else figure(float(value), digits=4, sign=True))
                else:
                    cells.append(figure(float(value), digits=4, sign=str(name).startswith("measured")))
            rows.append(cells)
        heads = [str(name).replace(" change", "") for name in self.predicted.columns[3:] if name != "standard error"]
        measured = [f"{head} ± standard error" if head == "measured" else head for head in heads]
        title = f"Change of the mean loss: {' | '.join(head for head in heads if not head.startswith('error'))}"
        return TextTable(["group", "people", "loss before", *measured], rows, title=title)


def _count(value: Any) -> str:
    import pandas as pd

    return "-" if pd.isna(value) else count(value)


def _plus_minus(error: float) -> str:
    return "" if math.isnan(error) else f" ± {error:.4f}"


def _left(number: int) -> str:
    return f"; {number} group{' is left as it is' if number == 1 else 's are left as they are'}"


def _first_sentence(reason: str) -> str:
    """The warning of the fit and ``unscored`` have all of it."""
    return re.split(r"; |\.\s|\n", reason.strip(), maxsplit=1)[0]


def pruning_report(
    table: DamageTable | None,
    selection: Selection,
    plan: PruningPlan,
    history: Sequence[Sequence[Any]],
    rule: Mapping[str, int] | None = None,
    measured: MeasuredChange | str = "",
    *,
    refitted: bool = False,
) -> PruningReport:
    """Compare what was to be removed with what was, and what that was predicted to do with what it does.

    Args:
        table: The damage table, if there is one.
        selection: The scores.
        plan: What Torch-Pruning was going to ask for.
        history: Torch-Pruning's pruning history since the fit: [module name, of outputs, channels].
        rule: How many channels of each group a rule asked for in place of the pruner's ratio.
        measured: The change of each group's loss, or why there is none.
        refitted: Whether the layers that read what was removed were refitted.

    Returns:
        The report.
    """
    import pandas as pd

    removed: dict[str, set[int]] = {group.name: set() for group in plan.groups} | removed_units(plan, history)
    asked = asked_of_layers(selection, plan) if rule is None else rule
    layers = pd.DataFrame(
        {
            "layer": [group.name for group in plan.groups],
            "before": [group.size for group in plan.groups],
            "asked": pd.array([asked.get(group.name) for group in plan.groups], dtype="Int64"),
            "removed": [len(removed[group.name]) for group in plan.groups],
        }
    )
    layers["kept"] = layers["before"] - layers["removed"]
    layers["skipped"] = ((layers["asked"] > 0) & (layers["removed"] == 0) & bool(history)).fillna(False).astype(bool)
    flags = (*_emptied(layers), *_collapsed(layers, plan))
    if table is None:
        return PruningReport(layers, pd.DataFrame(), plan.unscored, flags)
    change, error = predicted_change(table, removed, selection.shares)
    impossible = table.impossible(change)
    compensated = selection.shares is not None
    how = " after a refit" if compensated else " (sum of single)" if table.interactions is None else ""
    names = [n if isinstance(n, str) else ", ".join(n) for n in table.sensitive_groups]
    predicted = {
        "sensitive_group": names,
        "people": table.counts.tolist(),
        "loss before": table.loss.numpy(),
        "predicted change" + how: change.masked_fill(impossible, torch.nan).numpy(),
    }
    if isinstance(table.interactions, SampleSketch):
        predicted["error of the sketch"] = error.numpy()
    if isinstance(measured, MeasuredChange):
        predicted["measured change"] = measured.change.numpy()
        predicted["standard error"] = measured.standard_error.numpy()
        if refitted or not compensated:  # else another network was measured than the prediction is of
            flags = (*flags, *_contradictions(names, table, change, error, measured))
        total = 0 if table.sample_losses is None else len(table.sample_losses)
        order = "" if measured.paired else ", not person by person: the loader gives them in another order"
        told = f"measured on {measured.n_samples:,} of {total:,} samples{order}"
    else:
        flags = (*flags, *(_impossible(name) for name, never in zip(names, impossible.tolist(), strict=True) if never))
        told = measured
    if compensated and history:
        flags = (*flags, _GO_BY_MEASUREMENT if refitted else _NOT_REFITTED)
    flags = (*flags, *_few_people(table, names))
    return PruningReport(layers, pd.DataFrame(predicted), plan.unscored, flags, told)


def _emptied(layers: pd.DataFrame) -> Iterator[str]:
    whole = layers.loc[((layers["asked"] >= layers["before"]) & (layers["removed"] == 0)).fillna(False), "layer"]
    if len(whole):
        yield (
            f"all channels are asked of {', '.join(whole)}: Torch-Pruning takes none from a layer that would lose all, "
            "without a word; lower the ratio, or set max_pruning_ratio"
        )


def predicted_change(
    table: DamageTable, removed: Mapping[str, Iterable[int]], shares: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What a table gives for a set of channels: joint where it can, else the sum of single channels.

    Of compensated selection, given the shares of damage that it left, the sum of what each left in its turn. Gives the
    change of each group's loss, and its error from the sketch, (G,) each.
    """
    if shares is not None:
        columns = table.columns.selected(removed)
        change = 0.5 * table.curvature[:, columns] @ shares[columns]
        return change, torch.zeros_like(change)
    if table.interactions is None:
        change = table.damage[:, table.columns.selected(removed)].sum(1)
        return change, torch.zeros_like(change)
    return table.predict(removed), table.prediction_error(removed)


def _impossible(name: str, measured: str = "") -> str:
    return (
        f"{name}: no prediction: the expansion gives a fall of more than the whole loss, which is impossible: the set "
        f"is beyond its reach{measured}; prune in several steps, fitting before each"
    )


def _contradictions(
    names: Sequence[str], table: DamageTable, change: Tensor, error: Tensor, measured: MeasuredChange
) -> Iterator[str]:
    impossible = table.impossible(change)
    worse = worse_than_predicted(
        measured.change,
        change,
        torch.hypot(measured.standard_error.nan_to_num(0.0), error),
        people=measured.people,
        loss=table.loss,
        mean_loss=float(table.shares @ table.loss.abs()),
    )
    for g, name in enumerate(names):
        found, off = float(measured.change[g]), float(measured.standard_error[g])
        if np.isnan(found):
            if impossible[g]:
                yield _impossible(name)
            continue
        told = f"{found:+.4f}" + ("" if np.isnan(off) else f" ± {off:.4f}")
        if impossible[g]:
            yield _impossible(name, f"; measured {told}")
            continue
        if worse[g]:
            yield (
                f"{name}: measured {told} where {float(change[g]):+.4f} was predicted: the removed set is beyond the "
                "reach of the prediction; prune in several steps, fitting before each, or fine-tune and measure again"
            )


def _collapsed(layers: pd.DataFrame, plan: PruningPlan) -> tuple[str, ...]:
    """Layers that a ranking of several layers against each other left with hardly a channel."""
    rows = layers.set_index("layer")
    flags = []
    for pool in plan.pools:
        together = rows.loc[list(pool.layers)]
        share = together["kept"].sum() / together["before"].sum()
        for name, row in together.iterrows():
            few = row["kept"] <= max(2, 0.1 * row["before"])
            if row["removed"] and few and row["kept"] < 0.5 * share * row["before"]:
                flags.append(
                    f"layer {name!r} keeps {row['kept']} of {row['before']} channels, where all ranked with it keep "
                    f"{share:.0%}: it may let nothing through; set a ratio of its own (pruning_ratio_dict), a lower "
                    "max_pruning_ratio, or global_pruning=False"
                )
    return tuple(flags)


def _few_people(table: DamageTable, names: Sequence[str]) -> tuple[str, ...]:
    """Sensitive groups of which more than half of what sets them apart is noise, beside others of which it isn't."""
    if table.standard_error is None or table.people is None or len(names) < 2:
        return ()
    own = own_shares(table.damage, table.standard_error, table.people).tolist()
    few = [
        f"{name} ({people:g})"
        for name, people, share in zip(names, table.people.tolist(), own, strict=True)
        if share < 0.5
    ]
    if not few or len(few) == len(names):
        return ()
    return (
        f"too few people to say that it is the worst group: {', '.join(few)}: the larger part of what sets their "
        "damages apart is chance (shrinkage='auto' counts so much less of it)",
    )


def asked_of_layers(selection: Selection, plan: PruningPlan) -> dict[str, int]:
    """How many channels the ratio takes from each layer, given the scores."""
    sizes = {group.name: group.size for group in plan.groups}
    ends = np.cumsum(list(sizes.values()))
    scores_of = dict(zip(sizes, np.split(selection.scores.numpy(), ends[:-1]), strict=True))
    asked: dict[str, int] = {}
    for pool in plan.pools:
        names = np.concatenate([np.full(sizes[name], k) for k, name in enumerate(pool.layers)])
        scores = np.concatenate([scores_of[name] for name in pool.layers])
        lowest = np.argsort(scores, kind="stable")[: pool.quota or 0]
        for k, name in enumerate(pool.layers):
            quota = int((names[lowest] == k).sum())
            rounded = min(rounded_quota(quota, len(plan.roots[name].units), plan.round_to), sizes[name])
            asked[name] = quota if name in plan.heads else rounded
    return asked
