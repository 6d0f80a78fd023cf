"""The passes of a refit: the dense network says what each layer should give, the pruned one what it has for that."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from fairtrim.damage.running_sums import RunningSums
from fairtrim.devices import has_float64, model_device, to_device
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.precision import full_precision
from fairtrim.preservation import remove_hooks
from fairtrim.processes import Processes
from fairtrim.progress import progress_bar

from .least_squares import MAX_ROWS, MAX_UNKNOWNS, Fit, Sums, sums_of
from .readers import LayerRows
from .residual_sums import Skip, input_of, norm_scale
from .samples import Part, filled_up, joined

__all__ = ["Layer", "Passes"]

_ROWS, _ROWS_A_COLUMN = 10_000, 10
_MAX_TARGET_BYTES = 2**30  # of all layers together
_MAX_ACTIVATION_BYTES = 1.5 * 2**30  # of all samples as one batch
_LIVE_TENSORS = 4  # of the size of the largest
_BLOCK = 2**24  # numbers of the rows that are cut out at a time
_SMALL_SCALE = 1e-3  # of the largest: dividing by it would blow up noise


class _Stop(BaseException):
    """The last layer that matters has been reached; no Exception, so that no network catches it."""


@dataclass
class Layer:
    """A layer that is refitted.

    Attributes:
        name: Its name.
        rows: It, in the pruned network.
        kept: Which outputs of the dense layer it has.
        norm: The BatchNorm behind it, whose running mean takes a constant that the layer has no bias for.
        skip: What is added to its output.
    """

    name: str
    rows: LayerRows
    kept: Tensor
    norm: _BatchNorm | None
    skip: Skip | None
    per_sample: int = 1
    positions: dict[int, Tensor] = field(default_factory=dict)
    real: dict[int, Tensor] = field(default_factory=dict)
    targets: dict[int, Tensor] = field(default_factory=dict)
    skipped: dict[int, Tensor] = field(default_factory=dict)
    spread: RunningSums = field(default_factory=lambda: RunningSums(0))
    _kept_on: dict[torch.device, Tensor] = field(default_factory=dict)

    @property
    def constant(self) -> bool:
        """Whether there is a place for a constant."""
        return self.rows.bias is not None or self.norm is not None

    @property
    def dtype(self) -> torch.dtype:
        """Of products."""
        return torch.promote_types(torch.float32, self.rows.weight.dtype)

    def kept_of(self, rows: Tensor) -> Tensor:
        """Of rows of outputs, (..., O), those of the outputs that it has."""
        device = rows.device
        if device not in self._kept_on:
            self._kept_on[device] = to_device(self.kept, device)
        return rows[..., self._kept_on[device]]

    def writable(self) -> list[Tensor]:
        """What a refit may change."""
        tensors: list[Tensor] = [self.rows.weight]
        if self.rows.bias is not None:
            tensors.append(self.rows.bias)
        elif self.norm is not None and self.norm.running_mean is not None:
            tensors.append(self.norm.running_mean)
        return tensors

    def over_scale(self, skip: Tensor) -> Tensor:
        """What the layer has to give for something that is added behind its BatchNorm."""
        scale = norm_scale(self.norm)
        if scale is None:
            return skip
        scale = scale.to(skip)
        usable = scale.abs() > _SMALL_SCALE * scale.abs().max()
        return torch.where(usable, skip / torch.where(usable, scale, 1.0), 0.0)

    def write(self, fit: Fit) -> None:
        """Add the change, in place, in the layer's own precision."""
        assert fit.change is not None
        weight, bias = self.rows.weight, self.rows.bias
        device = weight.device if has_float64(weight.device) else torch.device("cpu")
        change, constant = to_device((fit.change, fit.constant), device)
        matrix = self.rows.matrix().to(device).double() + change
        weight.detach().copy_(self.rows.stored(matrix).to(weight.dtype))
        if constant is not None:
            constant = constant.flatten()
            if bias is not None:
                bias.detach().copy_((bias.detach().to(device).double() + constant).to(bias.dtype))
            elif self.norm is not None and self.norm.running_mean is not None:
                mean = self.norm.running_mean
                mean.copy_((mean.to(device).double() - constant).to(mean.dtype))
        torch.clear_autocast_cache()  # it may hold the weight that was


class Passes:
    """Runs both networks over the samples.

    Args:
        network: The pruned one.
        dense: The other.
        layers: In the order of computation.
        parts: The samples.
        n_samples: How many those of all processes are.
        processes: Those that share them.
        generator: Draws positions.
        progress: Show progress bars.
    """

    def __init__(
        self,
        network: ScoredNetwork,
        dense: ScoredNetwork,
        layers: Sequence[Layer],
        parts: Sequence[Part],
        *,
        n_samples: int,
        processes: Processes,
        generator: torch.Generator,
        progress: bool,
    ) -> None:
        self._network, self._dense, self._layers, self._parts = network, dense, layers, list(parts)
        self._processes, self._generator, self._progress = processes, generator, progress
        self._device, self._n_samples = network.device, n_samples
        self._precise = torch.float64 if has_float64(self._device) else torch.float32
        self._members: list[Tensor] = [torch.arange(len(part), device="cpu") for part in parts]
        self._few = [self._drawn(part, MAX_ROWS) for part in parts]

    def _drawn(self, part: Part, rows: int) -> Tensor:
        """Samples of a part for a layer of which only so many rows are kept."""
        if self._n_samples <= rows:
            return torch.arange(len(part), device="cpu")
        number = max(1, len(part) * rows // self._n_samples)
        return torch.randperm(len(part), generator=self._generator, device="cpu")[:number].sort().values

    def _samples(self, layer: Layer, number: int) -> Tensor:
        """Which samples of a part a layer is fitted on."""
        return (self._few if layer.rows.width > MAX_UNKNOWNS else self._members)[number]

    def _plan(self) -> None:
        """How many positions of a sample each layer gets."""
        n_samples = self._n_samples
        for layer in self._layers:
            wide = layer.rows.width > MAX_UNKNOWNS
            rows = MAX_ROWS if wide else max(_ROWS, _ROWS_A_COLUMN * layer.rows.width)
            layer.spread = RunningSums(len(layer.kept))
            layer.per_sample = max(1, rows // n_samples if wide else math.ceil(rows / n_samples))
        needed = sum(layer.per_sample * n_samples * len(layer.kept) * 4 for layer in self._layers)
        if needed > _MAX_TARGET_BYTES:
            for layer in self._layers:
                layer.per_sample = max(1, int(layer.per_sample * _MAX_TARGET_BYTES / needed))

    def _positions(self, layer: Layer, number: int, output: Tensor) -> Tensor:
        """The positions of a part, (samples, r), drawn when they are first asked for."""
        if number not in layer.positions:
            samples, real = self._samples(layer, number), self._parts[number].real
            count = layer.rows.count(output, len(self._parts[number])) or 1
            # a layer that runs behind a pooling or on other positions has no padding
            real = None if real is None or real.shape[1] != count else real[samples]
            if count > layer.per_sample:
                drawn = []
                for block in torch.split(torch.arange(len(samples), device="cpu"), max(1, _BLOCK // count)):
                    order = torch.rand(len(block), count, generator=self._generator, dtype=torch.float32, device="cpu")
                    drawn.append((order if real is None else order + real[block]).topk(layer.per_sample, 1).indices)
                positions = torch.cat(drawn)
            else:
                positions = torch.arange(count, device="cpu").expand(len(samples), -1)
            layer.positions[number] = positions
            layer.real[number] = (
                torch.ones_like(positions, dtype=torch.bool) if real is None else real.gather(1, positions)
            )
        return layer.positions[number]

    def _weights(self, layer: Layer, number: int) -> Tensor:
        """What each row of a part counts, (samples, r); 0 for padding."""
        return self._parts[number].weight[self._samples(layer, number)][:, None] * layer.real[number]

    def _rows_of(self, layer: Layer, number: int, output: Tensor) -> Tensor:
        """Rows of an output, or of what is added to it, (samples, r, O)."""
        positions, samples = self._positions(layer, number, output), self._samples(layer, number)
        chosen = _some(output, len(self._parts[number]), samples)
        rows = layer.rows.output_rows(chosen, to_device(positions, output.device))
        return rows.view(len(samples), -1, rows.shape[1]).to(layer.dtype)

    def run_dense(self) -> None:
        """Note what each layer should give, and how much that varies on the held-out samples."""
        self._plan()
        modules = dict(self._dense.model.named_modules())
        number = 0
        waiting: dict[str, Tensor] = {}

        def noted(layer: Layer) -> Callable[[Tensor], None]:
            def note(output: Tensor) -> None:
                target = layer.kept_of(self._rows_of(layer, number, output)).to(self._device)
                held = self._parts[number].held[self._samples(layer, number)]
                weight = (self._weights(layer, number) * held[:, None]).flatten()
                values = target.flatten(0, 1).to(self._precise)
                weight = to_device(weight.to(values.dtype), self._device)
                layer.spread.add(
                    torch.stack([weight @ values, weight @ values.square(), weight.sum().expand(values.shape[1])])
                )
                if layer.skip is not None:
                    target = target + waiting.pop(layer.name)
                layer.targets[number] = target
                if layer is self._layers[-1]:
                    raise _Stop

            return note

        def awaited(layer: Layer) -> Callable[[Tensor], None]:
            def note(skip: Tensor) -> None:
                rows = layer.kept_of(self._rows_of(layer, number, skip))
                waiting[layer.name] = layer.over_scale(rows.to(self._device))

            return note

        handles: list[RemovableHandle] = []
        device = model_device(self._dense.model)
        bar = progress_bar(self._parts, description="dense outputs", shown=self._progress, unit="batch")
        try:
            for layer in self._layers:
                handles.append(_listen(modules[layer.name], "output", self._guarded(noted(layer))))
                if layer.skip is not None:
                    handles.append(_listen(modules[layer.skip[0]], layer.skip[1], self._guarded(awaited(layer))))
            for number, part in enumerate(self._processes.attending(bar)):
                waiting.clear()
                with suppress(_Stop):
                    self._dense.output(to_device(part.inputs, device), index=number)
        finally:
            remove_hooks(handles)

    def _guarded(self, note: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        """The caller's autocast and TF32 are for the network, not for sums."""

        def guarded(tensor: Tensor) -> None:
            with torch.autocast(self._device.type, enabled=False), full_precision():
                note(tensor)

        return guarded

    def join(self, bytes_a_sample: float) -> None:
        """Go on with all samples as one batch, if they can be joined and fit in memory."""
        needed = _LIVE_TENSORS * bytes_a_sample * self._n_samples
        if len(self._parts) == 1 or needed > _MAX_ACTIVATION_BYTES or self._processes.count > 1:
            return
        whole = joined(self._parts)
        if whole is None:
            return
        lengths = [len(part) for part in self._parts]
        starts = [sum(lengths[:number]) for number in range(len(lengths))]
        numbers = range(len(lengths))
        for layer in self._layers:
            layer.positions = {0: torch.cat(filled_up([layer.positions[n] for n in numbers]))}
            layer.real = {0: torch.cat(filled_up([layer.real[n] for n in numbers]))}
            layer.targets = {0: torch.cat(filled_up([layer.targets.pop(n) for n in numbers]))}
        self._few = [torch.cat([few + start for few, start in zip(self._few, starts, strict=True)])]
        self._members = [torch.arange(sum(lengths), device="cpu")]
        self._parts = [whole]

    def refit(self, finish: Callable[[Layer, Sums], None]) -> None:
        """Run the pruned network and let every layer be finished in its turn.

        As one batch that is one forward pass; else one for each layer, up to it.

        Args:
            finish: Gets each layer with its sums, and may change it.
        """
        with progress_bar(description="refit", total=len(self._layers), shown=self._progress, unit="layer") as bar:
            if len(self._parts) == 1 and self._processes.count == 1:
                self._run(self._layers, 0, finish, bar)
                return
            for layer in self._layers:
                sums = self._sums(layer)
                with self._processes.together():
                    for number in self._processes.attending(range(len(self._parts))):
                        self._run([layer], number, None, bar, sums)
                sums.merge(self._processes)
                with full_precision():
                    finish(layer, sums)
                bar.update()

    def _sums(self, layer: Layer) -> Sums:
        rows = layer.rows
        return sums_of(rows.groups, rows.width, rows.outputs, constant=layer.constant)

    def _run(
        self,
        layers: Sequence[Layer],
        number: int,
        finish: Callable[[Layer, Sums], None] | None,
        bar: Any,
        sums: Sums | None = None,
    ) -> None:
        modules = dict(self._network.model.named_modules())
        last = layers[-1]

        def reached(layer: Layer) -> Callable[[Tensor], None]:
            def note(inputs: Tensor) -> None:
                own = self._sums(layer) if sums is None else sums
                self._accumulate(layer, number, inputs, own)
                if finish is not None:
                    finish(layer, own)
                    bar.update()
                if layer is last:
                    raise _Stop

            return note

        def passed(layer: Layer) -> Callable[[Tensor], None]:
            def note(skip: Tensor) -> None:
                layer.skipped[number] = layer.over_scale(self._rows_of(layer, number, skip))

            return note

        handles: list[RemovableHandle] = []
        try:
            for layer in layers:
                if layer.skip is not None:
                    handles.append(_listen(modules[layer.skip[0]], layer.skip[1], self._guarded(passed(layer))))
                handles.append(_listen(modules[layer.name], "input", self._guarded(reached(layer))))
            with suppress(_Stop):
                self._network.output(to_device(self._parts[number].inputs, self._device), index=number)
        finally:
            remove_hooks(handles)

    def _accumulate(self, layer: Layer, number: int, inputs: Tensor, sums: Sums) -> None:
        rows, part = layer.rows, self._parts[number]
        samples, positions, targets = self._samples(layer, number), layer.positions[number], layer.targets[number]
        matrix, bias, weights = rows.matrix().to(layer.dtype), rows.bias, self._weights(layer, number)
        r = positions.shape[1]
        size = max(1, _BLOCK // max(1, r * rows.groups * rows.width))
        skip = layer.skipped.pop(number, None)
        for start in range(0, len(samples), size):
            block = slice(start, start + size)
            some = samples[block]
            patches = rows.input_rows(_some(inputs, len(part), some), to_device(positions[block], inputs.device))
            patches = patches.to(layer.dtype)
            residuals = targets[block].flatten(0, 1)
            if skip is not None:
                residuals = residuals - skip[block].flatten(0, 1)
            if bias is not None:
                residuals = residuals - bias.detach().to(layer.dtype)
            residuals = residuals.view(len(residuals), rows.groups, -1) - torch.einsum("rgd,god->rgo", patches, matrix)
            weight, held = weights[block].flatten(), part.held[some].repeat_interleave(r)
            if not bool(layer.real[number][block].all()):
                counts = layer.real[number][block].flatten().nonzero().squeeze(1)
                there = to_device(counts, patches.device)
                patches, residuals, weight, held = patches[there], residuals[there], weight[counts], held[counts]
            sums.add(patches, residuals, weight, held)
        layer.targets.pop(number)


def _some(tensor: Tensor, n_samples: int, samples: Tensor) -> Tensor:
    """Some samples of a tensor whose first axis is that of the samples, or of parts of them."""
    if len(samples) == n_samples:
        return tensor
    if tensor.shape[0] == n_samples:
        return tensor[to_device(samples, tensor.device)]
    return tensor.reshape(n_samples, -1, *tensor.shape[1:])[to_device(samples, tensor.device)].flatten(0, 1)


def _listen(module: nn.Module, side: str, note: Callable[[Tensor], None]) -> RemovableHandle:
    """Call something with a module's input or output."""
    if side == "input":

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if (inputs := input_of(args, kwargs)) is not None:
                note(inputs)

        return module.register_forward_pre_hook(before, with_kwargs=True)

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            note(output)

    return module.register_forward_hook(after)
