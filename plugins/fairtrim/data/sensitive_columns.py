"""Codes of sensitive features: the columns of one batch as plain values, and one name for equal codes."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairtrim.errors import InputError

__all__ = ["code_name", "plain_code", "sensitive_columns", "weight_columns"]


def plain_code(value: Any) -> Any:
    """A code as Python's own value: bytes as a string, a whole number as an int whatever its type.

    Example:
        >>> plain_code(1.0), plain_code(np.float32(1)), plain_code(b"Male"), plain_code(True), plain_code(0.5)
        (1, 1, 'Male', True, 0.5)
    """
    if isinstance(value, Tensor | np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, str):
        return str.__str__(value)  # the value of a string that is a member of an Enum, not its place
    if isinstance(value, numbers.Real | Decimal) and not isinstance(value, bool):
        whole = math.floor(value) if math.isfinite(value) else None
        return whole if whole == value else value
    return value


def code_name(names: Sequence[str] | Mapping[Any, str] | None, value: Any, feature: str) -> str:
    """Name of a code.

    A sequence of names is indexed by integer codes. A fraction names no group by itself and is refused.

    Example:
        >>> code_name(None, 1.0, "sex"), code_name(["Female", "Male"], 1.0, "sex")
        ('1', 'Male')
    """
    code = plain_code(value)
    if names is None:
        if isinstance(code, numbers.Real | Decimal) and not isinstance(code, int):
            raise InputError(
                f"sensitive feature {feature!r} holds {float(code):.6g}; expected codes of groups: whole numbers, "
                "strings or booleans. Cut a continuous feature into ranges first, with fairtrim.SensitiveBins; "
                "weights of people, one column for each group, are taken by importances and damage tables "
                "if sensitive_weights=True says so"
            )
        return str(code)
    try:
        if isinstance(names, Sequence) and code < 0:  # the code of a missing value in pandas, not the last name
            raise IndexError
        return str(names[value] if isinstance(names, Mapping) and value in names else names[code])
    except (KeyError, IndexError, TypeError):
        known = list(names) if isinstance(names, Mapping) else list(range(len(names)))
        raise InputError(
            f"sensitive feature {feature!r} has the value {code!r}, which sensitive_names does not name "
            f"(named: {known})"
        ) from None


def _column(values: Any) -> list[Any]:
    if isinstance(values, Tensor | np.ndarray):
        values = values.tolist()
    return [value.item() if isinstance(value, Tensor | np.generic) else value for value in values]


def _is_missing(value: Any) -> bool:
    try:
        return value is None or bool(value != value)  # NaN differs from itself
    except TypeError:  # pandas.NA has no truth value
        return True


def _is_column(value: Any) -> bool:
    """Whether an entry of a list is a column of N values, not the value of one sample."""
    return isinstance(value, list | tuple) or (isinstance(value, Tensor | np.ndarray) and value.ndim > 0)


def sensitive_columns(sensitive: Any, n_samples: int, *, whose: str = "samples of a batch") -> dict[str, list[Any]]:
    """Columns of the sensitive features of one batch.

    They come as (N,) or (N, S) numbers, booleans or strings; a dict or data frame of S columns by name; or a list of S
    columns, as the default collate function makes of strings. Gives S lists of N values by feature name (``sensitive``
    for one unnamed, else ``sensitive_0`` …). ``whose``: the samples' name in messages.

    Example:
        >>> sensitive_columns(torch.tensor([[0.0, 1.0], [1.0, 1.0]]), 2)
        {'sensitive_0': [0.0, 1.0], 'sensitive_1': [1.0, 1.0]}
    """
    if hasattr(sensitive, "columns"):  # a data frame
        columns = {str(name): _column(sensitive[name]) for name in sensitive.columns}
    elif isinstance(sensitive, Mapping):
        columns = {str(name): _column(values) for name, values in sensitive.items()}
    else:
        if isinstance(sensitive, Tensor | np.ndarray):
            sensitive = sensitive.cpu() if isinstance(sensitive, Tensor) else sensitive  # once for all columns
            if sensitive.ndim not in (1, 2):
                raise InputError(
                    f"the sensitive features have shape {tuple(sensitive.shape)} for {n_samples} samples; expected "
                    "(N,), or (N, S) for S features"
                )
            rows = [_column(sensitive)] if sensitive.ndim == 1 else [_column(column) for column in sensitive.T]
        elif hasattr(sensitive, "to_numpy"):  # a series
            rows = [_column(sensitive)]
        elif len(sensitive) and _is_column(sensitive[0]):
            rows = [_column(column) for column in sensitive]
        else:
            rows = [_column(sensitive)]
        columns = {"sensitive" if len(rows) == 1 else f"sensitive_{s}": row for s, row in enumerate(rows)}
    if not columns:
        raise InputError("the sensitive features have no column; expected at least one, or (inputs, target) alone")
    for name, column in columns.items():
        if len(column) != n_samples:
            raise InputError(
                f"sensitive feature {name!r} has {len(column)} values for {n_samples} samples; expected as many"
            )
        missing = sum(map(_is_missing, column))
        if missing:
            raise InputError(
                f"sensitive feature {name!r} is missing for {missing} of {n_samples} {whose}; leave those "
                "people out, or give the missing value a name of its own, e.g. 'unknown'"
            )
    return columns


def weight_columns(sensitive: Any, n_samples: int, batch: int | None) -> dict[str, Tensor]:
    """Weights of the people of one batch in each group.

    They come as (N, G) numbers, a dict or data frame of G columns by name, or a list of G columns. Gives G columns by
    name (``weights_0`` … if they have none), (N,) float64 on the CPU each.

    Example:
        >>> weight_columns({"young": [0.25, 1.0], "old": [0.75, 0.0]}, 2, 0)["old"]
        tensor([0.7500, 0.0000], dtype=torch.float64)
    """
    where = "a batch" if batch is None else f"batch {batch}"
    names: list[str] | None = None
    if not isinstance(sensitive, Tensor | np.ndarray):
        columns = sensitive_columns(sensitive, n_samples)
        if isinstance(sensitive, Mapping) or hasattr(sensitive, "columns"):
            names = list(columns)
        sensitive = np.array(list(columns.values()), dtype=object).T
    try:
        values = sensitive.detach().cpu() if isinstance(sensitive, Tensor) else np.asarray(sensitive).astype(np.float64)
        weights = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError):
        raise InputError(
            f"the sensitive features of {where} are no numbers, although sensitive_weights=True says that they are "
            "weights; expected (N, G), one column of weights for each group: leave sensitive_weights out for groups by "
            "value"
        ) from None
    if weights.ndim != 2 or len(weights) != n_samples or not weights.shape[1]:
        raise InputError(
            f"the weights of {where} have shape {tuple(weights.shape)} for {n_samples} samples; expected (N, G), one "
            "column of weights for each group: leave sensitive_weights out for groups by value"
        )
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise InputError(
            f"the weight columns of {where} hold negative or non-finite values; expected finite weights of at least 0"
        )
    return dict(zip(names or [f"weights_{g}" for g in range(weights.shape[1])], weights.T, strict=True))
