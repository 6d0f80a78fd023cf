"""Parity over deciles of age: the differences between deciles penalised, or the covariance with the people's ranks.

    python -m benchmarks.continuous_feature
    python -m benchmarks.continuous_feature --seeds 0 --shapes rising

Simulated people whose labels lean on their age, rising with it or highest in its middle; a perceptron that sees a noisy
trace of what leans. 3,000 train, 1,500 are given to parity fine-tuning of the output layer (demographic parity between
deciles within .15), 20,000 test. Prints accuracy, the gap over deciles and the seconds of each draw.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor, nn

from fairtrim import ParityFineTuning, ValidationSet
from fairtrim_adapters.fairlearn import metric_frame

SHAPES = ("rising", "middle")
EPSILON = 0.15

People = tuple[Tensor, Tensor, Tensor]


def drawn(n_samples: int, seed: int, shape: str) -> People:
    """Features, labels and ages."""
    generator = torch.Generator().manual_seed(seed)
    age = 18 + 60 * torch.rand(n_samples, generator=generator) ** 1.3
    share = (age - 18) / 60
    lean = 2 * share - 1 if shape == "rising" else 1 - 4 * (share - 0.5).abs()
    noise = torch.randn(n_samples, 6, generator=generator)
    x = torch.cat([noise[:, :4], (lean + 0.5 * noise[:, 4])[:, None]], 1)
    y = (x[:, 0] + 0.7 * x[:, 1] + 0.9 * lean + 0.7 * noise[:, 5] > 0).long()
    return x, y, age


def trained(people: People) -> nn.Module:
    """A perceptron."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(people[0]), people[1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


def run(shape: str, seed: int) -> list[dict[str, object]]:
    """One draw: a row for the network as trained, and one for each penalty."""
    given = trained(drawn(3000, 10 + seed, shape))
    x, y, age = drawn(20000, 30 + seed, shape)
    by_value = ValidationSet.from_loader([drawn(1500, 20 + seed, shape)], bins=10, progress=False)
    deciles = ValidationSet.from_loader([(x, y, age)], bins=10, progress=False).group
    rows: list[dict[str, object]] = []

    def add(name: str, model: nn.Module, seconds: float) -> None:
        frame = metric_frame(model, [(x, y, deciles)], progress=False)
        gap, accuracy = frame.difference()["selection rate"], frame.overall["accuracy"]
        rows.append(
            {"age": shape, "seed": seed, "penalty on": name, "accuracy": accuracy, "gap": gap, "seconds": seconds}
        )

    add("(as trained)", given, 0.0)
    for name, people in (
        ("differences between deciles", replace(by_value, continuous=None)),
        ("covariance with ranks", by_value),
    ):
        start = time.perf_counter()
        repair = ParityFineTuning(epsilon=EPSILON).repair(given, people, progress=False)
        add(name, repair.model, time.perf_counter() - start)
    return rows


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    options = parser.parse_args()
    rows = [row for shape in options.shapes for seed in options.seeds for row in run(shape, seed)]
    print(pd.DataFrame(rows).round({"accuracy": 3, "gap": 3, "seconds": 1}).to_string(index=False))


if __name__ == "__main__":
    main()
