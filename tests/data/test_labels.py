"""Labels that no score belongs to, in tensors and arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fairtrim import InputError
from fairtrim.data.labels import require_labels, require_labels_of_tokens, whole_labels


@pytest.mark.parametrize("made", [torch.tensor, np.array], ids=["tensor", "array"])
def test_a_single_logit_has_two_labels(made: Any) -> None:
    require_labels(made([0, 1]), 1)
    require_labels(made([[0, 2], [1, 0]]), 3)
    require_labels(made([]), 3)
    with pytest.raises(InputError, match="labels reach from 0 to 2; expected 0 to 1 for 2 classes"):
        require_labels(made([0, 2]), 1)
    with pytest.raises(InputError, match="batch 3: labels reach from -1 to 1; expected 0 to 2 for 3 scores"):
        require_labels(made([-1, 1]), 3, what="batch 3: labels", unit="scores")


def test_whole_labels_of_any_type() -> None:
    for dtype in (torch.uint8, torch.int32, torch.float32, torch.bool):
        found = whole_labels(torch.tensor([[0], [1]], dtype=dtype), 0)
        assert found.tolist() == [0, 1] and found.dtype == torch.int64
    for wrong in (torch.eye(2), torch.tensor([0.5, 1.0])):
        with pytest.raises(InputError, match="batch 7: the target has shape"):
            whole_labels(wrong, 7)


def test_labels_of_tokens() -> None:
    ids, mask = torch.tensor([[5, 5, 7, 0], [4, 4, 4, 4]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    inputs = {"input_ids": ids, "attention_mask": mask}
    moved = torch.tensor([[5, 7, -100, -100], [4, 4, 4, -100]])
    for labels in (moved, moved.int(), moved[:, :3], torch.tensor([1, 0]), torch.full_like(ids, -100)):
        require_labels_of_tokens(inputs, labels, 0)
    one = {"input_ids": ids[1:]}, moved[1:]  # whose next tokens are the tokens
    require_labels_of_tokens(*one, 0)
    require_labels_of_tokens(ids, ids, 0)  # no text, as far as anybody knows
    with pytest.raises(InputError, match="batch 2: the labels are the tokens themselves"):
        require_labels_of_tokens(inputs, ids.masked_fill(mask == 0, -100), 2)
    with pytest.raises(InputError, match="batch 3: padding, which the attention mask hides, has labels"):
        require_labels_of_tokens(inputs, moved.masked_fill(mask == 0, 0), 3)
