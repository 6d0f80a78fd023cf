"""How many heads attention has after a step, written where its modules keep the number."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch_pruning as tp
from torch import nn

__all__ = ["HEADS", "HEAD_SIZES", "after_step_of", "tell_heads"]

HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head")
HEAD_SIZES = ("attention_head_size", "head_dim")
_ALL_HEADS = ("all_head_size", "attn_dim")
"""Names by which attention modules know their heads: those of timm and Hugging Face."""

_AFTER_STEP: list[tuple[Callable[[nn.Module], bool], Callable[[nn.Module, tp.pruner.BasePruner], Any]]] = []


def after_step_of(
    applies: Callable[[nn.Module], bool], function: Callable[[nn.Module, tp.pruner.BasePruner], Any]
) -> None:
    """Say what has to be done to a kind of network after each step before it can run."""
    _AFTER_STEP.append((applies, function))


def tell_heads(model: nn.Module, pruner: tp.pruner.BasePruner) -> None:
    """Write the heads that are left into the attention modules, as scripts do after a step."""
    for applies, function in _AFTER_STEP:
        if applies(model):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a config can't say is for the real step
                function(model, pruner)
            return
    names = {module: name for name, module in model.named_modules()}
    layers: dict[str, list[nn.Module]] = {}
    for layer in pruner.num_heads:
        layers.setdefault(names.get(layer, "").rpartition(".")[0], []).append(layer)
    for parent, projections in layers.items():
        module = model.get_submodule(parent)
        heads = max(int(pruner.num_heads[layer]) for layer in projections)
        width = int(getattr(projections[0], "out_features", 0)) // (3 if len(projections) == 1 else 1)
        if heads < 1 or width % heads:
            continue
        for known, value in ((HEADS, heads), (HEAD_SIZES, width // heads), (_ALL_HEADS, width)):
            for name in known:
                if type(vars(module).get(name)) is int:
                    setattr(module, name, value)
