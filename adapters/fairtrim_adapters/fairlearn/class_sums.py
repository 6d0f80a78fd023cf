"""FairPrune's bias measures for K classes, called like Fairlearn's differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fairtrim import InputError
from fairtrim.data.sensitive_groups import SensitiveEncoder
from fairtrim.measures.class_sums import class_sum
from fairtrim.measures.group_counts import GroupCounts

from .estimator_inputs import sensitive_columns

__all__ = ["eodd", "eopp0", "eopp1"]


def eopp0(
    y_true: npt.ArrayLike, y_pred: npt.ArrayLike, *, sensitive_features: Any, sample_weight: npt.ArrayLike | None = None
) -> float:
    """Eopp0 of FairPrune (Wu and others, MICCAI 2022): Σ_k |TNR_k^1 − TNR_k^0|, each class k against the rest.

    A sum, as the paper prints it. The numbers in its tables are means over the classes: divide by K, Eodd by 2 K.

    Args:
        y_true: Labels of any kind, (N,).
        y_pred: Predicted labels, (N,).
        sensitive_features: As for ``fairlearn.metrics``; of several columns the crossings are compared. Of more than
            two groups: the largest over pairs.
        sample_weight: (N,), or None.

    Returns:
        In 0 … K; NaN if a group has nobody that a rate is defined for: merge or drop the group, or the class.

    Raises:
        InputError: The columns don't have N rows, something is missing, labels and predictions are of two kinds, a
            weight is negative, or a sensitive feature is a fraction.

    Example:
        >>> eopp0([0, 1, 2, 2, 1, 0], [0, 1, 2, 2, 2, 0], sensitive_features=["a", "a", "a", "b", "b", "b"])
        0.5
    """
    return _class_sum("eopp0", y_true, y_pred, sensitive_features, sample_weight)


def eopp1(
    y_true: npt.ArrayLike, y_pred: npt.ArrayLike, *, sensitive_features: Any, sample_weight: npt.ArrayLike | None = None
) -> float:
    """Eopp1 of FairPrune: Σ_k |TPR_k^1 − TPR_k^0|, each class k against the rest; otherwise as ``eopp0``.

    Args:
        y_true: Labels of any kind, (N,).
        y_pred: Predicted labels, (N,).
        sensitive_features: As for ``eopp0``.
        sample_weight: (N,), or None.

    Returns:
        In 0 … K; NaN as of ``eopp0``.

    Example:
        >>> eopp1([0, 1, 2, 2, 1, 0], [0, 1, 2, 2, 2, 0], sensitive_features=["a", "a", "a", "b", "b", "b"])
        1.0
    """
    return _class_sum("eopp1", y_true, y_pred, sensitive_features, sample_weight)


def eodd(
    y_true: npt.ArrayLike, y_pred: npt.ArrayLike, *, sensitive_features: Any, sample_weight: npt.ArrayLike | None = None
) -> float:
    """Eodd of FairPrune: Σ_k |TPR_k^1 − TPR_k^0 + FPR_k^1 − FPR_k^0|; otherwise as ``eopp0``.

    The two differences of a class can cancel each other: of a group of whom everything said is wrong, beside one of
    whom everything is right, it is 0. Fairlearn's ``equalized_odds_difference`` takes the larger.

    Args:
        y_true: Labels of any kind, (N,).
        y_pred: Predicted labels, (N,).
        sensitive_features: As for ``eopp0``.
        sample_weight: (N,), or None.

    Returns:
        In 0 … 2 K; NaN as of ``eopp0``.

    Example:
        >>> eodd([0, 1, 2, 2, 1, 0], [0, 1, 2, 2, 2, 0], sensitive_features=["a", "a", "a", "b", "b", "b"])
        1.5
    """
    return _class_sum("eodd", y_true, y_pred, sensitive_features, sample_weight)


def _class_sum(measure: str, y_true: Any, y_pred: Any, sensitive_features: Any, sample_weight: Any) -> float:
    import pandas as pd

    target, given = np.asarray(y_true), np.asarray(y_pred)
    n = target.size
    try:
        weight = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("the sample weights are no numbers; expected finite weights of at least 0, (N,)") from None
    shapes = [column.shape for column in (target, given, weight) if column is not None]
    if not n or any(shape != (n,) for shape in shapes):
        raise InputError(f"labels, predictions and weights have the shapes {shapes}; expected (N,) each, N at least 1")
    if weight is not None and not (np.isfinite(weight) & (weight >= 0)).all():
        raise InputError("sample weights are negative or not finite; expected finite weights of at least 0, (N,)")
    missing = int(pd.isna(target).sum() + pd.isna(given).sum())
    if missing:
        raise InputError(f"{missing} labels or predictions are missing; expected one for each person")
    words = {isinstance(label, str) for label in np.concatenate([target.astype(object), given.astype(object)])}
    if len(words) > 1:
        raise InputError("some labels or predictions are strings and some are not; expected both of one kind")
    classes, code = np.unique(np.concatenate([target, given]), return_inverse=True)
    labels = torch.from_numpy(code.reshape(2, n))
    member = SensitiveEncoder().encode(sensitive_columns(sensitive_features, n), n)
    counts = GroupCounts.of(
        torch.nn.functional.one_hot(labels[1], max(2, len(classes))).double(),
        labels[0],
        member.argmax(1),
        n_groups=member.shape[1],
        weight=None if weight is None else torch.from_numpy(weight),
    )
    return float(class_sum(measure, counts))
