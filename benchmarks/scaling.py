"""How the cost of scoring grows with samples, channels, sensitive groups and processes, as ratios within one run.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --large      # 10,000 channels, 50,000 samples: time, memory, error of the sketch

Multilayer perceptrons of five equal layers over 64 random inputs, two classes, batches of 250. "one by one" is the
damage table of single channels; "exact" and "sketched" are the two ways of keeping pairs of channels for joint
selection. Each figure is the least of several repetitions, in CPU seconds of one thread, or for processes in seconds by
the clock.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from benchmarks.cost import plain_pass
from torch import Tensor, nn

from fairtrim import ChannelGroup, ChannelPlace, DamageTable, collect_damage
from fairtrim.criteria import WorstGroup
from fairtrim.selection import Pool, joint_selection

DEPTH, BATCH = 5, 250
WAYS: dict[str, Any] = {"one by one": False, "exact": "exact", "sketched": "sketched"}


@dataclass(frozen=True)
class RandomBatches:
    """Batches that are drawn anew, and alike, each time; they take no memory.

    Attributes:
        n_samples: N.
        n_groups: G.
        rank: Which share, of how many: every so many-th batch.
        count: Number of shares.
    """

    n_samples: int
    n_groups: int = 2
    rank: int = 0
    count: int = 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for number in range(self.rank, self.n_samples // BATCH, self.count):
            generator = torch.Generator().manual_seed(number)
            x = torch.randn(BATCH, 64, generator=generator)
            yield x, (x[:, :8].sum(1) > 0).long(), torch.randint(0, self.n_groups, (BATCH,), generator=generator)

    def __len__(self) -> int:
        return len(range(self.rank, self.n_samples // BATCH, self.count))


def perceptron(n_channels: int) -> tuple[nn.Sequential, list[ChannelGroup]]:
    """Five hidden layers, briefly trained.

    Args:
        n_channels: C, over all of them.

    Returns:
        The network and its channel groups.
    """
    torch.manual_seed(0)
    width = n_channels // DEPTH
    layers: list[nn.Module] = [nn.Linear(64, width), nn.ReLU()]
    for _ in range(DEPTH - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(width, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for x, y, _ in RandomBatches(20 * BATCH):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    groups = [
        ChannelGroup(
            str(2 * k), width, (ChannelPlace(str(2 * k + 2), "input", range(width), range(width), channel_axis=-1),)
        )
        for k in range(DEPTH)
    ]
    return model, groups


def seconds(function: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> float:
    """The least of three runs, after one that is not counted.

    Args:
        function: What to time.
        clock: What is measured.

    Returns:
        Seconds.
    """
    function()
    times = []
    for _ in range(3):
        start = clock()
        function()
        times.append(clock() - start)
    return min(times)


def table(title: str, column: str, values: list[int], runs: Callable[[int], dict[str, float]], base: str) -> None:
    """Print a table of ratios.

    Args:
        title: What is varied.
        column: Its name.
        values: The sizes.
        runs: Seconds of each way at one size.
        base: ``"first row"``, or the name of the way that everything else of a row is divided by.
    """
    frame = pd.DataFrame({value: runs(value) for value in values}).T
    frame = frame / frame.iloc[0] if base == "first row" else frame.div(frame.pop(base), axis=0)
    frame.index.name = column
    print(f"\n{title}\n{frame.to_string(float_format=lambda ratio: f'{ratio:.2f}')}", flush=True)


def scored(
    model: nn.Module,
    groups: list[ChannelGroup],
    batches: RandomBatches,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, float]:
    """Seconds of the three ways.

    Args:
        model: The network.
        groups: Its channel groups.
        batches: The data.
        clock: What is measured.

    Returns:
        By name.
    """

    def once(interactions: Any) -> DamageTable:
        return collect_damage(model, batches, groups, interactions=interactions, progress=False)

    return {name: seconds(lambda way=way: once(way), clock) for name, way in WAYS.items()}  # type: ignore[misc]


def _process(rank: int, count: int, folder: str, n_samples: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{count}", rank=rank, world_size=count)
    model, groups = perceptron(1000)
    share = RandomBatches(n_samples, rank=rank, count=count)
    times = scored(model, groups, share, time.perf_counter)
    if rank == 0:
        pd.Series(times).to_json(Path(folder) / f"{count}.json")
    dist.destroy_process_group()


def in_processes(count: int, n_samples: int) -> dict[str, float]:
    """Seconds of the three ways when several processes of one thread share the data.

    Args:
        count: Number of processes.
        n_samples: N, over all.

    Returns:
        By name.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_process, (count, folder, n_samples), nprocs=count)  # type: ignore[no-untyped-call, attr-defined]
        return {str(k): float(v) for k, v in pd.read_json(Path(folder) / f"{count}.json", typ="series").items()}


def removed(order: Tensor, sizes: dict[str, int], number: int) -> dict[str, list[int]]:
    """The first channels of an order, by layer.

    Args:
        order: Columns, first removed first.
        sizes: C of each layer.
        number: How many.

    Returns:
        Channel numbers by layer.
    """
    chosen: dict[str, list[int]] = {name: [] for name in sizes}
    names = [(name, channel) for name, size in sizes.items() for channel in range(size)]
    for column in order[:number].tolist():
        name, channel = names[column]
        chosen[name].append(channel)
    return chosen


def large(n_channels: int, n_samples: int) -> None:
    """Score and select jointly where Gram matrices have no room.

    Args:
        n_channels: C.
        n_samples: N.
    """
    model, groups = perceptron(n_channels)
    start = time.perf_counter()
    scores = collect_damage(model, RandomBatches(n_samples), groups, interactions=True)
    scoring, start = time.perf_counter() - start, time.perf_counter()
    pools = [Pool(tuple(scores.sizes), n_channels // 2)]
    selection = joint_selection(scores, WorstGroup(), pools=pools, progress=True)
    selecting = time.perf_counter() - start
    half = removed(selection.order, dict(scores.sizes), n_channels // 2)
    change = ", ".join(
        f"{c:+.4f} ± {e:.4f}"
        for c, e in zip(scores.predict(half).tolist(), scores.prediction_error(half).tolist(), strict=True)
    )
    print(f"\n{n_channels} channels, {n_samples} samples, 2 sensitive groups")
    print(f"scoring {scoring:.0f} s, joint selection {selecting:.0f} s")
    print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    print(f"half of the channels removed: predicted change of the groups' losses {change} (error of the sketch)")


def sketch_against_exact(n_channels: int, n_samples: int) -> None:
    """What the sketch loses where both fit.

    Args:
        n_channels: C.
        n_samples: N.
    """
    model, groups = perceptron(n_channels)
    exact, sketched = (
        collect_damage(model, RandomBatches(n_samples, 3), groups, interactions=way, progress=False)
        for way in ("exact", "sketched")
    )
    rows = {}
    for share in (0.2, 0.5, 0.8):
        number = int(share * n_channels)
        sets = [
            removed(joint_selection(t, WorstGroup(), pools=[Pool(tuple(t.sizes), number)]).order, dict(t.sizes), number)
            for t in (exact, sketched)
        ]
        chosen = [{(name, c) for name, channels in by_layer.items() for c in channels} for by_layer in sets]
        rows[f"{share:.0%}"] = {
            "same channels": len(chosen[0] & chosen[1]) / number,
            "worst group, chosen exactly": exact.predict(sets[0]).max().item(),
            "chosen by sketch": exact.predict(sets[1]).max().item(),
            "as the sketch predicts it": sketched.predict(sets[1]).max().item(),
            "its error": sketched.prediction_error(sets[1]).max().item(),
        }
    frame = pd.DataFrame(rows).T.to_string(float_format=lambda value: f"{value:.4f}")
    print(f"\nSketch against Gram matrices, {n_channels} channels, {n_samples} samples, 3 groups\n{frame}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="only the large run")
    parser.add_argument("--channels", type=int, default=10_000, help="of the large run")
    parser.add_argument("--samples", type=int, default=50_000, help="of the large run")
    arguments = parser.parse_args()
    if arguments.large:
        large(arguments.channels, arguments.samples)
        return
    torch.set_num_threads(1)
    model, groups = perceptron(1000)
    samples = [2_500, 5_000, 10_000, 20_000]
    table("Samples", "N", samples, lambda n: scored(model, groups, RandomBatches(n)), "first row")
    people = [1, 4, 16, 64, 256]
    table("Sensitive groups", "G", people, lambda g: scored(model, groups, RandomBatches(10_000, g)), "first row")

    def of_channels(n_channels: int) -> dict[str, float]:
        network, its_groups = perceptron(n_channels)
        batches = RandomBatches(2_500)
        plain = {"plain pass": seconds(lambda: plain_pass(network, batches))}
        return {**plain, **scored(network, its_groups, batches)}

    table("Channels, in plain forward and backward passes", "C", [500, 1000, 2000, 4000], of_channels, "plain pass")
    table("Processes of one thread each", "W", [1, 2], lambda count: in_processes(count, 10_000), "first row")
    sketch_against_exact(2_000, 20_000)


if __name__ == "__main__":
    main()
