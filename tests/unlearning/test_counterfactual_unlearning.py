"""Counterfactual unlearning: its three forms stated once more, and every way of giving pairs."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fairtrim import (
    CounterfactualUnlearning,
    InputError,
    ParityFineTuning,
    Repair,
    ThresholdSelection,
    ValidationSet,
    counterfactual_bias,
)
from tests.snapshot import Snapshot
from tests.unlearning_cases import (
    DOUBLE,
    FLIP,
    METHODS,
    X,
    Y,
    candidates_of,
    judgement_of,
    leaning_network,
    leaning_people,
    loader_of,
    losses_of,
    trained_on,
)


def _theta(model: Any) -> Tensor:
    return torch.cat([model[-1].weight, model[-1].bias[:, None]], 1).detach()


def _features(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model[:-1](x), torch.ones(len(x), 1, **DOUBLE)], 1)


def _relevant(scores: Tensor) -> Tensor:
    """Scores up to a shift of all of them."""
    return scores if scores.shape[1] == 1 else scores - scores.mean(1, keepdim=True)


def _gap(model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((_relevant(model(x)) - _relevant(model(FLIP(x)))).square().sum(1).mean())


def _damped_hessian(features: Tensor, target: Tensor, theta: Tensor, damping: float) -> Tensor:
    hessian = torch.autograd.functional.hessian(
        lambda flat: losses_of(features @ flat.reshape(theta.shape).T, target).mean(), theta.reshape(-1)
    )
    return hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian), **DOUBLE)


# The three forms, stated once more.


@pytest.mark.parametrize("damping", [None, 0.7])
@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_output_layer_minimises_distance_and_gap(n_outputs: int, damping: float | None) -> None:
    """½‖W − W₀‖²_H + ½ λ E‖f(x) − f(x̄)‖², H the damped Hessian of cross-entropy."""
    model, n_classes = leaning_network(n_outputs), max(2, n_outputs)
    edit, selection = leaning_people(61, n_classes, seed=1), leaning_people(67, n_classes, seed=2)
    method = METHODS["output"](strengths=(0.3, 7.0), damping=damping)
    _, networks = candidates_of(method, model, edit, selection_loader=selection)
    theta = _theta(model)
    here, there = _features(model, edit.inputs), _features(model, FLIP(edit.inputs))
    hessian = _damped_hessian(here, edit.target, theta, 0.1 if damping is None else damping)
    assert len(networks) == 3
    torch.testing.assert_close(networks[0].state_dict(), model.state_dict(), rtol=0, atol=0)
    for strength, network in zip(method.strengths, networks[1:], strict=True):

        def value(flat: np.ndarray, strength: float = strength) -> tuple[float, np.ndarray]:
            moving = torch.from_numpy(flat).reshape(theta.shape).requires_grad_(True)
            move = (moving - theta).reshape(-1)
            gaps = _relevant(here @ moving.T) - _relevant(there @ moving.T)
            total = move @ hessian @ move / 2 + strength / 2 * gaps.square().sum(1).mean()
            (gradient,) = torch.autograd.grad(total, moving)
            return float(total.detach()), gradient.reshape(-1).numpy()

        found = minimize(value, theta.reshape(-1).numpy(), jac=True, method="BFGS", options={"gtol": 1e-10})
        expected = torch.from_numpy(found.x).reshape(theta.shape)
        torch.testing.assert_close(_theta(network), expected, rtol=1e-5, atol=1e-6)
        assert float((expected - theta).abs().max()) > 0.05
        torch.testing.assert_close(network[0].state_dict(), model[0].state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("damping", [None, 0.3])
@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_published_form_is_the_formula_s_step(n_outputs: int, damping: float | None) -> None:
    """θ + s H⁻¹ 1/n Σ [∇ℓ(z) − ∇ℓ(z̄)], z the side of a pair that the network gets right more surely."""
    model, n_classes = leaning_network(n_outputs), max(2, n_outputs)
    edit, selection = leaning_people(59, n_classes, seed=1), leaning_people(67, n_classes, seed=2)
    method = METHODS["published"](strengths=(1.0, 0.2, 4.0), damping=damping)
    repair, networks = candidates_of(method, model, edit, selection_loader=selection)
    theta = _theta(model)
    here, there = _features(model, edit.inputs), _features(model, FLIP(edit.inputs))
    step, n_swapped = torch.zeros_like(theta), 0
    for n in range(59):
        moving = theta.clone().requires_grad_(True)
        losses = [losses_of(side[n : n + 1] @ moving.T, edit.target[n : n + 1])[0] for side in (here, there)]
        aligned = 0 if losses[0] <= losses[1] else 1
        n_swapped += aligned
        (gradient,) = torch.autograd.grad((losses[aligned] - losses[1 - aligned]) / 59, moving)
        step += gradient
    assert 9 < n_swapped < 50  # both kinds of pairs
    hessian = _damped_hessian(
        torch.cat([here, there]), torch.cat([edit.target, edit.target]), theta, 0.01 if damping is None else damping
    )
    step = torch.linalg.solve(hessian, step.reshape(-1)).reshape(theta.shape)
    assert float(step.abs().max()) > 1e-3
    assert [entry["strength"] for entry in repair.history[1:]] == [1.0, 0.2, 4.0]
    for scale, network in zip((1.0, 0.2, 4.0), networks[1:], strict=True):
        torch.testing.assert_close(_theta(network), theta + scale * step, rtol=1e-7, atol=1e-9)
    assert (
        METHODS["published"]().repair(model, edit, progress=False).history[1]["strength"] == 1.0
    )  # the published scale


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_all_layers_are_fine_tuned_on_both_losses(n_outputs: int) -> None:
    """Cross-entropy to the given network's own probabilities + λ E (f(x) − f(x̄))² / Var f, by Adam."""
    model, n_classes = leaning_network(n_outputs), max(2, n_outputs)
    edit, selection = leaning_people(61, n_classes, seed=1), leaning_people(67, n_classes, seed=2)
    wrong = replace(edit, target=edit.target.roll(5))  # it needs no labels
    method = METHODS["all"](random_state=5)
    _, networks = candidates_of(method, model, wrong, selection_loader=selection)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        own = model(edit.inputs)

    def margin(scores: Tensor) -> Tensor:
        if n_outputs == 2:
            return scores[:, 1:] - scores[:, :1]
        return _relevant(scores)

    def soft_loss(scores: Tensor, own: Tensor) -> Tensor:
        if n_outputs == 1:
            p = own.sigmoid()
            return -(p * F.logsigmoid(scores) + (1 - p) * F.logsigmoid(-scores)).mean()
        return -(own.softmax(1) * scores.log_softmax(1)).sum(1).mean()

    variance = margin(own).var(0, correction=0).mean()
    assert len(networks) == 3
    for strength, network in zip((0.5, 4.0), networks[1:], strict=True):
        expected = copy.deepcopy(model)  # each strength starts from the given weights
        optimizer = torch.optim.Adam(expected.parameters(), lr=0.02)
        for _ in range(4):
            for rows in torch.randperm(61, generator=generator).split(17):
                here, there = expected(edit.inputs[rows]), expected(FLIP(edit.inputs[rows]))
                gap = (margin(here) - margin(there)).square().mean() / variance
                optimizer.zero_grad()
                (soft_loss(here, own[rows]) + strength * gap).backward()
                optimizer.step()
        torch.testing.assert_close(network.state_dict(), expected.state_dict(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("form", ["output", "all"])
@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_larger_strength_lowers_the_gap(n_outputs: int, form: str) -> None:
    people, model = leaning_people(97, max(2, n_outputs)), leaning_network(n_outputs)
    options = {"strengths": (0.0, 0.1, 1.0, 10.0, 1e7)} if form == "output" else {"epochs": 30}
    options |= {} if form == "output" else {"strengths": (0.0, 1.0, 30.0), "training_batch_size": 97}
    _, networks = candidates_of(METHODS[form](**options), model, people, selection_loader=people)
    gaps = [_gap(network, people.inputs) for network in networks[1:]]
    assert all(after < 0.9 * before for before, after in pairwise(gaps))
    if form == "output":
        assert gaps[0] == pytest.approx(_gap(model, people.inputs), rel=1e-6)  # strength 0 changes nothing
        assert gaps[-1] < 1e-8


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_all_layers_unlearn_what_the_network_leans_on(n_outputs: int) -> None:
    people, model = leaning_people(211, max(2, n_outputs)), leaning_network(n_outputs)
    repair = METHODS["all"](strengths=(3.0, 30.0), epochs=20).repair(model, people, progress=False)
    before, after = (judgement_of(m, people, METHODS["all"](), n_outputs) for m in (model, repair.model))
    assert before["flips"] > 0.3 and after["flips"] < 0.5 * before["flips"]  # of everybody, edited on or not
    assert after["relative_change"] < 0.7 * before["relative_change"]
    assert after["performance"] > before["performance"] - 0.05


# What is given: functions, pairs, sets, loaders; tables, pictures, dicts.


class Pairs(Dataset[Any]):
    def __init__(self, people: ValidationSet) -> None:
        self.people, self.flipped = people, FLIP(people.inputs)

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, index: int) -> Any:
        return (self.people.inputs[index], self.flipped[index]), self.people.target[index]


@pytest.mark.parametrize("form", METHODS)
def test_pairs_may_be_given_in_any_way(form: str) -> None:
    people, others, model = leaning_people(83, seed=1), leaning_people(79, seed=2), leaning_network()
    plain = METHODS[form]().repair(model, loader_of(people), selection_loader=loader_of(others), progress=False)
    assert plain.chosen.candidate > 0
    given, without = METHODS[form](counterfactual=None), METHODS[form](counterfactual=lambda x: x * math.nan)
    sides = [replace(side, counterfactual=FLIP(side.inputs)) for side in (people, others)]
    repairs = {
        "pairs from a loader": given.repair(
            model,
            DataLoader(Pairs(people), batch_size=23),
            selection_loader=DataLoader(Pairs(others), batch_size=79),
            progress=False,
        ),
        "pairs in a set": given.repair(
            model,
            replace(people, inputs=(people.inputs, FLIP(people.inputs))),
            selection_loader=replace(others, inputs=[others.inputs, FLIP(others.inputs)]),
            progress=False,
        ),
        "counterfactuals in a set": given.repair(model, sides[0], selection_loader=sides[1], progress=False),
        "which the function then does not make": without.repair(
            model, sides[0], selection_loader=sides[1], progress=False
        ),
        "batches with sensitive features": METHODS[form]().repair(
            model, loader_of(people, sensitive=True), selection_loader=loader_of(others, sensitive=True), progress=False
        ),
    }
    for how, repair in repairs.items():
        assert repair.chosen == plain.chosen, how
        torch.testing.assert_close(repair.model.state_dict(), plain.model.state_dict(), rtol=0, atol=0)


class Picture(nn.Module):
    """A small convolutional network for pictures with two colour channels."""

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.head = nn.Conv2d(6, 4, 3), nn.Linear(4, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.norm(self.first(x)).relu()).relu().mean((2, 3)))


def _pictures(n_samples: int, *, seed: int, correlation: float) -> tuple[Tensor, Tensor]:
    """A bright left or right half, in the first colour or the second, which goes along with the label."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 2, (n_samples,), generator=generator)
    colour = torch.where(torch.rand(n_samples, generator=generator) < correlation, target, 1 - target)
    x = 0.6 * torch.randn(n_samples, 2, 5, 6, generator=generator)
    for n in range(n_samples):
        x[n, colour[n], :, :3] += 1.5
        x[n, :, :, 3 * int(target[n]) : 3 * int(target[n]) + 3] += 0.4
    return x, target


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_a_function_that_swaps_the_colours_of_pictures(n_outputs: int) -> None:
    x, target = _pictures(151, seed=0, correlation=0.9)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Picture(n_outputs)
    trained_on(model, x, target, 40)
    x, target = _pictures(127, seed=2, correlation=0.5)
    shapes = []

    def swapped(pictures: Tensor) -> Tensor:
        shapes.append(tuple(pictures.shape))
        return pictures.flip(1)

    before = counterfactual_bias(*_both(model, x), target)
    assert before.flips > 0.1
    loader = DataLoader(TensorDataset(x, target), batch_size=50)
    for form in METHODS:
        options = {"max_performance_loss": 0.2, "max_cross_entropy_rise": 0.2, "counterfactual": swapped}
        options |= {"strengths": (1.0, 10.0), "epochs": 10} if form == "all" else {}
        given = Snapshot(model)
        repair = METHODS[form](**options, batch_size=31).repair(model, loader, progress=False)
        given.assert_unchanged()
        rows = repair.selection_rows
        model.eval()
        of_rows = [
            counterfactual_bias(*_both(network.eval(), x[rows]), target[rows]).flips
            for network in (model, repair.model)
        ]
        model.train()
        assert (repair.bias_before, repair.bias) == pytest.approx(tuple(of_rows))
        if form != "published":  # whose step is no fit of the pairs
            assert repair.bias < repair.bias_before
        for name, value in repair.model.state_dict().items():
            assert "norm.r" not in name or torch.equal(value, model.state_dict()[name])
    assert set(shapes) == {(127, 2, 5, 6)}


def _both(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return model(x), model(x.flip(1))


class Two(nn.Module):
    """Takes two inputs by name; returns the scores beside something else."""

    def __init__(self, plain: nn.Sequential) -> None:
        super().__init__()
        self.body, self.head = copy.deepcopy(plain[:2]), copy.deepcopy(plain[2])

    def forward(self, figures: Tensor, attribute: Tensor) -> Any:
        features = self.body(torch.cat([figures, attribute], 1))
        return features, self.head(features)


@pytest.mark.parametrize("form", METHODS)
def test_inputs_and_outputs_of_any_form(form: str) -> None:
    people, model = leaning_people(83), leaning_network()
    plain = METHODS[form]().repair(model, people, progress=False)
    x = people.inputs
    named = {"figures": x[:, :2], "attribute": x[:, 2:]}

    def flip(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        flipped = FLIP(torch.cat([inputs["figures"], inputs["attribute"]], 1))
        return {"figures": flipped[:, :2], "attribute": flipped[:, 2:]}

    method = METHODS[form](counterfactual=flip)
    repair = method.repair(
        Two(model), replace(people, inputs=named), output_transform=lambda output: output[1], progress=False
    )
    assert repair.chosen.candidate == plain.chosen.candidate and repair.bias == pytest.approx(plain.bias)
    torch.testing.assert_close(repair.model.head.state_dict(), plain.model[2].state_dict(), rtol=1e-9, atol=1e-12)
    called = METHODS[form]().repair(
        Two(model), people, forward_fn=lambda m, x: m(x[:, :2], x[:, 2:])[1], progress=False
    )
    torch.testing.assert_close(called.model.head.state_dict(), plain.model[2].state_dict(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", METHODS)
def test_batch_size_makes_no_difference(form: str) -> None:
    people, model = leaning_people(83), leaning_network()
    whole, parts = (METHODS[form](batch_size=size).repair(model, people, progress=False) for size in (1024, 13))
    torch.testing.assert_close(whole.model.state_dict(), parts.model.state_dict(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("form", METHODS)
def test_single_precision(form: str) -> None:
    people, model = leaning_people(83), leaning_network()
    exact = METHODS[form]().repair(model, people, progress=False)
    single = replace(people, inputs=people.inputs.float())
    rough = METHODS[form]().repair(copy.deepcopy(model).float(), single, progress=False)
    assert rough.chosen.candidate == exact.chosen.candidate
    assert all(value.dtype == torch.float32 for value in rough.model.state_dict().values())
    torch.testing.assert_close(rough.model.double().state_dict(), exact.model.state_dict(), rtol=1e-2, atol=1e-2)


def test_weights_of_people_count_as_copies_in_the_output_layer() -> None:
    model, edit, selection = leaning_network(), leaning_people(53, seed=1), leaning_people(67, seed=2)
    copies = torch.arange(53) % 3
    weighted = replace(edit, weight=copies.double())
    repeated = edit.take(torch.arange(53).repeat_interleave(copies))
    for form in ("output", "published"):
        found = [candidates_of(METHODS[form](), model, e, selection_loader=selection)[1] for e in (weighted, repeated)]
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(_theta(one), _theta(other), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_weights_of_people_count_as_copies_in_fine_tuning(n_outputs: int) -> None:
    """In batches of everybody, so that both make the same steps."""
    n_classes = max(2, n_outputs)
    model, edit, selection = (
        leaning_network(n_outputs),
        leaning_people(53, n_classes, seed=1),
        leaning_people(67, n_classes, seed=2),
    )
    copies = torch.arange(53) % 3
    weighted = replace(edit, weight=copies.double())
    repeated = edit.take(torch.arange(53).repeat_interleave(copies))
    method = METHODS["all"](training_batch_size=100, epochs=3)
    found = [candidates_of(method, model, e, selection_loader=selection)[1] for e in (weighted, repeated)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=1e-6, atol=1e-8)


def test_a_function_may_write_into_what_it_is_given() -> None:
    people, model = leaning_people(83), leaning_network()

    def in_place(x: Tensor) -> Tensor:
        x[:] = FLIP(x)
        return x

    plain = METHODS["output"]().repair(model, people, progress=False)
    repair = METHODS["output"](counterfactual=in_place).repair(model, leaning_people(83), progress=False)
    assert repair.bias_before == plain.bias_before and repair.chosen == plain.chosen


# Ways of running.


@pytest.mark.parametrize("form", METHODS)
def test_in_place_gives_the_same_weights_to_the_same_network(form: str) -> None:
    people, model = leaning_people(83), leaning_network()
    plain = METHODS[form]().repair(model, people, progress=False)
    identities = [id(parameter) for parameter in model.parameters()]
    repair = METHODS[form]().repair(model, people, inplace=True, progress=False)
    assert repair.model is model and [id(parameter) for parameter in model.parameters()] == identities
    assert plain.model is not model and repair.chosen == plain.chosen and plain.chosen.candidate > 0
    torch.testing.assert_close(model.state_dict(), plain.model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("form", METHODS)
def test_same_random_state_same_repair(form: str) -> None:
    people, model = leaning_people(83), leaning_network()

    def run(random_state: Any) -> Repair:
        return METHODS[form](random_state=random_state).repair(model, loader_of(people), progress=False)

    first = run(3)
    torch.rand(5)
    for other in (run(3), run(torch.Generator().manual_seed(3))):
        assert torch.equal(other.selection_rows, first.selection_rows) and other.chosen == first.chosen
        torch.testing.assert_close(other.model.state_dict(), first.model.state_dict(), rtol=0, atol=0)
    assert not torch.equal(run(4).selection_rows, first.selection_rows)


def test_seed_shuffles_the_batches_of_fine_tuning() -> None:
    people, others, model = leaning_people(83, seed=1), leaning_people(79, seed=2), leaning_network()
    first, second = (
        candidates_of(METHODS["all"](random_state=seed), model, people, selection_loader=others)[1] for seed in (0, 1)
    )
    assert not torch.equal(first[1][0].weight, second[1][0].weight)


def test_rows_and_people_are_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRTRIM_PROGRESS", "always")
    people, model = leaning_people(83), leaning_network()
    repair = METHODS["all"](selection_share=0.3).repair(model, people, progress=True)
    assert "counterfactual unlearning" in capsys.readouterr().err
    assert abs(len(repair.selection_rows) - 0.3 * 83) < 2
    text = str(repair)
    assert text.startswith(repair.verdict()[:60])
    assert repair.verdict().startswith("counterfactual_flips ") and f"{repair.bias:.3f}" in repair.verdict()
    METHODS["all"]().repair(model, people, progress=False)
    assert capsys.readouterr().err == ""


# Settings.

BAD_SETTINGS: list[Any] = [
    ({"form": "fmd"}, "form='fmd', layers='output'; expected form 'consistency' or 'published' and layers 'output' or"),
    ({"layers": "last"}, "layers='last'; expected form"),
    ({"form": "published", "layers": "all"}, "form='published' edits the output layer; expected layers='output', or"),
    ({"strengths": []}, r"strengths=\[\]; expected at least one, none negative"),
    ({"strengths": [1.0, -0.5]}, r"strengths=\[1\.0, -0\.5\]; expected at least one, none negative"),
    ({"damping": 0.0}, r"damping=0\.0; expected positive numbers"),
    ({"damping": -1.0}, r"damping=-1\.0; expected positive numbers"),
    ({"epochs": 0}, "epochs=0.*expected positive numbers"),
    ({"training_batch_size": 0}, "training_batch_size=0.*expected positive numbers"),
    ({"learning_rate": 0.0}, r"learning_rate=0\.0.*expected positive numbers"),
    ({"learning_rate": math.nan}, "learning_rate=nan.*expected positive numbers"),
    ({"max_performance_loss": -0.1}, "max_performance_loss or max_cross_entropy_rise is negative; expected at least 0"),
    ({"max_cross_entropy_rise": -0.1}, "max_performance_loss or max_cross_entropy_rise is negative"),
    ({"max_performance_loss": math.nan}, "expected at least 0"),
    ({"max_cross_entropy_rise": math.nan}, "expected at least 0"),
    ({"measure": "flips"}, r"measure='flips' is not a bias measure .*; expected one of \[.*'counterfactual_flips', "),
    ({"epsilon": 0.0}, "expected 0 <= margin < epsilon <= 1"),
    ({"max_seconds": 0}, "max_seconds=0; expected a positive number or None"),
    ({"selection_share": 0.0}, r"selection_share=0\.0; expected a share in \(0, 1\)"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS, ids=lambda value: str(value)[:60])
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CounterfactualUnlearning(**settings)
    fine = CounterfactualUnlearning()
    before = fine.get_params()
    with pytest.raises(InputError, match=message):
        fine.set_params(**settings)
    assert fine.get_params() == before
    for name, value in settings.items():  # written past set_params: fit looks again, before anything else
        setattr(fine, name, value)
    with pytest.raises(InputError, match=message):
        fine.repair(nn.Linear(5, 2), [])


@pytest.mark.parametrize("measure", ["counterfactual_flips", "counterfactual_bias"])
def test_other_methods_have_no_pairs(measure: str) -> None:
    for method in (ThresholdSelection, ParityFineTuning):
        message = f"measure='{measure}' is of counterfactual pairs; {method.__name__} expects one of .*use Counterfactu"
        with pytest.raises(InputError, match=message):
            method(measure=measure)
    with pytest.raises(InputError, match=r"model is a list; expected a torch\.nn\.Module"):
        METHODS["output"](measure=measure).repair([], [(X, Y)])  # type: ignore[arg-type]
