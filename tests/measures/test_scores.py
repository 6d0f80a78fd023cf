"""What scores say."""

from __future__ import annotations

import pytest
import torch

from fairtrim import InputError
from fairtrim.measures.scores import positive_margin


def test_margins() -> None:
    scores = torch.tensor([[1.0, 4.0], [2.0, -0.5]])
    assert positive_margin(scores).tolist() == [3.0, -2.5] and positive_margin(scores).dtype == torch.float64
    assert positive_margin(scores[:, 1:]).tolist() == [4.0, -0.5]
    with pytest.raises(InputError, match=r"3 classes have no single threshold; expected scores \(N, 2\) or \(N, 1\)"):
        positive_margin(torch.zeros(5, 3))
