"""Standard errors of damages, shrinkage by them, and predictions beside what was measured."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import DamageTable, InputError, collect_damage
from fairtrim.criteria import WorstGroup
from fairtrim.damage import scoring_run as streaming_module
from fairtrim.damage.measured_change import measured_change, worse_than_predicted
from fairtrim.measures.shrinkage import own_shares
from fairtrim.oracle import oracle_damage
from fairtrim.selection import joint_selection
from fairtrim_adapters.torch_pruning import (
    AccumulatedConfidenceImportance,
    DamageImportance,
    MeanDamageImportance,
    TailRiskImportance,
    WorstGroupImportance,
)
from fairtrim_adapters.torch_pruning.importances.pruning_report import PruningReport
from tests.networks import CASES
from tests.snapshot import Snapshot

CASE = CASES["plain"]
GROUPS = CASE.plan(CASE.model()).groups


def _people(sizes: dict[str, int], seed: int = 0) -> tuple[Tensor, Tensor, list[str]]:
    """Groups of the given sizes, mixed."""
    names = [name for name, size in sizes.items() for _ in range(size)]
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    return (*CASE.batch(len(names)), [names[n] for n in order])


def _cut(whole: tuple[Tensor, Tensor, list[str]], sizes: list[int]) -> list[tuple[Any, ...]]:
    ends = np.cumsum([0, *sizes])
    return [tuple(part[a:b] for part in whole) for a, b in itertools.pairwise(ends)]


# Standard errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", ["exact", "empirical"])
def test_standard_errors_are_those_of_means_over_people(curvature: Any) -> None:
    """Against the damage of each person alone, by the slow oracle; a batch of one, groups that come late."""
    model, whole = CASE.model(), _people({"a": 11, "b": 7, "c": 3, "d": 1})
    x, y, names = whole
    order = sorted(range(22), key=lambda n: names[n] != "a")  # the others are absent from the first batches
    whole = x[order], y[order], [names[n] for n in order]
    table = collect_damage(model, _cut(whole, [4, 1, 9, 8]), GROUPS, curvature=curvature, progress=False)
    single = [oracle_damage(model, [batch], GROUPS, curvature=curvature) for batch in _cut(whole, [1] * 22)]
    for g, name in enumerate(table.sensitive_groups):
        mine = [s for s, who in zip(single, whole[2], strict=True) if who == name]
        n = len(mine)
        assert table.people is not None and float(table.people[g]) == n
        for field, values in (
            ("standard_error", torch.stack([s.damage[0] for s in mine])),
            ("second_order_error", torch.stack([0.5 * s.curvature[0] for s in mine])),
            ("loss_error", torch.stack([s.loss for s in mine])),
        ):
            found = getattr(table, field)[g].reshape(-1)
            if n == 1:
                assert found.isnan().all()
            else:
                expected = values.std(0) / n**0.5
                # a difference of mean squares: where all values are nearly the same, its root keeps half of the digits
                half = torch.finfo(torch.float64).eps ** 0.5
                torch.testing.assert_close(found, expected, rtol=half, atol=half * float(values.abs().max()))


def test_weights_count_as_people_of_equal_weight() -> None:
    model, (x, y, _) = CASE.model(), _people({"a": 9})
    weights = torch.rand(9, 2, generator=torch.Generator().manual_seed(1)).double()
    table = collect_damage(model, [(x, y, weights)], GROUPS, sensitive_weights=True, progress=False)
    scaled = collect_damage(model, [(x, y, 7 * weights)], GROUPS, sensitive_weights=True, progress=False)
    assert table.people is not None and table.standard_error is not None
    torch.testing.assert_close(table.people, weights.sum(0) ** 2 / weights.square().sum(0))
    for name in ("people", "standard_error", "second_order_error", "loss_error"):
        torch.testing.assert_close(getattr(scaled, name), getattr(table, name))


def test_a_run_that_was_cut_short_keeps_the_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming_module, "SECONDS_BETWEEN_SAVES", 0.0)
    model, batches = CASE.model(), _cut(_people({"a": 9, "b": 5, "c": 2}), [6, 1, 5, 4])
    whole = collect_damage(model, batches, GROUPS, progress=False)

    def broken() -> Iterator[Any]:
        yield from batches[:2]
        raise ConnectionError

    with pytest.raises(ConnectionError):
        collect_damage(model, broken(), GROUPS, folder=tmp_path, progress=False)
    resumed = collect_damage(model, batches, GROUPS, folder=tmp_path, progress=False)
    assert resumed.read_order == whole.read_order and resumed.signed_loss == whole.signed_loss
    for name in ("people", "standard_error", "second_order_error", "loss_error", "sample_losses"):
        torch.testing.assert_close(getattr(resumed, name), getattr(whole, name), rtol=0, atol=0)


def test_errors_of_mixed_tables() -> None:
    model, whole = CASE.model(), _people({"a": 11, "b": 7, "c": 3, "d": 1})
    table = collect_damage(model, [whole], GROUPS, interactions=True, progress=False)
    assert table.standard_error is not None and table.second_order_error is not None
    shrunk = table.shrunk(4.0)
    assert shrunk.standard_error is not None
    assert shrunk.standard_error.isnan().all()  # everybody is one part of each, d's error isn't known
    known = table.pooled([[0], [1], [2, 3]], ["a", "b", "rest"])
    shrunk = known.shrunk(4.0)
    assert known.standard_error is not None and shrunk.standard_error is not None
    own = known.counts / (known.counts + 4)
    mixing = torch.diag(own) + torch.outer(1 - own, known.shares)
    torch.testing.assert_close(shrunk.standard_error.square(), mixing.square() @ known.standard_error.square())
    second = table.without_first_order()
    torch.testing.assert_close(second.damage, 0.5 * table.curvature)
    torch.testing.assert_close(second.standard_error, table.second_order_error, equal_nan=True)
    assert "standard_error" in table.to_frame()


# Shrinkage ------------------------------------------------------------------------------------------------


def _table(damage: Tensor, people: Tensor, deviation: float) -> DamageTable:
    """Second-order damages of groups with the given deviation within each."""
    error = (deviation / people.sqrt()).unsqueeze(1).expand_as(damage)
    return DamageTable(
        sensitive_groups=tuple(f"g{g}" for g in range(len(people))),
        features=("group",),
        sizes={"0": damage.shape[1]},
        counts=people,
        loss=torch.ones_like(people),
        slope=torch.zeros_like(damage),
        curvature=2 * damage,
        people=people,
        standard_error=error,
        second_order_error=error,
    )


def test_share_of_two_groups_in_closed_form() -> None:
    """Two groups of n people at distance d, deviation s, C channels: τ² = C (d²/2 − s²/n), noise C s²/n."""
    n, s, distance, n_channels = 50.0, 2.0, 1.5, 6
    damage = torch.zeros(2, n_channels, dtype=torch.float64)
    damage[1] = distance
    people = torch.full((2,), n, dtype=torch.float64)
    own = own_shares(damage, torch.full_like(damage, s / n**0.5), people)
    between, noise = distance**2 / 2 - s**2 / n, s**2 / n
    torch.testing.assert_close(own, torch.full((2,), between / (between + noise), dtype=torch.float64))
    for factor in (1e-6, 1e6):  # units of the loss don't matter
        torch.testing.assert_close(
            own_shares(factor * damage, factor * s / n**0.5 * torch.ones_like(damage), people), own
        )


def test_groups_of_one_distribution_go_by_everybody() -> None:
    """Averaged over draws hardly a group keeps anything of its own; groups that truly differ keep it."""
    generator = torch.Generator().manual_seed(0)
    people = torch.tensor([4000.0, 2000.0, 500.0, 60.0, 5.0], dtype=torch.float64)
    truth = torch.rand(40, generator=generator, dtype=torch.float64)
    kept: dict[float, list[Tensor]] = {0.0: [], 1.0: []}
    for differ, shares in kept.items():
        for _ in range(40):
            of_group = truth + differ * torch.randn(5, 40, generator=generator, dtype=torch.float64)
            noise = torch.randn(5, 40, generator=generator, dtype=torch.float64)
            found = of_group + 3 * noise / people.sqrt().unsqueeze(1)
            shares.append(own_shares(found, (3 / people.sqrt()).unsqueeze(1).expand_as(found), people))
    alike, apart = (torch.stack(shares).mean(0) for shares in kept.values())
    assert float(alike[3:].max()) < 0.05  # of a few people nothing is taken for real
    assert float(apart[:3].min()) > 0.95 and bool((apart.diff() < 0).all())


def test_the_largest_damage_is_no_longer_that_of_the_fewest() -> None:
    """Nine groups, three of them of 3, 4 and 5 people, as race codes are."""
    people = torch.tensor([3.0, 4, 5, 300, 400, 500, 800, 1500, 4000], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    small = {"raw": 0.0, "shrunk": 0.0}
    for _ in range(20):
        truth = torch.rand(60, generator=generator, dtype=torch.float64) * (
            1 + 0.2 * torch.randn(9, 60, generator=generator, dtype=torch.float64)
        )
        noise = torch.randn(9, 60, generator=generator, dtype=torch.float64)
        raw = _table(truth + noise / people.sqrt().unsqueeze(1), people, 1.0)
        for name, table in (("raw", raw), ("shrunk", raw.shrunk())):
            small[name] += float((table.damage.argmax(0) < 3).double().mean()) / 20
    assert small["raw"] > 0.5 > 0.2 > small["shrunk"]


def test_where_nothing_can_be_told() -> None:
    one = torch.zeros(1, 3, dtype=torch.float64)
    nan = torch.full((2, 3), torch.nan, dtype=torch.float64)
    assert own_shares(one, one + 0.1, torch.tensor([9.0])).tolist() == [1.0]
    assert own_shares(nan.nan_to_num(0), nan, torch.tensor([1.0, 1.0]).double()).tolist() == [0.0, 0.0]
    exact = torch.zeros(2, 3, dtype=torch.float64)  # no noise: each group is what it is
    assert own_shares(exact, exact, torch.tensor([5.0, 2.0]).double()).tolist() == [1.0, 1.0]
    # a person alone is judged by the deviations of the others
    lonely = own_shares(
        torch.tensor([[0.0], [5.0]]).double(), torch.tensor([[0.1], [torch.nan]]).double(), torch.tensor([100.0, 1.0])
    )
    assert 0 < float(lonely[1]) < float(lonely[0]) < 1
    table = collect_damage(CASE.model(), [_people({"a": 5, "b": 2})], GROUPS, progress=False)
    bare = DamageTable(**{**vars(table), "standard_error": None})
    with pytest.raises(InputError, match="no standard errors to shrink by"):
        bare.shrunk()
    with pytest.raises(InputError, match="'auto'"):
        table.shrunk("all")  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [WorstGroupImportance, TailRiskImportance])
def test_worst_group_selection_shrinks_by_default(make: Any) -> None:
    model, whole = CASE.model(), _people({"a": 40, "b": 21, "c": 3})
    orders = {}
    for shrinkage in ("default", "auto", 0.0, 30.0):
        importance = make(progress=False, **({} if shrinkage == "default" else {"shrinkage": shrinkage}))
        importance.fit(CASE.pruner(model, importance), [whole])
        orders[shrinkage] = importance.selection_.order.tolist()
        assert importance.damage_.counts.tolist() == [40, 21, 3]  # the table is as it was found
        ranking = importance.damage_.without_first_order()
        ranking = ranking if not importance.shrinkage else ranking.shrunk(importance.shrinkage)
        again = joint_selection(ranking, importance.criterion, pools=importance.plan_.pools)
        assert orders[shrinkage] == again.order.tolist()
    assert orders["default"] == orders["auto"]
    assert MeanDamageImportance().shrinkage == 0
    # the saliency of weights has no errors of single people
    weights = WorstGroupImportance(level="weight", selection="single", progress=False)
    weights.fit(CASE.pruner(model, weights), [whole])
    with pytest.raises(InputError, match="shrinkage='never'"):
        make(shrinkage="never")


# The first order ------------------------------------------------------------------------------------------


def test_ranking_leaves_the_first_order_out() -> None:
    model, whole = CASE.model(), _people({"a": 12, "b": 9})
    for selection in ("joint", "single"):
        orders = {}
        for first_order in ("auto", False, True):
            importance = MeanDamageImportance(selection=selection, first_order=first_order, progress=False)
            importance.fit(CASE.pruner(model, importance), [whole])
            orders[first_order] = importance.selection_.order.tolist()
            assert importance.damage_.slope.any()  # the prediction keeps it
        assert orders["auto"] == orders[False] != orders[True]
    with pytest.raises(InputError, match="first_order='x'"):
        MeanDamageImportance(first_order="x")


def test_a_loss_without_curvature_is_ranked_by_its_first_order() -> None:
    model, (x, y, people) = CASE.model(), _people({"a": 12, "b": 9})
    target = F.one_hot(y, 3).double()
    orders = {}
    for first_order in ("auto", True):
        importance = MeanDamageImportance(first_order=first_order, progress=False)
        importance.fit(CASE.pruner(model, importance), [(x, target, people)], loss_fn=F.l1_loss)
        orders[first_order] = importance.selection_.order.tolist()
    assert not importance.damage_.curvature.any()
    assert orders["auto"] == orders[True]


def _shifted(seed: int) -> tuple[nn.Sequential, tuple[Tensor, Tensor, list[str]]]:
    """A network on people whose second class has moved towards the first since it was trained."""
    torch.manual_seed(seed)

    def draw(n: int, shift: float) -> tuple[Tensor, Tensor, list[str]]:
        x = torch.randn(n, 20)
        y = (x[:, :5].sum(1) > 0).long()
        return x + shift * y[:, None], y, ["ab"[v] for v in y]

    x, y, _ = draw(3000, 0.0)
    people = draw(2000, -0.25)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, people


@pytest.fixture(scope="module", params=range(3))
def shifted(request: pytest.FixtureRequest) -> tuple[nn.Sequential, tuple[Tensor, Tensor, list[str]]]:
    with torch.random.fork_rng():
        return _shifted(request.param)


def _pruned(
    model: nn.Module, people: Any, importance: Any, ratio: float = 0.2
) -> tuple[nn.Module, tp.pruner.BasePruner]:
    copied = copy.deepcopy(model)
    pruner = tp.pruner.BasePruner(
        copied,
        people[0][:2],
        importance=importance,
        pruning_ratio=ratio,
        global_pruning=True,
        ignored_layers=[copied[-1]],
    )
    importance.fit(pruner, [people])
    pruner.step()
    return copied, pruner


@pytest.mark.parametrize("make", [MeanDamageImportance, WorstGroupImportance])
def test_gains_of_the_first_order_are_not_taken_for_granted(shifted: Any, make: Any) -> None:
    model, people = shifted
    x, y, _ = people
    importance = make(progress=False)
    pruned, _ = _pruned(model, people, importance)
    for label in (0, 1):  # both groups keep their accuracy within some points
        before, after = ((net(x).argmax(1) == y)[y == label].double().mean() for net in (model, pruned))
        assert float(after) > float(before) - 0.05
    predicted = importance.report().predicted
    assert (predicted["predicted change"] > -predicted["loss before"]).all()
    assert not any("impossible" in flag for flag in importance.report().flags)
    wrong = (predicted["predicted change"] - predicted["measured change"]).abs()
    assert (wrong < 0.25 * predicted["loss before"] + 0.05).all()


def test_impossible_predictions_are_said_and_never_shown(shifted: Any) -> None:
    model, people = shifted
    importance = MeanDamageImportance(first_order=True, progress=False)
    with pytest.warns(UserWarning, match=r"beyond the reach of the prediction.*\['b'\].*impossible"):
        pruned, _ = _pruned(model, people, importance)
    report = importance.report()
    rows = report.predicted.set_index("sensitive_group")
    assert np.isnan(rows.loc["b", "predicted change"])
    x, y, _ = people
    with torch.no_grad():
        now = float(F.cross_entropy(pruned(x)[y == 1], y[y == 1]))
    assert rows.loc["b", "measured change"] == pytest.approx(now - rows.loc["b", "loss before"], rel=1e-5)
    (flag,) = (flag for flag in report.flags if flag.startswith("b:"))
    assert "impossible" in flag and f"measured {rows.loc['b', 'measured change']:+.4f}" in flag
    number = f"{float(importance.damage_.predict(_removed(model, pruned))[1]):.2f}"
    assert "impossible" in str(report) and number not in str(report)
    unmeasured = importance.report(measure=False)
    assert any("impossible" in flag for flag in unmeasured.flags) and "not measured" in str(unmeasured)
    assert max(map(len, str(report).splitlines())) < 100


def _removed(dense: nn.Module, pruned: nn.Module) -> dict[str, list[int]]:
    """Which channels are gone: their biases don't appear any more."""
    return {
        name: [
            c
            for c, bias in enumerate(dense.get_submodule(name).bias.tolist())
            if bias not in pruned.get_submodule(name).bias.tolist()
        ]
        for name in ("0", "2")
    }


def test_a_signed_loss_may_fall_below_zero() -> None:
    model, whole = CASE.model(), _people({"a": 12, "b": 9})
    signed = collect_damage(
        model, [whole], GROUPS, loss_fn=lambda scores, target: F.cross_entropy(scores, target) - 5, progress=False
    )
    plain = collect_damage(model, [whole], GROUPS, progress=False)
    fall = -plain.loss - 0.1
    assert signed.signed_loss and not plain.signed_loss
    assert not signed.impossible(fall - 9).any()
    assert plain.impossible(fall).all() and not plain.impossible(-plain.loss + 0.1).any()


# Measured beside predicted --------------------------------------------------------------------------------


def _fitted(loader: Any, importance: Any = None, **options: Any) -> tuple[Any, nn.Module, nn.Module]:
    model = CASE.model()
    dense = copy.deepcopy(model)
    importance = MeanDamageImportance(progress=False) if importance is None else importance
    pruner = CASE.pruner(model, importance)
    importance.fit(pruner, loader, **options)
    pruner.step()
    return importance, dense.eval(), model.eval()


def test_report_measures_person_by_person() -> None:
    whole = _people({"a": 30, "b": 13, "c": 5})
    importance, dense, pruned = _fitted(_cut(whole, [20, 1, 27]))
    x, y, names = whole
    with torch.no_grad():
        each = (F.cross_entropy(net(x), y, reduction="none") for net in (pruned, dense))
        difference = torch.sub(*each)
    rows = importance.report().predicted.set_index("sensitive_group")
    for name in "abc":
        mine = difference[[n for n, who in enumerate(names) if who == name]]
        assert rows.loc[name, "measured change"] == pytest.approx(float(mine.mean()), rel=1e-6, abs=1e-9)
        assert rows.loc[name, "standard error"] == pytest.approx(float(mine.std() / len(mine) ** 0.5), rel=1e-5)
    assert importance.report().measured == "measured on 48 of 48 samples"


def test_report_leaves_everything_as_it_was() -> None:
    whole = _people({"a": 30, "b": 13})
    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(*whole[:2], torch.tensor([name == "a" for name in whole[2]]).long())
    loader = DataLoader(data, batch_size=10, shuffle=True, generator=generator)
    importance, _, pruned = _fitted(loader)
    pruned.train()
    before, state, drawn = Snapshot(pruned), generator.get_state(), torch.get_rng_state()
    importance.report()
    before.assert_unchanged()
    assert torch.equal(generator.get_state(), state) and torch.equal(torch.get_rng_state(), drawn)


def test_shuffled_people_are_compared_group_by_group() -> None:
    """In another order the means are still right, and the error says that nobody is compared with himself."""
    x, y, names = _people({"a": 40, "b": 23})
    data = TensorDataset(x, y, torch.tensor([name == "b" for name in names]).long())
    importance, dense, pruned = _fitted(DataLoader(data, batch_size=9, shuffle=True), sensitive_names={"g": ["a", "b"]})
    torch.manual_seed(5)
    torch.rand(3)
    report = importance.report()
    assert "in another order" in report.measured
    with torch.no_grad():
        losses = [F.cross_entropy(net(x), y, reduction="none") for net in (dense, pruned)]
    for row, name in zip(report.predicted.itertuples(), "ab", strict=True):
        mine = [n for n, who in enumerate(names) if who == name]
        before, after = (one[mine] for one in losses)
        assert row[5] == pytest.approx(float(after.mean() - before.mean()), rel=1e-6, abs=1e-9)
        variance = (before.var() + after.var()) / len(mine)
        assert row[6] == pytest.approx(float(variance.sqrt()), rel=1e-5)


def test_of_many_samples_an_even_part_is_measured() -> None:
    whole = _people({"a": 50, "b": 31})
    model = CASE.model().eval()
    batches = _cut(whole, [30, 1, 50])
    table = collect_damage(model, batches, GROUPS, progress=False)
    with torch.no_grad():
        model[0].weight.mul_(0.5)
    part = measured_change(model, batches, table, max_samples=20, progress=False)
    assert part.n_samples == len(range(0, 81, 5)) and part.paired
    chosen = tuple(p[::5] for p in whole)
    assert table.sample_losses is not None
    with torch.no_grad():
        now = F.cross_entropy(model(chosen[0]), chosen[1], reduction="none") - table.sample_losses[::5]
    for g, name in enumerate("ab"):
        mine = now[[n for n, who in enumerate(chosen[2]) if who == name]]
        assert float(part.change[g]) == pytest.approx(float(mine.mean()), rel=1e-6)
        assert float(part.people[g]) == len(mine)
    nobody = measured_change(model, batches[:1], table, max_samples=1, progress=False)  # of b nobody was read
    assert nobody.n_samples == 1 and bool(nobody.change.isnan().any()) and not nobody.paired
    bare = DamageTable(**{**vars(table), "sample_losses": None})
    with pytest.raises(InputError, match="keeps no losses of single samples"):
        measured_change(model, batches, bare, progress=False)


@pytest.mark.parametrize("kind", ["iterator", "stream"])
def test_what_can_be_read_once_is_not_measured(kind: str) -> None:
    whole = _people({"a": 30, "b": 13})

    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(_cut(whole, [20, 23]))

    loader: Any = iter(_cut(whole, [20, 23])) if kind == "iterator" else DataLoader(Stream(), batch_size=None)
    importance, _, _ = _fitted(loader)
    report = importance.report()
    assert report.measured.startswith("not measured: the loader is a stream")
    assert "measured change" not in report.predicted and "not measured" in str(report)


def test_what_goes_wrong_while_measuring_is_told() -> None:
    importance, _, pruned = _fitted([_people({"a": 30, "b": 13})])
    pruned[-1] = nn.Identity()
    pruned.append(nn.Linear(1, 1))
    report = importance.report()
    assert report.measured.startswith("not measured: the network doesn't run as it is now (RuntimeError: ")
    assert len(report.layers) and "measured change" not in report.predicted


def test_options_and_mined_samples_are_measured_alike() -> None:
    """The same loss, way of calling, names and number of batches as when the people were scored."""
    x, y, names = _people({"a": 30, "b": 13})
    codes = torch.tensor([name == "b" for name in names]).long()
    batches = [({"x": x[:25]}, y[:25], codes[:25]), ({"x": x[25:]}, y[25:], codes[25:])]
    importance, dense, pruned = _fitted(
        batches,
        forward_fn=lambda model, inputs: (model(inputs["x"]),),
        output_transform=lambda output: output[0],
        loss_fn=nn.CrossEntropyLoss(label_smoothing=0.1),
        sensitive_names={"group": ["first", "second"]},
        max_batches=1,
    )
    report = importance.report()
    assert report.measured == "measured on 25 of 25 samples"
    assert report.predicted["sensitive_group"].tolist() == ["first", "second"]
    with torch.no_grad():
        loss = nn.CrossEntropyLoss(label_smoothing=0.1, reduction="none")
        difference = (loss(pruned(x[:25]), y[:25]) - loss(dense(x[:25]), y[:25]))[codes[:25] == 1]
    assert report.predicted["measured change"][1] == pytest.approx(float(difference.mean()), rel=1e-6)

    flags = torch.arange(43) % 4 == 0
    loader = DataLoader(TensorDataset(x, y), batch_size=10, shuffle=True)  # read in the dataset's order
    importance, dense, pruned = _fitted(loader, AccumulatedConfidenceImportance(flags, progress=False))
    assert importance.report().measured == "measured on 43 of 43 samples"
    assert importance.report().predicted["people"].tolist() == [int(flags.sum()), int((~flags).sum())]


def test_a_rise_beyond_the_prediction_is_flagged() -> None:
    """Half of an untrained network's weights grow a hundredfold after the pruning: nobody predicted that."""
    importance, _, pruned = _fitted([_people({"a": 60, "b": 33, "c": 5})])
    assert not any("was predicted" in flag for flag in importance.report().flags)
    with torch.no_grad():
        pruned[-1].weight.mul_(100)
    flags = [flag for flag in importance.report().flags if "was predicted" in flag]
    assert [flag[0] for flag in flags] == ["a", "b"]  # five people are too few to say it of


# Layers and groups ----------------------------------------------------------------------------------------


def test_a_layer_that_lost_nearly_everything_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 2))
    people = torch.randn(30, 4), torch.arange(30) % 2, ["a", "b", "b"] * 10
    first = torch.cat([100 + torch.arange(40.0), torch.arange(30.0)])  # the last layer comes first
    ranked = {"first layer": first, "alike": torch.arange(70.0) % 7}
    for name, values in ranked.items():
        importance = DamageImportance(lambda damage, values=values: values, selection="single", progress=False)
        _pruned(model, people, importance, ratio=0.4)
        flags = [flag for flag in importance.report().flags if "keeps" in flag]
        assert [flag.split("'")[1] for flag in flags] == (["0"] if name == "first layer" else [])
        if flags:
            assert "keeps 2 of 30 channels" in flags[0] and f"! {flags[0][:20]}" in str(importance.report())


def test_groups_of_few_people_are_named() -> None:
    torch.manual_seed(0)
    x = torch.randn(3005, 20)
    codes = torch.cat([torch.arange(3000) % 2, torch.full((5,), 2)])
    y = (x[torch.arange(3005), 3 * codes] > 0).long()
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    importance = WorstGroupImportance(progress=False)
    _pruned(model, (x, y, codes), importance)
    (flag,) = (flag for flag in importance.report().flags if "too few people to say that it is" in flag)
    assert ": 2 (5):" in flag
    assert WorstGroup().bind(importance.damage_)(importance.damage_.damage).shape == (32,)


def test_a_printed_report_fits_a_hundred_columns() -> None:
    """With long names and reasons; of a name both ends are shown, of a reason the first sentence."""
    names = [f"model.encoder.stages.{k}.blocks.10.{'deeply_' * 10}nested.pwconv1" for k in range(3)]
    layers = pd.DataFrame({"layer": names, "before": 64, "asked": 32, "removed": 0, "kept": 64, "skipped": True})
    figures = ["loss before", "predicted change", "error of the sketch", "measured change", "standard error"]
    people = ["Female, Amer-Indian-Eskimo, 45 and older, " + "never married" * k for k in (1, 4)]
    predicted = pd.DataFrame({"sensitive_group": people, "people": 40.0, **dict.fromkeys(figures, 0.25)})
    reason = "Torch-Pruning doesn't map " + "one of its channels or another " * 20
    unscored = {"up." * 50: f"{reason}; add the layer to ignored_layers. Or not", "down": "short"}
    report = PruningReport(layers, predicted, unscored, ("a flag " * 30,), "measured on 6 of 6 samples, " * 8)
    text = str(report)
    assert max(map(len, text.splitlines())) < 100
    assert "Removed 0 of 192 channels that were scored; 2 groups are left as they are: no step" in " ".join(
        text.split()
    )
    assert "not scored: down: short\n" in text and "ignored_layers" not in text
    assert report.unscored == unscored and list(report.layers["layer"]) == names
    whole = "".join(text.split())
    assert text.count("Female, Amer-") >= 2 and whole.count("pwconv1") == 6  # skipped, too
    assert (
        all(f"model.encoder.stages.{k}." in text for k in range(3)) and "Change of the mean loss: predicted | m" in text
    )
    one = PruningReport(layers.assign(removed=32), pd.DataFrame(), {"down": "short"})
    assert str(one).startswith("Removed 96 of 192 channels that were scored; 1 group is left as it is.\n")
    assert str(PruningReport(layers.assign(removed=32), pd.DataFrame(), {})).startswith("Removed 96 of 192 channels.\n")


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"predicted change": [0.2, -0.1]}, "the mean loss rises most for a, by 0.2000 (predicted)."),
        (
            {"predicted change": [0.2, 0.1], "measured change": [0.1, 0.3], "standard error": [0.1, 0.1]},
            "the mean loss rises most for b, by 0.3000 ± 0.1000 (measured).",
        ),
        (
            {"predicted change": [0.2, 0.1], "measured change": [0.1, np.nan], "standard error": [0.1, np.nan]},
            "the mean loss rises most for a, by 0.1000 ± 0.1000 (measured), which may be chance.",
        ),
        ({"predicted change after a refit": [-0.2, -0.1]}, "no group's mean loss rises (predicted)."),
        ({"predicted change": [np.nan] * 2}, "no group's change of the mean loss is predicted."),
    ],
)
def test_the_sentence_of_a_report(columns: dict[str, list[float]], sentence: str) -> None:
    layers = pd.DataFrame({"layer": ["0"], "before": 20000, "asked": 16281, "removed": 16281, "kept": 3719})
    table = pd.DataFrame({"sensitive_group": ["a", "b"], "people": [16281.0, 2.5], "loss before": 0.5, **columns})
    report = PruningReport(layers.assign(skipped=False), table, {})
    assert report.verdict() == f"Removed 16,281 of 20,000 channels; {sentence}"
    text = str(report)
    assert " ".join(text.split()).startswith(report.verdict()) and text.count("16,281") == 4 and " 2.5 " in text
    assert report._repr_html_().startswith(f"<p>{report.verdict()}".replace("'", "&#x27;"))


def test_worse_than_predicted_as_it_is_written_down() -> None:
    """Group by group, with groups without loss, of few people, of unknown error and without a change."""
    generator = torch.Generator().manual_seed(0)
    found, predicted = 0.3 * torch.randn(2, 400, generator=generator, dtype=torch.float64)
    error, loss = 0.1 * torch.rand(2, 400, generator=generator, dtype=torch.float64)
    people = torch.randint(1, 60, (400,), generator=generator).double()
    error[::7], found[::11], loss[::13] = torch.nan, torch.nan, 0.0
    expected = []
    for f, p, e, n, loss_of in zip(*(t.tolist() for t in (found, predicted, error, people, loss)), strict=True):
        beyond = [3 * e] if e == e else []
        matters = [0.5 * abs(f), 0.5 * abs(p), 0.05 * loss_of, 0.05 * 0.1 * 2.0]
        expected.append(n >= 20 and f == f and all(f - p > bound for bound in (*beyond, *matters)))
    worse = worse_than_predicted(found, predicted, error, people=people, loss=loss, mean_loss=2.0)
    assert worse.tolist() == expected
    assert 20 < sum(expected) < 200
