"""Labels as whole numbers, within the classes there are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairtrim.errors import InputError

__all__ = ["require_labels", "whole_labels"]


def whole_labels(target: Tensor, batch_index: int) -> Tensor:
    """Labels, (N,) or (N, 1) of any dtype, as whole numbers, (N,) int64."""
    if target.numel() != len(target) or (target.is_floating_point() and not torch.equal(target, target.round())):
        raise InputError(
            f"batch {batch_index}: the target has shape {tuple(target.shape)} and type {target.dtype}; expected whole "
            "class labels (N,), not one number for each class or token"
        )
    return target.reshape(-1).long()


def require_labels(target: Any, n_scores: int, *, what: str = "labels", unit: str = "classes") -> None:
    """Refuse labels, (N, ...), that none of K scores belongs to; a single logit has two labels.

    ``what`` is the message's name for them, ``unit`` what it counts.

    Example:
        >>> require_labels(torch.tensor([0, 3]), 3)
        Traceback (most recent call last):
        fairtrim.errors.InputError: labels reach from 0 to 3; expected 0 to 2 for 3 classes
    """
    if not len(target):
        return
    n_classes = max(n_scores, 2)
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= n_classes:
        raise InputError(f"{what} reach from {low} to {high}; expected 0 to {n_classes - 1} for {n_classes} {unit}")
