"""How the scoring data are read and the network is called: the same wherever damages are computed or measured."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypedDict

import torch
import torch.nn.functional as F
from torch import nn

from fairtrim.arguments import require_known
from fairtrim.data.batches import Batch, ForwardFunction, LossFunction, iterate_batches
from fairtrim.data.sensitive_groups import SensitiveEncoder, SensitiveNames
from fairtrim.data.sensitive_loader import with_sensitive_features
from fairtrim.network.sample_loss import SampleLoss
from fairtrim.network.scored_network import OutputTransform, ScoredNetwork

__all__ = ["CollectionOptions", "Reading", "ReadingOptions"]


class ReadingOptions(TypedDict, total=False):
    """How the data are read and the network is called.

    Attributes:
        loss_fn: Loss of scores and target; any differentiable one that is a sum or a mean over samples; default
            cross-entropy. A mean with weights, Σ w_n ℓ_n / Σ w_n, gives the damages of w_n ℓ_n over the mean weight.
        forward_fn: How to call the network: ``forward_fn(model, inputs)``.
        output_transform: Finds the scores (N, K) in what the network returns.
        sensitive_features: Of a loader of (inputs, target), one row a sample of its dataset, shuffled or not; see
            ``fairtrim.with_sensitive_features``.
        sensitive_names: Names of the sensitive features, and of their values.
        sensitive_weights: Whether the third entry of a batch holds no values of features but weights, (N, G): how much
            each person counts in each group; ``sensitive_names`` is then a list with the names of the groups. Default
            False.
        max_batches: Stop after so many batches.
        progress: Show a progress bar; default True.

    Example:
        >>> from fairtrim import ChannelGroup, ChannelPlace, collect_damage
        >>> options: ReadingOptions = {"sensitive_names": {"sex": ["Female", "Male"]}, "progress": False}
        >>> hidden = ChannelGroup("0", 3, (ChannelPlace("1", "input", range(3), range(3), channel_axis=-1),))
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
        >>> people = [(torch.eye(2), torch.tensor([0, 1]), torch.tensor([1, 0]))]
        >>> collect_damage(model, people, [hidden], **options).sensitive_groups
        ('Female', 'Male')
    """

    loss_fn: LossFunction
    forward_fn: ForwardFunction | None
    output_transform: OutputTransform | None
    sensitive_features: Any
    sensitive_names: SensitiveNames | None
    sensitive_weights: bool
    max_batches: int | None
    progress: bool


class CollectionOptions(ReadingOptions, total=False):
    """``ReadingOptions``, and how a long pass is shared out or taken up again.

    Attributes:
        distributed: Whether the processes of ``torch.distributed`` each read a share of the data and the sums are added
            up over them; default: if it is initialised with several. False computes alone.
        folder: Where to keep the sums once a minute, so that a run that was cut short goes on from there: call again
            with the same network and a loader that gives the same batches. The file is removed at the end.
    """

    distributed: bool | None
    folder: str | os.PathLike[str] | None


@dataclass(frozen=True)
class Reading:
    """The options with their defaults, and what they make. See ``ReadingOptions``."""

    loss_fn: LossFunction = F.cross_entropy
    forward_fn: ForwardFunction | None = None
    output_transform: OutputTransform | None = None
    sensitive_features: Any = None
    sensitive_names: SensitiveNames | None = None
    sensitive_weights: bool = False
    max_batches: int | None = None
    progress: bool = True

    @classmethod
    def of(cls, options: Mapping[str, Any], what: str, known: type[Any] = ReadingOptions) -> Self:
        """The options that ``what`` was called with, those not in ``known`` refused."""
        require_known(what, options, known.__annotations__)
        return cls(**{name: value for name, value in options.items() if name in ReadingOptions.__annotations__})

    def network(self, model: nn.Module) -> ScoredNetwork:
        """A network that is called in this way."""
        return ScoredNetwork(model, self.forward_fn, self.output_transform)

    def encoder(self) -> SensitiveEncoder:
        """A new encoder of the sensitive features."""
        return SensitiveEncoder(self.sensitive_names, sensitive_weights=self.sensitive_weights)

    def sample_loss(self, *, in_parts: bool = False) -> SampleLoss:
        """The loss of single samples; see ``SampleLoss``."""
        return SampleLoss(self.loss_fn, in_parts=in_parts)

    def batches(
        self, loader: Iterable[Any], device: torch.device | None, description: str, *, allow_empty: bool = False
    ) -> Iterator[Batch]:
        """Go through a loader; see ``iterate_batches``."""
        return iterate_batches(
            with_sensitive_features(loader, self.sensitive_features),
            device,
            max_batches=self.max_batches,
            progress=self.progress,
            description=description,
            allow_empty=allow_empty,
        )
