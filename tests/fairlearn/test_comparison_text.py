"""What a comparison prints: the verdict first, under 100 columns, intervals beside their figures; and as HTML."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fairtrim.comparison.predictions import Predictions
from fairtrim.printing import WIDTH
from fairtrim_adapters.fairlearn import Comparison, compare_predictions
from fairtrim_adapters.fairlearn.comparison_text import comparison_verdict


def compared(n_networks: int = 2, n_classes: int = 2, n_features: int = 1, n_boot: int | None = 100) -> Comparison:
    generator = np.random.default_rng(3)
    n = 3000
    target = generator.integers(n_classes, size=n)
    label = {
        f"network {k} of a long name"[: 9 + 10 * (k % 2)]: np.where(generator.random(n) < 0.9 - 0.05 * k, target, 0)
        for k in range(n_networks)
    }
    values = ("Female", "Male", "<None>")
    sensitive = {
        f"feature {s}": np.array([values[v] for v in generator.integers(2, size=n)]) for s in range(n_features)
    }
    return compare_predictions(Predictions(target, label, {}, sensitive, n_classes), n_boot=n_boot)


@pytest.mark.parametrize(("n_networks", "n_classes", "n_boot"), [(1, 2, None), (2, 2, 100), (5, 3, 100)])
def test_fits(n_networks: int, n_classes: int, n_boot: int | None) -> None:
    comparison = compared(n_networks, n_classes, n_boot=n_boot, n_features=2)
    text = str(comparison)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert " ".join(text.split()).startswith(comparison.verdict())
    assert "accuracy low" not in text and "accuracy high" not in text
    assert comparison._repr_html_().startswith("<p>" + comparison.verdict().replace("'", "&#x27;"))
    assert ("rates of single classes" in text) is (n_classes > 2)


def test_figures_stand_with_their_intervals() -> None:
    comparison = compared()
    text = str(comparison)
    name = list(comparison.frames)[1]
    for _, row in comparison.by_group.loc[name].iterrows():
        assert f"{row['accuracy']:.3f} [{row['accuracy low']:.3f}, {row['accuracy high']:.3f}]" in text
        low, high = row["change in accuracy low"], row["change in accuracy high"]
        assert f"{row['change in accuracy']:+.3f} [{low:+.3f}, {high:+.3f}]" in text
        assert f"  {int(row['people']):,}  " in text
    assert "3,000" in text and "3000" not in text and ".000]" not in text.replace("[0.000", "")
    gap = comparison.overall.loc[name]
    assert f"[{gap['equalized odds difference low']:.3f}, {gap['equalized odds difference high']:.3f}]" in text
    blocks = text.split("\n\n")
    assert all(block.count(name) <= 1 for block in blocks)


def test_one_network_and_groups_of_nobody() -> None:
    assert compared(1).verdict().startswith("One network, 'network 0': its accuracy is lowest for ")
    rows = pd.MultiIndex.from_tuples([("dense", "a")], names=["model", "team"])
    told = {0.5: "its accuracy is lowest for the only group, a, 0.500.", float("nan"): "no group has an accuracy."}
    for accuracy, words in told.items():
        table = pd.DataFrame({"accuracy": [accuracy]}, rows)
        assert comparison_verdict("dense", table, "") == f"One network, 'dense': {words}"


def test_a_crossing_of_nobody_is_not_shown() -> None:
    target = np.array([0, 1] * 20)
    sensitive = {"sex": np.array(["F", "M"] * 20), "race": np.array(["x", "y"] * 20)}
    comparison = compare_predictions(Predictions(target, {"dense": target, "pruned": 1 - target}, {}, sensitive))
    table = str(comparison).partition("Everybody")[0]
    assert "F, x" in table and "F, y" not in table
    assert comparison.by_group.loc[("pruned", "F", "y")].isna()["accuracy"]
    assert comparison.verdict() == "Against 'dense', pruned costs F, x and M, y 100.0 points of accuracy."


def test_flags_are_told_once_each() -> None:
    comparison = compare_predictions(
        Predictions(np.array([0, 1, 1]), {"dense": np.zeros(3, dtype=int)}, {}, {"team": np.array(["a", "b", "b"])})
    )
    text = str(comparison)
    for model, flag, detail in comparison.flags.to_numpy():
        assert f"{model}: {flag}: {detail}" in " ".join(text.split())
    assert "Flags<br>" in comparison._repr_html_()
