"""Plain values that modules keep beside their tensors: sizes, flags, words; read, written as JSON, and given back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import nn

from .errors import InputError

__all__ = ["settings_of", "settings_to_change", "value_of"]

_ITS_OWN = object()
"""Stands for values that are no plain ones: functions, objects, tensors, devices. They stay the network's own."""

_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|xla|hpu|mtia|hip|meta|privateuseone)(:\d+)?")


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

    Args:
        plain: What ``settings_of`` gave, after a way through JSON.

    Returns:
        The value.

    Raises:
        InputError: It is none of those that are written.

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


def _kept(name: str) -> bool:
    """Whether a name is one whose value belongs to the network and not to how and where it runs."""
    return not name.startswith("_") and name != "training" and "device" not in name.lower()


def settings_of(module: nn.Module) -> dict[str, Any]:
    """What a module keeps under public names: numbers, words, flags, None, and tuples, lists and dicts of them.

    Whether it is in training mode, and names of devices, are left out.

    Args:
        module: The module; its children are not looked at.

    Returns:
        Values as JSON holds them, by name.

    Example:
        >>> settings_of(nn.Linear(3, 2))
        {'in_features': 3, 'out_features': 2}
    """
    found = {name: _plain(value) for name, value in vars(module).items() if _kept(name)}
    return {name: value for name, value in found.items() if value is not _ITS_OWN}


def settings_to_change(module: nn.Module, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The stored values that differ from a module's, checked: nothing but plain attributes can be set by them.

    Args:
        module: The module.
        stored: What ``settings_of`` gave, after a way through JSON.

    Returns:
        Values to set, by name.

    Raises:
        InputError: A value isn't plain, or its name is taken by something else: a method, a parameter, a module.

    Example:
        >>> settings_to_change(nn.Linear(3, 2), {"in_features": 3, "out_features": 1})
        {'out_features': 1}
    """
    changes = {}
    for name, plain in stored.items():
        value = value_of(plain)
        taken = any(getattr(module, kind).get(name) is not None for kind in ("_parameters", "_buffers", "_modules"))
        a_method = callable(getattr(nn.Module, name, None))
        a_property = hasattr(getattr(type(module), name, None), "__set__")
        if taken or a_method or a_property or not _kept(name):
            raise InputError(f"{name} = {repr(value)[:80]} has no counterpart in the network")
        if any(name in getattr(module, kind) for kind in ("_parameters", "_buffers", "_modules")):
            continue  # None, where another network has a layer
        mine = vars(module).get(name, _ITS_OWN)
        if isinstance(mine, torch.device) or (type(mine) is str and _DEVICE.fullmatch(mine)):
            continue
        if _plain(mine) != plain:
            changes[name] = value
    return changes
