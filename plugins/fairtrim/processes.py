"""Several processes that share one data set: each scores its share, and sums are added up over all of them.

Names and errors travel as JSON in tensors of bytes, so that nothing is unpickled.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from .errors import InputError, ProcessError
from .placement import first_device, is_sharded

__all__ = ["Processes", "check_calls_in_step", "share_of_process"]

Sample = TypeVar("Sample", covariant=True)
Entry = TypeVar("Entry")

SECONDS_BETWEEN_MEETINGS = 60.0


def share_of_process(dataset: Dataset[Sample]) -> Subset[Sample]:
    """The samples that this process scores: every W-th of them for W processes, none twice, none left out.

    ``DistributedSampler`` evens the shares out by repeating samples, which would then count twice.

    Args:
        dataset: The whole data set, the same in every process.

    Returns:
        This process's share; everything where ``torch.distributed`` is not initialised.

    Raises:
        InputError: It is a stream, or a loader.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> len(share_of_process(TensorDataset(torch.eye(3))))
        3
    """
    if isinstance(dataset, DataLoader | IterableDataset) or not hasattr(dataset, "__len__"):
        raise InputError(
            f"got a {type(dataset).__name__}; expected the dataset itself, with __getitem__ and __len__: "
            "DataLoader(share_of_process(dataset), ...). A stream has to be shared out where it is read"
        )
    processes = Processes()
    return Subset(dataset, range(processes.rank, len(dataset), processes.count))


class Processes:
    """The processes that work together, or this one alone.

    W is their ``count``, 0 … W−1 this one's ``rank``. A backend's watchdog ends processes that wait for long (NCCL's
    after 10 minutes, Gloo's after 30), so that they meet once a minute during a pass, at their next batch each.

    Args:
        distributed: Whether there are others; None asks ``torch.distributed``.
        model: The network that is run, on whose device tensors are exchanged where the backend takes none of the CPU.
    """

    def __init__(self, distributed: bool | None = None, model: nn.Module | None = None) -> None:
        running = dist.is_available() and dist.is_initialized()
        if distributed and not running:
            raise InputError(
                "distributed=True, but torch.distributed is not initialised; start the script with torchrun and call "
                "torch.distributed.init_process_group first"
            )
        together = running and distributed is not False
        self.count, self.rank = (dist.get_world_size(), dist.get_rank()) if together else (1, 0)
        self._model = model if isinstance(model, nn.Module) else None

    _model: nn.Module | None = None
    _between = 0.0
    _met = 0.0
    _heard: ProcessError | None = None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block in every process; when it fails in one, it fails in all, rather than leave them waiting."""
        if self.count == 1:
            yield
            return
        # the layers of a sharded network wait for all: nobody may call it while another is somewhere else
        in_step = self._model is not None and is_sharded(self._model)
        self._between = 0.0 if in_step else SECONDS_BETWEEN_MEETINGS
        self._met = time.monotonic()
        try:
            yield
        except BaseException as error:  # an interrupt, too
            if error is not self._heard:  # of that one all know
                with suppress(ProcessError):
                    self._meet(f"{type(error).__name__}: {error}".removesuffix(": "))
            raise
        while self._meet(working=False):  # others may have more to do
            pass

    def attending(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Go through something, in a block that is run ``together``, and meet the others now and then.

        How many entries each process has doesn't matter.
        """
        for entry in entries:
            self.attend()
            yield entry

    def attend(self) -> None:
        """Meet the others if it is time to, in a block that is run ``together``."""
        if self.count > 1 and time.monotonic() - self._met >= self._between:
            self._meet()

    def _meet(self, failure: str | None = None, *, working: bool = True) -> bool:
        """Tell the others how it goes, and hear whether anybody still works; raises what another has failed by."""
        failed, still = self.sum(torch.tensor([failure is not None, working], dtype=torch.int64, device="cpu")).tolist()
        if failed:
            told = self.exchange(failure)
            rank, message = next((rank, message) for rank, message in enumerate(told) if message is not None)
            self._heard = ProcessError(
                f"process {rank} of {self.count} failed, so nothing was computed here: {message}"
            )
            raise self._heard
        self._met = time.monotonic()
        return bool(still)

    def exchange(self, value: Any) -> list[Any]:
        """What every process says, by rank: whatever JSON can hold."""
        if self.count == 1:
            return [json.loads(json.dumps(value))]
        told = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self._device())
        with _connection():
            lengths = [torch.zeros(1, dtype=torch.int64, device=told.device) for _ in range(self.count)]
            dist.all_gather(lengths, torch.tensor([len(told)], device=told.device))
            sizes = torch.cat(lengths).tolist()
            heard = [torch.zeros(max(sizes), dtype=torch.uint8, device=told.device) for _ in sizes]
            dist.all_gather(heard, torch.nn.functional.pad(told, (0, max(sizes) - len(told))))
            texts = [bytes(row[:size].tolist()) for row, size in zip(torch.stack(heard).cpu(), sizes, strict=True)]
        return [json.loads(text) for text in texts]

    def agree(self, settings: Mapping[str, Any]) -> None:
        """Refuse processes that would add up different things. Not for a block that is run ``together``."""
        told = self.exchange(dict(settings))
        for rank, other in enumerate(told):
            differs = sorted(key for key in other if other[key] != told[0].get(key))
            if differs:
                raise InputError(
                    f"processes 0 and {rank} have another {', '.join(differs)}; expected the same network and "
                    "arguments in every process: load one checkpoint, or seed alike, before scoring"
                )

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of a CPU tensor of one shape over all processes, the same to the last bit in each."""
        if self.count == 1:
            return tensor
        with _connection():
            total = tensor.to(self._device(), copy=True).contiguous()
            dist.all_reduce(total)
            if total.is_floating_point():
                dist.broadcast(total, 0)
            return total.cpu()

    def _device(self) -> torch.device:
        """Where the backend takes tensors: the CPU if it can, else that of its device, of the network, or the current.

        A backend for each device is written as ``"cpu:gloo,cuda:nccl"``, which is also what None stands for.
        """
        kinds = [entry.partition(":")[0] for entry in dist.get_backend_config().split(",")]
        if "cpu" in kinds:
            return torch.device("cpu")
        bound = getattr(dist.group.WORLD, "bound_device_id", None)
        ours = None if self._model is None else first_device(self._model)
        for device in (bound, ours):
            if device is not None and device.type == kinds[0]:
                return device
        return torch.device(kinds[0], torch.get_device_module(kinds[0]).current_device())


def check_calls_in_step(model: nn.Module, n_batches: int | None) -> None:
    """Refuse shares of different lengths for a sharded network, whose layers wait for all processes at every call.

    Args:
        model: The network.
        n_batches: That this process will read; None if that isn't known.

    Raises:
        InputError: The processes would call the network differently often, or it isn't known how often.
    """
    processes = Processes(model=model)
    if processes.count == 1 or not is_sharded(model):
        return
    told = processes.exchange(n_batches)
    if None in told or len(set(told)) > 1:
        raise InputError(
            f"the processes have {told} batches, and the network is sharded (fully_shard): every call waits for all of "
            "them; expected loaders with a length, and as many batches in each: give every process as many samples"
        )


@contextmanager
def _connection() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's distributed errors are RuntimeErrors, and say which peer
        raise ProcessError(
            f"another process is gone, or was not called with the same arguments ({error}); the network is as before: "
            "start all processes again"
        ) from error
