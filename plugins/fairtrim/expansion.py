"""Second-order expansion of each sample's loss in the network's scores.

Gates and weights reach the loss through the scores f only. So one expansion of ℓ_n around f(x_n), slope u_n and
curvature H_n ≈ F_n F_nᵀ, gives first and second order terms in any of them, from a few backward passes.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError

__all__ = ["Curvature", "LossFunction", "OutputExpansion", "SampleLoss", "expand_outputs", "softmax_factor"]

Curvature = Literal["exact", "empirical", "auto"]
LossFunction = Callable[[Tensor, Tensor], Tensor]

MAX_EXACT_CLASSES = 20
"""Up to so many classes ``curvature="auto"`` takes the exact Fisher: one backward pass a class but one."""


class SampleLoss:
    """The loss of every single sample, (N,), from any loss function.

    A function or module with a ``reduction`` is called with ``reduction="none"``; any other is called on
    batches of one, so that what it averages over can't matter. With scores at T positions a sample, e.g. one for each
    token, its loss is the mean over the positions that have a label: cross-entropy leaves out ``ignore_index``, by
    default −100, and a sample without any label has loss 0.

    Args:
        loss_fn: ``loss_fn(scores, target)``.

    Example:
        >>> loss = SampleLoss(nn.CrossEntropyLoss())
        >>> loss(torch.zeros(2, 4), torch.tensor([0, 3])).round(decimals=4)
        tensor([1.3863, 1.3863])
    """

    def __init__(self, loss_fn: LossFunction = F.cross_entropy) -> None:
        self.is_cross_entropy = loss_fn is F.cross_entropy or (
            type(loss_fn) is nn.CrossEntropyLoss and loss_fn.weight is None and loss_fn.label_smoothing == 0
        )
        keywords = loss_fn.keywords if isinstance(loss_fn, functools.partial) else {}
        self.ignore_index = int(keywords.get("ignore_index", getattr(loss_fn, "ignore_index", -100)))
        self._unreduced: Callable[[Tensor, Tensor], Tensor] | None = None
        self._loss_fn = loss_fn
        if isinstance(loss_fn, nn.Module):
            if hasattr(loss_fn, "reduction"):
                unreduced: Any = copy.copy(loss_fn)
                unreduced.reduction = "none"
                self._unreduced = unreduced
        elif _takes_reduction(loss_fn):
            self._unreduced = lambda scores, target: loss_fn(scores, target, reduction="none")  # type: ignore[call-arg]

    def __call__(self, scores: Tensor, target: Tensor) -> Tensor:
        """Loss of every sample.

        Args:
            scores: (N, K), or (N, T, K) at T positions.
            target: Labels, (N,), (N, T), or as the loss wants them.

        Returns:
            (N,), differentiable in the scores.

        Raises:
            InputError: A class label is not an integer, or lies outside 0 … K−1.
        """
        if scores.ndim == 2:
            return self._of_rows(scores, target).mean(1)
        labelled = self.labelled(scores, target)
        # a loss may refuse what has no label, or make NaN of it, which no factor 0 takes away
        rows = self._of_rows(scores[labelled], target[labelled]).mean(1)
        places = labelled.flatten().nonzero().squeeze(1) // labelled.shape[1]
        total = rows.new_zeros(len(scores)).index_add(0, places, rows)
        return total / labelled.sum(1).clamp_min(1)

    def labelled(self, scores: Tensor, target: Tensor) -> Tensor:
        """Which positions have a label.

        Args:
            scores: (N, T, K).
            target: (N, T) or as the loss wants it.

        Returns:
            (N, T) bool.
        """
        if target.ndim > 2 or target.is_floating_point():
            return torch.ones(scores.shape[:2], dtype=torch.bool, device=scores.device)
        return target != self.ignore_index

    def terms(self, scores: Tensor, target: Tensor) -> Tensor:
        """How many independent terms the loss of each sample is the mean of: labels, or labelled positions.

        Args:
            scores: (N, K) or (N, T, K).
            target: Labels.

        Returns:
            (N,), at least 1.
        """
        each = scores.shape[-1] if target.shape == scores.shape else 1
        if scores.ndim == 3:
            return each * self.labelled(scores, target).sum(1).clamp_min(1)
        return torch.full((len(scores),), each, device=scores.device)

    def _of_rows(self, scores: Tensor, target: Tensor) -> Tensor:
        """Losses of rows of scores, (rows, terms)."""
        if self.is_cross_entropy:
            _check_labels(scores, target)
            target = target.long()
        elif scores.shape[1] == 1 and target.ndim == 1:
            target = target.unsqueeze(1)
        if target.shape == scores.shape:  # one target for each score, not a label: as numbers
            target = target.to(scores.dtype)
        if not len(scores):  # no position of the batch has a label
            return scores.sum(1, keepdim=True)
        if self._unreduced is not None:
            losses = self._unreduced(scores, target)
        else:
            losses = torch.stack([self._loss_fn(scores[n : n + 1], target[n : n + 1]) for n in range(len(scores))])
        return losses.reshape(len(scores), -1)


def _takes_reduction(loss_fn: Callable[..., Any]) -> bool:
    try:
        return "reduction" in inspect.signature(loss_fn).parameters
    except (TypeError, ValueError):  # built-in functions without a signature
        return False


def _check_labels(scores: Tensor, target: Tensor) -> None:
    n_classes = scores.shape[1]
    if n_classes < 2:
        raise InputError(
            f"cross-entropy needs at least two scores a sample; the network gives {n_classes}: for a single "
            "logit pass loss_fn=torch.nn.functional.binary_cross_entropy_with_logits, for regression mse_loss"
        )
    if target.ndim != 1 or target.is_floating_point() or target.dtype == torch.bool:
        raise InputError(
            f"the target is {target.dtype} of shape {tuple(target.shape)}; cross-entropy, the default, expects integer "
            "labels (N,): for several labels a sample pass "
            "loss_fn=torch.nn.functional.binary_cross_entropy_with_logits, for regression torch.nn.functional.mse_loss"
        )
    low, high = (int(target.min()), int(target.max())) if len(target) else (0, 0)
    if low < 0 or high >= n_classes:
        raise InputError(f"labels reach from {low} to {high}; expected 0 to {n_classes - 1} for {n_classes} scores")


@dataclass(frozen=True)
class OutputExpansion:
    """ℓ_n(f + δ) ≈ ℓ_n + u_nᵀδ + ½ δᵀH_n δ in coordinates of R directions of the scores.

    Attributes:
        loss: ℓ_n, (N,).
        directions: D, the directions to differentiate along: R tensors (N, K), or (N, T, K). R = K − 1 for softmax,
            whose loss doesn't change when all scores shift, at every position; R = 1 for the empirical Fisher.
        slope: u_n in those coordinates, (N, R): the gradient of ℓ_n is Σ_r slope_nr ∂(D_nr · f_n).
        factor: F_n in those coordinates, (N, R, R), with H_n = F_n F_nᵀ.
    """

    loss: Tensor
    directions: tuple[Tensor, ...]
    slope: Tensor
    factor: Tensor

    def factor_directions(self) -> list[Tensor]:
        """Directions whose squared derivatives sum to the curvature: R tensors like the scores.

        Returns:
            Σ_r F_nrj D_nr for each column j of the factor.
        """
        stacked = torch.stack(self.directions, 1)
        return list(torch.einsum("nrj,nr...->jn...", self.factor, stacked).unbind(0))


def softmax_factor(probabilities: Tensor) -> Tensor:
    """Cholesky factor L of the covariance of one draw from K classes, without its last row and column.

    diag(p) − p pᵀ = L Lᵀ in closed form: with tail sums q_j = Σ_{i≥j} p_i,
    L_jj = √(p_j q_{j+1} / q_j) and L_ij = −p_i √(p_j / (q_j q_{j+1})) for i > j (Tanabe and Sagae, 1992).

    Args:
        probabilities: p, (N, K).

    Returns:
        (N, K−1, K−1), lower triangular.

    Example:
        >>> p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
        >>> L = softmax_factor(p)[0]
        >>> torch.allclose(L @ L.T, (torch.diag(p[0]) - torch.outer(p[0], p[0]))[:2, :2])
        True
    """
    smallest = torch.finfo(probabilities.dtype).tiny
    tail = probabilities.flip(1).cumsum(1).flip(1).clamp_min(smallest)
    here, after, p = tail[:, :-1], tail[:, 1:], probabilities[:, :-1]
    # ratios lie in [0, 1] whatever underflows, so no 0/0 reaches the products
    below = -p.unsqueeze(2) * (p / here).clamp(0, 1).sqrt().unsqueeze(1) / after.sqrt().unsqueeze(1)
    diagonal = (p * (after / here).clamp(0, 1)).sqrt()
    return below.tril(-1) + torch.diag_embed(diagonal)


def _unit_directions(scores: Tensor, shift_invariant: bool) -> tuple[Tensor, ...]:
    n_classes = scores.shape[-1]
    directions = []
    for t in range(scores.shape[1] if scores.ndim == 3 else 1):
        for k in range(n_classes - 1 if shift_invariant else n_classes):
            direction = torch.zeros_like(scores)
            at_position = direction[:, t] if scores.ndim == 3 else direction
            at_position[:, k] = 1
            if shift_invariant:
                at_position[:, -1] = -1
            directions.append(direction)
    return tuple(directions)


def _softmax_factors(scores: Tensor, labelled: Tensor) -> Tensor:
    """F of a mean of cross-entropies at T positions, block by block: (N, T(K−1), T(K−1))."""
    n_samples, n_positions, n_classes = scores.shape
    blocks = softmax_factor(torch.softmax(scores, 2).flatten(0, 1))
    share = labelled.to(scores.dtype) / labelled.sum(1, keepdim=True).clamp_min(1)
    blocks = blocks.view(n_samples, n_positions, n_classes - 1, n_classes - 1) * share.sqrt()[:, :, None, None]
    factor = blocks.new_zeros(n_samples, n_positions, n_classes - 1, n_positions, n_classes - 1)
    for t in range(n_positions):
        factor[:, t, :, t] = blocks[:, t]
    return factor.view(n_samples, n_positions * (n_classes - 1), -1)


def expand_outputs(
    scores: Tensor, target: Tensor, sample_loss: SampleLoss, curvature: Curvature = "auto"
) -> OutputExpansion:
    """Expand each sample's loss in the scores.

    The exact curvature is the Hessian of the loss in the scores, which makes that of gates and weights the
    generalised Gauss-Newton one; for cross-entropy that is the Fisher information with the labels drawn from
    the network's own p(y|x). The empirical curvature is the square of the slope, times the number of independent
    labels that the loss is a mean of: the curvature of a mean of T terms is T times the expected square of its slope.

    Args:
        scores: f(x), (N, K), or (N, T, K) at T positions; needs no graph.
        target: Labels.
        sample_loss: The loss.
        curvature: ``"exact"``, ``"empirical"``, or ``"auto"``: exact up to 20 scores a sample, so that at many
            positions it is empirical.

    Returns:
        The expansion.

    Raises:
        InputError: The curvature has another name, or the loss or scores are not finite.
    """
    if curvature not in ("exact", "empirical", "auto"):
        raise InputError(f"curvature={curvature!r}; expected 'exact', 'empirical' or 'auto'")
    scores = scores.detach()
    if not bool(torch.isfinite(scores).all()):
        raise InputError("the network's scores are not finite; check the inputs and the weights for NaN")
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    exact = curvature == "exact" or (curvature == "auto" and scores[0].numel() <= MAX_EXACT_CLASSES)
    leaf = scores.clone().requires_grad_()
    with torch.enable_grad():
        loss = sample_loss(leaf, target)
        if not bool(torch.isfinite(loss).all()):
            bad = int((~torch.isfinite(loss)).nonzero()[0])
            raise InputError(f"the loss of sample {bad} of the batch is {loss[bad].item()}; expected finite losses")
        (gradient,) = torch.autograd.grad(loss.sum(), leaf, create_graph=exact and not sample_loss.is_cross_entropy)
    if not exact:
        ones = torch.ones_like(loss.detach()).unsqueeze(1)
        terms = sample_loss.terms(scores, target).to(ones.dtype).sqrt()
        return OutputExpansion(loss.detach(), (gradient,), ones, (ones * terms.unsqueeze(1)).unsqueeze(2))
    if sample_loss.is_cross_entropy:
        directions = _unit_directions(scores, shift_invariant=True)
        if scores.ndim == 3:
            factor = _softmax_factors(scores, sample_loss.labelled(scores, target))
        else:
            factor = softmax_factor(torch.softmax(scores, 1))
        return OutputExpansion(loss.detach(), directions, gradient[..., :-1].flatten(1), factor)
    slopes = gradient.flatten(1)
    hessian = torch.stack([_row(slopes[:, k], leaf).flatten(1) for k in range(slopes.shape[1])], 1)
    if not bool(hessian.any()):  # a loss that is piecewise linear in the scores: one direction says all
        ones = torch.ones_like(loss.detach()).unsqueeze(1)
        return OutputExpansion(loss.detach(), (gradient.detach(),), ones, torch.zeros_like(ones).unsqueeze(2))
    values, vectors = torch.linalg.eigh(hessian)
    factor = vectors * values.clamp_min(0).sqrt().unsqueeze(1)
    return OutputExpansion(loss.detach(), _unit_directions(scores, False), slopes.detach(), factor)


def _row(slope: Tensor, scores: Tensor) -> Tensor:
    if not slope.requires_grad:  # a loss that is linear in this score
        return torch.zeros_like(scores)
    try:
        (row,) = torch.autograd.grad(slope.sum(), scores, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise InputError(f"the loss can't be differentiated twice ({error}); use curvature='empirical'") from error
    return torch.zeros_like(scores) if row is None else row
