"""Does a bound on the bias hold for people who had no part in the repair?

    python -m benchmarks.repairs_hold
    python -m benchmarks.repairs_hold --data ages --seeds 0 1
    python -m benchmarks.repairs_hold --data recidivism --file path/to/compas-scores-two-years.csv

Half of the people train a multilayer perceptron, a quarter is given to the post-processors, a quarter tests, turned
round until everybody was tested: a seed's figures are of all people, each decided about by a network that was neither
trained nor repaired on them. Adult: the sex, or five bands of age; COMPAS: Black and White people. Demographic parity,
ε = 0.05. Rivals: the threshold alone; parity fine-tuning as it selected before, by a bias as measured on half of the
people (``confidence=None, selection_share=0.5``); bias gradient descent (Marcinkevics and others, 2022); OxonFair's
merged head (Delaney and others, 2024; needs ``pip install oxonfair``); Fairlearn's ThresholdOptimizer, which sees the
attribute when it decides. Prints balanced accuracy, accuracy and bias with their 95 % intervals over seeds, and in how
many seeds the bound held.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from benchmarks.refit import compas_people, perceptron
from benchmarks.repair import Scored
from benchmarks.sweep import add_jobs, sweep
from benchmarks.tables import INTERVAL, add_rows, save_rows, with_intervals
from examples.prune_adult import load_adult
from fairlearn.metrics import demographic_parity_difference
from fairlearn.postprocessing import ThresholdOptimizer
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from torch import Tensor, nn

from fairtrim import BiasGradientDescent, ParityFineTuning, PostProcessor, ThresholdSelection, ValidationSet

EPSILON = 0.05
BEFORE: dict[str, Any] = {"confidence": None, "selection_share": 0.5}

METHODS: dict[str, Callable[..., PostProcessor]] = {
    "threshold alone": ThresholdSelection,
    "bias gradient descent": BiasGradientDescent,
    "parity, output layer, as before": partial(ParityFineTuning, **BEFORE),
    "parity, output layer": ParityFineTuning,
    "parity, all layers, as before": partial(ParityFineTuning, layers="all", **BEFORE),
    "parity, all layers": partial(ParityFineTuning, layers="all"),
}

Labels = npt.NDArray[np.int64]
People = tuple[Tensor, Tensor, Tensor]


def people_of(name: str, file: str) -> People:
    """Standardised inputs, labels and sensitive groups of everybody.

    Args:
        name: Of the data.
        file: ProPublica's.

    Returns:
        The three.
    """
    if name == "recidivism":
        table = compas_people(file)
        table = table[table["race"].isin(["African-American", "Caucasian"])]
        seen = ["age", "juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count"]
        told = (
            table[seen].assign(male=table["sex"] == "Male", felony=table["c_charge_degree"] == "F").to_numpy("float32")
        )
        group = torch.tensor((table["race"] == "Caucasian").to_numpy()).long()
        told = (told - told.mean(0)) / told.std(0)
        return torch.tensor(told), torch.tensor(table["two_year_recid"].to_numpy()), group
    adult = load_adult()
    x, y, sensitive = (torch.cat(parts) for parts in zip(adult.train, adult.test, strict=True))
    if name == "adult":
        return x, y, sensitive[:, 0].long()
    age = x[:, 0].double()
    return x, y, torch.bucketize(age, age.quantile(torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)))


def trained(x: Tensor, y: Tensor, seed: int) -> nn.Sequential:
    """A perceptron."""
    torch.manual_seed(seed)
    model = perceptron(x.shape[1], (128, 64))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(8 if len(x) > 8000 else 20):
        for rows in torch.split(torch.randperm(len(x)), 256):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()


@torch.no_grad()
def decided(model: nn.Module, x: Tensor) -> Labels:
    """Its labels."""
    scores = model(x)
    labels: Labels = ((scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(1)).numpy()
    return labels


@torch.no_grad()
def optimised(model: nn.Module, validation: People, test: People, seed: int) -> Labels:
    """Labels of Fairlearn's ThresholdOptimizer."""
    scores = [model(part[0]).softmax(1)[:, 1].double().numpy()[:, None] for part in (validation, test)]
    optimizer = ThresholdOptimizer(
        estimator=Scored(), constraints="demographic_parity", objective="balanced_accuracy_score", prefit=True,
        predict_method="predict_proba", grid_size=1000,
    )  # fmt: skip
    optimizer.fit(scores[0], validation[1].numpy(), sensitive_features=validation[2].numpy())
    labels: Labels = optimizer.predict(scores[1], sensitive_features=test[2].numpy(), random_state=seed).astype(int)
    return labels


def merged(model: nn.Sequential, validation: People, test: People) -> Labels:
    """Labels of OxonFair's merged head: a head that tells the group is added to the one that tells the label."""
    oxonfair: Any = importlib.import_module("oxonfair")

    x, y, group = validation
    n_groups = int(group.max()) + 1
    with torch.no_grad():
        body: Any = model[-1]
        features = model[:-1](x).double()
        margin = nn.Linear(features.shape[1], 1).double()
        margin.weight.copy_((body.weight[1] - body.weight[0])[None])
        margin.bias.copy_((body.bias[1] - body.bias[0])[None])
        wanted = nn.functional.one_hot(group, n_groups).double() if n_groups > 2 else group[:, None].double()
        ones = torch.cat([features, torch.ones(len(features), 1).double()], 1)
        told = torch.linalg.lstsq(ones.T @ ones + 1e-3 * torch.eye(ones.shape[1]).double(), ones.T @ wanted).solution
        heads = nn.Linear(features.shape[1], 1 + wanted.shape[1]).double()
        heads.weight.copy_(torch.cat([margin.weight, told[:-1].T]))
        heads.bias.copy_(torch.cat([margin.bias, told[-1]]))
        scores = heads(features).numpy()
    predictor = oxonfair.DeepFairPredictor(y.numpy(), scores, group.numpy())
    metrics = oxonfair.group_metrics
    predictor.fit(metrics.balanced_accuracy, metrics.demographic_parity, EPSILON)
    head = predictor.merge_heads_pytorch(heads)
    return decided(nn.Sequential(*list(model)[:-1], _Double(), head), test[0])


class _Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def repaired(method: PostProcessor, model: nn.Module, people: ValidationSet, test: People) -> Labels:
    """Labels of a repaired network."""
    return decided(method.repair(model, people, progress=False).model, test[0])


def ways(model: nn.Sequential, validation: People, test: People, seed: int) -> dict[str, Callable[[], Labels]]:
    """Ways to decide about the test people, by name.

    Args:
        model: The trained network.
        validation: Who repair.
        test: Who are decided about.
        seed: Of what is random.

    Returns:
        Functions that give labels.
    """
    x, y, group = validation
    people = ValidationSet(x, y, group, tuple(f"{g:02}" for g in range(int(group.max()) + 1)))
    found: dict[str, Callable[[], Labels]] = {"as trained": partial(decided, model, test[0])}
    for name, method in METHODS.items():
        found[name] = partial(repaired, method(epsilon=EPSILON, random_state=seed), model, people, test)
    if importlib.util.find_spec("oxonfair"):
        found["OxonFair, merged head"] = partial(merged, model, validation, test)
    found["Fairlearn ThresholdOptimizer, sees the group"] = partial(optimised, model, validation, test, seed)
    return found


def run(seed: int, name: str, file: str, only: list[str]) -> list[dict[str, Any]]:
    """One seed: four turns, and figures of everybody.

    Args:
        seed: Of everything.
        name: Of the data.
        file: ProPublica's.
        only: Of the ways; empty for all.

    Returns:
        One row a way.
    """
    everybody = people_of(name, file)
    order = torch.randperm(len(everybody[1]), generator=torch.Generator().manual_seed(seed))
    quarters = order.chunk(4)
    labels: dict[str, list[Labels]] = {}
    seconds: dict[str, float] = {}
    for turn in range(4):
        one, two, three, four = (quarters[(turn + k) % 4] for k in range(4))
        train, validation, test = (
            (everybody[0][rows], everybody[1][rows], everybody[2][rows])
            for rows in (torch.cat([one, two]), three, four)
        )
        for what, decide in ways(trained(train[0], train[1], seed), validation, test, seed).items():
            if only and what not in only:
                continue
            start = time.process_time()
            labels.setdefault(what, []).append(decide())
            seconds[what] = seconds.get(what, 0.0) + time.process_time() - start
    y, group = (torch.cat([everybody[k][quarters[(turn + 3) % 4]] for turn in range(4)]).numpy() for k in (1, 2))
    rows: list[dict[str, Any]] = []
    for what, of_turns in labels.items():
        given = np.concatenate(of_turns)
        rows.append(
            {
                "seed": seed,
                "method": what,
                "balanced accuracy": balanced_accuracy_score(y, given),
                "accuracy": accuracy_score(y, given),
                "bias": demographic_parity_difference(y, given, sensitive_features=group),
                "CPU s": seconds[what],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["adult", "ages", "recidivism"], default="adult")
    parser.add_argument("--file", default="", help="ProPublica's compas-scores-two-years.csv")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(10)))
    parser.add_argument("--methods", nargs="*", default=[], help="only these")
    add_jobs(parser)
    add_rows(parser)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    once = partial(run, name=arguments.data, file=arguments.file, only=arguments.methods)
    frame = pd.DataFrame([row for rows in sweep(once, arguments.seeds, arguments.jobs) for row in rows])
    save_rows(frame, arguments.rows)
    table = with_intervals(frame.drop(columns="seed"), "method")
    held = frame.assign(held=frame["bias"] < EPSILON).groupby("method")["held"].sum()
    table.insert(3, "held", [f"{held[name]} of {len(arguments.seeds)}" for name in table.index])
    print(f"{arguments.data}, |demographic parity difference| < {EPSILON}, {len(arguments.seeds)} seeds, {INTERVAL}")
    print(table.to_string())


if __name__ == "__main__":
    main()
