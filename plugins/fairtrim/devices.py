"""Where a network and its batches lie, and what to do with every tensor of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UnsupportedModelError
from .placement import execution_device, require_values

__all__ = ["floating_type", "has_float64", "map_tensors", "model_device", "to_device", "together_on_cpu"]


def model_device(model: nn.Module) -> torch.device:
    """Device of the network's parameters and buffers; the CPU if it has none. Two devices, and meta, are refused.

    Of a network with hooks of accelerate, which bring inputs and weights together: where the first hook takes inputs.
    """
    wanted = execution_device(model)
    if wanted is not None:
        return wanted
    require_values(model)
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(devices) > 1:
        raise UnsupportedModelError(
            f"the network lies on {len(devices)} devices ({', '.join(sorted(map(str, devices)))}); "
            "expected one: move it with model.to(device), or spread it with accelerate's dispatch_model, whose hooks "
            "stay as they are"
        )
    return devices.pop() if devices else torch.device("cpu")


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor in tuples, lists and dicts; anything else stays as it is.

    Example:
        >>> map_tensors({"x": (torch.ones(1), "a")}, torch.neg)
        {'x': (tensor([-1.]), 'a')}
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(entry, function) for key, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple
        return type(value)(*(map_tensors(entry, function) for entry in value))
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(entry, function) for entry in value)
    return value


def floating_type(model: nn.Module) -> torch.dtype:
    """Floating-point type of the network's first parameter or buffer, and so of what it takes; else torch's default."""
    types = (tensor.dtype for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point())
    return next(types, torch.get_default_dtype())


def to_device(value: Any, device: torch.device) -> Any:
    """Move every tensor in tuples, lists and dicts; what comes to the CPU can be read at once.

    Nobody waits for a copy to a device, and its source may be forgotten, but not overwritten where it is pinned.
    """
    # on the CPU nothing waits for a copy that is still under way, and MPS reads a source that is already freed
    # (github.com/pytorch/pytorch/issues/189690)
    return map_tensors(value, lambda tensor: tensor.to(device, non_blocking=device.type not in ("cpu", "mps")))


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in double precision; MPS doesn't, nor do some of Intel's, which hold such tensors.

    Example:
        >>> has_float64(torch.device("cpu"))
        True
    """
    try:
        torch.ones(1, dtype=torch.float64, device=device).add(1)
    except (TypeError, RuntimeError):
        return False
    return True


def together_on_cpu(*tensors: Tensor) -> list[Tensor]:
    """Tensors in float64 on the CPU, in one copy, so that a device is waited for once.

    Args:
        tensors: Of any shapes.

    Returns:
        As many, of the same shapes.

    Example:
        >>> together_on_cpu(torch.ones(1, 2), torch.tensor(3.0))
        [tensor([[1., 1.]], dtype=torch.float64), tensor(3., dtype=torch.float64)]
    """
    flat = torch.cat([tensor.reshape(-1).to(tensors[0].device) for tensor in tensors]).cpu()
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    # each by itself: a part would keep the whole
    return [part.to(torch.float64, copy=True).view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
