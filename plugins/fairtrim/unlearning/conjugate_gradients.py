"""Conjugate gradients that stop by what they measure: the residual of the solution itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fairtrim.errors import InputError

__all__ = ["TOLERANCE", "Solution", "conjugate_gradients"]

TOLERANCE = 1e-8
"""Relative residual at which a solution is one."""


class Solution(NamedTuple):
    """What solves A x = b, or comes as near as it was allowed to.

    Attributes:
        value: x.
        residual: ‖b − A x‖ / ‖b‖, computed from x itself.
        iterations: How many it took; 0 for a direct solution.

    Example:
        >>> Solution(torch.ones(2), residual=0.5, iterations=7).why_rough(0.1)
        'after 7 iterations of conjugate gradients the relative residual is 0.5; 0.1 was asked for'
    """

    value: Tensor
    residual: float
    iterations: int

    def why_rough(self, tolerance: float = TOLERANCE) -> str | None:
        """What was reached, if it isn't what was asked for.

        Args:
            tolerance: Relative residual that was asked for.

        Returns:
            The text, or None.
        """
        if self.residual <= tolerance:
            return None
        return (
            f"after {self.iterations} iterations of conjugate gradients the relative residual is {self.residual:.2g}; "
            f"{tolerance:g} was asked for"
        )

    def warn_if_rough(self, what: str, remedy: str, tolerance: float = TOLERANCE) -> None:
        """A RuntimeWarning with what was reached, if it isn't what was asked for.

        Args:
            what: Is rough.
            remedy: What to do.
            tolerance: Relative residual that was asked for.
        """
        if (why := self.why_rough(tolerance)) is not None:
            warnings.warn(f"{what} is rough: {why}; {remedy}", RuntimeWarning, stacklevel=4)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    right: Tensor,
    *,
    precondition: Callable[[Tensor], Tensor] | None = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = 1000,
    each: Callable[[], object] = lambda: None,
) -> Solution:
    """Solve A x = b with products A v alone, A symmetric and positive semidefinite.

    Hestenes and Stiefel's method, preconditioned. The residual that it carries along drifts from the true one, so
    that the true one is computed where it seems to be small enough. If it isn't, the method goes on from there, until
    that halves it no more: then rounding of the products is all that is left.

    Args:
        product: v -> A v, of any shape.
        right: b, of that shape.
        precondition: r -> about A⁻¹ r, symmetric and positive definite.
        tolerance: Relative residual ‖b − A x‖ / ‖b‖ at which to stop.
        max_iterations: At most so many products.
        each: Called after each iteration.

    Returns:
        The solution, with the residual that was reached: look at it.

    Raises:
        InputError: A product, or b, is not finite.

    Example:
        >>> matrix = torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
        >>> solution = conjugate_gradients(lambda v: matrix @ v, torch.tensor([1.0, 2.0], dtype=torch.float64))
        >>> [round(11 * value, 6) for value in solution.value.tolist()], solution.residual < 1e-8
        ([1.0, 7.0], True)
    """
    precondition = precondition or torch.clone
    x, norm, iteration = torch.zeros_like(right), float(right.norm()), 0
    rest, direction, size = right.clone(), torch.zeros_like(right), 1.0
    best = Solution(x, 1.0 if norm else 0.0, 0)

    def dot(one: Tensor, other: Tensor) -> float:
        found = float((one * other).sum())
        if not abs(found) < torch.inf:
            raise InputError("the Hessian is not finite; expected finite features and scores")
        return found

    dot(right, right)
    while iteration < max_iterations and best.residual > tolerance:
        near = precondition(rest)
        size, before = dot(rest, near), size
        direction = near + (size / before if iteration else 0.0) * direction
        image = product(direction)
        curvature = dot(direction, image)
        if not curvature > 0:  # nothing more to be had in floating point
            break
        x = x + size / curvature * direction
        rest = rest - size / curvature * image
        iteration += 1
        each()
        if float(rest.norm()) <= tolerance * norm or iteration == max_iterations:
            rest, direction, reached = right - product(x), torch.zeros_like(right), best.residual
            best = Solution(x, float(rest.norm()) / norm, iteration)
            if best.residual > reached / 2:
                break
    if best.iterations < iteration:
        best = Solution(x, float((right - product(x)).norm()) / norm, iteration)
    return best
