"""fairtrim's criteria as importances of Torch-Pruning.

Example:
    >>> import torch
    >>> import torch_pruning as tp
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> data = [(torch.randn(8, 4), torch.arange(8) % 2, ["a", "a", "a", "b", "b", "b", "b", "b"])]
    >>> importance = WorstGroupImportance(model=model, loader=data, progress=False)
    >>> pruner = tp.pruner.BasePruner(
    ...     model, torch.randn(2, 4), importance=importance, pruning_ratio=0.5, ignored_layers=[model[2]]
    ... )
    >>> pruner.step()
    >>> model[0].out_features
    3
"""

from __future__ import annotations

from .graph import ParameterAxis, RecurrentPruner, RMSNormPruner, describe_layer, forget_layer, traceable
from .importances import (
    IMPORTANCES,
    AccumulatedConfidenceImportance,
    ChannelImportance,
    CollectOptions,
    ContrastiveImportance,
    DamageImportance,
    DamageOptions,
    GateTraining,
    GroupSaliencyImportance,
    ImportanceOptions,
    MeanDamageImportance,
    PruningReport,
    ShareBalancedImportance,
    TailRiskImportance,
    WorstGroupImportance,
    register,
    register_importance,
)
from .prune_copy import prune_copy
from .recipes import AccumulatedConfidence, RecipeOptions, RecipeResult, dcwp, denp, gradual_channel_pruning

__all__ = [
    "IMPORTANCES",
    "AccumulatedConfidence",
    "AccumulatedConfidenceImportance",
    "ChannelImportance",
    "CollectOptions",
    "ContrastiveImportance",
    "DamageImportance",
    "DamageOptions",
    "GateTraining",
    "GroupSaliencyImportance",
    "ImportanceOptions",
    "MeanDamageImportance",
    "ParameterAxis",
    "PruningReport",
    "RMSNormPruner",
    "RecipeOptions",
    "RecipeResult",
    "RecurrentPruner",
    "ShareBalancedImportance",
    "TailRiskImportance",
    "WorstGroupImportance",
    "dcwp",
    "denp",
    "describe_layer",
    "forget_layer",
    "gradual_channel_pruning",
    "prune_copy",
    "register",
    "register_importance",
    "traceable",
]
