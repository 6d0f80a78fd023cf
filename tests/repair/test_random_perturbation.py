"""Random perturbation."""

from __future__ import annotations

import torch

from fairtrim import (
    RandomPerturbation,
)
from tests.repair_cases import begun_network, some_people


def test_trials_start_from_the_given_weights() -> None:
    """Noise does not compound: every parameter is the given one times one draw of its own trial."""
    people, model = some_people(), begun_network()
    method = RandomPerturbation(trials=40, deviation=0.05, epsilon=0.2, random_state=1)
    repair = method.repair(model, people, progress=False)
    point = max(repair.trade_off, key=lambda point: point.candidate)
    assert point.candidate > 10
    found = repair._network(point)
    generator = torch.Generator().manual_seed(1)
    for _ in range(point.candidate):
        noise = [torch.randn(p.shape, generator=generator) for p in model.parameters()]
    for layer, noise_of_weight in ((0, noise[0]), (2, noise[2])):
        torch.testing.assert_close(found[layer].weight / model[layer].weight, 1 + 0.05 * noise_of_weight.double())
