"""How large a network is: parameters and multiply-accumulate operations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fairtrim.data.batches import Batch, slice_samples
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.preservation import preserved_model, preserved_random_state

__all__ = ["network_size"]


def network_size(network: ScoredNetwork, batch: Batch) -> dict[str, int]:
    """Parameters, and multiply-accumulate operations of one sample.

    Shared parameters count once; ``macs`` are half of what torch's FlopCounterMode counts, which is matrix products and
    convolutions, those inside of attention and recurrent layers too.

    Example:
        >>> network_size(ScoredNetwork(torch.nn.Linear(3, 2)), Batch(torch.ones(5, 3), torch.zeros(5), None, 0))
        {'parameters': 8, 'macs': 6}
    """
    from torch.utils.flop_counter import FlopCounterMode

    one = Batch(slice_samples(batch.inputs, slice(0, 1)), batch.target[:1], None, batch.index)
    counter = FlopCounterMode(display=False)
    with preserved_random_state(), preserved_model(network.model), torch.no_grad(), _nothing_fused(), counter:
        network.output(one.inputs, index=one.index)
    return {
        "parameters": sum(parameter.numel() for parameter in network.model.parameters()),
        "macs": counter.get_total_flops() // 2,
    }


@contextmanager
def _nothing_fused() -> Iterator[None]:
    """Layers run as single products: of fused encoders, attention and recurrent layers the counter sees nothing."""
    backends: Any = torch.backends  # whose stubs take a setting for an object
    before = backends.mha.get_fastpath_enabled(), backends.mkldnn.enabled, backends.cudnn.enabled
    try:
        backends.mha.set_fastpath_enabled(False)
        backends.mkldnn.enabled = backends.cudnn.enabled = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        fast, backends.mkldnn.enabled, backends.cudnn.enabled = before
        backends.mha.set_fastpath_enabled(fast)
