"""From a criterion to an order."""

from .compensated import compensated_selection
from .group_saliency_pruning import GroupSaliencyPruning, MaskingStep, prune_by_group_saliency
from .joint import joint_selection
from .ranking import Floor, Pool, Selection, break_ties, negative_columns, ranked, single_selection
from .share_balanced import share_balanced_order

__all__ = [
    "Floor",
    "GroupSaliencyPruning",
    "MaskingStep",
    "Pool",
    "Selection",
    "break_ties",
    "compensated_selection",
    "joint_selection",
    "negative_columns",
    "prune_by_group_saliency",
    "ranked",
    "share_balanced_order",
    "single_selection",
]
