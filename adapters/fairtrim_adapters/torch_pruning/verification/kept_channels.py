"""Norms over the channels that stay: what closed gates can't show, because a norm reads the channels that are gone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim.damage.gates import map_consumed
from fairtrim_adapters.torch_pruning.graph.dependency_groups import passes_on
from fairtrim_adapters.torch_pruning.graph.layers import description_of
from fairtrim_adapters.torch_pruning.graph.plan import PruningPlan

__all__ = ["channels_pass", "copy_of_layer", "norms_over_kept"]


def channels_pass(graph: tp.DependencyGraph, module: nn.Module) -> bool:
    """Whether a layer gives out the channels that it takes, so that a layer without some of them can stand for it.

    So it is for what channels pass through, and for attention, whose outputs go with its inputs.
    """
    description = description_of(module)
    return passes_on(graph, module) or (description is not None and description.mixes)


def copy_of_layer(module: nn.Module) -> nn.Module:
    """A layer of its own, in eval mode and without hooks, that holds the same numbers.

    Example:
        >>> norm = nn.LayerNorm(3)
        >>> other = copy_of_layer(norm)
        >>> norm.weight = None
        >>> other.weight.tolist()
        [1.0, 1.0, 1.0]
    """
    other = copy.copy(module)
    vars(other).update({name: dict(value) for name, value in vars(module).items() if isinstance(value, dict)})
    vars(other).update({name: type(value)() for name, value in vars(other).items() if name.endswith("_hooks")})
    # whatever a pruner does to these parameters, or is undone, later
    other._parameters.update(
        {n: p if p is None else nn.Parameter(p.detach(), False) for n, p in module._parameters.items()}
    )
    other._modules.update({name: child and copy_of_layer(child) for name, child in module._modules.items()})
    other.training = False
    return other


@contextmanager
def norms_over_kept(
    model: nn.Module,
    plan: PruningPlan,
    removed: Mapping[str, Collection[int]],
    norms: Mapping[str, nn.Module],
) -> Iterator[None]:
    """Let layers that pass channels on, norms above all, see only the channels that stay, as they will.

    ``norms`` are copies of these layers without the channels. Inside, they give zeros for the channels that are gone.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    gone: dict[str, set[int]] = {}
    axes: dict[str, int] = {}
    for name, units in removed.items():
        for place in plan.producers.get(name, ()):
            if place.module in norms:
                channels = (c for c, unit in zip(place.channels, place.group_channels, strict=True) if unit in units)
                gone.setdefault(place.module, set()).update(channels)
                axes[place.module] = place.channel_axis

    def over_kept(name: str) -> Callable[..., Any]:
        axis = axes[name]

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            whole = output[0] if isinstance(output, tuple) else output
            kept = torch.tensor([c for c in range(whole.shape[axis]) if c not in gone[name]], device=whole.device)

            def pick(value: Any) -> Any:
                wide = isinstance(value, Tensor) and value.ndim > 1 and value.shape[axis] == whole.shape[axis]
                return value.index_select(axis, kept) if wide else value

            args, kwargs = map_consumed(module, args, kwargs, pick)
            value = norms[name](*args, **kwargs)
            first = value[0] if isinstance(value, tuple) else value
            spread = torch.zeros_like(whole).index_copy(axis, kept, first)
            return (spread, *value[1:]) if isinstance(value, tuple) else spread

        return hook

    with ExitStack() as stack:
        for name in axes:
            stack.callback(modules[name].register_forward_hook(over_kept(name), with_kwargs=True).remove)
        yield
