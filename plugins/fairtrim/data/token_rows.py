"""Texts as rows of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fairtrim.errors import InputError

__all__ = ["token_rows"]


def token_rows(texts: Sequence[str], tokenizer: Callable[[list[str]], Any]) -> list[list[int]]:
    """Tokens of each text, without the padding that a tokenizer may have been set up to add.

    Args:
        texts: N of them.
        tokenizer: Texts -> their tokens, under ``input_ids``, as those of Hugging Face give them; where it has an
            ``attention_mask``, what that hides is left out.

    Returns:
        N lists of different lengths.

    Raises:
        InputError: The tokenizer is no function, or gives something else.

    Example:
        >>> token_rows(["a b", "c"], lambda texts: {"input_ids": [[5, 6], [0, 7]], "attention_mask": [[1, 1], [0, 1]]})
        [[5, 6], [7]]
    """
    if not len(texts):
        return []
    output = tokenizer(list(texts)) if callable(tokenizer) else None
    if not isinstance(output, Mapping) or "input_ids" not in output or len(output["input_ids"]) != len(texts):
        told = f"gave a {type(output).__name__}" if callable(tokenizer) else f"is a {type(tokenizer).__name__}"
        raise InputError(
            f"the tokenizer {told}; expected a function of a list of texts that gives a dict with the tokens of each "
            "under 'input_ids', as a tokenizer of Hugging Face itself does when it is called"
        )
    rows = [[int(token) for token in row] for row in output["input_ids"]]
    if "attention_mask" not in output:
        return rows
    masks = output["attention_mask"]
    return [[token for token, own in zip(row, mask, strict=True) if own] for row, mask in zip(rows, masks, strict=True)]
