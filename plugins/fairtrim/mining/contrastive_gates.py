"""Contrastive weight pruning (DCWP) at the level of channels: learn which to keep, or one gradient of the same loss.

Park, Lee, Lee and Ye, CVPR 2023, arXiv 2210.05247, stage 3. There each weight has a gate; here each channel of a
dependency group has one, shared by all coupled layers, so that closing gates and removing channels are the same thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Unpack

import torch
from torch import Tensor, nn

from fairtrim.arguments import RandomState, random_generator, renamed, require_choice
from fairtrim.damage.channel_costs import ChannelCosts, Cost, weight_uses
from fairtrim.damage.channel_groups import ChannelColumns, ChannelGroup
from fairtrim.damage.gates import PlaceIndices, explicit_gates
from fairtrim.data.batches import Batch, ForwardFunction
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.devices import model_device
from fairtrim.network.output_layer import FeatureTap
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.preservation import preserved_model, preserved_random_state
from fairtrim.progress import progress_bar

from .contrastive_objective import ContrastiveObjective, GateLearning, frozen_weights, learn_logits

__all__ = ["channel_costs", "gate_slopes", "learn_gates", "straight_through"]


def straight_through(logits: Tensor, uniform: Tensor) -> Tensor:
    """A Bernoulli draw with P(open) = σ(π) whose gradient is that of σ(π).

    Args:
        logits: π.
        uniform: Draws from [0, 1) of the same shape.

    Returns:
        Zeros and ones.

    Example:
        >>> pi = torch.zeros(2, requires_grad=True)
        >>> gates = straight_through(pi, torch.tensor([0.4, 0.6]))
        >>> gates.detach().tolist(), torch.autograd.grad(gates.sum(), pi)[0].tolist()
        ([1.0, 0.0], [0.25, 0.25])
    """
    probability = torch.sigmoid(logits)
    return (uniform < probability).to(logits.dtype) + (probability - probability.detach())


@renamed(generator="random_state")
def learn_gates(
    model: nn.Module,
    samples: IndexedSamples,
    channel_groups: Sequence[ChannelGroup],
    objective: ContrastiveObjective,
    *,
    costs: Mapping[str, Tensor] | None = None,
    random_state: RandomState = 0,
    progress: bool = True,
    **learning: Unpack[GateLearning],
) -> dict[str, Tensor]:
    """Gate logits π that minimise E[objective] + λ Σ_c cost_c σ(π_c), weights frozen.

    Gates are drawn with P(open) = σ(π) at every iteration and learned straight through (the authors' code feeds a
    probability where the Gumbel-sigmoid wants a logit, and its sparsity term is Σπ). Weights and BatchNorm statistics
    don't change.

    Args:
        model: The network; left as it was.
        samples: The dataset.
        channel_groups: Its channel groups.
        objective: The loss and the mined samples.
        costs: What each channel costs, by group; default every channel the same. See ``channel_costs``.
        random_state: Seed, or a torch.Generator.
        progress: Show a progress bar.
        learning: See ``GateLearning``.

    Returns:
        π of every group by name, (C,) float64 on the CPU; open where π ≥ 0.

    Raises:
        InputError: The data or an argument is wrong.
    """
    device = model_device(model)
    indices: PlaceIndices = {}

    def gated(gates: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        return explicit_gates(model, channel_groups, gates, indices)

    return learn_logits(
        model,
        samples,
        objective,
        {group.name: torch.empty(group.size, dtype=torch.float32, device=device) for group in channel_groups},
        gated,
        draw=straight_through,
        costs=costs,
        random_state=random_state,
        progress=progress,
        **learning,
    )


@renamed(generator="random_state")
def gate_slopes(
    model: nn.Module,
    samples: IndexedSamples,
    channel_groups: Sequence[ChannelGroup],
    objective: ContrastiveObjective,
    *,
    random_state: RandomState = 0,
    progress: bool = True,
) -> dict[str, Tensor]:
    """−∂L/∂z_c at open gates, from one pass: how much the objective rises, to first order, when channel c goes.

    Args:
        model: The network; left as it was.
        samples: The dataset; N of its samples are drawn by the objective's weights.
        channel_groups: Its channel groups.
        objective: The loss and the mined samples.
        random_state: Seed, or a torch.Generator.
        progress: Show a progress bar.

    Returns:
        By group, (C,) float64 on the CPU.
    """
    objective.check(model, samples)
    generator, device = random_generator(random_state), model_device(model)
    sizes = [group.size for group in channel_groups]
    slopes = torch.zeros(sum(sizes), dtype=torch.float64, device="cpu")
    tap, indices = FeatureTap(model, objective.feature_layer), PlaceIndices()
    with frozen_weights(model):
        batches = samples.shuffled(None, generator, objective.weights)
        bar = progress_bar(batches, description="gate slopes", total=len(samples), shown=progress, unit="batch")
        for rows, batch in bar:
            gates = {
                g.name: torch.ones(g.size, dtype=torch.float32, device=device, requires_grad=True)
                for g in channel_groups
            }
            with explicit_gates(model, channel_groups, gates, indices):
                loss = objective.loss(model, rows, batch, tap)
            gradients = torch.autograd.grad(loss, list(gates.values()), allow_unused=True, materialize_grads=True)
            slopes -= torch.cat(gradients).cpu().double() * len(batch) / samples.n_samples
    return {group.name: part.clone() for group, part in zip(channel_groups, torch.split(slopes, sizes), strict=True)}


def channel_costs(
    model: nn.Module,
    channel_groups: Sequence[ChannelGroup],
    batch: Batch,
    kind: Cost = "parameters",
    *,
    forward_fn: ForwardFunction | None = None,
) -> dict[str, Tensor]:
    """What each channel costs: the parameters, or the multiply-accumulates a sample, that go with it.

    Args:
        model: The network; left as it was.
        channel_groups: With their ``parameters``.
        batch: One batch, run once to see how often each layer's weights are used.
        kind: Which cost.
        forward_fn: How to call the network.

    Returns:
        By group, (C,) float64.

    Raises:
        InputError: The kind is unknown.
    """
    require_choice("cost", kind, ("parameters", "macs"))
    uses = None
    if kind == "macs":
        with preserved_random_state(), preserved_model(model), torch.no_grad(), weight_uses(model) as counted:
            ScoredNetwork(model, forward_fn).output(batch.inputs, index=batch.index)
        uses = counted.per_sample(len(batch))
    each = ChannelCosts(model, channel_groups, kind, uses).each
    columns = ChannelColumns({group.name: group.size for group in channel_groups})
    return {name: each[columns.section(name)] for name in columns.sizes}
