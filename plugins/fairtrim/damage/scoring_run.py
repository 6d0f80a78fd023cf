"""A pass over much data that can be taken up again where it was cut short."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fairtrim.data.batches import Batch
from fairtrim.data.labels import require_labels_of_tokens
from fairtrim.data.sensitive_groups import SensitiveEncoder
from fairtrim.devices import to_device
from fairtrim.errors import InputError
from fairtrim.files.resumption import Resumption
from fairtrim.processes import Processes

from .moments import Moments

__all__ = ["ScoringRun"]

_logger = logging.getLogger("fairtrim.damage")

SECONDS_BETWEEN_SAVES = 60.0


def _content(leaf: Any) -> bytes:
    if isinstance(leaf, Tensor):
        data = leaf.detach().contiguous().reshape(-1).view(torch.uint8)
        return bytes(data.numpy().tobytes())
    if hasattr(leaf, "to_numpy"):  # a column or a table of pandas
        leaf = leaf.to_numpy()
    if isinstance(leaf, np.ndarray):
        leaf = leaf.tolist()
    return repr(leaf).encode() if isinstance(leaf, str | bool | int | float | None | list) else b""


class ScoringRun:
    """How far a pass over the data has come, kept in a folder.

    With ``folder=None`` nothing is kept. ``settings`` must be the same for a run to go on, the network's fingerprint
    included.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        settings: Mapping[str, Any],
        processes: Processes,
    ) -> None:
        known = {} if folder is None else {**settings, "processes": processes.count}
        self._keeps = folder is not None
        self._file = Resumption(folder, known, name=f"damage-{processes.rank}")
        self._read = hashlib.sha256()
        self._n_read = self._n_done = 0
        self._expected = ""
        self._saved = time.monotonic()

    def restore(self, moments: Moments, encoder: SensitiveEncoder) -> None:
        """Go on from the last save, if any: the moments take the sums, the encoder the groups that were seen."""
        progress = self._file.load()
        if progress is None:
            return
        encoder.learn(progress.data["people"])
        moments.restore(progress.tensors)
        self._n_done, self._expected = progress.step, progress.data["samples"]
        _logger.info("scoring goes on after %d batches, kept in %s", self._n_done, self._file.path)

    def unread(self, batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
        """The batches that have not been scored yet.

        They go to the device once the samples are known. Refused if those that are passed over are not those that were
        scored.
        """
        for batch in batches:
            if self._keeps:
                for leaf in tree_leaves(to_device([batch.inputs, batch.target, batch.sensitive], torch.device("cpu"))):
                    self._read.update(_content(leaf))
            self._n_read += 1
            if self._n_read > self._n_done:
                require_labels_of_tokens(batch.inputs, batch.target, batch.index)  # here nobody waits for a device
                inputs, target = to_device([batch.inputs, batch.target], device)
                yield replace(batch, inputs=inputs, target=target)
            elif self._n_read == self._n_done:
                self._check()
        if self._n_read < self._n_done:
            self._check()

    def _check(self) -> None:
        if self._n_read != self._n_done or self._read.hexdigest() != self._expected:
            raise InputError(
                f"the first {self._n_done} batches are not those that were scored before the run was cut short; pass a "
                "loader that gives the same ones (shuffle=False, or a generator with the same seed), or use another "
                "folder to begin again"
            )

    def save(self, moments: Moments, encoder: SensitiveEncoder) -> None:
        """Keep what was summed, if the last time is a minute ago."""
        if not self._keeps or time.monotonic() - self._saved < SECONDS_BETWEEN_SAVES:
            return
        data = {"people": encoder.state(), "samples": self._read.hexdigest()}
        self._file.save(self._n_read, data, moments.state())
        self._saved = time.monotonic()

    def finish(self) -> None:
        """Remove the file: the sums are a table now."""
        self._file.remove()
