"""One pruned copy of a network, by any criterion of fairtrim or Torch-Pruning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from fairtrim import InputError, fine_tune, recalibrate_batchnorm
from fairtrim.arguments import RandomState, drawn_seed, renamed, require_known, require_network, require_number
from fairtrim.data.data_splits import DataSplits
from fairtrim.network import recalibration
from fairtrim.network.batchnorm import batchnorm_layers
from fairtrim.network.fine_tuning import FineTuning, complete_settings
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.placement import require_whole
from fairtrim.preservation import preserved_random_state, seeded
from fairtrim_adapters.torch_pruning.graph.head_counts import tell_heads
from fairtrim_adapters.torch_pruning.graph.level_pruner import freeze, frozen_parameters, pruner_of_levels
from fairtrim_adapters.torch_pruning.graph.pruner_options import PrunerOptions
from fairtrim_adapters.torch_pruning.importances.channel_importance import ChannelImportance
from fairtrim_adapters.torch_pruning.importances.host_importance import (
    needs_data,
    refuse_own_data,
    refuse_unscored,
    scored,
)
from fairtrim_adapters.torch_pruning.reconstruction.output import (
    OutputRecalibration,
    check_recalibration,
)
from fairtrim_adapters.torch_pruning.reconstruction.wrap import Refit, reconstructed
from fairtrim_adapters.torch_pruning.verification.verified import checked_step

__all__ = ["Training", "prune_copy", "refits", "trains"]

Training = int | FineTuning | Callable[[nn.Module, int], Any]
"""Epochs of ``fairtrim.fine_tune``, its settings, or one's own loop: ``fine_tuning(model, seed)`` trains in place."""


@renamed(
    data="splits",
    ratio="pruning_ratio",
    fine_tune="fine_tuning",
    learning_rate="fine_tuning={'learning_rate': ...}",
    seed="random_state",
)
def prune_copy(
    model: nn.Module,
    importance: tp.importance.Importance,
    splits: DataSplits,
    pruning_ratio: float,
    *,
    iterative_steps: int = 1,
    ignored_layers: Sequence[str] = (),
    pruner_options: PrunerOptions = None,
    fine_tuning: Training = 0,
    reconstruct: bool | None = None,
    recalibrate: bool = True,
    recalibrate_output: OutputRecalibration | None = None,
    random_state: RandomState = 0,
    progress: bool = True,
) -> nn.Module:
    """Prune a copy of a network, and train it if that is asked for; the layer that gives the scores keeps its outputs.

    Args:
        model: The network; untouched.
        importance: fairtrim's, or Torch-Pruning's: random, magnitude, LAMP, FPGM, BNScale, Taylor or Hessian (whose
            gradients are collected over the scoring data here).
        splits: Its ``scoring`` split scores the channels, again before each step; its ``train`` split is trained on.
        pruning_ratio: Share of the channels to remove, in (0, 1).
        iterative_steps: In how many steps; refitted in between, several lose far less than one where much goes.
        ignored_layers: Names of further layers whose outputs stay.
        pruner_options: Further arguments of ``BasePruner``, such as ``{"global_pruning": True}``, or a function of the
            network that gives them.
        fine_tuning: Epochs after the last step, settings of ``fairtrim.fine_tune`` (``{"epochs": 5, "learning_rate":
            1e-4}``), or one's own loop ``fine_tuning(network, seed)``.
        reconstruct: Whether what reads removed channels is refitted on the scoring data after each step, to what it
            gave before, without a label; see ``reconstructed``. Default: where there is a scoring or training split.
        recalibrate: Whether BatchNorm statistics are computed again on the scoring data where nothing is refitted or
            trained.
        recalibrate_output: Whether at last the output layer is fitted to the labels of the scoring data (``"output"``),
            or for two classes its threshold alone (``"threshold"``); see ``fairtrim.recalibrate_output``.
        random_state: Of everything random: a seed, or a torch.Generator, from which one is drawn.
        progress: Show progress bars.

    Returns:
        The pruned copy, in eval mode.

    Raises:
        InputError: An argument or the data is wrong, or nothing was removed.
        UnsupportedModelError: The network can't be scored or pruned.

    Example:
        >>> people = [(torch.randn(8, 4), torch.arange(8) % 2, ["a", "b"] * 4)]
        >>> network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> splits, magnitude = DataSplits(test=people, scoring=people), tp.importance.GroupMagnitudeImportance()
        >>> prune_copy(network, magnitude, splits, 0.5, progress=False)[0].out_features
        3
        >>> seen = []
        >>> _ = prune_copy(network, magnitude, splits, 0.5, random_state=7, progress=False,
        ...                fine_tuning=lambda pruned, seed: seen.append((pruned[0].out_features, seed)))
        >>> seen
        [(3, 7)]
    """
    _check(importance, pruning_ratio, iterative_steps)
    require_network("model", model)
    require_whole(model)
    ScoredNetwork(model).check()
    splits = DataSplits.of(splits)
    refitted = refits(reconstruct, splits)
    check_recalibration(recalibrate_output)
    training, seed = _settings(fine_tuning), drawn_seed(random_state)
    with seeded(torch.Generator().manual_seed(seed)):
        network = ScoredNetwork(copy.deepcopy(model).eval(), splits.forward_fn, splits.output_transform)
        levels = [pruning_ratio * (step + 1) / iterative_steps for step in range(iterative_steps)]
        refitting = _Refitting(splits, seed, progress) if refitted else None
        with preserved_random_state():
            _prune(network, importance, splits, levels, ignored_layers, pruner_options, refitting, progress)
        if recalibrate and not refitted and not trains(fine_tuning) and batchnorm_layers(network.model):
            loader = splits.need("scoring", "recalibrating BatchNorm (turn it off with recalibrate=False)")
            recalibrate_batchnorm(network.model, loader, forward_fn=splits.forward_fn, progress=progress)
        if callable(training):
            training(network.model, seed)
        elif trains(fine_tuning):
            fine_tune(
                network.model,
                splits.need("train", "fine-tuning"),
                loss_fn=splits.loss_fn,
                random_state=seed,
                progress=progress,
                **splits.calling,
                **training,
            )
        if recalibrate_output is not None:
            recalibration.recalibrate_output(
                network.model,
                splits.need("scoring", f"recalibrate_output={recalibrate_output!r}"),
                layer=recalibrate_output,
                progress=progress,
                **splits.calling,
            )
    return network.model.eval()


def refits(reconstruct: bool | None, splits: DataSplits) -> bool:
    """Whether what reads removed channels is refitted.

    Args:
        reconstruct: As for ``prune_copy``.
        splits: The data.

    Returns:
        Whether.

    Raises:
        InputError: It was asked for, and there are no data for it.

    Example:
        >>> people = [(torch.eye(2), torch.tensor([0, 1]), ["a", "b"])]
        >>> refits(None, DataSplits(test=people)), refits(None, DataSplits(test=people, scoring=people))
        (False, True)
    """
    if reconstruct not in (None, True, False):
        raise InputError(f"reconstruct={reconstruct!r}; expected True, False or None")
    if reconstruct:
        splits.need("scoring", "reconstruct=True")
    return splits.scoring is not None or splits.train is not None if reconstruct is None else reconstruct


def trains(fine_tuning: Training) -> bool:
    """Whether anything is trained after pruning.

    Args:
        fine_tuning: As for ``prune_copy``.

    Returns:
        Whether.

    Example:
        >>> trains(0), trains({"learning_rate": 1e-4}), trains(lambda network, seed: None)
        (False, True, True)
    """
    training = _settings(fine_tuning)
    return callable(training) or training["epochs"] != 0


def _settings(fine_tuning: Training) -> FineTuning | Callable[[nn.Module, int], Any]:
    """The settings of the training loop, or the caller's own."""
    if callable(fine_tuning):
        return fine_tuning
    if isinstance(fine_tuning, Mapping):
        require_known("fine_tuning", fine_tuning, ("epochs", "learning_rate"))
        return complete_settings(fine_tuning)
    try:
        require_number("fine_tuning", fine_tuning, at_least=0, whole=True)
    except InputError:
        raise InputError(
            f"fine_tuning={fine_tuning!r}; expected a whole number of epochs, settings such as "
            "{'epochs': 5, 'learning_rate': 1e-4}, or a function of the network and the seed"
        ) from None
    return complete_settings({"epochs": fine_tuning})


def _check(importance: tp.importance.Importance, pruning_ratio: float, iterative_steps: int) -> None:
    require_number("pruning_ratio", pruning_ratio, above=0, below=1, remedy=", a share of the channels")
    require_number("iterative_steps", iterative_steps, at_least=1, whole=True)
    refuse_unscored(importance)
    refuse_own_data(importance)


@dataclass(frozen=True)
class _Refitting:
    """How steps are refitted: on the scoring data, silently but for a progress bar."""

    splits: DataSplits
    seed: int
    progress: bool

    def around(self, pruner: tp.pruner.BasePruner) -> AbstractContextManager[Refit]:
        """What to do the next step in."""
        loader = self.splits.need("scoring", "the refit")
        return reconstructed(
            pruner,
            loader,
            forward_fn=self.splits.forward_fn,
            random_state=self.seed,
            measure=False,
            progress=self.progress,
        )


def _prune(
    network: ScoredNetwork,
    importance: tp.importance.Importance,
    splits: DataSplits,
    levels: Sequence[float],
    ignored_layers: Sequence[str],
    pruner_options: PrunerOptions,
    refitting: _Refitting | None,
    progress: bool,
) -> None:
    """Score, prune and refit in place, level by level."""
    pruned = network.model
    reads = needs_data(importance)
    split = "scoring" if reads or splits.scoring is not None or splits.train is not None else "test"
    batch = splits.first_batch(split, network.device)
    pruner = pruner_of_levels(
        network, batch, levels, importance, ignored_layers=ignored_layers, pruner_options=pruner_options
    )
    frozen = frozen_parameters(pruned)
    for _ in levels:
        loader = splits.need("scoring", type(importance).__name__) if reads else ()
        scored(
            importance,
            pruner,
            loader,
            loss_fn=splits.loss_fn,
            sensitive_names=splits.sensitive_names,
            progress=progress,
            **splits.calling,
        )
        with nullcontext() if refitting is None else refitting.around(pruner):
            if isinstance(importance, ChannelImportance):
                pruner.step()  # which was taken on trial when it was fitted
                tell_heads(pruned, pruner)
            else:
                checked_step(pruner, batch, network)
        freeze(pruned, frozen)
    pruned.zero_grad()
    if not pruner.pruning_history():
        raise InputError(
            f"nothing was removed at pruning_ratio={levels[-1]:g}: every layer is ignored, or too small to lose a "
            "channel; expected a higher pruning_ratio or fewer ignored_layers"
        )
