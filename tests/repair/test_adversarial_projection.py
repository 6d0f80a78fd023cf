"""The steps of adversarial projection against the published rule, one number at a time, in float64."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairtrim import AdversarialProjection
from fairtrim.measures.group_counts import BIAS_MEASURES
from fairtrim.repair.candidates import Candidates
from tests.repair_cases import begun_network, cross_entropy, some_people

SETTINGS: dict[str, Any] = {
    "epochs": 2, "training_batch_size": 23, "learning_rate": 0.02, "adversary_learning_rate": 0.07, "strength": 1.7,
    "evaluate_every": 1, "selection_share": 0.4, "confidence": None, "random_state": 4,
}  # fmt: skip


def _seen(measure: str, scores: Tensor, y: Tensor) -> Tensor:
    """What the adversary sees of each person."""
    p = scores.softmax(1)
    n_classes, n_samples = p.shape[1], len(p)
    rows = []
    for n in range(n_samples):
        k, shown = int(y[n]), [p[n, 1]] if n_classes == 2 else list(p[n])
        nothing = torch.zeros((), dtype=torch.float64)
        if measure == "accuracy_score_difference":
            shown = [p[n, k]]
        elif measure == "equal_opportunity_difference" and n_classes > 2:
            shown = [p[n, k] if j == k else nothing for j in range(n_classes)]
        elif measure in ("equalized_odds_difference", "average_odds_difference"):
            shown = shown + [s if j == k else nothing for s in shown for j in range(n_classes)]
        rows.append(torch.stack(shown))
    return torch.stack(rows)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("measure", BIAS_MEASURES)
def test_every_step_is_the_published_one(measure: str, n_classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    people, given = some_people(n_groups=3, n_classes=n_classes, weighted=True), begun_network(n_classes)
    people = replace(people, group=torch.where(torch.arange(97) % 2 == 0, people.group, torch.arange(97) % 3))
    passed: list[Tensor] = []
    offer = Candidates.offer

    def noting(self: Candidates, **detail: Any) -> Any:
        passed.append(torch.cat([p.detach().flatten().clone() for p in self.working.model.parameters()]))
        return offer(self, **detail)

    monkeypatch.setattr(Candidates, "offer", noting)
    AdversarialProjection(measure=measure, **SETTINGS).repair(given, people, progress=False)

    generator = torch.Generator().manual_seed(4)
    edit = people.take(people.split(0.6, generator)[0])
    network = copy.deepcopy(given)
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        linear = nn.Linear(_seen(measure, torch.zeros(1, n_classes).double(), edit.target).shape[1], 3).double()
    c = torch.zeros((), dtype=torch.float64, requires_grad=True)
    of_network = torch.optim.Adam(network.parameters(), lr=0.02)
    of_adversary = torch.optim.Adam([c, *linear.parameters()], lr=0.07)
    expected = [torch.cat([p.detach().flatten().clone() for p in network.parameters()])]
    for _ in range(2):
        for rows in torch.randperm(len(edit), generator=generator).split(23):
            y, a, weight = edit.target[rows], edit.group[rows], edit.weight[rows].double()
            scores = network(edit.inputs[rows])
            told = linear(_seen(measure, (1 + c.abs()) * scores, y)).log_softmax(1)
            counted = weight * (y == 1) if measure == "equal_opportunity_difference" and n_classes == 2 else weight
            of_group = -sum(counted[n] * told[n, a[n]] for n in range(len(rows))) / counted.sum()
            of_label = cross_entropy(scores, y, weight)
            parts = list(network.parameters())
            u = torch.cat([g.flatten() for g in torch.autograd.grad(of_group, parts, retain_graph=True)])
            g = torch.cat([g.flatten() for g in torch.autograd.grad(of_label, parts, retain_graph=True)])
            turned = g - (g @ u) / (u @ u) * u - 1.7 * u
            of_adversary.zero_grad()
            of_group.backward(inputs=[c, *linear.parameters()])
            for p, part in zip(parts, turned.split([p.numel() for p in parts]), strict=True):
                p.grad = part.reshape(p.shape)
            of_network.step(), of_adversary.step()
            expected.append(torch.cat([p.detach().flatten().clone() for p in parts]))
    assert len(passed) == len(expected) > 4
    # where the projection leaves nothing of a gradient, Adam divides its rounding by 1e-8
    torch.testing.assert_close(torch.stack(passed), torch.stack(expected), rtol=1e-7, atol=1e-6)


def test_batches_without_anybody_who_is_compared_are_left_out() -> None:
    people = some_people(31)
    people.target[:] = 0
    people.target[[3, 8, 20, 25]] = 1  # two in each part
    people.group[:] = torch.arange(31) % 2
    method = AdversarialProjection(
        **{**SETTINGS, "training_batch_size": 2, "measure": "equal_opportunity_difference", "selection_share": 0.5}
    )
    repair = method.repair(begun_network(), people, progress=False)
    assert all(torch.isfinite(p).all() for p in repair.model.parameters())
