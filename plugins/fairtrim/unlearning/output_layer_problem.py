"""The output layer as a convex problem of its own: closed-form gradients and Hessian of cross-entropy, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairtrim.errors import InputError
from fairtrim.measures.scores import two_or_more

__all__ = ["OutputLayerProblem", "damped_cholesky"]

_MAX_PARAMETERS = 20_000  # a Hessian of 3.2 GB


def damped_cholesky(matrix: Tensor, *, damping: float = 1e-8) -> tuple[Tensor, float]:
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
    identity = torch.eye(len(matrix), dtype=matrix.dtype)
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
        ones = torch.ones(len(features), 1, dtype=torch.float64)
        return cls(torch.cat([features.cpu().double(), ones], 1), target.cpu(), single_logit, weight, ridge)

    def _weights(self) -> Tensor:
        own = torch.ones(len(self.target), dtype=torch.float64) if self.weight is None else self.weight.double()
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
            theta: (K, D + 1).

        Returns:
            The Hessian.

        Raises:
            InputError: It would not fit in memory.
        """
        n_parameters = theta.numel()
        if n_parameters > _MAX_PARAMETERS:
            raise InputError(
                f"the output layer has {n_parameters} parameters, whose Hessian takes {8e-9 * n_parameters**2:.0f} GB; "
                f"expected at most {_MAX_PARAMETERS}: use layers='all', which needs no Hessian in memory"
            )
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
        return hessian + self.ridge * torch.eye(len(theta) * width, dtype=torch.float64)

    def solve(self, theta: Tensor, right: Tensor) -> Tensor:
        """H⁻¹ applied to something of θ's shape, damped as far as needed.

        Args:
            theta: Where the Hessian is taken, (K, D + 1).
            right: (K, D + 1).

        Returns:
            (K, D + 1).
        """
        factor, _ = damped_cholesky(self.hessian(theta))
        return torch.cholesky_solve(right.reshape(-1, 1), factor).reshape(theta.shape)

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
            step = self.solve(theta, gradient)
            loss, size = self.loss(theta), 1.0
            while float(self.loss(theta - size * step)) > float(loss) and size > 1e-8:
                size /= 2
            if size <= 1e-8:
                break
            theta = theta - size * step
        return theta
