"""A language model repaired on pairs of sentences: what changed, measured on pairs and texts held out from the edit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fairtrim.printing import Block, Printed, TextTable, figure, flag_lines, movement, percent

__all__ = ["SentenceFigures", "SentenceRepair"]

_SHOWN = {
    "mean |ΔLL|, nats": "bias",
    "rms ΔLL, nats": "rms",
    "mean |ΔLL| / spread of LL": "relative",
    "perplexity of texts": "perplexity",
}


@dataclass(frozen=True)
class SentenceFigures:
    """What a language model makes of pairs and texts.

    Attributes:
        bias: Mean |ΔLL| over pairs, ΔLL = LL(x) − LL(x̄) of shared tokens, in nats.
        rms: Root of the mean of (ΔLL)².
        relative: Mean |ΔLL| over the standard deviation of LL over all sentences of the pairs.
        preferred: Share of pairs with LL(x) > LL(x̄).
        perplexity: Of the texts.
        differences: ΔLL of each pair, (N,).

    Example:
        >>> import torch
        >>> figures = SentenceFigures.of(torch.tensor([[-3.0, -4.0], [-8.0, -5.0]]), perplexity=20.0)
        >>> figures.bias, figures.preferred
        (2.0, 0.5)
    """

    bias: float
    rms: float
    relative: float
    preferred: float
    perplexity: float
    differences: Tensor

    @classmethod
    def of(cls, likelihoods: Tensor, perplexity: float) -> SentenceFigures:
        """From LL of both sides of each pair.

        Args:
            likelihoods: (N, 2).
            perplexity: Of the texts.

        Returns:
            The figures.
        """
        change = likelihoods[:, 0] - likelihoods[:, 1]
        bias = float(change.abs().mean())
        return cls(
            bias,
            float(change.square().mean().sqrt()),
            bias / max(float(likelihoods.std(correction=0)), 1e-12),
            float((change > 0).double().mean()),
            perplexity,
            change,
        )

    def is_finite(self) -> bool:
        """Whether all figures are numbers.

        Returns:
            Whether they are.
        """
        return all(math.isfinite(value) for value in self.told().values())

    def change_from(self, before: SentenceFigures) -> tuple[float, float]:
        """Change of the mean |ΔLL| of the same pairs.

        Args:
            before: The earlier figures.

        Returns:
            The change, and the half-width of its 95 % interval, in nats.
        """
        change = self.differences.abs() - before.differences.abs()
        return float(change.mean()), 1.96 * float(change.std(correction=0)) / math.sqrt(len(change))

    def falls_beyond_chance(self, before: SentenceFigures) -> bool:
        """Whether the mean |ΔLL| of the same pairs fell by more than its 95 % interval allows for none.

        Args:
            before: The earlier figures.

        Returns:
            Whether it did.
        """
        change, half = self.change_from(before)
        return change + half < 0

    def told(self) -> dict[str, float]:
        """The figures by name.

        Returns:
            All but the differences.
        """
        names = ("bias", "rms", "relative", "preferred", "perplexity")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class SentenceRepair(Printed):
    """A language model after ``CounterfactualUnlearning.repair(model, pairs, texts=...)``; print it.

    Attributes:
        model: The repaired model; a copy unless ``inplace``, and as it was given where no candidate was better.
        candidate: Number of the candidate in the history; 0 is the model as it was given.
        before: Figures of the given model on the held-out pairs and texts.
        after: The same of the repaired model.
        edited_layers: Names of the layers whose weights were edited, or of the blocks; empty for the whole network.
        flags: What a user should know.
        history: One entry a candidate: its number, strength and figures.
        edit_rows: Rows of the pairs that were edited on.
        selection_rows: Rows that selected; none where other pairs did.
        n_texts: Sentences of the texts that were edited on, and that the perplexity is of.

    Example:
        >>> import torch
        >>> before = SentenceFigures.of(torch.tensor([[-3.0, -5.0], [-8.0, -5.0]]), perplexity=20.0)
        >>> after = SentenceFigures.of(torch.tensor([[-3.0, -4.0], [-8.0, -6.0]]), perplexity=20.2)
        >>> rows = torch.arange(2)
        >>> repair = SentenceRepair(nn.Identity(), 1, before, after, ("down",), (), (), rows, rows, (9, 9))
        >>> repair.bias_before, repair.bias
        (2.5, 1.5)
        >>> repair.verdict().split(";")[0]
        'Mean |ΔLL| of 2 held-out pairs falls from 2.500 to 1.500 nats, beyond chance'
    """

    model: nn.Module
    candidate: int
    before: SentenceFigures
    after: SentenceFigures
    edited_layers: tuple[str, ...]
    flags: tuple[str, ...]
    history: tuple[dict[str, Any], ...]
    edit_rows: Tensor
    selection_rows: Tensor
    n_texts: tuple[int, int]

    @property
    def bias(self) -> float:
        """Mean |ΔLL| of the repaired model over the held-out pairs.

        Returns:
            In nats.
        """
        return self.after.bias

    @property
    def bias_before(self) -> float:
        """The same of the given model.

        Returns:
            In nats.
        """
        return self.before.bias

    @property
    def perplexity(self) -> float:
        """Of the repaired model, on the held-out texts.

        Returns:
            The perplexity.
        """
        return self.after.perplexity

    @property
    def perplexity_before(self) -> float:
        """The same of the given model.

        Returns:
            The perplexity.
        """
        return self.before.perplexity

    def verdict(self) -> str:
        """What the repair changed of the held-out pairs and texts.

        Returns:
            One sentence.
        """
        before, after = self.before, self.after
        change, error = after.change_from(before)
        beyond = "beyond" if abs(change) > error else "within"
        return (
            f"Mean |ΔLL| of {len(after.differences):,} held-out pairs {movement(before.bias, after.bias)} nats, "
            f"{beyond} chance; perplexity of {self.n_texts[1]:,} held-out texts "
            f"{movement(before.perplexity, after.perplexity, digits=2)}."
        )

    def blocks(self) -> Iterator[Block]:
        """The verdict, the figures before and after, how it was chosen, and flags."""
        yield self.verdict()
        before, after = self.before, self.after
        change, error = after.change_from(before)
        interval = figure(change, change - error, change + error, sign=True)
        rows: list[tuple[str, ...]] = []
        for name, what in _SHOWN.items():
            one, other = getattr(before, what), getattr(after, what)
            moved = interval if what == "bias" else figure(other - one, sign=True)
            rows.append((name, figure(one), figure(other), moved, percent(other / one - 1, sign=True) if one else "-"))
        preferred = [percent(share) for share in (before.preferred, after.preferred)]
        rows.append(("x preferred to x̄", *preferred, percent(after.preferred - before.preferred, sign=True), ""))
        yield TextTable(("held out", "before", "after", "change, 95 %", "in percent"), rows)
        selected = f"{len(self.selection_rows):,} others" if len(self.selection_rows) else "pairs of their own"
        how = (
            f"candidate {self.candidate} of {len(self.history)}; edited on {len(self.edit_rows):,} pairs, selected on "
            f"{selected}; texts {self.n_texts[0]:,} and {self.n_texts[1]:,}"
        )
        yield "\n".join([how, f"layers: {', '.join(self.edited_layers)}"] if self.edited_layers else [how])
        yield from flag_lines(self.flags)
