"""What Torch-Pruning's pruner takes, checked before it is made and before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch_pruning as tp
from torch import nn

from fairtrim import InputError
from fairtrim.arguments import refuse_string, require_known, require_number

__all__ = ["PrunerOptions", "check_ignored_layers", "check_pruner_options", "check_ratios", "options_for"]

PrunerOptions = Mapping[str, Any] | Callable[[nn.Module], Mapping[str, Any]] | None
"""Further arguments of ``BasePruner``, such as ``global_pruning``, or a function of the network that gives them:
``lambda model: pruning_options(model)`` for networks of Hugging Face. Where those have layers for keys (``num_heads``,
``pruning_ratio_dict``), a dict has names of layers, because it is a copy that is pruned."""

_SET_HERE = {
    "model": "the network is the first argument",
    "example_inputs": "samples of the data are taken",
    "importance": "it is an argument of its own",
    "pruning_ratio": "the ratio is an argument of its own",
    "ch_sparsity": "the ratio is an argument of its own",
    "iterative_steps": "the number of steps is an argument of its own",
    "iterative_pruning_ratio_scheduler": "the steps lead to the ratio evenly",
    "forward_fn": "forward_fn= is an argument of its own",
    "output_transform": "output_transform= is an argument of its own",
}
"""Arguments of Torch-Pruning's that are not for its options, and why."""


def check_pruner_options(options: Any) -> None:
    """Refuse options that Torch-Pruning doesn't have, or that are given elsewhere.

    Example:
        >>> check_pruner_options({"global_pruning": True})
        >>> check_pruner_options({"importance": None})
        Traceback (most recent call last):
        fairtrim.errors.InputError: pruner_options holds 'importance': it is an argument of its own; leave it out
    """
    if options is None or callable(options):  # what a function gives is looked at when there is a network
        return
    if not isinstance(options, Mapping):
        raise InputError(
            f"pruner_options is a {type(options).__name__}; expected a dict of BasePruner's arguments, e.g. "
            "{'global_pruning': True}"
        )
    for name, reason in _SET_HERE.items():
        if name in options:
            raise InputError(f"pruner_options holds {name!r}: {reason}; leave it out")
    of_host = [*inspect.signature(tp.pruner.BasePruner.__init__).parameters]
    require_known("pruner_options", options, [name for name in of_host if name not in ("self", *_SET_HERE)])


def check_ignored_layers(ignored_layers: Sequence[str]) -> None:
    """Refuse what is no list of names, such as one name alone."""
    refuse_string("ignored_layers", ignored_layers)
    if not isinstance(ignored_layers, Collection):
        raise InputError(f"ignored_layers is a {type(ignored_layers).__name__}; expected a list of names of layers")


def options_for(pruner_options: PrunerOptions, model: nn.Module) -> dict[str, Any]:
    """The options for one network."""
    options = pruner_options(model) if callable(pruner_options) else pruner_options or {}
    if not isinstance(options, Mapping):
        raise InputError(f"pruner_options= gave a {type(options).__name__}; expected a dict of BasePruner's arguments")
    return dict(options)


def check_ratios(pruner: tp.pruner.BasePruner) -> None:
    """Refuse a pruner that would remove everything, or a negative or undefined share."""
    for name, ratio in _ratios(pruner):
        require_number(name, ratio, at_least=0, below=1, remedy=", the share of the channels to remove")


def _ratios(pruner: tp.pruner.BasePruner) -> Iterator[tuple[str, Any]]:
    names = {module: name for name, module in pruner.model.named_modules()}
    for kind in ("pruning_ratio", "head_pruning_ratio"):
        ratios = [getattr(pruner, kind), *getattr(pruner, f"per_step_{kind}")]
        yield from ((kind, ratio) for ratio in ratios)
        for module, steps in getattr(pruner, f"{kind}_dict").items():
            yield from (
                (f"{kind}_dict[{names.get(module, type(module).__name__)!r}]", ratio) for ratio in reversed(steps)
            )
