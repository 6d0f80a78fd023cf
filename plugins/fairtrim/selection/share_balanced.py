"""FairGRAPE's order: every sensitive group keeps its share of a layer's importance."""

from __future__ import annotations

import torch

from fairtrim.criteria import require_sensitive_groups
from fairtrim.damage.table import DamageTable

from .ranking import Selection

__all__ = ["share_balanced_order"]


def share_balanced_order(table: DamageTable) -> Selection:
    """FairGRAPE: within each layer, keep every sensitive group's share of the total importance.

    With the importance I_gc = E_g E_y[s_nc(y)²] (labels y from the network's own p(y|x), or the true ones with the
    empirical curvature), the next channel to keep is the one with the largest I_gc for the group whose share
    Σ_kept I_g / Σ_kept Σ_g I_g is furthest below its share in the whole layer (Lin, Kim and Joo, ECCV 2022,
    at the level of channels). The order means something within a layer only.

    Args:
        table: The damage table; its curvature is the importance.

    Returns:
        The selection; scores are the places in each layer's own order.

    Raises:
        InputError: There are no sensitive groups to balance.
    """
    require_sensitive_groups(table, "FairGRAPE's order of shares")
    scores = torch.empty(table.curvature.shape[1], dtype=torch.float64, device="cpu")
    for name in table.sizes:
        section = table.columns.section(name)
        importance = table.curvature[:, section]
        total = importance.sum(1)
        target = total / total.sum().clamp_min(torch.finfo(torch.float64).tiny)
        kept = torch.zeros_like(total)
        left = torch.ones(importance.shape[1], dtype=torch.bool, device="cpu")
        for place in range(importance.shape[1] - 1, -1, -1):
            share = kept / kept.sum() if kept.sum() > 0 else torch.zeros_like(kept)
            group = int(torch.argmax(target - share))
            channel = int(torch.argmax(torch.where(left, importance[group], -torch.inf)))
            kept += importance[:, channel]
            left[channel] = False
            scores[section.start + channel] = place
    return Selection(torch.argsort(scores, stable=True), scores, table.curvature.mean(0))
