"""Pictures of repairs: performance against bias, and the training samples that do harm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fairtrim import BiasInfluence, InputError, Repair

from .canvas import as_picture, draw_images, new_axes, require_drawn, sheet_size, titled
from .styles import EVERYBODY, axis_label, better, network_styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_most_harmful", "plot_trade_off"]


def plot_trade_off(repairs: Mapping[str, Repair], *, max_bias: float | None = None, ax: Axes | None = None) -> Axes:
    """Performance against absolute bias on the selection people, one line a method.

    A line gives, for each bound on the bias, the best performance of any candidate and threshold believed to be within
    it (``OperatingPoint.believed``); a dot marks what was chosen, a cross the network as it was given, as measured.
    Selection people choose, so their figures are a little too good: judge the chosen network on people who had no part
    in it.

    Args:
        repairs: Repairs of one network by name of the method, of one measure and one performance.
        max_bias: Right end of the axis; default a little beyond the given network's bias.
        ax: Where to draw; default new axes.

    Returns:
        The axes.

    Raises:
        InputError: There is no repair, measures differ, or matplotlib is not installed.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from fairtrim import ThresholdSelection
        >>> x = torch.linspace(-1, 1, 60)[:, None]
        >>> people = [(x, (x[:, 0] > 0.3).long(), ["a", "b", "b"] * 20)]
        >>> repair = ThresholdSelection(epsilon=0.2).repair(torch.nn.Linear(1, 1), people, progress=False)
        >>> ax = plot_trade_off({"threshold": repair}, ax=Figure().subplots())
        >>> ax.get_xlabel()
        '|demographic parity difference|, selection people (less is better ←)'
    """
    if not isinstance(repairs, Mapping):
        raise InputError(f"got a {type(repairs).__name__}; expected repairs by name: {{'threshold': repair, ...}}")
    for repair in repairs.values():
        require_drawn(repair, Repair, "a post-processor's repair")
    if not repairs:
        raise InputError("no repairs to draw; expected at least one, by name")
    objectives = {(repair.objective.measure, repair.objective.performance) for repair in repairs.values()}
    if len(objectives) > 1:
        raise InputError(f"the repairs are of different measures: {sorted(objectives)}; expected one picture for each")
    ((measure, performance),) = objectives
    ax = new_axes(ax, (7.5, 4.5))
    first = next(iter(repairs.values()))
    right = 1.15 * max(abs(first.bias_before), first.objective.epsilon) if max_bias is None else max_bias
    looks = network_styles(repairs)
    for name, repair in repairs.items():
        points = [point for point in repair.trade_off if point.believed <= right]
        sizes = [point.believed for point in points]
        performances = [point.performance for point in points]
        if points:
            sizes.append(right)
            performances.append(performances[-1])
        ax.plot(sizes, performances, drawstyle="steps-post", color=looks[name].colour)
        ax.plot(repair.chosen.believed, repair.performance, label=name, **looks[name].marks(7))
    ax.plot(abs(first.bias_before), first.performance_before, "x", color=EVERYBODY, linestyle="none", label="as given")
    bound = first.objective.bound
    ax.axvline(bound, color="grey", linestyle=":", linewidth=1)
    ax.set_xlim(0, right)
    ax.set_xlabel(axis_label(f"|{measure.replace('_', ' ')}|, selection people", "min", vertical=False))
    ax.set_ylabel(axis_label(performance, better(performance) or "max"))
    within = {name: repair.performance for name, repair in repairs.items() if repair.chosen.believed <= bound}
    best = max(within, key=within.__getitem__, default="")
    given = f"as given {first.performance_before:.3f} at {abs(first.bias_before):.3g}"
    kept = f"{best} keeps most {performance.replace('_', ' ')}, {within[best]:.3f}" if best else "nothing was found"
    titled(ax, f"Within the bound of {bound:.3g}, {kept}; {given}")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return ax


def plot_most_harmful(
    influence: BiasInfluence,
    *,
    number: int = 20,
    labels: Sequence[str] | None = None,
    images: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """The training samples that raise the bias most, as bars or as pictures.

    Args:
        influence: Scores of the training samples.
        number: How many at most.
        labels: What to call each training sample, (N,); default its position.
        images: The training images, (N, H, W) or (N, C, H, W), drawn in place of bars; None for bars.
        ax: Where to draw; default new axes.

    Returns:
        The axes.

    Raises:
        InputError: There are not as many labels or images as scores, an image has another shape, or matplotlib is not
            installed.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from fairtrim import BiasInfluence
        >>> influence = BiasInfluence(torch.tensor([0.5, -1.0, 0.0, 0.25]), 0.1, "counterfactual_bias")
        >>> ax = plot_most_harmful(influence, ax=Figure().subplots())
        >>> [float(bar.get_width()) for bar in ax.patches], [label.get_text() for label in ax.get_yticklabels()]
        ([0.5, 0.25], ['0', '3'])
    """
    require_drawn(influence, BiasInfluence, "influence_on_bias")
    for name, given in (("labels", labels), ("images", images)):
        if given is not None and len(given) != len(influence.scores):
            raise InputError(f"{len(given)} {name} for {len(influence.scores)} training samples; expected as many")
    rows = influence.most_harmful(number).tolist()
    names = [str(row) if labels is None else str(labels[row]) for row in rows]
    scores = influence.scores[rows].tolist()
    if images is None:
        ax = new_axes(ax, (7, 1 + 0.28 * len(rows)))
        ax.barh(range(len(rows)), scores, color="#882255")
        ax.set_yticks(range(len(rows)), names)
        ax.invert_yaxis()
        measure = influence.measure.replace("_", " ")
        ax.set_xlabel(f"influence on {measure} (more is worse →)")
        titled(ax, f"Training samples that raise {measure} most" if rows else f"No training sample raises {measure}")
        ax.grid(visible=False, axis="y")
        return ax
    pictures = [as_picture(images[row]) for row in rows]
    ax = new_axes(ax, sheet_size(len(rows), 2))
    draw_images(ax, pictures, [f"{n}\n{s:+.2f}" for n, s in zip(names, scores, strict=True)])
    return ax
