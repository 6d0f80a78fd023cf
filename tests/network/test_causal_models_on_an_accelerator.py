"""Causal language models as networks of pairs or answers, and activation checkpointing, on a device: as on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairtrim import SentencePairs, activation_checkpointing, pair_differences
from fairtrim.devices import to_device
from fairtrim.network.answer_scores import answer_scores
from fairtrim.network.pair_differences import pair_log_likelihoods
from tests.pretend_accelerator import Accelerator, PretendAccelerator

CPU = torch.device("cpu")


class _Tokens(nn.Module):
    """Scores of the next token from the one before it and from its position."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.words, self.places = nn.Embedding(7, 3), nn.Embedding(9, 3)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)) for _ in range(2))
            self.head = nn.Linear(3, 7)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None) -> Tensor:
        x = self.words(input_ids) + (0 if position_ids is None else self.places(position_ids))
        rows = x.flatten(0, 1)  # of two axes, of which the device has the CPU's kernels
        for block in self.blocks:
            rows = rows + block(rows)
        return self.head(rows).view(*x.shape[:2], -1)  # type: ignore[no-any-return]


PAIRS = SentencePairs.of_tokens([[1, 5, 6], [1, 4, 3, 2]], [[2, 5, 6], [2, 4, 3, 2]])
TEXTS = {
    "input_ids": torch.tensor([[1, 2, 0, 0], [0, 3, 4, 5], [6, 0, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 0, 0]]),
}


def _gradients(device: torch.device, *, again: bool) -> list[Tensor]:
    model, inputs = _Tokens().to(device), to_device(next(iter(PAIRS.loader()))[0], device)
    with activation_checkpointing(model) if again else nullcontext():
        loss = pair_differences(model, inputs).square().sum()
        return list(torch.autograd.grad(loss, list(model.head.parameters()) + list(model.blocks.parameters())))


EVERYTHING: dict[str, Callable[[torch.device], Any]] = {
    "differences": lambda device: pair_differences(
        _Tokens().to(device), to_device(next(iter(PAIRS.loader()))[0], device)
    ),
    "log-likelihoods": lambda device: pair_log_likelihoods(
        _Tokens().to(device), to_device(next(iter(PAIRS.loader()))[0], device)
    ),
    "answers": lambda device: answer_scores([5, 0, 3])(_Tokens().to(device), to_device(TEXTS, device)),
    "checkpoints": lambda device: _gradients(device, again=True),
}


@pytest.mark.parametrize("what", EVERYTHING)
def test_equal_to_the_cpu(accelerator: Accelerator, what: str) -> None:
    if isinstance(accelerator, PretendAccelerator):
        accelerator.refuses_float64 = True
    accelerator.check_same(EVERYTHING[what](accelerator.device), EVERYTHING[what](CPU))


def test_checkpoints_change_nothing(accelerator: Accelerator) -> None:
    accelerator.check_same(_gradients(accelerator.device, again=True), _gradients(accelerator.device, again=False))


def test_passes_do_not_wait(pretend: PretendAccelerator) -> None:
    """And the positions of answers go to the device once."""
    model, forward_fn = _Tokens().to(pretend.device), answer_scores([5, 0, 3])
    texts, pairs = to_device(TEXTS, pretend.device), to_device(next(iter(PAIRS.loader()))[0], pretend.device)
    forward_fn(model, texts)
    pretend.forget()
    for _ in range(3):
        forward_fn(model, texts)
        with activation_checkpointing(model):
            pair_differences(model, pairs).sum().backward()
    assert not pretend.waits
    assert not pretend.copies
