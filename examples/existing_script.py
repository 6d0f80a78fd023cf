"""A plain Torch-Pruning script, and the two lines that change.

    python examples/existing_script.py

The lines marked with «was» are those of the script before. Everything else (pruner, iterative steps, training
between them) is as in Torch-Pruning's own documentation.
"""

from __future__ import annotations

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


def train(model: nn.Module, loader: DataLoader[tuple[torch.Tensor, ...]], epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)  # anew after each step: parameters were replaced
    model.train()
    for _ in range(epochs):
        for x, y, _ in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.eval()


def main() -> None:
    # Digits; one in five was "written by the left hand": mirrored and faint. Batches are (inputs, target, hand).
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(digits.target)
    left = torch.arange(len(x)) % 5 == 0
    x = torch.where(left.view(-1, 1, 1, 1), 0.5 * x.flip(3), x)
    hand = left.long()
    generator = torch.Generator().manual_seed(0)
    train_loader = DataLoader(
        TensorDataset(x[:1200], y[:1200], hand[:1200]), batch_size=64, shuffle=True, generator=generator
    )
    test_loader = DataLoader(TensorDataset(x[1200:], y[1200:], hand[1200:]), batch_size=256)
    names = {"hand": ["right", "left"]}

    torch.manual_seed(0)
    model = network()
    train(model, train_loader, epochs=15)
    before = metric_frame(model, test_loader, sensitive_names=names, progress=False)

    importance = WorstGroupImportance(  # was: tp.importance.GroupTaylorImportance()
        model=model, loader=train_loader, sensitive_names=names, progress=False
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
        pruner.step()  # was: a loop of loss.backward() before it
        print(f"step {step + 1}: {importance.report()}\n")
        train(model, train_loader, epochs=1)

    after = metric_frame(model, test_loader, sensitive_names=names, progress=False)
    print("accuracy by hand\n", before.by_group["accuracy"].to_frame("dense").join(after.by_group["accuracy"]))

    save_pruned("pruned_digits.safetensors", model)
    again = load_pruned("pruned_digits.safetensors", network()).eval()
    with torch.no_grad():
        print("largest difference after loading:", (again(x) - model(x)).abs().max().item())


if __name__ == "__main__":
    main()
