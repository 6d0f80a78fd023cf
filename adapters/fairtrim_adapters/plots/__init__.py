"""Pictures of sweeps, budgets, damage tables, changed and mined samples, and repairs, drawn by matplotlib.

It is imported when one is drawn.
"""

from __future__ import annotations

from .budgets import plot_budget
from .changed import plot_changed_images
from .confidence import plot_confidence
from .damage import plot_damage
from .repairs import plot_most_harmful, plot_trade_off
from .sweeps import plot_group_metric, plot_pareto

__all__ = [
    "plot_budget",
    "plot_changed_images",
    "plot_confidence",
    "plot_damage",
    "plot_group_metric",
    "plot_most_harmful",
    "plot_pareto",
    "plot_trade_off",
]
