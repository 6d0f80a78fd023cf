"""Pictures need matplotlib, and say so."""

from __future__ import annotations

import subprocess
import sys

import matplotlib

matplotlib.use("Agg")
import pytest
import torch

from fairtrim import (
    InputError,
    Repair,
)
from fairtrim_adapters.plots import (
    plot_changed_images,
    plot_damage,
    plot_group_metric,
    plot_most_harmful,
    plot_pareto,
    plot_trade_off,
)
from tests.plot_cases import INFLUENCE, damage_table, some_changed, sweep_frame


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, repairs: dict[str, Repair]) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for run in (
        lambda: plot_trade_off(repairs),
        lambda: plot_most_harmful(INFLUENCE),
        lambda: plot_most_harmful(INFLUENCE, images=torch.ones(7, 5, 4)),
    ):
        with pytest.raises(InputError, match=r"plotting needs matplotlib: pip install 'fairtrim\[plot\]'"):
            run()


def test_new_pictures_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for run in (
        lambda: plot_pareto(sweep_frame()),
        lambda: plot_group_metric(sweep_frame()),
        lambda: plot_damage(damage_table({"a": 3})),
        lambda: plot_changed_images(some_changed()),
    ):
        with pytest.raises(InputError, match=r"plotting needs matplotlib: pip install 'fairtrim\[plot\]'"):
            run()


def test_matplotlib_is_imported_only_when_something_is_drawn() -> None:
    code = "import sys, fairtrim_adapters.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
