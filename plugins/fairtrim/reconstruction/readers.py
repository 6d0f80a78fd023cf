"""Layers that read removed channels, as least-squares problems: each output is a weighted sum of one row of inputs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

__all__ = ["LayerRows", "Reader", "layer_rows"]


@dataclass(frozen=True)
class Reader:
    """A layer whose input lost channels.

    Attributes:
        module: Qualified name, the same in the dense and in the pruned network.
        kept_outputs: Which outputs of the dense layer the pruned one still has, in its order.
        input_axis: Axis of the weight along which inputs lie; None for torch's linear and convolution layers, which
            are known. 0 for Hugging Face's Conv1D, whose weight is (inputs, outputs).

    Example:
        >>> Reader("classifier", kept_outputs=range(10)).input_axis is None
        True
    """

    module: str
    kept_outputs: Sequence[int]
    input_axis: int | None = None


class LayerRows(ABC):
    """A layer as W x + b on rows: g groups of D inputs and O / g outputs.

    Positions are those of the output, counted within a sample; a layer that runs on parts of samples (windows, frames:
    its first axis is a multiple of the number of samples) has those of all parts.

    Attributes:
        module: The layer.
        groups: g.
        width: D, kept inputs of a group times kernel positions.
        outputs: O.
    """

    module: nn.Module
    groups: int
    width: int
    outputs: int

    @property
    def weight(self) -> Tensor:
        """The layer's weight, as it is stored."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias, if it has one."""
        bias = self.module.bias if hasattr(self.module, "bias") else None
        return bias if isinstance(bias, Tensor) else None

    @abstractmethod
    def count(self, output: Tensor, n_samples: int) -> int | None:
        """How many positions a sample has, P; None if the output can't be told apart by samples."""

    @abstractmethod
    def input_rows(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """Rows of inputs, (N r, g, D), at positions, (N, r)."""

    @abstractmethod
    def output_rows(self, output: Tensor, positions: Tensor) -> Tensor:
        """Rows of the layer's output, or of what is added to it, (N r, O)."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """The weight as (g, O / g, D)."""

    @abstractmethod
    def stored(self, matrix: Tensor) -> Tensor:
        """A matrix (g, O / g, D) in the shape of the weight."""


class _LinearRows(LayerRows):
    def __init__(self, module: nn.Module, input_axis: int) -> None:
        self.module, self._input_axis = module, input_axis
        self.groups = 1
        self.width, self.outputs = self.weight.shape[input_axis], self.weight.shape[1 - input_axis]

    def count(self, output: Tensor, n_samples: int) -> int | None:
        if output.ndim < 2 or output.shape[-1] == 0 or output.shape[0] % n_samples:
            return None
        return output.numel() // (n_samples * output.shape[-1])

    def _at(self, tensor: Tensor, positions: Tensor) -> Tensor:
        rows = tensor.reshape(len(positions), -1, tensor.shape[-1])
        if rows.shape[1] == 1:
            return rows[:, 0]
        return rows.gather(1, positions[:, :, None].expand(-1, -1, rows.shape[2])).flatten(0, 1)

    def input_rows(self, inputs: Tensor, positions: Tensor) -> Tensor:
        return self._at(inputs, positions).unsqueeze(1)

    def output_rows(self, output: Tensor, positions: Tensor) -> Tensor:
        return self._at(output, positions)

    def matrix(self) -> Tensor:
        weight = self.weight.detach()
        return (weight if self._input_axis == 1 else weight.T).unsqueeze(0)

    def stored(self, matrix: Tensor) -> Tensor:
        return matrix[0] if self._input_axis == 1 else matrix[0].T


class _ConvolutionRows(LayerRows):
    """Convolutions of one to three dimensions, transposed or not: a row is the patch that an output position sees."""

    module: _ConvNd

    def __init__(self, module: _ConvNd) -> None:
        self.module = module
        self._transposed = isinstance(module, _ConvTransposeNd)
        self.groups = module.groups
        inputs, outputs = self.weight.shape[:2] if self._transposed else self.weight.shape[1::-1]
        # from the weight, which is what counts: whoever prunes may forget in_channels
        self.width = (inputs // self.groups if self._transposed else inputs) * math.prod(module.kernel_size)
        self.outputs = outputs * self.groups if self._transposed else outputs

    def count(self, output: Tensor, n_samples: int) -> int | None:
        if output.ndim != len(self.module.kernel_size) + 2 or output.shape[0] % n_samples:
            return None
        return output.shape[0] // n_samples * math.prod(output.shape[2:])

    def output_rows(self, output: Tensor, positions: Tensor) -> Tensor:
        rows = _flat(output, len(positions))
        return rows.gather(2, positions[:, None].expand(-1, rows.shape[1], -1)).transpose(1, 2).flatten(0, 1)

    def input_rows(self, inputs: Tensor, positions: Tensor) -> Tensor:
        module = self.module
        sides = module._reversed_padding_repeated_twice
        if module.padding_mode != "zeros":
            inputs = F.pad(inputs, list(sides), mode=module.padding_mode)
        sizes = inputs.shape[2:]
        before = [0] * len(sizes)
        if self._transposed:
            before = [int(p) for p in module.padding]
        elif module.padding_mode == "zeros":
            before = list(sides[::2])[::-1]
        output_sizes, length = self._sizes(inputs, before), math.prod(sizes)
        frame = positions.div(math.prod(output_sizes), rounding_mode="floor")
        index, inside = self._sources(positions - frame * math.prod(output_sizes), sizes, output_sizes, before)
        parts = inputs.shape[0] // len(positions)
        index = torch.where(inside, index + frame[:, :, None] * length, parts * length).flatten(1)
        rows = F.pad(_flat(inputs, len(positions)), (0, 1))  # what lies outside is 0
        n, channels, r = len(positions), rows.shape[1], positions.shape[1]
        patches = rows.gather(2, index[:, None].expand(-1, channels, -1))
        patches = patches.view(n, self.groups, channels // self.groups, r, -1)
        return patches.permute(0, 3, 1, 2, 4).reshape(n * r, self.groups, -1)

    def _sizes(self, inputs: Tensor, before: Sequence[int]) -> list[int]:
        """Of the output, by the input's that was padded where the padding isn't zeros."""
        module, sizes = self.module, []
        for axis, size in enumerate(inputs.shape[2:]):
            reach = module.dilation[axis] * (module.kernel_size[axis] - 1)
            if self._transposed:
                size = (size - 1) * module.stride[axis] - 2 * before[axis] + reach + module.output_padding[axis] + 1
            else:
                sides = module._reversed_padding_repeated_twice
                last = len(inputs.shape[2:]) - 1 - axis
                both = sides[2 * last] + sides[2 * last + 1] if module.padding_mode == "zeros" else 0
                size = (size + both - reach - 1) // module.stride[axis] + 1
            sizes.append(int(size))
        return sizes

    def _sources(
        self, place: Tensor, sizes: Sequence[int], output_sizes: Sequence[int], before: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Where each tap at each output position finds its input, (N, r, taps), and whether it lies inside."""
        module = self.module
        taps = torch.cartesian_prod(*[torch.arange(k, device=place.device) for k in module.kernel_size])
        taps = taps.view(-1, len(sizes))
        index = place.new_zeros(*place.shape, len(taps))
        inside = torch.ones_like(index, dtype=torch.bool)
        stride = 1
        rest = place
        for axis in reversed(range(len(sizes))):
            at, rest = rest % output_sizes[axis], rest.div(output_sizes[axis], rounding_mode="floor")
            tap, step = taps[:, axis] * module.dilation[axis], module.stride[axis]
            if self._transposed:
                source = at[:, :, None] + before[axis] - tap
                inside &= source % step == 0
                source = source.div(step, rounding_mode="floor")
            else:
                source = at[:, :, None] * step - before[axis] + tap
            inside &= (source >= 0) & (source < sizes[axis])
            index += source * stride
            stride *= sizes[axis]
        return index, inside

    def matrix(self) -> Tensor:
        weight, g = self.weight.detach(), self.groups
        if not self._transposed:
            return weight.reshape(g, self.outputs // g, -1)
        return weight.reshape(g, len(weight) // g, self.outputs // g, -1).transpose(1, 2).flatten(2)

    def stored(self, matrix: Tensor) -> Tensor:
        shape, g = self.weight.shape, self.groups
        if not self._transposed:
            return matrix.reshape(shape)
        return matrix.reshape(g, self.outputs // g, shape[0] // g, -1).transpose(1, 2).reshape(shape)


def _flat(tensor: Tensor, n_samples: int) -> Tensor:
    """(N parts, C, ...) as (N, C, parts x places)."""
    parts = tensor.shape[0] // n_samples
    if parts == 1:
        return tensor.flatten(2)
    return tensor.reshape(n_samples, parts, tensor.shape[1], -1).transpose(1, 2).flatten(2)


def layer_rows(module: Any, input_axis: int | None = None) -> LayerRows | str:
    """A layer as a map of rows, or why it isn't one.

    Args:
        module: The layer.
        input_axis: See ``Reader``.

    Returns:
        The rows, or what is in the way, in words.

    Example:
        >>> rows = layer_rows(nn.Conv2d(4, 6, 3, groups=2))
        >>> rows.groups, rows.width, rows.outputs
        (2, 18, 6)
        >>> layer_rows(nn.Bilinear(2, 3, 4))
        'a Bilinear is no linear or convolution layer that is known here'
    """
    known = isinstance(module, nn.Linear | _ConvNd)
    if not known and input_axis is None:
        return f"a {type(module).__name__} is no linear or convolution layer that is known here"
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed from others (parametrised or quantised)"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}"
    if isinstance(module, _ConvNd):
        return _ConvolutionRows(module)
    if weight.ndim != 2 or input_axis not in (None, 0, 1, -1, -2):
        return f"its weight has shape {tuple(weight.shape)}; expected two axes, of which input_axis is one"
    return _LinearRows(module, 1 if input_axis is None else input_axis % 2)
