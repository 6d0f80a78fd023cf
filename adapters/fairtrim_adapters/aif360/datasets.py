"""AIF360's datasets as tensors and back, and as the people whom a network is repaired for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from fairtrim import InputError, ValidationSet
from fairtrim.comparison.predictions import predict
from fairtrim.data.batches import ForwardFunction
from fairtrim.devices import floating_type
from fairtrim.measures.scores import positive_margin
from fairtrim.network.scored_network import OutputTransform, ScoredNetwork

from .library import BinaryLabelDataset, compute_boolean_conditioning_vector

__all__ = [
    "DatasetTensors",
    "Groups",
    "from_tensors",
    "predict_dataset",
    "to_dataset",
    "to_tensors",
    "to_validation_set",
]

Groups = Sequence[Mapping[str, float]] | Mapping[str, float]
"""A side as AIF360 writes it: a list of dicts joined by or, whose entries {protected attribute: value} are joined by
and; or one such dict."""

_Scores = Tensor | npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class DatasetTensors:
    """A dataset's columns as tensors on the CPU, which share no memory with it.

    Attributes:
        inputs: Features, (N, D).
        target: 1 where the label is the favorable one, 0 where it is the unfavorable one, (N,) int64.
        weight: Instance weights, (N,) float64.
        feature_names: Names of the D features.
        protected_attributes: Protected attributes by name, (N,) float64 each.

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

    def __len__(self) -> int:
        """N."""
        return len(self.target)


def check_dataset(dataset: Any, argument: str = "dataset") -> None:
    """Refuse what is no binary labelled dataset."""
    if not isinstance(dataset, BinaryLabelDataset):
        raise InputError(
            f"{argument} is a {type(dataset).__name__}; expected an aif360.datasets.BinaryLabelDataset, such as a "
            "StandardDataset: labels are one favorable and one unfavorable value"
        )


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
    inputs = torch.tensor(np.asarray(dataset.features)[:, columns], dtype=dtype)
    bad = [name for name, finite in zip(names, torch.isfinite(inputs).all(0).tolist(), strict=True) if not finite]
    if bad:
        raise InputError(f"the features {bad} hold values that are not finite as {dtype}; expected finite numbers")
    return inputs


def _rows(values: Any, dataset: Any, what: str) -> npt.NDArray[np.float64]:
    column = np.asarray(values, dtype=np.float64).reshape(-1)
    if len(column) != len(dataset.features):
        raise InputError(f"the dataset has {len(column)} {what} and {len(dataset.features)} rows; expected as many")
    return column


def to_tensors(
    dataset: BinaryLabelDataset, *, features: Sequence[str] | None = None, dtype: torch.dtype = torch.float32
) -> DatasetTensors:
    """The columns of a dataset as tensors.

    Args:
        dataset: A BinaryLabelDataset; left as it is.
        features: Names of the features to take, in this order; None for all, among which AIF360 counts the protected
            attributes.
        dtype: Of the features; AIF360's own is float64.

    Returns:
        The tensors.

    Raises:
        InputError: It is no such dataset, it lacks a feature, a feature is not finite, or there are labels that are
            neither favorable nor unfavorable.

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
    favorable = labels == dataset.favorable_label
    other = np.unique(labels[~favorable & (labels != dataset.unfavorable_label)])
    if len(other):
        raise InputError(
            f"the dataset has the labels {other.tolist()} beside the favorable_label {dataset.favorable_label} and the "
            f"unfavorable_label {dataset.unfavorable_label}; expected those two only"
        )
    protected = np.asarray(dataset.protected_attributes, dtype=np.float64)
    return DatasetTensors(
        inputs=inputs_of(dataset, names, dtype),
        target=torch.tensor(favorable, dtype=torch.int64),
        weight=torch.tensor(_rows(dataset.instance_weights, dataset, "instance weights")),
        feature_names=tuple(names),
        protected_attributes={
            name: torch.tensor(protected[:, position])
            for position, name in enumerate(dataset.protected_attribute_names)
        },
    )


def from_tensors(
    inputs: Tensor,
    target: Tensor,
    *,
    feature_names: Sequence[str],
    protected_attributes: Sequence[str] | Mapping[str, Tensor],
    weight: Tensor | None = None,
    favorable_label: float = 1.0,
    unfavorable_label: float = 0.0,
    label_name: str = "label",
    instance_names: Sequence[str] | None = None,
) -> BinaryLabelDataset:
    """A dataset from tensors; the way back from ``to_tensors``, to the last bit.

    Args:
        inputs: Features, (N, D).
        target: 1 for the favorable label and 0 for the unfavorable one, (N,).
        feature_names: D names.
        protected_attributes: Names of features; or columns (N,) by name, for attributes that are no features or are
            scaled there. Those that are none become features as well, at the end, as AIF360 has it.
        weight: Instance weights, (N,); None for 1 each.
        favorable_label: Its value in the dataset.
        unfavorable_label: Its value in the dataset.
        label_name: Name of the label.
        instance_names: N names; None for numbers.

    Returns:
        The dataset; of a protected attribute, AIF360 takes the highest value for the privileged one.

    Raises:
        InputError: Sizes or names don't fit together, there are other labels than 0 and 1, or values are not finite.

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
    """
    names = [str(name) for name in feature_names]
    _check_names(names, "the feature names")
    features, labels = inputs.detach().double().cpu().numpy(), target.detach().double().cpu().reshape(-1).numpy()
    if features.ndim != 2 or features.shape[1] != len(names):
        raise InputError(f"the inputs have shape {tuple(features.shape)} for {len(names)} names; expected (N, D)")
    if not np.isin(labels, (0, 1)).all():
        raise InputError(
            f"the target holds {np.unique(labels).tolist()[:9]}; expected 1 for the favorable and 0 for the "
            "unfavorable label"
        )
    if favorable_label == unfavorable_label:
        raise InputError(f"favorable_label and unfavorable_label are both {favorable_label}; expected two values")
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
    table[label_name] = np.where(labels == 1, float(favorable_label), float(unfavorable_label))
    dataset = BinaryLabelDataset(
        favorable_label=favorable_label,
        unfavorable_label=unfavorable_label,
        df=table,
        label_names=[label_name],
        protected_attribute_names=list(protected),
    )
    dataset.features[:, : len(names)] = features  # a protected attribute may be scaled among them
    if weight is not None:
        dataset.instance_weights = _column(weight, "weight", len(table))
    return dataset


def _column(values: Tensor, name: str, n_rows: int) -> npt.NDArray[np.float64]:
    column = torch.as_tensor(values).detach().double().cpu().reshape(-1).numpy().copy()
    if len(column) != n_rows:
        raise InputError(f"{name!r} has {len(column)} values for {n_rows} inputs; expected as many")
    return column


def clauses_of(groups: Groups, argument: str) -> list[dict[str, float]]:
    """A side as a list of dicts."""
    clauses = [groups] if isinstance(groups, Mapping) else groups
    if (
        isinstance(clauses, str)
        or not isinstance(clauses, Sequence)
        or not clauses
        or not all(isinstance(clause, Mapping) for clause in clauses)
    ):
        raise InputError(
            f"{argument}={groups!r}; expected a list of dicts {{protected attribute: value}}, e.g. [{{'sex': 0}}]"
        )
    return [dict(clause) for clause in clauses]


def _members(dataset: Any, clauses: list[dict[str, float]], argument: str) -> npt.NDArray[np.bool_]:
    names = list(dataset.protected_attribute_names)
    unknown = sorted({name for clause in clauses for name in clause} - set(names))
    if unknown:
        raise InputError(f"{argument}={clauses} names {unknown}; the dataset's protected attributes are {names}")
    members: npt.NDArray[np.bool_] = compute_boolean_conditioning_vector(dataset.protected_attributes, names, clauses)
    if not members.any():
        values = {
            name: np.unique(column).tolist()[:9]
            for name, column in zip(names, np.asarray(dataset.protected_attributes).T, strict=True)
        }
        raise InputError(
            f"nobody in the dataset is in {argument}={clauses}; expected some: the protected attributes have the "
            f"values {values}"
        )
    return members


def sides_of(dataset: Any, unprivileged_groups: Groups, privileged_groups: Groups) -> tuple[Tensor, Tensor]:
    """Rows that are in a side, increasing, and which: 0 unprivileged, 1 privileged."""
    unprivileged = _members(dataset, clauses_of(unprivileged_groups, "unprivileged_groups"), "unprivileged_groups")
    privileged = _members(dataset, clauses_of(privileged_groups, "privileged_groups"), "privileged_groups")
    both = int((unprivileged & privileged).sum())
    if both:
        raise InputError(
            f"{both} of {len(privileged)} rows are in both unprivileged_groups={unprivileged_groups} and "
            f"privileged_groups={privileged_groups}; expected sides that share nobody"
        )
    rows = torch.from_numpy(np.flatnonzero(unprivileged | privileged))
    return rows, torch.from_numpy(privileged)[rows].long()


def _side_name(groups: Groups, argument: str) -> str:
    return " or ".join(
        ", ".join(f"{name}={value}" for name, value in clause.items()) for clause in clauses_of(groups, argument)
    )


def to_validation_set(
    dataset: BinaryLabelDataset,
    unprivileged_groups: Groups,
    privileged_groups: Groups,
    *,
    features: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> ValidationSet:
    """A dataset as the people whom fairtrim's post-processors repair a network for.

    Rows that are in neither side are left out: AIF360's differences between the sides don't count them either. (Its
    overall figures do, so ``ClassificationMetric``'s accuracy may then differ from a repair's.)

    Args:
        dataset: A BinaryLabelDataset with the true labels; left as it is.
        unprivileged_groups: As for AIF360's metrics: a list of dicts.
        privileged_groups: The same.
        features: Names of the features that the network takes; None for all.
        dtype: Of the features.

    Returns:
        The set: group 0 unprivileged, group 1 privileged, so that biases have AIF360's sign (unprivileged −
        privileged); weights are the instance weights.

    Raises:
        InputError: Somebody is in both sides or nobody in one; or the dataset is not what ``to_tensors`` takes.

    Example:
        >>> dataset = from_tensors(
        ...     torch.eye(3), torch.tensor([1, 0, 1]), feature_names=["a", "b", "sex"], protected_attributes=["sex"]
        ... )
        >>> people = to_validation_set(dataset, [{"sex": 0}], [{"sex": 1}])
        >>> people.groups, people.group.tolist()
        (('sex=0', 'sex=1'), [0, 0, 1])
    """
    check_dataset(dataset)
    rows, side = sides_of(dataset, unprivileged_groups, privileged_groups)
    tensors = to_tensors(dataset, features=features, dtype=dtype)
    return ValidationSet(
        inputs=tensors.inputs[rows],
        target=tensors.target[rows],
        group=side,
        groups=(
            _side_name(unprivileged_groups, "unprivileged_groups"),
            _side_name(privileged_groups, "privileged_groups"),
        ),
        weight=tensors.weight[rows],
        sides=True,
    )


def to_dataset(dataset: BinaryLabelDataset, scores: _Scores) -> BinaryLabelDataset:
    """A dataset with a network's predictions, to hand to AIF360's metrics and post-processors.

    Args:
        dataset: The dataset that the network was given; left as it is.
        scores: What it returned, row by row: logits (N, 2), or one logit (N, 1) or (N,).

    Returns:
        A copy, shallow as AIF360's are: ``labels`` is the favorable value where the favorable label has the larger
        score (the logit is positive), ``scores`` is the probability of the favorable label; both (N, 1) float64. The
        rest is the dataset's.

    Raises:
        InputError: There are more than two classes, more or fewer rows, or scores that are not finite.

    Example:
        >>> dataset = from_tensors(
        ...     torch.eye(2), torch.tensor([1, 0]), feature_names=["x", "sex"], protected_attributes=["sex"]
        ... )
        >>> predicted = to_dataset(dataset, torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
        >>> predicted.labels.tolist(), predicted.scores.round(2).tolist()
        ([[0.0], [1.0]], [[0.5], [0.88]])
    """
    check_dataset(dataset)
    logits = torch.as_tensor(scores).detach().double().cpu()
    logits = logits[:, None] if logits.ndim == 1 else logits
    n_rows = len(dataset.features)
    if logits.ndim != 2 or len(logits) != n_rows:
        raise InputError(
            f"the scores have shape {tuple(logits.shape)} for {n_rows} rows; expected ({n_rows}, 2), or one logit each"
        )
    margin = positive_margin(logits)
    n_bad = int((~torch.isfinite(margin)).sum())
    if n_bad:
        raise InputError(f"the scores of {n_bad} of {n_rows} rows are not finite; look at the network and its inputs")
    predicted = dataset.copy()
    # temporarily_ignore(), which ClassificationMetric calls, would else leave the copy blind to its labels
    predicted.ignore_fields = set(dataset.ignore_fields)
    predicted.labels = np.where(
        (margin > 0).numpy(), float(dataset.favorable_label), float(dataset.unfavorable_label)
    ).reshape(-1, 1)
    predicted.scores = margin.sigmoid().numpy().reshape(-1, 1)
    return predicted


def scores_of(network: ScoredNetwork, inputs: Tensor, batch_size: int) -> npt.NDArray[np.float64]:
    """Scores of a network, (N, K)."""
    batches = [(part, torch.zeros(len(part), dtype=torch.int64)) for part in torch.split(inputs, batch_size)]
    options: dict[str, Any] = {"forward_fn": network.forward_fn, "output_transform": network.output_transform}
    return predict(network.model, batches, progress=False, **options).scores["model"]


def predict_dataset(
    model: nn.Module,
    dataset: BinaryLabelDataset,
    *,
    features: Sequence[str] | None = None,
    batch_size: int = 1024,
    forward_fn: ForwardFunction | None = None,
    output_transform: OutputTransform | None = None,
) -> BinaryLabelDataset:
    """Any network's predictions for a dataset: the ``dataset_pred`` of AIF360.

    Args:
        model: The network, run in eval mode and left as it was; it takes features in the type of its parameters.
        dataset: The dataset; left as it is.
        features: Names of the features that the network takes, in its order; None for all.
        batch_size: Samples a forward pass.
        forward_fn: How to call the network.
        output_transform: How to find the scores in what it returns.

    Returns:
        A copy with new ``labels`` and ``scores``, as ``to_dataset`` makes it.

    Raises:
        InputError: The dataset lacks a feature or holds values that are not finite, or the network doesn't return two
            scores, or one logit, for each row.

    Example:
        >>> dataset = from_tensors(
        ...     torch.eye(2), torch.tensor([1, 0]), feature_names=["x", "sex"], protected_attributes=["sex"]
        ... )
        >>> predict_dataset(nn.Identity(), dataset).labels.tolist()
        [[0.0], [1.0]]
    """
    check_dataset(dataset)
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}; expected at least 1")
    inputs = inputs_of(dataset, feature_names_of(dataset, features), floating_type(model))
    return to_dataset(dataset, scores_of(ScoredNetwork(model, forward_fn, output_transform), inputs, batch_size))
