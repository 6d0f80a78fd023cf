"""A language model pruned for pairs: what is closed is what is removed, and nothing goes beyond the bound."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import InputError, SentencePairs, pair_differences
from fairtrim_adapters.huggingface import next_token_labels, pruning_options
from fairtrim_adapters.torch_pruning import PairDamageImportance, prune_for_pairs
from tests.snapshot import Snapshot

WORDS = 29


class Bigrams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.out = nn.Embedding(WORDS, 5), nn.Linear(5, 23), nn.Linear(23, WORDS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        scores: Tensor = self.out(torch.tanh(self.up(self.embed(input_ids))))
        return scores


def _pairs(number: int, seed: int = 0) -> SentencePairs:
    ids = torch.randint(4, WORDS, (number, 6), generator=torch.Generator().manual_seed(seed))
    first, second = ids.clone(), ids.clone()
    first[:, 1], second[:, 1] = 2, 3
    return SentencePairs.of_tokens(first.tolist(), second.tolist())


def _texts(seed: int = 0) -> list[Any]:
    ids = torch.randint(2, WORDS, (9, 7), generator=torch.Generator().manual_seed(seed))
    labels = next_token_labels(ids)
    labels[3, 4:] = -100
    return [({"input_ids": ids[:4]}, labels[:4]), ({"input_ids": ids[4:]}, labels[4:])]


def _model(seed: int = 0) -> Bigrams:
    torch.manual_seed(seed)
    model = Bigrams()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2
    return model


def _perplexity(model: nn.Module, texts: list[Any]) -> float:
    losses = [
        float(F.cross_entropy(model(**inputs)[n, t].detach(), labels[n, t]))
        for inputs, labels in texts
        for n, t in (labels != -100).nonzero().tolist()
    ]
    return math.exp(sum(losses) / len(losses))


def _rms(model: nn.Module, pairs: SentencePairs) -> float:
    with torch.no_grad():
        return float(pair_differences(model, next(iter(pairs.loader(len(pairs))))[0]).square().mean().sqrt())


@pytest.mark.parametrize("perplexity_rise", [0.01, 0.3])
def test_what_is_given_back_was_measured(perplexity_rise: float) -> None:
    model, pairs, texts, judges = _model(), _pairs(24), _texts(), _texts(1)
    before = Snapshot(model)
    done = prune_for_pairs(
        model,
        pairs,
        texts,
        held_out=pairs,
        held_out_texts=judges,
        perplexity_rise=perplexity_rise,
        agreeing=0.5,
        chunks=4,
        pruning_ratio=0.5,
        ignored_layers=["embed"],
        progress=False,
    )
    before.assert_unchanged()
    first, last = done.history.iloc[0], done.history.iloc[-1]
    assert first["rms"] == pytest.approx(_rms(model, pairs)) and first["rms"] == pytest.approx(first["predicted rms"])
    assert first["perplexity"] == pytest.approx(_perplexity(model, judges))
    assert last["rms"] == pytest.approx(_rms(done.model, pairs))
    assert last["perplexity"] == pytest.approx(_perplexity(done.model, judges))
    assert last["perplexity"] <= first["perplexity"] * (1 + perplexity_rise)
    removed = done.removed.get("up", [])
    assert last["removed"] == len(removed) == 23 - done.model.up.out_features  # type: ignore[union-attr]
    by_hand = _model()
    with torch.no_grad():
        by_hand.out.weight[:, removed] = 0
    assert last["rms"] == pytest.approx(_rms(by_hand, pairs), rel=1e-5)
    kept = done.history[done.history["kept"]]
    assert (kept["rms"].diff().dropna() <= 1e-6).all()
    assert max(map(len, str(done).splitlines())) < 100
    if perplexity_rise == 0.3:  # the wide bound lets some of these 23 channels go
        assert removed and last["rms"] < first["rms"]


def test_in_a_script_with_a_pruner() -> None:
    model, texts = _model(), _texts()
    importance = PairDamageImportance(_pairs(24), folds=3)
    pruner = tp.pruner.BasePruner(
        model, texts[0][0], importance=importance, pruning_ratio=0.3, ignored_layers=[model.embed, model.out]
    )
    importance.fit(pruner, texts, progress=False)
    assert [group[0] for group in importance.pair_damage_.sensitive_groups] == ["pairs"] * 3 + ["texts"]
    pruner.step()
    assert model.up.out_features == 16
    assert "everyone" in importance.report(measure=False).predicted["sensitive_group"].tolist()


def test_llama(transformers: Any) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=21,
        max_position_embeddings=16,
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 4
    pairs, texts = _pairs(24), _texts()
    done = prune_for_pairs(
        model,
        pairs,
        texts,
        held_out=pairs,
        held_out_texts=texts,
        perplexity_rise=0.5,
        agreeing=0.5,
        chunks=3,
        pruning_ratio=0.3,
        pruner_options=lambda network: {"global_pruning": True, **pruning_options(network, ["intermediate"])},
        progress=False,
    )
    assert sum(map(len, done.removed.values())) > 0
    last = done.history.iloc[-1]
    assert last["rms"] == pytest.approx(_rms(done.model, pairs), rel=1e-4)
    assert last["rms"] == pytest.approx(done.history[done.history["kept"]]["rms"].iloc[-2], rel=1e-3)


def test_refusals() -> None:
    model, pairs, texts = _model(), _pairs(6), _texts()
    held: dict[str, Any] = {"held_out": pairs, "held_out_texts": texts}
    with pytest.raises(InputError, match="perplexity_rise=0"):
        prune_for_pairs(model, pairs, texts, perplexity_rise=0, **held)
    with pytest.raises(InputError, match="pairs is a list"):
        prune_for_pairs(model, [], texts, **held)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="held_out is a NoneType"):
        prune_for_pairs(model, pairs, texts, held_out=None, held_out_texts=texts)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="texts is a list_iterator"):
        prune_for_pairs(model, pairs, iter(texts), **held)
    with pytest.raises(InputError, match="there are no pairs"):
        pairs.take([])
    with pytest.raises(InputError, match="leave folder= out"):
        importance = PairDamageImportance(pairs, folds=2, folder="somewhere")
        pruner = tp.pruner.BasePruner(
            model, texts[0][0], importance=importance, ignored_layers=[model.embed, model.out]
        )
        importance.fit(pruner, texts, progress=False)
