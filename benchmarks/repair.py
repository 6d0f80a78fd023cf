"""Repair a trained network on Adult, German credit and COMPAS: every post-processor against its rivals.

    python -m benchmarks.repair
    python -m benchmarks.repair --data adult --seeds 0
    python -m benchmarks.repair --data path/to/compas-scores-two-years.csv

Half of the people train a multilayer perceptron, which does not see the protected attribute unless --visible. A quarter
is given to the post-processors (half of it to edit on, half to select on; all of it to the rivals), a quarter tests;
small data sets are turned round until everybody was tested. For each bias measure: balanced accuracy, absolute bias and
CPU seconds, each with its 95 % interval over seeds; then the trade-off on the test people, means over seeds, one column
for each bound that was asked for on the validation people.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from aif360.algorithms.postprocessing import (
    CalibratedEqOddsPostprocessing,
    EqOddsPostprocessing,
    RejectOptionClassification,
)
from aif360.datasets import BinaryLabelDataset
from benchmarks.sweep import add_jobs, sweep
from benchmarks.tables import INTERVAL, add_rows, save_rows, with_intervals
from examples.aif360_german import Task, adult, compas, german, splits, trained
from fairlearn.postprocessing import ThresholdOptimizer
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import nn
from tqdm.auto import tqdm

from fairtrim import (
    AdversarialFineTuning,
    AdversarialProjection,
    BiasGradientDescent,
    InputError,
    LayerwiseOptimization,
    ParityFineTuning,
    PostProcessor,
    RandomPerturbation,
    ThresholdSelection,
    ValidationSet,
)
from fairtrim.measures.group_counts import GroupCounts, bias, performance
from fairtrim_adapters.aif360 import predict_dataset, to_validation_set

Labels = npt.NDArray[np.int64]

MEASURES = {
    "demographic_parity_difference": ("demographic_parity", "Statistical parity difference"),
    "equal_opportunity_difference": ("true_positive_rate_parity", "Equal opportunity difference"),
    "average_odds_difference": ("equalized_odds", "Average odds difference"),
}
"""Bias measures, and the nearest constraint of Fairlearn's ThresholdOptimizer and of AIF360's reject option."""

METHODS: dict[str, Callable[..., PostProcessor]] = {
    "threshold alone": ThresholdSelection,
    "random perturbation": RandomPerturbation,
    "layer-wise optimisation": LayerwiseOptimization,
    "adversarial fine-tuning": AdversarialFineTuning,
    "adversarial projection": AdversarialProjection,
    "bias gradient descent": BiasGradientDescent,
    "parity, output layer": ParityFineTuning,
    "parity, all layers": lambda **settings: ParityFineTuning(layers="all", **settings),
}

BOUNDS = (0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2)
EPSILON = 0.05


class Scored(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Scores as a classifier, because ThresholdOptimizer wants one: its "features" are the scores."""

    def fit(self, X: Any, y: Any) -> Scored:
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        scores = np.asarray(X, dtype=float)[:, 0]
        return np.stack([1 - scores, scores], 1)

    def predict(self, X: Any) -> Labels:
        labels: Labels = (np.asarray(X)[:, 0] > 0.5).astype(int)
        return labels


def judged(measure: str, labels: Labels, target: Labels, side: Labels) -> tuple[float, float]:
    """Balanced accuracy and signed bias of decisions.

    Args:
        measure: Of the bias.
        labels: Decisions, (N,).
        target: (N,).
        side: 0 unprivileged, 1 privileged, (N,).

    Returns:
        The two.
    """
    given = torch.from_numpy(labels).double()[:, None]
    counts = GroupCounts.of(given, torch.from_numpy(target), torch.from_numpy(side), n_groups=2)
    return float(performance("balanced_accuracy", counts)), float(bias(measure, counts, signed=True))


def narrow(dataset: BinaryLabelDataset) -> BinaryLabelDataset:
    """Without features, which AIF360's post-processors copy and don't use.

    Args:
        dataset: Left as it is.

    Returns:
        A copy.
    """
    slim = dataset.copy()
    slim.features, slim.feature_names = dataset.protected_attributes, dataset.protected_attribute_names
    return slim


def decisions(model: nn.Module, people: ValidationSet) -> Labels:
    with torch.no_grad():
        labels: Labels = model(people.inputs).argmax(1).numpy()
    return labels


def rivals(
    task: Task, measure: str, model: nn.Module, validation: Any, test: Any, seed: int
) -> Iterator[tuple[str, float, Callable[[], Labels]]]:
    """Post-processors of the hosts, which see the attribute at prediction: name, bound, and how to decide."""
    constraint, metric = MEASURES[measure]
    guess, unseen = (predict_dataset(model, part, features=task.features) for part in (validation, test))
    sides = [part.protected_attributes[:, 0] for part in (validation, test)]

    def optimised() -> Labels:
        optimizer = ThresholdOptimizer(
            estimator=Scored(), constraints=constraint, objective="balanced_accuracy_score", prefit=True,
            predict_method="predict_proba", grid_size=1000,
        )  # fmt: skip
        optimizer.fit(guess.scores, validation.labels.ravel().astype(int), sensitive_features=sides[0])
        labels: Labels = optimizer.predict(unseen.scores, sensitive_features=sides[1], random_state=seed).astype(int)
        return labels

    yield "Fairlearn ThresholdOptimizer", EPSILON, optimised
    true, guess, unseen = (narrow(part) for part in (validation, guess, unseen))

    def of(predicted: BinaryLabelDataset) -> Labels:
        labels: Labels = (predicted.labels.ravel() == predicted.favorable_label).astype(int)
        return labels

    for bound in (EPSILON, *(b for b in BOUNDS if b != EPSILON)):

        def rejecting(bound: float = bound) -> Labels:
            option = RejectOptionClassification(
                **task.groups, metric_name=metric, metric_ub=bound, metric_lb=-bound, num_class_thresh=50,
                num_ROC_margin=25,
            )  # fmt: skip
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # where no setting satisfies the bound
                return of(option.fit(true, guess).predict(unseen))

        yield "AIF360 reject option", bound, rejecting
    for name, rival in {
        "AIF360 equalized odds": EqOddsPostprocessing(**task.groups, seed=seed),
        "AIF360 calibrated equalized odds": CalibratedEqOddsPostprocessing(**task.groups, seed=seed),
    }.items():
        yield name, EPSILON, lambda rival=rival: of(rival.fit(true, guess).predict(unseen))  # type: ignore[misc]


class Pool:
    """Decisions of all folds of one seed, by method and bound, with what they are judged by."""

    def __init__(self) -> None:
        self.labels: dict[tuple[str, float], list[Labels]] = defaultdict(list)
        self.seconds: dict[str, float] = defaultdict(float)
        self.people: list[tuple[Labels, Labels]] = []

    def figures(self, measure: str) -> Iterator[tuple[str, float, float, float]]:
        target, side = (np.concatenate(column) for column in zip(*self.people, strict=True))
        for (name, bound), parts in self.labels.items():
            if len(parts) == len(self.people):  # else no network is within the bound on some fold
                accuracy, gap = judged(measure, np.concatenate(parts), target, side)
                yield name, bound, accuracy, abs(gap)


def run(task: Task, measure: str, seed: int, *, all_rivals: bool, skip: Sequence[str]) -> Pool:
    """One seed: train, repair, decide.

    Args:
        task: On what.
        measure: Of the bias.
        seed: Of everything.
        all_rivals: Whether reject option is swept over all bounds, which takes minutes.
        skip: Methods to leave out.

    Returns:
        The decisions.
    """
    pool = Pool()
    for _, train, validation, test in splits(task, seed):
        model = trained(task, train, seed)
        sets = {
            name: to_validation_set(part, *task.groups.values(), features=task.features)
            for name, part in (("train", train), ("validation", validation), ("test", test))
        }
        people = sets["test"]
        pool.people.append((people.target.numpy(), people.group.numpy()))
        pool.labels["as trained", EPSILON].append(decisions(model, people))
        tuned = ThresholdSelection(epsilon=1.0, margin=0.0).repair(model, sets["validation"], progress=False)
        pool.labels["as trained, best threshold", EPSILON].append(decisions(tuned.model, people))
        fits: dict[str, tuple[Callable[..., PostProcessor], ValidationSet, ValidationSet | None]] = {
            name: (method, sets["validation"], None) for name, method in METHODS.items() if name not in skip
        }
        fits["parity, output layer, edited on the training people"] = (
            ParityFineTuning, sets["train"], sets["validation"],
        )  # fmt: skip
        for name, (method, edit, select) in tqdm(fits.items(), desc=f"{task.name}, seed {seed}", leave=False):
            start = time.process_time()
            repair = method(measure=measure, epsilon=EPSILON, random_state=seed).repair(
                model, edit, selection_loader=select, progress=False
            )
            pool.seconds[name] += time.process_time() - start
            pool.labels[name, 0.0].append(decisions(repair.model, people))
            for bound in BOUNDS:
                try:
                    pool.labels[name, bound].append(decisions(repair.model_at(bound), people))
                except InputError:  # no point of the curve is within the bound
                    continue
        for name, bound, decide in rivals(task, measure, model, validation, test, seed):
            if bound != EPSILON and not all_rivals:
                continue
            start = time.process_time()
            labels = decide()
            if bound == EPSILON:
                pool.seconds[name] += time.process_time() - start
                pool.labels[name, 0.0].append(labels)
            pool.labels[name, bound].append(labels)
    return pool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=["adult", "german"], help="adult, german or the COMPAS file")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--measures", nargs="*", default=list(MEASURES), choices=list(MEASURES))
    parser.add_argument("--all-rivals", action="store_true", help="sweep reject option over all bounds (slow)")
    parser.add_argument("--skip", nargs="*", default=[], choices=list(METHODS), help="methods to leave out")
    parser.add_argument("--visible", action="store_true", help="let the network see the protected attribute")
    add_jobs(parser)
    add_rows(parser)
    arguments = parser.parse_args()
    everything = []
    for data in arguments.data:
        task = {"adult": adult, "german": german}[data]() if data in ("adult", "german") else compas(Path(data))
        task = replace(task, visible=arguments.visible)
        for measure in arguments.measures:
            once = partial(run, task, measure, all_rivals=arguments.all_rivals, skip=arguments.skip)
            pools = sweep(once, arguments.seeds, arguments.jobs)
            rows = [
                (seed, name, bound, accuracy, gap, pool.seconds.get(name, np.nan))
                for seed, pool in zip(arguments.seeds, pools, strict=True)
                for name, bound, accuracy, gap in pool.figures(measure)
            ]
            table = pd.DataFrame(rows, columns=["seed", "method", "bound", "balanced accuracy", "bias", "CPU s"])
            everything.append(table.assign(data=task.name, measure=measure, visible=arguments.visible))
            chosen = table[table.bound.isin([0.0]) | table.method.str.startswith("as trained")]
            summary = with_intervals(chosen.drop(columns=["seed", "bound"]), "method")
            summary.insert(2, "largest bias", chosen.groupby("method")["bias"].max().map("{:.3f}".format))
            print(f"\n{task.name}, |{measure}| < {EPSILON}, test people, seeds {arguments.seeds}, {INTERVAL}")
            print(summary.to_string(), flush=True)
            curve = (
                table[table.bound > 0].groupby(["method", "bound"], sort=False)[["balanced accuracy", "bias"]].mean()
            )
            shown = curve["balanced accuracy"].map("{:.3f}".format) + " (" + curve["bias"].map("{:.3f}".format) + ")"
            print("Trade-off: mean balanced accuracy (bias) by the bound asked for")
            shown = shown.unstack().reindex(summary.index)[list(BOUNDS)].dropna(how="all").fillna("")
            print(shown.to_string(), flush=True)
    save_rows(pd.concat(everything), arguments.rows)


if __name__ == "__main__":
    main()
