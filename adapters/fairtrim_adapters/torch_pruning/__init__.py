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

from .budget import BudgetOptions, PrunedForPairs, PrunedToBudget, prune_for_pairs, prune_to, smallest
from .graph.layers import ParameterAxis, describe_layer, forget_layer
from .graph.tracing import RecurrentPruner, RMSNormPruner, traceable
from .importances.channel_importance import ChannelImportance, CollectOptions, ImportanceOptions
from .importances.damage_importances import (
    DamageImportance,
    DamageOptions,
    GroupSaliencyImportance,
    MeanDamageImportance,
    ShareBalancedImportance,
    TailRiskImportance,
    WorstGroupImportance,
)
from .importances.mined_importances import AccumulatedConfidenceImportance, ContrastiveImportance, GateTraining
from .importances.pair_importance import PairDamageImportance
from .importances.parity_importance import ParityGradientImportance
from .importances.pruning_report import PruningReport
from .importances.registry import IMPORTANCES, register, register_importance
from .prune_copy import prune_copy
from .recipes.denp_dcwp import dcwp, denp
from .recipes.gradual import AccumulatedConfidence, gradual_channel_pruning
from .recipes.recipe_options import RecipeOptions
from .recipes.sparse_run import RecipeResult
from .reconstruction.wrap import ReconstructionOptions, Refit, reconstructed

__all__ = [
    "IMPORTANCES",
    "AccumulatedConfidence",
    "AccumulatedConfidenceImportance",
    "BudgetOptions",
    "ChannelImportance",
    "CollectOptions",
    "ContrastiveImportance",
    "DamageImportance",
    "DamageOptions",
    "GateTraining",
    "GroupSaliencyImportance",
    "ImportanceOptions",
    "MeanDamageImportance",
    "PairDamageImportance",
    "ParameterAxis",
    "ParityGradientImportance",
    "PrunedForPairs",
    "PrunedToBudget",
    "PruningReport",
    "RMSNormPruner",
    "RecipeOptions",
    "RecipeResult",
    "ReconstructionOptions",
    "RecurrentPruner",
    "Refit",
    "ShareBalancedImportance",
    "TailRiskImportance",
    "WorstGroupImportance",
    "dcwp",
    "denp",
    "describe_layer",
    "forget_layer",
    "gradual_channel_pruning",
    "prune_copy",
    "prune_for_pairs",
    "prune_to",
    "reconstructed",
    "register",
    "register_importance",
    "smallest",
    "traceable",
]
