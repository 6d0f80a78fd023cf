"""What pictures are drawn of, and looks at what was drawn."""

from __future__ import annotations

import math
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fairtrim import (
    BiasInfluence,
    ChangedSamples,
    DamageTable,
)


def check_drawn(ax: Any) -> None:
    """Nothing goes wrong when the picture is drawn."""
    ax.figure.canvas.draw()


INFLUENCE = BiasInfluence(torch.tensor([0.5, -1.0, 2.0, 0.0, 0.25, 3.0, -0.1]), 0.3, "counterfactual_bias")


def some_images(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(7, *shape, generator=torch.Generator().manual_seed(len(shape)))


def insets_of(ax: Any) -> list[Any]:
    return list(ax.child_axes)


def scaled(picture: np.ndarray) -> np.ndarray:
    return (picture - picture.min()) / (picture.max() - picture.min())


CRITERIA = ["worst-group", "mean-damage", "tail-risk"]


RATIOS = [0.25, 0.5]


PEOPLE = ["Female, Black", "Male", "Nobody"]


def sweep_frame(
    posts: tuple[str, ...] = ("none",),
    *,
    seeds: tuple[int, ...] = (0, 3),
    people: list[str] = PEOPLE,
    intervals: bool = True,
) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    entries: list[dict[str, Any]] = []
    for seed in seeds:
        runs = [("dense", 0.0, "none"), *((c, r, p) for c in CRITERIA for r in RATIOS for p in posts)]
        for criterion, ratio, post in runs:
            entry: dict[str, Any] = {
                "seed": seed,
                "criterion": criterion,
                "pruning_ratio": ratio,
                "post_processor": post,
            }
            entry |= {
                "parameters": 1000 - int(900 * ratio),
                "parameters_ratio": (1 - ratio) ** 2,
                "latency_ratio": math.nan,
            }
            names = [
                "accuracy",
                "worst_group_accuracy",
                "equalized_odds_difference",
                *(f"accuracy[{name}]" for name in people),
            ]
            for name in names:
                entry[name] = value = math.nan if name.endswith("[Nobody]") else float(generator.uniform(0.2, 0.8))
                if intervals:
                    metric, bracket, rest = name.partition("[")
                    entry[f"{metric}_low{bracket}{rest}"] = value - 0.03
                    entry[f"{metric}_high{bracket}{rest}"] = value + 0.05
            entries.append(entry)
    return pd.DataFrame(entries)


def damage_table(
    sizes: dict[str, int], names: tuple[Any, ...] = ("Female", ("Male", "Black"), "Other"), scale: float = 1.0
) -> DamageTable:
    generator = torch.Generator().manual_seed(0)
    shape = (len(names), sum(sizes.values()))
    slope, curvature = (torch.randn(shape, generator=generator).double() * scale for _ in range(2))
    counts = torch.arange(1.0, len(names) + 1).double() * 700
    loss = torch.full((len(names),), 100 * scale).double()  # more than any damage takes away
    return DamageTable(names, ("sex",), sizes, counts, loss, slope, curvature.abs())


def some_changed(shape: tuple[int, ...] = (3, 5, 4), n_samples: int = 6, *, sensitive: bool = True) -> ChangedSamples:
    target = np.arange(n_samples) % 3
    before = np.where(np.arange(n_samples) % 2, (target + 1) % 3, target)
    after = np.where(np.arange(n_samples) % 4 == 3, target, (target + 2) % 3)
    return ChangedSamples(
        row=np.arange(n_samples)[::-1] * 2,
        target=target,
        before=before,
        after=after,
        probability_before=np.linspace(0.9, 0.6, n_samples),
        probability_after=np.full(n_samples, 0.1),
        sensitive={"sex": np.array(["Female", "Male"] * n_samples)[:n_samples], "race": np.array(["White"] * n_samples)}
        if sensitive
        else {},
        inputs=torch.rand(n_samples, *shape, generator=torch.Generator().manual_seed(0)),
        n_samples=2 * n_samples,
        people={("Female", "White"): n_samples, ("Male", "White"): n_samples},
    )
