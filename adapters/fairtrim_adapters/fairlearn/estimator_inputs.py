"""What scikit-learn's users give an estimator, as a network and a validation set take it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairtrim import InputError
from fairtrim.data.batches import tensors_of

__all__ = ["number_of_samples", "sensitive_columns", "tensor_of_entry"]


def number_of_samples(inputs: Any) -> int:
    """N.

    Args:
        inputs: A tensor, or a dict of tensors.

    Returns:
        The number of rows.

    Raises:
        InputError: The entries of a dict disagree, or there is none.
    """
    lengths = [len(tensor) for tensor in tensors_of(inputs)]
    if len(set(lengths)) != 1:
        raise InputError(f"the entries of X have {lengths} rows; expected at least one entry and as many rows in each")
    return lengths[0]


def tensor_of_entry(values: Any, name: str, dtype: torch.dtype, estimator: Any) -> Tensor:
    """An entry of a dict of inputs: fractions in the network's type, whole numbers as they are.

    Args:
        values: A tensor, an array or a frame.
        name: Of the entry.
        dtype: The network's.
        estimator: Whom messages are from.

    Returns:
        On the CPU.
    """
    from sklearn.utils.validation import check_array

    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.to(torch.float32) if values.dtype in (torch.bfloat16, torch.float16) else values
        values = values.numpy()
    array = check_array(values, dtype="numeric", ensure_2d=False, allow_nd=True, input_name=name, estimator=estimator)
    return torch.tensor(array, dtype=dtype if array.dtype.kind == "f" else None, device="cpu")


def sensitive_columns(sensitive: Any, n_samples: int, *, fractions: bool = False) -> dict[str, list[Any]]:
    """Columns of the sensitive features by name, as plain values.

    Args:
        sensitive: A series, a data frame, a dict of columns, or an array, tensor or list (N,) or (N, S).
        n_samples: N.
        fractions: Whether they may be no groups, but numbers that are cut into ranges.

    Returns:
        S lists of N values.

    Raises:
        InputError: They have another form or length, or a value is missing or a fraction.
    """
    forms = "expected a series, a data frame, a dict of columns, or an array (N,) or (N, S)"
    columns: dict[str, Any]
    if isinstance(sensitive, Tensor):
        sensitive = sensitive.detach().cpu().numpy()
    if isinstance(sensitive, Mapping):
        columns = {str(name): values for name, values in sensitive.items()}
    elif hasattr(sensitive, "columns"):
        names = [str(name) for name in sensitive.columns]
        if len(set(names)) < len(names):
            raise InputError(f"the sensitive features are named {names}; expected different names")
        columns = {str(name): sensitive[name] for name in sensitive.columns}
    elif hasattr(sensitive, "to_numpy"):
        name = getattr(sensitive, "name", None)
        columns = {"sensitive_feature_0" if name is None else str(name): sensitive}
    else:
        array = np.asarray(sensitive, dtype=object)
        if array.ndim not in (1, 2):
            raise InputError(f"sensitive_features is a {type(sensitive).__name__} of {array.ndim} dimensions; {forms}")
        if len(array) != n_samples:
            raise InputError(
                f"sensitive_features has the shape {array.shape} for {n_samples} rows of X; expected ({n_samples},) or "
                f"({n_samples}, S)"
            )
        columns = {f"sensitive_feature_{s}": column for s, column in enumerate(array.reshape(n_samples, -1).T)}
    if not columns:
        raise InputError(f"sensitive_features has no column; {forms}")
    return {name: _plain_values(values, name, n_samples, fractions) for name, values in columns.items()}


def _plain_values(column: Any, name: str, n_samples: int, fractions: bool) -> list[Any]:
    """Names and whole numbers, or any numbers, one a person."""
    import pandas as pd

    values = np.asarray(column.detach().cpu().numpy() if isinstance(column, Tensor) else column, dtype=object)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape != (n_samples,):
        raise InputError(
            f"sensitive feature {name!r} has the shape {values.shape} for {n_samples} rows of X; expected "
            f"({n_samples},): cross-validation cuts data frames, series and arrays to each fold, but not dicts"
        )
    missing = int(pd.isna(values).sum())
    if missing:
        raise InputError(
            f"sensitive feature {name!r} is missing for {missing} of {n_samples} people; expected a value for each: "
            "leave those people out, or give the missing value a name of its own, e.g. 'unknown'"
        )
    plain = [value.item() if isinstance(value, np.generic) else value for value in values]
    if fractions:
        return plain
    fraction = next((value for value in plain if isinstance(value, float) and not value.is_integer()), None)
    if fraction is not None:
        raise InputError(
            f"sensitive feature {name!r} holds the fraction {fraction!r}; expected values that name groups: cut a "
            "continuous feature into ranges first, with bins=10 or fairtrim.SensitiveBins"
        )
    return [int(value) if isinstance(value, float) else value for value in plain]
