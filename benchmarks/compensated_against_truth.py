"""Compensated damage of single channels against the truth: remove one, refit its readers, and measure.

    python -m benchmarks.compensated_against_truth

A 20-layer residual network on Fashion-MNIST with a minority that looks different (needs the Debian package
dataset-fashion-mnist); five channels of each of its dependency groups, drawn at random. The truth is measured on 1,000
images that scored and refitted and 1,000 others: the change of the loss expected under the dense network's own labels
(a Kullback-Leibler divergence, which is what the second order predicts), and the change of the loss under the true
labels. Prints Spearman correlations over the channels, with 95 % intervals over seeds.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
import torch_pruning as tp
from benchmarks.refit import train, works
from benchmarks.residual_cnn import read_images, with_minority
from benchmarks.sweep import add_jobs, sweep
from benchmarks.tables import INTERVAL, add_rows, save_rows, with_intervals
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import collect_damage
from fairtrim.damage.input_moments import input_moments
from fairtrim.selection.compensated import CompensatedShares
from fairtrim_adapters.torch_pruning import reconstructed
from fairtrim_adapters.torch_pruning.graph.plan import PruningPlan, plan_of_pruner
from fairtrim_adapters.torch_pruning.graph.removing import remove_units

CHANNELS = 5


def pruner_of(model: nn.Module, example: Tensor) -> tuple[tp.pruner.BasePruner, PruningPlan]:
    """A pruner of the network, and what it can remove."""
    magnitude = tp.importance.GroupMagnitudeImportance()
    pruner = tp.pruner.BasePruner(model, example, importance=magnitude, ignored_layers=[model.head])
    return pruner, plan_of_pruner(pruner)


def log_probabilities(model: nn.Module, x: Tensor) -> Tensor:
    """(N, K) float64."""
    with torch.no_grad():
        return torch.cat([model(part) for part in torch.split(x, 500)]).double().log_softmax(1)


def run(seed: int) -> list[dict[str, Any]]:
    """Train one network and remove single channels: one row of correlations."""
    work = works("")["resnet"]
    train_split, scoring, _ = work.data(seed)
    torch.manual_seed(seed)
    dense = work.network(1)
    train(dense, train_split, work, work.epochs, seed)
    images, labels = read_images("t10k")
    others = with_minority(images[:1000], labels[:1000], torch.Generator().manual_seed(seed))
    x, y = torch.cat([scoring[0], others[0]]), torch.cat([scoring[1], others[1]])
    loader = DataLoader(TensorDataset(*scoring[:2]), batch_size=100)

    _, plan = pruner_of(dense, x[:2])
    with input_moments(dense, plan.groups) as moments:
        table = collect_damage(dense, loader, plan.groups, progress=False)
    second_order = 0.5 * (table.shares @ table.curvature)
    compensated = second_order * CompensatedShares(moments.read(), len(second_order)).each

    before = log_probabilities(dense, x)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for group in plan.groups:
        for channel in torch.randperm(group.size, generator=generator)[:CHANNELS].tolist():
            model = copy.deepcopy(dense)
            pruner, own = pruner_of(model, x[:2])
            with reconstructed(pruner, loader, measure=False, progress=False):
                remove_units(pruner.DG, pruner, own, group.name, [channel])
            after = log_probabilities(model, x)
            column = plan.columns.section(group.name).start + channel
            found.append(
                {
                    "own": float((before.exp() * (before - after)).sum(1).mean()),
                    "true": float(F.nll_loss(after, y) - F.nll_loss(before, y)),
                    "compensated": float(compensated[column]),
                    "not compensated": float(second_order[column]),
                }
            )
    frame = pd.DataFrame(found)
    return [
        {
            "seed": seed,
            "predicted by": way,
            "loss expected under the network's labels": spearmanr(frame[way], frame["own"]).statistic,
            "loss under the true labels": spearmanr(frame[way], frame["true"]).statistic,
        }
        for way in ("compensated", "not compensated")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    add_jobs(parser)
    add_rows(parser)
    arguments = parser.parse_args()
    frame = pd.DataFrame([row for rows in sweep(run, range(arguments.seeds), arguments.jobs) for row in rows])
    save_rows(frame, arguments.rows)
    print(f"Spearman correlation over channels, {arguments.seeds} seeds, {INTERVAL}")
    print(with_intervals(frame.drop(columns="seed"), ["predicted by"]).to_string())


if __name__ == "__main__":
    main()
