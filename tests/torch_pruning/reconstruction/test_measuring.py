"""Which loaders plainly give samples in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fairtrim_adapters.torch_pruning.reconstruction.measuring import shares_samples

X, Y = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 2


def _loader(x: torch.Tensor, size: int, *, shuffle: bool = False) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, Y[: len(x)]), size, shuffle=shuffle)


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        ([(X, Y)], [(X[:20], Y[:20])], True),  # a part of it
        (_loader(X, 10), list(_loader(X, 10)), True),
        (_loader(X, 10), _loader(X.clone(), 9), True),  # equal rows in a data set of its own
        ([(X[:5], Y[:5])], [(X[:4], Y[:4])], False),  # of a few rows it may be chance
        ([(X[:15], Y[:15])], [(X[15:], Y[15:])], False),
        (_loader(X[:15], 10), _loader(X[15:], 10), False),
        ([({"x": X}, Y)], [({"x": X[:9]}, Y[:9])], True),
        ([(X, Y)], [(X[:, :2], Y)], False),
        ([], [(X, Y)], False),
    ],
)
def test_common_samples(one: Any, other: Any, common: bool) -> None:
    assert shares_samples(one, other) is common


def test_looking_draws_nothing() -> None:
    before = torch.get_rng_state()
    shares_samples(_loader(X, 10, shuffle=True), [(X, Y)])
    assert torch.equal(torch.get_rng_state(), before)
