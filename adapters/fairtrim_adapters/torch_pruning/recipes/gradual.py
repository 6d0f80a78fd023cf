"""Gradual channel pruning by Torch-Pruning, level by level, for accumulated confidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch_pruning as tp
from torch import nn

from fairtrim import InputError
from fairtrim.arguments import renamed
from fairtrim.data.batches import ForwardFunction
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.mining import accumulated_confidence as core
from fairtrim.mining.accumulated_confidence import GradualPruning
from fairtrim.network.scored_network import OutputTransform, ScoredNetwork
from fairtrim.registry import Standing
from fairtrim_adapters.torch_pruning.graph.corrections import correct_graph
from fairtrim_adapters.torch_pruning.graph.level_pruner import freeze, frozen_parameters, pruner_of_levels
from fairtrim_adapters.torch_pruning.graph.pruner_options import PrunerOptions
from fairtrim_adapters.torch_pruning.importances.random_importance import RandomImportance
from fairtrim_adapters.torch_pruning.verification.verified import checked_step

__all__ = ["AccumulatedConfidence", "gradual_channel_pruning"]

Criterion = Literal["random", "magnitude"] | Callable[[nn.Module, IndexedSamples], tp.importance.Importance]


def _importance(
    criterion: Criterion, model: nn.Module, samples: IndexedSamples, generator: torch.Generator
) -> tp.importance.Importance:
    if criterion == "random":
        return RandomImportance(generator)
    if criterion == "magnitude":
        return tp.importance.GroupMagnitudeImportance()
    if not callable(criterion):
        raise InputError(
            f"criterion={criterion!r}; expected 'random', 'magnitude' or a function (model, samples) -> importance"
        )
    return criterion(model, samples)


def gradual_channel_pruning(
    criterion: Criterion = "random",
    *,
    ignored_layers: Sequence[str] = (),
    pruner_options: PrunerOptions = None,
    forward_fn: ForwardFunction | None = None,
    output_transform: OutputTransform | None = None,
) -> GradualPruning:
    """Torch-Pruning as the ``prune`` of ``fairtrim.mining.accumulated_confidence.AccumulatedConfidence``.

    Args:
        criterion: ``"random"``, ``"magnitude"``, or a function that makes an importance for a network.
        ignored_layers: Names of layers whose outputs stay, beside the layer that gives the scores.
        pruner_options: Further arguments of ``BasePruner``, such as ``{"global_pruning": True}``.
        forward_fn: How to call the network.
        output_transform: How to find the scores in what it returns.

    Returns:
        The function.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> samples = IndexedSamples(DataLoader(TensorDataset(torch.randn(6, 3), torch.arange(6) % 2), batch_size=3))
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> prune = gradual_channel_pruning("magnitude")
        >>> levels = prune(model, samples, [0.25, 0.5], torch.Generator())
        >>> [(level, model[0].out_features) for level in levels]
        [(0.25, 6), (0.5, 4)]
    """

    def prune(
        model: nn.Module, samples: IndexedSamples, levels: Sequence[float], generator: torch.Generator
    ) -> Iterator[float]:
        network = ScoredNetwork(model, forward_fn, output_transform)
        batch = samples.first(network.device)
        importance = _importance(criterion, model, samples, generator)
        pruner = pruner_of_levels(
            network, batch, levels, importance, ignored_layers=ignored_layers, pruner_options=pruner_options
        )
        frozen = frozen_parameters(model)
        for level in levels:
            correct_graph(pruner.DG)
            checked_step(pruner, batch, network)
            freeze(model, frozen)
            yield level

    return prune


@renamed(seed="random_state")
@dataclass(frozen=True, kw_only=True)
class AccumulatedConfidence(core.AccumulatedConfidence):
    """Accumulated confidence (DENP, a reconstruction), its network pruned by Torch-Pruning.

    The other settings are those of ``fairtrim.mining.accumulated_confidence.AccumulatedConfidence``.

    Args:
        criterion: Which channels go: ``"random"``, ``"magnitude"`` or a function (model, samples) -> importance.
        ignored_layers: Names of layers whose outputs stay, beside the layer that gives the scores.
        pruner_options: Further arguments of ``BasePruner``.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> x = torch.tensor([[-1.0]] * 9 + [[1.0]] * 10)
        >>> y = torch.tensor([0] * 9 + [1] * 9 + [0])  # the last sample contradicts what the others share
        >>> loader = DataLoader(TensorDataset(x, y), batch_size=5)
        >>> model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> mined = AccumulatedConfidence(epochs=3, learning_rate=0.05).mine(model, loader, progress=False)
        >>> int(mined.scores.argmax())
        18
    """

    name: ClassVar[str] = "accumulated-confidence"
    does: ClassVar[str] = "mines what a trained network loses confidence in first when it is pruned"
    when: ClassVar[str] = "for a network that is trained already; accumulate='drop' where labels may be wrong"
    source: ClassVar[str] = "DENP: Hong, Kim, Joo, Han, Shin, Wald, Lee, IEEE TIP 2026"
    link: ClassVar[str] = "https://doi.org/10.1109/TIP.2026.3687070"
    standing: ClassVar[Standing] = "reconstruction"
    remark: ClassVar[str] = "the idea is published, the formulas are not"

    criterion: Criterion = field(default="random", kw_only=False)
    ignored_layers: Sequence[str] = ()
    pruner_options: PrunerOptions = None
    prune: GradualPruning = field(init=False)

    def __post_init__(self) -> None:
        prune = gradual_channel_pruning(
            self.criterion,
            ignored_layers=self.ignored_layers,
            pruner_options=self.pruner_options,
            forward_fn=self.forward_fn,
            output_transform=self.output_transform,
        )
        object.__setattr__(self, "prune", prune)
        super().__post_init__()
