"""Adult: FairPrune as published, single weights masked in a loop, with either side privileged.

    python -m benchmarks.fairprune

Three seeds; test set; the multilayer perceptron and the 8192 scoring samples of ``benchmarks.adult_pruning``; no
retraining. Weights of negative score only (1 % an iteration), and 5 % an iteration up to 90 %.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import pandas as pd
import torch
from benchmarks.adult_pruning import measure
from benchmarks.sweep import add_jobs, sweep
from benchmarks.tables import INTERVAL, add_rows, save_rows, with_intervals
from examples.prune_adult import SEX, Adult, load_adult, network, train
from torch import nn

from fairtrim import prune_by_group_saliency
from fairtrim_adapters.fairlearn import eodd, eopp1

SHOWN = (0.05, 0.35, 0.9)
"""Shares of the weights whose networks are shown."""


def figures(model: nn.Module, adult: Adult) -> dict[str, float]:
    """Test-set figures of a network.

    Args:
        model: The network.
        adult: The data.

    Returns:
        Those of ``benchmarks.adult_pruning``, accuracies of women and men, Eopp1 and Eodd.
    """
    x, y, sensitive = adult.test
    sex = sensitive[:, 0]
    with torch.no_grad():
        labels = model(x).argmax(1)
    of_groups = {name: float((labels == y)[sex == k].double().mean()) for k, name in enumerate(("women", "men"))}
    sums = {
        name: function(y, labels, sensitive_features=sex.numpy())
        for name, function in (("Eopp1", eopp1), ("Eodd", eodd))
    }
    found = measure(model, adult)
    return {key: found[key] for key in ("accuracy", "balanced", "EO difference")} | sums | of_groups


def run(seed: int, adult: Adult) -> list[dict[str, Any]]:
    """Train one network and mask its weights.

    Args:
        seed: Of everything random.
        adult: The data.

    Returns:
        One row a network.
    """
    columns = (*adult.train[:2], adult.train[2][:, 0])
    scoring = list(zip(*(torch.split(column[:8192], 512) for column in columns), strict=True))
    torch.manual_seed(seed)
    dense = network(adult.train[0].shape[1])
    train(dense, adult.train, epochs=10, seed=seed)
    rows = [{"seed": seed, "network": "dense", "masked": 0.0, **figures(dense, adult)}]
    for side, told in (("Female", "women"), ("Male", "men")):
        options: dict[str, Any] = {"privileged": side, "sensitive_names": {"sex": SEX}, "progress": False}
        negative = prune_by_group_saliency(dense, scoring, only_negative=True, **options)
        looped = prune_by_group_saliency(dense, scoring, pruning_ratio=0.9, iterative_steps=18, **options)
        networks = {"negative only": (negative.model, negative.history[-1].pruning_ratio)}
        for ratio in SHOWN:
            iteration = min(round(18 * ratio / 0.9), len(looped.history) - 1)  # a constant classifier ends it
            networks[f"{ratio:.0%}"] = looped.model_at(iteration), looped.history[iteration].pruning_ratio
        for name, (model, masked) in networks.items():
            label = f"{told} privileged, {name}"
            rows.append({"seed": seed, "network": label, "masked": masked, **figures(model, adult)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    add_jobs(parser)
    add_rows(parser)
    arguments = parser.parse_args()
    runs = sweep(partial(run, adult=load_adult()), range(arguments.seeds), arguments.jobs)
    frame = pd.DataFrame([row for of_seed in runs for row in of_seed])
    save_rows(frame, arguments.rows)
    text = with_intervals(frame.drop(columns="seed"), "network")
    print(f"\nFairPrune as published, single weights, {arguments.seeds} seeds, {INTERVAL}")
    print(text.iloc[:, :5].to_string(), text.iloc[:, 5:].to_string(), sep="\n\n")


if __name__ == "__main__":
    main()
