"""The loss of every single sample, from any loss of a batch."""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairtrim.data.batches import LossFunction
from fairtrim.data.labels import refuse_range, require_labels
from fairtrim.devices import to_device
from fairtrim.errors import InputError

from .loss_weights import LossWeights
from .losses import generalized_cross_entropy, negative_margin
from .probability_scores import ProbabilityScores, refuse_shares, refuse_sigmoid

__all__ = ["SampleLoss", "check_loss_inputs", "require_finite_losses", "require_scores_and_labels"]


class SampleLoss:
    """The loss of every single sample, (N,), from any loss function.

    A function or module with a ``reduction`` is called with ``reduction="none"``; any other is called on
    batches of one. With scores at T positions a sample, e.g. one for each token, its loss is the mean over the
    positions that have a label: cross-entropy leaves out ``ignore_index``, by default −100, and a sample without any
    label has loss 0.

    A mean with weights, Σ w_n ℓ_n / Σ w_n, such as that of cross-entropy with class weights, is made of the losses
    w_n ℓ_n and the weights w_n, wherever the weights hide; losses over the mean weight have the batch's loss as their
    mean. A loss that is no sum or mean over samples is refused; see ``LossWeights``.

    Args:
        loss_fn: ``loss_fn(scores, target)``.
        in_parts: Whether losses of several passes will be added up. Weights that are known up to a factor only, because
            the loss hides them, are refused then.

    Example:
        >>> loss = SampleLoss(nn.CrossEntropyLoss())
        >>> loss(torch.zeros(2, 4), torch.tensor([0, 3])).round(decimals=4)
        tensor([1.3863, 1.3863])
        >>> hidden = SampleLoss(lambda scores, y: F.cross_entropy(scores, y, weight=torch.tensor([1.0, 3.0])))
        >>> losses, weights = hidden.weighted(torch.zeros(2, 2), torch.tensor([0, 1]))
        >>> losses.round(decimals=4), weights.round(decimals=4)
        (tensor([0.6931, 2.0794]), tensor([1., 3.]))
    """

    def __init__(self, loss_fn: LossFunction = F.cross_entropy, *, in_parts: bool = False) -> None:
        settings = _settings(loss_fn)
        self.is_cross_entropy = loss_fn is F.cross_entropy or (
            type(loss_fn) is nn.CrossEntropyLoss and loss_fn.weight is None and loss_fn.label_smoothing == 0
        )
        self.ignore_index = int(settings.get("ignore_index", -100))
        self._class_weights = _class_weights(loss_fn, settings)
        self._settings = settings
        self._unreduced: Callable[[Tensor, Tensor], Tensor] | None = None
        self._loss_fn, self._in_parts = loss_fn, in_parts
        self._together = LossWeights(loss_fn)
        self._scale: float | None = None
        self._seen = ProbabilityScores()
        # whether a target (N,) of single scores becomes (N, 1): torch's own losses want that, one's own may want either
        own = not str(getattr(_function(loss_fn), "__module__", "")).startswith("torch.")
        self._as_column: bool | None = None if own else True
        if isinstance(loss_fn, nn.Module):
            if hasattr(loss_fn, "reduction"):
                unreduced: Any = copy.copy(loss_fn)
                unreduced.reduction = "none"
                self._unreduced = unreduced
        elif _takes_reduction(loss_fn):
            self._unreduced = lambda scores, target: loss_fn(scores, target, reduction="none")  # type: ignore[call-arg]

    def __call__(self, scores: Tensor, target: Tensor) -> Tensor:
        """Loss of every sample, (N,), times its weight if the loss is a weighted mean; scores (N, K) or (N, T, K)."""
        return self.weighted(scores, target)[0]

    def weighted(self, scores: Tensor, target: Tensor, *, finite: bool = False) -> tuple[Tensor, Tensor]:
        """w_n ℓ_n, (N,), differentiable in the scores, and w_n, (N,), 1 unless the loss is a weighted mean.

        ``finite`` refuses scores that are not, without a wait of its own where labels are checked. At positions the
        sums of a sample are made in any order on CUDA, unless ``torch.use_deterministic_algorithms(True)``.
        """
        are_finite = torch.isfinite(scores.detach()).all() if finite else None
        if are_finite is not None and not self.is_cross_entropy:
            _require_finite_scores(bool(are_finite))
        if scores.ndim == 2:
            return self._of_rows(scores, target, are_finite)
        labelled = self.labelled(scores, target)
        rows = labelled.flatten().nonzero().squeeze(1)
        # a loss may refuse what has no label, or make NaN of it, which no factor 0 takes away
        try:
            losses, weights = self._of_rows(scores.flatten(0, 1)[rows], target.flatten(0, 1)[rows], are_finite)
        except InputError as error:
            if self.is_cross_entropy:
                raise
            raise InputError(
                f"{error}. Of scores at positions, (N, T, K), loss_fn gets a row for each that has a label, (R, K) and "
                "(R,): pass torch.nn.functional.cross_entropy itself, or a loss of such rows"
            ) from error
        places = rows // labelled.shape[1]
        number = labelled.sum(1).clamp_min(1)
        total, mass = (x.new_zeros(len(scores)).index_add(0, places, x) / number for x in (losses, weights))
        return total, mass.where(labelled.any(1), 1.0)

    def labelled(self, scores: Tensor, target: Tensor) -> Tensor:
        """Which positions have a label, (N, T) bool, beside scores (N, T, K)."""
        if target.ndim > 2 or target.is_floating_point():
            return torch.ones(scores.shape[:2], dtype=torch.bool, device=scores.device)
        return target != self.ignore_index

    def terms(self, scores: Tensor, target: Tensor) -> Tensor:
        """How many labels or labelled positions the loss of each sample is the mean of, (N,), at least 1."""
        summed = self._together.kind == "mean" and self._scale == scores.shape[-1]  # not averaged over the scores
        each = scores.shape[-1] if target.shape == scores.shape and not summed else 1
        if scores.ndim == 3:
            return each * self.labelled(scores, target).sum(1).clamp_min(1)
        return torch.full((len(scores),), each, device=scores.device)

    def _of_rows(self, scores: Tensor, target: Tensor, are_finite: Tensor | None) -> tuple[Tensor, Tensor]:
        """Losses of rows of scores and their weights, (rows,) each."""
        self._check_scores(scores)
        self._check_lengths(scores)
        if self.is_cross_entropy:
            _check_labels(scores, target, are_finite)
            target = target.long()
            return self._of_targets(scores, target)
        check_loss_inputs(self._loss_fn, scores, target)
        if scores.shape[1] == 1 and target.ndim == 1 and len(scores):
            if self._as_column is None:
                return self._of_single_scores(scores, target)
            target = target.unsqueeze(1) if self._as_column else target
        return self._of_targets(scores, target)

    def _of_single_scores(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Find out which form of target a loss of one's own expects: as the loader gives it, or a column."""
        unreduced = self._unreduced
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of shapes that broadcast; then it isn't this form
                found = self._of_targets(scores, target)
        except InputError as error:
            self._unreduced, self._together, self._scale = unreduced, LossWeights(self._loss_fn), None
            try:
                found = self._of_targets(scores, target.unsqueeze(1))
            except InputError as as_column:
                raise (as_column if error.__cause__ else error) from None  # not that of a form that can't be computed
            self._as_column = True
            return found
        if len(torch.unique(target)) > 1:  # of equal targets either form gives the same
            self._as_column = False
        return found

    def _of_targets(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The same for a target in the form that the loss expects."""
        if target.shape == scores.shape:  # one target for each score, not a label: as numbers
            target = target.to(scores.dtype)
        if not len(scores):  # no position of the batch has a label
            return scores.sum(1), scores.new_ones(0)
        losses = self._given(scores, target)
        labels = target.ndim == 1 and not target.is_floating_point()
        if losses is not None and labels and (self.is_cross_entropy or self._class_weights is not None):
            weights = (target != self.ignore_index).to(losses.dtype)
            if self._class_weights is not None:
                weights = weights * self._class_weights.to(weights)[target.where(weights > 0, 0)]
            return losses, weights
        return self._compared(scores, target, losses)

    def _check_scores(self, scores: Tensor) -> None:
        """Refuse probabilities where the loss expects logits."""
        function = _function(self._loss_fn)
        takes_softmax, takes_sigmoid = function in _OF_LOGITS, function in _OF_LOGIT
        if takes_softmax or takes_sigmoid:
            self._seen.add(scores)
        if takes_softmax and self._seen.shares:
            refuse_shares("the network")
        if takes_sigmoid and self._seen.in_unit:
            refuse_sigmoid("the network", "its scores lie in [0, 1], and the loss takes the sigmoid of them once more")

    def _check_lengths(self, scores: Tensor) -> None:
        """Refuse weights of more or fewer classes than there are scores, in words."""
        function = _function(self._loss_fn)
        of_classes, of_logits = function in _OF_CLASSES, function in _OF_LOGIT
        weight = self._settings.get("weight" if of_classes else "pos_weight")
        if not isinstance(weight, Tensor) or not (of_classes or of_logits):
            return
        n_scores = scores.shape[1]
        lengths = (n_scores,) if of_classes else (1, n_scores)
        if weight.ndim > 1 or (weight.ndim == 0 and of_logits) or weight.numel() in lengths:
            return
        name, each = ("weight", "class") if of_classes else ("pos_weight", "label")
        raise InputError(
            f"the loss has {name}= with {weight.numel()} numbers, and the network gives {n_scores} scores a sample; "
            f"expected one number for each {each}: pass {name}= of shape ({n_scores},)"
        )

    def _given(self, scores: Tensor, target: Tensor) -> Tensor | None:
        """The loss of each row as the loss function gives it, if it does."""
        if self._unreduced is None:
            return None
        losses = self._unreduced(scores, target)
        if losses.ndim and len(losses) == len(scores):
            return losses.reshape(len(scores), -1).mean(1).to(scores.device)  # a loss may bring its scores elsewhere
        self._unreduced = None  # it has a reduction and doesn't mind it
        return None

    def _compared(self, scores: Tensor, target: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        together = self._together
        for _ in range(2):
            relative = together.relative(scores, target)
            if together.varied and given is None and self._in_parts:
                raise InputError(
                    "loss_fn is a mean with weights of its own, of which only ratios can be found, so that the sums of "
                    "several processes, or of a run that is taken up again, can't be added; expected a loss with a "
                    "reduction: torch.nn.CrossEntropyLoss(weight=...) itself, or a function with reduction='mean' "
                    "among its arguments"
                )
            if given is None:
                losses, weights = self._one_by_one(scores, target, relative), relative
                scaled = losses
            else:
                if self._scale is None and together.kind is not None:
                    self._scale = together.scale(self._of_reference)
                scale = self._scale or 1.0
                losses, scaled = given, given * scale
                weights = relative / scale if together.kind == "mean" else relative
            if together.check(scores, target, scaled, relative):
                break
        return losses, weights

    def _of_reference(self, scores: Tensor, target: Tensor) -> Tensor:
        losses = self._given(scores, target)
        assert losses is not None
        return losses

    def _one_by_one(self, scores: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        chosen = weights.cpu().nonzero().squeeze(1)  # by itself a sample that the mean leaves out is 0/0
        losses = [self._loss_fn(scores[n : n + 1], target[n : n + 1]).mean() for n in chosen.tolist()]
        rows = to_device(chosen, scores.device)
        alone = to_device(torch.stack(losses), scores.device) if losses else scores[rows].sum(1)
        return alone.new_zeros(len(scores)).index_add(0, rows, alone * weights[rows].to(alone))


_OF_LOGITS = (F.cross_entropy, nn.CrossEntropyLoss)
_OF_CLASSES = (*_OF_LOGITS, F.nll_loss, nn.NLLLoss)
_OF_LABELS = (*_OF_CLASSES, F.multi_margin_loss, nn.MultiMarginLoss, generalized_cross_entropy, negative_margin)
_OF_PROBABILITIES = (F.binary_cross_entropy, nn.BCELoss)
_OF_LOGIT = (F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss)


def _function(loss_fn: Any) -> Any:
    """What to know one of torch's own losses by."""
    if isinstance(loss_fn, functools.partial):
        return loss_fn.func
    return type(loss_fn) if isinstance(loss_fn, nn.Module) else loss_fn


def _settings(loss_fn: Any) -> dict[str, Any]:
    """What a loss of torch was told, by name."""
    if isinstance(loss_fn, nn.Module):
        return {**vars(loss_fn), **loss_fn._buffers}
    return loss_fn.keywords if isinstance(loss_fn, functools.partial) else {}


def _class_weights(loss_fn: Any, settings: dict[str, Any]) -> Tensor | None:
    """The weights of the classes, of torch's own losses that divide by their sum."""
    divides = _function(loss_fn) in _OF_CLASSES
    weight = settings.get("weight")
    return weight if divides and settings.get("reduction", "mean") == "mean" and isinstance(weight, Tensor) else None


def _takes_reduction(loss_fn: Callable[..., Any]) -> bool:
    try:
        return "reduction" in inspect.signature(loss_fn).parameters
    except (TypeError, ValueError):  # built-in functions without a signature
        return False


def require_finite_losses(losses: Tensor) -> None:
    """Refuse losses of samples, (N,), that are NaN or infinite.

    Example:
        >>> require_finite_losses(torch.tensor([0.5, torch.nan]))
        Traceback (most recent call last):
        fairtrim.errors.InputError: the loss of sample 1 of the batch is nan; expected finite losses
    """
    if not bool(torch.isfinite(losses).all()):
        bad = int((~torch.isfinite(losses)).nonzero()[0])
        raise InputError(f"the loss of sample {bad} of the batch is {losses[bad].item()}; expected finite losses")


def _require_finite_scores(are_finite: bool) -> None:
    if not are_finite:
        raise InputError("the network's scores are not finite; check the inputs and the weights for NaN")


def require_scores_and_labels(are_finite: Tensor, target: Tensor, n_scores: int, *, unit: str = "classes") -> None:
    """Refuse scores that are not finite, and labels that none of K scores belongs to, in one wait for a device.

    ``are_finite`` is one bool; ``unit`` as for ``require_labels``.

    Example:
        >>> scores, target = torch.zeros(2, 3), torch.tensor([0, 3])
        >>> require_scores_and_labels(torch.isfinite(scores).all(), target, 3)
        Traceback (most recent call last):
        fairtrim.errors.InputError: labels reach from 0 to 3; expected 0 to 2 for 3 classes
    """
    ends = [target.min().long(), target.max().long()] if len(target) else []
    numbers = torch.stack([are_finite.long(), *ends]).tolist()
    _require_finite_scores(bool(numbers[0]))
    if ends:
        refuse_range(numbers[1], numbers[2], n_scores, unit=unit)


def check_loss_inputs(loss_fn: LossFunction, scores: Tensor, target: Tensor) -> None:
    """Refuse labels that none of K scores belongs to, and logits for probabilities, for losses of torch and ours.

    On CUDA the loss of those would be an assertion, after which nothing can be done on the device any more, so that
    they are read before; labels on the CPU without a wait. Of other losses nothing is known, and they pass.

    Args:
        loss_fn: The loss.
        scores: (N, K).
        target: Labels, (N,), on any device; those that the loss ignores may be any.

    Raises:
        InputError: A label or a score is out of range.

    Example:
        >>> check_loss_inputs(nn.CrossEntropyLoss(label_smoothing=0.1), torch.zeros(2, 3), torch.tensor([-100, 3]))
        Traceback (most recent call last):
        fairtrim.errors.InputError: labels reach from 0 to 3; expected 0 to 2 for 3 scores
    """
    function, of_labels = _function(loss_fn), target.ndim == 1 and not target.is_floating_point()
    if function in _OF_PROBABILITIES and scores.numel():
        low, high = torch.stack(scores.detach().aminmax()).tolist()
        if not (low >= 0 and high <= 1):  # nor NaN
            raise InputError(
                f"the scores reach from {low:.3g} to {high:.3g}, and the loss takes probabilities; expected 0 to 1: "
                "for logits pass loss_fn=torch.nn.functional.binary_cross_entropy_with_logits"
            )
    if function not in _OF_LABELS or not of_labels or scores.ndim != 2 or scores.shape[1] < 2:
        return
    if function in _OF_CLASSES:
        target = target.masked_fill(target == int(_settings(loss_fn).get("ignore_index", -100)), 0)
    require_labels(target, scores.shape[1], unit="scores")


def _check_labels(scores: Tensor, target: Tensor, are_finite: Tensor | None) -> None:
    n_classes = scores.shape[1]
    if n_classes < 2:
        raise InputError(
            f"cross-entropy needs at least two scores a sample; the network gives {n_classes}: for a single "
            "logit pass loss_fn=torch.nn.functional.binary_cross_entropy_with_logits, for regression mse_loss"
        )
    if target.ndim != 1 or target.is_floating_point() or target.dtype == torch.bool:
        remedy = ""
        if target.numel() == len(target) and (target.dtype == torch.bool or torch.equal(target, target.round())):
            remedy = "for labels of another type or shape pass target.flatten().long(), "
        elif target.ndim == 2 and target.shape == scores.shape and bool((target.count_nonzero(1) == 1).all()):
            remedy = "for one-hot targets pass target.argmax(1), "
        raise InputError(
            f"the target is {target.dtype} of shape {tuple(target.shape)}; cross-entropy, the default, expects integer "
            f"labels (N,): {remedy}for several labels a sample pass "
            "loss_fn=torch.nn.functional.binary_cross_entropy_with_logits, for regression torch.nn.functional.mse_loss"
        )
    if are_finite is None:
        require_labels(target, n_classes, unit="scores")
    else:
        require_scores_and_labels(are_finite, target, n_classes, unit="scores")
