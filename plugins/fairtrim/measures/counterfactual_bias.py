"""Counterfactual pairs: the same person with the sensitive attribute flipped, and how much a network minds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairtrim.errors import InputError
from fairtrim.measures.scores import centred, label_probability, labels_of, two_or_more

__all__ = ["CounterfactualBias", "counterfactual_bias"]


@dataclass(frozen=True)
class CounterfactualBias:
    """How much a network minds the flip, over N pairs.

    The mean change alone is no measure of a repair, because shrinking all logits lowers it: look at the flips, at the
    relative change, and at the cross-entropy beside it.

    Attributes:
        mean_change: Mean of |p(y|x) − p(y|x̄)|, y the label: Chen et al.'s B(θ) (FMD, NeurIPS 2023).
        flips: Share of pairs whose decision changes.
        relative_change: Mean of |f(x) − f(x̄)| in standard deviations of f, which is the margin of label 1 for two
            classes, else the scores less their mean.
        cross_entropy: Of the unflipped side, in nats.
        n_pairs: N, or all pairs of several counterfactuals of each person.
        worst_change: Mean over people of the largest of |p(y|x) − p(y|x̄)|, over the counterfactuals of each.
        any_flip: Share of people whose decision changes for at least one of theirs.
    """

    mean_change: float
    flips: float
    relative_change: float
    cross_entropy: float
    n_pairs: int
    worst_change: float
    any_flip: float


def counterfactual_bias(
    scores: Tensor, flipped: Tensor | Sequence[Tensor], target: Tensor, weight: Tensor | None = None
) -> CounterfactualBias:
    """Figures of pairs.

    Of an attribute of many values each person has several counterfactuals, one for each other value: then the figures
    are means over all pairs, and ``worst_change`` and ``any_flip`` of the worst of each person.

    Args:
        scores: Class scores of the people as they are, (N, K) or a single logit (N, 1).
        flipped: Of their counterfactuals; a sequence if each has several (see ``ColumnFlip.every``).
        target: Labels, (N,).
        weight: Sample weights, (N,), or None for 1 each.

    Returns:
        The figures.

    Raises:
        InputError: There are no pairs, the two sides, labels and weights are not alike in shape, scores are not finite,
            or labels are not among the classes.

    Example:
        >>> scores, flipped = torch.tensor([[1.0], [3.0]]), torch.tensor([[-1.0], [3.0]])
        >>> bias = counterfactual_bias(scores, flipped, torch.ones(2).long())
        >>> bias.flips, bias.n_pairs
        (0.5, 2)
    """
    several = [flipped.cpu()] if isinstance(flipped, Tensor) else [side.cpu() for side in flipped]
    scores, target, weight = scores.cpu(), target.cpu(), None if weight is None else weight.cpu()
    if not several:
        raise InputError("there are no counterfactuals; expected scores of at least one of each person")
    for side in several:
        _check(scores, side, target, weight)
    share = torch.ones(len(target), dtype=torch.float64, device="cpu") if weight is None else weight.double()
    share = share / share.sum()
    own, own_centred = scores.double(), centred(scores.double())
    mean = share @ own_centred
    spread = (share @ (own_centred - mean).square()).sqrt().mean().clamp(min=1e-12)
    here = label_probability(own, target)
    # counterfactuals M × people N
    change = torch.stack([(here - label_probability(side.double(), target)).abs() for side in several])
    flips = torch.stack([labels_of(scores) != labels_of(side) for side in several]).double()
    moved = torch.stack([share @ (own_centred - centred(side.double())).abs() for side in several])
    return CounterfactualBias(
        mean_change=float((change @ share).mean()),
        flips=float((flips @ share).mean()),
        relative_change=float(moved.mean() / spread),
        cross_entropy=float(-(share @ two_or_more(own).log_softmax(1).gather(1, target[:, None]).squeeze(1))),
        n_pairs=len(target) * len(several),
        worst_change=float(share @ change.amax(0)),
        any_flip=float(share @ flips.amax(0)),
    )


def _check(scores: Tensor, flipped: Tensor, target: Tensor, weight: Tensor | None) -> None:
    if scores.shape != flipped.shape:
        raise InputError(f"scores are {tuple(scores.shape)} and {tuple(flipped.shape)}; expected pairs of one shape")
    if scores.ndim != 2 or not scores.numel():
        raise InputError(f"scores are {tuple(scores.shape)}; expected (N, K) of at least one pair and one class")
    for whose, side in (("the people", scores), ("the counterfactuals", flipped)):
        if not bool(torch.isfinite(side).all()):
            raise InputError(f"scores of {whose} are not finite; expected finite ones: look at their inputs")
    n = len(scores)
    if target.shape != (n,) or target.is_floating_point():
        raise InputError(f"the target is {target.dtype} of shape {tuple(target.shape)}; expected labels ({n},)")
    low, high, most = int(target.min()), int(target.max()), max(2, scores.shape[1]) - 1
    if low < 0 or high > most:
        raise InputError(f"labels reach from {low} to {high}; expected 0 to {most} for {most + 1} classes")
    if weight is not None and not (
        weight.shape == (n,) and bool(((weight >= 0) & (weight < torch.inf)).all()) and bool((weight > 0).any())
    ):
        raise InputError(f"the weights are no ({n},) of at least 0, finite and not all 0; expected one a pair, or None")
