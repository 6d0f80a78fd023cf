"""Losses of a batch against the damages of its samples: weights that a mean hides, and losses over pairs of samples."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairtrim import InputError, collect_damage
from fairtrim.damage import DamageTable
from fairtrim.damage.channel_groups import ChannelGroup, ChannelPlace
from fairtrim.damage.gates import explicit_gates
from fairtrim.damage.loss_expansion import expand_outputs
from fairtrim.damage.moments import Moments
from fairtrim.damage.weight_saliency import squared_gradients
from fairtrim.network.losses import contrastive_loss, generalized_cross_entropy
from fairtrim.network.sample_loss import SampleLoss

N, C, K = 40, 6, 3
GROUP = ChannelGroup("0", C, (ChannelPlace("2", "input", range(C), range(C), channel_axis=-1),))
W = torch.tensor([2.0, 9.0, 0.25])


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def _model(n_scores: int = K, dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(nn.Linear(4, C), nn.ReLU(), nn.Linear(C, n_scores)).to(dtype)


def _people(n_classes: int = K) -> tuple[Tensor, Tensor, list[str]]:
    x = torch.randn(N, 4)
    return x, (x[:, 0] + torch.randn(N) > 0).long() + (n_classes - 2) * (x[:, 1] > 0.5), ["a", "b", "b", "c"] * (N // 4)


class Wrapped(nn.Module):
    """A project's own criterion."""

    def __init__(self, loss: nn.Module, factor: float = 1.0) -> None:
        super().__init__()
        self.loss, self.factor = loss, factor

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        return self.factor * self.loss(scores, target)


class Deaf(Wrapped):
    """It has a reduction, and doesn't mind it."""

    reduction = "mean"


def _focal(scores: Tensor, target: Tensor) -> Tensor:
    losses = F.cross_entropy(scores, target, reduction="none")
    alpha = W.to(scores)[target]
    return (alpha * (1 - torch.exp(-losses)) ** 2 * losses).sum() / alpha.sum()


def _focal_with_reduction(scores: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    losses = F.cross_entropy(scores, target, reduction="none")
    alpha = W.to(scores)[target]
    losses = alpha * (1 - torch.exp(-losses)) ** 2 * losses
    return losses if reduction == "none" else losses.sum() / alpha.sum()


def _binary(scores: Tensor, target: Tensor) -> Tensor:
    weight = 1 + 4 * target
    return (weight * F.binary_cross_entropy_with_logits(scores, target, reduction="none")).sum() / weight.sum()


def _regression(scores: Tensor, target: Tensor) -> Tensor:
    weight = 1 + target.abs()
    return (weight * (scores - target) ** 2).sum() / weight.sum()


WEIGHTED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "torch's own": (nn.CrossEntropyLoss(weight=W), "classes"),
    "a weight of zero": (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.0, 2.0])), "classes"),
    "smoothed": (nn.CrossEntropyLoss(weight=W, label_smoothing=0.1), "classes"),
    "a label that doesn't count": (nn.CrossEntropyLoss(ignore_index=1), "classes"),
    "weights and a label that doesn't count": (nn.CrossEntropyLoss(weight=W, ignore_index=0), "classes"),
    "partial": (functools.partial(F.cross_entropy, weight=W), "classes"),
    "of log-probabilities": (lambda s, t: F.nll_loss(s.log_softmax(1), t, weight=W), "classes"),
    "wrapped": (Wrapped(nn.CrossEntropyLoss(weight=W)), "classes"),
    "wrapped and smoothed": (Wrapped(nn.CrossEntropyLoss(weight=W, label_smoothing=0.2), 0.01), "classes"),
    "wrapped, a weight of zero": (Wrapped(nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.0, 2.0]))), "classes"),
    "wrapped, a label that doesn't count": (Wrapped(nn.CrossEntropyLoss(ignore_index=1)), "classes"),
    "wrapped twice": (Wrapped(Wrapped(nn.CrossEntropyLoss(weight=W)), 300.0), "classes"),
    "a reduction that nobody minds": (Deaf(nn.CrossEntropyLoss(weight=W)), "classes"),
    "focal": (_focal, "classes"),
    "focal with a reduction": (_focal_with_reduction, "classes"),
    "one logit": (_binary, "binary"),
    "regression": (_regression, "numbers"),
}
EQUAL: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "cross-entropy": (F.cross_entropy, "classes"),
    "lambda": (lambda s, t: F.cross_entropy(s, t), "classes"),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), "classes"),
    "weights over the number": (lambda s, t: F.cross_entropy(s, t, weight=W, reduction="sum") / len(t), "classes"),
    "generalised": (generalized_cross_entropy, "classes"),
    "one number a sample": (lambda s, t: F.cross_entropy(s, t, reduction="none"), "classes"),
    "of shape (1,)": (lambda s, t: F.cross_entropy(s, t).unsqueeze(0), "classes"),
    "weights of positives": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([7.0])), "binary"),
    "squared error": (F.mse_loss, "numbers"),
    "wrapped squared error": (Wrapped(nn.MSELoss()), "numbers"),
    "absolute error": (lambda s, t: (s - t).abs().mean(), "numbers"),
    "hinge": (nn.MultiMarginLoss(), "classes"),
    "a sum over the scores": (nn.KLDivLoss(reduction="batchmean"), "shares"),
    "soft labels": (Wrapped(nn.CrossEntropyLoss()), "shares"),
    "several numbers": (Wrapped(nn.SmoothL1Loss()), "vectors"),
    "several labels": (nn.BCEWithLogitsLoss(), "labels"),
}
SUMS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "torch's own": (nn.CrossEntropyLoss(weight=W, reduction="sum"), "classes"),
    "wrapped": (Wrapped(nn.CrossEntropyLoss(weight=W, reduction="sum")), "classes"),
    "wrapped squared error": (Wrapped(nn.MSELoss(reduction="sum")), "numbers"),
}


def _case(kind: str) -> tuple[nn.Module, tuple[Tensor, Tensor, list[str]]]:
    x, y, a = _people(3 if kind == "classes" else 2)
    if kind == "classes":
        return _model(), (x, y, a)
    if kind == "binary":
        return _model(1), (x, y, a)
    if kind == "numbers":
        return _model(1), (x, torch.randn(N, 1), a)
    if kind == "shares":
        return _model(4), (x, torch.randn(N, 4).softmax(1), a)
    return _model(4), (x, torch.randn(N, 4) if kind == "vectors" else torch.randint(0, 2, (N, 4)), a)


def _batches(people: tuple[Tensor, Tensor, list[str]], sizes: list[int]) -> list[Any]:
    x, y, a = people
    starts = np.cumsum([0, *sizes])
    return [(x[s:e], y[s:e], a[s:e]) for s, e in pairwise(starts)]


def _table(model: nn.Module, batches: list[Any], loss_fn: Any, **options: Any) -> DamageTable:
    options = {"curvature": "empirical" if isinstance(loss_fn, nn.MultiMarginLoss) else "exact", **options}
    return collect_damage(model, batches, [GROUP], loss_fn=loss_fn, interactions=True, progress=False, **options)


def _of_batch(model: nn.Module, people: tuple[Tensor, Tensor, list[str]], loss_fn: Any) -> tuple[Tensor, Tensor]:
    """The loss of everybody as one batch, and its slope in open gates."""
    x, y, _ = people
    gates = torch.ones(C, requires_grad=True)
    with explicit_gates(model, [GROUP], {"0": gates}):
        scores = model(x)
    target = y.unsqueeze(1).float() if scores.shape[1] == 1 and y.ndim == 1 else y
    loss = loss_fn(scores, target.float() if target.shape == scores.shape else target).mean()
    (slope,) = torch.autograd.grad(loss, gates)
    return loss.detach().double(), slope.double()


def _everybody(table: DamageTable, name: str) -> Tensor:
    return (table.counts / table.counts.sum()) @ getattr(table, name)


@pytest.mark.parametrize(
    ("name", "loss_fn", "kind"),
    [(name, *case) for cases in (WEIGHTED, EQUAL) for name, case in cases.items()],
)
def test_damages_are_those_of_the_loss_of_the_batch(name: str, loss_fn: Any, kind: str) -> None:
    model, people = _case(kind)
    table = _table(model, [people], loss_fn)
    loss, slope = _of_batch(model, people, loss_fn)
    torch.testing.assert_close(_everybody(table, "loss"), loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(_everybody(table, "slope"), slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("sizes", [[7, 1, 20, 12], [1] * N, [20, 20]], ids=["mixed", "batches of one", "halves"])
def test_batches_leave_no_trace(name: str, sizes: list[int]) -> None:
    """The weights of a batch are relative to one sample of the first batch, not to the batch."""
    loss_fn, kind = WEIGHTED[name]
    model, people = _case(kind)
    whole, parts = (_table(model, _batches(people, s), loss_fn) for s in ([N], sizes))
    for field in ("loss", "slope", "curvature", "interactions", "counts"):
        torch.testing.assert_close(getattr(parts, field), getattr(whole, field), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["wrapped", "focal", "focal with a reduction", "torch's own"])
def test_samples_sorted_by_class(name: str) -> None:
    """No batch holds two labels, so that every one of them is a plain mean."""
    loss_fn, kind = WEIGHTED[name]
    model, (x, y, a) = _case(kind)
    order = y.argsort(stable=True)
    people = (x[order], y[order], [a[n] for n in order])
    table = _table(model, _batches(people, y.bincount().tolist()), loss_fn)
    loss, slope = _of_batch(model, people, loss_fn)
    torch.testing.assert_close(_everybody(table, "loss"), loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(_everybody(table, "slope"), slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("curvature", ["exact", "empirical"])
def test_hidden_weights_give_the_table_of_open_ones(curvature: str) -> None:
    model, people = _case("classes")
    loss = nn.CrossEntropyLoss(weight=W)
    tables = [_table(model, [people], fn, curvature=curvature) for fn in (loss, Wrapped(loss))]
    for field in ("loss", "slope", "curvature", "interactions", "damage", "counts"):
        left, right = (getattr(table, field) for table in tables)
        torch.testing.assert_close(right, left, rtol=1e-4, atol=1e-6)
    x, y, _ = people
    model.requires_grad_(False)
    dense = loss(model(x), y)
    for channel in range(C):  # the prediction is in the units of the loss
        pruned = _model().requires_grad_(False)
        pruned.load_state_dict(model.state_dict())
        pruned[2].weight[:, channel] = 0
        predicted = float(_everybody(tables[0], "damage")[channel])
        actual = float(loss(pruned(x), y) - dense)
        assert abs(predicted - actual) < 0.1 * abs(actual) + 0.01


def test_empirical_curvature_of_weights_is_linear_in_them() -> None:
    """A sample of weight 3 is three samples."""
    model, (x, y, _) = _case("classes")
    y = y.clamp_max(1)
    loss = Wrapped(nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 1.0])))
    repeats = torch.where(y == 1, 3, 1)
    people = [(x.repeat_interleave(repeats, 0), y.repeat_interleave(repeats))]
    for curvature in ("exact", "empirical"):
        weighted = _table(model, [(x, y)], loss, curvature=curvature)
        repeated = _table(model, people, F.cross_entropy, curvature=curvature)
        for field in ("loss", "slope", "curvature", "interactions"):
            torch.testing.assert_close(getattr(weighted, field), getattr(repeated, field), rtol=1e-4, atol=1e-6)


def test_saliency_of_weights_sees_them_too() -> None:
    model, (x, y, _) = _case("classes")
    y = y.clamp_max(1)
    weight = torch.tensor([1.0, 3.0, 1.0])
    repeats = torch.where(y == 1, 3, 1)
    people = [(x.repeat_interleave(repeats, 0), y.repeat_interleave(repeats))]
    _, expected = squared_gradients(model, people, curvature="empirical", progress=False)
    for loss in (nn.CrossEntropyLoss(weight=weight), Wrapped(nn.CrossEntropyLoss(weight=weight))):
        table, found = squared_gradients(model, [(x, y)], loss_fn=loss, curvature="empirical", progress=False)
        assert table.counts.tolist() == [N]
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_is_the_mean_of_as_many(name: str) -> None:
    loss_fn, kind = SUMS[name]
    model, people = _case(kind)
    table = _table(model, _batches(people, [30, 10]), loss_fn)
    loss, slope = _of_batch(model, people, loss_fn)
    torch.testing.assert_close(_everybody(table, "loss"), loss / N, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(_everybody(table, "slope"), slope / N, rtol=1e-4, atol=1e-6)


def test_empirical_curvature_of_a_sum_over_the_scores() -> None:
    """Its slope is a sum of independent ones, not their mean."""
    model, people = _case("shares")
    loss = nn.KLDivLoss(reduction="batchmean")
    tables = [_table(model, [people], fn, curvature="empirical") for fn in (loss, nn.KLDivLoss(reduction="sum"))]
    for n in range(3):
        row = people[0][n : n + 1], people[1][n : n + 1], people[2][n : n + 1]
        table = _table(model, [row], loss, curvature="empirical")
        torch.testing.assert_close(table.curvature, table.slope.square(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(tables[0].slope, 4 * tables[1].slope, rtol=1e-4, atol=1e-6)


def test_tokens_with_weights() -> None:
    """Every token has the weight of its label, a sample their mean."""
    scores, target = torch.randn(5, 4, K), torch.randint(0, K, (5, 4))
    target[0, 2:] = target[3] = -100
    loss = nn.CrossEntropyLoss(weight=W)
    open_loss, hidden = SampleLoss(loss), SampleLoss(Wrapped(loss))
    losses, weights = open_loss.weighted(scores, target)
    for n in (0, 1, 2, 4):
        t = target[n] >= 0
        expected = F.cross_entropy(scores[n][t], target[n][t], weight=W, reduction="none").mean()
        torch.testing.assert_close(losses[n], expected)
        torch.testing.assert_close(weights[n], W[target[n][t]].mean())
    assert losses[3] == 0 and weights[3] == 1
    relative, relative_weights = hidden.weighted(scores, target)
    labelled = torch.tensor([0, 1, 2, 4])
    torch.testing.assert_close(
        (relative / relative_weights)[labelled], (losses / weights)[labelled], rtol=1e-4, atol=1e-6
    )


def test_curvature_of_a_label_that_does_not_count_is_zero() -> None:
    expansion = expand_outputs(
        torch.randn(3, K), torch.tensor([0, 1, 2]), SampleLoss(nn.CrossEntropyLoss(ignore_index=1)), "exact"
    )
    assert expansion.loss[1] == 0 and expansion.factor[1].abs().max() == 0 and expansion.factor[0].abs().max() > 0
    assert expansion.weight.tolist() == [1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_networks_of_other_precisions(dtype: torch.dtype) -> None:
    model, (x, y, a) = _case("classes")
    weight = W.to(dtype) if dtype == torch.float64 else W  # scores of half precision are taken in float32
    tables = [
        _table(model.to(dtype), [(x.to(dtype), y, a)], fn, curvature="exact")
        for fn in (nn.CrossEntropyLoss(weight=weight), Wrapped(nn.CrossEntropyLoss(weight=weight)))
    ]
    torch.testing.assert_close(tables[1].damage, tables[0].damage, rtol=2e-3, atol=1e-3)


def test_memorised_samples() -> None:
    """Where hardly any sample has a slope left, nothing is taken for a weight."""
    scores = torch.zeros(12, K)
    target = torch.arange(12) % K
    scores[torch.arange(12), target] = 40.0
    for fn in (Wrapped(nn.CrossEntropyLoss()), nn.CrossEntropyLoss(label_smoothing=0.0, weight=torch.ones(K))):
        losses, weights = SampleLoss(fn).weighted(scores, target)
        assert weights.tolist() == [1] * 12 and float(losses.abs().max()) < 1e-12
    _, weights = SampleLoss(nn.MultiMarginLoss()).weighted(scores, target)  # no slope at all
    assert weights.tolist() == [1] * 12


@pytest.mark.parametrize("difference", [5.0, 12.0, 15.0, 16.5, 18.0, 60.0, 1e4])
def test_nearly_memorised_samples_keep_their_weights(difference: float) -> None:
    """Of their own slopes only the last digit may be left, or none."""
    scores = torch.zeros(30, K)
    target = torch.arange(30) % K
    scores[torch.arange(30), target] = difference + torch.rand(30)
    loss = nn.CrossEntropyLoss(weight=W)
    for fn in (Wrapped(loss), Wrapped(nn.CrossEntropyLoss())):
        losses, weights = SampleLoss(fn).weighted(scores, target)
        expected = W[target] if fn.loss is loss else torch.ones(30)
        torch.testing.assert_close(weights / weights.mean(), expected / expected.mean(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(losses.mean() / weights.mean(), fn(scores, target), rtol=1e-3, atol=1e-6)


# Losses that are no sum or mean over samples --------------------------------------------------------------


def _penalty(scores: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy and the square of the difference of two groups' mean scores."""
    loss = F.binary_cross_entropy_with_logits(scores, target)
    first, second = scores[target == 0], scores[target == 1]
    return loss + (first.mean() - second.mean()) ** 2 if len(first) and len(second) else loss


def _small_penalty(scores: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(scores, target) + 0.05 * scores.mean(0).square().sum()


def _balanced(scores: Tensor, target: Tensor) -> Tensor:
    weight = 1 / target.bincount(minlength=K).clamp_min(1).to(scores.dtype)
    return F.cross_entropy(scores, target, weight=weight)


def _pairs(scores: Tensor, target: Tensor) -> Tensor:
    return contrastive_loss(scores, target, torch.ones_like(target).bool())


def _ranking(scores: Tensor, target: Tensor) -> Tensor:
    positive, negative = scores[target[:, 0] == 1], scores[target[:, 0] == 0]
    return F.softplus(negative.unsqueeze(0) - positive.unsqueeze(1)).mean()


def _normalised(scores: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy((scores - scores.mean(0)) / (scores.std(0, correction=0) + 1e-5), target)


def _by_position(scores: Tensor, target: Tensor) -> Tensor:
    weight = torch.arange(1.0, len(scores) + 1)
    return (weight * F.cross_entropy(scores, target, reduction="none")).sum() / weight.sum()


def _drawn(scores: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.dropout(scores, 0.5), target)


def _hardest(scores: Tensor, target: Tensor) -> Tensor:
    losses = F.cross_entropy(scores, target, reduction="none")
    return losses.topk(max(1, len(losses) // 2)).values.mean()


def _dice(scores: Tensor, target: Tensor) -> Tensor:
    p = scores.sigmoid()
    return 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)


def _root(scores: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(scores, target).sqrt()


class PartlyReduced(nn.Module):
    """Its reduction is that of one of its terms."""

    def __init__(self) -> None:
        super().__init__()
        self.reduction = "mean"

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(scores, target, reduction=self.reduction) + scores.mean(0).square().sum()


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "penalty on groups": (_penalty, "binary"),
    "small penalty on the batch": (_small_penalty, "classes"),
    "weights of the batch's labels": (_balanced, "classes"),
    "contrastive": (_pairs, "classes"),
    "ranking": (_ranking, "binary"),
    "normalised by the batch": (_normalised, "classes"),
    "weights by position": (_by_position, "classes"),
    "random draws": (_drawn, "classes"),
    "the hardest": (_hardest, "classes"),
    "dice": (_dice, "binary"),
    "root of a mean": (_root, "numbers"),
    "partly reduced": (PartlyReduced(), "classes"),
    "broadcast": (lambda s, t: ((s.squeeze(1) - t) ** 2).mean(), "numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("sizes", [[N], [10] * 4], ids=["one batch", "four batches"])
def test_losses_over_pairs_are_refused_in_words(name: str, sizes: list[int]) -> None:
    loss_fn, kind = REFUSED[name]
    model, people = _case(kind)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError, match=r"loss_fn gives .* Expected a loss that is the sum or the \(weighted\) mean"):
        _table(model, _batches(people, sizes), loss_fn)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training and all(p.grad is None for p in model.parameters())


def test_a_loss_that_fails_for_one_sample_is_refused_in_words() -> None:
    def centred(scores: Tensor, target: Tensor) -> Tensor:
        if len(scores) < 2:
            raise ValueError("need two samples")
        return F.cross_entropy(scores - scores.mean(0), target)

    model, people = _case("classes")
    with pytest.raises(InputError, match=r"fails for one sample by itself \(need two samples\).* not one over pairs"):
        _table(model, [people], centred)


def test_random_states_are_the_callers() -> None:
    model, people = _case("classes")
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with pytest.raises(InputError):
        _table(model, [people], _drawn)
    _table(model, [people], _focal)
    assert states[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(states[2], torch.get_rng_state())


def test_comparing_costs_little() -> None:
    """A call for every batch as a whole, and a few for every label and for the first sample."""
    calls: list[int] = []

    def loss_fn(scores: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        calls.append(len(scores))
        return F.cross_entropy(scores, target, weight=W, reduction=reduction)

    model, (x, y, a) = _case("classes")
    people = (x.repeat(10, 1), y.repeat(10), a * 10)
    _table(model, _batches(people, [100] * 4), loss_fn)
    assert calls.count(100) == 8  # unreduced, and as a whole
    assert len(calls) - 8 <= 40


def test_weights_that_are_only_known_to_a_factor_are_not_added_up(tmp_path: Any) -> None:
    model, people = _case("classes")
    hidden = Wrapped(nn.CrossEntropyLoss(weight=W))
    with pytest.raises(InputError, match=r"a mean with weights of its own, .*CrossEntropyLoss\(weight=...\) itself"):
        _table(model, [people], hidden, folder=tmp_path)
    for loss_fn in (nn.CrossEntropyLoss(weight=W), _focal_with_reduction, Wrapped(nn.CrossEntropyLoss())):
        kept = _table(model, _batches(people, [25, 15]), loss_fn, folder=tmp_path)
        torch.testing.assert_close(kept.damage, _table(model, [people], loss_fn).damage, rtol=1e-4, atol=1e-6)


def test_the_mean_weight_is_kept_with_the_sums() -> None:
    kept, taken_up = Moments(2), Moments(2)
    kept.weigh(torch.tensor([1.0, 4.0]))
    assert kept.mean_weight == 2.5
    taken_up.restore(kept.state())
    taken_up.weigh(torch.tensor([7.0]))
    assert taken_up.mean_weight == 4.0


def test_a_loss_that_counts_nobody_is_refused() -> None:
    model, (x, y, a) = _case("classes")
    with pytest.raises(InputError, match="gives every sample a weight of 0"):
        _table(model, [(x, torch.zeros_like(y), a)], nn.CrossEntropyLoss(weight=torch.tensor([0.0, 1.0, 1.0])))
