"""Pictures of sweeps."""

from __future__ import annotations

import itertools
import math
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.text import Text

from fairtrim import (
    InputError,
)
from fairtrim_adapters.pareto import mean_over_seeds, pareto_set
from fairtrim_adapters.plots import (
    plot_group_metric,
    plot_pareto,
)
from tests.plot_cases import (
    CRITERIA,
    PEOPLE,
    RATIOS,
    check_drawn,
    sweep_frame,
)


def _curves(ax: Any) -> dict[str, Any]:
    """The criteria's lines by name."""
    return {line.get_label(): line for line in ax.lines if line.get_label() in CRITERIA}


def _labels(ax: Any) -> list[str]:
    """What stands at the lines' ends."""
    return [text.get_text() for text in ax.texts if not text.get_text().startswith("shaded")]


def test_pareto_picture_holds_the_sweep() -> None:
    frame = sweep_frame(("none", "parity"))
    before = frame.copy(deep=True)
    ax = plot_pareto(frame)
    check_drawn(ax)
    pd.testing.assert_frame_equal(frame, before)
    means = mean_over_seeds(frame).query("post_processor == 'none'").set_index(["criterion", "pruning_ratio"])
    y = "worst_group_accuracy"
    bars = [path for path in ax.collections if type(path).__name__ == "LineCollection"]
    for (name, line), bar in zip(_curves(ax).items(), bars, strict=True):
        assert list(line.get_xdata()) == pytest.approx([100 * 0.75**2, 25])
        assert list(line.get_ydata()) == [means.loc[(name, ratio)][y] for ratio in RATIOS]
        runs = frame[(frame["criterion"] == name) & (frame["post_processor"] == "none")]
        for ratio, segment in zip(RATIOS, bar.get_segments(), strict=True):
            of_seeds = runs.loc[runs["pruning_ratio"] == ratio, y]
            assert segment[:, 1].tolist() == [of_seeds.min(), of_seeds.max()]
    assert list(_curves(ax)) == CRITERIA
    dense = means.loc[("dense", 0.0)][y]
    assert sorted(_labels(ax)) == sorted([*CRITERIA, f"dense {dense:.3f}"]) and not ax.get_legend()
    assert ax.xaxis_inverted() and ax.get_xlabel() == "parameters left, % (less is better →)"
    assert ax.get_ylabel() == "accuracy of the worst group (higher is better ↑)"
    at = means.xs(0.5, level="pruning_ratio")[y].drop("dense", errors="ignore").sort_values(ascending=False)
    assert " ".join(ax.get_title().split()) == (
        f"With 50 % of the channels removed, accuracy of the worst group: {at.iloc[0]:.3f} ({at.index[0]}) to "
        f"{at.iloc[-1]:.3f} ({at.index[-1]})"
    )


def test_names_at_the_ends_do_not_touch() -> None:
    frame = sweep_frame(seeds=(0,)).assign(worst_group_accuracy=0.5)
    ax = plot_pareto(frame)
    check_drawn(ax)
    boxes = sorted(
        (Text.get_window_extent(text) for text in ax.texts if text.get_text() in _labels(ax)), key=lambda box: box.y0
    )
    assert len(boxes) == 4 and all(low.y1 <= high.y0 + 2 for low, high in itertools.pairwise(boxes))


@pytest.mark.parametrize("y", ["worst_group_accuracy", "equalized_odds_difference"])
def test_what_is_shaded_is_beaten(y: str) -> None:
    """The edge passes through the Pareto set of size and figure, and no network lies beyond it."""
    frame = sweep_frame()
    ax = plot_pareto(frame, y=y)
    means = mean_over_seeds(frame)
    sign = 1 if y.endswith("accuracy") else -1
    (edge,) = [line for line in ax.lines if line.get_drawstyle() == "steps-post"]
    front = means[pareto_set(means, {"parameters_ratio": "min", y: "max" if sign > 0 else "min"})]
    corners = set(zip(edge.get_xdata(), edge.get_ydata(), strict=True))
    assert {(100 * share, value) for share, value in zip(front["parameters_ratio"], front[y], strict=True)} <= corners
    for share, value in zip(means["parameters_ratio"], means[y], strict=True):
        reached = [level for at, level in zip(edge.get_xdata(), edge.get_ydata(), strict=True) if at <= 100 * share]
        assert sign * value <= max(sign * level for level in reached)


def test_other_columns_one_seed_and_no_intervals() -> None:
    frame = sweep_frame(seeds=(3,), intervals=False)
    ax = plot_pareto(frame, x="accuracy[Male]", y="pruning_ratio")
    check_drawn(ax)
    assert not ax.xaxis_inverted() and not [text for text in ax.texts if text.get_text().startswith("shaded")]
    assert ax.get_xlabel() == "accuracy[Male] (more is better →)" and ax.get_ylabel() == "pruning ratio"
    mixed = frame.assign(worst_group_accuracy=frame["accuracy"].where(frame["criterion"] != "tail-risk"))
    left_out = plot_pareto(mixed)
    check_drawn(left_out)
    assert list(_curves(left_out)) == ["worst-group", "mean-damage"]
    far = frame.assign(parameters_ratio=frame["pruning_ratio"].map({0.0: 1.0, 0.25: 0.4, 0.5: 0.02}))
    assert plot_pareto(far).get_xscale() == "log" and plot_pareto(frame).get_xscale() == "linear"


def test_bars_of_one_seed_are_its_intervals() -> None:
    frame = sweep_frame(seeds=(3,))
    ax = plot_pareto(frame, y="accuracy", post_processor="none")
    bar = next(path for path in ax.collections if type(path).__name__ == "LineCollection")
    value = frame.query("criterion == 'worst-group' and pruning_ratio == 0.25")["accuracy"].iloc[0]
    assert bar.get_segments()[0][:, 1].tolist() == pytest.approx([value - 0.03, value + 0.05])


def test_group_metric_holds_the_sweep() -> None:
    frame = sweep_frame(("none", "parity"))
    panels = plot_group_metric(frame)
    check_drawn(panels[0])
    means = mean_over_seeds(frame).set_index(["criterion", "pruning_ratio", "post_processor"])
    assert [panel.get_title() for panel in panels] == CRITERIA
    dense = means.loc[("dense", 0.0, "none")]
    for criterion, panel in zip(CRITERIA, panels, strict=True):
        curves = [line for line in panel.lines if len(line.get_xdata()) == 3]
        assert [line.get_label() for line in curves] == [*PEOPLE, "everybody"] and curves[-1].get_color() == "black"
        for column, line in zip([*(f"accuracy[{name}]" for name in PEOPLE), "accuracy"], curves, strict=True):
            assert list(line.get_xdata()) == [0, 25, 50]
            values = [dense[column], *(means.loc[(criterion, ratio, "none")][column] for ratio in RATIOS)]
            np.testing.assert_array_equal(line.get_ydata(), values)
            level = [other for other in panel.lines if other not in curves and other.get_color() == line.get_color()]
            assert [other.get_ydata()[0] for other in level] == ([] if "Nobody" in column else [dense[column]])
        assert len(panel.collections) == 3  # nobody has no interval
        low = panel.collections[0].get_paths()[0].vertices[:, 1].min()
        female = [
            dense["accuracy[Female, Black]"],
            *(means.loc[(criterion, r, "none")]["accuracy[Female, Black]"] for r in RATIOS),
        ]
        assert low == pytest.approx(min(female) - 0.03)
    assert len({panel.get_ylim() for panel in panels}) == 1
    loss = {name: (dense - means.xs(name).xs(0.5).loc["none"])[[f"accuracy[{p}]" for p in PEOPLE]] for name in CRITERIA}
    worst = max(CRITERIA, key=lambda name: loss[name].max())
    told = f"{worst} costs {loss[worst].idxmax()[9:-1]} {100 * loss[worst].max():.1f} points of accuracy"
    assert panels[0].figure.get_suptitle().startswith(f"With 50 % of the channels removed, {told}")
    (legend,) = panels[0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*PEOPLE, "everybody", "95 % interval", "dense network"]


def test_group_metric_of_a_post_processor_does_not_begin_at_another_network() -> None:
    frame = sweep_frame(("none", "parity"), intervals=False)
    panels = plot_group_metric(frame, post_processor="parity")
    assert list(panels[0].lines[0].get_xdata()) == [25, 50]
    assert not panels[0].collections and [line for line in panels[0].lines if line.get_linestyle() == "--"]


def test_many_groups_look_different() -> None:
    people = [f"{sex}, {race}" for sex in "ab" for race in "cdefgh"]
    panels = plot_group_metric(sweep_frame(people=people))
    curves = [line for line in panels[0].lines if line.get_label() in (*people, "everybody")]
    assert len({(line.get_color(), line.get_marker()) for line in curves}) == 13


def test_sweeps_are_drawn_where_asked() -> None:
    frame = sweep_frame()
    settings = dict(matplotlib.rcParams)
    figure, axes = pyplot.subplots(2, 2)
    before = pyplot.get_fignums()
    pyplot.sca(axes[1, 1])
    assert plot_pareto(frame, ax=axes[0, 0]) is axes[0, 0]
    panels = plot_group_metric(frame, axes=axes.ravel()[1:])
    assert list(panels) == list(axes.ravel()[1:]) and len({panel.get_ylim() for panel in panels}) == 1
    assert pyplot.get_fignums() == before and pyplot.gca() is axes[1, 1] and dict(matplotlib.rcParams) == settings
    check_drawn(axes[0, 0])
    assert panels[-1].get_legend() is not None and panels[0].get_legend() is None and not figure.legends


@pytest.mark.parametrize("n_criteria", [1, 2, 4, 5, 6])
def test_panels_of_any_number(n_criteria: int) -> None:
    frame = pd.concat(
        [sweep_frame().query("criterion in ('dense', 'tail-risk')")]
        + [sweep_frame().query("criterion == 'tail-risk'").assign(criterion=f"c{k}") for k in range(1, n_criteria)]
    )
    panels = plot_group_metric(frame)
    check_drawn(panels[0])
    assert len(panels) == n_criteria and all(panel.axison for panel in panels)
    assert sum(not axes.axison for axes in panels[0].figure.axes) == len(panels[0].figure.axes) - n_criteria


def test_refused_sweeps() -> None:
    frame = sweep_frame()
    refused: list[tuple[Any, str]] = [
        (lambda: plot_pareto([]), "the sweep is a list; expected a pandas DataFrame"),
        (lambda: plot_pareto(frame.iloc[:0]), "the sweep has no rows"),
        (lambda: plot_pareto(frame, x="gap"), r"the sweep has no column \['gap'\]; its columns are"),
        (lambda: plot_pareto(frame, x="accuracy_difference"), "is called 'accuracy_score_difference' now"),
        (
            lambda: plot_group_metric(frame.rename(columns={"pruning_ratio": "ratio"})),
            "'ratio' is called 'pruning_ratio' now",
        ),
        (
            lambda: plot_pareto(frame.assign(accuracy=math.nan), y="accuracy"),
            "every run has NaN in 'parameters_ratio' or",
        ),
        (lambda: plot_pareto(frame, x="latency_ratio"), "every run has NaN in 'latency_ratio' or"),
        (lambda: plot_pareto(frame, post_processor="x"), r"post_processor='x'; the sweep has \['none'\]"),
        (lambda: plot_pareto(frame.assign(note="x"), y="note"), r"the columns \['note'\] hold no numbers"),
        (
            lambda: plot_pareto(pd.concat([frame.assign(criterion=frame["criterion"] + str(k)) for k in range(5)])),
            "has 20 criteria; expected at most 12, which can be told apart: select rows",
        ),
        (lambda: plot_group_metric(frame, "recall"), r"metric='recall' is not in the sweep .*: \['accuracy', "),
        (lambda: plot_group_metric(frame, post_processor="x"), r"post_processor='x'; the sweep has \['none'\]"),
        (
            lambda: plot_group_metric(sweep_frame(people=list("abcdefghijklmnopqrstuvwxy"))),
            "25 sensitive groups; expected at most 24",
        ),
    ]
    for run, message in refused:
        with pytest.raises(InputError, match=message):
            run()
    assert not pyplot.get_fignums()
    _, axes = pyplot.subplots(1, 2)
    with pytest.raises(InputError, match=r"2 axes for 3 criteria .*; expected one for each"):
        plot_group_metric(frame, axes=axes)
    assert not axes[0].lines
