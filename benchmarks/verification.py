"""What it costs to look before channels are removed: seconds, and the share of a fit.

    python -m benchmarks.verification

Worst-group importance, half of the channels, 1,024 samples in batches of 64 (32 for the larger networks); the least of
three fits of each network, one thread. "map, gates, trial" comes before scoring, "step" after it; both are parts of
"fit". The first rows are the test suite's networks of a kind, the last ones have sizes of practice.
"""

from __future__ import annotations

import argparse
import importlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim_adapters.torch_pruning import WorstGroupImportance
from fairtrim_adapters.torch_pruning.verification.rehearsal import Rehearsal

MODULE: Any = importlib.import_module("fairtrim_adapters.torch_pruning.importances.channel_importance")
ALL: dict[str, Any] = importlib.import_module("tests.zoo").ALL
ZOO = ("mlp", "residual", "bottleneck", "dense block", "u-net", "convnext", "vision transformer", "word pieces")
REPETITIONS = 3


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x) + self.shortcut(x)
        return y.relu()


def residual_network(widths: tuple[int, ...], depth: int) -> nn.Module:
    """A residual network on 3 × 32 × 32 images, its output layer last."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, 1, 1), nn.ReLU()]
    inputs = widths[0]
    for stage, width in enumerate(widths):
        for block in range(depth):
            layers.append(Block(inputs, width, 2 if stage and not block else 1))
            inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 2))


class _Clock:
    """Seconds that functions take, added up by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

        return timed


def fit_costs(make: Callable[[], tuple[nn.Module, tp.pruner.BasePruner, Any, list[Any]]]) -> dict[str, float]:
    """Seconds of the least of several fits, and of its parts."""
    best: dict[str, float] = {"fit": float("inf")}
    verified, step = MODULE.verified, Rehearsal.try_step
    for _ in range(REPETITIONS):
        _, pruner, importance, loader = make()
        clock = _Clock()
        MODULE.verified = clock.around("map, gates, trial", verified)
        Rehearsal.try_step = clock.around("step", step)  # type: ignore[method-assign]
        try:
            clock.around("fit", importance.fit)(pruner, loader)
        finally:
            MODULE.verified, Rehearsal.try_step = verified, step  # type: ignore[method-assign]
        if clock.seconds["fit"] < best["fit"]:
            best = clock.seconds
    return best


def _of_zoo(name: str) -> Callable[[], Any]:
    case = ALL[name]

    def make() -> Any:
        model = case.model()
        importance = WorstGroupImportance(progress=False, output_transform=case.transform)
        x, y = case.batch(1024)
        loader = [
            (a, b, ["a", "b"] * (len(b) // 2)) for a, b in zip(torch.split(x, 64), torch.split(y, 64), strict=True)
        ]
        return model, case.pruner(model, importance, pruning_ratio=0.5), importance, loader

    return make


def _residual(widths: tuple[int, ...], depth: int) -> Callable[[], Any]:
    def make() -> Any:
        torch.manual_seed(0)
        model: Any = residual_network(widths, depth)
        importance = WorstGroupImportance(progress=False)
        x = torch.randn(1024, 3, 32, 32)
        pruner = tp.pruner.BasePruner(
            model, x[:2], importance=importance, pruning_ratio=0.5, ignored_layers=[model[-1]]
        )
        loader = [(a, torch.arange(32) % 2, ["a", "b", "b", "a"] * 8) for a in torch.split(x, 32)]
        return model, pruner, importance, loader

    return make


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    networks = {f"zoo: {name}": _of_zoo(name) for name in ZOO if name in ALL}
    networks |= {
        "residual, 3 stages of 3 blocks, 16-32-64": _residual((16, 32, 64), 3),
        "residual, 4 stages of 2 blocks, 32-64-128-256": _residual((32, 64, 128, 256), 2),
    }
    rows = []
    for name, make in networks.items():
        seconds = fit_costs(make)
        looked = seconds["map, gates, trial"] + seconds["step"]
        rows.append({"network": name, **seconds, "looking": looked, "share of fit": looked / seconds["fit"]})
    table = pd.DataFrame(rows).set_index("network")
    print(
        table[["map, gates, trial", "step", "looking", "fit", "share of fit"]].to_string(float_format="{:.2f}".format)
    )


if __name__ == "__main__":
    main()
