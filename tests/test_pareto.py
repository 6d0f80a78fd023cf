"""Pareto sets against a loop over pairs of rows, and means over seeds against means of plain lists."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairtrim import InputError
from fairtrim_adapters.pareto import Direction, mean_over_seeds, pareto_set

OBJECTIVES: dict[str, Direction] = {"a": "max", "b": "min", "c": "max"}
# few values, so that ties and equal rows are common
value = st.one_of(st.integers(-2, 2).map(float), st.sampled_from([math.nan, math.inf, -math.inf, 0.5]))
finite = st.integers(-3, 3).map(float)


def rows(entry: Any, width: int = 3, min_size: int = 0) -> Any:
    return st.lists(st.tuples(*[entry] * width), min_size=min_size, max_size=9)


def _frame(entries: list[tuple[float, ...]]) -> pd.DataFrame:
    return pd.DataFrame(entries, columns=list("abc")[: len(entries[0]) if entries else 3], dtype=float)


def oracle(entries: list[tuple[float, ...]], signs: tuple[int, ...]) -> list[bool]:
    """The definition, pair by pair."""
    found = []
    for row in entries:
        beaten = any(math.isnan(v) for v in row)
        for other in entries:
            if any(math.isnan(v) for v in other):
                continue
            at_least_as_good = all(s * o >= s * r for s, o, r in zip(signs, other, row, strict=True))
            better_in_one = any(s * o > s * r for s, o, r in zip(signs, other, row, strict=True))
            beaten = beaten or (at_least_as_good and better_in_one)
        found.append(not beaten)
    return found


@settings(deadline=None)
@given(rows(value))
def test_equals_the_definition(entries: list[tuple[float, ...]]) -> None:
    assert pareto_set(_frame(entries), OBJECTIVES).tolist() == oracle(entries, (1, -1, 1))


@settings(deadline=None)
@given(rows(value, 2))
def test_equals_the_definition_for_two(entries: list[tuple[float, ...]]) -> None:
    assert pareto_set(_frame(entries), {"a": "min", "b": "min"}).tolist() == oracle(entries, (-1, -1))


@settings(deadline=None)
@given(rows(finite, min_size=1))
def test_somebody_is_in_the_set_and_it_beats_the_rest(entries: list[tuple[float, ...]]) -> None:
    chosen = pareto_set(_frame(entries), OBJECTIVES)
    assert chosen.any()
    alone = pareto_set(_frame([row for row, kept in zip(entries, chosen, strict=True) if kept]), OBJECTIVES)
    assert alone.all()


@settings(deadline=None)
@given(rows(finite))
def test_monotone_transforms_change_nothing(entries: list[tuple[float, ...]]) -> None:
    frame = _frame(entries)
    expected = pareto_set(frame, OBJECTIVES).tolist()
    other = pd.DataFrame({"a": np.exp(frame["a"]), "b": 3 * frame["b"] - 7, "c": -(frame["c"] ** 3)})
    assert pareto_set(other, {"a": "max", "b": "min", "c": "min"}).tolist() == expected
    assert pareto_set(frame, dict(reversed(OBJECTIVES.items()))).tolist() == expected  # nor does the objectives' order


@settings(deadline=None)
@given(rows(value).flatmap(lambda entries: st.tuples(st.just(entries), st.permutations(range(len(entries))))))
def test_order_of_rows_changes_nothing(drawn: tuple[list[tuple[float, ...]], list[int]]) -> None:
    entries, order = drawn
    frame = _frame(entries)
    shuffled = pareto_set(frame.iloc[order], OBJECTIVES)
    assert shuffled.index.tolist() == order
    assert shuffled.sort_index().tolist() == pareto_set(frame, OBJECTIVES).tolist()


@settings(deadline=None)
@given(rows(value, min_size=1), st.data())
def test_duplicates_share_their_fate(entries: list[tuple[float, ...]], data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(entries) - 1))
    expected = pareto_set(_frame(entries), OBJECTIVES).tolist()
    assert pareto_set(_frame([*entries, entries[row]]), OBJECTIVES).tolist() == [*expected, expected[row]]


@settings(deadline=None)
@given(rows(finite, min_size=1), st.data())
def test_beaten_points_change_nothing(entries: list[tuple[float, ...]], data: st.DataObject) -> None:
    a, b, c = entries[data.draw(st.integers(0, len(entries) - 1))]
    losses = data.draw(st.tuples(*[st.integers(0, 2)] * 3).filter(any))
    expected = pareto_set(_frame(entries), OBJECTIVES).tolist()
    added = (a - losses[0], b + losses[1], c - losses[2])
    assert pareto_set(_frame([*entries, added]), OBJECTIVES).tolist() == [*expected, False]


def test_one_objective_one_row_and_none() -> None:
    frame = pd.DataFrame({"a": [1.0, 3.0, 3.0, math.nan]})
    assert pareto_set(frame, {"a": "max"}).tolist() == [False, True, True, False]
    assert pareto_set(frame, {"a": "min"}).tolist() == [True, False, False, False]
    assert pareto_set(frame.iloc[1:2], {"a": "max"}).tolist() == [True]
    assert pareto_set(frame.iloc[3:], {"a": "max"}).tolist() == [False]
    empty = pareto_set(frame.iloc[:0], {"a": "max"})
    assert len(empty) == 0 and empty.dtype == bool


def test_default_objectives_and_the_index() -> None:
    frame = pd.DataFrame(
        {
            "accuracy": [0.9, 0.8, 0.8, 0.8],
            "worst_group_accuracy": [0.5, 0.6, 0.6, 0.7],
            "parameters": [100, 60, 70, 70],
            "note": ["dense", "a", "b", "c"],
        },
        index=pd.Index(["w", "x", "y", "y"]),
    )
    chosen = pareto_set(frame)
    assert chosen.tolist() == [True, True, False, True] and chosen.dtype == bool
    assert chosen.index.tolist() == ["w", "x", "y", "y"]
    assert frame[chosen]["note"].tolist() == ["dense", "a", "c"]


@pytest.mark.parametrize("kind", ["Int64", "object", "bool"])
def test_columns_of_other_types(kind: str) -> None:
    values: list[Any] = [True, False, True] if kind == "bool" else [2, None, 5]
    chosen = pareto_set(pd.DataFrame({"a": pd.Series(values, dtype=kind)}), {"a": "max"})
    assert chosen.tolist() == ([True, False, True] if kind == "bool" else [False, False, True])


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ({"a": "max", "nothing": "min"}, r"the frame has no column \['nothing'\]; its columns are \['a', 'word', 'b'"),
        ({"a": "maximum", "b": "min"}, r"directions {'a': 'maximum'}; expected 'max' or 'min' for each column"),
        ({"a": 1}, r"directions {'a': 1}; expected 'max' or 'min'"),
        ({}, "objectives is {}; expected columns with 'max' or 'min'"),
        (["a"], r"objectives is \['a'\]; expected columns with"),
        ({"word": "max"}, "the column 'word' is of type .*; expected numbers"),
        ({"b": "max"}, "the frame has several columns called 'b'; expected one"),
        (None, r"the frame has no column \['accuracy', 'worst_group_accuracy', 'parameters'\]"),
    ],
)
def test_refused_objectives(objectives: Any, message: str) -> None:
    frame = pd.DataFrame([[1.0, "x", 2, 3]], columns=["a", "word", "b", "b"])
    with pytest.raises(InputError, match=message):
        pareto_set(frame, objectives)


def test_what_is_no_frame() -> None:
    with pytest.raises(InputError, match="the sweep is a dict; expected a pandas DataFrame"):
        pareto_set({"a": [1]}, {"a": "max"})
    with pytest.raises(InputError, match="the sweep is a list; expected a pandas DataFrame"):
        mean_over_seeds([])


# Means over seeds.


def _sweep() -> pd.DataFrame:
    entries = []
    for seed in (3, 1, 4):
        for criterion, ratio, post in (
            ("dense", 0.0, "none"),
            ("b", 0.5, "none"),
            ("b", 0.5, "x"),
            ("a", 0.25, "none"),
        ):
            if (seed, criterion) == (4, "a"):
                continue  # a run that is not there
            entries.append(
                {
                    "seed": seed,
                    "criterion": criterion,
                    "pruning_ratio": ratio,
                    "post_processor": post,
                    "parameters": 100 * seed + len(post),
                    "latency_ms": math.nan if seed == 1 and criterion == "b" else 2.0 * seed,
                    "accuracy": 0.1 * seed + ratio,
                    "accuracy_low[Female, Black]": 0.05 * seed,
                    "equalized_odds_difference": 0.2 - 0.01 * seed,
                    "flags": {3: "levelling down; empty cell", 1: "", 4: "empty cell; constant classifier"}[seed],
                    "checkpoint": f"{seed}.safetensors",
                }
            )
    return pd.DataFrame(entries, index=range(10, 10 + len(entries)))


def test_means_equal_those_of_lists() -> None:
    frame = _sweep()
    means = mean_over_seeds(frame)
    keys = list(zip(means["criterion"], means["pruning_ratio"], means["post_processor"], strict=True))
    assert keys == [("dense", 0.0, "none"), ("b", 0.5, "none"), ("b", 0.5, "x"), ("a", 0.25, "none")]
    assert means["seeds"].tolist() == [3, 3, 3, 2] and means.index.tolist() == [0, 1, 2, 3]
    assert not {"seed", "checkpoint"} & set(means.columns)
    for place, (criterion, ratio, post) in enumerate(keys):
        of_run = [
            row
            for row in frame.to_dict("records")
            if (row["criterion"], row["pruning_ratio"], row["post_processor"]) == (criterion, ratio, post)
        ]
        for column in ("parameters", "latency_ms", "accuracy", "accuracy_low[Female, Black]"):
            values = [row[column] for row in of_run]
            assert means[column][place] == pytest.approx(sum(values) / len(values), nan_ok=True)
        for column in ("accuracy", "equalized_odds_difference"):
            values = [row[column] for row in of_run]
            assert means[f"{column}_lowest"][place] == min(values)
            assert means[f"{column}_highest"][place] == max(values)
    assert means["latency_ms"].isna().tolist() == [False, True, True, False]  # NaN in a seed: none over fewer seeds
    assert means["flags"].tolist() == ["levelling down; empty cell; constant classifier"] * 3 + [
        "levelling down; empty cell"
    ]
    assert "parameters_lowest" not in means and "accuracy_low[Female, Black]_lowest" not in means


def test_means_of_one_seed_and_of_nothing() -> None:
    frame = _sweep().query("seed == 4")
    means = mean_over_seeds(frame)
    assert means["accuracy"].tolist() == frame["accuracy"].tolist() and set(means["seeds"]) == {1}
    assert means["accuracy_lowest"].tolist() == means["accuracy_highest"].tolist() == means["accuracy"].tolist()
    empty = mean_over_seeds(frame.iloc[:0])
    assert len(empty) == 0 and set(empty.columns) == set(means.columns)


def test_the_sweep_is_left_as_it_was() -> None:
    frame = _sweep()
    before = frame.copy(deep=True)
    mean_over_seeds(frame), pareto_set(frame, {"accuracy": "max", "parameters": "min"})
    pd.testing.assert_frame_equal(frame, before)


def test_refused_sweeps() -> None:
    frame = _sweep()
    with pytest.raises(InputError, match=r"no column \['seed', 'pruning_ratio'\]; its columns are"):
        mean_over_seeds(frame.drop(columns=["seed", "pruning_ratio"]))
    with pytest.raises(
        InputError, match=r"the run {'seed': 3, 'criterion': 'dense', .* is in the frame more than once"
    ):
        mean_over_seeds(pd.concat([frame, frame.iloc[:2]]))


def test_columns_of_before_say_their_new_names() -> None:
    before = _sweep().rename(columns={"pruning_ratio": "ratio"}).assign(accuracy_difference=0.1)
    with pytest.raises(InputError, match="'ratio' is called 'pruning_ratio' now and 'accuracy_difference' is called"):
        mean_over_seeds(before)
    with pytest.raises(InputError, match="; 'accuracy_difference' is called 'accuracy_score_difference' now; its"):
        pareto_set(_sweep(), {"accuracy_difference": "min"})
