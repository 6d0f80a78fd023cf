"""Where a post-processor works: a copy of the network to edit, and the record of the candidates."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fairtrim.data.batches import Batch, ForwardFunction
from fairtrim.data.validation_set import ValidationSet
from fairtrim.devices import model_device
from fairtrim.errors import InputError, UnsupportedModelError
from fairtrim.measures.objective import Decisions, Objective, non_dominated
from fairtrim.network.output_layer import LinearHead, find_head
from fairtrim.network.scored_network import ScoredNetwork, check_network
from fairtrim.preservation import preserved_model

from .repaired_network import OperatingPoint

__all__ = ["Workspace"]


class Workspace:
    """A copy of the network that a method edits, and the record of the candidates it offers.

    Args:
        model: The caller's network; copied.
        edit: People whom the edit may see.
        selection: People who select among candidates and thresholds.
        objective: What to maximise.
        generator: Source of randomness.
        forward_fn: How to call the network.
        output_transform: How to find the scores.
        batch_size: Samples a forward pass.
        max_seconds: Time budget, or None.
        patience: Stop after so many candidates without a better φ, or None.
        progress: Show progress bars.

    Attributes:
        model: The working copy, in eval mode.
        head: Its output layer.
        n_classes: K.
        judge: Scores on the selection people -> what they can decide; by default at every threshold.
        judge_own: Scores on the selection people -> what they decide by themselves.
        performance_floor: Choose the least bias among decisions that perform at least so well, instead of by φ.

    Raises:
        UnsupportedModelError: The network can't be copied.
    """

    def __init__(
        self,
        model: nn.Module,
        edit: ValidationSet,
        selection: ValidationSet,
        objective: Objective,
        *,
        generator: torch.Generator,
        forward_fn: ForwardFunction | None = None,
        output_transform: Callable[[Any], Tensor] | None = None,
        batch_size: int = 1024,
        max_seconds: float | None = None,
        patience: int | None = None,
        progress: bool = True,
    ) -> None:
        check_network(model)
        try:
            self.model = copy.deepcopy(model)
        except (RuntimeError, TypeError) as error:
            raise UnsupportedModelError(
                f"the network can't be copied ({error}); expected one that copy.deepcopy takes: remove weight norms "
                "and tensors kept from a forward pass"
            ) from error
        self.model.zero_grad(set_to_none=True)
        self.model.eval()
        for module in self.model.modules():  # a network may override train()
            module.training = False
        self.edit, self.selection, self.objective = edit, selection, objective
        self.generator, self.batch_size, self.patience, self.progress = generator, batch_size, patience, progress
        self.forward_fn, self.output_transform = forward_fn, output_transform
        self.device = model_device(self.model)
        self._batches: dict[
            int, tuple[ValidationSet, list[Batch]]
        ] = {}  # the set is kept, so that its id is not reused
        self.head: LinearHead = find_head(self.network, self._kept_batches(selection)[0])
        self.n_classes = max(2, self.head.module.out_features)
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in self.model.buffers()]
        self.original = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self.states: dict[int, dict[str, Tensor]] = {}
        self.history: list[dict[str, Any]] = []
        self._front = torch.empty(0, 4, dtype=torch.float64)  # |bias| is column 3; candidate, threshold, bias first
        self._front_performance = torch.empty(0, dtype=torch.float64)
        self.chosen: OperatingPoint | None = None
        self.flags: list[str] = []
        self.judge: Callable[[Tensor], Decisions] = partial(self.decisions, selection)
        self.judge_own: Callable[[Tensor], Decisions] = self._judge_own
        self.performance_floor: float | None = None
        self._chosen_key = (-math.inf, -math.inf, -math.inf)
        self._last_gain = 0
        self._started = time.monotonic()
        self._deadline = math.inf if max_seconds is None else self._started + max_seconds

    def _kept_batches(self, people: ValidationSet) -> list[Batch]:
        if id(people) not in self._batches:
            self._batches[id(people)] = (people, [batch for _, batch in people.batches(self.batch_size, self.device)])
        return self._batches[id(people)][1]

    @property
    def network(self) -> ScoredNetwork:
        """The working copy, callable."""
        return ScoredNetwork(self.model, self.forward_fn, self.output_transform)

    def forward(self, batch: Batch) -> Tensor:
        """Scores of the working copy, (N, K).

        Args:
            batch: The batch.

        Returns:
            The scores, with gradients where they are enabled.
        """
        return self.network.scores(batch)

    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Penultimate features and scores of the working copy.

        Args:
            batch: The batch.

        Returns:
            (N, D) and (N, K).
        """
        return self.head.features(self.network, batch)

    def scores(self, people: ValidationSet) -> Tensor:
        """Scores of the working copy for all of some people.

        Args:
            people: The edit or the selection set.

        Returns:
            (N, K) float64 on the CPU.
        """
        with torch.no_grad():
            return torch.cat([self.forward(batch) for batch in self._kept_batches(people)]).cpu().double()

    def all_features(self, people: ValidationSet) -> Tensor:
        """Penultimate features of the working copy for all of some people.

        Args:
            people: The edit or the selection set.

        Returns:
            (N, D) float64 on the CPU.
        """
        with torch.no_grad():
            return torch.cat([self.features(batch)[0] for batch in self._kept_batches(people)]).cpu().double()

    def decisions(self, people: ValidationSet, scores: Tensor) -> Decisions:
        """Bias and performance at every threshold.

        Args:
            people: The edit or the selection set.
            scores: Their scores.

        Returns:
            One row a threshold.
        """
        return self.objective.decisions(
            scores, people.target, people.group, n_groups=people.n_groups, weight=people.weight, signed=people.sides
        )

    def _judge_own(self, scores: Tensor) -> Decisions:
        people = self.selection
        return self.objective.own_decisions(
            scores, people.target, people.group, n_groups=people.n_groups, weight=people.weight, signed=people.sides
        )

    def own_decisions(self, model: nn.Module | None = None) -> tuple[float, float, bool]:
        """What a network's scores decide by themselves: the largest one, or the logit's sign.

        Args:
            model: A network like the working copy, which is used for good; None for the working copy as it is.

        Returns:
            Bias and performance on the selection people, and whether everybody gets the same label.
        """
        if model is not None:
            with preserved_model(model):
                self.model = model
                decisions = self.judge_own(self.scores(self.selection))
        else:
            decisions = self.judge_own(self.scores(self.selection))
        return float(decisions.bias[0]), float(decisions.performance[0]), bool(decisions.constant[0])

    def restore(self) -> None:
        """Give the working copy its original weights back; optimizers' parameters stay the same objects."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.original[name])
            for buffer, value in self._buffers:
                buffer.copy_(value)

    def trainable(self) -> list[nn.Parameter]:
        """Parameters that the caller left trainable.

        Returns:
            The parameters.

        Raises:
            UnsupportedModelError: There is none.
        """
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not parameters:
            raise UnsupportedModelError("every parameter is frozen; expected some with requires_grad=True to edit")
        if any(parameter.dtype == torch.float16 for parameter in parameters):
            raise UnsupportedModelError(
                "the network is in float16, whose range is too small for fine-tuning; expected float32 or bfloat16: "
                "model.float()"
            )
        return parameters

    def offer(self, **detail: Any) -> OperatingPoint | None:
        """Judge the working copy at every threshold on the selection people and keep what is worth keeping.

        Args:
            detail: What the method wants in the history.

        Returns:
            The candidate's best operating point; None if a score is not finite, which is flagged.

        Raises:
            InputError: The network as it was given has scores that are not finite.
        """
        number = len(self.history)
        entry = {"candidate": number, **detail, "seconds": time.monotonic() - self._started}
        scores = self.scores(self.selection)
        if not bool(torch.isfinite(scores).all()):
            if number == 0:
                raise InputError("scores are not finite; the network itself gives them: look at its inputs")
            self.history.append({**entry, "threshold": math.nan, "bias": math.nan, "performance": math.nan})
            self._flag("some candidates had scores that are not finite and were left out; take smaller steps")
            return None
        decisions = self.judge(scores)
        best, key = self._best(decisions)
        point = OperatingPoint(
            number, float(decisions.threshold[best]), float(decisions.bias[best]), float(decisions.performance[best])
        )
        self.history.append(
            {**entry, "threshold": point.threshold, "bias": point.bias, "performance": point.performance}
        )
        if self.chosen is None or key > self._chosen_key:
            self.chosen, self._chosen_key, self._last_gain = point, key, number
        self._merge(number, decisions)
        alive = {0, self.chosen.candidate, *map(int, self._front[:, 0].tolist())}
        if number in alive:
            self.states[number] = {
                name: value.detach().cpu().clone()
                for name, value in self.model.named_parameters()
                if not torch.equal(value, self.original[name])
            }
        self.states = {candidate: state for candidate, state in self.states.items() if candidate in alive}
        return point

    def _best(self, decisions: Decisions) -> tuple[int, tuple[float, float, float]]:
        """Position of a candidate's best decisions, and what they are compared with those of other candidates by."""
        if self.performance_floor is None:
            best = self.objective.best(decisions)
            enough = abs(float(decisions.bias[best])) < self.objective.bound
        else:
            best = self.objective.least_biased(decisions, self.performance_floor)
            enough = float(decisions.performance[best]) >= self.performance_floor
        size, useful = abs(float(decisions.bias[best])), float(decisions.performance[best])
        if not bool(decisions.eligible[best]):
            return best, (-1.0, 0.0, 0.0)  # the first, the network as it was given, stays
        if self.performance_floor is None:
            return best, (1.0, useful, -size) if enough else (0.0, -size, useful)
        return best, (1.0, -size, useful) if enough else (0.0, useful, -size)

    def _merge(self, number: int, decisions: Decisions) -> None:
        """Take the candidate's points into the front; most are beaten by it and never sorted."""
        size, useful = decisions.bias.abs(), decisions.performance
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
        if time.monotonic() >= self._deadline:
            self._flag("stopped by the time budget (max_seconds)")
            return True
        if self.patience is not None and len(self.history) - 1 - self._last_gain >= self.patience:
            self._flag(f"stopped early: {self.patience} candidates without a gain")
            return True
        return False

    def _flag(self, text: str) -> None:
        if text not in self.flags:
            self.flags.append(text)

    @contextmanager
    def bar(self, total: int, description: str) -> Iterator[Any]:
        """A progress bar.

        Args:
            total: Number of steps.
            description: What they are.

        Yields:
            The bar.
        """
        with tqdm(total=total, desc=description, leave=False, disable=not self.progress) as shown:
            yield shown

    def front(self) -> tuple[OperatingPoint, ...]:
        """The points that none beats, by increasing bias."""
        return tuple(
            OperatingPoint(int(candidate), threshold, bias, performance)
            for (candidate, threshold, bias, _), performance in zip(
                self._front.tolist(), self._front_performance.tolist(), strict=True
            )
        )
