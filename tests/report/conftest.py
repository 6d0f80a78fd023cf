"""A report of networks, the measurements behind it, and a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fairtrim import predict
from fairtrim_adapters.fairlearn import measurements
from fairtrim_adapters.report import Report, report_networks
from fairtrim_adapters.sweep import DataSplits, sweep
from tests.report_cases import (
    NETWORKS,
    batches,
    network,
)


@pytest.fixture(scope="session")
def report() -> Report:
    data = DataSplits(test=batches(), name="drawn", description="drawn at random", class_names=["no", "yes"])
    method = {
        "seed": 3,
        "fine-tuning": "none",
        "pruned": {"criterion": "worst-group:selection=single", "pruning_ratio": 0.5},
        "other one": {"criterion": "mine", "post_processor": "parity-fine-tuning"},
    }
    return report_networks(NETWORKS, data, method=method, n_boot=40, latency_rounds=6, pictures=False, progress=False)


@pytest.fixture(scope="session")
def rows() -> dict[str, dict[str, Any]]:
    predictions = predict(NETWORKS, batches(), progress=False)
    return {name: measurements(predictions, name, "dense", n_boot=40) for name in NETWORKS}


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("sweep")
    data = DataSplits(test=batches(), scoring=batches(), validation=batches(seed=1), name="drawn")
    table = sweep(
        network,
        data,
        ["magnitude", "worst-group:selection=single"],
        [0.6],
        [0, 4],
        post_processors={"moved": "threshold-selection:epsilon=0.2"},
        n_boot=10,
        latency_rounds=6,
        folder=folder,
        progress=False,
    )
    return folder, table
