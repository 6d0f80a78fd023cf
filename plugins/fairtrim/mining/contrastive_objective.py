"""What DCWP learns gates with: cross-entropy on up-weighted mined samples, a contrastive term, and the loop.

Park, Lee, Lee and Ye, CVPR 2023, arXiv 2210.05247, stage 3. What a gate closes is another file's: a channel in
``contrastive_gates``, a single weight in ``contrastive_weight_masks``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypedDict, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairtrim.arguments import RandomState, random_generator, require_choice, require_known, require_number
from fairtrim.data.batches import Batch, ForwardFunction, LossFunction
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.devices import model_device, to_device
from fairtrim.errors import InputError
from fairtrim.network.batchnorm import batchnorm_layers
from fairtrim.network.losses import contrastive_loss, require_class_scores
from fairtrim.network.output_layer import FeatureTap
from fairtrim.network.probability_scores import ProbabilityScores, refuse_shares
from fairtrim.network.sample_loss import check_loss_inputs
from fairtrim.network.scored_network import OutputTransform, ScoredNetwork
from fairtrim.preservation import preserved_model, preserved_random_state, undisturbed
from fairtrim.progress import progress_bar

from .mined_samples import require_some_mined

__all__ = [
    "ContrastiveObjective",
    "GateLearning",
    "Upweight",
    "check_upweight",
    "frozen_weights",
    "learn_logits",
    "published_upweight",
    "upweighted",
]

Upweight = float | Literal["published"]
"""Sampling weight of the mined samples where the others have 1: a number, or the authors' for the mined share."""

_PUBLISHED = {0.005: 80.0, 0.01: 50.0, 0.02: 30.0, 0.05: 10.0}
"""The authors' sampling weight in the fine-tuning, by the share of bias-conflicting samples."""


def published_upweight(share: float) -> float:
    """The authors' sampling weight: 80, 50, 30 and 10 where 0.5, 1, 2 and 5 % are bias-conflicting.

    Between these shares it lies on straight lines of log weight over log share, and outside of them it stays (ours).

    Args:
        share: Of the samples that are mined, between 0 and 1.

    Returns:
        The weight of a mined sample, where another's is 1.

    Example:
        >>> [round(published_upweight(share), 1) for share in (0.001, 0.01, 0.03, 0.05, 0.2)]
        [80.0, 50.0, 18.4, 10.0, 10.0]
    """
    return float(np.exp(np.interp(math.log(share), np.log([*_PUBLISHED]), np.log([*_PUBLISHED.values()]))))


def check_upweight(name: str, upweight: object) -> None:
    """Refuse what is no sampling weight.

    Args:
        name: Of the argument.
        upweight: What was given.

    Raises:
        InputError: It is neither a positive number nor ``"published"``.

    Example:
        >>> check_upweight("upweight", "published")
    """
    if upweight != "published":
        require_number(name, upweight, above=0, remedy=", or 'published'")


def upweighted(conflicting: Tensor, upweight: Upweight) -> Tensor:
    """Sampling weights that show the mined samples more often.

    Args:
        conflicting: The mined set, (N,) bool.
        upweight: Of the mined samples; the others have 1.

    Returns:
        (N,) float64.

    Example:
        >>> upweighted(torch.tensor([False, True, False]), 4.0).tolist()
        [1.0, 4.0, 1.0]
    """
    conflicting = conflicting.cpu()
    weight = published_upweight(float(conflicting.double().mean())) if upweight == "published" else upweight
    return torch.where(conflicting.bool(), weight, 1.0).double()


@dataclass(frozen=True, kw_only=True)
class ContrastiveObjective:
    """CE on up-weighted samples + λ_con · L_con, over a dataset with mined samples.

    Args:
        conflicting: b, the samples mined as bias-conflicting, (N,) bool by index in the dataset.
        upweight: Sampling weight of the mined samples; the others have 1. The authors' code has 80 here, whatever the
            share of the mined; ``"published"`` takes what it has in the fine-tuning, see ``published_upweight``.
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
    upweight: Upweight = 80.0
    contrastive_weight: float = 0.05
    temperature: float = 0.07
    loss_fn: LossFunction = F.cross_entropy
    feature_layer: str | None = None
    forward_fn: ForwardFunction | None = None
    output_transform: OutputTransform | None = None

    def __post_init__(self) -> None:
        check_upweight("upweight", self.upweight)
        require_number("contrastive_weight", self.contrastive_weight, at_least=0)
        require_some_mined(self.conflicting)
        object.__setattr__(self, "conflicting", self.conflicting.cpu())  # as the indices are

    @property
    def weights(self) -> Tensor:
        """Sampling weights, (N,)."""
        return upweighted(self.conflicting, self.upweight)

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
            batch: The samples, on any device.
            tap: Finds the features.

        Returns:
            A scalar.

        Raises:
            InputError: It is not finite, or a label out of range.
        """
        device = model_device(model)
        with tap.attached() if self.contrastive_weight else nullcontext():
            scores = self.network(model).scores(batch.inputs_on(device))
            if self.loss_fn is F.cross_entropy:
                require_class_scores(scores)
            check_loss_inputs(self.loss_fn, scores, batch.target)
            target = to_device(batch.target, device)
            loss = self.loss_fn(scores, target).mean()
            if self.contrastive_weight:
                b = to_device(self.conflicting[indices], scores.device)
                contrast = contrastive_loss(tap.features(scores), target, b, temperature=self.temperature)
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
        batchnorm: Whether BatchNorm normalises by its running statistics, ``"eval"``, or by those of each batch,
            ``"train"``, as in the authors' code; the network's statistics stay in both. Default ``"eval"`` for
            channels and ``"train"`` for single weights.
    """

    iterations: int
    learning_rate: float
    initial: float
    cost_weight: float
    batchnorm: Literal["eval", "train"]


def learn_logits(
    model: nn.Module,
    samples: IndexedSamples,
    objective: ContrastiveObjective,
    like: Mapping[str, Tensor],
    gated: Callable[[Mapping[str, Tensor]], AbstractContextManager[None]],
    *,
    draw: Callable[[Tensor, Tensor], Tensor],
    costs: Mapping[str, Tensor] | None = None,
    random_state: RandomState = 0,
    progress: bool = True,
    **learning: Unpack[GateLearning],
) -> dict[str, Tensor]:
    """The loop by which gates are learned, whatever they close: Adam on π, weights frozen.

    Args:
        model: The network; left as it was.
        samples: The dataset.
        objective: The loss and the mined samples.
        like: Tensors of the shape, precision and device of the logits, by name.
        gated: A block in which the network has the given gates.
        draw: Gates from π and uniform draws of the same shape, with a slope to π.
        costs: What each gate costs, by name; default every one the same.
        random_state: Seed, or a torch.Generator. Gates are drawn on the network's device, and depend on it.
        progress: Show a progress bar.
        learning: See ``GateLearning``.

    Returns:
        π by name, float64 on the CPU.

    Raises:
        InputError: The data or an argument is wrong.
    """
    require_known("learning", learning, GateLearning.__annotations__)
    iterations, learning_rate = learning.get("iterations", 2000), learning.get("learning_rate", 1e-2)
    cost_weight, start = learning.get("cost_weight", 0.1), learning.get("initial", 1.5)
    batchnorm = learning.get("batchnorm", "eval")
    require_number("iterations", iterations, at_least=1, whole=True)
    require_number("learning_rate", learning_rate, above=0)
    require_number("cost_weight", cost_weight, at_least=0)
    require_number("initial", start)
    require_choice("batchnorm", batchnorm, ("eval", "train"))
    norms = batchnorm_layers(model) if batchnorm == "train" else []
    if norms and samples.batch_size < 2:
        raise InputError("batchnorm='train' needs batches of at least two samples, for one has no statistics")
    objective.check(model, samples)
    generator, device = random_generator(random_state), model_device(model)
    uniform = random_generator(generator, device)  # draws where the gates are
    logits = {name: torch.full_like(tensor, start, requires_grad=True) for name, tensor in like.items()}
    total = sum(float(costs[name].sum()) if costs else pi.numel() for name, pi in logits.items())
    shares = {name: costs[name].to(pi) / total if costs else 1 / total for name, pi in logits.items()}
    optimizer = torch.optim.Adam(list(logits.values()), lr=learning_rate)
    tap = FeatureTap(model, objective.feature_layer)
    with frozen_weights(model):
        for norm in norms:
            norm.training = True
        bar = progress_bar(range(iterations), description="gates", shown=progress)
        draws = _endless(samples, generator, objective.weights, at_least=2 if norms else 1)
        for _ in bar:
            indices, batch = next(draws)
            gates = {
                name: draw(pi, torch.rand(pi.shape, generator=uniform, dtype=torch.float32, device=device).to(pi))
                for name, pi in logits.items()
            }
            with gated(gates):
                loss = objective.loss(model, indices, batch, tap)
            penalty = sum((torch.sigmoid(pi) * shares[name]).sum() for name, pi in logits.items())
            optimizer.zero_grad()
            (loss + cost_weight * penalty).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return {name: pi.detach().cpu().double() for name, pi in logits.items()}


@contextmanager
def frozen_weights(model: nn.Module) -> Iterator[None]:
    """Gradients of gates and not of weights, in eval mode, for the length of a block that leaves nothing behind.

    Args:
        model: The network.

    Returns:
        The block, for ``with``.
    """
    with undisturbed(model), torch.enable_grad():
        model.requires_grad_(False)
        yield


def _endless(
    samples: IndexedSamples, generator: torch.Generator, weights: Tensor, at_least: int
) -> Iterator[tuple[Tensor, Batch]]:
    """Epoch after epoch of batches drawn by weight; smaller ones, the rest of an epoch, are left out."""
    while True:
        for indices, batch in samples.shuffled(None, generator, weights):
            if len(batch) >= at_least:
                yield indices, batch
