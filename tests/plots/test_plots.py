"""Pictures: every line, point, bar and image holds the data. Drawn with Agg; figures are closed."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot
from torch import Tensor, nn

from fairtrim import (
    BiasInfluence,
    ChangedSamples,
    DamageTable,
    InputError,
    ParityFineTuning,
    Repair,
    ThresholdSelection,
    ValidationSet,
)
from fairtrim_adapters.pareto import mean_over_seeds, pareto_set
from fairtrim_adapters.plots import (
    plot_changed_images,
    plot_damage,
    plot_group_metric,
    plot_most_harmful,
    plot_pareto,
    plot_trade_off,
)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def repairs() -> dict[str, Repair]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(131, 3, generator=generator)
    group = (x[:, 2] + 0.5 * torch.randn(131, generator=generator) > 0).long()
    target = (x[:, 0] + x[:, 2] + 0.3 * torch.randn(131, generator=generator) > 0.4).long()
    people = ValidationSet(x, target, group, ("a", "b"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0, 0.1, -1.0], [1.0, 0.0, 1.0]]))
    settings: dict[str, Any] = {"epsilon": 0.15, "margin": 0.02, "privileged": "b"}
    methods = {
        "threshold alone": ThresholdSelection(**settings),
        "parity penalty": ParityFineTuning(penalties=(1.0, 10.0), **settings),
    }
    found = {name: method.repair(model, people, progress=False) for name, method in methods.items()}
    assert all(len(repair.trade_off) > 5 for repair in found.values())
    assert any(point.bias < 0 for repair in found.values() for point in repair.trade_off)
    return found


# The trade-off.


def _drawn(ax: Any) -> None:
    """Nothing goes wrong when the picture is drawn."""
    ax.figure.canvas.draw()


@pytest.mark.parametrize("max_bias", [None, 0.1, 1.0])
def test_lines_and_points_of_the_trade_off(repairs: dict[str, Repair], max_bias: float | None) -> None:
    ax = plot_trade_off(repairs, max_bias=max_bias)
    _drawn(ax)
    first = repairs["threshold alone"]
    right = 1.15 * abs(first.bias_before) if max_bias is None else max_bias
    assert abs(first.bias_before) > 0.15 and ax.get_xlim() == pytest.approx((0, right))
    assert len(ax.lines) == 2 * 2 + 2
    for i, (name, repair) in enumerate(repairs.items()):
        line, dot = ax.lines[2 * i : 2 * i + 2]
        assert line.get_label() == name and line.get_drawstyle() == "steps-post"
        inside = [point for point in repair.trade_off if abs(point.bias) <= right]
        assert len(inside) > 1 and (max_bias != 0.1 or len(inside) < len(repair.trade_off))
        sizes, performances = line.get_data()
        assert list(sizes) == [*(abs(point.bias) for point in inside), right]
        assert list(performances) == [*(point.performance for point in inside), inside[-1].performance]
        for bound in np.linspace(sizes[0], right, 23):  # what the steps show is what the line is said to give
            shown = performances[np.searchsorted(sizes, bound, side="right") - 1]
            assert shown == max(point.performance for point in repair.trade_off if abs(point.bias) <= bound)
        assert dot.get_data() == ([abs(repair.bias)], [repair.performance])
        assert dot.get_marker() == "o" and dot.get_color() == line.get_color()
    cross, bound = ax.lines[4:]
    assert cross.get_data() == ([abs(first.bias_before)], [first.performance_before])
    assert cross.get_marker() == "x" and cross.get_label() == "as given"
    assert list(bound.get_xdata()) == [pytest.approx(0.13)] * 2
    assert ax.lines[0].get_color() != ax.lines[2].get_color()
    assert ax.get_xlabel() == "|demographic parity difference|, selection people"
    assert ax.get_ylabel() == "balanced accuracy"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [*repairs, "as given"]


def test_nothing_within_the_axis(repairs: dict[str, Repair]) -> None:
    high = replace(repairs["parity penalty"], trade_off=repairs["parity penalty"].trade_off[-1:])
    ax = plot_trade_off({"far": high}, max_bias=1e-3)
    _drawn(ax)
    assert [len(line.get_xdata()) for line in ax.lines] == [0, 1, 1, 2]


def test_nothing_to_trade_off(repairs: dict[str, Repair]) -> None:
    """A network that gives everybody one label has no curve."""
    ax = plot_trade_off({"constant": replace(repairs["threshold alone"], trade_off=())})
    _drawn(ax)
    assert [len(line.get_xdata()) for line in ax.lines] == [0, 1, 1, 2]


def test_bound_beyond_the_given_bias_is_in_the_picture(repairs: dict[str, Repair]) -> None:
    repair = repairs["threshold alone"]
    wide = replace(repair, objective=replace(repair.objective, epsilon=0.9))
    assert plot_trade_off({"wide": wide}).get_xlim() == pytest.approx((0, 1.15 * 0.9))


def test_trade_off_is_drawn_where_asked(repairs: dict[str, Repair]) -> None:
    figure, axes = pyplot.subplots(1, 2)
    before = pyplot.get_fignums()
    assert plot_trade_off(repairs, ax=axes[1]) is axes[1]
    assert pyplot.get_fignums() == before and not axes[0].lines and axes[1].lines
    new = plot_trade_off(repairs)
    assert new.figure is not figure and len(pyplot.get_fignums()) == len(before) + 1


def test_trade_off_of_nothing_or_of_different_things(repairs: dict[str, Repair]) -> None:
    with pytest.raises(InputError, match="no repairs to draw; expected at least one, by name"):
        plot_trade_off({})
    repair = repairs["threshold alone"]
    for change in ({"measure": "accuracy_score_difference"}, {"performance": "f1"}):
        other = replace(repair, objective=replace(repair.objective, **change))
        with pytest.raises(InputError, match=r"repairs are of different measures: \[\(.*\]; expected one picture for"):
            plot_trade_off({**repairs, "other": other})
    assert not pyplot.get_fignums()


# The most harmful samples.

INFLUENCE = BiasInfluence(torch.tensor([0.5, -1.0, 2.0, 0.0, 0.25, 3.0, -0.1]), 0.3, "counterfactual_bias")


def test_bars() -> None:
    ax = plot_most_harmful(INFLUENCE, number=3)
    _drawn(ax)
    assert [bar.get_width() for bar in ax.patches] == [3.0, 2.0, 0.5]
    assert [bar.get_y() + bar.get_height() / 2 for bar in ax.patches] == pytest.approx([0, 1, 2])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["5", "2", "0"]
    low, high = ax.get_ylim()
    assert low > high  # the most harmful on top
    assert ax.get_xlabel() == "influence on counterfactual bias (positive: raises it)"
    everything = plot_most_harmful(INFLUENCE)
    assert [bar.get_width() for bar in everything.patches] == [3.0, 2.0, 0.5, 0.25]  # never those that lower it
    assert everything.figure.get_size_inches()[1] > ax.figure.get_size_inches()[1]


def test_bars_with_labels() -> None:
    for names in ("abcdefg", list("abcdefg"), np.array(list("abcdefg"))):
        ax = plot_most_harmful(INFLUENCE, number=2, labels=names)
        assert [label.get_text() for label in ax.get_yticklabels()] == ["f", "c"]


def _images(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(7, *shape, generator=torch.Generator().manual_seed(len(shape)))


def _insets(ax: Any) -> list[Any]:
    return list(ax.child_axes)


def _scaled(picture: np.ndarray) -> np.ndarray:
    return (picture - picture.min()) / (picture.max() - picture.min())


@pytest.mark.parametrize(
    "shape", [(5, 4), (1, 5, 4), (2, 5, 4), (3, 5, 4), (4, 6, 5)], ids=["gray", "one", "two", "colours", "four"]
)
def test_images(shape: tuple[int, ...]) -> None:
    images = _images(shape)
    ax = plot_most_harmful(INFLUENCE, number=3, images=images)
    _drawn(ax)
    assert not ax.axison and not ax.patches
    insets = _insets(ax)
    assert len(insets) == 3
    for inset, row, title in zip(insets, (5, 2, 0), ("5\n+3.00", "2\n+2.00", "0\n+0.50"), strict=True):
        (image,) = inset.images
        picture = images[row].double().numpy()
        if len(shape) == 3:
            n_channels = 3 if shape[0] >= 3 else 1
            picture = picture[:n_channels].transpose(1, 2, 0)
        if len(shape) == 2 or shape[0] < 3:
            picture = picture.reshape(shape[-2:])
            assert image.get_cmap().name == "gray"
        np.testing.assert_allclose(image.get_array(), _scaled(picture), rtol=1e-6, atol=1e-9)
        assert inset.get_title() == title and not inset.axison


@pytest.mark.parametrize("kind", ["float", "uint8", "negative", "constant", "numpy", "list", "with gradients"])
def test_images_of_any_kind(kind: str) -> None:
    images: Any = _images((3, 5, 4))
    expected = _scaled(images[5].double().numpy().transpose(1, 2, 0))
    tolerance = 1e-6
    if kind == "uint8":
        images, tolerance = (images * 255).byte(), 0.02
    elif kind == "negative":
        images = 7 * images - 30
    elif kind == "constant":
        images, expected = torch.full((7, 3, 5, 4), 0.7), np.zeros((5, 4, 3))
    elif kind == "numpy":
        images = images.numpy()
    elif kind == "list":
        images = list(images)
    elif kind == "with gradients":
        images = images.requires_grad_(True)
    ax = plot_most_harmful(INFLUENCE, number=1, images=images, labels=list("abcdefg"))
    _drawn(ax)
    (inset,) = _insets(ax)
    np.testing.assert_allclose(inset.images[0].get_array(), expected, rtol=1e-5, atol=tolerance)
    assert inset.get_title() == "f\n+3.00"


def test_many_images_stand_in_rows_without_overlap() -> None:
    influence = BiasInfluence(torch.arange(1.0, 24.0), 0.1, "accuracy_score_difference")
    ax = plot_most_harmful(influence, number=23, images=torch.rand(23, 3, 4))
    _drawn(ax)
    insets = _insets(ax)
    assert [inset.get_title().split("\n")[0] for inset in insets] == [str(row) for row in range(22, -1, -1)]
    boxes = [ax.transAxes.inverted().transform_bbox(inset.get_window_extent()) for inset in insets]
    for box in boxes:
        assert -1e-6 <= box.x0 < box.x1 <= 1 + 1e-6 and -1e-6 <= box.y0 < box.y1 <= 1 + 1e-6
    for i, one in enumerate(boxes):
        for other in boxes[i + 1 :]:
            assert one.x1 <= other.x0 or other.x1 <= one.x0 or one.y0 >= other.y1 or other.y0 >= one.y1
    heights = [round(box.y1, 6) for box in boxes]
    assert len(set(heights)) == math.ceil(23 / 10) and heights == sorted(heights, reverse=True)


@pytest.mark.parametrize("images", [None, torch.ones(7, 5, 4)], ids=["bars", "images"])
def test_no_harmful_sample(images: Any) -> None:
    harmless = replace(INFLUENCE, scores=-INFLUENCE.scores.abs())
    ax = plot_most_harmful(harmless, images=images)
    _drawn(ax)
    assert not ax.patches and not _insets(ax)


@pytest.mark.parametrize("images", [None, torch.ones(7, 5, 4)], ids=["bars", "images"])
def test_most_harmful_are_drawn_where_asked(images: Any) -> None:
    _, axes = pyplot.subplots(1, 2)
    before = pyplot.get_fignums()
    assert plot_most_harmful(INFLUENCE, images=images, ax=axes[0]) is axes[0]
    assert pyplot.get_fignums() == before and not axes[1].patches and not _insets(axes[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": list("abc")}, "3 labels for 7 training samples; expected as many"),
        ({"images": torch.ones(8, 5, 4)}, "8 images for 7 training samples; expected as many"),
        ({"images": torch.ones(7, 5, 4), "labels": []}, "0 labels for 7 training samples; expected as many"),
    ],
)
def test_labels_and_images_of_other_samples(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plot_most_harmful(INFLUENCE, **options)
    assert not pyplot.get_fignums()


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, repairs: dict[str, Repair]) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for run in (
        lambda: plot_trade_off(repairs),
        lambda: plot_most_harmful(INFLUENCE),
        lambda: plot_most_harmful(INFLUENCE, images=torch.ones(7, 5, 4)),
    ):
        with pytest.raises(InputError, match=r"plotting needs matplotlib: pip install 'fairtrim\[plot\]'"):
            run()


@pytest.mark.parametrize("shape", [(1, 6), (1, 1, 6), (3, 1, 6)])
def test_images_of_one_row(shape: tuple[int, ...]) -> None:
    ax = plot_most_harmful(INFLUENCE, number=1, images=_images(shape))
    (inset,) = _insets(ax)
    assert inset.images[0].get_array().shape[:2] == (1, 6)


# Sweeps.

CRITERIA = ["worst-group", "mean-damage", "tail-risk"]
RATIOS = [0.25, 0.5]
PEOPLE = ["Female, Black", "Male", "Nobody"]


def _sweep(
    posts: tuple[str, ...] = ("none",),
    *,
    seeds: tuple[int, ...] = (0, 3),
    people: list[str] = PEOPLE,
    intervals: bool = True,
) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    entries: list[dict[str, Any]] = []
    for seed in seeds:
        runs = [("dense", 0.0, "none"), *((c, r, p) for c in CRITERIA for r in RATIOS for p in posts)]
        for criterion, ratio, post in runs:
            entry: dict[str, Any] = {"seed": seed, "criterion": criterion, "ratio": ratio, "post_processor": post}
            entry |= {
                "parameters": 1000 - int(900 * ratio),
                "parameters_ratio": (1 - ratio) ** 2,
                "latency_ratio": math.nan,
            }
            names = ["accuracy", "equalized_odds_difference", *(f"accuracy[{name}]" for name in people)]
            for name in names:
                entry[name] = value = math.nan if name.endswith("[Nobody]") else float(generator.uniform(0.2, 0.8))
                if intervals:
                    metric, bracket, rest = name.partition("[")
                    entry[f"{metric}_low{bracket}{rest}"] = value - 0.03
                    entry[f"{metric}_high{bracket}{rest}"] = value + 0.05
            entries.append(entry)
    return pd.DataFrame(entries)


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
    frame = _sweep(("none", "parity"))
    before = frame.copy(deep=True)
    ax = plot_pareto(frame)
    _drawn(ax)
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
    for line, post, ratio in zip(large, means["post_processor"], means["ratio"], strict=True):
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
    frame = _sweep()
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
    frame = _sweep(seeds=(3,), intervals=False)
    ax = plot_pareto(frame, x="accuracy[Male]", y="ratio", colour="parameters")
    _drawn(ax)
    assert not _points(ax, 3.2) and not ax.collections
    assert ax.get_xlabel() == "accuracy[Male]" and ax.get_ylabel() == "ratio"
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["dense", *CRITERIA, "Pareto set of\nparameters"]
    balanced = plot_pareto(frame.assign(balanced_accuracy=frame["accuracy"]), y="balanced_accuracy")
    assert balanced.get_ylabel() == "balanced accuracy  (better →)"
    mixed = frame.assign(accuracy=frame["accuracy"].where(frame["criterion"] != "tail-risk"))
    left_out = plot_pareto(mixed)
    _drawn(left_out)
    assert len([line for line in left_out.lines if line.get_markersize() in (8, 15)]) == 5


def test_group_metric_holds_the_sweep() -> None:
    frame = _sweep(("none", "parity"))
    panels = plot_group_metric(frame)
    _drawn(panels[0])
    means = mean_over_seeds(frame).set_index(["criterion", "ratio", "post_processor"])
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
    frame = _sweep(("none", "parity"), intervals=False)
    panels = plot_group_metric(frame, post_processor="parity")
    assert list(panels[0].lines[0].get_xdata()) == [25, 50]
    assert not panels[0].collections and [line for line in panels[0].lines if line.get_linestyle() == ":"]


def test_many_groups_look_different() -> None:
    people = [f"{sex}, {race}" for sex in "ab" for race in "cdefgh"]
    panels = plot_group_metric(_sweep(people=people))
    curves = [line for line in panels[0].lines if line.get_linestyle() != ":"]
    assert len({(line.get_color(), line.get_linestyle()) for line in curves}) == 13


def test_sweeps_are_drawn_where_asked() -> None:
    frame = _sweep()
    settings = dict(matplotlib.rcParams)
    figure, axes = pyplot.subplots(2, 2)
    before = pyplot.get_fignums()
    pyplot.sca(axes[1, 1])
    assert plot_pareto(frame, ax=axes[0, 0]) is axes[0, 0]
    panels = plot_group_metric(frame, axes=axes.ravel()[1:])
    assert list(panels) == list(axes.ravel()[1:]) and len({panel.get_ylim() for panel in panels}) == 1
    assert pyplot.get_fignums() == before and pyplot.gca() is axes[1, 1] and dict(matplotlib.rcParams) == settings
    _drawn(axes[0, 0])
    assert panels[-1].get_legend() is not None and panels[0].get_legend() is None and not figure.legends


@pytest.mark.parametrize("n_criteria", [1, 2, 4, 5, 6])
def test_panels_of_any_number(n_criteria: int) -> None:
    frame = pd.concat(
        [_sweep().query("criterion in ('dense', 'tail-risk')")]
        + [_sweep().query("criterion == 'tail-risk'").assign(criterion=f"c{k}") for k in range(1, n_criteria)]
    )
    panels = plot_group_metric(frame)
    _drawn(panels[0])
    assert len(panels) == n_criteria and all(panel.axison for panel in panels)
    assert sum(not axes.axison for axes in panels[0].figure.axes) == len(panels[0].figure.axes) - n_criteria


def test_refused_sweeps() -> None:
    frame = _sweep()
    refused: list[tuple[Any, str]] = [
        (lambda: plot_pareto([]), "the sweep is a list; expected a pandas DataFrame"),
        (lambda: plot_pareto(frame.iloc[:0]), "the sweep has no rows"),
        (lambda: plot_pareto(frame, x="gap"), r"the sweep has no column \['gap'\]; its columns are"),
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
            lambda: plot_group_metric(_sweep(people=list("abcdefghijklmnopqrs"))),
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


# Damage tables.


def _table(
    sizes: dict[str, int], names: tuple[Any, ...] = ("Female", ("Male", "Black"), "Other"), scale: float = 1.0
) -> DamageTable:
    generator = torch.Generator().manual_seed(0)
    shape = (len(names), sum(sizes.values()))
    slope, curvature = (torch.randn(shape, generator=generator).double() * scale for _ in range(2))
    counts = torch.arange(1.0, len(names) + 1).double() * 700
    loss = torch.full((len(names),), 100 * scale).double()  # more than any damage takes away
    return DamageTable(names, ("sex",), sizes, counts, loss, slope, curvature.abs())


@pytest.mark.parametrize("kind", ["mean", "largest", "all"])
def test_damage_map_equals_a_loop(kind: Any) -> None:
    sizes = {"conv": 5, "nothing": 0, "block.0.linear": 2}
    table = _table(sizes)
    ax = plot_damage(table, kind=kind)
    _drawn(ax)
    (image,) = ax.images
    for g in range(3):
        for place, name in enumerate(["conv", "block.0.linear"]):
            values = [float(value) for value in table[name][g]]
            expected = {"mean": sum(values) / len(values), "largest": max(values), "all": sum(values)}[kind]
            assert image.get_array()[g, place] == pytest.approx(expected)
            text = ax.texts[2 * g + place]
            assert text.get_position() == (place, g) and text.get_text() == f"{expected:+.2g}"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["conv (5)", "block.0.linear (2)"]
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "Female (n = 700)",
        "Male, Black (n = 1,400)",
        "Other (n = 2,100)",
    ]
    low, high = image.norm.vmin, image.norm.vmax
    assert low == -high and high == pytest.approx(np.abs(image.get_array()).max())
    (bar,) = [axes for axes in ax.figure.axes if axes is not ax]
    assert bar.get_ylabel() == "rise of the mean loss\n(nats, if cross-entropy)"
    assert {"mean": "mean", "largest": "largest", "all": "sum"}[kind] in ax.get_title()


def test_damage_map_of_many_layers() -> None:
    sizes = {f"encoder.layer.{i}.attention.query": 1 + i % 4 for i in range(60)}
    table = _table(sizes)
    columns = torch.cat([torch.full((size,), 10.0 ** -(i % 4)) for i, size in enumerate(sizes.values())])
    table = replace(table, slope=table.slope * columns, curvature=table.curvature * columns)
    ax = plot_damage(table)
    _drawn(ax)
    assert not ax.texts and len(ax.get_xticklabels()) == 60
    assert type(ax.images[0].norm).__name__ == "AsinhNorm"  # a few layers don't hide the others
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert all(left.x1 <= right.x0 + 1 for left, right in itertools.pairwise(boxes))
    (bar,) = [axes for axes in ax.figure.axes if axes is not ax]
    ticks = bar.get_yticks()
    assert 0 in ticks and list(ticks) == sorted(-value for value in ticks)


def test_impossible_damage_is_marked() -> None:
    table = _table({"conv": 5, "linear": 2})
    low = DamageTable(**{**vars(table), "slope": table.slope.abs() + 200 * torch.eye(3, 7).double()})
    ax = plot_damage(low, kind="all")
    _drawn(ax)
    shown = ax.images[0].get_array().filled(torch.nan)
    marks = [text.get_position() for text in ax.texts if text.get_text() == "×"]
    assert marks == [(0, 0), (0, 1), (0, 2)] and "impossible" in ax.get_title()
    assert bool((shown[:, 0] != shown[:, 0]).all()) and bool((shown[:, 1] == shown[:, 1]).all())
    assert len(ax.texts) == 6
    assert "impossible" not in plot_damage(table, kind="all").get_title()


def test_damage_of_nothing() -> None:
    flat = _table({"a": 2}, scale=0.0)
    ax = plot_damage(flat)
    _drawn(ax)
    assert (ax.images[0].norm.vmin, ax.images[0].norm.vmax) == (-1, 1) and not ax.images[0].get_array().any()
    with pytest.raises(InputError, match="the damage table has no channels"):
        plot_damage(_table({"a": 0}))
    with pytest.raises(InputError, match=r"kind='median'; expected one of \['mean', 'largest', 'all'\]"):
        plot_damage(flat, kind="median")  # type: ignore[arg-type]
    assert len(pyplot.get_fignums()) == 1


# Changed samples.


def _changed(shape: tuple[int, ...] = (3, 5, 4), n_samples: int = 6, *, sensitive: bool = True) -> ChangedSamples:
    target = np.arange(n_samples) % 3
    before = np.where(np.arange(n_samples) % 2, (target + 1) % 3, target)
    after = np.where(np.arange(n_samples) % 4 == 3, target, (target + 2) % 3)
    return ChangedSamples(
        row=np.arange(n_samples)[::-1] * 2,
        target=target,
        before=before,
        after=after,
        probability_before=np.linspace(0.9, 0.6, n_samples),
        probability_after=np.full(n_samples, 0.1),
        sensitive={"sex": np.array(["Female", "Male"] * n_samples)[:n_samples], "race": np.array(["White"] * n_samples)}
        if sensitive
        else {},
        inputs=torch.rand(n_samples, *shape, generator=torch.Generator().manual_seed(0)),
        n_samples=2 * n_samples,
        people={("Female", "White"): n_samples, ("Male", "White"): n_samples},
    )


@pytest.mark.parametrize("shape", [(5, 4), (1, 5, 4), (3, 5, 4)], ids=["gray", "one", "colours"])
def test_changed_images(shape: tuple[int, ...]) -> None:
    changed = _changed(shape)
    ax = plot_changed_images(changed, number=4, class_names=["cat", "dog", "fox"])
    _drawn(ax)
    insets = _insets(ax)
    assert [inset.get_title() for inset in insets] == [
        "cat: cat →\u00a0fox\nFemale, White",
        "dog: fox →\u00a0cat\nMale, White",
        "fox: fox →\u00a0dog\nFemale, White",
        "cat: dog →\u00a0cat\nMale, White",
    ]
    colours = [inset.title.get_color() for inset in insets]
    assert colours[0] == colours[2] and len(set(colours)) == 3  # lost, from wrong to wrong, lost, gained
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "right before, wrong after",
        "wrong before, right after",
        "wrong before and after",
    ]
    for place, inset in enumerate(insets):
        picture = changed.inputs[place].double().numpy()
        picture = picture.reshape(5, 4) if len(shape) == 2 or shape[0] == 1 else picture.transpose(1, 2, 0)
        np.testing.assert_allclose(inset.images[0].get_array(), _scaled(picture), rtol=1e-6, atol=1e-9)


def test_changed_images_of_the_whole_loader() -> None:
    images = torch.rand(12, 7, 3, generator=torch.Generator().manual_seed(1))
    changed = replace(_changed(sensitive=False), inputs=None)
    ax = plot_changed_images(changed, images=images)
    _drawn(ax)
    insets = _insets(ax)
    assert [inset.get_title() for inset in insets[:2]] == ["0: 0 →\u00a02", "1: 2 →\u00a00"]
    for row, inset in zip((10, 8, 6, 4, 2, 0), insets, strict=True):
        np.testing.assert_allclose(
            inset.images[0].get_array(), _scaled(images[row].double().numpy()), rtol=1e-6, atol=1e-9
        )


def test_long_names_do_not_run_into_each_other() -> None:
    changed = _changed(n_samples=23)
    ax = plot_changed_images(changed, class_names=["aeroplane", "automobile", "ship"])
    _drawn(ax)
    boxes = [inset.title.get_window_extent() for inset in _insets(ax)]
    pictures = [inset.get_window_extent() for inset in _insets(ax)]
    assert len(boxes) == 23
    for left, right in itertools.pairwise(boxes):
        assert left.x1 <= right.x0 + 1 or right.x1 < left.x0
    for title in boxes[10:]:
        assert all(title.y1 <= picture.y0 + 2 for picture in pictures[:10])


def test_no_changed_image() -> None:
    ax = plot_changed_images(_changed(n_samples=0))
    _drawn(ax)
    assert not _insets(ax) and [text.get_text() for text in ax.texts] == ["no label changed"] and not ax.get_legend()


def test_changed_images_are_drawn_where_asked() -> None:
    _, axes = pyplot.subplots(1, 2)
    before = pyplot.get_fignums()
    assert plot_changed_images(_changed(), ax=axes[1]) is axes[1]
    assert plot_damage(_table({"a": 3}), ax=axes[0]) is axes[0]
    assert pyplot.get_fignums() == before and len(_insets(axes[1])) == 6 and len(axes[0].images) == 1
    _drawn(axes[0])


def test_refused_images() -> None:
    changed = _changed()
    refused: list[tuple[Any, str]] = [
        (lambda: plot_changed_images(changed, number=0), "number=0; expected at least 1 image"),
        (lambda: plot_changed_images(changed, images=torch.ones(6, 5, 4)), "6 images for 12 samples of the loader"),
        (
            lambda: plot_changed_images(replace(changed, inputs=None)),
            r"inputs were not kept \(keep_inputs=False\); exp",
        ),
        (
            lambda: plot_changed_images(replace(changed, inputs=torch.ones(6, 4))),
            r"inputs were of shape \(6, 4\); expec",
        ),
        (lambda: plot_changed_images(replace(changed, inputs=(1,))), "inputs were no tensor; expected images"),
        (
            lambda: plot_changed_images(changed, images=torch.ones(12, 3)),
            r"an image has shape \(3,\); expected \(H, W\)",
        ),
        (lambda: plot_changed_images(changed, class_names=["a", "b"]), "class 2 has no name among the 2 class_names"),
        (
            lambda: plot_most_harmful(INFLUENCE, images=torch.ones(7, 4)),
            r"an image has shape \(4,\); expected \(H, W\)",
        ),
    ]
    for run, message in refused:
        with pytest.raises(InputError, match=message):
            run()
    assert not pyplot.get_fignums()


def test_new_pictures_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for run in (
        lambda: plot_pareto(_sweep()),
        lambda: plot_group_metric(_sweep()),
        lambda: plot_damage(_table({"a": 3})),
        lambda: plot_changed_images(_changed()),
    ):
        with pytest.raises(InputError, match=r"plotting needs matplotlib: pip install 'fairtrim\[plot\]'"):
            run()


def test_matplotlib_is_imported_only_when_something_is_drawn() -> None:
    code = "import sys, fairtrim_adapters.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
