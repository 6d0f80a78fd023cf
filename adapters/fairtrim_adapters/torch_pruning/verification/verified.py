"""Everything that is looked at before channels are scored: the map, the gates, and removal on trial."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
import torch_pruning as tp
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from fairtrim.data.batches import Batch, iterate_batches
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.preservation import preserved_random_state
from fairtrim.processes import Processes
from fairtrim_adapters.torch_pruning.graph.plan import PruningPlan, warn_of_left

from .channel_axes import observed_axes, with_axes
from .map_check import check_map
from .rehearsal import Rehearsal, left_out

__all__ = ["checked_step", "is_stream", "verified"]


def verified(
    graph: tp.DependencyGraph,
    pruner: tp.pruner.BasePruner | None,
    plan: PruningPlan,
    planned: Callable[..., PruningPlan],
    loader: Iterable[Any],
    network: ScoredNetwork,
    *,
    after_step: Callable[[nn.Module], Any] | None = None,
    distributed: bool | None = None,
) -> tuple[PruningPlan, Rehearsal | None, Iterable[Any]]:
    """Look whether the channels of each group can go, and leave out the groups whose can't.

    ``planned`` makes the plan anew; its ``left=`` names groups to leave, with reasons. Gives the plan of what is left,
    the rehearsal for the step itself (None where there are no samples), and the loader, with its first batch put back
    if it is a stream.
    """
    processes = Processes(distributed, network.model)
    rehearsal: Rehearsal | None = None
    axes: dict[tuple[str, str], int] = {}
    left: dict[str, str] = {}
    unread: dict[str, list[str]] = {}
    with processes.together():
        network.check()
        batch, loader = _first_batch(loader, network.device)
        if batch is not None:
            rehearsal = Rehearsal(graph, pruner, batch, network, after_step)
            axes = observed_axes(graph, plan, batch, network)
            plan = with_axes(plan, axes)

            def check(names: Sequence[str]) -> None:
                processes.attend()
                check_map(graph, plan, batch, network, names)

            def check_gates(names: Sequence[str]) -> None:
                processes.attend()
                unread.clear()
                unread.update(rehearsal.check_gates(plan, names))

            for attempt in (check, check_gates):
                left |= left_out([group.name for group in plan.groups if group.name not in left], attempt)
            names = [group.name for group in plan.groups if group.name not in left]
            left |= rehearsal.groups_that_fail(plan, names, processes.attend)
    for others in processes.exchange(left):
        left |= others
    with processes.together():
        if left:
            plan = with_axes(planned(left={**plan.unscored, **left}), axes)
            warn_of_left(left)
        if rehearsal is not None:
            _warn_of_layers(rehearsal, unread, left)
    return plan, rehearsal, loader


def checked_step(pruner: tp.pruner.BasePruner, batch: Batch, network: ScoredNetwork) -> None:
    """Take the next step of a pruner with any importance, and see that the network runs in both modes.

    If it doesn't, it is refused, and the network is as before.
    """
    rehearsal = Rehearsal(pruner.DG, pruner, batch, network)
    _warn_of_training(rehearsal)
    rehearsal.take_step()


def _warn_of_layers(rehearsal: Rehearsal, unread: Mapping[str, Sequence[str]], left: Mapping[str, str]) -> None:
    """Name the layers that pruning changes without anybody having scored what that does."""
    readers = {reader: name for name, entries in unread.items() for reader in entries}
    if readers:
        what = ", ".join(f"{reader!r} (channels of {name!r})" for reader, name in readers.items())
        warnings.warn(
            f"these layers read channels that would be pruned, and the loss doesn't depend on them: {what}. What they "
            "compute (another head?) will change without being scored; put it into the loss with output_transform and "
            "loss_fn, or add the layers that produce the channels to ignored_layers",
            stacklevel=5,
        )
    unseen = [name for name in rehearsal.only_in_training if not any(repr(name) in why for why in left.values())]
    if unseen:
        warnings.warn(
            f"eval mode, in which channels are scored, never reaches {unseen}, which training mode runs: what "
            "pruning does to them is neither scored nor seen by Torch-Pruning",
            stacklevel=5,
        )
    _warn_of_training(rehearsal)


def _warn_of_training(rehearsal: Rehearsal) -> None:
    if rehearsal.fails_in_training:
        warnings.warn(
            "the network as it is doesn't run in training mode on the first batch, so it can't be seen whether it will "
            f"after pruning: {rehearsal.fails_in_training}",
            stacklevel=5,
        )


class _PutBack:
    """A stream from which one batch was taken to look at: the first pass gives it again."""

    def __init__(self, first: Any, rest: Iterator[Any], loader: Iterable[Any]) -> None:
        self._first, self._rest, self._loader = [first], rest, loader

    def __iter__(self) -> Iterator[Any]:
        if not self._first:
            return iter(self._loader)
        return self._once()

    def _once(self) -> Iterator[Any]:
        yield self._first.pop()
        yield from self._rest

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]


def _first_batch(loader: Iterable[Any], device: torch.device) -> tuple[Batch | None, Iterable[Any]]:
    """The first batch of a loader, and a loader that still gives it."""
    with preserved_random_state(loader):
        if is_stream(loader):
            stream = iter(loader)
            entries = list(islice(stream, 1))
            loader = _PutBack(entries[0], stream, loader) if entries else loader
            batches = iterate_batches(entries, device, progress=False, allow_empty=True)
        else:
            batches = iterate_batches(loader, device, max_batches=1, progress=False, allow_empty=True)
        return next(iter(batches), None), loader


def is_stream(loader: Any) -> bool:
    """Whether looking at the first batch would take it away."""
    if not isinstance(loader, Iterable):
        return False  # which is refused with a word
    if isinstance(loader, DataLoader):
        return isinstance(loader.dataset, IterableDataset)
    with preserved_random_state(loader):  # a wrapper may begin to shuffle
        return isinstance(loader, Iterator) or iter(loader) is iter(loader)
