"""What the host did with the scores: it says nothing of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fairtrim import DamageTable
from fairtrim.selection import Selection
from fairtrim.sketch import SampleSketch

from .plan import PruningPlan, rounded_quota

__all__ = ["PruningReport", "pruning_report"]


@dataclass(frozen=True)
class PruningReport:
    """Channels removed since the last fit, layer by layer.

    Attributes:
        layers: One row a dependency group: layer, before, asked (what ratio and ranking, or the rule, ask of it),
            removed, kept, skipped. Where a normalizer changes the ranking between layers it isn't known what is asked.
        predicted: One row a sensitive group: people, loss before, predicted change of the mean loss; empty without a
            damage table.
        unscored: Dependency groups that were left as they are because gates can't describe them, with the reason.

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
    """

    layers: pd.DataFrame
    predicted: pd.DataFrame
    unscored: dict[str, str]

    @property
    def skipped(self) -> list[str]:
        """Layers that were to lose channels and lost none: the host skips a group whole, without a word."""
        return list(self.layers.loc[self.layers["skipped"], "layer"])

    def __str__(self) -> str:
        removed, before = int(self.layers["removed"].sum()), int(self.layers["before"].sum())
        lines = [
            f"removed {removed} of {before} channels"
            + ("" if removed else ": no step since the fit, or none was asked for"),
            self.layers.to_string(index=False),
            "skipped by the host: " + (", ".join(self.skipped) or "none"),
            *(f"not scored: {name}: {reason}" for name, reason in self.unscored.items()),
        ]
        if len(self.predicted):
            lines.append(self.predicted.to_string(index=False, float_format=lambda value: f"{value:.4f}"))
        return "\n".join(lines)


def pruning_report(
    table: DamageTable | None,
    selection: Selection,
    plan: PruningPlan,
    history: Sequence[Sequence[Any]],
    rule: Mapping[str, int] | None = None,
) -> PruningReport:
    """Compare what was to be removed with what was.

    Args:
        table: The damage table, if there is one.
        selection: The scores.
        plan: What the host was going to ask for.
        history: The host's pruning history since the fit: [module name, of outputs, channels].
        rule: How many channels of each group a rule asked for in place of the pruner's ratio.

    Returns:
        The report.
    """
    removed: dict[str, set[int]] = {group.name: set() for group in plan.groups}
    for module, of_outputs, channels in history:
        name = module if of_outputs else f"{module} (input)"
        if name in removed:
            removed[name].update(plan.roots[name].units[np.asarray(channels, dtype=np.int64)].tolist())
    asked = _asked(selection, plan) if rule is None else rule
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
    return PruningReport(layers, _predicted(table, removed), plan.unscored)


def _predicted(table: DamageTable | None, removed: Mapping[str, set[int]]) -> pd.DataFrame:
    if table is None:
        return pd.DataFrame()
    single = table.interactions is None
    change = table.damage[:, table.columns.selected(removed)].sum(1) if single else table.predict(removed)
    predicted = {
        "sensitive_group": [n if isinstance(n, str) else ", ".join(n) for n in table.sensitive_groups],
        "people": [f"{count:g}" for count in table.counts.tolist()],
        "loss before": table.loss.numpy(),
        "predicted change" + (" (sum of single)" if single else ""): change.numpy(),
    }
    if isinstance(table.interactions, SampleSketch):
        predicted["error of the sketch"] = table.prediction_error(removed).numpy()
    return pd.DataFrame(predicted)


def _asked(selection: Selection, plan: PruningPlan) -> dict[str, int]:
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
