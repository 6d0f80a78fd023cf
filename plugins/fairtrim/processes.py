"""Several processes that share one data set: each scores its share, and sums are added up over all of them.

Names and errors travel as JSON in tensors of bytes, so that nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from .errors import InputError, ProcessError
from .placement import is_sharded

__all__ = ["Processes", "check_calls_in_step", "share_of_process"]

Sample = TypeVar("Sample", covariant=True)


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

    W is their ``count``, 0 … W−1 this one's ``rank``; ``distributed=None`` asks ``torch.distributed``.
    """

    def __init__(self, distributed: bool | None = None) -> None:
        running = dist.is_available() and dist.is_initialized()
        if distributed and not running:
            raise InputError(
                "distributed=True, but torch.distributed is not initialised; start the script with torchrun and call "
                "torch.distributed.init_process_group first"
            )
        together = running and distributed is not False
        self.count, self.rank = (dist.get_world_size(), dist.get_rank()) if together else (1, 0)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block in every process; when it fails in one, it fails in all, rather than leave them waiting."""
        if self.count == 1:
            yield
            return
        try:
            yield
        except Exception as error:
            self.exchange(f"{type(error).__name__}: {error}")
            raise
        failed = {rank: message for rank, message in enumerate(self.exchange(None)) if message is not None}
        if failed:
            rank, message = next(iter(failed.items()))
            raise ProcessError(f"process {rank} of {self.count} failed, so nothing was computed here: {message}")

    def exchange(self, value: Any) -> list[Any]:
        """What every process says, by rank: whatever JSON can hold."""
        if self.count == 1:
            return [json.loads(json.dumps(value))]
        told = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self._device())
        with _connection():
            sizes = [torch.zeros(1, dtype=torch.int64, device=told.device) for _ in range(self.count)]
            dist.all_gather(sizes, torch.tensor([len(told)], device=told.device))
            longest = max(int(size) for size in sizes)
            heard = [torch.zeros(longest, dtype=torch.uint8, device=told.device) for _ in range(self.count)]
            dist.all_gather(heard, torch.nn.functional.pad(told, (0, longest - len(told))))
        return [json.loads(bytes(h[: int(size)].tolist())) for h, size in zip(heard, sizes, strict=True)]

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
        total = tensor.to(self._device(), copy=True).contiguous()
        with _connection():
            dist.all_reduce(total)
            dist.broadcast(total, 0)
        return total.cpu()

    @staticmethod
    def _device() -> torch.device:
        """Where the backend wants tensors: NCCL knows only GPUs."""
        return (
            torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
        )


def check_calls_in_step(model: nn.Module, n_batches: int | None) -> None:
    """Refuse shares of different lengths for a sharded network, whose layers wait for all processes at every call.

    Args:
        model: The network.
        n_batches: That this process will read; None if that isn't known.

    Raises:
        InputError: The processes would call the network differently often, or it isn't known how often.
    """
    processes = Processes()
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
