"""Sensitive groups: from the sensitive features of a batch to one weight column per group of people."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any, TypeVar

import torch
from torch import Tensor

from fairtrim.arguments import refuse_string
from fairtrim.errors import InputError
from fairtrim.processes import Processes

from .sensitive_columns import code_name, plain_code, sensitive_columns, weight_columns

__all__ = ["EVERYONE", "GroupName", "SensitiveEncoder", "SensitiveNames", "match_groups"]

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


_Column = TypeVar("_Column", list[Any], Tensor)

MAX_FLOATING = 100
"""More different floating-point codes of one feature are a continuous feature, not groups of people."""


class SensitiveEncoder:
    """Turns sensitive features into weight columns, finding new groups as they appear in the stream.

    Features give one column of zeros and ones for each value, or for each crossing of values that occurs. Codes that
    are equal in Python are one group, in whatever type a batch has them: 1, 1.0, a NumPy or torch number and True. Its
    name is that of the whole number, or True and False where booleans came first.

    Args:
        sensitive_names: Names of the features and of their values; of the groups, where ``sensitive_weights``.
        sensitive_weights: The loader gives no codes, but weights of people in groups, (N, G).

    Attributes:
        features: Names of the S features, known after the first batch.
        groups: Names of the G groups in order of appearance.

    Raises:
        InputError: The names are a string, ``sensitive_weights`` is no bool, or it comes with names of values.

    Example:
        >>> encoder = SensitiveEncoder({"sex": ["Female", "Male"]})
        >>> encoder.encode(torch.tensor([1, 0, 1]), 3).tolist()
        [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
        >>> encoder.groups
        ['Male', 'Female']
        >>> halves = SensitiveEncoder(["young", "old"], sensitive_weights=True)
        >>> halves.encode(torch.tensor([[0.5, 0.5], [0.0, 2.0]]), 2).tolist()
        [[0.5, 0.5], [0.0, 2.0]]
    """

    def __init__(self, sensitive_names: SensitiveNames | None = None, *, sensitive_weights: bool = False) -> None:
        refuse_string("sensitive_names", sensitive_names)
        if not isinstance(sensitive_weights, bool):
            raise InputError(
                f"sensitive_weights is a {type(sensitive_weights).__name__}; expected True if the third entry of a "
                "batch holds the weights, (N, G), or False; sensitive_names names the groups"
            )
        values = sensitive_names.values() if isinstance(sensitive_names, Mapping) else ()
        if sensitive_weights and any(names is not None for names in values):
            raise InputError(
                "sensitive_names names values, which weights have none of; expected a list with the name of each group"
            )
        if isinstance(sensitive_names, Mapping):
            sensitive_names = {str(feature): names for feature, names in sensitive_names.items()}
        self._names = sensitive_names
        self.features: tuple[str, ...] | None = None
        self.groups: list[GroupName] = []
        self._position: dict[GroupName, int] = {}
        self._weighted = sensitive_weights
        self._known: dict[str, dict[Any, str]] = {}  # of each feature, the name of each code that was seen

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
        by_name = isinstance(sensitive, Mapping) or hasattr(sensitive, "columns")
        columns = self._renamed(sensitive_columns(sensitive, n_samples), by_name)
        self._remember(tuple(columns))
        return {feature: self._value_names(feature, column) for feature, column in columns.items()}

    def _renamed(self, columns: dict[str, _Column], by_name: bool) -> dict[str, _Column]:
        """Columns under the names that were asked for: found by name where the loader gives names, else in order."""
        if self._names is None:
            return columns
        names = [str(name) for name in self._names]
        if by_name:
            if set(columns) >= set(names):
                return {name: columns[name] for name in names}
            unknown = next(name for name in names if name not in columns)
            near = difflib.get_close_matches(unknown, columns, 1)
            if near or set(columns) & set(names):
                meant = f" (did you mean {near[0]!r}?)" if near else ""
                raise InputError(
                    f"sensitive_names names {unknown!r}{meant}, which the loader does not give; expected some of "
                    f"{list(columns)}"
                )
        if len(names) != len(columns):
            raise InputError(
                f"sensitive_names names {len(names)} features ({', '.join(names)}); the loader gives {len(columns)}"
            )
        return dict(zip(names, columns.values(), strict=True))

    def _remember(self, features: tuple[str, ...]) -> None:
        if self.features is None:
            self.features = features
        elif self.features != features:
            raise InputError(f"the sensitive features changed from {self.features} to {features} within the loader")

    def _value_names(self, feature: str, column: list[Any]) -> list[str]:
        given = self._names.get(feature) if isinstance(self._names, Mapping) else None
        known = self._known.setdefault(feature, {})
        try:
            different = dict.fromkeys(column)
        except TypeError:
            raise InputError(
                f"sensitive feature {feature!r} holds lists or other values that can't be compared; expected a code a "
                "sample: (N,), or (N, S) for S features"
            ) from None
        for value in different:
            if value in known:
                continue
            if given is None and isinstance(value, Number):  # booleans are equal to 0 and 1: the first form names both
                for code in (False, True):
                    known.setdefault(code, str(code if isinstance(value, bool) else int(code)))
            known.setdefault(value, code_name(given, value, feature))
        n_floating = sum(isinstance(value, float) for value in known)
        if given is None and n_floating > MAX_FLOATING:
            raise InputError(
                f"sensitive feature {feature!r} holds more than {MAX_FLOATING} floating-point numbers; expected "
                "codes of groups: cut a continuous feature into ranges first, with fairtrim.SensitiveBins"
            )
        return [known[value] for value in column]

    def encode(self, sensitive: Any, n_samples: int, batch: int | None = None) -> Tensor:
        """Weight columns of one batch.

        Args:
            sensitive: As the loader gave it; None puts every sample in one group.
            n_samples: N.
            batch: Number of the batch, for messages.

        Returns:
            (N, G) float64 on the CPU, G the number of groups seen so far.

        Raises:
            InputError: The features are not as named, or weights are negative, not finite, or 0 for somebody in every
                group.
        """
        if self._weighted:
            return self._weights(sensitive, n_samples, batch)
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
        positions = torch.tensor([self._position[name] for name in names], device="cpu")
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
            "codes": {feature: [known.get(0), known.get(1)] for feature, known in self._known.items()},
        }

    def learn(self, state: Mapping[str, Any]) -> list[int]:
        """Take in the groups that another encoder of the same features has seen.

        Args:
            state: What its ``state`` gave.

        Returns:
            Where each of its groups stands among these.

        Raises:
            InputError: It has seen other features, or has other names for equal codes.
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
        for feature, theirs in state.get("codes", {}).items():
            known = self._known.setdefault(feature, {})
            for code, called in enumerate(theirs):
                if called is not None and known.setdefault(code, called) != called:
                    raise InputError(
                        f"the code {code} of the sensitive feature {feature!r} is called {known[code]!r} here and "
                        f"{called!r} in another process; expected one form, whole numbers or booleans, everywhere"
                    )
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

    def _weights(self, sensitive: Any, n_samples: int, batch: int | None) -> Tensor:
        if sensitive is None:
            raise InputError("a batch has no third entry, although sensitive_weights=True says that it holds weights")
        by_name = isinstance(sensitive, Mapping) or hasattr(sensitive, "columns")
        columns = self._renamed(weight_columns(sensitive, n_samples, batch), by_name)
        names, weights = list(columns), torch.stack(list(columns.values()), 1)
        nowhere = int((weights == 0).all(1).sum())
        if nowhere:
            raise InputError(
                f"{nowhere} of {n_samples} people of {'a batch' if batch is None else f'batch {batch}'} have no weight "
                "in any sensitive group, so that they would count nowhere; expected a weight above 0 for each: give "
                "them a column of their own, or leave them out"
            )
        if not self.groups:
            self.features = ("weights",)
            self.groups = [*names]
            self._position = {name: g for g, name in enumerate(names)}
        if self.groups != names:
            raise InputError(
                f"the loader gives {len(names)} weight columns ({', '.join(names)}); expected {len(self.groups)} as in "
                f"the batch before ({', '.join(map(str, self.groups))})"
            )
        return weights


def match_groups(wanted: Any, groups: Sequence[GroupName], features: Sequence[str] | None, argument: str) -> list[int]:
    """Positions of the groups that an argument such as ``privileged="Male"`` means.

    Args:
        wanted: A value of a feature (every crossing that holds it), in any type that is equal to it, a crossing as a
            tuple, a dict feature -> value, or a list of those.
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
        for loosely in (False, True):
            matched = [g for g, name in enumerate(groups) if _matches(entry, name, features or (), loosely)]
            if matched:
                break
        if not matched:
            raise InputError(
                f"{argument}={entry!r} is not a sensitive group in the data; known: {list(groups)}"
                + (f" of the features {list(features)}" if features else "")
            )
        known = list(features or ())
        places = {s for g in matched for s, v in enumerate(_values(groups[g])) if _is_called(entry, v, loosely)}
        if len(places) > 1 and known:
            raise InputError(
                f"{argument}={entry!r} is a value of {[known[s] for s in sorted(places)]}; say of which feature: "
                f"{argument}={{{known[min(places)]!r}: {entry!r}}}"
            )
        found.update(matched)
    return sorted(found)


def _values(name: GroupName) -> tuple[str, ...]:
    return (name,) if isinstance(name, str) else name


def _is_called(code: Any, name: str, loosely: bool) -> bool:
    """Whether a code has this name, or, loosely, a boolean that of the number it is equal to, and the other way."""
    code = plain_code(code)
    names = {str(bool(code)), str(int(code))} if loosely and isinstance(code, int) and code in (0, 1) else set()
    return name in {str(code), *names}


def _matches(entry: Any, name: GroupName, features: Sequence[str], loosely: bool) -> bool:
    values = _values(name)
    if isinstance(entry, Mapping):
        position = dict(zip(features, values, strict=False))
        wanted = [(value, position.get(str(feature))) for feature, value in entry.items()]
        return all(named is not None and _is_called(value, named, loosely) for value, named in wanted)
    if isinstance(entry, tuple):
        return len(entry) == len(values) and all(_is_called(v, n, loosely) for v, n in zip(entry, values, strict=True))
    return any(_is_called(entry, value, loosely) for value in values)
