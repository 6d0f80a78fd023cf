"""Whole recipes for data without labels of the bias: DENP and DCWP, one call each, resumable."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fairtrim import InputError
from fairtrim.arguments import require_number
from fairtrim.data.batches import ForwardFunction
from fairtrim.mining import accumulated_confidence as core
from fairtrim.mining.miner import Miner
from fairtrim.mining.trained_miners import GeneralizedCrossEntropyMiner, LossMiner
from fairtrim_adapters.torch_pruning.importances.channel_importance import ChannelImportance
from fairtrim_adapters.torch_pruning.importances.mined_importances import (
    AccumulatedConfidenceImportance,
    ContrastiveImportance,
)

from .gradual import AccumulatedConfidence
from .sparse_run import RecipeResult, begin, check_run

__all__ = ["RecipeResult", "dcwp", "denp"]


def denp(
    model: nn.Module,
    loader: DataLoader[Any],
    *,
    pruning_ratio: float = 0.5,
    steps: int = 5,
    epochs: int = 1,
    final_epochs: int = 5,
    learning_rate: float = 1e-3,
    contrastive_weight: float = 0.0,
    online: bool = False,
    miner: Miner | None = None,
    cut: Mapping[str, float] | None = None,
    importance: Callable[[Tensor], ChannelImportance] | None = None,
    feature_layer: str | None = None,
    ignored_layers: Sequence[str] = (),
    pruner_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    forward_fn: ForwardFunction | None = None,
    output_transform: Callable[[Any], Tensor] | None = None,
    progress: bool = True,
) -> RecipeResult:
    """DENP: mine by accumulated confidence, then prune a little and fine-tune on the mined samples, to the target.

    A reconstruction: only the abstract is public (IEEE TIP 2026, doi 10.1109/TIP.2026.3687070). The mined set makes
    half of every batch of the fine-tuning. With ``online=True`` confidence goes on accumulating: after each pruning the
    network is trained for an ordinary epoch first, its confidence joins the average, and the set is cut anew.

    Args:
        model: A trained network; untouched.
        loader: A DataLoader of (inputs, target, ...).
        pruning_ratio: Share of the channels that go.
        steps: In how many steps.
        epochs: Of fine-tuning after each step.
        final_epochs: Of fine-tuning at the end.
        learning_rate: Of all fine-tuning, at the start of each.
        contrastive_weight: λ_con of DCWP's contrastive loss in the fine-tuning; 0 leaves it out.
        online: Whether confidence goes on accumulating; the miner's scores must be means of 1 − p, as those of
            accumulated confidence are.
        miner: Default ``AccumulatedConfidence()``; any other finds the samples in its place.
        cut: How to cut the mined set: arguments of ``MinedSamples.conflicting``.
        importance: Makes an importance from the mined flags; default ``AccumulatedConfidenceImportance``.
        feature_layer: Layer whose inputs are the features of the contrastive loss; found if None.
        ignored_layers: Names of layers whose outputs stay, beside the layer that gives the scores.
        pruner_options: Further arguments of ``BasePruner``.
        seed: Of everything random.
        folder: Where to keep what is finished; a run that was cut short goes on from its last step there.
        forward_fn: How to call the network.
        output_transform: How to find the scores in what it returns.
        progress: Show a progress bar.

    Returns:
        The sparse network, a history, and the mined set.

    Raises:
        InputError: An argument or the data is wrong, nothing or everything was mined, or the folder holds another run.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
        >>> loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=10)
        >>> dense = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> result = denp(dense, loader, steps=1, final_epochs=1, cut={"share_per_class": 0.1}, progress=False)
        >>> dense[0].out_features, result.model[0].out_features, int(result.conflicting.sum())
        (8, 4, 4)
    """
    require_number("pruning_ratio", pruning_ratio, above=0, below=1, remedy=": expected a share in (0, 1)")
    require_number("steps", steps, at_least=1, whole=True)
    require_number("epochs", epochs, at_least=0, whole=True)
    require_number("final_epochs", final_epochs, at_least=0, whole=True)
    check_run(model, learning_rate, contrastive_weight, miner, cut, feature_layer, ignored_layers, pruner_options, seed)
    if importance is not None and (not callable(importance) or isinstance(importance, ChannelImportance)):
        raise InputError(
            f"importance is a {type(importance).__name__}; expected a function of the mined flags that makes one, e.g. "
            "AccumulatedConfidenceImportance"
        )
    unbounded = isinstance(miner, core.AccumulatedConfidence) and miner.accumulate != "confidence"
    if online and (unbounded or isinstance(miner, LossMiner)):
        raise InputError(
            f"online=True goes on averaging 1 − p, and {type(miner).__name__} gives other scores here; expected "
            "accumulate='confidence', another miner or online=False"
        )
    calling: dict[str, Any] = {"forward_fn": forward_fn, "output_transform": output_transform}
    shared: dict[str, Any] = {"ignored_layers": ignored_layers, "pruner_options": dict(pruner_options or {})}
    if miner is None:
        miner = AccumulatedConfidence(random_state=seed, **shared, **calling)
    # how many confidences are in the scores at the start
    n_terms = len(miner.levels) if isinstance(miner, core.AccumulatedConfidence) else 1
    levels = [pruning_ratio * ((k + 1) / steps) for k in range(steps)]
    run, finished = begin(
        "denp",
        model,
        loader,
        levels,
        miner,
        cut or {},
        settings={"epochs": [epochs, final_epochs], "online": online, "importance": importance},
        learning_rate=learning_rate,
        contrastive_weight=contrastive_weight,
        feature_layer=feature_layer,
        seed=seed,
        folder=folder,
        progress=progress,
        **shared,
        **calling,
    )
    make = importance if importance is not None else AccumulatedConfidenceImportance
    for step in range(finished, steps):
        run.prune_by(make(run.conflicting), loader)
        if online:
            run.train(1, on_mined=False)
            run.accumulate(n_terms + step, cut or {})
        run.train(epochs, on_mined=True)
        run.finish(step + 1, "pruned and fine-tuned", levels[step])
    if finished <= steps:
        run.train(final_epochs, on_mined=True)
        if epochs == final_epochs == 0:
            run.recalibrate()
        run.finish(steps + 1, "fine-tuned", levels[-1])
    return run.result()


def dcwp(
    model: nn.Module,
    loader: DataLoader[Any],
    *,
    pruning_ratio: float | None = 0.5,
    epochs: int = 5,
    learning_rate: float = 1e-3,
    upweight: float = 80.0,
    contrastive_weight: float = 0.05,
    iterations: int = 2000,
    gate_learning_rate: float = 1e-2,
    cost: Literal["channels", "parameters", "macs"] = "channels",
    cost_weight: float = 0.1,
    miner: Miner | None = None,
    cut: Mapping[str, float] | None = None,
    feature_layer: str | None = None,
    ignored_layers: Sequence[str] = (),
    pruner_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    forward_fn: ForwardFunction | None = None,
    output_transform: Callable[[Any], Tensor] | None = None,
    progress: bool = True,
) -> RecipeResult:
    """DCWP at the level of channels: a biased network finds samples, gates learn what to keep, contrast fine-tunes.

    The four stages of Park et al. (CVPR 2023, arXiv 2210.05247), with one gate a channel in place of one a weight, so
    that the result is smaller and not only masked. In the fine-tuning the mined set makes half of every batch.

    Args:
        model: A trained network; untouched.
        loader: A DataLoader of (inputs, target, ...).
        pruning_ratio: Share of the channels that go, those of the smallest π; None removes exactly the closed gates.
        epochs: Of fine-tuning.
        learning_rate: Of the fine-tuning, at the start.
        upweight: Sampling weight of the mined samples while gates learn.
        contrastive_weight: λ_con, for gates and fine-tuning.
        iterations: Of the gates' training.
        gate_learning_rate: Of the gates.
        cost: What a channel costs.
        cost_weight: λ of the costs.
        miner: Default ``GeneralizedCrossEntropyMiner()``.
        cut: How to cut the mined set; default the miner's own decision.
        feature_layer: Layer whose inputs are the features of the contrastive term; found if None.
        ignored_layers: Names of layers whose outputs stay, beside the layer that gives the scores.
        pruner_options: Further arguments of ``BasePruner``.
        seed: Of everything random.
        folder: Where to keep what is finished; a run that was cut short goes on from its last stage there.
        forward_fn: How to call the network.
        output_transform: How to find the scores in what it returns.
        progress: Show a progress bar.

    Returns:
        The sparse network, a history, and the mined set.

    Raises:
        InputError: An argument or the data is wrong, nothing or everything was mined, or the folder holds another run.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
        >>> loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=10)
        >>> dense = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> result = dcwp(dense, loader, epochs=1, iterations=20, cut={"share_per_class": 0.1}, progress=False)
        >>> dense[0].out_features, result.model[0].out_features, int(result.conflicting.sum())
        (8, 4, 4)
    """
    if pruning_ratio is not None:
        remedy = ": expected a share in (0, 1), or None for the closed gates"
        require_number("pruning_ratio", pruning_ratio, above=0, below=1, remedy=remedy)
    require_number("epochs", epochs, at_least=0, whole=True)
    require_number("gate_learning_rate", gate_learning_rate, above=0)
    require_number("upweight", upweight, above=0)
    require_number("iterations", iterations, at_least=1, whole=True)
    require_number("cost_weight", cost_weight, at_least=0)
    check_run(model, learning_rate, contrastive_weight, miner, cut, feature_layer, ignored_layers, pruner_options, seed)
    calling: dict[str, Any] = {"forward_fn": forward_fn, "output_transform": output_transform}
    gates: dict[str, Any] = {
        "upweight": upweight,
        "iterations": iterations,
        "learning_rate": gate_learning_rate,
        "cost": cost,
        "cost_weight": cost_weight,
    }
    ContrastiveImportance(torch.tensor([True, False]), **gates)  # a wrong cost is refused here, before the mining
    run, finished = begin(
        "dcwp",
        model,
        loader,
        [pruning_ratio if pruning_ratio is not None else 0.5],
        miner if miner is not None else GeneralizedCrossEntropyMiner(random_state=seed, **calling),
        cut or {},
        settings={
            "pruning_ratio": pruning_ratio,
            "epochs": epochs,
            **{key: value for key, value in gates.items() if key != "learning_rate"},
            "gate_learning_rate": gate_learning_rate,
        },
        learning_rate=learning_rate,
        contrastive_weight=contrastive_weight,
        feature_layer=feature_layer,
        seed=seed,
        folder=folder,
        ignored_layers=ignored_layers,
        pruner_options=pruner_options,
        progress=progress,
        whole_layers=pruning_ratio is None,
        **calling,
    )
    if finished < 1:
        more: dict[str, Any] = {"contrastive_weight": contrastive_weight, "feature_layer": feature_layer, "seed": seed}
        importance = ContrastiveImportance(run.conflicting, **gates, **more)
        run.prune_by(importance, loader, only_negative=pruning_ratio is None)
        if not run.removed[-1]:
            warnings.warn("no gate is closed, so nothing was pruned; raise cost_weight= or iterations=", stacklevel=2)
        run.finish(1, "pruned", pruning_ratio if pruning_ratio is not None else float("nan"))
    if finished < 2:
        run.train(epochs, on_mined=True)
        if epochs == 0:
            run.recalibrate()
        run.finish(2, "fine-tuned", run.rows[-1]["level"])
    return run.result()
