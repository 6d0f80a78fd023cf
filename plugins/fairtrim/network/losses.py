"""Losses for networks that lean on a shortcut: one that prefers it, one that pulls classes together past it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fairtrim.errors import InputError

__all__ = ["Positives", "contrastive_loss", "generalized_cross_entropy", "negative_margin", "require_class_scores"]

Positives = Literal["conflicting", "either"]
"""Which samples of an anchor's class are its positives: the bias-conflicting ones, or every pair with one."""


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    if reduction == "mean":
        return losses.mean()
    if reduction == "sum":
        return losses.sum()
    raise InputError(f"reduction={reduction!r}; expected 'none', 'mean' or 'sum'")


def require_class_scores(scores: Tensor) -> None:
    """Refuse networks with a single logit, and say how to give them two.

    Args:
        scores: f(x).

    Raises:
        InputError: There are not two scores a sample.
    """
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise InputError(
            f"the network gives scores of shape {tuple(scores.shape)}; expected (N, K), one for each class: for a "
            "single logit pass output_transform=lambda f: torch.cat([torch.zeros_like(f), f], 1)"
        )


def generalized_cross_entropy(scores: Tensor, target: Tensor, *, q: float = 0.7, reduction: str = "mean") -> Tensor:
    """1 − p_y^q: cross-entropy whose gradient is weighted by q·p_y^q, so that what is easy is learned all the more.

    The gradient is that of LfF's and DCWP's code, which multiplies cross-entropy by the detached weight q·p_y^q
    (Zhang and Sabuncu, NeurIPS 2018; Park et al., CVPR 2023, stage 1). Computed in float32 at least.

    Args:
        scores: f(x), (N, K).
        target: Labels, (N,).
        q: In (0, 1]; 0.7 is published.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or (N,).

    Raises:
        InputError: q is not in (0, 1], or the reduction unknown.

    Example:
        >>> scores = torch.tensor([[0.0, 0.0]])  # p_y = ½
        >>> round(generalized_cross_entropy(scores, torch.tensor([1]), q=1.0).item(), 4)
        0.5
    """
    if not 0 < q <= 1:
        raise InputError(f"q={q}; expected a number in (0, 1]")
    log_p = F.log_softmax(scores.to(torch.promote_types(torch.float32, scores.dtype)), 1)
    return _reduced(-torch.expm1(q * log_p.gather(1, target.long().unsqueeze(1)).squeeze(1)), reduction)


def negative_margin(scores: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """Largest other score minus the score of the label: unlike cross-entropy it has a slope on memorised samples.

    Args:
        scores: f(x), (N, K), K ≥ 2.
        target: Labels, (N,).
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or (N,).

    Raises:
        InputError: The reduction is unknown, or there are not two scores.

    Example:
        >>> negative_margin(torch.tensor([[3.0, 1.0, 2.5]]), torch.tensor([0])).item()
        -0.5
    """
    require_class_scores(scores)
    labels = target.long().unsqueeze(1)
    others = scores.scatter(1, labels, -torch.inf).amax(1)
    return _reduced(others - scores.gather(1, labels).squeeze(1), reduction)


def contrastive_loss(
    features: Tensor,
    target: Tensor,
    conflicting: Tensor,
    *,
    temperature: float = 0.07,
    positives: Positives = "conflicting",
) -> Tensor:
    """L_con of DCWP: pull every sample toward the bias-conflicting samples of its class (Park et al., CVPR 2023).

    With z = features / ‖features‖, A(i) the rest of the batch and P(i) = {j ≠ i: y_j = y_i, b_j = 1},

        L_con = −mean over i with P(i) ≠ ∅ of 1/|P(i)| Σ_{j∈P(i)} log [exp(z_i·z_j/τ) / Σ_{a∈A(i)} exp(z_i·z_a/τ)].

    So runs the authors' code, where the mask of b broadcasts over the columns j; ``positives="either"`` is what its
    text means, P(i) = {j ≠ i: y_j = y_i, b_i = 1 or b_j = 1}. Computed in float32 at least.

    Args:
        features: Penultimate features, (N, D).
        target: Labels, (N,).
        conflicting: b, whether each sample was mined as bias-conflicting, (N,).
        temperature: τ.
        positives: Which pairs attract.

    Returns:
        A scalar; 0, with a gradient of 0, where no anchor has a positive.

    Raises:
        InputError: A shape, the temperature or the kind of positives is wrong.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
        >>> loss = contrastive_loss(z, torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), temperature=1.0)
        >>> round(loss.item(), 4)  # one anchor, log(e⁰ + e¹)
        1.3133
    """
    if features.ndim != 2 or target.shape != conflicting.shape or target.shape != features.shape[:1]:
        raise InputError(
            f"features {tuple(features.shape)}, target {tuple(target.shape)}, conflicting {tuple(conflicting.shape)}; "
            "expected (N, D), (N,) and (N,)"
        )
    if temperature <= 0:
        raise InputError(f"temperature={temperature}; expected a positive number")
    if positives not in ("conflicting", "either"):
        raise InputError(f"positives={positives!r}; expected 'conflicting' or 'either'")
    features = features.to(torch.promote_types(torch.float32, features.dtype))
    norms: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    z = features / norms.masked_fill(norms == 0, 1)  # no direction, and no slope of 1/eps
    others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    b = conflicting.bool()
    attract = b.expand(len(z), -1) if positives == "conflicting" else b.unsqueeze(0) | b.unsqueeze(1)
    attract = attract & others & (target.unsqueeze(0) == target.unsqueeze(1))
    n_positives = attract.sum(1)
    anchors = n_positives.nonzero().squeeze(1)
    if not len(anchors):
        return z.sum() * 0
    similarity = (z @ z.T / temperature).masked_fill(~others, -torch.inf)
    log_share = similarity - similarity.logsumexp(1, keepdim=True)
    of_anchor = log_share.masked_fill(~attract, 0).sum(1) / n_positives.clamp_min(1)
    return -of_anchor[anchors].mean()
