"""The samples of a refit: read once, split by sample, weighed, and joined to one batch where they can be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from fairtrim.data.batches import iterate_batches, slice_samples, tensors_of
from fairtrim.data.padding import real_tokens
from fairtrim.data.sensitive_groups import SensitiveEncoder
from fairtrim.devices import to_device
from fairtrim.errors import InputError
from fairtrim.processes import Processes

__all__ = ["Part", "Reading", "few_samples", "filled_up", "joined", "read"]

_HELD_OUT = 5  # one in so many samples


@dataclass(frozen=True)
class Part:
    """Some of the samples.

    Attributes:
        inputs: As the loader gave them.
        weight: Of each sample, (N,) float64, 1 on average over all parts.
        held: Which are held out, (N,).
        real: Which positions are no padding, (N, P); None if all, or nothing says so.
    """

    inputs: Any
    weight: Tensor
    held: Tensor
    real: Tensor | None = None

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
        real: Which positions are no padding; see ``Part``.
    """

    inputs: list[Any]
    columns: list[Tensor]
    encoder: SensitiveEncoder
    real: list[Tensor | None]

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
        held = torch.zeros(sum(lengths), dtype=torch.bool, device="cpu")
        held[torch.randperm(sum(lengths), generator=generator, device="cpu")[: sum(lengths) // _HELD_OUT]] = True
        folds = zip(self.inputs, torch.split(weight, lengths), torch.split(held, lengths), self.real, strict=True)
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
    real: list[Tensor | None] = []
    n_samples = 0
    for batch in iterate_batches(loader, None, progress=progress, description="reading", allow_empty=not some):
        batch.check_length()
        if weigh_groups and batch.sensitive is None:
            raise InputError(
                f"weigh_groups=True, but batch {batch.index} of the loader has no sensitive features; expected "
                "(inputs, target, sensitive), or weigh_groups=False"
            )
        column = encoder.encode(batch.sensitive if weigh_groups else None, len(batch), batch.index)
        taken, tokens, room = batch.inputs, real_tokens(batch.inputs, batch.target), max_samples - n_samples
        tokens = None if tokens is None or len(tokens) != len(batch) else tokens.flatten(1).cpu()
        if room < len(batch) and _by_sample(taken, len(batch)):
            taken, column = slice_samples(taken, slice(0, room)), column[:room]
            tokens = None if tokens is None else tokens[:room]
        for tensor in tensors_of(taken):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise InputError(f"batch {batch.index}: the inputs hold NaN or infinity; expected finite numbers")
        inputs.append(taken)
        columns.append(column)
        real.append(tokens)
        n_samples += len(column)
        if n_samples >= max_samples:
            break
    return Reading(inputs, columns, encoder, real)


def _sample_weights(columns: Sequence[Tensor], encoder: SensitiveEncoder, processes: Processes) -> Tensor:
    """1 / n_g of each sample's group, times what makes them 1 on average."""
    places = encoder.share(processes)
    n_groups = len(encoder.groups)
    padded = [torch.zeros(0, n_groups, dtype=torch.float64, device="cpu")]
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

    Sentences of several lengths are padded on the right where they have an ``attention_mask``, which is 0 there.

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
    padded = all(isinstance(part.inputs, Mapping) and _is_mask(part.inputs.get("attention_mask")) for part in parts)
    whole: list[Any] = []
    for position, leaf in enumerate(leaves):
        others = [entries[position] for entries, _ in flat]
        if isinstance(leaf, Tensor):
            if not all(isinstance(o, Tensor) and o.ndim == leaf.ndim and o.dtype == leaf.dtype for o in others):
                return None
            if padded and leaf.ndim > 1:
                others = filled_up(others)
            if any(o.shape[1:] != others[0].shape[1:] for o in others):
                return None
            whole.append(torch.cat(to_device(others, leaf.device)))  # a loader may mix devices
        elif all(
            type(o) is type(leaf) and isinstance(o, bool | int | float | str | None) and o == leaf for o in others
        ):
            whole.append(leaf)
        else:
            return None
    inputs = tree_unflatten(whole, form)
    weight, held = torch.cat([part.weight for part in parts]), torch.cat([part.held for part in parts])
    known = [part.real for part in parts]
    if padded:
        real = real_tokens(inputs)
    elif all(tokens is None for tokens in known):
        real = None
    else:  # told by labels, and all of one length
        width = next(tokens.shape[1] for tokens in known if tokens is not None)
        whole_parts = (torch.ones(len(part), width, dtype=torch.bool, device="cpu") for part in parts)
        real = torch.cat([w if t is None else t for t, w in zip(known, whole_parts, strict=True)])
    return Part(inputs, weight, held, None if real is None else real.cpu())


def filled_up(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors with zeros behind them along their second axis, until all are as long as the longest.

    Args:
        tensors: (N, P, ...) each.

    Returns:
        (N, largest P, ...) each.

    Example:
        >>> [tensor.tolist() for tensor in filled_up([torch.ones(1, 1), torch.ones(1, 2)])]
        [[[1.0, 0.0]], [[1.0, 1.0]]]
    """
    longest = max(tensor.shape[1] for tensor in tensors)
    return [F.pad(t, (0, 0) * (t.ndim - 2) + (0, longest - t.shape[1])) for t in tensors]


def _is_mask(mask: Any) -> bool:
    return isinstance(mask, Tensor) and mask.ndim == 2 and not mask.is_floating_point()
