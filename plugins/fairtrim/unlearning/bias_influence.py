"""What each training sample does to the bias."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from fairtrim.printing import Block, Printed, TextTable, figure

__all__ = ["BiasInfluence"]

_SHOWN = 5  # samples at either end that are printed


@dataclass(frozen=True)
class BiasInfluence(Printed):
    """What each training sample does to the bias; print it.

    Attributes:
        scores: I(z_k) = −∇B(θ)ᵀ H⁻¹ ∇ℓ(z_k, θ), (N,) float64: the change of the bias for each unit of weight that
            sample k gains. Positive scores are harmful; leaving the sample out changes the bias by about −I(z_k) / N.
        bias: B(θ) where the influence was taken: after refitting the output layer, for ``layers="output"``.
        measure: Of the bias.

    Example:
        >>> import torch
        >>> influence = BiasInfluence(torch.tensor([0.5, -1.0, 0.0, 0.25]), 0.1, "counterfactual_bias")
        >>> influence.predicted_change(torch.tensor([0, 3]))  # −(0.5 + 0.25) / 4
        -0.1875
    """

    scores: Tensor
    bias: float
    measure: str

    def verdict(self) -> str:
        """How many samples raise the bias.

        Returns:
            One sentence.
        """
        harmful = self.most_harmful(len(self.scores))
        return (
            f"{len(harmful):,} of {len(self.scores):,} training samples raise {self.measure}, which is "
            f"{figure(self.bias)}; without all of them it is predicted to change by "
            f"{figure(self.predicted_change(harmful), sign=True)}, to first order."
        )

    def blocks(self) -> Iterator[Block]:
        """The verdict, and the samples that raise the bias most and lower it most."""
        yield self.verdict()
        number = min(_SHOWN, len(self.scores) // 2)
        order = self.scores.argsort(descending=True, stable=True)
        columns = [
            [(figure(row), f"{self.scores[row]:+.3g}") for row in rows.tolist()]
            for rows in (order[:number], order.flip(0)[:number])
        ]
        if number:
            cells = [(str(k + 1), *high, *low) for k, (high, low) in enumerate(zip(*columns, strict=True))]
            heads = ("rank", "raises: row", "score", "lowers: row", "score")
            title = f"Change of {self.measure} for each unit of weight that a sample gains; all are in scores."
            yield TextTable(heads, cells, title=title)

    def most_harmful(self, number: int) -> Tensor:
        """Positions of the samples that raise the bias most.

        Args:
            number: At most so many; samples that lower it are never among them.

        Returns:
            Positions in the training set, most harmful first.

        Example:
            >>> import torch
            >>> BiasInfluence(torch.tensor([0.1, -0.2, 0.3]), 0.1, "counterfactual_bias").most_harmful(3).tolist()
            [2, 0]
        """
        order = self.scores.argsort(descending=True, stable=True)[:number]
        return order[self.scores[order] > 0]

    def predicted_change(self, rows: Tensor) -> float:
        """First-order change of the bias if samples are left out, each on its own.

        Args:
            rows: Their positions.

        Returns:
            −1/N Σ I(z_k).
        """
        rows = rows.cpu() if isinstance(rows, Tensor) else rows
        return float(-self.scores[rows].sum() / len(self.scores))
