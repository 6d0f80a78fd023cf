"""Sensitive features beside a loader: every sample gets its own, in whatever order the loader gives the samples."""

from __future__ import annotations

import copy
import operator
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, Subset

from fairtrim.errors import InputError
from fairtrim.preservation import preserved_random_state

from .batches import SENSITIVE_KEYS, parts_of_batch
from .sensitive_columns import sensitive_columns

__all__ = ["with_sensitive_features"]

_THIRD_ENTRY = "or a loader of (inputs, target, sensitive), which needs no order"


def with_sensitive_features(loader: Any, sensitive_features: Any, *, argument: str = "sensitive_features") -> Any:
    """A loader of (inputs, target) as one of (inputs, target, sensitive), the loader itself unchanged.

    Whatever takes ``sensitive_features=`` beside a loader does this; call it for a second loader, or for code of your
    own. Row k belongs to ``loader.dataset[k]``, as in Fairlearn's ``y_true`` and ``sensitive_features``: by position,
    whatever the index of a pandas object. Of a DataLoader over a dataset with ``__getitem__`` and ``__len__`` every
    sample gets its own row whatever draws it (``shuffle=True``, samplers with repetition, ``drop_last``, workers); of a
    list of batches, and of other loaders in a fixed order, row k belongs to the k-th sample. Those others are gone
    through twice first, to see that the order is one.

    Args:
        loader: Batches of (inputs, target), or dicts with ``labels``.
        sensitive_features: An array, tensor or list, (N,) or (N, S); a series; a data frame or a dict of columns, whose
            names become those of the features. None gives the loader as it is.
        argument: What to call them in messages.

    Returns:
        A DataLoader of a DataLoader, a list of a list; another iterable of any other loader.

    Raises:
        InputError: There are more or fewer rows than samples, a value is missing, the form is another one, the loader
            has no fixed order, or its batches have sensitive features already.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.arange(4.0), torch.tensor([0, 1, 1, 0]))
        >>> loader = DataLoader(data, batch_size=4, shuffle=True)
        >>> ((x, y, sensitive),) = with_sensitive_features(loader, {"team": ["a", "b", "c", "d"]})
        >>> sorted(zip(x.tolist(), sensitive["team"].tolist()))
        [(0.0, 'a'), (1.0, 'b'), (2.0, 'c'), (3.0, 'd')]
    """
    if sensitive_features is None:
        return loader
    if isinstance(loader, _SensitiveLoader | _OrderedLoader):
        raise InputError(f"the loader has sensitive features already; expected {argument} once")
    if isinstance(loader, Iterator):
        raise InputError(
            f"{argument} beside a {type(loader).__name__}, whose order can't be seen without using it up; expected a "
            f"DataLoader or a list of batches, {_THIRD_ENTRY}"
        )
    if not isinstance(loader, Iterable):
        raise InputError(
            f"{argument} beside {'no loader' if loader is None else f'a {type(loader).__name__}'}; expected them "
            "beside a DataLoader or a list of batches"
        )
    rows = _Rows(sensitive_features, argument)
    if isinstance(loader, DataLoader) and _draws_samples(loader, argument):
        rows.check_dataset(loader.dataset)
        return _SensitiveLoader(loader, rows)
    if isinstance(loader, list | tuple):
        rows.check_number(sum(len(parts_of_batch(entry, k)[1]) for k, entry in enumerate(loader)))
        return list(rows.in_order(loader))
    return _OrderedLoader(loader, rows)


def _draws_samples(loader: DataLoader[Any], argument: str) -> bool:
    """Whether the samples of every batch are known by their index; else the loader must be in a fixed order."""
    dataset, sampler = loader.dataset, loader.sampler
    if isinstance(dataset, IterableDataset):
        if loader.num_workers > 1:
            raise InputError(
                f"{argument} beside a loader of a {type(dataset).__name__} with {loader.num_workers} workers, whose "
                "samples have no index and no fixed order; expected a dataset with __getitem__ and __len__, "
                f"{_THIRD_ENTRY}"
            )
        return False
    if loader.batch_sampler is not None or isinstance(sampler, BatchSampler):
        return True
    if not isinstance(sampler, SequentialSampler):  # batch_size=None: the dataset gives whole batches
        raise InputError(
            f"{argument} beside a loader whose dataset gives whole batches, drawn by a {type(sampler).__name__}; "
            f"expected a fixed order (shuffle=False), a dataset of single samples, {_THIRD_ENTRY}"
        )
    return False


class _Rows:
    """Sensitive features of N samples, to be taken row by row."""

    def __init__(self, given: Any, argument: str) -> None:
        self._argument = argument
        if isinstance(given, str):
            raise InputError(f"{argument} is the string {given!r}; expected the values, e.g. frame[{given!r}]")
        name = getattr(given, "name", None) if hasattr(given, "to_numpy") else None
        if hasattr(given, "columns"):
            names = [str(column) for column in given.columns]
            if len(set(names)) < len(names):
                raise InputError(f"{argument} has columns {names}; expected different names")
            given = {str(column): given[column] for column in given.columns}
        elif isinstance(name, str):
            given = {name: given}
        self._columns: dict[str, Any] | None = None
        if isinstance(given, Mapping):
            columns = {str(name): values for name, values in given.items()}
            self._columns = {name: self._array(f"{argument}[{name!r}]", one, 1) for name, one in columns.items()}
            lengths = {name: len(values) for name, values in self._columns.items()}
            if len(set(lengths.values())) > 1:
                raise InputError(f"{argument} has columns of different lengths: {lengths}; expected one row a sample")
            self._n = next(iter(lengths.values()), 0)
        else:
            self._whole = self._array(argument, given, 2)
            self._n = len(self._whole)
        if self._n:
            sensitive_columns(self._of(range(self._n)), self._n, whose="people")

    @staticmethod
    def _array(what: str, given: Any, most_axes: int) -> Any:
        """Values as a tensor or an array, (N,) or (N, S)."""
        if isinstance(given, Tensor):
            array: Any = given.detach().cpu()
        elif hasattr(given, "to_numpy"):
            array = given.to_numpy()
        elif isinstance(given, Sequence) and not isinstance(given, str | bytes):
            array = np.asarray(given, dtype=object)  # codes of several types stay what they are
        elif hasattr(given, "__array__"):
            array = np.asarray(given)
        else:
            raise InputError(
                f"{what} is a {type(given).__name__}; expected an array, a tensor or a list, a series, a data frame or "
                "a dict of columns"
            )
        if array.ndim == 2 and most_axes == 1 and array.shape[1] == 1:
            array = array[:, 0]
        ragged = array.ndim == 1 and array.dtype == object and any(isinstance(value, list | tuple) for value in array)
        if not 1 <= array.ndim <= most_axes or ragged:
            shape = "lists of different lengths" if ragged else f"of shape {tuple(array.shape)}"
            raise InputError(
                f"{what} is {shape}; expected (N,)" + (", or (N, S) for S features" if most_axes > 1 else "")
            )
        return array

    def _of(self, positions: Sequence[int]) -> Any:
        """The rows of some samples, under the names of the features where they have some."""
        taken = list(positions)
        if self._columns is None:
            return self._whole[taken]
        return {name: values[taken] for name, values in self._columns.items()}

    def check_number(self, n_samples: int, whose: str = "loader", more: str = "") -> None:
        """Refuse more or fewer rows than samples."""
        if self._n != n_samples:
            raise InputError(
                f"{self._argument} has {self._n} rows and the {whose} {n_samples} samples; expected one row a sample, "
                f"in the {whose}'s order{more}"
            )

    def check_dataset(self, dataset: Any) -> None:
        """Refuse rows of another dataset, or of the one that a subset was taken of."""
        if not hasattr(dataset, "__len__"):
            raise InputError(
                f"{self._argument} beside a loader of a {type(dataset).__name__} without __len__, of which nobody can "
                f"tell whether they are as many; expected a dataset with __len__, {_THIRD_ENTRY}"
            )
        more = ""
        if isinstance(dataset, Subset) and len(dataset.dataset) == self._n:  # type: ignore[arg-type]
            more = (
                f". The loader's dataset is a Subset; expected {self._argument}[subset.indices], of a pandas object "
                f"{self._argument}.iloc[subset.indices]"
            )
        self.check_number(len(dataset), "loader's dataset", more)

    def beside(self, entry: Any, index: int, drawn: Any) -> tuple[Any, Tensor]:
        """A batch with the rows of the samples that were drawn for it, and its target."""
        _, target, sensitive = parts_of_batch(entry, index)
        if sensitive is not None:
            raise InputError(
                f"batch {index} of the loader has sensitive features, and {self._argument} was given; expected them "
                f"once: leave {self._argument} out, or give a loader of (inputs, target)"
            )
        try:
            positions = [operator.index(k) for k in drawn]
        except TypeError:
            raise InputError(
                f"the loader's sampler draws {drawn!r:.60}; expected whole numbers, by which rows of "
                f"{self._argument} are found, {_THIRD_ENTRY}"
            ) from None
        if len(positions) != len(target):
            raise InputError(
                f"batch {index} of the loader has {len(target)} targets of {len(positions)} samples that were drawn, "
                f"so that nobody knows which row of {self._argument} belongs to whom; expected a collate_fn that keeps "
                f"every sample, {_THIRD_ENTRY}"
            )
        outside = [k for k in positions if not -self._n <= k < self._n]
        if outside:
            raise InputError(
                f"the loader draws sample {outside[0]}, and {self._argument} has {self._n} rows; expected one row a "
                "sample"
            )
        rows = self._of(positions)
        if isinstance(entry, Mapping):
            return {**entry, SENSITIVE_KEYS[0]: rows}, target
        return (entry[0], entry[1], rows), target

    def in_order(self, loader: Iterable[Any], targets: Sequence[Tensor] | None = None) -> Iterator[Any]:
        """Every batch with the next rows; the targets are those of the order that was looked at."""
        start = 0
        for index, entry in enumerate(loader):
            n_samples = len(parts_of_batch(entry, index)[1])
            drawn = range(start, start := start + n_samples)
            batch, target = self.beside(entry, index, drawn)
            if targets is not None and not (index < len(targets) and torch.equal(target.cpu(), targets[index])):
                raise InputError(self.no_order(index))
            yield batch

    def targets(self, loader: Iterable[Any]) -> list[Tensor]:
        """The targets in the loader's order, which must be as many as there are rows."""
        found: list[Tensor] = []
        n_samples = 0
        for index, entry in enumerate(loader):
            found.append(parts_of_batch(entry, index)[1].detach().cpu().clone())
            n_samples += len(found[-1])
            if n_samples > self._n:  # a stream may have no end
                raise InputError(
                    f"{self._argument} has {self._n} rows and the loader gives more samples; expected one row a "
                    "sample, in the loader's order"
                )
        self.check_number(n_samples)
        return found

    def no_order(self, index: int) -> str:
        """What to say of a loader that gives another order each time."""
        return (
            f"batch {index} of the loader has other targets than the first time, so that nobody knows which row of "
            f"{self._argument} belongs to whom; expected a loader in a fixed order, a DataLoader over a dataset with "
            f"__getitem__ and __len__, {_THIRD_ENTRY}"
        )


class _Recorded:
    """A sampler that notes what it draws."""

    def __init__(self, sampler: Any, drawn: deque[Any]) -> None:
        self._sampler, self._drawn = sampler, drawn

    def __iter__(self) -> Iterator[Any]:
        for indices in self._sampler:
            self._drawn.append(indices)
            yield indices

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:  # a DataLoader of a class of its own may ask
        return _attribute(self, "_sampler", name)


class _SensitiveLoader(DataLoader[Any]):
    """A DataLoader beside whose batches the rows of their samples lie.

    Dataset, collate function, samplers, generators and settings are the caller's own; only what the sampler draws is
    noted on the way, so that workers, and classes of the caller's, notice nothing. Batches come in the sampler's order.
    """

    def __init__(self, loader: DataLoader[Any], rows: _Rows) -> None:
        vars(self).update(vars(loader), _iterator=None)
        self._given, self._rows = loader, rows

    def __len__(self) -> int:
        return len(self._given)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # DataLoader's own iterators don't add anything
        drawn: deque[Any] = deque()
        reading = copy.copy(self._given)
        sampler = "sampler" if reading.batch_sampler is None else "batch_sampler"
        recorded = {sampler: _Recorded(getattr(reading, sampler), drawn)}
        vars(reading).update(recorded, _iterator=None, persistent_workers=False, in_order=True)
        for index, entry in enumerate(reading):
            batch, _ = self._rows.beside(entry, index, drawn.popleft())
            yield batch


class _OrderedLoader:
    """A loader in a fixed order, the rows beside its batches."""

    def __init__(self, loader: Iterable[Any], rows: _Rows) -> None:
        self._loader, self._rows = loader, rows
        with preserved_random_state(loader):
            self._targets, again = rows.targets(loader), rows.targets(loader)
        for index, target in enumerate(self._targets):
            if not torch.equal(target, again[index] if index < len(again) else target[:0]):
                raise InputError(rows.no_order(index))

    def __iter__(self) -> Iterator[Any]:
        return self._rows.in_order(self._loader, self._targets)

    def __len__(self) -> int:
        return len(self._targets)

    def __getattr__(self, name: str) -> Any:  # generators, whose states are preserved
        return _attribute(self, "_loader", name)


def _attribute(wrapper: Any, wrapped: str, name: str) -> Any:
    """An attribute of what is wrapped, known or not yet, as while a copy is made."""
    if wrapped not in vars(wrapper):
        raise AttributeError(name)
    return getattr(vars(wrapper)[wrapped], name)
