"""What a causal language model makes of pairs of sentences, as a network with one score a pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fairtrim.errors import InputError
from fairtrim.measures.log_likelihood import token_log_likelihoods
from fairtrim.placement import require_values

from .scored_network import call_of, explained_indices, logits_of

__all__ = ["next_token_scores", "pair_differences", "pair_log_likelihoods", "shared_log_likelihoods"]


def next_token_scores(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Scores of the next token at each place of some sentences, (M, T, K).

    Args:
        model: A causal language model that takes ``input_ids`` and ``attention_mask``, (M, T) each, and gives scores of
            the next token (M, T, K), alone or as ``logits``.
        input_ids: Tokens.
        attention_mask: 1 at tokens, 0 at padding.

    Returns:
        The scores.

    Raises:
        InputError: What the network returns is nothing of the kind.
    """
    with explained_indices(model, input_ids):
        output = call_of(model, {"input_ids": input_ids, "attention_mask": attention_mask})()
    scores = logits_of(output)
    if not isinstance(scores, Tensor):
        raise InputError(
            f"the network returned a {type(output).__name__}; expected scores of the next token (M, T, K), alone or as "
            "logits, as causal language models give them"
        )
    return scores


def shared_log_likelihoods(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Log-likelihood of each token that both sentences of its pair share, 0 elsewhere, (N, 2, T) in nats.

    Args:
        model: As of ``pair_log_likelihoods``.
        inputs: As of ``pair_log_likelihoods``.

    Returns:
        The log-likelihoods.

    Raises:
        InputError: As of ``pair_log_likelihoods``.
    """
    wanted = ("input_ids", "attention_mask", "shared")
    if not isinstance(inputs, Mapping) or any(name not in inputs for name in wanted) or inputs["input_ids"].ndim != 3:
        told = sorted(map(str, inputs)) if isinstance(inputs, Mapping) else type(inputs).__name__
        raise InputError(f"got the inputs {told}; expected those of SentencePairs: {list(wanted)}, (N, 2, T) each")
    ids, mask, shared = (inputs[name].flatten(0, 1) for name in wanted)
    likelihoods = token_log_likelihoods(next_token_scores(model, ids, mask), ids)
    counted: Tensor = likelihoods * (shared.bool() & mask.bool())
    return counted.view(-1, 2, ids.shape[1])


def pair_log_likelihoods(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """LL of both sentences of each pair: the sum of the log-likelihoods of the tokens that they share.

    Args:
        model: A causal language model that takes ``input_ids`` and ``attention_mask``, (M, T) each, and gives scores of
            the next token (M, T, K), alone or as ``logits``.
        inputs: Of a batch of ``SentencePairs``: ``input_ids``, ``attention_mask`` and ``shared``, (N, 2, T).

    Returns:
        (N, 2) in nats.

    Raises:
        InputError: The inputs are not those of pairs, or the scores not those of a causal language model.
        UnsupportedModelError: The network lies on the meta device.

    Example:
        >>> import torch
        >>> from fairtrim import SentencePairs
        >>> pairs = SentencePairs.of_tokens([[0, 2, 2]], [[1, 2, 2]])
        >>> uniform = lambda input_ids, attention_mask: torch.zeros(*input_ids.shape, 3)
        >>> batch, _, _ = next(iter(pairs.loader()))
        >>> (pair_log_likelihoods(uniform, batch) / torch.tensor(3.0).log()).round(decimals=4).tolist()
        [[-2.0, -2.0]]
    """
    if isinstance(model, nn.Module):
        require_values(model)
    return shared_log_likelihoods(model, inputs).sum(2)


def pair_differences(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """ΔLL = LL(x) − LL(x̄) of each pair, as a ``forward_fn``: its squared error against 0 is the bias of the pairs.

    Args:
        model: As of ``pair_log_likelihoods``.
        inputs: As of ``pair_log_likelihoods``.

    Returns:
        (N, 1) in nats.

    Raises:
        InputError, UnsupportedModelError: As of ``pair_log_likelihoods``.

    Example:
        >>> import torch
        >>> from fairtrim import SentencePairs
        >>> pairs = SentencePairs.of_tokens([[0, 2, 2]], [[1, 2, 2]])
        >>> first_likes_two = lambda input_ids, attention_mask: nn.functional.one_hot(input_ids * 0 + 2, 3) * 1.0 * (
        ...     input_ids[:, :1, None] == 0
        ... )
        >>> batch, _, _ = next(iter(pairs.loader()))
        >>> bool(pair_differences(first_likes_two, batch) > 0)
        True
    """
    likelihoods = pair_log_likelihoods(model, inputs)
    return likelihoods[:, :1] - likelihoods[:, 1:]
