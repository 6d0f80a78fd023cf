"""The samples of a refit: read once, split by sample, weighed, and joined to one batch where they can be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from fairtrim.data.batches import iterate_batches, slice_samples, tensors_of
from fairtrim.data.sensitive_groups import SensitiveEncoder
from fairtrim.errors import InputError
from fairtrim.processes import Processes

__all__ = ["Part", "Reading", "few_samples", "joined", "read"]

_HELD_OUT = 5  # one in so many samples


@dataclass(frozen=True)
class Part:
    """Some of the samples.

    Attributes:
        inputs: As the loader gave them.
        weight: Of each sample, (N,) float64, 1 on average over all parts.
        held: Which are held out, (N,).
    """

    inputs: Any
    weight: Tensor
    held: Tensor

    def __len__(self) -> int:
        return len(self.weight)


def _by_sample(inputs: Any, n_samples: int) -> bool:
    tensors = tensors_of(inputs)
    return bool(tensors) and all(tensor.ndim and len(tensor) == n_samples for tensor in tensors)


@dataclass(frozen=True)
class Reading:
    """What was read, before anything is known of other processes.

    Attributes:
        inputs: Of each batch.
        columns: Which sensitive group its samples are in, (N, groups seen so far).
        encoder: Knows the groups.
    """

    inputs: list[Any]
    columns: list[Tensor]
    encoder: SensitiveEncoder

    def parts(self, processes: Processes, generator: torch.Generator) -> list[Part]:
        """Weigh the samples and draw those that are held out.

        Args:
            processes: All of which call this.
            generator: Draws the held-out samples.

        Returns:
            One part for each batch.
        """
        lengths = [len(column) for column in self.columns]
        weight = _sample_weights(self.columns, self.encoder, processes)
        held = torch.zeros(sum(lengths), dtype=torch.bool)
        held[torch.randperm(sum(lengths), generator=generator)[: sum(lengths) // _HELD_OUT]] = True
        folds = zip(self.inputs, torch.split(weight, lengths), torch.split(held, lengths), strict=True)
        return [Part(*fold) for fold in folds]


def read(loader: Iterable[Any], max_samples: int, *, weigh_groups: bool, some: bool, progress: bool) -> Reading:
    """Read samples.

    Args:
        loader: Batches of (inputs, target[, sensitive]).
        max_samples: At most so many, or a little more where the samples of a batch can't be told apart.
        weigh_groups: Whether sensitive groups are to count alike.
        some: Whether there must be some.
        progress: Show a progress bar.

    Returns:
        What was read.

    Raises:
        InputError: Inputs are not finite, or there are no sensitive features to weigh by.
    """
    encoder = SensitiveEncoder()
    inputs: list[Any] = []
    columns: list[Tensor] = []
    n_samples = 0
    for batch in iterate_batches(loader, None, progress=progress, description="reading", allow_empty=not some):
        batch.check_length()
        if weigh_groups and batch.sensitive is None:
            raise InputError(
                f"weigh_groups=True, but batch {batch.index} of the loader has no sensitive features; expected "
                "(inputs, target, sensitive), or weigh_groups=False"
            )
        column = encoder.encode(batch.sensitive if weigh_groups else None, len(batch), batch.index)
        taken, room = batch.inputs, max_samples - n_samples
        if room < len(batch) and _by_sample(taken, len(batch)):
            taken, column = slice_samples(taken, slice(0, room)), column[:room]
        for tensor in tensors_of(taken):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise InputError(f"batch {batch.index}: the inputs hold NaN or infinity; expected finite numbers")
        inputs.append(taken)
        columns.append(column)
        n_samples += len(column)
        if n_samples >= max_samples:
            break
    return Reading(inputs, columns, encoder)


def _sample_weights(columns: Sequence[Tensor], encoder: SensitiveEncoder, processes: Processes) -> Tensor:
    """1 / n_g of each sample's group, times what makes them 1 on average."""
    places = encoder.share(processes)
    n_groups = len(encoder.groups)
    padded = [torch.zeros(0, n_groups, dtype=torch.float64)]
    for column in columns:
        wide = column.new_zeros(len(column), n_groups)
        wide[:, places[: column.shape[1]]] = column
        padded.append(wide)
    members = torch.cat(padded)
    counts = processes.sum(members.sum(0))
    return members @ (counts.sum() / (n_groups * counts))


def few_samples(part: Part, number: int = 8) -> tuple[Any, int]:
    """Inputs of a few samples and how many; of all where they can't be told apart.

    Args:
        part: Of it.
        number: At most.

    Returns:
        The inputs, and N.
    """
    if not _by_sample(part.inputs, len(part)):
        return part.inputs, len(part)
    return slice_samples(part.inputs, slice(0, number)), min(number, len(part))


def joined(parts: Sequence[Part]) -> Part | None:
    """All parts as one, or None where their inputs can't be joined.

    Args:
        parts: At least one.

    Returns:
        The one part.

    Example:
        >>> one = Part(torch.zeros(2, 3), torch.ones(2), torch.tensor([True, False]))
        >>> len(joined([one, one]))
        4
    """
    if len(parts) == 1:
        return parts[0]
    flat = [tree_flatten(part.inputs) for part in parts]
    leaves, form = flat[0]
    if not all(_by_sample(part.inputs, len(part)) for part in parts) or any(other != form for _, other in flat):
        return None
    whole: list[Any] = []
    for position, leaf in enumerate(leaves):
        others = [entries[position] for entries, _ in flat]
        if isinstance(leaf, Tensor):
            alike = all(
                isinstance(o, Tensor) and o.shape[1:] == leaf.shape[1:] and o.dtype == leaf.dtype for o in others
            )
            if not alike:
                return None
            whole.append(torch.cat(others))
        elif all(
            type(o) is type(leaf) and isinstance(o, bool | int | float | str | None) and o == leaf for o in others
        ):
            whole.append(leaf)
        else:
            return None
    weight, held = torch.cat([part.weight for part in parts]), torch.cat([part.held for part in parts])
    return Part(tree_unflatten(whole, form), weight, held)
