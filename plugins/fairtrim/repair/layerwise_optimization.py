"""Layer-wise optimisation: a black-box search over the entries of one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fairtrim.arguments import drawn_seed, require_number
from fairtrim.errors import InputError
from fairtrim.measures.objective import Objective
from fairtrim.registry import Standing

from .candidates import Candidates
from .judging import GroupJudge
from .post_processor import PostProcessor
from .working_copy import WorkingCopy

__all__ = ["LayerwiseOptimization"]

_FULL_COVARIANCE = 100  # entries; above, CMA-ES keeps a diagonal one: memory and time grow with the square

Search = Callable[[Callable[[npt.NDArray[np.float64]], float], int, int, int], None]
"""Minimises ``loss(entries)`` over [−1, 1]^d, from 0: (loss, d, evaluations, seed)."""


@dataclass(kw_only=True)
class LayerwiseOptimization(PostProcessor):
    """Intra-processing layer by layer (Savani, White, Govindarajulu, NeurIPS 2020, algorithm 2).

    For each of the last tensors in turn: minimise −φ on the edit people over the tensor's entries in the box
    θ ± width · std(θ), then restore the tensor. Whenever the search finds something better for the edit people it is
    offered to the selection people, who choose among all of it. The paper searches with gradient-boosted trees; here it
    is CMA-ES, at a tenth of the cost. Where no threshold is within the bound, φ = 0 says nothing about where to go: the
    search then minimises the bias (ours).

    Args:
        tensors: How many of the last parameters to search over; the authors' 5.
        width: Half width of the box in standard deviations of the tensor; the authors' 2.2.
        max_evaluations: Evaluations of φ for each tensor.
        max_sparsity: Of a tensor of more entries so many are drawn and searched over, the others stay; the authors'
            name and number. A late convolution has millions.

    Raises:
        InputError: A setting is out of range, or the library for the search is not installed.

    Example:
        >>> x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
        >>> people = [(x, (x[:, 0] > 0).long(), ["a", "b"] * 30)]
        >>> method = LayerwiseOptimization(tensors=1, max_evaluations=20, epsilon=0.2)
        >>> method.repair(torch.nn.Linear(3, 2), people, progress=False).within_bound
        True
    """

    name: ClassVar[str] = "layerwise-optimization"
    does: ClassVar[str] = "searches one weight tensor at a time for performance within the bound on the bias"
    when: ClassVar[str] = "to compare with what was published"
    source: ClassVar[str] = "Savani, White, Govindarajulu, NeurIPS 2020"
    link: ClassVar[str] = "https://arxiv.org/abs/2006.08564"
    standing: ClassVar[Standing] = "published"
    remark: ClassVar[str] = "with boosted trees; CMA-ES is ours"

    tensors: int = 5
    width: float = 2.2
    max_evaluations: int = 100
    max_sparsity: int = 100_000

    multiclass: ClassVar[bool] = True

    def check(self) -> None:
        """Refuse settings that can't work; see ``PostProcessor.check``."""
        super().check()
        require_number("max_sparsity", self.max_sparsity, at_least=1, whole=True)
        if min(self.tensors, self.max_evaluations) < 1 or not self.width > 0:
            raise InputError(
                f"tensors={self.tensors}, max_evaluations={self.max_evaluations}, width={self.width}; expected "
                "positive numbers"
            )

    def _edit(self, working: WorkingCopy, candidates: Candidates) -> None:
        self._search_tensors(working, candidates, _cma_search())

    def _search_tensors(self, working: WorkingCopy, candidates: Candidates, search: Search) -> None:
        judge = GroupJudge(candidates.objective, working.people, self.min_people)
        judge(working.scores(working.people))  # of the network as it was given
        named = [(name, p) for name, p in working.model.named_parameters() if p.is_floating_point()][-self.tensors :]
        with working.bar(len(named) * self.max_evaluations, "layer-wise optimisation") as bar:
            for name, parameter in reversed(named):
                original = parameter.detach().clone()
                try:
                    self._search_tensor(working, candidates, judge, search, name, parameter, bar)
                except _Exhausted:
                    return
                finally:
                    with torch.no_grad():
                        parameter.copy_(original)

    def _search_tensor(
        self,
        working: WorkingCopy,
        candidates: Candidates,
        judge: GroupJudge,
        search: Search,
        name: str,
        parameter: Tensor,
        bar: Any,
    ) -> None:
        original = parameter.detach().clone()
        entries_now = original.cpu().double()
        box = self.width * entries_now.std(correction=0)
        if not bool(box > 0):  # one entry, or all alike: in the size of the entries themselves
            box = self.width * entries_now.abs().mean().clamp(min=1e-3)
        best = self._loss(working, candidates.objective, judge)
        n_entries, chosen = parameter.numel(), None
        if n_entries > self.max_sparsity:
            n_entries = self.max_sparsity
            chosen = torch.randperm(parameter.numel(), generator=working.generator, device="cpu")[:n_entries].to(
                parameter.device
            )

        def loss(entries: npt.NDArray[np.float64]) -> float:
            nonlocal best
            if candidates.exhausted():
                raise _Exhausted
            move = (box * torch.from_numpy(np.ascontiguousarray(entries))).to(original)
            if chosen is not None:
                move = torch.zeros_like(original).flatten().index_copy(0, chosen, move)
            with torch.no_grad():
                parameter.copy_(original + move.reshape(original.shape))
            value = self._loss(working, candidates.objective, judge)
            if value < best:
                best = value
                candidates.offer(tensor=name, edit_loss=value)
            bar.update()
            return value

        seed = drawn_seed(working.generator)
        search(loss, n_entries, self.max_evaluations, seed)

    def _loss(self, working: WorkingCopy, objective: Objective, judge: GroupJudge) -> float:
        """−φ of the best threshold on the edit people; the least bias (at least 0) where none is within the bound."""
        scores = working.scores(working.people)
        if not bool(torch.isfinite(scores).all()):
            return 2.0  # worse than any bias
        decisions = judge(scores)
        best = objective.best(decisions)
        if bool(decisions.within[best] & decisions.eligible[best]):
            return -float(decisions.performance[best])
        return float(decisions.size[best])


class _Exhausted(Exception):  # noqa: N818  a signal to leave the library's search, not an error
    """A budget is used up."""


def _cma_search() -> Search:
    try:
        import cma
    except ImportError:
        raise InputError("LayerwiseOptimization needs the package cma: pip install 'fairtrim[search]'") from None

    def search(loss: Callable[[npt.NDArray[np.float64]], float], n_entries: int, evaluations: int, seed: int) -> None:
        randomness = np.random.default_rng(seed)  # its own: the library would seed numpy's global state
        options = {
            "bounds": [-1, 1],
            "maxfevals": evaluations,
            "CMA_diagonal": n_entries > _FULL_COVARIANCE,
            "seed": np.nan,
            "randn": lambda *shape: randomness.standard_normal(shape),
            "verbose": -9,
        }
        # one dimension is not a search space for CMA-ES: a second entry is carried along and ignored
        start = np.zeros(max(2, n_entries))
        strategy = cma.CMAEvolutionStrategy(start, 0.3, options)
        spent = 0
        while not strategy.stop() and spent < evaluations:
            asked = strategy.ask()[: max(1, evaluations - spent)]
            values = [loss(np.asarray(entries)[:n_entries]) for entries in asked]
            spent += len(values)
            if len(values) < strategy.popsize:
                break
            strategy.tell(asked, values)

    return search
