"""Bias unlearned from a trained network."""

from .counterfactual_unlearning import CounterfactualUnlearning
from .influence import BiasInfluence, influence_on_bias, unlearn_samples

__all__ = ["BiasInfluence", "CounterfactualUnlearning", "influence_on_bias", "unlearn_samples"]
