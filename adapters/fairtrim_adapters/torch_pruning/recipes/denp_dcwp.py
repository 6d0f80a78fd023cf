"""Whole recipes for data without labels of the bias: DENP and DCWP, one call each, resumable."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fairtrim import InputError
from fairtrim.arguments import few_of, renamed, require_choice, require_flag, require_known, require_number
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.mining import accumulated_confidence as core
from fairtrim.mining.contrastive_objective import ContrastiveObjective
from fairtrim.mining.contrastive_weight_masks import learn_weight_masks
from fairtrim.mining.known_samples import KnownSamples
from fairtrim.mining.trained_miners import GeneralizedCrossEntropyMiner, LossMiner
from fairtrim.network.fine_tuning import FineTuning
from fairtrim_adapters.torch_pruning.importances.channel_importance import ChannelImportance
from fairtrim_adapters.torch_pruning.importances.mined_importances import (
    AccumulatedConfidenceImportance,
    ContrastiveImportance,
    GateTraining,
)

from .gradual import AccumulatedConfidence
from .recipe_options import RecipeOptions, RunSettings, run_settings
from .sparse_run import RecipeResult, SparseRun, begin

__all__ = ["dcwp", "denp"]


def _in(argument: str, *names: str) -> dict[str, str]:
    """Where arguments of an earlier time are now."""
    return {name: f"{argument}={{{name!r}: ...}}" for name in names}


@renamed(
    steps="iterative_steps",
    seed="random_state",
    **_in("fine_tuning", "epochs", "learning_rate", "contrastive_weight", "feature_layer"),
)
@torch.inference_mode(False)  # there nothing has a slope
def denp(
    model: nn.Module,
    loader: DataLoader[Any],
    *,
    pruning_ratio: float = 0.5,
    iterative_steps: int = 5,
    fine_tuning: FineTuning | None = None,
    final_epochs: int = 5,
    online: bool = False,
    importance: Callable[[Tensor], ChannelImportance] | None = None,
    **options: Unpack[RecipeOptions],
) -> RecipeResult:
    """DENP: mine by accumulated confidence, then prune a little and fine-tune on the mined samples, to the target.

    A reconstruction: only the abstract is public (IEEE TIP 2026, doi 10.1109/TIP.2026.3687070). The mined set makes
    half of every batch of the fine-tuning. With ``online=True`` confidence goes on accumulating: after each pruning the
    network is trained for an ordinary epoch first, its confidence joins the average, and the set is cut anew.

    Args:
        model: A trained network; untouched.
        loader: A DataLoader of (inputs, target, ...).
        pruning_ratio: Share of the channels that go.
        iterative_steps: In how many steps.
        fine_tuning: Of the training after each step, and at the end; default one epoch after each step, and no
            contrastive term of DCWP.
        final_epochs: Of fine-tuning at the end.
        online: Whether confidence goes on accumulating; the miner's scores must be means of 1 − p, as those of
            accumulated confidence are.
        importance: Makes an importance from the mined flags; default ``AccumulatedConfidenceImportance``. It is tried
            on made-up flags before anything is mined.
        options: See ``RecipeOptions``; the default miner is ``AccumulatedConfidence()``.

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
        >>> options = {"cut": {"share_per_class": 0.1}, "progress": False}
        >>> result = denp(dense, loader, iterative_steps=1, final_epochs=1, **options)
        >>> dense[0].out_features, result.model[0].out_features, int(result.conflicting.sum())
        (8, 4, 4)
        >>> result.history["level"].tolist()  # as given, pruned, fine-tuned
        [0.0, 0.5, 0.5]
    """
    require_number("pruning_ratio", pruning_ratio, above=0, below=1, remedy=": expected a share in (0, 1)")
    require_number("iterative_steps", iterative_steps, at_least=1, whole=True)
    require_number("final_epochs", final_epochs, at_least=0, whole=True)
    require_flag("online", online)
    settings = run_settings(denp, model, fine_tuning, {}, options, AccumulatedConfidence)
    miner = settings.miner
    if importance is not None and (not callable(importance) or isinstance(importance, ChannelImportance)):
        raise InputError(
            f"importance is a {type(importance).__name__}; expected a function of the mined flags that makes one, e.g. "
            "AccumulatedConfidenceImportance"
        )
    make = _tried(importance, loader) if importance is not None else AccumulatedConfidenceImportance
    if online and isinstance(miner, KnownSamples) and miner.flags is not None:
        raise InputError("online=True would cut another set than the known flags; expected online=False beside them")
    unbounded = isinstance(miner, core.AccumulatedConfidence) and miner.accumulate != "confidence"
    if online and (unbounded or isinstance(miner, LossMiner)):
        raise InputError(
            f"online=True goes on averaging 1 − p, and {type(miner).__name__} gives other scores here; expected "
            "accumulate='confidence', another miner or online=False"
        )
    # how many confidences are in the scores at the start
    n_terms = len(miner.levels) if isinstance(miner, core.AccumulatedConfidence) else 1
    levels = [pruning_ratio * ((k + 1) / iterative_steps) for k in range(iterative_steps)]
    epochs = settings.training["epochs"]
    own = {"epochs": [epochs, final_epochs], "online": online, "importance": importance}
    run, finished = begin(settings, loader, levels, own)
    for step in range(finished, iterative_steps):
        run.prune_by(make(run.conflicting), loader)
        if online:
            run.train(1, on_mined=False)
            run.accumulate(n_terms + step)
        run.train(epochs, on_mined=True)
        run.finish(step + 1, "pruned and fine-tuned", levels[step])
    if finished <= iterative_steps:
        run.train(final_epochs, on_mined=True)
        if epochs == final_epochs == 0:
            run.recalibrate()
        run.recalibrate_output(loader)
        run.finish(iterative_steps + 1, "fine-tuned", levels[-1])
    return run.result()


@renamed(
    seed="random_state",
    gate_learning_rate="gate_training={'learning_rate': ...}",
    **_in("gate_training", "upweight", "iterations", "cost", "cost_weight"),
    **_in("fine_tuning", "epochs", "learning_rate", "contrastive_weight", "feature_layer"),
)
@torch.inference_mode(False)  # there nothing has a slope
def dcwp(
    model: nn.Module,
    loader: DataLoader[Any],
    *,
    pruning_ratio: float | None = 0.5,
    level: Literal["channel", "weight"] = "channel",
    gate_training: GateTraining | None = None,
    fine_tuning: FineTuning | None = None,
    **options: Unpack[RecipeOptions],
) -> RecipeResult:
    """DCWP: a biased network finds samples, gates learn what to keep of them, and contrast fine-tunes it.

    The four stages of Park et al. (CVPR 2023, arXiv 2210.05247). As published each weight has a gate,
    ``level="weight"``: the result is masked by ``torch.nn.utils.prune``, and no smaller. By default each channel has
    one (ours), so that it is smaller. In the fine-tuning the mined set makes half of every batch (ours; the authors'
    weights are ``mined_weight="published"``).

    Args:
        model: A trained network; untouched.
        loader: A DataLoader of (inputs, target, ...).
        pruning_ratio: Share of the channels, or weights, that go, those of the smallest π; None removes exactly what
            has a closed gate, as published.
        level: What has a gate. Where it is ``"weight"``, ``ignored_layers`` are those without gates.
        gate_training: How the gates are learned.
        fine_tuning: Of the training at the end; default 5 epochs, and λ_con = 0.05. Its ``contrastive_weight`` and
            ``feature_layer`` hold while gates are learned, too.
        options: See ``RecipeOptions``; the default miner is ``GeneralizedCrossEntropyMiner()``.

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
        >>> options = {"cut": {"share_per_class": 0.1}, "progress": False}
        >>> result = dcwp(dense, loader, gate_training={"iterations": 20}, fine_tuning={"epochs": 1}, **options)
        >>> dense[0].out_features, result.model[0].out_features, int(result.conflicting.sum())
        (8, 4, 4)
    """
    require_choice("level", level, ("channel", "weight"))
    if pruning_ratio is not None:
        remedy = ": expected a share in (0, 1), or None for the closed gates"
        require_number("pruning_ratio", pruning_ratio, above=0, below=1, remedy=remedy)
    defaults: FineTuning = {"epochs": 5, "contrastive_weight": 0.05}
    settings = run_settings(dcwp, model, fine_tuning, defaults, options, GeneralizedCrossEntropyMiner)
    gates = _importance_of_gates(
        torch.tensor([True, False], device="cpu"), gate_training
    )  # refused here, before the mining
    used = {name: getattr(gates, name) for name in GateTraining.__annotations__}
    if level == "weight":
        _check_of_weights(settings, gate_training)
        used["batchnorm"] = (gate_training or {}).get("batchnorm", "train")
    epochs, rate = settings.training["epochs"], used.pop("learning_rate")
    own = {"level": level, "pruning_ratio": pruning_ratio, "epochs": epochs, **used, "gate_learning_rate": rate}
    levels = [pruning_ratio if pruning_ratio is not None else 0.5]
    run, finished = begin(settings, loader, levels, own, whole_layers=pruning_ratio is None, masked=level == "weight")
    if finished < 1:
        contrast = {name: settings.training[name] for name in ("contrastive_weight", "feature_layer")}
        if level == "weight":
            share = run.mask(_logits_of_weights(run, {**used, **contrast, "learning_rate": rate}), pruning_ratio)
            closed = share > 0
        else:
            importance = _importance_of_gates(run.conflicting, gate_training, **contrast, random_state=settings.seed)
            run.prune_by(importance, loader, only_negative=pruning_ratio is None)
            share, closed = pruning_ratio if pruning_ratio is not None else float("nan"), bool(run.removed[-1])
        if not closed:
            warnings.warn(
                "no gate is closed, so nothing was pruned; raise the gates' cost_weight or iterations", stacklevel=3
            )
        run.finish(1, "pruned", share)
    if finished < 2:
        run.train(epochs, on_mined=True)
        if epochs == 0:
            run.recalibrate()
        run.recalibrate_output(loader)
        run.finish(2, "fine-tuned", run.rows[-1]["level"])
    return run.result()


def _tried(
    importance: Callable[[Tensor], ChannelImportance], loader: DataLoader[Any]
) -> Callable[[Tensor], ChannelImportance]:
    """The function, if it makes an importance of made-up flags: refused here, before the mining."""
    flags = torch.arange(IndexedSamples(loader).n_samples, device="cpu") % 2 == 0
    name = getattr(importance, "__name__", type(importance).__name__)
    try:
        made = importance(flags)
    except TypeError as error:
        raise InputError(f"importance={name} makes no importance of flags (N,): {error}") from error
    if not isinstance(made, ChannelImportance):
        raise InputError(f"importance={name} makes a {type(made).__name__} of flags (N,); expected an importance")
    return importance


def _check_of_weights(settings: RunSettings, gate_training: GateTraining | None) -> None:
    """Refuse what masks of weights can't use, before the mining."""
    idle = [name for name in ("pruner_options", "reconstruct", "recalibrate_output") if getattr(settings, name)]
    idle += ["gate_training={'cost': ...}"] if "cost" in (gate_training or {}) else []
    if idle:
        raise InputError(
            f"{few_of(idle)} would have no effect with level='weight': no channel goes, every weight costs the same, "
            "and the output layer is masked too; leave it out"
        )


def _logits_of_weights(run: SparseRun, used: Mapping[str, Any]) -> dict[str, Tensor]:
    of_objective = {name: used[name] for name in ("upweight", "contrastive_weight", "feature_layer")}
    return learn_weight_masks(
        run.model,
        run.samples,
        ContrastiveObjective(conflicting=run.conflicting, **of_objective, **run.settings.calling),
        ignored_layers=run.settings.ignored_layers,
        random_state=run.settings.seed,
        progress=run.settings.progress,
        iterations=used["iterations"],
        learning_rate=used["learning_rate"],
        cost_weight=used["cost_weight"],
        batchnorm=used["batchnorm"],
    )


def _importance_of_gates(flags: Tensor, gate_training: GateTraining | None, **more: Any) -> ContrastiveImportance:
    if gate_training is not None and not isinstance(gate_training, Mapping):
        raise InputError(
            f"gate_training is a {type(gate_training).__name__}; expected a dict such as {{'iterations': 500}}"
        )
    require_known("gate_training", gate_training or {}, GateTraining.__annotations__)
    return ContrastiveImportance(flags, **(gate_training or {}), **more)
