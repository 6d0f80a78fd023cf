"""Compare compressions: prune, repair and measure a network in many ways, and keep what is finished.

Example:
    >>> import torch
    >>> from torch import nn
    >>> people = [(torch.eye(4), torch.tensor([0, 1, 0, 1]), ["a", "a", "b", "b"])]
    >>> network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> table = sweep(network, DataSplits(test=people), "magnitude", [0.5], n_boot=None, progress=False)
    >>> table["parameters"].tolist()
    [44, 23]
"""

from __future__ import annotations

from fairtrim.data.data_splits import DataSplits
from fairtrim_adapters.torch_pruning.prune_copy import prune_copy

from .named_methods import POST_PROCESSORS
from .store import read_sweep
from .sweep_options import MeasuringOptions, PruningOptions, SweepOptions
from .sweeping import sweep
from .versions import versions

__all__ = [
    "POST_PROCESSORS",
    "DataSplits",
    "MeasuringOptions",
    "PruningOptions",
    "SweepOptions",
    "prune_copy",
    "read_sweep",
    "sweep",
    "versions",
]
