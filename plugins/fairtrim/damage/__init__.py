"""What removing a channel does to whom."""

from .channel_groups import ChannelGroup, ChannelPlace, ParameterPlace
from .table import DamageTable, collect_damage

__all__ = ["ChannelGroup", "ChannelPlace", "DamageTable", "ParameterPlace", "collect_damage"]
