"""An unlearning either changes the network or says why not, and says in its flags all that it prints."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairtrim import ColumnErasure, ColumnFlip, CounterfactualUnlearning, Repair, counterfactual_bias
from tests.unlearning_cases import METHODS, leaning_network, leaning_people

FLIP = ColumnFlip(binary={3: (0.0, 1.0)})


def _drawn(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """A rare label that leans on the attribute, the last column."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    x[:, 3] = (torch.rand(n, generator=generator) < 0.5).float()
    merit = x[:, 0] + 0.5 * x[:, 1] + 0.8 * x[:, 3] + torch.randn(n, generator=generator)
    return x, (merit > 2).long()


@pytest.fixture(scope="module")
def leaning() -> nn.Sequential:
    x, y = _drawn(20_000, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def _changed(repair: Repair, model: nn.Module) -> bool:
    after = repair.model.state_dict()
    return any(not torch.equal(value, after[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"form": "published"},
        {"layers": "all", "epochs": 4, "learning_rate": 5e-3, "strengths": (0.1, 1.0, 10.0)},
    ],
    ids=["output", "published", "all"],
)
def test_no_silent_repair_in_fifty_draws(settings: dict[str, Any], leaning: nn.Sequential) -> None:
    """Each of 50 draws of 200 pairs changed the network, or carries a flag that says why not, and not both."""
    n_changed = 0
    for draw in range(50):
        method = CounterfactualUnlearning(counterfactual=FLIP, random_state=draw, **settings)
        repair = method.repair(leaning, [_drawn(200, 100 + draw)], progress=False)
        returned = [flag for flag in repair.flags if flag.startswith("the network is returned as it was given: the")]
        assert _changed(repair, leaning) == (not returned), (draw, repair.flags)
        assert len(returned) < 2 and all("strength" in flag for flag in returned)
        n_changed += not returned
    assert n_changed > 15


@pytest.mark.slow
def test_gentler_candidates_are_taken_where_strong_ones_cost_too_much(leaning: nn.Sequential) -> None:
    options: dict[str, Any] = {"counterfactual": FLIP, "layers": "all", "epochs": 10, "learning_rate": 3e-3}
    settings = {"strong": {"strengths": (1.0, 3.0, 10.0, 30.0)}, "by default": {}}
    taken = dict.fromkeys(settings, 0)
    for draw in range(6):
        for name, path in settings.items():
            method = CounterfactualUnlearning(random_state=draw, **options, **path)
            taken[name] += _changed(method.repair(leaning, [_drawn(200, 100 + draw)], progress=False), leaning)
    assert taken["by default"] >= taken["strong"]
    assert min(CounterfactualUnlearning(**options)._path()) < 0.1


@pytest.mark.parametrize("layers", ["output", "all"])
def test_pairs_without_a_flip_choose_by_how_far_scores_move(layers: str) -> None:
    """Too few pairs hold none, though others' decisions do change."""
    people, model = leaning_people(163), leaning_network()
    with torch.no_grad():
        sides = [model(x) for x in (people.inputs, METHODS["output"]().counterfactual(people.inputs))]
    steady = people.take((sides[0].argmax(1) == sides[1].argmax(1)).nonzero().squeeze(1))
    form = "all" if layers == "all" else "output"
    repair = METHODS[form](max_performance_loss=1.0, max_cross_entropy_rise=9.0).repair(model, steady, progress=False)
    assert repair.bias_before == 0 == repair.bias and repair.chosen.candidate > 0
    assert any(flag.startswith("none of the ") and "selection pairs changes" in flag for flag in repair.flags)
    flip = METHODS[form]().counterfactual
    chosen, others = steady.take(repair.selection_rows), people
    with torch.no_grad():
        before, after = (
            [counterfactual_bias(m(p.inputs), m(flip(p.inputs)), p.target) for p in (chosen, others)]
            for m in (model, repair.model)
        )
    assert after[0].relative_change < before[0].relative_change and after[1].flips < before[1].flips


def test_limits_that_refuse_everything_say_what_wider_ones_allow() -> None:
    """The figures that the flag promises are those of the repair with these limits."""
    people, model = leaning_people(163), leaning_network()
    narrow = METHODS["output"](max_cross_entropy_rise=0.0, max_performance_loss=0.0, strengths=(3.0, 10.0))
    (flag,) = (flag for flag in narrow.repair(model, people, progress=False).flags if "as it was given" in flag)
    found = re.search(r"limits .* allow a counterfactual_flips of (\S+) at a cross-entropy (\S+) and", flag)
    assert found is not None, flag
    flips, rise = map(float, found.groups())
    wide = METHODS["output"](max_cross_entropy_rise=rise + 1e-3, max_performance_loss=1.0, strengths=(3.0, 10.0))
    repair = wide.repair(model, people, progress=False)
    assert repair.bias == pytest.approx(flips, abs=5e-4) and flips < repair.bias_before
    chosen, flip = people.take(repair.selection_rows), wide.counterfactual
    with torch.no_grad():
        before, after = (
            counterfactual_bias(m(chosen.inputs), m(flip(chosen.inputs)), chosen.target).cross_entropy
            for m in (model, repair.model)
        )
    assert after - before == pytest.approx(rise, abs=1e-3)


@pytest.mark.parametrize("form", METHODS)
def test_pairs_with_flips_have_no_word_about_their_absence(form: str) -> None:
    repair = METHODS[form]().repair(leaning_network(), leaning_people(163), progress=False)
    assert repair.bias_before > 0 and not any(flag.startswith("none of the ") for flag in repair.flags)


def test_a_threshold_that_moved_is_no_network_as_it_was_given() -> None:
    people, model = leaning_people(127), leaning_network()
    settings: dict[str, Any] = {"measure": "demographic_parity_difference", "epsilon": 0.2, "confidence": None}
    repair = METHODS["output"](strengths=(0.0,), **settings).repair(model, people, progress=False)
    assert repair.chosen.candidate == 0 and repair.chosen.margin_threshold != 0 and _changed(repair, model)
    assert not any("as it was given" in flag for flag in repair.flags)
    assert any(flag.startswith("nothing was unlearned, only the threshold was moved: ") for flag in repair.flags)


@pytest.mark.parametrize(
    "method",
    [
        METHODS["output"](strengths=(0.0,), epsilon=0.01),
        METHODS["output"](epsilon=0.01),
        METHODS["published"](max_seconds=1e-9),
        METHODS["output"](measure="demographic_parity_difference", strengths=(0.0, 1.0)),
        ColumnErasure(columns=[2, 3, 4]),
    ],
    ids=["nothing better", "bound not met", "stopped", "groups", "erasure"],
)
def test_all_that_is_printed_as_a_word_is_a_flag(method: Any) -> None:
    repair = method.repair(leaning_network(), leaning_people(163), progress=False)
    lines = str(repair).splitlines()
    first = next((k for k, line in enumerate(lines) if line.startswith("! ")), len(lines))
    printed = "\n".join(lines[first:]).replace("\n  ", " ").split("\n") if first < len(lines) else []
    assert [line.removeprefix("! ") for line in printed] == list(repair.flags)
    assert not any("!" in line for line in lines[:first])
    if repair.chosen.candidate == 0:
        assert repair.flags
