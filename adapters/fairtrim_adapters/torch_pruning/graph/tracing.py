"""Layers that Torch-Pruning 1.6 can't trace or doesn't know, made known for the making of a pruner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fairtrim import InputError

__all__ = ["RMSNormPruner", "RecurrentPruner", "traceable"]


class RecurrentPruner(tp.pruner.BasePruningFunc):  # type: ignore[misc]
    """Prunes the inputs of ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN``; their outputs can't be pruned by gates.

    Example:
        >>> layer = RecurrentPruner().prune_in_channels(nn.GRU(3, 2), [1])
        >>> layer.input_size, layer(torch.ones(1, 5, 2))[0].shape
        (2, torch.Size([1, 5, 2]))
    """

    def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
        """Remove inputs.

        Args:
            layer: The recurrent layer.
            idxs: Numbers of the inputs.

        Returns:
            The layer.
        """
        removed = set(idxs)
        keep = [k for k in range(layer.input_size) if k not in removed]
        for name in [name for name, _ in layer.named_parameters() if name.startswith("weight_ih_l0")]:
            setattr(layer, name, self._prune_parameter_and_grad(getattr(layer, name), keep, 1))
        layer.input_size = len(keep)
        return layer

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
        """Refuse.

        Args:
            layer: The recurrent layer.
            idxs: Numbers of the outputs.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("hidden channels of a recurrent layer can't be pruned; add it to ignored_layers")

    def get_out_channels(self, layer: Any) -> int:
        """Number of outputs, both directions together.

        Args:
            layer: The recurrent layer.

        Returns:
            The number.
        """
        return int(layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)

    def get_in_channels(self, layer: Any) -> int:
        """Number of inputs.

        Args:
            layer: The recurrent layer.

        Returns:
            The number.
        """
        return int(layer.input_size)


class RMSNormPruner(tp.pruner.BasePruningFunc):  # type: ignore[misc]
    """Prunes ``nn.RMSNorm``, with or without a weight, and norms of other packages that have one weight a channel.

    Channels pass through them: the same function for both sides tells Torch-Pruning so.

    Example:
        >>> layer = nn.RMSNorm(3)
        >>> with torch.no_grad():
        ...     _ = layer.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        >>> RMSNormPruner().prune_out_channels(layer, [1]).weight.tolist(), layer.normalized_shape
        ([1.0, 3.0], (2,))
    """

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
        """Remove channels.

        Args:
            layer: The norm.
            idxs: Numbers of the channels.

        Returns:
            The layer.
        """
        removed = set(idxs)
        keep = [k for k in range(self.get_out_channels(layer)) if k not in removed]
        if layer.weight is not None:
            layer.weight = self._prune_parameter_and_grad(layer.weight, keep, -1)
        if hasattr(layer, "normalized_shape"):
            layer.normalized_shape = (*layer.normalized_shape[:-1], len(keep))
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: Any) -> int:
        """Number of channels.

        Args:
            layer: The norm.

        Returns:
            The number.
        """
        return int(layer.normalized_shape[-1] if layer.weight is None else layer.weight.shape[-1])

    get_in_channels = get_out_channels


@contextmanager
def traceable(model: nn.Module) -> Iterator[dict[type[nn.Module], tp.pruner.BasePruningFunc]]:
    """Let Torch-Pruning trace recurrent layers as one operation each, and hand it pruners for them and for RMSNorm.

    Without it making a pruner fails, or couples the wrong channels: Torch-Pruning follows the inner steps of ``nn.GRU``
    and ``nn.RNN``, and of ``nn.LSTM`` in float64, and knows no ``nn.RMSNorm``.

    Args:
        model: The network.

    Yields:
        What the pruner takes as ``customized_pruners``; make it inside the block.

    Raises:
        InputError: It is no network.

    Example:
        >>> class Tagger(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed, self.gru, self.head = nn.Linear(4, 6), nn.GRU(6, 5, batch_first=True), nn.Linear(5, 2)
        ...     def forward(self, x):
        ...         return self.head(self.gru(self.embed(x).relu())[0][:, -1])
        >>> tagger = Tagger()
        >>> with traceable(tagger) as pruners:
        ...     pruner = tp.pruner.BasePruner(
        ...         tagger,
        ...         torch.randn(2, 3, 4),
        ...         importance=tp.importance.GroupMagnitudeImportance(),
        ...         ignored_layers=[tagger.head, tagger.gru],
        ...         customized_pruners=pruners,
        ...     )
        >>> pruner.step()
        >>> tagger.gru.input_size
        3
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"got a {type(model).__name__}; expected the network: with traceable(model) as pruners")
    norm = getattr(nn, "RMSNorm", ())
    pruners: dict[type[nn.Module], tp.pruner.BasePruningFunc] = {}
    handles = []
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            pruners[type(module)] = RecurrentPruner()
            handles.append(module.register_forward_hook(_as_one, with_kwargs=True, prepend=True))
        elif isinstance(module, norm):
            pruners[type(module)] = RMSNormPruner()
    try:
        yield pruners
    finally:
        for handle in handles:
            handle.remove()


class _OneOperation(torch.autograd.Function):
    """Gives out what a layer gave out, with nothing in the graph between it and the layer's input."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *outputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(output.clone() for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        raise InputError(
            "the network is inside the block of traceable(model), where it can be traced but not differentiated; make "
            "the pruner there, and fit, prune and train after it"
        )


def _as_one(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Any, Any]
) -> tuple[Any, Any]:
    value = args[0] if args else kwargs["input"]
    result, state = output
    states = state if isinstance(state, tuple) else (state,)
    data = result.data if isinstance(result, PackedSequence) else result
    apply: Callable[..., Any] = _OneOperation.apply  # typed in some versions of torch
    data, *traced = apply(
        value.data if isinstance(value, PackedSequence) else value, data.detach(), *(entry.detach() for entry in states)
    )
    result = result._replace(data=data) if isinstance(result, PackedSequence) else data
    return result, tuple(traced) if isinstance(state, tuple) else traced[0]
