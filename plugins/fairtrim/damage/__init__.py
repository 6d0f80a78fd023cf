"""What removing a channel does to whom."""

from .channel_groups import ChannelGroup, ChannelPlace, ParameterPlace
from .collection import collect_damage
from .reading_options import CollectionOptions, ReadingOptions
from .scoring_estimate import ScoringEstimate, estimate_scoring
from .table import DamageTable

__all__ = [
    "ChannelGroup",
    "ChannelPlace",
    "CollectionOptions",
    "DamageTable",
    "ParameterPlace",
    "ReadingOptions",
    "ScoringEstimate",
    "collect_damage",
    "estimate_scoring",
]
