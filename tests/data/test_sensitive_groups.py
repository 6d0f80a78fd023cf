"""Sensitive features in every form that a loader gives them."""

from __future__ import annotations

import enum
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch_pruning as tp
from torch import nn
from torch.utils.data import DataLoader

from fairtrim import ChannelGroup, ChannelPlace, InputError, collect_damage
from fairtrim.damage.weight_saliency import squared_gradients
from fairtrim.data.sensitive_groups import EVERYONE, SensitiveEncoder, match_groups
from fairtrim.oracle import measured_damage, oracle_damage, oracle_squared_gradients
from fairtrim_adapters.torch_pruning import WorstGroupImportance


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
        (torch.tensor([[0.5], [-1.0], [0.0]]), None, "holds 0.5; expected codes of groups.*sensitive_weights=True"),
        (torch.tensor([[0.5], [float("nan")], [0.0]]), None, "is missing for 1 of 3"),
        (torch.tensor([0.0, float("inf"), 0.0]), None, "holds inf; expected codes"),
        (torch.zeros(3, 2, 2), None, r"expected \(N,\), or \(N, S\)"),
        (torch.tensor(1), None, r"have shape \(\) for 3 samples"),
        ({}, None, "have no column"),
        (np.array([{1}, {2}, {3}], dtype=object), None, "can't be compared"),
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
    columns = SensitiveEncoder(sensitive_weights=True)
    columns.encode(torch.rand(2, 3), 2)
    with pytest.raises(InputError, match=r"2 weight columns .*; expected 3"):
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


def test_fractions_are_no_codes_of_named_values() -> None:
    with pytest.raises(InputError, match="which sensitive_names does not name"):
        SensitiveEncoder({"sex": ["Female", "Male"]}).encode(torch.rand(3, 1), 3)
    assert list(_encoded([0.5, 1.0, 0.5], 3, {"share": {0.5: "half", 1: "whole"}})) == ["half", "whole"]


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
    columns = SensitiveEncoder(["z", "a"], sensitive_weights=True)
    columns.encode(torch.rand(3, 2), 3)
    assert columns.order() == [0, 1]


def test_weight_columns_of_other_processes_are_the_same() -> None:
    here, there = SensitiveEncoder(sensitive_weights=True), SensitiveEncoder(sensitive_weights=True)
    here.encode(torch.ones(2, 3), 2)
    there.encode(torch.ones(2, 2), 2)
    with pytest.raises(InputError, match=r"weight columns are .* here and .* in another process"):
        here.learn(there.state())
    assert here.learn(here.state()) == [0, 1, 2]


class _Sex(str, enum.Enum):  # noqa: UP042 - a StrEnum is printed as its value by itself
    FEMALE = "Female"


@pytest.mark.parametrize(
    "ones",
    [
        [1, 1],
        [1.0, 1.0],
        [True, 1],
        np.array([1, 1], dtype=np.uint8),
        np.array([1, 1], dtype=np.float32),
        np.array([1, 1.0], dtype=object),
        np.array([np.float32(1), np.int64(1)], dtype=object),
        torch.ones(2),
        torch.ones(2, dtype=torch.bfloat16),
        torch.ones(2, 1, dtype=torch.int32),
        torch.tensor([True, True]),
        [torch.tensor(1), torch.tensor(1.0)],
        [torch.tensor([1.0, 1.0])],
        [Decimal("1"), Decimal("1.0")],
        [Fraction(1), np.int16(1)],
        pd.Series([1, 1], index=[7, 3], dtype="Int64"),
        pd.Series([1.0, 1.0], dtype="Float32"),
        pd.Series([1, 1], dtype="category"),
        pd.DataFrame({"sensitive": np.ones(2)}),
        {"sensitive": pd.Series([True, True], dtype="boolean")},
        ["1", np.str_("1")],
        np.array([b"1", b"1"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("first", [True, False])
def test_equal_codes_are_one_group_in_any_type(ones: Any, first: bool) -> None:
    """Within a batch and from one to the next, whichever comes first."""
    encoder = SensitiveEncoder()
    for batch in (ones, torch.tensor([1, 0])) if first else (torch.tensor([1, 0]), ones):
        encoder.encode(batch, 2)
    column = next(iter(ones.values())) if isinstance(ones, dict) else ones
    booleans = first and str(next(iter(column))) in ("True", "tensor(True)")  # the first form gives the names
    assert encoder.groups == (["True", "False"] if booleans else ["1", "0"])
    assert match_groups(1, encoder.groups, encoder.features, "privileged") == [0]
    assert match_groups(np.float64(1), encoder.groups, encoder.features, "privileged") == [0]
    assert match_groups({"sensitive": True}, encoder.groups, encoder.features, "privileged") == [0]


def test_named_codes_and_strings_in_every_type() -> None:
    names = {"sex": ["Female", "Male"]}
    for column in (torch.tensor([1.0, 0.0]), [True, False], np.array([1, 0], dtype=object), pd.Series([1.0, 0.0])):
        assert list(_encoded(column, 2, names)) == ["Male", "Female"]
    for column in (["Female"], np.array(["Female"]), np.array([b"Female"]), [_Sex.FEMALE], pd.Categorical(["Female"])):
        assert list(_encoded(column, 1)) == ["Female"]
    assert list(_encoded({0: [1], 1: [0]}, 1, {0: ["Female", "Male"], 1: None})) == [("Male", "0")]
    assert list(_encoded([_Sex.FEMALE, b"m"], 2, {"sex": {_Sex.FEMALE: "woman", b"m": "man"}})) == ["woman", "man"]


def test_floating_columns_are_features() -> None:
    """AIF360's protected attributes are float64 (N, 2)."""
    protected = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]).double()
    expected = [("0", "1"), ("1", "1"), ("0", "0")]
    for form in (protected, protected.numpy(), pd.DataFrame(protected.numpy(), columns=["sex", "race"])):
        encoder = SensitiveEncoder(["sex", "race"])
        assert encoder.encode(form, 3).tolist() == torch.eye(3).tolist()
        assert encoder.groups == expected and encoder.features == ("sex", "race")


def test_a_continuous_feature_is_no_group_for_each_value() -> None:
    age = torch.arange(250) % 99
    assert len(_encoded(age.double(), 250)) == 99
    with pytest.raises(InputError, match=r"more than 100 floating-point numbers.*fairtrim\.SensitiveBins"):
        SensitiveEncoder().encode(torch.arange(2, 103).float(), 101)
    assert len(_encoded(torch.arange(101), 101)) == 101  # integers may be many crossings of codes


def test_booleans_in_one_process_and_numbers_in_another_are_refused() -> None:
    here, there = SensitiveEncoder(), SensitiveEncoder()
    here.encode([True], 1)
    there.encode([0], 1)
    with pytest.raises(InputError, match=r"code 0 .* is called 'False' here and '0' in another process"):
        here.learn(there.state())


def test_names_of_columns_are_found_by_name() -> None:
    frame = pd.DataFrame({"race": ["x", "y"], "sex": ["f", "m"]})
    for form in (frame, frame.to_dict("list")):
        assert list(_encoded(form, 2, ["sex", "race"])) == [("f", "x"), ("m", "y")]
        with pytest.raises(InputError, match=r"names 'sexx' \(did you mean 'sex'\?\)"):
            SensitiveEncoder(["sexx", "race"]).encode(form, 2)
        with pytest.raises(InputError, match="names 'gender', which the loader does not give"):
            SensitiveEncoder(["race", "gender"]).encode(form, 2)


def test_weights_of_groups_are_asked_for_by_name() -> None:
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 2.0]])
    columns = {"a": weights[:, 0], "b": weights[:, 1], "c": weights[:, 2]}
    for form in (
        weights,
        weights.numpy(),
        list(weights.T),
        pd.DataFrame(weights.numpy(), columns=list("abc")),
        columns,
    ):
        encoder = SensitiveEncoder(["a", "b", "c"], sensitive_weights=True)
        assert encoder.encode(form, 2).tolist() == weights.tolist() and encoder.groups == ["a", "b", "c"]
    encoder = SensitiveEncoder(sensitive_weights=True)
    assert encoder.encode(torch.tensor([[1, 0], [1, 1]]), 2).tolist() == [[1, 0], [1, 1]]  # groups that overlap
    assert encoder.groups == ["weights_0", "weights_1"]
    with pytest.raises(InputError, match="1 of 2 people of batch 7 have no weight in any sensitive group"):
        encoder.encode(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), 2, 7)
    with pytest.raises(InputError, match="no third entry"):
        encoder.encode(None, 2)
    for wrong, message in (
        (torch.tensor([[0.5], [-1.0]]), "batch 3 hold negative or non-finite"),
        (torch.tensor([[0.5], [float("nan")]]), "negative or non-finite"),
        (torch.rand(2), r"have shape \(2,\) for 2 samples; expected \(N, G\)"),
        (["a", "b"], "are no numbers"),
    ):
        with pytest.raises(InputError, match=message):
            SensitiveEncoder(sensitive_weights=True).encode(wrong, 2, 3)
    with pytest.raises(InputError, match="sensitive_weights is a list; expected True"):
        SensitiveEncoder(sensitive_weights=["a"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="names values, which weights have none of"):
        SensitiveEncoder({"sex": ["f", "m"]}, sensitive_weights=True)


def test_importances_take_weights_by_name_only() -> None:
    x, y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    codes = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]] * 2, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

    def groups(sensitive: torch.Tensor, **options: Any) -> tuple[Any, ...]:
        importance = WorstGroupImportance(progress=False, **options)
        pruner = tp.pruner.BasePruner(model, x[:1], importance=importance, ignored_layers=[model[2]])
        return importance.fit(pruner, [(x, y, sensitive)]).damage_.sensitive_groups

    assert groups(codes) == (("0", "0"), ("0", "1"), ("1", "0"), ("1", "1"))
    assert groups(codes + 0.1, sensitive_weights=True, sensitive_names=["a", "b"]) == ("a", "b")
    with pytest.raises(InputError, match="2 of 8 people of batch 0 have no weight"):
        groups(codes, sensitive_weights=True)
    with pytest.raises(InputError, match="sensitive_weights=True"):
        groups(codes + 0.1)
    with pytest.raises(InputError, match="did you mean 'sensitive_weights'"):
        groups(codes, sensitive_weight=True)


def test_oracles_take_the_same_weights() -> None:
    x, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double(), torch.arange(6) % 2
    weights = torch.rand(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    hidden = [ChannelGroup("0", 4, (ChannelPlace("2", "input", range(4), range(4), channel_axis=-1),))]
    batch, options = [(x, y, weights)], {"sensitive_weights": True, "sensitive_names": ["a", "b"]}
    table = collect_damage(model, batch, hidden, progress=False, **options)
    oracle = oracle_damage(model, batch, hidden, **options)
    assert table.sensitive_groups == oracle.sensitive_groups == ("a", "b")
    torch.testing.assert_close(table.damage, oracle.damage, rtol=1e-9, atol=1e-12)
    names, measured = measured_damage(model, batch, hidden, [{"0": [1]}], progress=False, **options)
    assert names == ("a", "b") and measured.shape == (1, 2)
    squares = squared_gradients(model, batch, sensitive_weights=True, progress=False)[1]
    _, expected = oracle_squared_gradients(model, batch, sensitive_weights=True)
    torch.testing.assert_close(squares["0.weight"], expected["0.weight"], rtol=1e-9, atol=1e-14)
