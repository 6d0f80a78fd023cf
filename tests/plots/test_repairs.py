"""Pictures of repairs and of influence: every line, point, bar and image holds the data."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pytest
import torch
from matplotlib import pyplot

from fairtrim import (
    BiasInfluence,
    InputError,
    Repair,
)
from fairtrim_adapters.plots import (
    plot_most_harmful,
    plot_trade_off,
)
from tests.plot_cases import (
    INFLUENCE,
    check_drawn,
    insets_of,
    scaled,
    some_images,
)


@pytest.mark.parametrize("max_bias", [None, 0.1, 1.0])
def test_lines_and_points_of_the_trade_off(repairs: dict[str, Repair], max_bias: float | None) -> None:
    ax = plot_trade_off(repairs, max_bias=max_bias)
    check_drawn(ax)
    first = repairs["threshold alone"]
    right = 1.15 * abs(first.bias_before) if max_bias is None else max_bias
    assert abs(first.bias_before) > 0.15 and ax.get_xlim() == pytest.approx((0, right))
    assert len(ax.lines) == 2 * 2 + 2
    for i, (name, repair) in enumerate(repairs.items()):
        line, dot = ax.lines[2 * i : 2 * i + 2]
        assert dot.get_label() == name and line.get_drawstyle() == "steps-post"
        inside = [point for point in repair.trade_off if point.believed <= right]
        assert len(inside) > 1 and (max_bias != 0.1 or len(inside) < len(repair.trade_off))
        sizes, performances = line.get_data()
        assert list(sizes) == [*(point.believed for point in inside), right]
        assert list(performances) == [*(point.performance for point in inside), inside[-1].performance]
        for bound in np.linspace(sizes[0], right, 23):  # what the steps show is what the line is said to give
            shown = performances[np.searchsorted(sizes, bound, side="right") - 1]
            assert shown == max(point.performance for point in repair.trade_off if point.believed <= bound)
        assert dot.get_data() == ([repair.chosen.believed], [repair.performance])
        assert dot.get_markerfacecolor() == "white" and dot.get_color() == line.get_color()  # a method, no people
    cross, bound = ax.lines[4:]
    assert cross.get_data() == ([abs(first.bias_before)], [first.performance_before])
    assert cross.get_marker() == "x" and cross.get_label() == "as given"
    assert list(bound.get_xdata()) == [pytest.approx(0.13)] * 2
    assert ax.lines[0].get_color() != ax.lines[2].get_color()
    assert ax.get_xlabel() == "|demographic parity difference|, selection people (less is better ←)"
    assert ax.get_ylabel() == "balanced accuracy (higher is better ↑)"
    best = max(repairs, key=lambda name: repairs[name].performance)
    words = " ".join(ax.get_title().split())
    assert f"{best} keeps most balanced accuracy, {repairs[best].performance:.3f}" in words
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [*repairs, "as given"]


def test_nothing_within_the_axis(repairs: dict[str, Repair]) -> None:
    high = replace(repairs["parity penalty"], trade_off=repairs["parity penalty"].trade_off[-1:])
    ax = plot_trade_off({"far": high}, max_bias=1e-3)
    check_drawn(ax)
    assert [len(line.get_xdata()) for line in ax.lines] == [0, 1, 1, 2]


def test_nothing_to_trade_off(repairs: dict[str, Repair]) -> None:
    """A network that gives everybody one label has no curve."""
    ax = plot_trade_off({"constant": replace(repairs["threshold alone"], trade_off=())})
    check_drawn(ax)
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


def test_bars() -> None:
    ax = plot_most_harmful(INFLUENCE, number=3)
    check_drawn(ax)
    assert [bar.get_width() for bar in ax.patches] == [3.0, 2.0, 0.5]
    assert [bar.get_y() + bar.get_height() / 2 for bar in ax.patches] == pytest.approx([0, 1, 2])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["5", "2", "0"]
    low, high = ax.get_ylim()
    assert low > high  # the most harmful on top
    assert ax.get_xlabel() == "influence on counterfactual bias (more is worse →)"
    everything = plot_most_harmful(INFLUENCE)
    assert [bar.get_width() for bar in everything.patches] == [3.0, 2.0, 0.5, 0.25]  # never those that lower it
    assert everything.figure.get_size_inches()[1] > ax.figure.get_size_inches()[1]


def test_bars_with_labels() -> None:
    for names in ("abcdefg", list("abcdefg"), np.array(list("abcdefg"))):
        ax = plot_most_harmful(INFLUENCE, number=2, labels=names)
        assert [label.get_text() for label in ax.get_yticklabels()] == ["f", "c"]


@pytest.mark.parametrize(
    "shape", [(5, 4), (1, 5, 4), (2, 5, 4), (3, 5, 4), (4, 6, 5)], ids=["gray", "one", "two", "colours", "four"]
)
def test_images(shape: tuple[int, ...]) -> None:
    images = some_images(shape)
    ax = plot_most_harmful(INFLUENCE, number=3, images=images)
    check_drawn(ax)
    assert not ax.axison and not ax.patches
    insets = insets_of(ax)
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
        np.testing.assert_allclose(image.get_array(), scaled(picture), rtol=1e-6, atol=1e-9)
        assert inset.get_title() == title and not inset.axison


@pytest.mark.parametrize("kind", ["float", "uint8", "negative", "constant", "numpy", "list", "with gradients"])
def test_images_of_any_kind(kind: str) -> None:
    images: Any = some_images((3, 5, 4))
    expected = scaled(images[5].double().numpy().transpose(1, 2, 0))
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
    check_drawn(ax)
    (inset,) = insets_of(ax)
    np.testing.assert_allclose(inset.images[0].get_array(), expected, rtol=1e-5, atol=tolerance)
    assert inset.get_title() == "f\n+3.00"


def test_many_images_stand_in_rows_without_overlap() -> None:
    influence = BiasInfluence(torch.arange(1.0, 24.0), 0.1, "accuracy_score_difference")
    ax = plot_most_harmful(influence, number=23, images=torch.rand(23, 3, 4))
    check_drawn(ax)
    insets = insets_of(ax)
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
    check_drawn(ax)
    assert not ax.patches and not insets_of(ax)


@pytest.mark.parametrize("images", [None, torch.ones(7, 5, 4)], ids=["bars", "images"])
def test_most_harmful_are_drawn_where_asked(images: Any) -> None:
    _, axes = pyplot.subplots(1, 2)
    before = pyplot.get_fignums()
    assert plot_most_harmful(INFLUENCE, images=images, ax=axes[0]) is axes[0]
    assert pyplot.get_fignums() == before and not axes[1].patches and not insets_of(axes[1])


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


@pytest.mark.parametrize("shape", [(1, 6), (1, 1, 6), (3, 1, 6)])
def test_images_of_one_row(shape: tuple[int, ...]) -> None:
    ax = plot_most_harmful(INFLUENCE, number=1, images=some_images(shape))
    (inset,) = insets_of(ax)
    assert inset.images[0].get_array().shape[:2] == (1, 6)
