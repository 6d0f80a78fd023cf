"""Pictures of a sweep: what each criterion leaves of performance and of gaps, and who pays for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from fairtrim import InputError
from fairtrim_adapters.pareto import Direction, mean_over_seeds, now_called, pareto_set

from .canvas import COLOURS, LINE_STYLES, MARKERS, import_pyplot, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_group_metric", "plot_pareto"]

_DENSE = "dense"
_FILLS = ("full", "none", "left", "bottom", "right", "top")
_SMALLER_IS_BETTER = ("parameters", "macs", "latency_ms", "changed_predictions", "false_positive_rate")
_LARGER_IS_BETTER = ("accuracy", "balanced_accuracy", "worst_group_accuracy", "true_positive_rate")
_REMOVED = {
    "parameters_ratio": "parameters removed (%)",
    "macs_ratio": "multiply-adds removed (%)",
    "latency_ratio": "latency saved (%)",
}


def _words(column: str) -> str:
    return column.replace("_", " ")


def _direction(column: str, objectives: Mapping[str, Direction] | None) -> Direction | None:
    if objectives is not None and column in objectives:
        return objectives[column]
    if column in _LARGER_IS_BETTER:
        return "max"
    small = column in (*_SMALLER_IS_BETTER, *_REMOVED) or column.endswith("_difference")
    return "min" if small else None


def _axis_label(column: str, direction: Direction | None) -> str:
    return _words(column) + {"max": "  (better →)", "min": "  (← better)", None: ""}[direction]


def _require(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"the sweep is a {type(frame).__name__}; expected a pandas DataFrame with one row a run")
    missing = [name for name in columns if name not in frame]
    if missing:
        former = now_called(frame, missing)
        raise InputError(f"the sweep has no column {missing}{former}; its columns are {frame.columns.tolist()}")
    if not len(frame):
        raise InputError("the sweep has no rows; expected at least one run")


def _first_first(values: pd.Series, first: str) -> list[str]:
    """Distinct values in the order of the frame, but one of them before all others."""
    distinct = [str(value) for value in dict.fromkeys(values)]
    return sorted(distinct, key=lambda value: value != first)


def _choose(given: Sequence[str], looks: Sequence[str], what: str) -> dict[str, str]:
    if len(given) > len(looks):
        raise InputError(
            f"the sweep has {len(given)} {what}; expected at most {len(looks)}, which can be told apart: select rows"
        )
    return dict(zip(given, looks, strict=False))


def plot_pareto(
    frame: pd.DataFrame,
    *,
    x: str = "equalized_odds_difference",
    y: str = "accuracy",
    colour: str = "parameters_ratio",
    objectives: Mapping[str, Direction] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Performance against a gap, one marker for each (criterion, pruning ratio, post-processor) of a sweep.

    A large marker is the mean over seeds, small ones are the single seeds, thin lines the means of the seeds' 95 %
    intervals. The shape tells the criterion, the filling the post-processor, the colour how much was removed. The star
    is the dense network. A ring marks the Pareto set of the means (``pareto_set``); if it is about nothing but x and y,
    a line joins it.

    Args:
        frame: From ``fairtrim_adapters.sweep.sweep``.
        x: Column of the horizontal axis.
        y: Column of the vertical axis.
        colour: Column of the colours; ``parameters_ratio``, ``macs_ratio`` and ``latency_ratio`` are shown as what was
            removed, 1 − ratio in percent.
        objectives: As for ``pareto_set``; default x and y, as far as one direction of them is known to be better, and
            ``parameters``, if the sweep has them.
        ax: Where to draw; default new axes.

    Returns:
        The axes.

    Raises:
        InputError: A column is missing, the sweep is empty, has more criteria or post-processors than can be told
            apart, or nothing to draw, or matplotlib is not installed.

    Example:
        >>> from matplotlib.figure import Figure
        >>> run = {"seed": 0, "criterion": "magnitude", "pruning_ratio": 0.5, "post_processor": "none"}
        >>> figures = {"parameters_ratio": 0.3, "accuracy": 0.9, "equalized_odds_difference": 0.2}
        >>> table = pd.DataFrame([{**run, **figures}])
        >>> ax = plot_pareto(table, ax=Figure().subplots())
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('equalized odds difference  (← better)', 'accuracy  (better →)')
    """
    _require(frame, ["seed", "criterion", "pruning_ratio", "post_processor", x, y, colour])
    means = mean_over_seeds(frame)
    pruned = [name for name in dict.fromkeys(frame["criterion"]) if name != _DENSE]
    shapes = {_DENSE: "*", **_choose(pruned, MARKERS, "criteria")}
    fills = _choose(_first_first(frame["post_processor"], "none"), _FILLS, "post-processors")
    if objectives is None:
        known = {name: _direction(name, None) for name in (y, x, "parameters") if name in means}
        chosen: dict[str, Direction] = {name: better for name, better in known.items() if better is not None}
    else:
        chosen = dict(objectives)
    members = pareto_set(means, chosen) if chosen else pd.Series(False, index=means.index)
    words = [name for name in (x, y, colour) if name not in means]
    if words:
        raise InputError(f"the columns {words} hold no numbers; expected some that do")
    drawable = means[[x, y]].notna().all(axis=1)
    if not drawable.any():
        raise InputError(f"every run has NaN in {x!r} or {y!r}; expected some with both")

    import_pyplot()  # tells what is missing, before anything is drawn
    paint = _Paint(frame, colour)
    ax = new_axes(ax, (8.2, 5.4))
    for _, run in frame.iterrows() if means["seeds"].max() > 1 else ():
        marker = shapes[run["criterion"]]
        ax.plot(run[x], run[y], marker, color=paint(run), markersize=3.2, alpha=0.55, markeredgewidth=0, zorder=2)
    intervals = False
    for place, run in means[drawable].iterrows():
        shade, dense = paint(run), run["criterion"] == _DENSE
        intervals = _draw_interval(ax, run, x, y, shade) or intervals
        edge = "black" if dense else shade
        mark: dict[str, Any] = {
            "marker": shapes[run["criterion"]],
            "fillstyle": fills[run["post_processor"]],
            "linestyle": "none",
        }
        colours: dict[str, Any] = {
            "color": edge,
            "markeredgecolor": edge,
            "markerfacecoloralt": "white",
            "markeredgewidth": 1.3,
        }
        ax.plot(run[x], run[y], **mark, **colours, markersize=15 if dense else 8, zorder=4)
        if members[place]:
            ring: dict[str, Any] = {
                "markersize": 19 if dense else 14,
                "markerfacecolor": "none",
                "markeredgecolor": "black",
            }
            ax.plot(run[x], run[y], "o", **ring, zorder=3)
    if set(chosen) <= {x, y} and members.any():
        front = means[members].sort_values([x, y])
        ax.plot(front[x], front[y], color="black", linewidth=0.8, zorder=1)
    ax.set_xlabel(_axis_label(x, _direction(x, chosen)))
    ax.set_ylabel(_axis_label(y, _direction(y, chosen)))
    ax.grid(color="0.92", linewidth=0.6)
    ax.set_axisbelow(True)
    bar = ax.figure.colorbar(paint.scale(), ax=ax, location="top", aspect=45, pad=0.02, fraction=0.05)
    bar.set_label(paint.label)
    handles = _keys(shapes, fills, means, chosen if members.any() else {}, intervals=intervals)
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    return ax


class _Paint:
    """The colour of a run."""

    def __init__(self, frame: pd.DataFrame, column: str) -> None:
        from matplotlib import colormaps
        from matplotlib.colors import ListedColormap, Normalize

        self._column, self._removed = column, column in _REMOVED
        values = np.array([self._value(value) for value in frame[column]])
        values = values[np.isfinite(values)]
        if not len(values):
            raise InputError(f"every run has NaN in {column!r}; expected numbers for the colours")
        low, high = float(values.min()), float(values.max())
        # the palest quarter of the map is hard to see on white
        self._map = ListedColormap(colormaps["viridis_r"](np.linspace(0.18, 1, 256)))
        self._norm = Normalize(low, high if high > low else low + 1)
        self.label = _REMOVED.get(column, _words(column))

    def _value(self, value: float) -> float:
        return 100 * (1 - float(value)) if self._removed else float(value)

    def __call__(self, run: pd.Series) -> Any:
        value = self._value(run[self._column])
        return self._map(self._norm(value)) if np.isfinite(value) else (0.6, 0.6, 0.6, 1.0)

    def scale(self) -> Any:
        from matplotlib.cm import ScalarMappable

        return ScalarMappable(self._norm, self._map)


def _draw_interval(ax: Axes, run: pd.Series, x: str, y: str, shade: Any) -> bool:
    """Whether there was one."""
    drawn = False
    line = {"color": shade, "linewidth": 0.7, "alpha": 0.6, "zorder": 1}
    for column, draw, across in ((x, ax.hlines, run[y]), (y, ax.vlines, run[x])):
        ends = [run.get(f"{column}_{end}", np.nan) for end in ("low", "high")]
        if np.isfinite(ends).all():
            draw(across, *ends, **line)
            drawn = True
    return drawn


def _keys(
    shapes: Mapping[str, str],
    fills: Mapping[str, Any],
    means: pd.DataFrame,
    objectives: Mapping[str, Direction],
    *,
    intervals: bool,
) -> list[Any]:
    """Entries of the legend."""
    from matplotlib.lines import Line2D

    grey: dict[str, Any] = {"color": "0.35", "linestyle": "none", "markersize": 7.5}
    present = set(means["criterion"])
    keys = [
        Line2D(
            [], [], marker=shape, label=name, **({**grey, "color": "black", "markersize": 12} if shape == "*" else grey)
        )
        for name, shape in shapes.items()
        if name in present
    ]
    if len(fills) > 1:
        for name, fill in fills.items():
            label = "no post-processor" if name == "none" else name
            keys.append(Line2D([], [], marker="o", fillstyle=fill, markerfacecoloralt="white", label=label, **grey))
    if intervals:
        keys.append(Line2D([], [], color="0.35", linewidth=0.7, alpha=0.6, label="95 % interval"))
    if means["seeds"].max() > 1:
        keys.append(Line2D([], [], marker="o", **{**grey, "markersize": 3.2}, alpha=0.6, label="single seeds"))
    if objectives:
        ring = {**grey, "color": "black", "markersize": 12, "markerfacecolor": "none"}
        keys.append(Line2D([], [], marker="o", label="Pareto set of\n" + ",\n".join(map(_words, objectives)), **ring))
    return keys


def plot_group_metric(
    frame: pd.DataFrame,
    metric: str = "accuracy",
    *,
    post_processor: str = "none",
    axes: Axes | Sequence[Axes] | npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any]:
    """One metric of each sensitive group against the share of channels removed, one panel a criterion.

    Lines are means over seeds, bands the means of the seeds' 95 % intervals, black is everybody. Dotted lines show the
    dense network without a post-processor; lines begin at the dense network if the sweep has it with the same
    post-processor.

    Args:
        frame: From ``fairtrim_adapters.sweep.sweep``.
        metric: One that the sweep has for each group, in columns such as ``accuracy[Female]``.
        post_processor: Which runs.
        axes: Where to draw, one for each criterion; default new ones.

    Returns:
        The axes, one for each criterion in the order of the frame.

    Raises:
        InputError: The sweep has no such metric by group, no run with that post-processor, more groups than can be
            told apart, the axes are too many or too few, or matplotlib is not installed.

    Example:
        >>> from matplotlib.figure import Figure
        >>> run = {"seed": 0, "criterion": "magnitude", "pruning_ratio": 0.5, "post_processor": "none"}
        >>> table = pd.DataFrame([{**run, "accuracy": 0.9, "accuracy[a]": 0.95, "accuracy[b]": 0.8}])
        >>> (ax,) = plot_group_metric(table, axes=[Figure().subplots()])
        >>> ax.get_title(), ax.get_ylabel()
        ('magnitude', 'accuracy')
    """
    _require(frame, ["seed", "criterion", "pruning_ratio", "post_processor"])
    means = mean_over_seeds(frame)
    groups = [name[len(metric) + 1 : -1] for name in means if name.startswith(f"{metric}[") and name.endswith("]")]
    if not groups:
        known = sorted({name.partition("[")[0] for name in means if name.endswith("]")})
        raise InputError(f"metric={metric!r} is not in the sweep by sensitive group; those that are: {known}")
    looks = [(colour, style) for style in LINE_STYLES for colour in COLOURS]
    if len(groups) > len(looks):
        raise InputError(
            f"the sweep has {len(groups)} sensitive groups; expected at most {len(looks)}: leave columns out"
        )
    runs = means[means["post_processor"] == post_processor]
    criteria = [name for name in dict.fromkeys(runs["criterion"]) if name != _DENSE]
    if not criteria:
        known = list(dict.fromkeys(means.loc[means["criterion"] != _DENSE, "post_processor"]))
        raise InputError(f"no pruned network has post_processor={post_processor!r}; the sweep has {known}")
    figure, panels = _panels(axes, criteria)
    untouched = means[(means["criterion"] == _DENSE) & (means["post_processor"] == "none")]
    begins = runs[runs["criterion"] == _DENSE]
    lines = [*zip([f"{metric}[{g}]" for g in groups], looks, groups, strict=False)]
    lines += [(metric, ("black", "-"), "everybody")] if metric in means else []
    for panel, criterion in zip(panels, criteria, strict=True):
        here = pd.concat([begins, runs[runs["criterion"] == criterion]]).sort_values("pruning_ratio", kind="stable")
        for g, (column, look, label) in enumerate(lines):
            marker = None if column == metric else MARKERS[g % len(MARKERS)]
            _draw_group(panel, here, column, look, label, marker, faint=len(lines) > 5)
            for value in untouched[column].dropna():
                panel.axhline(value, color=look[0], linestyle=":", linewidth=0.9, zorder=2)
        panel.set_title(criterion, fontsize=10)
        panel.grid(color="0.93", linewidth=0.6)
        panel.set_axisbelow(True)
    if figure is None:
        for panel in panels:
            panel.set_xlabel("channels removed (%, as asked)")
            panel.set_ylim(min(p.get_ylim()[0] for p in panels), max(p.get_ylim()[1] for p in panels))
        panels[0].set_ylabel(_words(metric))
    else:
        figure.supxlabel("channels removed (%, as asked)", fontsize=10)
        figure.supylabel(_words(metric), fontsize=10)
    handles, labels = _group_keys(panels[0], untouched)
    if figure is None:
        panels[-1].legend(handles, labels, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    else:
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    return panels


def _panels(
    axes: Axes | Sequence[Axes] | npt.NDArray[Any] | None, criteria: Sequence[str]
) -> tuple[Any, npt.NDArray[Any]]:
    """The figure, if it is a new one, and the axes, one for each criterion."""
    pyplot = import_pyplot()
    if axes is not None:
        panels = np.ravel(np.asarray(axes, dtype=object))
        if len(panels) != len(criteria):
            raise InputError(f"{len(panels)} axes for {len(criteria)} criteria ({criteria}); expected one for each")
        return None, panels
    n_columns = min(4, len(criteria)) if len(criteria) != 5 else 3
    n_rows = -(-len(criteria) // n_columns)
    figure, grid = pyplot.subplots(
        n_rows,
        n_columns,
        figsize=(2.5 * n_columns + 2.4, 2.5 * n_rows + 0.5),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    panels, spare = grid.ravel()[: len(criteria)], grid.ravel()[len(criteria) :]
    for above, empty in zip(grid.ravel()[len(criteria) - n_columns :], spare, strict=False):
        above.tick_params(labelbottom=True)
        empty.set_axis_off()
    return figure, panels


def _draw_group(
    panel: Axes,
    here: pd.DataFrame,
    column: str,
    look: tuple[str, str],
    label: str,
    marker: str | None,
    *,
    faint: bool,
) -> None:
    """A line, and a band if there are intervals; the line of everybody has no marker."""
    shade, style = look
    share = 100 * here["pruning_ratio"].to_numpy(dtype=float)
    low, high = (here.get(_end(column, end), pd.Series(np.nan, here.index)) for end in ("low", "high"))
    if np.isfinite(low).any():
        panel.fill_between(share, low, high, color=shade, alpha=0.07 if faint else 0.16, linewidth=0, zorder=1)
    panel.plot(
        share,
        here[column],
        color=shade,
        linestyle=style,
        linewidth=1.3 if marker else 1.9,
        marker=marker,
        markersize=4,
        label=label,
        zorder=3 if marker else 4,
    )


def _end(column: str, end: str) -> str:
    """``accuracy_low[Female]`` of ``accuracy[Female]``."""
    metric, bracket, group = column.partition("[")
    return f"{metric}_{end}{bracket}{group}"


def _group_keys(panel: Axes, untouched: pd.DataFrame) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles, labels = panel.get_legend_handles_labels()
    if panel.collections:
        handles, labels = [*handles, Patch(color="0.35", alpha=0.25, linewidth=0)], [*labels, "95 % interval"]
    if len(untouched):
        handles, labels = (
            [*handles, Line2D([], [], color="0.4", linestyle=":", linewidth=0.9)],
            [*labels, "dense network"],
        )
    return handles, labels
