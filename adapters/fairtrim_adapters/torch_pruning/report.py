"""What the host did with the scores: it says nothing of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from fairtrim import DamageTable
from fairtrim.selection import Selection

from .plan import PruningPlan, rounded_quota

__all__ = ["PruningReport", "pruning_report"]


@dataclass(frozen=True)
class PruningReport:
    """Channels removed since the last fit, layer by layer.

    Attributes:
        layers: One row a dependency group: layer, before, asked (what ratio and ranking ask of it), removed,
            kept, skipped.
        predicted: One row a sensitive group: people, loss before, predicted change of the mean loss.
        unscored: Dependency groups that were left as they are because gates can't describe them, with the reason.
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
            f"removed {removed} of {before} channels",
            self.layers.to_string(index=False),
            "skipped by the host: " + (", ".join(self.skipped) or "none"),
            *(f"not scored: {name}: {reason}" for name, reason in self.unscored.items()),
            self.predicted.to_string(index=False, float_format=lambda value: f"{value:.4f}"),
        ]
        return "\n".join(lines)


def pruning_report(
    table: DamageTable, selection: Selection, plan: PruningPlan, history: Sequence[Sequence[Any]]
) -> PruningReport:
    """Compare what was to be removed with what was.

    Args:
        table: The damage table.
        selection: The scores.
        plan: What the host was going to ask for.
        history: The host's pruning history since the fit: [module name, of outputs, channels].

    Returns:
        The report.
    """
    removed: dict[str, set[int]] = {group.name: set() for group in plan.groups}
    for module, of_outputs, channels in history:
        name = module if of_outputs else f"{module} (input)"
        if name in removed:
            removed[name].update(plan.roots[name].units[np.asarray(channels, dtype=np.int64)].tolist())
    asked = _asked(table, selection, plan)
    layers = pd.DataFrame(
        {
            "layer": [group.name for group in plan.groups],
            "before": [group.size for group in plan.groups],
            "asked": [asked[group.name] for group in plan.groups],
            "removed": [len(removed[group.name]) for group in plan.groups],
        }
    )
    layers["kept"] = layers["before"] - layers["removed"]
    layers["skipped"] = (layers["asked"] > 0) & (layers["removed"] == 0)
    if table.interactions is not None:
        change = table.predict(removed)
    else:
        change = table.damage[:, table.selected(removed)].sum(1)
    predicted = pd.DataFrame(
        {
            "sensitive_group": [n if isinstance(n, str) else ", ".join(n) for n in table.sensitive_groups],
            "people": table.counts.numpy(),
            "loss before": table.loss.numpy(),
            "predicted change" + ("" if table.interactions is not None else " (sum of single)"): change.numpy(),
        }
    )
    return PruningReport(layers, predicted, plan.unscored)


def _asked(table: DamageTable, selection: Selection, plan: PruningPlan) -> dict[str, int]:
    """How many channels the ratio takes from each layer, given the scores."""
    asked: dict[str, int] = {}
    for pool in plan.pools:
        of_layer = [(name, table.columns(name)) for name in pool.layers]
        names = np.concatenate([np.full(section.stop - section.start, k) for k, (_, section) in enumerate(of_layer)])
        scores = torch.cat([selection.scores[section] for _, section in of_layer])
        lowest = torch.argsort(scores, stable=True)[: pool.quota or 0].numpy()
        for k, (name, _) in enumerate(of_layer):
            quota = int((names[lowest] == k).sum())
            size = len(plan.roots[name].units)
            rounded = min(rounded_quota(quota, size, plan.round_to), table.sizes[name])
            asked[name] = quota if name in plan.heads else rounded
    return asked
