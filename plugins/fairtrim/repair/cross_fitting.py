"""Cross-fitting: everybody edits and everybody judges, nobody a network that was edited on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fairtrim.data.validation_set import ValidationSet
from fairtrim.measures.objective import Objective
from fairtrim.measures.scores import positive_margin

from .candidates import Candidates
from .working_copy import WorkingCopy

__all__ = ["OutOfFold"]


class _HeldOut(Candidates):
    """Keeps what the candidates of one fold say of the people who were held out."""

    def __init__(self, working: WorkingCopy, people: ValidationSet, objective: Objective, max_seconds: float | None):
        super().__init__(working, people, objective, max_seconds=max_seconds)
        self.said: list[Tensor] = []

    def offer(self, **detail: Any) -> None:
        scores = self.working.scores(self.selection)
        self.history.append(detail)
        if scores.shape[1] <= 2:
            self.said.append(positive_margin(scores)[:, None])
        else:  # who have no threshold: labels are all that counts
            self.said.append(scores.argmax(1).masked_fill(~torch.isfinite(scores).all(1), -1))


class OutOfFold:
    """What candidates say of people by whom they were not edited, candidate by candidate.

    The k-th candidate of every fold is edited in the same way on other people, so that what the k-th ones say of those
    held out judges the k-th one that is edited on all.

    Args:
        folds: The fold of each person, (N,).
        people: Everybody.
        n_classes: K.
    """

    def __init__(self, folds: Tensor, people: ValidationSet, n_classes: int) -> None:
        self._folds, self._people, self._n_classes = folds, people, n_classes
        self._said: list[list[Tensor]] = []

    @property
    def n_folds(self) -> int:
        """How many there are."""
        return int(self._folds.max()) + 1

    def rest(self, fold: int) -> ValidationSet:
        """The people who are edited on in a fold."""
        return self._people.take((self._folds != fold).nonzero().squeeze(1))

    def run(
        self,
        working: WorkingCopy,
        edit: Callable[[WorkingCopy, Candidates], None],
        objective: Objective,
        max_seconds: float | None,
    ) -> None:
        """Edit the next fold's copy, and keep what its candidates say of the fold.

        Args:
            working: A copy whose people are the rest.
            edit: The method.
            objective: What to maximise.
            max_seconds: Time budget of the fold, or None.
        """
        held_out = self._people.take((self._folds == len(self._said)).nonzero().squeeze(1))
        candidates = _HeldOut(working, held_out, objective, max_seconds)
        edit(working, candidates)
        self._said.append(candidates.said)

    def __len__(self) -> int:
        """Candidates that all folds have."""
        return min(len(said) for said in self._said)

    def __getitem__(self, candidate: int) -> Tensor:
        """What is said of everybody by candidates that they were not part of, (N, 1) margins or (N, K)."""
        parts = [said[candidate] for said in self._said]
        joined = torch.empty(len(self._people), *parts[0].shape[1:], dtype=parts[0].dtype, device="cpu")
        for fold, part in enumerate(parts):
            joined[self._folds == fold] = part
        if joined.is_floating_point():
            return joined
        given = F.one_hot(joined.clamp_min(0), self._n_classes).double()
        return given.masked_fill((joined < 0)[:, None], torch.nan)
