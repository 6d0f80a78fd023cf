"""A residual BatchNorm network on Fashion-MNIST with a minority that looks different.

    python -m benchmarks.residual_cnn
    python -m benchmarks.residual_cnn --first-order    # rank by the first order, too, as docs/benchmarks.md does

15 % of the people have their images inverted and noisy. 25 % of the channels go in one shot, 50 % in one shot and
in five steps with re-scoring, all without fine-tuning, with and without BatchNorm recalibration (no labels).
Needs the Debian package dataset-fashion-mnist. Prints accuracy of all, the majority and the
minority, each with its 95 % interval over seeds.
"""

from __future__ import annotations

import argparse
import copy
import gzip
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import torch_pruning as tp
from benchmarks.sweep import add_jobs, sweep
from benchmarks.tables import INTERVAL, add_rows, save_rows, with_intervals
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from fairtrim.network.recalibration import recalibrate_batchnorm
from fairtrim_adapters.torch_pruning import MeanDamageImportance, WorstGroupImportance

FOLDER = Path("/usr/share/datasets/fashion-mnist")
Split = tuple[Tensor, Tensor, Tensor]


def read_images(part: str) -> tuple[Tensor, Tensor]:
    """Images at 14 x 14 pixels in [0, 1], (N, 1, 14, 14), and labels.

    Args:
        part: ``"train"`` or ``"t10k"``.

    Returns:
        Images and labels.

    Raises:
        SystemExit: The data set is not installed.
    """
    if not FOLDER.is_dir():
        raise SystemExit(f"{FOLDER} is missing: apt-get install dataset-fashion-mnist")
    raw = np.frombuffer(gzip.decompress((FOLDER / f"{part}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((FOLDER / f"{part}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    images = torch.tensor(raw).view(-1, 1, 28, 28).float() / 255
    return F.avg_pool2d(images, 2), torch.tensor(labels).long()


def with_minority(x: Tensor, y: Tensor, generator: torch.Generator, share: float = 0.15) -> Split:
    """Invert the images of a random share of the people and add noise.

    Args:
        x: Images.
        y: Labels.
        generator: Source of randomness.
        share: Of the minority.

    Returns:
        Images, labels, and 1 for the minority.
    """
    minority = torch.rand(len(x), generator=generator) < share
    noisy = (1 - x + 0.3 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    return torch.where(minority.view(-1, 1, 1, 1), noisy, x), y, minority.long()


class Block(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return torch.relu(y + self.shortcut(x))


class ResidualNetwork(nn.Module):
    """Stem of 32 channels, blocks of 64, 128 and 128: 672 prunable channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.blocks = nn.Sequential(Block(32, 64, 1), Block(64, 128, 2), Block(128, 128, 2))
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.norm(self.stem(x)).relu())
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


def train(model: nn.Module, data: Split, epochs: int, seed: int) -> None:
    """Adam with a one-cycle learning rate.

    Args:
        model: Changed in place.
        data: Images, labels, minority.
        epochs: Passes.
        seed: Of the order.
    """
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(TensorDataset(*data), batch_size=64, shuffle=True, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * len(loader))
    model.train()
    for _ in tqdm(range(epochs), desc="training", leave=False):
        for x, y, _ in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()


FirstOrder = Literal["auto", True]
CRITERIA: dict[str, Callable[[FirstOrder], tp.importance.Importance]] = {
    "tp magnitude": lambda _: tp.importance.GroupMagnitudeImportance(),
    "tp Taylor": lambda _: tp.importance.GroupTaylorImportance(),
    "worst group, single": lambda first_order: WorstGroupImportance(selection="single", first_order=first_order),
    "mean damage, joint": lambda first_order: MeanDamageImportance(first_order=first_order),
    "worst group, joint": lambda first_order: WorstGroupImportance(first_order=first_order),
}


def prune(
    dense: nn.Module, name: str, calibration: Any, ratio: float, steps: int, first_order: FirstOrder = "auto"
) -> nn.Module:
    """A pruned copy, scored again before each step.

    Args:
        dense: The network.
        name: Criterion.
        calibration: Batches of (images, labels, minority).
        ratio: Share of channels to remove.
        steps: Number of steps.
        first_order: Of fairtrim's importances.

    Returns:
        The copy.
    """
    importance, model = CRITERIA[name](first_order), copy.deepcopy(dense)
    pruner = tp.pruner.BasePruner(
        model,
        torch.randn(2, 1, 14, 14),
        importance=importance,
        global_pruning=True,
        pruning_ratio=ratio,
        iterative_steps=steps,
        ignored_layers=[model.head],
    )
    for _ in range(steps):
        if isinstance(importance, MeanDamageImportance | WorstGroupImportance):
            importance.fit(pruner, calibration, progress=False)
        elif isinstance(importance, tp.importance.GroupTaylorImportance):
            for x, y, _ in calibration:
                F.cross_entropy(model(x), y, reduction="sum").backward()  # type: ignore[no-untyped-call]
        pruner.step()
        model.zero_grad()
    return model


def accuracies(model: nn.Module, test: Split) -> dict[str, float]:
    """Accuracy of all, the majority and the minority.

    Args:
        model: The network.
        test: Test set.

    Returns:
        Three accuracies.
    """
    x, y, minority = test
    with torch.no_grad():
        right = (torch.cat([model(part) for part in torch.split(x, 1000)]).argmax(1) == y).double()
    return {
        "all": right.mean().item(),
        "majority": right[minority == 0].mean().item(),
        "minority": right[minority == 1].mean().item(),
    }


def run(seed: int, epochs: int, first_order: FirstOrder = "auto") -> list[dict[str, Any]]:
    """Train one network and prune it in every way.

    Args:
        seed: Of everything random.
        epochs: Of training.
        first_order: Of fairtrim's importances.

    Returns:
        One row a way, with and without recalibrated BatchNorm.
    """
    (train_x, train_y), (test_x, test_y) = read_images("train"), read_images("t10k")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(train_x), generator=generator)
    data = with_minority(train_x[chosen[:5000]], train_y[chosen[:5000]], generator)
    held_out = with_minority(train_x[chosen[5000:6000]], train_y[chosen[5000:6000]], generator)
    test = with_minority(test_x, test_y, generator)
    calibration = DataLoader(TensorDataset(*held_out), batch_size=100)
    torch.manual_seed(seed)
    dense = ResidualNetwork()
    train(dense, data, epochs, seed)
    rows: list[dict[str, Any]] = []
    untouched = {"pruning": "none", "criterion": "dense", "BatchNorm": "as trained"}
    rows.append({"seed": seed, **untouched, **accuracies(dense, test)})
    for (ratio, steps), name in [(plan, name) for plan in [(0.25, 1), (0.5, 1), (0.5, 5)] for name in CRITERIA]:
        model = prune(dense, name, calibration, ratio, steps, first_order)
        label = {"seed": seed, "pruning": f"{ratio:.0%}, {steps} step{'s' if steps > 1 else ''}", "criterion": name}
        rows.append({**label, "BatchNorm": "as trained", **accuracies(model, test)})
        recalibrate_batchnorm(model, calibration, progress=False)
        rows.append({**label, "BatchNorm": "recalibrated", **accuracies(model, test)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--first-order", action="store_const", const=True, default="auto")
    add_jobs(parser)
    add_rows(parser)
    arguments = parser.parse_args()
    work = partial(run, epochs=arguments.epochs, first_order=arguments.first_order)
    runs = sweep(work, range(arguments.seeds), arguments.jobs)
    rows = [row for of_seed in runs for row in of_seed]
    frame = pd.DataFrame(rows)
    save_rows(frame, arguments.rows)
    text = with_intervals(frame.drop(columns="seed"), ["pruning", "criterion", "BatchNorm"])
    print(f"Accuracy on the test set, {arguments.seeds} seeds, {INTERVAL}, no fine-tuning")
    text = text.unstack("BatchNorm", fill_value="").swaplevel(axis=1)
    print(text.sort_index(axis=1, level=0, sort_remaining=False).to_string())


if __name__ == "__main__":
    main()
