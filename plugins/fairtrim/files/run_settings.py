"""Settings of a run as JSON can hold them: what must be the same for a run to be taken up again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from .resumption import digest, fingerprint

__all__ = ["described", "plain_settings"]

_PLAIN = (str, bool, int, float, type(None))


def described(function: Any) -> Any:
    """A function or loss as JSON can hold it, the same in every process: its name and its numbers.

    Functions of one name are not told apart.

    Example:
        >>> described(nn.CrossEntropyLoss(label_smoothing=0.1))["label_smoothing"]
        0.1
    """
    if function is None:
        return None
    if isinstance(function, partial):
        return {"of": described(function.func), "arguments": repr((function.args, sorted(function.keywords.items())))}
    plain = {key: value for key, value in getattr(function, "__dict__", {}).items() if isinstance(value, _PLAIN)}
    if isinstance(function, nn.Module):
        plain["tensors"] = fingerprint(function)
    code = getattr(function, "__code__", None)
    if code is not None and code.co_name == "<lambda>":  # all of one name
        numbers = [value for value in code.co_consts if isinstance(value, (*_PLAIN, tuple))]
        plain["code"] = hashlib.sha256(code.co_code + repr((code.co_names, numbers)).encode()).hexdigest()
    return {"name": getattr(function, "__qualname__", type(function).__qualname__), **plain}


def plain_settings(value: Any) -> Any:
    """A setting as JSON can hold it, the same in every process.

    Of a tensor a digest is kept; of what else is no plain value, container or dataclass, the name.

    Example:
        >>> plain_settings({"share": 0.5, "layers": ("a", nn.Linear)})
        {'share': 0.5, 'layers': ['a', 'Linear']}
    """
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Mapping):
        return {str(plain_settings(key)): plain_settings(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [plain_settings(entry) for entry in value]
    if isinstance(value, Tensor):
        return digest({"": value})
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__qualname__, {f.name: plain_settings(getattr(value, f.name)) for f in fields(value)}]
    return getattr(value, "__qualname__", type(value).__qualname__)
