"""Second moments of what layers read: how much of one input the others know."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fairtrim.arguments import RandomState, random_generator
from fairtrim.data.padding import real_tokens
from fairtrim.devices import to_device
from fairtrim.network.activation_checkpointing import uncounted
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.placement import stored_weight
from fairtrim.precision import full_precision
from fairtrim.preservation import remove_hooks
from fairtrim.processes import Processes

from .channel_groups import ChannelGroup, Site, channel_sites
from .running_sums import ON_DEVICE_BYTES, RunningSums

__all__ = ["InputMoments", "ReadInputs", "ReaderMoments", "input_moments"]

ROWS_PER_SAMPLE = 64
"""Of more positions of a sample than this, as many are drawn."""

TOKENS_PER_SAMPLE = 512
"""The same of linear layers: tokens differ more than neighbouring places of an image, and a language model has few
samples for its many inputs."""

MAX_INPUTS = 8192
"""Of a wider layer no moments are kept: 512 MiB a matrix."""


@dataclass(frozen=True)
class ReaderMoments:
    """A layer that reads channels, as a matrix, and the moments of its inputs.

    B blocks of a grouped convolution (1 elsewhere), O outputs and E inputs each; the T taps of a kernel, or positions
    behind a flatten, share one mix of channels.

    Attributes:
        module: Its name.
        weight: (B, O, E, T) float64.
        moments: Second moments of the inputs over samples and positions, centred where a bias or BatchNorm can take up
            a constant, (B, E, E) float64.
        mean: What they were centred at, (B, E) float64; 0 where they weren't.
        n_rows: Over how many samples and positions.
        columns: The damage table's column of each input, −1 for those in no channel group, (B, E).
        outputs: The column of each output, −1 for those that stay, (B, O).
    """

    module: str
    weight: Tensor
    moments: Tensor
    mean: Tensor
    n_rows: int
    columns: npt.NDArray[np.int64]
    outputs: npt.NDArray[np.int64]

    @property
    def squares(self) -> Tensor:
        """E[x²] of every input, not centred, (B, E)."""
        return self.moments.diagonal(dim1=1, dim2=2) + self.mean.square()


@dataclass(frozen=True)
class ReadInputs:
    """All layers that read channels and could be refitted.

    Attributes:
        readers: The layers.
        unmixed: Columns of which some reader can't make up, such as a recurrent layer or a norm, (C,) bool.
    """

    readers: tuple[ReaderMoments, ...]
    unmixed: Tensor


class _Reader:
    """One layer: how its inputs become rows, and their sums."""

    def __init__(self, site: Site, module: nn.Module, input_axis: int | None) -> None:
        self.site, self.module = site, module
        weight = _parameter(module)
        self.blocks = module.groups if isinstance(module, nn.modules.conv._ConvNd) else 1
        self.flipped = input_axis == 0 or (isinstance(module, nn.modules.conv._ConvNd) and module.transposed)
        n_inputs = weight.shape[0] if self.flipped else weight.shape[1] * self.blocks
        columns = np.full(n_inputs, -1, dtype=np.int64)
        columns[site.channels] = site.columns
        self.positions = _positions_of_a_flatten(columns) if weight.ndim == 2 and (site.weights == 1).all() else 1
        self.columns = columns[:: self.positions].reshape(self.blocks, -1)
        size = self.columns.shape[1]
        self.too_wide = size > MAX_INPUTS
        size = 0 if self.too_wide else size
        self.takes_constants = getattr(module, "bias", None) is not None
        self.count = 0
        self.sum, self.squares = RunningSums(size), RunningSums(size, size)

    @property
    def bytes(self) -> int:
        """Of the sums of products."""
        return 8 * self.blocks * self.columns.shape[1] ** 2

    def add(self, read: Tensor, generator: torch.Generator, tokens: _Tokens | None) -> None:
        values = read.detach().movedim(self.site.channel_axis, -1)
        n_samples = read.shape[self.site.sample_axis]
        # padding is none of what the layer reads
        real = None if tokens is None or values.shape[:-1] != tokens.shape else tokens.places
        if self.positions > 1:
            values = values.reshape(*values.shape[:-1], -1, self.positions).movedim(-2, -1)
        shape = values.shape[:-1]
        each = TOKENS_PER_SAMPLE if _parameter(self.module).ndim == 2 else ROWS_PER_SAMPLE
        n_rows, wanted = shape.numel() if real is None else len(real) * self.positions, each * n_samples
        chosen = None
        if n_rows > wanted:
            chosen = torch.randint(n_rows, (wanted,), generator=generator, device="cpu")
        elif real is not None:
            chosen = torch.arange(n_rows, device="cpu")
        if chosen is not None:
            if real is not None:
                chosen = real[chosen // self.positions] * self.positions + chosen % self.positions
            values = values[_unravelled(to_device(chosen, values.device), shape)]
        rows = values.reshape(-1, self.blocks, values.shape[-1] // self.blocks).transpose(0, 1)
        rows = rows.to(torch.promote_types(torch.float32, rows.dtype))
        with torch.autocast(rows.device.type, enabled=False), full_precision():
            self.squares.add(rows.transpose(1, 2) @ rows)
        self.sum.add(rows.sum(1))
        self.count += rows.shape[1]

    def matrix(self) -> Tensor:
        weight = stored_weight(self.module).detach().cpu().double()
        weight = weight.transpose(0, 1) if self.flipped else weight
        if self.positions > 1:
            return weight.reshape(1, weight.shape[0], -1, self.positions)
        return weight.reshape(self.blocks, weight.shape[0] // self.blocks, weight.shape[1], -1)


@dataclass(frozen=True)
class _Tokens:
    """Which positions of a batch hold a token: its shape, and where they are when it is flat, on the CPU."""

    shape: torch.Size
    places: Tensor


def _unravelled(places: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """One index an axis for places in what is flat; torch's own uploads the shape."""
    indices = []
    for size in reversed(shape):
        indices.append(places % size)
        places = places // size
    return tuple(reversed(indices))


def _parameter(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _positions_of_a_flatten(columns: npt.NDArray[np.int64]) -> int:
    """How often every channel comes in a row behind a flatten, the same number for all; else 1."""
    starts = np.flatnonzero(np.diff(columns, prepend=-2))
    runs = np.diff(np.append(starts, len(columns)))
    of_channels = runs[columns[starts] >= 0]
    length = int(of_channels[0])
    if (of_channels != length).any() or (runs % length).any() or (starts % length).any():
        return 1
    return length


def _is_whole_heads(site: Site) -> bool:
    """Whether each unit of an attention's output projection is a run of several inputs: a head, not one dimension."""
    order = np.argsort(site.channels)
    starts = np.flatnonzero(np.diff(site.columns[order], prepend=-2))
    n_units = len(np.unique(site.columns))
    return len(starts) == n_units < len(site.columns)


class InputMoments:
    """Sums over the inputs of the layers that read channels, as the network runs."""

    def __init__(
        self,
        model: nn.Module,
        channel_groups: Sequence[ChannelGroup],
        input_axes: Mapping[str, int],
        generator: torch.Generator,
    ) -> None:
        self._n_columns = sum(group.size for group in channel_groups)
        self._unmixed = torch.zeros(self._n_columns, dtype=torch.bool, device="cpu")
        self._generator = generator
        modules = dict(model.named_modules(remove_duplicate=False))
        self._readers: dict[str, _Reader] = {}
        sites = channel_sites(model, channel_groups)
        heads = {c for s in sites if s.side == "input" and _is_whole_heads(s) for c in s.columns.tolist()}
        for site in sites:
            module, of_heads = modules[site.module], (site.weights != 1).any()
            if site.side == "output" or of_heads:
                # whole heads are made up for where their outputs are read; nothing makes up for a dimension of a query
                alone = [c for c in site.columns.tolist() if not (of_heads and c in heads)]
                self._unmixed[alone] = True
                if site.side == "output" or alone:
                    continue
            reader = None
            if _mixes(module, site.module in input_axes):
                reader = _Reader(site, module, input_axes.get(site.module))
            if reader is None or reader.too_wide:
                self._unmixed[site.columns] = True
            else:
                self._readers[site.module] = reader
        room = ON_DEVICE_BYTES
        for reader in self._readers.values():
            if reader.bytes > room:
                reader.squares.max_bytes = 0  # the CPU waits for it in every batch
            else:
                room -= reader.bytes
        self._outputs = {name: _outputs(name, reader, channel_groups) for name, reader in self._readers.items()}
        self._given: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._tokens: _Tokens | None = None

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Add up what the layers read for the length of the block."""
        handles = []
        try:
            for name, reader in self._readers.items():
                handles.append(reader.module.register_forward_pre_hook(self._before(reader), with_kwargs=True))
                handles.append(reader.module.register_forward_hook(self._after(name)))
            handles.append(model.register_forward_pre_hook(self._padded, with_kwargs=True))
            norms = (module for module in model.modules() if isinstance(module, _BatchNorm))
            handles.extend(module.register_forward_pre_hook(self._normalised) for module in norms)
            yield
        finally:
            remove_hooks(handles)
            self._given.clear()
            self._tokens = None

    def _padded(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = kwargs or (args[0] if args else None)
        mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
        tokens = real_tokens({"attention_mask": to_device(mask, torch.device("cpu"))})
        self._tokens = None if tokens is None else _Tokens(tokens.shape, tokens.flatten().nonzero().squeeze(1))

    def _before(self, reader: _Reader) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            if read is not None and not uncounted():
                reader.add(read, self._generator, self._tokens)

        return hook

    def _after(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self._given[id(output)] = weakref.ref(output), name

        return hook

    def _normalised(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        reference, name = self._given.get(id(args[0]) if args else 0, (None, ""))
        if reference is not None and reference() is args[0]:
            self._readers[name].takes_constants = True

    def share(self, processes: Processes) -> None:
        """Add up over processes that share the data."""
        if processes.count == 1:
            return
        for reader in self._readers.values():
            known = torch.tensor([reader.count, float(reader.takes_constants)], dtype=torch.float64, device="cpu")
            count, constants = processes.sum(known).tolist()
            reader.count, reader.takes_constants = int(count), constants > 0
            for sums in (reader.sum, reader.squares):
                sums.replace(processes.sum(sums.total(reader.blocks)))

    def read(self) -> ReadInputs:
        """The moments, with the weights as they are now."""
        unmixed = self._unmixed.clone()
        readers = []
        for name, reader in self._readers.items():
            if not reader.count:  # not called as a module
                unmixed[reader.columns[reader.columns >= 0]] = True
                continue
            moments, mean = (sums.total(reader.blocks) / reader.count for sums in (reader.squares, reader.sum))
            mean = mean * reader.takes_constants
            moments = moments - mean.unsqueeze(2) * mean.unsqueeze(1)
            outputs = self._outputs[name]
            readers.append(ReaderMoments(name, reader.matrix(), moments, mean, reader.count, reader.columns, outputs))
        return ReadInputs(tuple(readers), unmixed)


def _mixes(module: nn.Module, told: bool) -> bool:
    """Whether a layer is a matrix that mixes its inputs."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.in_channels > module.groups and not (module.transposed and module.groups > 1)
    return (told or isinstance(module, nn.Linear)) and _parameter(module).ndim == 2


def _outputs(name: str, reader: _Reader, channel_groups: Sequence[ChannelGroup]) -> npt.NDArray[np.int64]:
    weight = _parameter(reader.module)
    axis = 1 if reader.flipped else 0
    columns = np.full(weight.shape[axis], -1, dtype=np.int64)
    offset = 0
    for group in channel_groups:
        for place in group.parameters:
            if place.parameter == f"{name}.weight" and place.axis % weight.ndim == axis:
                columns[list(place.channels)] = offset + np.asarray(place.group_channels)
        offset += group.size
    return columns.reshape(reader.blocks, -1)


@contextmanager
def input_moments(
    model: nn.Module,
    channel_groups: Sequence[ChannelGroup],
    *,
    input_axes: Mapping[str, int] | None = None,
    distributed: bool | None = None,
    random_state: RandomState = 0,
) -> Iterator[InputMoments]:
    """Add up moments of what layers read while something else runs the network, such as ``collect_damage``.

    Everybody counts alike, whatever the sensitive group. Padding, which the network is told of by ``attention_mask``,
    doesn't count. Of samples with many positions 64 a sample are drawn, of linear layers 512.

    Products are computed where the network runs, never in TF32, and added up there, so that no batch is waited for: in
    float64, or where a device has none in pairs of float32. That takes 8 E² bytes for a layer of E inputs; those beyond
    1 GiB on an accelerator are added up on the CPU.

    Args:
        model: The network.
        channel_groups: Its channel groups; ``parameters`` say which outputs go with them.
        input_axes: Axis of the weight along which inputs lie, for linear layers of other packages by name.
        distributed: Whether the processes of ``torch.distributed`` each read a share of the data.
        random_state: Seed of the draw of positions.

    Yields:
        The sums; call ``read()`` on them behind the block.

    Raises:
        InputError: A channel group doesn't fit the network.

    Example:
        >>> from fairtrim import ChannelPlace
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(2, 1, bias=False))
        >>> hidden = ChannelGroup("0", 2, (ChannelPlace("1", "input", range(2), range(2), channel_axis=-1),))
        >>> with input_moments(model, [hidden]) as moments:
        ...     _ = model(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
        >>> moments.read().readers[0].moments.tolist()
        [[[5.0, 1.0], [1.0, 2.0]]]
    """
    processes = Processes(distributed, model)
    ScoredNetwork(model).check()
    moments = InputMoments(model, channel_groups, input_axes or {}, random_generator(random_state))
    with moments.watching(model):
        yield moments
    moments.share(processes)
