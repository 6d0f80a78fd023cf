"""fairtrim: compress and repair networks with the people they serve in view.

The core knows no pruner and no fairness library; those are joined to it by ``fairtrim_adapters``.
"""

from __future__ import annotations

from .adversarial_fine_tuning import AdversarialFineTuning
from .bias_gradient_descent import BiasGradientDescent
from .changed import ChangedSamples, changed_samples
from .channels import ChannelGroup, ChannelPlace, ParameterPlace
from .checkpoint import load_pruned, save_pruned
from .counterfactual import ColumnFlip, counterfactual_bias
from .counterfactual_unlearning import CounterfactualUnlearning
from .damage import DamageTable, collect_damage
from .errors import FairtrimError, InputError, NotFittedError, ProcessError, StaleTableError, UnsupportedModelError
from .influence import BiasInfluence, influence_on_bias, unlearn_samples
from .latency import Latency, MedianInterval, measure_latency
from .layerwise_optimization import LayerwiseOptimization
from .mining import (
    EpochEnsemble,
    GeneralizedCrossEntropyMiner,
    LossMiner,
    MinedSamples,
    Miner,
    MisclassifiedMiner,
)
from .parity_fine_tuning import ParityFineTuning
from .post_processing import PostProcessor
from .predictions import Predictions, predict
from .processes import share_of_process
from .random_perturbation import RandomPerturbation
from .recalibration import recalibrate_batchnorm
from .repair import OperatingPoint, Repair
from .threshold_selection import ThresholdSelection
from .training import fine_tune
from .validation import ValidationSet

__version__ = "0.1.0"

__all__ = [
    "AdversarialFineTuning",
    "BiasGradientDescent",
    "BiasInfluence",
    "ChangedSamples",
    "ChannelGroup",
    "ChannelPlace",
    "ColumnFlip",
    "CounterfactualUnlearning",
    "DamageTable",
    "EpochEnsemble",
    "FairtrimError",
    "GeneralizedCrossEntropyMiner",
    "InputError",
    "Latency",
    "LayerwiseOptimization",
    "LossMiner",
    "MedianInterval",
    "MinedSamples",
    "Miner",
    "MisclassifiedMiner",
    "NotFittedError",
    "OperatingPoint",
    "ParameterPlace",
    "ParityFineTuning",
    "PostProcessor",
    "Predictions",
    "ProcessError",
    "RandomPerturbation",
    "Repair",
    "StaleTableError",
    "ThresholdSelection",
    "UnsupportedModelError",
    "ValidationSet",
    "changed_samples",
    "collect_damage",
    "counterfactual_bias",
    "fine_tune",
    "influence_on_bias",
    "load_pruned",
    "measure_latency",
    "predict",
    "recalibrate_batchnorm",
    "save_pruned",
    "share_of_process",
    "unlearn_samples",
]
