"""Sums and rows give what least squares on all rows gives, with the ridge written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fairtrim.reconstruction.least_squares import RIDGES, MomentSums, Ridge, Rows, Sums


def _data(rows: int = 40, groups: int = 2, width: int = 5, outputs: int = 6) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(rows, groups, width, generator=generator).double() + 0.5
    t = torch.randn(rows, groups, outputs // groups, generator=generator).double() + 2 * u[..., :1]
    weight = torch.rand(rows, generator=generator).double() + 0.5
    return u, t, weight, torch.arange(rows) % 5 == 0


def _written_out(u: Tensor, t: Tensor, weight: Tensor, ridge: Tensor, constant: bool) -> tuple[Tensor, Tensor]:
    """One group: rows √w (u, 1) and √λ e_j, by lstsq."""
    root = (weight / weight.sum()).sqrt()[:, None]
    design = torch.cat([u, torch.ones(len(u), 1) if constant else torch.zeros(len(u), 1)], 1).double() * root
    penalty = torch.cat([torch.diag(ridge.sqrt()), torch.zeros(len(ridge), 1)], 1).double()
    targets = torch.cat([t * root, torch.zeros(len(ridge), t.shape[1])])
    solution = torch.linalg.lstsq(torch.cat([design, penalty]), targets, driver="gelsd").solution
    return solution[:-1].T, solution[-1]


def _diagonal(ridge: Ridge, moments: Tensor, rows: int) -> Tensor:
    """As it is documented: a tenth of a row's share more, and of each input's own moment one mean row more."""
    mean = moments.mean(-1, keepdim=True)
    return (ridge.strength + 0.1 / rows) * (moments + mean / rows if ridge.unit == "own" else mean.expand_as(moments))


@pytest.mark.parametrize("kind", [MomentSums, Rows])
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("ridge", [Ridge(0.01, "mean"), Ridge(0.3, "own")], ids=str)
def test_the_fit_is_ridge_regression_on_all_rows(kind: type[Sums], constant: bool, ridge: Ridge) -> None:
    u, t, weight, held = _data()
    sums = kind(2, 5, 6, constant=constant)
    for part in torch.arange(len(u)).split(17):
        sums.add(u[part], t[part], weight[part], held[part])
    fit = sums.fit([ridge])
    assert fit.ridge == ridge and fit.change is not None and sums.rows == len(u)
    share = weight / weight.sum()
    moments = torch.einsum("r,rgd->gd", share, u.square())
    before = after = 0.0
    for g in range(2):
        diagonal = _diagonal(ridge, moments, 40)[g]
        change, shift = _written_out(u[:, g], t[:, g], weight, diagonal, constant)
        torch.testing.assert_close(fit.change[g], change)
        if constant:
            assert fit.constant is not None
            torch.testing.assert_close(fit.constant[g], shift)
        fitted = ~held
        own = torch.einsum("r,rd->d", weight[fitted] / weight[fitted].sum(), u[fitted, g].square())
        scale = _diagonal(ridge, own[None], 40)[0] if kind is MomentSums else diagonal
        change, shift = _written_out(u[fitted, g], t[fitted, g], weight[fitted], scale, constant)
        tested = (weight * held) / (weight * held).sum()
        before += float(tested @ t[:, g].square().sum(1))
        after += float(tested @ (t[:, g] - u[:, g] @ change.T - shift).square().sum(1))
    assert (fit.before, fit.after) == pytest.approx((before, after))
    assert (fit.constant is None) != constant


@pytest.mark.parametrize("kind", [MomentSums, Rows])
def test_noise_is_left_alone(kind: type[Sums]) -> None:
    generator = torch.Generator().manual_seed(1)
    u, t = torch.randn(20, 1, 19, generator=generator), torch.randn(20, 1, 2, generator=generator)
    sums = kind(1, 19, 2, constant=True)
    sums.add(u, t - t.mean(0), torch.ones(20), torch.arange(20) % 5 == 0)
    fit = sums.fit([ridge for ridge in RIDGES if ridge.strength < 0.01])
    assert fit.change is None and fit.ridge is None and fit.before == fit.after


@pytest.mark.parametrize("kind", [MomentSums, Rows])
def test_inputs_that_are_always_zero_are_no_harm(kind: type[Sums]) -> None:
    u, t, weight, held = _data()
    u[..., 2] = 0
    sums = kind(2, 5, 6, constant=True)
    sums.add(u, t, weight, held)
    fit = sums.fit(RIDGES)
    assert fit.change is not None and bool((fit.change[..., 2].abs() < 1e-9).all())
    assert bool(torch.isfinite(fit.change).all())


@pytest.mark.parametrize("kind", [MomentSums, Rows])
@pytest.mark.parametrize("seed", range(8))
def test_an_input_that_is_almost_always_zero_gets_no_enormous_weight(kind: type[Sums], seed: int) -> None:
    """A dying ReLU: in one of twenty rows it is a little above 0, and what is lacking there is its only explanation."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(20, 1, 4, generator=generator).double()
    u[..., 3] = torch.where(torch.arange(20) == 1, 1e-3, 0.0)[:, None]
    t = u[..., :2] + 0.3 * torch.randn(20, 1, 2, generator=generator)
    sums = kind(1, 4, 2, constant=True)
    sums.add(u, t, torch.ones(20), torch.arange(20) % 5 == 0)
    fit = sums.fit(RIDGES)
    assert fit.change is not None and float(fit.change[..., 3].abs().max()) < 2
