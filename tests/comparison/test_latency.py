"""Latencies against closed forms under a clock that the networks themselves move, and intervals against enumeration."""

from __future__ import annotations

import gc
import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

from fairtrim import InputError, Latency, MedianInterval, measure_latency


class Clock:
    """Stands still unless a network moves it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now


CLOCK = "fairtrim.comparison.latency.perf_counter"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(CLOCK, clock)
    return clock


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second goes by each time the clock is read."""
    ticks = itertools.count()
    monkeypatch.setattr(CLOCK, lambda: float(next(ticks)))


class Taking(nn.Module):
    """Takes so many seconds by the clock; the n-th call may take longer."""

    def __init__(self, clock: Clock, name: str, seconds: Callable[[int], float]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.clock, self.name, self.seconds, self.n_calls = clock, name, seconds, 0

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled() and not self.training and not self.norm.training
        self.clock.order.append(self.name)
        self.clock.now += self.seconds(self.n_calls)
        self.n_calls += 1
        return self.norm(x)


X = torch.ones(1, 3)


def test_medians_and_ratios_in_closed_form(clock: Clock) -> None:
    # three warm-up calls and one to find that a single call takes long enough, then the rounds
    first = Taking(clock, "first", lambda call: 0.010 + 0.001 * max(0, call - 4))
    second = Taking(clock, "second", lambda call: 3 * (0.010 + 0.001 * max(0, call - 4)))
    found = measure_latency({"first": first, "second": second}, X, rounds=7, progress=False)
    expected = 0.010 + 0.001 * np.arange(7)
    np.testing.assert_allclose(found.seconds["first"], expected, rtol=1e-9)
    np.testing.assert_allclose(found.seconds["second"], 3 * expected, rtol=1e-9)
    assert found.calls == {"first": 1, "second": 1} and found.threads == torch.get_num_threads()
    np.testing.assert_allclose(found.median("first"), (0.013, 0.010, 0.016), rtol=1e-9)
    np.testing.assert_allclose(found.ratio("second"), (3, 3, 3), rtol=1e-9)
    assert found.ratio("first") == MedianInterval(1.0, 1.0, 1.0)


def test_ratios_are_those_of_rounds() -> None:
    """A drift that hits both leaves ratios alone, though both medians' intervals are wide."""
    drift = np.array([1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0])
    found = Latency({"a": drift, "b": 0.5 * drift}, {"a": 1, "b": 2}, threads=1)
    assert found.ratio("b") == MedianInterval(0.5, 0.5, 0.5)
    assert found.median("a") == MedianInterval(4.0, 1.0, 8.0)
    mixed = Latency({"a": np.array([1.0, 2, 4, 8, 16, 32]), "b": np.array([1.0, 1, 4, 16, 8, 64])}, {}, threads=1)
    assert mixed.ratio("b") == MedianInterval(1.0, 0.5, 2.0)  # ratios 1, 1/2, 1, 2, 1/2, 2


def test_networks_take_turns_to_be_first(clock: Clock) -> None:
    models = {name: Taking(clock, name, lambda call: 0.02) for name in "abc"}
    measure_latency(models, X, rounds=6, warm_up=2, progress=False)
    assert "".join(clock.order) == "aabbcc" + "abc" + "abcbcacab" * 2


@pytest.mark.parametrize(("seconds", "calls"), [(0.01, 1), (0.003, 2), (0.0011, 5), (0.0009, 10), (0.00003, 200)])
def test_calls_are_repeated_until_they_take_long_enough(clock: Clock, seconds: float, calls: int) -> None:
    found = measure_latency(Taking(clock, "a", lambda call: seconds), X, rounds=6, progress=False)
    assert found.calls == {"model": calls}
    np.testing.assert_allclose(found.seconds["model"], np.full(6, seconds), rtol=1e-9)


def test_every_call_of_a_measurement_counts(clock: Clock) -> None:
    # three calls to warm up, 1 + 2 + 5 to find the number; in the first round one of five takes longer
    model = Taking(clock, "a", lambda call: 0.101 if call == 13 else 0.001)
    found = measure_latency(model, X, rounds=6, progress=False)
    np.testing.assert_allclose(found.seconds["model"], [0.021, *[0.001] * 5], rtol=1e-9)


def _coverage(n_rounds: int, k: int) -> float:
    """Share of all patterns below/above the median in which [k-th smallest, k-th largest] holds the median."""
    patterns = itertools.product((False, True), repeat=n_rounds)
    return sum(k <= sum(below) <= n_rounds - k for below in patterns) / 2**n_rounds


@pytest.mark.parametrize("n_rounds", [6, 7, 8, 9, 11, 12])
def test_intervals_against_enumeration(n_rounds: int) -> None:
    ranks = np.random.default_rng(n_rounds).permutation(n_rounds) + 1.0
    found = Latency({"a": ranks}, {}, threads=1).median("a")
    k = int(found.lower)
    assert found == MedianInterval((n_rounds + 1) / 2, k, n_rounds + 1 - k)
    assert _coverage(n_rounds, k) >= 0.95 > _coverage(n_rounds, k + 1)  # the narrowest


@pytest.mark.parametrize("n_rounds", [20, 30, 101, 1500])
def test_intervals_against_scipy(n_rounds: int) -> None:
    found = Latency({"a": np.arange(n_rounds) + 1.0}, {}, threads=1).median("a")
    assert found.lower == binom.ppf(0.025, n_rounds, 0.5) and found.upper == n_rounds + 1 - found.lower


def test_frame_and_text() -> None:
    rounds = np.arange(1.0, 8.0)
    latency = Latency({"dense": rounds, "pruned": rounds / 4}, {"dense": 1, "pruned": 5}, threads=1)
    frame = latency.to_frame().set_index("network")
    assert frame.loc["pruned"].to_dict() == {
        "seconds": 1.0,
        "seconds_lower": 0.25,
        "seconds_upper": 1.75,
        "ratio": 0.25,
        "ratio_lower": 0.25,
        "ratio_upper": 0.25,
        "calls": 5,
    }
    assert list(frame["ratio"]) == [1.0, 0.25]
    assert latency.verdict().startswith(
        "A call of pruned takes 1000.000 ms, 0.250 [0.250, 0.250] of the time of dense ("
    )
    row = str(latency).splitlines()[-1].split("  ")
    assert [cell.strip() for cell in row if cell] == ["pruned", "1000.000 [250.000, 1750.000]", "0.250 [0.250, 0.250]"]
    with pytest.raises(InputError, match=r"'prunde' was not timed; expected one of \['dense', 'pruned'\]"):
        latency.ratio("prunde")
    with pytest.raises(InputError, match="5 rounds have no 95 % interval"):
        Latency({"a": rounds[:5]}, {}, threads=1).median("a")


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.got: set[str] = set()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        self.got |= {"ids"} | (set() if attention_mask is None else {"mask"})
        return {"logits": input_ids.float()}


@pytest.mark.usefixtures("ticks")
@pytest.mark.parametrize(
    ("inputs", "got"),
    [
        ({"input_ids": torch.ones(1, 4)}, {"ids"}),
        ({"input_ids": torch.ones(2, 4), "attention_mask": torch.ones(2, 4)}, {"ids", "mask"}),
        ((torch.ones(1, 4), torch.ones(1, 4)), {"ids", "mask"}),
        ([torch.ones(1, 4)], {"ids"}),
        (torch.ones(3, 4), {"ids"}),
    ],
    ids=["dict", "dict of two", "tuple", "list", "tensor"],
)
def test_inputs_of_any_kind(inputs: Any, got: set[str]) -> None:
    model = Named()
    measure_latency(model, inputs, rounds=6, warm_up=1, progress=False)
    assert model.got == got


@pytest.mark.usefixtures("ticks")
def test_forward_function() -> None:
    model, seen = Named(), []

    def forward(network: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
        seen.append(network)
        return network(inputs["words"])

    found = measure_latency({"a": model}, {"words": X}, rounds=8, warm_up=2, forward_fn=forward, progress=False)
    assert seen == [model] * (2 + 1 + 8) and list(found.seconds["a"]) == [1.0] * 8


def _fails(model: nn.Module, inputs: Any) -> None:
    torch.rand(1), random.random(), np.random.rand()
    raise RuntimeError("no more")


@pytest.mark.usefixtures("ticks")
@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_left_as_it_was(fails: bool) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2)).train()
    model[1].eval()
    model(X.repeat(2, 1)).sum().backward()
    flags = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [
        (parameter.grad, parameter.grad.clone()) for parameter in model.parameters() if parameter.grad is not None
    ]
    n_threads, collecting = torch.get_num_threads(), gc.isenabled()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    seen: list[int] = []

    def forward(network: nn.Module, inputs: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        if fails and len(seen) > 5:
            _fails(network, inputs)
        return network(inputs) + torch.rand(1)

    options: dict[str, Any] = {"rounds": 6, "forward_fn": forward, "progress": False, "threads": n_threads + 1}
    if fails:
        with pytest.raises(RuntimeError, match="no more"):
            measure_latency(model, X, **options)
    else:
        assert measure_latency(model, X, **options).threads == n_threads + 1
    assert set(seen) == {n_threads + 1}
    assert torch.get_num_threads() == n_threads and gc.isenabled() == collecting and torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == flags
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    for parameter, (gradient, value) in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient and torch.equal(gradient, value)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_real_clock() -> None:
    models = {"wide": nn.Linear(50, 70), "narrow": nn.Linear(50, 3)}
    found = measure_latency(models, torch.ones(1, 50), rounds=6, threads=1)
    for name in models:
        assert found.seconds[name].shape == (6,) and bool((found.seconds[name] > 0).all())
        assert found.median(name).lower <= found.median(name).median <= found.median(name).upper


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": {}}, "no networks to time"),
        ({"models": [nn.Identity()]}, "models is a list; expected a network, or networks by name in a dict"),
        ({"models": {"a": "b"}}, "network 'a' is a str; expected a torch.nn.Module"),
        ({"rounds": 5}, "rounds=5; expected a whole number of at least 6"),
        ({"rounds": 7.5}, "rounds=7.5; expected a whole number"),
        ({"warm_up": 0}, "warm_up=0; expected a whole number of at least 1"),
        ({"threads": 0}, "threads=0; expected a whole number of at least 1"),
        ({"models": nn.Linear(4, 2)}, "network 'model' failed on the inputs: RuntimeError: .*; expected inputs that"),
        ({"inputs": {"x": X}}, "'model' failed on the inputs: TypeError: .* 'x'; expected inputs that .* forward_fn"),
        ({"models": nn.Linear(3, 2, device="meta")}, "lies on the meta device, which computes nothing"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    n_threads = torch.get_num_threads()
    with pytest.raises(InputError, match=message):
        measure_latency(**{"models": nn.Identity(), "inputs": X, "progress": False, **arguments})
    assert torch.get_num_threads() == n_threads and torch.is_grad_enabled() and gc.isenabled()


@pytest.mark.usefixtures("clock")
def test_a_clock_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairtrim.comparison.latency._MOST_CALLS", 100)
    with pytest.raises(InputError, match=r"calls took less than 0.005 s; expected a clock that advances"):
        measure_latency(nn.Identity(), X, progress=False)
    assert torch.is_grad_enabled() and gc.isenabled()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_devices_are_waited_for() -> None:
    model = nn.Linear(50, 3).cuda()
    found = measure_latency(model, torch.ones(1, 50), rounds=6, progress=False)
    assert bool((found.seconds["model"] > 0).all())
