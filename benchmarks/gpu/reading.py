"""How figures are read on a device: time in plain passes, memory, differences, waits, operations."""

from __future__ import annotations

import importlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.gpu.networks import Batches, Sizes
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fairtrim import DamageTable


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        what: Of what.
        value: The figure.
        unit: Its unit.
        target: What it should not exceed, if there is such a bound.
    """

    what: str
    value: float
    unit: str
    target: float | None = None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Time of one run, all kernels included.

    Args:
        function: What is run.
        device: Where.

    Returns:
        Seconds.
    """
    _wait(device)
    start = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - start


def plain_pass(model: nn.Module, batches: Batches) -> None:
    """Forward and backward, as in training, and the gradients of all weights.

    Args:
        model: The network.
        batches: The data.
    """
    for x, y, _ in batches:
        F.cross_entropy(model(x).float(), y).backward()  # type: ignore[no-untyped-call]
        model.zero_grad()


def peak(function: Callable[[], Any], device: torch.device) -> float | None:
    """The most memory that tensors took during a run, the network included.

    Args:
        function: What is run.
        device: Where.

    Returns:
        GiB, or None where the device doesn't count it.
    """
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return torch.cuda.max_memory_allocated(device) / 2**30


def costs(
    named: dict[str, tuple[Callable[[], Any], float | None]],
    plain: Callable[[], Any],
    sizes: Sizes,
    device: torch.device,
    of: str = "",
) -> list[Row]:
    """Each function's time in plain passes, and both peaks of memory.

    Args:
        named: Functions by name, and how many plain passes they should not exceed.
        plain: The plain pass over all batches.
        sizes: How often.
        device: Where.
        of: What stands before all names.

    Returns:
        The rows.
    """
    plain()
    plain_peak, times, rows = peak(plain, device), [], []
    for name, (function, target) in named.items():
        function()
        ratios = []
        for _ in range(sizes.repetitions):
            times.append(seconds(plain, device))
            ratios.append(seconds(function, device) / times[-1])
        rows.append(Row(f"{of}{name}", statistics.median(ratios), "plain passes", target))
        if plain_peak is not None:
            rows.append(Row(f"{of}{name}, memory", (peak(function, device) or 0.0) / plain_peak, "plain pass's"))
    first = [Row(f"{of}plain pass, a batch of {sizes.batch}", statistics.median(times) / sizes.batches, "s")]
    if plain_peak is not None:
        first.append(Row(f"{of}plain pass, memory", plain_peak, "GiB"))
    return first + rows


@contextmanager
def tensor_cores(on: bool) -> Iterator[None]:
    """Let float32 products be taken in TF32, or not.

    Args:
        on: Whether.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = on
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def differences(table: DamageTable, other: DamageTable) -> tuple[float, float]:
    """How far damages of groups of people lie from each other.

    Args:
        table: What is looked at.
        other: What it should be.

    Returns:
        The largest difference as a share of the largest damage in the same layer, and the median of differences as
        shares of each damage itself.
    """
    shares = [((table[name] - other[name]).abs().max() / other[name].abs().max()).item() for name in other.sizes]
    own = ((table.damage - other.damage).abs() / other.damage.abs()).nanmedian().item()
    return max(shares), own


@contextmanager
def counted_waits(device: torch.device) -> Iterator[tuple[torch.device, Callable[[], dict[str, int]]]]:
    """What waits there: on CUDA as torch warns of it, else as the tests' pretend device counts it."""
    if device.type == "cuda":
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield device, lambda: {"waits": sum("called a synchronizing" in str(w.message) for w in caught)}
            finally:
                torch.cuda.set_sync_debug_mode(before)
        return
    tests = importlib.import_module("tests.pretend_accelerator")
    if not tests.registered():
        raise RuntimeError("this torch has no Python backend for other devices, and the pretend device needs one")
    with tests.PretendAccelerator().running() as pretend:
        yield (
            pretend.device,
            lambda: {"waits": sum(pretend.waits.values()), "copies": sum(pretend.copies.values())},
        )


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Floating-point operations, and bytes that operations read and write if none is fused with another."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = torch.zeros(2, dtype=torch.float64)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet, schema = func.overloadpacket, func._schema
        operations = flop_registry[packet](*args, **(kwargs or {}), out_val=out) if packet in flop_registry else 0
        is_view = not schema.is_mutable and any(value.alias_info is not None for value in schema.returns)
        nothing = is_view or packet.__name__.startswith(("empty", "new_empty"))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        moved = 0 if nothing else sum(tensor.nbytes for tensor in {id(t): t for t in tensors}.values())
        self.counts += torch.tensor([operations, moved], dtype=torch.float64)
        return out


@contextmanager
def kept_bytes(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Bytes that forward passes keep for their backward passes, the network's own left out."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sum(storage.nbytes() for storage in storages.values())
