"""The samples of a DataLoader by index: in order for scoring, shuffled or drawn by weight for training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
)

from fairtrim.arguments import RandomState, random_generator, renamed
from fairtrim.devices import to_device
from fairtrim.errors import InputError
from fairtrim.preservation import preserved_random_state

from .batches import Batch, parts_of_batch

__all__ = ["IndexedSamples"]

_KEPT_SETTINGS = (
    *("num_workers", "prefetch_factor", "persistent_workers", "multiprocessing_context", "worker_init_fn", "timeout"),
    *("collate_fn", "pin_memory", "pin_memory_device"),
)
"""Of the caller's loader; not ``in_order=False``, for a batch that comes early would get another one's indices."""


class IndexedSamples:
    """The dataset behind a DataLoader, every sample with its index, whatever the loader's own order.

    Batch size, collate function, workers and pinned memory are the loader's; its sampler is replaced, and batches come
    in order even with ``in_order=False``. Workers are started anew for every pass, which has a seed of its own.

    Args:
        loader: A DataLoader over a dataset with ``__getitem__`` and ``__len__`` that yields (inputs, target, ...).

    Attributes:
        loader: The DataLoader.
        n_samples: N.
        batch_size: Samples a batch.

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
        if loader.batch_size is None and loader.batch_sampler is None:
            raise InputError(
                "the loader has batch_size=None: its dataset yields batches, whose samples have no index; expected a "
                "dataset of single samples"
            )
        sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
        if not isinstance(sampler, SequentialSampler | RandomSampler | WeightedRandomSampler):
            raise InputError(
                f"the loader draws with a {type(sampler).__name__}, which may leave samples out, and here every sample "
                "of the dataset is used; for a subset pass torch.utils.data.Subset(dataset, indices) as its dataset"
            )
        self.loader = loader
        self.n_samples = len(dataset)
        self.batch_size = int(loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 64)

    def _batches(
        self, order: Iterable[int], device: torch.device | None, seed: int, first: int = 0
    ) -> Iterator[tuple[Tensor, Batch]]:
        batches = list(BatchSampler(order, self.batch_size, drop_last=False))[first:]
        entries: DataLoader[Any] = DataLoader(
            self.loader.dataset,
            batch_sampler=batches,
            # of the workers; the order is settled. DataLoader draws from it on torch's default device
            generator=random_generator(seed, torch.get_default_device()),
            **{setting: getattr(self.loader, setting) for setting in _KEPT_SETTINGS},
        )
        for number, (indices, entry) in enumerate(zip(batches, entries, strict=True), first):
            inputs, target, _ = parts_of_batch(entry[:2] if isinstance(entry, tuple | list) else entry, number)
            if target.ndim != 1 or target.is_floating_point():
                raise InputError(
                    f"the target is {target.dtype} of shape {tuple(target.shape)}; expected integer labels (N,)"
                )
            target = target.long()
            if device is not None:
                inputs, target = to_device((inputs, target), device)
            yield torch.tensor(indices, device="cpu"), Batch(inputs, target, None, number)

    def __len__(self) -> int:
        """Number of batches of one pass."""
        return -(-self.n_samples // self.batch_size)

    def in_order(
        self, device: torch.device | None, *, among: Tensor | None = None, first: int = 0
    ) -> Iterator[tuple[Tensor, Batch]]:
        """Every sample once, in the dataset's order.

        Args:
            device: Where inputs and targets go; None leaves them.
            among: Flags of the samples to give, (N,) bool; None for all.
            first: Number of the first batch; those before it are passed over.

        Returns:
            Pairs of (indices, batch).
        """
        order = range(self.n_samples) if among is None else among.nonzero().flatten().tolist()
        return self._batches(order, device, seed=0, first=first)

    def first(self, device: torch.device) -> Batch:
        """The first batch, to see what the network makes of it; the caller's random state is as before.

        Args:
            device: Where inputs and targets go.

        Returns:
            The batch.
        """
        with preserved_random_state():
            _, batch = next(self._batches(range(min(self.batch_size, self.n_samples)), device, seed=0))
        return batch

    @renamed(generator="random_state")
    def shuffled(
        self,
        device: torch.device | None,
        random_state: RandomState,
        weights: Tensor | None = None,
        *,
        among: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, Batch]]:
        """N samples in random order: every one once, or drawn with replacement by weight.

        Args:
            device: Where inputs and targets go; None leaves them.
            random_state: Seed, or a torch.Generator.
            weights: Sampling weights, (N,), or None.
            among: Flags of the samples to draw from, (N,) bool, and as many are drawn; None for all.

        Returns:
            Pairs of (indices, batch).

        Raises:
            InputError: The weights are not one non-negative number a sample.
        """
        generator = random_generator(random_state)
        if weights is None:
            order = torch.randperm(self.n_samples, generator=generator, device="cpu")
            order = order if among is None else order[among.cpu()[order]]
        else:
            fine = weights.shape == (self.n_samples,) and bool(((weights >= 0) & (weights < torch.inf)).all())
            mass = weights.cpu().double() * (1 if among is None or not fine else among.cpu())
            if not fine or not bool(mass.sum() > 0):
                raise InputError(
                    f"sample weights of shape {tuple(weights.shape)} for {self.n_samples} samples; expected one "
                    "finite weight of at least 0 a sample, not all of them 0"
                )
            n_drawn = self.n_samples if among is None else int(among.sum())
            order = torch.multinomial(mass, n_drawn, replacement=True, generator=generator)
        seed = int(torch.randint(2**62, (), generator=generator, device="cpu"))
        return self._batches(order.tolist(), device, seed)

    def check_flags(self, conflicting: Tensor) -> None:
        """Refuse mined flags of another dataset.

        Args:
            conflicting: The mined set, (N,).

        Raises:
            InputError: There are more or fewer flags than samples.
        """
        if conflicting.shape != (self.n_samples,):
            raise InputError(
                f"{conflicting.numel()} mined flags for {self.n_samples} samples; expected (N,), one for each sample "
                "of the loader's dataset: mine with the same dataset"
            )
