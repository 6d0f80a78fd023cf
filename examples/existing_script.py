"""A plain Torch-Pruning script, and the three lines that change.

    python examples/existing_script.py

As in Torch-Pruning's own reproduce/main.py, loaders give (inputs, target), loops unpack these two, and an importance is
picked before the pruner is made. Lines marked with «was» are those that change; what follows «new» looks at who pays.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import load_pruned, save_pruned
from fairtrim_adapters.fairlearn import metric_frame
from fairtrim_adapters.torch_pruning import WorstGroupImportance  # was: nothing


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def train(model: nn.Module, loader: DataLoader[Any], epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)  # anew after each step: parameters were replaced
    model.train()
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.eval()


def accuracy(model: nn.Module, loader: DataLoader[Any]) -> float:
    with torch.no_grad():
        right = [model(x).argmax(1) == y for x, y in loader]
    return float(torch.cat(right).double().mean())


def data() -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Digits; one in five was "written by the left hand": mirrored and faint. Who wrote it, the loaders don't say."""
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    left = torch.arange(len(x)) % 5 == 0
    x = torch.where(left.view(-1, 1, 1, 1), 0.5 * x.flip(3), x)
    return x, torch.tensor(digits.target), ["left" if flag else "right" for flag in left]


def main() -> None:
    x, y, hand = data()  # was: x, y, _ = data()
    generator = torch.Generator().manual_seed(0)
    train_loader = DataLoader(TensorDataset(x[:1200], y[:1200]), batch_size=64, shuffle=True, generator=generator)
    test_loader = DataLoader(TensorDataset(x[1200:], y[1200:]), batch_size=256)

    torch.manual_seed(0)
    model = network()
    train(model, train_loader, epochs=15)
    print(f"accuracy before: {accuracy(model, test_loader):.3f}")
    before = metric_frame(model, test_loader, sensitive_features={"hand": hand[1200:]}, progress=False)  # new

    importance = WorstGroupImportance(  # was: tp.importance.GroupTaylorImportance()
        model=model, loader=train_loader, sensitive_features={"hand": hand[:1200]}, progress=False
    )
    pruner = tp.pruner.BasePruner(
        model,
        torch.randn(2, 1, 8, 8),
        importance=importance,
        global_pruning=True,
        pruning_ratio=0.6,
        iterative_steps=3,
        ignored_layers=[model[-1]],
    )
    for step in range(3):
        pruner.step()  # a loop of loss.backward() before it may stay, and may go
        print(f"step {step + 1}: {importance.report()}\n")  # new
        train(model, train_loader, epochs=1)
    print(f"accuracy after: {accuracy(model, test_loader):.3f}")

    # new: who pays, and a file without pickle
    after = metric_frame(model, test_loader, sensitive_features={"hand": hand[1200:]}, progress=False)
    print("accuracy by hand\n", before.by_group["accuracy"].to_frame("dense").join(after.by_group["accuracy"]))
    save_pruned("pruned_digits.safetensors", model)
    again = load_pruned("pruned_digits.safetensors", network()).eval()
    with torch.no_grad():
        print("largest difference after loading:", (again(x) - model(x)).abs().max().item())


if __name__ == "__main__":
    main()
