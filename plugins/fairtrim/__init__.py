"""fairtrim: compress and repair networks with the people they serve in view.

The core knows no pruner and no fairness library; those are joined to it by ``fairtrim_adapters``.
"""

from __future__ import annotations

from fairtrim.data.column_flip import ColumnFlip

from .comparison.changed_samples import ChangedSamples, changed_samples
from .comparison.latency import Latency, MedianInterval, measure_latency
from .comparison.predictions import Predictions, predict
from .damage.channel_groups import ChannelGroup, ChannelPlace, ParameterPlace
from .damage.collection import collect_damage
from .damage.scoring_estimate import ScoringEstimate, estimate_scoring
from .damage.table import DamageTable
from .data.sensitive_bins import SensitiveBins
from .data.sensitive_loader import with_sensitive_features
from .data.sentence_pairs import SentencePairs
from .data.validation_set import ValidationSet
from .errors import FairtrimError, InputError, NotFittedError, ProcessError, StaleTableError, UnsupportedModelError
from .files.checkpoint import load_pruned, save_pruned
from .measures.counterfactual_bias import counterfactual_bias
from .mining.given_confidence import GivenConfidence
from .mining.mined_samples import MinedSamples
from .mining.miner import MINERS, Miner
from .mining.trained_miners import EpochEnsemble, GeneralizedCrossEntropyMiner, LossMiner, MisclassifiedMiner
from .network.activation_checkpointing import activation_checkpointing
from .network.answer_scores import answer_scores
from .network.fine_tuning import fine_tune
from .network.pair_differences import pair_differences, pair_log_likelihoods
from .network.recalibration import recalibrate_batchnorm, recalibrate_output
from .processes import share_of_process
from .repair.adversarial_fine_tuning import AdversarialFineTuning
from .repair.adversarial_projection import AdversarialProjection
from .repair.bias_gradient_descent import BiasGradientDescent
from .repair.layerwise_optimization import LayerwiseOptimization
from .repair.parity_fine_tuning import ParityFineTuning
from .repair.post_processor import POST_PROCESSORS, PostProcessor
from .repair.random_perturbation import RandomPerturbation
from .repair.repaired_network import OperatingPoint, Repair
from .repair.threshold_selection import ThresholdSelection
from .selection.group_saliency_pruning import GroupSaliencyPruning, MaskingStep, prune_by_group_saliency
from .unlearning.column_erasure import ColumnErasure
from .unlearning.counterfactual_unlearning import CounterfactualUnlearning
from .unlearning.identification import AttributeBias, biased_attributes
from .unlearning.influence import BiasInfluence, influence_on_bias, unlearn_samples
from .unlearning.sentence_influence import influence_of_sentences
from .unlearning.sentence_repair import SentenceFigures, SentenceRepair

__version__ = "0.1.0"

__all__ = [
    "MINERS",
    "POST_PROCESSORS",
    "AdversarialFineTuning",
    "AdversarialProjection",
    "AttributeBias",
    "BiasGradientDescent",
    "BiasInfluence",
    "ChangedSamples",
    "ChannelGroup",
    "ChannelPlace",
    "ColumnErasure",
    "ColumnFlip",
    "CounterfactualUnlearning",
    "DamageTable",
    "EpochEnsemble",
    "FairtrimError",
    "GeneralizedCrossEntropyMiner",
    "GivenConfidence",
    "GroupSaliencyPruning",
    "InputError",
    "Latency",
    "LayerwiseOptimization",
    "LossMiner",
    "MaskingStep",
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
    "ScoringEstimate",
    "SensitiveBins",
    "SentenceFigures",
    "SentencePairs",
    "SentenceRepair",
    "StaleTableError",
    "ThresholdSelection",
    "UnsupportedModelError",
    "ValidationSet",
    "activation_checkpointing",
    "answer_scores",
    "biased_attributes",
    "changed_samples",
    "collect_damage",
    "counterfactual_bias",
    "estimate_scoring",
    "fine_tune",
    "influence_of_sentences",
    "influence_on_bias",
    "load_pruned",
    "measure_latency",
    "pair_differences",
    "pair_log_likelihoods",
    "predict",
    "prune_by_group_saliency",
    "recalibrate_batchnorm",
    "recalibrate_output",
    "save_pruned",
    "share_of_process",
    "unlearn_samples",
    "with_sensitive_features",
]
