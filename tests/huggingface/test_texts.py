"""Texts as batches: every token once, its successor as its label, padding without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fairtrim import InputError, SentencePairs
from fairtrim_adapters.huggingface import next_token_labels, text_loader

TEXTS = ["abcdefg", "hi", "jkl", "mnopq", "rstu", "vw", "xyz"]


def _tokenizer(texts: list[str]) -> dict[str, list[list[int]]]:
    return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def _rows(loader: list[Any]) -> dict[str, Any]:
    """Of each text, by its letters, the labels at its tokens and its features."""
    found = {}
    for inputs, labels, *features in loader:
        for n, (ids, mask, row) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], labels, strict=True)):
            assert row[mask == 0].tolist() == [-100] * int((mask == 0).sum()) and not ids[mask == 0].any()
            text = "".join(map(chr, ids[mask == 1]))
            columns = features[0] if features else None
            own = {k: v[n] for k, v in columns.items()} if isinstance(columns, dict) else columns and columns[n]
            found[text] = row[mask == 1].tolist(), own
    return found


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_every_text_once_with_its_features(batch_size: int) -> None:
    lengths = [len(text) for text in TEXTS]
    loader = text_loader(TEXTS, _tokenizer, {"first": lengths, "text": TEXTS}, batch_size=batch_size)
    wanted = {text: ([*map(ord, text[1:]), -100], {"first": len(text), "text": text}) for text in TEXTS}
    assert _rows(loader) == wanted
    assert [len(labels) for _, labels, _ in loader] == {1: [1] * 7, 3: [1, 3, 3], 50: [7]}[batch_size]
    assert _rows(text_loader(TEXTS, _tokenizer)) == {text: (labels, None) for text, (labels, _) in wanted.items()}


@pytest.mark.parametrize("kind", [np.array, torch.tensor, lambda values: pd.Series(values, index=values)])
def test_features_are_taken_by_place(kind: Callable[[list[int]], Any]) -> None:
    """A column of a frame that was shuffled keeps its labels, by which it would be asked for."""
    numbers = [3, 0, 6, 1, 5, 2, 4]
    wanted = dict(zip(TEXTS, numbers, strict=True))
    for features in (kind(numbers), {"number": kind(numbers)}):
        loader = text_loader(TEXTS, _tokenizer, features, batch_size=3)
        found = {text: own for text, (_, own) in _rows(loader).items()}
        assert found == (wanted if not isinstance(features, dict) else {t: {"number": n} for t, n in wanted.items()})


def test_batches_hold_texts_of_like_length_and_come_in_order() -> None:
    loader = text_loader(TEXTS, _tokenizer, TEXTS, batch_size=3, max_length=4)
    assert [features for _, _, features in loader] == [["xyz", "abcdefg", "mnopq"], ["hi", "vw", "jkl"], ["rstu"]]
    assert [inputs["input_ids"].shape[1] for inputs, _, _ in loader] == [4, 3, 4]


def test_padding_of_the_tokenizer_is_no_text() -> None:
    def padding(texts: list[str]) -> dict[str, Any]:
        rows = _tokenizer(texts)["input_ids"]
        longest = max(map(len, rows))
        masks = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return {"input_ids": torch.tensor([[7] * (longest - len(row)) + row for row in rows]), "attention_mask": masks}

    assert _rows(text_loader(TEXTS, padding, batch_size=2)) == _rows(text_loader(TEXTS, _tokenizer))
    pairs, plain = (SentencePairs.of_texts(["ab", "abc"], ["xb", "zbcd"], made) for made in (padding, _tokenizer))
    assert torch.equal(pairs.input_ids, plain.input_ids) and torch.equal(pairs.shared, plain.shared)


def test_labels_beside_padding_on_either_side() -> None:
    ids = torch.tensor([[0, 0, 5, 6, 7], [5, 6, 7, 0, 0], [0, 5, 6, 7, 0]])
    labels = next_token_labels(ids, (ids > 0).long())
    assert [row[row >= 0].tolist() for row in labels] == [[6, 7]] * 3
    assert [row[mask].tolist() for row, mask in zip(labels, ids > 0, strict=True)] == [[6, 7, -100]] * 3
    prompt = torch.tensor([[-100, -100, 7, 8]])  # the first answer is predicted at the end of the prompt
    assert (
        next_token_labels(prompt, torch.ones(1, 4)).tolist()
        == next_token_labels(prompt).tolist()
        == [[-100, 7, 8, -100]]
    )


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: text_loader("abc", _tokenizer), "is the string 'abc'"),
        (lambda: text_loader(["abc", "d"], _tokenizer), "text 1, 'd', has 1 tokens"),
        (lambda: text_loader([], _tokenizer), "there are none"),
        (
            lambda: text_loader(["abc"], lambda texts: [[1, 2]]),
            "the tokenizer gave a list; expected a function of a list",
        ),
        (lambda: text_loader(["abc"], _tokenizer, ["x", "y"]), "2 values and there are 1 texts"),
        (lambda: text_loader(["abc"], _tokenizer, {"sex": []}), r"sensitive_features\['sex'\] has 0"),
        (lambda: text_loader(["abc"], _tokenizer, batch_size=0), "batch_size"),
        (lambda: text_loader(["abc"], _tokenizer, max_length=1), "max_length"),
        (lambda: next_token_labels(torch.ones(1, 3).long(), torch.ones(3)), "expected the same"),
    ],
)
def test_refused(make: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        make()
