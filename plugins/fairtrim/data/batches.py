"""Any loader of (inputs, target[, sensitive]) or of dicts as it is, and any network that returns scores."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_any, tree_leaves, tree_map
from tqdm.auto import tqdm

from fairtrim.errors import InputError, UnsupportedModelError

__all__ = [
    "Batch",
    "ForwardFunction",
    "as_target",
    "check_network",
    "class_scores",
    "iterate_batches",
    "model_device",
    "network_output",
    "parts_of_batch",
    "slice_samples",
    "to_device",
]

ForwardFunction = Callable[[nn.Module, Any], Any]
"""Runs the network on the inputs of one batch: ``forward_fn(model, inputs) -> output``."""

TARGET_KEYS = ("labels", "label")
SENSITIVE_KEYS = ("sensitive_features", "sensitive")
"""Where a batch that is a dict holds its target and its sensitive features; everything else is the inputs."""


@dataclass(frozen=True)
class Batch:
    """One batch on the network's device.

    Attributes:
        inputs: Whatever the network takes: a tensor, a tuple of tensors or a dict.
        target: Labels, (N,), (N, T) for one at each of T positions, or as the loss wants them.
        sensitive: Values of the sensitive features as the loader gave them, or None.
        index: Number of the batch, for messages.
    """

    inputs: Any
    target: Tensor
    sensitive: Any
    index: int

    def __len__(self) -> int:
        """N, the number of samples."""
        return int(self.target.shape[0])


_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")


def slice_samples(inputs: Any, samples: slice) -> Any:
    """Some of the samples of a batch's inputs.

    Args:
        inputs: Tensors in tuples, lists and dicts; anything else in them belongs to no sample and stays.
        samples: Which.

    Returns:
        The same structure.

    Example:
        >>> slice_samples({"x": torch.eye(3), "return_dict": True}, slice(0, 1))
        {'x': tensor([[1., 0., 0.]]), 'return_dict': True}
    """
    return tree_map(lambda leaf: leaf[samples] if isinstance(leaf, Tensor) else leaf, inputs)


def model_device(model: nn.Module) -> torch.device:
    """Device of the network's parameters and buffers.

    Args:
        model: The network.

    Returns:
        The device; the CPU for a network without parameters.

    Raises:
        UnsupportedModelError: The network lies on two devices.
    """
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(devices) > 1:
        raise UnsupportedModelError(
            f"the network lies on {len(devices)} devices ({', '.join(sorted(map(str, devices)))}); "
            "expected one: move it with model.to(device)"
        )
    return devices.pop() if devices else torch.device("cpu")


def check_network(model: nn.Module) -> None:
    """Refuse a network whose samples or layers can't be told apart from outside.

    Args:
        model: The network.

    Raises:
        UnsupportedModelError: It was compiled, is wrapped for several devices, or has a BatchNorm without running
            statistics, which normalises by the batch even in eval mode.
    """
    for name, module in model.named_modules():
        if type(module).__name__ in _WRAPPERS:
            raise UnsupportedModelError(
                f"{name or 'the network'} is wrapped in {type(module).__name__}, whose forward pass waits for other "
                "processes or devices; expected the network itself, model.module (shares of the data are added up "
                "without a wrapper)"
            )
        if hasattr(module, "_orig_mod"):  # torch.compile's wrapper: hooks on the layers inside are compiled away
            raise UnsupportedModelError(
                f"{name or 'the network'} was compiled by torch.compile; expected the network itself, model._orig_mod "
                "(the compiled one shares its weights; compile again after pruning, which changes the shapes)"
            )
        if getattr(module, "_compiled_call_impl", None) is not None:  # may have left out hooks that come later
            raise UnsupportedModelError(
                f"{name or 'the network'} was compiled in place by its compile(), which passes hooks over in silence; "
                "expected one that is not: compile after pruning, or take copy.deepcopy(model), which is not compiled"
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise UnsupportedModelError(
                f"{name!r} is a {type(module).__name__} without running statistics: it normalises by the batch, so "
                "samples are not independent; expected track_running_stats=True"
            )


def to_device(value: Any, device: torch.device) -> Any:
    """Move every tensor in tuples, lists and dicts.

    Args:
        value: A tensor, a container of them, or anything else, which stays as it is.
        device: Where to.

    Returns:
        The same structure on the device; what comes to the CPU can be read at once.
    """
    if isinstance(value, Tensor):
        # on the CPU nothing waits for a copy that is still under way
        return value.to(device, non_blocking=device.type != "cpu")
    if isinstance(value, Mapping):
        return {key: to_device(entry, device) for key, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple
        return type(value)(*(to_device(entry, device) for entry in value))
    if isinstance(value, tuple | list):
        return type(value)(to_device(entry, device) for entry in value)
    return value


def as_target(target: Any, index: int) -> Tensor:
    """The target of a batch as a tensor.

    Args:
        target: A tensor or what makes one; of a pandas object the values in their order, whatever its index.
        index: Number of the batch, for the message.

    Returns:
        The tensor.

    Raises:
        InputError: It makes none.

    Example:
        >>> as_target([1, 0], 0)
        tensor([1, 0])
    """
    if isinstance(target, Tensor):
        return target
    try:
        if hasattr(target, "to_numpy"):
            target = target.to_numpy()
        if isinstance(target, np.ndarray):
            target = np.array(target.tolist() if target.dtype == object else target)  # a copy: some can't be written to
        return torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"batch {index}: the target is a {type(target).__name__} that makes no tensor; expected integer labels "
            "(N,): number classes that have names, e.g. with sklearn.preprocessing.LabelEncoder"
        ) from None


def parts_of_batch(entry: Any, index: int) -> tuple[Any, Tensor, Any]:
    """Inputs, target and sensitive features of one entry of a loader.

    Args:
        entry: (inputs, target[, sensitive]), or a dict, such as Hugging Face's collators make, whose target is under
            ``labels`` and whose sensitive features, if any, are under ``sensitive_features``.
        index: Number of the batch, for messages.

    Returns:
        Inputs, target (N, ...), and sensitive features or None.

    Raises:
        InputError: The entry has another form, or the target has no sample axis.

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
        raise InputError(
            f"batch {index} of the loader is a {form}; expected (inputs, target) or (inputs, target, sensitive), or a "
            "dict with 'labels'"
        )
    target = as_target(target, index)
    if target.ndim == 0:
        raise InputError(f"batch {index}: the target has no sample axis; expected shape (N,)")
    return inputs, target, sensitive


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

    Args:
        loader: A DataLoader or any iterable of such batches.
        device: Where inputs and targets go, None to leave them where they are; sensitive features always stay.
        max_batches: Stop after so many batches.
        progress: Show a progress bar.
        description: Text of the bar.
        allow_empty: Whether a loader may give no sample at all, as one process of several may.

    Yields:
        The batches.

    Raises:
        InputError: A batch has another form, or the loader is empty.
    """
    if max_batches is not None and max_batches < 1:
        raise InputError(f"max_batches is {max_batches}; expected at least 1, or None for the whole loader")
    if not isinstance(loader, Iterable):
        raise InputError(
            f"the loader is a {type(loader).__name__}; expected a DataLoader or another iterable of batches"
        )
    try:
        total = len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # a DataLoader over a stream, or a bar around a generator, has a length only by name
        total = None
    if total is not None and max_batches is not None:
        total = min(total, max_batches)
    empty = True
    bar = tqdm(
        islice(loader, max_batches), total=total, desc=description, disable=not progress, leave=False, unit="batch"
    )
    for index, entry in enumerate(bar):
        inputs, target, sensitive = parts_of_batch(entry, index)
        if len(target) == 0:
            continue
        empty = False
        if device is not None:
            inputs, target = to_device(inputs, device), target.to(device)
        yield Batch(inputs, target, sensitive, index)
    if empty and not allow_empty:
        raise InputError("the loader gave no sample; pass a loader with at least one batch (an iterator runs dry)")


def _check_names(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    parameters = inspect.signature(model.forward).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    surplus = sorted(str(name) for name in inputs if name not in parameters)
    if surplus:
        raise InputError(
            f"the batch is a dict with {surplus}, which the network's forward doesn't take; expected some of "
            f"{list(parameters)}: leave the others out, or pass forward_fn=lambda model, inputs: model(...)"
        )


def _is_array(leaf: Any) -> bool:
    """Whether it is a numeric NumPy array, or a data frame of numbers."""
    if hasattr(leaf, "columns") and hasattr(leaf, "dtypes"):
        return all(getattr(dtype, "kind", "O") in "biuf" for dtype in leaf.dtypes)
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf"


def _floating_types(model: nn.Module) -> set[torch.dtype]:
    return {tensor.dtype for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()}


def _tensors(model: nn.Module, inputs: Any) -> Any:
    """Arrays and data frames as tensors on the network's device, in its floating-point type."""
    types = _floating_types(model)

    def converted(leaf: Any) -> Any:
        if not _is_array(leaf):
            return leaf
        tensor = torch.from_numpy(np.array(leaf.to_numpy() if hasattr(leaf, "to_numpy") else leaf))
        return tensor.to(model_device(model), *(types if len(types) == 1 and tensor.is_floating_point() else ()))

    return tree_map(converted, inputs)


def _called(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def _explain_types(model: nn.Module, inputs: Any, index: int, error: RuntimeError) -> None:
    given = {leaf.dtype for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()}
    types = _floating_types(model)
    told = str(error).lower()
    if len(types) == 1 and given - types and ("dtype" in told or "type" in told):
        name = str(*types).removeprefix("torch.")
        others = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in given - types))
        raise InputError(
            f"batch {index}: the inputs are {others} and the network is {name} ({error}); expected one type: give "
            f"inputs.to(torch.{name}), or pass forward_fn=lambda model, inputs: model(inputs.to(torch.{name}))"
        ) from error


def network_output(model: nn.Module, inputs: Any, forward_fn: ForwardFunction | None = None, *, index: int = 0) -> Any:
    """What a network returns for the inputs of a batch.

    Args:
        model: The network.
        inputs: A tensor, a tuple or list of arguments, or a dict of them by name. Arrays and frames become tensors.
        forward_fn: How to call the network instead.
        index: Number of the batch, for messages.

    Returns:
        Whatever it returns.

    Raises:
        InputError: A dict names an argument that the network doesn't take, or inputs are of another floating-point type
            than the network.
    """
    if forward_fn is not None:
        return forward_fn(model, inputs)
    if tree_any(_is_array, inputs):
        inputs = _tensors(model, inputs)
    if isinstance(inputs, Mapping):
        _check_names(model, inputs)
    try:
        return _called(model, inputs)
    except RuntimeError as error:
        _explain_types(model, inputs, index, error)
        raise


def class_scores(
    model: nn.Module,
    batch: Batch,
    forward_fn: ForwardFunction | None = None,
    output_transform: Callable[[Any], Tensor] | None = None,
    *,
    positions: bool = False,
) -> Tensor:
    """Scores f(x) of one batch, (N, K).

    Args:
        model: The network.
        batch: The batch.
        forward_fn: How to call the network; by default ``model(inputs)``, ``model(*inputs)`` for a tuple or
            list and ``model(**inputs)`` for a dict.
        output_transform: Takes the scores out of what the network returns. Tensors, and the ``logits`` of an
            object or dict, need none. (N,) becomes (N, 1).
        positions: Whether scores (N, T, K) for a target (N, T), a label for each of T tokens, will do as well.

    Returns:
        Scores, (N, K) or (N, T, K).

    Raises:
        InputError: There are more or fewer targets than inputs.
        UnsupportedModelError: What came back has no scores of that shape.
    """
    inputs = batch.inputs
    output = network_output(model, inputs, forward_fn, index=batch.index)
    if output_transform is not None:
        output = output_transform(output)
    elif isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    elif not isinstance(output, Tensor) and hasattr(output, "logits"):
        output = output.logits
    if not isinstance(output, Tensor):
        raise UnsupportedModelError(
            f"the network returned a {type(output).__name__}; expected a tensor of scores (N, K): "
            "pass output_transform, e.g. output_transform=lambda output: output[0]"
        )
    scores = output.unsqueeze(1) if output.ndim == 1 else output
    n_inputs = len(inputs) if isinstance(inputs, Tensor) else None
    if n_inputs not in (None, len(batch)):
        raise InputError(f"batch {batch.index} has {n_inputs} inputs and {len(batch)} targets; expected as many")
    at_positions = scores.ndim == 3 and batch.target.ndim >= 2 and scores.shape[:2] == batch.target.shape[:2]
    if at_positions and not positions:
        raise UnsupportedModelError(
            f"the network returned scores of shape {tuple(scores.shape)}, one row for each of {scores.shape[1]} "
            "positions; this method is defined for one label a sample: pass output_transform to select a position"
        )
    if scores.shape[0] != len(batch) or not (scores.ndim == 2 or at_positions):
        raise UnsupportedModelError(
            f"the network returned scores of shape {tuple(output.shape)} for a target of shape "
            f"{tuple(batch.target.shape)}; expected (N, K), or (N, T, K) for labels (N, T): pass output_transform to "
            "select or reshape them"
        )
    return scores
