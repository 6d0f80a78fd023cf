"""Recompute the statistics of BatchNorm layers after channels are gone; needs no labels and no training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fairtrim.data.batches import Batch, ForwardFunction, iterate_batches
from fairtrim.devices import model_device
from fairtrim.errors import InputError
from fairtrim.preservation import in_mode, insist, preserved_random_state

from .batchnorm import batchnorm_layers
from .scored_network import ScoredNetwork

__all__ = ["recalibrate_batchnorm"]


def recalibrate_batchnorm(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    forward_fn: ForwardFunction | None = None,
    max_batches: int | None = None,
    progress: bool = True,
) -> nn.Module:
    """Replace running means and variances by their averages over a loader, in place.

    Removing channels shifts what the layers behind them see, and the stored statistics no longer fit. Only the
    BatchNorm layers run in training mode; targets are ignored; weights do not change; batches of a single sample,
    which has no variance, are left out.

    Args:
        model: The network; its training flags are restored.
        loader: Batches of (inputs, target[, sensitive]).
        forward_fn: How to call the network.
        max_batches: Stop after so many batches.
        progress: Show a progress bar.

    Returns:
        The same network.

    Raises:
        InputError: The network has no BatchNorm with running statistics, every batch is a single sample, or the
            statistics are not finite.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> batch = (torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]))
        >>> recalibrate_batchnorm(norm, [batch], progress=False).running_mean
        tensor([2.])
    """
    norms = batchnorm_layers(model)
    if not norms:
        raise InputError("the network has no BatchNorm with running statistics; there is nothing to recalibrate")
    before = [(norm, norm.momentum, {k: b.detach().clone() for k, b in norm.named_buffers()}) for norm in norms]

    def restore_statistics() -> None:
        for norm, _, buffers in before:
            for name, value in buffers.items():
                getattr(norm, name).copy_(value)

    def restore_momentum() -> None:
        for norm, momentum, _ in before:
            norm.momentum = momentum

    with preserved_random_state(loader), in_mode(model, training=False), torch.no_grad():
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.training = True
            batches = iterate_batches(
                loader, model_device(model), max_batches=max_batches, progress=progress, description="BatchNorm"
            )
            _average(ScoredNetwork(model, forward_fn), norms, batches)
        except BaseException:
            insist(restore_statistics)
            raise
        finally:
            insist(restore_momentum)
    return model


def _average(network: ScoredNetwork, norms: Sequence[_BatchNorm], batches: Iterable[Batch]) -> None:
    """Run the network over the batches, so that every sample counts once."""
    n_samples = 0
    for batch in batches:
        if len(batch) < 2:  # the rest of a loader; one sample has no variance
            continue
        n_samples += len(batch)
        for norm in norms:
            norm.momentum = len(batch) / n_samples
        batch.check_length()
        network.output(batch.inputs, index=batch.index)
    if n_samples == 0:
        raise InputError("every batch holds one sample; statistics need at least two at a time")
    if not all(bool(torch.isfinite(buffer).all()) for norm in norms for buffer in norm.buffers()):
        raise InputError("the statistics are not finite; check the inputs for NaN and infinity")
