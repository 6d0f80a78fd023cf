"""One look at a network that runs: in which order, what is added to which layer's output, which BatchNorm follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
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
        largest: Bytes of the largest tensor until the last of them has run.
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
        self.largest = 0

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
        self.largest = max(self.largest, *(t.numel() * t.element_size() for t in results))
        return result


class _Watch:
    """What hooks on the modules note while a network runs."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self._modules = dict(model.named_modules())
        self._asked = set(names)
        self._seen = Survey()
        weights = {id(w): n for n in self._asked if (w := self._modules[n]._parameters.get("weight")) is not None}
        self.functions = _Functions(weights, self._seen)
        self._runs: Counter[str] = Counter()
        self._places: dict[_Key, list[tuple[str, str, int]]] = {}
        self._started: dict[str, int] = {}
        self._ends: dict[_Key, str] = {}  # of outputs of the layers that were asked for, unchanged so far
        self._first: dict[str, _Key] = {}
        self._copied: dict[str, Tensor] = {}
        self._clock = 0

    def hook(self, handles: list[RemovableHandle]) -> None:
        """Listen to every module; the handles are known even if that fails half-way."""
        for name, module in self._modules.items():
            handles.append(module.register_forward_pre_hook(partial(self._before, name), with_kwargs=True))
            handles.append(module.register_forward_hook(partial(self._after, name), with_kwargs=True))

    @contextmanager
    def _unheard(self) -> Iterator[None]:
        """What a hook does itself is none of the network's."""
        self.functions.listening = False
        try:
            yield
        finally:
            self.functions.listening = True

    def _note(self, tensor: Tensor, name: str, side: str) -> _Key:
        self._clock += 1
        self.functions.kept.append(tensor)
        self._places.setdefault(_key(tensor), []).append((name, side, self._clock))
        return _key(tensor)

    def _before(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._runs[name] += 1
        inputs = input_of(args, kwargs)
        if inputs is None:
            return
        key = self._note(inputs, name, "input")
        self._started[name] = self._clock
        if name in self._asked:
            with self._unheard():
                self._copied[name] = inputs.detach().clone()
        if isinstance(module, _BatchNorm) and module.running_var is not None and key in self._ends:
            reader = self._ends[key]
            if self._first[reader] == key:
                self._seen.norms[reader] = name

    def _after(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        inputs = input_of(args, kwargs)
        key = self._note(output, name, "output")
        if name in self._asked and name in self._copied:
            self._seen.largest = self.functions.largest
            self._ends[key], self._first[name] = name, key
            with self._unheard():
                self._seen.calls[name] = self._copied[name], output.detach().clone()
        elif inputs is not None and (reader := self._ends.get(_key(inputs))) is not None:
            # its BatchNorm, or what passes it on as it is, such as dropout in eval mode
            with self._unheard():
                same = inputs.shape == output.shape and torch.equal(inputs, output)
            if self._seen.norms.get(reader) == name or same:
                self._ends[key] = reader

    def result(self) -> Survey:
        """What was seen, when the network has run."""
        seen, runs, taken = self._seen, self._runs, self.functions.taken
        seen.runs = Counter({name: runs[name] for name in self._asked if runs[name]})
        seen.order = sorted(seen.calls, key=self._started.__getitem__)
        for name, norm in [*seen.norms.items()]:
            if runs[norm] != 1 or taken[self._first[name]] > 1:  # it shifts others as well, or others see no shift
                del seen.norms[name]
        for one, other in self.functions.additions:
            for end, added in ((one, other), (other, one)):
                reader = self._ends.get(end)
                if reader is not None and reader not in seen.skips:
                    skip = self._known_before(added, self._started[reader])
                    if skip is not None:
                        seen.skips[reader] = skip
        return seen

    def _known_before(self, key: _Key, started: int) -> Skip | None:
        """Where a tensor was before a layer ran; None if nowhere that tells it."""
        return next(
            (
                (name, side)
                for name, side, time in self._places.get(key, [])
                if time < started and self._runs[name] == 1
            ),
            None,
        )


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
    watch = _Watch(model, names)
    handles: list[RemovableHandle] = []
    try:
        watch.hook(handles)
        with torch.no_grad(), watch.functions:
            run()
    finally:
        remove_hooks(handles)
    return watch.result()


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The first argument of a module's call, if it is a tensor."""
    first = args[0] if args else next(iter(kwargs.values()), None)
    return first if isinstance(first, Tensor) else None
