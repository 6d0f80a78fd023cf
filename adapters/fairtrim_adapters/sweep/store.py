"""What a sweep has finished, in a folder: one file a run and one a network, each written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from fairtrim import InputError, load_pruned, save_pruned
from fairtrim.files.atomic_file import write_text
from fairtrim.files.resumption import FORMAT, Resumption

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RunKey", "SweepStore", "as_table", "read_sweep"]

Row = dict[str, Any]

SWEEP_FILE, TABLE_FILE = "sweep.json", "sweep.csv"
_FORM = 2  # of the rows and settings of a run; before there was none, and columns had other names


@dataclass(frozen=True, order=True)
class RunKey:
    """What tells the runs of a sweep apart.

    Attributes:
        seed: Of everything random.
        criterion: Label of the criterion, ``dense`` for none.
        pruning_ratio: Share of the channels to remove, 0 for the dense network.
        post_processor: Label of the post-processor, ``none`` for none.
    """

    seed: int
    criterion: str
    pruning_ratio: float
    post_processor: str

    @property
    def file(self) -> str:
        """A file name: readable, and different for different labels."""
        words = f"{self.criterion}-{self.pruning_ratio:g}-{self.post_processor}"
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-")[:60]
        told = repr((self.criterion, self.pruning_ratio, self.post_processor))
        return f"seed-{self.seed}-{readable}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"

    def __str__(self) -> str:
        return (
            f"criterion {self.criterion!r}, pruning ratio {self.pruning_ratio:g}, post-processor "
            f"{self.post_processor!r}, seed {self.seed}"
        )


class SweepStore:
    """The folder of one sweep; without a folder nothing is kept.

    Args:
        folder: Where, or None.
        settings: What must be the same for a run to be taken up again.

    Raises:
        InputError: The folder is a file, or holds runs of an earlier form.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, settings: Mapping[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder)
        self._settings = {"form": _FORM, **settings}
        if self.folder is not None:
            if self.folder.exists() and not self.folder.is_dir():
                raise InputError(f"folder {self.folder} is a file; expected a folder, or a name that is free")
            for part in ("runs", "networks"):
                (self.folder / part).mkdir(parents=True, exist_ok=True)
            _require_form(self.folder)

    def _resumption(self, key: RunKey, settings: Mapping[str, Any]) -> Resumption:
        folder = None if self.folder is None else self.folder / "runs"
        return Resumption(folder, {**self._settings, **settings}, key.file)

    def finished(self, key: RunKey, settings: Mapping[str, Any]) -> tuple[Row, npt.NDArray[np.int64]] | None:
        """Row and predicted labels, (N,), of a finished run, or None.

        Args:
            key: Which run.
            settings: Its own.

        Returns:
            What was kept.

        Raises:
            InputError: The file is damaged or of a run with other settings.
        """
        kept = self._resumption(key, settings).load()
        return None if kept is None else (kept.data, kept.tensors["label"].numpy().astype(np.int64))

    def finish(
        self, key: RunKey, settings: Mapping[str, Any], row: Row, label: npt.NDArray[np.int64], model: nn.Module
    ) -> Row:
        """Keep a network and its row.

        Args:
            key: Which run.
            settings: Its own.
            row: Its figures.
            label: Predicted labels of the test data, (N,).
            model: The network.

        Returns:
            The row with the path of the checkpoint.
        """
        path = self.network(key)
        if path is not None:
            save_pruned(path, model)
            row = {**row, "checkpoint": str(path.relative_to(path.parent.parent))}
        self._resumption(key, settings).save(1, row, {"label": torch.from_numpy(label).to(torch.int32)})
        return row

    def network(self, key: RunKey) -> Path | None:
        """Where the network of a run is kept.

        Args:
            key: Which run.

        Returns:
            The path; None without a folder.
        """
        return None if self.folder is None else self.folder / "networks" / f"{key.file}.safetensors"

    def restored(self, key: RunKey, template: nn.Module) -> nn.Module | None:
        """The network of a run, if it was kept.

        Args:
            key: Which run.
            template: A network of its class, which gets its shapes and tensors.

        Returns:
            The template, or None.
        """
        path = self.network(key)
        return load_pruned(path, template).eval() if path is not None and path.is_file() else None

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Keep what the whole sweep is about.

        Args:
            facts: Whatever JSON can hold.
        """
        if self.folder is not None:
            write_text(self.folder / SWEEP_FILE, json.dumps(dict(facts), indent=2) + "\n")

    def write_table(self, table: pd.DataFrame) -> None:
        """Write the table as CSV beside the runs.

        Args:
            table: Of the runs.
        """
        if self.folder is not None:
            write_text(self.folder / TABLE_FILE, table.to_csv(index=False))


def _require_form(folder: Path) -> None:
    """Refuse a folder whose rows have other columns than those that would be added."""
    for path in sorted((folder / "runs").glob("*.safetensors"))[:1]:
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get(FORMAT, "null"))
        except (SafetensorError, json.JSONDecodeError):
            return  # damaged: whoever asks for the run is told
        if isinstance(header, dict) and header.get("settings", {}).get("form") != _FORM:
            raise InputError(
                f"{folder} was made by an earlier form of the sweep, whose columns and settings have other names; "
                "expected another folder (its networks can still be read with load_pruned)"
            )


_FIRST = [
    "criterion",
    "pruning_ratio",
    "post_processor",
    "seed",
    "reconstructed",
    "parameters",
    "macs",
    "parameters_ratio",
    "macs_ratio",
]
_TIMES = ["latency_ms", "latency_ratio"]
_LAST = ["flags", "checkpoint", "seconds"]


def as_table(rows: list[Row]) -> pd.DataFrame:
    """Rows as a table, columns in one order however the rows came.

    Args:
        rows: One a run.

    Returns:
        The table.
    """
    import pandas as pd

    table = pd.DataFrame([{k: v for k, v in row.items() if not k.startswith("_")} for row in rows])
    groups = [column for column in table if "[" in column]
    edges = [*_FIRST, *_TIMES, *_LAST]
    middle = [column for column in table if column not in groups and column not in edges]
    order = [*_FIRST, *_TIMES, *middle, *sorted(groups), *_LAST]
    return table[[column for column in order if column in table]]


def read_sweep(folder: str | os.PathLike[str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table of a finished sweep, and what it was about.

    Args:
        folder: Of the sweep.

    Returns:
        The table, and data, criteria (what each label stands for), seeds and versions of the sweep.

    Raises:
        InputError: The folder holds no finished sweep.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from fairtrim_adapters.sweep import DataSplits, sweep
        >>> people = [(torch.eye(4), torch.tensor([0, 1, 0, 1]), ["a", "a", "b", "b"])]
        >>> network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> _ = nn.init.zeros_(network[2].weight)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     options = {"n_boot": None, "folder": folder, "progress": False}
        ...     _ = sweep(network, DataSplits(test=people), "magnitude", [0.5], **options)
        ...     table, about = read_sweep(folder)
        >>> table["parameters"].tolist(), about["seeds"], "constant classifier" in table["flags"][0]
        ([44, 23], [0], True)
    """
    import pandas as pd

    folder = Path(folder)
    paths = folder / TABLE_FILE, folder / SWEEP_FILE
    if not all(path.is_file() for path in paths):
        began = (
            " (a sweep has begun there: call sweep again with this folder to finish it)"
            if (folder / "runs").is_dir()
            else ""
        )
        raise InputError(f"{folder} holds no finished sweep{began}; expected the folder= of a sweep")
    table = pd.read_csv(paths[0], keep_default_na=False, na_values=[""])
    for column in ("flags", "checkpoint"):
        if column in table:
            table[column] = table[column].astype(object).fillna("").astype(str)
    return table, json.loads(paths[1].read_text(encoding="utf-8"))
