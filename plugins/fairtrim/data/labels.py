"""Labels as whole numbers, within the classes there are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairtrim.errors import InputError

__all__ = ["require_labels", "whole_labels"]


def whole_labels(target: Tensor, batch_index: int) -> Tensor:
    """Labels as whole numbers.

    Args:
        target: (N,) or (N, 1), of any dtype.
        batch_index: For the message.

    Returns:
        (N,) int64.

    Raises:
        InputError: They are not labels.
    """
    if target.numel() != len(target) or (target.is_floating_point() and not torch.equal(target, target.round())):
        raise InputError(
            f"batch {batch_index}: the target has shape {tuple(target.shape)} and type {target.dtype}; expected whole "
            "class labels (N,), not one number for each class"
        )
    return target.reshape(-1).long()


def require_labels(target: Any, n_scores: int, *, what: str = "labels", unit: str = "classes") -> None:
    """Refuse labels that no score belongs to.

    Args:
        target: Labels, (N, ...), a tensor or an array; none at all is fine.
        n_scores: K; a single logit (K = 1) has two labels.
        what: What the message calls them.
        unit: What the message counts.

    Raises:
        InputError: One is outside of 0 to K − 1.

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
