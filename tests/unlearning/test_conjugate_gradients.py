"""Conjugate gradients against a direct solver, and that they measure what they reached."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fairtrim import InputError
from fairtrim.unlearning.conjugate_gradients import conjugate_gradients

DOUBLE = {"dtype": torch.float64}


def _system(size: int, condition: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, **DOUBLE)).Q
    matrix = basis @ torch.diag(torch.logspace(0, -float(torch.tensor(condition).log10()), size, **DOUBLE)) @ basis.T
    return (matrix + matrix.T) / 2, torch.randn(size, generator=generator, **DOUBLE)


@pytest.mark.parametrize(("size", "condition"), [(1, 1.0), (5, 10.0), (37, 1e3), (53, 1e6)])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_the_solution_is_the_direct_one(size: int, condition: float, preconditioned: bool) -> None:
    matrix, right = _system(size, condition)
    nearly = torch.linalg.inv(matrix + 0.1 / condition * torch.eye(size, **DOUBLE))
    nearly = (nearly + nearly.T) / 2
    found = conjugate_gradients(
        lambda v: matrix @ v, right, precondition=(lambda r: nearly @ r) if preconditioned else None
    )
    residual = float((right - matrix @ found.value).norm() / right.norm())
    assert residual <= 1e-8 and found.residual == pytest.approx(residual, abs=1e-12)
    assert found.why_rough() is None
    error = float((found.value - torch.linalg.solve(matrix, right)).norm() / found.value.norm())
    assert error <= condition * 1e-8
    if preconditioned:
        assert found.iterations <= 15


def test_any_shape_and_what_is_zero() -> None:
    matrix, right = _system(6, 10.0)
    shaped = conjugate_gradients(lambda v: (matrix @ v.reshape(-1)).reshape(2, 3), right.reshape(2, 3))
    flat = conjugate_gradients(lambda v: matrix @ v, right)
    torch.testing.assert_close(shaped.value.reshape(-1), flat.value, rtol=1e-7, atol=1e-9)
    nothing = conjugate_gradients(lambda v: matrix @ v, 0 * right)
    assert nothing.residual == 0 == nothing.iterations and not nothing.value.any()


@pytest.mark.parametrize("most", [1, 2, 7])
def test_too_few_iterations_say_what_was_reached(most: int) -> None:
    matrix, right = _system(23, 1e5)
    calls: list[int] = []
    found = conjugate_gradients(lambda v: matrix @ v, right, max_iterations=most, each=lambda: calls.append(1))
    assert found.iterations == most == len(calls)
    assert found.residual == pytest.approx(float((right - matrix @ found.value).norm() / right.norm()))
    assert f"after {most} iterations" in str(found.why_rough()) and f"{found.residual:.2g}" in str(found.why_rough())


def test_rounding_of_the_products_is_measured_and_ends_it() -> None:
    """The residual that is carried along would fall to nothing."""
    matrix, right = _system(31, 1e4)
    single = matrix.float()
    found = conjugate_gradients(lambda v: (single @ v.float()).double(), right)
    assert 1e-8 < found.residual < 1e-1 and found.iterations < 1000
    assert found.why_rough() is not None


def test_what_has_no_solution_comes_to_an_end() -> None:
    matrix = torch.diag(torch.tensor([1.0, 0.0], **DOUBLE))
    found = conjugate_gradients(lambda v: matrix @ v, torch.tensor([0.0, 1.0], **DOUBLE))
    assert found.residual == 1.0 and found.why_rough() is not None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    matrix, right = _system(5, 10.0)
    for product, b in (
        (lambda v: matrix @ v, right.clone().index_fill_(0, torch.tensor([2]), bad)),
        (lambda v: bad * v, right),
    ):
        with pytest.raises(InputError, match="not finite"):
            conjugate_gradients(product, b)
