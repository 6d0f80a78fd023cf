"""Accuracy of every sensitive group against the size of the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from fairtrim import InputError
from fairtrim.comparison.verdicts import GroupChange, worst_of
from fairtrim.printing import points

from .canvas import new_axes, titled, wrapped
from .styles import DENSE_LINE, axis_label, group_styles

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["BudgetResult", "SizeKind", "plot_budget"]

SizeKind = Literal["macs", "parameters", "latency"]
_SIZES = {"macs": "MACs", "parameters": "parameters", "latency": "latency"}
_APART = 0.6  # percent of the size between the intervals of two groups, so that they don't hide each other
_EVERYBODY = "everybody"
_ALLOWED = "accuracy allowed"


class BudgetResult(Protocol):
    """What is drawn: what ``prune_to`` and ``smallest`` give back.

    Attributes:
        measured: Figures of the network that was kept.
        history: Figures of all networks that were tried.
    """

    @property
    def measured(self) -> pd.DataFrame:
        """One row a sensitive group."""

    @property
    def history(self) -> pd.DataFrame:
        """One row a network and sensitive group."""


def plot_budget(result: BudgetResult, *, size: SizeKind = "macs", ax: Axes | None = None) -> Axes:
    """Accuracy of each sensitive group in every network that was tried, against what is left of its cost.

    Dashed lines are the dense network's, dotted ones what ``smallest`` was allowed to leave. Bars are 95 % intervals of
    the change from it, person by person. The network that was kept has black rims.

    Args:
        result: From ``prune_to`` or ``smallest``.
        size: What of the network's cost is drawn: ``"macs"``, ``"parameters"`` or ``"latency"``.
        ax: Where to draw; default new axes.

    Returns:
        The axes.

    Raises:
        InputError: It is another object, there is no such size, no accuracy was measured, or matplotlib is missing.

    Example:
        >>> import pandas as pd
        >>> from types import SimpleNamespace
        >>> from matplotlib.figure import Figure
        >>> kept = {"network": 1, "kept": True, "macs": 0.5, "sensitive_group": "women", "people": 80.0}
        >>> figures = {"accuracy dense": 0.9, "accuracy pruned": 0.85, "accuracy change": -0.05}
        >>> rows = pd.DataFrame([kept | figures | {"accuracy low": -0.09, "accuracy high": -0.01}])
        >>> ax = plot_budget(SimpleNamespace(measured=rows, history=rows), ax=Figure().subplots())
        >>> ax.get_title()
        'Largest loss: women, −5.0 points at 50 % of the MACs'
    """
    if size not in get_args(SizeKind):
        raise InputError(f"size={size!r}; expected one of {list(get_args(SizeKind))}")
    if not hasattr(result, "history"):
        raise InputError(f"got a {type(result).__name__}; expected what prune_to or smallest gives back")
    measured, history = result.measured, result.history
    groups = [name for name in measured["sensitive_group"] if name != _EVERYBODY] or list(measured["sensitive_group"])
    figures = measured.set_index("sensitive_group")
    if not len(figures) or bool(figures["accuracy dense"].isna().any()):
        raise InputError("no accuracy was measured: the targets are no labels; print(result) has the losses")
    if len(history) and bool(history[size].isna().any()):
        raise InputError(f"size={size!r} was not measured; expected 'macs' or 'parameters'")
    ax = new_axes(ax, (8.0, 4.6))
    looks = group_styles(groups)
    for k, name in enumerate(groups):
        style: dict[str, Any] = {"color": looks[name].colour}
        dense = float(figures.loc[name, "accuracy dense"])
        ax.axhline(dense, linestyle=DENSE_LINE, linewidth=1.1, zorder=1, **style)
        label = f"{wrapped(name, 24)} (n = {figures.loc[name, 'people']:,.0f})"
        rows = history[history["sensitive_group"] == name].sort_values(size) if len(history) else history
        if not len(rows):
            ax.plot([100], [dense], looks[name].marker, label=label, **style)
            continue
        offset = _APART * (k - (len(groups) - 1) / 2)
        x, y = 100 * rows[size].to_numpy() + offset, rows["accuracy pruned"].to_numpy()
        ends = dense + rows[["accuracy low", "accuracy high"]].to_numpy().T
        ax.vlines(x, *ends, linewidth=1.1, alpha=0.65, zorder=2, **style)
        ax.plot([*x, 100], [*y, dense], linewidth=0.8, alpha=0.5, zorder=2, **style)
        rims = ["black" if kept else style["color"] for kept in rows["kept"]]
        marks: dict[str, Any] = {"s": 52, "marker": looks[name].marker, "edgecolors": rims, "linewidths": 1.6}
        ax.scatter(x, y, zorder=3, label=label, **marks, **style)
        for allowed in rows[_ALLOWED].dropna().unique() if _ALLOWED in rows else ():
            ax.axhline(dense - allowed, linestyle=":", linewidth=1.1, zorder=1, gid=_ALLOWED, **style)
    ax.set_xlim(right=101.5)
    ax.set_xlabel(axis_label(f"left of the {_SIZES[size]}, %", "min", vertical=False))
    ax.set_ylabel(axis_label("accuracy", "max"))
    titled(ax, _title(measured, history, groups, size))
    ax.legend(handles=_keys(ax, len(history)), loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    return ax


def _title(measured: pd.DataFrame, history: pd.DataFrame, groups: list[str], size: str) -> str:
    """Who loses most in the network that was kept."""
    kept = history[history["kept"].astype(bool)] if len(history) else history
    if not len(kept):
        return "Nothing was pruned: the dense network"
    rows = measured[measured["sensitive_group"].isin(groups)]
    names = ["sensitive_group", "accuracy change", "accuracy low", "accuracy high"]
    worst = worst_of([GroupChange(*row) for row in rows[names].itertuples(index=False)])
    where = f"at {100 * float(kept[size].iloc[0]):.3g} % of the {_SIZES[size]}"
    if worst is None:
        return f"No group has an accuracy {where}"
    told, remark = worst
    if told.change >= 0:
        least = rows.loc[rows["accuracy low"].idxmin()]
        perhaps = f": {least['sensitive_group']} perhaps, {points(-least['accuracy low'], sign=False)}"
        return f"No group is seen to lose accuracy {where}{perhaps if least['accuracy low'] < 0 else ''}"
    change = points(told.change).replace("-", "−")
    if len(groups) == 1 and groups[0] in ("everyone", _EVERYBODY):
        return f"Accuracy changes by {change} {where}{remark}"
    return f"Largest loss: {told.group}, {change} {where}{remark}"


def _keys(ax: Axes, tried: int) -> list[Any]:
    """Entries of the legend: groups, and what lines and rims mean."""
    from matplotlib.lines import Line2D

    handles, _ = ax.get_legend_handles_labels()
    grey: dict[str, Any] = {"color": "0.35"}
    keys = [*handles, Line2D([], [], linestyle=DENSE_LINE, linewidth=1.1, label="dense network", **grey)]
    if any(line.get_gid() == _ALLOWED for line in ax.lines):
        keys.append(Line2D([], [], linestyle=":", linewidth=1.1, label="allowed drop", **grey))
    if tried:
        rim: dict[str, Any] = {"marker": "o", "linestyle": "none", "markerfacecolor": "0.8", "markeredgecolor": "black"}
        keys.append(Line2D([], [], linewidth=1.1, alpha=0.65, label="95 % of the change", **grey))
        keys.append(Line2D([], [], markeredgewidth=1.6, label="kept", **rim))
    return keys
