"""Texts as batches of tokens, with the labels of a causal language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fairtrim import InputError
from fairtrim.arguments import refuse_string, require_number
from fairtrim.data.token_rows import token_rows

from .labels import next_token_labels

__all__ = ["TextBatch", "text_loader"]

TextBatch = tuple[dict[str, Tensor], Tensor, Any]
"""``{"input_ids", "attention_mask"}`` and labels, (N, T) each, and sensitive features."""


def text_loader(
    texts: Sequence[str],
    tokenizer: Callable[[list[str]], Any],
    sensitive_features: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None,
    *,
    batch_size: int = 16,
    max_length: int | None = None,
) -> list[TextBatch]:
    """Texts as batches for every criterion and comparison: tokens, and at each the next one as its label.

    Texts of similar length share a batch, padded on the right with token 0, masked, and labelled −100; the tokenizer
    needs no padding token. Batches come in the order of their first texts.

    Args:
        texts: N texts, of at least two tokens each.
        tokenizer: Texts -> their tokens, under ``input_ids``, as those of Hugging Face give them.
        sensitive_features: Of each text, N values, or such values by the features' names.
        batch_size: Texts a batch.
        max_length: Of longer texts only so many first tokens are kept; None for all.

    Returns:
        ``({"input_ids", "attention_mask"}, labels)`` or with sensitive features ``(…, labels, features)``.

    Raises:
        InputError: A text is too short, or there are not as many features as texts.

    Example:
        >>> tokens = lambda texts: {"input_ids": [[ord(letter) for letter in text] for text in texts]}
        >>> [(inputs, labels, groups)] = text_loader(["abc", "de"], tokens, ["x", "y"])
        >>> inputs["input_ids"].tolist(), labels.tolist(), groups
        ([[100, 101, 0], [97, 98, 99]], [[101, -100, -100], [98, 99, -100]], ['y', 'x'])
    """
    refuse_string("texts", texts)
    require_number("batch_size", batch_size, at_least=1, whole=True)
    if max_length is not None:
        require_number("max_length", max_length, at_least=2, whole=True)
    by_name = isinstance(sensitive_features, Mapping)
    given = sensitive_features if isinstance(sensitive_features, Mapping) else {"": sensitive_features}
    features = {name: list(values) for name, values in given.items() if values is not None}  # by place, not by a label
    for name, values in features.items():
        if len(values) != len(texts):
            raise InputError(
                f"sensitive_features{f'[{name!r}]' if name else ''} has {len(values)} values and there are "
                f"{len(texts)} texts; expected as many"
            )
    rows = [torch.tensor(row[:max_length], device="cpu") for row in token_rows(texts, tokenizer)]
    short = [number for number, row in enumerate(rows) if len(row) < 2]
    if short or not rows:
        told = f"text {short[0]}, {texts[short[0]]!r}, has {len(rows[short[0]])} tokens" if rows else "there are none"
        raise InputError(f"{told}; expected texts of two tokens or more: the first of each has nothing before it")
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    batches = sorted((order[start : start + batch_size] for start in range(0, len(order), batch_size)), key=min)

    def batch(numbers: list[int]) -> Any:
        ids = pad_sequence([rows[number] for number in numbers], batch_first=True)
        mask = (
            torch.arange(ids.shape[1], device="cpu")
            < torch.tensor([[len(rows[number])] for number in numbers], device="cpu")
        ).long()
        inputs = {"input_ids": ids, "attention_mask": mask}
        labels = next_token_labels(ids, mask)
        if sensitive_features is None:
            return inputs, labels
        columns = {name: [values[number] for number in numbers] for name, values in features.items()}
        return inputs, labels, columns if by_name else columns[""]

    return [batch(numbers) for numbers in batches]
