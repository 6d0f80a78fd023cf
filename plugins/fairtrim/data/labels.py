"""Labels as whole numbers, within the classes there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fairtrim.errors import InputError

from .padding import real_tokens

__all__ = ["refuse_range", "require_labels", "require_labels_of_tokens", "whole_labels"]


def whole_labels(target: Tensor, batch_index: int) -> Tensor:
    """Labels, (N,) or (N, 1) of any dtype, as whole numbers, (N,) int64."""
    if target.numel() != len(target) or (target.is_floating_point() and not torch.equal(target, target.round())):
        raise InputError(
            f"batch {batch_index}: the target has shape {tuple(target.shape)} and type {target.dtype}; expected whole "
            "class labels (N,), not one number for each class or token: for one-hot targets pass target.argmax(1)"
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
    if len(target):
        ends = target.min(), target.max()
        low, high = torch.stack(ends).tolist() if isinstance(target, Tensor) else ends
        refuse_range(low, high, n_scores, what=what, unit=unit)


def refuse_range(low: float, high: float, n_scores: int, *, what: str = "labels", unit: str = "classes") -> None:
    """Refuse labels of which the smallest or the largest belongs to none of K scores; see ``require_labels``."""
    low, high, n_classes = int(low), int(high), max(n_scores, 2)
    if low < 0 or high >= n_classes:
        remedy = f": count them from 0, target - {low}" if low and high - low < n_classes and what == "labels" else ""
        if (low, high, what) == (-1, 1, "labels"):
            remedy = ": of -1 and 1 pass (target > 0).long()"
        raise InputError(
            f"{what} reach from {low} to {high}; expected 0 to {n_classes - 1} for {n_classes} {unit}{remedy}"
        )


def require_labels_of_tokens(inputs: Any, target: Tensor, batch_index: int) -> None:
    """Refuse labels, (N, T), of padding, or that are the tokens at their own places, as causal models are often given.

    Labels moved to the left can't be, unless a text is one token all over, which passes. Other labels than those
    of tokens, under ``input_ids``, pass.

    Example:
        >>> require_labels_of_tokens({"input_ids": torch.tensor([[5, 5]])}, torch.tensor([[5, -100]]), 0)
        >>> require_labels_of_tokens({"input_ids": torch.tensor([[5, 6]])}, torch.tensor([[5, 6]]), 0)
        Traceback (most recent call last):
        fairtrim.errors.InputError: batch 0: the labels are the tokens themselves, of which the scores would be those \
of repeating the input; expected the next ones, fairtrim_adapters.huggingface.next_token_labels(labels, attention_mask)
    """
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else None
    if not isinstance(ids, Tensor) or target.ndim != 2 or ids.shape != target.shape or target.is_floating_point():
        return
    target = target.to(ids.device).long()
    labelled = target >= 0
    real = real_tokens({"attention_mask": inputs.get("attention_mask")})
    masked = labelled & ~real if real is not None and real.shape == labelled.shape else torch.zeros_like(labelled)
    high = target.masked_fill(~labelled, -1).amax(1)
    low = target.where(labelled, high[:, None]).amin(1)
    # read together: on an accelerator each one would wait
    of_padding, same, differ = torch.stack(
        [masked.any(), ((ids.long() == target) | ~labelled).all(), (low < high).any()]
    ).tolist()
    if of_padding:
        raise InputError(
            f"batch {batch_index}: padding, which the attention mask hides, has labels; expected −100 there: "
            "fairtrim_adapters.huggingface.next_token_labels(input_ids, attention_mask)"
        )
    if same and differ:
        raise InputError(
            f"batch {batch_index}: the labels are the tokens themselves, of which the scores would be those of "
            "repeating the input; expected the next ones, "
            "fairtrim_adapters.huggingface.next_token_labels(labels, attention_mask)"
        )
