"""A network with everything that an edit could leave changed."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.repair_cases import Peculiar


@pytest.fixture
def model() -> nn.Module:
    """A network in a state of its own: mixed flags, a gradient, a frozen parameter, the user's hook, which draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Peculiar().train()
        model(torch.randn(30, 4))
        model.norm.eval()
        model(torch.randn(8, 4)).square().sum().backward()
    model.body.bias.requires_grad_(False)

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        torch.rand(3), np.random.rand(2), random.random()

    model.head.register_forward_pre_hook(hook)
    return model
