"""Sensitive groups: from the sensitive features of a batch to one weight column per group of people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .processes import Processes

__all__ = ["EVERYONE", "GroupName", "SensitiveEncoder", "SensitiveNames", "match_groups", "sensitive_columns"]

GroupName = str | tuple[str, ...]
"""Name of a sensitive group: the value of one feature, or the values of a crossing of several."""

SensitiveNames = Sequence[str] | Mapping[str, Sequence[str] | Mapping[Any, str] | None]
"""Names of the sensitive features, optionally with the names of their values: ``["sex", "race"]`` or
``{"sex": ["Female", "Male"], "race": None}`` (a sequence is indexed by the integer codes)."""

EVERYONE: GroupName = "everyone"
"""The one group of a loader without sensitive features."""


def _sort_key(name: GroupName) -> tuple[tuple[int, int, str], ...]:
    """Numbers by value, then words."""
    values = (name,) if isinstance(name, str) else name
    return tuple((0, int(v), v) if v.removeprefix("-").isdecimal() else (1, 0, v) for v in values)


def _is_floating(sensitive: Any) -> bool:
    return isinstance(sensitive, Tensor | np.ndarray) and "float" in str(sensitive.dtype)


def _column(values: Any) -> list[Any]:
    if isinstance(values, Tensor | np.ndarray):
        return list(values.tolist())
    return [value.item() if isinstance(value, Tensor | np.generic) else value for value in values]


def _is_missing(value: Any) -> bool:
    try:
        return value is None or bool(value != value)  # NaN differs from itself
    except TypeError:  # pandas.NA has no truth value
        return True


def sensitive_columns(sensitive: Any, n_samples: int) -> dict[str, list[Any]]:
    """Columns of the sensitive features of one batch.

    Args:
        sensitive: (N,) or (N, S) integers, booleans or strings; a dict of S columns by name; or a list of S
            columns, as the default collate function makes of strings.
        n_samples: N.

    Returns:
        S lists of N values by feature name (``sensitive`` for one unnamed, else ``sensitive_0`` …).

    Raises:
        InputError: A column has another length, or a value is missing.
    """
    if hasattr(sensitive, "columns"):  # a data frame
        columns = {str(name): list(sensitive[name]) for name in sensitive.columns}
    elif isinstance(sensitive, Mapping):
        columns = {str(name): _column(values) for name, values in sensitive.items()}
    else:
        if isinstance(sensitive, Tensor | np.ndarray):
            rows = [_column(sensitive)] if sensitive.ndim == 1 else [_column(column) for column in sensitive.T]
        elif hasattr(sensitive, "to_numpy"):  # a series
            rows = [list(sensitive)]
        elif len(sensitive) and isinstance(sensitive[0], Tensor | np.ndarray | list | tuple):
            rows = [_column(column) for column in sensitive]
        else:
            rows = [_column(sensitive)]
        columns = {"sensitive" if len(rows) == 1 else f"sensitive_{s}": row for s, row in enumerate(rows)}
    for name, column in columns.items():
        if len(column) != n_samples:
            raise InputError(
                f"sensitive feature {name!r} has {len(column)} values for {n_samples} samples; expected as many"
            )
        missing = sum(map(_is_missing, column))
        if missing:
            raise InputError(
                f"sensitive feature {name!r} is missing for {missing} of {n_samples} samples of a batch; leave those "
                "people out, or give the missing value a name of its own, e.g. 'unknown'"
            )
    return columns


def _value_name(names: Sequence[str] | Mapping[Any, str] | None, value: Any, feature: str) -> str:
    if names is None:
        return str(value)
    try:
        if isinstance(names, Sequence) and value < 0:  # the code of a missing value in pandas, not the last name
            raise IndexError
        return str(names[value])
    except (KeyError, IndexError, TypeError):
        known = list(names) if isinstance(names, Mapping) else list(range(len(names)))
        raise InputError(
            f"sensitive feature {feature!r} has the value {value!r}, which sensitive_names does not name "
            f"(named: {known})"
        ) from None


class SensitiveEncoder:
    """Turns sensitive features into weight columns, finding new groups as they appear in the stream.

    Discrete features give one column of zeros and ones for each value, or for each crossing of values that
    occurs. A floating-point tensor (N, G) is taken as weight columns itself.

    Args:
        sensitive_names: Names of the features and of their values.

    Attributes:
        features: Names of the S features, known after the first batch.
        groups: Names of the G groups in order of appearance.

    Raises:
        InputError: The names are a string.

    Example:
        >>> encoder = SensitiveEncoder({"sex": ["Female", "Male"]})
        >>> encoder.encode(torch.tensor([1, 0, 1]), 3).tolist()
        [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
        >>> encoder.groups
        ['Male', 'Female']
    """

    def __init__(self, sensitive_names: SensitiveNames | None = None) -> None:
        if isinstance(sensitive_names, str):
            raise InputError(
                f"sensitive_names is the string {sensitive_names!r}; expected a list: [{sensitive_names!r}]"
            )
        self._names = sensitive_names
        self.features: tuple[str, ...] | None = None
        self.groups: list[GroupName] = []
        self._position: dict[GroupName, int] = {}
        self._weighted = False

    def named_columns(self, sensitive: Any, n_samples: int) -> dict[str, list[str]]:
        """Columns of one batch under the names of the features, with the names of the values.

        Args:
            sensitive: As the loader gave it.
            n_samples: N.

        Returns:
            S columns of N names.

        Raises:
            InputError: The number of features, or a value, is not the one that was named.
        """
        if _is_floating(sensitive):
            raise InputError("the sensitive features are floating-point weights; expected values that name groups")
        columns = sensitive_columns(sensitive, n_samples)
        if self._names is not None:
            names = list(self._names)
            if isinstance(sensitive, Mapping) and set(columns) >= set(names):
                columns = {name: columns[name] for name in names}
            elif len(names) != len(columns):
                raise InputError(
                    f"sensitive_names names {len(names)} features ({', '.join(map(str, names))}); "
                    f"the loader gives {len(columns)}"
                )
            columns = dict(zip(names, columns.values(), strict=True))
        features = tuple(columns)
        if self.features is None:
            self.features = features
        elif self.features != features:
            raise InputError(f"the sensitive features changed from {self.features} to {features} within the loader")
        values = self._names if isinstance(self._names, Mapping) else {}
        return {
            name: [_value_name(values.get(name), value, name) for value in column] for name, column in columns.items()
        }

    def encode(self, sensitive: Any, n_samples: int) -> Tensor:
        """Weight columns of one batch.

        Args:
            sensitive: As the loader gave it; None puts every sample in one group.
            n_samples: N.

        Returns:
            (N, G) float64 on the CPU, G the number of groups seen so far.

        Raises:
            InputError: The features are not as named, or weights are negative or not finite.
        """
        if _is_floating(sensitive):
            if isinstance(self._names, Mapping) and any(values is not None for values in self._names.values()):
                raise InputError(
                    "the sensitive features are floating-point numbers, which are weights of samples, but "
                    "sensitive_names names their values; convert codes to integers"
                )
            return self._weights(torch.as_tensor(sensitive).double().cpu(), n_samples)
        if sensitive is None:
            self.features = self.features if self.features is not None else ()
            if self.features:
                raise InputError("a batch has no sensitive features, although earlier ones had")
            names: list[GroupName] = [EVERYONE] * n_samples
        else:
            columns = list(self.named_columns(sensitive, n_samples).values())
            names = list(columns[0]) if len(columns) == 1 else list(zip(*columns, strict=True))
        for name in dict.fromkeys(names):
            if name not in self._position:
                self._position[name] = len(self.groups)
                self.groups.append(name)
        positions = torch.tensor([self._position[name] for name in names])
        return torch.nn.functional.one_hot(positions, len(self.groups)).double()

    def order(self) -> list[int]:
        """The groups sorted by name, numbers by value; weight columns stay in the loader's order.

        Returns:
            Positions in ``groups``.
        """
        if self._weighted:
            return list(range(len(self.groups)))
        return sorted(range(len(self.groups)), key=lambda g: _sort_key(self.groups[g]))

    def state(self) -> dict[str, Any]:
        """The features and groups seen so far, as JSON holds them.

        Returns:
            The state, for ``learn``.
        """
        return {
            "features": None if self.features is None else list(self.features),
            "groups": [name if isinstance(name, str) else list(name) for name in self.groups],
            "weighted": self._weighted,
        }

    def learn(self, state: Mapping[str, Any]) -> list[int]:
        """Take in the groups that another encoder of the same features has seen.

        Args:
            state: What its ``state`` gave.

        Returns:
            Where each of its groups stands among these.

        Raises:
            InputError: It has seen other features.
        """
        features = None if state["features"] is None else tuple(state["features"])
        if features is not None:
            if self.features is not None and features != self.features:
                raise InputError(
                    f"the sensitive features are {self.features} here and {features} in another process; expected "
                    "the same in every share of the data"
                )
            if state["weighted"] and self.groups and list(state["groups"]) != self.groups:
                raise InputError(
                    f"the weight columns are {self.groups} here and {state['groups']} in another process; expected the "
                    "same in every share of the data"
                )
            self.features, self._weighted = features, bool(state["weighted"])
        places = []
        for entry in state["groups"]:
            name: GroupName = entry if isinstance(entry, str) else tuple(entry)
            if name not in self._position:
                self._position[name] = len(self.groups)
                self.groups.append(name)
            places.append(self._position[name])
        return places

    def share(self, processes: Processes) -> list[int]:
        """Learn the groups of all processes, in the same order everywhere.

        Args:
            processes: All of which call this.

        Returns:
            Where each group that was known here before stands now.

        Raises:
            InputError: The processes have seen other features, or none has seen anybody.
        """
        mine = self.state()
        told = processes.exchange(mine)
        self.groups, self._position = [], {}
        for state in told:
            self.learn(state)
        if not self.groups:
            raise InputError("no process was given a sample; pass loaders with at least one batch in all")
        return self.learn(mine)

    def _weights(self, weights: Tensor, n_samples: int) -> Tensor:
        if weights.ndim != 2 or len(weights) != n_samples:
            raise InputError(
                f"the floating-point sensitive features have shape {tuple(weights.shape)} for {n_samples} samples; "
                "expected (N, G), one column of weights for each group; for groups by value pass integers"
            )
        if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
            raise InputError("weight columns hold negative or non-finite values; expected finite weights of at least 0")
        if self.features is None:
            self.features = ("weights",)
            self._weighted = True
            names = list(self._names) if self._names is not None else [f"weights_{g}" for g in range(weights.shape[1])]
            self.groups = [str(name) for name in names]
            self._position = {name: g for g, name in enumerate(self.groups)}
        if len(self.groups) != weights.shape[1]:
            raise InputError(f"the loader gives {weights.shape[1]} weight columns; expected {len(self.groups)}")
        return weights


def match_groups(wanted: Any, groups: Sequence[GroupName], features: Sequence[str] | None, argument: str) -> list[int]:
    """Positions of the groups that an argument such as ``privileged="Male"`` means.

    Args:
        wanted: A value of a feature (every crossing that holds it), a crossing as a tuple, a dict
            feature -> value, or a list of those.
        groups: The G names of the table.
        features: Names of the features.
        argument: Name of the argument, for the message.

    Returns:
        Positions in increasing order, at least one.

    Raises:
        InputError: Something names no group, or is a value of several features.

    Example:
        >>> crossings = [("Female", "Black"), ("Male", "Black"), ("Male", "White")]
        >>> match_groups("Male", crossings, ("sex", "race"), "privileged")
        [1, 2]
        >>> match_groups({"sex": "Male", "race": "White"}, crossings, ("sex", "race"), "privileged")
        [2]
    """
    found: set[int] = set()
    for entry in wanted if isinstance(wanted, list) else [wanted]:
        matched = [g for g, name in enumerate(groups) if _matches(entry, name, features or ())]
        if not matched:
            raise InputError(
                f"{argument}={entry!r} is not a sensitive group in the data; known: {list(groups)}"
                + (f" of the features {list(features)}" if features else "")
            )
        known = list(features or ())
        places = {
            s for g in matched if isinstance(groups[g], tuple) for s, v in enumerate(groups[g]) if v == str(entry)
        }
        if len(places) > 1 and known:
            raise InputError(
                f"{argument}={entry!r} is a value of {[known[s] for s in sorted(places)]}; say of which feature: "
                f"{argument}={{{known[min(places)]!r}: {entry!r}}}"
            )
        found.update(matched)
    return sorted(found)


def _matches(entry: Any, name: GroupName, features: Sequence[str]) -> bool:
    values = (name,) if isinstance(name, str) else name
    if isinstance(entry, Mapping):
        position = dict(zip(features, values, strict=False))
        return all(position.get(str(feature)) == str(value) for feature, value in entry.items())
    if isinstance(entry, tuple):
        return tuple(map(str, entry)) == values
    return str(entry) in values
