"""Bias gradient descent."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.repair_cases import METHODS, begun_network, some_people


def test_performance_floor_of_bias_descent() -> None:
    people, model = some_people(), begun_network()
    settings = {"epsilon": 0.1, "epochs": 6, "privileged": "b"}
    plain = METHODS["bias descent"](**settings).repair(model, people, progress=False)
    for floor in (0.6, 0.8):
        points = [point for point in plain.trade_off if point.performance >= floor]
        repair = METHODS["bias descent"](performance_floor=floor, **settings).repair(model, people, progress=False)
        assert repair.chosen == min(points, key=lambda point: abs(point.bias))
        assert repair.performance >= floor
        assert repair.within_bound == (abs(repair.bias) < 0.09)
    assert repair.chosen != plain.chosen and not repair.within_bound
    none = METHODS["bias descent"](performance_floor=0.999, **settings).repair(model, people, progress=False)
    assert "no candidate has balanced_accuracy of at least 0.999" in none.flags
    assert none.chosen == max(plain.trade_off, key=lambda point: point.performance)


@pytest.mark.parametrize("inplace", [False, True])
def test_buffers_that_the_network_updates_by_itself_stay(inplace: bool) -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = begun_network()
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.body(x)

    counter = Counter()
    repair = METHODS["bias descent"](epsilon=0.2).repair(counter, some_people(), inplace=inplace, progress=False)
    assert repair.model.calls == counter.calls == 0
    assert repair.model_at(0.2).calls == 0
