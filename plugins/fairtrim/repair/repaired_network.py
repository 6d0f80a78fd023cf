"""A repaired network, how it was chosen, and what else could have been."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fairtrim.errors import InputError
from fairtrim.measures.objective import Objective
from fairtrim.network.output_layer import fold_threshold

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["OperatingPoint", "Repair"]


_LARGE_LOSS = 0.1


@dataclass(frozen=True)
class OperatingPoint:
    """One candidate network with one threshold, judged on the selection people.

    Attributes:
        candidate: Number of the candidate; 0 is the network as it was given.
        margin_threshold: Threshold on the margin of label 1 (log odds).
        bias: Signed where two sides are named, else at least 0.
        performance: Of everybody.

    Example:
        >>> OperatingPoint(candidate=0, margin_threshold=0.0, bias=0.1, performance=0.8).threshold
        0.5
    """

    candidate: int
    margin_threshold: float
    bias: float
    performance: float

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
class Repair:
    """A repaired network, and how it was chosen.

    Attributes:
        model: The repaired network: a plain module that needs no sensitive feature and no threshold; its largest score
            (or whether its logit is positive) is the decision. Its training flags are those of the given network.
        chosen: The operating point whose threshold is folded into the model's last bias.
        within_bound: Whether |bias| < ε − margin on the selection people.
        bias: Of the repaired network's own decisions on the selection people, after folding and rounding.
        performance: The same.
        bias_before: Of the given network's own decisions (largest score).
        performance_before: The same.
        flags: What a user should know: bound not met, constant classifier, stopped by a budget.
        history: One entry a candidate: its number, details of the method, and its best operating point.
        trade_off: The points that none beats, by increasing bias, over all candidates and thresholds.
        edit_rows: Rows of the data that the edit has seen, (M,); none for methods whose edit sees no data.
        selection_rows: Rows of the data that candidate and threshold were selected on (of
            ``selection_loader`` if given).
        objective: What was maximised.

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
    _states: dict[int, dict[str, Tensor]] = field(repr=False)
    _template: nn.Module = field(repr=False)
    _head: str = field(repr=False)

    @property
    def threshold(self) -> float:
        """The chosen threshold as a probability; it is folded into the model, whose own is 0.5."""
        return self.chosen.threshold

    def model_at(self, epsilon: float) -> nn.Module:
        """The network of the trade-off curve with the best performance among those with |bias| < epsilon.

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
        points = [point for point in self.trade_off if abs(point.bias) < epsilon]
        if not points:
            least = min(abs(point.bias) for point in self.trade_off)
            raise InputError(f"epsilon={epsilon}; the least bias of the trade-off curve is {least:.4f}")
        return self._network(max(points, key=lambda point: point.performance))

    def _network(self, point: OperatingPoint) -> nn.Module:
        return edited(self._template, self._head, self._states[point.candidate], point.margin_threshold)

    def to_frame(self) -> pd.DataFrame:
        """The trade-off curve.

        Returns:
            Columns candidate, threshold, and the names of the bias and the performance measure, by increasing absolute
            bias.
        """
        import pandas as pd

        rows = [(point.candidate, point.threshold, point.bias, point.performance) for point in self.trade_off]
        return pd.DataFrame(
            rows, columns=["candidate", "threshold", self.objective.measure, self.objective.performance]
        )

    def __str__(self) -> str:
        objective = self.objective
        of = f" (epsilon {objective.epsilon:g} − margin {objective.margin:g})" if objective.margin else ""
        lines = [
            f"{objective.measure}: {self.bias_before:+.4f} before, {self.bias:+.4f} after "
            f"(asked for: at most {objective.bound:g} either way{of})",
            f"{objective.performance}: {self.performance_before:.4f} before, {self.performance:.4f} after",
            f"candidate {self.chosen.candidate} of {len(self.history)}, threshold {self.threshold:.4f} (folded into "
            f"the last bias); selected on {len(self.selection_rows)} people, edited on {len(self.edit_rows)}",
        ]
        if self.performance_before - self.performance > _LARGE_LOSS:
            lines.append(
                f"{objective.performance} fell a lot: nearly constant decisions have little bias, too; see trade_off"
            )
        return "\n".join([*lines, *self.flags])
