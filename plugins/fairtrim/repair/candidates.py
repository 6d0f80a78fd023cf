"""The record of the candidates that a post-processor offers: judged, the best one chosen, within a budget."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fairtrim.data.validation_set import ValidationSet
from fairtrim.errors import InputError
from fairtrim.measures.objective import Decisions, Objective, non_dominated
from fairtrim.measures.scores import positive_margin
from fairtrim.preservation import preserved_model

from .judging import GroupJudge, Judge
from .repaired_network import OperatingPoint
from .working_copy import WorkingCopy

__all__ = ["Candidates", "OutOfFoldScores"]


class OutOfFoldScores(Protocol):
    """Scores of the selection people by networks that were edited without them, candidate by candidate."""

    def __len__(self) -> int: ...

    def __getitem__(self, candidate: int) -> Tensor: ...


class Candidates:
    """The candidates that a method offers, and which of them is the best for the selection people.

    Args:
        working: The copy that the method edits.
        selection: People who select among candidates and thresholds.
        objective: What to maximise.
        min_people: Groups of fewer are not compared.
        max_seconds: Time budget, or None.
        patience: Stop after so many candidates without a better φ, or None.

    Attributes:
        history: An entry for each candidate.
        chosen: The best operating point so far.
        states: Changed weights of the candidates that may still be wanted, by number.
        flags: What a user should know.
        judge: Scores on the selection people -> what they can decide, by default at every threshold; or by themselves.
        performance_floor: Choose the least bias among decisions that perform at least so well, instead of by φ.
        out_of_fold: Scores of the selection people by networks that were edited without them, one entry a candidate
            after the first; None judges by the candidates' own.
        latest_wins: Choose the last candidate, whatever the others are.
    """

    def __init__(
        self,
        working: WorkingCopy,
        selection: ValidationSet,
        objective: Objective,
        *,
        min_people: int = 1,
        max_seconds: float | None = None,
        patience: int | None = None,
    ) -> None:
        self.working, self.selection, self.objective, self.patience = working, selection, objective, patience
        self.states: dict[int, dict[str, Tensor]] = {}
        self.history: list[dict[str, Any]] = []
        self.chosen: OperatingPoint | None = None
        self.flags: list[str] = []
        self.judge: Judge = GroupJudge(objective, selection, min_people)
        self.out_of_fold: OutOfFoldScores | None = None
        self.performance_floor: float | None = None
        self.latest_wins = False
        # candidate, threshold, bias and its size
        self._front = torch.empty(0, 4, dtype=torch.float64, device="cpu")
        self._front_performance = torch.empty(0, dtype=torch.float64, device="cpu")
        self._chosen_key = (-math.inf, -math.inf, -math.inf)
        self._last_gain = 0
        self._started = time.monotonic()
        self._deadline = math.inf if max_seconds is None else self._started + max_seconds

    def own_decisions(self, model: nn.Module | None = None) -> tuple[Decisions, Tensor]:
        """What a network's scores decide by themselves: the largest one, or the logit's sign.

        ``model`` is used for good in place of the working copy. Gives the one row of decisions about the selection
        people, and the scores.
        """
        if model is not None:
            self.working.use(model)
        with preserved_model(self.working.model):
            scores = self.working.scores(self.selection)
            return self.judge(scores, own=True), scores

    def scores_of(self, candidate: int) -> Tensor:
        """Out-of-fold scores of a candidate after the first."""
        assert self.out_of_fold is not None
        return self.out_of_fold[candidate - 1]

    def offer(self, **detail: Any) -> OperatingPoint | None:
        """Judge the working copy at every threshold on the selection people and keep what is worth keeping.

        Gives the candidate's best operating point; None if a score is not finite, which is flagged, or refused of the
        network as it was given. ``detail`` goes into the history.
        """
        number = len(self.history)
        entry = {"candidate": number, **detail, "seconds": time.monotonic() - self._started}
        cross_fitted = self.out_of_fold is not None and number > 0
        scores = own = self.working.scores(self.selection)
        if cross_fitted:
            scores = self.scores_of(number)
        if not bool(torch.isfinite(own).all() and torch.isfinite(scores).all()):
            if number == 0:
                raise InputError("scores are not finite; the network itself gives them: look at its inputs")
            self.history.append({**entry, "threshold": math.nan, "bias": math.nan, "performance": math.nan})
            self._flag("some candidates had scores that are not finite and were left out; take smaller steps")
            return None
        decisions = self.judge(scores)
        if cross_fitted:
            decisions = _without_constants(decisions, own)
        best, key = self._best(decisions)
        threshold, bias, useful, size = (
            float(column[best])
            for column in (decisions.threshold, decisions.bias, decisions.performance, decisions.size)
        )
        point = OperatingPoint(number, threshold, bias, useful, size)
        self.history.append(
            {**entry, "threshold": point.threshold, "bias": point.bias, "performance": point.performance}
        )
        if self.chosen is None or self.latest_wins or key > self._chosen_key:
            self.chosen, self._chosen_key, self._last_gain = point, key, number
        self._merge(number, decisions)
        alive = {0, self.chosen.candidate, *map(int, self._front[:, 0].tolist())}
        if number in alive:
            self.states[number] = self.working.changed()
        self.states = {candidate: state for candidate, state in self.states.items() if candidate in alive}
        return point

    def _best(self, decisions: Decisions) -> tuple[int, tuple[float, float, float]]:
        """Position of a candidate's best decisions, and what they are compared with those of other candidates by."""
        if self.performance_floor is None:
            best = self.objective.best(decisions)
            enough = bool(decisions.within[best])
        else:
            best = self.objective.least_biased(decisions, self.performance_floor)
            enough = float(decisions.performance[best]) >= self.performance_floor
        size, useful = float(decisions.size[best]), float(decisions.performance[best])
        if not bool(decisions.eligible[best]):
            return best, (-1.0, 0.0, 0.0)  # the first, the network as it was given, stays
        if self.performance_floor is None:
            return best, (1.0, useful, -size) if enough else (0.0, -size, useful)
        return best, (1.0, -size, useful) if enough else (0.0, useful, -size)

    def _merge(self, number: int, decisions: Decisions) -> None:
        """Take the candidate's points into the front; most are beaten by it and never sorted."""
        size, useful = decisions.size, decisions.performance
        place = torch.searchsorted(self._front[:, 3].contiguous(), size, right=True)
        best_before = torch.cat([useful.new_full((1,), -torch.inf), self._front_performance])[place]
        rows = (decisions.eligible & (useful > best_before)).nonzero().squeeze(1)
        if not len(rows):
            return
        points = torch.stack([torch.full_like(size, number), decisions.threshold, decisions.bias, size], 1)[rows]
        front, merged = torch.cat([self._front, points]), torch.cat([self._front_performance, useful[rows]])
        kept = non_dominated(front[:, 3], merged)
        self._front, self._front_performance = front[kept], merged[kept]

    def exhausted(self) -> bool:
        """Whether a budget is used up: time, or candidates without a gain."""
        if self.out_of_fold is None:
            late = time.monotonic() >= self._deadline
        else:  # the folds have spent their part of the budget; as many candidates as they all have are left to edit
            late = len(self.history) > len(self.out_of_fold)
        if late:
            self._flag("stopped by the time budget (max_seconds)")
            return True
        if self.patience is not None and len(self.history) - 1 - self._last_gain >= self.patience:
            self._flag(f"stopped early: {self.patience} candidates without a gain")
            return True
        return False

    def _flag(self, text: str) -> None:
        if text not in self.flags:
            self.flags.append(text)

    def front(self) -> tuple[OperatingPoint, ...]:
        """The points that none beats, by what is compared with the bound."""
        return tuple(
            OperatingPoint(int(candidate), threshold, bias, performance, size)
            for (candidate, threshold, bias, size), performance in zip(
                self._front.tolist(), self._front_performance.tolist(), strict=True
            )
        )


def _without_constants(decisions: Decisions, own: Tensor) -> Decisions:
    """Without thresholds at which the candidate itself, edited on everybody, gives all of them the same label."""
    if own.shape[1] > 2:
        constant = (own.argmax(1) == own[0].argmax()).all().expand_as(decisions.eligible)
    else:
        margin = positive_margin(own)
        constant = (decisions.threshold < margin.min()) | (decisions.threshold >= margin.max())
    return replace(decisions, constant=decisions.constant | constant, eligible=decisions.eligible & ~constant)
