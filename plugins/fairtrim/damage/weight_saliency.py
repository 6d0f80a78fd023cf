"""FairPrune's saliency of weights: squared per-sample gradients of every parameter for every group.

FairPrune scores parameter i for sensitive group g by s_i^g = ½ θ_i² h_ii^g, with h the diagonal curvature of
the group's mean loss (Wu et al., MICCAI 2022, arXiv 2203.02110). h is the mean of SQUARED per-sample gradients:
the square of a batch's mean gradient is a few per cent of it and ranks differently.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairtrim.data.batches import Batch
from fairtrim.devices import to_device
from fairtrim.errors import InputError, UnsupportedModelError
from fairtrim.files.resumption import fingerprint
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.placement import require_whole
from fairtrim.preservation import preserved_model, preserved_random_state, remove_hooks
from fairtrim.processes import Processes

from .channel_groups import ChannelGroup
from .loss_expansion import Curvature, expand_outputs
from .moments import Moments, group_sums, members_of, spread
from .per_sample_gradients import CHUNK_BYTES, PerSampleSquares
from .reading_options import Reading, ReadingOptions
from .running_sums import ON_DEVICE_BYTES, RunningSums
from .table import DamageTable

__all__ = ["collect_weight_saliency", "squared_gradients"]

_Call = tuple[Tensor, Tensor]
"""Input of one call of a layer and the gradient that reached its output."""


@torch.inference_mode(False)  # there nothing has a slope
def squared_gradients(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    curvature: Curvature = "auto",
    parameters: Sequence[str] | None = None,
    distributed: bool | None = None,
    **options: Unpack[ReadingOptions],
) -> tuple[DamageTable, dict[str, Tensor]]:
    """h_i^g of every parameter for every sensitive group, in one pass.

    Linear, convolution and normalisation layers have closed forms from their inputs and output gradients; the
    parameters of all other layers are differentiated by ``torch.func.vmap``, or one sample after the other in networks
    that branch on values of their input.

    Args:
        model: The network.
        loader: Batches of (inputs, target) or (inputs, target, sensitive).
        curvature: ``"exact"`` (one pass a class but one), ``"empirical"`` or ``"auto"``.
        parameters: Names of the parameters to score; default all of them.
        distributed: Whether several processes each read a share of the data; see ``CollectionOptions``.
        options: See ``ReadingOptions``.

    Returns:
        A damage table without channels, for the names, counts and losses of the G groups, and (G, *shape) in
        float64 for each parameter by name. Frozen parameters are scored too.

    Raises:
        ProcessError: Another process failed.
        UnsupportedModelError: The network is a single function of all samples, can't be differentiated, or its weights
            are offloaded or sharded.
    """
    reading, processes = Reading.of(options, "squared_gradients"), Processes(distributed, model)
    with processes.together():
        network = reading.network(model)
        network.check()
        device = network.device
        require_whole(model)  # parameters are known by their identity
        sample_loss, moments = reading.sample_loss(in_parts=processes.count > 1), Moments(0)
        encoder = reading.encoder()
        wanted = dict(model.named_parameters())
        if parameters is not None:
            wanted = {name: p for name, p in wanted.items() if name in set(parameters)}
        room = ON_DEVICE_BYTES / max(1, sum(p.numel() for p in wanted.values()))
        sums = {name: RunningSums(*p.shape, max_bytes=room * p.numel()) for name, p in wanted.items()}
        names = {id(p): name for name, p in wanted.items()}
        closed = _closed_form_layers(model, names)
        per_sample = PerSampleSquares(network)
        known = fingerprint(model) if processes.count > 1 else ""
    processes.agree({"network": known, "curvature": curvature})
    with processes.together(), preserved_random_state(loader), preserved_model(model), torch.enable_grad():
        checked = False
        batches = reading.batches(loader, device, "saliency", allow_empty=processes.count > 1)
        for batch in processes.attending(batches):
            if not checked:
                closed = _layers_of_agreement(network, closed, batch)
                covered = {id(p) for module in closed for p in module.parameters(recurse=False)}
                others = [name for name, p in wanted.items() if id(p) not in covered]
                checked = True
            with _recorded_calls(closed) as calls:
                scores = network.scores(batch, positions=True)
            with torch.autocast(device.type, enabled=False):  # the caller's is for the network
                expansion = expand_outputs(scores, batch.target, sample_loss, curvature)
                weights = encoder.encode(batch.sensitive, len(batch), batch.index)
                empty = scores.new_zeros(len(batch), 0)
                moments.add(weights, expansion.loss, empty, empty.unsqueeze(1), expansion.weight)
                directions = expansion.factor_directions()
                of_groups = weights.T.to(torch.promote_types(torch.float32, scores.dtype))
                on_device = to_device(of_groups, device)
                members = members_of(on_device, (of_groups != 0).sum(1).tolist())
                for r, direction in enumerate(directions):
                    for parameter, square in _closed_form_squares(
                        calls, scores, direction, on_device, members, r < len(directions) - 1
                    ):
                        if parameter in names:
                            sums[names[parameter]].add(square)
            for direction in directions if others else []:
                for name, square in per_sample.squares(others, batch, direction, on_device).items():
                    sums[name].add(square)
    places = encoder.share(processes)
    n_groups = len(encoder.groups)
    merged = moments.merged(processes, places, n_groups)
    table = DamageTable(sizes={}, **merged.means(encoder))
    divisor = table.counts * merged.mean_weight
    order = [encoder.groups.index(name) for name in table.sensitive_groups]
    total = {name: processes.sum(spread(of.total(len(places)), places, n_groups)) for name, of in sums.items()}
    return table, {name: value[order] / divisor.view(-1, *[1] * (value.ndim - 1)) for name, value in total.items()}


def collect_weight_saliency(
    model: nn.Module,
    loader: Iterable[Any],
    channel_groups: Sequence[ChannelGroup],
    *,
    curvature: Curvature = "auto",
    distributed: bool | None = None,
    **options: Unpack[ReadingOptions],
) -> DamageTable:
    """The damage table with Σ_{i∈c} ½ θ_i² h_i^g in place of the gates' damages: summed over each channel.

    It mispredicts the removal of a channel (the sum leaves out how weights of a channel act together, and the
    first order); it is here to compare with. FairPrune itself masks single weights.

    Args:
        model: The network.
        loader: Batches of (inputs, target) or (inputs, target, sensitive).
        channel_groups: Channel groups with their ``parameters``.
        curvature: As for ``squared_gradients``.
        distributed: As for ``squared_gradients``.
        options: See ``ReadingOptions``.

    Returns:
        A table whose slope is zero and that has no interactions.

    Raises:
        InputError: A channel group lists no parameters, or one that the network doesn't have.
    """
    parameters = dict(model.named_parameters())
    for group in channel_groups:
        unknown = [place.parameter for place in group.parameters if place.parameter not in parameters]
        if unknown or not group.parameters:
            raise InputError(
                f"channel group {group.name!r} lists the parameters {unknown or 'none'}; expected the model's"
            )
    needed = list(dict.fromkeys(place.parameter for group in channel_groups for place in group.parameters))
    table, squares = squared_gradients(
        model, loader, parameters=needed, curvature=curvature, distributed=distributed, **options
    )
    n_groups = len(table.sensitive_groups)
    columns = []
    for group in channel_groups:
        saliency = torch.zeros(n_groups, group.size, dtype=torch.float64, device="cpu")
        for place in group.parameters:
            parameter = parameters[place.parameter].detach().cpu().double()
            of_weights = parameter.square() * squares[place.parameter]
            of_channels = of_weights.movedim(place.axis % parameter.ndim + 1, 1)
            of_channels = of_channels.reshape(*of_channels.shape[:2], -1).sum(2)
            chosen = of_channels[:, torch.as_tensor(list(place.channels), device="cpu")]
            saliency.index_add_(1, torch.as_tensor(list(place.group_channels), device="cpu"), chosen)
        columns.append(saliency)
    total = torch.cat(columns, 1)
    return replace(
        table,
        sizes={group.name: group.size for group in channel_groups},
        slope=torch.zeros_like(total),
        curvature=total,
        interactions=None,
        standard_error=None,
        second_order_error=None,
    )


# Closed forms ---------------------------------------------------------------------------------------------


def _closed_form_layers(model: nn.Module, wanted: Container[int]) -> list[nn.Module]:
    """Layers with a closed form, and parameters that are wanted and that no other module shares."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return [
        module
        for module in model.modules()
        if _has_closed_form(module)
        and all(owners[id(p)] == 1 for p in module.parameters(recurse=False))
        and any(id(p) in wanted for p in module.parameters(recurse=False))
    ]


def _layers_of_agreement(network: ScoredNetwork, layers: Sequence[nn.Module], batch: Batch) -> list[nn.Module]:
    """Layers whose closed form gives autograd's gradient of a batch.

    It does not where the network also uses a layer's weight by itself, as a tied decoder does.
    """
    for layer in layers:
        layer.requires_grad_(True)  # the caller's flags come back with preserved_model
    with _recorded_calls(layers) as calls:
        scores = network.scores(batch, positions=True)
    if not calls or not scores.requires_grad:
        return list(layers)
    direction = torch.linspace(1, 2, scores[0].numel(), dtype=scores.dtype, device=scores.device)
    direction = direction.view(scores.shape[1:]).expand_as(scores)
    owned = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
    gradients = torch.autograd.grad(scores, owned, direction, retain_graph=True, allow_unused=True)
    expected = {id(p): g for p, g in zip(owned, gradients, strict=True)}
    dtype = torch.promote_types(torch.float32, scores.dtype)
    found: dict[int, Tensor] = {}
    for module, of_module in _calls_of_layers(calls, scores, direction, keep_graph=False).items():
        for chunk in _chunks(module, len(batch)):
            for key, piece in _chunk_gradients(module, of_module, chunk, len(batch), dtype).items():
                found[key] = found[key] + piece.sum(0) if key in found else piece.sum(0)
    tolerance = 0.05 if scores.dtype in (torch.float16, torch.bfloat16) else 1e-3

    def agrees(layer: nn.Module) -> Tensor:
        scales, differences = [], []
        for parameter in layer.parameters(recurse=False):
            gradient, sum_of_samples = expected[id(parameter)], found.get(id(parameter))
            if gradient is None or sum_of_samples is None:
                return torch.tensor(gradient is None and sum_of_samples is None, device=scores.device)
            scales.append(gradient.to(dtype).abs().max())
            differences.append((gradient.to(dtype) - sum_of_samples).abs().max())
        return torch.stack(differences).max() <= tolerance * torch.stack(scales).max()

    agreeing = torch.stack([agrees(layer) for layer in layers]).tolist()
    return [layer for layer, agreed in zip(layers, agreeing, strict=True) if agreed]


def _has_closed_form(module: nn.Module) -> bool:
    if type(module) in (nn.Conv1d, nn.Conv2d):
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) in (nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm)


@contextmanager
def _recorded_calls(layers: Sequence[nn.Module]) -> Iterator[list[tuple[nn.Module, Tensor, Tensor]]]:
    """Record input and a zero added to the output of every call; the gradient of that zero is the output's."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        value = args[0] if args else kwargs["input"]
        tap = torch.zeros((), dtype=output.dtype, device=output.device).expand(output.shape).requires_grad_()
        calls.append((module, value.detach(), tap))
        return output + tap

    handles = [layer.register_forward_hook(after, with_kwargs=True) for layer in layers]
    try:
        yield calls
    finally:
        remove_hooks(handles)


def _closed_form_squares(
    recorded: Sequence[tuple[nn.Module, Tensor, Tensor]],
    scores: Tensor,
    direction: Tensor,
    weights: Tensor,
    members: Sequence[Tensor],
    keep_graph: bool,
) -> Iterator[tuple[int, Tensor]]:
    """(id of parameter, Σ_n w_gn (∂ direction_n · f_n / ∂θ)²), (G, *shape) each."""
    n_samples = weights.shape[1]
    for module, of_module in _calls_of_layers(recorded, scores, direction, keep_graph).items():
        single_linear = isinstance(module, nn.Linear) and len(of_module) == 1 and of_module[0][0].ndim == 2
        if single_linear and len(of_module[0][0]) == n_samples:
            value, gradient = (t.to(weights.dtype).square() for t in of_module[0])
            # (g_o a_i)² = g_o² a_i²: one product for each sensitive group, no per-sample matrices
            products = [(gradient[m] * w[m].unsqueeze(1)).T @ value[m] for w, m in zip(weights, members, strict=True)]
            yield id(module.weight), torch.stack(products)
            if module.bias is not None:
                yield id(module.bias), group_sums(weights, gradient)
            continue
        for chunk in _chunks(module, n_samples):
            for key, gradient in _chunk_gradients(module, of_module, chunk, n_samples, weights.dtype).items():
                yield key, group_sums(weights[:, chunk], gradient.square())


def _calls_of_layers(
    recorded: Sequence[tuple[nn.Module, Tensor, Tensor]], scores: Tensor, direction: Tensor, keep_graph: bool
) -> dict[nn.Module, list[_Call]]:
    if not recorded:
        return {}
    if not scores.requires_grad:
        raise UnsupportedModelError("the scores have no graph; expected a network that doesn't run under no_grad")
    gradients = torch.autograd.grad(
        scores, [tap for _, _, tap in recorded], direction.to(scores.dtype), retain_graph=keep_graph, allow_unused=True
    )
    calls: dict[nn.Module, list[_Call]] = {}
    for (module, value, _), gradient in zip(recorded, gradients, strict=True):
        if gradient is not None:
            calls.setdefault(module, []).append((value, gradient))
    return calls


def _chunks(module: nn.Module, n_samples: int) -> list[slice]:
    """Samples whose gradients fit in memory at once."""
    per_sample = max(8 * sum(p.numel() for p in module.parameters(recurse=False)), 1)
    size = max(1, CHUNK_BYTES // per_sample)
    return [slice(start, min(start + size, n_samples)) for start in range(0, n_samples, size)]


def _chunk_gradients(
    module: nn.Module, calls: Sequence[_Call], chunk: slice, n_samples: int, dtype: torch.dtype
) -> dict[int, Tensor]:
    """Per-sample gradients of a layer's parameters, summed over its calls: (samples, *shape) by id."""
    total: dict[int, Tensor] = {}
    for call in calls:
        rows = [t.shape[0] // n_samples for t in call]
        if any(t.shape[0] % n_samples for t in call):
            raise UnsupportedModelError(
                f"a {type(module).__name__} saw {call[0].shape[0]} rows for {n_samples} samples; expected samples on "
                "axis 0"
            )
        value, gradient = (t[chunk.start * r : chunk.stop * r].to(dtype) for t, r in zip(call, rows, strict=True))
        for parameter, piece in _per_sample_gradients(module, value, gradient, chunk.stop - chunk.start):
            total[id(parameter)] = total[id(parameter)] + piece if id(parameter) in total else piece
    return total


def _per_sample_gradients(
    module: nn.Module, value: Tensor, gradient: Tensor, n_samples: int
) -> list[tuple[Tensor, Tensor]]:
    """[(parameter, (N, *shape))] of one call."""
    if isinstance(module, nn.Linear):
        value = value.reshape(n_samples, -1, value.shape[-1])
        gradient = gradient.reshape(n_samples, -1, gradient.shape[-1])
        weight, bias = torch.einsum("nto,nti->noi", gradient, value), gradient.sum(1)
    elif isinstance(module, nn.Conv1d | nn.Conv2d):
        weight, bias = _convolution_gradients(module, value, gradient, n_samples)
    else:
        normalised = _normalised(cast(Any, module), value)
        if isinstance(module, nn.LayerNorm):
            shape = (n_samples, -1, *module.normalized_shape)
            weight, bias = ((t.reshape(shape)).sum(1) for t in (gradient * normalised, gradient))
        else:
            weight = (gradient * normalised).flatten(2).sum(2) if gradient.ndim > 2 else gradient * normalised
            bias = gradient.flatten(2).sum(2) if gradient.ndim > 2 else gradient
            weight, bias = (t.reshape(n_samples, -1, t.shape[1]).sum(1) for t in (weight, bias))
    pairs = [(cast("Tensor | None", module.weight), weight), (cast("Tensor | None", module.bias), bias)]
    return [(parameter, piece) for parameter, piece in pairs if parameter is not None]


def _normalised(module: Any, value: Tensor) -> Tensor:
    """x̂, what the scale of a normalisation layer multiplies."""
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(value, module.normalized_shape, None, None, module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(value, module.num_groups, None, None, module.eps)
    mean, variance = module.running_mean.to(value.dtype), module.running_var.to(value.dtype)
    return F.batch_norm(value, mean, variance, None, None, False, 0.0, module.eps)


def _convolution_gradients(
    module: nn.Conv1d | nn.Conv2d, value: Tensor, gradient: Tensor, n_samples: int
) -> tuple[Tensor, Tensor]:
    kernel, stride = tuple(module.kernel_size), tuple(module.stride)
    padding, dilation = cast("tuple[int, ...]", module.padding), tuple(module.dilation)
    if isinstance(module, nn.Conv1d):  # unfold knows two spatial axes
        value, gradient = value.unsqueeze(2), gradient.unsqueeze(2)
        kernel, stride, padding, dilation = (1, *kernel), (1, *stride), (0, *padding), (1, *dilation)
    patches = F.unfold(value, kernel, dilation, padding, stride)  # (rows, I·k, L)
    groups = module.groups
    rows = value.shape[0]
    patches = patches.reshape(rows, groups, patches.shape[1] // groups, -1)
    columns = gradient.flatten(2).reshape(rows, groups, gradient.shape[1] // groups, -1)
    weight = (columns @ patches.transpose(2, 3)).reshape(n_samples, -1, *module.weight.shape).sum(1)
    bias = gradient.flatten(2).sum(2).reshape(n_samples, -1, gradient.shape[1]).sum(1)
    return weight, bias
