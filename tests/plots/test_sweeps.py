"""Pictures of sweeps."""

from __future__ import annotations

import math
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot

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


def _points(ax: Any, markersize: float | None = None) -> list[Any]:
    """Lines of a single point that are no rings: (x, y, marker)."""
    found = [line for line in ax.lines if len(line.get_xdata()) == 1 and line.get_markerfacecolor() != "none"]
    return [line for line in found if markersize is None or line.get_markersize() == markersize]


def _rings(ax: Any) -> list[Any]:
    return [line for line in ax.lines if line.get_marker() == "o" and line.get_markersize() > 13]


def _at(line: Any) -> tuple[float, float]:
    ((x,), (y,)) = line.get_data()
    return float(x), float(y)


def test_pareto_picture_holds_the_sweep() -> None:
    frame = sweep_frame(("none", "parity"))
    before = frame.copy(deep=True)
    ax = plot_pareto(frame)
    check_drawn(ax)
    pd.testing.assert_frame_equal(frame, before)
    means = mean_over_seeds(frame)
    x, y = "equalized_odds_difference", "accuracy"
    small = [_at(line) for line in _points(ax, 3.2)]
    assert small == list(zip(frame[x], frame[y], strict=True))
    large = [line for line in ax.lines if line.get_markersize() in (8, 15)]
    assert [_at(line) for line in large] == list(zip(means[x], means[y], strict=True))
    shapes = {
        criterion: {line.get_marker() for line, c in zip(large, means["criterion"], strict=True) if c == criterion}
        for criterion in ("dense", *CRITERIA)
    }
    assert shapes["dense"] == {"*"} and all(len(shape) == 1 for shape in shapes.values())
    assert len(set.union(*shapes.values())) == 4
    for line, post, ratio in zip(large, means["post_processor"], means["pruning_ratio"], strict=True):
        assert line.get_fillstyle() == ("full" if post == "none" else "none")
        if ratio:
            assert (line.get_color() == large[1].get_color()) == (ratio == 0.25)  # the colour is the size
    members = pareto_set(means, {y: "max", x: "min", "parameters": "min"})
    assert 1 < members.sum() < len(means)
    assert [_at(line) for line in _rings(ax)] == list(zip(means[x][members], means[y][members], strict=True))
    segments = [path.get_segments()[0] for path in ax.collections]
    assert len(segments) == 2 * len(means)
    np.testing.assert_allclose(segments[0], [(means[x][0] - 0.03, means[y][0]), (means[x][0] + 0.05, means[y][0])])
    np.testing.assert_allclose(segments[1], [(means[x][0], means[y][0] - 0.03), (means[x][0], means[y][0] + 0.05)])
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts[:6] == ["dense", *CRITERIA, "no post-processor", "parity"]
    assert texts[6:8] == ["95 % interval", "single seeds"] and texts[8].startswith("Pareto set of\naccuracy")
    assert ax.get_xlabel() == "equalized odds difference  (← better)" and ax.get_ylabel() == "accuracy  (better →)"
    (bar,) = [axes for axes in ax.figure.axes if axes is not ax]
    assert bar.get_xlabel() == "parameters removed (%)"
    assert bar.get_xlim() == pytest.approx((0, 75))


def test_front_of_what_is_drawn_is_joined() -> None:
    frame = sweep_frame()
    ax = plot_pareto(frame, objectives={"accuracy": "max", "equalized_odds_difference": "min"})
    means = mean_over_seeds(frame)
    front = means[pareto_set(means, {"accuracy": "max", "equalized_odds_difference": "min"})]
    front = front.sort_values("equalized_odds_difference")
    (line,) = [line for line in ax.lines if len(line.get_xdata()) > 1]
    assert len(front) > 1
    assert list(line.get_xdata()) == front["equalized_odds_difference"].tolist()
    assert list(line.get_ydata()) == front["accuracy"].tolist() == sorted(front["accuracy"])
    assert not [line for line in plot_pareto(frame).lines if len(line.get_xdata()) > 1]


def test_other_columns_one_seed_and_no_intervals() -> None:
    frame = sweep_frame(seeds=(3,), intervals=False)
    ax = plot_pareto(frame, x="accuracy[Male]", y="pruning_ratio", colour="parameters")
    check_drawn(ax)
    assert not _points(ax, 3.2) and not ax.collections
    assert ax.get_xlabel() == "accuracy[Male]" and ax.get_ylabel() == "pruning ratio"
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["dense", *CRITERIA, "Pareto set of\nparameters"]
    balanced = plot_pareto(frame.assign(balanced_accuracy=frame["accuracy"]), y="balanced_accuracy")
    assert balanced.get_ylabel() == "balanced accuracy  (better →)"
    mixed = frame.assign(accuracy=frame["accuracy"].where(frame["criterion"] != "tail-risk"))
    left_out = plot_pareto(mixed)
    check_drawn(left_out)
    assert len([line for line in left_out.lines if line.get_markersize() in (8, 15)]) == 5


def test_group_metric_holds_the_sweep() -> None:
    frame = sweep_frame(("none", "parity"))
    panels = plot_group_metric(frame)
    check_drawn(panels[0])
    means = mean_over_seeds(frame).set_index(["criterion", "pruning_ratio", "post_processor"])
    assert [panel.get_title() for panel in panels] == CRITERIA
    dense = means.loc[("dense", 0.0, "none")]
    for criterion, panel in zip(CRITERIA, panels, strict=True):
        curves = [line for line in panel.lines if line.get_linestyle() != ":"]
        assert [line.get_label() for line in curves] == [*PEOPLE, "everybody"] and curves[-1].get_color() == "black"
        for column, line in zip([*(f"accuracy[{name}]" for name in PEOPLE), "accuracy"], curves, strict=True):
            assert list(line.get_xdata()) == [0, 25, 50]
            values = [dense[column], *(means.loc[(criterion, ratio, "none")][column] for ratio in RATIOS)]
            np.testing.assert_array_equal(line.get_ydata(), values)
            level = [
                other for other in panel.lines if other.get_linestyle() == ":" and other.get_color() == line.get_color()
            ]
            assert [other.get_ydata()[0] for other in level] == ([] if "Nobody" in column else [dense[column]])
        assert len(panel.collections) == 3  # nobody has no interval
        low = panel.collections[0].get_paths()[0].vertices[:, 1].min()
        female = [
            dense["accuracy[Female, Black]"],
            *(means.loc[(criterion, r, "none")]["accuracy[Female, Black]"] for r in RATIOS),
        ]
        assert low == pytest.approx(min(female) - 0.03)
    assert len({panel.get_ylim() for panel in panels}) == 1
    (legend,) = panels[0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*PEOPLE, "everybody", "95 % interval", "dense network"]


def test_group_metric_of_a_post_processor_does_not_begin_at_another_network() -> None:
    frame = sweep_frame(("none", "parity"), intervals=False)
    panels = plot_group_metric(frame, post_processor="parity")
    assert list(panels[0].lines[0].get_xdata()) == [25, 50]
    assert not panels[0].collections and [line for line in panels[0].lines if line.get_linestyle() == ":"]


def test_many_groups_look_different() -> None:
    people = [f"{sex}, {race}" for sex in "ab" for race in "cdefgh"]
    panels = plot_group_metric(sweep_frame(people=people))
    curves = [line for line in panels[0].lines if line.get_linestyle() != ":"]
    assert len({(line.get_color(), line.get_linestyle()) for line in curves}) == 13


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
            lambda: plot_pareto(frame.assign(accuracy=math.nan)),
            "every run has NaN in 'equalized_odds_difference' or 'acc",
        ),
        (lambda: plot_pareto(frame, colour="latency_ratio"), "every run has NaN in 'latency_ratio'; expected numbers"),
        (lambda: plot_pareto(frame.assign(note="x"), y="note"), r"the columns \['note'\] hold no numbers"),
        (lambda: plot_pareto(frame, objectives={"accuracy": "best"}), "directions .*; expected 'max' or 'min'"),  # type: ignore[dict-item]
        (
            lambda: plot_pareto(pd.concat([frame.assign(criterion=frame["criterion"] + str(k)) for k in range(5)])),
            "has 20 criteria; expected at most 12, which can be told apart: select rows",
        ),
        (
            lambda: plot_pareto(pd.concat([frame.assign(post_processor=f"p{k}") for k in range(7)])),
            "has 7 post-processors; expected at most 6",
        ),
        (lambda: plot_group_metric(frame, "recall"), r"metric='recall' is not in the sweep .*: \['accuracy', "),
        (lambda: plot_group_metric(frame, post_processor="x"), r"post_processor='x'; the sweep has \['none'\]"),
        (
            lambda: plot_group_metric(sweep_frame(people=list("abcdefghijklmnopqrs"))),
            "19 sensitive groups; expected at most 18",
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
