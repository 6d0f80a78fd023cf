"""The fast collector against the slow oracle, in float64, on every kind of coupling."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fairtrim import ChannelGroup, ChannelPlace, InputError, UnsupportedModelError, collect_damage
from fairtrim.damage.measured_change import measured_change
from fairtrim.oracle import explicit_gates, oracle_damage
from fairtrim_adapters.torch_pruning.graph.plan import plan_of_pruner
from tests.networks import CASES, Case

SENSITIVE = {
    "one group": [0] * 11,
    "two groups": [0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1],
    "five groups, one sample in one": [0, 1, 2, 3, 3, 1, 0, 2, 2, 1, 7],
}


def _batches(case: Case, sensitive: list[int], sizes: tuple[int, ...]) -> list[tuple[torch.Tensor, ...]]:
    x, y = case.batch(len(sensitive))
    a = torch.tensor(sensitive)
    return [tuple(part) for part in zip(x.split(list(sizes)), y.split(list(sizes)), a.split(list(sizes)), strict=True)]


def _relative(fast: torch.Tensor, slow: torch.Tensor) -> float:
    return float((fast - slow).abs().max() / slow.abs().max().clamp_min(1e-300))


@pytest.mark.parametrize("curvature", ["exact", "empirical"])
@pytest.mark.parametrize("sensitive", SENSITIVE.values(), ids=SENSITIVE.keys())
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_collector_equals_oracle(case: Case, sensitive: list[int], curvature: str) -> None:
    model = case.model()
    groups = case.plan(model).groups
    batches = _batches(case, sensitive, (4, 1, 6))
    fast = collect_damage(
        model, batches, groups, curvature=curvature, interactions=True, output_transform=case.transform, progress=False
    )
    scores_only = nn.Sequential(model)
    if case.transform is not None:
        scores_only.register_forward_hook(lambda module, args, output: case.transform(output))
    renamed = [
        ChannelGroup(g.name, g.size, tuple(ChannelPlace(**{**vars(p), "module": f"0.{p.module}"}) for p in g.places))
        for g in groups
    ]
    slow = oracle_damage(scores_only, batches, renamed, curvature=curvature)
    assert fast.sensitive_groups == slow.sensitive_groups
    assert fast.sizes == slow.sizes
    for name in ("counts", "loss", "slope", "curvature", "interactions"):
        assert _relative(getattr(fast, name), getattr(slow, name)) <= 1e-9, name


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_result_depends_neither_on_batches_nor_on_order(case: Case) -> None:
    model = case.model()
    groups = case.plan(model).groups
    x, y = case.batch(9)
    a = torch.tensor([3, 1, 1, 0, 3, 0, 0, 1, 3])
    order = torch.tensor([8, 2, 0, 5, 7, 1, 3, 6, 4])
    collect = {"interactions": True, "output_transform": case.transform, "progress": False}
    whole = collect_damage(model, [(x, y, a)], groups, **collect)
    ones = [(x[n : n + 1], y[n : n + 1], a[n : n + 1]) for n in order]
    single = collect_damage(model, ones, groups, **collect)
    assert whole.sensitive_groups == single.sensitive_groups == ("0", "1", "3")
    for name in ("counts", "loss", "slope", "curvature", "interactions"):
        assert _relative(getattr(single, name), getattr(whole, name)) <= 1e-9, name


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.exact])
def test_closed_gates_equal_physical_removal(name: str) -> None:
    case = CASES[name]
    model = case.model().eval()
    x, _ = case.batch(5)
    pruner = case.pruner(model)
    plan = plan_of_pruner(pruner)
    gates = {group.name: torch.ones(group.size, dtype=torch.float64) for group in plan.groups}
    for group in plan.groups:
        gates[group.name][torch.arange(0, group.size - 1, 2)] = 0
    with explicit_gates(model, plan.groups, gates), torch.no_grad():
        gated = model(x)
    for group in plan.groups:
        root = plan.roots[group.name]
        closed = torch.from_numpy(root.units)[gates[group.name][torch.from_numpy(root.units)] == 0]
        removed = [k for k, unit in enumerate(root.units) if gates[group.name][unit] == 0]
        assert len(closed) == len(removed)
        pruner.DG.get_pruning_group(root.module, root.pruning_fn, removed).prune()
    with torch.no_grad():
        pruned = model(x)
    transform = case.transform or (lambda output: output)
    torch.testing.assert_close(transform(gated), transform(pruned), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["attention", "separate heads"])
def test_attention_gate_equals_removal_of_a_head_dimension(name: str) -> None:
    """Half a gate at query, key, value and at the projection makes one gate on each path: z = 0 removes all."""
    case = CASES[name]
    model = case.model().eval()
    pruner = case.pruner(model)
    plan = plan_of_pruner(pruner)
    group = next(group for group in plan.groups if group.name == "project (input)")
    assert group.size == 4  # a dimension of every head goes at once
    x, _ = case.batch(3)
    gates = {g.name: torch.ones(g.size, dtype=torch.float64) for g in plan.groups}
    gates[group.name][1] = 0
    with explicit_gates(model, plan.groups, gates), torch.no_grad():
        gated = model(x)
    root = plan.roots[group.name]
    pruner.DG.get_pruning_group(root.module, root.pruning_fn, [1, 5]).prune()
    with torch.no_grad():
        torch.testing.assert_close(gated, model(x), rtol=1e-9, atol=1e-11)


def test_single_logit_with_binary_cross_entropy_equals_two_classes() -> None:
    """The generic expansion (Hessian by autograd) against the closed form of softmax."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    one = nn.Sequential(body, nn.Linear(6, 1)).double()
    two = nn.Sequential(body, nn.Linear(6, 2)).double()
    with torch.no_grad():
        two[1].weight.copy_(torch.cat([torch.zeros(1, 6).double(), one[1].weight]))
        two[1].bias.copy_(torch.cat([torch.zeros(1).double(), one[1].bias]))
    groups = [ChannelGroup("0.0", 6, (ChannelPlace("1", "input", range(6), range(6), channel_axis=-1),))]
    x, y = torch.randn(9, 4).double(), torch.randint(0, 2, (9,))
    a = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1])
    binary = collect_damage(
        one, [(x, y, a)], groups, loss_fn=F.binary_cross_entropy_with_logits, interactions=True, progress=False
    )
    softmax = collect_damage(two, [(x, y, a)], groups, interactions=True, progress=False)
    for name in ("loss", "slope", "curvature", "interactions"):
        torch.testing.assert_close(getattr(binary, name), getattr(softmax, name), rtol=1e-9, atol=1e-15)


def test_any_loss_is_taken_sample_by_sample() -> None:
    case = CASES["mlp"]
    model, (x, y) = case.model(), case.batch(6)
    groups = case.plan(model).groups
    reference = collect_damage(model, [(x, y)], groups, progress=False)
    for loss in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum"), lambda s, t: F.cross_entropy(s, t)):
        other = collect_damage(model, [(x, y)], groups, loss_fn=loss, progress=False)
        torch.testing.assert_close(other.damage, reference.damage, rtol=1e-9, atol=1e-15)


def test_weight_columns_are_groups_of_people() -> None:
    case = CASES["residual"]
    model, (x, y) = case.model(), case.batch(7)
    groups = case.plan(model).groups
    weights = torch.rand(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    batches = [(x[:3], y[:3], weights[:3]), (x[3:], y[3:], weights[3:])]
    weighted = collect_damage(model, batches, groups, sensitive_weights=True, progress=False)
    single = torch.stack(
        [collect_damage(model, [(x[n : n + 1], y[n : n + 1])], groups, progress=False).damage[0] for n in range(7)]
    )
    torch.testing.assert_close(weighted.damage, (weights / weights.sum(0)).T @ single, rtol=1e-9, atol=1e-14)


def test_frozen_network_is_scored_alike() -> None:
    case = CASES["plain"]
    model, batch = case.model(), case.batch(5)
    groups = case.plan(model).groups
    before = collect_damage(model, [batch], groups, progress=False)
    model.requires_grad_(False)
    after = collect_damage(model, [batch], groups, progress=False)
    torch.testing.assert_close(before.damage, after.damage, rtol=0, atol=0)
    assert not any(p.requires_grad for p in model.parameters())


def test_half_precision_accumulates_in_float32() -> None:
    case = CASES["mlp"]
    model, (x, y) = case.model().to(torch.bfloat16), case.batch(64)
    groups = case.plan(case.model()).groups
    table = collect_damage(model, [(x.bfloat16(), y)], groups, progress=False)
    reference = collect_damage(model.double(), [(x.bfloat16().double(), y)], groups, progress=False)
    assert _relative(table.damage, reference.damage) < 0.05


def test_large_number_of_classes_takes_the_empirical_curvature() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 21)).double()
    groups = [ChannelGroup("0", 4, (ChannelPlace("2", "input", range(4), range(4), channel_axis=-1),))]
    batch = (torch.randn(5, 3).double(), torch.randint(0, 21, (5,)))
    automatic, empirical, exact = (
        collect_damage(model, [batch], groups, curvature=kind, progress=False).curvature
        for kind in ("auto", "empirical", "exact")
    )
    torch.testing.assert_close(automatic, empirical)
    assert _relative(exact, empirical) > 1e-3


@pytest.mark.parametrize("part", ["no_grad", "detach"])
def test_part_that_cannot_be_differentiated_is_refused(part: str) -> None:
    """Its channels would look worthless, and go first."""

    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.head = nn.Linear(4, 7), nn.Linear(7, 5), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.set_grad_enabled(part != "no_grad"):
                x = self.body(self.stem(x).relu()).relu()
            return self.head(x.detach() if part == "detach" else x)

    groups = [
        ChannelGroup("stem", 7, (ChannelPlace("body", "input", range(7), range(7), -1),)),
        ChannelGroup("body", 5, (ChannelPlace("head", "input", range(5), range(5), -1),)),
    ]
    batch = (torch.randn(5, 4), torch.tensor([0, 1, 1, 2, 1]))
    with pytest.raises(UnsupportedModelError, match="no_grad" if part == "no_grad" else r"no detach\(\) behind"):
        collect_damage(Partly(), [batch], groups, progress=False)


def test_input_that_changes_in_place_behind_a_layer_is_named() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x).relu()
            x += self.b(x)
            return self.head(x)

    model = InPlace().requires_grad_(False)
    groups = [ChannelGroup("a", 5, (ChannelPlace("b", "input", range(5), range(5), -1),))]
    with pytest.raises(UnsupportedModelError, match="in place after that layer has read it"):
        collect_damage(model, [(torch.randn(2, 4), torch.tensor([0, 1]))], groups, progress=False)


def test_labels_of_any_integer_type() -> None:
    case = CASES["mlp"]
    model, (x, y) = case.model(), case.batch(5)
    groups = case.plan(model).groups
    tables = [collect_damage(model, [(x, y.to(t))], groups, progress=False).damage for t in (torch.int64, torch.int32)]
    torch.testing.assert_close(*tables, rtol=0, atol=0)


def test_layer_that_is_used_through_its_weights_is_refused() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.other = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(self.body(x).relu(), self.head.weight) + self.other(x)

    groups = [
        ChannelGroup("body", 4, (ChannelPlace("head", "input", range(4), range(4), -1),)),
        ChannelGroup("x", 3, (ChannelPlace("other", "input", range(3), range(3), -1),)),
    ]
    with pytest.raises(UnsupportedModelError, match=r"don't depend on \['head'\].*channels of 'body'"):
        collect_damage(Functional(), [(torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1]))], groups, progress=False)


@pytest.mark.parametrize(("axes", "message"), [((3, 0), "channel_axis=3"), ((1, -3), "sample_axis=-3")])
def test_axes_that_a_layer_does_not_have(axes: tuple[int, int], message: str) -> None:
    model, (channel_axis, sample_axis) = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), axes
    place = ChannelPlace("1", "input", range(4), range(4), channel_axis, sample_axis)
    data = [(torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1]))]
    message = rf"of '1' has shape \(5, 4\), and {message} is none of its 2 axes; expected -2 to 1"
    with pytest.raises(InputError, match=message):
        collect_damage(model, data, [ChannelGroup("0", 4, (place,))], progress=False)
    assert not model[1]._forward_pre_hooks


def test_named_tuples_are_inputs_like_any_tuple() -> None:
    class Pair(NamedTuple):
        x: torch.Tensor
        scale: torch.Tensor

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x * scale).relu())

    groups = [ChannelGroup("body", 4, (ChannelPlace("head", "input", range(4), range(4), -1),))]
    model, x, scale, y = Scaled(), torch.randn(5, 3), torch.rand(5, 1), torch.tensor([0, 1, 1, 0, 1])
    named = collect_damage(model, [(Pair(x, scale), y)], groups, progress=False)
    plain = collect_damage(model, [((x, scale), y)], groups, progress=False)
    torch.testing.assert_close(named.damage, plain.damage, rtol=0, atol=0)
    with pytest.raises(InputError, match="the target is a list that makes no tensor"):
        collect_damage(model, [((x, scale), ["a"] * 5)], groups, progress=False)


def test_batch_statistics_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    groups = [ChannelGroup("0", 4, (ChannelPlace("2", "input", range(4), range(4), channel_axis=-1),))]
    batch = (torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1]))
    with pytest.raises(UnsupportedModelError, match="track_running_stats"):
        collect_damage(model, [batch], groups, progress=False)


def test_time_first_tensors_are_refused() -> None:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(2, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:  # (N, T, C) -> (T, N, C) inside
            return self.head(self.stem(x.transpose(0, 1)).relu()).mean(0)

    groups = [ChannelGroup("stem", 4, (ChannelPlace("head", "input", range(4), range(4), channel_axis=-1),))]
    model, y = TimeFirst(), torch.tensor([0, 1, 2])
    with pytest.raises(UnsupportedModelError, match="depend on sample"):
        collect_damage(model, [(torch.randn(3, 6, 2), y)], groups, progress=False)
    with pytest.raises(UnsupportedModelError, match="told apart"):
        collect_damage(model, [(torch.randn(3, 5, 2), y)], groups, progress=False)
    swapped = [ChannelGroup("stem", 4, (ChannelPlace("head", "input", range(4), range(4), -1, 1),))]
    assert collect_damage(model, [(torch.randn(3, 5, 2), y)], swapped, progress=False).damage.shape == (1, 4)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "nothing in this network"),
        ([ChannelGroup("0", 7, ())], "0 places"),
        ([ChannelGroup("0", 7, (ChannelPlace("9", "input", range(7), range(7)),))], "not in the model"),
        ([ChannelGroup("0", 7, (ChannelPlace("2", "input", range(6), range(6), -1),))], r"channels \[6\] pass no"),
        ([ChannelGroup("0", 7, (ChannelPlace("2", "input", range(7), range(1, 8), -1),))], "expected 0 to 6"),
        ([ChannelGroup("0", 7, (ChannelPlace("2", "input", range(7), range(6), -1),))], "expected as many"),
        (
            [ChannelGroup(n, 7, (ChannelPlace("2", "input", range(7), range(7), -1),)) for n in "00"],
            "two channel groups",
        ),
        ([ChannelGroup(n, 7, (ChannelPlace("2", "input", range(7), range(7), -1),)) for n in "01"], "belongs to two"),
    ],
)
def test_malformed_channel_groups(groups: list[ChannelGroup], message: str) -> None:
    case = CASES["mlp"]
    with pytest.raises(InputError, match=message):
        collect_damage(case.model(), [case.batch(3)], groups, progress=False)


def test_options_that_a_pass_has_no_use_for_are_refused_by_name() -> None:
    case = CASES["mlp"]
    model = case.model()
    groups = case.plan(model).groups
    with pytest.raises(InputError, match=r"collect_damage has no 'max_batch' \(did you mean 'max_batches'\?\)"):
        collect_damage(model, [case.batch(3)], groups, max_batch=3)  # type: ignore[call-arg]
    table = collect_damage(model, [case.batch(3)], groups, progress=False)
    with pytest.raises(InputError, match="measured_change has no 'folder'"):
        measured_change(model, [case.batch(3)], table, folder="a")  # type: ignore[call-arg]
