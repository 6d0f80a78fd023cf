"""Losses against loops over samples and pairs in float64, and where half precision or an empty set would break them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fairtrim import InputError
from fairtrim.network.losses import contrastive_loss, generalized_cross_entropy, negative_margin

N, D, K = 11, 5, 4


def _scores(n: int = N, k: int = K, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, k, generator=generator, dtype=torch.float64) * 3
    return scores, torch.randint(0, k, (n,), generator=generator)


def _samples(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, labels and flags: in class 0 all are flagged, in class 1 one is, class 2 has one sample."""
    features = torch.randn(N, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    target = torch.tensor([0, 1, 1, 0, 2, 1, 0, 1, 3, 3, 1])
    conflicting = torch.tensor([1, 0, 1, 1, 1, 0, 1, 0, 0, 0, 0]).bool()
    return features, target, conflicting


def _loop(z: torch.Tensor, y: torch.Tensor, b: torch.Tensor, temperature: float, positives: str) -> torch.Tensor:
    """The formula, term by term."""
    z = torch.stack([row / row.norm() for row in z])
    anchors = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        wanted = [j for j in others if y[j] == y[i] and (b[j] or (positives == "either" and b[i]))]
        if wanted:
            total = sum(torch.exp(z[i] @ z[a] / temperature) for a in others)
            anchors.append(sum(torch.log(torch.exp(z[i] @ z[j] / temperature) / total) for j in wanted) / len(wanted))
    return -torch.stack(anchors).mean()


@pytest.mark.parametrize("q", [0.3, 0.7, 1.0])
def test_generalized_cross_entropy(q: float) -> None:
    """1 − p^q, and the gradient of cross-entropy under the detached weight q·p^q."""
    scores, target = _scores()
    scores.requires_grad_()
    p = torch.softmax(scores, 1)[torch.arange(N), target]
    losses = generalized_cross_entropy(scores, target, q=q, reduction="none")
    torch.testing.assert_close(losses, 1 - p**q)
    weighted = (q * p.detach() ** q * F.cross_entropy(scores, target, reduction="none")).mean()
    (here,) = torch.autograd.grad(generalized_cross_entropy(scores, target, q=q), scores)
    torch.testing.assert_close(here, torch.autograd.grad(weighted, scores)[0])


@pytest.mark.parametrize("loss", [generalized_cross_entropy, negative_margin])
def test_reductions(loss: Any) -> None:
    scores, target = _scores()
    losses = loss(scores, target, reduction="none")
    assert losses.shape == (N,)
    torch.testing.assert_close(loss(scores, target), losses.mean())
    torch.testing.assert_close(loss(scores, target, reduction="sum"), losses.sum())
    with pytest.raises(InputError, match="reduction='median'; expected 'none', 'mean' or 'sum'"):
        loss(scores, target, reduction="median")


@pytest.mark.parametrize("q", [0.0, -0.5, 1.1, math.nan])
def test_exponent_out_of_range(q: float) -> None:
    with pytest.raises(InputError, match=r"expected a number in \(0, 1\]"):
        generalized_cross_entropy(*_scores(), q=q)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_generalized_cross_entropy_in_half_precision(dtype: torch.dtype) -> None:
    """Scores at the end of the range: the loss is 0 and 1, and no gradient overflows."""
    scores = torch.tensor([[6e4, -6e4, 0.0], [6e4, -6e4, 0.0]], dtype=dtype, requires_grad=True)
    losses = generalized_cross_entropy(scores, torch.tensor([0, 1]), reduction="none")
    assert losses.dtype == torch.float32 and losses.tolist() == [0.0, 1.0]
    losses.sum().backward()
    assert scores.grad is not None and bool(torch.isfinite(scores.grad).all())


@pytest.mark.parametrize("k", [2, 3, 7])
def test_negative_margin(k: int) -> None:
    scores, target = _scores(k=k)
    slow = [
        max(float(row[c]) for c in range(k) if c != y) - float(row[y]) for row, y in zip(scores, target, strict=True)
    ]
    fast = negative_margin(scores, target, reduction="none")
    torch.testing.assert_close(fast, torch.tensor(slow, dtype=torch.float64))
    assert bool(((fast < 0) == (scores.argmax(1) == target)).all())


def test_negative_margin_at_ties_and_on_memorised_samples() -> None:
    """A tie has margin 0; where cross-entropy has no slope left, the margin has that of ±1."""
    assert negative_margin(torch.tensor([[2.0, 2.0, 2.0]]), torch.tensor([1])).item() == 0
    scores = torch.tensor([[200.0, 0.0, -3.0]], requires_grad=True)
    target = torch.tensor([0])
    assert torch.autograd.grad(F.cross_entropy(scores, target), scores)[0].abs().max() == 0
    assert torch.autograd.grad(negative_margin(scores, target), scores)[0].tolist() == [[-1.0, 1.0, 0.0]]


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("positives", ["conflicting", "either"])
def test_contrastive_loss_equals_the_formula(positives: Any, temperature: float) -> None:
    features, target, conflicting = _samples()
    features.requires_grad_()
    fast = contrastive_loss(features, target, conflicting, temperature=temperature, positives=positives)
    slow = _loop(features, target, conflicting, temperature, positives)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    left, right = (torch.autograd.grad(loss, features)[0] for loss in (fast, slow))
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)


def test_contrastive_loss_by_hand() -> None:
    """Angles 0°, 90°, 0°, 180° at τ = 1; the flagged sample of the class attracts the two others of it."""
    z = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    target, conflicting = torch.tensor([5, 5, 5, 2]), torch.tensor([False, True, False, False])
    e = math.e
    anchors = -math.log(1 / (1 + e + 1 / e)), -math.log(1 / (1 + e + 1 / e))  # of samples 0 and 2; 1 is not its own
    assert contrastive_loss(z, target, conflicting, temperature=1.0).item() == pytest.approx(sum(anchors) / 2)
    either = -0.5 * (math.log(1 / (1 + 1 + 1)) * 2)  # sample 1 attracts 0 and 2, all at 90°
    loss = contrastive_loss(z, target, conflicting, temperature=1.0, positives="either")
    assert loss.item() == pytest.approx((sum(anchors) + either) / 3)


def test_length_of_features_does_not_matter() -> None:
    features, target, conflicting = _samples()
    scaled = features * torch.linspace(1e-3, 1e4, N, dtype=torch.float64).unsqueeze(1)
    left, right = (contrastive_loss(x, target, conflicting) for x in (features, scaled))
    torch.testing.assert_close(left, right)


def test_anchors_without_positives_are_left_out() -> None:
    """Classes without a flagged sample change the denominators of the others only."""
    features, target, conflicting = _samples()
    features.requires_grad_()
    conflicting = conflicting & (target == 0)
    loss = contrastive_loss(features, target, conflicting)
    of_class = [
        -(features[i] @ features[j] / features[i].norm() / features[j].norm() / 0.07)
        + torch.logsumexp(
            torch.stack([F.cosine_similarity(features[i], features[a], 0) / 0.07 for a in range(N) if a != i]), 0
        )
        for i in (0, 3, 6)
        for j in (0, 3, 6)
        if i != j
    ]
    torch.testing.assert_close(loss, torch.stack(of_class).mean())


@pytest.mark.parametrize(
    ("target", "conflicting"),
    [([0, 1, 2], [1, 1, 1]), ([0, 0, 0], [0, 0, 0]), ([0, 1, 1], [1, 0, 0]), ([0], [1])],
    ids=["no class twice", "none flagged", "flagged alone in its class", "batch of one"],
)
@pytest.mark.parametrize("positives", ["conflicting", "either"])
def test_no_positive_at_all(target: list[int], conflicting: list[int], positives: Any) -> None:
    features = torch.randn(len(target), D, requires_grad=True)
    loss = contrastive_loss(features, torch.tensor(target), torch.tensor(conflicting), positives=positives)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, features)[0].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_contrastive_loss_in_half_precision(dtype: torch.dtype) -> None:
    """Features whose norm float16 can't hold; and one that is zero."""
    features, target, conflicting = _samples()
    half = (features * 1e4).to(dtype).requires_grad_()
    loss = contrastive_loss(half, target, conflicting)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), contrastive_loss(half.detach().double(), target, conflicting))
    loss.backward()
    assert half.grad is not None and bool(torch.isfinite(half.grad).all())
    assert float(half.detach().double().norm()) > torch.finfo(torch.float16).max


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_feature_of_zero(dtype: torch.dtype) -> None:
    """A sample whose every unit is dead has no direction; it must not blow up the step of the others."""
    features, target, conflicting = _samples()
    features[3] = 0  # a flagged sample, so an anchor and a positive
    features = features.to(dtype).requires_grad_()
    loss = contrastive_loss(features, target, conflicting)
    (gradient,) = torch.autograd.grad(loss, features)
    assert bool(torch.isfinite(loss))
    assert float(gradient.abs().max()) < 1e3  # NaN and infinity fail too


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": torch.zeros(N, D, 2)}, r"features \(11, 5, 2\).*expected \(N, D\), \(N,\) and \(N,\)"),
        ({"target": torch.zeros(N + 1)}, r"target \(12,\)"),
        ({"conflicting": torch.zeros(N - 2)}, r"conflicting \(9,\)"),
        ({"temperature": 0.0}, "temperature=0.0; expected a positive number"),
        ({"positives": "aligned"}, "positives='aligned'; expected 'conflicting' or 'either'"),
    ],
)
def test_contrastive_loss_refuses(arguments: dict[str, Any], message: str) -> None:
    features, target, conflicting = _samples()
    with pytest.raises(InputError, match=message):
        contrastive_loss(**{"features": features, "target": target, "conflicting": conflicting, **arguments})
