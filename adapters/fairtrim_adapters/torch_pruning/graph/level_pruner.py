"""Gradual channel pruning by Torch-Pruning, level by level, for accumulated confidence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import InputError, UnsupportedModelError
from fairtrim.data.batches import Batch, ForwardFunction
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.devices import model_device
from fairtrim.mining import accumulated_confidence as core
from fairtrim.mining.accumulated_confidence import GradualPruning
from fairtrim.network.output_layer import FeatureTap
from fairtrim.network.scored_network import class_scores
from fairtrim.preservation import preserved_model, preserved_random_state
from fairtrim_adapters.torch_pruning.graph.corrections import correct_graph
from fairtrim_adapters.torch_pruning.graph.dependency_groups import group_name, is_consumed
from fairtrim_adapters.torch_pruning.graph.plan import groups_of_next_step
from fairtrim_adapters.torch_pruning.graph.pruner_options import check_pruner_options, check_ratios
from fairtrim_adapters.torch_pruning.verification.verified import checked_step

__all__ = [
    "AccumulatedConfidence",
    "RandomImportance",
    "freeze",
    "frozen_parameters",
    "gradual_channel_pruning",
    "pruner_of_levels",
]

Criterion = Literal["random", "magnitude"] | Callable[[nn.Module, IndexedSamples], tp.importance.Importance]


class RandomImportance(tp.importance.Importance):  # type: ignore[misc]
    """Random scores from a generator of its own; the host's draws from the global one.

    Args:
        generator: Source of randomness.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def __call__(self, group: tp.Group) -> Tensor:
        """Scores of one dependency group, (C,).

        Args:
            group: The group.

        Returns:
            The scores.
        """
        return torch.rand(len(group[0].idxs), generator=self._generator)


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


def pruner_of_levels(
    model: nn.Module,
    batch: Batch,
    levels: Sequence[float],
    importance: tp.importance.Importance | None,
    *,
    ignored_layers: Sequence[str] = (),
    forward_fn: ForwardFunction | None = None,
    output_transform: Callable[[Any], Tensor] | None = None,
    whole_layers: bool = False,
    **options: Any,
) -> tp.pruner.BasePruner:
    """A pruner of the host whose steps lead from level to level.

    Args:
        model: The network.
        batch: Samples to trace the network with.
        levels: Shares of the channels, increasing; one step each.
        importance: The importance.
        ignored_layers: Names of layers whose outputs stay, beside the layer that gives the scores.
        forward_fn: How to call the network.
        output_transform: How to find the scores in what it returns.
        whole_layers: Whether the levels may be too high for a layer, because something else decides.
        options: Further arguments of ``BasePruner``, such as ``global_pruning``; where those have layers for keys
            (``num_heads``, ``pruning_ratio_dict``), names of layers, because it is a copy that is pruned.

    Returns:
        The pruner.

    Raises:
        InputError: A layer is unknown, or a level leaves a layer without channels.
        UnsupportedModelError: A layer that gives the network's scores would be pruned.
    """
    modules = dict(model.named_modules())
    check_pruner_options(options)
    if isinstance(ignored_layers, str):
        raise InputError(f"ignored_layers is the string {ignored_layers!r}; expected a list: [{ignored_layers!r}]")
    unknown = [name if isinstance(name, str) else type(name).__name__ for name in ignored_layers if name not in modules]
    if unknown:
        raise InputError(
            f"ignored_layers holds {unknown}; expected names of the network's layers, e.g. 'blocks.2', because a copy "
            "of the network is pruned"
        )
    tap = FeatureTap(model)
    with preserved_random_state(), preserved_model(model), torch.no_grad(), tap.attached():
        scores = class_scores(model, batch, forward_fn, output_transform)
        head = tap.head(scores)
    ignored = [modules[name] for name in dict.fromkeys([*ignored_layers, *([head] if head else [])])]
    inputs = batch.inputs[:2] if isinstance(batch.inputs, Tensor) else batch.inputs
    with preserved_random_state(), preserved_model(model):
        model.requires_grad_(True)  # or the host's trace has no graph; the flags come back with preserved_model
        pruner = tp.pruner.BasePruner(
            model,
            inputs,
            importance=importance,
            pruning_ratio=levels[-1],
            iterative_steps=len(levels),
            # other ratios than the whole network's, of single layers, are reached in proportion
            iterative_pruning_ratio_scheduler=lambda ratio, _: [0.0, *(k * (ratio / levels[-1]) for k in levels)],
            ignored_layers=ignored,
            forward_fn=forward_fn,
            output_transform=output_transform,
            **{"in_channel_groups": {}, "out_channel_groups": {}, "num_heads": {}, **_by_layer(options, modules)},
        )
    check_ratios(pruner)
    small = {}
    for group in groups_of_next_step(pruner):
        name = group_name(group)
        if not is_consumed(group, pruner.DG):
            raise UnsupportedModelError(
                f"the channels of {name!r} are consumed by no layer: they are outputs of the network, and removing "
                f"them would remove its scores; add {name!r} to ignored_layers"
            )
        size = len(group[0].idxs) // pruner._get_channel_groups(group)
        if int(size * (1 - levels[-1])) < 1:
            small[name] = size
    if small and not pruner.global_pruning and not whole_layers:
        raise InputError(
            f"level {levels[-1]} leaves no channel of the layers {small} (name: channels); expected a lower ratio (or "
            "lower levels= of AccumulatedConfidence), global_pruning=True, or those layers in ignored_layers"
        )
    return pruner


def frozen_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters without ``requires_grad``; the host makes those that it prunes trainable.

    Args:
        model: The network.

    Returns:
        The names.
    """
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def freeze(model: nn.Module, names: Collection[str]) -> None:
    """Freeze parameters by name, and let the others be trained.

    Args:
        model: Changed in place.
        names: As from ``frozen_parameters``.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)


def _by_layer(options: Mapping[str, Any], modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Options of the host, names of layers replaced by the layers."""
    own = set(modules.values())

    def layer(option: str, name: Any) -> Any:
        if isinstance(name, tuple):
            return tuple(layer(option, entry) for entry in name)
        if isinstance(name, type) or (isinstance(name, nn.Module) and name in own):  # a kind of layer, or a layer
            return name
        if name not in modules:
            got = type(name).__name__ if isinstance(name, nn.Module) else repr(name)
            raise InputError(
                f"pruner_options: {option} has the key {got}; expected names of the network's layers, e.g. 'blocks.2', "
                "because a copy of the network is pruned"
            )
        return modules[name]

    return {
        option: {layer(option, name): entry for name, entry in value.items()} if isinstance(value, Mapping) else value
        for option, value in options.items()
    }


def gradual_channel_pruning(
    criterion: Criterion = "random",
    *,
    ignored_layers: Sequence[str] = (),
    forward_fn: ForwardFunction | None = None,
    output_transform: Callable[[Any], Tensor] | None = None,
    **options: Any,
) -> GradualPruning:
    """Torch-Pruning as the ``prune`` of ``fairtrim.mining.accumulated_confidence.AccumulatedConfidence``.

    Args:
        criterion: ``"random"``, ``"magnitude"``, or a function that makes an importance for a network.
        ignored_layers: Names of layers whose outputs stay, beside the layer that gives the scores.
        forward_fn: How to call the network.
        output_transform: How to find the scores in what it returns.
        options: Further arguments of ``BasePruner``, such as ``global_pruning``.

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
        batch = samples.first(model_device(model))
        calling: dict[str, Any] = {"forward_fn": forward_fn, "output_transform": output_transform}
        pruner = pruner_of_levels(
            model,
            batch,
            levels,
            _importance(criterion, model, samples, generator),
            ignored_layers=ignored_layers,
            **calling,
            **options,
        )
        frozen = frozen_parameters(model)
        for level in levels:
            correct_graph(pruner.DG)
            checked_step(pruner, batch, calling)
            freeze(model, frozen)
            yield level

    return prune


class AccumulatedConfidence(core.AccumulatedConfidence):
    """Accumulated confidence (DENP, a reconstruction), its network pruned by Torch-Pruning.

    Args:
        criterion: Which channels go: ``"random"``, ``"magnitude"`` or a function (model, samples) -> importance.
        ignored_layers: Names of layers whose outputs stay, beside the layer that gives the scores.
        pruner_options: Further arguments of ``BasePruner``.
        options: As for ``fairtrim.mining.accumulated_confidence.AccumulatedConfidence``: ``levels``, ``epochs``,
            ``learning_rate``, ``loss_fn``, ``accumulate``, ``seed``, ``forward_fn``, ``output_transform``.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> x = torch.tensor([[-1.0]] * 9 + [[1.0]] * 10)
        >>> y = torch.tensor([0] * 9 + [1] * 9 + [0])  # the last sample contradicts what the others share
        >>> loader = DataLoader(TensorDataset(x, y), batch_size=5)
        >>> model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> mined = AccumulatedConfidence(epochs=3, learning_rate=0.05).fit(model, loader, progress=False)
        >>> int(mined.scores.argmax())
        18
    """

    def __init__(
        self,
        criterion: Criterion = "random",
        *,
        ignored_layers: Sequence[str] = (),
        pruner_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        shared = {key: options[key] for key in ("forward_fn", "output_transform") if key in options}
        prune = gradual_channel_pruning(criterion, ignored_layers=ignored_layers, **shared, **(pruner_options or {}))
        super().__init__(prune=prune, **options)
