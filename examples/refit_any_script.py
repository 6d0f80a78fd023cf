"""One line around the step of any Torch-Pruning script.

    python examples/refit_any_script.py

Trains a small network on the Adult census data, and removes 80 % of its channels by Torch-Pruning's own magnitude
criterion: once as the script was before, and once with ``with reconstructed(pruner, loader):`` around the step. Then
every layer that lost inputs is fitted by least squares to what it gave before, with no label and no training. A third
time the channels are also chosen with the refit in mind, by the mean damage that is left after it. Prints what was
refitted and what becomes of each sensitive group, and saves a picture. Under a minute.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
import torch_pruning as tp
from prune_adult import RACE, SEX, load_adult, network, train  # type: ignore[import-not-found]  # beside this file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim_adapters.fairlearn import compare_models
from fairtrim_adapters.plots.styles import network_styles
from fairtrim_adapters.torch_pruning import MeanDamageImportance, reconstructed  # was: nothing

NAMES = {"sex": SEX, "race": RACE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="weights and order of the samples (default 0)")
    parser.add_argument("--epochs", type=int, default=10, help="of training (default 10)")
    parser.add_argument(
        "--pruning-ratio", type=float, default=0.8, help="share of the channels to remove (default 0.8)"
    )
    parser.add_argument("--picture", type=Path, default=Path("refit_any_script.png"), help="where to save it")
    arguments = parser.parse_args()

    adult = load_adult()
    people = DataLoader(TensorDataset(*(tensor[:8192] for tensor in adult.train)), batch_size=512)
    test = DataLoader(TensorDataset(*adult.test), batch_size=2048)
    torch.manual_seed(arguments.seed)
    dense = network(adult.train[0].shape[1])
    train(dense, adult.train, epochs=arguments.epochs, seed=arguments.seed)

    def script(model: nn.Sequential, importance: tp.importance.Importance) -> tp.pruner.BasePruner:
        return tp.pruner.BasePruner(
            model,
            adult.train[0][:2],
            importance=importance,
            pruning_ratio=arguments.pruning_ratio,
            ignored_layers=[model[-1]],
        )

    names = ("dense", "magnitude", "magnitude, refitted", "chosen for it, refitted")
    models = {name: copy.deepcopy(dense) if name != "dense" else dense for name in names}
    magnitude, chosen = tp.importance.GroupMagnitudeImportance(), MeanDamageImportance(compensated=True)
    script(models["magnitude"], magnitude).step()

    pruner = script(models["magnitude, refitted"], magnitude)
    with reconstructed(pruner, people, held_out=test, sensitive_names=NAMES) as refit:  # was: nothing
        pruner.step()
    print(refit)

    pruner = script(models["chosen for it, refitted"], chosen)
    chosen.fit(pruner, people, sensitive_names=NAMES)
    with reconstructed(pruner, people, measure=False):
        pruner.step()

    comparison = compare_models(models, test, sensitive_names=NAMES)
    accuracy = comparison.by_group["accuracy"].unstack(0)[list(models)]
    people_of = comparison.by_group["people"].unstack(0)["dense"]
    print(f"\nAccuracy of the test people, {arguments.pruning_ratio:.0%} of the channels removed")
    print(accuracy.to_string(float_format=lambda value: f"{value:.3f}"))

    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.2), layout="constrained")
    styles = network_styles(models)
    for k, name in enumerate(models):
        at = [place + 0.2 * (k - 1.5) for place in range(len(accuracy))]
        values = accuracy[name].to_numpy()
        errors = 1.96 * (values * (1 - values) / people_of.to_numpy()) ** 0.5
        axes.errorbar(at, values, errors, linestyle="none", label=name, **styles[name].marks(9))
    labels = [", ".join(group) if isinstance(group, tuple) else group for group in accuracy.index]
    axes.set_xticks(range(len(accuracy)), [f"{name}\n{n:g} people" for name, n in zip(labels, people_of, strict=True)])
    axes.set_ylabel("accuracy (higher is better ↑)")
    axes.grid(axis="y", alpha=0.3)
    largest = {name: 100 * (accuracy["dense"] - accuracy[name]).max() for name in names[1:]}
    told = ", ".join(f"{loss:.1f} ({name})" for name, loss in largest.items())
    figure.suptitle(
        f"Adult: without {100 * arguments.pruning_ratio:.3g} % of the channels no group loses more points than\n{told}",
        fontsize=11,
    )
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(arguments.picture, dpi=120)
    print(f"\npicture: {arguments.picture}")


if __name__ == "__main__":
    main()
