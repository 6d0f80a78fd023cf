"""Second-order expansion of each sample's loss in the network's scores.

Gates and weights reach the loss through the scores f only. So one expansion of ℓ_n around f(x_n), slope u_n and
curvature H_n ≈ F_n F_nᵀ, gives first and second order terms in any of them, from a few backward passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fairtrim.errors import InputError
from fairtrim.network.sample_loss import SampleLoss, require_finite_losses

__all__ = ["Curvature", "OutputExpansion", "expand_outputs", "softmax_factor"]

Curvature = Literal["exact", "empirical", "auto"]
MAX_EXACT_CLASSES = 20
"""Up to so many classes ``curvature="auto"`` takes the exact Fisher: one backward pass a class but one."""


@dataclass(frozen=True)
class OutputExpansion:
    """ℓ_n(f + δ) ≈ ℓ_n + u_nᵀδ + ½ δᵀH_n δ in coordinates of R directions of the scores.

    Attributes:
        loss: ℓ_n, (N,), times w_n if the loss is a weighted mean.
        weight: w_n, (N,), 1 unless the loss is a weighted mean; see ``SampleLoss``.
        directions: D, the directions to differentiate along: R tensors (N, K), or (N, T, K). R = K − 1 for softmax,
            whose loss doesn't change when all scores shift, at every position; R = 1 for the empirical Fisher.
        slope: u_n in those coordinates, (N, R): the gradient of ℓ_n is Σ_r slope_nr ∂(D_nr · f_n).
        factor: F_n in those coordinates, (N, R, R), with H_n = F_n F_nᵀ.
    """

    loss: Tensor
    weight: Tensor
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
    tail = _tail_sums(probabilities).clamp_min(smallest)
    here, after, p = tail[:, :-1], tail[:, 1:], probabilities[:, :-1]
    # ratios lie in [0, 1] whatever underflows, so no 0/0 reaches the products
    below = -p.unsqueeze(2) * (p / here).clamp(0, 1).sqrt().unsqueeze(1) / after.sqrt().unsqueeze(1)
    diagonal = (p * (after / here).clamp(0, 1)).sqrt()
    return below.tril(-1) + torch.diag_embed(diagonal)


def _tail_sums(probabilities: Tensor) -> Tensor:
    """q_j = Σ_{i≥j} p_i, (N, K)."""
    if probabilities.device.type != "cpu" and torch.are_deterministic_algorithms_enabled():  # CUDA refuses cumsum then
        n_classes = probabilities.shape[1]
        return (probabilities.unsqueeze(2) * probabilities.new_ones(n_classes, n_classes).tril()).sum(1)
    return probabilities.flip(1).cumsum(1).flip(1)


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
    The curvature of a loss times w_n is that of the loss times w_n, in both.

    Args:
        scores: f(x), (N, K), or (N, T, K) at T positions; needs no graph.
        target: Labels.
        sample_loss: The loss.
        curvature: ``"exact"``, ``"empirical"``, or ``"auto"``: exact up to 20 scores a sample, so that at many
            positions it is empirical.

    Returns:
        The expansion.

    Raises:
        InputError: The curvature has another name, the scores are not finite, or the loss is not. Cross-entropy that
            overflows is left to ``Moments.add``, which reads it anyway.
    """
    if curvature not in ("exact", "empirical", "auto"):
        raise InputError(f"curvature={curvature!r}; expected 'exact', 'empirical' or 'auto'")
    scores = scores.detach()
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    exact = curvature == "exact" or (curvature == "auto" and scores[0].numel() <= MAX_EXACT_CLASSES)
    leaf = scores.clone().requires_grad_()
    with torch.enable_grad():
        loss, weight = sample_loss.weighted(leaf, target, finite=True)
        if not sample_loss.is_cross_entropy:  # of finite scores cross-entropy is, but where scores overflow
            require_finite_losses(loss.detach())
        (gradient,) = torch.autograd.grad(loss.sum(), leaf, create_graph=exact and not sample_loss.is_cross_entropy)
    if not exact:
        ones = torch.ones_like(loss.detach()).unsqueeze(1)
        spread = sample_loss.terms(scores, target) / weight.where(weight > 0, torch.inf)
        return OutputExpansion(loss.detach(), weight, (gradient,), ones, spread.to(ones.dtype).sqrt().view(-1, 1, 1))
    if sample_loss.is_cross_entropy:
        directions = _unit_directions(scores, shift_invariant=True)
        if scores.ndim == 3:
            factor = _softmax_factors(scores, sample_loss.labelled(scores, target))
        else:
            factor = softmax_factor(torch.softmax(scores, 1)) * weight.view(-1, 1, 1)  # 0 or 1
        return OutputExpansion(loss.detach(), weight, directions, gradient[..., :-1].flatten(1), factor)
    slopes = gradient.flatten(1)
    hessian = torch.stack([_row(slopes[:, k], leaf).flatten(1) for k in range(slopes.shape[1])], 1)
    if not bool(hessian.any()):  # a loss that is piecewise linear in the scores: one direction says all
        ones = torch.ones_like(loss.detach()).unsqueeze(1)
        return OutputExpansion(loss.detach(), weight, (gradient.detach(),), ones, torch.zeros_like(ones).unsqueeze(2))
    values, vectors = torch.linalg.eigh(hessian)
    factor = vectors * values.clamp_min(0).sqrt().unsqueeze(1)
    return OutputExpansion(loss.detach(), weight, _unit_directions(scores, False), slopes.detach(), factor)


def _row(slope: Tensor, scores: Tensor) -> Tensor:
    if not slope.requires_grad:  # a loss that is linear in this score
        return torch.zeros_like(scores)
    try:
        (row,) = torch.autograd.grad(slope.sum(), scores, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise InputError(f"the loss can't be differentiated twice ({error}); use curvature='empirical'") from error
    return torch.zeros_like(scores) if row is None else row
