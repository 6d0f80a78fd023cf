"""Where a recipe keeps what it has finished, so that it can be taken up again: safetensors and JSON, no pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fairtrim.errors import InputError
from fairtrim.placement import StoredTensors

from .atomic_file import replacing

__all__ = ["Progress", "Resumption", "digest", "fingerprint"]

FORMAT, VERSION = "fairtrim-recipe", 1


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """A digest of tensors by name and a text, in hexadecimal digits."""
    sums = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sums.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sums.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sums.hexdigest()


def fingerprint(model: nn.Module) -> str:
    """A digest of a network's tensors, to tell whether a run began from the same one."""
    return digest(StoredTensors(model))


@dataclass(frozen=True)
class Progress:
    """What a run had finished: the number of steps, ``data`` that JSON can hold, and tensors by name."""

    step: int
    data: dict[str, Any]
    tensors: dict[str, Tensor]


class Resumption:
    """One file in a folder, replaced whole after every step.

    With ``folder=None`` nothing is kept. ``settings`` must be the same for a run to go on: arguments, and what it
    started from. ``name`` is the file's, where a folder holds several.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Resumption(folder, {"seed": 0}).save(1, {"note": "a"}, {"scores": torch.ones(2)})
        ...     Resumption(folder, {"seed": 0}).load().step
        1
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None, settings: Mapping[str, Any], name: str = "progress"
    ) -> None:
        if folder is not None and not isinstance(folder, str | os.PathLike):
            raise InputError(f"folder is a {type(folder).__name__}; expected a path")
        self._path = None if folder is None else Path(folder) / f"{name}.safetensors"
        self._settings = json.loads(json.dumps(dict(settings)))
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"folder={str(folder)!r} can't be made ({error}); expected a folder") from error

    @property
    def path(self) -> Path | None:
        """The file, or None where nothing is kept."""
        return self._path

    def load(self) -> Progress | None:
        """What was finished, or None; a file that is damaged, changed, or of a run with other settings is refused."""
        if self._path is None or not self._path.exists():
            return None
        try:
            with safe_open(self._path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get(FORMAT, "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, json.JSONDecodeError) as error:
            raise InputError(f"{self._path} is damaged: {error}; delete it to begin again") from error
        if not isinstance(header, dict) or header.get("version") != VERSION:
            raise InputError(
                f"{self._path} was not written by this release (version {VERSION}); delete it to begin again"
            )
        known = {key: header.get(key) for key in ("version", "settings", "step", "data")}
        if header.get("digest") != digest(tensors, json.dumps(known, sort_keys=True)):
            raise InputError(f"{self._path} was changed since it was written; delete it to begin again")
        before = header["settings"]
        differs = sorted(key for key in {*before, *self._settings} if before.get(key) != self._settings.get(key))
        if differs:
            raise InputError(
                f"{self._path} is of a run with another {', '.join(differs)}; use another folder, or delete it to "
                "begin again"
            )
        return Progress(int(header["step"]), header["data"], tensors)

    def save(self, step: int, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Replace the file, completely or not at all."""
        if self._path is None:
            return
        header = {"version": VERSION, "settings": self._settings, "step": step, "data": dict(data)}
        header = json.loads(json.dumps(header))  # as it will be read
        stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        header["digest"] = digest(stored, json.dumps(header, sort_keys=True))
        with replacing(self._path) as temporary:
            save_file(stored, temporary, metadata={FORMAT: json.dumps(header)})

    def remove(self) -> None:
        """Forget what was finished."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
