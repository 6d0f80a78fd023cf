"""A causal language model as a classifier: how likely each of a few tokens comes next."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fairtrim.arguments import require_number
from fairtrim.data.batches import ForwardFunction
from fairtrim.errors import InputError

from .scored_network import call_of, logits_of

__all__ = ["answer_scores"]


def answer_scores(tokens: Sequence[int]) -> ForwardFunction:
    """A ``forward_fn`` that gives the scores of chosen tokens after each text, such as those of yes and no.

    Texts may be padded on either side: the scores are those at the last token that the mask shows, and positions are
    counted from the first one if the network takes ``position_ids``. Labels (N,) number the tokens as they were given.

    Args:
        tokens: K token ids, the answers.

    Returns:
        A function of a network and its inputs, ``input_ids`` and, if anything is padded, ``attention_mask``, (N, T)
        each; it returns scores (N, K).

    Raises:
        InputError: There are fewer than two tokens, one comes twice, or is none.

    Example:
        >>> after = nn.Embedding.from_pretrained(torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0]]))
        >>> model = lambda input_ids, attention_mask: after(input_ids)
        >>> mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
        >>> inputs = {"input_ids": torch.tensor([[2, 1, 0], [0, 0, 2]]), "attention_mask": mask}
        >>> answer_scores([2, 0])(model, inputs).tolist()
        [[5.0, 3.0], [8.0, 6.0]]
    """
    chosen = list(tokens)
    for token in chosen:
        require_number("a token", token, at_least=0, whole=True)
    if len(chosen) < 2 or len(set(chosen)) < len(chosen):
        raise InputError(f"tokens={chosen}; expected at least two different ones, e.g. those of yes and no")

    columns: dict[torch.device, Tensor] = {}  # goes to a device once

    def forward_fn(model: nn.Module, inputs: Any) -> Tensor:
        if not isinstance(inputs, Mapping) or "input_ids" not in inputs:
            told = sorted(map(str, inputs)) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise InputError(f"got the inputs {told}; expected a dict with input_ids and attention_mask, (N, T) each")
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask.long()
        takes_positions = "position_ids" in inspect.signature(getattr(model, "forward", model)).parameters
        given = dict(inputs)
        if takes_positions:
            given.setdefault("position_ids", (mask.cumsum(1) - 1).clamp_min(0))
        output = call_of(model, given)()
        scores = logits_of(output)
        if not isinstance(scores, Tensor) or scores.shape[:2] != ids.shape or max(chosen) >= scores.shape[2]:
            told = f"scores {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(output).__name__}"
            raise InputError(
                f"the network returned {told} for tokens {tuple(ids.shape)} and answers {chosen}; expected scores of "
                "the next token (N, T, K), alone or as logits, with K above every answer"
            )
        places = torch.arange(ids.shape[1], device=ids.device)
        last = (places * mask).argmax(1)
        if scores.device not in columns:
            columns[scores.device] = torch.tensor(chosen, device=scores.device)
        return scores[torch.arange(len(ids), device=ids.device), last][:, columns[scores.device]]

    return forward_fn
