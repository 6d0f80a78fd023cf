"""Miners that train a network of their own and watch what it learns late."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fairtrim.arguments import RandomState, Renamed, random_generator, renamed, require_number, require_random_state
from fairtrim.data.batches import ForwardFunction, LossFunction
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.devices import model_device
from fairtrim.errors import InputError
from fairtrim.network.fine_tuning import fine_tune, reinitialized
from fairtrim.network.losses import generalized_cross_entropy
from fairtrim.network.scored_network import OutputTransform, ScoredNetwork
from fairtrim.preservation import seeded
from fairtrim.registry import Standing

from .mined_samples import MinedSamples
from .miner import Miner, Seen, Trace, seen_labels

__all__ = [
    "EpochEnsemble",
    "GeneralizedCrossEntropyMiner",
    "LossMiner",
    "MisclassifiedMiner",
    "TrainedMiner",
    "TrainingMiner",
]


@dataclass(frozen=True, kw_only=True)
class TrainingMiner(Miner):
    """What miners share that train a network and watch it.

    Args:
        epochs: Of the training.
        learning_rate: Of the training, at the start.
        random_state: Of weights, channels and order: a seed, from which every call draws alike, or a torch.Generator,
            which goes on drawing.
        forward_fn: How to call the network.
        output_transform: How to find the scores in what it returns.

    Raises:
        InputError: A number is out of range.
    """

    epochs: int
    learning_rate: float = 1e-3
    random_state: RandomState = 0
    forward_fn: ForwardFunction | None = None
    output_transform: OutputTransform | None = None

    seed = Renamed("random_state")

    least_epochs: ClassVar[int] = 1
    """How short the training may be."""

    def __post_init__(self) -> None:
        require_number("epochs", self.epochs, at_least=self.least_epochs, whole=True)
        require_number("learning_rate", self.learning_rate, above=0)
        require_random_state(self.random_state)

    def _seen(self, model: nn.Module, samples: IndexedSamples) -> Seen:
        """What a network says of every sample; see ``label_probabilities``."""
        return seen_labels(ScoredNetwork(model, self.forward_fn, self.output_transform), samples)

    def _train(
        self,
        model: nn.Module,
        samples: IndexedSamples,
        loss_fn: LossFunction,
        generator: torch.Generator,
        progress: bool,
        after_epoch: Callable[[int], None] | None = None,
    ) -> None:
        """Train with the settings that miners share."""
        fine_tune(
            model,
            samples,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            loss_fn=loss_fn,
            forward_fn=self.forward_fn,
            output_transform=self.output_transform,
            random_state=generator,
            after_epoch=after_epoch,
            progress=progress,
        )


@dataclass(frozen=True, kw_only=True)
class TrainedMiner(TrainingMiner):
    """Trains a new network of the same architecture and watches it, epoch after epoch.

    Args:
        network: Builds a new network; default a copy of the model with new weights.

    Raises:
        InputError: The network is no function.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> x = torch.tensor([[-1.0]] * 9 + [[1.0]] * 10)
        >>> y = torch.tensor([0] * 9 + [1] * 9 + [0])  # the last sample contradicts what the others share
        >>> loader = DataLoader(TensorDataset(x, y), batch_size=5)
        >>> miners = MisclassifiedMiner, LossMiner, EpochEnsemble, GeneralizedCrossEntropyMiner
        >>> for miner in miners:
        ...     mined = miner(learning_rate=0.2).mine(nn.Linear(1, 2), loader, progress=False)
        ...     print(miner.__name__, int(mined.scores.argmax()))
        MisclassifiedMiner 18
        LossMiner 18
        EpochEnsemble 18
        GeneralizedCrossEntropyMiner 18
    """

    network: Callable[[], nn.Module] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network is not None and not callable(self.network):
            raise InputError(f"network is a {type(self.network).__name__}; expected a function that builds a new one")

    def _loss(self, seen: Sequence[Seen]) -> LossFunction:
        """What the network is trained with, given what it has said so far: before the training, after each epoch."""
        return F.cross_entropy

    @abstractmethod
    def _mined(self, trace: Trace) -> MinedSamples:
        """From what the network said after each epoch to scores."""

    def _fresh(self, model: nn.Module, generator: torch.Generator) -> nn.Module:
        """A network with new weights."""
        if self.network is None:
            return reinitialized(model, generator)
        with seeded(generator):
            fresh = self.network()
        if not isinstance(fresh, nn.Module):
            raise InputError(f"network() gave a {type(fresh).__name__}; expected a torch.nn.Module")
        return fresh.to(model_device(model))

    @torch.inference_mode(False)  # there nothing has a slope
    def mine(self, model: nn.Module, loader: DataLoader[Any], *, progress: bool = True) -> MinedSamples:
        """Score every sample; see ``Miner.mine``."""
        samples, generator = IndexedSamples(loader), random_generator(self.random_state)
        fresh = self._fresh(model, generator)
        rows = [self._seen(fresh, samples)]  # refuses data before training
        self._train(
            fresh,
            samples,
            self._loss(rows),
            generator,
            progress,
            after_epoch=lambda _: rows.append(self._seen(fresh, samples)),
        )
        probability, correct, target = (list(column) for column in zip(*rows[1:], strict=True))
        return self._mined(Trace(torch.stack(probability), torch.stack(correct), target[0]))


@renamed(seed="random_state")
@dataclass(frozen=True, kw_only=True)
class GeneralizedCrossEntropyMiner(TrainedMiner):
    """What a network trained with generalised cross-entropy gets wrong: DCWP's stages 1 and 2 (and LfF's idea).

    Its other settings are those of ``TrainedMiner``.

    Args:
        q: Of the loss.

    Raises:
        InputError: A number is out of range.

    Example: see ``TrainedMiner``.
    """

    name: ClassVar[str] = "generalized-cross-entropy"
    does: ClassVar[str] = "mines what a network trained with generalised cross-entropy gets wrong"
    when: ClassVar[str] = "for most data: it found most of what is bias-conflicting; labels have to be right"
    source: ClassVar[str] = "DCWP: Park, Lee, Lee, Ye, CVPR 2023"
    link: ClassVar[str] = "https://arxiv.org/abs/2210.05247"
    standing: ClassVar[Standing] = "published"

    epochs: int = 10
    q: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("q", self.q, above=0)

    def _loss(self, seen: Sequence[Seen]) -> LossFunction:
        return lambda scores, target: generalized_cross_entropy(scores, target, q=self.q)

    def _mined(self, trace: Trace) -> MinedSamples:
        return MinedSamples(1 - trace.probability[-1], trace.target, ~trace.correct[-1])


@renamed(seed="random_state")
@dataclass(frozen=True, kw_only=True)
class EpochEnsemble(TrainedMiner):
    """Mean of 1 − p(y|x) over the epochs of a network that trains on what it is already sure of (DCWP's variant).

    Samples with p(y|x) ≤ ``confidence`` get no gradient, so the network stays biased; mined are those whose mean is
    above ``cut``. Both numbers are the authors', but 0.05 would leave out everything where there are 20 classes or
    more: there it is half of an even guess. A class most of whose samples would get no gradient would never be learned,
    and all of it mined: before each epoch such classes are found, and all of their samples count in it. The other
    settings are those of ``TrainedMiner``.

    Args:
        confidence: Probability of the label above which a sample counts; None for min(0.05, 1/(2K)).
        cut: Of the miner's own decision.

    Raises:
        InputError: A number is out of range.

    Example: see ``TrainedMiner``.
    """

    name: ClassVar[str] = "epoch-ensemble"
    does: ClassVar[str] = (
        "mines what a network that trains on what it is already sure of gives a low probability, over its epochs"
    )
    when: ClassVar[str] = "for many classes, of which none is lost"
    source: ClassVar[str] = "DCWP: Park, Lee, Lee, Ye, CVPR 2023"
    link: ClassVar[str] = "https://arxiv.org/abs/2210.05247"
    standing: ClassVar[Standing] = "published"
    remark: ClassVar[str] = "the confidence for 20 classes or more is ours, and that no class is left out as a whole"

    epochs: int = 10
    confidence: float | None = None
    cut: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.confidence is not None:
            require_number("confidence", self.confidence, above=0, below=1)
        require_number("cut", self.cut, above=0, below=1)

    def _loss(self, seen: Sequence[Seen]) -> LossFunction:
        unlearned: list[Tensor] = []  # of each epoch, (K,)

        def confident(scores: Tensor, target: Tensor) -> Tensor:
            n_classes = scores.shape[1]
            confidence = min(0.05, 0.5 / n_classes) if self.confidence is None else self.confidence
            if len(unlearned) < len(seen):
                unlearned.append(_unlearned(seen[-1], n_classes, confidence).to(scores.device))
            losses = F.cross_entropy(scores, target, reduction="none")
            counts = (losses.detach() < -math.log(confidence)) | unlearned[-1][target]
            counts = counts.to(losses.dtype)
            return (counts * losses).sum() / counts.sum().clamp_min(1)

        return confident

    def _mined(self, trace: Trace) -> MinedSamples:
        scores = 1 - trace.probability.mean(0)
        return MinedSamples(scores, trace.target, scores > self.cut)


def _unlearned(seen: Seen, n_classes: int, confidence: float) -> Tensor:
    """The classes of which most samples would get no gradient, (K,) bool."""
    probability, _, target = seen
    unlearned = torch.zeros(n_classes, dtype=torch.bool, device="cpu")
    for label in torch.unique(target).tolist():
        unlearned[label] = bool(probability[target == label].median() <= confidence)
    return unlearned


@renamed(seed="random_state")
@dataclass(frozen=True, kw_only=True)
class LossMiner(TrainedMiner):
    """The training loss after a few epochs: the baseline, good if the epoch is well chosen.

    Its settings are those of ``TrainedMiner``.

    Raises:
        InputError: A number is out of range.

    Example: see ``TrainedMiner``.
    """

    name: ClassVar[str] = "loss"
    does: ClassVar[str] = "mines what has a large training loss after a few epochs"
    when: ClassVar[str] = "as the simplest rival; its best number of epochs can't be known"
    standing: ClassVar[Standing] = "baseline"

    epochs: int = 3

    def _mined(self, trace: Trace) -> MinedSamples:
        return MinedSamples(-trace.probability[-1].clamp_min(torch.finfo(torch.float64).tiny).log(), trace.target)


@renamed(seed="random_state")
@dataclass(frozen=True, kw_only=True)
class MisclassifiedMiner(TrainedMiner):
    """What a network gets wrong after a few epochs of ordinary training: JTT's set (Liu et al., ICML 2021).

    Its settings are those of ``TrainedMiner``.

    Raises:
        InputError: A number is out of range.

    Example: see ``TrainedMiner``.
    """

    name: ClassVar[str] = "misclassified"
    does: ClassVar[str] = "mines what a network gets wrong after a few epochs of ordinary training"
    when: ClassVar[str] = "to compare with JTT; its best number of epochs can't be known"
    source: ClassVar[str] = "JTT: Liu and others, ICML 2021"
    link: ClassVar[str] = "https://arxiv.org/abs/2107.09044"
    standing: ClassVar[Standing] = "published"

    epochs: int = 3

    def _mined(self, trace: Trace) -> MinedSamples:
        wrong = ~trace.correct[-1]
        return MinedSamples(wrong.double(), trace.target, wrong)
