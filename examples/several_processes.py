"""Score a data set in several processes, each with a share of it, and prune the same channels in all of them.

    torchrun --nproc-per-node 2 examples/several_processes.py

Every process must hold the same network. The sums behind the scores are added up over all processes, so that each
prunes what one process would have pruned that reads everything.
"""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
import torch_pruning as tp
from prune_adult import (  # type: ignore[import-not-found]  # beside this file
    SENSITIVE_NAMES,
    load_adult,
    network,
    train,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import share_of_process
from fairtrim_adapters.torch_pruning import WorstGroupImportance


def pruned(dense: nn.Sequential, loader: DataLoader[tuple[torch.Tensor, ...]], *, distributed: bool) -> nn.Sequential:
    """A copy of the network with half of its channels removed.

    Args:
        dense: The network.
        loader: All of the data, or the share of this process.
        distributed: Which of the two.

    Returns:
        The pruned network.
    """
    model = copy.deepcopy(dense)
    importance = WorstGroupImportance(sensitive_names=SENSITIVE_NAMES, distributed=distributed, progress=False)
    pruner = tp.pruner.BasePruner(
        model,
        next(iter(loader))[0][:2],
        importance=importance,
        global_pruning=True,
        pruning_ratio=0.5,
        ignored_layers=[model[-1]],
    )
    importance.fit(pruner, loader)
    pruner.step()
    if distributed and dist.get_rank() == 0:
        print(importance.report())
    return model


def main() -> None:
    # On GPUs: "cpu:gloo,cuda:nccl", torch.cuda.set_device(int(os.environ["LOCAL_RANK"])), and dense.to("cuda") below.
    dist.init_process_group("gloo")
    adult = load_adult()
    torch.manual_seed(0)  # the same weights in every process
    dense = network(adult.train[0].shape[1])
    train(dense, tuple(t[:8000] for t in adult.train), epochs=3, seed=0)
    people = TensorDataset(*(t[8000:16001] for t in adult.train))  # an odd number: the shares are uneven
    together = pruned(dense, DataLoader(share_of_process(people), batch_size=256), distributed=True)
    alone = pruned(dense, DataLoader(people, batch_size=256), distributed=False)
    same = all(torch.equal(a, b) for a, b in zip(together.parameters(), alone.parameters(), strict=True))
    who = f"process {dist.get_rank()} of {dist.get_world_size()}"
    print(f"{who}: same network as one process alone: {same}", flush=True)
    if not same:
        raise SystemExit(1)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
