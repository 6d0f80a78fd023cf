"""Pictures of a sweep: what each criterion leaves of performance and of gaps, and who pays for it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fairtrim import InputError
from fairtrim_adapters.pareto import mean_over_seeds, now_called, pareto_set

from .canvas import import_pyplot, new_axes, titled
from .styles import (
    DENSE_LINE,
    EVERYBODY,
    MOST_GROUPS,
    MOST_NETWORKS,
    Style,
    amount,
    axis_label,
    better,
    group_styles,
    in_words,
    network_styles,
    quoted,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["plot_group_metric", "plot_pareto"]

_DENSE = "dense"
_UNREPAIRED = "none"
_LEFT = {"parameters_ratio": "parameters left, %", "macs_ratio": "MACs left, %", "latency_ratio": "latency left, %"}
_LABEL_APART = 0.055  # of the height of the axes, between two names of lines


def _begun(column: str) -> str:
    words = in_words(column)
    return words[:1].upper() + words[1:]


def _axis(column: str, *, vertical: bool) -> str:
    way = "min" if column in _LEFT else better(column)
    return axis_label(_LEFT.get(column, column), way, vertical=vertical)


def _require(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"the sweep is a {type(frame).__name__}; expected a pandas DataFrame with one row a run")
    missing = [name for name in columns if name not in frame]
    if missing:
        former = now_called(frame, missing)
        raise InputError(f"the sweep has no column {missing}{former}; its columns are {frame.columns.tolist()}")
    if not len(frame):
        raise InputError("the sweep has no rows; expected at least one run")


def plot_pareto(
    frame: pd.DataFrame,
    *,
    x: str = "parameters_ratio",
    y: str = "worst_group_accuracy",
    post_processor: str = "none",
    ax: Axes | None = None,
) -> Axes:
    """What each criterion leaves of a figure at each size: a line a criterion, its name at the line's end.

    A mark is the mean over seeds of one pruning ratio, its bar reaches over the seeds; of a single seed it is the 95 %
    interval over people. The dashed line is the dense network. The shaded area is what nobody needs: every network in
    it is beaten in both figures by one at the area's edge, which is the Pareto set of x and y, or equal to it. The
    title tells the largest pruning ratio that all criteria have.

    Args:
        frame: From ``fairtrim_adapters.sweep.sweep``.
        x: Column of the horizontal axis; ``parameters_ratio``, ``macs_ratio`` and ``latency_ratio`` in percent, small
            networks on the right.
        y: Column of the vertical axis, such as ``accuracy``, ``accuracy[Female]`` or ``equalized_odds_difference``.
        post_processor: Which runs.
        ax: Where to draw; default new axes.

    Returns:
        The axes.

    Raises:
        InputError: A column is missing, the sweep is empty, has no such runs, more criteria than can be told apart, or
            nothing to draw, or matplotlib is not installed.

    Example:
        >>> import pandas as pd
        >>> from matplotlib.figure import Figure
        >>> run = {"seed": 0, "criterion": "magnitude", "post_processor": "none"}
        >>> rows = [{"pruning_ratio": 0.5, "parameters_ratio": 0.3, "worst_group_accuracy": 0.8},
        ...         {"pruning_ratio": 0.8, "parameters_ratio": 0.1, "worst_group_accuracy": 0.6}]
        >>> ax = plot_pareto(pd.DataFrame([run | row for row in rows]), ax=Figure().subplots())
        >>> " ".join(ax.get_title().split())
        'With 80 % of the channels removed, accuracy of the worst group: 0.600 (magnitude)'
    """
    import pandas as pd

    _require(frame, ["seed", "criterion", "pruning_ratio", "post_processor", x, y])
    means = mean_over_seeds(frame)
    words = [name for name in (x, y) if name not in means]
    if words:
        raise InputError(f"the columns {words} hold no numbers; expected some that do")
    runs = means[(means["post_processor"] == post_processor) & means[[x, y]].notna().all(axis=1)]
    criteria = _criteria(means, runs, post_processor, f"{x!r} or {y!r}")
    if len(criteria) > MOST_NETWORKS:
        raise InputError(
            f"the sweep has {len(criteria)} criteria; expected at most {MOST_NETWORKS}, which can be told apart: "
            "select rows"
        )
    import_pyplot()  # tells what is missing, before anything is drawn
    ax = new_axes(ax, (8.2, 4.8))
    scale = 100.0 if x in _LEFT else 1.0
    looks = network_styles(criteria, _DENSE)
    dense = means[(means["criterion"] == _DENSE) & (means["post_processor"] == _UNREPAIRED)]
    ends: dict[str, tuple[float, float]] = {}
    for name in criteria:
        line = runs[runs["criterion"] == name].sort_values("pruning_ratio", kind="stable")
        at, values = scale * line[x].to_numpy(), line[y].to_numpy()
        ax.plot(at, values, linewidth=1.6, label=name, zorder=3, **looks[name].marks())
        low, high = _spread(frame, line, y, post_processor)
        ax.vlines(at, low, high, color=looks[name].colour, linewidth=1.1, alpha=0.55, zorder=2)
        ends[name] = float(at[-1]), float(values[-1])
    if scale > 1:
        ax.invert_xaxis()
        _percent_scale(ax, scale * runs[x].to_numpy())
    for value in dense[y].dropna():
        ax.axhline(value, color=EVERYBODY, linestyle=DENSE_LINE, linewidth=1.1, zorder=2)
        ends[f"dense {value:.3f}"] = np.nan, float(value)
    _shade(ax, pd.concat([runs, dense]).drop_duplicates(), x, y, scale)
    ax.set_xlabel(_axis(x, vertical=False) if scale == 1 else f"{_LEFT[x]} (less is better →)")
    ax.set_ylabel(_axis(y, vertical=True))
    titled(ax, _finding(runs, criteria, y))
    _name_lines(ax, ends, looks)
    return ax


def _criteria(means: pd.DataFrame, runs: pd.DataFrame, post_processor: str, columns: str) -> list[str]:
    """Names of the criteria that there are runs of, in the order of the frame."""
    criteria = [name for name in dict.fromkeys(runs["criterion"]) if name != _DENSE]
    pruned = means[means["criterion"] != _DENSE]
    if not criteria and post_processor in set(pruned["post_processor"]):
        raise InputError(f"every run has NaN in {columns}; expected some with numbers")
    if not criteria:
        known = list(dict.fromkeys(pruned["post_processor"]))
        raise InputError(f"no pruned network has post_processor={post_processor!r}; the sweep has {known}")
    return criteria


def _spread(
    frame: pd.DataFrame, line: pd.DataFrame, column: str, post_processor: str
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Lowest and highest of the seeds at each mark; of a single seed the ends of the interval."""
    import pandas as pd

    if line["seeds"].max() == 1:
        empty = pd.Series(np.nan, line.index)
        low, high = (line.get(_end(column, end), empty).to_numpy(dtype=float) for end in ("low", "high"))
        return low, high
    chosen = frame[(frame["criterion"] == line["criterion"].iloc[0]) & (frame["post_processor"] == post_processor)]
    by_ratio = chosen.groupby("pruning_ratio")[column]
    ratios = line["pruning_ratio"]
    return by_ratio.min()[ratios].to_numpy(), by_ratio.max()[ratios].to_numpy()


def _percent_scale(ax: Axes, shares: npt.NDArray[Any]) -> None:
    """Percent, logarithmic where the sizes lie far apart, with ticks that are read at once."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if not 0 < shares.min() < shares.max() / 4:
        return
    ax.set_xscale("log")
    ticks = [value for power in range(-2, 3) for value in np.array([1, 2, 3, 5, 7]) * 10.0**power]
    ax.xaxis.set_major_locator(FixedLocator([value for value in ticks if value <= 100]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _shade(ax: Axes, rows: pd.DataFrame, x: str, y: str, scale: float) -> None:
    """What is beaten in both figures, if one direction of each is better."""
    ways = {x: "min" if x in _LEFT else better(x), y: better(y)}
    if x == y or None in ways.values():
        return
    front = rows[pareto_set(rows, {column: way for column, way in ways.items() if way in ("max", "min")})]  # type: ignore[misc]
    front = front.sort_values(x, ascending=ways[x] == "min").drop_duplicates([x, y])
    (left, right), (bottom, top) = sorted(ax.get_xlim()), ax.get_ylim()
    far = right if ways[x] == "min" else left
    edge = [*(scale * front[x]), far], [*front[y], front[y].iloc[-1]]
    ax.fill_between(*edge, bottom if ways[y] == "max" else top, step="post", color="0.5", alpha=0.13, linewidth=0)
    ax.step(*edge, where="post", color="0.45", linewidth=0.8, zorder=1)
    corner = (0.01, 0.02, "bottom") if ways[y] == "max" else (0.01, 0.98, "top")
    ax.text(*corner[:2], "shaded: another is smaller and better" if x in _LEFT else "shaded: another is better in both",
            transform=ax.transAxes, va=corner[2], fontsize=8, color="0.35")  # fmt: skip
    ax.set_xlim((right, left) if ax.xaxis_inverted() else (left, right))
    ax.set_ylim(bottom, top)


def _finding(runs: pd.DataFrame, criteria: Sequence[str], y: str) -> str:
    """The best and the worst criterion at the largest ratio that all of them have."""
    common = set.intersection(*(set(runs.loc[runs["criterion"] == name, "pruning_ratio"]) for name in criteria))
    if not common:
        return f"{_begun(y)} by criterion and size"
    at = runs[(runs["pruning_ratio"] == max(common)) & runs["criterion"].isin(criteria)].set_index("criterion")[y]
    ordered = at.sort_values(ascending=better(y) == "min", kind="stable")
    told = " to ".join(f"{at[name]:.3f} ({name})" for name in dict.fromkeys((ordered.index[0], ordered.index[-1])))
    return f"With {100 * max(common):.3g} % of the channels removed, {in_words(y)}: {told}"


def _name_lines(ax: Axes, ends: dict[str, tuple[float, float]], looks: dict[str, Style]) -> None:
    """Names at the right of the axes, at the heights of the lines' ends, moved apart where they would touch."""
    low, high = ax.get_ylim()
    place = {name: (y - low) / (high - low) for name, (_, y) in ends.items()}
    names = sorted(place, key=place.__getitem__)
    moved, least = {}, -np.inf
    for name in names:
        least = moved[name] = max(place[name], least + _LABEL_APART)
    surplus = max(0.0, least - 1.0)
    for name in names:
        colour = looks[name].colour if name in looks else EVERYBODY
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6, "shrinkB": 6}
        ax.annotate(
            name, ends[name] if name in looks else (1.0, ends[name][1]), (1.03, moved[name] - surplus),
            xycoords="data" if name in looks else ax.get_yaxis_transform(), textcoords="axes fraction", va="center",
            fontsize=9.5, fontweight="bold", color=colour, annotation_clip=False,
            arrowprops=line if name in looks else None,
        )  # fmt: skip


def plot_group_metric(
    frame: pd.DataFrame,
    metric: str = "accuracy",
    *,
    post_processor: str = "none",
    axes: Axes | Sequence[Axes] | npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any]:
    """One metric of each sensitive group against the share of channels removed, one panel a criterion.

    Lines are means over seeds, bands the means of the seeds' 95 % intervals, black is everybody. Dashed lines show the
    dense network without a post-processor; lines begin at the dense network if the sweep has it with the same
    post-processor. A group looks the same in every picture of these people.

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
        >>> import pandas as pd
        >>> from matplotlib.figure import Figure
        >>> run = {"seed": 0, "criterion": "magnitude", "pruning_ratio": 0.5, "post_processor": "none"}
        >>> table = pd.DataFrame([{**run, "accuracy": 0.9, "accuracy[a]": 0.95, "accuracy[b]": 0.8}])
        >>> (ax,) = plot_group_metric(table, axes=[Figure().subplots()])
        >>> ax.get_title(), ax.get_ylabel()
        ('magnitude', 'accuracy (higher is better ↑)')
    """
    import pandas as pd

    _require(frame, ["seed", "criterion", "pruning_ratio", "post_processor"])
    means = mean_over_seeds(frame)
    groups = [name[len(metric) + 1 : -1] for name in means if name.startswith(f"{metric}[") and name.endswith("]")]
    if not groups:
        known = sorted({name.partition("[")[0] for name in means if name.endswith("]")})
        raise InputError(f"metric={metric!r} is not in the sweep by sensitive group; those that are: {known}")
    if len(groups) > MOST_GROUPS:
        raise InputError(
            f"the sweep has {len(groups)} sensitive groups; expected at most {MOST_GROUPS}: leave columns out"
        )
    runs = means[means["post_processor"] == post_processor]
    criteria = _criteria(means, runs, post_processor, repr(metric))
    figure, panels = _panels(axes, criteria)
    untouched = means[(means["criterion"] == _DENSE) & (means["post_processor"] == "none")]
    begins = runs[runs["criterion"] == _DENSE]
    looks = group_styles(groups)
    curves: list[tuple[str, Style | None, str]] = [(f"{metric}[{group}]", looks[group], group) for group in groups]
    curves += [(metric, None, "everybody")] if metric in means else []
    for panel, criterion in zip(panels, criteria, strict=True):
        here = pd.concat([begins, runs[runs["criterion"] == criterion]]).sort_values("pruning_ratio", kind="stable")
        for column, look, label in curves:
            _draw_group(panel, here, column, look, label, faint=len(curves) > 5)
            for value in untouched[column].dropna():
                colour = EVERYBODY if look is None else look.colour
                panel.axhline(value, color=colour, linestyle=DENSE_LINE, linewidth=0.9, zorder=2)
        panel.set_title(criterion, fontsize=10)
        panel.grid(color="0.93", linewidth=0.6)
        panel.set_axisbelow(True)
    if figure is None:
        for panel in panels:
            panel.set_xlabel("channels removed (%, as asked)")
            panel.set_ylim(min(p.get_ylim()[0] for p in panels), max(p.get_ylim()[1] for p in panels))
        panels[0].set_ylabel(_axis(metric, vertical=True))
    else:
        figure.supxlabel("channels removed (%, as asked)", fontsize=10)
        figure.supylabel(_axis(metric, vertical=True), fontsize=10)
        lines = textwrap.wrap(_who_pays(runs, untouched, criteria, metric, groups), int(11 * figure.get_figwidth()))
        figure.suptitle("\n".join(lines), fontsize=10.5)
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


def _who_pays(
    runs: pd.DataFrame, dense: pd.DataFrame, criteria: Sequence[str], metric: str, groups: Sequence[str]
) -> str:
    """Which criterion changes the metric of whom most, for the worse, and which least, at the largest ratio of all."""
    way = better(metric)
    common = set.intersection(*(set(runs.loc[runs["criterion"] == name, "pruning_ratio"]) for name in criteria))
    columns = [f"{metric}[{group}]" for group in groups]
    if not common or not len(dense) or way is None:
        return f"{_begun(metric)} of each sensitive group"
    at = runs[(runs["pruning_ratio"] == max(common)) & runs["criterion"].isin(criteria)].set_index("criterion")[columns]
    losses = (at - dense[columns].iloc[0]) * (-1 if way == "max" else 1)
    worst, who = losses.max(axis=1), losses.fillna(-np.inf).idxmax(axis=1)
    name, least = str(worst.idxmax()), str(worst.idxmin())
    removed = f"With {100 * max(common):.3g} % of the channels removed"
    if round(100 * worst[name], 1) <= 0:
        return f"{removed}, no criterion moves a group's {in_words(metric)} for the worse"
    group = who[name][len(metric) + 1 : -1]
    loss = f"{amount(worst[name], metric)} of {in_words(metric)}"
    told = f"costs {group} {loss}" if way == "max" else f"adds {loss} to {group}"
    most = amount(max(0.0, worst[least]), metric).removesuffix(" points")
    other = f"; {quoted(least)} {told.split()[0]} no group more than {most}" if least != name else ""
    return f"{removed}, {quoted(name)} {told}{other}"


def _draw_group(panel: Axes, here: pd.DataFrame, column: str, look: Style | None, label: str, *, faint: bool) -> None:
    """A line, and a band if there are intervals; the line of everybody has no marker."""
    import pandas as pd

    shade = EVERYBODY if look is None else look.colour
    share = 100 * here["pruning_ratio"].to_numpy(dtype=float)
    low, high = (here.get(_end(column, end), pd.Series(np.nan, here.index)) for end in ("low", "high"))
    if np.isfinite(low).any():
        panel.fill_between(share, low, high, color=shade, alpha=0.07 if faint else 0.16, linewidth=0, zorder=1)
    marks: dict[str, Any] = {"color": shade, "linewidth": 1.9, "zorder": 4}
    panel.plot(share, here[column], label=label, **(marks if look is None else {"zorder": 3, **look.marks(4)}))


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
            [*handles, Line2D([], [], color="0.4", linestyle=DENSE_LINE, linewidth=0.9)],
            [*labels, "dense network"],
        )
    return handles, labels
