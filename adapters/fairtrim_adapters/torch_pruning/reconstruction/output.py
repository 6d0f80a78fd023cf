"""How the output layer is fitted to labels at last, where that is asked for."""

from __future__ import annotations

from typing import Literal, get_args

from fairtrim import InputError

__all__ = ["OutputRecalibration", "check_recalibration"]

OutputRecalibration = Literal["output", "threshold"]
"""What of the output layer is fitted to labels: all of it, or for two classes its threshold."""


def check_recalibration(given: OutputRecalibration | None) -> None:
    """Refuse what is none of the ways to fit an output layer.

    Example:
        >>> check_recalibration(None), check_recalibration("threshold")
        (None, None)
    """
    if given is not None and given not in get_args(OutputRecalibration):
        raise InputError(f"recalibrate_output={given!r}; expected 'output', 'threshold' or None")
