"""Adult: unlearn the flipped sex from 200 pairs without training data, and from training samples by influence.

    python -m benchmarks.unlearning

A multilayer perceptron 108-128-64-2 that sees the sex, trained on three quarters of Adult's training set; its threshold
is tuned for balanced accuracy. Pairs are drawn from the other quarter: one half to edit on, the other to select. Test
set: share of flipped decisions, mean change of the label's probability, change of the logits in their own standard
deviations, cross-entropy, balanced accuracy; CPU seconds, also as a share of the training's. Then: training samples by
their influence on the counterfactual bias, the most harmful ones removed by the exact refit of the output layer, and
how far off one step is, as a share of the refit's way. Each seed, then each figure with its 95 % interval over seeds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import torch
from benchmarks.sweep import add_jobs, sweep
from benchmarks.tables import INTERVAL, add_rows, save_rows, with_intervals
from examples.prune_adult import adult_columns, load_adult, network, train
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import (
    ColumnErasure,
    ColumnFlip,
    CounterfactualUnlearning,
    ThresholdSelection,
    ValidationSet,
    counterfactual_bias,
    influence_on_bias,
    unlearn_samples,
)
from fairtrim.measures.group_counts import GroupCounts, performance

RIDGE = 1e-4

FORMS: dict[str, Callable[[int], CounterfactualUnlearning]] = {
    "published formula, s = 1": lambda seed: CounterfactualUnlearning(
        form="published", strengths=[1.0], random_state=seed
    ),
    "published, line search": lambda seed: CounterfactualUnlearning(form="published", random_state=seed),
    "consistency, output layer": lambda seed: CounterfactualUnlearning(random_state=seed),
    "consistency, all layers": lambda seed: CounterfactualUnlearning(layers="all", random_state=seed),
}


def figures(model: nn.Module, x: Tensor, flipped: Tensor, y: Tensor) -> dict[str, float]:
    with torch.no_grad():
        scores, others = model(x), model(flipped)
    pairs = counterfactual_bias(scores, others, y)
    counts = GroupCounts.of(scores.argmax(1).double()[:, None], y, torch.zeros_like(y), n_groups=1)
    return {
        "flips": pairs.flips,
        "mean change": pairs.mean_change,
        "relative change": pairs.relative_change,
        "cross-entropy": pairs.cross_entropy,
        "balanced accuracy": float(performance("balanced_accuracy", counts)),
    }


def head_weights(model: nn.Module) -> Tensor:
    layer = list(model.modules())[-1]
    assert isinstance(layer, nn.Linear)
    centred = layer.weight - layer.weight.mean(0)  # the softmax minds no shift
    return centred.detach().double()


def run(seed: int, n_pairs: int, removed: list[int]) -> list[dict[str, float | str]]:
    adult = load_adult()
    flip = ColumnFlip(one_hot=["sex_Female", "sex_Male"], names=adult_columns())
    x, y, sensitive = adult.train
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    learned, held = order[: 3 * len(x) // 4], order[3 * len(x) // 4 :]
    torch.manual_seed(seed)
    model = network(x.shape[1])
    start = time.process_time()
    train(model, (x[learned], y[learned]), epochs=10, seed=seed)
    training = time.process_time() - start
    test = adult.test[0], flip(adult.test[0]), adult.test[1]
    people = ValidationSet(x[held], y[held], sensitive[held, 0], ("Female", "Male"))
    ThresholdSelection(epsilon=1.0, margin=0.0).repair(model, people, inplace=True, progress=False)
    rows: list[dict[str, float | str]] = [{"method": "given", **figures(model, *test), "CPU s": training}]
    # the first Adam step of a process imports for a second or two: not part of any method's cost
    torch.optim.Adam([nn.Parameter(torch.zeros(1))]).step()
    given = pd.Series(rows[0])
    pairs = people.take(torch.randperm(len(people), generator=torch.Generator().manual_seed(seed))[:n_pairs])
    for name, form in FORMS.items():
        start = time.process_time()
        repair = form(seed).set_params(counterfactual=flip).repair(model, pairs, progress=False)
        seconds = time.process_time() - start
        rows.append({"method": name, **figures(repair.model, *test), "CPU s": seconds})
    start = time.process_time()
    erasure = ColumnErasure(columns=["sex_Female", "sex_Male"], names=adult_columns())
    erased = erasure.repair(model, people, progress=False).model
    seconds = time.process_time() - start
    rows.append({"method": "columns erased, no pairs", **figures(erased, *test), "CPU s": seconds})
    loader = DataLoader(TensorDataset(x[learned], y[learned]), batch_size=1024)
    whole = ValidationSet(people.inputs, people.target, people.group, people.groups, counterfactual=flip(people.inputs))
    influence = influence_on_bias(model, loader, whole, ridge=RIDGE, progress=False)
    options: dict[str, Any] = {"ridge": RIDGE, "progress": False}
    refit = unlearn_samples(
        model, loader, torch.empty(0, dtype=torch.int64), **options
    )  # where the influence was taken
    rows.append({"method": "output layer refitted, nothing removed", **figures(refit, *test)})
    for n_removed in removed:
        harmful = influence.most_harmful(n_removed)
        for name, counterfactual in (("removed", None), ("replaced by counterfactuals", flip)):
            start = time.process_time()
            exact, step = (
                unlearn_samples(model, loader, harmful, counterfactual=counterfactual, exact=wanted, **options)
                for wanted in (True, False)
            )
            seconds = time.process_time() - start
            rows.append({"method": f"{n_removed} most harmful {name}", **figures(exact, *test), "CPU s": seconds})
            before, after, one = (head_weights(network) for network in (refit, exact, step))
            rows[-1]["one step off"] = float((one - after).norm() / (after - before).norm())
    for row in rows[1:]:
        row["share of training"] = float(row.get("CPU s", float("nan"))) / training
        row["times fewer flips"] = float(given["flips"]) / (float(row["flips"]) or float("nan"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--removed", type=int, nargs="*", default=[20, 200, 2000])
    add_jobs(parser)
    add_rows(parser)
    arguments = parser.parse_args()
    once = partial(run, n_pairs=arguments.pairs, removed=arguments.removed)
    tables = [pd.DataFrame(rows) for rows in sweep(once, arguments.seeds, arguments.jobs)]
    for seed, table in zip(arguments.seeds, tables, strict=True):
        print(f"\nseed {seed}\n{table.set_index('method').to_string(float_format=lambda value: f'{value:.4f}')}")
    frame = pd.concat([table.assign(seed=seed) for seed, table in zip(arguments.seeds, tables, strict=True)])
    save_rows(frame, arguments.rows)
    print(f"\n{INTERVAL}\n{with_intervals(frame.drop(columns='seed'), 'method').to_string()}")


if __name__ == "__main__":
    main()
