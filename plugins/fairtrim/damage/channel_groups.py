"""Channel groups: plain data that says which module carries which channel, so that no pruner is imported.

A *channel group* is a set of coupled channels that are removed together: the output rows of one or more
layers, the norms they pass and the input columns of every layer that consumes them. An adapter for a pruner
writes down where each channel is consumed; the collector puts its gates there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fairtrim.errors import InputError

__all__ = ["ChannelColumns", "ChannelGroup", "ChannelPlace", "ParameterPlace", "Site", "channel_sites"]


@dataclass(frozen=True)
class ChannelPlace:
    """A place where channels of a group pass: the input or the output of one module.

    Attributes:
        module: Qualified name of the module, as in ``model.named_modules()``.
        side: ``"input"`` (the usual: where the channel is consumed, after norm and activation) or
            ``"output"``.
        channels: Positions along the channel axis of that tensor.
        group_channels: For each of them, the channel of the group (0 … C−1) to which it belongs; repeats
            after a flatten.
        channel_axis: Axis of the channels: 1 for (N, C, H, W), −1 for (N, C) and tokens (N, T, C).
        sample_axis: Axis of the samples; a leading axis of N·T rows (samples outermost) is accepted too.
        weight: Exponent of the gate. ½ where every path through the group meets two of its places
            (attention: the query and the key of a head dimension; its value and the output projection).

    Example:
        >>> image = ChannelPlace("3", "input", channels=range(2), group_channels=range(2))
        >>> flat = ChannelPlace("5", "input", range(6), [0, 0, 0, 1, 1, 1], channel_axis=-1)  # 3 pixels a channel
        >>> ChannelGroup("0", 2, (image, flat)).size
        2
    """

    module: str
    side: Literal["input", "output"]
    channels: Sequence[int]
    group_channels: Sequence[int]
    channel_axis: int = 1
    sample_axis: int = 0
    weight: float = 1.0


@dataclass(frozen=True)
class ParameterPlace:
    """The slices of one parameter that disappear with the channels of a group.

    Attributes:
        parameter: Qualified name, as in ``model.named_parameters()``.
        axis: Axis of the parameter along which channels are removed.
        channels: Positions along that axis.
        group_channels: For each of them, the channel of the group to which it belongs.

    Example:
        >>> columns = ParameterPlace("5.weight", axis=1, channels=range(6), group_channels=[0, 0, 0, 1, 1, 1])
        >>> weight = torch.arange(12.0).reshape(2, 6)
        >>> weight.index_select(columns.axis, torch.tensor(columns.channels[3:])).tolist()  # goes with channel 1
        [[3.0, 4.0, 5.0], [9.0, 10.0, 11.0]]
    """

    parameter: str
    axis: int
    channels: Sequence[int]
    group_channels: Sequence[int]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are removed together, under the name of the layer at the root of the group.

    Attributes:
        name: Name under which the damage table lists the group.
        size: C, the number of its channels. Where a layer must lose the same channel in every one of its
            convolution groups, those are one channel here.
        places: Where the channels are consumed.
        parameters: The parameter slices that disappear with them; needed by ``level="weight"`` only.

    Example:
        >>> hidden = ChannelGroup("0", 3, (ChannelPlace("2", "input", range(3), range(3), channel_axis=-1),))
        >>> hidden.size
        3
    """

    name: str
    size: int
    places: tuple[ChannelPlace, ...]
    parameters: tuple[ParameterPlace, ...] = ()


@dataclass(frozen=True)
class ChannelColumns:
    """The channels of all groups side by side, as the columns of a table: ``sizes``, C by name, in this order.

    Example:
        >>> columns = ChannelColumns({"0": 3, "2": 2})
        >>> columns.section("2"), columns.layer_of(4), columns.selected({"2": [1], "0": [0]}).tolist()
        (slice(3, 5, None), '2', [0, 4])
    """

    sizes: Mapping[str, int]

    def __len__(self) -> int:
        """C over all groups."""
        return sum(self.sizes.values())

    def __contains__(self, name: object) -> bool:
        return name in self.sizes

    def section(self, name: str) -> slice:
        """Columns of one channel group, a slice into 0 … C−1."""
        if name not in self.sizes:
            raise InputError(f"there is no channel group {name!r}; it has to be one of {list(self.sizes)}")
        names = list(self.sizes)
        start = sum(self.sizes[before] for before in names[: names.index(name)])
        return slice(start, start + self.sizes[name])

    def layer_of(self, column: int) -> str:
        """Name of the channel group of one column."""
        ends = accumulate(self.sizes.values())
        return next(name for name, end in zip(self.sizes, ends, strict=True) if column < end)

    def selected(self, channels: Mapping[str, Iterable[int]]) -> Tensor:
        """Distinct columns, in increasing order, of channel numbers by group name."""
        columns: set[int] = set()
        for name, numbers in channels.items():
            section = self.section(name)
            for number in numbers:
                if not 0 <= int(number) < self.sizes[name]:
                    raise InputError(
                        f"channel {number} of {name!r} is out of range; expected 0 to {self.sizes[name] - 1}"
                    )
                columns.add(section.start + int(number))
        return torch.tensor(sorted(columns), dtype=torch.int64, device="cpu")


@dataclass(frozen=True)
class Site:
    """One tensor of the network with every channel of every group that passes there.

    ``channels`` are positions along ``channel_axis``; of each there is the column of the damage table, and in
    ``weights`` the exponent of the gate, (P,) all three.
    """

    module: str
    side: Literal["input", "output"]
    channel_axis: int
    sample_axis: int
    channels: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]


def _offsets(groups: Sequence[ChannelGroup]) -> Iterator[tuple[ChannelGroup, int]]:
    offset = 0
    for group in groups:
        yield group, offset
        offset += group.size


def channel_sites(model: nn.Module, groups: Sequence[ChannelGroup]) -> list[Site]:
    """Gather the places of all groups by the tensor they lie on, (module, side), checked against the model."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if not groups:
        raise InputError("no channel groups: nothing in this network can be pruned; check ignored_layers")
    gathered: dict[tuple[str, str], list[tuple[ChannelPlace, int]]] = {}
    names: set[str] = set()
    for group, offset in _offsets(groups):
        if group.name in names:
            raise InputError(f"two channel groups are named {group.name!r}; names must differ")
        names.add(group.name)
        if group.size < 1 or not group.places:
            raise InputError(
                f"channel group {group.name!r} has {group.size} channels and {len(group.places)} places; "
                "expected at least one of each"
            )
        covered = np.zeros(group.size, dtype=bool)
        for place in group.places:
            if place.module not in modules:
                raise InputError(f"channel group {group.name!r} names module {place.module!r}, not in the model")
            belongs = np.asarray(place.group_channels, dtype=np.int64)
            if len(belongs) != len(place.channels) or len(belongs) == 0:
                raise InputError(
                    f"channel group {group.name!r} at {place.module!r}: {len(place.channels)} channels for "
                    f"{len(belongs)} group channels; expected as many, and at least one"
                )
            if belongs.min() < 0 or belongs.max() >= group.size:
                raise InputError(
                    f"channel group {group.name!r} at {place.module!r}: group channels reach from "
                    f"{belongs.min()} to {belongs.max()}; expected 0 to {group.size - 1}"
                )
            covered[belongs] = True
            gathered.setdefault((place.module, place.side), []).append((place, offset))
        if not covered.all():
            raise InputError(
                f"channel group {group.name!r}: channels {np.flatnonzero(~covered).tolist()} pass no place"
            )
    return [_site(places) for places in gathered.values()]


def _site(places: list[tuple[ChannelPlace, int]]) -> Site:
    first = places[0][0]
    channels = np.concatenate([np.asarray(place.channels, dtype=np.int64) for place, _ in places])
    columns = np.concatenate([np.asarray(p.group_channels, dtype=np.int64) + offset for p, offset in places])
    weights = np.concatenate([np.full(len(place.channels), place.weight) for place, _ in places])
    for place, _ in places:
        if (place.channel_axis, place.sample_axis) != (first.channel_axis, first.sample_axis):
            raise InputError(f"the places at {first.module!r} disagree on the axes of channels and samples")
    if len(np.unique(channels)) != len(channels):
        raise InputError(f"the {first.side} of {first.module!r} has a channel that belongs to two groups")
    return Site(first.module, first.side, first.channel_axis, first.sample_axis, channels, columns, weights)
