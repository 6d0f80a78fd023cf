"""The network, its flags, gradients, hooks, buffers and all random states are as before, after success and errors."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import FairtrimError, collect_damage
from fairtrim.arguments import drawn_seed
from fairtrim.comparison.predictions import predict
from fairtrim.damage.weight_saliency import squared_gradients
from fairtrim.preservation import preserved_random_state, seeded
from fairtrim_adapters.torch_pruning import GroupSaliencyImportance, WorstGroupImportance
from tests.networks import CASES
from tests.pretend_accelerator import Accelerator
from tests.snapshot import Snapshot

CASE = CASES["residual"]
GROUPS = CASE.plan(CASE.model()).groups


@pytest.fixture
def model() -> nn.Module:
    """A network in a state of its own: mixed flags, a gradient, a frozen parameter, the user's hook."""
    model = CASE.model().train()
    model.norm.eval()
    x, y = CASE.batch(4)
    nn.functional.cross_entropy(model(x), y).backward()
    model.stem.bias.requires_grad_(False)
    model.head.register_forward_pre_hook(lambda module, args: None)
    return model


def _data(n_samples: int = 9, *, seed: int = 1) -> tuple[torch.Tensor, ...]:
    x, y = CASE.batch(n_samples, seed=seed)
    return x, y, torch.arange(n_samples) % 2


def _shuffled() -> DataLoader[tuple[torch.Tensor, ...]]:
    class Noisy(TensorDataset):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
            x, y, a = super().__getitem__(index)
            return x + random.random() * 1e-3 + np.random.rand() * 1e-3 + torch.rand(()) * 1e-3, y, a

    return DataLoader(Noisy(*_data()), batch_size=4, shuffle=True)


@pytest.mark.parametrize(
    "run",
    [
        lambda m, loader: collect_damage(m, loader, GROUPS, interactions=True, progress=False),
        lambda m, loader: squared_gradients(m, loader, progress=False),
        lambda m, loader: predict(m, loader, progress=False),
    ],
    ids=["collect_damage", "squared_gradients", "predict"],
)
def test_scoring_leaves_no_trace(model: nn.Module, run: Callable[..., Any]) -> None:
    loader = _shuffled()
    before = Snapshot(model)
    run(model, loader)
    before.assert_unchanged()


def test_generator_of_the_loader_is_restored(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(*_data()), batch_size=4, shuffle=True, generator=generator)
    state = generator.get_state()
    predict(model, loader, progress=False)
    assert torch.equal(generator.get_state(), state)


def test_fit_changes_only_the_host_s_eval_mode(model: nn.Module) -> None:
    importance = WorstGroupImportance(progress=False)
    pruner = CASE.pruner(model, importance)  # the host itself puts the network in eval mode when it traces
    before = Snapshot(model)
    importance.fit(pruner, _shuffled())
    before.assert_unchanged()


def test_buffers_that_the_network_updates_by_itself_are_restored() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
            self.register_buffer("last", torch.zeros((), dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.last = x.mean()  # another tensor in its place
            return self.head(self.body(x).relu())

    counter = Counter().double()
    last = counter.last
    case = CASES["mlp"]
    predict(counter, [case.batch(3)], progress=False)
    assert counter.calls == 0
    assert counter.last is last and last == 0


class BrokenError(Exception):
    pass


def _interrupted(error: BaseException) -> Iterator[tuple[torch.Tensor, ...]]:
    x, y, a = _data()
    yield x[:4], y[:4], a[:4]
    raise error


def _nan_loss(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(scores, target) * float("nan")


def _raise(error: BaseException) -> Any:
    raise error


X, Y, A = _data()
FAULTS: dict[str, tuple[Any, dict[str, Any], type[BaseException], str | None]] = {
    "empty loader": ([], {}, FairtrimError, "no sample"),
    "sensitive column missing": ([(X, Y)], {}, FairtrimError, "inputs, target, sensitive"),
    "no pair": ([X], {}, FairtrimError, "expected .inputs, target. or"),
    "four things": ([(X, Y, A, A)], {}, FairtrimError, "tuple of 4"),
    "labels out of range": ([(X, Y + 1, A)], {}, FairtrimError, "labels reach from 1 to 3; expected 0 to 2"),
    "NaN input": ([(X * float("nan"), Y, A)], {}, FairtrimError, "scores are not finite"),
    "NaN loss": ([(X, Y, A)], {"loss_fn": _nan_loss}, FairtrimError, "is nan; expected finite"),
    "group absent from the data": ([(X, Y, A * 2)], {}, FairtrimError, "is not a sensitive group in the data"),
    "wrong length": ([(X, Y, A[:3])], {}, FairtrimError, "3 values for 9 samples"),
    "max_batches": ([(X, Y, A)], {"max_batches": 0}, FairtrimError, "expected at least 1"),
    "unknown option": ([(X, Y, A)], {"epochs": 3}, FairtrimError, "unknown argument"),
    "not a tensor": ([(X, Y, A)], {"forward_fn": lambda m, x: (m(x), x)}, FairtrimError, "pass output_transform"),
    "wrong shape": ([(X, Y, A)], {"output_transform": lambda o: o[:4]}, FairtrimError, r"expected \(N, K\)"),
    "detached": (
        [(X, Y, A)],
        {"forward_fn": lambda m, x: m(x).detach()},
        FairtrimError,
        "reaches the network's scores",
    ),
    "user's loss": ([(X, Y, A)], {"loss_fn": lambda s, t: _raise(BrokenError())}, BrokenError, None),
    "user's loader": (lambda: _interrupted(BrokenError()), {}, BrokenError, None),
    "interrupt": (lambda: _interrupted(KeyboardInterrupt()), {}, KeyboardInterrupt, None),
}


@pytest.mark.parametrize("name", FAULTS)
def test_errors_leave_no_trace(model: nn.Module, name: str) -> None:
    loader, options, error, message = FAULTS[name]
    importance = GroupSaliencyImportance(privileged=1, progress=False)
    pruner = CASE.pruner(model, importance)
    before = Snapshot(model)
    with pytest.raises(error, match=message):
        importance.fit(pruner, loader() if callable(loader) else loader, **options)
    before.assert_unchanged()
    assert not hasattr(importance, "selection_") and pruner.current_step == 0


def test_failed_second_fit_keeps_the_first(model: nn.Module) -> None:
    importance = WorstGroupImportance(progress=False)
    pruner = CASE.pruner(model, importance)
    table = importance.fit(pruner, [_data()]).damage_
    with pytest.raises(FairtrimError):
        importance.fit(pruner, [])
    assert importance.damage_ is table
    pruner.step()


def test_a_part_without_values() -> None:
    model = CASE.model()
    model.head.to("meta")
    with pytest.raises(FairtrimError, match="lies on the meta device, which computes nothing"):
        predict(model, [CASE.batch(3)], progress=False)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu() -> None:
    model, (x, y) = CASE.model(), CASE.batch(6)
    groups = CASE.plan(model).groups
    here = collect_damage(model, [(x, y)], groups, interactions=True, progress=False)
    there = collect_damage(model.cuda(), [(x, y)], groups, interactions=True, progress=False)
    torch.testing.assert_close(here.interactions, there.interactions)


@pytest.mark.parametrize("state", [preserved_random_state, lambda: seeded(torch.Generator())])
def test_draws_on_a_device_go_on(accelerator: Accelerator, state: Callable[[], Any]) -> None:
    torch.manual_seed(2)
    expected = torch.randn(3, device=accelerator.device).cpu()
    torch.manual_seed(2)
    with state():
        torch.randn(5, device=accelerator.device)
    assert torch.equal(torch.randn(3, device=accelerator.device).cpu(), expected)


def test_draws_on_a_device_are_seeded(accelerator: Accelerator) -> None:
    drawn = []
    for _ in range(2):
        with seeded(torch.Generator(accelerator.device).manual_seed(4)):
            drawn.append(torch.randn(3, device=accelerator.device).cpu())
        torch.randn(5, device=accelerator.device)
    assert torch.equal(*drawn)


def test_random_state_of_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    held = torch.tensor([1])
    monkeypatch.setattr(torch.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "device_count", lambda: 1)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda device="mps": held.clone())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state, device="mps": held.copy_(state))
    monkeypatch.setattr(torch.mps, "manual_seed", held.fill_)
    with preserved_random_state():
        held += 1
    assert held.item() == 1
    with seeded(torch.Generator().manual_seed(5)):
        assert held.item() == drawn_seed(torch.Generator().manual_seed(5))
    assert held.item() == 1


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="CUDA is in use")
def test_a_device_that_nobody_touched_is_left_alone() -> None:
    from torch.cuda import _lazy_seed_tracker as waiting

    before = list(waiting.get_calls())
    with seeded(torch.Generator()), preserved_random_state():
        assert not torch.cuda.is_initialized()
    assert waiting.get_calls() == before  # no seed of ours waits for the first use of CUDA
