"""What holds for any network, any people, and any way of cutting the data: found counterexamples are shrunk."""

from __future__ import annotations

import copy
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fairtrim import DamageTable, collect_damage, load_pruned, save_pruned
from fairtrim.criteria import MeanDamage, TailRisk, WorstGroup
from fairtrim.damage import collection as damage_module
from fairtrim.damage.channel_groups import ChannelColumns
from fairtrim.damage.loss_expansion import softmax_factor
from fairtrim.damage.weight_saliency import squared_gradients
from fairtrim.oracle import oracle_damage
from fairtrim.processes import Processes
from fairtrim.selection import Floor, Pool, break_ties, joint_selection, ranked, share_balanced_order
from fairtrim_adapters.torch_pruning.graph.plan import PruningPlan, plan_of_pruner
from tests.shares import in_processes

FIELDS = ("counts", "loss", "slope", "curvature", "interactions")


def examples(number: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=number,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


# Networks -------------------------------------------------------------------------------------------------

Block = tuple[str, int, str, str]
"""Kind, width, norm and activation."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "tanh": torch.tanh, "silu": F.silu}


class Drawn(nn.Module):
    """Blocks one after another: plain, residual, concatenated or depthwise; in space or on rows of numbers."""

    def __init__(self, spatial: bool, blocks: tuple[Block, ...]) -> None:
        super().__init__()
        self.spatial, self.blocks = spatial, blocks
        width = 2
        for number, (kind, new, norm, _) in enumerate(blocks):
            if kind == "plain":
                self.add_module(f"a{number}", self._layer(width, new))
                width = new
            elif kind == "residual":
                self.add_module(f"a{number}", self._layer(width, new))
                self.add_module(f"b{number}", self._layer(new, width))
            elif kind == "concatenated":
                self.add_module(f"a{number}", self._layer(width, new))
                self.add_module(f"b{number}", self._layer(width, 3))
                width = new + 3
            else:  # each channel by itself
                layer = nn.Conv2d(width, width, 3, padding=1, groups=width) if spatial else nn.LayerNorm(width)
                self.add_module(f"a{number}", layer)
            if norm != "none":
                self.add_module(f"norm{number}", nn.BatchNorm2d(width) if spatial else nn.BatchNorm1d(width))
        self.head = nn.Linear(width, 3)

    def _layer(self, width: int, new: int) -> nn.Module:
        return nn.Conv2d(width, new, 3, padding=1) if self.spatial else nn.Linear(width, new)

    def forward(self, x: Tensor) -> Tensor:
        for number, (kind, _, norm, activation) in enumerate(self.blocks):
            a = getattr(self, f"a{number}")
            b = getattr(self, f"b{number}", None)
            act = ACTIVATIONS[activation]
            if b is None:
                x = a(x)
            elif kind == "residual":
                x = x + b(act(a(x)))
            else:
                x = torch.cat([a(x), b(x)], 1)
            if norm != "none":
                x = getattr(self, f"norm{number}")(x)
            x = act(x)
        return self.head(x.mean((2, 3)) if self.spatial else x)

    def inputs(self, n_samples: int, seed: int) -> Tensor:
        shape = (n_samples, 2, 3, 4) if self.spatial else (n_samples, 2)
        return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _built(spatial: bool, blocks: tuple[Block, ...], seed: int) -> Drawn:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Drawn(spatial, blocks).double()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.running_mean, -0.3, 0.3)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


block = st.tuples(
    st.sampled_from(["plain", "residual", "concatenated", "each"]),
    st.integers(2, 5),
    st.sampled_from(["none", "batch"]),
    st.sampled_from(sorted(ACTIVATIONS)),
)
# the first block widens the input, whose channels nobody removes
first = st.tuples(st.just("plain"), st.integers(2, 5), st.sampled_from(["none", "batch"]), st.sampled_from(["relu"]))
networks = st.builds(
    lambda spatial, first, rest, seed: _built(spatial, (first, *rest), seed),
    st.booleans(),
    first,
    st.lists(block, max_size=3),
    st.integers(0, 99),
)


def _pruner(model: Drawn, **options: Any) -> tp.pruner.BasePruner:
    return tp.pruner.BasePruner(
        model,
        model.inputs(2, 0),
        **{
            "importance": None,
            "ignored_layers": [model.head],
            "pruning_ratio": 0.4,
            "in_channel_groups": {},
            "out_channel_groups": {},
            **options,
        },
    )


def _plan(model: Drawn) -> PruningPlan:
    return plan_of_pruner(_pruner(model))


# People ---------------------------------------------------------------------------------------------------


def _cut(data: st.DataObject, n_samples: int) -> list[Tensor]:
    """Rows of each batch: any sizes, all samples once."""
    cuts = sorted(data.draw(st.sets(st.integers(1, n_samples - 1), max_size=4)) if n_samples > 1 else [])
    return [part for part in torch.arange(n_samples).tensor_split(cuts) if len(part)]


def _batches(x: Tensor, y: Tensor, people: Any, parts: list[Tensor]) -> list[tuple[Any, ...]]:
    def of(column: Any, part: Tensor) -> Any:
        return column[part] if isinstance(column, Tensor) else [column[n] for n in part.tolist()]

    return [
        (x[p], y[p], {name: of(c, p) for name, c in people.items()} if isinstance(people, dict) else of(people, p))
        for p in parts
    ]


features = st.sampled_from(["one", "two", "each", "words"])


def _people(kind: str, n_samples: int, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)

    def column(n_values: int) -> Tensor:
        return torch.randint(0, n_values, (n_samples,), generator=generator) * 3  # some values are absent

    if kind == "one":
        return column(4)
    if kind == "two":
        return {"sex": column(2), "age": column(5)}
    if kind == "each":
        return torch.randperm(n_samples, generator=generator)
    return [["old", "young", ""][int(v) // 3] for v in column(3)]


def _labels(n_samples: int, seed: int) -> Tensor:
    return torch.randint(0, 3, (n_samples,), generator=torch.Generator().manual_seed(seed + 1))


def _assert_same(left: DamageTable, right: DamageTable, *, rtol: float = 1e-9) -> None:
    assert left.sensitive_groups == right.sensitive_groups
    assert left.features == right.features and left.sizes == right.sizes
    for name in FIELDS:
        one, other = getattr(left, name), getattr(right, name)
        assert (one is None) == (other is None)
        if one is not None:
            largest = float(other.abs().max())
            assert float((one - other).abs().max()) <= rtol * largest + 1e-15, name
    _assert_same_errors(left, right)


def _assert_same_errors(left: DamageTable, right: DamageTable) -> None:
    """A variance is a difference of squares: it is as exact as they are."""
    assert (left.people is None) == (right.people is None)
    if left.people is None:
        return
    torch.testing.assert_close(left.people, right.people, rtol=1e-9, atol=0.0)
    assert left.signed_loss == right.signed_loss
    for name, mean in (
        ("standard_error", right.damage),
        ("second_order_error", 0.5 * right.curvature),
        ("loss_error", right.loss.unsqueeze(1)),
    ):
        one, other = (getattr(table, name).view(len(mean), -1) for table in (left, right))
        assert torch.equal(one.isnan(), other.isnan()) and torch.equal(one.isnan().any(1), right.people < 1.5), name
        known = ~other.isnan()
        variance, expected = (e.square() * right.people.unsqueeze(1) for e in (one, other))
        scale = float((expected[known] + mean.square()[known]).max()) if bool(known.any()) else 0.0
        assert bool(((variance - expected)[known].abs() <= 1e-9 * scale + 1e-30).all()), name


# The table ------------------------------------------------------------------------------------------------


@examples(60)
@given(networks, features, st.sampled_from(["exact", "empirical"]), st.integers(1, 7), st.data())
def test_table_equals_the_oracle(model: Drawn, kind: str, curvature: Any, n_samples: int, data: st.DataObject) -> None:
    x, y, people = model.inputs(n_samples, 5), _labels(n_samples, 5), _people(kind, n_samples, 5)
    batches = _batches(x, y, people, _cut(data, n_samples))
    groups = _plan(model).groups
    fast = collect_damage(model, batches, groups, curvature=curvature, interactions=True, progress=False)
    slow = oracle_damage(model, batches, groups, curvature=curvature)
    _assert_same(fast, slow)


@examples(50)
@given(networks, features, st.sampled_from(["exact", "sketched"]), st.integers(2, 12), st.data())
def test_neither_order_nor_batches_matter(
    model: Drawn, kind: str, interactions: Any, n_samples: int, data: st.DataObject
) -> None:
    x, y, people = model.inputs(n_samples, 5), _labels(n_samples, 5), _people(kind, n_samples, 5)
    groups = _plan(model).groups
    options: dict[str, Any] = {"interactions": interactions, "progress": False}
    whole = collect_damage(model, _batches(x, y, people, [torch.arange(n_samples)]), groups, **options)
    order = torch.tensor(data.draw(st.permutations(range(n_samples))))
    parts = [order[part] for part in _cut(data, n_samples)]
    other = collect_damage(model, _batches(x, y, people, parts), groups, **options)
    if interactions == "sketched":
        removed = {g.name: range(1, g.size, 2) for g in groups}
        torch.testing.assert_close(other.predict(removed), whole.predict(removed), rtol=1e-9, atol=1e-15)
        assert not whole.prediction_error(removed).any()  # so few rows fit in
        whole, other = (DamageTable(**{**vars(table), "interactions": None}) for table in (whole, other))
    _assert_same(other, whole)


@examples(40)
@given(networks, st.integers(1, 20), st.integers(1, 20), st.integers(2, 260))
def test_crossings_pool_to_their_features(model: Drawn, n_first: int, n_second: int, n_samples: int) -> None:
    """Up to hundreds of crossings, most of them of one person: each feature by itself gives the same."""
    assume(not model.spatial or n_samples < 100)
    x, y = model.inputs(n_samples, 3), _labels(n_samples, 3)
    generator = torch.Generator().manual_seed(n_samples)
    columns = {
        "first": torch.randint(0, n_first, (n_samples,), generator=generator),
        "second": torch.randint(0, n_second, (n_samples,), generator=generator),
    }
    groups = _plan(model).groups
    crossed = collect_damage(model, [(x, y, columns)], groups, interactions=True, progress=False)
    assert float(crossed.counts.sum()) == n_samples
    for s, (name, column) in enumerate(columns.items()):
        alone = collect_damage(model, [(x, y, {name: column})], groups, interactions=True, progress=False)
        rows = [
            [g for g, crossing in enumerate(crossed.sensitive_groups) if crossing[s] == value]
            for value in alone.sensitive_groups
        ]
        pooled = crossed.pooled(rows, alone.sensitive_groups)
        _assert_same(DamageTable(**{**vars(pooled), "features": (name,)}), alone)
    everyone = collect_damage(model, [(x, y)], groups, interactions=True, progress=False)
    pooled = crossed.pooled([range(len(crossed.counts))], ["everyone"])
    _assert_same(DamageTable(**{**vars(pooled), "features": ()}), everyone)


@examples(40)
@given(networks, features, st.integers(2, 10))
def test_each_group_is_scored_as_if_alone(model: Drawn, kind: str, n_samples: int) -> None:
    x, y, people = model.inputs(n_samples, 7), _labels(n_samples, 7), _people(kind, n_samples, 7)
    groups = _plan(model).groups
    everything = list(range(n_samples))
    together = collect_damage(
        model, _batches(x, y, people, [torch.tensor(everything)]), groups, interactions=True, progress=False
    )
    columns = list(people.values()) if isinstance(people, dict) else [people]
    names = [tuple(str(c[n].item() if isinstance(c, Tensor) else c[n]) for c in columns) for n in everything]
    for g, name in enumerate(together.sensitive_groups):
        members = torch.tensor([n for n in everything if names[n] == ((name,) if isinstance(name, str) else name)])
        alone = collect_damage(model, [(x[members], y[members])], groups, interactions=True, progress=False)
        for field in FIELDS:
            torch.testing.assert_close(getattr(together, field)[g], getattr(alone, field)[0], rtol=1e-9, atol=1e-14)


@examples(40)
@given(networks, features, st.sampled_from(["exact", "sketched"]), st.integers(1, 4), st.integers(2, 14), st.data())
def test_number_of_processes_does_not_matter(
    model: Drawn, kind: str, interactions: Any, n_processes: int, n_samples: int, data: st.DataObject
) -> None:
    """Any shares, empty ones among them; threads play the processes."""
    x, y, people = model.inputs(n_samples, 2), _labels(n_samples, 2), _people(kind, n_samples, 2)
    groups = _plan(model).groups
    options: dict[str, Any] = {"interactions": interactions, "progress": False}
    whole = collect_damage(model, _batches(x, y, people, [torch.arange(n_samples)]), groups, **options)
    owner = torch.tensor(data.draw(st.lists(st.integers(0, n_processes - 1), min_size=n_samples, max_size=n_samples)))
    here = threading.local()

    def work(processes: Processes) -> DamageTable:
        here.processes = processes
        part = (owner == processes.rank).nonzero().squeeze(1)
        return collect_damage(
            copy.deepcopy(model), _batches(x, y, people, list(part.split(3)) if len(part) else []), groups, **options
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(damage_module, "Processes", lambda distributed, model: here.processes)
        tables = in_processes([work] * n_processes)
    for table in tables:
        if interactions == "sketched":
            removed = {g.name: range(1, g.size, 2) for g in groups}
            torch.testing.assert_close(table.predict(removed), whole.predict(removed), rtol=1e-9, atol=1e-14)
            table, other = (DamageTable(**{**vars(t), "interactions": None}) for t in (table, whole))
            _assert_same(table, other)
        else:
            _assert_same(table, whole)


@examples(40)
@given(networks, features, st.integers(2, 9), st.data())
def test_squared_gradients_need_no_order(model: Drawn, kind: str, n_samples: int, data: st.DataObject) -> None:
    x, y, people = model.inputs(n_samples, 4), _labels(n_samples, 4), _people(kind, n_samples, 4)
    ones = [torch.tensor([n]) for n in data.draw(st.permutations(range(n_samples)))]
    results = [
        squared_gradients(model, _batches(x, y, people, parts), progress=False)
        for parts in ([torch.arange(n_samples)], ones, _cut(data, n_samples))
    ]
    for table, squares in results[1:]:
        assert table.sensitive_groups == results[0][0].sensitive_groups
        for name, square in squares.items():
            torch.testing.assert_close(square, results[0][1][name], rtol=1e-8, atol=1e-16, msg=name)


@examples(100)
@given(st.lists(st.floats(-40, 40), min_size=2, max_size=9))
def test_softmax_factor_for_any_scores(scores: list[float]) -> None:
    p = torch.softmax(torch.tensor([scores], dtype=torch.float64), 1)
    factor = softmax_factor(p)[0]
    covariance = torch.diag(p[0]) - torch.outer(p[0], p[0])
    torch.testing.assert_close(factor @ factor.T, covariance[:-1, :-1], rtol=1e-9, atol=1e-15)


# Selection ------------------------------------------------------------------------------------------------


@st.composite
def tables(draw: st.DrawFn, max_layers: int = 4) -> DamageTable:
    sizes = {f"layer {k}": draw(st.integers(1, 6)) for k in range(draw(st.integers(1, max_layers)))}
    n_groups, n_columns = draw(st.integers(1, 4)), sum(sizes.values())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    rows = torch.randn(n_groups, 5, n_columns, dtype=torch.float64, generator=generator)
    if draw(st.booleans()):
        rows[:, :, ::2] = 0  # channels that do nothing tie
    gram = rows.transpose(1, 2) @ rows / 5
    slope = torch.randn(n_groups, n_columns, dtype=torch.float64, generator=generator) * draw(st.sampled_from([0, 0.5]))
    return DamageTable(
        sensitive_groups=tuple("abcd"[:n_groups]),
        features=("sex",),
        sizes=sizes,
        counts=torch.randint(1, 9, (n_groups,), generator=generator).double(),
        loss=torch.ones(n_groups, dtype=torch.float64),
        slope=slope,
        curvature=torch.diagonal(gram, dim1=1, dim2=2).clone(),
        interactions=gram,
    )


def _pools(data: st.DataObject, table: DamageTable) -> list[Pool]:
    of_layer = {name: data.draw(st.integers(0, 2)) for name in table.sizes}
    members = [tuple(n for n in table.sizes if of_layer[n] == k) for k in range(3)]
    return [
        Pool(layers, data.draw(st.integers(0, sum(table.sizes[n] for n in layers)))) for layers in members if layers
    ]


@examples(60)
@given(tables(), st.sampled_from([MeanDamage(), WorstGroup(), TailRisk(0.5)]), st.data())
@pytest.mark.filterwarnings("ignore:.*the data hold only one")
def test_joint_selection_keeps_quotas_and_floors(table: DamageTable, criterion: Any, data: st.DataObject) -> None:
    pools = _pools(data, table)
    minimum = {name: data.draw(st.integers(0, size + 1)) for name, size in table.sizes.items()}
    floors = [Floor(name, least) for name, least in minimum.items()]
    selection = joint_selection(table, criterion, pools=pools, floors=floors)
    n_columns = len(table.columns)
    assert sorted(selection.order.tolist()) == list(range(n_columns))
    assert torch.equal(selection.scores[selection.order], torch.arange(n_columns, dtype=torch.float64))
    assert bool(torch.isfinite(selection.change).all())
    may_go = {name: size - max(1, min(size, minimum[name])) for name, size in table.sizes.items()}
    wanted = [min(pool.quota or 0, sum(may_go[name] for name in pool.layers)) for pool in pools]
    removed = selection.order[: sum(wanted)]
    # the changes of what is asked for add up to what removing it does
    chosen = {
        name: [c for c in range(size) if table.columns.section(name).start + c in removed.tolist()]
        for name, size in table.sizes.items()
    }
    total = float(criterion.bind(table)(table.predict(chosen).unsqueeze(1))[0])
    assert float(selection.change[removed].sum()) == pytest.approx(total, rel=1e-6, abs=1e-9)
    gone = [table.columns.layer_of(column) for column in removed.tolist()]
    for pool, number in zip(pools, wanted, strict=True):
        assert sum(name in pool.layers for name in gone) == number
    for name, most in may_go.items():
        assert gone.count(name) <= most
    # the last channel of a layer goes only when every other layer has one left as well
    last = [table.columns.layer_of(column) for column in selection.order.tolist()][n_columns - len(table.sizes) :]
    assert sorted(last) == sorted(table.sizes)


@examples(60)
@given(
    st.lists(st.one_of(st.floats(-1e3, 1e3), st.sampled_from([0.0, -0.0, 1.0, 5e-324, 1e300])), min_size=1, max_size=30)
)
def test_breaking_ties_keeps_the_order(values: list[float]) -> None:
    scores = torch.tensor(values, dtype=torch.float64)
    distinct = break_ties(scores)
    assert len(set(distinct.tolist())) == len(values)
    assert torch.equal(torch.argsort(distinct), torch.argsort(scores, stable=True))
    assert torch.equal(break_ties(distinct), distinct)
    moved = (distinct - scores).abs() > 1e-12 * scores.abs().clamp_min(1e-300)
    assert not moved.any()


@examples(60)
@given(tables(), st.data())
def test_single_channels_are_ranked_by_their_values(table: DamageTable, data: st.DataObject) -> None:
    values = table.damage.mean(0)
    n_columns = len(values)
    pools = _pools(data, table)
    selection = ranked(values, table.columns, pools=pools)
    assert sorted(selection.order.tolist()) == list(range(n_columns))
    scores = selection.scores
    assert bool(torch.isfinite(scores).all()) and len(set(scores.tolist())) == n_columns
    shared = {name for pool in pools if len(pool.layers) > 1 for name in pool.layers}
    for name in table.sizes:
        section = table.columns.section(name)
        within = torch.argsort(scores[section])
        assert torch.equal(values[section][within], values[section].sort().values)
        if name in shared:  # its best channel comes after everything that is not the best of its layer
            others = [c for n in shared for c in range(n_columns)[table.columns.section(n)]]
            best = {int(scores[table.columns.section(n)].argmax()) + table.columns.section(n).start for n in shared}
            assert float(scores[section].max()) > max([float(scores[c]) for c in others if c not in best], default=-1e9)


@examples(40)
@given(tables())
def test_order_of_shares_is_one_in_each_layer(table: DamageTable) -> None:
    assume(len(table.sensitive_groups) > 1)
    selection = share_balanced_order(table)
    for name, size in table.sizes.items():
        assert sorted(selection.scores[table.columns.section(name)].tolist()) == list(range(size))


@examples(60)
@given(tables(), st.floats(0, 1e6))
def test_shrinking_lies_between_own_and_all(table: DamageTable, strength: float) -> None:
    shrunk = table.shrunk(strength)
    mean = torch.tensordot(table.shares, table.damage, dims=1)
    low, high = torch.minimum(table.damage, mean), torch.maximum(table.damage, mean)
    assert bool(((shrunk.damage >= low - 1e-9) & (shrunk.damage <= high + 1e-9)).all())
    removed = {name: range(size) for name, size in table.sizes.items()}
    own = table.counts / (table.counts + strength)
    expected = own * table.predict(removed) + (1 - own) * (table.shares @ table.predict(removed))
    torch.testing.assert_close(shrunk.predict(removed), expected, rtol=1e-9, atol=1e-9)


@examples(30)
@given(st.dictionaries(st.text(min_size=1, max_size=3), st.integers(1, 5), min_size=1, max_size=5))
def test_columns_lie_side_by_side(sizes: dict[str, int]) -> None:
    columns = ChannelColumns(sizes)
    seen = [name for name in sizes for _ in range(*columns.section(name).indices(len(columns)))]
    assert [columns.layer_of(column) for column in range(len(columns))] == seen
    assert columns.selected({name: range(size) for name, size in sizes.items()}).tolist() == list(range(len(columns)))


# Files ----------------------------------------------------------------------------------------------------


@examples(40)
@given(networks, st.sampled_from([0.2, 0.5, 0.8]), st.booleans())
def test_pruned_networks_come_back_as_they_were(model: Drawn, ratio: float, global_pruning: bool) -> None:
    fresh = copy.deepcopy(model)
    importance = tp.importance.GroupMagnitudeImportance()
    pruner = _pruner(model, importance=importance, pruning_ratio=ratio, global_pruning=global_pruning)
    pruner.step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        save_pruned(path, model)
        loaded = load_pruned(path, fresh)
        save_pruned(Path(folder) / "again.safetensors", loaded)
        assert path.read_bytes() == (Path(folder) / "again.safetensors").read_bytes()
    assert loaded is fresh and str(loaded) == str(model)
    x = model.inputs(3, 1)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), model.eval()(x))
