"""Any loader of (inputs, target[, sensitive]) or of dicts as it is, and any network that returns scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairtrim.devices import map_tensors, to_device
from fairtrim.errors import InputError
from fairtrim.progress import progress_bar

__all__ = [
    "Batch",
    "ForwardFunction",
    "LossFunction",
    "iterate_batches",
    "map_tensors",
    "n_batches_of",
    "parts_of_batch",
    "slice_samples",
    "tensors_of",
]

ForwardFunction = Callable[[nn.Module, Any], Any]
"""Runs the network on the inputs of one batch: ``forward_fn(model, inputs) -> output``."""

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Loss of the scores and the target of a batch: ``loss_fn(scores, target)``."""

TARGET_KEYS = ("labels", "label")
SENSITIVE_KEYS = ("sensitive_features", "sensitive")
"""Where a batch that is a dict holds its target and its sensitive features; everything else is the inputs."""


@dataclass(frozen=True)
class Batch:
    """One batch on the network's device.

    Target: labels, (N,), (N, T) for one at each of T positions, or as the loss wants them. Sensitive features: as the
    loader gave them, or None. Index: number of the batch, for messages.
    """

    inputs: Any
    target: Tensor
    sensitive: Any
    index: int

    def __len__(self) -> int:
        """N, the number of samples."""
        return int(self.target.shape[0])

    def check_length(self) -> None:
        """Refuse inputs of one tensor that are more or fewer than the targets."""
        if isinstance(self.inputs, Tensor) and len(self.inputs) != len(self):
            raise InputError(
                f"batch {self.index} has {len(self.inputs)} inputs and {len(self)} targets; expected as many"
            )

    def inputs_on(self, device: torch.device) -> Batch:
        """The same with the inputs on a device; target and sensitive features stay where they are."""
        return replace(self, inputs=to_device(self.inputs, device))


def slice_samples(inputs: Any, samples: slice | Tensor) -> Any:
    """Some of the samples of a batch's inputs.

    A slice or positions (M,); what is no tensor belongs to no sample and stays.

    Example:
        >>> slice_samples({"x": torch.eye(3), "return_dict": True}, slice(0, 1))
        {'x': tensor([[1., 0., 0.]]), 'return_dict': True}
    """
    return map_tensors(inputs, lambda tensor: tensor[samples])


def tensors_of(inputs: Any) -> list[Tensor]:
    """Every tensor of a batch's inputs.

    Example:
        >>> [len(tensor) for tensor in tensors_of({"x": torch.eye(3), "return_dict": True})]
        [3]
    """
    found: list[Tensor] = []

    def noted(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(inputs, noted)
    return found


def _as_target(target: Any, index: int) -> Tensor:
    """The target of a batch as a tensor; of a pandas object the values in their order, whatever its index."""
    if isinstance(target, Tensor):
        return target
    try:
        if hasattr(target, "to_numpy"):
            target = target.to_numpy()
        if isinstance(target, np.ndarray):
            target = np.array(target.tolist() if target.dtype == object else target)  # a copy: some can't be written to
        return torch.as_tensor(target, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"batch {index}: the target is a {type(target).__name__} that makes no tensor; expected integer labels "
            "(N,): number classes that have names, e.g. with sklearn.preprocessing.LabelEncoder"
        ) from None


def parts_of_batch(entry: Any, index: int, *, values: bool = True) -> tuple[Any, Tensor, Any]:
    """Inputs, target and sensitive features of one entry of a loader.

    The entry is (inputs, target[, sensitive]), or a dict, such as Hugging Face's collators make, whose target is under
    ``labels`` and whose sensitive features, if any, are under ``sensitive_features``. Refused with ``values``: tensors
    on the meta device.

    Example:
        >>> inputs, target, sensitive = parts_of_batch({"input_ids": torch.ones(2, 3), "labels": [1, 0]}, 0)
        >>> list(inputs), target.tolist(), sensitive
        (['input_ids'], [1, 0], None)
    """
    sensitive = None
    if isinstance(entry, Mapping):
        target_key = next((key for key in TARGET_KEYS if entry.get(key) is not None), None)
        if target_key is None:
            raise InputError(
                f"batch {index} of the loader is a dict of {sorted(map(str, entry))}; expected the target under "
                f"{TARGET_KEYS[0]!r} (and the sensitive features under {SENSITIVE_KEYS[0]!r})"
            )
        sensitive = next((entry[key] for key in SENSITIVE_KEYS if key in entry), None)
        inputs: Any = {key: value for key, value in entry.items() if key not in (target_key, *SENSITIVE_KEYS)}
        target = entry[target_key]
    elif isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) in (2, 3):
        inputs, target = entry[0], entry[1]
        sensitive = entry[2] if len(entry) == 3 else None
    else:
        form = f"{type(entry).__name__}" + (f" of {len(entry)}" if hasattr(entry, "__len__") else "")
        remedy = ": a loader of one batch is [(inputs, target)]" if isinstance(entry, Tensor) else ""
        raise InputError(
            f"batch {index} of the loader is a {form}; expected (inputs, target) or (inputs, target, sensitive), or a "
            f"dict with 'labels'{remedy}"
        )
    target = _as_target(target, index)
    if values and any(tensor.is_meta for tensor in tensors_of([inputs, target])):
        raise InputError(
            f"batch {index} lies on the meta device, where tensors have no values; expected data: make the dataset "
            "outside of torch.device('meta'); batches on the CPU are moved to the network's device"
        )
    if target.ndim == 0:
        raise InputError(f"batch {index}: the target has no sample axis; expected shape (N,)")
    return inputs, target, sensitive


def _collated(loader: Iterable[Any]) -> Iterator[Any]:
    """Its batches; what torch can't put together is said in words."""
    try:
        yield from loader
    except TypeError as error:
        if "default_collate" not in str(error):
            raise
        raise InputError(
            f"the loader can't put samples together ({error}); expected tensors, numbers or strings of each sample: "
            "None and objects need codes, or a collate_fn of the DataLoader"
        ) from error


def n_batches_of(loader: Iterable[Any], max_batches: int | None) -> int | None:
    """How many batches will be read of a loader; None if it doesn't say."""
    try:
        total = len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # a DataLoader over a stream, or a bar around a generator, has a length only by name
        return None
    return total if total is None or max_batches is None else min(total, max_batches)


def iterate_batches(
    loader: Iterable[Any],
    device: torch.device | None,
    *,
    max_batches: int | None = None,
    progress: bool = True,
    description: str = "",
    allow_empty: bool = False,
) -> Iterator[Batch]:
    """Go through a loader of (inputs, target), (inputs, target, sensitive) or dicts.

    ``device``: where inputs and targets go, None to leave them; sensitive features always stay. ``allow_empty``:
    whether a loader may give no sample at all, as one process of several may.
    """
    if max_batches is not None and max_batches < 1:
        raise InputError(f"max_batches is {max_batches}; expected at least 1, or None for the whole loader")
    if not isinstance(loader, Iterable) or isinstance(loader, str) or hasattr(loader, "columns"):
        raise InputError(
            f"the loader is a {type(loader).__name__}; expected a DataLoader or another iterable of batches"
        )
    empty = True
    bar = progress_bar(
        islice(loader, max_batches),
        description=description,
        shown=progress,
        unit="batch",
        total=n_batches_of(loader, max_batches),
    )
    for index, entry in enumerate(_collated(bar)):
        inputs, target, sensitive = parts_of_batch(entry, index)
        if len(target) == 0:
            continue
        empty = False
        if device is not None:
            inputs, target = to_device((inputs, target), device)
        yield Batch(inputs, target, sensitive, index)
    if empty and not allow_empty:
        raise InputError("the loader gave no sample; pass a loader with at least one batch (an iterator runs dry)")
