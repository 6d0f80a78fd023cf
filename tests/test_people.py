"""Sensitive features in every form that a loader gives them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from fairtrim import InputError
from fairtrim.people import EVERYONE, SensitiveEncoder, match_groups


def _encoded(sensitive: object, n: int, names: object = None) -> dict[object, list[float]]:
    encoder = SensitiveEncoder(names)  # type: ignore[arg-type]
    weights = encoder.encode(sensitive, n)
    return {name: weights[:, g].tolist() for g, name in enumerate(encoder.groups)}


def test_one_feature_in_every_form() -> None:
    expected = {"1": [1.0, 0.0, 1.0], "0": [0.0, 1.0, 0.0]}
    for form in (
        torch.tensor([1, 0, 1]),
        np.array([1, 0, 1]),
        [1, 0, 1],
        ["1", "0", "1"],
        torch.tensor([[1], [0], [1]]),
    ):
        assert _encoded(form, 3) == expected
    assert _encoded({"team": [1, 0, 1]}, 3) == expected
    assert _encoded(torch.tensor([True, False]), 2) == {"True": [1.0, 0.0], "False": [0.0, 1.0]}
    assert _encoded(None, 2) == {EVERYONE: [1.0, 1.0]}


def test_crossings_and_names() -> None:
    names = {"sex": ["Female", "Male"], "race": {0: "Black", 3: "White"}}
    codes = torch.tensor([[1, 3], [0, 3], [1, 3], [1, 0]])
    expected = {
        ("Male", "White"): [1.0, 0.0, 1.0, 0.0],
        ("Female", "White"): [0.0, 1.0, 0.0, 0.0],
        ("Male", "Black"): [0.0, 0.0, 0.0, 1.0],
    }
    assert _encoded(codes, 4, names) == expected
    # a dict may hold more than is asked for, in another order
    columns = {"race": codes[:, 1], "age": torch.arange(4), "sex": codes[:, 0]}
    assert _encoded(columns, 4, names) == expected


def test_default_collate_of_strings_and_dicts() -> None:
    data = [(torch.zeros(2), 0, ("a", "x")), (torch.zeros(2), 1, ("b", "y")), (torch.zeros(2), 1, ("a", "y"))]
    batch = next(iter(DataLoader(data, batch_size=3)))
    assert set(_encoded(batch[2], 3)) == {("a", "x"), ("b", "y"), ("a", "y")}
    dicts = [(torch.zeros(2), 0, {"team": "a", "age": 3}), (torch.zeros(2), 1, {"team": "b", "age": 4})]
    batch = next(iter(DataLoader(dicts, batch_size=2)))
    assert set(_encoded(batch[2], 2)) == {("a", "3"), ("b", "4")}


def test_groups_grow_over_batches() -> None:
    encoder = SensitiveEncoder()
    assert encoder.encode(["a", "a"], 2).shape == (2, 1)
    assert encoder.encode(["c"], 1).tolist() == [[0.0, 1.0]]
    assert encoder.encode(["a"], 1).tolist() == [[1.0, 0.0]]
    assert encoder.groups == ["a", "c"]


def test_matching_names() -> None:
    crossings = [("Female", "Black"), ("Male", "Black"), ("Male", "White")]
    features = ("sex", "race")
    for wanted, expected in (
        ("Black", [0, 1]),
        (("Male", "White"), [2]),
        ([("Male", "White"), "Female"], [0, 2]),
        ({"race": "Black"}, [0, 1]),
    ):
        assert match_groups(wanted, crossings, features, "privileged") == expected
    assert match_groups(1, ["0", "1"], ("sex",), "privileged") == [1]
    for wanted in ("white", ("White", "Male"), {"race": "Green"}, {"age": 3}):
        with pytest.raises(InputError, match="is not a sensitive group in the data; known"):
            match_groups(wanted, crossings, features, "privileged")


@pytest.mark.parametrize(
    ("sensitive", "names", "message"),
    [
        (torch.tensor([0, 1]), None, "2 values for 3 samples"),
        ([0, 1, 2], {"sex": ["Female", "Male"]}, r"value 2, which sensitive_names does not name"),
        ([0, 1, 1], ["sex", "race"], "names 2 features"),
        (torch.tensor([[0.5], [-1.0], [0.0]]), None, "negative or non-finite"),
        (torch.tensor([[0.5], [float("nan")], [0.0]]), None, "negative or non-finite"),
        (torch.tensor([0.0, 1.0, 0.0]), None, "for groups by value pass integers"),
        (torch.zeros(3, 2, 2), None, r"expected \(N, G\)"),
    ],
)
def test_wrong_features(sensitive: object, names: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SensitiveEncoder(names).encode(sensitive, 3)  # type: ignore[arg-type]


def test_features_that_change_within_a_loader() -> None:
    encoder = SensitiveEncoder()
    encoder.encode({"sex": ["a"]}, 1)
    with pytest.raises(InputError, match="changed from"):
        encoder.encode({"race": ["a"]}, 1)
    with pytest.raises(InputError, match="earlier ones had"):
        encoder.encode(None, 1)
    columns = SensitiveEncoder()
    columns.encode(torch.rand(2, 3), 2)
    with pytest.raises(InputError, match="2 weight columns; expected 3"):
        columns.encode(torch.rand(2, 2), 2)
    with pytest.raises(InputError, match="expected a list"):
        SensitiveEncoder("sex")


def test_columns_of_pandas() -> None:
    frame = pd.DataFrame({"sex": ["f", "m", "m"], "age": [1, 1, 2]}, index=[5, 3, 9])
    encoder = SensitiveEncoder()
    assert encoder.encode(frame, 3).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert encoder.features == ("sex", "age") and encoder.groups[0] == ("f", "1")
    one = SensitiveEncoder(["sex"])
    assert one.encode(frame["sex"], 3).tolist() == [[1, 0], [0, 1], [0, 1]]


@pytest.mark.parametrize("column", [["a", None, "b"], [1.0, float("nan"), 2.0], pd.Series(["a", None, "b"])])
def test_missing_values_are_no_group(column: object) -> None:
    with pytest.raises(InputError, match=r"'sex' is missing for 1 of 3 samples.*leave those people out"):
        SensitiveEncoder(["sex"]).encode({"sex": column}, 3)


def test_code_of_a_missing_value_names_nobody() -> None:
    with pytest.raises(InputError, match="value -1, which sensitive_names does not name"):
        SensitiveEncoder({"sex": ["Female", "Male"]}).encode(torch.tensor([0, -1, 1]), 3)


def test_floating_codes_with_named_values_are_not_weights() -> None:
    with pytest.raises(InputError, match="convert codes to integers"):
        SensitiveEncoder({"sex": ["Female", "Male"]}).encode(torch.rand(3, 1), 3)


def test_value_of_several_features_is_ambiguous() -> None:
    crossings = [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]
    with pytest.raises(InputError, match=r"privileged=\{'sex': 1\}"):
        match_groups(1, crossings, ("sex", "race"), "privileged")
    assert match_groups({"sex": 1}, crossings, ("sex", "race"), "privileged") == [2, 3]


def test_order_of_groups() -> None:
    """Numbers by value, then words; weight columns stay in the loader's order."""
    encoder = SensitiveEncoder()
    encoder.encode(torch.tensor([10, -3, 2, 0]), 4)
    assert [encoder.groups[g] for g in encoder.order()] == ["-3", "0", "2", "10"]
    words = SensitiveEncoder()
    words.encode(["b", "²", "10", "9"], 4)  # a digit that is no number
    assert [words.groups[g] for g in words.order()] == ["9", "10", "b", "²"]
    columns = SensitiveEncoder(["z", "a"])
    columns.encode(torch.rand(3, 2), 3)
    assert columns.order() == [0, 1]


def test_weight_columns_of_other_processes_are_the_same() -> None:
    here, there = SensitiveEncoder(), SensitiveEncoder()
    here.encode(torch.ones(2, 3), 2)
    there.encode(torch.ones(2, 2), 2)
    with pytest.raises(InputError, match=r"weight columns are .* here and .* in another process"):
        here.learn(there.state())
    assert here.learn(here.state()) == [0, 1, 2]
