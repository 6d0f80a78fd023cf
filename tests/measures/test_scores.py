"""What scores say."""

from __future__ import annotations

import pytest
import torch

from fairtrim import InputError
from fairtrim.measures.scores import label_probability, positive_margin


def test_margins() -> None:
    scores = torch.tensor([[1.0, 4.0], [2.0, -0.5]])
    assert positive_margin(scores).tolist() == [3.0, -2.5] and positive_margin(scores).dtype == torch.float64
    assert positive_margin(scores[:, 1:]).tolist() == [4.0, -0.5]
    with pytest.raises(InputError, match=r"3 classes have no single threshold; expected scores \(N, 2\) or \(N, 1\)"):
        positive_margin(torch.zeros(5, 3))


def test_probability_of_the_own_label() -> None:
    logit, target = torch.tensor([[2.0], [-1.0], [0.5]]), torch.tensor([1, 0, 0])
    expected = torch.sigmoid(torch.tensor([2.0, 1.0, -0.5]))
    torch.testing.assert_close(label_probability(logit, target), expected)
    torch.testing.assert_close(label_probability(torch.cat([1 - logit, torch.ones(3, 1)], 1), target), expected)
    rows = torch.softmax(torch.arange(6.0).reshape(2, 3).square(), 1)
    torch.testing.assert_close(label_probability(rows.log(), torch.tensor([2, 0])), rows[[0, 1], [2, 0]])
