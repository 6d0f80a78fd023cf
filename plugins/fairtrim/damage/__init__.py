"""What removing a channel does to whom."""

from .channel_groups import ChannelGroup, ChannelPlace, ParameterPlace
from .collection import collect_damage
from .reading_options import CollectionOptions, ReadingOptions
from .table import DamageTable

__all__ = [
    "ChannelGroup",
    "ChannelPlace",
    "CollectionOptions",
    "DamageTable",
    "ParameterPlace",
    "ReadingOptions",
    "collect_damage",
]
