"""From a criterion to an order."""

from .ranking import (
    Floor,
    Pool,
    Selection,
    break_ties,
    joint_selection,
    negative_columns,
    ranked,
    share_balanced_order,
    single_selection,
)

__all__ = [
    "Floor",
    "Pool",
    "Selection",
    "break_ties",
    "joint_selection",
    "negative_columns",
    "ranked",
    "share_balanced_order",
    "single_selection",
]
