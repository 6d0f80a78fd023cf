"""ColumnFlip: the attribute in a table, flipped."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fairtrim import (
    ColumnFlip,
    InputError,
)

DOUBLE = {"dtype": torch.float64}


def test_two_columns_are_swapped_and_others_stay() -> None:
    x = torch.tensor([[3.0, 1.0, -2.0, 0.0], [4.0, 0.0, 5.0, 1.0], [6.0, 0.0, 7.0, 1.0]])
    flip = ColumnFlip(one_hot=[1, 3])
    given = x.clone()
    flipped = flip(x)
    assert flipped.tolist() == [[3.0, 0.0, -2.0, 1.0], [4.0, 1.0, 5.0, 0.0], [6.0, 1.0, 7.0, 0.0]]
    assert torch.equal(x, given) and torch.equal(flip(flipped), x)


def test_three_values_go_round() -> None:
    x = torch.tensor([[1, 9, 0, 0], [0, 8, 1, 0], [0, 7, 0, 1]])
    flip = ColumnFlip(one_hot=[0, 2, 3])
    once = flip(x)
    assert once.tolist() == [[0, 9, 1, 0], [0, 8, 0, 1], [1, 7, 0, 0]] and once.dtype == x.dtype
    assert torch.equal(flip(flip(once)), x) and not torch.equal(flip(once), x)


def test_whatever_stands_for_one_moves_on() -> None:
    x = torch.tensor([[-0.5, 2.0], [2.0, -0.5]])
    flip = ColumnFlip(one_hot={0: (-0.5, 2.0), 1: (-0.5, 2.0)})
    assert flip(x).tolist() == [[2.0, -0.5], [-0.5, 2.0]]


def test_binary_columns_change_between_their_two_values() -> None:
    x = torch.tensor([[0.0, -0.625], [1.0, 1.5], [1.0, -0.625]])
    first, second = ColumnFlip(binary={1: (-0.625, 1.5)}), ColumnFlip(binary={0: (0.0, 1.0)})

    def flip(inputs: Tensor) -> Tensor:
        return second(first(inputs))

    assert flip(x).tolist() == [[1.0, 1.5], [0.0, -0.625], [0.0, 1.5]]
    assert torch.equal(flip(flip(x)), x)
    inexact = x * (1 + 1e-6)  # rounded on the way
    assert not torch.equal(inexact, x) and flip(inexact).tolist() == [[1.0, 1.5], [0.0, -0.625], [0.0, 1.5]]


def test_interactions_are_computed_anew() -> None:
    names = ["age", "woman", "man", "age×man", "points", "age×man×points"]
    x = torch.tensor([[30.0, 1.0, 0.0, 0.0, 2.0, 0.0], [40.0, 0.0, 1.0, 40.0, 3.0, 120.0]])
    by_name = ColumnFlip(
        one_hot=["woman", "man"],
        interactions={"age×man": ["age", "man"], "age×man×points": ["age", "man", "points"]},
        names=names,
    )
    by_position = ColumnFlip(one_hot=[1, 2], interactions={3: [0, 2], 5: [3, 4]})  # a product of a product
    expected = [[30.0, 0.0, 1.0, 30.0, 2.0, 60.0], [40.0, 1.0, 0.0, 0.0, 3.0, 0.0]]
    for flip in (by_name, by_position):
        assert flip(x).tolist() == expected
        assert torch.equal(flip(flip(x)), x)


def test_one_hot_and_binary_at_once() -> None:
    flip = ColumnFlip(one_hot=["a", "b", "c"], binary={"sex": (1.0, 2.0)}, names=["sex", "c", "b", "a"])
    assert flip(torch.tensor([[2.0, 0.0, 0.0, 1.0]])).tolist() == [[1.0, 0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing to flip; expected one_hot= or binary= columns"),
        ({"interactions": {1: [0]}}, "nothing to flip"),
        ({"one_hot": [2]}, r"one_hot=\[2\] is a single column; expected one column for each value, or binary="),
        ({"one_hot": ["man", "woman"]}, "column 'man' is unknown; pass names=, the names of all columns"),
        ({"one_hot": ["man", "woman"], "names": ["man", "age"]}, r"column 'woman' is unknown; known: \['man', 'age'\]"),
        ({"binary": {"sex": (0.0, 1.0)}, "names": ["age"]}, r"column 'sex' is unknown; known: \['age'\]"),
        (
            {"binary": {0: (0.0, 1.0)}, "interactions": {"product": [0]}, "names": ["sex", "age"]},
            "column 'product' is unknown",
        ),
        (
            {"binary": {0: (0.0, 1.0)}, "interactions": {"age": [0, "years"]}, "names": ["sex", "age"]},
            "column 'years' is unknown",
        ),
    ],
)
def test_flips_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ColumnFlip(**settings)


@pytest.mark.parametrize(
    ("settings", "inputs", "message"),
    [
        ({"one_hot": [1, 4]}, torch.eye(3), r"inputs are \(3, 3\); expected a tensor \(N, D\) with at least 5 columns"),
        ({"binary": {3: (0.0, 1.0)}}, torch.eye(3), "with at least 4 columns"),
        ({"one_hot": [0, 1], "interactions": {3: [0, 1]}}, torch.eye(3), "with at least 4 columns"),
        ({"one_hot": [0, 1]}, torch.zeros(2, 3, 4), r"inputs are \(2, 3, 4\); expected a tensor"),
        ({"one_hot": [0, 1]}, [[0.0, 1.0]], "inputs are list; expected a tensor"),
        (
            {"one_hot": ["a", "b"], "names": ["a", "b"]},
            torch.eye(3),
            "inputs have 3 columns; expected 2, as many as na",
        ),
        (
            {"one_hot": [0, 2]},
            torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
            r"row 1 has 0 columns of one_hot=\[0, 2\] at 1\.0; expected one",
        ),
        (
            {"binary": {1: (0.0, 1.0)}},
            torch.tensor([[0.0, 1.0], [0.0, 0.25]]),
            r"column 1 holds 0\.25; expected 0\.0 or 1\.0 only",
        ),
        ({"binary": {0: (0.0, 1.0)}}, torch.tensor([[math.nan]]), r"column 0 holds nan; expected 0\.0 or 1\.0 only"),
    ],
)
def test_rows_that_cannot_be_flipped(settings: dict[str, Any], inputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ColumnFlip(**settings)(inputs)


def test_values_of_binary_columns_are_exact() -> None:
    flip = ColumnFlip(binary={0: (0.1, 0.7)})
    x = torch.tensor([[0.1], [0.7]], **DOUBLE)
    assert flip(x).tolist() == [[0.7], [0.1]] and torch.equal(flip(flip(x)), x)


@pytest.mark.parametrize(
    "settings",
    [
        {"binary": {0: (0.0, 1.0)}, "interactions": {1: [0, 9]}},
        {"binary": {-9: (0.0, 1.0)}},
    ],
)
def test_any_column_that_is_not_there_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        ColumnFlip(**settings)(torch.eye(3))
    assert not re.search("at least (0|-)", str(caught.value))


@pytest.mark.parametrize(
    "rows",
    [[[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]], [[1.0, 0.5, 0.0]], [[-0.5, 2.0, -0.3], [1.9, -0.4, -0.3]]],
    ids=["one 1 and two of them", "three values", "columns standardised one by one"],
)
def test_one_hot_rows_have_one_column_that_stands_out(rows: list[list[float]]) -> None:
    with pytest.raises(InputError, match="one_hot"):
        ColumnFlip(one_hot=[0, 1, 2])(torch.tensor(rows))


def test_the_two_values_of_a_binary_column_differ() -> None:
    with pytest.raises(InputError, match="binary"):
        ColumnFlip(binary={0: (1.0, 1.0)})


def test_nobody_is_flipped() -> None:
    for flip in (ColumnFlip(binary={1: (0.0, 1.0)}), ColumnFlip(one_hot=[0, 2])):
        assert flip(torch.zeros(0, 3)).shape == (0, 3)


def _standardised(rows: Tensor) -> tuple[Tensor, dict[int | str, tuple[float, float]]]:
    """One-hot columns standardised one by one, and what each holds where its value is absent and present."""
    mean, deviation = rows.mean(0), rows.std(0, correction=0)
    ends = {c: (float(-mean[c] / deviation[c]), float((1 - mean[c]) / deviation[c])) for c in range(rows.shape[1])}
    return (rows - mean) / deviation, {**ends}


@pytest.mark.parametrize("n_values", [2, 3])
def test_standardised_columns_of_one_attribute(n_values: int) -> None:
    """The flip of the standardised columns is the standardised flip, for everybody at once and one by one."""
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand(50, generator=generator) * (n_values + 0.7)).long().clamp(max=n_values - 1)
    rows = torch.nn.functional.one_hot(values, n_values).double()
    x, ends = _standardised(rows)
    expected = torch.stack([torch.tensor([ends[c][int(row[c])] for c in range(n_values)]) for row in rows.roll(1, 1)])
    flip = ColumnFlip(one_hot=ends)
    torch.testing.assert_close(flip(x), expected.to(x))
    torch.testing.assert_close(torch.cat([flip(row[None]) for row in x]), expected.to(x))
    unnamed = ColumnFlip(one_hot=list(range(n_values)))
    for part in (x, *x[:, None]):
        with pytest.raises(InputError, match=r"expected 0 and 1\. .*one_hot=\{column: \(value where absent, value"):
            unnamed(part)


@pytest.mark.parametrize("row", [[1.12, -1.12], [-1.12, 1.12], [2.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
def test_one_hot_columns_hold_one_1(row: list[float]) -> None:
    with pytest.raises(InputError, match="one_hot"):
        ColumnFlip(one_hot=[0, 1])(torch.tensor([row]))


def test_two_columns_of_a_one_hot_of_three_are_not_flipped_by_themselves() -> None:
    names = ["white", "black", "asian"]
    with pytest.raises(InputError, match="names 2 columns, and whether they are of one attribute can't be told"):
        ColumnFlip(binary={"white": (0.0, 1.0), "black": (0.0, 1.0)}, names=names)
    flip = ColumnFlip(one_hot=["white", "black"], names=names)
    with pytest.raises(InputError, match=r"row 0 has 0 columns of one_hot=\['white', 'black'\] at 1.0; expected one"):
        flip(torch.tensor([[0.0, 0.0, 1.0]]))
    flip = ColumnFlip(one_hot={"white": (-1.0, 1.0), "black": (-1.0, 1.0)}, names=names)
    with pytest.raises(InputError, match=r"row 0 has 0 columns .* at their value where present; expected one"):
        flip(torch.tensor([[-1.0, -1.0, 1.0]]))


def test_columns_named_twice() -> None:
    for settings in (
        {"one_hot": [0, 0]},
        {"one_hot": [0, 1], "binary": {1: (0.0, 1.0)}},
        {"one_hot": ["a", 0], "names": ["a", "b"]},
        {"binary": {0: (0.0, 1.0)}, "interactions": {0: [1]}},
    ):
        with pytest.raises(InputError, match="name a column twice"):
            ColumnFlip(**settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"one_hot=\{1: \(2.0, 2.0\)\}; expected two different values"):
        ColumnFlip(one_hot={0: (0.0, 1.0), 1: (2.0, 2.0)})


# Attributes of many values.

HOUSES = ["a", "b", "c", "d"]
ONE_HOT = ColumnFlip(one_hot=HOUSES, names=["x", *HOUSES])
CODED = ColumnFlip(codes={"house": (0.5, 1.5, 2.5, 7.0)}, names=["x", "house"])


def _houses(values: list[int], flip: ColumnFlip) -> Tensor:
    codes = [0.5, 1.5, 2.5, 7.0]
    rows = [
        [0.1 * k, codes[v]] if flip is CODED else [0.1 * k, *(float(v == w) for w in range(4))]
        for k, v in enumerate(values)
    ]
    return torch.tensor(rows)


def _values(x: Tensor) -> list[int]:
    codes = [0.5, 1.5, 2.5, 7.0]
    return [codes.index(v) for v in x[:, 1].tolist()] if x.shape[1] == 2 else x[:, 1:].argmax(1).tolist()


@pytest.mark.parametrize("flip", [ONE_HOT, CODED], ids=["one-hot", "codes"])
def test_every_flip_makes_every_pair_of_values(flip: ColumnFlip) -> None:
    values = [0, 1, 2, 3, 3]
    x = _houses(values, flip)
    found = [_values(each(x)) for each in flip.every()]
    assert [sorted(others) for others in zip(*found, strict=True)] == [[w for w in range(4) if w != v] for v in values]
    assert torch.equal(flip(x), flip.every()[0](x))
    assert all(torch.equal(each(x)[:, 0], x[:, 0]) for each in flip.every())


@pytest.mark.parametrize("flip", [ONE_HOT, CODED], ids=["one-hot", "codes"])
def test_another_value_at_random(flip: ColumnFlip) -> None:
    drawn = replace(flip, other="random", random_state=3)
    x = _houses([2] * 3000, flip)
    once = drawn(x)
    assert torch.equal(once, drawn(x)) and not torch.equal(once, replace(drawn, random_state=4)(x))
    counts = torch.bincount(torch.tensor(_values(once)), minlength=4).tolist()
    assert counts[2] == 0 and all(900 < count < 1100 for k, count in enumerate(counts) if k != 2)  # 1000 ± 26
    generator = torch.Generator().manual_seed(3)
    going_on = replace(drawn, random_state=generator)
    assert torch.equal(going_on(x), once) and not torch.equal(going_on(x), once)
    state = torch.get_rng_state()
    drawn(x)
    assert torch.equal(torch.get_rng_state(), state)
    two = ColumnFlip(one_hot=[0, 1], other="random")
    assert two(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_interactions_follow_codes() -> None:
    flip = ColumnFlip(codes={1: (1.0, 2.0, 3.0)}, interactions={2: [0, 1]}, other=2)
    assert flip(torch.tensor([[5.0, 1.0, 5.0], [4.0, 3.0, 12.0]])).tolist() == [[5.0, 3.0, 15.0], [4.0, 2.0, 8.0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codes": {0: (1.0,)}}, r"codes=\{0: \(1\.0,\)\}; expected two different values"),
        ({"codes": {0: (1.0, 2.0, 1.0)}}, "expected two different values"),
        ({"codes": {0: (1.0, 2.0)}, "other": 2}, "other=2 of 2 values; expected a whole number from 1 to 1"),
        ({"one_hot": [0, 1, 2], "other": 0}, "other=0 of 3 values; expected a whole number from 1 to 2, or 'random'"),
        ({"one_hot": [0, 1, 2], "other": "next"}, "other='next' of 3 values"),
        ({"one_hot": [0, 1, 2], "other": "random", "random_state": "a"}, "random_state='a'"),
        ({"one_hot": [0, 1], "codes": {1: (0.0, 1.0, 2.0)}}, "name a column twice"),
    ],
)
def test_bad_settings_of_many_values(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ColumnFlip(**settings)


def test_what_many_values_refuse() -> None:
    with pytest.raises(InputError, match=r"column 0 holds 4\.0; expected one of \[1\.0, 2\.0, 3\.0\] only"):
        ColumnFlip(codes={0: (1.0, 2.0, 3.0)})(torch.tensor([[4.0]]))
    with pytest.raises(InputError, match="are of several attributes; expected one"):
        ColumnFlip(one_hot=[0, 1, 2], binary={3: (0.0, 1.0)}).every()


@pytest.mark.parametrize(
    ("codes", "dtype"),
    [((100_000, 100_001, 100_002), torch.float32), ((0.0, 1e-9, 2e-9), torch.float64), ((7, 3, 5), torch.int64)],
)
def test_close_codes_are_told_apart(codes: tuple[float, ...], dtype: torch.dtype) -> None:
    held = torch.tensor([[codes[0]], [codes[1]], [codes[2]], [codes[1]]], dtype=torch.float64).to(dtype)
    expected = torch.tensor([[codes[1]], [codes[2]], [codes[0]], [codes[2]]], dtype=torch.float64).to(dtype)
    assert torch.equal(ColumnFlip(codes={0: codes})(held), expected)


@pytest.mark.parametrize(
    ("codes", "held"),
    [((2048, 2049), torch.ones(3, 1).half() * 2048), ((0.5, 1.5), torch.ones(3, 1, dtype=torch.int64))],
)
def test_codes_that_the_inputs_cannot_hold_are_refused(codes: tuple[float, ...], held: Tensor) -> None:
    with pytest.raises(InputError, match="can't be told apart; expected inputs of a finer type"):
        ColumnFlip(codes={0: codes})(held)


@pytest.mark.parametrize(
    "settings",
    [
        {"codes": {0: "abc"}},
        {"codes": {0: 3}},
        {"codes": [0, 1]},
        {"codes": {0: (0.0, math.inf)}},
        {"codes": {0: torch.tensor([1.0, 1.0])}},
        {"binary": {0: ("no", "yes")}},
        {"binary": [0]},
    ],
)
def test_values_that_are_no_numbers_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="; expected "):
        ColumnFlip(**settings)
