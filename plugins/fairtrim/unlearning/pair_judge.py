"""Judges candidates of counterfactual unlearning by the selection pairs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fairtrim.errors import InputError
from fairtrim.measures.counterfactual_bias import CounterfactualBias, counterfactual_bias
from fairtrim.measures.differentiable_bias import balancing_weights
from fairtrim.measures.objective import Decisions
from fairtrim.measures.scores import labels_of
from fairtrim.repair.candidates import Candidates
from fairtrim.repair.judging import GroupJudge
from fairtrim.repair.working_copy import WorkingCopy

__all__ = ["PairJudge"]

_TIE = 1e-9  # of the relative change, in flips: less than a single one


class PairJudge:
    """Judges a candidate by the selection pairs at the network's own threshold, and keeps the reasons against it."""

    def __init__(
        self,
        working: WorkingCopy,
        candidates: Candidates,
        *,
        performance: str,
        min_people: int,
        max_performance_loss: float,
        max_cross_entropy_rise: float,
    ) -> None:
        self.working, self.objective, self.measure = working, candidates.objective, candidates.objective.measure
        self.max_performance_loss, self.max_cross_entropy_rise = max_performance_loss, max_cross_entropy_rise
        self.people, self.flipped = candidates.selection, candidates.selection.flipped()
        self.given: tuple[CounterfactualBias, float, Tensor] | None = None
        self.reasons: list[str] = []
        self.over: list[tuple[float, float, float]] = []
        weight = self.people.mass
        if performance == "balanced_accuracy":
            weight = balancing_weights(self.people.target, working.n_classes, weight)
        self.share = weight / weight.sum()
        self.performance = GroupJudge(self.objective, self.people, min_people)

    @property
    def blind(self) -> bool:
        """Whether flips are to choose, and the selection pairs of the given network hold none."""
        return self.measure == "counterfactual_flips" and self.given is not None and not self.given[0].flips

    def beyond_limits(self) -> str:
        """What the mildest of the candidates that the limits alone keep out would give; nothing without any."""
        if not self.over:
            return ""
        rise, loss, size = min(self.over)
        return (
            f"; wider limits (max_cross_entropy_rise, max_performance_loss) allow a {self.measure} of "
            f"{size:.3f} at a cross-entropy {rise:+.3f} and a {self.objective.performance} {-loss:+.3f}, or less at "
            "more"
        )

    def __call__(self, scores: Tensor, *, own: bool = True) -> Decisions:
        """Figures of a candidate, and whether it may be chosen."""
        people = self.people
        judged = self.performance(scores, own=True)
        flipped = self.working.scores(self.flipped)
        if not bool(torch.isfinite(flipped).all()):
            if self.given is None:
                raise InputError(
                    "scores of the counterfactuals are not finite; look at what the flip makes of the inputs"
                )
            # a candidate that went too far is left out
            self.reasons.append("scores of the counterfactuals that are not finite")
            worst = torch.ones(1, dtype=torch.float64, device="cpu")
            never = torch.zeros(1, dtype=torch.bool, device="cpu")
            return replace(judged, bias=worst, size=worst, within=never, eligible=never)
        figures = counterfactual_bias(scores, flipped, people.target, people.weight)
        useful = float(judged.performance[0])
        right = (labels_of(scores) == people.target).double()
        if self.given is None:
            self.given = figures, useful, right
        given, useful_before, right_before = self.given
        # one person's changed decision moves the performance of a hundred by a point: count what is beyond chance
        chance = float((self.share * (right - right_before)).square().sum().sqrt())
        reasons = []
        if not useful >= useful_before - self.max_performance_loss - chance - 1e-12:
            reasons.append(
                f"a {self.objective.performance} that fell by more than {self.max_performance_loss:g} beyond chance"
            )
        if not figures.cross_entropy <= given.cross_entropy + self.max_cross_entropy_rise:
            reasons.append(f"a cross-entropy that rose by more than {self.max_cross_entropy_rise:g}")
        n_limits = len(reasons)
        # shrinking all logits lowers the measure, even at a better cross-entropy
        if (
            self.measure == "counterfactual_bias"
            and figures is not given
            and not figures.relative_change < given.relative_change * (1 - 1e-6)
        ):
            reasons.append("a change relative to the spread of the scores that is no smaller")
        if not bool(judged.eligible[0]):
            reasons.append("the same label for everybody")
        self.reasons.append(" and ".join(reasons))
        by_flips = self.measure == "counterfactual_flips"
        found = torch.tensor([figures.flips if by_flips else figures.mean_change], dtype=torch.float64, device="cpu")
        before = given.flips if by_flips else given.mean_change
        if 0 < n_limits == len(reasons) and float(found) < before:  # the limits alone keep it out
            rise = figures.cross_entropy - given.cross_entropy
            self.over.append((rise, useful_before - useful, float(found)))
        size = found
        if self.blind:  # how far scores still move tells candidates apart
            size = found + _TIE * figures.relative_change
        within = found < self.objective.bound
        return replace(judged, bias=found, size=size, within=within, eligible=judged.eligible & (not reasons))
