"""Whole recipes for data without labels of the bias: DENP and DCWP, one call each, resumable."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

import pandas as pd
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fairtrim import InputError
from fairtrim.batches import ForwardFunction
from fairtrim.mining import GeneralizedCrossEntropyMiner, MinedSamples, Miner, label_probabilities, require_some_mined
from fairtrim.resumption import Progress, Resumption, fingerprint
from fairtrim.samples import IndexedSamples
from fairtrim.training import fine_tune

from .channel_importance import ChannelImportance
from .gradual import AccumulatedConfidence, pruner_of_levels
from .groups import repair_split_offsets
from .unlabelled import AccumulatedConfidenceImportance, ContrastiveImportance

__all__ = ["RecipeResult", "dcwp", "denp"]

_MINED_TERMS = 8  # what the mined scores count for, beside one for each step, where confidence goes on accumulating


@dataclass(frozen=True)
class RecipeResult:
    """What a recipe made.

    Attributes:
        model: The sparse network; the caller's is untouched.
        history: One row a step: level, parameters, mined samples, mean confidence of mined and other samples.
        mined: Scores of the training samples.
        conflicting: The mined set that was used, (N,) bool.
    """

    model: nn.Module
    history: pd.DataFrame
    mined: MinedSamples
    conflicting: Tensor


@dataclass(kw_only=True)
class _Run:
    """A copy of the network on its way to being sparse, what was done to it, and how to save and restore that."""

    model: nn.Module
    samples: IndexedSamples
    pruner: tp.pruner.BasePruner
    resumption: Resumption
    generator: torch.Generator
    mined: MinedSamples
    conflicting: Tensor
    forward_fn: ForwardFunction | None
    output_transform: Callable[[Any], Tensor] | None
    removed: list[Sequence[Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def prune_by(
        self, importance: ChannelImportance, loader: DataLoader[Any], *, only_negative: bool = False, **options: Any
    ) -> None:
        """Take the pruner's next step, or remove what has a negative score."""
        known = len(self.pruner.pruning_history())
        self.pruner.importance = importance
        importance.fit(self.pruner, loader, **options)
        if only_negative:
            for group in importance.negative_groups(self.pruner):
                group.prune()
        else:
            self.pruner.step()
        new = self.pruner.pruning_history()[known:]
        self.removed.append([[name, bool(outputs), [int(i) for i in idxs]] for name, outputs, idxs in new])

    def accumulate(self, step: int, cut: Mapping[str, float]) -> None:
        """Let the network's confidence join the average of those before, and cut the mined set anew."""
        p, _, _ = label_probabilities(self.model, self.samples, self.forward_fn, self.output_transform)
        share = 1 / (_MINED_TERMS + step + 1)
        self.mined = replace(self.mined, scores=(1 - share) * self.mined.scores + share * (1 - p), cut=None)
        self.conflicting = self.mined.conflicting(**cut)
        require_some_mined(self.conflicting)

    def note(self, what: str, level: float) -> None:
        p, correct, _ = label_probabilities(self.model, self.samples, self.forward_fn, self.output_transform)
        b = self.conflicting
        self.rows.append(
            {
                "step": len(self.rows),
                "what": what,
                "level": level,
                "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
                "mined": int(b.sum()),
                "confidence in mined": float(p[b].mean()),
                "confidence in others": float(p[~b].mean()),
                "training accuracy": float(correct.double().mean()),
            }
        )

    def save(self, step: int) -> None:
        data = {
            "removed": self.removed,
            "rows": self.rows,
            "scopes": dict(self.pruner._scope_initial_channels),
            "current_step": self.pruner.current_step,
        }
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {"scores": self.mined.scores, "target": self.mined.target, "conflicting": self.conflicting}
        if self.mined.cut is not None:
            tensors["cut"] = self.mined.cut
        self.resumption.save(step, data, tensors | {"generator": self.generator.get_state()})

    def restore(self, finished: Progress) -> None:
        graph = self.pruner.DG
        modules = dict(self.model.named_modules())
        for removed in finished.data["removed"]:
            for name, outputs, idxs in removed:
                functions = graph.get_pruner_of_module(modules[name])
                function = functions.prune_out_channels if outputs else functions.prune_in_channels
                graph.get_pruning_group(modules[name], function, idxs).prune()
            repair_split_offsets(graph)
        self.removed, self.rows = finished.data["removed"], finished.data["rows"]
        self.pruner._scope_initial_channels.update(finished.data["scopes"])
        self.pruner.current_step = finished.data["current_step"]
        prefix = "model."
        state = {name[len(prefix) :]: t for name, t in finished.tensors.items() if name.startswith(prefix)}
        self.model.load_state_dict(state)
        self.generator.set_state(finished.tensors["generator"])

    def result(self) -> RecipeResult:
        return RecipeResult(self.model.eval(), pd.DataFrame(self.rows), self.mined, self.conflicting)


def _described(miner: Miner) -> list[Any]:
    """What must be the same of a miner: its class and, of ours, its numbers."""
    plain = (str, int, float, bool, tuple, list, type(None))
    settings: dict[str, Any] = {f.name: getattr(miner, f.name) for f in fields(miner)} if is_dataclass(miner) else {}
    return [type(miner).__name__, {name: value for name, value in settings.items() if isinstance(value, plain)}]


def _begin(
    recipe: str,
    model: nn.Module,
    loader: DataLoader[Any],
    levels: Sequence[float],
    miner: Miner,
    cut: Mapping[str, float],
    *,
    settings: Mapping[str, Any],
    seed: int,
    folder: str | os.PathLike[str] | None,
    ignored_layers: Sequence[str],
    pruner_options: Mapping[str, Any] | None,
    forward_fn: ForwardFunction | None,
    output_transform: Callable[[Any], Tensor] | None,
    progress: bool,
    whole_layers: bool = False,
) -> tuple[_Run, int]:
    """Mine, or take up what an earlier run had finished; returns the run and its number of finished steps."""
    samples = IndexedSamples(loader)
    everything = {
        "recipe": recipe,
        "network": fingerprint(model),
        "samples": samples.n_samples,
        "levels": list(levels),
        "miner": _described(miner),
        "cut": dict(cut),
        "seed": seed,
        "ignored_layers": list(ignored_layers),
        "pruner_options": repr(sorted((pruner_options or {}).items())),
        **settings,
    }
    resumption = Resumption(folder, everything)
    finished = resumption.load()
    shrinking = copy.deepcopy(model).requires_grad_()
    pruner = pruner_of_levels(
        shrinking,
        samples,
        levels,
        None,
        ignored_layers=ignored_layers,
        forward_fn=forward_fn,
        output_transform=output_transform,
        whole_layers=whole_layers,
        **(pruner_options or {}),
    )
    if finished is None:
        mined = miner.fit(model, loader, progress=progress)
        conflicting = mined.conflicting(**cut)
        require_some_mined(conflicting)
    else:
        tensors = finished.tensors
        mined = MinedSamples(tensors["scores"], tensors["target"], tensors.get("cut"))
        conflicting = tensors["conflicting"]
    run = _Run(
        model=shrinking,
        samples=samples,
        pruner=pruner,
        resumption=resumption,
        generator=torch.Generator().manual_seed(seed),
        mined=mined,
        conflicting=conflicting,
        forward_fn=forward_fn,
        output_transform=output_transform,
    )
    if finished is None:
        run.note("mined", 0.0)
        run.save(0)
        return run, 0
    run.restore(finished)
    return run, finished.step


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
        online: Whether confidence goes on accumulating.
        miner: Default ``AccumulatedConfidence()``; any other finds the samples in its place.
        cut: How to cut the mined set: arguments of ``MinedSamples.conflicting``.
        importance: Makes an importance from the mined flags; default ``AccumulatedConfidenceImportance``.
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
    """
    if not 0 < pruning_ratio < 1 or steps < 1:
        raise InputError(f"pruning_ratio={pruning_ratio}, steps={steps}; expected a share in (0, 1) and at least 1")
    calling: dict[str, Any] = {"forward_fn": forward_fn, "output_transform": output_transform}
    shared: dict[str, Any] = {"ignored_layers": ignored_layers, "pruner_options": dict(pruner_options or {})}
    levels = [pruning_ratio * ((k + 1) / steps) for k in range(steps)]
    run, finished = _begin(
        "denp",
        model,
        loader,
        levels,
        miner if miner is not None else AccumulatedConfidence(seed=seed, **shared, **calling),
        cut or {},
        settings={
            "epochs": [epochs, final_epochs],
            "learning_rate": learning_rate,
            "contrastive_weight": contrastive_weight,
            "online": online,
            "importance": getattr(importance, "__qualname__", str(type(importance))),
        },
        seed=seed,
        folder=folder,
        ignored_layers=ignored_layers,
        pruner_options=pruner_options,
        progress=progress,
        **calling,
    )
    make = importance if importance is not None else AccumulatedConfidenceImportance

    def train(n_epochs: int, **options: Any) -> None:
        fine_tune(
            run.model,
            run.samples,
            epochs=n_epochs,
            learning_rate=learning_rate,
            generator=run.generator,
            progress=progress,
            **calling,
            **options,
        )

    for step in range(finished, steps + 1):
        if step < steps:
            run.prune_by(make(run.conflicting), loader, progress=progress, **calling)
            if online:
                train(1)
                run.accumulate(step, cut or {})
        train(
            epochs if step < steps else final_epochs,
            sample_weights=run.mined.sample_weights(run.conflicting),
            conflicting=run.conflicting,
            contrastive_weight=contrastive_weight,
        )
        run.note("pruned and fine-tuned" if step < steps else "fine-tuned", levels[min(step, steps - 1)])
        run.save(step + 1)
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
    """
    if pruning_ratio is not None and not 0 < pruning_ratio < 1:
        raise InputError(f"pruning_ratio={pruning_ratio}; expected a share in (0, 1), or None for the closed gates")
    calling: dict[str, Any] = {"forward_fn": forward_fn, "output_transform": output_transform}
    run, finished = _begin(
        "dcwp",
        model,
        loader,
        [pruning_ratio if pruning_ratio is not None else 0.5],
        miner if miner is not None else GeneralizedCrossEntropyMiner(seed=seed, **calling),
        cut or {},
        settings={
            "pruning_ratio": pruning_ratio,
            "epochs": epochs,
            "learning_rates": [learning_rate, gate_learning_rate],
            "weights": [upweight, contrastive_weight, cost_weight],
            "iterations": iterations,
            "cost": cost,
            "feature_layer": feature_layer,
        },
        seed=seed,
        folder=folder,
        ignored_layers=ignored_layers,
        pruner_options=pruner_options,
        progress=progress,
        whole_layers=pruning_ratio is None,
        **calling,
    )
    if finished < 1:
        gates = ContrastiveImportance(
            run.conflicting,
            upweight=upweight,
            contrastive_weight=contrastive_weight,
            iterations=iterations,
            learning_rate=gate_learning_rate,
            cost=cost,
            cost_weight=cost_weight,
            feature_layer=feature_layer,
            seed=seed,
        )
        run.prune_by(gates, loader, only_negative=pruning_ratio is None, progress=progress, **calling)
        run.note("pruned", pruning_ratio if pruning_ratio is not None else float("nan"))
        run.save(1)
    if finished < 2:
        fine_tune(
            run.model,
            run.samples,
            epochs=epochs,
            learning_rate=learning_rate,
            sample_weights=run.mined.sample_weights(run.conflicting),
            conflicting=run.conflicting,
            contrastive_weight=contrastive_weight,
            feature_layer=feature_layer,
            generator=run.generator,
            progress=progress,
            **calling,
        )
        run.note("fine-tuned", run.rows[-1]["level"])
        run.save(2)
    return run.result()
