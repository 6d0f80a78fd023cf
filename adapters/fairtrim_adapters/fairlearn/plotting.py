"""A picture of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fairtrim import InputError
from fairtrim_adapters.plots.canvas import new_axes, require_drawn, titled
from fairtrim_adapters.plots.styles import DENSE_LINE, EVERYBODY, amount, axis_label, better, group_name, group_styles

from .comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_comparison"]


def plot_comparison(comparison: Comparison, *, metric: str = "accuracy", ax: Axes | None = None) -> Axes:
    """Draw one metric of every network, a mark for each sensitive group and a bar for everybody.

    Dashed lines are the reference's. A group looks the same in every picture of these people.

    Args:
        comparison: From ``compare_models``.
        metric: Which metric.
        ax: Where to draw; default new axes.

    Returns:
        The axes.

    Raises:
        InputError: There is no such metric, or matplotlib is not installed.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from torch import nn
        >>> from fairtrim_adapters.fairlearn import compare_models
        >>> people = [(torch.eye(2), torch.tensor([0, 1]), ["a", "b"])]
        >>> comparison = compare_models({"dense": nn.Identity(), "pruned": nn.Softmin(dim=1)}, people, progress=False)
        >>> ax = plot_comparison(comparison, ax=Figure().subplots())
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['dense', 'pruned']
    """
    require_drawn(comparison, Comparison, "compare_models")
    if metric not in comparison.by_group:
        raise InputError(f"metric={metric!r} is not in the comparison: {list(comparison.by_group.columns)}")
    names = list(comparison.frames)
    groups = list(comparison.frames[names[0]].by_group.index)
    ax = new_axes(ax, (max(5.0, 2.6 + 1.3 * len(names)), 4))
    styles = group_styles(groups)
    width = 0.6 / max(1, len(groups))
    for g, group in enumerate(groups):
        label, style = group_name(group), styles[group_name(group)]
        rows = [comparison.by_group.loc[(name, *(group if isinstance(group, tuple) else (group,)))] for name in names]
        at = np.arange(len(names)) + (g - (len(groups) - 1) / 2) * width
        values = np.array([row[metric] for row in rows])
        people = f" (n = {rows[0]['people']:,.0f})" if "people" in rows[0] else ""
        ax.plot(at, values, linestyle="none", label=label + people, zorder=3, **style.marks())
        if f"{metric} low" in comparison.by_group:
            low, high = (np.array([row[f"{metric} {end}"] for row in rows]) for end in ("low", "high"))
            ax.vlines(at, low, high, color=style.colour, linewidth=1.5)
        dense = values[names.index(comparison.reference)]
        ax.axhline(dense, color=style.colour, linewidth=0.8, linestyle=DENSE_LINE, zorder=0)
    if metric in comparison.overall:
        for m, name in enumerate(names):
            ax.hlines(comparison.overall.loc[name, metric], m - 0.38, m + 0.38, color=EVERYBODY, linewidth=1.2)
        ax.plot([], [], color=EVERYBODY, linewidth=1.2, label="everybody")
    ax.plot([], [], color="0.4", linewidth=0.8, linestyle=DENSE_LINE, label=comparison.reference)
    constant = set(comparison.flags.loc[comparison.flags["flag"] == "constant classifier", "model"])
    ticks = [f"{name}\n(constant)" if name in constant else name.replace(" ", "\n") for name in names]
    ax.set_xticks(range(len(names)), ticks)
    ax.set_ylabel(axis_label(metric, better(metric)))
    title = comparison.verdict().removesuffix(".") if metric == "accuracy" else _title(comparison, metric, names)
    titled(ax, title, width=24 + 10 * len(names))
    ax.grid(visible=False, axis="x")
    ax.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def _title(comparison: Comparison, metric: str, names: Sequence[str]) -> str:
    """Which network moves the metric of whom most, away from what is better, and which least."""
    values = comparison.by_group[metric]
    changes = {n: values.loc[n] - values.loc[comparison.reference] for n in names if n != comparison.reference}
    way = better(metric)
    losses = {n: {"max": -c, "min": c, None: c.abs()}[way].dropna() for n, c in changes.items()}
    largest = {n: (float(loss.max()), group_name(loss.idxmax())) for n, loss in losses.items() if len(loss)}
    if not largest:
        return f"{metric[:1].upper()}{metric[1:]} by sensitive group"
    worst, least = max(largest, key=largest.__getitem__), min(largest, key=largest.__getitem__)
    loss, group = largest[worst]
    if round(loss, 3) <= 0:
        return f"No network is seen to move a group's {metric}{'' if way is None else ' for the worse'}"
    size, most = (amount(max(0.0, largest[name][0]), metric) for name in (worst, least))
    told = {
        "max": f"{worst} costs {group} {size} of {metric}",
        "min": f"{worst} adds {size} of {metric} to {group}",
        None: f"{worst} moves the {metric} of {group} by {size}",
    }[way]
    return f"{told}; {least} {most.removesuffix(' points')} at most" if least != worst else told
