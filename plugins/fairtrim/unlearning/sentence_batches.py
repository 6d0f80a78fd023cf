"""Pairs of sentences and texts in batches of similar length."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fairtrim.data.sentence_pairs import SentencePairs
from fairtrim.errors import InputError
from fairtrim.measures.log_likelihood import token_log_likelihoods

__all__ = ["SentenceBatch", "pair_batches", "predicting", "sentences_of", "text_batches", "text_losses"]


@dataclass
class SentenceBatch:
    """Sentences or pairs of similar length, and what the blocks before the edit gave for them."""

    inputs: dict[str, Tensor]
    kept: dict[str, Any]

    @cached_property
    def predicting(self) -> Tensor:
        """Where a next token is to be predicted in the texts one after the other, positions in (N · T); found once."""
        return predicting(self.inputs["attention_mask"]).flatten().nonzero().squeeze(1)

    @cached_property
    def aligned(self) -> tuple[Tensor, list[int]]:
        """The tokens that both sides of each pair share, in the order in which they stand; found once.

        Positions in (N · 2 · T) of both sides, (2, M), pair after pair, and how many each pair has.
        """
        shared = self.inputs["shared"].bool().cpu()
        first, other = (
            (shared * torch.tensor([[side], [1 - side]], device="cpu").bool()).flatten().nonzero().squeeze(1)
            for side in (1, 0)
        )
        return torch.stack([first, other]).to(self.inputs["shared"].device), shared[:, 0].sum(1).tolist()

    def split(self, size: int) -> list[SentenceBatch]:
        """Smaller batches of the same."""
        parts = zip(*(torch.split(tensor, size) for tensor in self.inputs.values()), strict=True)
        return [SentenceBatch(dict(zip(self.inputs, part, strict=True)), {}) for part in parts]


def text_losses(scores: Tensor, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each token given those before it, 0 where it doesn't count, (N, T), and where it does."""
    counted = inputs["attention_mask"].bool().clone()
    counted[:, 0] = False
    return -token_log_likelihoods(scores, inputs["input_ids"]) * counted, counted


def pair_batches(pairs: SentencePairs, size: int, device: torch.device) -> list[SentenceBatch]:
    """Pairs from short to long, ``size`` a batch."""
    order = pairs.attention_mask.sum((1, 2)).argsort(stable=True)
    parts = [pairs.take(rows) for rows in torch.split(order, size)]
    return [
        SentenceBatch(
            {name: getattr(part, name).to(device) for name in ("input_ids", "attention_mask", "shared")},
            {},
        )
        for part in parts
    ]


def text_batches(texts: list[Tensor], size: int, device: torch.device) -> list[SentenceBatch]:
    """Texts from short to long, ``size`` a batch, padded on the right."""
    texts = sorted(texts, key=len)
    found = []
    for start in range(0, len(texts), size):
        rows = texts[start : start + size]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        found.append(SentenceBatch({"input_ids": ids.to(device), "attention_mask": mask.to(device)}, {}))
    return found


def sentences_of(texts: Iterable[Any] | None, *, each: bool = False) -> list[Tensor]:
    """The tokens of each sentence that a loader gives, without its padding.

    Args:
        texts: Batches of ``{"input_ids", "attention_mask"}``, (N, T) each, alone or first in a tuple.
        each: Whether all have to be long enough.

    Returns:
        Sentences of at least two tokens.

    Raises:
        InputError: There are fewer than two, or a batch is none.
    """
    if texts is None:
        raise InputError(
            "texts is None; expected texts=, a loader of {'input_ids', 'attention_mask'}: what the model says of them "
            "is kept, and its perplexity on some of them bounds the repair"
        )
    found: list[Tensor] = []
    for number, batch in enumerate(texts):
        inputs = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
        try:
            ids, mask = (torch.as_tensor(inputs[name], device="cpu") for name in ("input_ids", "attention_mask"))
        except (TypeError, KeyError, IndexError, ValueError):
            raise InputError(
                f"batch {number} of texts is a {type(inputs).__name__}; expected {{'input_ids', 'attention_mask'}}, "
                "(N, T) each, as a tokenizer gives them with padding=True, return_tensors='pt'"
            ) from None
        ids, mask = ids.cpu(), mask.cpu()
        if ids.ndim != 2 or ids.shape != mask.shape:
            raise InputError(
                f"batch {number} of texts has input_ids {tuple(ids.shape)} and attention_mask {tuple(mask.shape)}; "
                "expected (N, T) both"
            )
        found += [row[kept.bool()] for row, kept in zip(ids, mask, strict=True)]
    short = [number for number, row in enumerate(found) if len(row) < 2]
    if each and short:
        raise InputError(f"sentence {short[0]} of the texts has {len(found[short[0]])} tokens; expected at least two")
    found = [row for row in found if len(row) >= 2]
    if len(found) < 2:
        raise InputError(f"texts hold {len(found)} sentences of two tokens or more; expected at least two, better 200")
    return found


def predicting(attention_mask: Tensor) -> Tensor:
    """Where a next token is there to be predicted, (N, T) bool, of texts padded on the right."""
    return nn.functional.pad(attention_mask[:, 1:].bool(), (0, 1))
