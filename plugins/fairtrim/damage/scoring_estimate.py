"""What scoring a network takes, told before it starts: memory, and passes over the data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from fairtrim.arguments import require_number
from fairtrim.data.batches import Batch, map_tensors, n_batches_of, parts_of_batch, slice_samples, tensors_of
from fairtrim.devices import to_device
from fairtrim.errors import InputError
from fairtrim.network.activation_checkpointing import blocks_of, is_checkpointed, trial_pass
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.placement import holds_nothing, is_sharded
from fairtrim.preservation import preserved_model, preserved_random_state, remove_hooks
from fairtrim.printing import Block, Printed, TextTable

from .channel_groups import ChannelGroup, Site, channel_sites
from .gates import hooked_gates
from .input_moments import MAX_INPUTS
from .loss_expansion import MAX_EXACT_CLASSES, Curvature
from .moments import ROWS_PER_PRODUCT, Interactions, resolved_interactions
from .reading_options import Reading, ReadingOptions
from .sample_sketch import HELD_OUT_ROWS, SELECTION_ROWS

__all__ = ["ScoringEstimate", "estimate_scoring", "tell_large"]

_logger = logging.getLogger("fairtrim.damage")

LARGE = 100_000_000
"""Parameters, from which on ``collect_damage`` tells its estimate before it starts."""

_COPIES_OF_SCORES = 6  # single precision, log-softmax, what has a label, and gradients of these
_SUMS = 8  # of the table, (G, C) float64 each, and as many means


@dataclass(frozen=True)
class ScoringEstimate(Printed):
    """Bytes and passes that ``collect_damage`` needs; print it.

    Attributes:
        n_channels: C.
        n_parameters: Of the network.
        batch_size: N.
        n_samples: How many are scored, or None if that isn't known.
        weight_bytes: Of parameters and buffers.
        activation_bytes: What one batch keeps for the backward pass, gates included, and the gradients of its largest
            block of layers.
        checkpointed_bytes: The same within ``activation_checkpointing`` of the longest list of blocks; None without
            such a list.
        checkpointed: Whether the network runs within it now.
        score_bytes: Of the scores of one batch in single precision, and of what its losses need.
        gate_bytes: Of the gates and their gradients, for one batch.
        waiting_bytes: Of gradients that wait to be added to the pairs of channels.
        table_bytes: Of sums and means.
        interactions: ``"exact"``, ``"sketched"`` or None.
        interaction_bytes: Of pairs of channels, in the table.
        directions: R, backward passes a batch.
        moment_bytes: Of the inputs' moments of all layers at once, with ``compensated=True``; wider layers than 8,192
            inputs have none.
        largest_moment_bytes: Of the widest layer alone: what a refit keeps, one layer at a time.

    Example: see ``estimate_scoring``.
    """

    n_channels: int
    n_parameters: int
    batch_size: int
    n_samples: int | None
    weight_bytes: int
    activation_bytes: int
    checkpointed_bytes: int | None
    checkpointed: bool
    score_bytes: int
    gate_bytes: int
    waiting_bytes: int
    table_bytes: int
    interactions: Interactions | None
    interaction_bytes: int
    directions: int
    moment_bytes: int
    largest_moment_bytes: int

    @property
    def peak_bytes(self) -> int:
        """The most that is there at once: in a backward pass, where pairs are added up, or where they become means."""
        kept = self.checkpointed_bytes if self.checkpointed and self.checkpointed_bytes else self.activation_bytes
        pairs, always = self.interaction_bytes, self.weight_bytes + self.table_bytes
        in_backward = kept + self.score_bytes + self.gate_bytes + self.waiting_bytes + pairs
        adding_up = self.gate_bytes + 3 * self.waiting_bytes + pairs
        return always + max(in_backward, adding_up, pairs * (3 if self.interactions == "sketched" else 2))

    @property
    def forward_passes(self) -> int | None:
        """Over a batch each; within ``activation_checkpointing`` one more for every backward pass."""
        if self.n_samples is None:
            return None
        batches = -(-self.n_samples // self.batch_size)
        return batches + (batches * self.directions + 1) * self.checkpointed

    @property
    def backward_passes(self) -> int | None:
        """Over a batch each, one to see whether samples are independent; none computes gradients of weights."""
        return None if self.n_samples is None else -(-self.n_samples // self.batch_size) * self.directions + 1

    def line(self) -> str:
        """In one line."""
        of_weights = f"{_size(self.weight_bytes)} of weights"
        return f"{self.n_channels:,} channels: {self._passes()}; about {_size(self.peak_bytes)} ({of_weights})"

    def verdict(self) -> str:
        """What scoring takes.

        Returns:
            One sentence.
        """
        return f"Scoring {self.n_channels:,} channels takes {self._passes()} and about {_size(self.peak_bytes)}."

    def blocks(self) -> Iterator[Block]:
        """The verdict, and what takes how much memory."""
        yield self.verdict()
        rows = [
            ("weights", f"{self.n_parameters:,} parameters", self.weight_bytes),
            ("activations", f"kept for the backward pass of {self.batch_size:,} samples", self.activation_bytes),
            *([("", "with activation_checkpointing", again)] if (again := self.checkpointed_bytes) else []),
            ("scores", "in single precision, and the losses' gradients", self.score_bytes),
            ("gates", "gradients of a batch, and those that wait", self.gate_bytes + self.waiting_bytes),
            ("table", "sums and means", self.table_bytes),
            ("interactions", self.interactions or "none", self.interaction_bytes),
            ("peak", "of these at once" + ", with activation_checkpointing" * self.checkpointed, self.peak_bytes),
            ("moments", "besides, with compensated=True: of all layers at once", self.moment_bytes),
            ("refit", "afterwards: moments of the widest layer, one at a time", self.largest_moment_bytes),
        ]
        cells = [(name, what, _size(size)) for name, what, size in rows]
        yield TextTable(("what", "of", "memory"), cells, names=2)

    def _passes(self) -> str:
        if self.n_samples is None:
            return f"1 forward, {self.directions} backward passes a batch"
        return f"{self.forward_passes:,} forward, {self.backward_passes:,} backward passes"


def _size(n_bytes: int | None) -> str:
    amount, unit = float(n_bytes or 0), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"


def estimate_scoring(
    model: nn.Module,
    batch: Any,
    channel_groups: Sequence[ChannelGroup],
    *,
    n_samples: int | None = None,
    n_groups: int = 1,
    curvature: Curvature = "auto",
    interactions: bool | Interactions = False,
    **options: Unpack[ReadingOptions],
) -> ScoringEstimate:
    """Tell what ``collect_damage`` will take: one forward pass of one sample, whose activations are counted.

    A network on the meta device will do: nothing is computed then, shapes tell all, and attention counts as with a
    fused kernel. Tensors are counted, not what an allocator holds beside them, which may be as much again for small
    networks.

    Args:
        model: The network, or one of its shape on the meta device.
        batch: One entry of the loader, of the size that will be used.
        channel_groups: As for ``collect_damage``.
        n_samples: How many will be scored; default: not told.
        n_groups: G, how many sensitive groups there are.
        curvature: As for ``collect_damage``.
        interactions: As for ``collect_damage``.
        options: See ``ReadingOptions``; ``forward_fn``, ``output_transform`` and ``loss_fn`` count.

    Returns:
        The estimate.

    Raises:
        InputError: An argument or the batch is wrong.
        UnsupportedModelError: The network can't be run.

    Example:
        >>> from fairtrim import ChannelPlace
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)).to("meta")
        >>> hidden = ChannelGroup("0", 3, (ChannelPlace("1", "input", range(3), range(3), channel_axis=-1),))
        >>> batch = (torch.ones(8, 2), torch.zeros(8, dtype=torch.long))
        >>> estimate = estimate_scoring(model, batch, [hidden], n_samples=20)
        >>> estimate.weight_bytes, estimate.forward_passes, estimate.backward_passes
        (68, 3, 4)
    """
    if n_samples is not None:
        require_number("n_samples", n_samples, at_least=1, whole=True)
    require_number("n_groups", n_groups, at_least=1, whole=True)
    reading = Reading.of(options, "estimate_scoring")
    network, sample_loss = reading.network(model), reading.sample_loss()
    network.check(values=False)
    inputs, target, _ = parts_of_batch(batch, 0, values=False)
    size, one = len(target), slice(0, 1)
    device = torch.device("meta") if holds_nothing(model) else network.device
    sample = map_tensors(slice_samples(inputs, one), Tensor.clone)  # whose storage is not that of the batch
    single = Batch(to_device(sample, device), target[one].to(device), None, 0)
    n_columns = sum(group.size for group in channel_groups)
    sites = channel_sites(model, channel_groups)
    kept = _Kept(model)
    with (
        preserved_random_state(),
        preserved_model(model),
        torch.enable_grad(),
        trial_pass(),
        hooked_gates(model, sites, n_columns) as gates,
        kept.counting(model),
        _FusedAttention() if device.type == "meta" else nullcontext(),
    ):
        gates.start(1)
        try:
            scores = network.scores(single, positions=True)
        except (RuntimeError, NotImplementedError) as error:
            if device.type != "meta":
                raise
            raise InputError(
                f"on the meta device, where tensors have no values, the network can't run with these inputs ({error}); "
                "expected some whose values it doesn't look at: leave attention_mask out"
            ) from error
    each = scores[0].numel()
    exact = curvature == "exact" or (curvature == "auto" and each <= MAX_EXACT_CLASSES)
    directions = each - each // scores.shape[-1] * sample_loss.is_cross_entropy if exact else 1
    width = torch.promote_types(torch.float32, scores.dtype).itemsize
    pairs = resolved_interactions(interactions, n_columns)
    n_rows = None if n_samples is None else n_samples * directions
    waiting = min(n_rows or ROWS_PER_PRODUCT, ROWS_PER_PRODUCT) if pairs else 0
    sketch_rows = sum(min(n_rows or rows, rows) for rows in (SELECTION_ROWS, HELD_OUT_ROWS))
    interaction_bytes = {
        None: 0,
        "exact": 8 * n_groups * n_columns**2,
        "sketched": n_groups * n_columns * width * sketch_rows,
    }[pairs]
    modules = dict(model.named_modules(remove_duplicate=False))
    widths = {s.module: _n_inputs(modules[s.module], s) for s in sites if s.side == "input"}
    return ScoringEstimate(
        n_channels=n_columns,
        n_parameters=sum(p.numel() for p in model.parameters()),
        batch_size=size,
        n_samples=n_samples,
        weight_bytes=sum(t.numel() * t.itemsize for t in (*model.parameters(), *model.buffers())),
        activation_bytes=(kept.total + kept.largest_block) * size,
        checkpointed_bytes=(kept.checkpointed + kept.largest_block) * size if kept.blocks else None,
        checkpointed=is_checkpointed(model),
        score_bytes=each * width * size * (_COPIES_OF_SCORES + 2 * (directions - 1)),
        gate_bytes=width * n_columns * size * (3 * directions + 4),
        waiting_bytes=width * n_columns * waiting,
        table_bytes=2 * _SUMS * 8 * n_groups * n_columns,
        interactions=pairs,
        interaction_bytes=interaction_bytes,
        directions=directions,
        moment_bytes=sum(8 * n**2 for n in widths.values() if n <= MAX_INPUTS),
        largest_moment_bytes=max((8 * n**2 for n in widths.values()), default=0),
    )


def tell_large(
    network: ScoredNetwork,
    loader: Iterable[Any],
    batch: Batch,
    channel_groups: Sequence[ChannelGroup],
    reading: Reading,
    *,
    curvature: Curvature,
    interactions: Interactions | None,
) -> None:
    """Note the estimate of a large network in one line, if anybody listens to notes: it takes a pass of one sample.

    Args:
        network: The network and how it is called; of a sharded one nothing is told, all of whose processes would have
            to run it.
        loader: The data.
        batch: The first batch.
        channel_groups: As for ``collect_damage``.
        reading: How the data are read.
        curvature: As for ``collect_damage``.
        interactions: As for ``collect_damage``.
    """
    model = network.model
    if (
        not _logger.isEnabledFor(logging.INFO)
        or sum(p.numel() for p in model.parameters()) < LARGE
        or is_sharded(model)
    ):
        return
    n_batches = n_batches_of(loader, reading.max_batches)
    estimate = estimate_scoring(
        model,
        (batch.inputs, batch.target),
        channel_groups,
        n_samples=None if n_batches is None else n_batches * len(batch),
        curvature=curvature,
        interactions=interactions or False,
        loss_fn=reading.loss_fn,
        forward_fn=reading.forward_fn,
        output_transform=reading.output_transform,
    )
    _logger.info("%s", estimate.line())


def _n_inputs(module: nn.Module, site: Site) -> int:
    """E, of a layer that mixes its inputs; 0 elsewhere."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.in_channels // module.groups
    if isinstance(module, nn.Linear):
        return module.in_features
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return 0
    return min((n for n in weight.shape if n > int(site.channels.max())), default=0)  # on whichever axis they lie


class _Kept:
    """What autograd keeps of one forward pass: every storage once, no parameters and buffers, blocks told apart."""

    def __init__(self, model: nn.Module) -> None:
        self.blocks = blocks_of(model)
        self.total = 0
        self._inputs, self._of_blocks = 0, [0]
        own = (*model.parameters(), *model.buffers())
        self._seen = {t.untyped_storage()._cdata for t in own}
        self._alive: list[Tensor] = []  # so that no storage takes the place of another

    @property
    def largest_block(self) -> int:
        """Bytes of the block that keeps most."""
        return max(self._of_blocks)

    @property
    def checkpointed(self) -> int:
        """Bytes if only what goes into a block were kept, and one block computed again."""
        return self.total - sum(self._of_blocks) + self._inputs + self.largest_block

    @contextmanager
    def counting(self, model: nn.Module) -> Iterator[None]:
        """Count for the length of the block."""
        modules = dict(model.named_modules())
        handles: list[RemovableHandle] = []
        for name in self.blocks:
            handles.append(modules[name].register_forward_pre_hook(self._before, with_kwargs=True))
            handles.append(modules[name].register_forward_hook(self._after))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._note, _as_it_is):
                yield
        finally:
            remove_hooks(handles)
            self._alive.clear()

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_leaf and isinstance(tensor, nn.Parameter):  # brought in by a hook of accelerate
            self._seen.add(storage._cdata)
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self.total += storage.nbytes()
        self._alive.append(tensor)
        return tensor

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        floating = [t for t in tensors_of((*args, *kwargs.values())) if t.is_floating_point()][:1]  # masks are shared
        self._inputs += sum(t.numel() * t.itemsize for t in floating)
        self._of_blocks.append(-self.total)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._of_blocks[-1] += self.total


class _Fused(torch.autograd.Function):
    """What a fused kernel keeps of attention: queries, keys, values and the output, no weights between positions."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class _FusedAttention(TorchFunctionMode):
    """Counts torch's attention on the meta device, which has no fused kernel, as devices with one keep it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and len(args) >= 3:
            apply: Callable[..., Tensor] = _Fused.apply
            return apply(*args[:3])
        return func(*args, **(kwargs or {}))


_as_it_is: Callable[[Tensor], Tensor] = lambda tensor: tensor  # noqa: E731
