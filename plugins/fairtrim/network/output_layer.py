"""The linear output layer of a network: where it is, what goes into it, and thresholds written into its bias."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from fairtrim.data.batches import Batch
from fairtrim.errors import InputError, UnsupportedModelError
from fairtrim.preservation import preserved_model

from .scored_network import ScoredNetwork

__all__ = ["FeatureTap", "LinearHead", "find_head", "fold_threshold"]


class _Selections(TorchFunctionMode):
    """Notes what is picked out of which tensor by an index while a network runs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Tensor, Any, Tensor]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is Tensor.__getitem__ and _keeps_last_axis(args[1], args[0].ndim):
            self.found.append((args[0], args[1], output))
        return output


def _keeps_last_axis(index: Any, n_axes: int) -> bool:
    entries = index if isinstance(index, tuple) else (index,)
    if not entries or entries[-1] is Ellipsis or (isinstance(entries[-1], slice) and entries[-1] == slice(None)):
        return True
    taken = sum(0 if entry is None else _axes(entry) for entry in entries)
    return taken < n_axes and all(entry is not Ellipsis for entry in entries)


def _axes(entry: Any) -> int:
    return entry.ndim if isinstance(entry, Tensor) and entry.dtype == torch.bool else 1


def _same(tensor: Tensor, scores: Tensor) -> bool:
    return tensor.shape == scores.shape and tensor.data_ptr() == scores.data_ptr()


class FeatureTap:
    """Keeps the penultimate features of the last forward pass: the inputs of the layer that gives the scores.

    Without a ``feature_layer`` it is the linear layer whose output is what the network returns, which the first forward
    pass finds; or of whose output (N, T, K) it returns what an index picks, as the last token of each text.
    """

    def __init__(self, model: nn.Module, feature_layer: str | None = None) -> None:
        modules = dict(model.named_modules())
        if feature_layer is not None and feature_layer not in modules:
            raise InputError(
                f"feature_layer={feature_layer!r} is not a module of the network; its linear layers are "
                f"{[name for name, module in modules.items() if isinstance(module, nn.Linear)]}"
            )
        self._named = feature_layer is not None
        self._candidates = {
            name: module
            for name, module in modules.items()
            if name == feature_layer or (feature_layer is None and isinstance(module, nn.Linear))
        }
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}
        self._selections: list[tuple[Tensor, Any, Tensor]] = []

    def _note(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            self._seen[name] = args[0] if args else next(iter(kwargs.values())), output

        return hook

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Listen for the length of the block."""
        handles: list[RemovableHandle] = []
        try:
            for name, module in self._candidates.items():
                handles.append(module.register_forward_hook(self._note(name), with_kwargs=True))
            with _Selections() as selections:
                self._selections = selections.found
                yield
        finally:
            for handle in handles:
                handle.remove()
            self._seen, self._selections = {}, []

    def index(self, name: str, scores: Tensor) -> Any:
        """What picks these scores, (N, K), out of a layer's output; None if they are that output, or not of it."""
        output = self._seen[name][1]
        if not isinstance(output, Tensor) or _same(output, scores):
            return None
        picked = (
            index for source, index, result in self._selections if _same(source, output) and _same(result, scores)
        )
        return next(picked, None)

    def _gave(self, name: str, scores: Tensor) -> bool:
        return self._named or _same(self._seen[name][1], scores) or self.index(name, scores) is not None

    def features(self, scores: Tensor) -> Tensor:
        """The features, (N, D), that gave these scores, (N, K), of the last forward pass."""
        names = [name for name in self._seen if self._gave(name, scores)]
        if len(names) == 1:
            inputs, index = self._seen[names[0]][0], self.index(names[0], scores)
            found = inputs if index is None else inputs[index]
            if found.shape[0] == len(scores):
                return found.flatten(1)
        raise UnsupportedModelError(
            "the penultimate features can't be found: no linear layer's output is what the network returns; name "
            "the layer whose inputs they are with feature_layer="
        )

    def head(self, scores: Tensor) -> str | None:
        """Name of the layer that gave these scores, (N, K), of the last forward pass; None if it can't be found."""
        names = [
            name
            for name, (_, output) in self._seen.items()
            if self._gave(name, scores) or output.data_ptr() == scores.data_ptr()
        ]
        return names[0] if len(names) == 1 else None


@dataclass(frozen=True)
class LinearHead:
    """The output layer, its name in the network, and the tap that finds its inputs."""

    name: str
    module: nn.Linear
    tap: FeatureTap

    def features(self, network: ScoredNetwork, batch: Batch) -> tuple[Tensor, Tensor]:
        """Inputs of the layer for one batch, (N, D), and the scores, (N, K)."""
        with self.tap.attached():
            scores = network.scores(batch)
            return self.tap.features(scores), scores

    def theta(self) -> Tensor:
        """Weight and bias side by side, (K, D + 1) float64 on the CPU."""
        return torch.cat([self.module.weight, self.module.bias[:, None]], 1).detach().cpu().double()

    def write(self, theta: Tensor) -> None:
        """Put weight and bias, (K, D + 1), back, in the layer's own precision."""
        own = theta.to(self.module.weight.dtype).to(self.module.weight.device)  # not every device has float64
        with torch.no_grad():
            self.module.weight.copy_(own[:, :-1])
            self.module.bias.copy_(own[:, -1])


def find_head(network: ScoredNetwork, batch: Batch) -> LinearHead:
    """Find the linear layer whose outputs the network returns; the network is left as it was.

    Refused: none, one without bias, or one that is used for other outputs as well.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> find_head(ScoredNetwork(network), Batch(torch.ones(5, 3), torch.zeros(5), None, 0)).name
        '2'
    """
    model = network.model
    tap = FeatureTap(model)
    with preserved_model(model), torch.no_grad(), tap.attached():
        scores = network.scores(batch)
        name = tap.head(scores)
    if name is None:
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        raise UnsupportedModelError(
            "the network has no linear head: what it returns is not the output of one of its linear layers "
            f"({linear}), and a threshold can't be written into it; expected logits. If it ends in a softmax or "
            "sigmoid, leave that to the loss; if scores are part of what it returns, pass output_transform; if they "
            "are those of a few tokens of a language model, make their rows a linear head of their own"
        )
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear)
    if torch.nn.utils.parametrize.is_parametrized(module) or "weight" not in module._parameters:
        raise UnsupportedModelError(
            f"the weights of the head {name!r} are computed from others; expected plain parameters: "
            "torch.nn.utils.parametrize.remove_parametrizations(head, 'weight') first"
        )
    if module.bias is None:
        raise UnsupportedModelError(
            f"the head {name!r} has no bias, so a threshold can't be written into it; expected one: "
            f"model.get_submodule({name!r}).bias = nn.Parameter(torch.zeros({module.out_features}))"
        )
    if module.out_features != scores.shape[1]:
        raise UnsupportedModelError(
            f"the head {name!r} has {module.out_features} outputs and the network {scores.shape[1]} scores; expected "
            "as many"
        )
    _check_decides(network, name, module, batch)
    return LinearHead(name, module, FeatureTap(model, name))


def _check_decides(network: ScoredNetwork, name: str, module: nn.Linear, batch: Batch) -> None:
    """Refuse a head whose outputs are used twice, or changed before they are returned."""
    calls: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(lambda _, args, output: calls.append((args[0], output.detach().clone())))
    tap = FeatureTap(network.model, name)
    try:
        with preserved_model(network.model), torch.no_grad(), tap.attached():
            scores = network.scores(batch)
            index = tap.index(name, scores)
    finally:
        handle.remove()
    if len(calls) != 1:
        raise UnsupportedModelError(f"the head {name!r} is called {len(calls)} times for one batch; expected once")
    inputs, output = calls[0] if index is None else (calls[0][0][index], calls[0][1][index])
    if inputs.ndim != 2 or output.numel() != scores.numel():
        raise UnsupportedModelError(
            f"the head {name!r} gets inputs of shape {tuple(inputs.shape)} and gives more than the scores; expected "
            "(N, D): select the token or place before the head, not after it"
        )
    if not torch.equal(output.reshape(scores.shape), scores) and bool(torch.isfinite(output).all()):
        raise UnsupportedModelError(
            f"the outputs of the head {name!r} are changed before the network returns them, so that a threshold can't "
            "be written into its bias; expected the head to come last"
        )


def fold_threshold(head: nn.Linear, threshold: float) -> None:
    """Write a threshold on the margin of label 1 into the bias, so that the largest score decides alike.

    The layer has one logit or two scores, and is changed in place.

    Example:
        >>> head = nn.Linear(1, 2)
        >>> with torch.no_grad():
        ...     _ = head.bias.zero_()
        >>> fold_threshold(head, 3.0)
        >>> head.bias.tolist()
        [1.5, -1.5]
    """
    with torch.no_grad():
        shift = [-threshold] if head.out_features == 1 else [threshold / 2, -threshold / 2]
        head.bias.add_(torch.tensor(shift, dtype=head.bias.dtype, device=head.bias.device))
