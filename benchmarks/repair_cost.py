"""What repairs cost, as ratios within one run.

    python -m benchmarks.repair_cost

Adult, a multilayer perceptron 108-128-64-2, its validation people (a quarter of the training set). First: 101 trials of
random perturbation against 101 forward passes over the same people. Then: layer-wise search by CMA-ES against the
boosted trees of the published method (three quantile regressors, expected improvement over 10,000 random candidates, 20
evaluations of φ a tensor), each by CPU seconds and by φ on the selection people. One thread. Each figure with its 95 %
interval over seeds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from benchmarks.tables import INTERVAL, add_rows, save_rows, with_intervals
from examples.prune_adult import load_adult, network, train
from scipy.stats import norm
from sklearn.ensemble import GradientBoostingRegressor

from fairtrim import LayerwiseOptimization, RandomPerturbation, ValidationSet
from fairtrim.repair.candidates import Candidates
from fairtrim.repair.working_copy import WorkingCopy

Entries = npt.NDArray[np.float64]


def boosted_trees(loss: Callable[[Entries], float], n_entries: int, evaluations: int, seed: int) -> None:
    """Minimise over the box [−1, 1]^d as scikit-optimize's gbrt_minimize does: half at random, half by surrogate.

    Args:
        loss: To minimise.
        n_entries: d.
        evaluations: Of the loss.
        seed: Of the points.
    """
    random = np.random.default_rng(seed)
    points = random.uniform(-1, 1, (evaluations // 2, n_entries))
    values = np.array([loss(point) for point in points])
    for _ in range(evaluations - len(values)):
        low, middle, high = (
            GradientBoostingRegressor(loss="quantile", alpha=alpha, n_estimators=30, random_state=seed).fit(
                points, values
            )
            for alpha in (0.16, 0.5, 0.84)
        )
        candidates = random.uniform(-1, 1, (10_000, n_entries))
        mean = middle.predict(candidates)
        deviation = np.maximum((high.predict(candidates) - low.predict(candidates)) / 2, 1e-9)
        gain = (values.min() - 0.01 - mean) / deviation
        improvement = deviation * (gain * norm.cdf(gain) + norm.pdf(gain))
        points = np.vstack([points, candidates[improvement.argmax()]])
        values = np.append(values, loss(points[-1]))


class BoostedTrees(LayerwiseOptimization):
    """The published search in the same method."""

    def _edit(self, working: WorkingCopy, candidates: Candidates) -> None:
        self._search_tensors(working, candidates, boosted_trees)


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    add_rows(parser)
    arguments = parser.parse_args()
    trials: list[dict[str, Any]] = []
    searches: list[dict[str, Any]] = []
    torch.set_num_threads(1)
    adult = load_adult()
    x, y, sensitive = adult.train
    for seed in arguments.seeds:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        learned, held = order[: 3 * len(x) // 4], order[3 * len(x) // 4 :]
        torch.manual_seed(seed)
        model = network(x.shape[1])
        train(model, (x[learned], y[learned]), epochs=10, seed=seed)
        people = ValidationSet(x[held], y[held], sensitive[held, 0], ("Female", "Male"), sides=True)

        def passes(model: torch.nn.Module = model, people: ValidationSet = people) -> None:
            with torch.no_grad():
                for _ in range(101):
                    for rows in people.inputs.split(1024):
                        model(rows)

        def perturbed(model: torch.nn.Module = model, people: ValidationSet = people) -> None:
            RandomPerturbation(trials=101).repair(model, people, progress=False)

        passes()
        perturbed()
        ratio = median(seconds(perturbed)[0] / seconds(passes)[0] for _ in range(5))
        trials.append({"seed": seed, "people": len(people), "101 trials / 101 forward passes": ratio})
        spent: dict[str, float] = {}
        for name, method in {
            "CMA-ES, 100 evaluations": LayerwiseOptimization(random_state=seed),
            "CMA-ES, 20 evaluations": LayerwiseOptimization(random_state=seed, max_evaluations=20),
            "boosted trees, 20 evaluations": BoostedTrees(random_state=seed, max_evaluations=20),
        }.items():
            spent[name], repair = seconds(partial(method.repair, model, people, progress=False))
            phi = repair.performance if repair.within_bound else 0.0
            ratio = spent[name] / spent["CMA-ES, 100 evaluations"]
            searches.append({"seed": seed, "search": name, "CPU s": spent[name], "times the first": ratio, "φ": phi})
    save_rows(pd.DataFrame(trials + searches), arguments.rows)
    print(f"Random perturbation, {INTERVAL}")
    print(with_intervals(pd.DataFrame(trials).drop(columns="seed"), "people", decimals=2).to_string())
    print(f"\nLayer-wise search, {INTERVAL}")
    places = {"CPU s": 2, "times the first": 2}
    print(with_intervals(pd.DataFrame(searches).drop(columns="seed"), "search", places).to_string())


if __name__ == "__main__":
    main()
