"""Inputs that unlearning can't do with, by every function: a clear error, and nothing changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import (
    ColumnErasure,
    ColumnFlip,
    CounterfactualUnlearning,
    InputError,
    ValidationSet,
    biased_attributes,
    counterfactual_bias,
    influence_on_bias,
    unlearn_samples,
)
from tests.snapshot import Snapshot

FLIP = ColumnFlip(binary={3: (0.0, 1.0)})


def _network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def _data() -> tuple[Tensor, Tensor]:
    x = torch.randn(37, 4, generator=torch.Generator().manual_seed(0))
    x[:, 3] = (x[:, 3] > 0).float()
    return x, (x[:, 0] > 0).long()


X, Y = _data()


def _loader(x: Tensor, y: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, y), batch_size=10)


def _people(x: Tensor, y: Tensor, flipped: Any = None) -> ValidationSet:
    return ValidationSet(x, y, torch.zeros(len(y)), ("all",), counterfactual=flipped)


Run = Callable[[nn.Module, Tensor, Tensor], Any]
RUNS: dict[str, Run] = {
    "unlearning": lambda m, x, y: CounterfactualUnlearning(counterfactual=FLIP).repair(
        m, [(x, y)], inplace=True, progress=False
    ),
    "all layers": lambda m, x, y: CounterfactualUnlearning(counterfactual=FLIP, layers="all", epochs=1).repair(
        m, [(x, y)], inplace=True, progress=False
    ),
    "first of pairs": lambda m, x, y: CounterfactualUnlearning().repair(
        m, [((x, X[: len(x)]), y)], inplace=True, progress=False
    ),
    "second of pairs": lambda m, x, y: CounterfactualUnlearning().repair(
        m, [((X[: len(x)], x), y)], inplace=True, progress=False
    ),
    "erasure": lambda m, x, y: ColumnErasure(columns=[3]).repair(m, [(x, y)], inplace=True, progress=False),
    "identify": lambda m, x, y: biased_attributes(m, _people(x, y), {"sex": FLIP}),
    "influence, people": lambda m, x, y: influence_on_bias(m, _loader(X, Y), _people(x, y, FLIP(x)), progress=False),
    "influence, training": lambda m, x, y: influence_on_bias(m, _loader(x, y), _people(X, Y, FLIP(X)), progress=False),
    "all influence, people": lambda m, x, y: influence_on_bias(
        m, _loader(X, Y), _people(x, y, FLIP(x)), layers="all", damping=0.1, progress=False
    ),
    "all influence, training": lambda m, x, y: influence_on_bias(
        m, _loader(x, y), _people(X, Y, FLIP(X)), layers="all", damping=0.1, progress=False
    ),
    "unlearn samples": lambda m, x, y: unlearn_samples(m, _loader(x, y), torch.tensor([0]), progress=False),
}


def _with(value: float, column: int) -> Tensor:
    x = X.clone()
    x[5, column] = value
    return x


NOT_FINITE = "not finite"
NOBODY = "no sample|nobody|0 samples"
INPUTS: dict[str, tuple[Tensor, Tensor, str]] = {
    "NaN in a column": (_with(math.nan, 1), Y, NOT_FINITE),
    "NaN in the attribute": (_with(math.nan, 3), Y, f"{NOT_FINITE}|column 3 holds nan"),
    "nobody": (X[:0], Y[:0], NOBODY),
    "one": (X[:1], Y[:1], f"{NOBODY}|has label .; expected people of at least two|1 samples; expected at least 2"),
    "whole numbers": (
        X.round().long(),
        Y,
        r"int64 and the network is float32|no table; expected a tensor of numbers|pairs of one shape and type",
    ),
    "half precision": (X.half(), Y, "float16 and the network is float32"),
    "labels with fractions": (X, Y + 0.5, "expected whole class labels|expected integer labels"),
    "NaN labels": (X, Y + math.nan, "expected whole class labels|expected integer labels"),
    "labels from 1": (X, Y + 1, "labels reach from 1 to 2; expected 0 to 1"),
    "a label for each class": (
        X,
        torch.stack([Y, 1 - Y], 1),
        "expected whole class labels|expected integer labels",
    ),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", INPUTS)
def test_inputs_that_are_refused(name: str, run: str) -> None:
    x, y, message = INPUTS[name]
    model = _network()
    before = Snapshot(model)
    with pytest.raises(InputError, match=message):
        RUNS[run](model, x, y)
    before.assert_unchanged()


@pytest.mark.parametrize("run", RUNS)
def test_inputs_that_are_taken(run: str) -> None:
    """So that the table above is not of functions that refuse everything."""
    RUNS[run](_network(), X, Y)


WIDER = torch.cat([X, X[:, :1]], 1)


@pytest.mark.parametrize(
    "flipped", [WIDER, X[:, :3], X[:, :, None], X.long(), (X, X), {"x": WIDER}], ids=lambda f: type(f).__name__
)
def test_sides_of_pairs_are_of_one_shape(flipped: Any) -> None:
    model = _network()
    before = Snapshot(model)
    with pytest.raises(InputError, match="expected pairs of one shape and type"):
        CounterfactualUnlearning(counterfactual=lambda x: flipped).repair(model, [(X, Y)], progress=False)
    with pytest.raises(InputError, match="expected pairs of one shape and type"):
        ValidationSet(X, Y, torch.zeros(37), ("all",), counterfactual=flipped)
    before.assert_unchanged()


def test_sentences_of_pairs_may_be_of_different_lengths() -> None:
    tokens = torch.arange(10).reshape(2, 5)
    pairs = ValidationSet(tokens, Y[:2], torch.zeros(2), ("all",), counterfactual=tokens[:, :4])
    assert pairs.flipped().inputs.shape == (2, 4)


SCORES: list[tuple[dict[str, Any], str]] = [
    ({"scores": torch.full((5, 2), math.nan)}, "scores of the people are not finite"),
    ({"flipped": torch.full((5, 2), math.inf)}, "scores of the counterfactuals are not finite"),
    ({"flipped": torch.zeros(4, 2)}, r"scores are \(5, 2\) and \(4, 2\); expected pairs of one shape"),
    ({"scores": torch.zeros(5), "flipped": torch.zeros(5)}, r"scores are \(5,\); expected \(N, K\)"),
    ({"scores": torch.zeros(0, 2), "flipped": torch.zeros(0, 2)}, "of at least one pair"),
    ({"target": torch.zeros(4).long()}, r"shape \(4,\); expected labels \(5,\)"),
    ({"target": torch.zeros(5)}, r"the target is torch.float32"),
    ({"target": torch.full((5,), 2)}, "labels reach from 2 to 2; expected 0 to 1 for 2 classes"),
    ({"target": torch.full((5,), -1)}, "labels reach from -1 to -1"),
    ({"weight": torch.ones(4)}, "expected one a pair"),
    ({"weight": torch.zeros(5)}, "not all 0"),
    ({"weight": -torch.ones(5)}, "at least 0"),
    ({"weight": torch.full((5,), math.nan)}, "finite"),
]


@pytest.mark.parametrize(("changed", "message"), SCORES, ids=[message[:40] for _, message in SCORES])
def test_scores_that_are_refused(changed: dict[str, Any], message: str) -> None:
    fine: dict[str, Any] = {
        "scores": torch.zeros(5, 2),
        "flipped": torch.zeros(5, 2),
        "target": torch.zeros(5, dtype=torch.int64),
    }
    counterfactual_bias(**fine)
    with pytest.raises(InputError, match=message):
        counterfactual_bias(**fine | changed)


@pytest.mark.parametrize("n_pairs", [1, 2])
def test_few_pairs_of_whole_numbers(n_pairs: int) -> None:
    scores = torch.arange(2 * n_pairs).reshape(n_pairs, 2)
    found = counterfactual_bias(scores, scores.flip(1), torch.ones(n_pairs, dtype=torch.int64))
    assert found.n_pairs == n_pairs and found.flips == 1
