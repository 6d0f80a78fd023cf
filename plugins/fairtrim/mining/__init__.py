"""Bias-conflicting samples and gates, found without labels of people."""

from .given_confidence import GivenConfidence
from .known_samples import KnownSamples
from .mined_samples import MinedSamples
from .miner import MINERS, Miner, Trace, label_probabilities
from .trained_miners import (
    EpochEnsemble,
    GeneralizedCrossEntropyMiner,
    LossMiner,
    MisclassifiedMiner,
    TrainedMiner,
    TrainingMiner,
)

__all__ = [
    "MINERS",
    "EpochEnsemble",
    "GeneralizedCrossEntropyMiner",
    "GivenConfidence",
    "KnownSamples",
    "LossMiner",
    "MinedSamples",
    "Miner",
    "MisclassifiedMiner",
    "Trace",
    "TrainedMiner",
    "TrainingMiner",
    "label_probabilities",
]
