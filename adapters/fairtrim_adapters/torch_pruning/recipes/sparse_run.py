"""A network on its way to being sparse: what was done to it, and how to save that and take it up again."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import pandas as pd
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fairtrim import InputError
from fairtrim.arguments import require_number
from fairtrim.data.batches import ForwardFunction
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.devices import model_device
from fairtrim.files.resumption import Progress, Resumption, fingerprint
from fairtrim.mining.mined_samples import MinedSamples, check_cut, require_some_mined
from fairtrim.mining.miner import Miner, label_probabilities
from fairtrim.network.fine_tuning import FeatureTap, fine_tune
from fairtrim.network.recalibration import recalibrate_batchnorm
from fairtrim.network.scored_network import class_scores
from fairtrim.preservation import preserved_model, preserved_random_state
from fairtrim_adapters.torch_pruning.graph.corrections import correct_graph
from fairtrim_adapters.torch_pruning.graph.head_counts import tell_heads
from fairtrim_adapters.torch_pruning.graph.pruner_options import check_pruner_options
from fairtrim_adapters.torch_pruning.importances.channel_importance import ChannelImportance

from .gradual import freeze, frozen_parameters, pruner_of_levels

__all__ = ["RecipeResult", "SparseRun", "begin", "check_run", "plain_settings"]

_REMEDY = "cut={'share_per_class': ...}"


@dataclass(frozen=True)
class RecipeResult:
    """What a recipe made.

    Attributes:
        model: The sparse network, in eval mode; the caller's is untouched.
        history: One row a step: level, parameters, mined samples, mean confidence of mined and other samples.
        mined: Scores of the training samples.
        conflicting: The mined set that was used, (N,) bool.

    Example:
        >>> from fairtrim_adapters.torch_pruning import denp
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
        >>> loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=10)
        >>> dense = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> result = denp(dense, loader, steps=1, final_epochs=1, cut={"share_per_class": 0.1}, progress=False)
        >>> result.history["level"].tolist()  # as given, pruned, fine-tuned
        [0.0, 0.5, 0.5]
    """

    model: nn.Module
    history: pd.DataFrame
    mined: MinedSamples
    conflicting: Tensor


@dataclass(kw_only=True)
class SparseRun:
    """A copy of a network that a recipe prunes and trains step by step.

    Attributes:
        model: The copy.
        samples: The training set.
        pruner: The host's pruner of the copy.
        resumption: Where finished steps are kept.
        generator: Source of all randomness.
        mined: Scores of the training samples.
        conflicting: The mined set, (N,).
        learning_rate: Of every fine-tuning, at its start.
        contrastive_weight: λ_con of the fine-tunings on the mined set.
        feature_layer: Layer whose inputs are the features of the contrastive term.
        calling: ``forward_fn`` and ``output_transform``.
        progress: Show progress bars.
        removed: What the host removed, for each pruning.
        rows: The history.
    """

    model: nn.Module
    samples: IndexedSamples
    pruner: tp.pruner.BasePruner
    resumption: Resumption
    generator: torch.Generator
    mined: MinedSamples
    conflicting: Tensor
    learning_rate: float
    contrastive_weight: float
    feature_layer: str | None
    calling: dict[str, Any]
    progress: bool
    removed: list[Sequence[Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def prune_by(self, importance: ChannelImportance, loader: DataLoader[Any], *, only_negative: bool = False) -> None:
        """Take the pruner's next step, or remove what has a negative score.

        Args:
            importance: Fitted here.
            loader: Of the training set.
            only_negative: Whether the scores' signs decide, and not the pruner's ratio.
        """
        known = len(self.pruner.pruning_history())
        self.pruner.importance = importance
        importance.fit(self.pruner, loader, progress=self.progress, **self.calling)
        frozen = frozen_parameters(self.model)
        if only_negative:
            for group in importance.negative_groups(self.pruner):
                group.prune()
        else:
            self.pruner.step()
        tell_heads(self.model, self.pruner)
        freeze(self.model, frozen)
        new = self.pruner.pruning_history()[known:]
        self.removed.append([[name, bool(outputs), [int(i) for i in idxs]] for name, outputs, idxs in new])

    def train(self, epochs: int, *, on_mined: bool) -> None:
        """Fine-tune the copy.

        Args:
            epochs: How long.
            on_mined: Whether the mined set makes half of every batch, with the contrastive term.
        """
        more: dict[str, Any] = {}
        if on_mined:
            more = {"sample_weights": self.mined.sample_weights(self.conflicting)}
            if self.contrastive_weight:
                more |= {
                    "conflicting": self.conflicting,
                    "contrastive_weight": self.contrastive_weight,
                    "feature_layer": self.feature_layer,
                }
        fine_tune(
            self.model,
            self.samples,
            epochs=epochs,
            learning_rate=self.learning_rate,
            random_state=self.generator,
            progress=self.progress,
            **more,
            **self.calling,
        )

    def recalibrate(self) -> None:
        """Bring BatchNorm statistics up to date where no fine-tuning does."""
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in self.model.modules()):
            batches = ((batch.inputs, batch.target) for _, batch in self.samples.in_order(model_device(self.model)))
            recalibrate_batchnorm(self.model, batches, forward_fn=self.calling["forward_fn"], progress=self.progress)

    def accumulate(self, n_terms: int, cut: Mapping[str, float]) -> None:
        """Let the network's confidence join the average of those before, and cut the mined set anew.

        Args:
            n_terms: How many confidences are in the scores.
            cut: How to cut.

        Raises:
            InputError: The miner's scores are not between 0 and 1, or nothing or everything is mined.
        """
        if not 0 <= float(self.mined.scores.min()) <= float(self.mined.scores.max()) <= 1:
            raise InputError("online=True averages the miner's scores with 1 − p; expected scores between 0 and 1")
        p, _, _ = label_probabilities(self.model, self.samples, **self.calling)
        share = 1 / (n_terms + 1)
        self.mined = replace(self.mined, scores=(1 - share) * self.mined.scores + share * (1 - p), cut=None)
        self.conflicting = self.mined.conflicting(**cut)
        require_some_mined(self.conflicting, _REMEDY)

    def _confidence(self) -> tuple[dict[str, float], Tensor]:
        p, correct, target = label_probabilities(self.model, self.samples, **self.calling)
        b = self.conflicting
        row = {
            "confidence in mined": float(p[b].mean()),
            "confidence in others": float(p[~b].mean()),
            "training accuracy": float(correct.double().mean()),
        }
        return row, target

    def finish(self, step: int, what: str, level: float) -> None:
        """Add a row to the history, and keep the step.

        Args:
            step: Number of finished steps.
            what: Was done.
            level: Share of the channels that are gone.
        """
        n_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        row = {"step": len(self.rows), "what": what, "level": level, "parameters": n_parameters}
        self.rows.append({**row, "mined": int(self.conflicting.sum()), **self._confidence()[0]})
        names = {module: name for name, module in self.model.named_modules()}
        data = {
            "removed": self.removed,
            "rows": self.rows,
            "scopes": dict(self.pruner._scope_initial_channels),
            "current_step": self.pruner.current_step,
            # the host keeps count of heads and groups here
            "counts": {
                kind: {names[layer]: int(count) for layer, count in getattr(self.pruner, kind).items()}
                for kind in ("num_heads", "in_channel_groups", "out_channel_groups")
            },
        }
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {"scores": self.mined.scores, "target": self.mined.target, "conflicting": self.conflicting}
        if self.mined.cut is not None:
            tensors["cut"] = self.mined.cut
        self.resumption.save(step, data, tensors | {"generator": self.generator.get_state()})

    def restore(self, finished: Progress) -> None:
        """Do again what an earlier run had done.

        Args:
            finished: What it had kept.

        Raises:
            InputError: The samples are others than then.
        """
        graph, frozen = self.pruner.DG, frozen_parameters(self.model)
        modules = dict(self.model.named_modules())
        for removed in finished.data["removed"]:
            for name, outputs, idxs in removed:
                functions = graph.get_pruner_of_module(modules[name])
                function = functions.prune_out_channels if outputs else functions.prune_in_channels
                graph.get_pruning_group(modules[name], function, idxs).prune()
            correct_graph(graph)
        freeze(self.model, frozen)
        self.removed, self.rows = finished.data["removed"], finished.data["rows"]
        self.pruner._scope_initial_channels.update(finished.data["scopes"])
        self.pruner.current_step = finished.data["current_step"]
        for kind, counts in finished.data["counts"].items():
            getattr(self.pruner, kind).update({modules[name]: count for name, count in counts.items()})
        tell_heads(self.model, self.pruner)
        prefix = "model."
        state = {name[len(prefix) :]: t for name, t in finished.tensors.items() if name.startswith(prefix)}
        self.model.load_state_dict(state)
        self.generator.set_state(finished.tensors["generator"])
        now, target = self._confidence()
        then = self.rows[-1]
        if not torch.equal(target, self.mined.target) or any(abs(now[key] - then[key]) > 1e-3 for key in now):
            raise InputError(
                "the kept run saw other samples, or the same in another order; use another folder, or delete what is "
                "in it to begin again"
            )

    def result(self) -> RecipeResult:
        """What the recipe returns."""
        return RecipeResult(self.model.eval(), pd.DataFrame(self.rows), self.mined, self.conflicting)


def plain_settings(value: Any) -> Any:
    """A setting as JSON can hold it, the same in every process.

    Args:
        value: Plain values, containers and dataclasses of them; of anything else the name is kept.

    Returns:
        The description.

    Example:
        >>> plain_settings({"share": 0.5, "layers": ("a", nn.Linear)})
        {'share': 0.5, 'layers': ['a', 'Linear']}
    """
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Mapping):
        return {str(plain_settings(key)): plain_settings(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [plain_settings(entry) for entry in value]
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__qualname__, {f.name: plain_settings(getattr(value, f.name)) for f in fields(value)}]
    return getattr(value, "__qualname__", type(value).__qualname__)


def begin(
    recipe: str,
    model: nn.Module,
    loader: DataLoader[Any],
    levels: Sequence[float],
    miner: Miner,
    cut: Mapping[str, float],
    *,
    settings: Mapping[str, Any],
    learning_rate: float,
    contrastive_weight: float,
    feature_layer: str | None,
    seed: int,
    folder: str | os.PathLike[str] | None,
    ignored_layers: Sequence[str],
    pruner_options: Mapping[str, Any] | None,
    forward_fn: ForwardFunction | None,
    output_transform: Callable[[Any], Tensor] | None,
    progress: bool,
    whole_layers: bool = False,
) -> tuple[SparseRun, int]:
    """Mine, or take up what an earlier run had finished.

    Args:
        recipe: Its name.
        model: The caller's network.
        loader: Of the training set.
        levels: Of the pruning.
        miner: Finds the conflicting samples.
        cut: How to cut the mined set.
        settings: What else must be the same to go on.
        learning_rate: Of every fine-tuning.
        contrastive_weight: λ_con.
        feature_layer: Layer whose inputs are the features.
        seed: Of everything random.
        folder: Where to keep what is finished.
        ignored_layers: Names of layers whose outputs stay.
        pruner_options: Further arguments of ``BasePruner``.
        forward_fn: How to call the network.
        output_transform: How to find the scores.
        progress: Show progress bars.
        whole_layers: See ``pruner_of_levels``.

    Returns:
        The run, and its number of finished steps.

    Raises:
        InputError: An argument or the data is wrong, nothing or everything was mined, or the folder holds another run.
    """
    samples = IndexedSamples(loader)
    calling: dict[str, Any] = {"forward_fn": forward_fn, "output_transform": output_transform}
    start = {
        "network": fingerprint(model),
        "samples": samples.n_samples,
        "batch_size": samples.batch_size,
        "miner": plain_settings(miner),
        "calling": plain_settings(calling),
        "seed": seed,
    }
    everything = {
        **start,
        "recipe": recipe,
        "levels": list(levels),
        "cut": dict(cut),
        "learning_rate": learning_rate,
        "contrastive_weight": contrastive_weight,
        "feature_layer": feature_layer,
        "ignored_layers": plain_settings(list(ignored_layers)),
        "pruner_options": plain_settings(dict(pruner_options or {})),
        **plain_settings(dict(settings)),
    }
    resumption = Resumption(folder, everything)
    finished = resumption.load()
    shrinking = copy.deepcopy(model)
    pruner = pruner_of_levels(
        shrinking,
        samples.first(model_device(shrinking)),
        levels,
        None,
        ignored_layers=ignored_layers,
        whole_layers=whole_layers,
        **calling,
        **(pruner_options or {}),
    )
    if contrastive_weight:
        _check_features(model, samples, feature_layer, calling)
    mined = (
        _mined_before(finished)
        if finished
        else _mine(miner, model, loader, Resumption(folder, start, "mined"), progress)
    )
    conflicting = finished.tensors["conflicting"] if finished else mined.conflicting(**cut)
    require_some_mined(conflicting, _REMEDY)
    n_mined, n_classes = int(conflicting.sum()), len(torch.unique(mined.target))
    if n_mined < n_classes:
        warnings.warn(
            f"only {n_mined} of {samples.n_samples} samples were mined, for {n_classes} classes, and they will make "
            f"half of every batch; if you expect more, pass {_REMEDY}",
            stacklevel=3,
        )
    run = SparseRun(
        model=shrinking,
        samples=samples,
        pruner=pruner,
        resumption=resumption,
        generator=torch.Generator().manual_seed(seed),
        mined=mined,
        conflicting=conflicting,
        learning_rate=learning_rate,
        contrastive_weight=contrastive_weight,
        feature_layer=feature_layer,
        calling=calling,
        progress=progress,
    )
    if finished is None:
        run.finish(0, "mined", 0.0)
        return run, 0
    run.restore(finished)
    return run, finished.step


def check_run(
    model: nn.Module,
    learning_rate: float,
    contrastive_weight: float,
    miner: Miner | None,
    cut: Mapping[str, float] | None,
    feature_layer: str | None,
    ignored_layers: Sequence[str],
    pruner_options: Mapping[str, Any] | None,
    seed: int,
) -> None:
    """Refuse what would otherwise be refused after the mining, the dearest part.

    Args:
        model: The caller's network.
        learning_rate: Of every fine-tuning.
        contrastive_weight: λ_con.
        miner: Finds the conflicting samples; None for the recipe's own.
        cut: How to cut the mined set.
        feature_layer: Layer whose inputs are the features.
        ignored_layers: Names of layers whose outputs stay.
        pruner_options: Further arguments of ``BasePruner``.
        seed: Of everything random.

    Raises:
        InputError: An argument is wrong.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected a trained torch.nn.Module")
    require_number("learning_rate", learning_rate, above=0)
    require_number("contrastive_weight", contrastive_weight, at_least=0)
    require_number("seed", seed, whole=True)
    if miner is not None and not isinstance(miner, Miner):
        got = f"the class {miner.__name__}" if isinstance(miner, type) else f"a {type(miner).__name__}"
        raise InputError(f"miner is {got}; expected a Miner, such as LossMiner(epochs=1)")
    if cut is not None:
        check_cut(cut)
    if isinstance(ignored_layers, str):
        raise InputError(f"ignored_layers is the string {ignored_layers!r}; expected a list: [{ignored_layers!r}]")
    if feature_layer is not None:
        FeatureTap(model, feature_layer)
    check_pruner_options(pruner_options)


def _mined_before(kept: Progress) -> MinedSamples:
    return MinedSamples(kept.tensors["scores"], kept.tensors["target"], kept.tensors.get("cut"))


def _mine(
    miner: Miner, model: nn.Module, loader: DataLoader[Any], resumption: Resumption, progress: bool
) -> MinedSamples:
    """Mine, or take what was mined before: the dearest part, kept before anything can be wrong with the cut."""
    kept = resumption.load()
    if kept is not None:
        return _mined_before(kept)
    mined = miner.mine(model, loader, progress=progress)
    tensors = {"scores": mined.scores, "target": mined.target}
    resumption.save(0, {}, tensors if mined.cut is None else {**tensors, "cut": mined.cut})
    return mined


def _check_features(
    model: nn.Module, samples: IndexedSamples, feature_layer: str | None, calling: Mapping[str, Any]
) -> None:
    """Find the features of one batch, or say how to name them, before anything is mined."""
    batch, tap = samples.first(model_device(model)), FeatureTap(model, feature_layer)
    with preserved_random_state(), preserved_model(model), torch.no_grad(), tap.attached():
        tap.features(class_scores(model, batch, calling["forward_fn"], calling["output_transform"]))
