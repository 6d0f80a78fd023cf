"""Layers that read removed channels, as least-squares problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Reader"]


@dataclass(frozen=True)
class Reader:
    """A layer whose input lost channels.

    Attributes:
        module: Qualified name, the same in the dense and in the pruned network.
        kept_outputs: Which outputs of the dense layer the pruned one still has, in its order.
        input_axis: Axis of the weight along which inputs lie; None for torch's linear and convolution layers, which
            are known. 0 for Hugging Face's Conv1D, whose weight is (inputs, outputs).
    """

    module: str
    kept_outputs: Sequence[int]
    input_axis: int | None = None
