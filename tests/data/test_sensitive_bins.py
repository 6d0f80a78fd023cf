"""Ranges of a continuous sensitive feature, and people whose groups they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fairtrim import InputError, ParityFineTuning, SensitiveBins, ValidationSet
from fairtrim.measures.differentiable_bias import dependence, rank_polynomials
from fairtrim_adapters.fairlearn import metric_frame


def test_deciles_equal_pandas_cut_of_quantiles() -> None:
    income = torch.randn(997, generator=torch.Generator().manual_seed(0)).double().exp()
    codes = SensitiveBins.of(income)(income)
    number = torch.bincount(codes)
    assert len(number) == 10 and int(number.max() - number.min()) <= 1
    of_pandas = torch.from_numpy(pd.qcut(income.numpy(), 10, labels=False).astype(np.int64))
    differ = codes != of_pandas  # whoever stands at one of the nine edges may go either way
    assert int(differ.sum()) <= 9 and bool(((codes - of_pandas).abs() <= 1).all())


@pytest.mark.parametrize("bins", [2, 3, 10, 50])
def test_equal_values_share_a_bin_and_no_bin_is_empty(bins: int) -> None:
    age = torch.randint(18, 41, (301,), generator=torch.Generator().manual_seed(bins))
    made = SensitiveBins.of(age, bins)
    codes = made(age)
    assert codes.unique().tolist() == list(range(len(made.names))) and len(made.names) <= bins
    for value in age.unique():
        assert len(codes[age == value].unique()) == 1
    ordered = codes[age.argsort()]
    assert bool((ordered[1:] >= ordered[:-1]).all())
    assert sorted(made.names) == list(made.names)
    for b, name in enumerate(made.names):
        low, high = name.split(": ")[1].split(" to ")
        assert (int(low), int(high)) == (int(age[codes == b].min()), int(age[codes == b].max()))
    assert made([-1e9, 1e9]).tolist() == [0, len(made.names) - 1]


@pytest.mark.parametrize(
    "values", [[4, 1, 3], (4.0, 1.0, 3.0), np.array([4, 1, 3]), torch.tensor([[4], [1], [3]]), pd.Series([4, 1, 3])]
)
def test_values_in_any_form(values: Any) -> None:
    assert SensitiveBins.of(values, 3)(values).tolist() == [2, 0, 1]
    assert SensitiveBins.of(values, 3).names == ("1: 1 to 1", "2: 3 to 3", "3: 4 to 4")


def test_what_has_no_ranges_is_refused() -> None:
    for values, message in (
        ([5.0] * 9, r"most of the 9 values .* are the lowest one, \[5.0\]; expected values that can be cut"),
        ([1.0, torch.nan, 2.0], "missing for 1 of 3"),
        ([1.0, float("inf"), 2.0], "'sensitive' holds values that are no finite numbers"),
        (["young", "old"], "'sensitive' holds values that are no finite numbers"),
        ([], "expected values that can be cut"),
        (torch.ones(4, 2), r"the sensitive features are \['sensitive_0', 'sensitive_1'\]; expected one continuous"),
    ):
        with pytest.raises(InputError, match=message):
            SensitiveBins.of(values)
    for bins in (1, 2.5, True):
        with pytest.raises(InputError, match="bins"):
            SensitiveBins.of([1, 2, 3], bins)  # type: ignore[arg-type]


def _batches(n_samples: int, seed: int = 0, *, named: bool = True) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    age = torch.randint(18, 80, (n_samples,), generator=generator)
    noise = torch.randn(n_samples, 3, generator=generator)
    x = torch.cat([noise[:, :2], ((age - 48) / 18 + noise[:, 2] / 2)[:, None]], 1)
    y = (x[:, 0] + 0.6 * x[:, 2] > 0).long()
    parts = torch.split(torch.arange(n_samples), 37)
    return [(x[rows], y[rows], {"age": age[rows]} if named else age[rows]) for rows in parts]


def test_people_by_bins() -> None:
    loader = _batches(113)
    people = ValidationSet.from_loader(loader, bins=5, progress=False)
    age = torch.cat([batch[2]["age"] for batch in loader])
    bins = SensitiveBins.of(age, 5)
    assert people.features == ("age",) and people.groups == bins.names and people.continuous is not None
    torch.testing.assert_close(people.group, bins(age))
    torch.testing.assert_close(people.continuous, age.double())
    part = people.take(torch.tensor([5, 2]))
    assert part.continuous is not None and part.continuous.tolist() == age[[5, 2]].tolist()
    others = ValidationSet.from_loader(_batches(59, 1), bins=bins, progress=False)  # the same ranges for others
    assert others.groups == bins.names
    renamed = ValidationSet.from_loader(_batches(59, named=False), sensitive_names=["years"], bins=3, progress=False)
    assert renamed.features == ("years",) and renamed.n_groups == 3
    # two sides are no bins
    sides = people.with_sides(bins.names[4])
    assert sides.sides and sides.continuous is None
    with pytest.raises(InputError, match="sensitive_names names values, and bins name theirs"):
        ValidationSet.from_loader(loader, sensitive_names={"age": None}, bins=5, progress=False)
    with pytest.raises(InputError, match=r"expected \(inputs, target, sensitive\)"):
        ValidationSet.from_loader([batch[:2] for batch in loader], require_sensitive=False, bins=5, progress=False)
    with pytest.raises(InputError, match=r"have .* rows; expected as many of each"):
        ValidationSet(torch.eye(3), torch.ones(3), torch.zeros(3), ("a",), continuous=torch.ones(2))


@pytest.mark.parametrize("values", [5, None, torch.tensor(3.0), (age for age in (18.0, 40.0))])
def test_what_is_no_column(values: Any) -> None:
    with pytest.raises(InputError, match=r"; expected numbers, \(N,\)"):
        SensitiveBins.of(values)


def test_bins_by_hand() -> None:
    made = SensitiveBins([1, 3], ("low", "middle", "high"))  # type: ignore[arg-type]
    assert made([0, 1, 2, 3]).tolist() == [0, 1, 1, 2]
    for edges in ([3.0, 1.0], [1.0, 1.0], [1.0, float("nan")]):
        with pytest.raises(InputError, match="expected increasing finite numbers"):
            SensitiveBins(torch.tensor(edges), made.names)
    with pytest.raises(InputError, match="1 names for 2 edges; expected one more"):
        SensitiveBins(made.edges, ("all",))


def test_another_feature_in_a_later_batch_is_refused() -> None:
    x, y, ages = torch.eye(4), torch.tensor([0, 1, 0, 1]), torch.tensor([18.0, 40.0, 33.0, 61.0])
    loader = [(x, y, {"age": ages}), (x, y, {"income": 1000 * ages})]
    with pytest.raises(InputError, match="the sensitive feature of batch 1 is 'income' and that of the others 'age'"):
        ValidationSet.from_loader(loader, bins=2, progress=False)


def test_values_that_are_not_finite_are_refused() -> None:
    people = ValidationSet.from_loader(_batches(20), bins=2, progress=False)
    assert people.continuous is not None
    for value in (float("nan"), float("inf")):
        values = people.continuous.clone()
        values[3] = value
        with pytest.raises(InputError, match="continuous sensitive feature are not all finite"):
            replace(people, continuous=values)


def test_metric_frame_shows_deciles() -> None:
    loader = _batches(113, named=False)
    bins = SensitiveBins.of(torch.cat([batch[2] for batch in loader]))
    model = torch.nn.Linear(3, 2)
    binned = [(x, y, bins(age)) for x, y, age in loader]
    frame = metric_frame(model, binned, sensitive_names={"age": bins.names}, progress=False)
    assert list(frame.by_group.index) == list(bins.names)
    assert frame.by_group["people"].sum() == 113


def _network() -> torch.nn.Module:
    """Leans on what goes with age."""
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 2.0]]))
        model.bias.zero_()
    return model


def test_parity_fine_tuning_lowers_the_dependence_on_the_values() -> None:
    people = ValidationSet.from_loader(_batches(400), bins=4, progress=False)
    model, measure = _network(), "demographic_parity_difference"
    method = ParityFineTuning(epsilon=0.2, penalties=(0.0, 5.0, 100.0), selection_share=0.5)
    repair = method.repair(model, people, progress=False)
    assert people.continuous is not None
    basis = rank_polynomials(people.continuous)
    sizes = [
        dependence(measure, net(people.inputs).detach().softmax(1)[:, 1:], people.target, basis).square().sum()
        for net in (model, repair.model)
    ]
    assert sizes[1] < sizes[0] / 10 and repair.bias < 0.5 * repair.bias_before
    # judged by the ranges
    rows = repair.selection_rows
    decided, group = repair.model(people.inputs).argmax(1)[rows].double(), people.group[rows]
    rates = [float(decided[group == g].mean()) for g in range(4)]
    assert max(rates) - min(rates) == pytest.approx(repair.bias, abs=1e-12)


def test_all_layers_too() -> None:
    people = ValidationSet.from_loader(_batches(120), bins=3, progress=False)
    method = ParityFineTuning(
        layers="all", epochs=2, penalties=(4.0,), epsilon=0.2, selection_share=0.5, training_batch_size=50,
        learning_rate=0.1,
    )  # fmt: skip
    repair = method.repair(_network(), people, progress=False)
    assert len(repair.history) == 3


def test_ages_as_groups_are_flagged_with_what_to_do() -> None:
    told = "the groups are 62 numbers: cut a continuous feature into ranges with fairtrim.SensitiveBins"
    method = ParityFineTuning(epsilon=0.3, penalties=(0.0,))
    flags = method.repair(_network(), _batches(900), progress=False).flags
    assert sum(told in flag for flag in flags) == 1
    with pytest.raises(InputError, match=told):  # with half of so few people nobody is left of some ages
        method.set_params(selection_share=0.5).repair(_network(), _batches(400), progress=False)
