"""The last blocks of a network that is a stack of blocks: which layers write them, and running from there on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fairtrim.errors import InputError, UnsupportedModelError
from fairtrim.preservation import remove_hooks

__all__ = ["LateBlocks", "is_linear", "last_blocks", "late_parameters", "stack_of_blocks"]


def is_linear(module: nn.Module) -> bool:
    """Whether it is torch's linear layer, or Hugging Face's Conv1D, whose weight is (inputs, outputs)."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def stack_of_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The longest list of modules that all hold linear layers, as transformers have; empty without any.

    Args:
        model: The network.

    Returns:
        Name and module of each.

    Example:
        >>> network = nn.Sequential(nn.Embedding(5, 2), nn.ModuleList([nn.Sequential(nn.Linear(2, 2))] * 3))
        >>> [name for name, _ in stack_of_blocks(network)]
        ['1.0', '1.1', '1.2']
    """
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        blocks = list(module) if isinstance(module, nn.ModuleList) else []
        if len(blocks) > len(found) and all(any(map(is_linear, block.modules())) for block in blocks):
            found = [(f"{name}.{number}", block) for number, block in enumerate(blocks)]
    return found


def last_blocks(model: nn.Module, n_blocks: int) -> list[tuple[str, nn.Module]]:
    """The last blocks of ``stack_of_blocks``.

    Args:
        model: The network.
        n_blocks: How many.

    Returns:
        Name and module of each, in the order of computation.

    Raises:
        InputError: There are fewer.
        UnsupportedModelError: There is no stack of blocks.

    Example:
        >>> network = nn.Sequential(nn.Embedding(5, 2), nn.ModuleList([nn.Sequential(nn.Linear(2, 2))] * 3))
        >>> [name for name, _ in last_blocks(network, 2)]
        ['1.1', '1.2']
    """
    blocks = stack_of_blocks(model)
    if not blocks:
        linear = [name for name, module in model.named_modules() if is_linear(module)]
        raise UnsupportedModelError(
            "the network holds no list of blocks with linear layers; expected edited_layers=, the names of those to "
            f"edit, some of {linear}, or layers='all' without n_blocks"
        )
    if n_blocks > len(blocks):
        raise InputError(f"n_blocks={n_blocks}, of a network of {len(blocks)} blocks; expected at most as many")
    return blocks[-n_blocks:]


def late_parameters(model: nn.Module, n_blocks: int) -> dict[str, nn.Parameter]:
    """The parameters of the last blocks, without those that are used elsewhere as well.

    Args:
        model: The network.
        n_blocks: How many blocks.

    Returns:
        Name -> parameter.

    Raises:
        InputError: There are fewer blocks.
        UnsupportedModelError: There is no stack of blocks.

    Example:
        >>> blocks = nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(3))
        >>> list(late_parameters(nn.Sequential(nn.Embedding(5, 2), blocks), 1))
        ['1.2.0.weight', '1.2.0.bias']
    """
    late, owners = last_blocks(model, n_blocks), _owners(model)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if owners[id(parameter)] == 1 and any(_within(name, block) for block, _ in late)
    }


class LateBlocks:
    """Some linear layers late in a network, and what the blocks before them gave, kept for each batch.

    Only for a copy: while a batch runs from what was kept, the blocks before are passed over.

    Args:
        model: The network, in eval mode.
        layers: Names of the layers to edit; None for the linear layer that each of the last blocks calls last, with
            which transformers write what their block adds.
        n_blocks: How many blocks ``None`` stands for.
        run: Runs the network on a batch.

    Attributes:
        layers: Name -> layer, in the order of computation.

    Raises:
        InputError: A name is not that of a linear layer, or of one whose weight is used elsewhere, or there are fewer
            blocks.
        UnsupportedModelError: There is no stack of blocks, and no names.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str] | None, n_blocks: int, run: Callable[[], Tensor]
    ) -> None:
        self._model = model
        blocks = stack_of_blocks(model)
        linear = {name: module for name, module in model.named_modules() if is_linear(module)}
        order = _called(linear, run)
        whole = layers is None
        if layers is None:
            late = [[name for name in order if _within(name, block)][-1:] for block, _ in last_blocks(model, n_blocks)]
            layers = [name for names in late for name in names]
        owners = _owners(model)
        for name in layers:
            if name not in linear or name not in order:
                raise InputError(f"edited_layers has {name!r}; expected linear layers that run: some of {order}")
            if owners[id(linear[name].weight)] > 1:
                raise InputError(
                    f"the weight of {name!r} is used elsewhere as well, as that of a head tied to the embeddings is: "
                    "editing the one would edit the other; expected other layers, e.g. edited_layers=None"
                )
        self.layers = {name: linear[name] for name in order if name in layers}
        within = [k for k, (block, _) in enumerate(blocks) if any(_within(name, block) for name in layers)]
        outside = [name for name in layers if not any(_within(name, block) for block, _ in blocks)]
        start = len(blocks) - n_blocks if whole else 0 if outside or not within else min(within)
        self._before = [block for _, block in blocks[:start]]
        if any("forward" in vars(block) for block in self._before):  # wrapped by somebody, and not to be undone
            self._before = []
        if self._before and not self._is_a_plain_stack(run):  # then everything runs each time
            self._before = []

    def scores(self, run: Callable[[], Tensor], kept: dict[str, Any]) -> Tensor:
        """What the network gives for a batch: from its beginning the first time, then from what was kept.

        Args:
            run: Runs the network on the batch.
            kept: Of this batch; empty at first, and filled.

        Returns:
            What the run gives.
        """
        if not self._before:
            return run()
        if "output" in kept:
            with self._passed_over(kept["output"]):
                return run()
        seen: list[Any] = []
        handle = self._before[-1].register_forward_hook(lambda module, args, output: seen.append(output))
        try:
            result = run()
        finally:
            remove_hooks([handle])
        kept["output"] = seen[-1]
        return result

    def _is_a_plain_stack(self, run: Callable[[], Tensor]) -> bool:
        """Whether the late blocks need nothing but what the one before them gives."""
        kept: dict[str, Any] = {}
        with torch.no_grad():
            whole, late = self.scores(run, kept), self.scores(run, kept)
        return torch.allclose(whole, late, rtol=1e-4, atol=1e-4)

    @contextmanager
    def _passed_over(self, output: Any) -> Iterator[None]:
        try:
            for block in self._before:
                block.forward = lambda *args, **kwargs: output
            yield
        finally:
            for block in self._before:
                vars(block).pop("forward", None)

    @contextmanager
    def noted(self) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """While it is open, inputs of each layer, (..., D), and a zero that is added to its outputs, (..., O).

        The gradient by the zero is that by the layer's outputs.
        """
        notes: dict[str, tuple[Tensor, Tensor]] = {}

        def noting(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                zero = torch.zeros_like(output, requires_grad=True)
                notes[name] = args[0].detach(), zero
                return output + zero

            return hook

        handles = [module.register_forward_hook(noting(name)) for name, module in self.layers.items()]
        try:
            yield notes
        finally:
            remove_hooks(handles)

    def weight(self, name: str) -> Tensor:
        """Weight of a layer, (O, D): a view, to read and to write."""
        layer = self.layers[name]
        weight = layer.weight
        assert isinstance(weight, Tensor)
        return weight.detach() if isinstance(layer, nn.Linear) else weight.detach().T


def _owners(model: nn.Module) -> dict[int, int]:
    """Identity of each parameter -> number of modules that hold it."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return owners


def _within(name: str, block: str) -> bool:
    return f"{name}.".startswith(f"{block}.")


def _called(linear: dict[str, nn.Module], run: Callable[[], object]) -> list[str]:
    """Names of the layers that run, in the order of computation."""
    order: list[str] = []
    names = {module: name for name, module in linear.items()}
    handles = [
        module.register_forward_hook(lambda module, args, output: order.append(names[module]))
        for module in linear.values()
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        remove_hooks(handles)
    return list(dict.fromkeys(order))
