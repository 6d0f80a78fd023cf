"""Pictures of damage tables."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from torch import nn

from fairtrim import ChannelGroup, ChannelPlace, DamageTable, InputError, collect_damage
from fairtrim.damage.side_by_side import side_by_side
from fairtrim_adapters.plots import (
    plot_damage,
)
from fairtrim_adapters.plots.styles import group_styles
from tests.plot_cases import (
    check_drawn,
    damage_table,
)


@pytest.mark.parametrize("kind", ["mean", "largest", "all"])
def test_damage_map_equals_a_loop(kind: Any) -> None:
    sizes = {"conv": 5, "nothing": 0, "block.0.linear": 2}
    table = replace(damage_table(sizes), layer_order=tuple(sizes))
    ax = plot_damage(table, kind=kind)
    check_drawn(ax)
    (image,) = ax.images
    for g in range(3):
        for place, name in enumerate(("conv", "block.0.linear")):
            values = [float(value) for value in table[name][g]]
            expected = {"mean": sum(values) / len(values), "largest": max(values), "all": sum(values)}[kind]
            assert image.get_array()[place, g] == pytest.approx(expected)
            text = ax.texts[3 * place + g]
            assert text.get_position() == (g, place) and text.get_text() == f"{expected:+.2g}"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["conv (5)", "block.0.linear (2)"]
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        "Female\nn = 700",
        "Male, Black\nn = 1,400",
        "Other\nn = 2,100",
    ]
    colours = [label.get_color() for label in ax.get_xticklabels()]
    assert colours == [style.colour for style in group_styles(["Female", "Male, Black", "Other"]).values()]
    layer, g = np.unravel_index(image.get_array().argmax(), (2, 3))
    most = (
        f"Predicted to hurt most: {['Female', 'Male, Black', 'Other'][g]}, in layer {['conv', 'block.0.linear'][layer]}"
    )
    assert ax.get_title().startswith(most if image.get_array().max() > 0 else "No channel")
    low, high = image.norm.vmin, image.norm.vmax
    assert low == -high and high == pytest.approx(np.abs(image.get_array()).max())
    (bar,) = [axes for axes in ax.figure.axes if axes is not ax]
    assert bar.get_ylabel() == "rise of the mean loss (red hurts)\n(nats, if cross-entropy)"
    assert {"mean": "mean", "largest": "largest", "all": "sum"}[kind] in ax.get_title()


def test_damage_map_of_many_layers() -> None:
    sizes = {f"encoder.layer.{i}.attention.query": 1 + i % 4 for i in range(60)}
    table = damage_table(sizes)
    columns = torch.cat([torch.full((size,), 10.0 ** -(i % 4)) for i, size in enumerate(sizes.values())])
    table = replace(table, slope=table.slope * columns, curvature=table.curvature * columns)
    ax = plot_damage(table)
    check_drawn(ax)
    names = [label.get_text().partition(" ")[0] for label in ax.get_yticklabels()]
    assert not ax.texts and names == [f"layer.{i}.attention.query" for i in range(60)]
    assert type(ax.images[0].norm).__name__ == "AsinhNorm"  # a few layers don't hide the others
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert all(below.y1 <= above.y0 + 1 for above, below in itertools.pairwise(boxes))
    (bar,) = [axes for axes in ax.figure.axes if axes is not ax]
    ticks = bar.get_yticks()
    assert 0 in ticks and list(ticks) == sorted(-value for value in ticks)


def test_layers_stand_in_the_order_of_the_network() -> None:
    """Whatever the order of the columns: that of the modules, and of names without a network 10 after 2."""
    sizes = {"layer.10": 2, "stem": 3, "layer.2": 1}
    without = plot_damage(damage_table(sizes))
    assert [label.get_text() for label in without.get_yticklabels()] == ["layer.2 (1)", "layer.10 (2)", "stem (3)"]
    table = replace(damage_table(sizes), layer_order=("stem", "layer.2", "layer.10"))
    ax = plot_damage(table)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["stem (3)", "layer.2 (1)", "layer.10 (2)"]
    assert ax.images[0].get_array()[0].tolist() == pytest.approx(table["stem"].mean(1).tolist())


def test_the_order_of_the_network_is_collected() -> None:
    """Pruners list layers from the output back; the table knows the way forward."""
    model = nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(12)))
    names = [str(k) for k in (10, 2, 0)]
    groups = [
        ChannelGroup(name, 3, (ChannelPlace(str(int(name) + 1), "input", range(3), range(3), channel_axis=-1),))
        for name in names
    ]
    table = collect_damage(model, [(torch.eye(3), torch.tensor([0, 1, 2]), ["a", "b", "b"])], groups, progress=False)
    assert list(table.sizes) == names and table.layer_order == ("0", "2", "10")
    assert side_by_side({"once": table, "again": table}).layer_order == table.layer_order


def test_impossible_damage_is_marked() -> None:
    table = damage_table({"conv": 5, "linear": 2})
    low = DamageTable(**{**vars(table), "slope": table.slope.abs() + 200 * torch.eye(3, 7).double()})
    ax = plot_damage(low, kind="all")
    check_drawn(ax)
    shown = ax.images[0].get_array().filled(torch.nan)
    marks = [text.get_position() for text in ax.texts if text.get_text() == "×"]
    assert marks == [(0, 0), (1, 0), (2, 0)] and "impossible" in ax.get_title()
    assert bool((shown[0] != shown[0]).all()) and bool((shown[1] == shown[1]).all())
    assert len(ax.texts) == 6
    assert "impossible" not in plot_damage(table, kind="all").get_title()


def test_damage_of_nothing() -> None:
    flat = damage_table({"a": 2}, scale=0.0)
    ax = plot_damage(flat)
    check_drawn(ax)
    assert (ax.images[0].norm.vmin, ax.images[0].norm.vmax) == (-1, 1) and not ax.images[0].get_array().any()
    with pytest.raises(InputError, match="the damage table has no channels"):
        plot_damage(damage_table({"a": 0}))
    with pytest.raises(InputError, match=r"kind='median'; expected one of \['mean', 'largest', 'all'\]"):
        plot_damage(flat, kind="median")  # type: ignore[arg-type]
    assert len(pyplot.get_fignums()) == 1
