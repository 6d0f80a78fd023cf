"""Bounds on figures: what holds, and what can't be told."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fairtrim import InputError
from fairtrim_adapters.command_line.bounds import judge, parse_bounds


def test_rates_of_many_classes() -> None:
    with pytest.raises(InputError, match="of up to 20 classes, and these data have more; expected accuracy"):
        judge(parse_bounds("max", ["equalized_odds_difference=0.1"]), {"accuracy": 0.5})
    with pytest.raises(InputError, match="such as selection_rate_of_1"):
        judge(parse_bounds("max", ["selection_rate=0.1"]), {"accuracy": 0.5})
    with pytest.raises(InputError, match=r"selection_rate_of_1=1\.5: no network can break it"):
        judge(parse_bounds("max", ["selection_rate_of_1=1.5"]), {"selection_rate_of_1": 0.5})
    figures = {"true_positive_rate_of_2[F]": math.nan, "positives_of_2[F]": 0, "negatives_of_2[F]": 9}
    (verdict,) = judge(parse_bounds("min", ["true_positive_rate_of_2[F]=0.1"]), figures)
    assert not verdict.holds and "undefined for these people: F has nobody with label 2" in verdict.text


def test_names_of_measures() -> None:
    (bound,) = parse_bounds("max", ["statistical-parity-difference=0.1"])
    assert bound.metric == "demographic_parity_difference"
    former = r"--max 'accuracy_difference=0.1': .* is called 'accuracy_score_difference'"
    with pytest.raises(InputError, match=former):
        parse_bounds("max", ["accuracy_difference=0.1"])
    with pytest.raises(InputError, match=r"--max 'disparate-impact=0.8': .* is a ratio; the nearest difference is"):
        parse_bounds("max", ["disparate-impact=0.8"])
    for text in ("average_odds_difference=0.1", "true_positive_rate_difference=0.1"):
        (bound,) = parse_bounds("max", [text])
        with pytest.raises(InputError, match=f"expected equalized_odds_difference, .* which {bound.metric} is never"):
            judge([bound], {"accuracy": 0.5})


@pytest.mark.parametrize(
    ("kind", "value", "holds", "confident"),
    [
        ("max", 0.5, True, True),
        ("max", 0.35, True, False),
        ("max", 0.29, False, False),
        ("min", 0.1, True, True),
        ("min", 0.25, True, False),
        ("min", 0.31, False, False),
        ("max-drop", 0.07, True, True),
        ("max-drop", 0.055, True, False),
        ("max-drop", 0.04, False, False),
        ("max-rise", 0.01, True, False),
        ("max-rise", 0.025, True, True),
        ("max-rise", -0.06, False, False),
    ],
)
def test_bounds(kind: Any, value: float, holds: bool, confident: bool) -> None:
    figures = {"m": 0.3, "m_low": 0.2, "m_high": 0.4, "m_change": -0.05, "m_change_low": -0.06, "m_change_high": 0.02}
    bounds = parse_bounds(kind, [f"m={value}"])
    assert judge(bounds, figures)[0].holds is holds
    assert judge(bounds, figures, confident=True)[0].holds is confident


def test_an_undefined_figure_fails() -> None:
    for kind in ("max", "min"):
        (verdict,) = judge(parse_bounds(kind, ["m=0.5"]), {"m": float("nan")})  # type: ignore[arg-type]
        assert not verdict.holds and "undefined" in verdict.text
