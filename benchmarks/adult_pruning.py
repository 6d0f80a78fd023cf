"""Adult: prune 50 and 80 % of the channels with every criterion, with and without one epoch of fine-tuning.

    python -m benchmarks.adult_pruning

Three seeds; test set; a multilayer perceptron 108-128-64-2; 8192 training samples score the channels. Prints one
table a sparsity, each figure with its 95 % interval over seeds.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
import torch_pruning as tp
from benchmarks.sweep import add_jobs, sweep
from benchmarks.tables import INTERVAL, add_rows, save_rows, with_intervals
from examples.prune_adult import SEX, Adult, load_adult, network, train
from fairlearn.metrics import equalized_odds_difference
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim_adapters.torch_pruning import (
    GroupSaliencyImportance,
    MeanDamageImportance,
    ShareBalancedImportance,
    TailRiskImportance,
    WorstGroupImportance,
)

Loader = DataLoader[tuple[Tensor, ...]]

CRITERIA: dict[str, tuple[Callable[[], tp.importance.Importance], dict[str, Any]]] = {
    "tp random": (tp.importance.RandomImportance, {}),
    "tp magnitude": (tp.importance.GroupMagnitudeImportance, {}),
    "tp Taylor": (tp.importance.GroupTaylorImportance, {}),
    # the women have the higher accuracy, which is what FairPrune calls privileged; the men the higher incomes
    "FairPrune, weights summed, women privileged": (
        lambda: GroupSaliencyImportance("Female", beta=0.3, level="weight", selection="single"),
        {},
    ),
    "FairPrune, weights summed, men privileged": (
        lambda: GroupSaliencyImportance("Male", beta=0.3, level="weight", selection="single"),
        {},
    ),
    "group saliency, joint, women privileged": (lambda: GroupSaliencyImportance("Female", beta=0.3), {}),
    "group saliency, joint, men privileged": (lambda: GroupSaliencyImportance("Male", beta=0.3), {}),
    "worst group, single": (lambda: WorstGroupImportance(selection="single"), {}),
    "share balanced (FairGRAPE), local": (ShareBalancedImportance, {"global_pruning": False}),
    "mean damage, joint": (MeanDamageImportance, {}),
    "tail risk 0.5, joint": (TailRiskImportance, {}),
    "worst group, joint": (WorstGroupImportance, {}),
    "worst group, joint, local": (WorstGroupImportance, {"global_pruning": False}),
    "worst group, single, 8 steps": (lambda: WorstGroupImportance(selection="single"), {"iterative_steps": 8}),
    "worst group, joint, 8 steps": (WorstGroupImportance, {"iterative_steps": 8}),
}


def prune(dense: nn.Sequential, name: str, scoring: Loader, ratio: float) -> nn.Sequential:
    """A pruned copy of the network, scored again before each step.

    Args:
        dense: The network.
        name: Which criterion.
        scoring: Batches to score with.
        ratio: Share of channels to remove.

    Returns:
        The copy.
    """
    make, options = CRITERIA[name]
    importance, model = make(), copy.deepcopy(dense)
    pruner = tp.pruner.BasePruner(
        model,
        next(iter(scoring))[0][:2],
        importance=importance,
        pruning_ratio=ratio,
        ignored_layers=[model[-1]],
        **{"global_pruning": True, **options},
    )
    for _ in range(options.get("iterative_steps", 1)):
        if hasattr(importance, "fit"):
            importance.fit(pruner, scoring, sensitive_names={"sex": SEX}, progress=False)
        elif isinstance(importance, tp.importance.GroupTaylorImportance):
            for x, y, _ in scoring:
                F.cross_entropy(model(x), y, reduction="sum").backward()  # type: ignore[no-untyped-call]
        pruner.step()
        model.zero_grad()
    return model


def measure(model: nn.Module, adult: Adult) -> dict[str, float]:
    """Test-set figures of a network.

    Args:
        model: The network.
        adult: The data.

    Returns:
        Accuracy, cross-entropy, balanced accuracy, equalized-odds difference between women and men.
    """
    x, y, sensitive = adult.test
    with torch.no_grad():
        scores = model(x)
    labels = scores.argmax(1).numpy()
    return {
        "accuracy": accuracy_score(y, labels),
        "loss": F.cross_entropy(scores, y).item(),
        "balanced": balanced_accuracy_score(y, labels),
        "EO difference": equalized_odds_difference(y, labels, sensitive_features=sensitive[:, 0]),
    }


def run(seed: int, adult: Adult, ratios: list[float]) -> list[dict[str, Any]]:
    """Train one network and prune it in every way.

    Args:
        seed: Of everything random.
        adult: The data.
        ratios: Shares of the channels to remove.

    Returns:
        One row a way, ratio and number of epochs after it.
    """
    scoring = DataLoader(TensorDataset(*(t[:8192] for t in adult.train[:2]), adult.train[2][:8192, 0]), batch_size=512)
    torch.manual_seed(seed)
    dense = network(adult.train[0].shape[1])
    train(dense, adult.train, epochs=10, seed=seed)
    untouched = {"seed": seed, "criterion": "dense", "epochs": 0, **measure(dense, adult)}
    rows = [{"pruning_ratio": ratio, **untouched} for ratio in ratios]
    for ratio, name in [(ratio, name) for ratio in ratios for name in CRITERIA]:
        model = prune(dense, name, scoring, ratio)
        rows.append({"seed": seed, "pruning_ratio": ratio, "criterion": name, "epochs": 0, **measure(model, adult)})
        train(model, adult.train, epochs=1, seed=seed)
        rows.append({"seed": seed, "pruning_ratio": ratio, "criterion": name, "epochs": 1, **measure(model, adult)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pruning-ratios", type=float, nargs="+", default=[0.5, 0.8])
    add_jobs(parser)
    add_rows(parser)
    arguments = parser.parse_args()
    runs = sweep(
        partial(run, adult=load_adult(), ratios=arguments.pruning_ratios), range(arguments.seeds), arguments.jobs
    )
    rows = [row for of_seed in runs for row in of_seed]
    frame = pd.DataFrame(rows)
    save_rows(frame, arguments.rows)
    for ratio in arguments.pruning_ratios:
        part = frame[frame["pruning_ratio"] == ratio].drop(columns=["pruning_ratio", "seed"])
        text = with_intervals(part, ["criterion", "epochs"])
        print(f"\n{ratio:.0%} of the channels removed, {arguments.seeds} seeds, {INTERVAL}")
        print(text.unstack("epochs", fill_value="").to_string())


if __name__ == "__main__":
    main()
