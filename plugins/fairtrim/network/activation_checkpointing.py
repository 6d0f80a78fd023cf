"""Activation checkpointing in eval mode: blocks are computed again in the backward pass instead of being kept.

Switches of other libraries, such as ``gradient_checkpointing_enable`` of Hugging Face, do nothing in eval mode, in
which networks are scored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from fairtrim.arguments import did_you_mean, refuse_string
from fairtrim.errors import InputError
from fairtrim.preservation import insist

__all__ = ["activation_checkpointing", "blocks_of", "is_checkpointed", "trial_pass", "uncounted"]

_MARK = "fairtrim_checkpoint"
_on_trial: ContextVar[bool] = ContextVar("on_trial", default=False)
_inside: ContextVar[bool] = ContextVar("inside", default=False)


def uncounted() -> bool:
    """Whether what runs now is not to be added up: it runs again, in a backward pass, or on trial."""
    return bool(torch._C._current_graph_task_id() != -1) or _on_trial.get()


def blocks_of(model: nn.Module) -> list[str]:
    """Names of the entries of a network's longest ``nn.ModuleList``; none where it has no list."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    longest = max(lists, key=lambda name: len(lists[name]), default="")
    return [f"{longest}.{child}".lstrip(".") for child, _ in lists[longest].named_children()] if lists else []


def is_checkpointed(model: nn.Module) -> bool:
    """Whether the network runs inside of ``activation_checkpointing``."""
    return any(hasattr(vars(module).get("forward"), _MARK) for module in model.modules())


@contextmanager
def trial_pass() -> Iterator[None]:
    """Run a network only to see what it would keep: without ``activation_checkpointing``, and counted by nobody."""
    token = _on_trial.set(True)
    try:
        yield
    finally:
        _on_trial.reset(token)


@contextmanager
def activation_checkpointing(model: nn.Module, blocks: Sequence[str] | None = None) -> Iterator[None]:
    """Keep of each block only what goes in, for the length of the block of code, and compute the rest again.

    One more forward pass for every backward one, and memory for one block's activations in place of all. The numbers
    are the same to the last bit where the network's operations are deterministic. Caches of keys and values are
    switched off inside the blocks: a second pass would write into them again. Checkpoints are
    ``torch.utils.checkpoint``'s, not re-entrant.

    Args:
        model: The network; its forward functions come back at the end.
        blocks: Names of the modules that are computed again; default: the entries of its longest ``nn.ModuleList``,
            such as the layers of a transformer.

    Yields:
        Nothing; whatever runs the network inside, such as ``collect_damage`` or ``importance.fit``, uses less memory.

    Raises:
        InputError: A name is not a module of the network, or lies inside another one's block, or there is no list.

    Example:
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layers = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.Tanh()) for _ in range(3))
        ...     def forward(self, x):
        ...         for layer in self.layers:
        ...             x = layer(x)
        ...         return x
        >>> network, x = Net(), torch.ones(1, 2, requires_grad=True)
        >>> (plain,) = torch.autograd.grad(network(x).sum(), x)
        >>> with activation_checkpointing(network):
        ...     (again,) = torch.autograd.grad(network(x).sum(), x)
        >>> torch.equal(plain, again)
        True
    """
    modules = dict(model.named_modules())
    if blocks is None and not (blocks := blocks_of(model)):
        raise InputError("the network has no nn.ModuleList of blocks; name them: blocks=['layer1', 'layer2', ...]")
    refuse_string("blocks", blocks)
    for name in blocks:
        if name not in modules:
            raise InputError(f"blocks names {name!r}, which is no module of the network{did_you_mean(name, modules)}")
        if outer := next((other for other in blocks if name.startswith(f"{other}.")), ""):
            raise InputError(f"{name!r} lies inside of {outer!r}; expected blocks of which none is part of another")
    own = {name: vars(modules[name]).get("forward") for name in blocks}

    def restore() -> None:
        for name, forward in own.items():
            del modules[name].forward  # the instance's, so that the class's shows again
            if forward is not None:
                modules[name].forward = forward

    for name in blocks:
        modules[name].forward = _checkpointed(modules[name].forward)
    try:
        yield
    finally:
        insist(restore)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    from torch.utils.checkpoint import checkpoint  # of torch 2.6 it brings sympy along, half a second

    def whole(*args: Any, **kwargs: Any) -> Any:
        token = _inside.set(True)  # blocks inside have no checkpoints: in the second pass they have none either
        try:
            return forward(*args, **kwargs)
        finally:
            _inside.reset(token)

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() or uncounted() or _inside.get():
            return forward(*args, **kwargs)
        args = tuple(None if _is_cache(value) else value for value in args)
        kwargs = {key: None if _is_cache(value) else value for key, value in kwargs.items()}
        if kwargs.get("use_cache"):
            kwargs["use_cache"] = False
        return checkpoint(whole, *args, use_reentrant=False, **kwargs)

    setattr(call, _MARK, True)
    return call


def _is_cache(value: Any) -> bool:
    """Whether it is a cache of keys and values of transformers, which is known by its method."""
    return hasattr(value, "get_seq_length") and hasattr(value, "update")
