"""The output layer as a convex problem of its own: closed-form gradients and Hessian of cross-entropy, in float64.

Where the Hessian is large it is never made: its products with a direction are closed form, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fairtrim.errors import InputError
from fairtrim.measures.scores import two_or_more

from .conjugate_gradients import TOLERANCE, Solution, conjugate_gradients

__all__ = ["OutputLayerProblem", "centred_rows", "damped_cholesky"]

NearlyInverse = Callable[[Tensor, float], Tensor]

_MAX_PARAMETERS = 2_000  # of a Hessian that is made, 32 MB
_DAMPING = 1e-8  # of the mean of its diagonal
_FORCING = 1e-3  # relative residual of a step of Newton's method, which measures where it got by itself


def centred_rows(theta: Tensor) -> Tensor:
    """An output layer less the mean over its scores, (K, D + 1), which no probability minds; a single logit stays.

    Args:
        theta: (K, D + 1).

    Returns:
        The same shape.

    Example:
        >>> centred_rows(torch.tensor([[1.0, 2.0], [3.0, 0.0]])).tolist()
        [[-1.0, 1.0], [1.0, -1.0]]
    """
    return theta - theta.mean(0) if len(theta) > 1 else theta


def damped_cholesky(matrix: Tensor, *, damping: float = _DAMPING) -> tuple[Tensor, float]:
    """Cholesky factor of a positive semidefinite matrix, with damping that grows until it succeeds.

    Args:
        matrix: (P, P), symmetric.
        damping: First damping, in units of the mean of the diagonal.

    Returns:
        The factor, and what was added to the diagonal.

    Raises:
        InputError: The matrix is not finite.

    Example:
        >>> factor, added = damped_cholesky(torch.zeros(2, 2, dtype=torch.float64))
        >>> added > 0
        True
    """
    if not bool(torch.isfinite(matrix).all()):
        raise InputError("the Hessian is not finite; expected finite features and scores")
    scale = float(matrix.diagonal().mean().clamp(min=1e-12))
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device="cpu")
    added = damping * scale
    while True:
        factor, info = torch.linalg.cholesky_ex(matrix + added * identity)
        if int(info) == 0:
            return factor, added
        added *= 10


@dataclass(frozen=True)
class OutputLayerProblem:
    """Mean cross-entropy of a linear layer on fixed features, plus a ridge.

    The parameters θ are the weight and the bias side by side, (K, D + 1); for a single logit K = 1. The Hessian is
    1/N Σ_n w_n (diag p_n − p_n p_nᵀ) ⊗ h_n h_nᵀ (p (1 − p) for a single logit).

    Attributes:
        features: With a column of ones, (N, D + 1) float64.
        target: Labels, (N,).
        single_logit: Whether the layer gives one logit.
        weight: Sample weights, (N,), or None.
        ridge: Of ½ ridge ‖θ‖², as weight decay has it.

    Example:
        >>> layer = OutputLayerProblem.of(torch.eye(2), torch.tensor([0, 1]))
        >>> round(float(layer.loss(torch.zeros(2, 3, dtype=torch.float64))), 4)
        0.6931
    """

    features: Tensor
    target: Tensor
    single_logit: bool = False
    weight: Tensor | None = None
    ridge: float = 0.0

    @classmethod
    def of(
        cls,
        features: Tensor,
        target: Tensor,
        *,
        single_logit: bool = False,
        weight: Tensor | None = None,
        ridge: float = 0.0,
    ) -> OutputLayerProblem:
        """From features without the column of ones.

        Args:
            features: (N, D).
            target: Labels, (N,).
            single_logit: Whether the layer gives one logit.
            weight: Sample weights, (N,), or None.
            ridge: At least 0.

        Returns:
            The problem.
        """
        ones = torch.ones(len(features), 1, dtype=torch.float64, device="cpu")
        return cls(torch.cat([features.cpu().double(), ones], 1), target.cpu(), single_logit, weight, ridge)

    def _weights(self) -> Tensor:
        own = (
            torch.ones(len(self.target), dtype=torch.float64, device="cpu")
            if self.weight is None
            else self.weight.double()
        )
        return own / own.sum()

    def scores(self, theta: Tensor) -> Tensor:
        """Scores, (N, K).

        Args:
            theta: (K, D + 1).

        Returns:
            The scores.
        """
        return self.features @ theta.T

    def loss(self, theta: Tensor) -> Tensor:
        """The mean loss with the ridge.

        Args:
            theta: (K, D + 1).

        Returns:
            A scalar.
        """
        return self._weights() @ self.sample_losses(theta) + self.ridge / 2 * theta.square().sum()

    def sample_losses(self, theta: Tensor) -> Tensor:
        """Cross-entropy of each sample, (N,).

        Args:
            theta: (K, D + 1).

        Returns:
            The losses.
        """
        scores = self.scores(theta)
        return torch.nn.functional.cross_entropy(two_or_more(scores), self.target, reduction="none")

    def residuals(self, theta: Tensor) -> Tensor:
        """Derivatives of each sample's loss in its scores, (N, K); its gradient in θ is their outer product with h.

        Args:
            theta: (K, D + 1).

        Returns:
            p − onehot(y).
        """
        scores = self.scores(theta)
        if self.single_logit:
            return scores.sigmoid() - self.target[:, None].double()
        return scores.softmax(1) - torch.nn.functional.one_hot(self.target, scores.shape[1]).double()

    def gradient(self, theta: Tensor) -> Tensor:
        """Gradient of the loss, (K, D + 1).

        Args:
            theta: (K, D + 1).

        Returns:
            The gradient.
        """
        return (self._weights()[:, None] * self.residuals(theta)).T @ self.features + self.ridge * theta

    def hessian(self, theta: Tensor) -> Tensor:
        """Hessian of the loss, (K (D + 1), K (D + 1)), rows of θ after one another.

        Args:
            theta: (K, D + 1), small enough for its Hessian: see ``is_small``.

        Returns:
            The Hessian.
        """
        scores, width = self.scores(theta), self.features.shape[1]
        if self.single_logit:
            curvature = (scores.sigmoid() * (1 - scores.sigmoid()))[:, :, None]
        else:
            p = scores.softmax(1)
            curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        weighted = self._weights()[:, None, None] * curvature
        blocks = [
            [(self.features * weighted[:, k, j, None]).T @ self.features for j in range(len(theta))]
            for k in range(len(theta))
        ]
        hessian = torch.cat([torch.cat(row, 1) for row in blocks])
        return hessian + self.ridge * torch.eye(len(theta) * width, dtype=torch.float64, device="cpu")

    @staticmethod
    def is_small(theta: Tensor) -> bool:
        """Whether the Hessian is small enough to be made.

        Args:
            theta: (K, D + 1).

        Returns:
            Whether it is.
        """
        return theta.numel() <= _MAX_PARAMETERS

    def _probabilities(self, theta: Tensor) -> Tensor:
        scores = self.scores(theta)
        return scores.sigmoid() if self.single_logit else scores.softmax(1)

    def product(self, theta: Tensor) -> Callable[[Tensor], Tensor]:
        """Products of the Hessian, which is not made: V -> Σ_n w_n (diag p_n − p_n p_nᵀ) V h_n h_nᵀ + ridge V.

        Args:
            theta: Where the Hessian is taken, (K, D + 1).

        Returns:
            A function of directions (K, D + 1), in N K D operations.

        Example:
            >>> layer = OutputLayerProblem.of(torch.eye(2), torch.tensor([0, 1]))
            >>> theta = torch.ones(2, 3, dtype=torch.float64)
            >>> expected = (layer.hessian(theta) @ theta.reshape(-1)).reshape(2, 3)
            >>> torch.allclose(layer.product(theta)(theta), expected)
            True
        """
        p, weights = self._probabilities(theta), self._weights()[:, None]

        def product(direction: Tensor) -> Tensor:
            moved = self.features @ direction.T
            mean = p * moved if self.single_logit else (p * moved).sum(1, keepdim=True)
            return (weights * p * (moved - mean)).T @ self.features + self.ridge * direction

        return product

    def mean_of_diagonal(self, theta: Tensor) -> float:
        """Mean of the Hessian's diagonal.

        Args:
            theta: Where the Hessian is taken, (K, D + 1).

        Returns:
            The mean.
        """
        p = self._probabilities(theta)
        curvature = (p * (1 - p)).sum(1) * self.features.square().sum(1)
        return float(self._weights() @ curvature) / theta.numel() + self.ridge

    def nearly_inverse(self, theta: Tensor, added: float, apart: Tensor | None = None) -> NearlyInverse:
        """About the inverse of H + added I + strength C ⊗ apart, C the centring of scores: it preconditions.

        It takes p and h for independent, E[diag p − p pᵀ] ⊗ E[h hᵀ], as K-FAC does (Martens and Grosse, 2015). The mean
        over the scores is in the null space of the first factor and of C, so that both have the same eigenvectors.

        Args:
            theta: Where the Hessian is taken, (K, D + 1).
            added: To the diagonal.
            apart: Moment of something that a penalty is on, (D + 1, D + 1).

        Returns:
            A function of (K, D + 1) and the strength.

        Raises:
            InputError: Features or scores are not finite.
        """
        p, weights = self._probabilities(theta), self._weights()
        spread = (weights[:, None] * p).T @ p
        spread = (weights @ p - spread) if self.single_logit else torch.diag(weights @ p) - spread
        moment = (weights[:, None] * self.features).T @ self.features
        if not bool(torch.isfinite(moment).all() and torch.isfinite(spread).all()):
            raise InputError("the Hessian is not finite; expected finite features and scores")
        s, u = torch.linalg.eigh(spread)
        s, added = s.clamp(min=0), added + self.ridge
        if apart is None:
            a, v = torch.linalg.eigh(moment)
            scale = torch.outer(s, a.clamp(min=0)) + added
            return lambda right, strength: u @ ((u.T @ right @ v) / scale) @ v.T
        typical = s.mean().clamp(min=1e-12)  # what is added goes into the second factor, as for a typical first one
        identity = torch.eye(len(moment), dtype=torch.float64, device="cpu")
        root = torch.linalg.cholesky(moment + added / typical * identity)
        lower = torch.linalg.solve_triangular(root, identity, upper=False)
        a, v = torch.linalg.eigh(lower @ apart @ lower.T)
        v, a = lower.T @ v, a.clamp(min=0)
        s = s.clamp(min=1e-2 * float(typical))
        return lambda right, strength: u @ ((u.T @ right @ v) / (s[:, None] + strength * a)) @ v.T

    def solver(
        self,
        theta: Tensor,
        *,
        damping: float = _DAMPING,
        apart: Tensor | None = None,
        tolerance: float = TOLERANCE,
    ) -> Callable[[Tensor, float], Solution]:
        """Solves with H + damping · mean of H's diagonal · I + strength C ⊗ apart, C the centring of scores.

        By preconditioned conjugate gradients on products with the Hessian, so that nothing of the Hessian's size is
        made; a solution says how good it is.

        Args:
            theta: Where the Hessian is taken, (K, D + 1).
            damping: In units of the mean of the diagonal.
            apart: Moment of something that a penalty is on, (D + 1, D + 1).
            tolerance: Relative residual at which the conjugate gradients stop.

        Returns:
            A function of the right side, (K, D + 1), and of the strength.

        Raises:
            InputError: Features or scores are not finite.
        """
        added, product = damping * max(self.mean_of_diagonal(theta), 1e-12), self.product(theta)
        nearly_inverse = self.nearly_inverse(theta, added, apart)

        def solved(right: Tensor, strength: float) -> Solution:
            def damped(direction: Tensor) -> Tensor:
                image = product(direction) + added * direction
                return image if apart is None else image + strength * centred_rows(direction) @ apart

            return conjugate_gradients(
                damped, right, precondition=lambda rest: nearly_inverse(rest, strength), tolerance=tolerance
            )

        return solved

    def solved(
        self, theta: Tensor, right: Tensor, *, damping: float = _DAMPING, tolerance: float = TOLERANCE
    ) -> Solution:
        """(H + damping · mean of H's diagonal · I)⁻¹ applied to something of θ's shape, of large layers by ``solver``.

        Args:
            theta: Where the Hessian is taken, (K, D + 1).
            right: (K, D + 1).
            damping: Of a small layer it grows until it is enough.
            tolerance: Relative residual at which the conjugate gradients stop.

        Returns:
            The solution, (K, D + 1), and how good it is.

        Raises:
            InputError: Features or scores are not finite.
        """
        if not self.is_small(theta):
            return self.solver(theta, damping=damping, tolerance=tolerance)(right, 0.0)
        factor, _ = damped_cholesky(self.hessian(theta), damping=damping)
        return Solution(torch.cholesky_solve(right.reshape(-1, 1), factor).reshape(theta.shape), 0.0, 0)

    def solve(self, theta: Tensor, right: Tensor) -> Tensor:
        """H⁻¹ applied to something of θ's shape, damped as far as needed.

        Args:
            theta: Where the Hessian is taken, (K, D + 1).
            right: (K, D + 1).

        Returns:
            (K, D + 1); of a large layer a RuntimeWarning tells if it is rough.
        """
        solution = self.solved(theta, right)
        solution.warn_if_rough("the step of the output layer", "take a larger ridge")
        return solution.value

    def refitted(self, theta: Tensor, *, tolerance: float = 1e-10, max_steps: int = 50) -> Tensor:
        """Newton's method from θ, with steps halved until the loss falls.

        Args:
            theta: Start, (K, D + 1).
            tolerance: Largest entry of the gradient at which to stop.
            max_steps: At most so many steps.

        Returns:
            (K, D + 1).
        """
        for _ in range(max_steps):
            gradient = self.gradient(theta)
            if float(gradient.abs().max()) < tolerance:
                break
            step = self.solved(theta, gradient, tolerance=_FORCING).value
            loss, size = self.loss(theta), 1.0
            while float(self.loss(theta - size * step)) > float(loss) and size > 1e-8:
                size /= 2
            if size <= 1e-8:
                break
            theta = theta - size * step
        return theta
