"""Small networks, data and miners for whole recipes."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim.mining import MinedSamples, Miner
from fairtrim.network.fine_tuning import FineTuning
from fairtrim_adapters.torch_pruning import RecipeResult, dcwp, denp

Recipe = Callable[..., RecipeResult]
SMALL: dict[str, tuple[Recipe, dict[str, Any]]] = {
    "denp": (denp, {"iterative_steps": 2, "final_epochs": 1, "progress": False}),
    "dcwp": (dcwp, {"epochs": 1, "iterations": 5, "gate_learning_rate": 0.3, "progress": False}),
}
N = 60


FLAGS = torch.arange(N) % 7 == 2


class Noisy(TensorDataset):
    """Draws from every random state there is."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        x, y = super().__getitem__(index)
        return x + random.random() * 1e-3 + np.random.rand() * 1e-3 + torch.rand(()) * 1e-3, y


class FixedMiner(Miner):
    """Finds what it was told to, and counts how often it was asked."""

    def __init__(self, flags: Tensor = FLAGS) -> None:
        self.flags, self.calls = flags, 0

    def mine(self, model: nn.Module, loader: DataLoader[Any], *, progress: bool = True) -> MinedSamples:
        self.calls += 1
        target = torch.tensor([int(loader.dataset[n][1]) for n in range(len(self.flags))])
        scores = (self.flags.double() + torch.linspace(0, 0.5, len(self.flags), dtype=torch.float64)) / 1.5
        return MinedSamples(scores, target, self.flags)


def data_of_recipes(noisy: bool = False) -> DataLoader[Any]:
    """A shortcut (the first feature) that the flagged samples contradict."""
    generator = torch.Generator().manual_seed(1)
    y = (torch.arange(N) % 5 < 2).long()
    sign = 2.0 * y - 1
    x = torch.stack([3 * torch.where(FLAGS, -sign, sign), 0.5 * sign], 1)
    x = x + 0.4 * torch.randn(N, 2, generator=generator)
    return DataLoader((Noisy if noisy else TensorDataset)(x, y), batch_size=16, shuffle=True)


def mlp_of(first: int, second: int, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 2))


def mlp(seed: int = 0) -> nn.Sequential:
    return mlp_of(16, 12, seed)


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the fine-tuning and of the gates, which have names of their own here, as recipes take them."""
    of_gates = {"upweight", "iterations", "gate_learning_rate", "cost", "cost_weight", "batchnorm"}
    places = {"fine_tuning": FineTuning.__annotations__.keys(), "gate_training": of_gates}
    found = {
        place: {k.removeprefix("gate_"): v for k, v in options.items() if k in names} for place, names in places.items()
    }
    others = {k: v for k, v in options.items() if not any(k in names for names in places.values())}
    return others | {place: settings for place, settings in found.items() if settings}


def run_recipe(recipe: str, model: nn.Module, loader: DataLoader[Any] | None = None, **options: Any) -> RecipeResult:
    """The recipe, small; with samples that are known unless a miner is given."""
    function, small = SMALL[recipe]
    loader = data_of_recipes() if loader is None else loader
    return function(model, loader, **nested({**small, "miner": FixedMiner(), **options}))


def assert_same_result(left: RecipeResult, right: RecipeResult) -> None:
    states = left.model.state_dict(), right.model.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    pd.testing.assert_frame_equal(left.history, right.history, check_exact=True)
    assert torch.equal(left.mined.scores, right.mined.scores) and torch.equal(left.conflicting, right.conflicting)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "gotcha")
