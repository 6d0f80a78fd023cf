"""The output layer, or its threshold, is fitted to labels again; all else stays, and errors leave no trace."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import FairtrimError
from fairtrim.network import recalibration as module
from fairtrim.network.recalibration import recalibrate_output
from tests.snapshot import Snapshot


def _network(n_scores: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, n_scores)).train()


def _samples(n_scores: int, n: int = 203) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(1))
    if n_scores > 2:
        return x, x.argmax(1)
    return x, (x[:, 0] + 0.5 * x[:, 1] > 1.2).long()  # few have label 1


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    scores = copy.deepcopy(model).eval()(x).detach()
    if scores.shape[1] == 1:
        return float(F.binary_cross_entropy_with_logits(scores[:, 0], y.float()))
    return float(F.cross_entropy(scores, y))


def _right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    scores = copy.deepcopy(model).eval()(x)
    given = (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(1)
    return (given == y).double()


@pytest.mark.parametrize("n_scores", [1, 2, 3])
@pytest.mark.parametrize("balanced", [False, True])
def test_the_output_layer_is_at_the_minimum_of_the_loss_with_its_ridge(
    n_scores: int, balanced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RIDGES", (0.01,))
    model, (x, y) = _network(n_scores).double(), _samples(n_scores)
    x = x.double()
    present = copy.deepcopy(model[3])
    first = {name: value.clone() for name, value in model.state_dict().items()}
    recalibrate_output(model, [(x[:90], y[:90]), (x[90:], y[90:])], balanced=balanced, progress=False)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, first[name])}
    assert changed == {"3.weight", "3.bias"} and all(m.training for m in model.modules())

    features = model[:3].eval()(x).detach()
    weight = torch.ones(len(y)).double()
    if balanced:
        weight = torch.tensor([1 / float((y == label).sum()) for label in y.tolist()]).double()
    weight = weight / weight.sum()
    scores = model[3](features)
    losses = (
        F.binary_cross_entropy_with_logits(scores[:, 0], y.double(), reduction="none")
        if n_scores == 1
        else F.cross_entropy(scores, y, reduction="none")
    )
    moments = (weight[:, None] * features.square()).sum(0)
    ridge = 0.005 * (moments * (model[3].weight - present.weight).square()).sum()
    gradients = torch.autograd.grad(weight @ losses + ridge, list(model[3].parameters()))
    assert all(float(gradient.abs().max()) < 1e-6 for gradient in gradients)


def test_a_layer_that_was_spoiled_is_mended() -> None:
    model, (x, y) = _network(3), _samples(3)
    with torch.no_grad():
        model[3].bias += torch.tensor([2.0, -1.0, 0.0])
    before, right = _loss(model, x, y), _right(model, x, y).mean()
    assert recalibrate_output(model, [(x, y)], progress=False) is model
    assert _loss(model, x, y) < before - 0.3 and _right(model, x, y).mean() > right + 0.2


def test_a_layer_that_is_best_as_it_is_stays() -> None:
    model, (x, _) = _network(2), _samples(2)
    x, y = x.repeat(2, 1), torch.arange(2).repeat_interleave(len(x))  # everybody with either label
    with torch.no_grad():
        model[3].weight.zero_()
        model[3].bias.zero_()
    before = Snapshot(model)
    recalibrate_output(model, [(x, y)], progress=False)
    before.assert_unchanged()


@pytest.mark.parametrize("n_scores", [1, 2])
@pytest.mark.parametrize("balanced", [False, True])
def test_no_threshold_is_better(n_scores: int, balanced: bool) -> None:
    model, (x, y) = _network(n_scores).double(), _samples(n_scores)
    x = x.double()
    scores = copy.deepcopy(model).eval()(x).detach()
    margin = scores[:, 0] if n_scores == 1 else scores[:, 1] - scores[:, 0]
    accuracies = []
    for threshold in [*margin.tolist(), float(margin.min()) - 1]:
        right = ((margin > threshold).long() == y).double()
        accuracies.append(float((right[y == 0].mean() + right[y == 1].mean()) / 2 if balanced else right.mean()))
    weight = model[3].weight.detach().clone()
    recalibrate_output(model, [(x, y)], layer="threshold", balanced=balanced, progress=False)
    right = _right(model, x, y)
    reached = float((right[y == 0].mean() + right[y == 1].mean()) / 2 if balanced else right.mean())
    assert reached == pytest.approx(max(accuracies)) and torch.equal(weight, model[3].weight)
    before = Snapshot(model)
    recalibrate_output(model, [(x, y)], layer="threshold", balanced=balanced, progress=False)
    before.assert_unchanged()


@pytest.mark.parametrize("layer", ["output", "threshold"])
def test_errors_leave_the_network_as_it_was(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = _network(2), _samples(2)
    model(x).sum().backward()
    before = Snapshot(model)
    for batches, told in (
        ([], "no sample"),
        ([(x, torch.zeros_like(y))], "all 203 samples have label 0"),
        ([(x, y + 1)], "expected 0 to 1"),
        ([(torch.full_like(x, torch.nan), y)], "not finite"),
    ):
        with pytest.raises(FairtrimError, match=told):
            recalibrate_output(model, batches, layer=layer, progress=False)
        before.assert_unchanged()

    def interrupted(*args: Any) -> None:
        with torch.no_grad():
            model[3].bias.add_(1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "fold_threshold", interrupted)
        write = module.LinearHead.write
        calls = iter([interrupted])
        patch.setattr(module.LinearHead, "write", lambda head, theta: next(calls, lambda: write(head, theta))())
        if layer == "threshold":
            patch.setattr(module.LinearHead, "write", write)
        with pytest.raises(KeyboardInterrupt):
            recalibrate_output(model, [(x, y)], layer=layer, progress=False)
    before.assert_unchanged()


def test_what_can_not_be_is_refused() -> None:
    model, (x, y) = _network(3), _samples(3)
    with pytest.raises(FairtrimError, match="3 scores, and a threshold divides two classes"):
        recalibrate_output(model, [(x, y)], layer="threshold", progress=False)
    with pytest.raises(FairtrimError, match="layer='bias'; expected one of 'output', 'threshold'"):
        recalibrate_output(model, [(x, y)], layer="bias", progress=False)  # type: ignore[arg-type]
    with pytest.raises(FairtrimError, match="9 samples are too few to hold some out; expected at least 10"):
        recalibrate_output(model, [(x[:9], y[:9])], progress=False)


@pytest.mark.parametrize("n_scores", [1, 3])
def test_cells_of_class_and_flag_count_alike(n_scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the minimum of the mean over cells of the mean loss in each, whatever the loader's order."""
    monkeypatch.setattr(module, "_RIDGES", (0.01,))
    model, (x, y) = _network(n_scores).double(), _samples(n_scores)
    x, flags = x.double(), torch.arange(203) % 19 < 2
    flags &= y != 0  # a class without mined samples has one cell
    present = copy.deepcopy(model[3])
    loader = DataLoader(TensorDataset(x, y), batch_size=90, shuffle=True)
    recalibrate_output(model, loader, conflicting=flags, progress=False)
    assert not torch.equal(model[3].weight, present.weight)

    features = model[:3].eval()(x).detach()
    cells = sorted(set(zip(y.tolist(), flags.tolist(), strict=True)))
    assert len(cells) == 2 * max(n_scores, 2) - 1
    loss, moments = torch.zeros((), dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for label, flag in cells:
        members = (y == label) & (flags == flag)
        scores = model[3](features[members])
        if n_scores == 1:
            loss = loss + F.binary_cross_entropy_with_logits(scores[:, 0], y[members].double()) / len(cells)
        else:
            loss = loss + F.cross_entropy(scores, y[members]) / len(cells)
        moments += features[members].square().mean(0) / len(cells)
    ridge = 0.005 * (moments * (model[3].weight - present.weight).square()).sum()
    gradients = torch.autograd.grad(loss + ridge, list(model[3].parameters()))
    assert all(float(gradient.abs().max()) < 1e-6 for gradient in gradients)


def test_flags_that_are_not_those_of_the_dataset_are_refused() -> None:
    model, (x, y) = _network(3), _samples(3)
    loader, flags = DataLoader(TensorDataset(x, y), batch_size=50), torch.arange(203) % 9 == 0
    before = Snapshot(model)
    for given, options, told in (
        (loader, {"conflicting": flags[:200]}, "200 mined flags for 203 samples"),
        (loader, {"conflicting": flags.long()}, r"conflicting is a torch.int64; expected flags, \(N,\) torch.bool"),
        ([(x, y)], {"conflicting": flags}, "the loader is a list; expected a DataLoader"),
        (loader, {"conflicting": flags, "balanced": True}, "balanced=True would have no effect beside conflicting="),
    ):
        with pytest.raises(FairtrimError, match=told):
            recalibrate_output(model, given, progress=False, **options)  # type: ignore[arg-type]
        before.assert_unchanged()
