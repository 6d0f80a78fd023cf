"""Networks pruned to a budget, or as far as every sensitive group allows: ``prune_to`` and ``smallest``."""

from __future__ import annotations

from .outcome import PrunedToBudget, Stop
from .preparation import BudgetOptions
from .prune_for_pairs import PrunedForPairs, prune_for_pairs
from .prune_to import prune_to
from .sizes import Budget
from .smallest import smallest

__all__ = [
    "Budget",
    "BudgetOptions",
    "PrunedForPairs",
    "PrunedToBudget",
    "Stop",
    "prune_for_pairs",
    "prune_to",
    "smallest",
]
