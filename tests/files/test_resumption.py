"""What a run has finished comes back as it was, replaced whole, and what was changed is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fairtrim import InputError
from fairtrim.files.resumption import Resumption, fingerprint
from tests.networks import CASES


def test_progress_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored comes back; a failed save leaves the one before and no other file."""
    resumption = Resumption(tmp_path, {"seed": 0, "levels": (0.5,)})
    assert resumption.load() is None
    tensors = {"a": torch.arange(6).reshape(2, 3).T, "b": torch.tensor([True]), "c": torch.tensor(2.0).bfloat16()}
    resumption.save(3, {"rows": [{"level": float("nan"), "what": "ä"}]}, tensors)

    def failing(stored: Any, path: str, **options: Any) -> None:
        Path(path).write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr("fairtrim.files.resumption.save_file", failing)
    with pytest.raises(KeyboardInterrupt):
        resumption.save(4, {}, {})
    progress = resumption.load()
    assert progress is not None and progress.step == 3
    assert progress.data["rows"][0]["what"] == "ä" and np.isnan(progress.data["rows"][0]["level"])
    assert progress.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(progress.tensors[name], tensor) and progress.tensors[name].dtype == tensor.dtype
    assert [path.name for path in tmp_path.iterdir()] == ["progress.safetensors"]
    nowhere = Resumption(None, {})
    nowhere.save(1, {}, {})
    assert nowhere.load() is None


def test_fingerprint() -> None:
    """Any tensor that differs, buffers and dtypes included, makes another."""
    models = [CASES["plain"].model() for _ in range(6)]
    with torch.no_grad():
        models[1][0].weight[0, 0, 0, 0] += 1e-12  # type: ignore[index]
        models[2][1].running_mean[1] += 1  # type: ignore[index]
        models[3][1].num_batches_tracked += 1  # type: ignore[index]
    models[4].bfloat16()
    models[5].eval().requires_grad_(False)
    prints = [fingerprint(model) for model in models]
    assert len(set(prints)) == 5 and prints[5] == prints[0]


def test_edited_progress_is_refused(tmp_path: Path) -> None:
    resumption = Resumption(tmp_path, {"seed": 0})
    resumption.save(1, {"rows": []}, {"flags": torch.tensor([True, False])})
    path = tmp_path / "progress.safetensors"
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["fairtrim-recipe"])
    for changed, flags in ((header, [False, True]), ({**header, "step": 9}, [True, False])):
        save_file({"flags": torch.tensor(flags)}, path, metadata={"fairtrim-recipe": json.dumps(changed)})
        with pytest.raises(InputError, match="was changed since it was written"):
            resumption.load()
