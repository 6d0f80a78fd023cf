"""The people of an AIF360 dataset, by sides or by crossings of protected attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fairtrim import InputError, SensitiveBins, ValidationSet

from .datasets import LabelledDataset, attributes_of, check_dataset, to_tensors
from .library import compute_boolean_conditioning_vector

__all__ = ["Groups", "clauses_of", "sides_of", "to_validation_set"]

Groups = Sequence[Mapping[str, float]] | Mapping[str, float]
"""A side as AIF360 writes it: a list of dicts joined by or, whose entries {protected attribute: value} are joined by
and; or one such dict."""


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


def check_sides(
    unprivileged_groups: Groups | None, privileged_groups: Groups | None, attributes: Sequence[str] | None
) -> bool:
    """Whether two sides are named; refuse one of them alone, or sides and attributes at once."""
    given = {"unprivileged_groups": unprivileged_groups, "privileged_groups": privileged_groups}
    named = [name for name, groups in given.items() if groups is not None]
    if len(named) == 1:
        (missing,) = set(given) - set(named)
        raise InputError(
            f"{missing}=None, and {named[0]}={given[named[0]]!r}; expected both sides, or neither, to compare every "
            "crossing of the protected attributes"
        )
    if named and attributes is not None:
        raise InputError(
            f"attributes={list(attributes)!r} would have no effect: unprivileged_groups and privileged_groups name the "
            "sides; expected one of the two"
        )
    return bool(named)


def to_validation_set(
    dataset: LabelledDataset,
    unprivileged_groups: Groups | None = None,
    privileged_groups: Groups | None = None,
    *,
    attributes: Sequence[str] | None = None,
    bins: int | SensitiveBins | None = None,
    features: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> ValidationSet:
    """A dataset as the people whom fairtrim's post-processors repair a network for.

    Rows that are in neither side are left out: AIF360's differences between the sides don't count them either. (Its
    overall figures do, so ``ClassificationMetric``'s accuracy may then differ from a repair's.)

    Without sides every crossing of the protected attributes is a group. A rate of one attribute's group is a mean of
    its crossings' rates, so that no attribute alone has a larger difference than the crossings (save of
    ``average_odds_difference``, a sum of two rates).

    Args:
        dataset: A BinaryLabelDataset, or a MulticlassLabelDataset, with the true labels; left as it is.
        unprivileged_groups: As for AIF360's metrics: a list of dicts. None, like the other one, for no sides.
        privileged_groups: The same.
        attributes: Without sides: names of the protected attributes that are crossed; None for all.
        bins: The attribute is a continuous one, such as age in years: see ``ValidationSet.from_loader``.
        features: Names of the features that the network takes; None for all.
        dtype: Of the features.

    Returns:
        The set: group 0 unprivileged, group 1 privileged, so that biases have AIF360's sign (unprivileged −
        privileged); or the crossings that occur. Weights are the instance weights.

    Raises:
        InputError: Somebody is in both sides or nobody in one, one side is missing, an attribute is unknown or no code
            of a group; or the dataset is not what ``to_tensors`` takes.

    Example:
        >>> from fairtrim_adapters.aif360 import from_tensors
        >>> dataset = from_tensors(
        ...     torch.eye(3), torch.tensor([1, 0, 1]), feature_names=["a", "b", "sex"], protected_attributes=["sex"]
        ... )
        >>> people = to_validation_set(dataset, [{"sex": 0}], [{"sex": 1}])
        >>> people.groups, people.group.tolist()
        (('sex=0', 'sex=1'), [0, 0, 1])
        >>> to_validation_set(dataset, attributes=["sex"]).groups
        ('0', '1')
    """
    check_dataset(dataset)
    if not check_sides(unprivileged_groups, privileged_groups, attributes):
        tensors = to_tensors(dataset, features=features, dtype=dtype)
        columns = {
            name: tensors.protected_attributes[name] for name in attributes_of(tensors.protected_attributes, attributes)
        }
        people = ValidationSet.from_loader([(tensors.inputs, tensors.target, columns)], bins=bins, progress=False)
        return replace(people, weight=tensors.weight)
    if bins is not None:
        raise InputError(f"bins={bins} would have no effect on two sides; expected attributes=['age'] with it")
    assert unprivileged_groups is not None and privileged_groups is not None
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
