"""Layers of every kind that is refitted, with an input that lost channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class Channels(nn.Module):
    """Some of the channels of the input, as a pruned network has them."""

    def __init__(self, kept: list[int], axis: int) -> None:
        super().__init__()
        self.register_buffer("kept", torch.tensor(kept))
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(self.axis, self.kept)


class InputsByOutputs(nn.Module):
    """A linear layer whose weight is (inputs, outputs), like Hugging Face's Conv1D."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


@dataclass(frozen=True)
class LayerCase:
    """A layer, made for a number of inputs; the shape of an input without samples and channels.

    ``axis``: of the channels in the input. ``weight_axis``: of the inputs in the weight. ``groups``: of a convolution.
    """

    make: Callable[[int], nn.Module]
    shape: tuple[int, ...] = ()
    axis: int = 1
    weight_axis: int = 1
    input_axis: int | None = None
    groups: int = 1

    def inputs(self, n_samples: int, channels: int = 6) -> Tensor:
        """Channels that tell something of each other."""
        x = torch.tensordot(torch.randn(n_samples, *self.shape, channels), torch.randn(channels, channels), dims=1)
        return x.movedim(-1, self.axis).double() + 0.5

    def networks(self, kept: list[int], channels: int = 6) -> tuple[nn.Module, nn.Module]:
        """A dense network and one whose layer reads only some channels, with the weights of these."""
        dense, pruned = self.make(channels).double(), self.make(len(kept)).double()
        with torch.no_grad():
            weight: Any = dense.weight
            if self.groups == 1:
                pruned.weight.copy_(weight.index_select(self.weight_axis, torch.tensor(kept)))
            elif self.weight_axis == 1:  # (outputs, inputs of a group, ...)
                each = channels // self.groups
                rows = weight.unflatten(0, (self.groups, -1))
                parts = [rows[g][:, [k - g * each for k in kept if k // each == g]] for g in range(self.groups)]
                pruned.weight.copy_(torch.cat(parts))
            else:
                pruned.weight.copy_(weight[kept])
            if dense.bias is not None:
                pruned.bias.copy_(dense.bias)
        everything = list(range(channels))
        return (
            nn.Sequential(Channels(everything, self.axis), dense).eval(),
            nn.Sequential(Channels(kept, self.axis), pruned).eval(),
        )


CASES = {
    "linear": LayerCase(lambda n: nn.Linear(n, 3)),
    "linear without bias": LayerCase(lambda n: nn.Linear(n, 3, bias=False)),
    "tokens": LayerCase(lambda n: nn.Linear(n, 5), (4,), axis=2),
    "grid of tokens": LayerCase(lambda n: nn.Linear(n, 5), (2, 3), axis=3),
    "inputs by outputs": LayerCase(lambda n: InputsByOutputs(n, 4), (3,), axis=2, weight_axis=0, input_axis=0),
    "conv1d": LayerCase(lambda n: nn.Conv1d(n, 5, 3, stride=2, padding=1, dilation=2), (9,)),
    "conv2d": LayerCase(lambda n: nn.Conv2d(n, 5, (3, 2), stride=(1, 2), padding=(1, 0)), (4, 5)),
    "conv2d same": LayerCase(lambda n: nn.Conv2d(n, 5, (2, 3), padding="same", dilation=(1, 2), bias=False), (4, 5)),
    "conv2d valid": LayerCase(lambda n: nn.Conv2d(n, 5, (2, 3), padding="valid"), (4, 5)),
    "conv2d circular": LayerCase(lambda n: nn.Conv2d(n, 5, 3, padding=(1, 2), padding_mode="circular"), (4, 5)),
    "conv2d reflect": LayerCase(lambda n: nn.Conv2d(n, 4, 3, padding="same", padding_mode="reflect"), (4, 5)),
    "conv2d grouped": LayerCase(lambda n: nn.Conv2d(n, 4, 3, padding=1, groups=2), (4, 5), groups=2),
    "conv3d": LayerCase(lambda n: nn.Conv3d(n, 3, (1, 2, 3), padding=(0, 1, 1), stride=(1, 1, 2)), (2, 3, 5)),
    "transposed 1d": LayerCase(
        lambda n: nn.ConvTranspose1d(n, 3, 3, stride=2, padding=1, output_padding=1), (5,), weight_axis=0
    ),
    "transposed 2d": LayerCase(
        lambda n: nn.ConvTranspose2d(n, 3, (2, 3), stride=(2, 1), dilation=(1, 2)), (3, 4), weight_axis=0
    ),
    "transposed 2d grouped": LayerCase(
        lambda n: nn.ConvTranspose2d(n, 4, 3, stride=2, groups=2, bias=False), (3, 4), weight_axis=0, groups=2
    ),
    "transposed 3d": LayerCase(lambda n: nn.ConvTranspose3d(n, 3, 2), (2, 3, 2), weight_axis=0),
}
KEPT = [0, 1, 3, 5]  # two of each half
