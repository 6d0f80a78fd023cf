"""Batches that are gone through again and again, some of which stay where the network lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from .batches import Batch, tensors_of

__all__ = ["KEPT_BYTES", "KeptBatches"]

KEPT_BYTES = 2.0**31
"""Of inputs that stay where a network lies, unless a method says otherwise."""


class KeptBatches:
    """The first batches of a source are made once, as many as there is room for, the others anew each time.

    Args:
        kept_bytes: Room for the inputs of all sources.

    Example:
        >>> import torch
        >>> from fairtrim import ValidationSet
        >>> people = ValidationSet(torch.ones(5, 3), torch.ones(5).long(), torch.zeros(5).long(), ("everyone",))
        >>> def batches(first):
        ...     print("from", first)
        ...     return people.batches(2, torch.device("cpu"), first=first)
        >>> kept = KeptBatches(30)
        >>> for _ in range(2):
        ...     print([len(batch) for batch in kept.of(people, batches)])
        from 0
        [2, 2, 1]
        from 1
        [2, 2, 1]
    """

    def __init__(self, kept_bytes: float = KEPT_BYTES) -> None:
        self._room = kept_bytes
        self._kept: dict[int, tuple[object, list[Batch]]] = {}  # with the source, so that no id is used again

    def of(self, source: object, batches: Callable[[int], Iterator[tuple[Tensor, Batch]]]) -> Iterator[Batch]:
        """All batches of a source, in order.

        Args:
            source: What they are made of.
            batches: Makes them, with the rows they hold, from the one of a number on.

        Yields:
            The batches.
        """
        _, kept = self._kept.setdefault(id(source), (source, []))
        yield from kept
        first = len(kept)
        for number, (_, batch) in enumerate(batches(first), first):
            size = sum(tensor.nbytes for tensor in tensors_of(batch.inputs))
            if number == len(kept) and size <= self._room:
                kept.append(batch)
                self._room -= size
            yield batch
