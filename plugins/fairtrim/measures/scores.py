"""What scores (N, K), or single logits (N, 1), say: labels, margins, probabilities and losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fairtrim.errors import InputError

__all__ = [
    "centred",
    "label_losses",
    "label_probability",
    "labels_of",
    "positive_margin",
    "probabilities",
    "sharpened",
    "two_or_more",
]


def labels_of(scores: Tensor) -> Tensor:
    """Decisions, (N,) int64: the largest score, (N, K), or whether a single logit, (N, 1), is positive."""
    return (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(1)


def two_or_more(scores: Tensor) -> Tensor:
    """A single logit, (N, 1), as the scores of two classes, (N, 2); more scores stay."""
    return torch.cat([torch.zeros_like(scores), scores], 1) if scores.shape[1] == 1 else scores


def positive_margin(scores: Tensor) -> Tensor:
    """How far label 1 is above label 0, (N,) float64: f_1 − f_0, or a single logit itself.

    Its sigmoid is the probability of label 1. More than two classes are refused.
    """
    if scores.shape[1] > 2:
        raise InputError(f"{scores.shape[1]} classes have no single threshold; expected scores (N, 2) or (N, 1)")
    scores = scores.double()
    return scores[:, 0] if scores.shape[1] == 1 else scores[:, 1] - scores[:, 0]


def centred(scores: Tensor) -> Tensor:
    """What matters of scores: the margin for two classes, (N, 1), else the scores less their mean, (N, K)."""
    if scores.shape[1] == 1:
        return scores
    return scores[:, 1:] - scores[:, :1] if scores.shape[1] == 2 else scores - scores.mean(1, keepdim=True)


def sharpened(scores: Tensor, width: float) -> Tensor:
    """Scores so many standard deviations wide, whatever they were; of wide ones probabilities are nearly decisions."""
    return scores * (width / centred(scores).std(0, correction=0).mean().clamp_min(1e-12))


def probabilities(scores: Tensor) -> Tensor:
    """Probabilities of the labels: of label 1, (N, 1), for two classes; (N, K) for more."""
    if scores.shape[1] == 1:
        return scores.sigmoid()
    return scores.softmax(1)[:, 1:] if scores.shape[1] == 2 else scores.softmax(1)


def label_probability(scores: Tensor, target: Tensor) -> Tensor:
    """Probability of each sample's own label, (N,)."""
    return two_or_more(scores).softmax(1).gather(1, target[:, None]).squeeze(1)


def label_losses(scores: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each sample, (N,); the target is labels (N,), or for more scores probabilities (N, K)."""
    if scores.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(scores[:, 0], target.to(scores.dtype), reduction="none")
    return F.cross_entropy(scores, target, reduction="none")
