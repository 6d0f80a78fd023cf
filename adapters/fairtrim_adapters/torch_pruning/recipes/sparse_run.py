"""A network on its way to being sparse: what was done to it, and how to save that and take it up again."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fairtrim import InputError, recalibrate_output
from fairtrim.data.batches import Batch
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.data.labels import require_labels
from fairtrim.files.resumption import Progress, Resumption, fingerprint
from fairtrim.files.run_settings import plain_settings
from fairtrim.mining.contrastive_objective import upweighted
from fairtrim.mining.contrastive_weight_masks import gated_weights, masked_network
from fairtrim.mining.known_samples import KnownSamples
from fairtrim.mining.mined_samples import MinedSamples, require_some_mined
from fairtrim.mining.miner import Miner, seen_labels
from fairtrim.network.batchnorm import batchnorm_layers
from fairtrim.network.copied_network import copied_network
from fairtrim.network.fine_tuning import FineTuning, check_trainable, fine_tune
from fairtrim.network.held_out import check_held_out, held_out_samples
from fairtrim.network.losses import require_class_scores
from fairtrim.network.output_layer import FeatureTap
from fairtrim.network.probability_scores import ProbabilityScores, refuse_shares
from fairtrim.network.recalibration import output_layer_to_fit, recalibrate_batchnorm
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.preservation import preserved_model, preserved_random_state
from fairtrim.printing import Block, Printed, TextTable, figure, movement, percent
from fairtrim_adapters.torch_pruning.graph.corrections import correct_graph
from fairtrim_adapters.torch_pruning.graph.head_counts import tell_heads
from fairtrim_adapters.torch_pruning.graph.level_pruner import freeze, frozen_parameters, pruner_of_levels
from fairtrim_adapters.torch_pruning.graph.shared_heads import recounted
from fairtrim_adapters.torch_pruning.importances.channel_importance import ChannelImportance
from fairtrim_adapters.torch_pruning.reconstruction.wrap import reconstructed

from .recipe_options import RunSettings

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RecipeResult", "SparseRun", "begin"]

_logger = logging.getLogger("fairtrim.torch_pruning")

_SHARES = ("confidence in mined", "confidence in others", "training accuracy")
_REMEDY = "cut={'share_per_class': ...}"


@dataclass(frozen=True)
class RecipeResult(Printed):
    """What a recipe made; print it.

    Attributes:
        model: The sparse network, in eval mode; the caller's is untouched.
        history: One row a step: level, parameters, mined samples, mean confidence of mined and other samples.
        mined: Scores of the training samples.
        conflicting: The mined set that was used, (N,) bool.

    Example: see ``denp``, which makes one.
    """

    model: nn.Module
    history: pd.DataFrame
    mined: MinedSamples
    conflicting: Tensor

    def verdict(self) -> str:
        """How many samples were mined, and what pruning did to the confidence in them.

        Returns:
            One sentence.
        """
        mined = f"{int(self.conflicting.sum()):,} of {len(self.conflicting):,} training samples are mined"
        if not len(self.history):
            return f"{mined}; no step was taken."
        first, last = self.history.iloc[0], self.history.iloc[-1]
        of_mined, of_others = (
            movement(first[f"confidence in {whom}"], last[f"confidence in {whom}"]) for whom in ("mined", "others")
        )
        gone = percent(last["level"])
        return f"{mined}; with {gone} gone the mean confidence in them {of_mined}, in the others {of_others}."

    def blocks(self) -> Iterator[Block]:
        """The verdict, and a row a step."""
        yield self.verdict()
        if not len(self.history):
            return
        rows = [
            (
                row["what"],
                percent(row["level"]),
                *(figure(int(row[name])) for name in ("parameters", "mined")),
                *(figure(row[name]) for name in _SHARES),
            )
            for _, row in self.history.iterrows()
        ]
        heads = ("step", "gone", "parameters", "mined", "confidence: mined", "others", "training accuracy")
        yield TextTable(heads, rows, title="After each step, on the training samples.")


@dataclass(kw_only=True)
class SparseRun:
    """A copy of a network that a recipe prunes or masks, and trains, step by step.

    Attributes:
        network: The copy.
        settings: Of the recipe.
        samples: The training set.
        pruner: Torch-Pruning's pruner of the copy; None where weights are masked.
        resumption: Where finished steps are kept.
        generator: Source of all randomness.
        mined: Scores of the training samples.
        conflicting: The mined set, (N,).
        held_out: The samples that no training of the run sees, (N,) bool; None where all are seen.
        removed: What Torch-Pruning removed, for each pruning.
        rows: The history.
    """

    network: ScoredNetwork
    settings: RunSettings
    samples: IndexedSamples
    pruner: tp.pruner.BasePruner | None
    resumption: Resumption
    generator: torch.Generator
    mined: MinedSamples
    conflicting: Tensor
    held_out: Tensor | None = None
    removed: list[Sequence[Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def model(self) -> nn.Module:
        """The copy."""
        return self.network.model

    def prune_by(self, importance: ChannelImportance, loader: DataLoader[Any], *, only_negative: bool = False) -> None:
        """Take the pruner's next step, or remove what has a negative score.

        Args:
            importance: Fitted here.
            loader: Of the training set.
            only_negative: Whether the scores' signs decide, and not the pruner's ratio.
        """
        assert self.pruner is not None
        known = len(self.pruner.pruning_history())
        self.pruner.importance = importance
        importance.fit(self.pruner, loader, progress=self.settings.progress, **self.settings.calling)
        frozen = frozen_parameters(self.model)
        with self._refitted(loader):
            if only_negative:
                for group in importance.negative_groups(self.pruner):
                    group.prune()
            else:
                self.pruner.step()
            tell_heads(self.model, self.pruner)
        freeze(self.model, frozen)
        new = self.pruner.pruning_history()[known:]
        self.removed.append([[name, bool(outputs), [int(i) for i in idxs]] for name, outputs, idxs in new])

    def mask(self, logits: Mapping[str, Tensor], sparsity: float | None) -> float:
        """Close single weights; see ``masked_network``.

        Args:
            logits: π by name of the weight.
            sparsity: Share of the weights to close; None for those with π < 0.

        Returns:
            The share that is closed.
        """
        masked = masked_network(self.model, logits, sparsity=sparsity)
        self.network = self.network.of(masked)
        masks = [masked.get_buffer(f"{name}_mask") for name in logits]
        return 1 - sum(float(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    def _refitted(self, loader: DataLoader[Any]) -> AbstractContextManager[Any]:
        """What to remove channels in."""
        if not self.settings.reconstruct:
            return nullcontext()
        return reconstructed(
            self.pruner,
            loader,
            forward_fn=self.network.forward_fn,
            random_state=self.settings.seed,
            measure=False,
            progress=self.settings.progress,
        )

    def train(self, epochs: int, *, on_mined: bool) -> None:
        """Fine-tune the copy.

        Args:
            epochs: How long.
            on_mined: Whether the mined samples are shown more often, with the contrastive term.
        """
        given = self.settings.training
        training: FineTuning = {"epochs": epochs, "learning_rate": given["learning_rate"], "held_out": self.held_out}
        weights = None
        if on_mined:
            weights = self._sample_weights()
            training = {**given, **training}
        reads_flags = bool(training.get("contrastive_weight")) or self.held_out is not None
        fine_tune(
            self.model,
            self.samples,
            sample_weights=weights,
            conflicting=self.conflicting if reads_flags else None,
            random_state=self.generator,
            progress=self.settings.progress,
            **self.settings.calling,
            **training,
        )

    def _sample_weights(self) -> Tensor:
        weight = self.settings.mined_weight
        return self.mined.sample_weights(self.conflicting) if weight is None else upweighted(self.conflicting, weight)

    def recalibrate(self) -> None:
        """Bring BatchNorm statistics up to date where neither fine-tuning nor a refit does."""
        if not self.settings.reconstruct and batchnorm_layers(self.model):
            batches = ((batch.inputs, batch.target) for _, batch in self.samples.in_order(self.network.device))
            calling = self.network.forward_fn
            recalibrate_batchnorm(self.model, batches, forward_fn=calling, progress=self.settings.progress)

    def recalibrate_output(self, loader: DataLoader[Any]) -> None:
        """Fit the output layer to the labels, if that is asked for.

        Args:
            loader: Of the training set.
        """
        layer = self.settings.recalibrate_output
        if layer is not None:
            calling = self.settings.calling
            recalibrate_output(self.model, loader, layer=layer, progress=self.settings.progress, **calling)

    def accumulate(self, n_terms: int) -> None:
        """Let the network's confidence join the average of those before, and cut the mined set anew.

        Args:
            n_terms: How many confidences are in the scores.

        Raises:
            InputError: The miner's scores are not between 0 and 1, or nothing or everything is mined.
        """
        if not 0 <= float(self.mined.scores.min()) <= float(self.mined.scores.max()) <= 1:
            raise InputError("online=True averages the miner's scores with 1 − p; expected scores between 0 and 1")
        p, _, _ = seen_labels(self.network, self.samples)
        share = 1 / (n_terms + 1)
        self.mined = replace(self.mined, scores=(1 - share) * self.mined.scores + share * (1 - p), cut=None)
        self.conflicting = self.mined.conflicting(**self.settings.cut)
        require_some_mined(self.conflicting, _REMEDY)

    def _confidence(self) -> tuple[dict[str, float], Tensor]:
        p, correct, target = seen_labels(self.network, self.samples)
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
        data = {"removed": self.removed, "rows": self.rows, **self._of_pruner()}
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {**_tensors_of(self.mined), "conflicting": self.conflicting}
        if self.held_out is not None:
            tensors["held_out"] = self.held_out
        self.resumption.save(step, data, tensors | {"generator": self.generator.get_state()})

    def _of_pruner(self) -> dict[str, Any]:
        if self.pruner is None:
            return {}
        names = {module: name for name, module in self.model.named_modules()}
        return {
            "scopes": dict(self.pruner._scope_initial_channels),
            "current_step": self.pruner.current_step,
            # Torch-Pruning keeps count of heads and groups here
            "counts": {
                kind: {names[layer]: int(count) for layer, count in getattr(self.pruner, kind).items()}
                for kind in ("num_heads", "in_channel_groups", "out_channel_groups")
            },
        }

    def restore(self, finished: Progress) -> None:
        """Do again what an earlier run had done.

        Args:
            finished: What it had kept.

        Raises:
            InputError: The samples are others than then.
        """
        self.removed, self.rows = finished.data["removed"], finished.data["rows"]
        prefix = "model."
        state = {name[len(prefix) :]: t for name, t in finished.tensors.items() if name.startswith(prefix)}
        if self.pruner is not None:
            self._remove_again(self.pruner, finished.data)
        elif masks := {n: state[f"{n}_mask"] - 0.5 for n, _ in self.model.named_parameters() if f"{n}_mask" in state}:
            self.mask(masks, None)
        self.model.load_state_dict(state)
        self.generator.set_state(finished.tensors["generator"])
        now, target = self._confidence()
        then = self.rows[-1]
        if not torch.equal(target, self.mined.target) or any(abs(now[key] - then[key]) > 1e-3 for key in now):
            raise InputError(
                "the kept run saw other samples, or the same in another order; use another folder, or delete what is "
                "in it to begin again"
            )

    def _remove_again(self, pruner: tp.pruner.BasePruner, data: Mapping[str, Any]) -> None:
        graph, frozen = pruner.DG, frozen_parameters(self.model)
        modules = dict(self.model.named_modules())
        for removed in data["removed"]:
            for name, outputs, idxs in removed:
                functions = graph.get_pruner_of_module(modules[name])
                function = functions.prune_out_channels if outputs else functions.prune_in_channels
                graph.get_pruning_group(modules[name], function, idxs).prune()
            correct_graph(graph)
        freeze(self.model, frozen)
        pruner._scope_initial_channels.update(data["scopes"])
        pruner.current_step = data["current_step"]
        for kind, counts in data["counts"].items():
            held = getattr(pruner, kind)
            held.update({modules[name]: recounted(held.get(modules[name]), count) for name, count in counts.items()})
        tell_heads(self.model, pruner)

    def result(self) -> RecipeResult:
        """What the recipe returns."""
        import pandas as pd

        return RecipeResult(self.model.eval(), pd.DataFrame(self.rows), self.mined, self.conflicting)


def begin(
    settings: RunSettings,
    loader: DataLoader[Any],
    levels: Sequence[float],
    own: Mapping[str, Any],
    *,
    whole_layers: bool = False,
    masked: bool = False,
) -> tuple[SparseRun, int]:
    """Mine, or take up what an earlier run had finished.

    Args:
        settings: Of the recipe.
        loader: Of the training set.
        levels: Of the pruning.
        own: Settings of this recipe alone, which must be the same to go on.
        whole_layers: See ``pruner_of_levels``.
        masked: Whether single weights are masked, and no channel is removed.

    Returns:
        The run, and its number of finished steps.

    Raises:
        InputError: An argument or the data is wrong, nothing or everything was mined, or the folder holds another run.
    """
    samples, dense = IndexedSamples(loader), settings.network
    dense.check()
    start = {
        "network": fingerprint(dense.model),
        "samples": samples.n_samples,
        "batch_size": samples.batch_size,
        "miner": plain_settings(settings.miner),
        "calling": plain_settings(settings.calling),
        "random_state": settings.seed,
    }
    everything = {**start, "levels": list(levels), **settings.plain(), **plain_settings(dict(own))}
    resumption = Resumption(settings.folder, everything)
    finished = resumption.load()
    shrinking, batch = dense.of(copied_network(dense.model)), samples.first(dense.device)
    if masked:
        pruner = None
        gated_weights(dense, batch, settings.ignored_layers)
    else:
        pruner = pruner_of_levels(
            shrinking,
            batch,
            levels,
            None,
            ignored_layers=settings.ignored_layers,
            pruner_options=settings.pruner_options,
            whole_layers=whole_layers,
        )
    check_trainable(dense.model, samples)
    check_held_out(settings.training["held_out"], samples.n_samples)
    _check_outputs(dense, batch, settings)
    if finished is not None:
        mined, conflicting = _mined_before(finished), finished.tensors["conflicting"]
    else:
        kept = Resumption(settings.folder, start, "mined")
        mined = _mine(settings.miner, dense.model, loader, kept, settings.progress)
        conflicting = mined.conflicting(**settings.cut)
    require_some_mined(conflicting, _REMEDY)
    held_out = settings.training["held_out"]
    if finished is not None:
        held_out = finished.tensors.get("held_out")
    elif held_out is not None:  # the same for all steps: what one has trained on is no test for the next
        held_out = held_out_samples(held_out, mined.target, conflicting, settings.seed)
    if not (isinstance(settings.miner, KnownSamples) and settings.miner.flags is not None):
        _warn_of_few(conflicting, mined)
    run = SparseRun(
        network=shrinking,
        settings=settings,
        samples=samples,
        pruner=pruner,
        resumption=resumption,
        generator=torch.Generator().manual_seed(settings.seed),
        mined=mined,
        conflicting=conflicting,
        held_out=held_out,
    )
    if finished is None:
        run.finish(0, "mined", 0.0)
        return run, 0
    run.restore(finished)
    _logger.info("the recipe goes on after step %d, kept in %s", finished.step, resumption.path)
    return run, finished.step


def _warn_of_few(conflicting: Tensor, mined: MinedSamples) -> None:
    n_mined, n_classes = int(conflicting.sum()), len(torch.unique(mined.target))
    if n_mined < n_classes:
        warnings.warn(
            f"only {n_mined} of {len(conflicting)} samples were mined, for {n_classes} classes, and the fine-"
            f"tuning will show them again and again; if you expect more, pass {_REMEDY}",
            stacklevel=5,  # of whoever called the recipe
        )


def _tensors_of(mined: MinedSamples) -> dict[str, Tensor]:
    """All that was mined, to be kept; ``_mined_before`` reads it."""
    optional = {"cut": mined.cut, "confidence": mined.confidence}
    levels = torch.tensor(list(mined.levels), dtype=torch.float64, device="cpu")
    kept = {name: tensor for name, tensor in optional.items() if tensor is not None}
    return {"scores": mined.scores, "target": mined.target, "levels": levels, **kept}


def _mined_before(kept: Progress) -> MinedSamples:
    tensors = kept.tensors
    levels = tuple(tensors["levels"].tolist()) if "levels" in tensors else ()
    return MinedSamples(tensors["scores"], tensors["target"], tensors.get("cut"), levels, tensors.get("confidence"))


def _mine(
    miner: Miner, model: nn.Module, loader: DataLoader[Any], resumption: Resumption, progress: bool
) -> MinedSamples:
    """Mine, or take what was mined before: the dearest part, kept before anything can be wrong with the cut."""
    kept = resumption.load()
    if kept is not None:
        _logger.info("nothing is mined again: kept in %s", resumption.path)
        return _mined_before(kept)
    mined = miner.mine(model, loader, progress=progress)
    resumption.save(0, {}, _tensors_of(mined))
    return mined


def _check_outputs(network: ScoredNetwork, batch: Batch, settings: RunSettings) -> None:
    """Find scores, features and output layer of one batch, or say what is wrong, before anything is mined."""
    seen, tap = ProbabilityScores(), FeatureTap(network.model, settings.training["feature_layer"])
    with preserved_random_state(), preserved_model(network.model), torch.no_grad(), tap.attached():
        scores = network.scores(batch)
        require_class_scores(scores)
        require_labels(batch.target, scores.shape[1])
        seen.add(scores)
        if seen.shares:
            refuse_shares("the network")
        if settings.training["contrastive_weight"]:
            tap.features(scores)
        if settings.recalibrate_output is not None:
            output_layer_to_fit(network, batch, settings.recalibrate_output)
