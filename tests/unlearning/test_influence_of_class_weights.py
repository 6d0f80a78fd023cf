"""Influence and unlearning of an output layer that was trained with class weights: a weight of 3 is three samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import InputError, ValidationSet, influence_on_bias, unlearn_samples


def _rows(n: int, n_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    order = (x[:, 0] + noise).argsort()
    target = torch.empty(n, dtype=torch.int64)
    target[order] = torch.arange(n) * n_classes // n
    return x, target


def _loader(x: Tensor, target: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, target), batch_size=16)


def _case(n_outputs: int) -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    n_classes = max(2, n_outputs)
    x, target = _rows(50, n_classes, 1)
    weights = torch.tensor([1.0, 3.0, 2.0])[:n_classes]
    copies = weights.long()[target]
    return nn.Linear(3, n_outputs).double(), x, target, weights, copies


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_unlearning_with_weights_is_that_of_copies(n_outputs: int, replaced: bool, exact: bool) -> None:
    model, x, target, weights, copies = _case(n_outputs)
    rows = torch.arange(7)
    of_copies = (torch.arange(50).repeat_interleave(copies)[:, None] == rows).any(1)
    options: dict[str, Any] = {"exact": exact, "ridge": 0.01, "progress": False}
    if replaced:
        options["counterfactual"] = lambda x: x * torch.tensor([1.0, -1.0, 1.0])
    found = unlearn_samples(model, _loader(x, target), rows, class_weights=weights, **options)
    every = _loader(x.repeat_interleave(copies, 0), target.repeat_interleave(copies))
    expected = unlearn_samples(model, every, of_copies, **options)
    for mine, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)
    plain = unlearn_samples(model, _loader(x, target), rows, **options)
    assert not torch.allclose(plain.weight, found.weight, rtol=0.01)  # type: ignore[arg-type]


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_influence_with_weights_is_that_of_copies(n_outputs: int) -> None:
    model, x, target, weights, copies = _case(n_outputs)
    held, labels = _rows(60, max(2, n_outputs), 2)
    people = ValidationSet(held, labels, torch.arange(60) % 2, ("a", "b"))
    options: dict[str, Any] = {
        "measure": "accuracy_score_difference",
        "ridge": 0.01,
        "newton_steps": 50,
        "progress": False,
    }
    found = influence_on_bias(model, _loader(x, target), people, class_weights=weights, **options)
    every = _loader(x.repeat_interleave(copies, 0), target.repeat_interleave(copies))
    expected = influence_on_bias(model, every, people, **options)
    of_copies = torch.arange(50).repeat_interleave(copies)
    assert found.bias == pytest.approx(expected.bias, rel=1e-6)
    for n in range(50):
        change = expected.predicted_change((of_copies == n).nonzero().squeeze(1))
        assert found.predicted_change(torch.tensor([n])) == pytest.approx(change, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("weights", [torch.ones(3), torch.tensor([1.0, -1.0]), torch.tensor([0.0, 1.0])])
def test_wrong_class_weights(weights: Tensor) -> None:
    model, x, target, _, _ = _case(2)
    with pytest.raises(InputError, match=r"class_weights has shape .*expected \(2,\), positive, one a class"):
        unlearn_samples(model, _loader(x, target), torch.arange(2), class_weights=weights, progress=False)


def test_class_weights_need_the_closed_form() -> None:
    model, x, target, weights, _ = _case(2)
    people = ValidationSet(x, target, torch.arange(50) % 2, ("a", "b"))
    with pytest.raises(InputError, match="class_weights with layers='all'; expected layers='output'"):
        influence_on_bias(
            model, _loader(x, target), people, measure="accuracy_score_difference", layers="all", class_weights=weights
        )
