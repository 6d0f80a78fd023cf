"""A contact sheet of the samples whose label changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fairtrim import ChangedSamples, InputError

from .canvas import as_picture, draw_images, new_axes, require_drawn, sheet_size, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_changed_images"]

_LOST, _GAINED, _OTHER = "#882255", "#332288", "black"  # no group's colours


def plot_changed_images(
    changed: ChangedSamples,
    *,
    number: int = 24,
    class_names: Sequence[str] | None = None,
    images: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """The images whose target lost most probability among those whose label changed.

    Above each image stands its target and the labels that were predicted before and after, then the sensitive group.
    Labels that were right and became wrong are wine red, those that became right dark blue, from one wrong label to
    another black.

    Args:
        changed: From ``fairtrim.changed_samples``.
        number: How many images at most.
        class_names: Names of the K classes; default their numbers.
        images: What to draw in place of the inputs that were kept: the images of all samples of the loader, in its
            order, (n_samples, H, W) or (n_samples, C, H, W).
        ax: Where to draw; default new axes.

    Returns:
        The axes.

    Raises:
        InputError: There are no images, or of another shape, they are not as many as samples, a class has no name,
            ``number`` is below 1, or matplotlib is not installed.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from torch import nn
        >>> from fairtrim import changed_samples
        >>> people = [(torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 1]), ["a", "b", "b"])]
        >>> dense, pruned = (nn.Sequential(nn.Flatten(), nn.Linear(16, 2)) for _ in range(2))
        >>> with torch.no_grad():
        ...     for network, label in ((dense, 1), (pruned, 0)):  # that give everybody one label
        ...         _ = nn.init.zeros_(network[1].weight), network[1].bias.copy_(torch.eye(2)[label])
        >>> changed = changed_samples(dense, pruned, people, progress=False)
        >>> ax = plot_changed_images(changed, ax=Figure().subplots())
        >>> len(ax.child_axes)
        3
    """
    require_drawn(changed, ChangedSamples, "changed_samples")
    if number < 1:
        raise InputError(f"number={number}; expected at least 1 image")
    if images is not None and len(images) != changed.n_samples:
        raise InputError(f"{len(images)} images for {changed.n_samples} samples of the loader; expected as many")
    rows = range(min(number, len(changed)))
    if images is not None:
        given = [images[int(changed.row[place])] for place in rows]
    elif isinstance(changed.inputs, Tensor) and changed.inputs.ndim in (3, 4):
        given = [changed.inputs[place] for place in rows]
    else:
        form = "no tensor" if not isinstance(changed.inputs, Tensor) else f"of shape {tuple(changed.inputs.shape)}"
        form = "not kept (keep_inputs=False)" if changed.inputs is None else form
        raise InputError(
            f"the inputs were {form}; expected images (M, H, W) or (M, C, H, W): pass images=, those of all samples of "
            "the loader"
        )
    pictures = [as_picture(image) for image in given]
    groups = changed.groups
    titles, colours = [], []
    for place in rows:
        target, before, after = (
            _class_name(int(labels[place]), class_names) for labels in (changed.target, changed.before, changed.after)
        )
        group = groups[place] if changed.sensitive else ""
        lines = [wrapped(f"{target}: {before} →\u00a0{after}")]
        lines += [wrapped(group if isinstance(group, str) else ", ".join(group))] if group else []
        titles.append("\n".join(lines))
        colours.append(_LOST if changed.lost[place] else _GAINED if changed.gained[place] else _OTHER)
    width, height = sheet_size(len(rows), max((title.count("\n") + 1 for title in titles), default=1))
    ax = new_axes(ax, (width, height + 0.45))
    draw_images(ax, pictures, titles, colours)
    _explain(ax, set(colours))
    n_lost, n_gained = int(changed.lost.sum()), int(changed.gained.sum())
    told = f"{len(changed):,} of {changed.n_samples:,} labels changed: {n_lost:,} became wrong, {n_gained:,} right"
    ax.set_title(told, fontsize=10.5, pad=22)
    if not rows:
        ax.text(0.5, 0.5, "no label changed", ha="center", va="center", transform=ax.transAxes)
    return ax


def _explain(ax: Axes, colours: set[str]) -> None:
    from matplotlib.lines import Line2D

    kinds = {_LOST: "right before, wrong after", _GAINED: "wrong before, right after", _OTHER: "wrong before and after"}
    keys = [
        Line2D([], [], marker="s", linestyle="none", color=colour, label=label)
        for colour, label in kinds.items()
        if colour in colours
    ]
    if keys:
        options: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.01), "frameon": False}
        ax.legend(
            handles=keys, ncols=len(keys), fontsize=8, title="target: label before → after", title_fontsize=8, **options
        )


def _class_name(label: int, names: Sequence[str] | None) -> str:
    if names is None:
        return str(label)
    if label >= len(names):
        raise InputError(f"class {label} has no name among the {len(names)} class_names; expected one for each class")
    return str(names[label])
