"""Adversarial fine-tuning: batches that the bias is defined for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fairtrim import (
    InputError,
)
from tests.repair_cases import METHODS, begun_network, some_people


def test_batches_that_never_hold_every_group() -> None:
    group = torch.zeros(97, dtype=torch.int64)
    group[:4] = torch.tensor([1, 2, 3, 4])
    people = replace(some_people(), group=group, groups=tuple("abcde"))
    method = METHODS["adversarial"](training_batch_size=3)
    with pytest.raises(InputError, match=r"none of 100 batches of 3 people holds every sensitive group"):
        method.repair(begun_network(), people, selection_loader=people, progress=False)
