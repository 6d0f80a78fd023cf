"""Ranges of a continuous sensitive feature, such as age in years or income, as sensitive groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fairtrim.arguments import require_number
from fairtrim.errors import InputError

from .sensitive_columns import sensitive_columns

__all__ = ["SensitiveBins", "continuous_column", "many_numbers"]

_MANY = 20
"""More groups that are numbers are hardly codes."""


@dataclass(frozen=True)
class SensitiveBins:
    """Ranges of a continuous feature: deciles, unless another number is asked for.

    As groups they go wherever sensitive features go, so that Fairlearn's ``MetricFrame`` shows the gap over deciles:
    ``metric_frame(model, [(x, y, bins(age))], sensitive_names={"age": bins.names})``. Bins that were made of some
    people serve others, too: the lowest and the highest one have no end.

    Attributes:
        edges: Where each bin but the lowest begins, (B − 1,) float64, increasing.
        names: Of the B bins, by number and by the values of whom they were made of, so that they are sorted as text.

    Raises:
        InputError: The edges do not increase, or the names are not one more.

    Example:
        >>> bins = SensitiveBins.of([23, 31, 31, 40, 58, 64], bins=3)
        >>> bins.names
        ('1: 23 to 23', '2: 31 to 40', '3: 58 to 64')
        >>> bins([18, 31, 45, 90]).tolist()
        [0, 1, 1, 2]
    """

    edges: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        own = self.edges.cpu() if isinstance(self.edges, Tensor) else self.edges
        edges = torch.as_tensor(own, dtype=torch.float64, device="cpu")
        if edges.ndim != 1 or not bool(torch.isfinite(edges).all()) or not bool((edges.diff() > 0).all()):
            raise InputError(f"edges={self.edges!r}; expected increasing finite numbers, (B - 1,)")
        if len(self.names) != len(edges) + 1:
            raise InputError(f"{len(self.names)} names for {len(edges)} edges; expected one more")
        object.__setattr__(self, "edges", edges)

    @classmethod
    def of(cls, values: Any, bins: int = 10) -> SensitiveBins:
        """Bins of about as many people each; people of the same value share one, so that there may be fewer.

        Args:
            values: Of the feature, (N,): numbers.
            bins: At most so many.

        Returns:
            The bins.

        Raises:
            InputError: The values are no finite numbers, or all the same; or ``bins`` is below 2.
        """
        require_number("bins", bins, at_least=2, whole=True)
        _, column = continuous_column(values)
        ordered = column.sort().values
        starts = ordered[torch.arange(1, bins, device="cpu") * len(ordered) // bins] if len(ordered) else ordered
        edges = torch.unique(starts[starts > ordered[:1]])
        if not len(edges):
            raise InputError(
                f"most of the {len(column)} values of the sensitive feature are the lowest one, "
                f"{ordered[:1].tolist()}; expected values that can be cut into at least two ranges of about as many "
                "people"
            )
        made = torch.bucketize(ordered, edges, right=True)
        width = len(str(len(edges) + 1))
        names = []
        for number in range(len(edges) + 1):
            own = ordered[made == number]
            names.append(f"{number + 1:0{width}d}: {float(own[0]):.6g} to {float(own[-1]):.6g}")
        return cls(edges, tuple(names))

    def __call__(self, values: Any) -> Tensor:
        """The bins of some people.

        Args:
            values: Of the feature, (N,).

        Returns:
            (N,) int64, positions in ``names``.

        Raises:
            InputError: The values are no finite numbers.
        """
        return torch.bucketize(continuous_column(values)[1], self.edges, right=True)


def many_numbers(groups: Sequence[Any]) -> str:
    """What to do about groups that are many numbers, such as ages in years, for the end of a message; else nothing.

    Example:
        >>> many_numbers(["0", "1"]), many_numbers([str(age) for age in range(18, 88)])
        ('', '; the groups are 70 numbers: cut a continuous feature into ranges with fairtrim.SensitiveBins')
    """
    numbers = [name for name in groups if isinstance(name, str) and name.removeprefix("-").isdecimal()]
    if len(groups) <= _MANY or len(numbers) < len(groups):
        return ""
    return f"; the groups are {len(groups)} numbers: cut a continuous feature into ranges with fairtrim.SensitiveBins"


def continuous_column(values: Any, batch: int | None = None) -> tuple[str, Tensor]:
    """Name and values, (N,) float64 on the CPU, of one continuous feature.

    It comes as sensitive features do: a tensor, an array, a series, a list, or a dict or data frame of one column.
    """
    where = "" if batch is None else f" of batch {batch}"
    try:
        n_samples = len(next(iter(values.values()), [])) if isinstance(values, Mapping) else len(values)
    except TypeError:
        raise InputError(
            f"the sensitive feature{where} is a {type(values).__name__}; expected numbers, (N,): a tensor, an array, a "
            "series or a list"
        ) from None
    columns = sensitive_columns(values, n_samples)
    if len(columns) != 1:
        raise InputError(
            f"the sensitive features{where} are {list(columns)}; expected one continuous feature to cut into bins: for "
            "crossings give groups, with the codes that SensitiveBins makes of the continuous ones"
        )
    ((name, column),) = columns.items()
    if not all(isinstance(value, Real) and math.isfinite(value) for value in column):
        raise InputError(
            f"the sensitive feature {name!r}{where} holds values that are no finite numbers; expected numbers, (N,)"
        )
    return name, torch.tensor(column, dtype=torch.float64, device="cpu")
