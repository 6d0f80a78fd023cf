"""Labels of causal language models."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from fairtrim import InputError

__all__ = ["next_token_labels"]


def next_token_labels(labels: Tensor) -> Tensor:
    """Labels for the scores of a causal language model: at each position the token that comes next.

    Hugging Face's causal models take the tokens themselves as labels and move them inside, where they compute the loss.
    fairtrim computes the loss from the scores, and compares those at position t with the label at t: the model predicts
    the token at t + 1 there, so that is what the label must be. Without it, the loss is that of repeating the input.

    Args:
        labels: (N, T), the token ids, with −100 where a token shall not count, as padding.

    Returns:
        (N, T), moved one position to the left, with −100 in the last place, after which nothing is known.

    Raises:
        InputError: The labels are not (N, T) integers.

    Example:
        >>> import torch
        >>> next_token_labels(torch.tensor([[5, 6, 7], [8, 9, -100]]))
        tensor([[   6,    7, -100],
                [   9, -100, -100]])
    """
    if labels.ndim != 2 or labels.is_floating_point():
        raise InputError(f"labels of shape {tuple(labels.shape)} and type {labels.dtype}; expected integers (N, T)")
    return pad(labels[:, 1:], (0, 1), value=-100)
