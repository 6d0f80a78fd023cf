"""What modules keep beside parameters and buffers: sizes, flags, words, written as JSON; plain tensors and arrays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairtrim.errors import InputError

__all__ = ["arrays_of", "check_free", "left_out", "settings_of", "settings_to_change", "value_of"]

_ITS_OWN = object()
"""Stands for values that are no plain ones: functions, objects, tensors, devices. They stay the network's own."""

_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|xla|hpu|mtia|hip|meta|privateuseone)(:\d+)?")

_FREE = {"type", "half", "float", "double", "bfloat16", "cpu", "cuda", "xpu", "ipu", "mtia", "to", "compile"}
"""Methods of modules that neither their other methods nor the modules around them call: an attribute may hide them."""

_LIBRARIES = ("torch", "torchvision", "transformers")
"""Their enumerations say how a layer was made; a network of the same class was made so too."""

_STORED = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_STORED |= {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def _plain(value: Any) -> Any:
    """A value as JSON holds it: tuples as lists; floats, lists and dicts under their names."""
    if isinstance(value, np.bool_ | np.integer | np.floating):
        value = value.item()
    if value is None or type(value) in (bool, int):
        return value
    if type(value) is float:
        return {"float": value.hex()}  # exact, and written in one way only
    if type(value) is str:
        return _ITS_OWN if _DEVICE.fullmatch(value) else value
    if type(value) in (tuple, list, torch.Size):
        entries = [_plain(entry) for entry in value]
        if any(entry is _ITS_OWN for entry in entries):
            return _ITS_OWN
        return {"list": entries} if type(value) is list else entries
    if type(value) is dict:
        pairs = [[_plain(key), _plain(entry)] for key, entry in value.items()]
        return _ITS_OWN if any(part is _ITS_OWN for pair in pairs for part in pair) else {"dict": pairs}
    return _ITS_OWN


def value_of(plain: Any) -> Any:
    """The value that was written as JSON.

    Example:
        >>> value_of([1, {"list": [{"float": "0x1.4p+1"}, None]}, {"dict": [["a", 3]]}])
        (1, [2.5, None], {'a': 3})
    """
    if plain is None or type(plain) in (bool, int, str):
        return plain
    if isinstance(plain, list):
        return tuple(value_of(entry) for entry in plain)
    if isinstance(plain, dict) and len(plain) == 1:
        [(kind, entries)] = plain.items()
        if kind == "float" and isinstance(entries, str):
            with suppress(ValueError):
                return float.fromhex(entries)
        if kind == "list" and isinstance(entries, list):
            return [value_of(entry) for entry in entries]
        if kind == "dict" and isinstance(entries, list) and all(isinstance(e, list) and len(e) == 2 for e in entries):
            keys = [value_of(key) for key, _ in entries]
            if not any(isinstance(key, list | dict) for key in keys):
                return dict(zip(keys, (value_of(entry) for _, entry in entries), strict=True))
    raise InputError(f"{str(plain)[:80]!r} is no number, word, flag, None, or tuple, list or dict of them")


def _of_the_network(name: str) -> bool:
    """Whether a name is one whose value belongs to the network and not to how and where it runs."""
    return not name.startswith("_") and name != "training" and "device" not in name.lower()


def _kept(module: nn.Module, name: str) -> bool:
    """Whether what a module keeps under a name is stored, and may be set: one answer for saving and for loading."""
    a_method = callable(getattr(nn.Module, name, None)) and name not in _FREE
    return _of_the_network(name) and not a_method and not hasattr(getattr(type(module), name, None), "__set__")


def check_free(module: nn.Module, name: str, value: Any) -> bool:
    """Whether a stored value can be set under a name; not so where another network has a layer and this one None.

    Example:
        >>> check_free(nn.Linear(3, 2), "half", 4), check_free(nn.Linear(3, 2, bias=False), "bias", 4)
        (True, False)
    """
    taken = [getattr(module, kind) for kind in ("_parameters", "_buffers", "_modules") if name in getattr(module, kind)]
    if not _kept(module, name) or any(names[name] is not None for names in taken):
        raise InputError(f"{name} = {repr(value)[:80]} has no counterpart in the network")
    return not taken


def settings_of(module: nn.Module) -> dict[str, Any]:
    """What a module keeps under public names: numbers, words, flags, None, and tuples, lists and dicts of them.

    Whether it is in training mode, and names of devices, are left out.

    Example:
        >>> settings_of(nn.Linear(3, 2))
        {'in_features': 3, 'out_features': 2}
    """
    found = {name: _plain(value) for name, value in vars(module).items() if _kept(module, name)}
    return {name: value for name, value in found.items() if value is not _ITS_OWN}


def settings_to_change(module: nn.Module, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The stored values that differ from a module's, checked: nothing but plain attributes can be set by them.

    Example:
        >>> settings_to_change(nn.Linear(3, 2), {"in_features": 3, "out_features": 1})
        {'out_features': 1}
    """
    changes = {}
    for name, plain in stored.items():
        value = value_of(plain)
        if not check_free(module, name, value):
            continue
        mine = vars(module).get(name, _ITS_OWN)
        if isinstance(mine, torch.device) or (type(mine) is str and _DEVICE.fullmatch(mine)):
            continue
        if _plain(mine) != plain:
            changes[name] = value
    return changes


def arrays_of(module: nn.Module) -> dict[str, Tensor | np.ndarray]:
    """Tensors that are neither parameters nor buffers, and arrays of numbers, that a module keeps under public names.

    Those that a forward pass computes are left out: results with a gradient, masked and normalised weights.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> layer.keep = torch.arange(2)
        >>> arrays_of(layer)
        {'keep': tensor([0, 1])}
    """
    found = {name: value for name, value in vars(module).items() if _kept(module, name) and "." not in name}
    return {name: value for name, value in found.items() if _storable(value) and not _computed(module, name, value)}


def _storable(value: Any) -> bool:
    if type(value) is np.ndarray:
        return value.dtype.kind in "biuf" and f"torch.{value.dtype.name}" in map(str, _STORED)
    plain = type(value) is Tensor and value.layout is torch.strided and value.device.type != "meta"
    return plain and value.dtype in _STORED


def _computed(module: nn.Module, name: str, value: Any) -> bool:
    sources = {f"{name}_orig", f"{name}_g"} & set(module._parameters)
    return bool(sources) or (isinstance(value, Tensor) and value.grad_fn is not None)


def left_out(module: nn.Module) -> list[str]:
    """Names of the attributes that hold data, as far as one can tell, but neither plain values nor stored arrays.

    Sets, bytes, enumerations, complex numbers, arrays of objects, and lists and dicts with one of those or a tensor;
    but no functions, modules, devices or objects.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> layer.keep, layer.hook = {0, 1}, print
        >>> left_out(layer)
        ['keep']
    """
    stored = {**settings_of(module), **arrays_of(module)}
    others = {name: value for name, value in vars(module).items() if _of_the_network(name) and name not in stored}
    return [
        name
        for name, value in others.items()
        if _data(value) or _plain(value) is not _ITS_OWN
        if not _computed(module, name, value)
    ]


def _data(value: Any) -> bool:
    if isinstance(value, set | frozenset):
        return bool(value)  # empty ones keep books: of pruned heads, of warnings given
    if isinstance(value, dict):
        return any(_data(entry) for entry in value.values())
    if isinstance(value, list | tuple):
        return any(_data(entry) for entry in value)
    if isinstance(value, Tensor):
        return value.grad_fn is None and not isinstance(value, nn.Parameter)
    if isinstance(value, Enum):
        return type(value).__module__.partition(".")[0] not in _LIBRARIES
    return isinstance(value, bytes | bytearray | complex | np.ndarray | np.generic) and _plain(value) is _ITS_OWN
