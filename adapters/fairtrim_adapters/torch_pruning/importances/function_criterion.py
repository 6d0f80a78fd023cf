"""A plain function of the damages, as a criterion."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from fairtrim import DamageTable, InputError
from fairtrim.criteria import Criterion

__all__ = ["FunctionCriterion"]


class FunctionCriterion(Criterion):
    """A function of the damages (G, C) that gives one value a channel, (C,); refused where it gives something else."""

    needs_sensitive_groups: ClassVar[bool] = False

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        if not callable(function):
            raise InputError(f"criterion={function!r}; expected a Criterion or a function (G, C) -> (C,)")
        self._function = function

    def bind(self, table: DamageTable) -> Callable[[Tensor], Tensor]:
        """Check what the function gives; see ``Criterion.bind``."""

        def checked(damage: Tensor) -> Tensor:
            values = self._function(damage)
            if not isinstance(values, Tensor):
                raise InputError(f"the criterion returned a {type(values).__name__}; expected a tensor (C,)")
            if values.shape != damage.shape[1:]:
                raise InputError(
                    f"the criterion returned shape {tuple(values.shape)} for damages {tuple(damage.shape)}; "
                    f"expected {tuple(damage.shape[1:])}"
                )
            return values.double()

        return checked
