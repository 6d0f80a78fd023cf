"""Gates on the channels of a network: z_c multiplies channel c where it is consumed, and stays at 1.

The gradient of a sample's score in its own gate is what removing the channel does to first order. Gates at the
inputs of modules are identities in the forward pass, so the network computes what it always does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fairtrim.devices import to_device
from fairtrim.errors import InputError, UnsupportedModelError
from fairtrim.preservation import remove_hooks

from .channel_groups import ChannelGroup, Site

__all__ = ["Gates", "PlaceIndices", "explicit_gates", "hooked_gates", "map_consumed"]

PlaceIndices = dict[tuple[str, int, torch.device], Tensor]
"""Group and number of a place, and device -> positions in the group and in the module, (2, C), there."""


_FEW_POSITIONS = 256
"""Up to so many a product and a sum is faster on CUDA than a product of matrices, as torch's developers measured."""

_Indices = tuple[Tensor, Tensor, list[tuple[slice, Tensor]]]


def _samples_first(tensor: Tensor, site: Site, n_samples: int) -> Tensor:
    """Move the samples to the front and split what is folded into their axis: (N, rows, ...)."""
    tensor = tensor.movedim(site.sample_axis, 0) if site.sample_axis else tensor
    if tensor.shape[0] % n_samples:
        raise UnsupportedModelError(
            f"{tensor.shape[0]} rows at the {site.side} of {site.module!r} can't be told apart into {n_samples} "
            f"samples; expected the samples on axis {site.sample_axis}"
        )
    return tensor.reshape(n_samples, tensor.shape[0] // n_samples, *tensor.shape[1:])


def _sum_of_products(activation: Tensor, gradient: Tensor, site: Site, n_samples: int) -> Tensor:
    """Σ over all positions of activation · gradient, (N, C)."""
    if activation.ndim == 2 and activation.shape[0] == n_samples:
        return activation * gradient
    x, g = _samples_first(activation, site, n_samples), _samples_first(gradient, site, n_samples)
    if site.channel_axis == -1:
        return (x * g).flatten(1, -2).sum(1)
    axis = site.channel_axis + 1
    return _over_positions(x.movedim(axis, 1).flatten(2), g.movedim(axis, 1).flatten(2))


def _over_positions(x: Tensor, g: Tensor) -> Tensor:
    """Σ_l x_ncl g_ncl, (N, C)."""
    # einsum makes products of matrices of one row, in which cuBLAS is slow if they are short and many
    # (github.com/pytorch/pytorch: pull/48184, issues/32591, issues/101249)
    if x.is_cuda and x.dtype == torch.float32 and x.shape[2] <= _FEW_POSITIONS:
        return (x * g).sum(2)
    # no product is held, and on the CPU results stay as they were, to the last bit
    return torch.einsum("ncl,ncl->nc", x, g)


class _IdentityGate(torch.autograd.Function):
    """y = z · x at z = 1, without the product: backward gives ∂/∂z_nc = Σ_positions x ∂/∂y."""

    @staticmethod
    def forward(ctx: Any, activation: Tensor, gate: Tensor, site: Site) -> Tensor:
        ctx.save_for_backward(activation)  # autograd notices a later change in place
        ctx.site, ctx.n_samples, ctx.dtype = site, gate.shape[0], gate.dtype
        return activation.view_as(activation)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        (activation,) = ctx.saved_tensors
        # half precision is for the network: a sum over many positions would lose what it adds
        product = _sum_of_products(activation.to(ctx.dtype), gradient.to(ctx.dtype), ctx.site, ctx.n_samples)
        return (gradient if ctx.needs_input_grad[0] else None), product, None


class Gates:
    """The gates of one forward pass at ``sites``, and the gradients that reach them; C = ``n_columns``."""

    def __init__(self, sites: Sequence[Site], n_columns: int) -> None:
        self._sites = sites
        self._n_columns = n_columns
        self._n_samples = 0
        self._gates: dict[int, Tensor] = {}
        self._connected: set[int] = set()
        self._indices: dict[tuple[int, torch.device, torch.dtype], _Indices] = {}

    def start(self, n_samples: int) -> None:
        """Forget the last forward pass and get ready for one of N samples."""
        self._n_samples = n_samples
        self._gates = {}
        self._connected = set()

    @property
    def connected(self) -> set[tuple[str, str]]:
        """(module, side) of every site that the last forward pass reached and whose gate the scores depend on."""
        return {(self._sites[number].module, self._sites[number].side) for number in self._connected}

    def apply(self, number: int, activation: Any) -> Tensor:
        """Put the gate of a site on an activation; a module that is called twice has one gate.

        Before ``start`` there are none: what runs then is no batch of theirs.
        """
        if not self._n_samples:
            return activation  # type: ignore[no-any-return]
        site = self._sites[number]
        if not isinstance(activation, Tensor):
            raise UnsupportedModelError(
                f"the {site.side} of {site.module!r} is a {type(activation).__name__}; gates need a tensor: "
                "add the layers that it couples to ignored_layers"
            )
        if not torch.is_grad_enabled():
            raise UnsupportedModelError(
                f"{site.module!r} runs under no_grad, so what its channels do can't be seen; let that part of the "
                "network build a graph (freeze it with requires_grad_(False) instead; make checkpoints with "
                "use_reentrant=False), or add it to ignored_layers"
            )
        for what, axis in (("channel_axis", site.channel_axis), ("sample_axis", site.sample_axis)):
            if activation.ndim >= 2 and not -activation.ndim <= axis < activation.ndim:
                raise InputError(
                    f"the {site.side} of {site.module!r} has shape {tuple(activation.shape)}, and {what}={axis} is "
                    f"none of its {activation.ndim} axes; expected {-activation.ndim} to {activation.ndim - 1} where "
                    "the layer is described"
                )
        if activation.ndim < 2 or int(site.channels.max()) >= activation.shape[site.channel_axis]:
            raise UnsupportedModelError(
                f"the {site.side} of {site.module!r} has shape {tuple(activation.shape)}; expected at least "
                f"{int(site.channels.max()) + 1} channels on axis {site.channel_axis}"
            )
        gate = self._gates.get(number)
        if gate is None:
            channels = activation.shape[site.channel_axis]
            dtype = torch.promote_types(torch.float32, activation.dtype)
            gate = torch.ones(self._n_samples, channels, dtype=dtype, device=activation.device, requires_grad=True)
            self._gates[number] = gate
        if site.side == "input":
            apply: Callable[..., Tensor] = _IdentityGate.apply  # typed in some versions of torch
            return apply(activation, gate, site)
        return _multiply(activation, gate, site)

    def gradients(self, scores: Tensor, direction: Tensor, *, keep_graph: bool) -> Tensor:
        """Gate gradients of Σ_n direction_n · f_n: coupled places summed, samples kept apart.

        f(x) with its graph and direction are (N, K); ``keep_graph`` if another direction follows. Gives s_nc, (N, C),
        in float32 or the network's own precision where that is higher.
        """
        if not self._gates or not scores.requires_grad:
            raise UnsupportedModelError(
                "no channel of the groups reaches the network's scores; check output_transform and that the "
                "network neither runs under no_grad nor is compiled"
            )
        scale = _scale_of_float16(direction) if scores.dtype == torch.float16 else None
        direction = direction if scale is None else direction * scale.view(-1, *[1] * (direction.ndim - 1))
        try:
            gradients = torch.autograd.grad(
                scores,
                list(self._gates.values()),
                direction.to(scores.dtype),
                retain_graph=keep_graph,
                allow_unused=True,
            )
        except RuntimeError as error:
            if "use_reentrant" in str(error):
                raise UnsupportedModelError(
                    "the network holds a re-entrant checkpoint, through which no single gate can be differentiated; "
                    "use checkpoint(..., use_reentrant=False), or switch checkpoints off while it is scored"
                ) from error
            if "inplace operation" not in str(error):
                raise
            raise UnsupportedModelError(
                "the network changes the input of a layer in place after that layer has read it; use x = x + y in "
                "place of x += y there"
            ) from error
        dtype = torch.promote_types(torch.float32, scores.dtype)
        total = torch.zeros(self._n_samples, self._n_columns, dtype=dtype, device=scores.device)
        for number, gradient in zip(self._gates, gradients, strict=True):
            if gradient is None:
                continue
            self._connected.add(number)
            channels, weights, rounds = self._indices_of(number, total)
            values = gradient.to(total)[:, channels] * weights
            for part, columns in rounds:
                total.index_add_(1, columns, values[:, part])
        return total if scale is None else total / scale.unsqueeze(1)

    def _indices_of(self, number: int, total: Tensor) -> _Indices:
        """Channels of a site, (P,), their weights and, in slices of them, the columns they add to: uploaded once."""
        key = number, total.device, total.dtype
        if key not in self._indices:
            site, device = self._sites[number], total.device
            order, ends = np.arange(len(site.columns)), [len(site.columns)]
            if device.type != "cpu":  # where one sum adds a column twice, its order is left to chance
                order, ends = _without_repeats(site.columns)
            channels, columns = (torch.as_tensor(a[order], device=device) for a in (site.channels, site.columns))
            parts = [slice(start, end) for start, end in pairwise([0, *ends])]
            weights = torch.as_tensor(site.weights[order], dtype=total.dtype, device="cpu").to(device)
            self._indices[key] = channels, weights, [(part, columns[part]) for part in parts]
        return self._indices[key]


def _without_repeats(columns: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], list[int]]:
    """An order of the columns, and the ends of runs in it that hold none twice; equal ones stay in their order."""
    order = np.argsort(columns, kind="stable")
    starts = np.flatnonzero(np.diff(columns[order], prepend=-1))
    occurrence = np.empty_like(columns)
    occurrence[order] = np.arange(len(columns)) - np.repeat(starts, np.diff([*starts, len(columns)]))
    return np.argsort(occurrence, kind="stable"), np.cumsum(np.bincount(occurrence)).tolist()


def _scale_of_float16(direction: Tensor) -> Tensor:
    """A power of two for each sample, (N,), that brings its direction to about 1: below 6e-8 float16 has nothing."""
    largest = direction.detach().float().abs().flatten(1).amax(1)
    return torch.exp2(-largest.where(largest > 0, 1.0).log2().floor().clamp_min(-100))  # beyond 127 it is infinite


def _multiply(activation: Tensor, gate: Tensor, site: Site) -> Tensor:
    """An explicit product, for outputs: what follows may change them in place."""
    tensor = activation.movedim(site.sample_axis, 0) if site.sample_axis else activation
    rows = gate.repeat_interleave(tensor.shape[0] // gate.shape[0], 0)
    shape = [1] * tensor.ndim
    shape[0], shape[site.channel_axis] = rows.shape
    product: Tensor = tensor * rows.to(tensor.dtype).view(shape)
    return product.movedim(0, site.sample_axis) if site.sample_axis else product


@contextmanager
def hooked_gates(model: nn.Module, sites: Sequence[Site], n_columns: int) -> Iterator[Gates]:
    """Hook gates into a network for the length of the block; call ``start`` before each forward pass."""
    modules = dict(model.named_modules(remove_duplicate=False))
    gates = Gates(sites, n_columns)
    handles: list[RemovableHandle] = []
    try:
        for number, site in enumerate(sites):
            module = modules[site.module]
            if site.side == "input":
                handles.append(module.register_forward_pre_hook(_input_hook(gates, number), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(_output_hook(gates, number)))
        yield gates
    finally:
        remove_hooks(handles)


def map_consumed(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Any], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Change the inputs whose channels a layer consumes: its first argument; of attention query, key and value."""
    wanted = 3 if isinstance(module, nn.MultiheadAttention) else 1
    names = list(inspect.signature(module.forward).parameters)[len(args) : wanted]
    by_name = {name: change(kwargs[name]) for name in names if name in kwargs}
    return (*map(change, args[:wanted]), *args[wanted:]), {**kwargs, **by_name}


def _input_hook(gates: Gates, number: int) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return map_consumed(module, args, kwargs, lambda value: gates.apply(number, value))

    return hook


def _output_hook(gates: Gates, number: int) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
        return gates.apply(number, output)

    return hook


@contextmanager
def explicit_gates(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    gates: Mapping[str, Tensor],
    indices: PlaceIndices | None = None,
) -> Iterator[None]:
    """Multiply every channel by its gate at every place where it is consumed.

    Args:
        model: The network.
        groups: Its channel groups.
        gates: z of each group by name, (C,); 0 removes a channel.
        indices: Positions that are on the device already, empty at first and filled; one for all passes of the same
            network and groups.

    Yields:
        Nothing; inside, the network computes with the gates.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    handles: list[RemovableHandle] = []
    indices = {} if indices is None else indices

    def gated(tensor: Tensor, group: ChannelGroup, number: int) -> Tensor:
        place, key = group.places[number], (group.name, number, tensor.device)
        if key not in indices:
            numbers = torch.tensor([list(place.group_channels), list(place.channels)], device="cpu")
            indices[key] = numbers.to(tensor.device)
        of_group, channels = indices[key]
        factors = torch.ones(tensor.shape[place.channel_axis], dtype=tensor.dtype, device=tensor.device)
        of_place = to_device(gates[group.name].to(tensor.dtype), tensor.device)[of_group]
        if place.weight != 1:  # the slope at an open gate, also at a closed one, where that of a root is infinite
            of_place = of_place.detach() ** place.weight + place.weight * (of_place - of_place.detach())
        factors = factors.index_put((channels,), of_place)
        shape = [1] * tensor.ndim
        shape[place.channel_axis] = -1
        return tensor * factors.view(shape)

    try:
        for group in groups:
            for number, place in enumerate(group.places):
                module = modules[place.module]
                if place.side == "input":

                    def before(
                        module: nn.Module,
                        args: tuple[Any, ...],
                        kwargs: dict[str, Any],
                        group: ChannelGroup = group,
                        number: int = number,
                    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
                        return map_consumed(module, args, kwargs, lambda value: gated(value, group, number))

                    handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                else:

                    def after(
                        module: nn.Module,
                        args: tuple[Any, ...],
                        output: Tensor,
                        group: ChannelGroup = group,
                        number: int = number,
                    ) -> Tensor:
                        return gated(output, group, number)

                    handles.append(module.register_forward_hook(after))
        yield
    finally:
        remove_hooks(handles)
