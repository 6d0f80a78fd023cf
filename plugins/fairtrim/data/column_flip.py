"""A sensitive attribute flipped in rows of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from fairtrim.arguments import RandomState, random_generator, require_random_state
from fairtrim.errors import InputError

__all__ = ["ColumnFlip"]


@dataclass(frozen=True)
class ColumnFlip:
    """Flip a sensitive attribute in rows of a table.

    Args:
        one_hot: Columns of the attribute, one for each value, by position or name, holding 0 and 1: the 1 moves on to
            the next column, from the last to the first; with two columns they are swapped. For columns that hold
            something else, such as standardised ones: column -> (value where it is absent, value where it is present).
        binary: Single column of an attribute of two values -> its two values as the network sees them, e.g.
            standardised ones.
        codes: Single column of an attribute of several values -> all of them as the network sees them, e.g. (0, 1, 2):
            each moves on to the next, from the last to the first.
        other: How many values on the 1, or the code, moves; ``"random"`` for another value drawn for each row alike
            among all others, because moving on by one makes only some of the pairs of three values and more. See
            ``every``.
        random_state: Of the draw: a seed, with which equal inputs have equal draws, or a torch.Generator.
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
        >>> town = ColumnFlip(codes={0: (0, 1, 2)})
        >>> [flip(torch.tensor([[0.0], [2.0]])).flatten().tolist() for flip in town.every()]
        [[1.0, 0.0], [2.0, 1.0]]
    """

    one_hot: Sequence[int | str] | Mapping[int | str, tuple[float, float]] = ()
    binary: Mapping[int | str, tuple[float, float]] = field(default_factory=dict)
    interactions: Mapping[int | str, Sequence[int | str]] = field(default_factory=dict)
    codes: Mapping[int | str, Sequence[float]] = field(default_factory=dict)
    other: int | Literal["random"] = 1
    random_state: RandomState = 0
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not self.one_hot and not self.binary and not self.codes:
            raise InputError(
                "nothing to flip; expected one_hot= or binary= columns of the sensitive attribute, or codes="
            )
        if len(self.one_hot) == 1:
            raise InputError(
                f"one_hot={list(self.one_hot)} is a single column; expected one column for each value, or "
                "binary={column: (value, other_value)}"
            )
        if isinstance(self.binary, Mapping) and len(self.binary) > 1:
            raise InputError(
                f"binary={dict(self.binary)} names {len(self.binary)} columns, and whether they are of one attribute "
                "can't be told; expected one_hot={column: (value where absent, value where present), ...} with a "
                "column for each value of one attribute, or a ColumnFlip for each of several: "
                "lambda x: second(first(x))"
            )
        for option, columns in (("one_hot", self._one_hot()), ("binary", self.binary), ("codes", self.codes)):
            if not isinstance(columns, Mapping):
                raise InputError(f"{option}={columns!r}; expected a dict: {{column: values}}")
            for column, values in columns.items():
                _check_values(f"{option}={{{column!r}: {values!r}}}", values, several=option == "codes")
        require_random_state(self.random_state)
        if self.other != "random":
            fewest = min(self._sizes())
            if isinstance(self.other, bool) or not isinstance(self.other, int) or not 0 < self.other < fewest:
                raise InputError(
                    f"other={self.other!r} of {fewest} values; expected a whole number from 1 to {fewest - 1}, or "
                    "'random'"
                )
        factors = [factor for product in self.interactions.values() for factor in product]
        named = (*self.one_hot, *self.binary, *self.codes, *self.interactions)
        for column in (*named, *factors):
            self._position(column)
        if len({self._position(column) for column in named}) < len(named):
            raise InputError(
                f"one_hot={list(self.one_hot)}, binary={list(self.binary)}, codes={list(self.codes)}, "
                f"interactions={list(self.interactions)} name a column twice; expected each once"
            )

    def _coded(self) -> dict[int | str, Sequence[float]]:
        """Single columns with all values of an attribute."""
        return {**self.binary, **self.codes}

    def _sizes(self) -> list[int]:
        """How many values each attribute has."""
        return ([len(self.one_hot)] if self.one_hot else []) + [len(values) for values in self._coded().values()]

    def every(self) -> tuple[ColumnFlip, ...]:
        """A flip to each other value, so that together they make every pair of values.

        Returns:
            One fewer than the attribute has values: the first moves on by one, the last by all but one.

        Raises:
            InputError: It flips several attributes at once.
        """
        if len(sizes := self._sizes()) > 1:
            raise InputError(
                f"one_hot={list(self.one_hot)}, binary={list(self.binary)}, codes={list(self.codes)} are of several "
                "attributes; expected one: take a ColumnFlip for each"
            )
        return tuple(replace(self, other=number) for number in range(1, sizes[0]))

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
        used = [self._position(column) for column in (*self.one_hot, *self._coded(), *self.interactions, *factors)]
        if not isinstance(inputs, Tensor) or inputs.ndim != 2 or not 0 <= min(used) <= max(used) < inputs.shape[1]:
            got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise InputError(f"inputs are {got}; expected a tensor (N, D) with at least {max(used) + 1} columns")
        if self.names is not None and len(self.names) != inputs.shape[1]:
            raise InputError(f"inputs have {inputs.shape[1]} columns; expected {len(self.names)}, as many as names")
        device, inputs = inputs.device, inputs.cpu()  # codes are told apart in float64, which some devices don't have
        flipped = inputs.clone()
        if not len(inputs):
            return flipped.to(device)
        generator = random_generator(self.random_state)

        def moved(value: Tensor, size: int) -> Tensor:
            """Positions of other values, (N,)."""
            steps = self.other
            if steps == "random":
                return (value + torch.randint(1, size, (len(value),), generator=generator, device="cpu")) % size
            return (value + steps) % size

        if self.one_hot:
            columns, ends = zip(*self._one_hot().items(), strict=True)
            positions = [self._position(column) for column in columns]
            block = inputs[:, positions]
            absent, present = torch.tensor(ends, dtype=torch.float64, device="cpu").to(inputs).unbind(1)
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
            there = moved(here.int().argmax(1), len(columns))
            flipped[:, positions] = torch.where(
                there[:, None] == torch.arange(len(columns), device="cpu"), present, absent
            )
        for column, codes in self._coded().items():
            held = inputs[:, self._position(column)]
            exact = torch.tensor([float(code) for code in codes], dtype=torch.float64, device="cpu")
            values, rounding = exact.to(held), 1e-2 if held.is_floating_point() else 0.0
            kept = torch.isclose(values.double(), exact, rounding).all()
            if len(torch.unique(values)) < len(values) or not bool(kept):
                raise InputError(
                    f"column {column!r} is {inputs.dtype}, in which {list(codes)} can't be told apart; expected inputs "
                    "of a finer type"
                )
            distance = (held.double()[:, None] - values.double()).abs()
            nearest = distance.argmin(1)  # of codes that are close to each other, too
            strange = ~torch.isclose(held, values[nearest])
            if bool(strange.any()):
                found = float(held[strange][0])
                known = " or ".join(map(str, codes)) if len(codes) == 2 else f"one of {list(codes)}"
                raise InputError(f"column {column!r} holds {found}; expected {known} only")
            flipped[:, self._position(column)] = values[moved(nearest, len(values))]
        for column, product in self.interactions.items():
            flipped[:, self._position(column)] = flipped[:, [self._position(factor) for factor in product]].prod(1)
        return flipped.to(device)


def _check_values(given: str, values: Sequence[float], *, several: bool) -> None:
    """Refuse what are no two different numbers, or more where there may be several."""
    more = ", or more" if several else ""
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        raise InputError(f"{given}; expected two different values of the column{more}, as numbers") from None
    wrong = len(numbers) < 2 or (len(numbers) > 2 and not several) or not all(map(math.isfinite, numbers))
    if wrong or len(set(numbers)) < len(numbers):
        raise InputError(f"{given}; expected two different values of the column{more}, finite ones")
