"""Products of float32 numbers in float32, where torch may round the factors to fewer digits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import Lock
from typing import Any

import torch

from .preservation import insist

__all__ = ["full_precision"]


_lock, _blocks, _restore = Lock(), 0, ExitStack()


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 numbers as such inside: not as TF32 (10 bits after the point) and not as bfloat16.

    cuDNN's convolutions take TF32 by default, matrices and the CPU where torch was told to. It is for results of two
    different kernels that are held against each other. Settings of torch, its older and its newer ones, come back; they
    are those of the whole process, so that of several threads the first sets them and the last puts them back.

    Example:
        >>> torch.set_float32_matmul_precision("high")
        >>> with full_precision():
        ...     torch.get_float32_matmul_precision()
        'highest'
        >>> torch.get_float32_matmul_precision()
        'high'
        >>> torch.set_float32_matmul_precision("highest")
    """
    global _blocks
    with _lock:
        if not _blocks:
            _restore.callback(insist, _made_full())
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks:
                _restore.close()


def _made_full() -> Callable[[], None]:
    """Set everything to full precision, and say how that is undone."""
    cudnn: Any = torch.backends.cudnn
    older: list[tuple[Callable[[], Any], Callable[[Any], None], Any]] = [
        (lambda: cudnn.allow_tf32, lambda value: setattr(cudnn, "allow_tf32", value), False),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    ]
    with _quiet():
        before = [(put, full, value) for get, put, full in older if (value := _readable(get)) is not None]
        newer = [(operation, operation.fp32_precision) for operation in _operations()]

    def restore() -> None:
        with _quiet():
            for put, full, value in before:
                if value != full:
                    put(value)
            for operation, value in newer:
                for wanted in ("none", value):  # none: what a setting above it says, as long as that is the same
                    if operation.fp32_precision != value:
                        operation.fp32_precision = wanted

    with _quiet():
        for put, full, value in before:  # as long as these can be read, so that they can be read inside
            if value != full:
                put(full)
        for operation, _ in newer:
            if operation.fp32_precision not in ("none", "ieee"):
                operation.fp32_precision = "ieee"
    return restore


def _operations() -> list[Any]:
    """What has a precision of its own, in torch 2.9 and newer."""
    backends: Any = torch.backends
    found = [backends.cuda.matmul]
    for backend, names in ((backends.cudnn, ("conv", "rnn")), (backends.mkldnn, ("matmul", "conv", "rnn"))):
        found += [getattr(backend, name, None) for name in names]
    with suppress(AttributeError):
        return [operation for operation in found if isinstance(operation.fp32_precision, str)]
    return []


def _readable(get: Callable[[], Any]) -> Any:
    """The value, or None where settings of both kinds were made, so that torch can't say."""
    with suppress(RuntimeError):
        return get()
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a word on older settings, which some versions of torch warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
