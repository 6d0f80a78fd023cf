"""One look at a network that runs: in which order, what is added to which layer's output, which BatchNorm follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from fairtrim.preservation import remove_hooks

__all__ = ["Skip", "Survey", "norm_scale", "survey"]

Skip = tuple[str, str]
"""A module and which side of it, ``"input"`` or ``"output"``, holds what is added."""

_Key = tuple[int, int]

_ADDITIONS = frozenset(
    {
        *(torch.add, torch.Tensor.add, torch.Tensor.add_, torch.Tensor.__add__, torch.Tensor.__radd__),
        torch.Tensor.__iadd__,
    }
)


@dataclass
class Survey:
    """What was seen of the layers that were asked for.

    Attributes:
        order: Their names in the order of computation.
        runs: How often each ran.
        weight_uses: How often each one's weight was used.
        calls: Inputs and output of each one's last run.
        norms: The BatchNorm with running statistics that takes each one's output, and nothing else does.
        skips: What is added to each one's output, behind the BatchNorm if there is one, and known before it runs.
        largest: Bytes of the largest tensor.
    """

    order: list[str] = field(default_factory=list)
    runs: Counter[str] = field(default_factory=Counter)
    weight_uses: Counter[str] = field(default_factory=Counter)
    calls: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)
    skips: dict[str, Skip] = field(default_factory=dict)
    largest: int = 0


def norm_scale(norm: nn.Module | None) -> Tensor | None:
    """By what a BatchNorm in eval mode multiplies each channel.

    Args:
        norm: The layer, or None.

    Returns:
        γ / √(σ² + ε), (C,); None without a layer.

    Example:
        >>> norm_scale(nn.BatchNorm1d(2, eps=0.0)).tolist()
        [1.0, 1.0]
    """
    if norm is None:
        return None
    assert isinstance(norm, _BatchNorm) and norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    return scale if norm.weight is None else scale * norm.weight.detach()


def _key(tensor: Tensor) -> _Key:
    """What a tensor is until something changes it in place."""
    return id(tensor), 0 if tensor.is_inference() else tensor._version


class _Functions(TorchFunctionMode):
    """Notes additions, who takes a tensor, and where weights are used."""

    def __init__(self, weights: dict[int, str], seen: Survey) -> None:
        super().__init__()
        self._weights, self._seen = weights, seen
        self.kept: list[Tensor] = []  # so that no other tensor gets its id
        self.additions: list[tuple[_Key, _Key]] = []
        self.taken: Counter[_Key] = Counter()
        self.listening = True

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not self.listening:
            return func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        keys = [_key(tensor) for tensor in tensors]
        adds = func in _ADDITIONS and len(tensors) == 2 and not kwargs and tensors[0].shape == tensors[1].shape
        result = func(*args, **(kwargs or {}))
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not results or getattr(func, "__name__", "") == "__get__":
            return result
        self.kept += [*tensors, *results]
        self.taken.update(set(keys))
        for tensor in tensors:
            if (name := self._weights.get(id(tensor))) is not None:
                self._seen.weight_uses[name] += 1
        if adds:
            self.additions.append((keys[0], keys[1]))
        self._seen.largest = max(self._seen.largest, *(t.numel() * t.element_size() for t in results))
        return result


def survey(model: nn.Module, run: Callable[[], Any], names: Iterable[str]) -> Survey:
    """Run a network once, on a few samples, and look at some of its layers.

    Args:
        model: The network, in eval mode.
        run: Its forward pass.
        names: The layers.

    Returns:
        What was seen.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1)).eval()
        >>> seen = survey(network, lambda: network(torch.ones(4, 2)), ["3", "0"])
        >>> seen.order, seen.norms
        (['0', '3'], {'0': '1'})
    """
    modules = dict(model.named_modules())
    asked = set(names)
    seen = Survey()
    weights = {id(w): name for name in asked if (w := modules[name]._parameters.get("weight")) is not None}
    functions = _Functions(weights, seen)
    runs: Counter[str] = Counter()
    places: dict[_Key, list[tuple[str, str, int]]] = {}
    started: dict[str, int] = {}
    ends: dict[_Key, str] = {}  # of outputs of the layers that were asked for, unchanged so far
    first: dict[str, _Key] = {}
    copied: dict[str, Tensor] = {}
    clock = 0

    @contextmanager
    def unheard() -> Iterator[None]:
        """What a hook does itself is none of the network's."""
        functions.listening = False
        try:
            yield
        finally:
            functions.listening = True

    def note(tensor: Tensor, name: str, side: str) -> _Key:
        nonlocal clock
        clock += 1
        functions.kept.append(tensor)
        places.setdefault(_key(tensor), []).append((name, side, clock))
        return _key(tensor)

    def before(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            runs[name] += 1
            inputs = input_of(args, kwargs)
            if inputs is None:
                return
            key = note(inputs, name, "input")
            started[name] = clock
            if name in asked:
                with unheard():
                    copied[name] = inputs.detach().clone()
            if isinstance(module, _BatchNorm) and module.running_var is not None and key in ends:
                reader = ends[key]
                if first[reader] == key:
                    seen.norms[reader] = name

        return hook

    def after(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            inputs = input_of(args, kwargs)
            key = note(output, name, "output")
            if name in asked and name in copied:
                ends[key], first[name] = name, key
                with unheard():
                    seen.calls[name] = copied[name], output.detach().clone()
            elif inputs is not None and (reader := ends.get(_key(inputs))) is not None:
                # its BatchNorm, or what passes it on as it is, such as dropout in eval mode
                with unheard():
                    same = inputs.shape == output.shape and torch.equal(inputs, output)
                if seen.norms.get(reader) == name or same:
                    ends[key] = reader

        return hook

    handles: list[RemovableHandle] = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
            handles.append(module.register_forward_hook(after(name), with_kwargs=True))
        with torch.no_grad(), functions:
            run()
    finally:
        remove_hooks(handles)
    seen.runs = Counter({name: runs[name] for name in asked if runs[name]})
    seen.order = sorted(seen.calls, key=started.__getitem__)
    for name, norm in [*seen.norms.items()]:
        if runs[norm] != 1 or functions.taken[first[name]] > 1:  # it shifts others as well, or others see no shift
            del seen.norms[name]
    for one, other in functions.additions:
        for end, skip in ((one, other), (other, one)):
            reader = ends.get(end)
            if reader is None or reader in seen.skips:
                continue
            for module_name, side, time in places.get(skip, []):
                if time < started[reader] and runs[module_name] == 1:
                    seen.skips[reader] = module_name, side
                    break
    return seen


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The first argument of a module's call, if it is a tensor."""
    first = args[0] if args else next(iter(kwargs.values()), None)
    return first if isinstance(first, Tensor) else None
