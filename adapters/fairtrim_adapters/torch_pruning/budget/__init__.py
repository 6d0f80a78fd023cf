"""Networks pruned to a budget, or as far as every sensitive group allows: ``prune_to`` and ``smallest``."""

from __future__ import annotations

from .outcome import PrunedToBudget, Stop
from .preparation import BudgetOptions
from .prune_to import prune_to
from .sizes import Budget
from .smallest import smallest

__all__ = ["Budget", "BudgetOptions", "PrunedToBudget", "Stop", "prune_to", "smallest"]
