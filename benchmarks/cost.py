"""What scoring costs, as ratios to one plain forward and backward pass over the same batches, in one run.

    python -m benchmarks.cost
    python -m benchmarks.cost --compensated    # scoring and selection with the refit in mind, and the refit

A ResNet-34 with 16 x 16 inputs (7,616 prunable channels, 2 classes, batches of 64 random samples). Each time is
the fastest of several repetitions. With ``--compensated`` inputs are 32 x 32, there are 9,996 channels, and each time
is of one run.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from benchmarks.residual_cnn import Block
from torch import Tensor, nn

from fairtrim import DamageTable, collect_damage
from fairtrim.criteria import MeanDamage, WorstGroup
from fairtrim.damage.input_moments import input_moments
from fairtrim.damage.weight_saliency import collect_weight_saliency
from fairtrim.selection import Pool, compensated_selection, joint_selection
from fairtrim_adapters.torch_pruning import MeanDamageImportance, reconstructed
from fairtrim_adapters.torch_pruning.graph.plan import plan_of_pruner

Batches = list[tuple[Tensor, Tensor, Tensor]]


def resnet34(n_classes: int, width: int = 64) -> nn.Sequential:
    """Stages of 3, 4, 6 and 3 residual blocks.

    Args:
        n_classes: K.
        width: Channels of the first stage; doubles from stage to stage.

    Returns:
        The network in eval mode.
    """
    blocks: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    channels = width
    for stage, repeats in enumerate((3, 4, 6, 3)):
        for repeat in range(repeats):
            outputs = width * 2**stage
            blocks.append(Block(channels, outputs, 2 if stage and not repeat else 1))
            channels = outputs
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, n_classes)).eval()


def seconds(function: Callable[[], Any], repetitions: int) -> float:
    """Fastest of several runs, after one that is not counted.

    Args:
        function: What to time.
        repetitions: How often.

    Returns:
        Seconds.
    """
    function()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def batches_of(n_samples: int, n_groups: int, n_classes: int, batch_size: int = 64, pixels: int = 16) -> Batches:
    """Random data.

    Args:
        n_samples: N.
        n_groups: G.
        n_classes: K.
        batch_size: Samples a batch.
        pixels: Width and height of an image.

    Returns:
        The batches.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n_samples, 3, pixels, pixels, generator=generator)
    y = torch.randint(0, n_classes, (n_samples,), generator=generator)
    a = torch.randint(0, n_groups, (n_samples,), generator=generator)
    return list(zip(torch.split(x, batch_size), torch.split(y, batch_size), torch.split(a, batch_size), strict=True))


def plain_pass(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
    """One forward and backward pass, as in training.

    Args:
        model: The network.
        batches: The data.
    """
    for x, y, _ in batches:
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    model.zero_grad()


def documented_hessian_loop(model: nn.Module, batches: Batches) -> None:
    """The loop that Torch-Pruning's documentation gives for GroupHessianImportance.

    Args:
        model: The network.
        batches: The data.
    """
    importance = tp.importance.GroupHessianImportance()
    for x, y, _ in batches:
        importance.zero_grad()
        for loss in F.cross_entropy(model(x), y, reduction="none"):
            model.zero_grad()
            loss.backward(retain_graph=True)
            importance.accumulate_grad(model)
    model.zero_grad()


def compensated(n_samples: int) -> None:
    """Print what scoring, selection and refit cost, in plain passes.

    Args:
        n_samples: N.
    """
    model, example = resnet34(2, width=84), torch.randn(2, 3, 32, 32)
    batches = batches_of(n_samples, 2, 2, pixels=32)
    plain = seconds(lambda: plain_pass(model, batches), 1)
    importance = MeanDamageImportance(compensated=True, per="macs", progress=False)
    pruner = tp.pruner.BasePruner(
        model, example, importance, global_pruning=True, pruning_ratio=0.5, ignored_layers=[model[-1]]
    )
    groups = plan_of_pruner(pruner).groups
    n_channels = sum(group.size for group in groups)

    def timed(name: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = function()
        print(f"{name:55s} {(time.perf_counter() - start) / plain:6.2f}", flush=True)
        return result

    print(f"ResNet-34, {n_channels} channels, {n_samples} samples of 32 x 32, {torch.get_num_threads()} threads")
    print(f"plain forward + backward: {plain:.2f} s = 1.00; half of the channels go", flush=True)
    timed("damage table", lambda: collect_damage(model, batches, groups, progress=False))
    with input_moments(model, groups) as moments:
        table = timed(
            "damage table and moments of inputs", lambda: collect_damage(model, batches, groups, progress=False)
        )
        inputs = moments.read()
    pools = [Pool(tuple(table.sizes), n_channels // 2)]
    timed("compensated selection", lambda: compensated_selection(table, MeanDamage(), inputs, pools=pools))
    importance.fit(pruner, batches)

    def refit() -> None:
        with reconstructed(pruner, batches, progress=False):
            pruner.step()

    timed("removal and refit", refit)
    print(f"peak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--compensated", action="store_true", help="only what has the refit in mind")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.compensated:
        compensated(arguments.samples)
        return

    def plan(model: nn.Sequential) -> Any:
        pruner = tp.pruner.BasePruner(model, torch.randn(2, 3, 16, 16), importance=None, ignored_layers=[model[-1]])
        return plan_of_pruner(pruner)

    model = resnet34(2)
    groups = plan(model).groups
    n_channels = sum(group.size for group in groups)
    batches = {g: batches_of(arguments.samples, g, 2) for g in (1, 32)}

    def table(n_groups: int, **options: Any) -> DamageTable:
        return collect_damage(model, batches[n_groups], groups, progress=False, **options)

    def fastest(function: Callable[[], Any]) -> float:
        return seconds(function, arguments.repetitions)

    plain = fastest(lambda: plain_pass(model, batches[1]))
    print(f"ResNet-34, {n_channels} channels, {arguments.samples} samples, K = 2, {torch.get_num_threads()} threads")
    print(f"plain forward + backward: {plain:.2f} s = 1.00", flush=True)
    for name, function in {
        "damage table, empirical, 1 group": lambda: table(1, curvature="empirical"),
        "damage table, empirical, 32 groups": lambda: table(32, curvature="empirical"),
        "damage table, exact, 1 group": lambda: table(1, curvature="exact"),
        "damage table, exact, 32 groups": lambda: table(32, curvature="exact"),
    }.items():
        print(f"{name:45s} {fastest(function) / plain:6.2f}", flush=True)

    small = resnet34(2, width=16)  # Torch-Pruning's loop keeps 64 graphs alive
    few = batches_of(128, 2, 2)
    small_groups = plan(small).groups
    loop = seconds(lambda: documented_hessian_loop(small, few), 1)
    ours = fastest(lambda: collect_damage(small, few, small_groups, curvature="exact", progress=False))
    weights = fastest(lambda: collect_weight_saliency(small, few, small_groups, curvature="empirical", progress=False))
    one = fastest(lambda: plain_pass(small, few))
    print("\nquarter of the width, 128 samples in batches of 64, in plain passes:")
    print(f"Torch-Pruning's documented Hessian loop {loop / one:.1f}, weight-level saliency {weights / one:.2f},")
    print(f"damage table (exact) {ours / one:.2f}: {loop / ours:.0f} times faster than the loop", flush=True)

    n_samples = 4 * arguments.samples
    more = batches_of(n_samples, 2, 2)
    start = time.perf_counter()
    collect_damage(model, more, groups, progress=False)
    scoring = time.perf_counter() - start
    start = time.perf_counter()
    joint = collect_damage(model, more, groups, interactions="exact", progress=False)
    pairs = max(0.0, time.perf_counter() - start - scoring)
    selecting = seconds(lambda: joint_selection(joint, WorstGroup()), 1)
    scale = 10_000 / n_samples
    print(f"\njoint selection over {n_channels} channels, 2 groups (times for {n_samples} samples, scaled to 10,000):")
    print(
        f"scoring pass {scoring * scale:.1f} s, Gram matrices {pairs * scale:.1f} s, greedy selection {selecting:.1f} s"
    )
    gram = 8 * 2 * n_channels**2 / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"Gram matrices {gram:.0f} MiB; peak memory of this process {peak:.0f} MiB")


if __name__ == "__main__":
    main()
