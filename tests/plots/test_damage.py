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

from fairtrim import (
    DamageTable,
    InputError,
)
from fairtrim_adapters.plots import (
    plot_damage,
)
from tests.plot_cases import (
    check_drawn,
    damage_table,
)


@pytest.mark.parametrize("kind", ["mean", "largest", "all"])
def test_damage_map_equals_a_loop(kind: Any) -> None:
    sizes = {"conv": 5, "nothing": 0, "block.0.linear": 2}
    table = damage_table(sizes)
    ax = plot_damage(table, kind=kind)
    check_drawn(ax)
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
    table = damage_table(sizes)
    columns = torch.cat([torch.full((size,), 10.0 ** -(i % 4)) for i, size in enumerate(sizes.values())])
    table = replace(table, slope=table.slope * columns, curvature=table.curvature * columns)
    ax = plot_damage(table)
    check_drawn(ax)
    assert not ax.texts and len(ax.get_xticklabels()) == 60
    assert type(ax.images[0].norm).__name__ == "AsinhNorm"  # a few layers don't hide the others
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert all(left.x1 <= right.x0 + 1 for left, right in itertools.pairwise(boxes))
    (bar,) = [axes for axes in ax.figure.axes if axes is not ax]
    ticks = bar.get_yticks()
    assert 0 in ticks and list(ticks) == sorted(-value for value in ticks)


def test_impossible_damage_is_marked() -> None:
    table = damage_table({"conv": 5, "linear": 2})
    low = DamageTable(**{**vars(table), "slope": table.slope.abs() + 200 * torch.eye(3, 7).double()})
    ax = plot_damage(low, kind="all")
    check_drawn(ax)
    shown = ax.images[0].get_array().filled(torch.nan)
    marks = [text.get_position() for text in ax.texts if text.get_text() == "×"]
    assert marks == [(0, 0), (0, 1), (0, 2)] and "impossible" in ax.get_title()
    assert bool((shown[:, 0] != shown[:, 0]).all()) and bool((shown[:, 1] == shown[:, 1]).all())
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
