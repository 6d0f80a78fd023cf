"""What removing a channel does to whom."""

from .channel_groups import ChannelGroup, ChannelPlace, ParameterPlace
from .collection import collect_damage
from .table import DamageTable

__all__ = ["ChannelGroup", "ChannelPlace", "DamageTable", "ParameterPlace", "collect_damage"]
