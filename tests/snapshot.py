"""All of a network and of the caller that a call must leave alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn


class Snapshot:
    """Everything about a network that a caller could notice."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.state = self._state()
        self.tensors = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.gradients = {k: None if p.grad is None else p.grad.clone() for k, p in model.named_parameters()}
        self.random = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())

    def _state(self) -> dict[str, Any]:
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return {
            "flags": [m.training for m in self.model.modules()],
            "identities": [(id(p), p.requires_grad, id(p.grad)) for p in self.model.parameters()],
            "hooks": [[list(getattr(m, h)) for h in hooks] for m in self.model.modules()],
            "grad": torch.is_grad_enabled(),
        }

    def assert_unchanged(self) -> None:
        assert self._state() == self.state
        for name, value in self.model.state_dict().items():
            assert torch.equal(value, self.tensors[name]), name
        for name, parameter in self.model.named_parameters():
            before = self.gradients[name]
            assert (parameter.grad is None) == (before is None)
            assert before is None or torch.equal(parameter.grad, before)
        assert random.getstate() == self.random[0]
        assert np.random.get_state()[1].tolist() == self.random[1]
        assert torch.equal(torch.get_rng_state(), self.random[2])
