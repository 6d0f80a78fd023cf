"""Column erasure: the network no longer reads the columns of an attribute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fairtrim.data.validation_set import ValidationSet
from fairtrim.errors import InputError, UnsupportedModelError
from fairtrim.measures.counterfactual_bias import counterfactual_bias
from fairtrim.measures.objective import COUNTERFACTUAL_MEASURES, Decisions, Objective
from fairtrim.preservation import remove_hooks
from fairtrim.registry import Standing
from fairtrim.repair.candidates import Candidates
from fairtrim.repair.judging import GroupJudge
from fairtrim.repair.post_processor import PostProcessor
from fairtrim.repair.working_copy import WorkingCopy

__all__ = ["ColumnErasure"]


@dataclass(kw_only=True)
class ColumnErasure(PostProcessor):
    """Hold the columns of an attribute at their mean, for everybody, inside of the network (ours).

    For tables. Every linear layer that reads the inputs takes its share of the mean into the bias, b + W_C m_C, and
    forgets the columns, W_C = 0. No decision depends on them any more, whatever they hold, at no cost and without
    pairs. What tells of the attribute by other columns is not touched: look at the sensitive groups beside it.

    It is what `CounterfactualUnlearning` has to beat on a table. Where labels lean on the columns it loses more:
    unlearn from pairs first, then erase.
    ``measure`` compares each person with one who has the columns of somebody else, drawn at random.

    Args:
        columns: Columns of the attribute, by position, or by name with ``names``.
        names: Names of all columns.

    Example:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> repair = ColumnErasure(columns=[2]).repair(network, [(x, (x[:, 0] > 0).long())], progress=False)
        >>> repair.bias, repair.model[0].weight[:, 2].abs().max().item()
        (0.0, 0.0)
    """

    name: ClassVar[str] = "column-erasure"
    does: ClassVar[str] = (
        "holds the columns of an attribute at their mean inside of the first layer: no decision minds them"
    )
    when: ClassVar[str] = "first, for a table whose columns that hold the attribute are known: it costs nothing"
    source: ClassVar[str] = "fairtrim"
    standing: ClassVar[Standing] = "baseline"

    measure: str = "counterfactual_flips"
    columns: Sequence[int | str] = ()
    names: Sequence[str] | None = None

    edits_on_data: ClassVar[bool] = False
    multiclass: ClassVar[bool] = True

    def check(self) -> None:
        """Refuse settings that can't work; see ``PostProcessor.check``."""
        super().check()
        if self.measure not in COUNTERFACTUAL_MEASURES:
            raise InputError(f"measure={self.measure!r}; expected one of {list(COUNTERFACTUAL_MEASURES)}")
        self._refuse_idle(["privileged", "confidence", "min_people"], f"measure={self.measure!r} compares no groups")
        self._refuse_idle(["selection_share", "patience"], "there is one edit, which sees no labels")
        if isinstance(self.columns, str) or not len(self.columns):
            raise InputError(f"columns={self.columns!r}; expected the columns of the attribute, e.g. [3, 4]")
        self._positions()

    def _positions(self) -> list[int]:
        found = []
        for column in self.columns:
            if isinstance(column, str):
                if self.names is None or column not in self.names:
                    raise InputError(f"there is no column {column!r}; expected one of names={self.names}")
                found.append(list(self.names).index(column))
            elif isinstance(column, bool) or int(column) != column:
                raise InputError(f"there is no column {column!r}; expected whole numbers from 0, or names")
            else:
                found.append(int(column))
        return list(dict.fromkeys(found))

    def _compares_groups(self) -> bool:
        return False

    def objective(self) -> Objective:
        """The objective that these settings describe."""
        return Objective(self.measure, self.epsilon, self.margin, self.performance, None)

    def _prepared(self, people: ValidationSet) -> ValidationSet:
        x, columns = people.inputs, self._positions()
        if not isinstance(x, Tensor) or x.ndim != 2 or not x.is_floating_point():
            raise InputError("the inputs are no table; expected a tensor of numbers, one row a sample")
        if not all(0 <= column < x.shape[1] for column in columns):
            raise InputError(f"columns {columns} of a table of {x.shape[1]}; expected positions from 0")
        others = torch.randperm(len(x), generator=torch.Generator().manual_seed(0), device="cpu")
        swapped = x.clone()
        swapped[:, columns] = x[others][:, columns]
        return replace(people, counterfactual=swapped)

    def _set_up(self, working: WorkingCopy, candidates: Candidates) -> None:
        candidates.judge = _SwapJudge(self.measure, working, candidates)
        candidates.latest_wins = True

    def _edit(self, working: WorkingCopy, candidates: Candidates) -> None:
        x, columns = working.people.inputs, self._positions()
        mass = working.people.mass / working.people.mass.sum()
        mean = (mass @ x.cpu().double())[columns]
        with torch.no_grad():
            for layer in _readers(working):
                if layer.bias is None:
                    raise UnsupportedModelError(
                        "a layer that reads the columns has no bias to take their mean; expected layers with one"
                    )
                weight = layer.weight.cpu().double()[:, columns]
                layer.bias.add_((weight @ mean).to(layer.bias))
                layer.weight[:, columns] = 0
        scores, swapped = (working.scores(part) for part in (working.people, working.people.flipped()))
        if not torch.equal(scores, swapped):
            raise UnsupportedModelError(
                "something else than a linear layer reads the columns; expected a network that begins with linear "
                "layers on its inputs: put what normalises them into the data, or use CounterfactualUnlearning"
            )
        candidates.offer(columns=list(self.columns))


def _readers(working: WorkingCopy) -> list[nn.Linear]:
    """The linear layers that read the inputs as they come."""
    _, batch = next(working.people.batches(2, working.device))
    found: list[nn.Linear] = []

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        read = args[0] if args else None
        same = (
            isinstance(read, Tensor) and read.shape == batch.inputs.shape and torch.equal(read, batch.inputs.to(read))
        )
        if same and isinstance(module, nn.Linear):
            found.append(module)

    handles = [m.register_forward_pre_hook(note) for m in working.model.modules() if isinstance(m, nn.Linear)]
    try:
        with torch.no_grad():
            working.network.scores(batch)
    finally:
        remove_hooks(handles)
    return found


class _SwapJudge:
    """Judges by the decisions that change where the columns are somebody else's."""

    def __init__(self, measure: str, working: WorkingCopy, candidates: Candidates) -> None:
        self._measure, self._working, self._people = measure, working, candidates.selection
        self._swapped = candidates.selection.flipped()
        self._performance = GroupJudge(candidates.objective, candidates.selection, 1)
        self._bound = candidates.objective.bound

    def __call__(self, scores: Tensor, *, own: bool = True) -> Decisions:
        judged = self._performance(scores, own=True)
        swapped = self._working.scores(self._swapped)
        figures = counterfactual_bias(scores, swapped, self._people.target, self._people.weight)
        size = figures.flips if self._measure == "counterfactual_flips" else figures.mean_change
        found = torch.tensor([size], dtype=torch.float64, device="cpu")
        return replace(judged, bias=found, size=found, within=found < self._bound)
