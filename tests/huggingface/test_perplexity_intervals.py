"""Intervals of perplexity and of its change: the delta method against the jackknife, and what must come out exactly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn

from fairtrim_adapters.huggingface import compare_language_models, next_token_labels


class Bigram(nn.Module):
    """Scores of the next token by a table of the present one."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(11, 11, generator=torch.Generator().manual_seed(seed)).double())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.table[input_ids].detach()


def _texts(n: int) -> list[Any]:
    ids = torch.randint(0, 11, (n, 9), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(9) < 3 + torch.arange(n)[:, None] % 6).long()
    labels = next_token_labels(ids.masked_fill(mask == 0, -100))
    return [({"input_ids": ids, "attention_mask": mask}, labels, ["one", *["many"] * (n - 1)])]


def _jackknife(tokens: Any, losses: Any) -> float:
    """Standard error of the mean loss of a token, each text left out in turn."""
    n = len(tokens)
    without = [np.delete(losses, k).sum() / np.delete(tokens, k).sum() for k in range(n)]
    return math.sqrt((n - 1) / n * float(np.square(without - np.mean(without)).sum()))


def test_intervals_are_those_of_a_ratio_of_sums() -> None:
    texts, models = _texts(200), {"dense": Bigram(0), "pruned": Bigram(2)}
    compared = compare_language_models(models, texts, progress=False)
    ((inputs, labels, _),) = texts
    losses = {
        name: np.array(
            [
                sum(float(-row[t].log_softmax(0)[label]) for t, label in enumerate(of) if label >= 0)
                for row, of in zip(model(**inputs), labels.tolist(), strict=True)
            ]
        )
        for name, model in models.items()
    }
    tokens = (labels >= 0).sum(1).numpy()
    for figure, values in (
        ("perplexity", losses["pruned"]),
        ("times reference", losses["pruned"] - losses["dense"]),
    ):
        row = compared.overall.loc["pruned"]
        np.testing.assert_allclose(row[figure], np.exp(values.sum() / tokens.sum()), rtol=1e-12)
        half = (math.log(row[f"{figure} high"]) - math.log(row[f"{figure} low"])) / 2
        np.testing.assert_allclose(half / norm.ppf(0.975), _jackknife(tokens, values), rtol=0.01)
        np.testing.assert_allclose(row[f"{figure} low"] * row[f"{figure} high"], row[figure] ** 2, rtol=1e-12)
    of_one = compared.texts_by_group.loc["pruned", "one"]
    assert of_one["texts"] == 1 and math.isnan(of_one["perplexity low"]) and math.isfinite(of_one["perplexity"])
    assert (
        compared.overall.loc["dense", ["times reference", "times reference low", "times reference high"]] == 1
    ).all()
