"""What results print: figures, tables in under 100 columns, and HTML."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairtrim.printing import WIDTH, Printed, TextTable, figure

names = st.text("abcdefgh ", min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("given_", "shown"),
    [
        ((0.5,), "0.500"),
        ((0.5, 0.4, 0.6), "0.500 [0.400, 0.600]"),
        ((0.5, math.nan, math.nan), "0.500"),
        ((0.5, None, None), "0.500"),
        ((-0.0001,), "0.000"),
        ((None,), "-"),
        ((1234567,), "1,234,567"),
        ((np.int64(1234),), "1,234"),
        ((np.float32(0.25),), "0.250"),
    ],
)
def test_figures(given_, shown):
    assert figure(*given_) == shown


def test_signs():
    assert figure(0.25, 0.0, 0.5, sign=True, digits=2) == "+0.25 [+0.00, +0.50]"


@given(st.integers(1, 9), st.lists(names, min_size=1, max_size=5), st.integers(1, 45))
def test_every_cell_of_a_wide_table_is_shown_in_under_100_columns(n_columns, groups, length):
    heads = ["name", *(f"head {column}" for column in range(n_columns))]
    rows = [
        [name, *(f"{row}.{column}".rjust(length, "x") for column in range(n_columns))]
        for row, name in enumerate(groups)
    ]
    lines = list(TextTable(heads, rows).lines())
    assert all(len(line) <= WIDTH for line in lines)
    text = "\n".join(lines)
    assert all(text.count(cell) >= 1 for row in rows for cell in row[1:])
    assert all(text.count(head) == 1 for head in heads[1:])


def test_a_name_stands_once_and_html_is_escaped():
    table = TextTable(
        ["model", "group", "n"], [["<a>", "x", "1"], ["<a>", "y", "2"], ["b", "x", "3"]], names=2, title="of & by"
    )
    assert str(table).count("<a>") == 1
    assert "&lt;a&gt;" in table.to_html() and "<a>" not in table.to_html() and "of &amp; by" in table.to_html()


def test_long_names_are_shortened_only_where_there_is_no_room():
    name = "n" * 80
    assert name in str(TextTable(["name", "v"], [[name, "1"]]))
    assert name not in str(TextTable(["name", "v"], [[name, "1" * 30]]))


def test_sentences_are_wrapped():
    class Result(Printed):
        def blocks(self):
            return ["word " * 50, TextTable(["a"], [["b"]]), "Flags\n  <one>\n  two"]

    assert all(len(line) <= WIDTH for line in str(Result()).splitlines())
    assert Result()._repr_html_().startswith("<p>word")
    assert Result()._repr_html_().endswith("<p>Flags<br>  &lt;one&gt;<br>  two</p>")
