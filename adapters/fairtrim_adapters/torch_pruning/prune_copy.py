"""One pruned copy of a network, by any criterion of fairtrim or Torch-Pruning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from fairtrim import InputError, fine_tune, recalibrate_batchnorm
from fairtrim.data.batches import iterate_batches
from fairtrim.data.data_splits import DataSplits
from fairtrim.devices import model_device
from fairtrim.network.recalibration import batchnorm_layers
from fairtrim.network.scored_network import class_scores
from fairtrim.preservation import preserved_random_state, seeded
from fairtrim_adapters.torch_pruning.graph.corrections import correct_graph
from fairtrim_adapters.torch_pruning.graph.head_counts import tell_heads
from fairtrim_adapters.torch_pruning.importances.channel_importance import ChannelImportance
from fairtrim_adapters.torch_pruning.recipes.gradual import freeze, frozen_parameters, pruner_of_levels
from fairtrim_adapters.torch_pruning.verification.verified import checked_step

__all__ = ["FineTuning", "PrunerOptions", "prune_and_fine_tune", "prune_copy"]

PrunerOptions = Mapping[str, Any] | Callable[[nn.Module], Mapping[str, Any]] | None
"""Further arguments of ``BasePruner``: names of layers where it takes layers; or a function of the network that gives
them, such as ``lambda model: pruning_options(model)`` for networks of Hugging Face."""

FineTuning = int | Callable[[nn.Module, int], Any]
"""Epochs of ``fairtrim.fine_tune``, or one's own loop: ``fine_tune(model, seed)``, which trains in place."""

_NEED_MORE = (
    tp.importance.GroupHessianImportance,
    tp.importance.OBDCImportance,
    tp.importance.ActivationImportance,
)


def prune_copy(
    model: nn.Module,
    importance: tp.importance.Importance,
    data: DataSplits,
    ratio: float,
    *,
    iterative_steps: int = 1,
    ignored_layers: Sequence[str] = (),
    pruner_options: PrunerOptions = None,
    recalibrate: bool = True,
    progress: bool = True,
) -> nn.Module:
    """Prune a copy of a network; the layer that gives the scores keeps its outputs.

    Args:
        model: The network; untouched.
        importance: fairtrim's, or Torch-Pruning's random, magnitude or Taylor ones (for which gradients of the loss
            are summed over the scoring data here).
        data: Whose ``scoring`` split scores the channels, again before each step.
        ratio: Share of the channels to remove, in (0, 1).
        iterative_steps: In how many steps.
        ignored_layers: Names of further layers whose outputs stay.
        pruner_options: Further arguments of ``BasePruner``.
        recalibrate: Whether BatchNorm statistics are computed again on the scoring data afterwards.
        progress: Show progress bars.

    Returns:
        The pruned copy, in eval mode.

    Raises:
        InputError: An argument or the data is wrong, or nothing was removed.
        UnsupportedModelError: The network can't be scored or pruned.

    Example:
        >>> people = [(torch.randn(8, 4), torch.arange(8) % 2, ["a", "b"] * 4)]
        >>> network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> data = DataSplits(test=people, scoring=people)
        >>> prune_copy(network, tp.importance.GroupMagnitudeImportance(), data, 0.5, progress=False)[0].out_features
        3
    """
    if not 0 < ratio < 1 or iterative_steps < 1:
        raise InputError(
            f"ratio={ratio}, iterative_steps={iterative_steps}; expected a share in (0, 1) and at least one step"
        )
    if isinstance(importance, ChannelImportance) and importance._model is not None:
        raise InputError(
            f"{type(importance).__name__} was made with model= and loader=, which would have no effect: it is fitted "
            "here, to a copy and by the scoring data; leave them out"
        )
    pruned = copy.deepcopy(model).eval()
    options = dict(pruner_options(pruned) if callable(pruner_options) else pruner_options or {})
    names = {module: name for name, module in pruned.named_modules()}
    ignored = [names.get(layer, layer) for layer in (*ignored_layers, *options.pop("ignored_layers", ()))]
    needs_data = isinstance(importance, ChannelImportance | tp.importance.GroupTaylorImportance)
    split = "scoring" if needs_data or data.scoring is not None or data.train is not None else "test"
    batch = data.first_batch(split, model_device(pruned))
    levels = [ratio * (step + 1) / iterative_steps for step in range(iterative_steps)]
    with preserved_random_state():
        pruner = pruner_of_levels(pruned, batch, levels, importance, ignored_layers=ignored, **data.calling, **options)
        frozen = frozen_parameters(pruned)
        for _ in levels:
            _score(importance, pruner, pruned, data, progress)
            if isinstance(importance, ChannelImportance):
                pruner.step()  # which was taken on trial when it was fitted
                tell_heads(pruned, pruner)
            else:
                checked_step(pruner, batch, data.calling)
            freeze(pruned, frozen)
        pruned.zero_grad()
    if not pruner.pruning_history():
        raise InputError(
            f"nothing was removed at ratio={ratio}: every layer is ignored, or too small to lose a channel; expected a "
            "higher ratio or fewer ignored_layers"
        )
    if recalibrate and batchnorm_layers(pruned):
        loader = data.need("scoring", "recalibrating BatchNorm (turn it off with recalibrate=False)")
        recalibrate_batchnorm(pruned, loader, forward_fn=data.forward_fn, progress=progress)
    return pruned


def prune_and_fine_tune(
    model: nn.Module,
    importance: tp.importance.Importance,
    data: DataSplits,
    ratio: float,
    *,
    seed: int,
    fine_tuning: FineTuning = 0,
    learning_rate: float = 1e-3,
    recalibrate: bool = True,
    progress: bool = True,
    **pruning: Any,
) -> nn.Module:
    """Prune a copy of a network, and train it if that is asked for, all draws from one seed.

    Args:
        model: The network; untouched.
        importance: As for ``prune_copy``.
        data: Its ``train`` split is trained on.
        ratio: Share of the channels to remove.
        seed: Of everything random.
        fine_tuning: Epochs, or one's own loop.
        learning_rate: At the start of the epochs.
        recalibrate: Whether BatchNorm statistics are computed again where nothing is trained.
        progress: Show progress bars.
        pruning: Further arguments of ``prune_copy``.

    Returns:
        The copy, in eval mode.

    Raises:
        InputError: An argument or the data is wrong, or nothing was removed.
        UnsupportedModelError: The network can't be scored or pruned.

    Example:
        >>> people = [(torch.eye(4), torch.arange(4) % 2, ["a", "b"] * 2)]
        >>> network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> magnitude, seen = tp.importance.GroupMagnitudeImportance(), []
        >>> _ = prune_and_fine_tune(network, magnitude, DataSplits(test=people), 0.5, seed=7, progress=False,
        ...                         fine_tuning=lambda pruned, seed: seen.append((pruned[0].out_features, seed)))
        >>> seen
        [(3, 7)]
    """
    trained = fine_tuning != 0
    with seeded(torch.Generator().manual_seed(seed)):
        pruned = prune_copy(
            model, importance, data, ratio, recalibrate=recalibrate and not trained, progress=progress, **pruning
        )
        if callable(fine_tuning):
            fine_tuning(pruned, seed)
        elif trained:
            fine_tune(
                pruned,
                data.need("train", "fine-tuning"),
                epochs=fine_tuning,
                learning_rate=learning_rate,
                loss_fn=data.loss_fn,
                random_state=torch.Generator().manual_seed(seed),
                progress=progress,
                **data.calling,
            )
    return pruned.eval()


def _score(
    importance: tp.importance.Importance,
    pruner: tp.pruner.BasePruner,
    model: nn.Module,
    data: DataSplits,
    progress: bool,
) -> None:
    """Give an importance what it looks at."""
    if isinstance(importance, ChannelImportance):
        shared = {"sensitive_names": data.sensitive_names, "progress": progress, **data.calling}
        if data.loss_fn is not F.cross_entropy:  # else the importance's own default
            shared["loss_fn"] = data.loss_fn
        # what the importance was made with is for it alone, and takes precedence over what all share
        options = {k: v for k, v in shared.items() if k not in importance.idle_options and k not in importance._options}
        importance.fit(pruner, data.need("scoring", type(importance).__name__), **options)
        return
    correct_graph(pruner.DG)
    if isinstance(importance, tp.importance.GroupTaylorImportance):
        loader = data.need("scoring", "Torch-Pruning's Taylor importance")
        model.zero_grad()
        with preserved_random_state(loader):
            for batch in iterate_batches(loader, model_device(model), progress=progress, description="Taylor scores"):
                loss = data.loss_fn(class_scores(model, batch, positions=True, **data.calling), batch.target)
                (loss.mean() * len(batch)).backward()  # type: ignore[no-untyped-call]
    elif isinstance(importance, _NEED_MORE):
        raise InputError(
            f"{type(importance).__name__} needs gradients or activations that are not collected here; expected an "
            "importance of fairtrim, or Torch-Pruning's random, magnitude or Taylor importance"
        )
