"""Log-likelihoods of tokens under a causal language model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fairtrim.errors import InputError

__all__ = ["sums_of_token_losses", "token_log_likelihoods"]


def token_log_likelihoods(scores: Tensor, tokens: Tensor) -> Tensor:
    """Of each token log p(token_t | the tokens before it), as a causal language model's scores have it.

    Args:
        scores: f at each position, (N, T, K); those at t are of the token that comes next.
        tokens: The tokens themselves, (N, T).

    Returns:
        (N, T) in nats; 0 at the first position, which nothing stands before. Half precision is taken as float32.

    Raises:
        InputError: The scores are not (N, T, K) of these tokens.

    Example:
        >>> scores = torch.tensor([[[0.0, 0.0], [0.0, 2.0], [0.0, 0.0]]])
        >>> [round(p, 3) for p in token_log_likelihoods(scores, torch.tensor([[0, 1, 0]])).exp()[0].tolist()]
        [1.0, 0.5, 0.119]
    """
    if scores.ndim != 3 or scores.shape[:2] != tokens.shape:
        raise InputError(
            f"the scores are {tuple(scores.shape)} and the tokens {tuple(tokens.shape)}; expected scores (N, T, K) at "
            "each of the tokens (N, T)"
        )
    scores = scores[:, :-1].to(torch.promote_types(scores.dtype, torch.float32))
    chosen = scores.gather(2, tokens[:, 1:, None]).squeeze(2) - scores.logsumexp(2)
    return torch.cat([chosen.new_zeros(len(chosen), 1), chosen], 1)


def sums_of_token_losses(scores: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
    """Cross-entropy of the next token, summed over the places of each text that count.

    One text at a time, so that the scores of all are not held twice.

    Args:
        scores: f at each position, (N, T, K).
        labels: The token that comes next at each, (N, T).
        counted: Where one counts, (N, T) bool.

    Returns:
        (N,) float64 on the CPU, in nats. Half precision is taken as float32.

    Example:
        >>> labels = torch.tensor([[1, 0, -100]])
        >>> sums_of_token_losses(torch.zeros(1, 3, 2), labels, labels >= 0).exp().round().tolist()
        [4.0]
    """
    precision = torch.promote_types(scores.dtype, torch.float32)
    sums = [
        F.cross_entropy(row[kept].to(precision), own[kept].long(), reduction="none").cpu().double().sum()
        for row, own, kept in zip(scores, labels, counted, strict=True)
    ]
    return torch.stack(sums)
