"""Leave the network and the caller's random state as they were found."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .arguments import drawn_seed

__all__ = [
    "every_module_in_eval_mode",
    "in_mode",
    "insist",
    "preserved_attributes",
    "preserved_model",
    "preserved_random_state",
    "remove_hooks",
    "seeded",
    "undisturbed",
]


def insist(restore: Callable[[], None]) -> None:
    """Put something back, even if an interrupt comes while that is being done.

    When a worker of a DataLoader dies, one error comes with the data and another, a little later, with the signal.
    """
    try:
        restore()
    except BaseException:
        restore()
        raise


def remove_hooks(handles: Iterable[RemovableHandle]) -> None:
    """Take one's own hooks off a network."""
    handles = list(handles)

    def remove() -> None:
        for handle in handles:
            handle.remove()

    insist(remove)


def _devices_in_use() -> list[Any]:
    """Modules of torch for the accelerators that draw; one that nobody has touched is not started by the question."""
    names = ("cuda", "mps", "xpu", "mtia", "hpu", torch._C._get_privateuse1_backend_name())
    modules = [getattr(torch, name, None) for name in names]
    return [
        module
        for module in modules
        if module is not None
        and hasattr(module, "get_rng_state")
        and (module.is_initialized if hasattr(module, "is_initialized") else module.is_available)()
    ]


@contextmanager
def preserved_random_state(loader: Any = None) -> Iterator[None]:
    """Restore the random states of torch on all devices, numpy and Python, and the loader's own generator, on leaving.

    Iterating over a DataLoader draws its base seed from a generator even without shuffling; transforms may
    draw from any of the three libraries.

    Of a DataLoader the ``generator``, and its sampler's, are restored as well.
    """
    owners = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    generators = {id(g): g for owner in owners if isinstance(g := getattr(owner, "generator", None), torch.Generator)}
    states = [(generator, generator.get_state()) for generator in generators.values()]
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    modules = [(module, device) for module in _devices_in_use() for device in range(module.device_count())]
    device_states = [(module, device, module.get_rng_state(device)) for module, device in modules]

    def restore() -> None:
        for generator, state in states:
            generator.set_state(state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        for module, device, state in device_states:
            module.set_rng_state(state, device)

    try:
        yield
    finally:
        insist(restore)


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Seed torch, numpy and Python from a generator for the length of the block, and restore them afterwards.

    Each block takes another seed; inside, dropout and transforms draw reproducibly.
    """
    seed = drawn_seed(generator)
    with preserved_random_state():
        torch.default_generator.manual_seed(seed)
        # torch.manual_seed would leave a seed behind for devices that nobody has touched yet
        for module in _devices_in_use():
            (module.manual_seed_all if hasattr(module, "manual_seed_all") else module.manual_seed)(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield


def every_module_in_eval_mode(model: nn.Module) -> None:
    """Put all modules in eval mode for good, even if the network overrides ``train``."""
    for module in model.modules():
        module.training = False


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put the network in eval or training mode, and restore the flags of its modules one by one.

    In eval mode all modules are, even if the network overrides ``train``.

    Example:
        >>> network = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with in_mode(network, training=False):
        ...     network.training
        False
        >>> [module.training for module in network.modules()]
        [True, True, False]
    """
    flags = [(module, module.training) for module in model.modules()]

    def restore() -> None:
        for module, flag in flags:
            module.training = flag

    try:
        model.train(training)
        if not training:
            every_module_in_eval_mode(model)
        yield
    finally:
        insist(restore)


@contextmanager
def preserved_model(model: nn.Module) -> Iterator[None]:
    """Put the network in eval mode and restore training flags, buffers, ``.grad`` and ``requires_grad``.

    Flags are restored one by one, so that a frozen BatchNorm stays frozen.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).train()
        >>> with preserved_model(network):
        ...     network.training
        False
        >>> network.training
        True
    """
    buffers = [
        (module, name, buffer, buffer._version, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    parameters = [(parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()]

    def restore() -> None:
        with torch.no_grad():
            for module, name, buffer, version, value in buffers:
                if buffer._version != version:
                    buffer.copy_(value)
                module._buffers[name] = buffer  # the network may have assigned another one
        _restore_parameters(parameters)

    with in_mode(model, training=False):
        try:
            for parameter, _, _ in parameters:
                parameter.grad = None  # a backward pass of the caller's code would add to it in place
            yield
        finally:
            insist(restore)


def _restore_parameters(parameters: Iterable[tuple[nn.Parameter, Tensor | None, bool]]) -> None:
    for parameter, gradient, requires_gradient in parameters:
        parameter.grad = gradient
        if parameter.requires_grad != requires_gradient:
            parameter.requires_grad_(requires_gradient)


@contextmanager
def preserved_attributes(model: nn.Module) -> Iterator[None]:
    """Give modules back what they keep outside of buffers, such as a running mean in a plain attribute.

    Tensors, lists, dicts and sets among them get their contents back, too.

    Example:
        >>> network = nn.Identity()
        >>> network.calls, network.seen = 0, []
        >>> with preserved_attributes(network):
        ...     network.calls += 1
        ...     network.seen.append(network.calls)
        >>> network.calls, network.seen
        (0, [])
    """
    machinery = vars(nn.Module()).keys()
    before = []
    for module in model.modules():
        own = {name: value for name, value in vars(module).items() if name not in machinery}
        tensors = [(t, t._version, t.detach().clone()) for t in own.values() if isinstance(t, Tensor)]
        containers = [(c, copy.copy(c)) for c in own.values() if type(c) in (list, dict, set)]
        before.append((module, own, tensors, containers))

    def restore() -> None:
        for module, own, tensors, containers in before:
            for name in [name for name in vars(module) if name not in machinery and name not in own]:
                del vars(module)[name]
            vars(module).update(own)
            for tensor, version, value in tensors:
                if tensor._version != version:
                    with torch.no_grad():
                        tensor.copy_(value)
            for container, held in containers:
                container.clear()
                container.extend(held) if isinstance(container, list) else container.update(held)

    try:
        yield
    finally:
        insist(restore)


@contextmanager
def undisturbed(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Run the network in eval or training mode, and leave nothing of it behind.

    Buffers are copies inside, so that not even their versions change: whoever remembers the network by these still
    knows it. Flags, ``.grad``, ``requires_grad``, plain attributes and random states come back.

    Example:
        >>> norm = nn.BatchNorm1d(3)
        >>> with undisturbed(norm, training=True):
        ...     _ = norm(torch.arange(6.0).reshape(2, 3))
        >>> norm.running_mean.tolist(), norm.training
        ([0.0, 0.0, 0.0], True)
    """
    buffers = [(module._buffers, dict(module._buffers)) for module in model.modules() if module._buffers]
    parameters = [(parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()]
    copies: dict[int, Tensor] = {}

    def restore() -> None:
        _restore_parameters(parameters)
        for held, own in buffers:
            held.clear()
            held.update(own)

    with preserved_random_state(), preserved_attributes(model), in_mode(model, training=training):
        try:
            for parameter, _, _ in parameters:
                parameter.grad = None  # a backward pass of the caller's code would add to it in place
            for held, own in buffers:
                for name, buffer in own.items():
                    if buffer is not None:
                        if id(buffer) not in copies:
                            copies[id(buffer)] = buffer.detach().clone()
                        held[name] = copies[id(buffer)]
            yield
        finally:
            insist(restore)
