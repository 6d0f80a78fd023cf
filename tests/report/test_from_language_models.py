"""A report of language models says what the table says, in words of texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairtrim import SentencePairs
from fairtrim_adapters.huggingface import StereoSetContext, compare_language_models, next_token_labels
from fairtrim_adapters.report import report_language_models


class Bigram(nn.Module):
    """Scores of the next token by a table of the present one."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(11, 11, generator=torch.Generator().manual_seed(seed)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.table[input_ids]


def _tokenizer(texts: list[str]) -> Any:
    return {"input_ids": [[ord(letter) % 11 for letter in text] for text in texts]}


def _compared() -> tuple[dict[str, nn.Module], dict[str, Any], list[StereoSetContext]]:
    ids = torch.randint(0, 11, (13, 5), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    texts = [(inputs, next_token_labels(ids), ["a", "b", "b"] * 4 + ["a"])]
    pairs = SentencePairs.of_tokens(
        [[1, 5, k % 11] for k in range(7)], [[2, 5, k % 11] for k in range(7)], categories=["x"] * 3 + ["y"] * 4
    )
    contexts = [StereoSetContext("abcd", "abce", "abcf", "abcBLANK", "gender", "t")]
    data = {"test": texts, "pairs": pairs, "name": "thirteen texts", "description": "drawn at random"}
    return {"dense": Bigram(0), "pruned": Bigram(2)}, data, contexts


def test_it_says_what_the_table_says(tmp_path: Path) -> None:
    models, data, contexts = _compared()
    report = report_language_models(models, data, contexts=contexts, tokenizer=_tokenizer, progress=False)
    compared = compare_language_models(
        models, data["test"], pairs=data["pairs"], contexts=contexts, tokenizer=_tokenizer, progress=False
    )
    dense, pruned = report.networks
    row = compared.overall.loc["pruned"]
    assert pruned.overall["perplexity"].value == row["perplexity"]
    assert pruned.overall["perplexity_ratio"].high == row["times reference high"]
    share = pruned.overall["stereotype_preferred"]
    assert (share.value, share.low, share.change_high) == (
        row["stereotype preferred"],
        row["stereotype preferred low"],
        row["change of preference high"],
    )
    assert pruned.by_group["b"]["perplexity"].value == compared.texts_by_group.loc[("pruned", "b"), "perplexity"]
    assert report.data.people == {"a": 5, "b": 8} and report.data.n_people == 13
    assert dense.parameters == pruned.parameters == 121
    assert [table.rows[0][:2] for table in report.tables] == [("x", 3), ("gender", 1)]
    assert len(report.flags) == len(compared.flags)
    assert json.loads(report.to_json())["tables"][0]["columns"] == ["category", "pairs", "dense", "pruned"]


@pytest.mark.parametrize("suffix", [".html", ".md"])
def test_it_is_written_in_words_of_texts(suffix: str, tmp_path: Path) -> None:
    if suffix == ".html":
        pytest.importorskip("jinja2")
    models, data, _ = _compared()
    text = report_language_models(models, data, progress=False).save(tmp_path / f"r{suffix}").read_text()
    for said in ("13 texts", "Perplexity: exp of the mean loss", "Pairs of sentences", "no proof", "drawn at random"):
        assert said in text
    assert "ccuracy" not in text and "everybody" not in text


def test_without_groups_or_pairs(tmp_path: Path) -> None:
    models, data, _ = _compared()
    bare = {"test": [batch[:2] for batch in data["test"]]}
    report = report_language_models(models, bare, progress=False)
    assert report.data.people == {} and report.tables == () and report.flags == ()
    assert "Nothing was flagged" in report.to_markdown()
