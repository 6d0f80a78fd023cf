"""The samples of a DataLoader by index: in order for scoring, shuffled or drawn by weight for training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from .batches import Batch, as_target, to_device
from .errors import InputError

__all__ = ["IndexedSamples"]


class _Indexed(Dataset[Any]):
    """Each entry with its index."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self._dataset[index]

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]


class _IndexedCollate:
    """The caller's collate function on the entries, the indices beside them; a class, so that workers can have it."""

    def __init__(self, collate: Any) -> None:
        self._collate = collate

    def __call__(self, entries: Sequence[tuple[int, Any]]) -> tuple[Tensor, Any]:
        return torch.tensor([index for index, _ in entries]), self._collate([entry for _, entry in entries])


class IndexedSamples:
    """The dataset behind a DataLoader, every sample with its index, whatever the loader's own order.

    Batch size, collate function and workers are the loader's; its sampler is replaced.

    Args:
        loader: A DataLoader over a dataset with ``__getitem__`` and ``__len__`` that yields (inputs, target, ...).

    Attributes:
        loader: The DataLoader.
        n_samples: N.

    Raises:
        InputError: There are no stable indices, or no samples.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.eye(3), torch.tensor([0, 1, 1]))
        >>> samples = IndexedSamples(DataLoader(data, batch_size=2, shuffle=True))
        >>> [indices.tolist() for indices, _ in samples.in_order(torch.device("cpu"))]
        [[0, 1], [2]]
    """

    def __init__(self, loader: Any) -> None:
        if not isinstance(loader, DataLoader):
            raise InputError(
                f"the loader is a {type(loader).__name__}; expected a DataLoader over a dataset with __getitem__ and "
                "__len__, because samples are told apart by their index in it"
            )
        dataset = loader.dataset
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise InputError(
                f"the dataset is a {type(dataset).__name__}, which has no stable indices; expected one with "
                "__getitem__ and __len__"
            )
        if len(dataset) < 2:
            raise InputError(f"the dataset has {len(dataset)} samples; expected at least 2")
        if isinstance(loader.sampler, SubsetRandomSampler):
            raise InputError(
                "the loader samples a subset; pass torch.utils.data.Subset(dataset, indices) as its dataset"
            )
        if loader.batch_size is None and loader.batch_sampler is None:
            raise InputError(
                "the loader has batch_size=None: its dataset yields batches, whose samples have no index; expected a "
                "dataset of single samples"
            )
        self.loader = loader
        self._batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 64
        self._dataset = _Indexed(dataset)
        self.n_samples = len(dataset)

    def _batches(
        self, sampler: Sampler[int] | WeightedRandomSampler, device: torch.device
    ) -> Iterator[tuple[Tensor, Batch]]:
        loader = self.loader
        batches: DataLoader[Any] = DataLoader(
            self._dataset,
            batch_size=self._batch_size,
            sampler=sampler,
            num_workers=loader.num_workers,
            collate_fn=_IndexedCollate(loader.collate_fn),
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=torch.Generator().manual_seed(0),  # seeds workers; the order is the sampler's
        )
        for number, (indices, entry) in enumerate(batches):
            if not isinstance(entry, Sequence) or len(entry) < 2:
                raise InputError(
                    f"the dataset yields a {type(entry).__name__}; expected (inputs, target) or more, target second"
                )
            target = as_target(entry[1], number)
            if target.ndim != 1 or target.is_floating_point():
                raise InputError(
                    f"the target is {target.dtype} of shape {tuple(target.shape)}; expected integer labels (N,)"
                )
            yield indices, Batch(to_device(entry[0], device), target.long().to(device), None, number)

    def __len__(self) -> int:
        """Number of batches of one pass."""
        return -(-self.n_samples // self._batch_size)

    def in_order(self, device: torch.device) -> Iterator[tuple[Tensor, Batch]]:
        """Every sample once, in the dataset's order.

        Args:
            device: Where inputs and targets go.

        Returns:
            Pairs of (indices, batch).
        """
        return self._batches(SequentialSampler(self._dataset), device)

    def shuffled(
        self, device: torch.device, generator: torch.Generator, weights: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Batch]]:
        """N samples in random order: every one once, or drawn with replacement by weight.

        Args:
            device: Where inputs and targets go.
            generator: Source of randomness.
            weights: Sampling weights, (N,), or None.

        Returns:
            Pairs of (indices, batch).

        Raises:
            InputError: The weights are not one non-negative number a sample.
        """
        if weights is None:
            return self._batches(RandomSampler(self._dataset, generator=generator), device)
        fine = weights.shape == (self.n_samples,) and bool(((weights >= 0) & (weights < torch.inf)).all())
        if not fine or not bool(weights.sum() > 0):
            raise InputError(
                f"sample weights of shape {tuple(weights.shape)} for {self.n_samples} samples; expected one "
                "finite weight of at least 0 a sample, not all of them 0"
            )
        sampler = WeightedRandomSampler(weights.double().tolist(), self.n_samples, generator=generator)
        return self._batches(sampler, device)
