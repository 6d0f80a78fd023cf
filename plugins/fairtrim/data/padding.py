"""Which positions of a batch of sentences hold a token, and which are filled up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["NOT_LABELLED", "real_tokens"]

NOT_LABELLED = -100
"""The label of a position that doesn't count, as in torch's cross-entropy."""


def real_tokens(inputs: Any, target: Tensor | None = None) -> Tensor | None:
    """Which positions hold a token, whichever side is padded.

    What ``attention_mask`` says; without one, padding is what has the label −100 before the first label of a sample or
    behind the last, so that a token in between, which a masked model isn't asked for, still counts.

    Args:
        inputs: Of a batch. Only a dict says anything.
        target: Labels, (N, T), or None where they aren't known.

    Returns:
        (N, T) bool, or (N, 2, T) of pairs; None if nothing says so, or everything is a token.

    Example:
        >>> import torch
        >>> real_tokens({"attention_mask": torch.tensor([[1, 1, 0], [0, 1, 1]])}).int().tolist()
        [[1, 1, 0], [0, 1, 1]]
        >>> real_tokens({"input_ids": torch.ones(1, 5)}, torch.tensor([[-100, 7, -100, 8, -100]])).int().tolist()
        [[0, 1, 1, 1, 0]]
    """
    if not isinstance(inputs, Mapping):
        return None
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor):
        if mask.is_floating_point() and not bool(((mask == 0) | (mask == 1)).all()):
            return None  # it is added to the attention, not a list of tokens
        real = mask.bool()
    else:
        ids = inputs.get("input_ids")
        if target is None or not isinstance(ids, Tensor) or target.shape != ids.shape or target.ndim < 2:
            return None
        labelled = (target != NOT_LABELLED).int()
        real = (labelled.cumsum(-1) > 0) & (labelled.flip(-1).cumsum(-1).flip(-1) > 0)
    return None if real.ndim < 2 or bool(real.all()) else real
