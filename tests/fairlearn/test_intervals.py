"""Intervals: each holds its own figure, and holds the truth about as often as it says."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import binomtest

from fairtrim import Predictions
from fairtrim_adapters.fairlearn import measurements
from fairtrim_adapters.fairlearn.intervals import change_interval, gap_interval, lowest_interval, rate_interval
from fairtrim_adapters.fairlearn.measurements import _Cells, column_of

ROUNDING = 1e-12
TRIALS = 400
LEAST = 0.95 - 3 * (0.95 * 0.05 / TRIALS) ** 0.5
"""Nominal coverage less three standard errors of a share of so many trials."""


def some_people(seed: int) -> Predictions:
    """Few or many, of one to six groups of any sizes, two or three classes, networks alike or not."""
    draw = np.random.default_rng(seed)
    n, n_groups, n_classes = int(draw.choice([1, 3, 20, 150])), int(draw.integers(1, 7)), int(draw.integers(2, 4))
    target = draw.integers(0, n_classes, n)
    label = {
        name: np.where(draw.random(n) < draw.choice([0.0, 0.1, 0.6]), draw.integers(0, n_classes, n), target)
        for name in ("dense", "pruned")
    }
    group = draw.choice(n_groups, n, p=draw.dirichlet(np.ones(n_groups)))
    return Predictions(target, label, {}, {"group": group.astype(str)}, n_classes)


@pytest.mark.parametrize("seed", range(40))
def test_every_interval_holds_its_own_figure(seed: int) -> None:
    row = measurements(some_people(seed), "pruned", "dense", n_boot=11, random_state=seed)
    columns = [column for column in row if column_of(column, "_low") in row]
    assert "accuracy" in columns and "accuracy_score_difference_change" in columns and "balanced_accuracy" in columns
    for column in columns:
        low, high = (row[column_of(column, end)] for end in ("_low", "_high"))
        if np.isnan(row[column]):
            assert np.isnan(low) and np.isnan(high), column
        else:
            assert low - ROUNDING <= row[column] <= high + ROUNDING, column
            assert low < high or "chang" in column or "balanced" in column, column  # nobody wrong of few isn't never


def test_rates_have_wilsons_interval() -> None:
    for k, n in ((0, 7), (3, 50), (1, 1), (99, 100)):
        expected = binomtest(k, n).proportion_ci(0.95, method="wilson")
        low, high = rate_interval(k, n)
        assert (low, high) == (pytest.approx(expected.low, abs=ROUNDING), pytest.approx(expected.high, abs=ROUNDING))


def test_the_gap_of_two_groups_is_newcombes_difference() -> None:
    """His own example: 56 of 70 against 48 of 80 has the difference .2 [.0524, .3339]."""
    assert gap_interval([([56, 48], [70, 80])]) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


@pytest.mark.parametrize(
    ("sizes", "rates"),
    [
        ([50, 50], [0.8, 0.8]),
        ([50, 50], [0.8, 0.7]),
        ([340, 60], [0.8, 0.8]),
        ([1000, 1000], [0.8, 0.78]),
        ([1000, 1000], [0.8, 0.7]),
        ([20] * 5, [0.8] * 5),
        ([240, 80, 40, 24, 16], [0.8, 0.775, 0.75, 0.725, 0.7]),
        ([400] * 5, [0.8, 0.8, 0.8, 0.8, 0.78]),
        ([400] * 5, [0.9, 0.8, 0.8, 0.8, 0.6]),
    ],
)
def test_coverage_of_gaps_and_of_the_lowest(sizes: list[int], rates: list[float]) -> None:
    counts = np.random.default_rng(0).binomial(sizes, rates, size=(TRIALS, len(sizes)))
    for truth, ends in (
        (max(rates) - min(rates), [gap_interval([(count, sizes)]) for count in counts]),
        (min(rates), [lowest_interval(count, sizes) for count in counts]),
    ):
        assert np.mean([low - ROUNDING <= truth <= high + ROUNDING for low, high in ends]) >= LEAST


@pytest.mark.parametrize("n", [10, 100, 1000])
@pytest.mark.parametrize(("gained", "lost"), [(0.02, 0.02), (0.05, 0.15), (0.0, 0.1)])
def test_coverage_of_changes_of_rates(n: int, gained: float, lost: float) -> None:
    counts = np.random.default_rng(1).multinomial(n, [gained, lost, 1 - gained - lost], size=TRIALS)
    low, high = change_interval(counts[:, 0], counts[:, 1], n)
    assert np.mean((low <= gained - lost) & (gained - lost <= high)) >= LEAST


def _rows(draw: np.random.Generator, sizes: list[int], right: npt.NDArray[np.float64]) -> Predictions:
    """People who are all of class 1; half of them have the same luck with both networks."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    luck = draw.random(len(group))
    other = np.where(draw.random(len(group)) < 0.5, luck, draw.random(len(group)))
    label = {"dense": (luck < right[0][group]).astype(int), "pruned": (other < right[1][group]).astype(int)}
    return Predictions(np.ones(len(group), dtype=np.int64), label, {}, {"group": group.astype(str)})


@pytest.mark.parametrize(
    ("sizes", "dense", "pruned"),
    [
        ([200, 200], [0.8, 0.7], [0.8, 0.6]),
        ([200, 200], [0.8, 0.7], [0.75, 0.65]),
        ([1000, 1000], [0.8, 0.7], [0.8, 0.78]),
        ([300] * 5, [0.8, 0.8, 0.8, 0.8, 0.7], [0.8, 0.8, 0.8, 0.8, 0.6]),
    ],
)
def test_coverage_of_changes_of_gaps(sizes: list[int], dense: list[float], pruned: list[float]) -> None:
    draw, trials = np.random.default_rng(2), 120
    truth = (max(pruned) - min(pruned)) - (max(dense) - min(dense))
    hits = 0
    for trial in range(trials):
        rows = _rows(draw, sizes, np.array([dense, pruned]))
        ends = _Cells(rows, "pruned", "dense", 200, trial).intervals(changed=True)
        low, high = ends["accuracy_score_difference_change"]
        hits += low <= truth <= high
    assert hits / trials >= 0.95 - 3 * (0.95 * 0.05 / trials) ** 0.5


def test_what_cannot_have_changed_has_no_minus() -> None:
    row = measurements(some_people(3), "dense", "dense", n_boot=5)
    ends = [row[column] for column in row if "_change_low" in column and not np.isnan(row[column])]
    assert ends and not np.signbit(ends).any() and not any(ends)
