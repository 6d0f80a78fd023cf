"""Contrastive weight pruning (DCWP) at the level of channels: learn which to keep, or one gradient of the same loss.

Park, Lee, Lee and Ye, CVPR 2023, arXiv 2210.05247, stage 3. There each weight has a gate; here each channel of a
dependency group has one, shared by all coupled layers, so that closing gates and removing channels are the same thing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from fairtrim.arguments import RandomState, random_generator, renamed, require_choice, require_known
from fairtrim.damage.channel_costs import ChannelCosts, Cost, weight_uses
from fairtrim.damage.channel_groups import ChannelColumns, ChannelGroup
from fairtrim.damage.gates import explicit_gates
from fairtrim.data.batches import Batch, ForwardFunction, LossFunction
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.devices import model_device
from fairtrim.errors import InputError
from fairtrim.network.losses import contrastive_loss, require_class_scores
from fairtrim.network.output_layer import FeatureTap
from fairtrim.network.probability_scores import ProbabilityScores, refuse_shares
from fairtrim.network.scored_network import OutputTransform, ScoredNetwork
from fairtrim.preservation import preserved_model, preserved_random_state

from .mined_samples import require_some_mined

__all__ = [
    "ContrastiveObjective",
    "GateLearning",
    "channel_costs",
    "gate_slopes",
    "learn_gates",
    "straight_through",
]


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


@dataclass(frozen=True, kw_only=True)
class ContrastiveObjective:
    """CE on up-weighted samples + λ_con · L_con, over a dataset with mined samples.

    Args:
        conflicting: b, the samples mined as bias-conflicting, (N,) bool by index in the dataset.
        upweight: Sampling weight of the mined samples; the others have 1 (80 in the authors' code).
        contrastive_weight: λ_con.
        temperature: τ of L_con.
        loss_fn: In place of CE.
        feature_layer: Layer whose inputs are the features of L_con; found if None.
        forward_fn: How to call the network.
        output_transform: How to find the scores in what it returns.

    Raises:
        InputError: A number is out of range, no sample is mined, or all are.
    """

    conflicting: Tensor
    upweight: float = 80.0
    contrastive_weight: float = 0.05
    temperature: float = 0.07
    loss_fn: LossFunction = F.cross_entropy
    feature_layer: str | None = None
    forward_fn: ForwardFunction | None = None
    output_transform: OutputTransform | None = None

    def __post_init__(self) -> None:
        if self.upweight <= 0 or self.contrastive_weight < 0:
            raise InputError(
                f"upweight={self.upweight}, contrastive_weight={self.contrastive_weight}; expected a positive number "
                "and one of at least 0"
            )
        require_some_mined(self.conflicting)

    @property
    def weights(self) -> Tensor:
        """Sampling weights, (N,)."""
        return torch.where(self.conflicting.bool(), self.upweight, 1.0).double()

    def network(self, model: nn.Module) -> ScoredNetwork:
        """A network that is called as this objective says.

        Args:
            model: The network, or a gated one.

        Returns:
            It, callable.
        """
        return ScoredNetwork(model, self.forward_fn, self.output_transform)

    def check(self, model: nn.Module, samples: IndexedSamples) -> None:
        """Refuse flags and scores that don't belong here, before anything is learned.

        Args:
            model: The network.
            samples: The dataset.

        Raises:
            InputError: There are more or fewer flags than samples, or cross-entropy would get probabilities.
        """
        samples.check_flags(self.conflicting)
        if self.loss_fn is not F.cross_entropy:
            return
        seen, network = ProbabilityScores(), self.network(model)
        with preserved_model(model), preserved_random_state(), torch.no_grad():
            seen.add(network.scores(samples.first(network.device)))
        if seen.shares:
            refuse_shares("the network")

    def loss(self, model: nn.Module, indices: Tensor, batch: Batch, tap: FeatureTap) -> Tensor:
        """The loss of one batch.

        Args:
            model: The network, or a gated one.
            indices: Of the samples, (N,).
            batch: The samples.
            tap: Finds the features.

        Returns:
            A scalar.

        Raises:
            InputError: It is not finite.
        """
        with tap.attached() if self.contrastive_weight else nullcontext():
            scores = self.network(model).scores(batch)
            if self.loss_fn is F.cross_entropy:
                require_class_scores(scores)
            loss = self.loss_fn(scores, batch.target).mean()
            if self.contrastive_weight:
                b = self.conflicting[indices].to(scores.device)
                contrast = contrastive_loss(tap.features(scores), batch.target, b, temperature=self.temperature)
                loss = loss + self.contrastive_weight * contrast
        if not bool(torch.isfinite(loss)):
            raise InputError(f"the loss of batch {batch.index} is {loss.item()}; expected a finite one")
        return loss


class GateLearning(TypedDict, total=False):
    """How gates are learned. Iterations, learning rate and initial value are the authors'; the cost's weight is ours.

    Attributes:
        iterations: Steps of Adam; default 2000.
        learning_rate: Of Adam; default 1e-2.
        initial: π at the start; default 1.5.
        cost_weight: λ, with costs that sum to 1: what closing every gate is worth, in units of the loss; default 0.1.
    """

    iterations: int
    learning_rate: float
    initial: float
    cost_weight: float


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
    require_known("learning", learning, GateLearning.__annotations__)
    iterations, learning_rate = learning.get("iterations", 2000), learning.get("learning_rate", 1e-2)
    cost_weight = learning.get("cost_weight", 0.1)
    if iterations < 1 or learning_rate <= 0 or cost_weight < 0:
        raise InputError(
            f"iterations={iterations}, learning_rate={learning_rate}, cost_weight={cost_weight}; expected at least 1, "
            "a positive number, and one of at least 0"
        )
    objective.check(model, samples)
    generator, device = random_generator(random_state), model_device(model)
    start = learning.get("initial", 1.5)
    logits = {g.name: torch.full((g.size,), start, device=device, requires_grad=True) for g in channel_groups}
    every = costs or {group.name: torch.ones(group.size) for group in channel_groups}
    total = sum(float(every[name].sum()) for name in logits)
    shares = {name: every[name].to(device, torch.float32) / total for name in logits}
    optimizer = torch.optim.Adam(list(logits.values()), lr=learning_rate)
    tap = FeatureTap(model, objective.feature_layer)
    with _frozen(model):
        bar = tqdm(range(iterations), desc="gates", leave=False, disable=not progress)
        draws = _endless(samples, device, generator, objective.weights)
        for _ in bar:
            indices, batch = next(draws)
            gates = {
                name: straight_through(pi, torch.rand(pi.shape, generator=generator).to(device))
                for name, pi in logits.items()
            }
            with explicit_gates(model, channel_groups, gates):
                loss = objective.loss(model, indices, batch, tap)
            penalty = sum((torch.sigmoid(pi) * shares[name]).sum() for name, pi in logits.items())
            optimizer.zero_grad()
            (loss + cost_weight * penalty).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return {name: pi.detach().double().cpu() for name, pi in logits.items()}


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Gradients of gates and not of weights, for the length of the block."""
    with preserved_random_state(), preserved_model(model), torch.enable_grad():
        model.requires_grad_(False)
        yield


def _endless(
    samples: IndexedSamples, device: torch.device, generator: torch.Generator, weights: Tensor
) -> Iterator[tuple[Tensor, Batch]]:
    """Epoch after epoch of batches drawn by weight."""
    while True:
        yield from samples.shuffled(device, generator, weights)


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
    slopes = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in channel_groups}
    tap = FeatureTap(model, objective.feature_layer)
    with _frozen(model):
        batches = samples.shuffled(device, generator, objective.weights)
        for indices, batch in tqdm(batches, total=len(samples), desc="gate slopes", leave=False, disable=not progress):
            gates = {g.name: torch.ones(g.size, device=device, requires_grad=True) for g in channel_groups}
            with explicit_gates(model, channel_groups, gates):
                loss = objective.loss(model, indices, batch, tap)
            gradients = torch.autograd.grad(loss, list(gates.values()), allow_unused=True)
            for name, gradient in zip(gates, gradients, strict=True):
                if gradient is not None:
                    slopes[name] -= gradient.double().cpu() * len(batch) / samples.n_samples
    return slopes


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
