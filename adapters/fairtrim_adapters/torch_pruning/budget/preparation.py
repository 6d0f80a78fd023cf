"""What is looked at before anything is ranked: arguments, groups of people, and whether samples judge themselves."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from fairtrim.arguments import RandomState, require_choice, require_known, require_network
from fairtrim.damage.reading_options import Reading
from fairtrim.data.batches import ForwardFunction, LossFunction, iterate_batches
from fairtrim.data.sensitive_groups import SensitiveNames
from fairtrim.data.sensitive_loader import with_sensitive_features
from fairtrim.devices import to_device
from fairtrim.errors import InputError
from fairtrim.network.scored_network import OutputTransform, ScoredNetwork
from fairtrim.placement import require_whole
from fairtrim.preservation import preserved_random_state
from fairtrim_adapters.torch_pruning.graph.pruner_options import PrunerOptions
from fairtrim_adapters.torch_pruning.importances.damage_importances import MeanDamageImportance
from fairtrim_adapters.torch_pruning.importances.host_importance import refuse_own_data, refuse_unscored
from fairtrim_adapters.torch_pruning.reconstruction.measuring import shares_samples

from .candidates import Task
from .sizes import Cost, Counter

__all__ = ["BudgetOptions", "Prepared", "prepared"]


class BudgetOptions(TypedDict, total=False):
    """How a network is pruned to a size, and how its data are read; the same for all that does so.

    Attributes:
        ignored_layers: Names of layers whose outputs stay; the layer that gives the scores is one of them anyway.
        pruner_options: Further arguments of ``BasePruner``, such as ``max_pruning_ratio``, ``round_to`` or
            ``num_heads``, or a function of the network that gives them. fairtrim's importances rank the channels of
            all layers together unless ``global_pruning`` is False here. Ratios of single layers and of heads are what
            goes of them at most.
        reconstruct: Whether what reads a removed channel is refitted; default True.
        forward_fn: How to call the network: ``forward_fn(model, inputs)``.
        output_transform: Finds the scores (N, K) in what the network returns.
        loss_fn: Loss of scores and target; default cross-entropy.
        sensitive_features: Of a loader of (inputs, target), one row a sample of its dataset, shuffled or not; see
            ``fairtrim.with_sensitive_features``.
        held_out_sensitive_features: The same of ``held_out``.
        sensitive_names: Names of the sensitive features, and of their values.
        random_state: Of everything random; default 0.
        progress: Show progress bars; default True.

    Example:
        >>> options: BudgetOptions = {"reconstruct": False, "progress": False}
    """

    ignored_layers: Sequence[str]
    pruner_options: PrunerOptions
    reconstruct: bool
    forward_fn: ForwardFunction | None
    output_transform: OutputTransform | None
    loss_fn: LossFunction
    sensitive_features: Any
    held_out_sensitive_features: Any
    sensitive_names: SensitiveNames | None
    random_state: RandomState
    progress: bool


@dataclass(frozen=True)
class Prepared:
    """What all networks of one call have in common.

    Attributes:
        dense: A copy of the caller's network.
        task: How it is ranked and pruned.
        judges: Who measures.
        flags: What was seen on the way.
    """

    dense: ScoredNetwork
    task: Task
    judges: Iterable[Any]
    flags: tuple[str, ...]


def prepared(
    model: nn.Module,
    loader: Iterable[Any],
    example_inputs: Any,
    cost: Cost,
    importance: tp.importance.Importance | None,
    held_out: Iterable[Any] | None,
    options: BudgetOptions,
    seed: int,
    what: str,
) -> Prepared:
    """Check the arguments of a call and make what it works with.

    Args:
        model: The caller's network.
        loader: Of the scoring data.
        example_inputs: What the network is counted on.
        cost: Of what the budget is.
        importance: The importance, or None for the default.
        held_out: Who judges, or None for those of the loader.
        options: As given.
        seed: Of everything random.
        what: The function that was called.

    Returns:
        It.

    Raises:
        InputError: An argument is wrong.
    """
    require_known(what, options, BudgetOptions.__annotations__)
    reconstruct = options.get("reconstruct", True)
    require_choice("reconstruct", reconstruct, (True, False))
    require_network("model", model)
    for name, given in (("loader", loader), ("held_out", held_out)):
        if isinstance(given, Iterator) or (not isinstance(given, Iterable) and not (name == "held_out" and not given)):
            raise InputError(
                f"{name} is a {type(given).__name__}; expected a DataLoader or a list of batches, which can be gone "
                "through several times"
            )
    given = loader, held_out
    loader = with_sensitive_features(loader, options.get("sensitive_features"))
    of_held_out = options.get("held_out_sensitive_features")
    held_out = with_sensitive_features(held_out, of_held_out, argument="held_out_sensitive_features")
    reading = Reading(
        loss_fn=options.get("loss_fn", F.cross_entropy),
        forward_fn=options.get("forward_fn"),
        output_transform=options.get("output_transform"),
        sensitive_names=options.get("sensitive_names"),
        progress=options.get("progress", True),
    )
    reading.network(model).check()
    require_whole(model)
    dense = reading.network(copy.deepcopy(model).eval())
    with preserved_random_state(loader):
        batch = next(iter(iterate_batches(loader, dense.device, max_batches=1, progress=False)))
        batch = replace(batch, inputs=dense.tensors(batch.inputs))
    if importance is None:
        importance = MeanDamageImportance(compensated=reconstruct, per="parameters" if cost == "parameters" else "macs")
    refuse_own_data(importance)
    refuse_unscored(importance)
    task = Task(
        loader=loader,
        importance=importance,
        counter=Counter(dense, to_device(dense.tensors(example_inputs), dense.device), cost),
        batch=batch,
        reading=reading,
        ignored_layers=options.get("ignored_layers", ()),
        pruner_options=options.get("pruner_options"),
        reconstruct=reconstruct,
        seed=seed,
    )
    flags: tuple[str, ...] = ()
    if held_out is None:
        flags = ("measured on the people by whom channels were chosen, which flatters: pass held_out=",)
    elif shares_samples(*given):
        told = "held_out gives samples that the loader gives, too: what is measured there flatters"
        warnings.warn(f"{told}; expected samples of their own", stacklevel=4)
        flags = (told,)
    return Prepared(dense, task, loader if held_out is None else held_out, flags)
