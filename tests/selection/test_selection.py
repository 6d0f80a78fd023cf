"""Criteria and selection against closed forms and brute force."""

from __future__ import annotations

import itertools

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
from fairtrim.selection import (
    Floor,
    Pool,
    break_ties,
    joint_selection,
    negative_columns,
    share_balanced_order,
    single_selection,
)

CRITERIA: list[Criterion] = [
    MeanDamage(),
    WorstGroup(),
    TailRisk(0.6),
    GroupSaliency("b", beta=0.4),
    BalancedDamage(),
    GapDrivenDamage(0.7),
]


def _table(sizes: dict[str, int], names: tuple[str, ...] = ("a", "b", "c"), seed: int = 0) -> DamageTable:
    generator = torch.Generator().manual_seed(seed)
    n_columns = sum(sizes.values())
    rows = torch.randn(len(names), 29, n_columns, dtype=torch.float64, generator=generator)
    gram = rows.transpose(1, 2) @ rows / 29
    return DamageTable(
        sensitive_groups=names,
        features=("team",),
        sizes=sizes,
        counts=torch.tensor([5.0, 11.0, 2.0, 7.0][: len(names)], dtype=torch.float64),
        loss=torch.rand(len(names), dtype=torch.float64, generator=generator),
        slope=torch.randn(len(names), n_columns, dtype=torch.float64, generator=generator),
        curvature=torch.diagonal(gram, dim1=1, dim2=2).clone(),
        interactions=gram,
    )


class _NotFinite(Criterion):
    needs_sensitive_groups = False

    def bind(self, table: DamageTable) -> BoundCriterion:
        return lambda damage: damage[0] / 0


def _names(criterion: Criterion) -> str:
    return type(criterion).__name__


def test_criteria_in_closed_form() -> None:
    table = _table({"x": 2, "y": 3})
    damage, counts = table.damage, table.counts
    torch.testing.assert_close(MeanDamage().score(table), (counts / counts.sum()) @ damage)
    torch.testing.assert_close(WorstGroup().score(table), damage.max(0).values)
    others = (5 * damage[0] + 2 * damage[2]) / 7
    torch.testing.assert_close(GroupSaliency("b", beta=0.4).score(table), others - 0.4 * damage[1])
    torch.testing.assert_close(GroupSaliency("b", "c", 0.4).score(table), damage[2] - 0.4 * damage[1])
    both = (5 * damage[0] + 11 * damage[1]) / 16
    torch.testing.assert_close(GroupSaliency(["a", "b"], beta=0.5).score(table), damage[2] - 0.5 * both)
    ordered = damage.sort(0, descending=True).values
    torch.testing.assert_close(TailRisk(0.5).score(table), (ordered[0] + 0.5 * ordered[1]) / 1.5)
    torch.testing.assert_close(TailRisk(1.0).score(table), damage.mean(0))
    torch.testing.assert_close(TailRisk(0.01).score(table), damage.max(0).values)
    scaled = damage / damage.abs().sum(1, keepdim=True)
    torch.testing.assert_close(BalancedDamage().score(table), scaled.max(0).values)
    excess = table.loss - table.loss.mean()
    weights = (1 + 0.7 * excess / excess.abs().max()) / 3
    torch.testing.assert_close(GapDrivenDamage(0.7).score(table), weights @ damage)


@pytest.mark.parametrize("criterion", CRITERIA, ids=_names)
def test_joint_selection_equals_brute_force(criterion: Criterion) -> None:
    """Every pick is the channel that minimises the criterion of the predicted damage of the whole set."""
    table = _table({"x": 3, "y": 4})
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
    table = _table({"x": 4}, ("a",))
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
    table = _table({"x": 5, "y": 4, "z": 6})
    pools = [Pool(("x",), 3), Pool(("y", "z"), 5)]
    selection = joint_selection(table, WorstGroup(), pools=pools, floors=[Floor("z", 4)])
    first = selection.order[:8].tolist()
    assert sum(c < 5 for c in first) == 3
    assert sum(c >= 9 for c in first) == 2  # the floor of z
    assert sum(5 <= c < 9 for c in first) == 3  # y keeps one
    last = selection.order[-6:].tolist()
    assert [sum(low <= c < high for c in last) for low, high in ((0, 5), (5, 9), (9, 15))] == [1, 1, 4]


def test_floor_on_a_part_of_a_layer() -> None:
    table = _table({"x": 6, "y": 3})
    for select in (joint_selection, single_selection):
        pools = [Pool(("x", "y"))]
        order = select(table, WorstGroup(), pools=pools, floors=[Floor("x", 1, (0, 1)), Floor("x", 2, (3, 4, 5))])
        last = order.order[-4:].tolist()
        assert sum(c in (0, 1) for c in last) == 1
        assert sum(c in (3, 4, 5) for c in last) == 2
        assert sum(c > 5 for c in last) == 1


def test_single_selection_keeps_the_best_of_each_layer_only_where_layers_compete() -> None:
    table = _table({"x": 3, "y": 4})
    table = DamageTable(**{**vars(table), "slope": torch.cat([torch.full((3, 3), 9.0), torch.zeros(3, 4)], 1).double()})
    score = MeanDamage().score(table)
    local = single_selection(table, MeanDamage(), pools=[Pool(("x",)), Pool(("y",))])
    torch.testing.assert_close(local.scores, score)
    shared = single_selection(table, MeanDamage(), pools=[Pool(("x", "y"))])
    assert shared.order[-2:].tolist() == [int(score[:3].argmax()), 3 + int(score[3:].argmax())]
    assert sorted(shared.order[:2].tolist()) == sorted(score[:3].argsort()[:2].tolist())


def test_only_what_lowers_the_criterion() -> None:
    """Single: every channel with a negative score that the floors allow; joint: in order until the first rise."""
    table = _table({"x": 4, "y": 3})
    slope = torch.tensor([9.0, 8.0, 7.0, -9.0, 6.0, -9.0, -9.0], dtype=torch.float64).expand(3, 7)
    table = DamageTable(**{**vars(table), "slope": slope})
    single = single_selection(table, MeanDamage())
    assert sorted(negative_columns(table.columns, single, [], joint=False).tolist()) == [0, 1, 2, 4]
    capped = negative_columns(table.columns, single, [Floor("x", 2)], joint=False)
    assert len(capped) == 3 and 4 in capped and 3 not in capped
    joint = joint_selection(table, MeanDamage())
    removed = negative_columns(table.columns, joint, [], joint=True).tolist()
    assert removed == joint.order[: len(removed)].tolist() and 0 < len(removed) < 7
    assert float(joint.change[joint.order[len(removed)]]) >= 0


def test_ties_are_broken_by_the_smallest_step() -> None:
    scores = torch.tensor([0.0, -1.0, 0.0, 0.0, 2.0], dtype=torch.float64)
    distinct = break_ties(scores)
    assert len(distinct.unique()) == 5
    assert distinct.argsort().tolist() == [1, 0, 2, 3, 4]
    torch.testing.assert_close(distinct, scores, rtol=0, atol=1e-300)


def test_share_balanced_order_by_hand() -> None:
    """Shares 6:3; the first kept channel is the larger group's best, then the smaller group's."""
    table = _table({"x": 3}, ("a", "b"))
    importance = torch.tensor([[3.0, 2.0, 1.0], [0.2, 0.3, 2.5]], dtype=torch.float64)
    table = DamageTable(**{**vars(table), "curvature": importance})
    # shares: a 6/9, b 3/9. Keep 0 (a); kept share of b .0625 is furthest below: keep 2 (b's best); then 1
    assert share_balanced_order(table).scores.tolist() == [2.0, 0.0, 1.0]


def test_share_balanced_order_equals_its_definition() -> None:
    table = _table({"x": 5, "y": 7})
    scores = share_balanced_order(table).scores
    for name in table.sizes:
        importance = table.curvature[:, table.columns.section(name)]
        kept: list[int] = []
        for place in reversed(range(importance.shape[1])):
            total = importance[:, kept].sum(1)
            share = total / total.sum() if kept else torch.zeros(3).double()
            behind = int((importance.sum(1) / importance.sum() - share).argmax())
            best = max((c for c in range(importance.shape[1]) if c not in kept), key=lambda c: importance[behind, c])
            assert int(scores[table.columns.section(name)][best]) == place
            kept.append(best)


def test_pooling_and_shrinking_groups() -> None:
    table = _table({"x": 2})
    pooled = table.pooled([[0, 2], [1]], ["a or c", "b"])
    torch.testing.assert_close(pooled.damage[0], (5 * table.damage[0] + 2 * table.damage[2]) / 7)
    assert pooled.counts.tolist() == [7.0, 11.0]
    shrunk = table.shrunk(10.0)
    everybody = table.shares @ table.damage
    torch.testing.assert_close(shrunk.damage[2], (2 * table.damage[2] + 10 * everybody) / 12)
    torch.testing.assert_close(table.shrunk(0).interactions, table.interactions)
    removal = {"x": [0, 1]}
    torch.testing.assert_close(
        shrunk.predict(removal)[0], (5 * table.predict(removal)[0] + 10 * table.shares @ table.predict(removal)) / 15
    )


def test_table_by_name_and_in_tidy_form() -> None:
    table = _table({"x": 2, "y": 3})
    torch.testing.assert_close(table["y"], table.damage[:, 2:])
    assert "y" in table and "z" not in table
    frame = table.to_frame()
    assert list(frame.columns[:4]) == ["layer", "channel", "sensitive_group", "damage"]
    assert len(frame) == 15
    row = frame[(frame.layer == "y") & (frame.channel == 1) & (frame.sensitive_group == "c")].iloc[0]
    assert row.damage == pytest.approx(float(table["y"][2, 1]))
    assert row.first_order + row.second_order == pytest.approx(row.damage)


def test_a_single_sensitive_group_is_pointed_out() -> None:
    with pytest.warns(UserWarning, match="the data hold only one: 'a'; check the sensitive features"):
        WorstGroup().score(_table({"x": 2}, ("a",)))


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.2, float("nan"), "a", None])
def test_beta_out_of_range(beta: float) -> None:
    with pytest.raises(InputError, match="beta="):
        GroupSaliency("a", beta=beta)


def test_other_wrong_arguments() -> None:
    table = _table({"x": 2})
    for make, message in (
        (lambda: TailRisk(0.0), "alpha="),
        (lambda: GapDrivenDamage(2.0), "strength="),
        (lambda: GroupSaliency("nobody").score(table), r"known: \['a', 'b', 'c'\]"),
        (lambda: GroupSaliency(["a", "b", "c"]).score(table), "every sensitive group"),
        (lambda: GroupSaliency("a", ["a", "b"]).score(table), "overlap"),
        (lambda: WorstGroup().score(_table({"x": 2}, ("everyone",))), "inputs, target, sensitive"),
        (lambda: share_balanced_order(_table({"x": 2}, ("everyone",))), "inputs, target, sensitive"),
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
    reference = _table({"x": 3, "y": 4})
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
