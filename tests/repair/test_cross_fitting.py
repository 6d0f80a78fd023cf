"""Everybody edits and everybody selects, and nobody judges a network that was edited on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairtrim import InputError, ParityFineTuning, Repair, ThresholdSelection, ValidationSet
from fairtrim.repair.candidates import Candidates
from fairtrim.repair.working_copy import WorkingCopy
from tests.repair_cases import begun_network, cross_entropy, some_people

SETTINGS: dict[str, Any] = {"penalties": (0.5, 3.0), "epsilon": 0.2}


@pytest.mark.parametrize("number", [2, 5])
def test_folds_share_out_every_group_and_label(number: int) -> None:
    people = some_people(97, n_groups=3)
    fold = people.folds(number, 0)
    assert sorted(set(fold.tolist())) == list(range(number))
    for g in range(3):
        for label in range(2):
            of_cell = torch.bincount(fold[(people.group == g) & (people.target == label)], minlength=number)
            assert int(of_cell.max() - of_cell.min()) <= 1
    assert int(torch.bincount(fold).max() - torch.bincount(fold).min()) <= 1
    assert not torch.equal(fold, people.folds(number, 1)) and torch.equal(fold, people.folds(number, 0))


class _Kept(ParityFineTuning):
    """Notes whom each edit is on, and the candidates' weights."""

    edits: list[tuple[ValidationSet, list[dict[str, Tensor]]]]

    def _edit(self, working: WorkingCopy, candidates: Candidates) -> None:
        weights: list[dict[str, Tensor]] = []
        self.edits.append((working.people, weights))
        offer = candidates.offer

        def noted(**detail: Any) -> Any:
            weights.append({key: value.clone() for key, value in working.model.state_dict().items()})
            return offer(**detail)

        candidates.offer = noted  # type: ignore[method-assign]
        super()._edit(working, candidates)


@pytest.mark.parametrize(("layers", "n_folds"), [("output", 5), ("all", 3)])
@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_the_choice_is_that_of_networks_edited_without_the_people(layers: str, n_folds: int, n_outputs: int) -> None:
    people, model = some_people(103, n_classes=max(2, n_outputs)), begun_network(n_outputs)
    settings = {} if layers == "output" else {"epochs": 1, "training_batch_size": 40, "learning_rate": 1e-2}
    method = _Kept(layers=layers, **SETTINGS, **settings)
    method.edits = []
    repair = method.repair(model, people, progress=False)
    assert repair.cross_fitted
    assert repair.edit_rows.tolist() == repair.selection_rows.tolist() == list(range(103))
    *folds, (everybody, final) = method.edits
    assert len(folds) == n_folds and len(everybody) == 103 and len(final) == 2
    position = {tuple(row.tolist()): k for k, row in enumerate(people.inputs)}
    seen = [{position[tuple(row.tolist())] for row in part.inputs} for part, _ in folds]
    assert sum(103 - len(rows) for rows in seen) == 103  # each is held out once
    for entry in repair.history[1:]:
        said = torch.empty(103, max(1, n_outputs), dtype=torch.float64)
        network = begun_network(n_outputs)
        for rows, (_, weights) in zip(seen, folds, strict=True):
            network.load_state_dict(weights[entry["candidate"] - 1])
            out = [k for k in range(103) if k not in rows]
            with torch.no_grad():
                said[out] = network(people.inputs[out])
        if n_outputs == 3:
            labels = said.argmax(1)
        else:
            margin = said[:, 0] if n_outputs == 1 else said[:, 1] - said[:, 0]
            labels = (margin > torch.logit(torch.tensor(entry["threshold"], dtype=torch.float64))).long()
        recalls = [(labels[people.target == y] == y).double().mean() for y in range(max(2, n_outputs))]
        assert entry["performance"] == pytest.approx(float(torch.stack(recalls).mean()))
        if entry["candidate"] == repair.chosen.candidate:
            after = {f.name: f.after for f in repair.figures if f.sensitive_group is None}
            assert after["accuracy"] == pytest.approx(float((labels == people.target).double().mean()))
    chosen = repair.chosen.candidate
    if chosen:
        found = repair.model.state_dict()
        assert torch.equal(found["2.weight"], final[chosen - 1]["2.weight"])  # but for the threshold in the bias


def test_overfitting_is_seen() -> None:
    """Twenty features that say nothing, 60 people: on those it was edited on any label fits."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 20, generator=generator)
    people = ValidationSet(x, torch.randint(2, (60,), generator=generator), torch.arange(60) % 2, ("a", "b"))
    method = ParityFineTuning(epsilon=1.0, penalties=[0.0], ridge=0.0)
    given = nn.Linear(20, 2)
    nn.init.zeros_(given.weight)
    told = method.repair(given, people, progress=False)
    same = method.repair(given, people, selection_loader=people, progress=False)
    assert same.performance > 0.75 > 0.65 > told.performance


def test_a_share_that_selects_turns_it_off() -> None:
    people, model = some_people(), begun_network()
    repair = ParityFineTuning(selection_share=0.4, **SETTINGS).repair(model, people, progress=False)
    assert not repair.cross_fitted and set(repair.edit_rows.tolist()).isdisjoint(repair.selection_rows.tolist())
    assert not ThresholdSelection().repair(model, people, progress=False).cross_fitted
    with pytest.raises(InputError, match=r"selection_share=1\.5; expected a share in"):
        ParityFineTuning(selection_share=1.5)


def test_time_runs_out_in_a_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many candidates are judged as all folds have."""
    times = iter(range(10_000))
    monkeypatch.setattr("fairtrim.repair.candidates.time.monotonic", lambda: float(next(times)))
    method = ParityFineTuning(penalties=[0.5] * 9, epsilon=0.2, max_seconds=30.0)
    repair = method.repair(begun_network(), some_people(), progress=False)
    assert 1 < len(repair.history) < 10
    assert "stopped by the time budget (max_seconds)" in repair.flags


def test_few_of_a_label_make_fewer_folds() -> None:
    people = some_people(41)
    target = torch.zeros(41, dtype=torch.int64)
    target[[3, 7, 12]] = 1
    rare = ValidationSet(people.inputs, target, people.group, people.groups)
    method = _Kept(**SETTINGS)
    method.edits = []
    method.repair(begun_network(), rare, progress=False)
    assert len(method.edits) == 3 + 1 and all(int(part.target.sum()) == 2 for part, _ in method.edits[:3])


# Cases in which chance was taken for bias, or a network within the bound was made worse.


def _trained(x: Tensor, y: Tensor, hidden: int, epochs: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(x.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, 2))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


@pytest.mark.parametrize("seed", range(3))
def test_small_groups_without_a_difference_cost_nothing_or_it_is_said(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6000, 6, generator=generator)
    y = (x[:, 0] + 0.5 * torch.randn(6000, generator=generator) > 0).long()
    group = torch.multinomial(torch.tensor([0.85, 0.05, 0.04, 0.03, 0.03]), 3000, True, generator=generator)
    model = _trained(x[:3000], y[:3000], 16, 60)
    repair = ParityFineTuning(performance="accuracy").repair(model, [(x[:3000], y[:3000], group)], progress=False)
    if _accuracy(repair.model, x[3000:], y[3000:]) < _accuracy(model, x[3000:], y[3000:]) - 0.01:
        assert any(flag.startswith("accuracy fell by more than its error") for flag in repair.flags)
    assert any("too few people for a bound of 0.05" in flag and "3 (" in flag for flag in repair.flags)


def _within() -> tuple[nn.Sequential, Tensor, Tensor, list[str]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 4, generator=generator)
    y = (x[:, 0] + torch.randn(2000, generator=generator) > 0.8).long()
    groups = [["a", "b"][int(v)] for v in torch.randint(2, (2000,), generator=generator)]
    return _trained(x, y, 8, 100), x, y, groups


def test_a_network_within_the_bound_is_kept() -> None:
    model, x, y, groups = _within()
    repair = ParityFineTuning(epsilon=0.2).repair(model, [(x, y, groups)], progress=False)
    assert repair.within_bound and repair.chosen.candidate == 0
    torch.testing.assert_close(repair.model.state_dict(), model.state_dict(), rtol=0, atol=0)
    (flag,) = repair.flags
    assert flag.startswith("the network is kept as it was given: it is within the bound; the best other one would")
    assert "accuracy" in flag
    text = str(repair)
    assert all(len(line) < 100 for line in text.splitlines()) and "selection rate" in text


def test_a_network_within_the_bound_is_replaced_by_a_better_one() -> None:
    model, x, y, groups = _within()
    with torch.no_grad():
        model[2].bias[1] += 1.5  # too many positives: everybody gains by fewer
    repair = ParityFineTuning(epsilon=0.2).repair(model, [(x, y, groups)], progress=False)
    assert repair.within_bound and not any("kept" in flag for flag in repair.flags)
    assert _accuracy(repair.model, x, y) > _accuracy(model, x, y) + 0.02
    assert any(flag.startswith("the selection rate moved") for flag in repair.flags)


def test_without_a_bound_nothing_is_kept_for_its_sake() -> None:
    model, x, y, groups = _within()
    tuned = ThresholdSelection(epsilon=1.0).repair(model, [(x, y, groups)], progress=False)
    assert tuned.performance > tuned.performance_before + 0.02


# Groups of few people.


def _with_a_tiny_group(n_tiny: int) -> tuple[nn.Sequential, ValidationSet]:
    people = some_people(300)
    group = people.group.clone()
    group[:n_tiny] = 2
    return begun_network(), ValidationSet(people.inputs, people.target, group, ("a", "b", "few"))


def test_a_group_of_few_is_left_out_and_named() -> None:
    model, people = _with_a_tiny_group(6)
    repair = ParityFineTuning(**SETTINGS).repair(model, people, progress=False)
    assert any(flag.startswith("few (6): not compared in demographic_parity_difference") for flag in repair.flags)
    named: Repair = ParityFineTuning(min_people=1, **SETTINGS).repair(model, people, progress=False)
    assert not any("not compared" in flag for flag in named.flags)
    with pytest.raises(InputError, match="min_people=0; expected"):
        ParityFineTuning(min_people=0)


@pytest.mark.parametrize("confidence", [0.3, 1.0, "most"])
def test_what_is_no_confidence(confidence: Any) -> None:
    with pytest.raises(InputError, match=r"expected one in \(0\.5, 1\), e\.g\. 0\.95, 'auto' or None"):
        ParityFineTuning(confidence=confidence)


@pytest.mark.slow
def test_more_confidence_asks_for_less_bias() -> None:
    model, people = begun_network(), some_people(400)
    biases = []
    for confidence in (None, "auto", 0.99):
        repair = ParityFineTuning(epsilon=0.3, confidence=confidence).repair(model, people, progress=False)
        assert repair.within_bound
        biases.append(abs(repair.bias))
    assert biases[2] <= biases[1] < biases[0]


def test_labels_are_shared_out_even_where_each_group_has_one() -> None:
    """Five groups of four without the label and one with it: one a fold, not all of them in the last."""
    target = (torch.arange(25) % 5 == 4).long()
    people = ValidationSet(torch.zeros(25, 1), target, torch.arange(25) // 5, tuple("abcde"))
    fold = people.folds(5, 0)
    assert torch.bincount(fold[target == 1], minlength=5).tolist() == [1] * 5


def test_one_person_of_a_label_is_refused_before_anything() -> None:
    people = some_people(30)
    target = torch.zeros(30, dtype=torch.int64)
    target[4] = 1
    rare = ValidationSet(people.inputs, target, people.group, people.groups)
    with pytest.raises(InputError, match="has label"):
        ParityFineTuning(**SETTINGS).repair(begun_network(), rare, progress=False)


def test_a_candidate_that_breaks_only_on_everybody_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    people, model = some_people(), begun_network()

    class Breaking(ParityFineTuning):
        def _edit(self, working: WorkingCopy, candidates: Candidates) -> None:
            with torch.no_grad():
                working.head.module.weight[1] += 0.3
                if working.share == 1:
                    working.head.module.weight[0, 0] = torch.inf
            candidates.offer(step="broken")

    repair = Breaking(epsilon=0.9).repair(model, people, progress=False)
    assert repair.chosen.candidate == 0 and bool(torch.isfinite(repair.model[2].weight).all())
    assert any("not finite and were left out" in flag for flag in repair.flags)


def test_the_measured_bias_of_groups_that_are_compared_decides() -> None:
    x = torch.cat([torch.linspace(-1, 1, 400), torch.ones(3)])[:, None]
    group = torch.cat([torch.arange(400) % 2, torch.full((3,), 2)])
    people = ValidationSet(x, (x[:, 0] > 0).long(), group, ("a", "b", "few"))
    network = nn.Linear(1, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[0.0], [1.0]]))
        network.bias.zero_()
    repair = ThresholdSelection(epsilon=0.3).repair(network, people, progress=False)
    # not of the few, who are all selected
    assert repair.bias < 0.01 and repair.within_bound and repair.figures[0].after == repair.bias
    assert "among a, b " in repair.verdict()
    assert any(flag.startswith("few (3): not compared") for flag in repair.flags)
    all_three = ThresholdSelection(epsilon=0.3, min_people=1).repair(network, people, progress=False)
    assert not all_three.within_bound
    none_left = ThresholdSelection(epsilon=0.3, min_people=300).repair(network, people, progress=False)
    assert any("compared all the same" in flag for flag in none_left.flags)


def test_errors_are_those_of_so_many_people() -> None:
    """Equal rates of few people are no evidence of a small difference."""
    sizes = []
    for n in (20, 200, 2000):
        x = torch.linspace(-1, 1, n)[:, None]
        people = ValidationSet(x, (x[:, 0] > 0).long(), torch.arange(n) % 2, ("a", "b"))
        network = nn.Linear(1, 2)
        with torch.no_grad():
            network.weight.copy_(torch.tensor([[0.0], [1.0]]))
            network.bias.zero_()
        repair = ThresholdSelection(epsilon=0.5, confidence=0.95).repair(network, people, progress=False)
        sizes.append(repair.chosen.believed)
    assert sizes[0] > 0.2 > sizes[1] > 0.05 > sizes[2]
