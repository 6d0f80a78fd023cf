"""How long a forward pass takes: networks timed side by side, so that a machine that slows down slows all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from timeit import Timer
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fairtrim.data.batches import ForwardFunction
from fairtrim.devices import model_device, to_device
from fairtrim.errors import InputError
from fairtrim.network.scored_network import call_of
from fairtrim.placement import holds_nothing
from fairtrim.preservation import preserved_model, preserved_random_state
from fairtrim.printing import Block, Printed, TextTable, figure
from fairtrim.progress import progress_bar

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Latency", "MedianInterval", "measure_latency"]

FEWEST_ROUNDS = 6
"""Fewer have no 95 % interval of their median."""

LEAST_SECONDS = 0.005
"""One measurement takes at least so long, seconds: the clock's resolution and its own cost then don't count."""

_MOST_CALLS = 10**7


class MedianInterval(NamedTuple):
    """A median and its 95 % interval.

    Attributes:
        median: Of the rounds.
        lower: Lower end, one of the rounds.
        upper: Upper end, one of the rounds.

    Example:
        >>> 0.9 < MedianInterval(1.0, lower=0.95, upper=1.2).lower
        True
    """

    median: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Latency(Printed):
    """Seconds of a forward pass, network by network and round by round.

    Attributes:
        seconds: Seconds of one call of each network by name, (R,) float64 for R rounds.
        calls: How many calls of each network were timed together in a round.
        threads: Number of threads of torch on the CPU.

    Example:
        >>> halved = Latency({"dense": np.arange(1.0, 7.0), "pruned": np.arange(1.0, 7.0) / 2}, {}, threads=1)
        >>> halved.median("pruned")
        MedianInterval(median=1.75, lower=0.5, upper=3.0)
        >>> halved.ratio("pruned")
        MedianInterval(median=0.5, lower=0.5, upper=0.5)
    """

    seconds: Mapping[str, npt.NDArray[np.float64]]
    calls: Mapping[str, int]
    threads: int

    def median(self, name: str) -> MedianInterval:
        """Median seconds of a call, with an interval that needs no assumption about the distribution.

        Its ends are order statistics, those of ``scipy.stats.quantile_test``: the true median lies between the k-th
        smallest and the k-th largest of R independent rounds unless fewer than k fall on one side of it, whose
        probability the binomial distribution gives (H. A. David and H. N. Nagaraja, Order Statistics, 3rd ed.,
        section 7.1).

        Args:
            name: Of the network.

        Returns:
            Median and interval, seconds.

        Raises:
            InputError: There is no such network.
        """
        return _interval(self._seconds(name))

    def ratio(self, name: str) -> MedianInterval:
        """How many times as long as the first network: the median of the rounds' ratios, with its interval.

        Within a round networks run one after the other, so what disturbs the machine for longer drops out.

        Args:
            name: Of the network.

        Returns:
            Median and interval; above 1 is slower than the first network.

        Raises:
            InputError: There is no such network.
        """
        return _interval(self._seconds(name) / next(iter(self.seconds.values())))

    def _seconds(self, name: str) -> npt.NDArray[np.float64]:
        if name not in self.seconds:
            raise InputError(f"network {name!r} was not timed; expected one of {list(self.seconds)}")
        return self.seconds[name]

    def to_frame(self) -> pd.DataFrame:
        """One row for each network.

        Returns:
            Columns ``network``; ``seconds``, ``seconds_lower``, ``seconds_upper`` of a call; ``ratio``,
            ``ratio_lower``, ``ratio_upper`` to the first network; ``calls`` of each round.
        """
        import pandas as pd

        rows = []
        for name in self.seconds:
            seconds, ratio = self.median(name), self.ratio(name)
            rows.append(
                {
                    "network": name,
                    **dict(zip(("seconds", "seconds_lower", "seconds_upper"), seconds, strict=True)),
                    **dict(zip(("ratio", "ratio_lower", "ratio_upper"), ratio, strict=True)),
                    "calls": self.calls.get(name),
                }
            )
        return pd.DataFrame(rows)

    def verdict(self) -> str:
        """How long the last network takes beside the first one.

        Returns:
            One sentence.
        """
        names = list(self.seconds)
        first, last = names[0], names[-1]
        took = f"A call of {last} takes {_milliseconds(self.median(last).median)}"
        rounds = f"the median of {len(self.seconds[first]):,} rounds"
        if first == last:
            return f"{took}, {rounds}."
        ratio = self.ratio(last)
        told = "faster" if ratio.upper < 1 else "slower" if ratio.lower > 1 else "not told apart from it"
        return f"{took}, {figure(*ratio)} of the time of {first} ({told}), {rounds}."

    def blocks(self) -> Iterator[Block]:
        """The verdict, and a row a network."""
        yield self.verdict()
        rows = []
        for name in self.seconds:
            median = (1e3 * seconds for seconds in self.median(name))
            rows.append((name, figure(*median), figure(*self.ratio(name))))
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.threads else ""
        title = f"Medians with 95 % intervals{threads}; ratios are to the first network, round by round."
        yield TextTable(("network", "ms a call", "ratio"), rows, title=title)


def _milliseconds(seconds: float) -> str:
    return f"{figure(1e3 * seconds)} ms"


def _interval(values: npt.NDArray[np.float64]) -> MedianInterval:
    from scipy.stats import quantile_test

    ends = quantile_test(values).confidence_interval(0.95)
    if np.isnan(ends.low):
        raise InputError(f"{len(values)} rounds have no 95 % interval of the median; expected at least {FEWEST_ROUNDS}")
    return MedianInterval(float(np.median(values)), float(ends.low), float(ends.high))


def measure_latency(
    models: nn.Module | Mapping[str, nn.Module],
    inputs: Any,
    *,
    rounds: int = 30,
    warm_up: int = 3,
    forward_fn: ForwardFunction | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> Latency:
    """Time forward passes of networks, in eval mode and without gradients, and leave everything as it was.

    Each round times every network once, one after the other, and each round starts with the next of them: a machine
    that warms up or is shared then hits all alike. One measurement repeats the call until it takes some milliseconds.
    On a GPU the clock is read when the device has done what it was given. Garbage is not collected meanwhile.

    Args:
        models: One network (named ``model``) or several by name; ratios are to the first.
        inputs: What they are called with, e.g. a tensor (N, ...); a tuple or list gives several arguments, a dict
            arguments by name. They are moved to each network's device beforehand, which isn't timed.
        rounds: R; at least 6, the fewest that have a 95 % interval.
        warm_up: Calls of each network before any is timed, at least 1.
        forward_fn: How to call a network.
        threads: Number of threads of torch on the CPU meanwhile; None leaves it.
        progress: Show a progress bar.

    Returns:
        The times.

    Raises:
        InputError: There is no network, a number is too small, a network lies on the meta device or fails on the
            inputs, or the clock stands still.

    Example:
        >>> wide, narrow = nn.Linear(300, 300), nn.Linear(300, 2)
        >>> latency = measure_latency({"wide": wide, "narrow": narrow}, torch.ones(1, 300), rounds=6, progress=False)
        >>> latency.ratio("wide")
        MedianInterval(median=1.0, lower=1.0, upper=1.0)
        >>> latency.seconds["narrow"].shape, sorted(latency.calls)
        ((6,), ['narrow', 'wide'])
    """
    named = {"model": models} if isinstance(models, nn.Module) else models
    _check(named, rounds, warm_up, threads)
    calls: dict[str, Callable[[], Any]] = {}
    timers: dict[str, Timer] = {}
    for name, model in named.items():
        if holds_nothing(model):
            raise InputError(f"network {name!r} lies on the meta device, which computes nothing; expected weights")
        device = model_device(model)
        calls[name] = call_of(model, to_device(inputs, device), forward_fn)
        # torch's own Timer is one of these; it adds two calls to each measurement, and waits for one device only
        timers[name] = Timer(calls[name], timer=partial(_now, device))
    names = list(named)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        stack.enter_context(preserved_random_state())
        for model in named.values():
            stack.enter_context(preserved_model(model))
        stack.enter_context(_threads(threads))
        stack.enter_context(torch.no_grad())  # not inference mode: a network may keep a tensor, and be trained later
        for name in names:
            _warm_up(name, calls[name], warm_up)
        repeats = {name: _repeats(timers[name]) for name in names}
        for i in progress_bar(range(rounds), description="timing", shown=progress, unit="round"):
            for j in range(len(names)):
                name = names[(i + j) % len(names)]
                seconds[name].append(timers[name].timeit(repeats[name]) / repeats[name])
        n_threads = torch.get_num_threads()
    return Latency({name: np.asarray(values) for name, values in seconds.items()}, repeats, n_threads)


def _check(models: Mapping[str, nn.Module], rounds: int, warm_up: int, threads: int | None) -> None:
    if not isinstance(models, Mapping):
        raise InputError(f"models is a {type(models).__name__}; expected a network, or networks by name in a dict")
    if not models:
        raise InputError("no networks to time; expected at least one")
    for name, model in models.items():
        if not isinstance(model, nn.Module):
            raise InputError(f"network {name!r} is a {type(model).__name__}; expected a torch.nn.Module")
    least = {"rounds": (rounds, 6), "warm_up": (warm_up, 1), "threads": (1 if threads is None else threads, 1)}
    for argument, (value, bound) in least.items():
        if not isinstance(value, int) or value < bound:
            raise InputError(f"{argument}={value!r}; expected a whole number of at least {bound}")


def _warm_up(name: str, call: Callable[[], Any], times: int) -> None:
    try:
        for _ in range(times):
            call()
    except Exception as error:
        raise InputError(
            f"network {name!r} failed on the inputs: {type(error).__name__}: {error}; expected inputs that each "
            "network takes, as a tensor, a tuple of arguments or a dict of arguments by name: else pass forward_fn"
        ) from error


def _now(device: torch.device) -> float:
    if device.type != "cpu":  # kernels are only queued when a call returns
        torch.accelerator.synchronize(device)
    return perf_counter()


def _repeats(timer: Timer) -> int:
    """1, 2, 5, 10, ... calls, as ``timeit`` does: the first that take long enough."""
    scale = 1
    while scale < _MOST_CALLS:
        for times in (scale, 2 * scale, 5 * scale):
            if timer.timeit(times) >= LEAST_SECONDS:
                return times
        scale *= 10
    raise InputError(f"{5 * scale // 10} calls took less than {LEAST_SECONDS} s; expected a clock that advances")


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)
