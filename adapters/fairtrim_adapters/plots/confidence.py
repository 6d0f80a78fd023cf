"""Confidence in mined and other samples while a network is pruned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fairtrim import InputError, MinedSamples

from .canvas import new_axes, require_drawn, titled, wrapped
from .styles import network_styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_confidence"]

_NO_FLAGS = "expected one True or False for each"


def plot_confidence(
    mined: MinedSamples,
    *,
    conflicting: Tensor | None = None,
    known: Mapping[str, Tensor] | None = None,
    label: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Confidence in the label against the share of the channels that are gone: mined samples beside the others.

    A line is the median of a set of samples, the band reaches from the lower to the upper quartile. Docs on accumulated
    confidence say how to read it.

    Args:
        mined: From ``AccumulatedConfidence``.
        conflicting: The mined set, (N,) bool; default ``mined.conflicting()``.
        known: More sets by name, (N,) bool each, such as samples that are known to conflict or to be mislabelled.
        label: Only samples of this class; default those of all.
        ax: Where to draw; default new axes.

    Returns:
        The axes.

    Raises:
        InputError: The miner pruned nothing, a set has another size or kind, no sample has the label, or matplotlib is
            not installed.

    Example:
        >>> from matplotlib.figure import Figure
        >>> confidence = torch.tensor([[0.9, 0.9, 0.8], [0.9, 0.9, 0.1]])  # the last is given up
        >>> target = torch.tensor([0, 1, 1])
        >>> mined = MinedSamples(1 - confidence[1], target, target > 1, levels=(0.0, 0.5), confidence=confidence)
        >>> ax = plot_confidence(mined, conflicting=torch.tensor([False, False, True]), ax=Figure().subplots())
        >>> [(line.get_label(), line.get_ydata().round(1).tolist()) for line in ax.lines]
        [('others (n = 2)', [0.9, 0.9]), ('mined (n = 1)', [0.8, 0.1])]
    """
    require_drawn(mined, MinedSamples, "AccumulatedConfidence().mine")
    confidence = mined.confidence
    if confidence is None:
        raise InputError("no confidence was kept at any level; expected what AccumulatedConfidence mined")
    found = mined.conflicting() if conflicting is None else conflicting
    sets = {"others": ~_flags("conflicting", found, mined), "mined": found}
    for name, flags in (known or {}).items():
        if name in sets:
            raise InputError(f"known has {name!r}, which is drawn already; expected another name")
        sets[name] = _flags(f"known[{name!r}]", flags, mined)
    of_class = torch.ones_like(found) if label is None else mined.target == label
    if not bool(of_class.any()):
        raise InputError(f"label={label!r}; expected one of {torch.unique(mined.target).tolist()}")
    ax = new_axes(ax, (7.5, 4.2))
    looks = network_styles([f"{k:03}" for k in range(len(sets))], None).values()  # sets of samples, no groups of people
    last: dict[str, float] = {}
    for k, ((name, flags), look) in enumerate(zip(sets.items(), looks, strict=True)):
        chosen = confidence[:, flags & of_class].double()
        title = f"{wrapped(name, 24)} (n = {chosen.shape[1]:,})"
        style: dict[str, Any] = {"linestyle": "--" if k > 1 else "-", **look.marks(4.5)}
        if not chosen.shape[1]:
            ax.plot([], [], label=title, **style)
            continue
        low, median, high = np.quantile(chosen.numpy(), [0.25, 0.5, 0.75], axis=1)
        ax.plot(list(mined.levels), median, label=title, zorder=2 + k, **style)
        ax.fill_between(list(mined.levels), low, high, color=look.colour, alpha=0.16, linewidth=0)
        last[name] = float(median[-1])
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("share of the channels that are gone")
    what = "confidence in the label" if label is None else f"confidence in label {label}"
    ax.set_ylabel(f"{what} (low: given up first)")
    told = ", ".join(f"{value:.2f} in {name}" for name, value in last.items())
    titled(ax, f"With {100 * mined.levels[-1]:.3g} % of the channels gone, median {what}: {told}")
    ax.legend(
        title="median, quartiles", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9
    ).set_alignment("left")
    return ax


def _flags(name: str, flags: Tensor, mined: MinedSamples) -> Tensor:
    if not isinstance(flags, Tensor) or flags.dtype != torch.bool or flags.shape != mined.target.shape:
        got = f"{flags.dtype} of shape {tuple(flags.shape)}" if isinstance(flags, Tensor) else type(flags).__name__
        raise InputError(f"{name} is {got} for {len(mined.target)} samples; {_NO_FLAGS}")
    return flags
