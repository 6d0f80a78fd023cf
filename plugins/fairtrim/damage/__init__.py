"""What removing a channel does to whom."""

from .channel_groups import ChannelGroup, ChannelPlace, ParameterPlace
from .collection import collect_damage
from .reading_options import CollectionOptions, ReadingOptions
from .scoring_estimate import ScoringEstimate, estimate_scoring
from .side_by_side import side_by_side
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
    "side_by_side",
]
