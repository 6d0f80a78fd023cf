"""What a channel costs: the parameters, or the multiply-accumulates of a sample, that go with it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from fairtrim.arguments import require_choice
from fairtrim.errors import InputError
from fairtrim.network.activation_checkpointing import uncounted
from fairtrim.preservation import remove_hooks
from fairtrim.processes import Processes

from .channel_groups import ChannelColumns, ChannelGroup

__all__ = ["ChannelCosts", "Cost", "WeightUses", "weight_uses"]

Cost = Literal["parameters", "macs"]

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.Embedding,
    nn.EmbeddingBag,
)


class WeightUses:
    """How often every weight is used, counted while the network runs.

    Example:
        >>> layer = nn.Sequential(nn.Linear(3, 2))
        >>> with weight_uses(layer) as uses:
        ...     _ = layer(torch.ones(4, 7, 3))
        >>> uses.per_sample(4)
        {'0.weight': 7.0}
    """

    def __init__(self) -> None:
        self._positions: dict[str, float] = {}

    def note(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Count one call of a layer, but for one that a checkpoint makes again, or a trial."""
        if uncounted():
            return
        read = next((value for value in args if isinstance(value, Tensor)), None)
        given = output if isinstance(output, Tensor) else next((v for v in output if isinstance(v, Tensor)), None)
        if given is None:
            return
        if isinstance(module, nn.modules.conv._ConvNd):
            # transposed, every weight meets every input position
            of = (read, module.in_channels) if module.transposed and read is not None else (given, module.out_channels)
            positions = of[0].numel() / of[1]
        else:
            positions = given.numel() / given.shape[-1]
        for parameter, weight in module.named_parameters(recurse=isinstance(module, nn.MultiheadAttention)):
            if weight.ndim > 1:
                key = f"{name}.{parameter}" if name else parameter
                self._positions[key] = self._positions.get(key, 0.0) + positions

    def per_sample(self, n_samples: int, processes: Processes | None = None) -> dict[str, float]:
        """Uses of a sample by name of the weight.

        Args:
            n_samples: How many this process read.
            processes: Those that share the data.

        Returns:
            Positions; a weight that isn't used is left out.
        """
        if processes is None or processes.count == 1:
            return {name: positions / max(n_samples, 1) for name, positions in self._positions.items()}
        told = processes.exchange({"positions": self._positions, "samples": n_samples})
        total: Counter[str] = Counter()
        for entry in told:
            total.update(entry["positions"])
        return {name: positions / max(sum(e["samples"] for e in told), 1) for name, positions in total.items()}


@contextmanager
def weight_uses(model: nn.Module) -> Iterator[WeightUses]:
    """Count the uses of every weight for the length of the block, whoever runs the network.

    Args:
        model: The network.

    Yields:
        The counts.
    """
    uses = WeightUses()

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        return lambda module, args, output: uses.note(name, module, args, output)

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if not isinstance(module, _NORMS) and any(True for _ in module.parameters(recurse=False))
    ]
    try:
        yield uses
    finally:
        remove_hooks(handles)


class _Weight:
    """One parameter: what an element costs, how many other elements each has, and what is left of its axes."""

    def __init__(self, work: float, axes: dict[int, float]) -> None:
        self.work, self.axes = work, axes

    def total(self) -> float:
        product = self.work
        for size in self.axes.values():
            product *= size
        return product


class _OfGroup:
    """How many positions of each parameter's axes go with a channel of one group."""

    def __init__(self, size: int) -> None:
        self.counts: dict[str, dict[int, Tensor]] = {}
        self._size = size

    def add(self, parameter: str, axis: int, group_channels: Sequence[int]) -> None:
        counts = self.counts.setdefault(parameter, {}).setdefault(
            axis, torch.zeros(self._size, dtype=torch.float64, device="cpu")
        )
        counts.index_add_(
            0,
            torch.tensor(list(group_channels), device="cpu"),
            torch.ones(len(group_channels), dtype=torch.float64, device="cpu"),
        )


class ChannelCosts:
    """What each channel costs at the present sizes: what would go with it now.

    A layer's weights are a product of its inputs and outputs, so that what a channel of one costs falls as channels of
    the other go; the running total is exact. Products between activations, as in attention, and bare additions are no
    multiply-accumulates of a weight and are not counted.

    Args:
        model: The network.
        channel_groups: With their ``parameters``.
        kind: ``"parameters"`` or ``"macs"``.
        uses: For ``"macs"``: how often a sample uses every weight; see ``weight_uses``.

    Attributes:
        each: Of every channel, (C,) float64, above 0; a channel that is gone keeps its last.
        total: Of the whole network.

    Raises:
        InputError: The kind is unknown, the uses are missing, or a channel group doesn't say what goes with it.

    Example:
        >>> from fairtrim import ChannelPlace, ParameterPlace
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> place = ChannelPlace("2", "input", range(3), range(3), channel_axis=-1)
        >>> goes = [ParameterPlace(*of, range(3), range(3)) for of in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1))]
        >>> costs = ChannelCosts(model, [ChannelGroup("0", 3, (place,), tuple(goes))], "parameters")
        >>> costs.each.tolist(), costs.total
        ([7.0, 7.0, 7.0], 23.0)
        >>> costs.take(0)
        >>> costs.total
        16.0
    """

    each: Tensor
    total: float

    def __init__(
        self,
        model: nn.Module,
        channel_groups: Sequence[ChannelGroup],
        kind: Cost,
        uses: Mapping[str, float] | None = None,
    ) -> None:
        require_choice("kind", kind, ("parameters", "macs"))
        if kind == "macs" and uses is None:
            raise InputError("kind='macs' needs uses=: how often a sample uses every weight; see weight_uses")
        bare = [group.name for group in channel_groups if not group.parameters]
        if bare:
            raise InputError(
                f"channel groups {bare} don't say which parameters go with their channels; expected parameters= of "
                "each ChannelGroup"
            )
        self._columns = ChannelColumns({group.name: group.size for group in channel_groups})
        self._sections = [self._columns.section(group.name) for group in channel_groups]
        self._number = [number for number, group in enumerate(channel_groups) for _ in range(group.size)]
        self._groups = [_OfGroup(group.size) for group in channel_groups]
        touching: dict[str, set[int]] = {}
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for number, group in enumerate(channel_groups):
            for place in group.parameters:
                axis = place.axis % parameters[place.parameter].ndim
                self._groups[number].add(place.parameter, axis, place.group_channels)
                touching.setdefault(place.parameter, set()).add(number)
        self._weights: dict[str, _Weight] = {}
        self.total = 0.0
        for name, parameter in model.named_parameters():
            work = 1.0 if kind == "parameters" else (uses or {}).get(name, 0.0)
            weight = _Weight(work, {axis: float(size) for axis, size in enumerate(parameter.shape)})
            self.total += weight.total()
            if name in touching and work:
                self._weights[name] = weight
        for of_group in self._groups:
            of_group.counts = {name: axes for name, axes in of_group.counts.items() if name in self._weights}
        self._beside = [
            sorted({other for name in of_group.counts for other in touching[name]} | {number})
            for number, of_group in enumerate(self._groups)
        ]
        # most often every channel of a group costs the same, and one number says it
        self._alike = [
            {name: {a: float(c[0]) for a, c in axes.items()} for name, axes in of_group.counts.items()}
            if all(bool((c == c[0]).all()) for axes in of_group.counts.values() for c in axes.values())
            else None
            for of_group in self._groups
        ]
        self.each = torch.empty(len(self._number), dtype=torch.float64, device="cpu")
        for number in range(len(self._groups)):
            self._update(number)

    def copy(self) -> Self:
        """The same costs, to be counted down apart."""
        other = copy.copy(self)
        other.each = self.each.clone()
        other._weights = {name: _Weight(w.work, dict(w.axes)) for name, w in self._weights.items()}
        return other

    def take(self, column: int) -> None:
        """Count a channel that goes."""
        number = self._number[column]
        channel = column - self._sections[number].start
        for name, axes in self._groups[number].counts.items():
            weight = self._weights[name]
            before = weight.total()
            for axis, counts in axes.items():
                weight.axes[axis] = max(0.0, weight.axes[axis] - float(counts[channel]))
            self.total += weight.total() - before
        for other in self._beside[number]:
            self._update(other)

    def _update(self, number: int) -> None:
        alike, section = self._alike[number], self._sections[number]
        if alike is not None:
            cost = sum(_what_goes(self._weights[name], axes) for name, axes in alike.items())
            self.each[section] = max(cost, 1e-12)
            return
        costs = torch.zeros(section.stop - section.start, dtype=torch.float64, device="cpu")
        for name, axes in self._groups[number].counts.items():
            costs += _what_goes(self._weights[name], axes)
        self.each[section] = costs.clamp_min(1e-12)


def _what_goes(weight: _Weight, axes: Mapping[int, Any]) -> Any:
    """Elements of a parameter that go with slices of some of its axes: what lies in slices of both goes once."""
    fixed, left, before = weight.work, 1.0, 1.0
    for axis, size in weight.axes.items():
        if axis in axes:
            left, before = left * (size - axes[axis]), before * size
        else:
            fixed *= size
    return fixed * (before - left)
