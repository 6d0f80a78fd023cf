"""Importances for the pruners of Torch-Pruning: a file each, found by their ``name``."""

from .channel_importance import ChannelImportance, CollectOptions, ImportanceOptions
from .damage_importances import (
    DamageImportance,
    DamageOptions,
    GroupSaliencyImportance,
    MeanDamageImportance,
    ShareBalancedImportance,
    TailRiskImportance,
    WorstGroupImportance,
)
from .mined_importances import AccumulatedConfidenceImportance, ContrastiveImportance, GateTraining
from .pruning_report import PruningReport
from .registry import IMPORTANCES, register, register_importance

__all__ = [
    "IMPORTANCES",
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
    "PruningReport",
    "ShareBalancedImportance",
    "TailRiskImportance",
    "WorstGroupImportance",
    "register",
    "register_importance",
]
