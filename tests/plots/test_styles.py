"""A sensitive group looks the same in every picture, in whichever order groups come; no network looks like people."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import matplotlib

matplotlib.use("Agg")
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from torch import nn

from fairtrim_adapters.fairlearn import compare_models, plot_comparison
from fairtrim_adapters.plots import plot_budget, plot_damage, plot_group_metric
from fairtrim_adapters.plots.styles import COLOURS, better, group_styles, network_styles, short_names
from tests.plot_cases import damage_table, sweep_frame

GROUPS = ["b", "a", "c"]


def _comparison(groups: list[str]) -> dict[str, tuple[str, str]]:
    people = [(torch.eye(2).repeat(3, 1), torch.tensor([0, 1, 0, 1, 1, 1]), groups * 2)]
    ax = plot_comparison(compare_models({"dense": nn.Identity(), "other": nn.Softmin(1)}, people, progress=False))
    marks = {str(line.get_label()).partition(" ")[0]: line for line in ax.lines}
    return {name: (marks[name].get_color(), marks[name].get_marker()) for name in groups}


def _budget(groups: list[str]) -> dict[str, tuple[str, str]]:
    row = {"network": 1, "kept": True, "macs": 0.5, "people": 9.0, "accuracy dense": 0.9, "accuracy pruned": 0.8}
    row |= {"accuracy change": -0.1, "accuracy low": -0.2, "accuracy high": 0.0}
    rows = pd.DataFrame([{**row, "sensitive_group": name} for name in groups])
    ax = plot_budget(SimpleNamespace(measured=rows, history=rows.iloc[:0]))  # type: ignore[arg-type]
    marks = {str(line.get_label()).partition(" ")[0]: line for line in ax.lines}
    return {name: (marks[name].get_color(), marks[name].get_marker()) for name in groups}


def _sweep(groups: list[str]) -> dict[str, tuple[str, str]]:
    panel = plot_group_metric(sweep_frame(people=groups, seeds=(0,)))[0]
    marks = {line.get_label(): line for line in panel.lines}
    return {name: (marks[name].get_color(), marks[name].get_marker()) for name in groups}


@pytest.mark.parametrize("drawn", [_comparison, _budget, _sweep])
def test_groups_look_the_same_in_every_picture_and_order(drawn: Any) -> None:
    expected = {name: (style.colour, style.marker) for name, style in group_styles(GROUPS).items()}
    for groups in (GROUPS, sorted(GROUPS)):
        assert drawn(groups) == expected


def test_the_map_names_groups_in_their_colours() -> None:
    ax = plot_damage(damage_table({"conv": 2}, ("b", "a", "c")))
    shown = {label.get_text().partition("\n")[0]: label.get_color() for label in ax.get_xticklabels()}
    assert shown == {name: style.colour for name, style in group_styles(GROUPS).items()}


def test_groups_are_told_apart_without_colours_and_of_many_still_by_both() -> None:
    names = [f"g{k:02}" for k in range(24)]
    styles = group_styles(names)
    assert len({style.marker for style in list(styles.values())[:12]}) == 12
    assert len({(style.colour, style.marker) for style in styles.values()}) == 24
    assert group_styles([("Male", "Black")]) == group_styles(["Male, Black"])


def test_networks_are_hollow_and_have_no_colour_of_a_group() -> None:
    names = ["Taylor", "magnitude", "dense", *(f"n{k}" for k in range(9))]
    styles = network_styles(names)
    assert list(styles) == names
    for order in (sorted(names), names[::-1]):
        assert network_styles(order) == styles
    assert styles["dense"].marker == "*"
    others = [style for name, style in styles.items() if name != "dense"]
    assert len({style.marker for style in others}) == 11
    for style in others:
        assert not style.filled and style.marks()["markerfacecolor"] == "white"
        for colour in COLOURS:
            assert sum(abs(a - b) for a, b in zip(to_rgb(style.colour), to_rgb(colour), strict=True)) > 0.3


@pytest.mark.parametrize(
    ("metric", "way"),
    [("accuracy", "max"), ("worst_group_accuracy", "max"), ("true positive rate", "max"), ("accuracy[Male]", "max"),
     ("accuracy_score_difference", "min"), ("equalized odds difference", "min"), ("false_positive_rate_of_2", "min"),
     ("changed predictions", "min"), ("parameters", "min"), ("selection_rate", None), ("pruning_ratio", None)],
)  # fmt: skip
def test_what_is_better(metric: str, way: str | None) -> None:
    assert better(metric) == way


def test_short_names_stay_distinct() -> None:
    names = ["net.stem", "net.layer.2.conv", "net.layer.10.conv", "net.layer.10.conv.inner"]
    assert short_names(names) == ["stem", "layer.2.conv", "layer.10.conv", "layer.10.conv.inner"]
    for chosen in itertools.combinations(names, 2):
        assert len(set(short_names(chosen))) == 2
