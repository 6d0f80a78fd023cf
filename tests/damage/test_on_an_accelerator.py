"""Every function of the room on a device other than the CPU: the same results, few waits and copies, no float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import ChannelGroup, ChannelPlace, InputError, collect_damage
from fairtrim.damage import estimate_scoring, side_by_side
from fairtrim.damage.channel_costs import ChannelCosts, weight_uses
from fairtrim.damage.channel_groups import ParameterPlace
from fairtrim.damage.gates import _over_positions, explicit_gates
from fairtrim.damage.input_moments import input_moments
from fairtrim.damage.loss_expansion import softmax_factor
from fairtrim.damage.measured_change import group_means, losses_of, measured_change, worse_than_predicted
from fairtrim.damage.moments import members_of
from fairtrim.damage.parity_gradient import parity_gradient
from fairtrim.damage.running_sums import RunningSums
from fairtrim.damage.weight_saliency import collect_weight_saliency, squared_gradients
from fairtrim.data.batches import iterate_batches
from fairtrim.network.losses import contrastive_loss, generalized_cross_entropy, negative_margin
from fairtrim.network.probability_scores import ProbabilityScores, label_scores
from fairtrim.network.sample_loss import SampleLoss
from fairtrim.network.scored_network import ScoredNetwork
from tests.pretend_accelerator import Accelerator, PretendAccelerator

N, K = 11, 3
SENSITIVE = torch.tensor([4, 0, 7, 7, 0, 4, 0, 4, 7, 0, 0])
TARGET = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 1, 0])  # every label in every group


class Small(nn.Module):
    """Two convolutions, one of whose outputs is flattened: a column of the table comes four times there."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Conv2d(5, 4, 1)
        self.pool, self.head = nn.AvgPool2d(2), nn.Linear(16, K)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.pool(self.b(F.relu(self.norm(self.a(x))))).flatten(1))
        return scores


class Tokens(nn.Module):
    """Scores at every position, and parameters that no layer with a closed form has."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.shift = nn.Embedding(7, 4), nn.Parameter(torch.randn(1, 4))
        self.a, self.b = _Mix(6, 4), _Mix(7, 6)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        scores: Tensor = self.b(self.a(self.table(input_ids) + self.shift).tanh())
        return scores


class _Mix(nn.Module):
    """A linear layer without its kernel, which has no rule for vmap on the pretend device."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return (x.unsqueeze(-2) * self.weight).sum(-1)


def _slices(layer: str, size: int, *, consumer: str, each: int = 1) -> tuple[ParameterPlace, ...]:
    rows = range(size)
    repeated = [c for c in rows for _ in range(each)]
    columns = ParameterPlace(f"{consumer}.weight", 1, range(size * each), repeated)
    return ParameterPlace(f"{layer}.weight", 0, rows, rows), ParameterPlace(f"{layer}.bias", 0, rows, rows), columns


GROUPS = (
    ChannelGroup("a", 5, (ChannelPlace("b", "input", range(5), range(5)),), _slices("a", 5, consumer="b")),
    ChannelGroup(
        "b",
        4,
        (
            ChannelPlace("head", "input", range(16), [k // 4 for k in range(16)], channel_axis=-1, weight=0.5),
            ChannelPlace("b", "output", range(4), range(4), weight=0.5),
        ),
        _slices("b", 4, consumer="head", each=4),
    ),
)
HIDDEN = ChannelGroup("a", 6, (ChannelPlace("b", "input", range(6), range(6), channel_axis=-1),))


def _network() -> Small:
    torch.manual_seed(3)
    return Small()


def _people() -> list[tuple[Tensor, Tensor, Tensor]]:
    x = torch.randn(N, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    return [(x[s], TARGET[s], SENSITIVE[s]) for s in (slice(0, 5), slice(5, 6), slice(6, N))]


def _texts() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(6)
    ids, labels = (torch.randint(0, 7, (6, 5), generator=generator) for _ in range(2))
    mask = torch.ones(6, 5, dtype=torch.long)
    mask[1, 3:] = 0
    labels[0], labels[1, 3:] = -100, -100
    columns = {"input_ids": ids, "attention_mask": mask, "labels": labels, "sensitive": SENSITIVE[:6]}
    return [{name: value[s] for name, value in columns.items()} for s in (slice(0, 4), slice(4, 6))]


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, dict):
        return {name: value.to(device) for name, value in batch.items()}
    return tuple(value.to(device) for value in batch)


@pytest.fixture(params=["batches on the CPU", "batches on the device", "pinned"])
def read(request: pytest.FixtureRequest) -> Callable[[list[Any], torch.device], Any]:
    """Where the loader has its tensors."""

    def loader(batches: list[Any], device: torch.device) -> Any:
        if request.param == "pinned" and isinstance(batches[0], tuple):
            data = TensorDataset(*(torch.cat(column) for column in zip(*batches, strict=True)))
            return DataLoader(data, batch_sampler=[[*range(5)], [5], [*range(6, N)]], pin_memory=True)
        return [_moved(batch, device) for batch in batches] if request.param == "batches on the device" else batches

    return loader


def _fields(value: Any) -> Any:
    """Of a result, whatever it is made of, what tests compare."""
    if is_dataclass(value):
        return {field.name: _fields(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): _fields(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_fields(entry) for entry in value]
    return value.tolist() if isinstance(value, Tensor) and value.dtype == torch.bool else value


def _both(accelerator: Accelerator, compute: Callable[[nn.Module, torch.device], Any], model: nn.Module) -> Any:
    """Compute there and here, compare, and give what came out there."""
    expected = compute(copy.deepcopy(model), torch.device("cpu"))
    found = compute(copy.deepcopy(model).to(accelerator.device), accelerator.device)
    accelerator.check_same(_fields(found), _fields(expected))
    return found


LOSSES: dict[str, Any] = {
    "cross-entropy": F.cross_entropy,
    "own weights": lambda scores, y: F.cross_entropy(scores, y, weight=torch.arange(1.0, K + 1).to(scores.device)),
    "squares": lambda scores, y: F.mse_loss(scores, F.one_hot(y, K).to(scores)),
}


def test_tables_are_those_of_the_cpu(accelerator: Accelerator, read: Callable[[list[Any], torch.device], Any]) -> None:
    def compute(model: nn.Module, device: torch.device) -> Any:
        return collect_damage(model, read(_people(), device), GROUPS, interactions=True, progress=False)

    assert _both(accelerator, compute, _network()).slope.device.type == "cpu"


@pytest.mark.parametrize("loss", LOSSES)
def test_tables_of_other_losses(accelerator: Accelerator, loss: str) -> None:
    def compute(model: nn.Module, device: torch.device) -> Any:
        curvature = "empirical" if loss == "cross-entropy" else "exact"
        options = {"curvature": curvature, "loss_fn": LOSSES[loss], "progress": False}
        return collect_damage(model, _people()[:1], GROUPS, interactions="sketched", **options)

    _both(accelerator, compute, _network())


def test_at_positions(accelerator: Accelerator, read: Callable[[list[Any], torch.device], Any]) -> None:
    def compute(model: nn.Module, device: torch.device) -> Any:
        data = read(_texts(), device)
        exact = collect_damage(model, data[:1], [HIDDEN], curvature="exact", progress=False)
        table = collect_damage(model, data, [HIDDEN], curvature="empirical", interactions=True, progress=False)
        return exact, table, measured_change(model, data, table, progress=False).change

    _both(accelerator, compute, Tokens())


def test_what_is_made_of_tables(accelerator: Accelerator) -> None:
    def compute(model: nn.Module, device: torch.device) -> Any:
        saliency = collect_weight_saliency(model, _people()[:1], GROUPS, progress=False)
        table = collect_damage(model, _people(), GROUPS, interactions=True, progress=False)
        together = side_by_side({"one": table, "other": table})
        with torch.no_grad():
            model.a.weight.mul_(0.5)  # type: ignore[operator, union-attr]
        found = measured_change(model, _people(), table, progress=False)
        mean, error, people = group_means(torch.arange(3.0), torch.eye(3)[:, :2])
        worse = worse_than_predicted(mean, mean, error, people=people, loss=mean, mean_loss=1.0)
        return saliency, together, together.predict({"a": [1, 2]}), table.shrunk(2.0), found, worse

    _both(accelerator, compute, _network())


def test_saliency_of_weights(accelerator: Accelerator, read: Callable[[list[Any], torch.device], Any]) -> None:
    def compute(model: nn.Module, device: torch.device) -> Any:
        return squared_gradients(model, read(_people(), device), progress=False)

    _both(accelerator, compute, _network())


@pytest.mark.parametrize("one_by_one", [False, True])
def test_saliency_without_closed_forms(
    accelerator: Accelerator, one_by_one: bool, read: Callable[[list[Any], torch.device], Any]
) -> None:
    model = Tokens()
    if one_by_one:
        model.unused = nn.RNN(1, 1)
    names = ["table.weight", "shift", "a.weight"]

    def compute(model: nn.Module, device: torch.device) -> Any:
        return squared_gradients(model, read(_texts(), device), parameters=names, curvature="empirical", progress=False)

    _both(accelerator, compute, model)


@pytest.mark.parametrize("measure", ["demographic_parity_difference", "equalized_odds_difference"])
def test_gradient_of_the_bias(
    accelerator: Accelerator, measure: str, read: Callable[[list[Any], torch.device], Any]
) -> None:
    def compute(model: nn.Module, device: torch.device) -> Any:
        return parity_gradient(model, read(_people(), device), GROUPS, measure, progress=False)

    _both(accelerator, compute, _network())


def test_moments_of_inputs(accelerator: Accelerator) -> None:
    """A generator of the device, which seeds the draws on the CPU: tests/selection/test_on_an_accelerator.py."""

    def compute(model: nn.Module, device: torch.device) -> Any:
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(2, 2, 9, 9, generator=torch.Generator().manual_seed(5)).to(device)  # of 81 places 64 are drawn
        inside = nn.Sequential(model.a, model.norm, nn.ReLU(), model.b).eval()
        group = ChannelGroup("0", 5, (ChannelPlace("3", "input", range(5), range(5)),))
        with input_moments(inside, [group], random_state=generator) as moments, torch.no_grad():
            inside(x)
        return moments.read()

    _both(accelerator, compute, _network())


def test_gates_and_costs(accelerator: Accelerator) -> None:
    def compute(model: nn.Module, device: torch.device) -> Any:
        x = _people()[0][0].to(device)
        gates = {"a": torch.tensor([1.0, 0.5, 0.0, 1.0, 1.0], dtype=torch.float64), "b": torch.ones(4)}
        with explicit_gates(model.eval(), GROUPS, gates), weight_uses(model) as uses, torch.no_grad():
            scores = model(x)
        costs = ChannelCosts(model, GROUPS, "macs", uses.per_sample(len(x)))
        return scores, costs.each, costs.total

    _both(accelerator, compute, _network())


def test_estimate(accelerator: Accelerator) -> None:
    def compute(model: nn.Module, device: torch.device) -> Any:
        estimate = estimate_scoring(model, _people()[0], GROUPS, n_samples=N, n_groups=3, interactions=True)
        return {name: entry for name, entry in _fields(estimate).items() if "activation" not in name}

    _both(accelerator, compute, _network())


def test_losses(accelerator: Accelerator) -> None:
    """What trains networks, and what looks at scores."""
    generator = torch.Generator().manual_seed(1)
    scores, features = torch.randn(N, K, generator=generator), torch.randn(N, 4, generator=generator)

    def compute(model: nn.Module, device: torch.device) -> Any:
        f, z, y, b = (tensor.to(device) for tensor in (scores, features, TARGET, SENSITIVE > 4))
        seen = ProbabilityScores()
        seen.add(f.softmax(1))
        batch = next(iterate_batches(_people(), device, progress=False))
        return (
            generalized_cross_entropy(f, y),
            negative_margin(f, y),
            contrastive_loss(z, y, b),
            contrastive_loss(z, y, b & False),
            [SampleLoss(loss_fn).weighted(f, y, finite=True) for loss_fn in LOSSES.values()],
            (seen.shares, seen.in_unit),
            label_scores("net", ScoredNetwork(model), batch),
            softmax_factor(f.softmax(1)),
            members_of(torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]).to(device), [2, 1]),
        )

    _both(accelerator, compute, _network())


# Precision ------------------------------------------------------------------------------------------------


def test_without_double_precision(pretend: PretendAccelerator) -> None:
    """As on MPS: everything above but for what a network in float64 asks for; two numbers of float32 are a sum."""
    pretend.refuses_float64 = True

    def compute(model: nn.Module, device: torch.device) -> Any:
        people = _people()[:2]
        table = collect_damage(model, people, GROUPS, interactions=True, progress=False)
        sketched = collect_damage(model, people[:1], GROUPS, interactions="sketched", progress=False)
        bias = parity_gradient(model, _people(), GROUPS, progress=False)
        estimate_scoring(model, people[0], GROUPS)
        squares = squared_gradients(model, people, progress=False)
        saliency = collect_weight_saliency(model, people[:1], GROUPS, progress=False)
        found = measured_change(model, people, table, progress=False)
        with input_moments(model, GROUPS[:1]) as moments, torch.no_grad():
            model(_people()[0][0].to(device))
        return _fields([table, sketched, bias, squares, saliency, found, moments.read()])

    expected = compute(_network(), torch.device("cpu"))
    found = compute(_network().to(pretend.device), pretend.device)
    for left, right in zip(_tensors(found), _tensors(expected), strict=True):
        size = float(right.double().nan_to_num().abs().max()) if right.numel() else 0.0
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12 * size, equal_nan=True)


def _tensors(value: Any) -> Iterator[Tensor]:
    for entry in value.values() if isinstance(value, dict) else value:
        if isinstance(entry, Tensor):
            yield entry
        elif isinstance(entry, dict | list):
            yield from _tensors(entry)


@pytest.mark.parametrize("refuses_float64", [False, True])
@pytest.mark.parametrize("max_bytes", [0, 2**30])
def test_sums_against_float64(pretend: PretendAccelerator, refuses_float64: bool, max_bytes: int) -> None:
    """Of numbers of many sizes, of which a sum in float32 would keep seven digits; groups come later."""
    pretend.refuses_float64 = refuses_float64
    generator = torch.Generator().manual_seed(4)
    sums, oracle = RunningSums(3, 2, max_bytes=max_bytes), torch.zeros(4, 3, 2, dtype=torch.float64)
    size = 0.0
    for step in range(60):
        n_groups = 2 + (step > 20) + (step > 40)
        values = torch.randn(n_groups, 3, 2, generator=generator) * 10 ** (step % 7)
        sums.add(values.to(pretend.device))
        oracle[:n_groups] += values.double()
        sums.add(values[:1].to(pretend.device), first=n_groups - 1)
        oracle[n_groups - 1] += values[0].double()
        size = max(size, float(oracle.abs().max()))
        if step == 30:  # where a run is kept, and goes on
            torch.testing.assert_close(sums.total(4), oracle, rtol=0, atol=2**-44 * size)
    torch.testing.assert_close(sums.total(4), oracle, rtol=0, atol=2**-44 * size if refuses_float64 else 0)


def test_large_sums_go_to_the_cpu(pretend: PretendAccelerator) -> None:
    sums = RunningSums(4, max_bytes=2 * 4 * 8)
    for n_groups in (1, 2, 3):
        sums.add(torch.ones(n_groups, 4, device=pretend.device))
        assert sum(pretend.waits.values()) == (n_groups > 2) * 2  # what was there, and the values
    assert sums.total(3)[:, 0].tolist() == [3, 2, 1]


def test_losses_of_a_batch(accelerator: Accelerator) -> None:
    x, y, a = _people()[0]

    def found(device: torch.device) -> list[Tensor]:
        network = ScoredNetwork(_network().to(device))
        batch = next(iterate_batches([(x, y, a)], device, progress=False))
        with torch.no_grad():
            return [tensor.cpu() for tensor in losses_of(network, SampleLoss(F.cross_entropy), batch)]

    accelerator.check_same(found(accelerator.device), found(torch.device("cpu")))


# Waits and copies -----------------------------------------------------------------------------------------


def _per_batch(device: PretendAccelerator, compute: Callable[[int], Any]) -> tuple[int, int]:
    """Waits and copies of a batch, without what happens once a run."""
    counted = []
    for n_batches in (1, 2):
        device.forget()
        compute(n_batches)
        counted.append((sum(device.waits.values()), sum(device.copies.values())))
    (waits, copies), (more_waits, more_copies) = counted
    return more_waits - waits, more_copies - copies


def _residual(n_blocks: int) -> nn.Module:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + self.b(F.relu(self.a(x))))

    blocks = [Block() for _ in range(n_blocks)]
    return nn.Sequential(nn.Conv2d(1, 2, 1), *blocks, nn.Flatten(), nn.Linear(8, 10))


def test_a_batch_of_a_table_waits_twice(pretend: PretendAccelerator) -> None:
    """At most S + 3 copies and 2 waits, for S sensitive columns; it was 564 and 9 for 19 places and 10 classes."""
    torch.manual_seed(0)
    model = _residual(9).to(pretend.device)
    places = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert len(places) == 19
    groups = [ChannelGroup(name, 2, (ChannelPlace(name, "output", range(2), range(2)),)) for name in places]
    x, y, a = torch.randn(8, 1, 2, 2), torch.arange(8) % 10, torch.arange(16).view(8, 2) % 3
    batches = [(x[n : n + 4], y[n : n + 4], a[n : n + 4]) for n in range(0, 8, 4)]

    def compute(n_batches: int) -> Any:
        return collect_damage(model, batches[:n_batches], groups, interactions=True, progress=False)

    waits, copies = _per_batch(pretend, compute)
    assert waits <= 2
    assert copies <= a.shape[1] + 3


def test_a_batch_of_saliencies_waits_four_times_at_most(pretend: PretendAccelerator) -> None:
    """It was about 75 times for six layers."""
    torch.manual_seed(0)
    layers = [layer for _ in range(5) for layer in (nn.Linear(6, 6), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(6, 4)).to(pretend.device)
    x, y, a = torch.randn(8, 6), torch.arange(8) % 4, torch.arange(8) % 3
    batches = [(x[n : n + 4], y[n : n + 4], a[n : n + 4]) for n in range(0, 8, 4)]
    waits, copies = _per_batch(pretend, lambda n: squared_gradients(model, batches[:n], progress=False))
    assert waits <= 4
    assert copies <= 4


def test_batches_of_other_methods_wait_twice(pretend: PretendAccelerator) -> None:
    model = _network().to(pretend.device)
    people = [entry for entry in _people() for _ in range(2)]
    waits, copies = _per_batch(pretend, lambda n: parity_gradient(model, people[:n], GROUPS, progress=False))
    assert waits <= 2
    assert copies <= 3
    table = collect_damage(model, people, GROUPS, progress=False)
    waits, copies = _per_batch(pretend, lambda n: measured_change(model, people[:n], table, progress=False))
    assert waits <= 2
    assert copies <= 2

    def read(n_batches: int) -> None:
        with input_moments(model, GROUPS[:1]), torch.no_grad():
            for x, _, _ in people[:n_batches]:
                model(x.to(pretend.device))

    waits, copies = _per_batch(pretend, read)
    assert waits == 0
    assert copies <= 1


def test_a_batch_waits_a_few_times_more_for_a_loss_of_ones_own(pretend: PretendAccelerator) -> None:
    """For scores, labels, weights, the loss of the batch, losses, whether they are curved, and all sums."""
    model = _network().to(pretend.device)
    people = [entry for entry in _people() for _ in range(2)]

    def compute(n_batches: int) -> Any:
        return collect_damage(
            model, people[:n_batches], GROUPS, loss_fn=lambda f, y: 2 * F.cross_entropy(f, y), progress=False
        )

    waits, _ = _per_batch(pretend, compute)
    assert waits <= 7


# What happens in another way there ------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [7, 300])
def test_products_at_gates(accelerator: Accelerator, positions: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(3, 5, positions, generator=generator).to(accelerator.device) for _ in range(2))
    expected = (x.cpu().double() * g.cpu().double()).sum(2)
    for one, other in ((x, g), (x.mT.contiguous().mT, g.mT.contiguous().mT)):
        found = _over_positions(one, other)
        torch.testing.assert_close(found.cpu().double(), expected, rtol=0, atol=1e-6 * positions)


def test_cuda_refuses_cumsum_where_algorithms_must_be_deterministic(pretend: PretendAccelerator) -> None:
    names = set()

    class Noted(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.add(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    p = torch.rand(N, 7, generator=torch.Generator().manual_seed(0)).softmax(1)
    expected = softmax_factor(p)
    with _deterministic(), Noted():
        found = softmax_factor(p.to(pretend.device))
    assert names and "cumsum" not in names
    pretend.check_same(found, expected, other_kernels=True)


@contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def test_errors_come_before_anything_is_added(accelerator: Accelerator) -> None:
    model = _network().to(accelerator.device)
    x, y, a = _people()[0]
    bad = x.clone()
    bad[2] = torch.nan
    flags = [(p.requires_grad, p.grad) for p in model.parameters()]
    for batch, told in (((bad, y, a), "scores are not finite"), ((x, y + 2, a), "labels reach from 2 to 3")):
        for compute in (collect_damage, parity_gradient):
            with pytest.raises(InputError, match=told):
                compute(model, [(x, y, a), batch], GROUPS, progress=False)
        with pytest.raises(InputError, match=told):
            squared_gradients(model, [(x, y, a), batch], progress=False)
    large = 2e38 * torch.eye(K)[y].to(accelerator.device)
    with pytest.raises(InputError, match="the loss of sample 0 of the batch is inf"):
        collect_damage(
            model, [(x, y, a)], GROUPS, output_transform=lambda f: 0 * f + large.roll(1, 1) - large, progress=False
        )
    assert flags == [(p.requires_grad, p.grad) for p in model.parameters()]
