"""Compensated selection against loops that begin anew at every pick, and against the oracle on real networks."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fairtrim import ChannelGroup, ChannelPlace, DamageTable, InputError, collect_damage
from fairtrim.criteria import Criterion, GroupSaliency, MeanDamage, TailRisk, WorstGroup
from fairtrim.damage.input_moments import ReaderMoments, ReadInputs, input_moments
from fairtrim.oracle import oracle_compensated_damage
from fairtrim.selection import Floor, Pool, compensated_selection
from fairtrim.selection.compensated import RIDGE, SHRINKAGE, TIE_WEIGHT, CompensatedShares
from tests.networks import CASES, Case
from tests.tables import random_table

SIZES = {"x": 4, "y": 5, "z": 3}

FLAT = Case(
    lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 5), nn.Tanh(), nn.Linear(5, 3)),
    (2, 4, 5),
)


def _readers(seed: int = 0) -> ReadInputs:
    """y reads x, z reads y twice over and x beside it, and a last layer reads z and something that stays."""
    generator = torch.Generator().manual_seed(seed)

    def reader(name: str, columns: list[int], outputs: list[int], taps: int) -> ReaderMoments:
        n = len(columns)
        rows = torch.randn(30, n, dtype=torch.float64, generator=generator) @ torch.randn(
            n, n, dtype=torch.float64, generator=generator
        )
        weight = torch.randn(1, len(outputs), n, taps, dtype=torch.float64, generator=generator)
        mean = rows.mean(0) * (taps > 1)
        moments = rows.T @ rows / 30 - torch.outer(mean, mean)
        return ReaderMoments(name, weight, moments[None], mean[None], 30, np.array([columns]), np.array([outputs]))

    readers = (
        reader("y", [0, 1, 2, 3], [4, 5, 6, 7, 8], 3),
        reader("z", [4, 5, 6, 7, 8, 0, 1, 2, 3], [9, 10, 11], 1),
        reader("head", [9, 10, 11, -1], [-1, -1], 2),
    )
    return ReadInputs(readers, torch.zeros(12, dtype=torch.bool))


class _Costs:
    """A cost a channel that falls as others go: what a layer's neighbours have left."""

    def __init__(self, left: dict[int, int] | None = None) -> None:
        self.left = left or {0: 4, 1: 5, 2: 3}

    @property
    def each(self) -> Tensor:
        x, y, z = (float(self.left[k]) for k in range(3))
        return torch.tensor([y + z + 2] * 4 + [x + z + 3] * 5 + [x + y + 1] * 3, dtype=torch.float64)

    def copy(self) -> _Costs:
        return _Costs(dict(self.left))

    def take(self, column: int) -> None:
        self.left[0 if column < 4 else 1 if column < 9 else 2] -= 1


def _shares_from_scratch(inputs: ReadInputs, gone: list[int]) -> Tensor:
    """η of every channel when some are gone: one ridge regression for all that are, and one for one more."""
    lacks, whole = torch.zeros(12, dtype=torch.float64), torch.zeros(12, dtype=torch.float64)
    for reader in inputs.readers:
        weight, moments = reader.weight[0], reader.moments[0]
        columns, outputs = reader.columns[0].tolist(), reader.outputs[0].tolist()
        raw = weight.square().sum((0, 2)) * reader.squares[0]
        ridge = RIDGE * float(reader.squares.mean())

        def mix_of(out: list[int], moments: Tensor = moments, ridge: float = ridge) -> tuple[list[int], Tensor]:
            left = [e for e in range(len(moments)) if e not in out]
            of_left = moments[left][:, left] + ridge * torch.eye(len(left), dtype=torch.float64)
            return left, torch.linalg.solve(of_left, moments[left][:, out])

        removed = [e for e, c in enumerate(columns) if c in gone]
        left, mix = mix_of(removed)
        now = torch.zeros_like(weight)
        now[:, left] = weight[:, left] + torch.einsum("lg,ogt->olt", mix, weight[:, removed])
        now[[o for o, c in enumerate(outputs) if c in gone]] = 0
        for e, column in enumerate(columns):
            if column < 0:
                continue
            whole[column] += raw[e] / raw.sum()
            if e in removed:
                continue
            others, mix = mix_of([*removed, e])
            back = torch.zeros(len(columns), dtype=torch.float64)
            back[e], back[others] = 1, -mix[:, -1]
            lacks[column] += now[:, e].square().sum() * (back @ moments @ back) / raw.sum()
            lacks[column] += SHRINKAGE * len(columns) / 30 * raw[e] / raw.sum()
    return lacks / whole


@pytest.mark.parametrize("per_cost", [False, True], ids=["each", "per cost"])
@pytest.mark.parametrize(
    "criterion",
    [MeanDamage(), WorstGroup(), TailRisk(0.6), GroupSaliency("b", beta=0.4)],
    ids=lambda c: type(c).__name__,
)
def test_every_pick_is_the_best_one(criterion: Criterion, per_cost: bool) -> None:
    table, inputs = random_table(SIZES), _readers()
    given = _Costs()
    counted: Any = given if per_cost else None
    selection = compensated_selection(table, criterion, inputs, costs=counted)
    assert given.left == {0: 4, 1: 5, 2: 3}  # the caller's are as before
    value_of, costs = criterion.bind(table), _Costs()
    total, removed = torch.zeros(3, dtype=torch.float64), list[int]()
    left = dict(SIZES)
    for pick in selection.order.tolist()[:9]:
        shares = _shares_from_scratch(inputs, removed)
        damage = 0.5 * table.curvature * shares
        scores = {}
        for column in range(12):
            name = table.columns.layer_of(column)
            if column not in removed and left[name] > 1:
                added = float(value_of(total + damage[:, column]) - value_of(total))
                tie = TIE_WEIGHT * float(table.shares @ damage[:, column])
                scores[column] = (added + tie) / (float(costs.each[column]) if per_cost else 1)
        assert pick == min(scores, key=scores.__getitem__)
        after = total + damage[:, pick]
        assert float(selection.change[pick]) == pytest.approx(float(value_of(after) - value_of(total)), abs=1e-9)
        assert selection.shares is not None
        assert float(selection.shares[pick]) == pytest.approx(float(shares[pick]), rel=1e-7)
        total = after
        removed.append(pick)
        left[table.columns.layer_of(pick)] -= 1
        costs.take(pick)
    assert sorted(selection.order.tolist()) == list(range(12))
    assert selection.scores[selection.order].tolist() == list(range(12))


def _moments(model: nn.Module, people: list[Any], groups: Any) -> tuple[DamageTable, ReadInputs]:
    with input_moments(model, groups) as moments:
        table = collect_damage(model, people, groups, curvature="exact", progress=False)
    return table, moments.read()


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "plain",
        "residual",
        "concatenation",
        "split",
        "depthwise",
        "grouped",
        "group norm",
        "squeeze-excite",
        "flat",
    ],
)
def test_damage_equals_the_oracle(name: str) -> None:
    """Linear, convolution, flatten, several readers, parts, convolution groups, a norm behind; a last batch of one."""
    case = {**CASES, "flat": FLAT}[name]
    model = case.model()
    groups, (x, y) = case.plan(model).groups, case.batch(13)
    people = [(x[:12], y[:12], torch.arange(12) % 3), (x[12:], y[12:], torch.tensor([1]))]
    table, inputs = _moments(model, people, groups)
    assert not bool(inputs.unmixed.any())
    damage = 0.5 * table.curvature * CompensatedShares(inputs, len(table.columns), shrinkage=0).each
    slow = oracle_compensated_damage(model, people, groups, normalised=["first"])
    assert damage.shape == slow.shape == (3, len(table.columns))
    torch.testing.assert_close(damage, slow, rtol=1e-9, atol=1e-12 * float(slow.max()))


@pytest.mark.parametrize(("n_rows", "raised"), [(6, 0.25 * 4 / 6), (3, 1 / 3), (1, 1.0)])
def test_few_rows_raise_every_share(n_rows: int, raised: float) -> None:
    """With as many inputs as rows everything is made up for, on these rows; by a quarter of an input a row it isn't."""
    x = torch.randn(n_rows, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 3, bias=False)).double()
    hidden = ChannelGroup("0", 4, (ChannelPlace("1", "input", range(4), range(4), channel_axis=-1),))
    _, inputs = _moments(model, [(x, torch.arange(n_rows) % 3)], [hidden])
    believed = CompensatedShares(inputs, 4, shrinkage=0).each
    if n_rows <= 3:
        assert bool((believed < 0.05).all())
    torch.testing.assert_close(CompensatedShares(inputs, 4).each, believed + raised, rtol=1e-12, atol=0)


def test_scale_in_front_of_a_norm_changes_no_order() -> None:
    """BatchNorm undoes the scale of the layer in front of it, which a reader has too."""
    case = CASES["residual"]
    model = case.model()
    scaled: Any = copy.deepcopy(model)
    with torch.no_grad():
        for layer, norm in ((scaled.first, scaled.first_norm), (scaled.second, scaled.second_norm)):
            layer.weight *= 30
            norm.running_mean *= 30
            norm.running_var.copy_((norm.running_var + norm.eps) * 900 - norm.eps)
            if layer.bias is not None:
                layer.bias *= 30
    x, y = case.batch(17)
    orders = []
    for network in (model, scaled):
        table, inputs = _moments(network, [(x, y, torch.arange(17) % 2)], case.plan(model).groups)
        orders.append(compensated_selection(table, WorstGroup(), inputs).order.tolist())
    assert orders[0] == orders[1]


def test_a_channel_that_others_repeat_goes_first_and_its_twin_last() -> None:
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[:, 3] = x[:, 1]
    model: Any = nn.Sequential(nn.Identity(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(3, 4, generator=torch.Generator().manual_seed(2)))
    hidden = ChannelGroup("0", 4, (ChannelPlace("1", "input", range(4), range(4), channel_axis=-1),))
    table, inputs = _moments(model, [(x, torch.arange(40) % 3)], [hidden])
    selection = compensated_selection(table, MeanDamage(), inputs)
    assert selection.order[0] in (1, 3)
    assert selection.order[-1] in (1, 3)
    assert selection.shares is not None
    assert selection.shares[selection.order[0]] < 0.01 + SHRINKAGE * 4 / 40
    # a quota that the first of them meets leaves the other last, for it is all that is left of the two
    met = compensated_selection(table, MeanDamage(), inputs, pools=[Pool(("0",), quota=1)])
    assert met.order[0] == selection.order[0] and met.order[-1] == selection.order[-1]


def _independent(curvature: list[list[float]]) -> tuple[DamageTable, ReadInputs]:
    """A table of groups, and channels of which nothing can make up for any."""
    of_groups = torch.tensor(curvature, dtype=torch.float64)
    n_groups, n = of_groups.shape
    zeros = torch.zeros(n_groups, dtype=torch.float64)
    names, counts = tuple("abcd"[:n_groups]), zeros + 5
    table = DamageTable(names, ("team",), {"x": n}, counts, zeros + 1, torch.zeros_like(of_groups), of_groups)
    return table, ReadInputs((), torch.ones(n, dtype=torch.bool))


class _Fixed:
    def __init__(self, each: list[float]) -> None:
        self.each = torch.tensor(each, dtype=torch.float64)

    def copy(self) -> _Fixed:
        return self

    def take(self, column: int) -> None:
        pass


def test_what_hurts_only_others_than_the_worst_is_not_free() -> None:
    """Beside the loss of a, which a dear channel costs first, three of b's are free to the worst group: least first."""
    table, inputs = _independent([[9.0, 0.0, 0.0, 0.0, 20.0], [0.0, 7.0, 1.0, 3.0, 20.0]])
    costs: Any = _Fixed([100.0, 1.0, 1.0, 1.0, 1.0])
    assert compensated_selection(table, WorstGroup(), inputs, costs=costs).order.tolist() == [0, 2, 3, 1, 4]


def test_a_tenth_of_every_layer_stays_unless_more_is_asked_for() -> None:
    generator = torch.Generator().manual_seed(3)
    curvature = torch.rand(2, 34, dtype=torch.float64, generator=generator)
    curvature[:, :21] *= 1e-6  # a layer that seems worth nothing
    table, inputs = _independent(curvature.tolist())
    table = DamageTable(**{**vars(table), "sizes": {"x": 21, "y": 13}})
    for quota, of_x in ((18, 18), (21, 18), (29, 18), (30, 19)):  # three of x and two of y stay, as long as they may
        order = compensated_selection(table, MeanDamage(), inputs, pools=[Pool(("x", "y"), quota)]).order[:quota]
        assert int((order < 21).sum()) == of_x
    layers = [Pool(("x",), 20), Pool(("y",), 4)]  # a quota that needs more takes it, and nothing else opens for it
    order = compensated_selection(table, MeanDamage(), inputs, pools=layers).order[:24]
    assert int((order < 21).sum()) == 20
    floors = [Floor("x", 7)]
    order = compensated_selection(table, MeanDamage(), inputs, pools=[Pool(("x", "y"), 25)], floors=floors).order
    assert int((order[:25] < 21).sum()) == 21 - 7


def test_pools_close_when_they_have_what_they_asked_for() -> None:
    table, inputs = random_table(SIZES), _readers(2)
    pools = [Pool(("x", "z"), 3), Pool(("y",), 2)]
    selection = compensated_selection(table, WorstGroup(), inputs, pools=pools, floors=[Floor("y", 3)])
    first = [table.columns.layer_of(column) for column in selection.order[:5].tolist()]
    assert first.count("y") == 2
    assert sorted(selection.order.tolist()) == list(range(12))
    # what only rounding may ask for is ranked by what is known then
    assert selection.shares is not None
    assert bool(torch.isfinite(selection.shares).all())


def test_what_compensated_selection_refuses() -> None:
    table, inputs = random_table(SIZES), _readers()
    linear = DamageTable(**{**vars(table), "curvature": torch.zeros_like(table.curvature)})
    with pytest.raises(InputError, match="this loss has none; use one with curvature"):
        compensated_selection(linear, MeanDamage(), inputs)
    with pytest.raises(InputError, match="a pool names"):
        compensated_selection(table, MeanDamage(), inputs, pools=[Pool(("nobody",))])

    class NotFinite(MeanDamage):
        def bind(self, table: DamageTable) -> Any:
            return lambda damage: damage[0] * math.inf

    with pytest.raises(InputError, match="not finite"):
        compensated_selection(table, NotFinite(), inputs)
