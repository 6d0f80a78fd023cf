"""Miners and cuts on biases they were not made for: three kinds, two networks, and what mislabelled samples do.

    python -m benchmarks.mining_cuts
    python -m benchmarks.mining_cuts --data fashion-mnist
    python -m benchmarks.mining_cuts --data fashion-mnist --picture docs/confidence_under_pruning.png

A colour, a pattern of 3 x 3 pixels in a corner, or the direction of stripes follows the class for all but 1, 2 or 5 %
of the images of each class; a perceptron and a small convolutional network, trained for 15 epochs. Prints the average
precision of the miners, precision and recall of the cuts of accumulated confidence and of the miners' own, and average
precision at 2 % conflicting where 2 % of the labels are wrong besides. One thread; a run of the default takes about two
minutes, of Fashion-MNIST (Debian package dataset-fashion-mnist, 3,000 images) about six.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from benchmarks.sweep import add_jobs, sweep
from benchmarks.tables import add_rows, save_rows
from examples.colored_digits import COLOURS, Loader, read_images
from sklearn.metrics import average_precision_score
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import (
    EpochEnsemble,
    GeneralizedCrossEntropyMiner,
    GivenConfidence,
    LossMiner,
    MinedSamples,
    Miner,
    fine_tune,
)
from fairtrim.mining.accumulated_confidence import accumulated
from fairtrim_adapters.plots import plot_confidence
from fairtrim_adapters.torch_pruning import AccumulatedConfidence

BIASES = ("colour", "pattern", "stripes")
NETWORKS = ("perceptron", "convolutions")
SHARES = (0.01, 0.02, 0.05)
WRONG = 0.02


@dataclass(frozen=True)
class Biased:
    """Images (N, 3, H, W) and labels (N,), and what only a benchmark knows of them, (N,) bool each.

    Attributes:
        images: With the mark of their class, most of them.
        labels: As a training set gives them.
        conflicting: The mark is of another class.
        mislabelled: The label is wrong; the mark is that of the true class.
    """

    images: Tensor
    labels: Tensor
    conflicting: Tensor
    mislabelled: Tensor


def marked(images: Tensor, bias: str, marks: Tensor, generator: torch.Generator) -> Tensor:
    """Grey images with a mark each.

    Args:
        images: (N, 1, H, W).
        bias: Which kind.
        marks: Which of ten, (N,).
        generator: Of small differences between marks of one kind.

    Returns:
        (N, 3, H, W).
    """
    images = images.repeat(1, 3, 1, 1)
    n_samples, _, height, width = images.shape
    if bias == "colour":
        tint = COLOURS[marks] + 0.05 * torch.randn(n_samples, 3, generator=generator)
        return (images * tint.view(n_samples, 3, 1, 1)).clamp(0, 1)
    if bias == "pattern":
        patterns = torch.rand(10, 3, 3, generator=torch.Generator().manual_seed(5)).round()
        images = images.clone()
        images[:, :, :3, :3] = patterns[marks][:, None]
        return images
    angle = (math.pi * marks / 10)[:, None, None]
    row, column = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    phase = 0.3 * torch.randn(n_samples, generator=generator)[:, None, None]
    wave = torch.sin((row * torch.sin(angle) + column * torch.cos(angle)) * 2 * math.pi / 4 + phase)
    return (images + 0.35 * wave[:, None]).clamp(0, 1)


def biased(images: Tensor, labels: Tensor, bias: str, share: float, wrong: float, seed: int) -> Biased:
    """A biased training set.

    Args:
        images: (N, 1, H, W).
        labels: Ten classes.
        bias: Which kind.
        share: Of each class that conflicts, at least one image.
        wrong: Share of the labels that are wrong, among images that don't conflict.
        seed: Of everything random.

    Returns:
        The set.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    images, labels = images[order], labels[order]
    marks = labels.clone()
    for label in range(10):
        members = (labels == label).nonzero().flatten()
        chosen = members[: max(1, round(share * len(members)))]
        marks[chosen] = (label + torch.randint(1, 10, chosen.shape, generator=generator)) % 10
    conflicting = marks != labels
    images = marked(images, bias, marks, generator)
    mislabelled = torch.zeros_like(conflicting)
    labels = labels.clone()
    if wrong:
        aligned = (~conflicting).nonzero().flatten()
        chosen = aligned[torch.randperm(len(aligned), generator=generator)[: round(wrong * len(labels))]]
        labels[chosen] = (labels[chosen] + torch.randint(1, 10, chosen.shape, generator=generator)) % 10
        mislabelled[chosen] = True
    return Biased(images, labels, conflicting, mislabelled)


def network(kind: str, side: int) -> nn.Sequential:
    """A new network.

    Args:
        kind: Which of ``NETWORKS``.
        side: Of the images, in pixels.

    Returns:
        The network, its weights drawn from torch's generator.
    """
    if kind == "perceptron":
        hidden = [nn.Linear(3 * side * side, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU()]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 10))
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 48)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


def mixture(scores: Tensor) -> Tensor:
    """The upper of two normal distributions fitted to the log-odds of the scores, (N,) bool."""
    odds = torch.logit(scores, eps=1e-9).numpy()[:, None]
    ends = [[odds.min()], [odds.max()]]
    parts = GaussianMixture(2, random_state=0, means_init=ends).fit(odds)
    upper = torch.tensor(parts.predict(odds) == parts.means_[:, 0].argmax())
    return upper & (scores > scores.median())


def largest_gap(mined: MinedSamples) -> Tensor:
    """Above the largest gap among the log-odds of the upper 30 % of each class, (N,) bool."""
    chosen = torch.zeros(len(mined.scores), dtype=torch.bool)
    for label in torch.unique(mined.target).tolist():
        members = mined.target == label
        odds = torch.logit(mined.scores[members], eps=1e-9)
        ordered = odds.sort().values
        first = int(0.7 * len(ordered))
        chosen[members] = odds > ordered[first + int(ordered.diff()[first:].argmax())]
    return chosen


def cuts(mined: dict[str, MinedSamples], correct: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Mined sets, (N,) bool, by name of the cut.

    Args:
        mined: By name of the miner.
        correct: Whether the pruned network is right, (L, N).

    Yields:
        Names and sets.
    """
    accumulated = mined["AC"]
    yield "halfway to the highest score", accumulated.conflicting()
    yield "10 deviations", accumulated.conflicting(deviations=10)
    yield "5 deviations", accumulated.conflicting(deviations=5)
    yield "AC < 1/2", accumulated.conflicting(threshold=0.5)
    yield "AC < 1/K", accumulated.conflicting(threshold=0.9)
    yield "wrong at most levels", correct.double().mean(0) < 0.5
    yield "wrong at the last level", ~correct[-1]
    yield "wrong at any level", ~correct.all(0)
    yield "mixture of two normals", mixture(accumulated.scores)
    yield "largest gap", largest_gap(accumulated)
    for name, of_miner in mined.items():
        if name != "AC":
            yield f"{name}: halfway", of_miner.conflicting(fraction_of_range=0.5)
            yield f"{name}: 10 deviations", of_miner.conflicting(deviations=10)
            if of_miner.cut is not None:
                yield f"{name}: its own", of_miner.cut


Case = tuple[str, str, float, float, int]


def trained(case: Case, data: str, n_images: int) -> tuple[Biased, Loader, nn.Module]:
    """A biased training set and a network trained on it; see ``run``."""
    bias, kind, share, wrong, seed = case
    torch.set_num_threads(1)
    images, labels = read_images(data)
    found = biased(images[:n_images], labels[:n_images], bias, share, wrong, seed)
    loader: Loader = DataLoader(TensorDataset(found.images, found.labels), batch_size=64, shuffle=True)
    torch.manual_seed(seed)
    dense = network(kind, images.shape[-1])
    fine_tune(dense, loader, epochs=15, learning_rate=3e-3, random_state=seed, progress=False)
    return found, loader, dense


def run(case: Case, data: str, n_images: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Train one network, mine, and cut in every way.

    Args:
        case: Bias, network, share of conflicting images, share of wrong labels, and the seed of everything random.
        data: See ``read_images``.
        n_images: How many of them at most.

    Returns:
        One row a miner, and one a cut.
    """
    bias, kind, share, wrong, seed = case
    found, loader, dense = trained(case, data, n_images)
    accumulation = AccumulatedConfidence(random_state=seed)
    miners: dict[str, Miner] = {
        "given": GivenConfidence(),
        "loss, 3 epochs": LossMiner(random_state=seed),
        "GCE": GeneralizedCrossEntropyMiner(random_state=seed),
        "epoch ensemble": EpochEnsemble(random_state=seed),
    }
    mined = {name: miner.mine(dense, loader, progress=False) for name, miner in miners.items()}
    trace, given = accumulation.trace(dense, loader, progress=False)
    mined["AC"] = MinedSamples(accumulated(trace, given, "confidence"), trace.target)
    mined["AC drop"] = MinedSamples(accumulated(trace, given, "drop"), trace.target)
    key = {"bias": bias, "network": kind, "share": share, "wrong labels": wrong, "seed": seed}
    truth, n_truth = found.conflicting, int(found.conflicting.sum())
    rows = [
        {**key, "miner": name, "AP": average_precision_score(truth, of_miner.scores)}
        for name, of_miner in mined.items()
    ]
    sets = []
    for name, flags in cuts(mined, trace.correct):
        hit, n_flags = int((flags & truth).sum()), int(flags.sum())
        figures = {"F1": 2 * hit / (n_flags + n_truth), "precision": hit / max(1, n_flags), "recall": hit / n_truth}
        sets.append({**key, "cut": name, **figures})
    return rows, sets


def draw(path: Path, data: str, n_images: int) -> None:
    """Confidence under pruning in the coloured images, where 2 % conflict and 2 % are mislabelled.

    Args:
        path: Where to save the picture.
        data: See ``read_images``.
        n_images: How many of them at most.
    """
    from matplotlib import pyplot

    found, loader, dense = trained(("colour", "convolutions", 0.02, WRONG, 0), data, n_images)
    levels = tuple(level / 10 for level in range(1, 9))
    mined = AccumulatedConfidence(levels=levels).mine(dense, loader, progress=False)
    figure, ax = pyplot.subplots(figsize=(7.5, 4.2), layout="constrained")
    known = {"known to conflict": found.conflicting, "mislabelled": found.mislabelled}
    plot_confidence(mined, known=known, ax=ax)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="as for examples/colored_digits.py")
    parser.add_argument("--images", type=int, default=3000, help="how many at most (default 3000)")
    parser.add_argument("--bias", nargs="+", choices=BIASES, default=BIASES)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--share", type=float, nargs="+", default=SHARES, help="of conflicting images")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--picture", type=Path, help="only draw confidence under pruning there")
    add_jobs(parser)
    add_rows(parser)
    arguments = parser.parse_args()
    if arguments.picture is not None:
        draw(arguments.picture, arguments.data, arguments.images)
        return
    settings = [(share, 0.0) for share in arguments.share] + [(share, WRONG) for share in arguments.share[1:2]]
    cases = [
        (bias, kind, share, wrong, seed)
        for bias in arguments.bias
        for kind in arguments.network
        for share, wrong in settings
        for seed in range(arguments.seeds)
    ]
    runs = sweep(partial(run, data=arguments.data, n_images=arguments.images), cases, arguments.jobs)
    miners = pd.DataFrame([row for of_miners, _ in runs for row in of_miners])
    sets = pd.DataFrame([row for _, of_sets in runs for row in of_sets])
    save_rows(pd.concat([miners, sets]), arguments.rows)
    cells = ["bias", "network", "wrong labels", "share"]
    table = miners.pivot_table(index=cells, columns="miner", values="AP", sort=False)[
        list(dict.fromkeys(miners["miner"]))
    ]
    print(f"Average precision, {arguments.data}, {arguments.seeds} seed(s)")
    print(table.map("{:.2f}".format).to_string())
    grouped = sets[sets["wrong labels"] == 0].groupby("cut", sort=False)
    low, high = grouped[["precision", "recall"]].min(), grouped[["precision", "recall"]].max()
    table = pd.DataFrame({"lowest F1": grouped["F1"].min(), "mean F1": grouped["F1"].mean()}).map("{:.2f}".format)
    for figure in ("precision", "recall"):
        table[figure] = low[figure].map("{:.2f}".format) + " to " + high[figure].map("{:.2f}".format)
    print("\nCuts over all biases, networks and shares, of accumulated confidence unless said, without wrong labels")
    print(table.to_string())


if __name__ == "__main__":
    main()
