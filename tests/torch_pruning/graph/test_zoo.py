"""Every layer and coupling of the zoo under every criterion, and against removal for real."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import ChannelGroup, InputError, UnsupportedModelError, collect_damage, load_pruned, save_pruned
from fairtrim.damage.weight_saliency import collect_weight_saliency
from fairtrim.oracle import explicit_gates, oracle_damage, oracle_squared_gradients
from fairtrim_adapters.torch_pruning import (
    IMPORTANCES,
    ChannelImportance,
    GroupSaliencyImportance,
    describe_layer,
    forget_layer,
    traceable,
)
from fairtrim_adapters.torch_pruning.graph.corrections import correct_graph, correct_group
from fairtrim_adapters.torch_pruning.graph.layers import parameter_axes
from fairtrim_adapters.torch_pruning.graph.plan import PruningPlan, plan_of_pruner
from tests.zoo import ALL, LEFT, LEFT_ON_TRIAL, NETWORKS, REFUSED, SKIPPED, Network

N_SAMPLES = 6
FLAGS = torch.tensor([True, False, False, True, False, False])
CRITERIA: dict[str, Any] = {
    "group-saliency": lambda **k: IMPORTANCES["group-saliency"](privileged=1, **k),
    "worst-group": lambda **k: IMPORTANCES["worst-group"](**k),
    "mean-damage": lambda **k: IMPORTANCES["mean-damage"](**k),
    "tail-risk": lambda **k: IMPORTANCES["tail-risk"](**k),
    "share-balanced": lambda **k: IMPORTANCES["share-balanced"](**k),
    "accumulated-confidence": lambda **k: IMPORTANCES["accumulated-confidence"](FLAGS, **k),
    "contrastive": lambda **k: IMPORTANCES["contrastive"](FLAGS, form="first-order", **k),
    "group-saliency of weights": lambda **k: GroupSaliencyImportance(1, level="weight", selection="single", **k),
}
MODES: dict[str, dict[str, Any]] = {
    "local": {},
    "global": {"global_pruning": True},
    "iterative": {"iterative_steps": 2, "pruning_ratio": 0.5},
}
ON_DATASETS = "accumulated-confidence", "contrastive"  # they read a dataset by index


def _loader(case: Network, criterion: str = "") -> Any:
    x, y = case.batch(N_SAMPLES)
    a = torch.arange(N_SAMPLES) % 3
    if criterion in ON_DATASETS:
        return DataLoader(TensorDataset(x, y), batch_size=4)
    return [(x[:4], y[:4], a[:4]), (x[4:], y[4:], a[4:])]


def _scores(case: Network, model: nn.Module, x: Tensor) -> Tensor:
    output = model(x)
    return case.transform(output) if case.transform else output


def _widths(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def _removed(pruner: tp.pruner.BasePruner) -> dict[tuple[str, bool], int]:
    """How many channels went from each root; what is behind a split depends on which."""
    return {(name, outwards): len(idxs) for name, outwards, idxs in pruner.pruning_history()}


def _warning(case: Network) -> Any:
    return pytest.warns(UserWarning, match=case.message) if case.message else contextlib.nullcontext()


class Quota:
    """An importance with scores that mean nothing: the number of channels that go is Torch-Pruning's own.

    Torch-Pruning's magnitude criterion can't tell it everywhere: it fails on a root whose indices repeat, and on what
    its graph or functions get wrong. These are put right first, as fairtrim does.
    """

    def __init__(self, left: dict[str, str]) -> None:
        self._left = left

    def __call__(self, group: tp.Group) -> Tensor | None:
        correct_graph(group._DG)
        correct_group(group)
        dep = group[0].dep
        outwards = group._DG.is_out_channel_pruning_fn(dep.handler)
        name = group._DG._module2name[dep.target.module] + ("" if outwards else " (input)")
        return None if name in self._left else torch.arange(len(group[0].idxs), dtype=torch.float64) * 0.618 % 1


def _state(model: nn.Module) -> list[Any]:
    """What fit must leave: the very tensors with their values, flags, gradients and hooks."""
    tensors = [*model.parameters(), *model.buffers()]
    flags = [module.training for module in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    parameters = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    # instance norms of older torch count a use of their statistics as a change; values are compared by the caller
    return [[id(t) for t in tensors], [p._version for p in model.parameters()], flags, hooks, parameters]


def _slices_twice() -> bool:
    part = (torch.ones(2, 3, requires_grad=True) * 1)[:, :2]
    return type(part.grad_fn.next_functions[0][0]) is type(part.grad_fn)  # type: ignore[union-attr]


QUICK = "worst-group", "share-balanced", "contrastive", "accumulated-confidence", "group-saliency of weights"


def _marks(criterion: str, mode: str) -> list[Any]:
    """The quick part is one criterion of each kind in one mode, and one criterion in every mode."""
    quick = criterion in QUICK if mode == "local" else criterion == "worst-group"
    return [] if quick else [pytest.mark.slow]


def _modes(n: int, criterion: str) -> list[str]:
    """One criterion in every mode; the others in one of the rest by turns, and local where they are of another kind."""
    local, *others = MODES
    if criterion == "worst-group":
        return [local, *others]
    if criterion == "share-balanced":  # an order of shares
        return [local]
    in_turn = others[(n + list(CRITERIA).index(criterion)) % len(others)]
    return [local, in_turn] if criterion in QUICK else [in_turn]


MATRIX = [
    pytest.param(case, criterion, mode, id=f"{name}-{criterion}-{mode}", marks=_marks(criterion, mode))
    for n, (name, case) in enumerate({**ALL, **LEFT}.items())
    for criterion in CRITERIA
    for mode in _modes(n, criterion)
    if name in ALL or not _marks(criterion, mode)
]


@pytest.mark.parametrize(("case", "criterion", "mode"), MATRIX)
def test_prunes_with_any_criterion(case: Network, criterion: str, mode: str, tmp_path: Path) -> None:
    if case is ALL["sliced"] and mode == "iterative" and _slices_twice():
        pytest.skip("this torch records x[:, a:b] as two slices, so a second step leaves it, with a warning")
    model, options = case.model().train(), MODES[mode]
    quota = copy.deepcopy(model)
    importance: ChannelImportance = CRITERIA[criterion](progress=False, output_transform=case.transform)
    pruner = case.pruner(model, importance, **options)
    model.train()  # Torch-Pruning's trace leaves it in eval mode
    before, values = _state(model), copy.deepcopy(model.state_dict())
    for step in range(pruner.iterative_steps):
        with _warning(case):
            importance.fit(pruner, _loader(case, criterion))
        assert bool(torch.isfinite(importance.selection_.scores).all())
        if step == 0:
            assert _state(model) == before
            for name, value in model.state_dict().items():
                torch.testing.assert_close(value, values[name], rtol=0, atol=0)
            n_units = sum(importance.plan_.columns.sizes.values())
        pruner.step()
    if mode == "local":
        of_host = case.pruner(quota, Quota(importance.plan_.unscored))
        of_host.step()
        assert _removed(pruner) == _removed(of_host)
        assert _widths(model) != _widths(case.model())
    report = importance.report()
    layers = report.layers
    assert report.skipped == []
    assert layers["asked"].tolist() == layers["removed"].tolist()
    if mode == "global":
        assert layers["removed"].sum() == n_units - int(n_units * 0.6)
    model.eval()
    x, y = case.batch(4)
    scores = _scores(case, model, x)
    F.cross_entropy(scores, y).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) > 0 and all(bool(torch.isfinite(g).all()) for g in gradients)
    save_pruned(tmp_path / "pruned.safetensors", model)
    fresh = load_pruned(tmp_path / "pruned.safetensors", case.model(seed=5)).eval()
    torch.testing.assert_close(_scores(case, fresh, x), scores, rtol=0, atol=0)


# Against removal for real --------------------------------------------------------------------------------------


def _remove(pruner: tp.pruner.BasePruner, plan: PruningPlan, name: str, units: Any) -> None:
    root = plan.roots[name]
    idxs = np.flatnonzero(np.isin(root.units, list(units))).tolist()
    group = pruner.DG.get_pruning_group(root.module, root.pruning_fn, idxs)
    correct_group(group)
    group.prune()


def _alternate(group: ChannelGroup) -> list[int]:
    return list(range(0, group.size - 1, 2))


EXACT = [pytest.param(case, id=name) for name, case in {**ALL, **LEFT}.items() if case.exact]


@pytest.mark.parametrize("case", EXACT)
def test_closed_gates_equal_removal(case: Network) -> None:
    """Two steps: what Torch-Pruning maps after the first must be right too."""
    model = case.model().eval()
    pruner = case.pruner(model, iterative_steps=2)
    x = case.batch(12)[0]
    for _ in range(2):
        with _warning(case):
            plan = plan_of_pruner(pruner)
        gates = {group.name: torch.ones(group.size, dtype=torch.float64) for group in plan.groups}
        for group in plan.groups:
            gates[group.name][_alternate(group)] = 0
        with torch.no_grad():
            with explicit_gates(model, plan.groups, gates):
                gated = _scores(case, model, x)
            assert bool((gated != _scores(case, model, x)).any())
            for group in plan.groups:
                if _alternate(group):
                    _remove(pruner, plan, group.name, _alternate(group))
            torch.testing.assert_close(gated, _scores(case, model, x), rtol=1e-9, atol=1e-11)
        pruner.current_step += 1


@pytest.mark.parametrize("few", [False, True], ids=["half", "all but three"])
@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in {**ALL, **LEFT}.items()])
def test_removal_takes_the_listed_slices(case: Network, few: bool) -> None:
    """The parameters of a pruned network are those of the dense one without the slices that a group lists."""
    with _warning(case):
        names = [group.name for group in case.plan(case.model()).groups]
    for name in names:
        model = case.model()
        pruner = case.pruner(model)
        with _warning(case):
            plan = plan_of_pruner(pruner)
        group = next(group for group in plan.groups if group.name == name)
        closed = list(range(group.size - 3)) if few else _alternate(group)
        parts = [set(floor.channels) for floor in plan.floors if floor.layer == name and floor.channels is not None]
        if not closed or any(part <= set(closed) for part in parts):
            continue  # what one reader takes would be gone altogether
        expected = {key: p.detach().clone() for key, p in model.named_parameters()}
        gone: dict[tuple[str, int], set[int]] = {}
        for place in group.parameters:
            axis = place.axis % expected[place.parameter].ndim
            slices = [c for c, unit in zip(place.channels, place.group_channels, strict=True) if unit in closed]
            gone.setdefault((place.parameter, axis), set()).update(slices)
        for (key, axis), slices in gone.items():
            kept = [k for k in range(expected[key].shape[axis]) if k not in slices]
            expected[key] = expected[key].index_select(axis, torch.tensor(kept))
        _remove(pruner, plan, name, closed)
        pruned = dict(model.named_parameters())
        for key, value in expected.items():
            torch.testing.assert_close(pruned[key].detach(), value, rtol=0, atol=0, msg=lambda m, k=key: f"{k}: {m}")
        _scores(case, model, case.batch(2)[0])


def test_whole_heads() -> None:
    """A unit is a head; the network is told how many are left."""
    case = NETWORKS["unbound"]
    model = case.model().eval()
    pruner = case.pruner(
        model, prune_num_heads=True, prune_head_dims=False, head_pruning_ratio=0.5, ignored_layers=[model.head]
    )
    plan = plan_of_pruner(pruner)
    group = next(group for group in plan.groups if group.name == "project (input)")
    assert group.size == 2
    x, gates = case.batch(3)[0], {g.name: torch.ones(g.size, dtype=torch.float64) for g in plan.groups}
    gates[group.name][0] = 0
    with torch.no_grad():
        with explicit_gates(model, plan.groups, gates):
            gated = model(x)
        _remove(pruner, plan, group.name, [0])
        model.num_heads = 1
        torch.testing.assert_close(gated, model(x), rtol=1e-9, atol=1e-11)


# Against slow sums ---------------------------------------------------------------------------------------------


# those of tests/networks.py are in test_collection.py and test_weight_saliency.py
ORACLE = [pytest.param(case, id=name) for name, case in {**NETWORKS, **LEFT}.items()]


@pytest.mark.parametrize("case", ORACLE)
def test_table_equals_the_oracle(case: Network) -> None:
    model = case.model()
    with _warning(case):
        groups = case.plan(model).groups
    fast = collect_damage(model, _loader(case), groups, interactions=True, progress=False)
    slow = oracle_damage(model, _loader(case), groups)
    for name in ("loss", "slope", "curvature", "interactions"):
        expected = getattr(slow, name)
        scale = float(expected.abs().max())
        torch.testing.assert_close(getattr(fast, name), expected, rtol=1e-9, atol=1e-9 * scale)
    assert bool((fast.damage != 0).any())


@pytest.mark.parametrize("case", ORACLE)
def test_weight_table_equals_the_oracle(case: Network) -> None:
    """Σ ½ θ² h over the slices that removal takes."""
    model = case.model()
    with _warning(case):
        groups = case.plan(model).groups
    fast = collect_weight_saliency(model, _loader(case), groups, progress=False)
    _, squares = oracle_squared_gradients(model, _loader(case))
    parameters = dict(model.named_parameters())
    for group in groups:
        expected = torch.zeros(len(fast.sensitive_groups), group.size, dtype=torch.float64)
        for place in group.parameters:
            of_weights = 0.5 * parameters[place.parameter].detach() ** 2 * squares[place.parameter]
            axis = place.axis % parameters[place.parameter].ndim + 1
            for channel, unit in zip(place.channels, place.group_channels, strict=True):
                expected[:, unit] += of_weights.select(axis, channel).reshape(len(of_weights), -1).sum(1)
        torch.testing.assert_close(fast[group.name], expected, rtol=1e-8, atol=1e-12)


# What is refused, and what Torch-Pruning does by itself ---------------------------------------------------------------


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in REFUSED.items()])
def test_refused_before_anything_changes(case: Network) -> None:
    model = case.model()
    importance = IMPORTANCES["worst-group"](progress=False)
    pruner = case.pruner(model, importance)
    before = _state(model)
    with pytest.raises(UnsupportedModelError, match=case.message):
        importance.fit(pruner, _loader(case))
    assert _state(model) == before
    collecting = IMPORTANCES["worst-group"](model=model, loader=_loader(case), progress=False)
    with pytest.raises(UnsupportedModelError, match=case.message):
        case.pruner(model, collecting).step()
    assert _widths(model) == _widths(case.model())


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in LEFT_ON_TRIAL.items()])
def test_what_a_look_at_the_network_tells_is_left(case: Network) -> None:
    model = case.model()
    importance = IMPORTANCES["worst-group"](progress=False)
    pruner = case.pruner(model, importance)
    before, x = _state(model), case.batch(4)[0]
    with pytest.warns(UserWarning, match=case.message):
        importance.fit(pruner, _loader(case))
    assert _state(model) == before
    assert len(importance.plan_.unscored) >= 1 and len(importance.plan_.groups) >= 1
    pruner.step()
    assert _widths(model) != _widths(case.model())
    assert not {name for name, _, _ in pruner.pruning_history()} & set(importance.plan_.unscored)
    for training in (False, True):
        assert _scores(case, model.train(training), x).shape == (4, 3)


FAULTS = {name: case for name, case in {**ALL, **LEFT, **LEFT_ON_TRIAL, **REFUSED}.items() if case.alone}


WRONG = {"concatenated input, first": ("stem", [1])}
WRONG["concatenated input, on both sides"] = ("stem", [1])
WRONG["channel shuffle"] = ("a", [1, 5])  # the same channel of both convolution groups


@pytest.mark.parametrize("name", FAULTS)
def test_the_host_alone(name: str) -> None:
    """The faults that fairtrim works around are there; where a release mends one, this test tells."""
    case = FAULTS[name]
    model = case.model().eval()
    x = case.batch(4)[0]
    untraced = Network(**{**vars(case), "traced": False})
    if case.alone == "is wrong":
        layer, channels = WRONG[name]
        dense = copy.deepcopy(model)
        pruner = untraced.pruner(model)
        pruner.DG.get_pruning_group(model.get_submodule(layer), tp.prune_conv_out_channels, channels).prune()
        with torch.no_grad():
            for parameter in dense.get_submodule(layer).parameters():
                parameter[channels] = 0  # relu(0) = 0: the channel is gone
            assert not torch.allclose(dense(x), model(x))
        return
    with pytest.raises((AssertionError, AttributeError, IndexError, KeyError, RuntimeError, UserWarning)):
        steps = 2 if case.alone == "fails later" else 1
        importance = tp.importance.GroupMagnitudeImportance()
        pruner = untraced.pruner(model, importance, iterative_steps=steps, pruning_ratio=0.2 + 0.2 * steps)
        for _ in range(steps):
            pruner.step()
        model(x)


def test_the_host_alone_mixes_up_the_weights_of_a_layer_norm() -> None:
    """It keeps the channels in the order of a set: 8, 9, 7."""
    norm = nn.LayerNorm(10)
    nn.init.uniform_(norm.weight)
    last = norm.weight.detach()[7:].clone()
    tp.prune_layernorm_out_channels(norm, list(range(7)))
    assert sorted(norm.weight.tolist()) == sorted(last.tolist()) and norm.weight.tolist() != last.tolist()


def test_the_host_alone_breaks_the_outputs_of_an_lstm() -> None:
    model = NETWORKS["lstm"].make().float()
    graph = tp.DependencyGraph().build_dependency(model, torch.randn(2, 5, 3))
    prune = graph.get_pruner_of_module(model.recurrent).prune_out_channels
    with pytest.raises((IndexError, RuntimeError)):
        graph.get_pruning_group(model.recurrent, prune, [1]).prune()
        model(torch.randn(2, 5, 3))


# Particular cases ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SKIPPED)
def test_what_goes_all_at_once_is_skipped(name: str) -> None:
    case = SKIPPED[name]
    model = case.model()
    importance = IMPORTANCES["worst-group"](model=model, loader=_loader(case), progress=False)
    case.pruner(model, importance).step()
    assert importance.report().skipped == ["body.0"]
    assert model.body[0].out_channels == case.model().body[0].out_channels
    assert _widths(model) != _widths(case.model())
    model(case.batch(2)[0])


def test_tied_weights_come_out_equal_and_untied() -> None:
    case = NETWORKS["tied words"]
    model = case.model()
    importance = IMPORTANCES["worst-group"](model=model, loader=_loader(case), progress=False)
    case.pruner(model, importance).step()
    assert model.head.weight is not model.words.weight and model.words.embedding_dim == 3
    torch.testing.assert_close(model.head.weight, model.words.weight, rtol=0, atol=0)


def test_a_stream_is_looked_at_and_loses_no_batch() -> None:
    case = LEFT_ON_TRIAL["channel shuffle"]
    model = case.model()
    importance = IMPORTANCES["mean-damage"](progress=False)
    with pytest.warns(UserWarning, match=case.message):
        importance.fit(case.pruner(model, importance), iter(_loader(case)))
    assert importance.damage_.counts.sum() == N_SAMPLES


def test_grouped_convolution_keeps_two_channels_of_a_group_for_a_later_step() -> None:
    case = ALL["grouped"]
    model = case.model()
    importance = IMPORTANCES["worst-group"](progress=False)
    steps = {"iterative_steps": 2, "iterative_pruning_ratio_scheduler": lambda ratio, _: [0.0, ratio, ratio]}
    pruner = case.pruner(model, importance, pruning_ratio_dict={model[2]: 0.6}, **steps)
    with pytest.warns(UserWarning, match=r"2: 3 of 4 channels of each convolution group .* depthwise"):
        importance.fit(pruner, _loader(case))
    pruner.step()
    assert model[2].out_channels == 8
    model(case.batch(2)[0])


@pytest.mark.parametrize("keywords", [False, True])
def test_packed_and_named_inputs_are_traced(keywords: bool) -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.recurrent, self.head = nn.Linear(3, 7), nn.GRU(7, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            if keywords:
                return self.head(self.recurrent(input=x)[1][0])
            packed = nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), 5), batch_first=True)
            return self.head(self.recurrent(packed)[1][0])

    model = Packed()
    with traceable(model) as pruners:
        graph = tp.DependencyGraph().build_dependency(model, torch.randn(2, 5, 3), customized_pruners=pruners)
    graph.get_pruning_group(model.stem, tp.prune_linear_out_channels, [0, 3]).prune()
    assert model.recurrent.input_size == 5
    model(torch.randn(2, 5, 3)).sum().backward()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer_type": "Conv1D"}, "layer_type='Conv1D'; expected a subclass"),
        ({"channel_axis": "last"}, "channel_axis='last'; expected an integer"),
        ({"channel_axis": 0}, "both 0; expected different axes"),
        ({"input_parameters": {"weight": "in"}}, "input_parameters holds"),
    ],
)
def test_wrong_descriptions(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        describe_layer(**{"layer_type": nn.Bilinear, **arguments})
    with pytest.raises(InputError, match="was not described"):
        forget_layer(nn.Bilinear)


def test_description_of_a_parameter_that_is_not_there() -> None:
    describe_layer(nn.Bilinear, input_parameters={"weigth": 1})
    try:
        with pytest.raises(InputError, match="'weigth', which it doesn't have"):
            parameter_axes(nn.Bilinear(2, 3, 4), consumer=True)
    finally:
        forget_layer(nn.Bilinear)
