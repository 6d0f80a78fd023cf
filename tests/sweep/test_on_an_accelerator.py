"""A sweep, its report and its ONNX file, of networks on a device other than the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import ThresholdSelection
from fairtrim_adapters.onnx_export import export_onnx, onnx_outputs
from fairtrim_adapters.report import report_networks
from fairtrim_adapters.sweep import DataSplits, sweep
from tests.pretend_accelerator import Accelerator
from tests.sweep_cases import same

CPU = torch.device("cpu")


def people(n: int, seed: int, device: torch.device = CPU) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    y, sex = (x[:, 0] + 0.5 * x[:, 1] > 0).long(), torch.arange(n) % 2
    return DataLoader(TensorDataset(*(tensor.to(device) for tensor in (x, y, sex))), batch_size=32)


def network(device: torch.device) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).to(device)


def splits(device: torch.device = CPU) -> DataSplits:
    return DataSplits(
        test=people(60, 3, device), scoring=people(20, 1, device), validation=people(60, 2, device),
        sensitive_names={"sex": ["Female", "Male"]},
    )  # fmt: skip


@pytest.mark.slow
def test_a_sweep(accelerator: Accelerator, tmp_path: Path) -> None:
    def table(device: torch.device) -> pd.DataFrame:
        return sweep(
            network(device), splits(device), "worst-group", [0.5], n_boot=None, latency_rounds=0,
            post_processors={"threshold": ThresholdSelection(epsilon=0.5)}, folder=tmp_path / device.type,
            progress=False,
        )  # fmt: skip

    same(table(accelerator.device), table(CPU))


@pytest.mark.slow
def test_a_report(accelerator: Accelerator) -> None:
    def told(device: torch.device) -> str:
        models = {"dense": network(device), "other": network(device)}
        return report_networks(models, splits(), n_boot=None, latency_rounds=0, progress=False).to_markdown()

    assert told(accelerator.device) == told(CPU)


@pytest.mark.slow
def test_an_onnx_file(accelerator: Accelerator, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    paths = [export_onnx(tmp_path / f"{d.type}.onnx", network(d), x.to(d)) for d in (accelerator.device, CPU)]
    found, expected = (onnx_outputs(path, x) for path in paths)
    accelerator.check_same(found, expected)
