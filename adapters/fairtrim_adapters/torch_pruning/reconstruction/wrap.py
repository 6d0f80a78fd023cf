"""One line around the step of any Torch-Pruning script: what reads a removed channel is refitted, without a label."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fairtrim import FairtrimError, InputError, UnsupportedModelError
from fairtrim.arguments import RandomState, require_known
from fairtrim.damage.reading_options import Reading
from fairtrim.data.batches import Batch, ForwardFunction, LossFunction, iterate_batches
from fairtrim.data.sensitive_groups import SensitiveNames
from fairtrim.data.sensitive_loader import with_sensitive_features
from fairtrim.network.scored_network import OutputTransform, ScoredNetwork
from fairtrim.placement import require_whole
from fairtrim.preservation import insist, preserved_random_state, undisturbed
from fairtrim.printing import Block, Printed, count, flag_lines
from fairtrim.reconstruction import Reader, Reconstruction, reconstruct
from fairtrim_adapters.torch_pruning.graph.head_counts import tell_heads
from fairtrim_adapters.torch_pruning.graph.kept import KeptChannels, corrected, readers_of_removed
from fairtrim_adapters.torch_pruning.graph.level_pruner import freeze, frozen_parameters
from fairtrim_adapters.torch_pruning.graph.undoing import Held, undone
from fairtrim_adapters.torch_pruning.importances.channel_importance import ChannelImportance
from fairtrim_adapters.torch_pruning.verification.trial_run import at_least_two, failing

from .group_table import group_table, who_pays
from .measuring import measured_by_group, shares_samples

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ReconstructionOptions", "Refit", "reconstructed"]

_logger = logging.getLogger("fairtrim.torch_pruning")

_SAMPLES_OF_REFIT = 4096


class ReconstructionOptions(TypedDict, total=False):
    """How a refit reads data and calls the network, and what is measured.

    Attributes:
        forward_fn: How to call the network: ``forward_fn(model, inputs)``.
        output_transform: Finds the scores (N, K) in what the network returns; for measuring only.
        loss_fn: Loss of scores and target that is measured; default cross-entropy.
        sensitive_features: Of a loader of (inputs, target), one row a sample of its dataset, shuffled or not; see
            ``fairtrim.with_sensitive_features``.
        held_out_sensitive_features: The same of ``held_out``.
        sensitive_names: Names of the sensitive features, and of their values.
        weigh_groups: Whether sensitive groups count alike in the refit, whatever their size; default False.
        max_samples: Refit on at most so many samples, default 4096.
        random_state: Of the positions that are sampled.
        distributed: Whether the sums are added up over the processes of ``torch.distributed``; default: if it is
            initialised with several.
        after_step: What your script does to the network after each step before it can run. The number of heads in
            modules that are named like those of timm and Hugging Face needs none.
        measure: Whether loss and accuracy of every sensitive group are measured afterwards; default True.
        progress: Show progress bars; default True.

    Example:
        >>> options: ReconstructionOptions = {"weigh_groups": True, "progress": False}
    """

    forward_fn: ForwardFunction | None
    output_transform: OutputTransform | None
    loss_fn: LossFunction
    sensitive_features: Any
    held_out_sensitive_features: Any
    sensitive_names: SensitiveNames | None
    weigh_groups: bool
    max_samples: int
    random_state: RandomState
    distributed: bool | None
    after_step: Callable[[nn.Module], Any] | None
    measure: bool
    progress: bool


_OF_REFIT = ("forward_fn", "weigh_groups", "max_samples", "random_state", "distributed", "progress")
_OF_READING = ("forward_fn", "output_transform", "loss_fn", "sensitive_names", "progress")


@dataclass
class Refit(Printed):
    """What ``reconstructed`` did, known when its block has ended; print it.

    Attributes:
        kept: What every layer that reads removed channels still has.
        reconstruction: What became of each such layer; None before the end of the block.
        measured: One row a sensitive group, and ``everybody``: people, loss and accuracy of the network before the
            block and now, the change and its standard error, sample by sample. None if it was not measured.
        predicted: The prediction of fairtrim's importance for each sensitive group: of ``compensated=True`` for the
            network after the refit, else for that without one; None of other importances.
        measured_on: On which samples, or why not.
        flags: What a user should know of how it was measured.

    Example: see ``reconstructed``, which makes one.
    """

    kept: list[KeptChannels] = field(default_factory=list)
    reconstruction: Reconstruction | None = None
    measured: pd.DataFrame | None = None
    predicted: pd.DataFrame | None = None
    measured_on: str = ""
    flags: tuple[str, ...] = ()

    def verdict(self) -> str:
        """How many layers were refitted, and who paid for the step.

        Returns:
            One sentence.
        """
        if self.reconstruction is None:
            return "Not refitted yet: that is done where the block ends."
        if not self.kept:
            return "Nothing to refit: no layer lost inputs in the block."
        if self.measured is None:
            return self.reconstruction.verdict()
        return f"With {self.reconstruction.share()} refitted, {who_pays(self.measured)}."

    def blocks(self) -> Iterator[Block]:
        """The verdict, the figures of each group, what became of the layers, and flags."""
        yield self.verdict()
        if self.reconstruction is None:
            return
        if self.measured is not None:
            yield group_table(self.measured, self.predicted, on=self.measured_on)
        if self.kept:
            yield "\n".join(self.reconstruction.told())
        not_measured = [self.measured_on] if self.measured is None and self.measured_on else []
        yield from flag_lines([*not_measured, *self.flags, *self.reconstruction.flags])


@contextmanager
def reconstructed(
    pruner: tp.pruner.BasePruner,
    loader: Iterable[Any],
    *,
    held_out: Iterable[Any] | None = None,
    **options: Unpack[ReconstructionOptions],
) -> Iterator[Refit]:
    """Wrap steps of any Torch-Pruning script: what reads a removed channel is refitted to the outputs it had.

    For any importance, local, global and isomorphic pruning, heads, interactive steps and ``negative_groups``; any
    number of steps or groups inside of one block. At its end every layer that lost inputs is fitted by least squares to
    what it gave before the block, layer by layer in the order of computation, on the loader's inputs; no label is used
    and nothing is trained. Layers stay the same objects; their parameters are those that Torch-Pruning made. Heads that
    are left are written into attention modules, and frozen parameters stay frozen. Torch-Pruning's own maps are put in
    order inside of the block (docs/torch_pruning.md lists their faults).

    Of an iterative pruner, open a block around each step, with a fit of fairtrim's importance before it: refitted in
    between, several steps lose far less than one. So it is in ``prune_copy``.

    On an error, in the block or after it, network, pruner and graph are as before the block.

    Args:
        pruner: The pruner whose network is pruned in the block.
        loader: Batches of (inputs, target) or (inputs, target, sensitive), that can be gone through several times.
        held_out: Other samples, on which the loss and accuracy of every sensitive group are measured; default those of
            the refit, which flatters.
        options: See ``ReconstructionOptions``.

    Yields:
        What was done, known when the block has ended.

    Raises:
        InputError: The pruner, the loader or an option is wrong.
        UnsupportedModelError: The network can't be copied, gives random outputs in eval mode, doesn't run afterwards,
            or was trained in the block.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> magnitude = tp.importance.GroupMagnitudeImportance()
        >>> settings = {"importance": magnitude, "pruning_ratio": 0.5, "ignored_layers": [model[2]]}
        >>> pruner = tp.pruner.BasePruner(model, torch.ones(1, 4), **settings)
        >>> people = [(torch.randn(200, 4), torch.arange(200) % 2, ["a", "b"] * 100)]
        >>> with reconstructed(pruner, people, progress=False) as refit:
        ...     pruner.step()
        >>> model[2].in_features, [layer.module for layer in refit.reconstruction.layers]
        (8, ['2'])
        >>> list(refit.measured["sensitive_group"])
        ['a', 'b', 'everybody']
    """
    reading = _checked(pruner, loader, held_out, options)
    loader = with_sensitive_features(loader, options.get("sensitive_features"))
    of_held_out = options.get("held_out_sensitive_features")
    held_out = with_sensitive_features(held_out, of_held_out, argument="held_out_sensitive_features")
    model, graph = pruner.model, pruner.DG
    network = reading.network(model)
    with preserved_random_state(loader):
        batch = next(iter(iterate_batches(loader, network.device, max_batches=1, progress=False)))
    trial = _Trial(network, at_least_two(batch))
    dense, frozen = _twin(model), frozen_parameters(model)
    held, numbers = Held(graph, pruner), _numbers(model)
    known, step = len(graph.pruning_history()), pruner.current_step
    refit = Refit()
    try:
        with undone(held, only_on_error=True):
            with corrected(graph):
                yield refit
            if pruner.current_step == step and len(graph.pruning_history()) == known:
                warnings.warn(
                    "the block of reconstructed ended without a step, so that nothing is refitted; expected "
                    "pruner.step() inside of it",
                    stacklevel=3,
                )
            after_step = options.get("after_step")
            with failing(_without(graph, known)):
                after_step(model) if after_step is not None else tell_heads(model, pruner)
            freeze(model, frozen)
            trial.check(_without(graph, known))
            refit.kept = readers_of_removed(graph, pruner, held, known)
            readers = [_reader(model, layer) for layer in refit.kept]
            of_refit: Any = {name: options[name] for name in _OF_REFIT if name in options}  # type: ignore[literal-required]
            done = reconstruct(model, dense, loader, readers, **of_refit) if readers else Reconstruction(())
            if options.get("measure", True):
                _measure(refit, dense, model, loader, held_out, reading, options.get("max_samples", _SAMPLES_OF_REFIT))
            importance = pruner.importance
            if isinstance(importance, ChannelImportance) and hasattr(importance, "selection_"):
                predicted = importance.report(measure=False).predicted
                refit.predicted = predicted if len(predicted) else None
                importance._note_refit(graph, known)
            refit.reconstruction = done
            _logger.debug("refit of step %d: %s", pruner.current_step, done)
    except BaseException:
        insist(lambda: _put_back(numbers))
        raise


def _checked(
    pruner: tp.pruner.BasePruner, loader: Iterable[Any], held_out: Iterable[Any] | None, options: ReconstructionOptions
) -> Reading:
    """Refuse what is wrong before anything is done."""
    if not isinstance(pruner, tp.pruner.BasePruner):
        raise InputError(
            f"got a {type(pruner).__name__}; expected the pruner: with reconstructed(pruner, loader): pruner.step()"
        )
    ScoredNetwork(pruner.model).check()
    require_whole(pruner.model)
    require_known("reconstructed", options, ReconstructionOptions.__annotations__)
    for name, given in (("loader", loader), ("held_out", held_out)):
        if isinstance(given, Iterator):
            raise InputError(
                f"{name} is a {type(given).__name__}, which gives its batches only once; expected a DataLoader or a "
                "list of batches: they are gone through several times"
            )
    if held_out is not None and options.get("measure", True) and shares_samples(loader, held_out):
        warnings.warn(
            "held_out gives samples that the loader gives, too, on which layers are refitted: what is measured there "
            "flatters; expected samples of their own",
            stacklevel=4,
        )
    reading: Any = {name: options[name] for name in _OF_READING if name in options}  # type: ignore[literal-required]
    return Reading(**reading)


def _twin(model: nn.Module) -> nn.Module:
    """The network as it is, for as long as another one is made of its modules.

    It shares all large tensors, which a refit replaces and never changes; vectors and buffers, which it may change, are
    its own.
    """
    memo: dict[int, Any] = {id(p): p for p in model.parameters() if p.ndim > 1}
    try:
        return copy.deepcopy(model, memo).eval()
    except Exception as error:  # whatever an attribute of a module may raise
        raise UnsupportedModelError(
            f"the network can't be copied ({type(error).__name__}: {error}), and the network before the step is what "
            "layers are refitted to; expected modules that copy.deepcopy takes: no open files, locks, generators or "
            "results of computations among their attributes (detach() tensors that are kept there)"
        ) from error


def _numbers(model: nn.Module) -> list[tuple[Tensor, int, Tensor]]:
    """What a refit may change in place though nothing was removed from it: vectors and buffers."""
    small = [p for p in model.parameters() if p.ndim <= 1]
    return [(tensor, tensor._version, tensor.detach().clone()) for tensor in (*small, *model.buffers())]


def _put_back(numbers: list[tuple[Tensor, int, Tensor]]) -> None:
    with torch.no_grad():
        for tensor, version, value in numbers:
            if tensor._version != version:
                tensor.copy_(value)


def _without(graph: tp.DependencyGraph, known: int) -> str:
    names = sorted({str(entry[0]) for entry in graph.pruning_history()[known:]})
    return f"without the channels that the block took from {', '.join(names) or 'no layer'}"


def _reader(model: nn.Module, layer: KeptChannels) -> Reader:
    """The layer as the core takes it: torch's own are known there, or, like attention, known to be no one weight."""
    module = model.get_submodule(layer.module)
    known = isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or "weight" not in module._parameters
    return Reader(layer.module, layer.outputs, None if known else layer.input_axis)


class _Trial:
    """Whether the network still runs, in both modes, and gives outputs of the same shapes."""

    def __init__(self, network: ScoredNetwork, batch: Batch) -> None:
        self._network, self._batch = network, batch
        self._shapes = {False: self._run(training=False)}
        try:
            self._shapes[True] = self._run(training=True)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a network may raise: then its training mode can't be looked at
            return

    def _run(self, *, training: bool) -> Any:
        with undisturbed(self._network.model, training=training), torch.no_grad():
            output = self._network.output(self._batch.inputs, index=self._batch.index)
        return tree_map(lambda leaf: tuple(leaf.shape) if isinstance(leaf, Tensor) else None, output)

    def check(self, without: str) -> None:
        """Refuse a network that doesn't run any more."""
        for training, shapes in self._shapes.items():
            where = f"{without}, in {'training' if training else 'eval'} mode,"
            with failing(where):
                now = self._run(training=training)
            if now != shapes:
                raise UnsupportedModelError(
                    f"{where} the network gives outputs of shapes {now}; expected {shapes}, as before. Add the layers "
                    "that produce them to ignored_layers"
                )


def _measure(
    refit: Refit,
    dense: nn.Module,
    pruned: nn.Module,
    loader: Iterable[Any],
    held_out: Iterable[Any] | None,
    reading: Reading,
    max_samples: int,
) -> None:
    """Loss and accuracy of each group; what can't be measured is said, for the refit itself needs no label."""
    samples, limit = (loader, max_samples) if held_out is None else (held_out, None)
    try:
        table = measured_by_group(dense, pruned, samples, reading, max_samples=limit)
    except FairtrimError as error:
        refit.measured_on = f"not measured: {error}"
        return
    people = count(table["people"].iloc[-1])  # the last row is everybody, or the one group that there is
    refit.measured = table
    refit.measured_on = f"{people} held-out samples"
    if held_out is None:
        refit.measured_on = f"{people} of the samples that layers were refitted on"
        refit.flags = (f"measured on {refit.measured_on}, which flatters: pass held_out=",)
