"""The papers from start to end."""

from .denp_dcwp import RecipeOptions, RecipeResult, dcwp, denp
from .gradual import AccumulatedConfidence, gradual_channel_pruning

__all__ = ["AccumulatedConfidence", "RecipeOptions", "RecipeResult", "dcwp", "denp", "gradual_channel_pruning"]
