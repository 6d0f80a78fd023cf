"""How a loss of several samples is made of those of single ones: their sum, or their mean with weights of its own.

A damage is a mean over samples, so the loss must be one as well. What a loss does inside can't be read off it; what it
gives for a few samples together and one by one can.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NoReturn

import torch
from torch import Tensor

from fairtrim.devices import to_device
from fairtrim.errors import InputError

__all__ = ["LossWeights"]

_EPS = torch.finfo(torch.float32).eps  # a loss may compute in float32 whatever it gets
_SAME = 100 * _EPS
"""Two figures from the same terms in another order."""
_AGREE = _EPS**0.5
"""Half of the digits: what a prediction and a measurement have in common at least."""
_FEW = 8
"""Labels of one batch that are looked at while all weights seem to be equal."""


class LossWeights:
    """The weights with which a loss takes the mean over the samples of a batch.

    A loss Σ w_n ℓ_n / Σ w_n of one sample is ℓ_n, whatever its weight. Beside a reference sample r it has the slope
    w_r / (w_n + w_r) · ∂ℓ_r in the scores of r, which gives w_n / w_r. So the weight of every label is found once, and
    every batch is computed once as a whole, to see that its loss is what these weights say.

    Args:
        loss_fn: ``loss_fn(scores, target)``.

    Attributes:
        kind: ``"mean"``, ``"sum"``, or ``"none"`` for a loss that gives one number a sample; None before any sample
            with a slope was seen.
        varied: Whether two weights differ.

    Example:
        >>> weights = torch.tensor([1.0, 3.0])
        >>> hidden = LossWeights(lambda scores, y: torch.nn.functional.cross_entropy(scores, y, weight=weights))
        >>> scores, y = torch.tensor([[0.0, 3.0], [2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1, 0])
        >>> hidden.relative(scores, y).round(decimals=3)  # to that of the first sample, which has the steepest slope
        tensor([1., 3., 1.])
    """

    def __init__(self, loss_fn: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.kind: Literal["mean", "sum", "none"] | None = None
        self.varied = False
        self._loss_fn = loss_fn
        self._thorough = False  # some weights were not looked at, and that mattered
        self._of_label: dict[str, float] = {}
        self._reference: tuple[Tensor, Tensor] | None = None
        self._value, self._slope = 0.0, torch.empty(0, device="cpu")

    def relative(self, scores: Tensor, target: Tensor) -> Tensor:
        """w_n in units of the reference sample's, (N,); 1 unless the loss is a mean with weights.

        Scores are (N, K), and need no graph.
        """
        scores = scores.detach()
        if self.kind is None:
            self._find_reference(scores, target)
        if self.kind in (None, "none"):
            return scores.new_ones(len(scores))
        labels, place = torch.unique(target.cpu(), dim=0, return_inverse=True)  # the one wait for a device
        keys = [str(label) for label in labels.tolist()]
        kept = self._of_label if not target.is_floating_point() or 2 * len(keys) <= len(target) else {}
        new = [k for k, key in enumerate(keys) if key not in kept]
        for seen, k in enumerate(new):
            if seen >= _FEW and not (self.varied or self._thorough):
                break
            n = int((place == k).nonzero()[0])
            kept[keys[k]] = self._beside_reference(scores[n : n + 1], target[n : n + 1])
        of_labels = torch.tensor([kept.get(key, 1.0) for key in keys], dtype=scores.dtype, device="cpu")
        there: Tensor = to_device(of_labels[place], scores.device)
        return there

    def scale(self, losses: Callable[[Tensor, Tensor], Tensor]) -> float:
        """The reference sample's loss in units of what another function gives for it; 1 without a reference yet."""
        if self._reference is None:
            return 1.0
        slope = _value_and_slope(losses, *self._reference)[1]
        return _snapped(float((slope * self._slope).sum() / slope.square().sum()))

    def check(self, scores: Tensor, target: Tensor, losses: Tensor, weights: Tensor) -> bool:
        """Whether a batch has the loss that its samples have: w_n ℓ_n by w_n, (N,) each.

        False if it has another one, but more weights can be looked at; refused if not.
        """
        if self.kind is None:
            return True  # no sample has a slope, so there is nothing to weigh
        with torch.no_grad():
            whole = self._loss_fn(scores.detach(), target)
        n = len(scores)
        parts = [losses.detach(), weights, scores.detach().abs().max().reshape(1), whole.reshape(-1)]
        read = torch.cat([part.to(scores.device) for part in parts]).cpu().double()
        losses, weights, rounding = read[:n], read[n : 2 * n], self._rounding(float(read[2 * n]))
        whole = read[2 * n + 1 :].reshape(whole.shape)
        if self.kind == "none":
            whole = whole.reshape(len(scores), -1).mean(1)
            wrong = (whole - losses).abs() > _AGREE * losses.abs() + rounding
            if bool(wrong.any()):
                n = int(wrong.nonzero()[0])
                _refuse(f"{float(whole[n]):.6g} for sample {n} among {len(scores)}", f"{float(losses[n]):.6g}")
            return True
        total = weights.sum() if self.kind == "mean" else torch.ones_like(weights.sum())
        expected, size = losses.sum() / total, losses.abs().sum() / total
        number = 1 if self.kind == "mean" else len(scores)
        if not bool((whole.sum() - expected).abs() > _AGREE * size + number * rounding):
            return True
        if self.kind != "mean" or self._thorough:
            _refuse(
                f"{float(whole.sum()):.6g} for {len(scores)} samples together",
                f"{float(expected):.6g} as their {'weighted ' if self.varied else ''}{self.kind}",
            )
        self._thorough = True
        return False

    def _rounding(self, largest: float) -> float:
        """What the last digits of the scores, the largest of which is known, are worth in the loss of one sample."""
        return _SAME * (1 + largest) * float(self._slope.abs().max())

    def _find_reference(self, scores: Tensor, target: Tensor) -> None:
        """The sample with the largest slope, and what the loss makes of two of it.

        The last digits are all that is left of the slopes of memorised samples: with equal scores they have one.
        """
        steepest = 0.0
        for n in range(len(scores)):
            row, label = scores[n : n + 1].clone(), target[n : n + 1].clone()
            for here in ((row, label), (torch.full_like(row, 0.5), label)):
                value, slope = self._alone(*here)
                size = float(slope.abs().max())
                if size > steepest:  # no comparison with NaN is true
                    steepest, self._reference = size, here
                    self._value, self._slope = float(value.sum()), slope
            if n >= _FEW - 1 and steepest > 0:
                break
        if self._reference is None:
            slope = _value_and_slope(self._loss_fn, scores, target)[1]
            if bool(((slope != 0) & torch.isfinite(slope)).any()):
                _refuse("a loss with a slope for several samples together", "one without any slope")
            return
        value, slope = _value_and_slope(self._loss_fn, *self._beside(*self._reference))
        if value.ndim and len(value) == 2:
            self.kind = "none"
            return
        share = self._share(slope)
        kinds: dict[Literal["mean", "sum"], float] = {"mean": 0.5, "sum": 1.0}
        found = [kind for kind, expected in kinds.items() if abs(share - expected) < _AGREE]
        if not found or float((slope[0] - slope[1]).abs().max()) > _AGREE * steepest:
            first = float(slope[0].norm() / self._slope.norm())
            _refuse(
                f"a sample {first:.3g} and {share:.3g} times its own slope beside a copy of itself",
                "½ as a mean, or 1 as a sum",
            )
        self.kind = found[0]

    def _beside(self, row: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        assert self._reference is not None
        scores, label = self._reference
        return torch.cat([row, scores.to(row)]), torch.cat([target, label.to(target)])

    def _share(self, slope: Tensor) -> float:
        """How much of its own slope the reference, the last of several samples, has left."""
        share = float((slope[-1] * self._slope).sum() / self._slope.square().sum())
        off = (slope[-1] - share * self._slope).abs().max()
        if not (share > 0 and float(off) <= _AGREE * float(self._slope.abs().max())):
            _refuse("a sample beside another one a slope of another direction", "that of its own")
        return share

    def _beside_reference(self, row: Tensor, target: Tensor) -> float:
        value, slope = _value_and_slope(self._loss_fn, *self._beside(row, target))
        if not bool(torch.isfinite(value).all()):  # whoever takes the losses refuses them
            return 1.0
        share = self._share(slope)
        ratio = (1 - share) / share if self.kind == "mean" else 1.0
        if abs(ratio) < _SAME:  # a label that the mean leaves out
            self._check_left_out(row, target, slope)
            self.varied = True
            return 0.0
        own = 1 - share if self.kind == "mean" else 1.0
        alone, alone_slope = self._alone(row, target)
        expected = own * float(alone.sum()) + share * self._value
        rounding = 2 * self._rounding(float(row.abs().max()))
        off = _AGREE * (own * abs(float(alone.sum())) + share * abs(self._value)) + rounding
        if not abs(float(value.sum()) - expected) <= off:
            _refuse(f"{float(value.sum()):.6g} for two samples together", f"{expected:.6g}")
        steepest = max(float(self._slope.abs().max()), float(alone_slope.abs().max()))
        if own < 0 or (self.kind == "sum" and abs(share - 1) > _AGREE):
            _refuse(f"a sample {share:.3g} times its own slope beside another one", "once, or less in a mean")
        if not float((slope[0] - own * alone_slope[0]).abs().max()) <= _AGREE * steepest:
            _refuse("a sample beside another one a slope of another direction", "that of its own")
        ratio = _snapped(ratio)
        self.varied = self.varied or ratio != 1
        return ratio

    def _check_left_out(self, row: Tensor, target: Tensor, slope: Tensor) -> None:
        """Refuse a loss that leaves a sample out for its scores, as a maximum does, and not for its label."""
        assert self._reference is not None
        label = self._reference[1]
        left_out = torch.equal(label.to(target), target)
        if not left_out and target.is_floating_point() and not bool(slope[0].any()):
            # numbers seldom come twice; by itself a sample of weight 0 is 0/0, or 0
            alone = self._alone(row, target)[1]
            left_out = bool(((alone != 0) & torch.isfinite(alone)).any())
        if left_out:
            _refuse("a sample no slope beside another one that counts as much", "½ of its own as a mean, or 1 as a sum")

    def _alone(self, row: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return _value_and_slope(self._loss_fn, row, target)
        except (RuntimeError, ValueError, IndexError) as error:
            if type(error) not in (RuntimeError, ValueError, IndexError):  # the caller's own, who may wait for it
                raise
            raise InputError(
                f"loss_fn fails for one sample by itself ({error}); expected a loss of scores {tuple(row.shape)} and a "
                f"target {tuple(target.shape)}, not one over pairs of samples"
            ) from error


def _value_and_slope(
    loss_fn: Callable[[Tensor, Tensor], Tensor], scores: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    leaf = scores.detach().clone().requires_grad_()
    with torch.enable_grad():
        value = loss_fn(leaf, target)
        if not isinstance(value, Tensor):
            raise InputError(
                f"loss_fn gives a {type(value).__name__}; expected a tensor, of which slopes are taken: "
                "leave out float() and .item()"
            )
        if not value.requires_grad:  # it doesn't depend on the scores
            return value.detach().cpu().double(), torch.zeros(leaf.shape, dtype=torch.float64, device="cpu")
        (slope,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True, materialize_grads=True)
    return value.detach().cpu().double(), slope.cpu().double()  # not every device has float64


def _snapped(number: float) -> float:
    """The whole number that rounding has spoilt, if it is one."""
    whole = round(number)
    return float(whole) if whole and abs(number / whole - 1) < _SAME else number


def _refuse(together: str, alone: str) -> NoReturn:
    raise InputError(
        f"loss_fn gives {together}; from single samples follows {alone}. Expected a loss that is the sum or the "
        "(weighted) mean of one loss a sample: leave out terms over pairs or whole batches (contrastive and ranking "
        "losses, penalties on means of groups, weights that depend on the other samples), dropout and other random "
        "draws, and shapes that broadcast"
    )
