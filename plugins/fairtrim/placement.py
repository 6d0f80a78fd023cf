"""Networks whose weights lie elsewhere between calls: offloaded by accelerate's hooks, or sharded by FSDP2.

Neither library is imported: hooks are known by what they carry (``_hf_hook``), shards by what a DTensor has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UnsupportedModelError

__all__ = [
    "StoredTensors",
    "execution_device",
    "first_device",
    "holds_nothing",
    "is_sharded",
    "require_values",
    "require_whole",
    "stored_weight",
]


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    """Hooks of accelerate on a module, those in a row one by one."""
    hook = getattr(module, "_hf_hook", None)
    return () if hook is None else tuple(getattr(hook, "hooks", (hook,)))


def _is_shard(tensor: Tensor) -> bool:
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "full_tensor")


def _shard_of(model: nn.Module) -> str:
    """Something of the network that each process keeps a part of, in words; nothing if it is whole."""
    for name, parameter in model.named_parameters():
        if _is_shard(parameter):
            return f"{name!r} is a {type(parameter).__name__}"
    # parameters are ordinary tensors between a forward pass and the next backward pass
    for name, module in model.named_modules():
        if any(base.__name__ == "FSDPModule" for base in type(module).__mro__):
            return f"{name or 'the network'} is a {type(module).__name__}"
    return ""


def is_sharded(model: nn.Module) -> bool:
    """Whether each process keeps a part of the parameters, as DTensors, such as ``fully_shard`` makes."""
    return bool(_shard_of(model))


def execution_device(model: nn.Module) -> torch.device | None:
    """Where the first of accelerate's hooks takes inputs; None of a network without such hooks."""
    for module in model.modules():
        for hook in _hooks(module):
            device = getattr(hook, "execution_device", None)
            if device is not None:
                return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return None


def first_device(model: nn.Module) -> torch.device | None:
    """A device that the network computes on: of accelerate's hooks, else of its first tensor; None if it has none."""
    tensors = (*model.parameters(), *model.buffers())
    return execution_device(model) or next((tensor.device for tensor in tensors), None)


def holds_nothing(model: nn.Module) -> str:
    """Name of a parameter on the meta device that no hook brings in; empty where there is none."""
    if any(getattr(hook, "offload", False) for module in model.modules() for hook in _hooks(module)):
        return ""
    return next((name for name, parameter in model.named_parameters() if parameter.device.type == "meta"), "")


def require_values(model: nn.Module) -> None:
    """Refuse a network with weights that have no values, and that no hook brings.

    Args:
        model: The network.

    Raises:
        UnsupportedModelError: A parameter lies on the meta device.

    Example:
        >>> require_values(nn.Linear(2, 1))
    """
    if empty := holds_nothing(model):
        raise UnsupportedModelError(
            f"{empty!r} lies on the meta device, which computes nothing, and no hook brings its values; expected "
            "weights: load them, e.g. with load_state_dict(..., assign=True) or from_pretrained"
        )


def require_whole(model: nn.Module) -> None:
    """Refuse a network whose weights lie elsewhere where these are to be changed, copied or differentiated.

    Args:
        model: The network.

    Raises:
        UnsupportedModelError: Weights are offloaded, spread over devices by hooks, or sharded.

    Example:
        >>> require_whole(nn.Linear(2, 1))
    """
    works = "collect_damage, measured_change and predict work with the network as it is"
    if shard := _shard_of(model):
        raise UnsupportedModelError(
            f"{shard}, of which each process keeps a part (fully_shard); expected ordinary tensors, which can be "
            f"copied and changed: load the network without fully_shard, e.g. in one process on the CPU. {works}"
        )
    hooked = [name for name, module in model.named_modules() if _hooks(module)]
    offloaded = any(getattr(hook, "offload", False) for module in model.modules() for hook in _hooks(module))
    spread = len({parameter.device for parameter in model.parameters()}) > 1
    if hooked and (offloaded or spread):
        where = "lie elsewhere between calls" if offloaded else "lie on several devices"
        raise UnsupportedModelError(
            f"the network's weights {where}, as hooks of accelerate on {hooked[0] or 'the network'!r} want it "
            "(device_map, cpu_offload); expected all of them in the network, where they can be copied and changed: "
            "load it without device_map=, or call accelerate.hooks.remove_hook_from_module(model, recurse=True) (not "
            f"for what is on disk) and model.to(device). {works}"
        )


class StoredTensors(Mapping[str, Tensor]):
    """A network's state by name, each tensor whole and read from where it lies only when it is asked for.

    Example:
        >>> stored = StoredTensors(nn.Linear(2, 1))
        >>> list(stored), stored["weight"].shape
        (['weight', 'bias'], torch.Size([1, 2]))
    """

    def __init__(self, model: nn.Module) -> None:
        self._state = model.state_dict()
        self._maps = [
            (f"{name}." if name else "", weights)
            for name, module in model.named_modules(remove_duplicate=False)
            for hook in _hooks(module)
            if (weights := getattr(hook, "weights_map", None)) is not None
        ]

    def __getitem__(self, name: str) -> Tensor:
        """One tensor; of a sharded one all processes must ask."""
        tensor: Tensor = self._state[name]
        if _is_shard(tensor):
            whole: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
            return whole
        if tensor.device.type != "meta":
            return tensor
        for prefix, weights in self._maps:
            if name.startswith(prefix):
                try:
                    stored: Tensor = weights[name.removeprefix(prefix)]
                except KeyError:
                    continue
                return stored
        raise UnsupportedModelError(f"{name!r} is on the meta device and nobody holds its values; expected weights")

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


def stored_weight(module: nn.Module) -> Tensor:
    """The weight of a layer, from where it lies; of one that is computed from others, what comes out."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    elsewhere = weight.device.type == "meta" or _is_shard(weight)
    return StoredTensors(module)["weight"] if elsewhere else weight
