"""Learned gates and slopes against loops and real pruning, and the importances that take mined samples."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import ChannelGroup, FairtrimError, InputError, UnsupportedModelError
from fairtrim.criteria import GroupSaliency, WorstGroup
from fairtrim.damage.gates import explicit_gates
from fairtrim.data.batches import Batch
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.mining import MinedSamples
from fairtrim.mining.contrastive_gates import channel_costs, gate_slopes, learn_gates, straight_through
from fairtrim.mining.contrastive_objective import ContrastiveObjective, published_upweight
from fairtrim.network.fine_tuning import fine_tune
from fairtrim.network.losses import contrastive_loss, negative_margin
from fairtrim.oracle import oracle_damage
from fairtrim.selection import joint_selection
from fairtrim_adapters.torch_pruning import IMPORTANCES, AccumulatedConfidenceImportance, ContrastiveImportance
from fairtrim_adapters.torch_pruning.graph.plan import plan_of_pruner
from tests.networks import CASES, Case
from tests.snapshot import Snapshot

CPU = torch.device("cpu")
N = 13
FLAGS = torch.arange(N) % 3 == 1


class Keywords(nn.Module):
    """Layers that are called with keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(input=self.body(input=x).relu())


WITHOUT_HEADS = {name: case for name, case in CASES.items() if not case.options(case.model())}
EXACT = {name: case for name, case in WITHOUT_HEADS.items() if case.exact} | {"keywords": Case(Keywords, (4,))}


def _loader(case: Case, batch_size: int = 5) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*case.batch(N)), batch_size=batch_size, shuffle=True)


def _generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _scores(case: Case, model: nn.Module, x: Tensor) -> Tensor:
    output = model(x)
    return case.transform(output) if case.transform else output


def _signs(groups: tuple[ChannelGroup, ...], *, open_: float = 0.7, closed: float = -0.4) -> dict[str, Tensor]:
    """Logits of which every third channel's is negative; distinct."""
    return {
        group.name: torch.tensor(
            [(closed if c % 3 == 1 else open_) * (1 + 0.01 * c + 0.1 * k) for c in range(group.size)]
        ).double()
        for k, group in enumerate(groups)
    }


# Gates ----------------------------------------------------------------------------------------------------


def test_straight_through() -> None:
    """Zeros and ones with P(1) = σ(π); the gradient is that of σ(π), whatever was drawn."""
    logits = torch.tensor([-2.0, 0.0, 1.5, 60.0, -60.0], dtype=torch.float64, requires_grad=True)
    uniform = torch.rand(4001, 5, generator=_generator(), dtype=torch.float64)
    gates = straight_through(logits, uniform)
    assert set(gates.detach().unique().tolist()) == {0.0, 1.0}
    probability = torch.sigmoid(logits.detach())
    torch.testing.assert_close(gates.detach().mean(0), probability, rtol=0, atol=0.03)
    weights = torch.randn(4001, 5, generator=_generator(), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * gates).sum(), logits)
    torch.testing.assert_close(gradient, weights.sum(0) * probability * (1 - probability))


COSTS = {"0": torch.arange(1, 8).double(), "2": torch.tensor([5.0, 1.0, 1.0, 2.0, 9.0])}


@pytest.mark.parametrize("costs", [None, COSTS], ids=["each the same", "given"])
def test_learned_gates_equal_a_loop_by_hand(costs: dict[str, Tensor] | None) -> None:
    """Draws by the objective's weights, one Bernoulli draw a channel and iteration, Adam, Σ of costs = 1."""
    case = CASES["mlp"]
    model, samples = case.model(), IndexedSamples(_loader(case))
    objective = ContrastiveObjective(conflicting=FLAGS, upweight=7.0, contrastive_weight=0.3, temperature=0.2)
    learned = learn_gates(
        model,
        samples,
        case.plan(model).groups,
        objective,
        iterations=8,
        learning_rate=0.2,
        initial=0.4,
        cost_weight=0.9,
        costs=costs,
        random_state=_generator(),
        progress=False,
    )
    generator = _generator()
    names = [group.name for group in case.plan(model).groups]
    pi = {name: torch.full((size,), 0.4, requires_grad=True) for name, size in (("0", 7), ("2", 5))}
    shares = costs or {"0": torch.ones(7), "2": torch.ones(5)}
    optimizer = torch.optim.Adam(pi.values(), lr=0.2)
    passes = (
        entry for _ in range(3) for entry in samples.shuffled(CPU, generator, torch.where(FLAGS, 7.0, 1.0).double())
    )
    for _ in range(8):
        indices, batch = next(passes)
        z = {name: straight_through(pi[name], torch.rand(len(pi[name]), generator=generator)) for name in names}
        hidden = model[3](model[2](z["0"].double() * model[:2](batch.inputs)))  # type: ignore[index]
        features = z["2"].double() * hidden
        loss = F.cross_entropy(model[4](features), batch.target)  # type: ignore[index]
        loss = loss + 0.3 * contrastive_loss(features, batch.target, FLAGS[indices], temperature=0.2)
        total = sum(float(share.sum()) for share in shares.values())
        loss = loss + 0.9 * sum((shares[name] / total * torch.sigmoid(pi[name])).sum() for name in names)
        gradients = torch.autograd.grad(loss, list(pi.values()))
        for logits, gradient in zip(pi.values(), gradients, strict=True):
            logits.grad = gradient
        optimizer.step()
    for name in names:
        torch.testing.assert_close(learned[name], pi[name].detach().double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("share", "weight"), [(0.001, 80), (0.005, 80), (0.01, 50), (0.02, 30), (0.05, 10), (0.4, 10)])
def test_published_sampling_weights(share: float, weight: float) -> None:
    assert published_upweight(share) == pytest.approx(weight)


def test_between_published_shares_the_weight_falls_evenly() -> None:
    """At the geometric mean of two shares it is that of their weights."""
    for (left, right), (high, low) in (((0.005, 0.01), (80, 50)), ((0.02, 0.05), (30, 10))):
        assert published_upweight((left * right) ** 0.5) == pytest.approx((high * low) ** 0.5)


def test_published_weights_are_those_of_the_mined_share() -> None:
    flags = torch.arange(200) < 2
    weights = ContrastiveObjective(conflicting=flags, upweight="published").weights
    torch.testing.assert_close(weights, torch.tensor([50.0] * 2 + [1.0] * 198, dtype=torch.float64))


class Noisy(TensorDataset):
    """Draws from every random state there is."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        x, y = super().__getitem__(index)
        return x + random.random() * 1e-3 + np.random.rand() * 1e-3 + torch.rand(()) * 1e-3, y


def _odd_state(case: Case) -> Any:
    """Mixed flags, a gradient, a frozen parameter, the user's hook."""
    model: Any = case.model().train()
    model.norm.eval()
    x, y = case.batch(4)
    F.cross_entropy(model(x), y).backward()
    model.stem.bias.requires_grad_(False)
    model.head.register_forward_pre_hook(lambda module, args: None)
    return model


OBJECTIVE = ContrastiveObjective(conflicting=FLAGS)


@pytest.mark.parametrize(
    "run",
    [
        lambda m, s, g: learn_gates(m, s, g, OBJECTIVE, iterations=7, learning_rate=0.1, progress=False),
        lambda m, s, g: gate_slopes(m, s, g, OBJECTIVE, progress=False),
        lambda m, s, g: channel_costs(m, g, Batch(s.loader.dataset.tensors[0], torch.zeros(N), None, 0), "macs"),
    ],
    ids=["learn_gates", "gate_slopes", "channel_costs"],
)
def test_weights_statistics_and_flags_stay(run: Callable[..., Any]) -> None:
    case = CASES["residual"]
    model = _odd_state(case)
    samples = IndexedSamples(DataLoader(Noisy(*case.batch(N)), batch_size=5, shuffle=True))
    groups = case.plan(case.model()).groups
    before = Snapshot(model)
    values = run(model, samples, groups)
    before.assert_unchanged()
    assert {name: len(v) for name, v in values.items()} == {group.name: group.size for group in groups}
    assert all(v.dtype == torch.float64 and bool(torch.isfinite(v).all()) for v in values.values())


class Detector(nn.Module):
    """Four channels: the true feature, a shortcut, one that is always 0, and one that nothing consumes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, 4, bias=False), nn.Linear(4, 2)
        with torch.no_grad():
            self.body.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]]))
            self.head.weight.copy_(torch.tensor([[-1.0, -1.0, 1.0, 0.0], [1.0, 1.0, -1.0, 0.0]]))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize("contrastive_weight", [0.0, 0.05])
def test_gates_tell_useful_from_useless_and_harmful_channels(contrastive_weight: float) -> None:
    """Without a cost the gate of what does nothing stays exactly where it began, the shortcut's falls."""
    case = Case(Detector, (2,))
    model = case.model()
    y = torch.arange(60) % 2
    sign = 2.0 * y - 1
    flags = torch.arange(60) % 10 < 2
    x = torch.stack([sign, 2 * torch.where(flags, -sign, sign)], 1).double()
    samples = IndexedSamples(DataLoader(TensorDataset(x, y), batch_size=20))
    objective = ContrastiveObjective(conflicting=flags, upweight=80.0, contrastive_weight=contrastive_weight)
    (group,) = case.plan(model).groups
    learned = learn_gates(
        model, samples, [group], objective, iterations=60, learning_rate=0.1, cost_weight=0.0, progress=False
    )
    useful, shortcut, zero, unread = learned[group.name].tolist()
    assert useful > 2 and shortcut < 0
    assert zero == 1.5
    assert contrastive_weight or unread == 1.5
    slopes = gate_slopes(model, samples, [group], objective, progress=False)[group.name]
    assert slopes[0] > 0 > slopes[1] and slopes[2] == 0  # removing the useful one raises the loss
    with_cost = learn_gates(
        model, samples, [group], objective, iterations=60, learning_rate=0.1, cost_weight=0.1, progress=False
    )
    assert with_cost[group.name][0] > 1.5 > with_cost[group.name][2]


def test_repeats_itself_by_the_generator() -> None:
    case = CASES["plain"]
    model, samples = case.model(), IndexedSamples(_loader(case))
    groups = case.plan(model).groups
    runs = [
        learn_gates(model, samples, groups, OBJECTIVE, iterations=3, random_state=_generator(seed), progress=False)
        for seed in (1, 1, 2)
    ]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not all(torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


# The same thing as removing channels ----------------------------------------------------------------------


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("every", [False, True], ids=["a third closed", "all closed"])
def test_closed_gates_equal_removed_channels(name: str, every: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly the channels with π < 0 go, but every layer (and part behind a split) keeps its best."""
    case = EXACT[name]
    dense = case.model().eval()
    groups = case.plan(dense).groups
    logits = _signs(groups, open_=-0.7) if every else _signs(groups)
    monkeypatch.setattr(
        "fairtrim_adapters.torch_pruning.importances.mined_importances.learn_gates", lambda *a, **k: logits
    )
    model = copy.deepcopy(dense)
    importance = ContrastiveImportance(FLAGS, progress=False, output_transform=case.transform)
    pruner = case.pruner(model, importance)
    importance.fit(pruner, _loader(case))
    for group in importance.negative_groups(pruner):
        group.prune()
    layers = importance.report().layers.set_index("layer")
    gates = {}
    for group in groups:
        kept = logits[group.name] >= 0
        for place in group.places if every else ():
            part = torch.tensor(sorted(set(place.group_channels)))
            kept[part[logits[group.name][part].argmax()]] = True
        gates[group.name] = kept.double()
        assert layers.loc[group.name, "kept"] == int(kept.sum())
    x, _ = case.batch(6)
    with explicit_gates(dense, groups, gates):
        gated = _scores(case, dense, x)
    torch.testing.assert_close(_scores(case, model.eval(), x), gated, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(gated, _scores(case, dense, x))


@pytest.mark.parametrize("name", ["plain", "residual"])
@pytest.mark.parametrize("form", ["gates", "first-order"])
def test_negative_scores_of_a_real_fit_are_removed(name: str, form: Any) -> None:
    """Learned and first-order: what goes is what is negative, and outputs are those with these gates closed."""
    case = CASES[name]
    dense = case.model().eval()
    groups, model = case.plan(dense).groups, copy.deepcopy(dense)
    learning = {"iterations": 40, "learning_rate": 0.2, "cost_weight": 0.0} if form == "gates" else {}
    importance = ContrastiveImportance(FLAGS, form=form, upweight=5.0, progress=False, **learning)
    pruner = case.pruner(model, importance)
    importance.fit(pruner, _loader(case))
    columns = importance.plan_.columns
    gates = {group.name: (importance.selection_.change[columns.section(group.name)] >= 0).double() for group in groups}
    for group in importance.negative_groups(pruner):
        group.prune()
    assert all(bool(gate.any()) for gate in gates.values()) and not all(bool(gate.all()) for gate in gates.values())
    x, _ = case.batch(6)
    with explicit_gates(dense, groups, gates):
        torch.testing.assert_close(model.eval()(x), dense(x), rtol=1e-9, atol=1e-9)


def test_dear_channels_close_all_and_every_layer_keeps_one() -> None:
    case = CASES["residual"]
    model = case.model().eval()
    importance = ContrastiveImportance(FLAGS, iterations=25, learning_rate=0.3, cost_weight=1e4, progress=False)
    pruner = case.pruner(model, importance)
    importance.fit(pruner, _loader(case))
    assert float(importance.selection_.change.max()) < 0
    for group in importance.negative_groups(pruner):
        group.prune()
    assert importance.report().layers["kept"].tolist() == [1, 1]
    assert model(case.batch(3)[0]).shape == (3, 3)


# Costs ----------------------------------------------------------------------------------------------------


def _work(model: nn.Module, x: Tensor) -> float:
    """Multiply-accumulates of one sample, by the definition of each layer."""
    total = 0.0

    def watch(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
        elif module.transposed:  # every input value meets the kernel of every output channel
            total += args[0].numel() * module.out_channels / module.groups * module.weight[0, 0].numel()
        else:
            total += output.numel() * module.in_channels / module.groups * module.weight[0, 0].numel()

    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    handles = [layer.register_forward_hook(watch) for layer in layers]
    model.eval()(x)
    for handle in handles:
        handle.remove()
    return total / len(x)


@pytest.mark.parametrize("kind", ["parameters", "macs"])
@pytest.mark.parametrize("name", WITHOUT_HEADS)
def test_cost_of_a_channel_is_what_goes_with_it(name: str, kind: Any) -> None:
    """The first and the last channel of every group, each removed from the network as it was."""
    case = WITHOUT_HEADS[name]
    model, (x, y) = case.model(), case.batch(2)

    def size(network: nn.Module) -> float:
        return _work(network, x) if kind == "macs" else sum(p.numel() for p in network.parameters())

    costs = channel_costs(model, case.plan(model).groups, Batch(x, y, None, 0), kind)
    assert {key: len(v) for key, v in costs.items()} == {group.name: group.size for group in case.plan(model).groups}
    for layer, of_channels in costs.items():
        for channel in (0, len(of_channels) - 1):
            smaller = copy.deepcopy(model)
            pruner = case.pruner(smaller)
            root = plan_of_pruner(pruner).roots[layer]
            idxs = np.flatnonzero(root.units == channel).tolist()
            pruner.DG.get_pruning_group(root.module, root.pruning_fn, idxs).prune()
            assert float(of_channels[channel]) == size(model) - size(smaller), (layer, channel)


def test_costs_of_a_network_that_is_called_the_user_s_way() -> None:
    """The forward function and what it returns are the user's in counting as in learning."""
    case = CASES["tuple output"]
    dataset = [((x, x), int(y)) for x, y in zip(*case.batch(N), strict=True)]
    importance = ContrastiveImportance(
        FLAGS, cost="macs", iterations=1, forward_fn=lambda m, x: m(x[0] + x[1]), progress=False
    )
    pruner = case.pruner(case.model(), importance)
    loader = DataLoader(dataset, batch_size=5)  # type: ignore[arg-type]
    importance.fit(pruner, loader, output_transform=case.transform)
    assert importance.selection_.change.shape == (5,)


def test_costs_by_hand() -> None:
    """Images of 6 · 6, halved; 3 · 3 kernels over 2, 5 and 4 channels, 9 inputs a channel of the linear layer."""
    case = CASES["plain"]
    model, (x, y) = case.model(), case.batch(2)
    groups, batch = case.plan(model).groups, Batch(x, y, None, 0)
    parameters = {"0": 2 * 9 + 1 + 2 + 4 * 9, "4": 5 * 9 + 1 + 9 * 7, "7": 36 + 1 + 3}
    macs = {"0": 36 * 2 * 9 + 9 * 4 * 9, "4": 9 * 5 * 9 + 9 * 7, "7": 36 + 3}
    for kind, expected in (("parameters", parameters), ("macs", macs)):
        costs = channel_costs(model, groups, batch, kind)  # type: ignore[arg-type]
        assert {key: set(value.tolist()) for key, value in costs.items()} == {k: {v} for k, v in expected.items()}
    with pytest.raises(InputError, match="cost='latency'; expected one of 'parameters', 'macs'"):
        channel_costs(model, groups, batch, "latency")  # type: ignore[arg-type]


# First order ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "plain", "residual", "concatenation", "depthwise"])
@pytest.mark.parametrize("contrastive_weight", [0.0, 0.4])
def test_slopes_equal_finite_differences_of_the_objective(name: str, contrastive_weight: float) -> None:
    """The same draws, all weights equal: −[L(1 + h) − L(1 − h)] / 2h gate by gate; the batches count by size."""
    case = CASES[name]
    model, samples = case.model().eval(), IndexedSamples(_loader(case))
    objective = ContrastiveObjective(
        conflicting=FLAGS, upweight=1.0, contrastive_weight=contrastive_weight, temperature=0.3
    )
    groups = case.plan(model).groups
    slopes = gate_slopes(model, samples, groups, objective, random_state=_generator(), progress=False)
    drawn = list(samples.shuffled(CPU, _generator(), torch.ones(N, dtype=torch.float64)))
    head = case.head(model)

    def loss(gates: dict[str, Tensor]) -> float:
        total = torch.zeros((), dtype=torch.float64)
        for indices, batch in drawn:
            seen: list[Tensor] = []
            with explicit_gates(model, groups, gates), torch.no_grad():
                handle = head.register_forward_hook(lambda module, args, output, seen=seen: seen.append(args[0]))
                scores = model(batch.inputs)
                handle.remove()
            value = F.cross_entropy(scores, batch.target)
            if contrastive_weight:
                contrast = contrastive_loss(seen[0], batch.target, FLAGS[indices], temperature=0.3)
                value = value + contrastive_weight * contrast
            total += value * len(batch) / N
        return float(total)

    for group in groups:
        for channel in range(group.size):
            at = []
            for step in (1e-5, -1e-5):
                gates = {g.name: torch.ones(g.size, dtype=torch.float64) for g in groups}
                gates[group.name][channel] += step
                at.append(loss(gates))
            slope = float(slopes[group.name][channel])
            assert slope == pytest.approx((at[1] - at[0]) / 2e-5, rel=1e-4, abs=1e-6), (group.name, channel)


def test_slopes_of_one_large_batch_equal_autograd() -> None:
    """All samples in one batch, drawn by weight: the mean of the drawn losses, once through autograd."""
    case = CASES["residual"]
    model, samples = case.model().eval(), IndexedSamples(_loader(case, batch_size=N))
    groups = case.plan(model).groups
    objective = ContrastiveObjective(conflicting=FLAGS, upweight=5.0, contrastive_weight=0.0, loss_fn=negative_margin)
    slopes = gate_slopes(model, samples, groups, objective, random_state=_generator(), progress=False)
    ((_, batch),) = samples.shuffled(CPU, _generator(), torch.where(FLAGS, 5.0, 1.0).double())
    gates = {g.name: torch.ones(g.size, dtype=torch.float64, requires_grad=True) for g in groups}
    with explicit_gates(model, groups, gates):
        gradients = torch.autograd.grad(negative_margin(model(batch.inputs), batch.target), list(gates.values()))
    for name, gradient in zip(gates, gradients, strict=True):
        torch.testing.assert_close(slopes[name], -gradient, rtol=1e-5, atol=1e-7)


def test_forms_of_the_importance() -> None:
    """Its scores are the slopes, or their magnitudes; the mined set may be flags or what a miner found."""
    case = CASES["plain"]
    model = case.model()
    groups, samples = case.plan(model).groups, IndexedSamples(_loader(case))
    mined = MinedSamples(FLAGS.double(), case.batch(N)[1], FLAGS)
    slopes = gate_slopes(model, samples, groups, OBJECTIVE, random_state=_generator(0), progress=False)
    expected = torch.cat([slopes[group.name] for group in groups])
    for form, of_form in (("first-order", expected), ("first-order-magnitude", expected.abs())):
        for given in (FLAGS, mined):
            importance = ContrastiveImportance(given, form=form, progress=False)  # type: ignore[arg-type]
            importance.fit(case.pruner(case.model(), importance), _loader(case))
            assert torch.equal(importance.selection_.change, of_form)
            assert importance.selection_.scores.argsort().tolist() == of_form.argsort().tolist()


# In Torch-Pruning's pruner -------------------------------------------------------------------------------------

MAKERS: dict[str, Callable[..., Any]] = {
    "gates": lambda **k: ContrastiveImportance(FLAGS, iterations=4, **k),
    "gates, parameters": lambda **k: ContrastiveImportance(FLAGS, iterations=4, cost="parameters", **k),
    "gates, macs": lambda **k: ContrastiveImportance(FLAGS, iterations=4, cost="macs", **k),
    "first order": lambda **k: ContrastiveImportance(FLAGS, form="first-order", **k),
    "magnitude": lambda **k: ContrastiveImportance(FLAGS, form="first-order-magnitude", **k),
    "accumulated confidence": lambda **k: AccumulatedConfidenceImportance(FLAGS, **k),
    "accumulated confidence, single": lambda **k: AccumulatedConfidenceImportance(FLAGS, selection="single", **k),
}


@pytest.mark.parametrize("mode", ["local", "global", "iterative"])
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("name", ["mlp", "plain", "residual", "tuple output"])
def test_prunes_what_the_host_prunes(name: str, maker: str, mode: str) -> None:
    case = CASES[name]
    options = {"global_pruning": mode != "local", "iterative_steps": 2 if mode == "iterative" else 1}
    ours, theirs = case.model(), case.model()
    importance = MAKERS[maker](output_transform=case.transform, progress=False)
    pruner = case.pruner(ours, importance, **options)
    for _ in range(pruner.iterative_steps):
        importance.fit(pruner, _loader(case))
        pruner.step()
    report = importance.report()
    assert report.skipped == [] and report.layers["asked"].tolist() == report.layers["removed"].tolist()
    assert "skipped by Torch-Pruning: none" in str(report)
    assert ("conflicting" in str(report)) == maker.startswith("accumulated")
    if mode == "local":
        case.pruner(theirs, tp.importance.GroupMagnitudeImportance()).step()
        assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    elif mode == "global":
        total = sum(group.size for group in case.plan(theirs).groups)
        assert report.layers["removed"].sum() == total - int(total * 0.6)
    assert _scores(case, ours, case.batch(4)[0]).shape == (4, 3)


def test_names() -> None:
    assert IMPORTANCES["contrastive"] is ContrastiveImportance
    assert IMPORTANCES["accumulated-confidence"] is AccumulatedConfidenceImportance


def test_an_importance_that_collects_by_itself() -> None:
    case = CASES["plain"]
    for maker in MAKERS.values():
        model = case.model()
        importance = maker(model=model, loader=_loader(case), progress=False)
        case.pruner(model, importance).step()
        assert (model[0].out_channels, model[4].out_channels, model[7].out_features) == (3, 2, 4)  # type: ignore


@pytest.mark.parametrize("maker", MAKERS)
def test_fit_leaves_no_trace(maker: str) -> None:
    case = CASES["residual"]
    model = _odd_state(case)
    importance = MAKERS[maker](progress=False)
    pruner = case.pruner(model, importance)  # Torch-Pruning puts the network in eval mode when it traces
    before = Snapshot(model)
    importance.fit(pruner, DataLoader(Noisy(*case.batch(N)), batch_size=5, shuffle=True))
    before.assert_unchanged()


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_accumulated_confidence_importance_equals_the_oracle(name: str) -> None:
    """First order of the negative margin, Δ_mined − β Δ_others; of cross-entropy with the Fisher information too."""
    case = CASES[name]
    model, (x, y) = case.model(), case.batch(N)
    groups = case.plan(model).groups
    data = [(x, y, ["conflicting" if flag else "others" for flag in FLAGS.tolist()])]
    margin = oracle_damage(model, data, groups, loss_fn=negative_margin)
    fisher = oracle_damage(model, data, groups)
    first_order = -(margin.slope[0] - 0.4 * margin.slope[1])
    for loss_fn, expected in ((None, first_order), (F.cross_entropy, fisher.damage[0] - 0.4 * fisher.damage[1])):
        given = {"loss_fn": loss_fn} if loss_fn else {}
        importance = AccumulatedConfidenceImportance(FLAGS, beta=0.4, selection="single", progress=False, **given)
        importance.fit(case.pruner(model, importance), _loader(case))
        torch.testing.assert_close(importance.selection_.change, expected, rtol=1e-6, atol=1e-10)
    joint = AccumulatedConfidenceImportance(FLAGS, beta=0.4, loss_fn=F.cross_entropy, progress=False)
    joint.fit(case.pruner(model, joint), _loader(case))
    assert joint._table is not None
    torch.testing.assert_close(joint._table.interactions, fisher.interactions, rtol=1e-6, atol=1e-10)
    plan = joint.plan_
    again = joint_selection(fisher, joint.criterion, pools=plan.pools, floors=plan.floors)
    assert joint.selection_.order.tolist() == again.order.tolist()


def test_accumulated_confidence_importance_takes_criterion_and_loss() -> None:
    """With cross-entropy and the worst group it is the damage table's own criterion on mined and other samples."""
    case = CASES["plain"]
    model, (x, y) = case.model(), case.batch(N)
    data = [(x, y, ["conflicting" if flag else "others" for flag in FLAGS.tolist()])]
    table = oracle_damage(model, data, case.plan(model).groups)
    for criterion in (WorstGroup(), GroupSaliency("conflicting", "others", 0.2)):
        importance = AccumulatedConfidenceImportance(
            FLAGS, criterion=criterion, selection="single", loss_fn=F.cross_entropy, progress=False
        )
        importance.fit(case.pruner(model, importance), _loader(case))
        torch.testing.assert_close(importance.selection_.change, criterion.score(table), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("selection", ["joint", "single"])
def test_negative_damage_is_removed(selection: Any) -> None:
    case = CASES["residual"]
    model = case.model()
    importance = AccumulatedConfidenceImportance(FLAGS, selection=selection, progress=False)
    pruner = case.pruner(model, importance)
    importance.fit(pruner, _loader(case))
    columns = importance._negative()
    for group in importance.negative_groups(pruner):
        group.prune()
    removed = importance.report().layers["removed"].sum()
    assert 0 < removed == len(columns) < len(importance.plan_.columns)
    if selection == "single":
        assert removed == int((importance.selection_.change < 0).sum())


# Refusals -------------------------------------------------------------------------------------------------


class LogProbabilities(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu()).log_softmax(1)


NONE_MINED = MinedSamples(torch.zeros(N), torch.zeros(N).long(), torch.zeros(N, dtype=torch.bool))
FAULTS: dict[str, tuple[Callable[[], Any], type[FairtrimError], str]] = {
    "flags of another length": (
        lambda: ContrastiveImportance(FLAGS[:-2], progress=False),
        InputError,
        "11 mined flags for 13 samples",
    ),
    "flags of another length, first order": (
        lambda: ContrastiveImportance(FLAGS[:-2], form="first-order", progress=False),
        InputError,
        "11 mined flags for 13 samples",
    ),
    "flags of another length, damage": (
        lambda: AccumulatedConfidenceImportance(torch.cat([FLAGS, FLAGS]), progress=False),
        InputError,
        "26 mined flags for 13 samples",
    ),
    "none mined": (lambda: ContrastiveImportance(NONE_MINED, progress=False), InputError, "no sample was mined"),
    "all mined": (
        lambda: ContrastiveImportance(torch.ones(N).bool(), form="first-order", progress=False),
        InputError,
        "all 13 samples were mined",
    ),
    "none mined, damage": (
        lambda: AccumulatedConfidenceImportance(FLAGS & False, progress=False),
        InputError,
        "no sample was mined",
    ),
    "NaN loss": (
        lambda: ContrastiveImportance(FLAGS, loss_fn=lambda s, t: s.sum() * torch.nan, progress=False),
        InputError,
        "the loss of batch 0 is nan; expected a finite one",
    ),
    "unknown layer": (
        lambda: ContrastiveImportance(FLAGS, feature_layer="neck", progress=False),
        InputError,
        "feature_layer='neck' is not a module",
    ),
    "features not found": (
        lambda: ContrastiveImportance(FLAGS, progress=False),
        UnsupportedModelError,
        "name the layer whose inputs they are with feature_layer=",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_errors_leave_no_trace(name: str) -> None:
    make, error, message = FAULTS[name]
    case = Case(LogProbabilities, (4,))
    model = case.model()
    importance = make()
    if name != "features not found" and name != "unknown layer" and hasattr(importance, "feature_layer"):
        importance.feature_layer = "head"
    pruner = case.pruner(model, importance)
    before = Snapshot(model)
    with pytest.raises(error, match=message):
        importance.fit(pruner, _loader(case))
    before.assert_unchanged()
    assert not hasattr(importance, "selection_")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContrastiveImportance(FLAGS, form="hard"), "form='hard'; expected one of 'gates', 'first-order', "),  # type: ignore
        (lambda: ContrastiveImportance(FLAGS, cost="latency"), "cost='latency'; expected one of 'channels'"),  # type: ignore
        (lambda: ContrastiveImportance(FLAGS, upweight=0.0), "upweight=0.0"),
        (lambda: ContrastiveImportance(FLAGS, contrastive_weight=-0.1), "contrastive_weight=-0.1"),
        (lambda: ContrastiveImportance(FLAGS, iterations=0), "iterations=0"),
        (lambda: ContrastiveImportance(FLAGS, learning_rate=0.0), "learning_rate=0.0"),
        (lambda: ContrastiveImportance(FLAGS, cost_weight=-1.0), "cost_weight=-1.0"),
        (lambda: AccumulatedConfidenceImportance(FLAGS, selection="both"), "selection='both'"),  # type: ignore
        (lambda: AccumulatedConfidenceImportance(FLAGS, beta=1.0), "beta=1.0"),
        (lambda: ContrastiveImportance(FLAGS, normalizer="mean"), "normalizer='mean' .*reverses"),
        (lambda: ContrastiveImportance(FLAGS, epochs=3), r"unknown argument 'epochs'"),
        (lambda: ContrastiveObjective(conflicting=FLAGS, upweight=-1.0), "upweight=-1.0"),
    ],
)
def test_wrong_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_data_without_indices() -> None:
    case = CASES["mlp"]
    for make in (ContrastiveImportance, AccumulatedConfidenceImportance):
        importance = make(FLAGS, progress=False)
        with pytest.raises(InputError, match="expected a DataLoader"):
            importance.fit(case.pruner(case.model(), importance), [case.batch(N)])


def test_gates_after_fine_tuning_on_the_same_objective() -> None:
    """The tap finds features in a gated network, and none of its hooks is left behind."""
    case = CASES["residual"]
    model = case.model()
    samples = IndexedSamples(_loader(case))
    fine_tune(model, samples, conflicting=FLAGS, contrastive_weight=0.1, progress=False)
    learn_gates(model, samples, case.plan(model).groups, OBJECTIVE, iterations=2, progress=False)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
