"""Pairs of sentences, against an obvious count of what both sides share."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from fairtrim import (
    ChannelGroup,
    ChannelPlace,
    InputError,
    SentencePairs,
    UnsupportedModelError,
    collect_damage,
    pair_differences,
)
from fairtrim.measures.log_likelihood import token_log_likelihoods

FIRST, SECOND = [[3, 1, 4, 1], [5, 2, 6]], [[2, 1, 4, 1], [5, 2, 2, 6]]
SHARED = [([0, 1, 1, 1], [0, 1, 1, 1]), ([1, 1, 1], [1, 0, 1, 1])]


class _Bigrams(nn.Module):
    """A language model whose next token depends on the last one, through three hidden channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 7)
        self.double()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.embedding(input_ids).tanh())  # type: ignore[no-any-return]


def _plain(model: nn.Module, tokens: list[int], mask: list[int]) -> float:
    total = 0.0
    for t, (before, token) in enumerate(itertools.pairwise(tokens), 1):
        scores = model(torch.tensor([[before]]), None)[0, 0].tolist()
        normaliser = sum(math.exp(score) for score in scores)
        total += mask[t] * math.log(math.exp(scores[token]) / normaliser)
    return total


def test_differences_are_sums_over_shared_tokens() -> None:
    torch.manual_seed(1)
    model, pairs = _Bigrams(), SentencePairs.of_tokens(FIRST, SECOND, shared=SHARED)
    (inputs, target, categories), *rest = pairs.loader(3)
    wanted = [
        _plain(model, one, mask) - _plain(model, other, masked)
        for one, other, (mask, masked) in zip(FIRST, SECOND, SHARED, strict=True)
    ]
    torch.testing.assert_close(pair_differences(model, inputs)[:, 0], torch.tensor(wanted).double())
    assert not rest and target.tolist() == [[0.0], [0.0]] and list(categories) == ["pairs", "pairs"]


def test_one_pair_alone_and_without_its_padding() -> None:
    torch.manual_seed(2)
    model, pairs = _Bigrams(), SentencePairs.of_tokens(FIRST, SECOND, shared=SHARED, categories=["a", "b"])
    both = pair_differences(model, next(iter(pairs.loader()))[0])
    alone = pairs.take([0])
    assert alone.input_ids.shape == (1, 2, 4) and alone.categories == ("a",)
    assert pairs.take([1, 0]).categories == ("b", "a")
    torch.testing.assert_close(pair_differences(model, next(iter(alone.loader()))[0]), both[:1])


def test_the_squared_difference_is_a_loss_of_the_damage_table() -> None:
    """With scores that are linear in the gates the table's prediction of a removal is the truth."""
    torch.manual_seed(3)
    model, pairs = _Bigrams(), SentencePairs.of_tokens(FIRST, SECOND, shared=SHARED, categories=["a", "b"])
    hidden = ChannelGroup("embedding", 3, (ChannelPlace("head", "input", range(3), range(3), channel_axis=-1),))
    table = collect_damage(
        model, pairs.loader(), [hidden], forward_fn=pair_differences, loss_fn=nn.functional.mse_loss, progress=False
    )
    inputs = next(iter(pairs.loader()))[0]
    here = pair_differences(model, inputs)[:, 0].detach()
    torch.testing.assert_close(table.loss, here.square())
    slopes = []
    for channel in range(3):  # by differences: both sentences of a pair move together
        steps = []
        for factor in (1 + 1e-5, 1 - 1e-5):
            twin = _Bigrams()
            twin.load_state_dict(model.state_dict())
            with torch.no_grad():
                twin.head.weight[:, channel] *= factor
                steps.append(pair_differences(twin, inputs)[:, 0].square())
        slopes.append((steps[0] - steps[1]) / 2e-5)
    torch.testing.assert_close(table.slope, torch.stack(slopes, 1), rtol=1e-4, atol=1e-6)


def test_alignment_of_texts() -> None:
    words = {word: number for number, word in enumerate(["a", "man", "woman", "of", "the", "sea", "sailed"])}

    def tokenizer(texts: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[words[word] for word in text.split()] for text in texts]}

    pairs = SentencePairs.of_texts(["a man sailed", "man of the sea"], ["a woman sailed", "a woman of sea"], tokenizer)
    assert pairs.shared.int().tolist() == [
        [[1, 0, 1, 0], [1, 0, 1, 0]],
        [[0, 1, 0, 1], [0, 0, 1, 1]],
    ]


def test_a_first_token_that_is_not_first_on_the_other_side_counts_on_neither() -> None:
    def tokenizer(texts: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

    alone = SentencePairs.of_texts(["abc"], ["xabc"], tokenizer)
    assert alone.shared.int().tolist() == [[[0, 1, 1, 0], [0, 0, 1, 1]]]
    started = SentencePairs.of_texts(["abc"], ["xabc"], tokenizer, start=0)
    assert started.shared.int().tolist() == [[[0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]]


class _Starting:
    """A tokenizer of letters that names a token for the start, and puts it before texts or doesn't."""

    bos_token_id = 6

    def __init__(self, adds: bool) -> None:
        self.adds = adds

    def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[6] * self.adds + ["abcde".index(letter) for letter in text] for text in texts]}


@pytest.mark.parametrize("adds", [False, True])
def test_a_token_starts_both_sentences(adds: bool) -> None:
    torch.manual_seed(4)
    model, tokenizer = _Bigrams(), _Starting(adds)
    started = SentencePairs.of_texts(["acd", "ab"], ["abcd", "ac"], tokenizer)
    assert started.input_ids[0].tolist() == [[6, 0, 2, 3, 0], [6, 0, 1, 2, 3]]
    assert started.shared.int()[0].tolist() == [[0, 1, 1, 1, 0], [0, 1, 0, 1, 1]]
    found = pair_differences(model, next(iter(started.loader()))[0])[0, 0]
    wanted = _plain(model, [6, 0, 2, 3], [0, 1, 1, 1]) - _plain(model, [6, 0, 1, 2, 3], [0, 1, 0, 1, 1])
    torch.testing.assert_close(found, torch.tensor(wanted).double())
    other = SentencePairs.of_texts(["acd"], ["abcd"], _Starting(False), start=5)
    assert other.input_ids[0].tolist() == [[5, 0, 2, 3, 0], [5, 0, 1, 2, 3]]
    plain = SentencePairs.of_texts(["acd"], ["abcd"], _Starting(False), start=None)
    assert plain.input_ids[0].tolist() == [[0, 2, 3, 0], [0, 1, 2, 3]]
    with pytest.raises(InputError, match="pair 0 shares 0 tokens"):  # the start is no shared token
        SentencePairs.of_texts(["ab"], ["cd"], tokenizer)


def test_likelihoods_of_half_precision_are_summed_in_single() -> None:
    scores = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(1))
    half = token_log_likelihoods(scores.bfloat16(), tokens)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, token_log_likelihoods(scores.bfloat16().float(), tokens))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: SentencePairs.of_tokens([[1, 2]], [[1, 2, 3]]), "pass shared="),
        (lambda: SentencePairs.of_tokens([[1, 2]], [[1, 3], [4]]), "expected pairs"),
        (lambda: SentencePairs.of_tokens([[1, 2]], [[3, 4]]), "pair 0 shares 0 tokens"),
        (lambda: SentencePairs.of_tokens([[1, 2]], [[1, 4]], shared=[([1, 1], [1, 0])]), "2 tokens on one side and 1"),
        (lambda: SentencePairs.of_tokens([[1, 2]], [[1, 4]], shared=[([1], [1, 0])]), "1 or 0 for every token"),
        (lambda: SentencePairs.of_tokens([], []), "at least one"),
        (lambda: SentencePairs.of_tokens([[], []], [[], []]), "pair 0 shares 0 tokens"),
        (lambda: SentencePairs.of_texts(["a"], ["b"], None), "the tokenizer is a NoneType"),  # type: ignore[arg-type]
        (lambda: SentencePairs.of_texts(["a"], ["b"], dict, start="bos"), "start='bos'; expected"),  # type: ignore[arg-type]
        (lambda: SentencePairs.of_tokens([[1, 2]], [[1, 4]], categories=["a", "b"]), "expected one each"),
        (lambda: pair_differences(nn.Identity(), {"input_ids": torch.ones(2, 3)}), "those of SentencePairs"),
    ],
)
def test_refused(make: object, told: str) -> None:
    with pytest.raises(InputError, match=told):
        make()  # type: ignore[operator]


def test_a_network_without_values_is_refused_in_words() -> None:
    inputs, _, _ = next(iter(SentencePairs.of_tokens(FIRST, SECOND, shared=SHARED).loader()))
    with pytest.raises(UnsupportedModelError, match="lies on the meta device"):
        pair_differences(_Bigrams().to("meta"), inputs)
