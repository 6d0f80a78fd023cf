"""What a miner found: a score for each training sample, and the ways to cut a set from the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import WeightedRandomSampler

from fairtrim.arguments import RandomState, random_generator, renamed, require_known, require_number
from fairtrim.errors import InputError
from fairtrim.printing import Block, Printed, TextTable, figure, percent

__all__ = ["MinedSamples", "check_cut", "require_some_mined"]

MAD_TO_DEVIATION = 1.4826
"""A normal distribution's standard deviation, in median absolute deviations."""

_CLASSES = 10  # that are printed
_WAYS = ("threshold", "share_per_class", "deviations", "fraction_of_range")


@dataclass(frozen=True)
class MinedSamples(Printed):
    """One score for each training sample, by its index in the dataset; print it.

    Attributes:
        scores: Larger = more likely bias-conflicting, (N,) float64.
        target: Labels, (N,).
        cut: The miner's own decision, (N,) bool; None where it has none and ``conflicting`` decides.
        levels: Shares of the channels that were gone, (L,), first 0; of a miner that prunes.
        confidence: p(y_n | x_n) at each of them, (L, N) float64; None of one that doesn't.

    Raises:
        InputError: The scores are not finite or not (N,), or the others are not of N samples.

    Example:
        >>> mined = MinedSamples(torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3]), target=torch.tensor([0, 0, 0, 1, 1]))
        >>> chosen = mined.conflicting(share_per_class=0.4)
        >>> chosen.tolist()
        [False, True, False, True, False]
        >>> mined.sample_weights(chosen).tolist()  # the two make half of the draws: 5 / 4 each
        [0.8333333333333333, 1.25, 0.8333333333333333, 1.25, 0.8333333333333333]
    """

    scores: Tensor
    target: Tensor
    cut: Tensor | None = None
    levels: Sequence[float] = ()
    confidence: Tensor | None = None

    def __post_init__(self) -> None:
        scores = torch.as_tensor(self.scores, device="cpu").detach().double()
        if scores.ndim != 1 or not len(scores) or not bool(torch.isfinite(scores).all()):
            raise InputError(
                f"the scores have shape {tuple(scores.shape)}, and {int((~scores.isfinite()).sum())} are not finite; "
                "expected a finite number for each sample, (N,)"
            )
        object.__setattr__(self, "scores", scores)
        object.__setattr__(self, "target", torch.as_tensor(self.target, device="cpu"))
        for name in ("cut", "confidence"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, given.detach().cpu())
        shapes = {
            "target": (self.target, scores.shape),
            "cut": (self.cut, scores.shape),
            "confidence": (self.confidence, (len(self.levels), len(scores))),
        }
        for name, (given, expected) in shapes.items():
            if given is not None and given.shape != expected:
                raise InputError(f"{name} has shape {tuple(given.shape)}; expected {tuple(expected)}")

    def __repr__(self) -> str:
        low, high = float(self.scores.min()), float(self.scores.max())
        n_classes = len(torch.unique(self.target))
        return f"MinedSamples({len(self.scores)} samples, {n_classes} classes, scores {low:.3g} to {high:.3g})"

    def verdict(self) -> str:
        """How many samples are taken for bias-conflicting.

        Returns:
            One sentence.
        """
        chosen = self.conflicting()
        share = percent(float(chosen.double().mean()))
        return f"{int(chosen.sum()):,} of {len(chosen):,} samples ({share}) are taken for bias-conflicting."

    def blocks(self) -> Iterator[Block]:
        """The verdict, and a row a class."""
        yield self.verdict()
        chosen = self.conflicting()
        rows = []
        for label in torch.unique(self.target).tolist():
            of_class = self.target == label
            scores = self.scores[of_class]
            n_chosen = int(chosen[of_class].sum())
            ends = [figure(float(score)) for score in (scores.min(), scores.median(), scores.max())]
            rows.append((str(label), figure(len(scores)), figure(n_chosen), percent(n_chosen / len(scores)), *ends))
        heads = ("class", "samples", "mined", "share", "lowest score", "median", "highest")
        by = "by the miner's own decision" if self.cut is not None else "beyond half of the way to the highest score"
        yield TextTable(heads, rows[:_CLASSES], title=f"Mined {by}; conflicting(...) cuts otherwise.")
        if len(rows) > _CLASSES:
            yield f"and {len(rows) - _CLASSES} more classes"

    def conflicting(
        self,
        *,
        threshold: float | None = None,
        share_per_class: float | None = None,
        deviations: float | None = None,
        fraction_of_range: float | None = None,
    ) -> Tensor:
        """The samples taken for bias-conflicting.

        Args:
            threshold: Those with a score above it.
            share_per_class: This share of every class, those with the highest scores (at least one a class).
            deviations: Those k robust deviations above the median of their class: score > median + k·1.4826·MAD.
            fraction_of_range: Those beyond this part of the way from the median of their class to its highest score.
                The default where the miner has no decision of its own, with 0.5.

        Returns:
            (N,) bool.

        Raises:
            InputError: More than one way is asked for, or a number is out of range.
        """
        given = {
            "threshold": threshold,
            "share_per_class": share_per_class,
            "deviations": deviations,
            "fraction_of_range": fraction_of_range,
        }
        asked = check_cut(given)
        if not asked and self.cut is not None:
            return self.cut
        ((way, value),) = (asked or {"fraction_of_range": 0.5}).items()
        if way == "threshold":
            return self.scores > value
        cuts = {"share_per_class": _highest, "deviations": _outlying, "fraction_of_range": _beyond}
        return self._by_class(lambda scores: cuts[way](scores, value))

    def _by_class(self, choose: Callable[[Tensor], Tensor]) -> Tensor:
        chosen = torch.zeros(len(self.scores), dtype=torch.bool, device="cpu")
        for label in torch.unique(self.target).tolist():
            members = self.target == label
            chosen[members] = choose(self.scores[members])
        return chosen

    def sample_weights(self, conflicting: Tensor | None = None, *, mass: float = 0.5, soft: bool = False) -> Tensor:
        """Sampling weights that show the conflicting samples more often.

        Args:
            conflicting: The mined set, (N,) bool; default ``conflicting()``.
            mass: Share of the draws that fall on the mined set: ½ makes it half of every batch.
            soft: Weights ∝ score in place of a set.

        Returns:
            (N,) float64 of mean 1.

        Raises:
            InputError: No sample was mined, or all were.
        """
        if soft:
            weights = self.scores - min(0.0, float(self.scores.min()))
            if not float(weights.sum()) > 0:
                raise InputError("every score is 0; there is nothing to weight by")
            return weights / weights.mean()
        if not 0 < mass < 1:
            raise InputError(f"mass={mass}; expected a share between 0 and 1")
        chosen = self.conflicting() if conflicting is None else conflicting
        require_some_mined(chosen)
        chosen = chosen.cpu()
        if len(chosen) != len(self.scores):
            raise InputError(f"{len(chosen)} flags for {len(self.scores)} samples; expected one for each")
        n_chosen = int(chosen.sum())
        n_others = len(chosen) - n_chosen
        weights = torch.full((len(chosen),), (1 - mass) / n_others, dtype=torch.float64, device="cpu")
        weights[chosen] = mass / n_chosen
        return weights * len(chosen)

    @renamed(generator="random_state")
    def sampler(
        self, weights: Tensor | None = None, *, random_state: RandomState | None = None
    ) -> WeightedRandomSampler:
        """A sampler for a DataLoader over the same dataset, in any training loop.

        Args:
            weights: Default ``sample_weights()``.
            random_state: Seed, or a torch.Generator; None leaves it to torch.

        Returns:
            It draws N samples an epoch, with replacement.
        """
        weights = self.sample_weights() if weights is None else weights
        generator = None if random_state is None else random_generator(random_state)
        with torch.device("cpu"):  # where it keeps them
            return WeightedRandomSampler(weights.tolist(), len(weights), generator=generator)


def check_cut(cut: Mapping[str, float | None]) -> dict[str, float]:
    """Refuse what ``MinedSamples.conflicting`` would refuse, before anything is mined.

    Example:
        >>> check_cut({"share_per_class": 0.1, "threshold": None})
        {'share_per_class': 0.1}
    """
    if not isinstance(cut, Mapping):
        raise InputError(f"cut is a {type(cut).__name__}; expected a dict such as {{'share_per_class': 0.1}}")
    require_known("cut", cut, _WAYS)
    asked = {name: value for name, value in cut.items() if value is not None}
    if len(asked) > 1:
        raise InputError(f"expected one of {'=, '.join(_WAYS[:-1])}= and {_WAYS[-1]}=, not several")
    for name, value in asked.items():
        is_share = name in ("share_per_class", "fraction_of_range")
        require_number(name, value, remedy=", a share between 0 and 1" if is_share else "")
        if is_share and not 0 < value < 1:
            raise InputError(f"{name}={value}; expected a share between 0 and 1")
        if name == "deviations" and value <= 0:
            raise InputError(f"deviations={value}; expected a positive number")
    return asked


def require_some_mined(conflicting: Tensor, remedy: str = "conflicting(share_per_class=...)") -> None:
    """Refuse a mined set, (N,) bool, that is empty, everything, or no flags; ``remedy`` says how to choose it."""
    if not isinstance(conflicting, Tensor) or conflicting.ndim != 1 or conflicting.dtype != torch.bool:
        shaped = isinstance(conflicting, Tensor)
        got = f"{conflicting.dtype} of shape {tuple(conflicting.shape)}" if shaped else type(conflicting).__name__
        raise InputError(f"the mined set is {got}; expected one flag for each sample, (N,) torch.bool")
    n_chosen = int(conflicting.sum())
    if n_chosen in (0, len(conflicting)):
        found = "no sample was" if n_chosen == 0 else f"all {n_chosen} samples were"
        raise InputError(
            f"{found} mined as bias-conflicting; expected some: choose the set with {remedy}, with the share you expect"
        )


def _highest(scores: Tensor, share: float) -> Tensor:
    n_chosen = max(1, round(share * len(scores)))
    chosen = torch.zeros(len(scores), dtype=torch.bool, device="cpu")
    chosen[scores.argsort(descending=True, stable=True)[:n_chosen]] = True
    return chosen


def _outlying(scores: Tensor, k: float) -> Tensor:
    median = scores.quantile(0.5)
    deviation = MAD_TO_DEVIATION * (scores - median).abs().quantile(0.5)
    return scores > median + k * max(float(deviation), 1e-6)


def _beyond(scores: Tensor, share: float) -> Tensor:
    median = scores.quantile(0.5)
    return scores > median + max(share * float(scores.max() - median), 1e-6)
