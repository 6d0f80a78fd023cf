"""A repaired network, how it was chosen, and what else could have been."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fairtrim.arguments import few_of
from fairtrim.data.sensitive_groups import GroupName
from fairtrim.errors import InputError
from fairtrim.measures.objective import COUNTERFACTUAL_MEASURES, Objective
from fairtrim.network.output_layer import fold_threshold
from fairtrim.printing import Block, Printed, TextTable, figure, flag_lines, movement

from .figures import Figure, group_label

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["OperatingPoint", "Repair"]


_GROUPS = 12  # that are printed


@dataclass(frozen=True)
class OperatingPoint:
    """One candidate network with one threshold, judged on the selection people.

    Attributes:
        candidate: Number of the candidate; 0 is the network as it was given.
        margin_threshold: Threshold on the margin of label 1 (log odds).
        bias: Signed where two sides are named, else at least 0.
        performance: Of everybody.
        believed: What was compared with the bound: |bias| by the group rates as far as they are believed, plus what it
            may be off by beyond the margin.

    Example:
        >>> OperatingPoint(candidate=0, margin_threshold=0.0, bias=0.1, performance=0.8, believed=0.1).threshold
        0.5
    """

    candidate: int
    margin_threshold: float
    bias: float
    performance: float
    believed: float

    @property
    def threshold(self) -> float:
        """The threshold as a probability of label 1."""
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, self.margin_threshold))))


def edited(template: nn.Module, head: str, state: dict[str, Tensor], margin_threshold: float) -> nn.Module:
    """A copy of a network with some of its parameters replaced and a threshold folded in.

    The threshold is on the margin of label 1; ignored for more than two classes.
    """
    model = copy.deepcopy(template)
    parameters = dict(model.named_parameters())
    layer = model.get_submodule(head)
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)
    if layer.out_features <= 2:
        fold_threshold(layer, margin_threshold)
    return model


@dataclass(frozen=True)
class Repair(Printed):
    """A repaired network, and how it was chosen; print it.

    Attributes:
        model: The repaired network: a plain module that needs no sensitive feature and no threshold; its largest score
            (or whether its logit is positive) is the decision. Its training flags are those of the given network.
        chosen: The operating point whose threshold is folded into the model's last bias.
        within_bound: Whether the bias is within ε − margin, as far as differences are believed and with what they may
            be off by (see ``fairtrim.measures.group_estimates``), and within ε as it is measured; of the sensitive
            groups that are compared.
        bias: Of the repaired network's own decisions on the selection people, after folding and rounding, among the
            sensitive groups that are compared (see ``flags``). Cross-fitted, of the decisions about each of them by the
            network that was edited in the same way without them, at the threshold that is folded.
        performance: The same.
        bias_before: Of the given network's own decisions (largest score).
        performance_before: The same.
        flags: What a user should know: kept as it was given, groups of too few people, bound not met, constant
            classifier, a selection rate or a group's accuracy that moved, stopped by a budget.
        history: One entry a candidate: its number, details of the method, and its best operating point.
        trade_off: The points that none beats, by what is compared with the bound (``believed``), over all candidates
            and thresholds.
        edit_rows: Rows of the data that the edit has seen, (M,); none for methods whose edit sees no data.
        selection_rows: Rows of the data that candidate and threshold were selected on (of
            ``selection_loader`` if given).
        objective: What was maximised.
        figures: What the selection people see, before and after, with 95 % intervals: ``pd.DataFrame(repair.figures)``.
        cross_fitted: Whether everybody edited and selected.

    Example:
        >>> from fairtrim import ThresholdSelection
        >>> x = torch.linspace(-1, 1, 60)[:, None]
        >>> people = [(x, (x[:, 0] > 0.3).long(), ["a", "b", "b"] * 20)]
        >>> given = nn.Linear(1, 1)
        >>> with torch.no_grad():
        ...     _ = given.weight.fill_(1.0), given.bias.zero_()
        >>> repair = ThresholdSelection(epsilon=1.0).repair(given, people, progress=False)
        >>> round(repair.model.bias.item(), 2), repair.performance  # the threshold became the bias
        (-0.31, 1.0)
    """

    model: nn.Module
    chosen: OperatingPoint
    within_bound: bool
    bias: float
    performance: float
    bias_before: float
    performance_before: float
    flags: tuple[str, ...]
    history: tuple[dict[str, Any], ...]
    trade_off: tuple[OperatingPoint, ...]
    edit_rows: Tensor
    selection_rows: Tensor
    objective: Objective
    figures: tuple[Figure, ...]
    cross_fitted: bool
    _compared: tuple[GroupName, ...] = field(repr=False)
    _states: dict[int, dict[str, Tensor]] = field(repr=False)
    _template: nn.Module = field(repr=False)
    _head: str = field(repr=False)

    @property
    def _given_up(self) -> float:
        """The margin, beyond which alone ``believed`` has what a bias may be off by."""
        return 0.0 if self.objective.confidence is None else self.objective.margin

    @property
    def threshold(self) -> float:
        """The chosen threshold as a probability; it is folded into the model, whose own is 0.5."""
        return self.chosen.threshold

    def model_at(self, epsilon: float) -> nn.Module:
        """The network of the trade-off curve with the best performance among those believed to be within a bound.

        Args:
            epsilon: Bound on the absolute bias.

        Returns:
            Another network; ``model`` stays as it is.

        Raises:
            InputError: No point of the curve is within the bound.

        Example:
            >>> from fairtrim import RandomPerturbation
            >>> x = torch.linspace(-1, 1, 60)[:, None]
            >>> people = [(x, (x[:, 0] > 0).long(), ["a", "b", "b"] * 20)]
            >>> repair = RandomPerturbation(trials=2).repair(nn.Linear(1, 2), people, progress=False)
            >>> type(repair.model_at(0.5)).__name__
            'Linear'
        """
        if not self.trade_off:
            raise InputError("the trade-off curve is empty: every candidate gives everybody the same label")
        points = [point for point in self.trade_off if point.believed < epsilon - self._given_up]
        if not points:
            least = min(point.believed for point in self.trade_off)
            raise InputError(f"epsilon={epsilon}; the least bias of the trade-off curve is {least:.4f}")
        return self._network(max(points, key=lambda point: point.performance))

    def _network(self, point: OperatingPoint) -> nn.Module:
        return edited(self._template, self._head, self._states[point.candidate], point.margin_threshold)

    def to_frame(self) -> pd.DataFrame:
        """The trade-off curve.

        Returns:
            Columns candidate, threshold, the names of the bias and the performance measure, and ``believed``, what is
            compared with a bound, by which they are ordered.
        """
        import pandas as pd

        rows = [(p.candidate, p.threshold, p.bias, p.performance, p.believed) for p in self.trade_off]
        names = ["candidate", "threshold", self.objective.measure, self.objective.performance, "believed"]
        return pd.DataFrame(rows, columns=names)

    def verdict(self) -> str:
        """What the repair changed, whether that is within the bound, and on whom it was judged.

        Returns:
            One sentence; it says so where chance may have moved the bias.
        """
        objective = self.objective
        groups = [group_label(group) for group in self._compared] if self._groups() else []
        among = f" among {few_of(groups, most=3)}" if groups else ""
        moved = movement(self.bias_before, self.bias, sided=min(self.bias_before, self.bias) < 0)
        text = f"{objective.measure}{among} {moved}"
        if not moved.startswith("stays") and any(f.name == objective.measure and not f.moved for f in self.figures):
            text += " (which may be chance)"
        if objective.epsilon < 1:
            measured = abs(self.bias) <= objective.epsilon
            within = "within" if self.within_bound else "not surely within" if measured else "not within"
            text += f", {within} the {objective.epsilon:g} asked for"
        people = f"judged on the {len(self.selection_rows):,} people that it was selected on"
        return f"{text}; {objective.performance} {movement(self.performance_before, self.performance)}, {people}."

    def blocks(self) -> Iterator[Block]:
        """The verdict, what was chosen and how, the figures of each group, and flags."""
        yield self.verdict()
        yield "\n".join(self._choice())
        yield from self._table()
        yield from flag_lines(self.flags)

    def _groups(self) -> list[GroupName]:
        return [group for group in dict.fromkeys(f.sensitive_group for f in self.figures) if group is not None]

    def _choice(self) -> Iterator[str]:
        objective = self.objective
        of = f" (epsilon {objective.epsilon:g} − margin {objective.margin:g})" if objective.margin else ""
        yield f"asked for: {'no bound' if objective.epsilon >= 1 else f'at most {objective.bound:g} either way{of}'}"
        yield from self._believed()
        yield (
            f"candidate {self.chosen.candidate} of {len(self.history)}{self._folded()}; selected on "
            f"{len(self.selection_rows):,} people, edited on {len(self.edit_rows):,}"
            + (" (cross-fitted)" if self.cross_fitted else "")
        )

    def _folded(self) -> str:
        head: Any = self._template.get_submodule(self._head)
        return (
            f", threshold {figure(self.threshold, digits=4)} (folded into the last bias)"
            if head.out_features <= 2
            else ""
        )

    def _table(self) -> Iterator[Block]:
        """Before, after and change, of the first groups."""
        shown = [None, *self._groups()[:_GROUPS]]
        rows = [
            (
                group_label(f.sensitive_group),
                "bias" if f.name == self.objective.measure else f.name.replace("_", " "),
                figure(f.people),
                figure(f.before),
                figure(f.after, f.after_low, f.after_high),
                figure(f.change, f.change_low, f.change_high, sign=True),
            )
            for f in self.figures
            if f.sensitive_group in shown
        ]
        if not rows:
            return
        heads = ("group", "figure", "people", "before", "after, 95 %", "change, 95 %")
        title = "Of the people that it was selected on; change: after − before, person by person."
        yield TextTable(heads, rows, names=2, title=title)
        if (more := len(self._groups()) - _GROUPS) > 0:
            yield f"and {more} more groups: pd.DataFrame(repair.figures)"

    def _believed(self) -> Iterator[str]:
        """What was compared with the bound, where that is not the bias itself."""
        confidence = self.objective.confidence
        if confidence is None or self.objective.measure in COUNTERFACTUAL_MEASURES:
            return
        sure = "95 % as far as half of epsilon suffices" if confidence == "auto" else f"{100 * float(confidence):g} %"
        yield f"believed, with what it may be off by ({sure}): {figure(self.chosen.believed)}"
