"""fairtrim: compress and repair networks with the people they serve in view.

The core knows no pruner and no fairness library; those are joined to it by ``fairtrim_adapters``.
"""

from __future__ import annotations

from .channels import ChannelGroup, ChannelPlace, ParameterPlace
from .checkpoint import load_pruned, save_pruned
from .damage import DamageTable, collect_damage
from .errors import FairtrimError, InputError, NotFittedError, StaleTableError, UnsupportedModelError
from .mining import (
    EpochEnsemble,
    GeneralizedCrossEntropyMiner,
    LossMiner,
    MinedSamples,
    Miner,
    MisclassifiedMiner,
)
from .predictions import Predictions, predict
from .recalibration import recalibrate_batchnorm
from .training import fine_tune

__version__ = "0.1.0"

__all__ = [
    "ChannelGroup",
    "ChannelPlace",
    "DamageTable",
    "EpochEnsemble",
    "FairtrimError",
    "GeneralizedCrossEntropyMiner",
    "InputError",
    "LossMiner",
    "MinedSamples",
    "Miner",
    "MisclassifiedMiner",
    "NotFittedError",
    "ParameterPlace",
    "Predictions",
    "StaleTableError",
    "UnsupportedModelError",
    "collect_damage",
    "fine_tune",
    "load_pruned",
    "predict",
    "recalibrate_batchnorm",
    "save_pruned",
]
