"""A network within a budget, what that was predicted to cost each sensitive group, and what it costs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from fairtrim_adapters.torch_pruning.reconstruction.measuring import EVERYBODY

from .measuring import LOSS
from .sizes import COSTS, Budget

__all__ = ["PrunedToBudget", "Stop"]

_WIDTH = 99
_NAMES = 26  # characters of the name of a group in a table
_IN_WORDS = {0.75: "three quarters", 0.5: "half", 0.25: "a quarter"}


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
            f"{self.sensitive_group}: {self.metric} {moves} by {self.drop:.3f}{perhaps} at {_percent(self.share)}; "
            f"allowed are {self.allowed:g}"
        )


@dataclass(frozen=True)
class PrunedToBudget:
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

    def __str__(self) -> str:
        lines = [_wrapped(self._verdict()), *_table(self.measured, self.predicted)]
        if self.stopped_by is not None:
            lines.append(_wrapped(f"stopped by {self.stopped_by}"))
        lines.extend(_wrapped(f"! {flag}") for flag in self.flags)
        return "\n".join(lines)

    def report(self) -> str:
        """All there is to say, in under 100 columns.

        Returns:
            The text of ``str``, everything that was tried, and what the refit did to each layer.
        """
        lines = [str(self), "", "tried:", *_tried(self.history)]
        if self.reconstruction is not None:
            lines += ["", str(self.reconstruction)]
        return "\n".join(lines)

    def _verdict(self) -> str:
        cost = COSTS[self.budget.cost]
        asked = self.budget.share
        others = ", ".join(f"{_percent(value)} of the {COSTS[name]}" for name, value in self._other_shares())
        if self.share == asked:  # nothing else was asked for
            found = f"{_percent(asked)} of the {cost} ({others})"
        elif not self.within_budget:
            found = f"{_percent(self.share)} of the {cost}, not the {100 * asked:.3g} % asked for ({others})"
        else:
            found = f"{_IN_WORDS.get(asked, f'{100 * asked:.3g} %')} of the {cost} ({_percent(self.share)}; {others})"
        if not len(self.measured):
            return f"{found}: not measured"
        overall = self.measured.iloc[-1]
        if pd.isna(overall["accuracy dense"]):
            return f"{found}: loss {overall['loss dense']:.4f} -> {overall['loss pruned']:.4f}"
        text = f"{found}: accuracy {_share(overall['accuracy dense'])} -> {_share(overall['accuracy pruned'])}"
        groups = self.measured[self.measured["sensitive_group"] != EVERYBODY].sort_values("accuracy change")
        told = [f"{_short(row['sensitive_group'])} {_points(row)}" for _, row in groups.head(3).iterrows()]
        more = f", {len(groups) - 3} others less" if len(groups) > 3 else ""
        return f"{text}; {', '.join(told)}{more}" if len(groups) > 1 else text

    def _other_shares(self) -> Iterator[tuple[Any, float]]:
        for name in ("macs", "parameters"):
            if name != self.budget.cost:
                yield name, getattr(self, name)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent="  ")


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _short(name: str) -> str:
    return name if len(name) <= _NAMES else f"{name[: _NAMES - 1]}…"


def _points(row: Any) -> str:
    """A change of the accuracy in points of a hundred, with its interval."""
    change, low, high = (100 * row[f"accuracy {what}"] for what in ("change", "low", "high"))
    return f"{change:+.1f} points [{low:+.1f}, {high:+.1f}]"


def _table(measured: pd.DataFrame, predicted: pd.DataFrame) -> Iterator[str]:
    """By sensitive group: people, accuracy before, after and its change, change of the loss predicted and measured."""
    if not len(measured):
        return
    told: dict[str, float] = {}
    if len(predicted):
        told = dict(zip(predicted["sensitive_group"], predicted["predicted change"], strict=True))
    heads = f"{'accuracy':>8} {'now':>6}  {'change, 95 %':<20} {'loss: predicted':>15} {'measured':>8}"
    yield f"{'':{_NAMES}} {'people':>7}  {heads}"
    for _, row in measured.iterrows():
        name = row["sensitive_group"]
        change = told.get(name, np.nan)
        before, after = (
            "-" if pd.isna(row[f"accuracy {what}"]) else _share(row[f"accuracy {what}"]) for what in ("dense", "pruned")
        )
        points = "-" if pd.isna(row["accuracy change"]) else _points(row).replace(" points", "")
        yield (
            f"{_short(name):{_NAMES}} {row['people']:>7g}  {before:>8} {after:>6}  {points:<20} "
            f"{'-' if pd.isna(change) else f'{change:+.4f}':>15} {row['loss change']:>+8.4f}"
        )


def _tried(history: pd.DataFrame) -> Sequence[str]:
    if not len(history):
        return ["nothing"]
    lines = [f"{'':6}{'MACs':>8} {'param.':>8} {'steps':>6}  worst accuracy change, and loss change"]
    for _, of_network in history.groupby("network", sort=False):
        first = of_network.iloc[0]
        groups = of_network[of_network["sensitive_group"] != EVERYBODY]
        kept = "kept" if first["kept"] else ""
        losses = groups.loc[groups["loss change"].idxmax()]
        text = f"{kept:6}{_percent(first['macs']):>8} {_percent(first['parameters']):>8} {first['steps']:>6g}  "
        if groups["accuracy change"].notna().any():
            row = groups.loc[groups["accuracy change"].idxmin()]
            text += f"{_short(row['sensitive_group'])} {_points(row).replace(' points', '')}; "
        lines.append(text + f"{losses['loss change']:+.4f}")
    return lines
