"""A small validation set in memory: inputs, labels, sensitive groups and weights, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fairtrim.arguments import RandomState, random_generator, renamed
from fairtrim.devices import map_tensors, to_device
from fairtrim.errors import InputError
from fairtrim.measures.class_sums import CLASS_SUMS
from fairtrim.measures.group_counts import needs_labels
from fairtrim.preservation import preserved_random_state

from .batches import Batch, iterate_batches, slice_samples, tensors_of
from .labels import require_labels, whole_labels
from .sensitive_bins import SensitiveBins, continuous_column, many_numbers
from .sensitive_groups import GroupName, SensitiveEncoder, SensitiveNames, match_groups
from .sensitive_loader import with_sensitive_features

__all__ = ["ValidationSet"]


def _joined(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        if len({part.shape[1:] for part in parts}) > 1:
            shapes = sorted({tuple(part.shape[1:]) for part in parts})
            raise InputError(
                f"the inputs of different batches have shapes {shapes} after the sample axis; expected one shape: pad "
                "all of them to the same length"
            )
        return torch.cat(parts)
    if isinstance(first, Mapping):
        return {key: _joined([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple | list):
        columns = [_joined(list(column)) for column in zip(*parts, strict=True)]
        return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)
    raise InputError(
        f"the inputs hold a {type(first).__name__}; expected tensors, or tuples, lists or dicts of tensors: "
        "of a frame or an array torch.tensor(frame.to_numpy(), dtype=torch.float32)"
    )


def _side(tensor: Tensor) -> tuple[tuple[int, ...] | str, bool]:
    """What both sides of a pair have in common; sentences, whole numbers, may be of different lengths."""
    numbers = tensor.is_floating_point()
    return (tuple(tensor.shape[1:]) if numbers else f"{tensor.ndim - 1}-d whole numbers"), numbers


@dataclass(frozen=True)
class ValidationSet:
    """Labelled people, held in memory on the CPU, whom a repaired network is edited for and judged by.

    Attributes:
        inputs: What the network takes: a tensor (N, ...), or tuples, lists and dicts of them.
        target: Labels, (N,) int64.
        group: Sensitive group of each sample, (N,) int64 below G.
        groups: Names of the G groups.
        weight: Weights of the samples, (N,) float64, or None for 1 each.
        sides: Whether the two groups are the unprivileged (0) and the privileged (1) side, so that biases have a sign.
        features: Names of the sensitive features.
        counterfactual: Inputs of the same people with the sensitive attribute flipped, or None.
        continuous: The continuous sensitive feature whose bins the groups are, (N,) float64, or None.

    Raises:
        InputError: The columns don't have N rows, the two sides of pairs have different shapes, or a weight is negative
            or not finite.

    Example:
        >>> batch = (torch.eye(4), torch.tensor([0, 1, 0, 1]), ["a", "a", "b", "b"])
        >>> people = ValidationSet.from_loader([batch], privileged="a", progress=False)
        >>> people.groups, people.group.tolist()
        (('b', 'a'), [1, 1, 0, 0])
    """

    inputs: Any
    target: Tensor
    group: Tensor
    groups: tuple[GroupName, ...]
    weight: Tensor | None = None
    sides: bool = False
    features: tuple[str, ...] = ()
    counterfactual: Any = None
    continuous: Tensor | None = None

    def __post_init__(self) -> None:
        floats = ("weight", torch.float64), ("continuous", torch.float64)
        for name, dtype in (("target", torch.int64), ("group", torch.int64), *floats):
            column = getattr(self, name)
            if column is not None:
                given = torch.as_tensor(column, device="cpu").detach()
                if dtype == torch.int64 and (given.is_floating_point() or given.ndim != 1):
                    given = whole_labels(given, 0)
                object.__setattr__(self, name, given.to(dtype))
        object.__setattr__(self, "groups", tuple(self.groups))
        if len(self.group) and not 0 <= int(self.group.min()) <= int(self.group.max()) < len(self.groups):
            raise InputError(
                f"groups reach from {int(self.group.min())} to {int(self.group.max())}; expected positions in "
                f"{list(self.groups)}"
            )
        if self.sides and len(self.groups) != 2:
            raise InputError(
                f"sides=True with {len(self.groups)} groups; expected an unprivileged and a privileged one"
            )
        lengths = [len(tensor) for tensor in tensors_of((self.inputs, self.counterfactual))]
        columns = [self.target, self.group, *(c for c in (self.weight, self.continuous) if c is not None)]
        lengths += [len(column) for column in columns]
        if len(set(lengths)) != 1:
            raise InputError(f"inputs, labels, groups and weights have {lengths} rows; expected as many of each")
        if self.weight is not None and not bool(((self.weight >= 0) & (self.weight < torch.inf)).all()):
            raise InputError("sample weights are negative or not finite; expected finite weights of at least 0")
        if self.continuous is not None and not bool(torch.isfinite(self.continuous).all()):
            raise InputError("the values of the continuous sensitive feature are not all finite; expected finite ones")
        if self.counterfactual is not None:
            here, there = ([_side(t) for t in tensors_of(x)] for x in (self.inputs, self.counterfactual))
            if here != there:
                raise InputError(
                    f"the inputs of a person have shapes {[s for s, _ in here]} and those of the counterfactual "
                    f"{[s for s, _ in there]}; expected pairs of one shape and type"
                )

    def __len__(self) -> int:
        """N."""
        return len(self.target)

    @property
    def mass(self) -> Tensor:
        """Weights of the samples, 1 each if there are none, (N,) float64."""
        return torch.ones(len(self), dtype=torch.float64, device="cpu") if self.weight is None else self.weight

    @property
    def n_groups(self) -> int:
        """G."""
        return len(self.groups)

    @classmethod
    def from_loader(
        cls,
        loader: Iterable[Any],
        *,
        sensitive_features: Any = None,
        sensitive_names: SensitiveNames | None = None,
        privileged: Any = None,
        require_sensitive: bool = True,
        counterfactual: Callable[[Any], Any] | None = None,
        bins: int | SensitiveBins | None = None,
        progress: bool = True,
    ) -> ValidationSet:
        """Read a loader once.

        Args:
            loader: Batches of (inputs, target, sensitive).
            sensitive_features: Of a loader of (inputs, target), one row a sample; see ``with_sensitive_features``.
            sensitive_names: Names of the sensitive features and of their values.
            privileged: The privileged side (a value, a crossing, a dict, or a list of those); everybody else is then
                the unprivileged one. None compares every pair of groups.
            counterfactual: Inputs -> the inputs with the sensitive attribute flipped, e.g. a ``ColumnFlip``.
            require_sensitive: Refuse a loader without sensitive features; else everybody is one group.
            bins: The sensitive feature is a continuous one, such as age in years: so many ranges of about as many
                people (10 for deciles), or given ones, are the groups, and its values are kept as ``continuous``.
            progress: Show a progress bar.

        Returns:
            The set; groups are sorted by name unless two sides are named.

        Raises:
            InputError: There are no sensitive features, labels are not whole numbers, or ``privileged`` names nobody;
                or there are ``bins`` and the feature is not one of numbers.

        Example:
            >>> ages = torch.tensor([18.5, 64.0, 33.0, 41.0])
            >>> people = ValidationSet.from_loader([(torch.eye(4), torch.tensor([0, 1, 0, 1]), ages)], bins=2)
            >>> people.groups, people.group.tolist()
            (('1: 18.5 to 33', '2: 41 to 64'), [0, 1, 0, 1])
        """
        if counterfactual is not None and not callable(counterfactual):
            raise InputError(
                f"counterfactual is a {type(counterfactual).__name__}; expected a function of the inputs, such as a "
                "ColumnFlip, and of several one at a time"
            )
        encoder = SensitiveEncoder(sensitive_names)
        loader = with_sensitive_features(loader, sensitive_features)
        if bins is not None and isinstance(sensitive_names, Mapping):
            raise InputError("sensitive_names names values, and bins name theirs; expected the feature's name: ['age']")
        inputs, targets, codes, continuous, feature = [], [], [], [], ""
        with preserved_random_state(loader):
            for batch in iterate_batches(loader, torch.device("cpu"), progress=progress, description="reading"):
                if batch.sensitive is None and (require_sensitive or bins is not None):
                    raise InputError(
                        f"batch {batch.index} of the loader is (inputs, target); expected (inputs, target, sensitive), "
                        "the sensitive features of the validation people, or sensitive_features= beside the loader: "
                        "they are needed here, not at prediction"
                    )
                inputs.append(map_tensors(batch.inputs, lambda tensor: tensor.detach()))
                targets.append(whole_labels(batch.target, batch.index))
                if bins is None:
                    codes.append(encoder.encode(batch.sensitive, len(batch), batch.index).argmax(1))
                else:
                    name, column = continuous_column(batch.sensitive, batch.index)
                    if (feature := feature or name) != name:
                        raise InputError(
                            f"the sensitive feature of batch {batch.index} is {name!r} and that of the others "
                            f"{feature!r}; expected the same one in every batch"
                        )
                    continuous.append(column)
        if bins is not None:
            values = torch.cat(continuous)
            ranges = bins if isinstance(bins, SensitiveBins) else SensitiveBins.of(values, bins)
            encoder = SensitiveEncoder(dict.fromkeys(sensitive_names or [feature], ranges.names))
            codes = [encoder.encode({feature: ranges(values)}, len(values)).argmax(1)]
        order = encoder.order()
        position = torch.empty(len(order), dtype=torch.int64, device="cpu")
        position[torch.tensor(order, device="cpu")] = torch.arange(len(order), device="cpu")
        names = tuple(encoder.groups[g] for g in order)
        people = cls(
            _joined(inputs),
            torch.cat(targets),
            position[torch.cat(codes)],
            names,
            features=encoder.features or (),
            continuous=None if bins is None else values,
        )
        if counterfactual is not None:
            people = replace(people, counterfactual=counterfactual(map_tensors(people.inputs, torch.clone)))
        return people if privileged is None else people.with_sides(privileged)

    def with_sides(self, privileged: Any) -> ValidationSet:
        """The same people as two sides.

        Args:
            privileged: Names the privileged side; everybody else is the unprivileged one.

        Returns:
            The set with G = 2: group 0 unprivileged, group 1 privileged.

        Raises:
            InputError: It names nobody, or everybody.
        """
        found = match_groups(privileged, self.groups, self.features or None, "privileged")
        rest = [g for g in range(self.n_groups) if g not in found]
        if not rest:
            raise InputError(
                f"privileged={privileged!r} is everybody in the data, groups {list(self.groups)}; nobody is left "
                "to compare with"
            )

        def side(members: list[int], fallback: str) -> GroupName:
            return self.groups[members[0]] if len(members) == 1 else fallback

        code = torch.zeros(self.n_groups, dtype=torch.int64, device="cpu")
        code[found] = 1
        groups = side(rest, "unprivileged"), side(found, "privileged")
        return replace(self, group=code[self.group], groups=groups, sides=True, continuous=None)

    def take(self, rows: Tensor) -> ValidationSet:
        """Some of the people.

        Args:
            rows: Positions, (M,).

        Returns:
            The subset, with the same groups.
        """
        return replace(
            self,
            inputs=slice_samples(self.inputs, rows),
            target=self.target[rows],
            group=self.group[rows],
            weight=None if self.weight is None else self.weight[rows],
            continuous=None if self.continuous is None else self.continuous[rows],
            counterfactual=slice_samples(self.counterfactual, rows),
        )

    def flipped(self) -> ValidationSet:
        """The counterfactual people.

        Returns:
            The set with the flipped inputs.

        Raises:
            InputError: There are none.
        """
        if self.counterfactual is None:
            raise InputError("the people have no counterfactuals; expected ValidationSet(..., counterfactual=inputs)")
        return replace(self, inputs=self.counterfactual, counterfactual=None)

    @renamed(generator="random_state")
    def split(self, share: float, random_state: RandomState) -> tuple[Tensor, Tensor]:
        """Rows for editing and rows for selecting, every group and label shared out alike.

        Args:
            share: Share of the first part, in (0, 1).
            random_state: Seed, or a torch.Generator.

        Returns:
            The two parts' positions, increasing.
        """
        generator, chosen = random_generator(random_state), torch.zeros(len(self), dtype=torch.bool, device="cpu")
        cell = self.group * (int(self.target.max()) + 1) + self.target
        for value in sorted(set(cell.tolist())):
            rows = (cell == value).nonzero().squeeze(1)
            rows = rows[torch.randperm(len(rows), generator=generator, device="cpu")]
            n_chosen = round(share * len(rows))
            chosen[rows[: min(max(n_chosen, 1), max(1, len(rows) - 1))]] = True
        return chosen.nonzero().squeeze(1), (~chosen).nonzero().squeeze(1)

    def folds(self, number: int, random_state: RandomState) -> Tensor:
        """Folds, over which every group and label is shared out alike.

        Args:
            number: Of folds.
            random_state: Seed, or a torch.Generator.

        Returns:
            The fold of each person, (N,) int64 below ``number``.

        Example:
            >>> people = ValidationSet(torch.eye(6), torch.tensor([0, 1] * 3), torch.zeros(6), ("all",))
            >>> torch.bincount(people.folds(3, 0)).tolist()
            [2, 2, 2]
        """
        generator, fold = random_generator(random_state), torch.empty(len(self), dtype=torch.int64, device="cpu")
        order = torch.randperm(len(self), generator=generator, device="cpu")
        cell = self.target * self.n_groups + self.group
        order = order[cell[order].argsort(stable=True)]  # dealt out in turn, label by label and there group by group
        fold[order] = torch.arange(len(self), device="cpu") % number
        return fold

    @renamed(generator="random_state")
    def batches(
        self, batch_size: int, device: torch.device, random_state: RandomState | None = None, *, first: int = 0
    ) -> Iterator[tuple[Tensor, Batch]]:
        """Minibatches with the rows they hold.

        Args:
            batch_size: Samples a batch; the last may be smaller.
            device: Where inputs and targets go.
            random_state: Shuffles, if given; seed, or a torch.Generator.
            first: Number of the first batch; those before it are passed over.

        Yields:
            Pairs of (rows, batch); the rows stay on the CPU.
        """
        order = torch.arange(len(self), device="cpu")
        if random_state is not None:
            order = torch.randperm(len(self), generator=random_generator(random_state), device="cpu")
        for index, rows in enumerate(torch.split(order, batch_size)[first:], first):
            inputs, target = to_device((slice_samples(self.inputs, rows), self.target[rows]), device)
            yield rows, Batch(inputs, target, None, index)

    def check_not_empty(self) -> None:
        """Refuse a part without people.

        Raises:
            InputError: Nobody is in it.
        """
        if len(self) == 0:
            raise InputError(
                "nobody is left in one part of the validation data: every sensitive group has one person of each "
                "label; expected at least two of each, to edit on and to select on: use more people"
            )

    def check(self, measure: str | None, n_classes: int) -> None:
        """Refuse people whom a bias measure can't be computed for.

        Args:
            measure: The bias measure, or None if groups are not compared.
            n_classes: K of the network.

        Raises:
            InputError: Labels are outside 0 … K − 1 or all the same, there is one group only, or a group has nobody
                that the measure compares.
        """
        require_labels(self.target, n_classes)
        if len(torch.unique(self.target)) == 1:
            raise InputError(
                f"everybody in the validation data has label {int(self.target[0])}; expected people of at least two "
                "labels"
            )
        absent = sorted(set(range(n_classes)) - set(self.target.tolist()))
        if absent:
            raise InputError(
                f"nobody in one part of the validation data has label {', '.join(map(str, absent))}; expected at least "
                f"two people of each of the {n_classes} labels, to edit on and to select on"
            )
        if measure is None:
            return
        if self.n_groups < 2:
            raise InputError(
                f"everybody in the validation data is of the sensitive group {self.groups[0]!r}; expected at least two "
                "groups to compare"
            )
        cells = torch.zeros(self.n_groups, n_classes, dtype=torch.float64, device="cpu")
        cells.index_put_((self.group, self.target), self.mass, accumulate=True)
        empty = [str(name) for name, row in zip(self.groups, cells, strict=True) if row.sum() == 0]
        if empty:
            raise InputError(
                f"nobody in the validation data is of {', '.join(empty)}; expected people of {list(self.groups)}"
                f"{many_numbers(self.groups)}"
            )
        of_label, not_of_label = needs_labels(measure)
        labels = [1] if n_classes == 2 and measure not in CLASS_SUMS else range(n_classes)
        for name, row in zip(self.groups, cells, strict=True):
            for label in labels:
                if (of_label and row[label] == 0) or (not_of_label and row.sum() == row[label]):
                    kind = "with" if row[label] == 0 else "without"
                    raise InputError(
                        f"the sensitive group {name!r} has nobody {kind} label {label} in the validation data, so its "
                        f"rate is undefined; expected some for {measure}: use more people, merge or drop the group, or "
                        f"take demographic_parity_difference{many_numbers(self.groups)}"
                    )
