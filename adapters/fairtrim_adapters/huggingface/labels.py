"""Labels of causal language models."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from fairtrim import InputError
from fairtrim.data.padding import NOT_LABELLED

__all__ = ["next_token_labels"]


def next_token_labels(labels: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Labels for the scores of a causal language model: at each position the token that comes next.

    Hugging Face's causal models take the tokens themselves as labels and move them inside, where they compute the loss.
    fairtrim computes the loss from the scores, and compares those at position t with the label at t: the model predicts
    the token at t + 1 there, so that is what the label must be. Without it, the loss is that of repeating the input.

    Args:
        labels: (N, T), the token ids, with −100 where a token shall not count.
        attention_mask: (N, T), 0 at padding, on whichever side: neither a padded token counts, nor the first after
            padding, which nothing stands before. None if only −100 says where padding is, on the right.

    Returns:
        (N, T), moved one position to the left, with −100 in the last place, after which nothing is known.

    Raises:
        InputError: The labels are not (N, T) integers, or the mask is not of their shape.

    Example:
        >>> import torch
        >>> next_token_labels(torch.tensor([[5, 6, 7], [8, 9, -100]]))
        tensor([[   6,    7, -100],
                [   9, -100, -100]])
        >>> next_token_labels(torch.tensor([[0, 5, 6]]), torch.tensor([[0, 1, 1]]))
        tensor([[-100,    6, -100]])
    """
    if labels.ndim != 2 or labels.is_floating_point():
        raise InputError(f"labels of shape {tuple(labels.shape)} and type {labels.dtype}; expected integers (N, T)")
    if attention_mask is None:
        return pad(labels[:, 1:], (0, 1), value=NOT_LABELLED)
    if attention_mask.shape != labels.shape:
        raise InputError(
            f"attention_mask has shape {tuple(attention_mask.shape)} and the labels {tuple(labels.shape)}; expected "
            "the same (N, T)"
        )
    known = attention_mask.bool() & pad(attention_mask[:, 1:].bool(), (0, 1))
    return pad(labels[:, 1:], (0, 1), value=NOT_LABELLED).masked_fill(~known, NOT_LABELLED)
