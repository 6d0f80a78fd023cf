"""A damage table as a map of sensitive groups and layers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

import torch

from fairtrim import DamageTable, InputError

from .canvas import new_axes, require_drawn, wrapped
from .styles import group_name, group_styles, short_names

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
    """Where in the network removing channels is predicted to hurt whom: layers, the first on top, by sensitive groups.

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
        [[4.0, 9.0]]
    """
    require_drawn(table, DamageTable, "collect_damage, or importance.damage_,")
    if kind not in get_args(DamageKind):
        raise InputError(f"kind={kind!r}; expected one of {list(get_args(DamageKind))}")
    layers = [name for name in table.layer_order or sorted(table.sizes, key=_natural) if table.sizes[name]]
    if not layers:
        raise InputError("the damage table has no channels; expected at least one layer that has some")
    values = torch.stack([_summary(table[name], kind) for name in layers])  # (layers, G)
    impossible = torch.stack([table.impossible(row) for row in values])
    values = values.masked_fill(impossible, torch.nan)
    groups = list(map(group_name, table.sensitive_groups))
    people = [f"{wrapped(name)}\nn = {n:,.0f}" for name, n in zip(groups, table.counts.tolist(), strict=True)]
    names = [f"{name} ({table.sizes[layer]})" for name, layer in zip(short_names(layers), layers, strict=True)]
    width = 3.0 + 0.075 * max(map(len, names)) + len(groups) * (1.1 if len(groups) <= 8 else 0.4)
    ax = new_axes(ax, (max(5.5, width), 1.6 + len(names) * (0.32 if len(names) <= 40 else 0.18)))
    norm, spread = _norm(values)
    image = ax.imshow(values.numpy(), cmap="RdBu_r", norm=norm, aspect="auto", interpolation="nearest")
    ax.set_yticks(range(len(names)), names, fontsize=9 if len(names) <= 40 else 7)
    ax.set_xticks(range(len(people)), people, fontsize=9, rotation=0 if len(people) <= 8 else 90)
    for tick, style in zip(ax.get_xticklabels(), group_styles(groups).values(), strict=True):
        tick.set_color(style.colour)
    ax.set_ylabel("layer (channels), from input to output")
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.015)
    bar.set_label("rise of the mean loss (red hurts)\n(nats, if cross-entropy)")
    if spread:
        bar.set_ticks(_spread_ticks(norm))
    title = f"{_verdict(values, groups, short_names(layers))}\nEach channel removed alone: {_LABELS[kind]}"
    marked = "\n×: impossible, a fall of more than the loss" if bool(impossible.any()) else ""
    ax.set_title(title + marked, fontsize=10)
    for layer, g in impossible.nonzero().tolist():
        ax.text(g, layer, "×", ha="center", va="center", fontsize=8, color="black")
    if values.numel() <= _MOST_ANNOTATED:
        for layer, row in enumerate(values.tolist()):
            for g, value in enumerate(row):
                if math.isnan(value):
                    continue
                shade = "white" if abs(float(norm(value)) - 0.5) > 0.3 else "black"
                ax.text(g, layer, f"{value:+.2g}", ha="center", va="center", fontsize=8, color=shade)
    return ax


def _natural(name: str) -> list[tuple[int, str]]:
    """Order of names in which 10 comes after 2."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _verdict(values: torch.Tensor, groups: list[str], layers: list[str]) -> str:
    """Whom removing a channel is predicted to hurt most, and where."""
    known = values.nan_to_num(-math.inf)
    layer, g = divmod(int(known.argmax()), len(groups))
    if not float(known[layer, g]) > 0:
        return "No channel is predicted to hurt a group"
    return f"Predicted to hurt most: {groups[g]}, in layer {layers[layer]}"


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
