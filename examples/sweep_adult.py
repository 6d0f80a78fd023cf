"""Compare compressions of a network on the Adult census data, and decide with a picture.

Sweeps five criteria, four sizes and three seeds, each pruned network refitted, and repaired too; writes the table, the
picture of the choice (what each criterion leaves of the worst-off sex's accuracy at each size), what each sex pays, and
one report in HTML, Markdown and JSON. Stopped and started again it goes on where it was. Five to ten minutes on two
cores.

    python examples/sweep_adult.py
    python examples/sweep_adult.py --seeds 1 --pruning-ratio 0.5 --folder sweep_small

The functions ``network`` and ``data`` below serve the command line as well, without another line of code:

    fairtrim prune --model examples/sweep_adult.py:network --data examples/sweep_adult.py:data -o pruned.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from prune_adult import RACE, SEX, adult_columns, load_adult  # type: ignore[import-not-found]  # beside this file
from prune_adult import network as perceptron
from prune_adult import train as train_network
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim_adapters.pareto import Direction, mean_over_seeds, pareto_set
from fairtrim_adapters.sweep import DataSplits, sweep

Batch = tuple[Tensor, ...]

CRITERIA = {
    "magnitude": "magnitude",
    "Taylor": "taylor",
    "FairPrune, weights summed": "group-saliency:privileged=Female,level=weight,selection=single",
    "mean damage": "mean-damage:compensated=true",
    "worst group": "worst-group:compensated=true",
}
REPAIR = {
    "parity fine-tuning": "parity-fine-tuning:measure=equalized_odds_difference,epsilon=0.05,performance=accuracy"
}
OBJECTIVES: dict[str, Direction] = {"accuracy": "max", "equalized_odds_difference": "min", "parameters": "min"}


def data() -> DataSplits:
    """Adult, split by who is trained on, scored, repaired on and who judges.

    Returns:
        20,000 people to train on (8,192 of them score), 12,561 to repair on, and the 16,281 of the test set.
    """
    adult = load_adult()

    def loader(
        part: tuple[Tensor, ...], first: int, last: int | None, batch_size: int
    ) -> DataLoader[tuple[Tensor, ...]]:
        x, y, sensitive = (tensor[first:last] for tensor in part)
        return DataLoader(TensorDataset(x, y, sensitive[:, 0]), batch_size=batch_size)

    return DataSplits(
        train=loader(adult.train, 0, 20000, 256),
        scoring=loader(adult.train, 0, 8192, 512),
        validation=loader(adult.train, 20000, None, 2048),
        test=loader(adult.test, 0, None, 4096),
        sensitive_names={"sex": SEX},
        name="Adult",
        description=(
            "US census of 1994 (Kohavi 1996); label: income above 50,000 dollars a year; sensitive feature: sex. "
            f"Race ({' / '.join(RACE)}) is recorded and not looked at here."
        ),
        feature_names=adult_columns(),
        class_names=["up to 50,000", "more"],
    )


def network(seed: int = 0) -> nn.Module:
    """A perceptron with 192 hidden channels, trained for ten epochs.

    Args:
        seed: Of weights and order.

    Returns:
        The trained network.
    """
    adult = load_adult()
    train_part = tuple(tensor[:20000] for tensor in adult.train)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = perceptron(train_part[0].shape[1])
    train_network(model, train_part, epochs=10, seed=seed)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    parser.add_argument(
        "--pruning-ratio", type=float, nargs="+", default=[0.5, 0.65, 0.8, 0.9], help="shares of the channels"
    )
    parser.add_argument("--folder", type=Path, default=Path("sweep_adult"), help="keeps runs, networks and pictures")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; latencies are only true for one")
    arguments = parser.parse_args()

    from matplotlib import pyplot

    from fairtrim_adapters.plots import plot_group_metric, plot_pareto
    from fairtrim_adapters.report import report_sweep

    table = sweep(
        network,
        data(),
        CRITERIA,
        arguments.pruning_ratio,
        arguments.seeds,
        post_processors=REPAIR,
        pruner_options={"global_pruning": True},
        folder=arguments.folder,
        n_jobs=arguments.jobs,
    )
    means = mean_over_seeds(table)
    means.insert(0, "pareto", pareto_set(means, OBJECTIVES).map({True: "*", False: ""}))
    columns = ["pareto", "criterion", "pruning_ratio", "post_processor", "parameters_ratio", "accuracy"]
    columns += ["accuracy_change[Female]", "accuracy_change[Male]", "equalized_odds_difference"]
    print(f"Means of {arguments.seeds} seeds; * in the Pareto set of {', '.join(OBJECTIVES)}")
    print(means[columns].to_string(index=False, float_format=lambda value: f"{value:.3f}"))

    plot_pareto(table)
    pyplot.savefig(arguments.folder / "pareto.png", dpi=120)
    plot_group_metric(table)
    pyplot.savefig(arguments.folder / "groups.png", dpi=120)
    report = report_sweep(arguments.folder, objectives=OBJECTIVES)
    for suffix in ("html", "md", "json"):
        report.save(arguments.folder / f"report.{suffix}")
    print(f"\ntable, pictures and report: {arguments.folder}")
    if pyplot.get_backend().lower() != "agg":
        pyplot.show()


if __name__ == "__main__":
    main()
