"""Bias-conflicting samples and gates, found without labels of people."""

from .miner import (
    EpochEnsemble,
    GeneralizedCrossEntropyMiner,
    LossMiner,
    MinedSamples,
    Miner,
    MisclassifiedMiner,
    Trace,
    label_probabilities,
)

__all__ = [
    "EpochEnsemble",
    "GeneralizedCrossEntropyMiner",
    "LossMiner",
    "MinedSamples",
    "Miner",
    "MisclassifiedMiner",
    "Trace",
    "label_probabilities",
]
