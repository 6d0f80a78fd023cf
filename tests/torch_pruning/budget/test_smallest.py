"""The smallest network that spares every group: what is redundant goes, what one small group needs stays."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch_pruning as tp
from scipy.stats import norm
from sklearn.metrics import balanced_accuracy_score, recall_score
from torch import Tensor, nn

from fairtrim import InputError, predict
from fairtrim.damage.reading_options import Reading
from fairtrim_adapters.torch_pruning import MeanDamageImportance, WorstGroupImportance
from fairtrim_adapters.torch_pruning.budget import prune_to, smallest
from fairtrim_adapters.torch_pruning.budget.measuring import allowed_drops, degenerate, drops, measured
from tests import sweep_cases
from tests.snapshot import Snapshot

QUIET: dict[str, Any] = {"progress": False}
network: Any = sweep_cases.network
splits: Any = sweep_cases.splits


def _two_ways(copies: int) -> tuple[nn.Sequential, Tensor, Tensor, list[str]]:
    """Four signals that decide, each in some equal channels; one that only a small group has."""
    generator = torch.Generator().manual_seed(0)
    n = 1200
    x = torch.randn(n, 4, generator=generator).abs() + 0.5
    few = torch.arange(n) % 6 == 0
    y = (torch.rand(n, generator=generator) < 0.5).long()
    signal = torch.where(y == 1, 2.0, -2.0)
    x[:, 0] = torch.where(few, torch.zeros(n), signal)
    x[:, 1] = torch.where(few, signal, torch.zeros(n))
    x[:, 2:] *= torch.randn(n, 2, generator=generator).sign()
    model = nn.Sequential(nn.Linear(4, 4 * copies), nn.Identity(), nn.Linear(4 * copies, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4).repeat(copies, 1))
        model[0].bias.zero_()
        out = torch.tensor([1.0, 1.0, 0.2, 0.2]).repeat(copies) / copies
        model[2].weight.copy_(torch.stack([-out, out]))
        model[2].bias.zero_()
    return model.eval(), x.double(), y, ["few" if flag else "many" for flag in few.tolist()]


def _people(x: Tensor, y: Tensor, groups: list[str], of: slice) -> list[tuple[Any, ...]]:
    return [(x[of], y[of], groups[of])]


def test_drops_are_shares() -> None:
    with pytest.raises(InputError, match=r"max_drop\['recall'\] is 2; expected a share: 0.02 for 2 points"):
        allowed_drops({"recall": 2})
    assert [entry.drop for entry in allowed_drops({"accuracy": 1, _plain_accuracy: 3})] == [1.0, 3.0]


def _plain_accuracy(labels: Any, predicted: Any) -> float:
    return float((labels == predicted).mean())


def test_the_drop_of_the_loss_is_its_rise() -> None:
    table = pd.DataFrame(
        {
            "sensitive_group": ["few", "one", "everybody"],
            "people": [25.0, 1.0, 26.0],
            "loss dense": [1.5, 2.0, 1.6],
            "loss pruned": [1.75, 2.0, 1.8],
            "loss standard error": [0.1, np.nan, 0.1],
        }
    )
    nothing: Any = None
    rows = drops(table, allowed_drops({"loss": 2.5}), nothing, nothing, [], Reading(), confidence=0.95)
    assert rows["sensitive_group"].tolist() == ["few", "one"] and rows["allowed"].tolist() == [2.5, 2.5]
    np.testing.assert_allclose(rows["drop"], [0.25, 0.0])
    np.testing.assert_allclose(rows["upper"], [0.25 + norm.ppf(0.95) * 0.1, np.inf])
    assert rows["passes"].tolist() == [True, False]  # of one person there is no error
    rows = drops(table, allowed_drops({"loss": 0.25}), nothing, nothing, [], Reading(), confidence=None)
    assert rows["passes"].tolist() == [True, True] and rows["least"].tolist() == [0, 0]


def test_smallest_keeps_the_loss() -> None:
    model, x, y, groups = _two_ways(2)
    done = smallest(
        model,
        _people(x, y, groups, slice(0, 400)),
        x[:1],
        held_out=_people(x, y, groups, slice(400, 1200)),
        max_drop={"loss": 0.01},
        importance=WorstGroupImportance(compensated=True),
        **QUIET,
    )
    assert set(done.model[0].weight.argmax(1).tolist()) >= {0, 1} and done.macs < 1
    assert done.stopped_by is not None and ": loss rises by" in str(done.stopped_by)
    assert bool((done.measured["loss change"] < 0.01).all())


def test_duplicates_go_and_nothing_else() -> None:
    model, x, y, groups = _two_ways(2)
    done = smallest(
        model,
        _people(x, y, groups, slice(0, 400)),
        x[:1],
        held_out=_people(x, y, groups, slice(400, 1200)),
        max_drop={"accuracy": 0.015},
        importance=WorstGroupImportance(compensated=True),
        **QUIET,
    )
    kept = done.model[0].weight.argmax(1).tolist()
    assert sorted(kept) == [0, 1]  # one of each pair that decides anything
    with torch.no_grad():
        assert torch.equal(done.model(x).argmax(1), model(x).argmax(1))
    assert done.stopped_by is not None and done.stopped_by.share < done.macs


def test_the_group_that_needs_a_channel_stops_it() -> None:
    model, x, y, groups = _two_ways(2)
    done = smallest(
        model,
        _people(x, y, groups, slice(0, 400)),
        x[:1],
        held_out=_people(x, y, groups, slice(400, 1200)),
        max_drop={"accuracy": 0.02},
        importance=MeanDamageImportance(compensated=True),  # for which a group of a sixth counts a sixth
        **QUIET,
    )
    stop = done.stopped_by
    assert stop is not None and stop.sensitive_group == "few" and stop.metric == "accuracy"
    assert stop.upper > 0.02 and stop.drop > 0.3 and stop.share < done.macs < 1
    rows = done.history[done.history["macs"] == stop.share].set_index("sensitive_group")
    assert not rows.loc["few", "accuracy passes"] and rows.loc["few", "accuracy drop"] == stop.drop
    assert "stopped by few: accuracy falls by" in str(done).replace("\n  ", " ")
    assert f"{100 * stop.share:.1f} %" in str(done)


def test_whatever_is_given_back_passes_and_the_next_does_not() -> None:
    data = splits()
    allowed = {"accuracy": 0.06, recall_score: 0.15}
    done = smallest(
        network(),
        data.scoring,
        torch.ones(1, 6),
        held_out=data.test,
        max_drop=allowed,
        sensitive_names=data.sensitive_names,
        importance=WorstGroupImportance(),
        **QUIET,
    )
    groups = done.history[done.history["sensitive_group"] != "everybody"]
    passes = groups.groupby("network")[["accuracy passes", "recall_score passes"]].agg(
        lambda column: bool(column.astype(bool).all())
    )
    macs = groups.groupby("network")["macs"].first()
    passing, failing = macs[passes.all(axis=1)], macs[~passes.all(axis=1)]
    assert done.macs == passing.min() and failing.max() < done.macs
    assert groups.loc[groups["kept"], "network"].unique().tolist() == [passing.idxmin()]


@pytest.mark.parametrize("by", ["macs", "parameters"])
def test_the_grid_ends_the_search(by: Any) -> None:
    data = splits()
    options: dict[str, Any] = {"held_out": data.test, "max_drop": {"accuracy": 0.1}, "by": by, **QUIET}
    magnitude = tp.importance.GroupMagnitudeImportance()
    coarse = smallest(network(), data.scoring, torch.ones(1, 6), grid=0.4, importance=magnitude, **options)
    fine = smallest(network(), data.scoring, torch.ones(1, 6), grid=0.01, importance=magnitude, **options)
    assert coarse.history["network"].max() < fine.history["network"].max()
    assert getattr(fine, by) <= getattr(coarse, by)


def test_few_people_can_tell_nothing() -> None:
    data = splits()
    model = network()
    done = smallest(model, data.scoring, torch.ones(1, 6), held_out=data.test, **QUIET)
    assert done.macs == done.parameters == 1 and not len(done.history) and done.stopped_by is None
    assert any("too few people" in flag and "about 165" in flag for flag in done.flags)
    assert str(done).startswith("At 100.0 % of the MACs") and done.report()
    for one, other in zip(done.model.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    estimate = smallest(model, data.scoring, torch.ones(1, 6), held_out=data.test, confidence=None, **QUIET)
    assert estimate.macs < 1


def test_nothing_smaller_passes() -> None:
    model, x, y, groups = _two_ways(1)
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[-1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, 1.0]]))
    y = model(x).argmax(1)  # every channel has a say
    done = smallest(
        model,
        _people(x, y, groups, slice(0, 400)),
        x[:1],
        held_out=_people(x, y, groups, slice(400, 1200)),
        max_drop={"accuracy": 0.02},
        importance=WorstGroupImportance(),
        **QUIET,
    )
    assert done.macs == 1 and done.stopped_by is not None
    assert any("nothing smaller passes" in flag for flag in done.flags)


@pytest.mark.parametrize("metric", [balanced_accuracy_score, recall_score])
def test_drops_are_those_of_a_loop(metric: Any) -> None:
    data = splits()
    pruned = network()
    with torch.no_grad():
        pruned[0].weight[:5] = 0
    reading = Reading(sensitive_names=data.sensitive_names, progress=False)
    table = measured(network(), pruned, data.test, reading)
    allowed = allowed_drops({"accuracy": 0.5, metric: 0.01})
    found = drops(table, allowed, network(), pruned, data.test, reading, confidence=0.9)
    people = predict({"dense": network(), "pruned": pruned}, data.test, sensitive_names=data.sensitive_names)
    z = norm.ppf(0.9)
    generator = np.random.default_rng(1)
    for _, row in found.iterrows():
        own = people.sensitive["0"] == row["sensitive_group"] if "0" in people.sensitive else None
        own = next(iter(people.sensitive.values())) == row["sensitive_group"] if own is None else own
        y, before, after = people.target[own], people.label["dense"][own], people.label["pruned"][own]
        score = metric if row["metric"] != "accuracy" else lambda a, b: float(np.mean(a == b))
        assert row["people"] == len(y) and row["drop"] == pytest.approx(score(y, before) - score(y, after))
        resampled = []
        for _ in range(400):
            k = generator.integers(len(y), size=len(y))
            resampled.append(score(y[k], before[k]) - score(y[k], after[k]))
        one = row["least"] / z
        half = z * math.sqrt(np.std(resampled) ** 2 + one**2)
        assert row["upper"] - row["drop"] == pytest.approx(half, rel=0.2)
        # one person of accuracy is 1/n; of recall, one of the positives
        expected = {"accuracy": len(y), "recall_score": (y == 1).sum()}.get(row["metric"])
        assert expected is None or one == pytest.approx(1 / expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_drop": {}}, "expected drops by metric"),
        ({"max_drop": {"acuracy": 0.1}}, "acuracy"),
        ({"max_drop": {"accuracy": -0.1}}, "largest fall"),
        ({"max_drop": {"zero one loss": 0.1}}, "less is better"),
        ({"by": "channels"}, "by"),
        ({"confidence": 0.3}, "confidence"),
        ({"grid": 0.0}, "grid"),
        ({"held_out": None}, "held_out"),
        ({"steps": 2}, "steps"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    model, data = network(), splits()
    before = Snapshot(model)
    with pytest.raises(InputError, match=message):
        smallest(model, data.scoring, torch.ones(1, 6), **{"held_out": data.test, **arguments}, **QUIET)
    before.assert_unchanged()


def test_a_regression_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 1))
    x = torch.linspace(-1, 1, 120).view(40, 3)
    people = [(x, x.sum(1, keepdim=True) + 0.5, ["a", "b"] * 20)]
    with pytest.raises(InputError, match="prune_to"):
        smallest(model, people, x[:1], held_out=[(x + 1, *people[0][1:])], loss_fn=nn.functional.mse_loss, **QUIET)


def test_a_network_that_tells_nobody_apart_is_flagged() -> None:
    data, pruned = splits(), network()
    with torch.no_grad():
        pruned[-1].weight.zero_()
    reading = Reading(sensitive_names=data.sensitive_names, progress=False)
    found = degenerate(network(), pruned, data.test, reading)
    assert any(text.startswith("constant classifier") for text in found)
    assert degenerate(pruned, pruned, data.test, reading) == []  # it was one before
    assert degenerate(network(), pruned, [batch[:2] for batch in data.test], reading) == []


def _three_classes(n_groups: int, seed: int) -> list[tuple[Any, ...]]:
    x = torch.randn(90, 6, generator=torch.Generator().manual_seed(seed))
    return [(x, torch.arange(90) % 3, [f"g{k % n_groups}" for k in range(90)])]


def _of_three_classes() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("recall", "can't be computed: Target is multiclass.*functools.partial"),
        ("confusion matrix", "gives a ndarray; expected a function"),
        ("MetricFrame", "can't be computed"),
        ("accuracy", None),
        (lambda labels, predicted: float((labels == predicted).mean()), None),
    ],
)
def test_a_metric_that_gives_no_number_is_refused_in_one_line(metric: Any, message: str | None) -> None:
    model = _of_three_classes()
    before = Snapshot(model)
    people: dict[str, Any] = {"held_out": _three_classes(2, 1), "importance": tp.importance.GroupMagnitudeImportance()}
    arguments = (model, _three_classes(2, 0), torch.ones(1, 6))
    if message is None:
        assert smallest(*arguments, **people, max_drop={metric: 1.0}, confidence=None, **QUIET).macs < 0.2
    else:
        with pytest.raises(InputError, match=message) as caught:
            smallest(*arguments, **people, max_drop={metric: 0.1}, **QUIET)
        assert "\n" not in str(caught.value)
    before.assert_unchanged()


@pytest.mark.parametrize("judges", ["one group", "no groups"])
def test_groups_of_which_nobody_judges_are_named(judges: str) -> None:
    held_out = _three_classes(1, 1) if judges == "one group" else [batch[:2] for batch in _three_classes(2, 1)]
    arguments = (_of_three_classes(), _three_classes(2, 0), torch.ones(1, 6))
    missing = "g1" if judges == "one group" else "g0, g1"
    found = smallest(*arguments, held_out=held_out, max_drop={"accuracy": 0.5}, **QUIET)
    pruned = prune_to(*arguments, held_out=held_out, macs=0.5, **QUIET)
    for done in (found, pruned):
        assert any(flag.startswith(f"nobody of {missing} is among those who judge") for flag in done.flags)
    all_there = prune_to(*arguments, held_out=_three_classes(2, 1), macs=0.5, **QUIET)
    assert not any("nobody of" in flag for flag in all_there.flags)


def test_of_many_groups_that_are_too_small_a_few_are_named() -> None:
    done = smallest(
        _of_three_classes(), _three_classes(2, 0), torch.ones(1, 6), held_out=_three_classes(30, 1), **QUIET
    )
    assert "and 25 more. Expected more held-out people" in done.flags[-1] and len(done.flags[-1]) < 600


def test_where_fewer_channels_are_no_faster_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import fairtrim_adapters.torch_pruning.budget.sizes as sizes

    def timed(networks: dict[str, Any], *_: Any, **__: Any) -> Any:
        smaller = networks["pruned"][0].out_features < 20
        return SimpleNamespace(ratio=lambda _: SimpleNamespace(median=1.25 if smaller else 1.0))

    monkeypatch.setattr(sizes, "measure_latency", timed)
    people: dict[str, Any] = {"held_out": _three_classes(2, 1), "max_drop": {"accuracy": 0.0}, "confidence": None}
    magnitude = tp.importance.GroupMagnitudeImportance()
    arguments = (_of_three_classes(), _three_classes(2, 0), torch.ones(1, 6))
    done = smallest(*arguments, **people, by="latency", importance=magnitude, **QUIET)
    assert done.stopped_by is not None
    assert "the smaller network that was tried has no lower latency" in done.flags
