"""What recipes share: their options, and all settings of a run, checked before anything is mined."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypedDict

import numpy as np
from torch import Tensor, nn

from fairtrim import InputError
from fairtrim.arguments import RandomState, drawn_seed, keyword_names, require_flag, require_known
from fairtrim.data.batches import ForwardFunction
from fairtrim.files.run_settings import described, plain_settings
from fairtrim.mining.contrastive_objective import Upweight, check_upweight
from fairtrim.mining.known_samples import KnownFlags, KnownSamples
from fairtrim.mining.mined_samples import MinedSamples, check_cut
from fairtrim.mining.miner import MINERS, Miner
from fairtrim.network.fine_tuning import FineTuning, complete_settings
from fairtrim.network.output_layer import FeatureTap
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim_adapters.torch_pruning.graph.pruner_options import (
    PrunerOptions,
    check_ignored_layers,
    check_pruner_options,
)
from fairtrim_adapters.torch_pruning.reconstruction.output import OutputRecalibration, check_recalibration

__all__ = ["RecipeOptions", "RunSettings", "run_settings"]


class RecipeOptions(TypedDict, total=False):
    """Options of every recipe.

    Attributes:
        miner: Finds the bias-conflicting samples in place of the recipe's own; or a name in ``fairtrim.MINERS``, of one
            that is made as the recipe's own is: with the seed of the run and the same way to call the network. Whoever
            knows them, from annotations, gives their flags, (N,) bool by index in the dataset, or what was mined
            before: nothing is mined then. True flags are also the upper reference to compare a miner with.
        cut: How to cut the mined set: arguments of ``MinedSamples.conflicting``; default the miner's own decision.
        mined_weight: Sampling weight of the mined samples in the fine-tuning, where another's is 1: a number, or
            ``"published"``, DCWP's 80, 50, 30 and 10 where 0.5, 1, 2 and 5 % are mined; default None, for which they
            make half of every batch, whatever their share.
        ignored_layers: Names of layers whose outputs stay, beside the layer that gives the scores.
        pruner_options: Further arguments of ``BasePruner``, such as ``{"global_pruning": True}``.
        reconstruct: Whether what reads removed channels is refitted on the training data before the fine-tuning,
            without a label; default False, as the recipes are published.
        recalibrate_output: Whether at last the output layer is fitted to the labels of the training data,
            ``"output"``, or for two classes its threshold alone, ``"threshold"``; default neither.
        random_state: Seed of everything random, default 0; or a torch.Generator, from which a seed is drawn once. With
            ``folder`` it has to be a seed, for a run that goes on draws from the same.
        folder: Where to keep what is finished; a run that was cut short goes on from its last step there.
        forward_fn: How to call the network.
        output_transform: How to find the scores in what it returns.
        progress: Show progress bars; default True.

    Example:
        >>> from fairtrim_adapters.torch_pruning import denp
        >>> options: RecipeOptions = {"random_state": 3, "cuts": {"share_per_class": 0.1}}
        >>> denp(nn.Linear(2, 2), [], **options)
        Traceback (most recent call last):
        fairtrim.errors.InputError: denp has no 'cuts' (did you mean 'cut'?); expected some of ['pruning_ratio', \
'iterative_steps', 'fine_tuning', 'final_epochs', 'online', 'importance', 'miner', 'cut', 'mined_weight', \
'ignored_layers', 'pruner_options', 'reconstruct', 'recalibrate_output', 'random_state', 'folder', 'forward_fn', \
'output_transform', 'progress']
    """

    miner: Miner | KnownFlags | MinedSamples | str | None
    cut: Mapping[str, float] | None
    mined_weight: Upweight | None
    ignored_layers: Sequence[str]
    pruner_options: PrunerOptions
    reconstruct: bool
    recalibrate_output: OutputRecalibration | None
    random_state: RandomState
    folder: str | os.PathLike[str] | None
    forward_fn: ForwardFunction | None
    output_transform: Callable[[Any], Tensor] | None
    progress: bool


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """All settings of a run that every recipe has, checked and complete. See ``RecipeOptions``."""

    recipe: str
    network: ScoredNetwork
    training: FineTuning
    miner: Miner
    cut: Mapping[str, float]
    mined_weight: Upweight | None
    ignored_layers: Sequence[str]
    pruner_options: PrunerOptions
    reconstruct: bool
    recalibrate_output: OutputRecalibration | None
    seed: int
    folder: str | os.PathLike[str] | None
    progress: bool

    @property
    def calling(self) -> dict[str, Any]:
        """How the network is called, for functions that take both arguments."""
        return {"forward_fn": self.network.forward_fn, "output_transform": self.network.output_transform}

    def plain(self) -> dict[str, Any]:
        """Those that have to be the same for a run to go on, as JSON can hold them."""
        options = self.pruner_options
        return {
            "recipe": self.recipe,
            "cut": dict(self.cut),
            "mined_weight": self.mined_weight,
            **{name: plain_settings(value) for name, value in self.training.items() if name != "epochs"},
            "ignored_layers": plain_settings(list(self.ignored_layers)),
            "pruner_options": described(options) if callable(options) else plain_settings(dict(options or {})),
            "reconstruct": self.reconstruct,
            "recalibrate_output": self.recalibrate_output,
        }


def run_settings(
    recipe: Callable[..., Any],
    model: nn.Module,
    fine_tuning: FineTuning | None,
    defaults: FineTuning,
    options: RecipeOptions,
    default_miner: type[Miner],
) -> RunSettings:
    """Refuse what would otherwise be refused after the mining."""
    require_known(recipe.__name__, options, keyword_names(recipe, RecipeOptions))
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected a trained torch.nn.Module")
    training = complete_settings(fine_tuning, defaults)
    random_state, folder = options.get("random_state", 0), options.get("folder")
    if folder is not None and not isinstance(random_state, Integral):
        raise InputError(
            f"random_state is a {type(random_state).__name__} beside folder=; expected a whole number, for a run that "
            "goes on draws from the same seed"
        )
    seed = drawn_seed(random_state)
    cut = options.get("cut")
    if cut is not None:
        check_cut(cut)
    mined_weight = options.get("mined_weight")
    if mined_weight is not None:
        check_upweight("mined_weight", mined_weight)
    ignored_layers, pruner_options = options.get("ignored_layers", ()), options.get("pruner_options")
    check_ignored_layers(ignored_layers)
    if (feature_layer := training["feature_layer"]) is not None:
        FeatureTap(model, feature_layer)
        if not training["contrastive_weight"]:
            raise InputError(
                f"feature_layer={feature_layer!r} would have no effect without contrastive_weight= beside it in "
                "fine_tuning, the weight of the term that reads it"
            )
    check_pruner_options(pruner_options)
    reconstruct, recalibrate_output = options.get("reconstruct", False), options.get("recalibrate_output")
    require_flag("reconstruct", reconstruct)
    progress = options.get("progress", True)
    require_flag("progress", progress)
    check_recalibration(recalibrate_output)
    network = ScoredNetwork(model, options.get("forward_fn"), options.get("output_transform"))
    miner = _miner(
        options.get("miner"),
        default_miner,
        random_state=seed,
        ignored_layers=ignored_layers,
        pruner_options=pruner_options,
        forward_fn=network.forward_fn,
        output_transform=network.output_transform,
    )
    if cut and isinstance(miner, KnownSamples) and miner.flags is not None:
        raise InputError("cut= would have no effect: miner= says which samples are bias-conflicting; leave it out")
    return RunSettings(
        recipe=recipe.__name__,
        network=network,
        training=training,
        miner=miner,
        cut=cut or {},
        mined_weight=mined_weight,
        ignored_layers=ignored_layers,
        pruner_options=pruner_options,
        reconstruct=reconstruct,
        recalibrate_output=recalibrate_output,
        seed=seed,
        folder=folder,
        progress=progress,
    )


def _miner(given: Miner | KnownFlags | MinedSamples | str | None, default: type[Miner], **settings: Any) -> Miner:
    """The caller's miner, or one of the class that is named, with those of the settings that it takes."""
    if isinstance(given, Miner):
        return given
    if isinstance(given, Tensor | np.ndarray | list | tuple | MinedSamples):
        return KnownSamples(given, settings["forward_fn"], settings["output_transform"])
    if given is not None and not isinstance(given, str):
        got = f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"
        raise InputError(
            f"miner is {got}; expected a Miner, such as LossMiner(epochs=1), a name in fairtrim.MINERS, or flags of "
            "the bias-conflicting samples"
        )
    cls = default if given is None else MINERS[given]
    taken = inspect.signature(cls).parameters
    try:
        made: Miner = cls(**{name: value for name, value in settings.items() if name in taken})
    except TypeError as error:
        raise InputError(f"miner {given!r} can't be made by its name ({error}); pass a {cls.__name__}") from error
    return made
