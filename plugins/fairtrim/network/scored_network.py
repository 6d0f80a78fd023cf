"""A callable network: how it is called, and where its scores are in what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_any, tree_map

from fairtrim.arguments import few_of
from fairtrim.data.batches import Batch, ForwardFunction, tensors_of
from fairtrim.devices import model_device
from fairtrim.errors import InputError, UnsupportedModelError
from fairtrim.placement import require_values

from .batchnorm import batchnorm_layers
from .recurrent_layers import differentiable_recurrence

__all__ = ["OutputTransform", "ScoredNetwork", "call_of", "explained_indices", "logits_of"]

OutputTransform = Callable[[Any], Tensor]
"""Finds the scores (N, K) in what the network returns."""

_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")


@dataclass(frozen=True)
class ScoredNetwork:
    """A network with all that is needed to get scores from it.

    Args:
        model: The network.
        forward_fn: How to call it; by default ``model(inputs)``, ``model(*inputs)`` for a tuple or list and
            ``model(**inputs)`` for a dict.
        output_transform: Takes the scores out of what it returns; tensors and ``logits`` need none.

    Raises:
        InputError: A function is none.

    Example:
        >>> network = ScoredNetwork(nn.Identity(), output_transform=lambda output: output[:, :2])
        >>> network.scores(Batch(torch.eye(3), torch.zeros(3), None, 0)).shape
        torch.Size([3, 2])
    """

    model: nn.Module
    forward_fn: ForwardFunction | None = None
    output_transform: OutputTransform | None = None

    def __post_init__(self) -> None:
        for name, takes in (("forward_fn", "(model, inputs)"), ("output_transform", "(output)")):
            if (given := getattr(self, name)) is not None and not callable(given):
                raise InputError(f"{name} is a {type(given).__name__}; expected a function of {takes}")

    @property
    def device(self) -> torch.device:
        """Device of the parameters and buffers."""
        return model_device(self.model)

    def of(self, model: nn.Module) -> ScoredNetwork:
        """Another network that is called in the same way, such as a pruned copy."""
        return replace(self, model=model)

    def check(self, *, values: bool = True) -> None:
        """Refuse a network whose samples or layers can't be told apart from outside.

        It was compiled, is wrapped for several devices, or has a BatchNorm without running statistics, which normalises
        by the batch even in eval mode. With ``values`` also one on the meta device.
        """
        if values:
            require_values(self.model)
        by_the_batch = set(batchnorm_layers(self.model, with_statistics=False)).difference(batchnorm_layers(self.model))
        for name, module in self.model.named_modules():
            if type(module).__name__ in _WRAPPERS:
                raise UnsupportedModelError(
                    f"{name or 'the network'} is wrapped in {type(module).__name__}, whose forward pass waits for "
                    "other processes or devices; expected the network itself, model.module (shares of the data are "
                    "added up without a wrapper)"
                )
            if hasattr(module, "_orig_mod"):  # torch.compile's wrapper: hooks on the layers inside are compiled away
                raise UnsupportedModelError(
                    f"{name or 'the network'} was compiled by torch.compile; expected the network itself, "
                    "model._orig_mod (the compiled one shares its weights; compile again after pruning, which "
                    "changes the shapes)"
                )
            if isinstance(module, torch.jit.ScriptModule):
                raise UnsupportedModelError(
                    f"{name or 'the network'} is a torch.jit.ScriptModule, whose layers can't be seen or changed from "
                    "outside; expected the network that was scripted or traced: script the pruned or repaired one anew"
                )
            if getattr(module, "_compiled_call_impl", None) is not None:  # may have left out hooks that come later
                raise UnsupportedModelError(
                    f"{name or 'the network'} was compiled in place by its compile(), which passes hooks over in "
                    "silence; expected one that is not: compile after pruning, or take copy.deepcopy(model), which is "
                    "not compiled"
                )
            if module in by_the_batch:
                raise UnsupportedModelError(
                    f"{name!r} is a {type(module).__name__} without running statistics: it normalises by the batch, so "
                    "samples are not independent; expected track_running_stats=True"
                )

    def tensors(self, inputs: Any) -> Any:
        """The inputs with arrays and frames of numbers as tensors, as the network is called with them."""
        return _tensors(self.model, inputs) if tree_any(_is_array, inputs) else inputs

    def output(self, inputs: Any, *, index: int = 0) -> Any:
        """What the network returns for the inputs of a batch.

        They are a tensor, a tuple or list of arguments, or a dict of them by name; arrays and frames become tensors.
        Refused: names that the network doesn't take, and another floating-point type than its own.
        """
        if self.forward_fn is not None:
            with explained_indices(self.model, inputs), differentiable_recurrence(self.model):
                return self.forward_fn(self.model, inputs)
        inputs = self.tensors(inputs)
        if isinstance(inputs, Mapping):
            _check_names(self.model, inputs)
        try:
            with explained_indices(self.model, inputs), differentiable_recurrence(self.model):
                return call_of(self.model, inputs)()
        except (RuntimeError, TypeError) as error:
            _explain_form(inputs, index, error)
            _explain_types(self.model, inputs, index, error)
            _explain_shape(self.model, inputs, index, error)
            raise

    def scores(self, batch: Batch, *, positions: bool = False) -> Tensor:
        """Scores f(x) of one batch, (N, K); (N,) becomes (N, 1).

        With ``positions`` scores (N, T, K) for a target (N, T), a label for each of T tokens, will do as well.
        """
        output = self.output(batch.inputs, index=batch.index)
        output = logits_of(output) if self.output_transform is None else self.output_transform(output)
        if not isinstance(output, Tensor):
            keys = list(output) if isinstance(output, Mapping) else []
            form, key = (f"{type(output).__name__} of {keys}", keys[0]) if keys else (type(output).__name__, 0)
            raise UnsupportedModelError(
                f"the network returned a {form}; expected a tensor of scores (N, K): "
                f"pass output_transform, e.g. output_transform=lambda output: output[{key!r}]"
            )
        scores = output.unsqueeze(1) if output.ndim == 1 else output
        places = {tensor.device for tensor in tensors_of(batch.inputs)}
        # the network may give them elsewhere; what is compared with them lies beside the inputs
        if len(places) == 1 and scores.device not in places:
            scores = scores.to(places.pop())
        batch.check_length()
        at_positions = scores.ndim == 3 and batch.target.ndim >= 2 and scores.shape[:2] == batch.target.shape[:2]
        if at_positions and not positions:
            raise UnsupportedModelError(
                f"the network returned scores of shape {tuple(scores.shape)}, one row for each of {scores.shape[1]} "
                "positions; this method is defined for one label a sample: pass output_transform to select a position"
            )
        if scores.shape[0] != len(batch) or not (scores.ndim == 2 or at_positions):
            raise UnsupportedModelError(
                f"the network returned scores of shape {tuple(output.shape)} for a target of shape "
                f"{tuple(batch.target.shape)}; expected (N, K), or (N, T, K) for labels (N, T): pass output_transform "
                "to select or reshape them"
            )
        return scores


def logits_of(output: Any) -> Any:
    """The scores in what a network returns: its ``logits``, as an attribute or in a dict; else all of it."""
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    return output if isinstance(output, Tensor) else getattr(output, "logits", output)


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


def _kind(dtype: Any) -> str:
    return str(getattr(dtype, "kind", "O"))


def _is_array(leaf: Any) -> bool:
    """Whether it is a numeric NumPy array, or a data frame of numbers."""
    if hasattr(leaf, "columns") and hasattr(leaf, "dtypes"):
        return all(_kind(dtype) in "biuf" for dtype in leaf.dtypes)
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


def call_of(model: nn.Module, inputs: Any, forward_fn: ForwardFunction | None = None) -> Callable[[], Any]:
    """The call of a network with the inputs of a batch, unchecked.

    Inputs are a tensor, a tuple or list of arguments, or a dict of them by name.

    Example:
        >>> call_of(nn.Bilinear(2, 3, 4), (torch.ones(5, 2), torch.ones(5, 3)))().shape
        torch.Size([5, 4])
    """
    if forward_fn is not None:
        return partial(forward_fn, model, inputs)
    if isinstance(inputs, Mapping):
        return partial(model, **inputs)
    return partial(model, *inputs) if isinstance(inputs, tuple | list) else partial(model, inputs)


@contextmanager
def explained_indices(model: nn.Module, inputs: Any) -> Iterator[None]:
    """Say of a row that an embedding doesn't have which whole numbers there are, and which rows.

    Example:
        >>> with explained_indices(nn.Embedding(3, 2), torch.tensor([[1, 7]])):
        ...     nn.Embedding(3, 2)(torch.tensor([[1, 7]]))
        Traceback (most recent call last):
        fairtrim.errors.InputError: the network looks up a row that its embeddings don't have: they have 3 rows, and \
the inputs hold whole numbers from 1 to 7, 2 in a row; expected tokens of its own tokenizer, in texts no longer than \
the positions that it knows
    """
    try:
        yield
    except IndexError as error:
        numbers = [t for t in tensors_of(inputs) if not t.is_floating_point() and not t.is_complex() and t.numel()]
        modules = model.modules() if isinstance(model, nn.Module) else ()
        rows = sorted({module.num_embeddings for module in modules if isinstance(module, nn.Embedding)})
        if not numbers or not rows:
            raise
        length = max((t.shape[-1] for t in numbers if t.ndim), default=1)
        low, high = min(int(t.min()) for t in numbers), max(int(t.max()) for t in numbers)
        raise InputError(
            f"the network looks up a row that its embeddings don't have: they have {', '.join(map(str, rows))} rows, "
            f"and the inputs hold whole numbers from {low} to {high}, {length} in a "
            "row; expected tokens of its own tokenizer, in texts no longer than the positions that it knows"
        ) from error


def _explain_form(inputs: Any, index: int, error: Exception) -> None:
    """Say of inputs without a tensor, such as a frame with words or lists of numbers, what to make of them."""
    if not isinstance(error, TypeError):
        return
    if tensors_of(inputs):
        if isinstance(inputs, tuple | list) and "positional argument" in str(error):
            raise InputError(
                f"batch {index}: the inputs are a {type(inputs).__name__} of {len(inputs)}, which are the arguments of "
                f"the network's forward ({error}); expected as many as it takes, or one tensor (N, ...)"
            ) from error
        return
    words = ""
    if hasattr(inputs, "columns") and hasattr(inputs, "dtypes"):
        others = [str(c) for c, dtype in zip(inputs.columns, inputs.dtypes, strict=True) if _kind(dtype) not in "biuf"]
        words = f" whose columns {few_of(others)} hold no numbers"
    raise InputError(
        f"batch {index}: the inputs are a {type(inputs).__name__}{words} ({error}); expected a tensor (N, ...), or "
        "tensors in a tuple or dict: code words as numbers, then torch.tensor(values, dtype=torch.float32)"
    ) from error


def _explain_shape(model: nn.Module, inputs: Any, index: int, error: Exception) -> None:
    """Say which layer the inputs themselves don't fit; what fails further inside isn't the inputs' fault."""
    trace, layer, given = error.__traceback__, None, None
    while trace is not None:  # the innermost layer that was called, and what it was called with
        local = trace.tb_frame.f_locals
        if isinstance(local.get("self"), nn.Linear | nn.modules.conv._ConvNd):
            layer, given = local["self"], local.get("input")
        trace = trace.tb_next
    if layer is None or not isinstance(given, Tensor) or given.ndim == 0:
        return
    if isinstance(layer, nn.Linear):
        fits, takes = given.shape[-1] == layer.in_features, f"{layer.in_features} features"
    else:
        axis = -len(layer.kernel_size) - 1
        fits = given.ndim >= -axis and given.shape[axis] == layer.in_channels
        takes = f"{layer.in_channels} channels and {len(layer.kernel_size)} axes after them"
    same = None
    if not fits:  # else they may have no storage to compare
        at = given.data_ptr(), given.numel()
        same = next((tensor for tensor in tensors_of(inputs) if (tensor.data_ptr(), tensor.numel()) == at), None)
    if same is None:
        return
    name = next((name for name, module in model.named_modules() if module is layer), "")
    raise InputError(
        f"batch {index}: the inputs have shape {tuple(same.shape)}, and layer {name!r}, a {type(layer).__name__}, "
        f"takes {takes} ({error}); expected inputs as the network was trained on, samples in the first axis"
    ) from error


def _explain_types(model: nn.Module, inputs: Any, index: int, error: Exception) -> None:
    tensors = tensors_of(inputs)
    given = {t.dtype for t in tensors if t.is_floating_point()} or {t.dtype for t in tensors}
    types = _floating_types(model)
    told = str(error).lower()
    if len(types) == 1 and given - types and ("dtype" in told or "type" in told):
        name = str(*types).removeprefix("torch.")
        others = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in given - types))
        raise InputError(
            f"batch {index}: the inputs are {others} and the network is {name} ({error}); expected one type: give "
            f"inputs.to(torch.{name}), or pass forward_fn=lambda model, inputs: model(inputs.to(torch.{name}))"
        ) from error
