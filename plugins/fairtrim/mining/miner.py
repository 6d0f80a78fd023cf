"""Find the samples that a biased network fails, without labels of the bias: miners behind one interface.

A sample is *bias-conflicting* when the shortcut that most of its class allows does not hold for it. A network learns
the shortcut first and keeps it longest, so conflicting samples are learned late, and forgotten early when capacity
goes. A mislabelled sample looks just like one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, WeightedRandomSampler

from fairtrim.arguments import require_known, require_number
from fairtrim.data.batches import ForwardFunction, LossFunction
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.devices import model_device
from fairtrim.errors import InputError
from fairtrim.network.fine_tuning import fine_tune, reinitialized
from fairtrim.network.losses import generalized_cross_entropy, require_class_scores
from fairtrim.network.probability_scores import ProbabilityScores, refuse_shares
from fairtrim.network.scored_network import class_scores
from fairtrim.preservation import preserved_model, preserved_random_state, seeded

__all__ = [
    "EpochEnsemble",
    "GeneralizedCrossEntropyMiner",
    "LossMiner",
    "MinedSamples",
    "Miner",
    "MisclassifiedMiner",
    "Trace",
    "label_probabilities",
]

MAD_TO_DEVIATION = 1.4826
"""A normal distribution's standard deviation, in median absolute deviations."""


@dataclass(frozen=True)
class MinedSamples:
    """One score for each training sample, by its index in the dataset.

    Attributes:
        scores: Larger = more likely bias-conflicting, (N,) float64.
        target: Labels, (N,).
        cut: The miner's own decision, (N,) bool; None where it has none and the robust cut decides.

    Example:
        >>> mined = MinedSamples(torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3]), target=torch.tensor([0, 0, 0, 1, 1]))
        >>> chosen = mined.conflicting(share_per_class=0.4)
        >>> chosen.tolist()
        [False, True, False, True, False]
        >>> mined.sample_weights(chosen).tolist()  # the two make half of the draws: 5 / 4 each
        [0.8333333333333333, 1.25, 0.8333333333333333, 1.25, 0.8333333333333333]
    """

    scores: Tensor
    target: Tensor
    cut: Tensor | None = None

    def __repr__(self) -> str:
        low, high = float(self.scores.min()), float(self.scores.max())
        n_classes = len(torch.unique(self.target))
        return f"MinedSamples({len(self.scores)} samples, {n_classes} classes, scores {low:.3g} to {high:.3g})"

    def conflicting(
        self,
        *,
        threshold: float | None = None,
        share_per_class: float | None = None,
        deviations: float | None = None,
    ) -> Tensor:
        """The samples taken for bias-conflicting.

        Args:
            threshold: Those with a score above it.
            share_per_class: This share of every class, those with the highest scores (at least one a class).
            deviations: Those k robust deviations above the median of their class: score > median + k·1.4826·MAD. The
                default where the miner has no decision of its own, with k = 10.

        Returns:
            (N,) bool.

        Raises:
            InputError: More than one way is asked for, or a number is out of range.
        """
        given = {"threshold": threshold, "share_per_class": share_per_class, "deviations": deviations}
        asked = check_cut(given)
        if threshold is not None:
            return self.scores > threshold
        if share_per_class is not None:
            return self._by_class(lambda scores: _highest(scores, share_per_class))
        if not asked and self.cut is not None:
            return self.cut
        k = 10.0 if deviations is None else deviations
        return self._by_class(lambda scores: _outlying(scores, k))

    def _by_class(self, choose: Callable[[Tensor], Tensor]) -> Tensor:
        chosen = torch.zeros(len(self.scores), dtype=torch.bool)
        for label in torch.unique(self.target).tolist():
            members = self.target == label
            chosen[members] = choose(self.scores[members])
        return chosen

    def sample_weights(self, conflicting: Tensor | None = None, *, mass: float = 0.5, soft: bool = False) -> Tensor:
        """Sampling weights that show the conflicting samples more often.

        Args:
            conflicting: The mined set, (N,) bool; default ``conflicting()``.
            mass: Share of the draws that fall on the mined set: ½ makes it half of every batch.
            soft: Weights ∝ score in place of a set.

        Returns:
            (N,) float64 of mean 1.

        Raises:
            InputError: No sample was mined, or all were.
        """
        if soft:
            weights = self.scores - min(0.0, float(self.scores.min()))
            if not float(weights.sum()) > 0:
                raise InputError("every score is 0; there is nothing to weight by")
            return weights / weights.mean()
        if not 0 < mass < 1:
            raise InputError(f"mass={mass}; expected a share between 0 and 1")
        chosen = self.conflicting() if conflicting is None else conflicting
        require_some_mined(chosen)
        if len(chosen) != len(self.scores):
            raise InputError(f"{len(chosen)} flags for {len(self.scores)} samples; expected one for each")
        n_chosen = int(chosen.sum())
        n_others = len(chosen) - n_chosen
        weights = torch.full((len(chosen),), (1 - mass) / n_others, dtype=torch.float64)
        weights[chosen] = mass / n_chosen
        return weights * len(chosen)

    def sampler(
        self, weights: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> WeightedRandomSampler:
        """A sampler for a DataLoader over the same dataset, in any training loop.

        Args:
            weights: Default ``sample_weights()``.
            generator: Source of randomness.

        Returns:
            It draws N samples an epoch, with replacement.
        """
        weights = self.sample_weights() if weights is None else weights
        return WeightedRandomSampler(weights.tolist(), len(weights), generator=generator)


def check_cut(cut: Mapping[str, float | None]) -> dict[str, float]:
    """Refuse what ``MinedSamples.conflicting`` would refuse, before anything is mined.

    Args:
        cut: Its arguments.

    Returns:
        Those that are not None.

    Raises:
        InputError: One is unknown, no number or out of range, or there are several.

    Example:
        >>> check_cut({"share_per_class": 0.1, "threshold": None})
        {'share_per_class': 0.1}
    """
    if not isinstance(cut, Mapping):
        raise InputError(f"cut is a {type(cut).__name__}; expected a dict such as {{'share_per_class': 0.1}}")
    require_known("cut", cut, ("threshold", "share_per_class", "deviations"))
    asked = {name: value for name, value in cut.items() if value is not None}
    if len(asked) > 1:
        raise InputError("expected one of threshold=, share_per_class= and deviations=, not several")
    for name, value in asked.items():
        require_number(name, value, remedy={"share_per_class": ", a share between 0 and 1"}.get(name, ""))
        if name == "share_per_class" and not 0 < value < 1:
            raise InputError(f"share_per_class={value}; expected a share between 0 and 1")
        if name == "deviations" and value <= 0:
            raise InputError(f"deviations={value}; expected a positive number")
    return asked


def require_some_mined(conflicting: Tensor, remedy: str = "conflicting(share_per_class=...)") -> None:
    """Refuse a mined set that says nothing, or is none.

    Args:
        conflicting: The mined set, (N,) bool.
        remedy: How the caller chooses the set.

    Raises:
        InputError: It is empty, everything, or no flags.
    """
    if not isinstance(conflicting, Tensor) or conflicting.ndim != 1 or conflicting.dtype != torch.bool:
        shaped = isinstance(conflicting, Tensor)
        got = f"{conflicting.dtype} of shape {tuple(conflicting.shape)}" if shaped else type(conflicting).__name__
        raise InputError(f"the mined set is {got}; expected one flag for each sample, (N,) torch.bool")
    n_chosen = int(conflicting.sum())
    if n_chosen in (0, len(conflicting)):
        found = "no sample was" if n_chosen == 0 else f"all {n_chosen} samples were"
        raise InputError(
            f"{found} mined as bias-conflicting; expected some: choose the set with {remedy}, with the share you expect"
        )


def _highest(scores: Tensor, share: float) -> Tensor:
    n_chosen = max(1, round(share * len(scores)))
    chosen = torch.zeros(len(scores), dtype=torch.bool)
    chosen[scores.argsort(descending=True, stable=True)[:n_chosen]] = True
    return chosen


def _outlying(scores: Tensor, k: float) -> Tensor:
    median = scores.quantile(0.5)
    deviation = MAD_TO_DEVIATION * (scores - median).abs().quantile(0.5)
    return scores > median + k * max(float(deviation), 1e-6)


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


def label_probabilities(
    model: nn.Module,
    samples: IndexedSamples,
    forward_fn: ForwardFunction | None = None,
    output_transform: Callable[[Any], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
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
    device = model_device(model)
    probability = torch.zeros(samples.n_samples, dtype=torch.float64)
    correct = torch.zeros(samples.n_samples, dtype=torch.bool)
    target = torch.zeros(samples.n_samples, dtype=torch.int64)
    seen = ProbabilityScores()
    with preserved_random_state(), preserved_model(model), torch.no_grad():
        for indices, batch in samples.in_order(device):
            scores = class_scores(model, batch, forward_fn, output_transform)
            if not bool(torch.isfinite(scores).all()):
                raise InputError(f"the network's scores are not finite in batch {batch.index}")
            require_class_scores(scores)
            seen.add(scores)
            if seen.shares:
                refuse_shares("the network")
            low, high = int(batch.target.min()), int(batch.target.max())
            if low < 0 or high >= scores.shape[1]:
                raise InputError(f"labels reach from {low} to {high}; expected 0 to {scores.shape[1] - 1}")
            p = torch.softmax(scores.double(), 1).gather(1, batch.target.unsqueeze(1)).squeeze(1)
            probability[indices] = p.cpu()
            correct[indices] = (scores.argmax(1) == batch.target).cpu()
            target[indices] = batch.target.cpu()
    if len(torch.unique(target)) < 2:
        raise InputError(f"every sample has label {int(target[0])}; expected at least two classes")
    return probability, correct, target


class Miner(ABC):
    """Finds bias-conflicting samples; ``fit`` returns what it found and leaves the caller's network alone.

    Example:
        >>> class Known(Miner):
        ...     def fit(self, model, loader, *, progress=True):
        ...         return MinedSamples(torch.tensor([0.0, 1.0, 0.0]), target=torch.tensor([0, 0, 1]))
        >>> Known().fit(nn.Identity(), loader=[]).conflicting(threshold=0.5).tolist()
        [False, True, False]
    """

    @abstractmethod
    def fit(self, model: nn.Module, loader: DataLoader[Any], *, progress: bool = True) -> MinedSamples:
        """Score every sample of the loader's dataset.

        Args:
            model: The network; a copy is used.
            loader: A DataLoader of (inputs, target, ...).
            progress: Show a progress bar.

        Returns:
            The scores.
        """


@dataclass(frozen=True, kw_only=True)
class _TrainingMiner(Miner):
    """Trains a new network of the same architecture and watches it."""

    epochs: int
    learning_rate: float = 1e-3
    network: Callable[[], nn.Module] | None = None
    seed: int = 0
    forward_fn: ForwardFunction | None = None
    output_transform: Callable[[Any], Tensor] | None = None

    def __post_init__(self) -> None:
        require_number("epochs", self.epochs, at_least=1, whole=True)
        require_number("learning_rate", self.learning_rate, above=0)
        if self.network is not None and not callable(self.network):
            raise InputError(f"network is a {type(self.network).__name__}; expected a function that builds a new one")

    @abstractmethod
    def _loss(self) -> LossFunction:
        """What the network is trained with."""

    @abstractmethod
    def _mined(self, trace: Trace) -> MinedSamples:
        """From what the network said after each epoch to scores."""

    def fit(self, model: nn.Module, loader: DataLoader[Any], *, progress: bool = True) -> MinedSamples:
        """Score every sample; see ``Miner.fit``."""
        samples = IndexedSamples(loader)
        generator = torch.Generator().manual_seed(self.seed)
        if self.network is None:
            fresh = reinitialized(model, generator)
        else:
            with seeded(generator):
                fresh = self.network()
            if not isinstance(fresh, nn.Module):
                raise InputError(f"network() gave a {type(fresh).__name__}; expected a torch.nn.Module")
            fresh = fresh.to(model_device(model))
        label_probabilities(fresh, samples, self.forward_fn, self.output_transform)  # refuse data before training
        rows: list[tuple[Tensor, Tensor, Tensor]] = []

        def watch(_: int) -> None:
            rows.append(label_probabilities(fresh, samples, self.forward_fn, self.output_transform))

        fine_tune(
            fresh,
            samples,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            loss_fn=self._loss(),
            forward_fn=self.forward_fn,
            output_transform=self.output_transform,
            random_state=generator,
            after_epoch=watch,
            progress=progress,
        )
        probability, correct, target = (list(column) for column in zip(*rows, strict=True))
        return self._mined(Trace(torch.stack(probability), torch.stack(correct), target[0]))


@dataclass(frozen=True, kw_only=True)
class GeneralizedCrossEntropyMiner(_TrainingMiner):
    """What a network trained with generalised cross-entropy gets wrong: DCWP's stages 1 and 2 (and LfF's idea).

    Args:
        epochs: Of its training.
        q: Of the loss.
        learning_rate: At the start.
        network: Builds a new network; default a copy of the model with new weights.
        seed: Of weights and order.
        forward_fn: How to call the network.
        output_transform: How to find the scores in what it returns.

    Raises:
        InputError: A number is out of range.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> x = torch.tensor([[-1.0]] * 9 + [[1.0]] * 10)
        >>> y = torch.tensor([0] * 9 + [1] * 9 + [0])  # the last sample contradicts what the others share
        >>> loader = DataLoader(TensorDataset(x, y), batch_size=5)
        >>> mined = GeneralizedCrossEntropyMiner(learning_rate=0.1).fit(nn.Linear(1, 2), loader, progress=False)
        >>> mined.conflicting().nonzero().tolist()
        [[18]]
    """

    epochs: int = 10
    q: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("q", self.q, above=0)

    def _loss(self) -> LossFunction:
        return lambda scores, target: generalized_cross_entropy(scores, target, q=self.q)

    def _mined(self, trace: Trace) -> MinedSamples:
        return MinedSamples(1 - trace.probability[-1], trace.target, ~trace.correct[-1])


@dataclass(frozen=True, kw_only=True)
class EpochEnsemble(_TrainingMiner):
    """Mean of 1 − p(y|x) over the epochs of a network that trains on what it is already sure of (DCWP's variant).

    Samples with p(y|x) ≤ ``confidence`` get no gradient, so the network stays biased; mined are those whose mean is
    above ``cut``. Both numbers are the authors', but 0.05 would leave out everything where there are 20 classes or
    more: there it is half of an even guess.

    Args:
        epochs: Of its training.
        confidence: Probability of the label above which a sample counts; None for min(0.05, 1/(2K)).
        cut: Of the miner's own decision.
        learning_rate: At the start.
        network: Builds a new network; default a copy of the model with new weights.
        seed: Of weights and order.
        forward_fn: How to call the network.
        output_transform: How to find the scores in what it returns.

    Raises:
        InputError: A number is out of range.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> x = torch.tensor([[-1.0]] * 9 + [[1.0]] * 10)
        >>> y = torch.tensor([0] * 9 + [1] * 9 + [0])  # the last sample contradicts what the others share
        >>> loader = DataLoader(TensorDataset(x, y), batch_size=5)
        >>> mined = EpochEnsemble(learning_rate=0.2).fit(nn.Linear(1, 2), loader, progress=False)
        >>> mined.conflicting().nonzero().tolist()
        [[18]]
    """

    epochs: int = 10
    confidence: float | None = None
    cut: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.confidence is not None:
            require_number("confidence", self.confidence, above=0, below=1)
        require_number("cut", self.cut, above=0, below=1)

    def _loss(self) -> LossFunction:
        def confident(scores: Tensor, target: Tensor) -> Tensor:
            losses = F.cross_entropy(scores, target, reduction="none")
            confidence = min(0.05, 0.5 / scores.shape[1]) if self.confidence is None else self.confidence
            sure = (losses.detach() < -math.log(confidence)).to(losses.dtype)
            return (sure * losses).sum() / sure.sum().clamp_min(1)

        return confident

    def _mined(self, trace: Trace) -> MinedSamples:
        scores = 1 - trace.probability.mean(0)
        return MinedSamples(scores, trace.target, scores > self.cut)


@dataclass(frozen=True, kw_only=True)
class LossMiner(_TrainingMiner):
    """The training loss after a few epochs: the baseline, good if the epoch is well chosen.

    Args:
        epochs: Of the training.
        learning_rate: At the start.
        network: Builds a new network; default a copy of the model with new weights.
        seed: Of weights and order.
        forward_fn: How to call the network.
        output_transform: How to find the scores in what it returns.

    Raises:
        InputError: A number is out of range.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> x = torch.tensor([[-1.0]] * 9 + [[1.0]] * 10)
        >>> y = torch.tensor([0] * 9 + [1] * 9 + [0])  # the last sample contradicts what the others share
        >>> loader = DataLoader(TensorDataset(x, y), batch_size=5)
        >>> mined = LossMiner(learning_rate=0.2).fit(nn.Linear(1, 2), loader, progress=False)
        >>> int(mined.scores.argmax())
        18
    """

    epochs: int = 3

    def _loss(self) -> LossFunction:
        return F.cross_entropy

    def _mined(self, trace: Trace) -> MinedSamples:
        return MinedSamples(-trace.probability[-1].clamp_min(torch.finfo(torch.float64).tiny).log(), trace.target)


@dataclass(frozen=True, kw_only=True)
class MisclassifiedMiner(_TrainingMiner):
    """What a network gets wrong after a few epochs of ordinary training: JTT's set (Liu et al., ICML 2021).

    Args:
        epochs: Of the training.
        learning_rate: At the start.
        network: Builds a new network; default a copy of the model with new weights.
        seed: Of weights and order.
        forward_fn: How to call the network.
        output_transform: How to find the scores in what it returns.

    Raises:
        InputError: A number is out of range.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> x = torch.tensor([[-1.0]] * 9 + [[1.0]] * 10)
        >>> y = torch.tensor([0] * 9 + [1] * 9 + [0])  # the last sample contradicts what the others share
        >>> loader = DataLoader(TensorDataset(x, y), batch_size=5)
        >>> mined = MisclassifiedMiner(learning_rate=0.2).fit(nn.Linear(1, 2), loader, progress=False)
        >>> mined.conflicting().nonzero().tolist()
        [[18]]
    """

    epochs: int = 3

    def _loss(self) -> LossFunction:
        return F.cross_entropy

    def _mined(self, trace: Trace) -> MinedSamples:
        wrong = ~trace.correct[-1]
        return MinedSamples(wrong.double(), trace.target, wrong)
