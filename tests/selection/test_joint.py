"""Joint selection against brute force, and the refusals of what selects."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from fairtrim import InputError
from fairtrim.criteria import (
    BalancedDamage,
    BoundCriterion,
    Criterion,
    GapDrivenDamage,
    GroupSaliency,
    MeanDamage,
    TailRisk,
    WorstGroup,
)
from fairtrim.damage import DamageTable
from fairtrim.damage.sample_sketch import SampleSketch
from fairtrim.selection import (
    Floor,
    Pool,
    joint_selection,
    share_balanced_order,
    single_selection,
)
from tests.tables import random_table

CRITERIA: list[Criterion] = [
    MeanDamage(),
    WorstGroup(),
    TailRisk(0.6),
    GroupSaliency("b", beta=0.4),
    BalancedDamage(),
    GapDrivenDamage(0.7),
]


class _NotFinite(Criterion):
    needs_sensitive_groups = False

    def bind(self, table: DamageTable) -> BoundCriterion:
        return lambda damage: damage[0] / 0


def _names(criterion: Criterion) -> str:
    return type(criterion).__name__


@pytest.mark.parametrize("criterion", CRITERIA, ids=_names)
def test_joint_selection_equals_brute_force(criterion: Criterion) -> None:
    """Every pick is the channel that minimises the criterion of the predicted damage of the whole set."""
    table = random_table({"x": 3, "y": 4})
    names = [(name, c) for name, size in table.sizes.items() for c in range(size)]
    selection = joint_selection(table, criterion)
    value_of = criterion.bind(table)
    removed: list[int] = []
    left = {"x": 3, "y": 4}

    def value(columns: list[int]) -> float:
        channels: dict[str, list[int]] = {"x": [], "y": []}
        for column in columns:
            channels[names[column][0]].append(names[column][1])
        return float(value_of(table.predict(channels)))

    before = value([])
    for pick in selection.order.tolist()[:5]:  # all but the last channel of each layer
        allowed = [c for c in range(7) if c not in removed and left[names[c][0]] > 1]
        best = min(allowed, key=lambda c: value([*removed, c]))
        assert pick == best
        removed.append(pick)
        left[names[pick][0]] -= 1
        assert float(selection.change[pick]) == pytest.approx(value(removed) - before, abs=1e-10)
        before = value(removed)
    assert sorted(selection.order.tolist()) == list(range(7))
    assert selection.scores[selection.order].tolist() == list(range(7))


def test_interactions_matter() -> None:
    """Two equal channels: each alone is harmless, both together are not."""
    gram = torch.tensor([[[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.1]]], dtype=torch.float64)
    table = random_table({"x": 4}, ("a",))
    table = DamageTable(
        sensitive_groups=("a",),
        features=("team",),
        sizes={"x": 3},
        counts=table.counts,
        loss=table.loss,
        slope=torch.zeros(1, 3, dtype=torch.float64),
        curvature=torch.diagonal(gram, dim1=1, dim2=2),
        interactions=gram,
    )
    assert joint_selection(table, MeanDamage()).order[:2].tolist() == [0, 1]
    positive = DamageTable(**{**vars(table), "interactions": gram.abs()})
    assert joint_selection(positive, MeanDamage()).order[:2].tolist() == [0, 2]
    assert float(positive.predict({"x": [0, 1]})) == pytest.approx(2.0)


def test_quotas_are_met_exactly_and_floors_come_last() -> None:
    table = random_table({"x": 5, "y": 4, "z": 6})
    pools = [Pool(("x",), 3), Pool(("y", "z"), 5)]
    selection = joint_selection(table, WorstGroup(), pools=pools, floors=[Floor("z", 4)])
    first = selection.order[:8].tolist()
    assert sum(c < 5 for c in first) == 3
    assert sum(c >= 9 for c in first) == 2  # the floor of z
    assert sum(5 <= c < 9 for c in first) == 3  # y keeps one
    last = selection.order[-6:].tolist()
    assert [sum(low <= c < high for c in last) for low, high in ((0, 5), (5, 9), (9, 15))] == [1, 1, 4]


def test_floor_on_a_part_of_a_layer() -> None:
    table = random_table({"x": 6, "y": 3})
    for select in (joint_selection, single_selection):
        pools = [Pool(("x", "y"))]
        order = select(table, WorstGroup(), pools=pools, floors=[Floor("x", 1, (0, 1)), Floor("x", 2, (3, 4, 5))])
        last = order.order[-4:].tolist()
        assert sum(c in (0, 1) for c in last) == 1
        assert sum(c in (3, 4, 5) for c in last) == 2
        assert sum(c > 5 for c in last) == 1


def test_other_wrong_arguments() -> None:
    table = random_table({"x": 2})
    for make, message in (
        (lambda: TailRisk(0.0), "alpha="),
        (lambda: GapDrivenDamage(2.0), "strength="),
        (lambda: GroupSaliency("nobody").score(table), r"known: \['a', 'b', 'c'\]"),
        (lambda: GroupSaliency(["a", "b", "c"]).score(table), "every sensitive group"),
        (lambda: GroupSaliency("a", ["a", "b"]).score(table), "overlap"),
        (lambda: WorstGroup().score(random_table({"x": 2}, ("everyone",))), "inputs, target, sensitive"),
        (lambda: share_balanced_order(random_table({"x": 2}, ("everyone",))), "inputs, target, sensitive"),
        (lambda: table["z"], r"it has to be one of \['x'\]"),
        (lambda: table.predict({"x": [2]}), "expected 0 to 1"),
        (lambda: table.shrunk(-1), "strength="),
        (lambda: DamageTable(**{**vars(table), "interactions": None}).predict({"x": [0]}), "interactions=True"),
        (lambda: joint_selection(DamageTable(**{**vars(table), "interactions": None}), MeanDamage()), "interactions"),
        (lambda: joint_selection(table, MeanDamage(), pools=[Pool(("q",))]), "a pool names"),
        (lambda: joint_selection(table, MeanDamage(), pools=[Pool(("x",)), Pool(("x",))]), "two pools"),
        (lambda: joint_selection(table, MeanDamage(), pools=[]), "no pool"),
        (lambda: joint_selection(table, MeanDamage(), floors=[Floor("q")]), "a floor names"),
        (lambda: joint_selection(table, _NotFinite()), "not finite"),
        (lambda: single_selection(table, _NotFinite()), "not finite"),
    ):
        with pytest.raises(InputError, match=message):
            make()


def test_order_is_the_same_for_every_permutation_of_groups() -> None:
    reference = random_table({"x": 3, "y": 4})
    for permutation in itertools.permutations(range(3)):
        index = list(permutation)
        table = DamageTable(
            sensitive_groups=tuple(reference.sensitive_groups[g] for g in index),
            features=("team",),
            sizes=reference.sizes,
            **{k: getattr(reference, k)[index] for k in ("counts", "loss", "slope", "curvature", "interactions")},
        )
        for criterion in CRITERIA:
            assert (
                joint_selection(table, criterion).order.tolist() == joint_selection(reference, criterion).order.tolist()
            )


class _FallingCosts:
    """Costs that change with every pick."""

    def __init__(self, each: torch.Tensor) -> None:
        self.each = each

    def copy(self) -> _FallingCosts:
        return _FallingCosts(self.each.clone())

    def take(self, column: int) -> None:
        self.each = self.each * 0.5 if column % 2 else self.each + (torch.arange(len(self.each)) % 3 == column % 3)


@pytest.mark.parametrize("priced", [False, True])
@pytest.mark.parametrize("criterion", CRITERIA, ids=_names)
def test_rows_of_a_sketch_are_computed_ahead_and_nothing_else_changes(criterion: Criterion, priced: bool) -> None:
    """Against one pick after the other; whole numbers, so that sums are exact, and many channels alike."""
    draw = torch.Generator().manual_seed(0)
    sizes = {"x": 70, "y": 43}
    table = random_table(sizes, ("a", "b"))
    sums = [torch.randint(-1, 2, (rows, 113), generator=draw).float() for rows in (5, 9)]
    for rows in sums:
        rows[:, ::4] = 0
    diagonal = torch.stack([rows.square().sum(0) for rows in sums]).double()
    sketch = SampleSketch(tuple(sums), tuple(sums), (5, 9), diagonal, torch.eye(2, dtype=torch.float64))
    slope = torch.randint(-2, 3, (2, 113), generator=draw).double()
    slope[:, ::4] = 0
    table = replace(table, interactions=sketch, slope=slope, curvature=diagonal)
    costs: Any = _FallingCosts(torch.arange(113.0).double() % 5 + 1) if priced else None
    order = joint_selection(table, criterion, pools=[Pool(("x", "y"), quota=95)], costs=costs).order.tolist()

    value_of, costs = criterion.bind(table), costs.copy() if priced else None
    current, addition = torch.zeros(2, 1, dtype=torch.float64), table.damage.clone()
    left = torch.ones(113, dtype=torch.bool)
    for pick in order[:95]:
        changes = value_of(current + addition) - value_of(current)
        ranked_by = (changes / costs.each if priced else changes).masked_fill(~left, torch.inf)
        assert ranked_by[pick] <= ranked_by.min() + 1e-12 * ranked_by[left].abs().max()
        current = current + addition[:, pick : pick + 1]
        addition = addition + table.interactions_between(torch.tensor([pick]))[:, 0]
        left[pick] = False
        if priced:
            costs.take(pick)


@pytest.mark.parametrize("floor", [0, 40])
def test_a_quota_beyond_a_floor_is_chosen_as_jointly_as_without(floor: int) -> None:
    """A pruner that is told to keep less than the quota leaves takes the quota all the same."""
    table = random_table({"x": 40}).without_first_order()
    free = joint_selection(table, MeanDamage(), pools=[Pool(("x",), 20)]).order
    held = joint_selection(table, MeanDamage(), pools=[Pool(("x",), 20)], floors=[Floor("x", floor)]).order
    assert torch.equal(free, held)
