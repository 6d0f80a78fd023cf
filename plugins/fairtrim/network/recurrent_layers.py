"""LSTM, GRU and RNN in eval mode can be differentiated, which cuDNN's kernels refuse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["differentiable_recurrence"]


@contextmanager
def differentiable_recurrence(model: nn.Module) -> Iterator[None]:
    """Let a forward pass take torch's own kernels where cuDNN would refuse the backward pass.

    That is so where gradients are wanted and the network has a recurrent layer in eval mode ("cudnn RNN backward can
    only be called in training mode"). Nothing is changed for any other network, nor the other flags of cuDNN.

    Example:
        >>> with differentiable_recurrence(nn.LSTM(3, 5).eval()):
        ...     torch.backends.cudnn.enabled
        False
        >>> torch.backends.cudnn.enabled
        True
    """
    before: bool = torch.backends.cudnn.enabled
    if not (before and torch.is_grad_enabled()) or not any(
        isinstance(module, nn.RNNBase) and not module.training
        for module in (model.modules() if isinstance(model, nn.Module) else ())
    ):
        yield
        return
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before
