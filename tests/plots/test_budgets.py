"""Pictures of budgets: every group, every network that was tried, where it was measured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pandas as pd
import pytest

from fairtrim import InputError
from fairtrim_adapters.plots import plot_budget
from fairtrim_adapters.plots.styles import group_styles
from tests.plot_cases import check_drawn

GROUPS = {"women": 80.0, "men": 130.0, "everybody": 210.0}


def _result(macs: list[float], kept: int, changes: dict[str, list[float]]) -> Any:
    rows = [
        {
            "network": k + 1,
            "kept": k == kept,
            "macs": share,
            "parameters": share / 2,
            "latency": np.nan,
            "sensitive_group": name,
            "people": people,
            "accuracy dense": 0.8 + 0.01 * len(name),
            "accuracy pruned": 0.8 + 0.01 * len(name) + changes[name][k],
            "accuracy change": changes[name][k],
            "accuracy low": changes[name][k] - 0.03,
            "accuracy high": changes[name][k] + 0.02,
        }
        for k, share in enumerate(macs)
        for name, people in GROUPS.items()
    ]
    history = pd.DataFrame(rows)
    return SimpleNamespace(measured=history[history["network"] == kept + 1], history=history)


def test_points_lines_and_intervals_are_those_of_the_table() -> None:
    result = _result([0.5, 0.3], 0, {"women": [-0.02, -0.2], "men": [-0.01, -0.05], "everybody": [0.0, 0.0]})
    ax = plot_budget(result)
    check_drawn(ax)
    title = "Largest loss: women, −2.0 points at 50 % of the MACs, which may be chance"
    assert " ".join(ax.get_title().split()) == title
    sure = _result([0.5], 0, {"women": [-0.06], "men": [-0.01], "everybody": [0.0]})
    assert plot_budget(sure).get_title() == "Largest loss: women, −6.0 points at 50 % of the MACs"
    assert ax.get_ylabel() == "accuracy (higher is better ↑)"
    women = ax.collections[1]
    x, y = np.asarray(women.get_offsets()).T
    assert x == pytest.approx([30 - 0.3, 50 - 0.3]) and y == pytest.approx([0.85 - 0.2, 0.85 - 0.02])
    assert women.get_edgecolors()[1].tolist() == [0, 0, 0, 1] != women.get_edgecolors()[0].tolist()
    bars = [segment[:, 1].tolist() for segment in ax.collections[0].get_segments()]
    assert bars == [pytest.approx([0.62, 0.67]), pytest.approx([0.80, 0.85])]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["women (n = 80)", "men (n = 130)", "dense network", "95 % of the change", "kept"]
    assert plot_budget(result, size="parameters").get_xlabel() == "left of the parameters, % (less is better ←)"


def test_what_was_allowed_is_drawn_for_each_group() -> None:
    result = _result([0.5, 0.3], 0, {"women": [-0.02, -0.2], "men": [-0.01, -0.05], "everybody": [0.0, 0.0]})
    assert not [line for line in plot_budget(result).lines if line.get_linestyle() == ":"]
    history = result.history
    result.history = history.assign(
        **{"accuracy allowed": history["sensitive_group"].map({"women": 0.05, "men": 0.02})}
    )
    ax = plot_budget(result)
    check_drawn(ax)
    dotted = [(line.get_ydata()[0], line.get_color()) for line in ax.lines if line.get_linestyle() == ":"]
    colours = {name: style.colour for name, style in group_styles(["women", "men"]).items()}
    assert dotted == [(pytest.approx(0.8), colours["women"]), (pytest.approx(0.81), colours["men"])]
    assert "allowed drop" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_titles_where_nobody_loses_or_nothing_was_pruned() -> None:
    gains = _result([0.5], 0, {"women": [0.01], "men": [0.0], "everybody": [0.0]})
    title = "No group is seen to lose accuracy at 50 % of the MACs"
    assert " ".join(plot_budget(gains).get_title().split()) == f"{title}: men perhaps, 3.0 points"
    sure = _result([0.5], 0, {"women": [0.04], "men": [0.03], "everybody": [0.03]})
    assert plot_budget(sure).get_title() == title
    dense = SimpleNamespace(measured=gains.measured, history=pd.DataFrame())
    ax = plot_budget(dense)
    check_drawn(ax)
    assert ax.get_title().startswith("Nothing was pruned")
    alone = gains.measured[gains.measured["sensitive_group"] == "everybody"].assign(
        **{"accuracy change": -0.1, "accuracy low": -0.12, "accuracy high": -0.08}
    )
    ax = plot_budget(SimpleNamespace(measured=alone, history=alone))
    assert ax.get_title() == "Accuracy changes by −10.0 points at 50 % of the MACs"


def test_what_cannot_be_drawn_is_refused() -> None:
    result = _result([0.5], 0, {"women": [0.01], "men": [0.0], "everybody": [0.0]})
    with pytest.raises(InputError, match="size='width'"):
        plot_budget(result, size="width")
    with pytest.raises(InputError, match="was not measured"):
        plot_budget(result, size="latency")
    losses = result.measured.assign(**{"accuracy dense": np.nan})
    with pytest.raises(InputError, match="no labels"):
        plot_budget(SimpleNamespace(measured=losses, history=losses))


def test_what_is_no_result_of_a_budget_is_refused() -> None:
    with pytest.raises(InputError, match="got a NoneType; expected what prune_to or smallest gives back"):
        plot_budget(None)
