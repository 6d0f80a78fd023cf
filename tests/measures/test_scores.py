"""What scores say."""

from __future__ import annotations

import pytest
import torch

from fairtrim import InputError
from fairtrim.measures.scores import centred, label_probability, labels_of, positive_margin, sharpened


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


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_sharpened_scores_have_one_width_and_the_same_decisions(n_outputs: int) -> None:
    scores = torch.randn(53, n_outputs, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for scale in (1e-3, 1.0, 50.0):
        sharp = sharpened(scale * scores, 8.0)
        torch.testing.assert_close(sharp, sharpened(scores, 8.0))
        assert torch.equal(labels_of(sharp), labels_of(scores))
    assert float(centred(sharp).std(0, correction=0).mean()) == pytest.approx(8)
    assert bool(torch.isfinite(sharpened(torch.zeros(5, n_outputs), 8.0)).all())
