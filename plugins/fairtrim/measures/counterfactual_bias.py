"""Counterfactual pairs: the same person with the sensitive attribute flipped, and how much a network minds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fairtrim.errors import InputError
from fairtrim.unlearning.output_layer_problem import two_or_more

__all__ = ["ColumnFlip", "CounterfactualBias", "counterfactual_bias"]


@dataclass(frozen=True)
class ColumnFlip:
    """Flip a sensitive attribute in rows of a table.

    Args:
        one_hot: Columns of the attribute, one for each value, by position or name, holding 0 and 1: the 1 moves on to
            the next column, from the last to the first; with two columns they are swapped. For columns that hold
            something else, such as standardised ones: column -> (value where it is absent, value where it is present).
        binary: Single column of an attribute of two values -> its two values as the network sees them, e.g.
            standardised ones.
        interactions: Column that holds a product -> the columns it is the product of, computed anew.
        names: Names of all columns, if columns are given by name.

    Raises:
        InputError: Nothing is to be flipped, or a column is unknown or named twice.

    Example:
        >>> flip = ColumnFlip(one_hot=["sex_Female", "sex_Male"], names=["age", "sex_Female", "sex_Male"])
        >>> flip(torch.tensor([[30.0, 1.0, 0.0], [40.0, 0.0, 1.0]])).tolist()
        [[30.0, 0.0, 1.0], [40.0, 1.0, 0.0]]
        >>> standardised = ColumnFlip(one_hot={0: (-0.5, 2.0), 1: (-2.0, 0.5)})
        >>> standardised(torch.tensor([[2.0, -2.0], [-0.5, 0.5]])).tolist()
        [[-0.5, 0.5], [2.0, -2.0]]
    """

    one_hot: Sequence[int | str] | Mapping[int | str, tuple[float, float]] = ()
    binary: Mapping[int | str, tuple[float, float]] = field(default_factory=dict)
    interactions: Mapping[int | str, Sequence[int | str]] = field(default_factory=dict)
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not self.one_hot and not self.binary:
            raise InputError("nothing to flip; expected one_hot= or binary= columns of the sensitive attribute")
        if len(self.one_hot) == 1:
            raise InputError(
                f"one_hot={list(self.one_hot)} is a single column; expected one column for each value, or "
                "binary={column: (value, other_value)}"
            )
        if len(self.binary) > 1:
            raise InputError(
                f"binary={dict(self.binary)} names {len(self.binary)} columns, and whether they are of one attribute "
                "can't be told; expected one_hot={column: (value where absent, value where present), ...} with a "
                "column for each value of one attribute, or a ColumnFlip for each of several: "
                "lambda x: second(first(x))"
            )
        for option, columns in (("one_hot", self._one_hot()), ("binary", self.binary)):
            for column, values in columns.items():
                if len(values) != 2 or values[0] == values[1]:
                    raise InputError(f"{option}={{{column!r}: {values}}}; expected two different values of the column")
        factors = [factor for product in self.interactions.values() for factor in product]
        for column in (*self.one_hot, *self.binary, *self.interactions, *factors):
            self._position(column)
        positions = [self._position(column) for column in (*self.one_hot, *self.binary, *self.interactions)]
        if len(set(positions)) < len(positions):
            raise InputError(
                f"one_hot={list(self.one_hot)}, binary={list(self.binary)}, interactions={list(self.interactions)} "
                "name a column twice; expected each once"
            )

    def _one_hot(self) -> dict[int | str, tuple[float, float]]:
        """The value of each column where it is absent, and where it is present."""
        if isinstance(self.one_hot, Mapping):
            return dict(self.one_hot)
        return dict.fromkeys(self.one_hot, (0.0, 1.0))

    def _position(self, column: int | str) -> int:
        if isinstance(column, str):
            if self.names is None or column not in self.names:
                known = "pass names=, the names of all columns" if self.names is None else f"known: {list(self.names)}"
                raise InputError(f"column {column!r} is unknown; {known}")
            return list(self.names).index(column)
        if column < 0:
            raise InputError(f"column {column} is negative; expected a position from 0, or a name")
        return int(column)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Rows with the attribute flipped.

        Args:
            inputs: (N, D).

        Returns:
            (N, D), a copy.

        Raises:
            InputError: The rows don't have these columns, or hold other values than they should.
        """
        factors = [factor for product in self.interactions.values() for factor in product]
        used = [self._position(column) for column in (*self.one_hot, *self.binary, *self.interactions, *factors)]
        if not isinstance(inputs, Tensor) or inputs.ndim != 2 or not 0 <= min(used) <= max(used) < inputs.shape[1]:
            got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise InputError(f"inputs are {got}; expected a tensor (N, D) with at least {max(used) + 1} columns")
        if self.names is not None and len(self.names) != inputs.shape[1]:
            raise InputError(f"inputs have {inputs.shape[1]} columns; expected {len(self.names)}, as many as names")
        flipped = inputs.clone()
        if not len(inputs):
            return flipped
        if self.one_hot:
            columns, ends = zip(*self._one_hot().items(), strict=True)
            positions = [self._position(column) for column in columns]
            block = inputs[:, positions]
            absent, present = torch.tensor(ends, dtype=torch.float64).to(inputs).unbind(1)
            here, elsewhere = torch.isclose(block, present), torch.isclose(block, absent)
            for k, column in enumerate(columns):
                strange = ~(here | elsewhere)[:, k]
                if bool(strange.any()):
                    raise InputError(
                        f"column {column!r} of one_hot={list(self.one_hot)} holds {float(block[strange, k][0]):g}; "
                        f"expected {ends[k][0]:g} and {ends[k][1]:g}. For other values, such as those of "
                        "standardised columns, name the two of each: "
                        "one_hot={column: (value where absent, value where present), ...}"
                    )
            several = here.sum(1) != 1
            if bool(several.any()):
                row = int(several.nonzero()[0])
                where = "at 1.0" if not isinstance(self.one_hot, Mapping) else "at their value where present"
                raise InputError(
                    f"row {row} has {int(here[row].sum())} columns of one_hot={list(self.one_hot)} {where}; "
                    "expected one"
                )
            flipped[:, positions] = torch.where(here.roll(1, dims=1), present, absent)
        for column, (first, second) in self.binary.items():
            position = self._position(column)
            values = inputs[:, position]
            low, high = torch.tensor([first, second], dtype=torch.float64).to(values)
            is_low, is_high = torch.isclose(values, low), torch.isclose(values, high)
            if not bool((is_low | is_high).all()):
                other = float(values[~(is_low | is_high)][0])
                raise InputError(f"column {column!r} holds {other}; expected {first} or {second} only")
            flipped[:, position] = torch.where(is_low, high, low)
        for column, product in self.interactions.items():
            flipped[:, self._position(column)] = flipped[:, [self._position(factor) for factor in product]].prod(1)
        return flipped


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
        n_pairs: N.
    """

    mean_change: float
    flips: float
    relative_change: float
    cross_entropy: float
    n_pairs: int


def counterfactual_bias(
    scores: Tensor, flipped: Tensor, target: Tensor, weight: Tensor | None = None
) -> CounterfactualBias:
    """Figures of pairs.

    Args:
        scores: Class scores of the people as they are, (N, K) or a single logit (N, 1).
        flipped: Of their counterfactuals.
        target: Labels, (N,).
        weight: Sample weights, (N,), or None for 1 each.

    Returns:
        The figures.

    Raises:
        InputError: The two sides are not alike in shape.

    Example:
        >>> scores, flipped = torch.tensor([[1.0], [3.0]]), torch.tensor([[-1.0], [3.0]])
        >>> bias = counterfactual_bias(scores, flipped, torch.ones(2).long())
        >>> bias.flips, bias.n_pairs
        (0.5, 2)
    """
    if scores.shape != flipped.shape:
        raise InputError(f"scores are {tuple(scores.shape)} and {tuple(flipped.shape)}; expected pairs of one shape")
    sides = [two_or_more(side.double()).log_softmax(1) for side in (scores, flipped)]
    here, there = (side.gather(1, target[:, None]).squeeze(1) for side in sides)
    change = centred(scores.double()) - centred(flipped.double())
    share = torch.ones(len(target), dtype=torch.float64) if weight is None else weight.double()
    share = share / share.sum()
    here_centred = centred(scores.double())
    mean = share @ here_centred
    spread = (share @ (here_centred - mean).square()).sqrt().mean().clamp(min=1e-12)
    return CounterfactualBias(
        mean_change=float(share @ (here.exp() - there.exp()).abs()),
        flips=float(share @ (labels_of(scores) != labels_of(flipped)).double()),
        relative_change=float((share @ change.abs()).mean() / spread),
        cross_entropy=float(-(share @ here)),
        n_pairs=len(target),
    )


def centred(scores: Tensor) -> Tensor:
    """What matters of scores: the margin for two classes, else the scores less their mean.

    Args:
        scores: (N, K) or a single logit (N, 1).

    Returns:
        (N, 1) or (N, K).
    """
    if scores.shape[1] == 1:
        return scores
    return scores[:, 1:] - scores[:, :1] if scores.shape[1] == 2 else scores - scores.mean(1, keepdim=True)


def labels_of(scores: Tensor) -> Tensor:
    """Decisions: the largest score, or whether a single logit is positive.

    Args:
        scores: (N, K) or a single logit (N, 1).

    Returns:
        (N,) int64.
    """
    return (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(1)
