"""Leave the network and the caller's random state as they were found."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = ["insist", "preserved_model", "preserved_random_state", "remove_hooks", "seeded"]


def insist(restore: Callable[[], None]) -> None:
    """Put something back, even if an interrupt comes while that is being done.

    When a worker of a DataLoader dies, one error comes with the data and another, a little later, with the signal.

    Args:
        restore: Puts it back; twice does no harm.
    """
    try:
        restore()
    except BaseException:
        restore()
        raise


def remove_hooks(handles: Iterable[RemovableHandle]) -> None:
    """Take one's own hooks off a network.

    Args:
        handles: Of the hooks.
    """
    handles = list(handles)

    def remove() -> None:
        for handle in handles:
            handle.remove()

    insist(remove)


@contextmanager
def preserved_random_state(loader: Any = None) -> Iterator[None]:
    """Restore the random states of torch, numpy and Python, and the loader's own generator, on leaving.

    Iterating over a DataLoader draws its base seed from a generator even without shuffling; transforms may
    draw from any of the three libraries.

    Args:
        loader: A DataLoader whose ``generator``, and whose sampler's, are restored as well.

    Yields:
        Nothing; the block may draw as it likes.
    """
    owners = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    generators = {id(g): g for owner in owners if isinstance(g := getattr(owner, "generator", None), torch.Generator)}
    states = [(generator, generator.get_state()) for generator in generators.values()]
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    device_states = [(device, torch.cuda.get_rng_state(device)) for device in devices]

    def restore() -> None:
        for generator, state in states:
            generator.set_state(state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        for device, state in device_states:
            torch.cuda.set_rng_state(state, device)

    try:
        yield
    finally:
        insist(restore)


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Seed torch, numpy and Python from a generator for the length of the block, and restore them afterwards.

    Args:
        generator: Source of the seed; each block takes another.

    Yields:
        Nothing; inside, dropout and transforms draw reproducibly.
    """
    seed = int(torch.randint(2**31, (), generator=generator))
    with preserved_random_state():
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield


@contextmanager
def preserved_model(model: nn.Module) -> Iterator[None]:
    """Put the network in eval mode and restore training flags, buffers, ``.grad`` and ``requires_grad``.

    Args:
        model: Any network; its submodules' flags are restored one by one, so that a frozen BatchNorm stays
            frozen.

    Yields:
        Nothing; inside, ``model.training`` is False everywhere.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).train()
        >>> with preserved_model(network):
        ...     network.training
        False
        >>> network.training
        True
    """
    training = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer._version, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    parameters = [(parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()]

    def restore() -> None:
        for module, flag in training:
            module.training = flag
        with torch.no_grad():
            for module, name, buffer, version, value in buffers:
                if buffer._version != version:
                    buffer.copy_(value)
                module._buffers[name] = buffer  # the network may have assigned another one
        for parameter, gradient, requires_gradient in parameters:
            parameter.grad = gradient
            if parameter.requires_grad != requires_gradient:
                parameter.requires_grad_(requires_gradient)

    try:
        model.eval()
        for module in model.modules():  # a network may override train()
            module.training = False
        for parameter, _, _ in parameters:
            parameter.grad = None  # a backward pass of the caller's code would add to it in place
        yield
    finally:
        insist(restore)
