"""AIF360's datasets as tensors and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from fairtrim import InputError
from fairtrim.data.sensitive_columns import plain_code

from .library import BinaryLabelDataset, MulticlassLabelDataset

__all__ = ["DatasetTensors", "LabelledDataset", "from_tensors", "to_tensors"]

LabelledDataset: TypeAlias = BinaryLabelDataset | MulticlassLabelDataset
"""A dataset of AIF360 whose labels are two values, or favorable and unfavorable ones."""


@dataclass(frozen=True)
class DatasetTensors:
    """A dataset's columns as tensors on the CPU, which share no memory with it.

    Attributes:
        inputs: Features, (N, D).
        target: Classes of the labels, (N,) int64 below K: of two labels 1 for the favorable one and 0 for the
            unfavorable one.
        weight: Instance weights, (N,) float64.
        feature_names: Names of the D features.
        protected_attributes: Protected attributes by name, (N,) float64 each.
        labels: The dataset's K labels by class: the unfavorable and the favorable one, or more, sorted.

    Example:
        >>> dataset = from_tensors(
        ...     torch.eye(2), torch.tensor([1, 0]), feature_names=["x", "sex"], protected_attributes=["sex"]
        ... )
        >>> tensors = to_tensors(dataset)
        >>> len(tensors), tensors.feature_names, tensors.weight.tolist()
        (2, ('x', 'sex'), [1.0, 1.0])
    """

    inputs: Tensor
    target: Tensor
    weight: Tensor
    feature_names: tuple[str, ...]
    protected_attributes: dict[str, Tensor]
    labels: tuple[float, ...]

    def __len__(self) -> int:
        """N."""
        return len(self.target)

    def group_weights(self, attributes: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Instance weights in every crossing of protected attributes.

        Importances and damage tables take them as the third entry of a batch, stacked to (N, G), with
        ``sensitive_weights=True`` and the names as ``sensitive_names``. A loader of plain groups would count everybody
        alike.

        Args:
            attributes: Names of protected attributes; None for all.

        Returns:
            A column (N,) float64 for each of the G crossings that occur, by name.

        Raises:
            InputError: There is no such attribute, or somebody has no weight, who would count nowhere.

        Example:
            >>> dataset = from_tensors(
            ...     torch.eye(3), torch.tensor([1, 0, 1]), feature_names=["a", "b", "sex"], protected_attributes=["sex"]
            ... )
            >>> {name: column.tolist() for name, column in to_tensors(dataset).group_weights().items()}
            {'sex=0': [1.0, 1.0, 0.0], 'sex=1': [0.0, 0.0, 1.0]}
        """
        names = attributes_of(self.protected_attributes, attributes)
        if bool((self.weight <= 0).any()):
            raise InputError(
                f"{int((self.weight <= 0).sum())} of {len(self)} rows have an instance weight of 0 or less; expected "
                "weights above 0: leave those people out"
            )
        columns = torch.stack([self.protected_attributes[name] for name in names], 1)
        if bool(columns.isnan().any()):
            raise InputError(f"one of the protected attributes {names} is missing for somebody; leave those people out")
        crossings, member = torch.unique(columns, dim=0, return_inverse=True)
        return {
            ", ".join(f"{name}={plain_code(value)}" for name, value in zip(names, crossing, strict=True)): (
                self.weight * (member == position)
            )
            for position, crossing in enumerate(crossings.tolist())
        }


def check_dataset(dataset: Any, argument: str = "dataset") -> None:
    """Refuse what has no favorable labels."""
    if not isinstance(dataset, LabelledDataset):
        raise InputError(
            f"{argument} is a {type(dataset).__name__}; expected an aif360.datasets.BinaryLabelDataset, such as a "
            "StandardDataset: labels are one favorable and one unfavorable value; or a MulticlassLabelDataset"
        )


def classes_of(dataset: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The labels by class, (K,), and which of them are favorable, (K,).

    Two are the unfavorable and the favorable one, in this order, so that class 1 is the favorable one; more are sorted.
    """
    favorable, unfavorable = (
        np.unique(_numbers(labels, "labels")) for labels in (dataset.favorable_label, dataset.unfavorable_label)
    )
    both = np.intersect1d(favorable, unfavorable)
    if len(both) or not len(favorable) or not len(unfavorable):
        raise InputError(
            f"the labels {favorable.tolist()} are favorable and {unfavorable.tolist()} unfavorable; expected some of "
            "each, and none that is both"
        )
    labels = np.concatenate([unfavorable, favorable])
    labels = labels if len(labels) == 2 else np.sort(labels)
    return labels, np.isin(labels, favorable)


def attributes_of(known: Iterable[str], attributes: Sequence[str] | None) -> list[str]:
    """Names of protected attributes, all of them unless some are named."""
    if isinstance(attributes, str):
        raise InputError(f"attributes={attributes!r} is a string; expected a list of names: [{attributes!r}]")
    known = list(known)
    names = known if attributes is None else list(attributes)
    _check_names(names, "the protected attributes")
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise InputError(f"attributes={attributes} names {unknown or 'none'}; the protected attributes are {known}")
    return names


def _check_names(names: Sequence[str], what: str) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"{what} {repeated} occur more than once; expected every name once")


def feature_names_of(dataset: Any, features: Sequence[str] | None) -> list[str]:
    """Names of the features that the network takes."""
    if isinstance(features, str):
        raise InputError(f"features={features!r} is a string; expected a list of names: [{features!r}]")
    names = list(dataset.feature_names if features is None else features)
    _check_names(names, "the features")
    missing = [name for name in names if name not in dataset.feature_names]
    if missing or not names:
        raise InputError(
            f"the dataset has no features {missing}; expected some of {list(dataset.feature_names)}"
            if missing
            else "features names none; expected at least one of the dataset's features, or None for all"
        )
    return names


def inputs_of(dataset: Any, names: Sequence[str], dtype: torch.dtype) -> Tensor:
    """Features, (N, D)."""
    columns = [dataset.feature_names.index(name) for name in names]
    inputs = torch.tensor(np.asarray(dataset.features)[:, columns], dtype=dtype, device="cpu")
    bad = [name for name, finite in zip(names, torch.isfinite(inputs).all(0).tolist(), strict=True) if not finite]
    if bad:
        raise InputError(f"the features {bad} hold values that are not finite as {dtype}; expected finite numbers")
    return inputs


def _numbers(values: Any, what: str) -> npt.NDArray[np.float64]:
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"the {what} {values!r} are no numbers; AIF360's datasets hold numbers: expected codes"
        ) from None
    if not np.isfinite(numbers).all():
        raise InputError(f"the {what} {values!r} are not finite; expected finite numbers")
    return numbers


def _weights(weight: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    wrong = int((~(np.isfinite(weight) & (weight >= 0))).sum())
    if wrong:
        raise InputError(
            f"{wrong} of {len(weight)} instance weights are negative or not finite; expected finite ones of at least 0"
        )
    return weight


def _rows(values: Any, dataset: Any, what: str) -> npt.NDArray[np.float64]:
    column = np.asarray(values, dtype=np.float64).reshape(-1)
    if len(column) != len(dataset.features):
        raise InputError(f"the dataset has {len(column)} {what} and {len(dataset.features)} rows; expected as many")
    return column


def to_tensors(
    dataset: LabelledDataset, *, features: Sequence[str] | None = None, dtype: torch.dtype = torch.float32
) -> DatasetTensors:
    """The columns of a dataset as tensors.

    Args:
        dataset: A BinaryLabelDataset or a MulticlassLabelDataset; left as it is.
        features: Names of the features to take, in this order; None for all, among which AIF360 counts the protected
            attributes.
        dtype: Of the features; AIF360's own is float64.

    Returns:
        The tensors.

    Raises:
        InputError: It is no such dataset, it lacks a feature, a feature is not finite, or there are labels that are
            neither favorable nor unfavorable, or both.

    Example:
        >>> dataset = from_tensors(
        ...     torch.eye(2), torch.tensor([1, 0]), feature_names=["x", "sex"], protected_attributes=["sex"]
        ... )
        >>> tensors = to_tensors(dataset, features=["x"])
        >>> tensors.inputs.tolist(), tensors.target.tolist(), tensors.protected_attributes["sex"].tolist()
        ([[1.0], [0.0]], [1, 0], [0.0, 1.0])
    """
    check_dataset(dataset)
    names = feature_names_of(dataset, features)
    labels = _rows(dataset.labels, dataset, "labels")
    classes, _ = classes_of(dataset)
    of_class = labels[:, None] == classes
    other = np.unique(labels[~of_class.any(1)])
    if len(other):
        raise InputError(
            f"the dataset has the labels {other.tolist()} beside the favorable_label {dataset.favorable_label} and the "
            f"unfavorable_label {dataset.unfavorable_label}; expected those only"
        )
    protected = np.asarray(dataset.protected_attributes, dtype=np.float64)
    return DatasetTensors(
        inputs=inputs_of(dataset, names, dtype),
        target=torch.tensor(of_class.argmax(1), dtype=torch.int64, device="cpu"),
        weight=torch.tensor(_weights(_rows(dataset.instance_weights, dataset, "instance weights")), device="cpu"),
        feature_names=tuple(names),
        protected_attributes={
            name: torch.tensor(protected[:, position], device="cpu")
            for position, name in enumerate(dataset.protected_attribute_names)
        },
        labels=tuple(classes.tolist()),
    )


def from_tensors(
    inputs: Tensor,
    target: Tensor,
    *,
    feature_names: Sequence[str],
    protected_attributes: Sequence[str] | Mapping[str, Tensor],
    weight: Tensor | None = None,
    favorable_label: float | Sequence[float] = 1.0,
    unfavorable_label: float | Sequence[float] = 0.0,
    label_name: str = "label",
    instance_names: Sequence[str] | None = None,
) -> LabelledDataset:
    """A dataset from tensors; the way back from ``to_tensors``, to the last bit.

    Args:
        inputs: Features, (N, D).
        target: 1 for the favorable label and 0 for the unfavorable one, (N,); of more than two labels, the place of
            each among all of them, sorted.
        feature_names: D names.
        protected_attributes: Names of features; or columns (N,) by name, for attributes that are no features or are
            scaled there. Those that are none become features as well, at the end, as AIF360 has it.
        weight: Instance weights, (N,); None for 1 each.
        favorable_label: Its value in the dataset; a list makes a MulticlassLabelDataset.
        unfavorable_label: The same.
        label_name: Name of the label.
        instance_names: N names; None for numbers.

    Returns:
        The dataset; of a protected attribute, AIF360 takes the highest value for the privileged one.

    Raises:
        InputError: Sizes or names don't fit together, there are other labels than 0 and 1, or than the places of so
            many, or values are not finite.

    Example:
        >>> dataset = from_tensors(
        ...     torch.tensor([[0.5], [1.5]]),
        ...     torch.tensor([1, 0]),
        ...     feature_names=["income"],
        ...     protected_attributes={"sex": torch.tensor([0, 1])},
        ...     unfavorable_label=2,
        ... )
        >>> dataset.feature_names, dataset.labels.tolist()
        (['income', 'sex'], [[1.0], [2.0]])
        >>> grades = from_tensors(
        ...     torch.eye(3),
        ...     torch.tensor([2, 0, 1]),
        ...     feature_names=["a", "b", "sex"],
        ...     protected_attributes=["sex"],
        ...     favorable_label=[2, 3],
        ...     unfavorable_label=[1],
        ... )
        >>> type(grades).__name__, grades.labels.tolist()
        ('MulticlassLabelDataset', [[3.0], [1.0], [2.0]])
    """
    names = [str(name) for name in feature_names]
    _check_names(names, "the feature names")
    features, labels = (torch.as_tensor(given, device="cpu").detach().double().numpy() for given in (inputs, target))
    labels = labels.reshape(-1)
    if features.ndim != 2 or features.shape[1] != len(names):
        raise InputError(f"the inputs have shape {tuple(features.shape)} for {len(names)} names; expected (N, D)")
    kind, sides = _kind_of(favorable_label, unfavorable_label)
    classes, _ = classes_of(SimpleNamespace(**sides))
    if not np.isin(labels, np.arange(len(classes))).all():
        raise InputError(
            f"the target holds {np.unique(labels).tolist()[:9]}; expected 1 for the favorable and 0 for the "
            "unfavorable label"
            if len(classes) == 2
            else f"the target holds {np.unique(labels).tolist()[:9]}; expected 0 to {len(classes) - 1}, places among "
            f"the labels {classes.tolist()}"
        )
    if isinstance(protected_attributes, str):
        raise InputError(
            f"protected_attributes={protected_attributes!r} is a string; expected a list of names: "
            f"[{protected_attributes!r}]"
        )
    if instance_names is not None and len(instance_names) != len(features):
        raise InputError(f"{len(instance_names)} instance_names for {len(features)} inputs; expected as many")
    table = pd.DataFrame(features, columns=names, index=None if instance_names is None else list(instance_names))
    if isinstance(protected_attributes, Mapping):
        protected = {str(name): _column(values, name, len(table)) for name, values in protected_attributes.items()}
        for name, values in protected.items():
            table[name] = values
    else:
        missing = [name for name in protected_attributes if name not in names]
        if missing:
            raise InputError(
                f"protected_attributes names {missing}, which are no features ({names}); expected features, or "
                "columns by name: {'sex': tensor}"
            )
        protected = {name: table[name].to_numpy(copy=True) for name in protected_attributes}
    if label_name in table:
        raise InputError(f"label_name={label_name!r} is a feature; expected another name")
    if len(labels) != len(table):
        raise InputError(f"{len(table)} inputs and {len(labels)} targets; expected as many")
    if not np.isfinite(table.to_numpy()).all():
        bad = [str(name) for name in table if not np.isfinite(table[name]).all()]
        raise InputError(f"{bad} hold values that are not finite; expected finite numbers")
    weights = None if weight is None else _weights(_column(weight, "weight", len(table)))
    table[label_name] = classes[labels.astype(np.int64)]
    dataset = kind(**sides, df=table, label_names=[label_name], protected_attribute_names=list(protected))
    dataset.features[:, : len(names)] = features  # a protected attribute may be scaled among them
    if weights is not None:
        dataset.instance_weights = weights
    return dataset


def _kind_of(favorable: Any, unfavorable: Any) -> tuple[Any, dict[str, Any]]:
    """AIF360's class for such labels, and the labels as it wants them."""
    if np.ndim(favorable) == np.ndim(unfavorable) == 0:
        _numbers([favorable, unfavorable], "labels")
        if favorable == unfavorable:
            raise InputError(f"favorable_label and unfavorable_label are both {favorable}; expected two values")
        return BinaryLabelDataset, {"favorable_label": favorable, "unfavorable_label": unfavorable}
    lists = {
        name: np.atleast_1d(_numbers(labels, "labels")).tolist()
        for name, labels in (("favorable_label", favorable), ("unfavorable_label", unfavorable))
    }
    return MulticlassLabelDataset, lists


def _column(values: Tensor, name: str, n_rows: int) -> npt.NDArray[np.float64]:
    try:
        column = torch.as_tensor(values, device="cpu").detach().double().reshape(-1).numpy().copy()
    except (TypeError, ValueError):
        raise InputError(f"{name!r} holds values that are no numbers; expected codes, such as 0 and 1") from None
    if len(column) != n_rows:
        raise InputError(f"{name!r} has {len(column)} values for {n_rows} inputs; expected as many")
    return column
