"""A budget is met, really, or its miss is said; what is measured is what a loop measures; nobody else's network."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import InputError
from fairtrim_adapters.torch_pruning import MeanDamageImportance, ShareBalancedImportance, WorstGroupImportance
from fairtrim_adapters.torch_pruning.budget import PrunedToBudget, prune_to
from fairtrim_adapters.torch_pruning.budget import prune_to as module
from fairtrim_adapters.torch_pruning.budget.candidates import Candidates
from fairtrim_adapters.torch_pruning.budget.preparation import prepared
from tests import sweep_cases
from tests.networks import CASES, Case
from tests.snapshot import Snapshot

SETTINGS: dict[str, Any] = {"progress": False}
network: Any = sweep_cases.network
splits: Any = sweep_cases.splits


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 70), nn.ReLU(), nn.Linear(70, 50), nn.Tanh(), nn.Linear(50, 3))


def _conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 40, 3, padding=1),
        nn.BatchNorm2d(40),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(40, 30, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(270, 50),
        nn.ReLU(),
        nn.Linear(50, 3),
    )


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 40, 3, padding=1), nn.BatchNorm2d(40)
        self.one, self.two = nn.Conv2d(40, 50, 3, padding=1), nn.Conv2d(50, 40, 3, padding=1)
        self.head = nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.two(torch.relu(self.one(x))))
        return self.head(x.mean((2, 3)))


WIDE = {"mlp": Case(_mlp, (4,)), "conv": Case(_conv, (2, 6, 6)), "residual": Case(_Residual, (2, 5, 4))}
IMPORTANCES: dict[str, Callable[[], tp.importance.Importance | None]] = {
    "default": lambda: None,
    "worst group": WorstGroupImportance,
    "magnitude": tp.importance.GroupMagnitudeImportance,
    "taylor": tp.importance.GroupTaylorImportance,
    "random": tp.importance.RandomImportance,
}


def people_of(case: Case, n: int = 60, seed: int = 1) -> list[tuple[Any, ...]]:
    x, y = case.batch(n, seed=seed)
    groups = ["a", "b", "b", "c"] * (n // 4)
    return [(x[:25], y[:25], groups[:25]), (x[25:], y[25:], groups[25:])]


def counted(model: nn.Module, x: Tensor) -> tuple[float, float]:
    """Multiply-accumulates and parameters, by hooks and by hand."""
    macs: list[float] = []

    def count(layer: Any, args: Any, output: Tensor) -> None:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            macs.append(output[0].numel() * layer.weight[0].numel())

    handles = [layer.register_forward_hook(count) for layer in model.modules()]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return sum(macs), sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("case", WIDE)
@pytest.mark.parametrize(("cost", "share"), [("macs", 0.5), ("parameters", 0.3)])
def test_budgets_are_met_within_two_percent(case: str, importance: str, cost: str, share: float) -> None:
    made = WIDE[case]
    model = made.model().eval()
    x, _ = made.batch(1)
    done = prune_to(
        model, people_of(made), x, importance=IMPORTANCES[importance](), steps=1, **{cost: share}, **SETTINGS
    )
    now, before = counted(done.model, x), counted(model, x)
    assert done.parameters == pytest.approx(now[1] / before[1])
    # Torch-Pruning's counter has norms and biases, too
    assert done.macs == pytest.approx(now[0] / before[0], abs=0.02)
    reached = done.macs if cost == "macs" else done.parameters
    assert reached == done.share and share - 0.02 <= reached <= share
    assert not any("budget" in flag or "nearest" in flag for flag in done.flags)
    with torch.no_grad():
        assert done.model(x).shape == model(x).shape


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_network_ends_at_or_below_its_budget(name: str) -> None:
    case = CASES[name]
    model = case.model().eval()
    of_layers = {module: path for path, module in model.named_modules()}
    options = {
        option: {of_layers[layer]: number for layer, number in value.items()} if isinstance(value, dict) else value
        for option, value in case.options(model).items()
    }
    x, _ = case.batch(1)
    done = prune_to(
        model,
        people_of(case),
        x,
        macs=0.7,
        importance=MeanDamageImportance(selection="single"),
        pruner_options=options,
        output_transform=case.transform,
        steps=1,
        **SETTINGS,
    )
    assert done.macs <= 0.7 or any("can't be met" in flag for flag in done.flags)
    done.model(case.batch(3)[0])


def test_no_network_between_is_within_the_budget() -> None:
    """The first network of the order within a budget is found, as going through all of them finds it."""
    options: Any = {"progress": False}
    arguments = (network(), splits().scoring, torch.ones(1, 6), "macs", WorstGroupImportance(), None)
    work = prepared(*arguments, options, seed=0, what="test")
    candidates = Candidates(work.dense, work.task)
    sizes = [candidates.shares(amount).macs for amount in range(candidates.most + 1)]
    assert sizes[0] == 1 and all(one >= other for one, other in itertools.pairwise(sizes))
    for share in (0.33, 0.61, 0.9):
        expected = next(amount for amount, size in enumerate(sizes) if size <= share)
        assert candidates.reached("macs", share) == (expected, True)
    assert candidates.reached("macs", 0.01) == (candidates.most, False)


def test_a_layer_keeps_a_tenth_and_what_max_pruning_ratio_says() -> None:
    x = torch.ones(1, 6)
    low = prune_to(network(), splits().scoring, x, macs=0.01, importance=WorstGroupImportance(), steps=1, **SETTINGS)
    assert [low.model[k].out_features for k in (0, 3)] == [2, 1]
    assert any("can't be met" in flag for flag in low.flags)
    high = prune_to(
        network(),
        splits().scoring,
        x,
        macs=0.01,
        importance=WorstGroupImportance(),
        pruner_options={"max_pruning_ratio": 0.5},
        steps=2,
        **SETTINGS,
    )
    assert [high.model[k].out_features for k in (0, 3)] == [6, 5]  # in two steps, too: not a half of a half


def test_widths_are_rounded_and_ignored_layers_stay() -> None:
    case = WIDE["mlp"]
    model, x = case.model(), case.batch(1)[0]
    options: dict[str, Any] = {"importance": WorstGroupImportance(), "steps": 1, **SETTINGS}
    done = prune_to(model, people_of(case), x, macs=0.5, pruner_options={"round_to": 8}, **options)
    assert done.model[0].out_features % 8 == 0 == done.model[2].out_features % 8
    done = prune_to(model, people_of(case), x, macs=0.5, ignored_layers=["0"], **options)
    assert done.model[0].out_features == 70 and done.macs <= 0.5


def test_shares_of_single_layers_need_no_common_order() -> None:
    case = WIDE["mlp"]
    people = people_of(case)
    options: dict[str, Any] = {"steps": 1, "importance": ShareBalancedImportance(), **SETTINGS}
    with pytest.raises(InputError, match="global_pruning=False"):
        prune_to(case.model(), people, case.batch(1)[0], macs=0.5, **options)
    local = {"pruner_options": {"global_pruning": False}}
    done = prune_to(case.model(), people, case.batch(1)[0], macs=0.5, **options, **local)
    assert done.model[0].out_features / 70 == pytest.approx(done.model[2].out_features / 50, abs=0.02)


def test_figures_are_those_of_a_loop_over_people() -> None:
    data = splits()
    done = prune_to(
        network(),
        data.scoring,
        torch.ones(1, 6),
        macs=0.4,
        held_out=data.test,
        sensitive_names=data.sensitive_names,
        importance=WorstGroupImportance(),
        **SETTINGS,
    )
    rows = done.measured.set_index("sensitive_group")
    x, y, sex = data.test.dataset.tensors
    for value, name in enumerate(["Female", "Male"]):
        losses, right = [], []
        for model in (network().double(), copy.deepcopy(done.model).double()):
            scores = model(x[sex == value].double()).detach()
            losses.append(nn.functional.cross_entropy(scores, y[sex == value], reduction="none"))
            right.append((scores.argmax(1) == y[sex == value]).double())
        n = len(losses[0])
        change, error = (losses[1] - losses[0]).mean(), (losses[1] - losses[0]).std() / math.sqrt(n)
        assert rows.loc[name, "people"] == n
        assert rows.loc[name, "loss change"] == pytest.approx(float(change), abs=1e-5)
        assert rows.loc[name, "loss standard error"] == pytest.approx(float(error), abs=1e-5)
        assert rows.loc[name, "accuracy change"] == pytest.approx(float((right[1] - right[0]).mean()))
        half = 1.959964 * math.sqrt(float((right[1] - right[0]).var()) / n + 1 / n**2)
        assert rows.loc[name, "accuracy low"] == pytest.approx(rows.loc[name, "accuracy change"] - half, abs=1e-6)
    assert set(done.predicted["sensitive_group"]) == {"Female", "Male"}
    kept = done.history[done.history["kept"]]
    assert list(kept["sensitive_group"]) == ["Male", "Female", "everybody"]
    assert kept["macs"].unique().tolist() == [done.macs]


def test_smaller_steps_are_tried_where_it_is_worse_than_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    data = splits()
    options: dict[str, Any] = {"held_out": data.test, "importance": WorstGroupImportance(), **SETTINGS}
    x = torch.ones(1, 6)

    def steps_of(done: PrunedToBudget) -> list[int]:
        return list(done.history.drop_duplicates("network")["steps"])

    source = importlib_module()
    monkeypatch.setattr(source, "worse_than_told", lambda *_: [])
    assert steps_of(prune_to(network(), data.scoring, x, macs=0.4, **options)) == [1]
    monkeypatch.setattr(source, "worse_than_told", lambda *_: ["0"])
    done = prune_to(network(), data.scoring, x, macs=0.4, **options)
    assert steps_of(done) == [1, 2, 4]
    groups = done.history[done.history["sensitive_group"] != "everybody"]
    worst = groups.groupby("network")["loss change"].max()
    assert done.history.loc[done.history["kept"], "network"].unique().tolist() == [worst.idxmin()]
    assert any("steps tried: 1, 2, 4" in flag for flag in done.flags)
    assert (done.history["macs"] <= 0.4).all()
    assert steps_of(prune_to(network(), data.scoring, x, macs=0.4, steps=3, **options)) == [3]


def importlib_module() -> Any:
    import sys

    return sys.modules[module.__module__]


def test_worse_than_predicted_counts_chance_size_and_people() -> None:
    def worse(figures: pd.DataFrame, told: dict[str, float]) -> list[str]:
        table = pd.DataFrame({"sensitive_group": list(told), "predicted change": list(told.values())})
        found: list[str] = importlib_module().worse_than_told(figures, table)
        return found

    def figures(change: float, error: float, people: float = 50.0) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "sensitive_group": ["a", "everybody"],
                "people": [people, 90.0],
                "loss dense": [0.4, 0.5],
                "loss change": [change, 0.0],
                "loss standard error": [error, 0.0],
            }
        )

    assert worse(figures(0.3, 0.05), {"a": 0.01}) == ["a"]
    assert worse(figures(0.3, 0.1), {"a": 0.01}) == []  # within three errors
    assert worse(figures(0.3, 0.01), {"a": 0.2}) == []  # not by half of it
    assert worse(figures(0.019, 0.001), {"a": 0.0}) == []  # a twentieth of the loss
    assert worse(figures(0.3, 0.05, people=19.0), {"a": 0.01}) == []
    assert worse(figures(-0.1, 0.001), {"a": -0.4}) == []  # gains are not relied on
    assert worse(figures(0.3, np.nan), {"a": np.nan}) == ["a"]
    assert worse(figures(0.3, 0.01), {"b": 0.0}) == []


def test_the_network_the_data_and_the_random_state_stay() -> None:
    model, data = network(), splits()
    model.train()
    before, state = Snapshot(model), torch.get_rng_state()
    first = prune_to(model, data.scoring, torch.ones(1, 6), macs=0.5, random_state=3, **SETTINGS)
    again = prune_to(model, data.scoring, torch.ones(1, 6), macs=0.5, random_state=3, **SETTINGS)
    before.assert_unchanged()
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert not first.model.training and all(p.requires_grad for p in first.model.parameters())


def test_judges_may_have_groups_that_the_loader_lacks() -> None:
    """Channels need no sensitive group, so that the prediction is of everybody: compared with everybody's measured."""
    data = splits()
    unnamed = [batch[:2] for batch in data.scoring]
    options: dict[str, Any] = {"held_out": data.test, **SETTINGS}
    done = prune_to(network(), unnamed, torch.ones(1, 6), macs=0.05, **options)
    assert not any("nobody of" in flag for flag in done.flags)
    assert done.predicted["sensitive_group"].tolist() == ["everybody"]
    kept = done.history[done.history["kept"]].set_index("sensitive_group")["predicted change"]
    assert kept.notna().to_dict() == {"0": False, "1": False, "everybody": True}
    told = importlib_module().worse_than_told(done.measured, done.predicted.assign(**{"predicted change": 0.0}))
    assert told == ["everybody"]  # so that smaller steps are tried


def test_a_budget_that_is_not_met_is_said_first() -> None:
    data = splits()
    done = prune_to(network(), data.scoring, torch.ones(1, 6), macs=0.001, held_out=data.test, **SETTINGS)
    assert not done.within_budget and str(done).startswith(
        f"At {100 * done.macs:.1f} % of the MACs, not the 0.1 % asked"
    )
    assert prune_to(network(), data.scoring, torch.ones(1, 6), macs=0.5, held_out=data.test, **SETTINGS).within_budget


def test_few_samples_are_said() -> None:
    data = splits()
    few = [tuple(part[:8] for part in next(iter(data.scoring)))]
    done = prune_to(network(), few, torch.ones(1, 6), macs=0.5, held_out=data.test, **SETTINGS)
    assert any("not refitted for want of samples" in flag and "10 samples" in flag for flag in done.flags)


def test_who_judges_is_said() -> None:
    data = splits()
    options: dict[str, Any] = {"macs": 0.5, "importance": tp.importance.GroupMagnitudeImportance(), **SETTINGS}
    alone = prune_to(network(), data.scoring, torch.ones(1, 6), **options)
    assert any("which flatters: pass held_out" in flag for flag in alone.flags)
    with pytest.warns(UserWarning, match="held_out gives samples"):
        shared = prune_to(network(), data.scoring, torch.ones(1, 6), held_out=data.scoring, **options)
    assert any("flatters" in flag for flag in shared.flags)
    others = prune_to(network(), data.scoring, torch.ones(1, 6), held_out=data.test, **options)
    assert not any("flatters" in flag for flag in others.flags)
    assert not len(others.predicted) and len(others.history.drop_duplicates("network")) == 1


def test_one_group_or_none_is_judged_by_the_mean() -> None:
    batches = [(x, y) for x, y, _ in splits().scoring]
    done = prune_to(network(), batches, torch.ones(1, 6), macs=0.5, **SETTINGS)
    assert list(done.measured["sensitive_group"]) == ["everyone"] or len(done.measured) == 1
    alone = [tuple(part[:1] for part in batch) for batch in splits().test][:1]  # a batch of one
    one = prune_to(network(), batches, torch.ones(1, 6), macs=0.5, held_out=[alone[0][:2]], **SETTINGS)
    assert one.measured["people"].tolist() == [1.0] and "+" in str(one)


def test_a_regression_has_no_accuracy() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 1))
        x = torch.randn(40, 3)
    people = [(x, x.sum(1, keepdim=True) + 0.5, ["a", "b"] * 20)]
    done = prune_to(model, people, x[:1], macs=0.5, loss_fn=nn.functional.mse_loss, **SETTINGS)
    assert done.measured["accuracy dense"].isna().all() and "loss" in str(done).splitlines()[0]


def test_text_is_narrow() -> None:
    data = splits()
    x, y, _ = data.test.dataset.tensors
    names = [f"{'a group of a very long name indeed, number '}{k % 5}" for k in range(len(x))]
    done = prune_to(network(), [(x, y, names)], torch.ones(1, 6), macs=0.5, **SETTINGS)
    for text in (str(done), done.report()):
        assert max(map(len, text.splitlines())) < 100
        assert (
            ", within the 50 % asked for (" in done.verdict() and "worst for a group of a very long" in done.verdict()
        )
    assert str(done).startswith(done.verdict()[:90]) and done._repr_html_().count("<table>") == 1
    assert "kept" in done.report()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no budget; expected exactly one"),
        ({"macs": 0.5, "parameters": 0.5}, "exactly one"),
        ({"macs": 1.0}, "macs"),
        ({"latency": 0.0}, "latency"),
        ({"macs": 0.5, "steps": 0}, "steps"),
        ({"macs": 0.5, "holdout": []}, "holdout"),
        ({"macs": 0.5, "reconstruct": None}, "reconstruct=None; expected one of True, False"),
        ({"macs": 0.5, "held_out": iter([])}, "gone through several times"),
        ({"macs": 0.5, "pruner_options": {"pruning_ratio": 0.5}}, "pruning_ratio"),
        ({"macs": 0.5, "ignored_layers": ["none"]}, "ignored_layers"),
        ({"macs": 0.5, "importance": tp.importance.OBDCImportance(num_classes=2)}, "OBDC"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    model = network()
    before = Snapshot(model)
    with pytest.raises(InputError, match=message):
        prune_to(model, splits().scoring, torch.ones(1, 6), **arguments, **SETTINGS)
    before.assert_unchanged()


def test_latency_counts_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    from fairtrim_adapters.torch_pruning.budget import sizes

    class Timed:
        def __init__(self, models: dict[str, Any]) -> None:
            self.widths = [model[0].out_features for model in models.values()]

        def ratio(self, name: str) -> Any:
            return type("Ratio", (), {"median": self.widths[1] / self.widths[0]})

    monkeypatch.setattr(sizes, "measure_latency", lambda models, *_, **__: Timed(models))
    done = prune_to(
        network(), splits().scoring, torch.ones(1, 6), latency=0.6, importance=WorstGroupImportance(), **SETTINGS
    )
    assert done.latency is not None and done.latency <= 0.6 and done.model[0].out_features == 7
    assert str(done).startswith("At 58.3 % of the latency, within the 60 % asked for (")


@pytest.mark.parametrize("importance", ["worst group", "magnitude"])
def test_heads_go_as_far_as_their_own_ratio(importance: str) -> None:
    case = CASES["separate heads"]
    model: Any = nn.Sequential(case.model(), nn.Linear(3, 30).double(), nn.ReLU(), nn.Linear(30, 3).double()).eval()
    heads = {f"0.{name}": 2 for name in ("query", "key", "value")}
    model[0].n_shared, model[0].num_heads = 1, 2
    options = {"num_heads": heads, "prune_num_heads": True, "head_pruning_ratio": 0.5}
    x, _ = case.batch(1)
    settings: dict[str, Any] = {"steps": 1, **SETTINGS}
    alone = {"pruner_options": {**options, "prune_head_dims": False}}
    done: Any = prune_to(model, people_of(case), x, macs=0.4, importance=IMPORTANCES[importance](), **settings, **alone)
    assert done.macs <= 0.4
    assert done.model[0].num_heads == 1 and [done.model.get_submodule(name).out_features for name in heads] == [4] * 3
    assert done.model(case.batch(3)[0]).shape == (3, 3)
    if importance == "worst group":
        with pytest.raises(InputError, match="whole heads and dimensions of heads at once"):
            prune_to(model, people_of(case), x, macs=0.4, pruner_options=options, **settings)
