"""A picture of a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fairtrim import InputError

from .comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_comparison"]


def plot_comparison(comparison: Comparison, *, metric: str = "accuracy", ax: Axes | None = None) -> Axes:
    """Draw one metric of every network, a dot for each sensitive group and a bar for everybody.

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
    try:
        from matplotlib import pyplot
    except ImportError:
        raise InputError("plotting needs matplotlib: pip install 'fairtrim[plot]'") from None
    if metric not in comparison.by_group:
        raise InputError(f"metric={metric!r} is not in the comparison: {list(comparison.by_group.columns)}")
    if ax is None:
        _, ax = pyplot.subplots(figsize=(1.6 + 1.3 * len(comparison.frames), 4), layout="constrained")
    names = list(comparison.frames)
    first = comparison.frames[names[0]].by_group.index
    width = 0.6 / max(1, len(first))
    for g, group in enumerate(first):
        label = group if isinstance(group, str) else ", ".join(map(str, group))
        rows = [comparison.by_group.loc[(name, *(group if isinstance(group, tuple) else (group,)))] for name in names]
        at = np.arange(len(names)) + (g - (len(first) - 1) / 2) * width
        values = np.array([row[metric] for row in rows])
        people = int(rows[0]["people"]) if "people" in rows[0] else None
        ax.plot(at, values, "o", color=f"C{g}", label=label if people is None else f"{label} (n = {people})")
        if f"{metric} low" in comparison.by_group:
            low, high = (np.array([row[f"{metric} {end}"] for row in rows]) for end in ("low", "high"))
            ax.vlines(at, low, high, color=f"C{g}", linewidth=1.5)
        dense = values[names.index(comparison.reference)]
        ax.axhline(dense, color=f"C{g}", linewidth=0.8, linestyle=":", zorder=0)
    if metric in comparison.overall:
        for m, name in enumerate(names):
            ax.hlines(comparison.overall.loc[name, metric], m - 0.38, m + 0.38, color="black", linewidth=1.2)
        ax.plot([], [], color="black", linewidth=1.2, label="everybody")
    constant = set(comparison.flags.loc[comparison.flags["flag"] == "constant classifier", "model"])
    ticks = [f"{name}\n(constant)" if name in constant else name.replace(" ", "\n") for name in names]
    ax.set_xticks(range(len(names)), ticks)
    ax.set_ylabel(metric)
    ax.set_title(f"{metric} by sensitive group (dotted: {comparison.reference})", fontsize="medium")
    ax.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax
