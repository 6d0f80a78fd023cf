"""What all miners share: a network and a loader in, a score for each training sample out.

A sample is *bias-conflicting* when the shortcut that most of its class allows does not hold for it. A network learns
the shortcut first and keeps it longest, so conflicting samples are learned late, and forgotten early when capacity
goes. A mislabelled sample looks just like one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fairtrim.arguments import Renamed
from fairtrim.data.batches import ForwardFunction
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.data.labels import require_labels
from fairtrim.errors import InputError
from fairtrim.measures.scores import label_probability, labels_of
from fairtrim.network.losses import require_class_scores
from fairtrim.network.probability_scores import ProbabilityScores, refuse_shares
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.preservation import preserved_model, preserved_random_state
from fairtrim.registry import Described, Registry

from .mined_samples import MinedSamples

__all__ = ["MINERS", "Miner", "Seen", "Trace", "label_probabilities", "seen_labels"]


@dataclass(frozen=True)
class Trace:
    """What a network says of every sample, time after time.

    Attributes:
        probability: p(y_n | x_n) of the label, (T, N) float64.
        correct: Whether the label has the largest score, (T, N).
        target: Labels, (N,).
    """

    probability: Tensor
    correct: Tensor
    target: Tensor


Seen = tuple[Tensor, Tensor, Tensor]
"""Of every sample: p(y_n | x_n), whether y_n wins, and y_n, (N,) each."""


def label_probabilities(
    model: nn.Module,
    samples: IndexedSamples,
    forward_fn: ForwardFunction | None = None,
    output_transform: Callable[[Any], Tensor] | None = None,
) -> Seen:
    """p(y_n | x_n), whether y_n wins, and y_n, of every sample once, in order, in eval mode.

    Args:
        model: The network; left as it was.
        samples: The dataset.
        forward_fn: How to call the network.
        output_transform: How to find the scores in what it returns.

    Returns:
        (N,) float64, (N,) bool and (N,) int64.

    Raises:
        InputError: A score is not finite, or a probability, a label out of range, or there is a single class.
    """
    return seen_labels(ScoredNetwork(model, forward_fn, output_transform), samples)


def seen_labels(network: ScoredNetwork, samples: IndexedSamples) -> Seen:
    """What a network says of every sample; see ``label_probabilities``."""
    probability = torch.zeros(samples.n_samples, dtype=torch.float64, device="cpu")
    correct = torch.zeros(samples.n_samples, dtype=torch.bool, device="cpu")
    target = torch.zeros(samples.n_samples, dtype=torch.int64, device="cpu")
    seen, device = ProbabilityScores(), network.device
    with preserved_random_state(), preserved_model(network.model), torch.no_grad():
        for indices, batch in samples.in_order(None):
            # one wait a batch: labels don't leave the CPU
            scores, labels = network.scores(batch.inputs_on(device)).cpu(), batch.target.cpu()
            if not bool(torch.isfinite(scores).all()):
                raise InputError(f"the network's scores are not finite in batch {batch.index}")
            require_class_scores(scores)
            seen.add(scores)
            if seen.shares:
                refuse_shares("the network")
            require_labels(labels, scores.shape[1])
            probability[indices] = label_probability(scores.double(), labels)
            correct[indices] = labels_of(scores) == labels
            target[indices] = labels
    if len(torch.unique(target)) < 2:
        raise InputError(f"every sample has label {int(target[0])}; expected at least two classes")
    return probability, correct, target


class Miner(Described, ABC):
    """Finds bias-conflicting samples; ``mine`` returns what it found and leaves the caller's network alone.

    One that says what it is can be found by name in ``fairtrim.MINERS``: with ``name``, ``does``, ``standing`` and the
    other class variables of ``fairtrim.registry.Described``.

    Example:
        >>> class Known(Miner):
        ...     def mine(self, model, loader, *, progress=True):
        ...         return MinedSamples(torch.tensor([0.0, 1.0, 0.0]), target=torch.tensor([0, 0, 1]))
        >>> Known().mine(nn.Identity(), loader=[]).conflicting(threshold=0.5).tolist()
        [False, True, False]
    """

    fit = Renamed("mine")

    @abstractmethod
    def mine(self, model: nn.Module, loader: DataLoader[Any], *, progress: bool = True) -> MinedSamples:
        """Score every sample of the loader's dataset.

        Args:
            model: The network; a copy is used.
            loader: A DataLoader of (inputs, target, ...).
            progress: Show a progress bar.

        Returns:
            The scores.
        """


MINERS = Registry("miner", "fairtrim.mining", Miner, "fairtrim.miners")
"""Miners by name, e.g. ``MINERS["epoch-ensemble"]``; other packages' too, by the entry-point group
``fairtrim.miners``."""
