"""A network with everything that an edit could leave changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.unlearning_cases import Peculiar, leaning_people, trained_on


@pytest.fixture
def model() -> nn.Module:
    """A network in a state of its own: mixed flags, a gradient, a frozen parameter, the user's hook."""
    people = leaning_people(149, seed=100)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = trained_on(Peculiar().train(), people.inputs.float(), people.target, 30)
        model.norm.eval()
        model(people.inputs[:8].float()).square().sum().backward()
    model.body.bias.requires_grad_(False)
    model.head.register_forward_pre_hook(lambda module, args: None)
    return model
