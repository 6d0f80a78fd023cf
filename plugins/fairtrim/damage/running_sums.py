"""Sums over batches that stay where the batches are, as exact as sums in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fairtrim.devices import has_float64, together_on_cpu

__all__ = ["ON_DEVICE_BYTES", "RunningSums"]

ON_DEVICE_BYTES = 2**30
"""Of sums on an accelerator, the Gram matrices of a run for instance; larger ones go to the CPU batch by batch."""

_CPU = torch.device("cpu")


class RunningSums:
    """Σ of tensors, (G, *shape), where G grows.

    They lie where what is added lies, so that nothing is copied, and nobody waits, before ``total``. Each number is
    float64; where the device has none, two of float32: the sum, and what its rounding left (Knuth's two-sum; The Art of
    Computer Programming 2, 4.2.2), together 48 bits in place of 53. What is added keeps its own precision.

    Args:
        shape: Of one group.
        max_bytes: More than these don't stay on an accelerator; may be changed.

    Example:
        >>> sums = RunningSums(2)
        >>> for number in (2.0**30, 1.0, -(2.0**30)):
        ...     sums.add(torch.tensor([[number, 1.0]]))
        >>> sums.add(torch.ones(1, 2), first=1)
        >>> sums.total(3).tolist()
        [[1.0, 3.0], [1.0, 1.0], [0.0, 0.0]]
    """

    def __init__(self, *shape: int, max_bytes: float = ON_DEVICE_BYTES) -> None:
        self._sums = torch.zeros(0, *shape, dtype=torch.float64, device="cpu")
        self._left: Tensor | None = None  # by rounding, beside sums in float32
        self.max_bytes = max_bytes

    def add(self, values: Tensor, first: int = 0) -> None:
        """Add (groups, *shape) to as many groups from ``first`` on."""
        end = first + len(values)
        if values.device != self._sums.device or end > len(self._sums):
            self._settle(values.device, max(end, len(self._sums)))
        if self._left is None:
            self._sums[first:end].add_(values.to(self._sums.device))  # += would copy them once more
            return
        before, left = self._sums[first:end], self._left[first:end]
        after = before + values
        added = after - before
        left += (before - (after - added)) + (values - added)
        before.copy_(after)

    def total(self, n_groups: int, device: torch.device = _CPU) -> Tensor:
        """The sums, (n_groups, *shape) float64 on a device, where they stay until more is added: no copy of them.

        It is the CPU, or one that has float64.
        """
        self._settle(device, n_groups)
        return self._sums

    @staticmethod
    def to_cpu(sums: Sequence[RunningSums]) -> None:
        """Bring several small sums to the CPU in one copy, so that their totals wait for nothing."""
        there = [one for one in sums if one._sums.device.type != "cpu"]
        if not there:
            return
        parts = [part for one in there for part in (one._sums, one._left) if part is not None]
        arrived = iter(together_on_cpu(*parts))
        for one in there:
            one._sums = next(arrived)
            if one._left is not None:
                one._sums += next(arrived)
                one._left = None

    def replace(self, sums: Tensor) -> None:
        """Go on from other sums, (G, *shape) float64 on the CPU."""
        self._sums, self._left = sums, None

    def _settle(self, device: torch.device, n_groups: int) -> None:
        """Lie on a device, if it has room, with so many groups."""
        if 8 * n_groups * math.prod(self._sums.shape[1:]) > self.max_bytes:
            device = torch.device("cpu")
        if device != self._sums.device:
            sums = self._sums.cpu().double()
            if self._left is not None:
                sums += self._left.cpu().double()
                self._left = None
            if not has_float64(device):
                self._left = (sums - sums.float().double()).float().to(device)
                sums = sums.float()
            self._sums = sums.to(device)
        missing = n_groups - len(self._sums)
        if missing > 0:
            self._sums = torch.cat([self._sums, self._sums.new_zeros(missing, *self._sums.shape[1:])])
            if self._left is not None:
                self._left = torch.cat([self._left, self._left.new_zeros(missing, *self._left.shape[1:])])
