"""A network within a budget, what that was predicted to cost each sensitive group, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from fairtrim.printing import Block, Printed, TextTable, count, figure, flag_lines, percent
from fairtrim_adapters.torch_pruning.reconstruction.group_table import ends_of, group_table, who_pays
from fairtrim_adapters.torch_pruning.reconstruction.measuring import EVERYBODY

from .measuring import LOSS
from .sizes import COSTS, Budget

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PrunedToBudget", "Stop"]


@dataclass(frozen=True)
class Stop:
    """Who did not let the network become smaller.

    Attributes:
        sensitive_group: The group.
        metric: What it would lose.
        share: Of the cost, at the largest network that was tried and lost too much.
        drop: How much it lost there.
        upper: How much it may have lost there, at the confidence asked for.
        allowed: How much was allowed.
    """

    sensitive_group: str
    metric: str
    share: float
    drop: float
    upper: float
    allowed: float

    def __str__(self) -> str:
        perhaps = f", perhaps by {self.upper:.3f}," if self.upper > self.drop else ""
        moves = "rises" if self.metric == LOSS else "falls"
        return (
            f"{self.sensitive_group}: {self.metric} {moves} by {self.drop:.3f}{perhaps} at {percent(self.share)}; "
            f"allowed are {self.allowed:g}"
        )


@dataclass(frozen=True)
class PrunedToBudget(Printed):
    """A pruned network, and who pays for it; print it.

    Attributes:
        model: The network, in eval mode.
        budget: What was asked for; of ``smallest`` the cost, with the share that was reached.
        macs: Share of the dense network's multiply-accumulate operations that is left.
        parameters: Share of its parameters.
        latency: Share of its measured latency, where the budget is of that; else None.
        predicted: One row a sensitive group: predicted change of the mean loss, by the importance on its own data;
            empty for importances that predict nothing.
        measured: One row a sensitive group, and ``everybody``: people, loss and accuracy of the dense and the pruned
            network, their change with its standard error, and ends of the 95 % interval of the accuracy's change.
        history: What was tried, a row for each network and sensitive group: the columns of ``measured``, the predicted
            change, ``steps`` or the metrics and whether they ``pass``, the shares, and which network was ``kept``.
        flags: Sentences on what to look at.
        stopped_by: Of ``smallest``: who did not let the network become smaller; None where nobody did.
        reconstruction: What the refit did to each layer, printable; None without one.
        predicted_of: Of what ``predicted`` is: of the network after the refit, or without one.

    Example: see ``prune_to``, which makes one.
    """

    model: nn.Module
    budget: Budget
    macs: float
    parameters: float
    latency: float | None
    predicted: pd.DataFrame
    measured: pd.DataFrame
    history: pd.DataFrame
    flags: tuple[str, ...] = ()
    stopped_by: Stop | None = None
    reconstruction: Any = field(default=None, repr=False)
    predicted_of: str = ""

    @property
    def share(self) -> float:
        """What is left of the cost that the budget is of."""
        shares: Mapping[str, float | None] = {
            "macs": self.macs,
            "parameters": self.parameters,
            "latency": self.latency,
        }
        share = shares[self.budget.cost]
        return 1.0 if share is None else share

    @property
    def within_budget(self) -> bool:
        """Whether the network has no more than was asked for."""
        return self.share <= self.budget.share

    def verdict(self) -> str:
        """What is left of the network, what that costs whom, and on whom that was measured.

        Returns:
            One sentence.
        """
        cost, asked = COSTS[self.budget.cost], self.budget.share
        others = ", ".join(f"{percent(value)} of the {COSTS[name]}" for name, value in self._other_shares())
        found = f"{percent(self.share)} of the {cost}"
        if not self.within_budget:
            found += f", not the {100 * asked:.3g} % asked for"
        elif self.share != asked:  # else nothing else was asked for
            found += f", within the {100 * asked:.3g} % asked for"
        told = who_pays(self.measured) if len(self.measured) else "not measured"
        return f"At {found} ({others}): {told}."

    def blocks(self) -> Iterator[Block]:
        """The verdict, the figures of each group, who stopped it, and flags."""
        yield self.verdict()
        if len(self.measured):
            yield group_table(self.measured, self.predicted, on=self._judges(), predicted_of=self.predicted_of)
        if self.stopped_by is not None:
            yield f"stopped by {self.stopped_by}"
        yield from flag_lines(self.flags)

    def report(self) -> str:
        """All there is to say, in under 100 columns.

        Returns:
            The text of ``str``, everything that was tried, and what the refit did to each layer.
        """
        tried = str(_tried(self.history)) if len(self.history) else "tried: nothing"
        return "\n\n".join([str(self), tried, *([] if self.reconstruction is None else [str(self.reconstruction)])])

    def _judges(self) -> str:
        return f"the {count(self.measured['people'].iloc[-1])} who judge"

    def _other_shares(self) -> Iterator[tuple[Any, float]]:
        for name in ("macs", "parameters"):
            if name != self.budget.cost:
                yield name, getattr(self, name)


def _tried(history: pd.DataFrame) -> TextTable:
    rows = []
    for _, of_network in history.groupby("network", sort=False):
        first = of_network.iloc[0]
        groups = of_network[of_network["sensitive_group"] != EVERYBODY]
        judged = groups[groups["accuracy change"].notna()]
        worst = groups.loc[groups["loss change"].idxmax() if judged.empty else judged["accuracy change"].idxmin()]
        costs = [percent(first[name]) for name in ("macs", "parameters")]
        accuracy = figure(worst["accuracy change"], *ends_of(worst, "accuracy"), sign=True)
        loss = figure(worst["loss change"], sign=True)
        rows.append(
            [
                worst["sensitive_group"],
                "yes" if first["kept"] else "no",
                *costs,
                figure(int(first["steps"])),
                accuracy,
                loss,
            ]
        )
    heads = ["worst for", "kept", "MACs", "parameters", "steps", "accuracy change, 95 %", "loss change"]
    return TextTable(heads, rows, title="Tried, and whose accuracy falls most:")
