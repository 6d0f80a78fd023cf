"""The expansion of the loss in the scores, against autograd's Hessian and finite definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairtrim import InputError
from fairtrim.damage.loss_expansion import expand_outputs, softmax_factor
from fairtrim.network.losses import negative_margin
from fairtrim.network.sample_loss import SampleLoss


def _gram(expansion: object) -> Tensor:
    directions = torch.stack(expansion.factor_directions(), 2)  # (N, K, R)
    return directions @ directions.transpose(1, 2)


@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_softmax_factor(n_classes: int) -> None:
    p = torch.softmax(torch.randn(5, n_classes, dtype=torch.float64), 1)
    factor = softmax_factor(p)
    assert torch.equal(factor, factor.tril())
    covariance = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    torch.testing.assert_close(factor @ factor.transpose(1, 2), covariance[:, :-1, :-1], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_factor_of_certain_predictions(dtype: torch.dtype) -> None:
    """Probabilities of exactly 0 and 1, wherever they stand."""
    scores = torch.tensor([[0.0, 900.0, 0.0], [900.0, 0.0, 0.0], [0.0, 0.0, 900.0], [900.0, 900.0, 0.0]], dtype=dtype)
    p = torch.softmax(scores, 1)
    factor = softmax_factor(p)
    assert torch.isfinite(factor).all()
    covariance = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    torch.testing.assert_close(factor @ factor.transpose(1, 2), covariance[:, :-1, :-1])


LOSSES = {
    "cross-entropy": (F.cross_entropy, "labels"),
    "label smoothing": (nn.CrossEntropyLoss(label_smoothing=0.2), "labels"),
    "class weights": (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5, 3.0]).double()), "labels"),
    "multi-label": (F.binary_cross_entropy_with_logits, "many"),
    "squared error": (F.mse_loss, "numbers"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_expansion_equals_autograd(name: str) -> None:
    loss_fn, kind = LOSSES[name]
    scores = torch.randn(5, 4, dtype=torch.float64)
    target = {
        "labels": torch.tensor([0, 3, 2, 2, 1]),
        "many": torch.randint(0, 2, (5, 4)),
        "numbers": torch.randn(5, 4, dtype=torch.float64),
    }[kind]
    expansion = expand_outputs(scores, target, SampleLoss(loss_fn), "exact")
    stacked = torch.stack(expansion.directions, 2)
    gradient = (stacked @ expansion.slope.unsqueeze(2)).squeeze(2)
    for n in range(5):
        # a class-weighted mean divides by the weights: ask for the sum, which no sample shares
        def single(f: Tensor, n: int = n) -> Tensor:
            wanted = target[n : n + 1].double() if kind == "many" else target[n : n + 1]
            if isinstance(loss_fn, nn.Module):
                return type(loss_fn)(weight=loss_fn.weight, label_smoothing=loss_fn.label_smoothing, reduction="sum")(
                    f[None], wanted
                )
            return loss_fn(f[None], wanted)

        torch.testing.assert_close(expansion.loss[n], single(scores[n]))
        slope = torch.func.grad(single)(scores[n])
        hessian = torch.autograd.functional.hessian(single, scores[n])
        # in the coordinates of the directions only differences between scores count for softmax
        torch.testing.assert_close(stacked[n].T @ gradient[n], stacked[n].T @ _lifted(stacked[n], slope))
        torch.testing.assert_close(_gram(expansion)[n], _projected(stacked[n], hessian), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("loss_fn", "target"),
    [(F.l1_loss, torch.randn(5, 4, dtype=torch.float64)), (negative_margin, torch.tensor([0, 3, 2, 2, 1]))],
    ids=["absolute error", "margin"],
)
def test_a_loss_that_is_linear_in_the_scores_takes_one_direction(loss_fn: Any, target: Tensor) -> None:
    scores = torch.randn(5, 4, dtype=torch.float64)
    expansion = expand_outputs(scores, target, SampleLoss(loss_fn), "exact")
    (direction,) = expansion.directions
    for n in range(5):
        slope = torch.func.grad(lambda f, n=n: loss_fn(f[None], target[n : n + 1]))(scores[n])
        torch.testing.assert_close(expansion.slope[n] * direction[n], slope)
    assert expansion.factor.abs().max() == 0


def test_a_loss_without_second_derivatives_takes_the_empirical_curvature() -> None:
    scores, target = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 3, 2, 2, 1])
    loss = SampleLoss(F.multi_margin_loss)
    with pytest.raises(InputError, match=r"can't be differentiated twice.*curvature='empirical'"):
        expand_outputs(scores, target, loss, "exact")
    assert len(expand_outputs(scores, target, loss, "empirical").directions) == 1


def _lifted(directions: Tensor, slope: Tensor) -> Tensor:
    """The vector of span(D) with the same coordinates: Σ_r (slope in coordinate r) D_r."""
    return directions @ slope[: directions.shape[1]]


def _projected(directions: Tensor, hessian: Tensor) -> Tensor:
    r = directions.shape[1]
    return directions @ hessian[:r, :r] @ directions.T


def test_prediction_of_the_change_of_loss() -> None:
    """What the coordinates are for: ℓ(f + δ) − ℓ(f) to second order, for any δ."""
    scores, target = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 4, 2, 1, 3, 3])
    expansion = expand_outputs(scores, target, SampleLoss(), "exact")
    delta = 1e-3 * torch.randn(6, 5, dtype=torch.float64)
    moved = torch.stack([(direction * delta).sum(1) for direction in expansion.directions], 1)
    first = (expansion.slope * moved).sum(1)
    second = 0.5 * torch.einsum("nrj,nr->nj", expansion.factor, moved).square().sum(1)
    actual = F.cross_entropy(scores + delta, target, reduction="none") - expansion.loss
    torch.testing.assert_close(first + second, actual, rtol=0, atol=1e-8)
    assert float((first - actual).abs().max()) > 1e-7  # the second order is needed


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.tensor([0, 3]), "labels reach from 0 to 3; expected 0 to 2"),
        (torch.tensor([-1, 0]), "labels reach from -1 to 0"),
        (torch.tensor([0.0, 1.0]), "expects integer labels"),
        (torch.tensor([[0], [1]]), "expects integer labels"),
    ],
)
def test_wrong_labels(target: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        expand_outputs(torch.zeros(2, 3), target, SampleLoss())


def test_scores_and_losses_that_are_not_finite() -> None:
    with pytest.raises(InputError, match="scores are not finite"):
        expand_outputs(torch.tensor([[0.0, float("nan")]]), torch.tensor([0]), SampleLoss())
    with pytest.raises(InputError, match="the loss of sample 1 of the batch is nan"):
        bad = torch.tensor([1.0, float("nan")])
        expand_outputs(torch.zeros(2, 3), torch.tensor([0, 1]), SampleLoss(lambda s, t: (s.sum(1) * bad[t]).mean()))
    with pytest.raises(InputError, match="binary_cross_entropy_with_logits"):
        expand_outputs(torch.zeros(2, 1), torch.tensor([0, 1]), SampleLoss())
    with pytest.raises(InputError, match="expected 'exact', 'empirical' or 'auto'"):
        expand_outputs(torch.zeros(2, 3), torch.tensor([0, 1]), SampleLoss(), "fisher")  # type: ignore[arg-type]
