"""Torch-Pruning's dependency graph, corrected, and the plan of a step."""

from .layers import ParameterAxis, describe_layer, forget_layer
from .tracing import RecurrentPruner, RMSNormPruner, traceable

__all__ = ["ParameterAxis", "RMSNormPruner", "RecurrentPruner", "describe_layer", "forget_layer", "traceable"]
