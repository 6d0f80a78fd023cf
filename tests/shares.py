"""Several processes played by threads: the real sums and messages, without the launch of an interpreter."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from fairtrim.processes import Processes

T = TypeVar("T")


class _Meeting:
    """Where threads lay down what they say, and wait until all have."""

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count, timeout=60)
        self.said: list[Any] = [None] * count

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.said[rank] = value
        self.barrier.wait()
        heard = list(self.said)
        self.barrier.wait()
        return heard


class ThreadProcesses(Processes):
    """One of W threads that stand for processes."""

    def __init__(self, meeting: _Meeting, rank: int) -> None:
        self.count, self.rank, self._meeting = len(meeting.said), rank, meeting

    def exchange(self, value: Any) -> list[Any]:
        return [json.loads(text) for text in self._meeting.exchange(self.rank, json.dumps(value))]

    def sum(self, tensor: Tensor) -> Tensor:
        told = self._meeting.exchange(self.rank, tensor)
        assert len({(t.shape, t.dtype) for t in told}) == 1
        return torch.stack(told).sum(0)


class CountedCalls:
    """How often a method of an object is called from here on."""

    def __init__(self, owner: Any, name: str) -> None:
        self.calls, own = 0, getattr(owner, name)

        def counted(*args: Any) -> Any:
            self.calls += 1
            return own(*args)

        setattr(owner, name, counted)


def in_processes(works: Sequence[Callable[[Processes], T]]) -> list[T]:
    """Run a function in each of several processes.

    Args:
        works: One function a process.

    Returns:
        What each gave, by rank.
    """
    meeting = _Meeting(len(works))
    results: list[Any] = [None] * len(works)

    def run(rank: int) -> None:
        try:
            results[rank] = works[rank](ThreadProcesses(meeting, rank))
        except BaseException as error:
            results[rank] = error
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    assert not errors
    return results
