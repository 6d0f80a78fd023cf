"""Squared per-sample gradients of any parameter: vectorised where the network allows it, else one sample at a time."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from fairtrim.data.batches import Batch, slice_samples
from fairtrim.network.scored_network import ScoredNetwork

from .moments import group_sums

__all__ = ["CHUNK_BYTES", "PerSampleSquares"]

CHUNK_BYTES = 64 * 2**20
"""Of per-sample gradients at a time."""


class PerSampleSquares(nn.Module):
    """The network with the caller's way to call it, as one module whose parameters can be replaced."""

    def __init__(self, network: ScoredNetwork) -> None:
        super().__init__()
        self.model, self._network = network.model, network
        # vmap can't go through recurrent layers
        self._one_by_one = any(isinstance(module, nn.RNNBase) for module in self.model.modules())

    def forward(self, batch: Batch) -> Tensor:
        """Scores of a batch, (N, K) or (N, T, K)."""
        return self._network.scores(batch, positions=True)

    def squares(self, names: Sequence[str], batch: Batch, direction: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Σ_n w_gn (∂ direction_n · f_n / ∂θ)² of the named parameters, (G, *shape) each; w is (G, N)."""
        if not self._one_by_one:
            try:
                return self._vectorized(names, batch, direction, weights)
            except RuntimeError as error:
                if "vmap" not in str(error):
                    raise
                # the network branches on values of its input, as transformers do on their padding masks
                self._one_by_one = True
        return self._looped(names, batch, direction, weights)

    def _vectorized(self, names: Sequence[str], batch: Batch, direction: Tensor, weights: Tensor) -> dict[str, Tensor]:
        chosen = {name: p.detach() for name, p in self.model.named_parameters() if name in set(names)}
        rest = {name: p.detach() for name, p in self.model.named_parameters() if name not in chosen}
        fixed = rest | {name: b.detach() for name, b in self.model.named_buffers()}

        leaves, structure = tree_flatten(batch.inputs)
        samples = {k: leaf for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}

        def projected(
            parameters: Mapping[str, Tensor], sample: Mapping[int, Tensor], target: Tensor, along: Tensor
        ) -> Tensor:
            inputs = tree_unflatten(
                [sample[k].unsqueeze(0) if k in sample else v for k, v in enumerate(leaves)], structure
            )
            single = Batch(inputs, target.unsqueeze(0), None, batch.index)
            tensors = {f"model.{name}": t for name, t in {**fixed, **parameters}.items()}
            scores: Tensor = torch.func.functional_call(self, tensors, (single,))
            return (scores[0] * along).sum()

        differentiate = torch.func.vmap(torch.func.grad(projected), in_dims=(None, 0, 0, 0), randomness="different")
        size = max(1, CHUNK_BYTES // max(1, 8 * sum(p.numel() for p in chosen.values())))
        squares: dict[str, Tensor] = {}
        for start in range(0, len(batch), size):  # vmap's own chunk_size would keep the gradients of all samples
            part = slice(start, min(start + size, len(batch)))
            inputs = {k: leaf[part] for k, leaf in samples.items()}
            with warnings.catch_warnings():  # attention has no batching rule: slower, and right
                warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
                gradients = differentiate(chosen, inputs, batch.target[part], direction[part])
            for name, gradient in gradients.items():
                square = group_sums(weights[:, part], gradient.to(weights.dtype).square())
                squares[name] = squares[name] + square if name in squares else square
        return squares

    def _looped(self, names: Sequence[str], batch: Batch, direction: Tensor, weights: Tensor) -> dict[str, Tensor]:
        chosen = {name: p.requires_grad_() for name, p in self.model.named_parameters() if name in set(names)}
        squares = {name: weights.new_zeros(len(weights), *p.shape) for name, p in chosen.items()}
        for n in range(len(batch)):
            inputs = slice_samples(batch.inputs, slice(n, n + 1))
            scores = self(Batch(inputs, batch.target[n : n + 1], None, batch.index))
            along = direction[n : n + 1].to(scores.dtype)
            gradients = torch.autograd.grad(scores, list(chosen.values()), along, allow_unused=True)
            for name, gradient in zip(chosen, gradients, strict=True):
                if gradient is not None:
                    squares[name] += torch.tensordot(weights[:, n], gradient.to(weights.dtype).square(), dims=0)
        return squares
