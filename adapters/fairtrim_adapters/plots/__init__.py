"""Pictures of repairs; matplotlib is imported when one is drawn."""

from __future__ import annotations

from .repairs import plot_most_harmful, plot_trade_off

__all__ = ["plot_most_harmful", "plot_trade_off"]
