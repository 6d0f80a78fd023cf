"""The threshold alone, which every method has to beat."""

from __future__ import annotations

import pytest

from tests.repair_cases import (
    METHODS,
    begun_network,
    best_threshold,
    history_key,
    judgement_of,
    labels_by,
    margins_of,
    plain_flags,
    some_people,
)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", METHODS)
def test_no_worse_than_the_threshold_alone(name: str, seed: int) -> None:
    people, model = some_people(seed=seed), begun_network(seed=seed)
    for epsilon in (0.06, 0.25):
        method = METHODS[name](epsilon=epsilon, random_state=seed, selection_share=0.5)
        repair = method.repair(model, people, progress=False)
        selection = people.take(repair.selection_rows)
        alone = best_threshold(method, margins_of(model, selection), selection)
        assert alone.within and repair.within_bound
        assert abs(repair.bias) < epsilon - method.margin
        if any("kept as it was given" in flag for flag in repair.flags):  # as it may be within the bound
            assert repair.model[2].bias.tolist() == model[2].bias.tolist() and repair.chosen.candidate == 0
            continue
        assert repair.performance >= alone.performance - 1e-12
        # what the repaired network decides by itself is what is reported, and the given one's as well
        reported = repair.bias, repair.performance
        assert reported == pytest.approx(judgement_of(method, labels_by(repair.model, selection), selection))
        assert reported == pytest.approx((repair.chosen.bias, repair.chosen.performance))
        before = repair.bias_before, repair.performance_before
        assert before == pytest.approx(judgement_of(method, labels_by(model, selection), selection))
        best = max(range(len(repair.history)), key=lambda i: history_key(repair.history[i], method))
        assert best == repair.chosen.candidate
        assert [entry["candidate"] for entry in repair.history] == list(range(len(repair.history)))
        assert plain_flags(repair) == ()
