"""Slow, obvious versions of what the library computes fast: one sample at a time, one channel at a time.

They are for tests, and for checking a result on a network of your own. They share the reading of batches and of
sensitive features with the fast path, none of the mathematics.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairtrim.damage.channel_groups import ChannelGroup
from fairtrim.damage.gates import explicit_gates
from fairtrim.damage.table import DamageTable
from fairtrim.data.batches import iterate_batches
from fairtrim.data.sensitive_groups import GroupName, SensitiveEncoder, SensitiveNames
from fairtrim.devices import model_device
from fairtrim.progress import progress_bar

from .preservation import preserved_model, preserved_random_state

__all__ = [
    "explicit_gates",
    "measured_damage",
    "oracle_compensated_damage",
    "oracle_damage",
    "oracle_squared_gradients",
]


def _samples(
    loader: Iterable[Any], encoder: SensitiveEncoder
) -> Iterator[tuple[Tensor, Tensor, list[tuple[GroupName, float]]]]:
    """Single samples in float64 with the names and weights of their groups."""
    for batch in iterate_batches(loader, torch.device("cpu"), progress=False):
        weights = encoder.encode(batch.sensitive, len(batch), batch.index)
        for n in range(len(batch)):
            x = batch.inputs[n : n + 1]
            belongs = [(name, float(weights[n, g])) for g, name in enumerate(encoder.groups) if weights[n, g] != 0]
            yield x.double() if x.is_floating_point() else x, batch.target[n : n + 1], belongs


def oracle_damage(
    model: nn.Module,
    loader: Iterable[Any],
    channel_groups: Sequence[ChannelGroup],
    *,
    curvature: str = "exact",
    loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    sensitive_names: SensitiveNames | None = None,
    sensitive_weights: bool = False,
) -> DamageTable:
    """The damage table by a loop over samples and labels with explicit gates, in float64.

    Args:
        model: A network of one tensor in, scores out; a copy is used.
        loader: Batches of (inputs, target[, sensitive]).
        channel_groups: The channel groups.
        curvature: ``"exact"`` (labels drawn from the network's own p(y|x)) or ``"empirical"``.
        loss_fn: Loss of the scores and target of one sample; weights with which it takes a mean cancel here.
        sensitive_names: As for ``collect_damage``.
        sensitive_weights: As for ``collect_damage``.

    Returns:
        The table with interactions, its groups sorted by name.
    """
    model = copy.deepcopy(model).double().eval()
    encoder = SensitiveEncoder(sensitive_names, sensitive_weights=sensitive_weights)
    n_channels = sum(group.size for group in channel_groups)
    sums: dict[GroupName, dict[str, Tensor]] = {}
    alone: dict[GroupName, list[tuple[float, Tensor, Tensor, Tensor]]] = {}
    negative = False
    for x, y, belongs in _samples(loader, encoder):
        gates = {
            group.name: torch.ones(group.size, dtype=torch.float64, requires_grad=True, device="cpu")
            for group in channel_groups
        }
        with explicit_gates(model, channel_groups, gates):
            scores = model(x)

        def gate_gradient(
            label: Tensor, scores: Tensor = scores, gates: dict[str, Tensor] = gates
        ) -> tuple[Tensor, Tensor]:
            loss = loss_fn(scores, label)
            gradients = torch.autograd.grad(loss, list(gates.values()), retain_graph=True, allow_unused=True)
            dense = [torch.zeros_like(z) if g is None else g for g, z in zip(gradients, gates.values(), strict=True)]
            return loss.detach(), torch.cat(dense)

        loss, slope = gate_gradient(y)
        if curvature == "exact":
            outer = torch.zeros(n_channels, n_channels, dtype=torch.float64, device="cpu")
            for label, probability in enumerate(torch.softmax(scores.detach()[0], 0)):
                drawn = gate_gradient(torch.tensor([label], device="cpu"))[1]
                outer += probability * torch.outer(drawn, drawn)
        else:
            outer = torch.outer(slope, slope)
        for name, weight in belongs:
            entry = sums.setdefault(
                name,
                {
                    "counts": torch.zeros((), dtype=torch.float64, device="cpu"),
                    "loss": torch.zeros((), dtype=torch.float64, device="cpu"),
                    "slope": torch.zeros(n_channels, dtype=torch.float64, device="cpu"),
                    "outer": torch.zeros(n_channels, n_channels, dtype=torch.float64, device="cpu"),
                },
            )
            for key, value in (("counts", 1.0), ("loss", loss), ("slope", slope), ("outer", outer)):
                entry[key] += weight * value
            second_order = 0.5 * outer.diagonal()
            alone.setdefault(name, []).append((weight, second_order - slope, second_order, loss.reshape(1)))
        negative |= bool(loss < 0)
    names = [encoder.groups[g] for g in encoder.order()]
    counts = torch.stack([sums[name]["counts"] for name in names])
    outer = torch.stack([sums[name]["outer"] / sums[name]["counts"] for name in names])
    return DamageTable(
        sensitive_groups=tuple(names),
        features=encoder.features or (),
        sizes={group.name: group.size for group in channel_groups},
        counts=counts,
        loss=torch.stack([sums[name]["loss"] / sums[name]["counts"] for name in names]),
        slope=torch.stack([sums[name]["slope"] / sums[name]["counts"] for name in names]),
        curvature=torch.diagonal(outer, dim1=1, dim2=2).clone(),
        interactions=outer,
        people=torch.stack([_people(alone[name]) for name in names]),
        standard_error=torch.stack([_standard_error(alone[name], 1) for name in names]),
        second_order_error=torch.stack([_standard_error(alone[name], 2) for name in names]),
        loss_error=torch.cat([_standard_error(alone[name], 3) for name in names]),
        signed_loss=negative,
    )


def oracle_compensated_damage(
    model: nn.Module,
    loader: Iterable[Any],
    channel_groups: Sequence[ChannelGroup],
    *,
    normalised: Collection[str] = (),
    ridge: float = 1e-3,
    sensitive_names: SensitiveNames | None = None,
    sensitive_weights: bool = False,
) -> Tensor:
    """What is left of the damage of each channel once its readers make up for it, one channel at a time.

    For every layer that reads it, a channel's input is regressed on the layer's other inputs, row by row, and the
    layer's weights are moved by what they give; what its outputs then lack, as a share of what the channel gave them,
    multiplies ½ E_g E_y[s_nc²].

    Args:
        model: A network of one tensor in, scores out; a copy is used.
        loader: Batches of (inputs, target[, sensitive]).
        channel_groups: Read by linear layers and convolutions, as inputs.
        normalised: Names of layers with a BatchNorm behind them, which takes up a constant as a bias does.
        ridge: Of the regression, as a share of the mean square of an input.
        sensitive_names: As for ``collect_damage``.
        sensitive_weights: As for ``collect_damage``.

    Returns:
        Δ̃_gc, (G, C) in float64.
    """
    table = oracle_damage(
        model, loader, channel_groups, sensitive_names=sensitive_names, sensitive_weights=sensitive_weights
    )
    model = copy.deepcopy(model).double().eval()
    inputs = torch.cat([batch.inputs for batch in iterate_batches(loader, torch.device("cpu"), progress=False)])
    modules: dict[str, Any] = dict(model.named_modules())
    read: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, args: read.update({name: args[0].detach()})

    names = {place.module for group in channel_groups for place in group.places}
    handles = [modules[name].register_forward_pre_hook(note(name)) for name in names]
    with torch.no_grad():
        model(inputs.double())
    for handle in handles:
        handle.remove()
    shares = []
    for group in channel_groups:
        for channel in range(group.size):
            lacks = gave = 0.0
            for place in group.places:
                its = [c for c, k in zip(place.channels, place.group_channels, strict=True) if k == channel]
                if not its:
                    continue
                module, rows = modules[place.module], read[place.module]
                constant = module.bias is not None or place.module in normalised
                of_layer = _lacking(module, rows, its, constant=constant, ridge=ridge)
                lacks, gave = lacks + of_layer[0], gave + of_layer[1]
            shares.append(lacks / gave if gave else 0.0)
    return 0.5 * table.curvature * torch.tensor(shares, dtype=torch.float64, device="cpu")


def _lacking(
    module: Any, read: Tensor, channels: Sequence[int], *, constant: bool, ridge: float
) -> tuple[float, float]:
    """Mean square of what a layer's outputs lack without some inputs, and of what these gave, as shares of all."""
    weight = module.weight.detach()
    if isinstance(module, nn.Linear):
        # the positions of a channel behind a flatten stand in a row
        places = len(channels) if channels[-1] - channels[0] == len(channels) - 1 else 1
        rows = read.reshape(-1, read.shape[-1] // places, places).transpose(1, 2).flatten(0, 1)
        blocks = [(rows, weight.reshape(len(weight), -1, places))]
        gone = {(0, channel // places) for channel in channels}
    else:
        rows, size = read.movedim(1, -1).flatten(0, -2), weight.shape[1]
        blocks = list(zip(torch.split(rows, size, 1), weight.flatten(2).chunk(module.groups), strict=True))
        gone = {(channel // size, channel % size) for channel in channels}
    scale = ridge * float(rows.square().mean())
    lacks = gave = total = 0.0
    for block, (x, w) in enumerate(blocks):
        total += sum(_mean_square(x[:, [c]], w[:, [c]]) for c in range(x.shape[1]))
        its = sorted(c for b, c in gone if b == block)
        others = [c for c in range(x.shape[1]) if c not in its]
        centred = x - x.mean(0) if constant else x
        shrinking = (scale * len(x)) ** 0.5 * torch.eye(len(others), dtype=x.dtype, device="cpu")
        wanted = torch.cat([centred[:, its], x.new_zeros(len(others), len(its))])
        mix = torch.linalg.lstsq(torch.cat([centred[:, others], shrinking]), wanted).solution
        lacks += _mean_square(centred[:, its] - centred[:, others] @ mix, w[:, its])
        gave += _mean_square(x[:, its], w[:, its])
    return lacks / total, gave / total


def _mean_square(values: Tensor, weight: Tensor) -> float:
    """Of what some inputs together give all outputs through all taps: values (rows, I), weight (O, I, T)."""
    return float(torch.einsum("ri,oit->rot", values, weight).square().mean(0).sum())


def _people(samples: Sequence[tuple[float, Tensor, Tensor, Tensor]]) -> Tensor:
    weights = torch.tensor([weight for weight, _, _, _ in samples], dtype=torch.float64, device="cpu")
    return weights.sum() ** 2 / weights.square().sum()


def _standard_error(samples: Sequence[tuple[float, Tensor, Tensor, Tensor]], which: Literal[1, 2, 3]) -> Tensor:
    """Of a weighted mean over people, from their deviations; NaN for one person."""
    weights = torch.tensor([sample[0] for sample in samples], dtype=torch.float64, device="cpu").unsqueeze(1)
    values = torch.stack([sample[which] for sample in samples])
    deviations = values - (weights * values).sum(0) / weights.sum()
    if len(samples) == 1:
        return torch.full_like(values[0], torch.nan)
    return ((weights * deviations.square()).sum(0) / weights.sum() / (_people(samples) - 1)).sqrt()


def oracle_squared_gradients(
    model: nn.Module, loader: Iterable[Any], *, curvature: str = "exact", sensitive_weights: bool = False
) -> tuple[list[GroupName], dict[str, Tensor]]:
    """h_i^g, the mean squared per-sample gradient of every parameter for every sensitive group, by a loop.

    Args:
        model: A network of one tensor in, scores out; a copy is used.
        loader: Batches of (inputs, target[, sensitive]).
        curvature: ``"exact"`` or ``"empirical"``.
        sensitive_weights: As for ``collect_damage``.

    Returns:
        Names of the G groups, sorted, and (G, *shape) in float64 for each parameter.
    """
    model = copy.deepcopy(model).double().eval().requires_grad_()
    encoder = SensitiveEncoder(sensitive_weights=sensitive_weights)
    parameters = dict(model.named_parameters())
    sums: dict[GroupName, dict[str, Tensor]] = {}
    counts: dict[GroupName, float] = {}
    for x, y, belongs in _samples(loader, encoder):
        scores = model(x)
        if curvature == "exact":
            labels = list(enumerate(torch.softmax(scores.detach()[0], 0)))
        else:
            labels = [(int(y), torch.ones((), dtype=torch.float64, device="cpu"))]
        for label, probability in labels:
            loss = F.cross_entropy(scores, torch.tensor([label], device="cpu"))
            gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
            for name, weight in belongs:
                entry = sums.setdefault(name, {key: torch.zeros_like(p) for key, p in parameters.items()})
                for key, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        entry[key] = entry[key].detach() + weight * probability * gradient.detach() ** 2
        for name, weight in belongs:
            counts[name] = counts.get(name, 0.0) + weight
    names = [encoder.groups[g] for g in encoder.order()]
    return names, {key: torch.stack([sums[name][key].detach() / counts[name] for name in names]) for key in parameters}


def measured_damage(
    model: nn.Module,
    loader: Iterable[Any],
    channel_groups: Sequence[ChannelGroup],
    removals: Sequence[Mapping[str, Iterable[int]]],
    *,
    sensitive_names: SensitiveNames | None = None,
    sensitive_weights: bool = False,
    progress: bool = True,
) -> tuple[tuple[GroupName, ...], Tensor]:
    """The measured rise of each group's mean cross-entropy when channels are really removed.

    One forward pass over the data for every set of channels: the truth that the damage table predicts.

    Args:
        model: The network.
        loader: Batches of (inputs, target[, sensitive]).
        channel_groups: The channel groups.
        removals: Sets of channels, numbers by group name.
        sensitive_names: As for ``collect_damage``.
        sensitive_weights: As for ``collect_damage``.
        progress: Show a progress bar.

    Returns:
        Names of the G groups, sorted, and (len(removals), G) in float64.
    """
    with preserved_random_state(loader), preserved_model(model), torch.no_grad():
        batches = list(iterate_batches(loader, model_device(model), progress=False))
        encoder = SensitiveEncoder(sensitive_names, sensitive_weights=sensitive_weights)
        for batch in batches:
            encoder.encode(batch.sensitive, len(batch), batch.index)
        weights = torch.cat([encoder.encode(batch.sensitive, len(batch), batch.index) for batch in batches])
        counts = weights.sum(0)
        order = encoder.order()

        def group_losses(removal: Mapping[str, Iterable[int]]) -> Tensor:
            gates = {group.name: torch.ones(group.size, device="cpu") for group in channel_groups}
            for name, channels in removal.items():
                gates[name][list(channels)] = 0
            with explicit_gates(model, channel_groups, gates):
                losses = [F.cross_entropy(model(batch.inputs), batch.target, reduction="none") for batch in batches]
            return (weights.T @ torch.cat(losses).double().cpu() / counts)[order]

        dense = group_losses({})
        bar = progress_bar(removals, description="measured damage", shown=progress, unit="removal")
        changes = torch.stack([group_losses(removal) - dense for removal in bar])
    return tuple(encoder.groups[g] for g in order), changes
