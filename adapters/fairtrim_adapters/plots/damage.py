"""A damage table as a map of sensitive groups and layers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

import torch

from fairtrim import DamageTable, InputError

from .canvas import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

__all__ = ["DamageKind", "plot_damage"]

DamageKind = Literal["mean", "largest", "all"]
"""How the channels of a layer become one number; see ``plot_damage``."""

_LABELS = {
    "mean": "mean over the layer",
    "largest": "largest of the layer",
    "all": "sum over the layer",
}
_MOST_ANNOTATED = 100  # cells; with more, numbers are too small to read


def plot_damage(table: DamageTable, *, kind: DamageKind = "mean", ax: Axes | None = None) -> Axes:
    """Where in the network removing channels is predicted to hurt whom: sensitive groups by layers.

    Every number is of channels removed one by one. What a set of channels does together, ``table.predict`` tells.
    Colours are symmetric around 0 and linear near it; where a few layers are far above the others, they are
    logarithmic further out, so that the others can be told apart. A fall of more than a group's whole loss is
    impossible, and marked in the place of a number.

    Args:
        table: From ``fairtrim.collect_damage``, or an importance's ``damage_``.
        kind: ``"mean"``, the mean over the layer's channels; ``"largest"``, the channel that hurts the group most,
            which may be another one for each group; ``"all"``, the sum over the layer's channels, so that wide layers
            count for more.
        ax: Where to draw; default new axes.

    Returns:
        The axes.

    Raises:
        InputError: There is no such kind, the table has no layer, or matplotlib is not installed.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from torch import nn
        >>> from fairtrim import ChannelGroup, ChannelPlace, collect_damage
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(2, 1, bias=False))
        >>> _ = nn.init.ones_(model[1].weight)
        >>> hidden = ChannelGroup("0", 2, (ChannelPlace("1", "input", range(2), range(2), channel_axis=-1),))
        >>> people = [(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[3.0], [3.0]]), ["a", "b"])]
        >>> table = collect_damage(model, people, [hidden], loss_fn=nn.functional.mse_loss, progress=False)
        >>> ax = plot_damage(table, kind="largest", ax=Figure().subplots())
        >>> ax.images[0].get_array().round(3).tolist()  # squared inputs: 1 and 4 of a, 9 and 0 of b
        [[4.0], [9.0]]
    """
    if kind not in get_args(DamageKind):
        raise InputError(f"kind={kind!r}; expected one of {list(get_args(DamageKind))}")
    layers = [name for name, size in table.sizes.items() if size]
    if not layers:
        raise InputError("the damage table has no channels; expected at least one layer that has some")
    values = torch.stack([_summary(table[name], kind) for name in layers], 1)
    impossible = torch.stack([table.impossible(column) for column in values.unbind(1)], 1)
    values = values.masked_fill(impossible, torch.nan)
    people = [
        f"{name if isinstance(name, str) else ', '.join(name)} (n = {count:,.0f})"
        for name, count in zip(table.sensitive_groups, table.counts.tolist(), strict=True)
    ]
    names = [f"{name} ({table.sizes[name]})" for name in layers]
    longest = 0.085 * max(map(len, names))
    width = 2.6 + 0.075 * max(map(len, people)) + len(names) * (0.75 if len(names) <= 10 else 0.24)
    ax = new_axes(ax, (max(5.0, width), 0.9 + longest + max(1.1, 0.3 * len(people))))
    norm, spread = _norm(values)
    image = ax.imshow(values.numpy(), cmap="RdBu_r", norm=norm, aspect="auto", interpolation="nearest")
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    ax.set_yticks(range(len(people)), people, fontsize=9)
    ax.set_xlabel("layer (channels)")
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.015)
    bar.set_label("rise of the mean loss\n(nats, if cross-entropy)")
    if spread:
        bar.set_ticks(_spread_ticks(norm))
    title = f"Predicted for each channel removed alone: {_LABELS[kind]}"
    ax.set_title(
        title + ("\n×: impossible, a fall of more than the loss" if bool(impossible.any()) else ""), fontsize=10
    )
    for g, layer in impossible.nonzero().tolist():
        ax.text(layer, g, "×", ha="center", va="center", fontsize=8, color="black")
    if values.numel() <= _MOST_ANNOTATED:
        for g, row in enumerate(values.tolist()):
            for layer, value in enumerate(row):
                if math.isnan(value):
                    continue
                shade = "white" if abs(float(norm(value)) - 0.5) > 0.3 else "black"
                ax.text(layer, g, f"{value:+.2g}", ha="center", va="center", fontsize=8, color=shade)
    return ax


def _summary(damage: torch.Tensor, kind: str) -> torch.Tensor:
    """One number for each group from (G, C)."""
    if kind == "mean":
        return damage.mean(1)
    return damage.amax(1) if kind == "largest" else damage.sum(1)


def _norm(values: torch.Tensor) -> tuple[Normalize, bool]:
    """Colours around 0, and whether they are logarithmic further out."""
    from matplotlib.colors import AsinhNorm, Normalize

    sizes = values.abs().nan_to_num(0)
    largest, middle = float(sizes.max()), float(sizes.median())
    largest = largest if largest > 0 else 1.0
    if 0 < 15 * middle < largest:
        return AsinhNorm(linear_width=2 * middle, vmin=-largest, vmax=largest), True
    return Normalize(-largest, largest), False


def _spread_ticks(norm: Normalize) -> list[float]:
    """0 and the powers of ten that are far enough from it to be labelled."""
    largest = float(norm.vmax or 1.0)
    powers = [10.0**power for power in range(math.floor(math.log10(largest)), -13, -1)]
    powers = [value for value in powers if float(norm(value)) > 0.56] or [largest]
    return sorted([0.0, *powers, *(-value for value in powers)])
