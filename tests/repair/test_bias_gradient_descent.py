"""Bias gradient descent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairtrim.measures.group_counts import bias
from fairtrim.measures.scores import probabilities
from fairtrim.repair.candidates import Candidates
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


@pytest.mark.parametrize("n_classes", [2, 3])
def test_of_several_rates_the_largest_difference_falls_whichever_it_is(
    n_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their signs differ: those of K classes' selection rates, which add up to 1, always."""
    people = some_people(199, n_classes=n_classes)
    measure = "equalized_odds_difference" if n_classes == 2 else "demographic_parity_difference"
    sizes: list[float] = []
    offer = Candidates.offer

    def noting(self: Candidates, **detail: Any) -> Any:
        edited = self.working.people
        given = probabilities(self.working.scores(edited))
        sizes.append(float(bias(measure, self.working.counts(given))))
        return offer(self, **detail)

    monkeypatch.setattr(Candidates, "offer", noting)
    METHODS["bias descent"](
        measure=measure, epochs=60, training_batch_size=199, learning_rate=0.02, evaluate_every=1
    ).repair(begun_network(n_classes), people, progress=False)
    assert sizes[0] > 0.1 and max(sizes[-10:]) < sizes[0] / 4
