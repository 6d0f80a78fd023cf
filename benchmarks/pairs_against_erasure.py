"""Where counterfactual pairs earn their cost: beside holding the attribute at its mean, which needs no pairs.

    python -m benchmarks.pairs_against_erasure

``married``: Adult without the relationship, so that one column tells who is married, which the label leans on; 2,000
pairs with that column flipped, held out from training. ``digits``: images of digits whose colour gives the class away
(scikit-learn's, 5 % in another colour); 200 held-out images in their own colour, paired with another colour. The rival
holds the column at its mean (``ColumnErasure``), or the colour: the mean, or the brightest, of the colour channels in
front of the network. Methods with pairs may cost what that rival costs on the same pairs, in cross-entropy and balanced
accuracy; one row has the default limits. Rivals with labels: fine-tuning on both sides of the pairs or with the column
held, and, with the training data, retraining without the column.

Test set (digits: others, each in all ten colours): share of flipped decisions, mean change of the label's probability,
cross-entropy, balanced accuracy; each with its 95 % interval over seeds.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from benchmarks.sweep import add_jobs, sweep
from benchmarks.tables import INTERVAL, add_rows, save_rows, with_intervals
from examples import colored_digits as digits
from examples import prune_adult as adult
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import ColumnErasure, CounterfactualUnlearning, counterfactual_bias
from fairtrim.network.fine_tuning import fine_tune

MARRIED = ("marital-status_Married-civ-spouse", "marital-status_Married-AF-spouse")
SPOUSES = ("marital-status_", "relationship_")

Pairs = tuple[Tensor, Tensor, Tensor]  # inputs, the same with the attribute flipped, labels
Row = dict[str, float | str]


class Channel(nn.Module):
    """One grey channel in place of the colours, three times."""

    def __init__(self, of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.of = of

    def forward(self, images: Tensor) -> Tensor:
        return self.of(images).expand_as(images)


def figures(model: nn.Module, test: list[Pairs]) -> dict[str, float]:
    """The test set's figures; of images there is one entry for each shift of the colours."""
    with torch.no_grad():
        sides = [(model.eval()(x), model(other), y) for x, other, y in test]
    scores, others, y = (torch.cat(parts) for parts in zip(*sides, strict=True))
    pairs = counterfactual_bias(scores, others, y)
    recalls = [(scores.argmax(1)[y == label] == label).double().mean() for label in range(scores.shape[1])]
    return {
        "flips": pairs.flips,
        "change of p": pairs.mean_change,
        "cross-entropy": pairs.cross_entropy,
        "balanced acc": float(torch.stack(recalls).mean()),
    }


class Comparison:
    """The rows of one network: every method on the same pairs, and its figures on the same test set."""

    def __init__(self, model: nn.Module, pairs: Pairs, test: list[Pairs], seed: int) -> None:
        self.model, self.pairs, self.test, self.seed = model, pairs, test, seed
        self.rows: list[Row] = [{"method": "given", **figures(model, test)}]
        self.limits: dict[str, float] = {}

    def add(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        start = time.process_time()
        model = make()
        seconds = time.process_time() - start
        self.rows.append({"method": name, **figures(model, self.test), "CPU s": seconds})
        return model

    def allow_what_costs(self, rival: nn.Module) -> None:
        """From here on methods with pairs may cost as much as this rival does on the pairs."""
        before, after = (figures(model, [self.pairs]) for model in (self.model, rival))
        self.limits = {
            "max_cross_entropy_rise": max(0.0, after["cross-entropy"] - before["cross-entropy"]),
            "max_performance_loss": max(0.0, before["balanced acc"] - after["balanced acc"]),
        }

    def unlearned(self, **settings: Any) -> nn.Module:
        x, other, y = self.pairs
        method = CounterfactualUnlearning(random_state=self.seed, **settings)
        return method.repair(self.model, [((x, other), y)], progress=False).model

    def add_unlearned(self) -> nn.Module:
        """The forms with pairs; gives the network of the last."""
        self.add("published, line search", lambda: self.unlearned(form="published", **self.limits))
        self.add("consistency, output layer", lambda: self.unlearned(**self.limits))
        self.add("consistency, default limits", lambda: self.unlearned(layers="all"))
        return self.add("consistency, all layers", lambda: self.unlearned(layers="all", **self.limits))

    def tuned(self, inputs: Tensor, target: Tensor, *, epochs: int, learning_rate: float) -> nn.Module:
        loader = DataLoader(TensorDataset(inputs, target), batch_size=64, shuffle=True)
        order = torch.Generator().manual_seed(self.seed)
        options: dict[str, Any] = {"epochs": epochs, "learning_rate": learning_rate, "random_state": order}
        return fine_tune(copy.deepcopy(self.model), loader, **options, progress=False).eval()


def married(seed: int, n_pairs: int) -> list[Row]:
    data, names = adult.load_adult(), adult.adult_columns()
    kept = [place for place, name in enumerate(names) if not name.startswith(SPOUSES)]
    column = len(kept)  # the last one

    def columns(x: Tensor) -> Tensor:
        return torch.cat([x[:, kept], x[:, [names.index(name) for name in MARRIED]].sum(1, keepdim=True)], 1)

    def held(x: Tensor, value: float) -> Tensor:
        return torch.cat([x[:, :column], torch.full_like(x[:, column:], value)], 1)

    def flipped(x: Tensor) -> Tensor:
        return torch.cat([x[:, :column], 1 - x[:, column:]], 1)

    x, y = columns(data.train[0]), data.train[1]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    learned, some = order[: 3 * len(x) // 4], order[3 * len(x) // 4 :][:n_pairs]

    def trained(inputs: Tensor) -> nn.Module:
        torch.manual_seed(seed)
        model = adult.network(inputs.shape[1])
        adult.train(model, (inputs, y[learned]), epochs=10, seed=seed)
        return model

    test = columns(data.test[0])
    pairs = x[some], flipped(x[some]), y[some]
    rows = Comparison(trained(x[learned]), pairs, [(test, flipped(test), data.test[1])], seed)

    def erased(model: nn.Module) -> nn.Module:
        people = [(pairs[0], pairs[2])]
        return ColumnErasure(columns=[column]).repair(model, people, progress=False).model

    rows.allow_what_costs(rows.add("erased, no pairs", lambda: erased(rows.model)))
    consistent = rows.add_unlearned()
    rows.add("consistency, then erased", lambda: erased(consistent))
    mean = float(pairs[0][:, column].mean())
    rows.add(
        "labels, column held",
        lambda: erased(rows.tuned(held(pairs[0], mean), pairs[2], epochs=10, learning_rate=1e-4)),
    )
    rows.add("retrained without", lambda: erased(trained(held(x[learned], 0.0))))
    return rows.rows


def colors(seed: int, n_pairs: int) -> list[Row]:
    data = digits.colored_digits("digits", 0.05, seed)
    torch.manual_seed(seed)
    model = digits.network()
    loader: digits.Loader = DataLoader(TensorDataset(*data.train[:2]), batch_size=128, shuffle=True)
    order = torch.Generator().manual_seed(seed)
    fine_tune(model, loader, epochs=15, learning_rate=3e-3, random_state=order, progress=False)
    images, y = data.test[0].view(-1, 10, *data.test[0].shape[1:]), data.test[1][::10]  # each in all ten colours
    other = (y + torch.randint(1, 10, y.shape, generator=torch.Generator().manual_seed(seed))) % 10
    some = torch.arange(n_pairs)
    pairs = images[some, y[:n_pairs]], images[some, other[:n_pairs]], y[:n_pairs]
    rest, labels = images[n_pairs:], y[n_pairs:].repeat_interleave(10)
    shifts = [(rest.flatten(0, 1), rest.roll(shift, 1).flatten(0, 1), labels) for shift in range(1, 10)]
    rows = Comparison(model.eval(), pairs, shifts, seed)
    rows.allow_what_costs(
        rows.add("grey, no pairs", lambda: nn.Sequential(Channel(lambda x: x.mean(1, keepdim=True)), model))
    )
    rows.add("brightest, no pairs", lambda: nn.Sequential(Channel(lambda x: x.amax(1, keepdim=True)), model))
    rows.add_unlearned()
    rows.add("consistency, 3 x the rate", lambda: rows.unlearned(layers="all", learning_rate=3e-3, **rows.limits))
    rows.add(
        "labels, both sides",
        lambda: rows.tuned(torch.cat(pairs[:2]), pairs[2].repeat(2), epochs=30, learning_rate=1e-3),
    )
    return rows.rows


WORKS: dict[str, tuple[Callable[[int, int], list[Row]], int]] = {"married": (married, 2000), "digits": (colors, 200)}


def run(case: tuple[str, int]) -> list[Row]:
    work, seed = case
    rows, n_pairs = WORKS[work]
    return [{"work": work, "seed": seed, **row} for row in rows(seed, n_pairs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=list(WORKS), nargs="+", default=list(WORKS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    add_jobs(parser)
    add_rows(parser)
    arguments = parser.parse_args()
    cases = [(work, seed) for work in arguments.work for seed in arguments.seeds]
    frame = pd.DataFrame([row for rows in sweep(run, cases, arguments.jobs) for row in rows])
    save_rows(frame, arguments.rows)
    for work in arguments.work:
        part = frame[frame["work"] == work].drop(columns=["work", "seed"])
        print(f"\n{work}, {WORKS[work][1]} pairs, {INTERVAL}")
        print(with_intervals(part, "method", decimals={"CPU s": 1}).to_string(), flush=True)


if __name__ == "__main__":
    main()
