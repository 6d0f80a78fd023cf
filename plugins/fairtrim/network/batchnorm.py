"""Which layers of a network are BatchNorm, and keep statistics."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["batchnorm_layers"]


def batchnorm_layers(model: nn.Module, *, with_statistics: bool = True) -> list[_BatchNorm]:
    """The BatchNorm layers that keep running means and variances, which pruning makes wrong.

    Without ``with_statistics`` also those that normalise by the batch even in eval mode.

    Example:
        >>> layers = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
        >>> len(batchnorm_layers(layers)), len(batchnorm_layers(layers, with_statistics=False))
        (1, 2)
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [layer for layer in layers if layer.running_mean is not None or not with_statistics]
