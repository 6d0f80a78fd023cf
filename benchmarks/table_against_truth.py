"""The damage table against the truth: measured change of each group's loss when channels are really removed.

    python -m benchmarks.table_against_truth

An MLP on Adult (groups: sex) and a BatchNorm network on Fashion-MNIST (groups: majority, minority); the truth is
measured on data that the network was not trained on. Prints, over seeds, the Spearman correlation with that truth, for
each group, of the table and of weight-level saliency from the same people, which tests the expansion alone; and of the
table from other people, beside what the same measurement on those other people gives, which no table can beat: the
rest is chance of the sample. Then the joint prediction Δ_g(R), from other people, beside the measured change at 10, 25
and 50 % removed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
import torch_pruning as tp
from benchmarks.residual_cnn import Split, read_images, train, with_minority
from benchmarks.tables import INTERVAL, add_rows, save_rows, with_intervals
from examples.prune_adult import SEX, load_adult, network
from examples.prune_adult import train as train_adult
from scipy.stats import spearmanr
from torch import Tensor, nn
from tqdm.auto import tqdm

from fairtrim import ChannelGroup, DamageTable, collect_damage
from fairtrim.criteria import MeanDamage
from fairtrim.damage.weight_saliency import collect_weight_saliency
from fairtrim.data.sensitive_groups import GroupName
from fairtrim.oracle import measured_damage
from fairtrim.selection import joint_selection
from fairtrim_adapters.torch_pruning.graph.plan import plan_of_pruner

Batches = list[tuple[Tensor, ...]]


def plain_cnn() -> nn.Sequential:
    """Three convolutions with BatchNorm, 24, 32 and 48 channels, and a linear head.

    Returns:
        The network.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 24), (24, 32), (32, 48)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48, 10))


def adult_case(seed: int) -> tuple[nn.Sequential, Batches, Batches, dict[str, Any]]:
    """Network, scoring batches, held-out batches and names of Adult.

    Args:
        seed: Of the weights and the order.

    Returns:
        The four.
    """
    adult = load_adult()
    torch.manual_seed(seed)
    model = network(adult.train[0].shape[1])
    train_adult(model, adult.train, epochs=10, seed=seed)
    x, y, codes = adult.train
    scoring: Batches = [(x[i : i + 512], y[i : i + 512], codes[i : i + 512, 0]) for i in range(0, 8192, 512)]
    return model, scoring, [(adult.test[0], adult.test[1], adult.test[2][:, 0])], {"sensitive_names": {"sex": SEX}}


def image_case(seed: int) -> tuple[nn.Sequential, Batches, Batches, dict[str, Any]]:
    """The same of Fashion-MNIST.

    Args:
        seed: Of the weights, the choice and the order.

    Returns:
        The four.
    """
    (x, y), (test_x, test_y) = read_images("train"), read_images("t10k")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)

    def part(start: int, stop: int) -> Split:
        return with_minority(x[order[start:stop]], y[order[start:stop]], generator)

    torch.manual_seed(seed)
    model = plain_cnn()
    train(model, part(0, 5000), 6, seed)
    held_out = with_minority(test_x[:5000], test_y[:5000], generator)
    calibration = part(5000, 9000)
    batches = list(zip(*(torch.split(t, 200) for t in calibration), strict=True))
    return model, batches, [held_out], {"sensitive_names": {"group": ["majority", "minority"]}}


def correlations(names: Sequence[GroupName], predicted: Tensor, truth: Tensor) -> dict[str, float]:
    """Spearman correlation over all channels, for each group.

    Args:
        names: Names of the G groups.
        predicted: Changes of the loss, (G, C).
        truth: Measured changes, (C, G).

    Returns:
        Correlation by name of the group.
    """
    return {str(name): float(spearmanr(predicted[g], truth[:, g]).statistic) for g, name in enumerate(names)}


def removals(table: DamageTable, shares: list[float]) -> list[dict[str, list[int]]]:
    """The sets that joint selection removes first.

    Args:
        table: With interactions.
        shares: Of the channels.

    Returns:
        Channels by layer, for each share.
    """
    columns = [(name, c) for name, size in table.sizes.items() for c in range(size)]
    order = joint_selection(table, MeanDamage()).order.tolist()
    found = []
    for share in shares:
        chosen: dict[str, list[int]] = {}
        for column in order[: round(share * len(order))]:
            chosen.setdefault(columns[column][0], []).append(columns[column][1])
        found.append(chosen)
    return found


def groups_of(model: nn.Sequential, example: Tensor) -> tuple[ChannelGroup, ...]:
    """Channel groups as Torch-Pruning finds them.

    Args:
        model: The network.
        example: Two samples.

    Returns:
        The groups.
    """
    return plan_of_pruner(tp.pruner.BasePruner(model, example, importance=None, ignored_layers=[model[-1]])).groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    add_rows(parser)
    arguments = parser.parse_args()
    shares = [0.1, 0.25, 0.5]
    ranks, joints = [], []
    for name, case in {"Adult, MLP": adult_case, "Fashion-MNIST, BatchNorm CNN": image_case}.items():
        for seed in tqdm(range(arguments.seeds), desc=name, leave=False):
            model, scoring, held_out, options = case(seed)
            groups = groups_of(model, held_out[0][0][:2])

            def table_of(batches: Batches, *, saliency: bool = False, **more: Any) -> DamageTable:
                collect = collect_weight_saliency if saliency else collect_damage
                return collect(model, batches, groups, progress=False, **more, **options)  # noqa: B023 - used at once

            def truth_of(batches: Batches, sets: list[dict[str, list[int]]]) -> Tensor:
                return measured_damage(model, batches, groups, sets, progress=False, **options)[1]  # noqa: B023

            single: list[dict[str, list[int]]] = [{g.name: [c]} for g in groups for c in range(g.size)]
            truth = truth_of(held_out, single)
            table = table_of(scoring, interactions=True)
            predictions = {
                "damage table, exact": table_of(held_out).damage,
                "damage table, empirical": table_of(held_out, curvature="empirical").damage,
                "weight saliency, exact": table_of(held_out, saliency=True).damage,
                "damage table, from other people": table.damage,
                "measured on other people": truth_of(scoring, single).T,
            }
            for kind, predicted in predictions.items():
                row = {"network": name, "prediction": kind, "seed": seed}
                ranks.append(row | correlations(table.sensitive_groups, predicted, truth))
            sets = removals(table, shares)
            for share, chosen, actual in zip(shares, sets, truth_of(held_out, sets), strict=True):
                sums = table.damage[:, table.columns.selected(chosen)].sum(1)
                for g, group in enumerate(table.sensitive_groups):
                    row = {"network": name, "removed": f"{share:.0%}", "sensitive group": group, "seed": seed}
                    joints.append(
                        row
                        | {"predicted jointly": float(table.predict(chosen)[g])}
                        | {"sum of single": float(sums[g]), "measured": float(actual[g])}
                    )
    save_rows(pd.DataFrame(ranks + joints), arguments.rows)
    print(f"Spearman correlation with the measured change of loss, held-out data, {arguments.seeds} seeds, {INTERVAL}")
    print(with_intervals(pd.DataFrame(ranks).drop(columns="seed"), ["network", "prediction"]).to_string())
    print(f"\nChange of the mean loss of each group when channels go together, {INTERVAL}")
    keys = ["network", "removed", "sensitive group"]
    print(with_intervals(pd.DataFrame(joints).drop(columns="seed"), keys, decimals=4).to_string())


if __name__ == "__main__":
    main()
