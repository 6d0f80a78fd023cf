"""The output layer, fitted to labels at last where that is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

from torch import nn

from fairtrim import InputError
from fairtrim.network import recalibration

__all__ = ["OutputRecalibration", "check_recalibration", "recalibrated"]

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


def recalibrated(model: nn.Module, loader: Iterable[Any], layer: OutputRecalibration, **options: Any) -> nn.Module:
    """Fit the output layer in place; see ``fairtrim.network.recalibration.recalibrate_output``."""
    fitted: nn.Module = recalibration.recalibrate_output(model, loader, layer=layer, **options)
    return fitted
