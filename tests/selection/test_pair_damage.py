"""Pair damage: the quadratic of ΔLL, its folds, and the greedy choice beside texts."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairtrim import (
    ChannelGroup,
    ChannelPlace,
    DamageTable,
    InputError,
    SentencePairs,
    collect_damage,
    pair_differences,
)
from fairtrim.criteria import PairDamage
from fairtrim.damage import side_by_side
from fairtrim.selection import joint_selection
from tests.tables import random_table

HIDDEN = [ChannelGroup("hidden", 7, (ChannelPlace("out", "input", range(7), range(7), channel_axis=-1),))]
FOLDS = 3


class Mirrored(nn.Module):
    """Bigrams over two words, 0 and 1, whose log-odds are linear in the hidden channels.

    Token k + 13 has the mirrored hidden state of token k, so that for a pair of them ΔLL = log σ(f) − log σ(−f) = f.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        states = torch.randn(13, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        self.embed = nn.Embedding.from_pretrained(torch.cat([states, -states]))
        self.out = nn.Linear(7, 1, bias=False).double()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        odds = self.out(self.embed(input_ids))
        words = torch.full((*odds.shape[:2], 24), -torch.inf, dtype=odds.dtype)
        return torch.cat([odds, torch.zeros_like(odds), words + 700], 2).nan_to_num(neginf=-700.0)


@pytest.fixture
def model() -> Mirrored:
    torch.manual_seed(1)
    return Mirrored()


@pytest.fixture
def pairs() -> SentencePairs:
    return SentencePairs.of_tokens([[k, 0] for k in range(2, 13)], [[k + 13, 0] for k in range(2, 13)])


def _of_pairs(model: nn.Module, pairs: SentencePairs) -> DamageTable:
    return collect_damage(
        model,
        pairs.loader(4),
        HIDDEN,
        forward_fn=pair_differences,
        loss_fn=F.mse_loss,
        interactions="exact",
        progress=False,
    )


def _squares(model: Mirrored, pairs: SentencePairs, removed: tuple[int, ...]) -> Tensor:
    """Mean square of ΔLL in each fold with channels really set to zero."""
    weight = model.out.weight.detach().clone()
    with torch.no_grad():
        model.out.weight[:, list(removed)] = 0
        squares = pair_differences(model, next(iter(pairs.loader(len(pairs))))[0]).square()[:, 0]
        model.out.weight.copy_(weight)
    return torch.stack([squares[fold::FOLDS].mean() for fold in range(FOLDS)])


def test_the_quadratic_of_pairs_is_exact_where_log_odds_are_linear(model: Mirrored, pairs: SentencePairs) -> None:
    table = _of_pairs(model, pairs.in_folds(FOLDS))
    assert table.sensitive_groups == ("fold 1", "fold 2", "fold 3")
    dense = _squares(model, pairs, ())
    torch.testing.assert_close(table.loss, dense, rtol=1e-6, atol=1e-9)
    for removed in (chosen for size in range(1, 8) for chosen in combinations(range(7), size)):
        found = table.predict({"hidden": removed})
        torch.testing.assert_close(found, _squares(model, pairs, removed) - dense, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("agreeing", "interactions"), [(0.5, "exact"), (1.0, "exact"), (0.7, "sketched")])
def test_greedy_choice_by_brute_force(
    model: Mirrored, pairs: SentencePairs, agreeing: float, interactions: str
) -> None:
    """Every set of one channel more is tried by really closing it; the texts' second order is a table's."""
    texts = random_table({"hidden": 7}, ("everyone",), seed=3).without_first_order()
    texts = replace(texts, curvature=texts.curvature / 50, interactions=texts.interactions / 50)  # type: ignore[operator]
    table = side_by_side({"pairs": _of_pairs(model, pairs.in_folds(FOLDS)), "texts": texts})
    order = joint_selection(table, PairDamage(0.05, agreeing, price=0.3)).order.tolist()
    dense, bound = _squares(model, pairs, ()), math.log(1.05)

    def value(removed: tuple[int, ...]) -> float:
        relative = (_squares(model, pairs, removed) / dense - 1).quantile(agreeing)
        rise = float(texts.predict({"hidden": removed})[0]) / bound
        return float(relative) + 0.3 * max(0.0, rise) + 100 * max(0.0, rise - 1)

    gone: tuple[int, ...] = ()
    while len(gone) < 6:  # the last of a layer stays
        left = [c for c in range(7) if c not in gone]
        assert value((*gone, order[len(gone)])) == pytest.approx(min(value((*gone, c)) for c in left), rel=1e-5)
        gone = (*gone, order[len(gone)])


def test_sketches_side_by_side_are_those_of_their_tables(model: Mirrored, pairs: SentencePairs) -> None:
    folds = pairs.in_folds(FOLDS)
    calling = {"forward_fn": pair_differences, "loss_fn": F.mse_loss, "progress": False}
    exact = _of_pairs(model, folds)
    sketched = collect_damage(model, folds.loader(), HIDDEN, interactions="sketched", **calling)  # type: ignore[arg-type]
    both = side_by_side({"pairs": sketched, "again": sketched.without_first_order()})
    assert both.sensitive_groups[:4:3] == (("pairs", "fold 1"), ("again", "fold 1"))
    removed = {"hidden": [0, 2, 5]}
    expected = torch.cat([exact.predict(removed), exact.without_first_order().predict(removed)])
    torch.testing.assert_close(both.predict(removed), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        both.interactions_between(torch.tensor([1])),
        side_by_side({"pairs": exact, "again": exact}).interactions_between(torch.tensor([1])),
        rtol=1e-5,
        atol=1e-6,
    )


def test_one_fold_that_goes_its_own_way_is_not_followed() -> None:
    """Channel 0 halves two folds of three, channel 1 empties the one that weighs most in the mean."""
    table = random_table({"hidden": 2}, ("a", "b", "c"))
    slope = torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.0, 90.0]], dtype=torch.float64)
    flat = {"curvature": 0 * slope, "interactions": torch.zeros(3, 2, 2, dtype=torch.float64)}
    loss = torch.tensor([1.0, 1.0, 100.0], dtype=torch.float64)
    pairs = replace(table, slope=slope, loss=loss, **flat)
    texts = replace(table, slope=0 * slope, loss=loss, **flat)
    table = side_by_side({"pairs": pairs, "texts": texts})
    assert joint_selection(table, PairDamage(agreeing=0.5)).order.tolist() == [0, 1]


def test_refusals(model: Mirrored, pairs: SentencePairs) -> None:
    table = _of_pairs(model, pairs)
    with pytest.raises(InputError, match="no tables"):
        side_by_side({})
    with pytest.raises(InputError, match="the same channels"):
        side_by_side({"pairs": table, "texts": random_table({"hidden": 5})})
    with pytest.raises(InputError, match=r"one interactions= for all"):
        side_by_side({"pairs": table, "texts": replace(table, interactions=None)})
    with pytest.raises(InputError, match="groups of pairs and texts"):
        joint_selection(table, PairDamage())
    silent = side_by_side({"pairs": replace(table, loss=0 * table.loss), "texts": table})
    with pytest.raises(InputError, match="ΔLL = 0"):
        joint_selection(silent, PairDamage())
    with pytest.raises(InputError, match="perplexity_rise=0"):
        PairDamage(0)
    with pytest.raises(InputError, match=r"agreeing=1\.5"):
        PairDamage(agreeing=1.5)
    with pytest.raises(InputError, match="there are 11 pairs"):
        pairs.in_folds(12)
