"""One layer whose inputs go while the others take over, against regressions that begin anew each time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fairtrim.damage.input_moments import ReaderMoments
from fairtrim.selection import elimination as module
from fairtrim.selection.elimination import Elimination, eliminations

Floats = npt.NDArray[np.float64]
RIDGE = 0.01


def _layer(outputs: int, inputs: int, taps: int, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Weight, centred moments of dependent inputs, and their mean."""
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(40, inputs)) @ generator.normal(size=(inputs, inputs)) + 0.7
    centred = rows - rows.mean(0)
    return generator.normal(size=(outputs, inputs, taps)), centred.T @ centred / 40, rows.mean(0)


def _refitted(weight: Floats, moments: Floats, gone: list[int]) -> Floats:
    """The weight after the ridge regression of all inputs that are gone on all that are left."""
    left = [e for e in range(len(moments)) if e not in gone]
    of_left = moments[np.ix_(left, left)] + RIDGE * np.eye(len(left))
    mix = np.linalg.solve(of_left, moments[np.ix_(left, gone)])
    after = np.zeros_like(weight)
    after[:, left] = weight[:, left] + np.einsum("lg,ogt->olt", mix, weight[:, gone])
    return after


def _left_over(weight: Floats, moments: Floats, gone: list[int], unit: list[int]) -> float:
    """Mean square of what all outputs lack when one more unit is regressed on what is left."""
    others = [e for e in range(len(moments)) if e not in [*gone, *unit]]
    ridged = moments[np.ix_(others, others)] + RIDGE * np.eye(len(others))
    mix = np.linalg.solve(ridged, moments[np.ix_(others, unit)])
    back = np.zeros((len(moments), len(unit)))
    back[unit, range(len(unit))] = 1
    back[others] = -mix
    rest = back.T @ moments @ back
    return float(np.einsum("oit,ij,ojt->", weight[:, unit], rest, weight[:, unit]))


@pytest.mark.parametrize("fewest", [3, 128], ids=["made smaller", "kept whole"])
@pytest.mark.parametrize("waiting", [1, 5, 64], ids=lambda n: f"{n} waiting")
@pytest.mark.parametrize(
    ("taps", "units"),
    [
        (1, [[e] for e in range(9)]),
        (3, [[e] for e in (4, 2, 8, 0)]),  # the others are in no channel group
        (2, [[e, e + 4] for e in range(4)]),
        (1, [[0, 1, 2], [3, 4, 5], [6, 7, 8]]),
    ],
    ids=["single", "some stay", "pairs", "heads"],
)
def test_elimination_equals_regressions_from_scratch(
    taps: int, units: list[list[int]], waiting: int, fewest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every unit: the inverse of what is left, the refitted weights, and what each other unit would cost."""
    monkeypatch.setattr(module, "_WAITING", waiting)
    monkeypatch.setattr(module, "_FEWEST_INPUTS", fewest)
    weight, moments, mean = _layer(5, 9, taps)
    elimination = Elimination(weight, moments, mean, np.array(units), RIDGE)
    raw = moments + np.outer(mean, mean)
    whole = [np.einsum("oit,ij,ojt->", weight[:, u], raw[np.ix_(u, u)], weight[:, u]) for u in units]
    np.testing.assert_allclose(elimination.whole, whole, rtol=1e-10)
    gone: list[int] = []
    dropped: list[int] = []
    for step, number in enumerate([len(units) - 1, 0, *range(1, len(units) - 1)]):
        now = _refitted(weight, moments, gone)
        now[dropped] = 0
        wanted = [0 if set(u) <= set(gone) else _left_over(now, moments, gone, u) for u in units]
        np.testing.assert_allclose(elimination.left_over(), wanted, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(elimination.weight, now, atol=1e-9)
        left = [e for e in range(9) if e not in gone]
        inverse = np.linalg.inv(moments[np.ix_(left, left)] + RIDGE * np.eye(len(left)))
        np.testing.assert_allclose(elimination.inverse[np.ix_(left, left)], inverse, atol=1e-8 * np.abs(inverse).max())
        elimination.remove(number)
        gone += units[number]
        if step < 2:  # the outputs of a layer go in any order beside its inputs
            elimination.drop_outputs(np.array([step * 3]))
            dropped.append(step * 3)
    assert elimination.left_over().tolist() == [0.0] * len(units)


def test_a_twin_is_free_until_the_other_is_gone() -> None:
    weight, moments, mean = _layer(4, 6, 2)
    twins = [*range(6), 2]
    elimination = Elimination(weight[:, twins], moments[np.ix_(twins, twins)], mean[twins], np.arange(7)[:, None], 1e-9)
    before = elimination.left_over()
    alone = Elimination(weight, moments, mean, np.arange(6)[:, None], 1e-9).left_over()
    assert before[2] < 1e-6 * alone[2]
    assert before[6] < 1e-6 * alone[2]
    elimination.remove(6)
    # the twin carries the weights of both now
    np.testing.assert_allclose(elimination.left_over()[2], 4 * alone[2], rtol=1e-5)


def test_a_wide_layer_is_kept_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments, mean = _layer(3, 8, 1)
    exact = Elimination(weight, moments, mean, np.arange(8)[:, None], RIDGE)
    monkeypatch.setattr(module, "MAX_DOUBLE_INPUTS", 7)
    single = Elimination(weight, moments, mean, np.arange(8)[:, None], RIDGE)
    assert single.inverse.dtype == np.float32
    for unit in (3, 0):
        exact.remove(unit)
        single.remove(unit)
    np.testing.assert_allclose(single.left_over(), exact.left_over(), rtol=1e-3, atol=1e-4)


def _reader(columns: Any, **changed: Any) -> ReaderMoments:
    weight, moments, mean = (torch.from_numpy(a).unsqueeze(0) for a in _layer(3, 4, 1))
    values: dict[str, Any] = {"weight": weight, "moments": moments, "mean": mean, **changed}
    return ReaderMoments("layer", **values, n_rows=20, columns=np.array([columns]), outputs=np.full((1, 3), -1))


def test_units_of_a_block() -> None:
    (found,) = eliminations(_reader([7, -1, 5, 7]), RIDGE)
    assert found is None  # units of two sizes are no matrix of units
    assert eliminations(_reader([-1, -1, -1, -1]), RIDGE) == [None]
    (pairs,) = eliminations(_reader([7, 5, 5, 7]), RIDGE)
    assert pairs is not None
    assert pairs[1].tolist() == [5, 7]
    assert len(pairs[0].left_over()) == 2


def test_a_layer_that_reads_only_zeros() -> None:
    zeros = torch.zeros(1, 4, 4, dtype=torch.float64)
    (found,) = eliminations(_reader([0, 1, 2, 3], moments=zeros, mean=zeros[:, 0]), RIDGE)
    assert found is not None
    found[0].remove(1)
    assert found[0].left_over().tolist() == [0.0] * 4


def test_moments_that_rounding_left_indefinite() -> None:
    """No Cholesky factor: the general inverse does as well."""
    moments = np.array([[1.0, 1.5, 0.0], [1.5, 1.0, 0.0], [0.0, 0.0, 2.0]])
    elimination = Elimination(np.ones((1, 3, 1)), moments, np.zeros(3), np.arange(3)[:, None], 0.1)
    np.testing.assert_allclose(elimination.inverse @ (moments + 0.1 * np.eye(3)), np.eye(3), atol=1e-12)
