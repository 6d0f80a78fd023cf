"""Bias unlearned from a trained network."""

from .column_erasure import ColumnErasure
from .counterfactual_unlearning import CounterfactualUnlearning
from .identification import AttributeBias, biased_attributes
from .influence import BiasInfluence, influence_on_bias, unlearn_samples
from .sentence_influence import influence_of_sentences
from .sentence_repair import SentenceFigures, SentenceRepair

__all__ = [
    "AttributeBias",
    "BiasInfluence",
    "ColumnErasure",
    "CounterfactualUnlearning",
    "SentenceFigures",
    "SentenceRepair",
    "biased_attributes",
    "influence_of_sentences",
    "influence_on_bias",
    "unlearn_samples",
]
