"""The figures of the check of a device; each takes sizes and a device, and gives rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from benchmarks.gpu.networks import (
    Batches,
    Residual,
    Sizes,
    VisionTransformer,
    batches_of,
    convolution,
    groups_of_vit,
    pruner_of,
    resnet50,
)
from benchmarks.gpu.reading import (
    Operations,
    Row,
    costs,
    counted_waits,
    differences,
    kept_bytes,
    plain_pass,
    seconds,
    tensor_cores,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fairtrim import ChannelGroup, ChannelPlace, DamageTable, collect_damage, estimate_scoring
from fairtrim.damage.channel_groups import channel_sites
from fairtrim.damage.gates import hooked_gates
from fairtrim.damage.input_moments import input_moments
from fairtrim.damage.weight_saliency import squared_gradients
from fairtrim_adapters.torch_pruning import MeanDamageImportance, reconstructed
from fairtrim_adapters.torch_pruning.graph.plan import plan_of_pruner


def scoring(sizes: Sizes, device: torch.device) -> list[Row]:
    """ResNet-50 of 2 and 10 classes: exact curvature takes K − 1 backward passes, target 1.1 plain passes for each."""
    rows = []
    for n_classes in (2, 10):
        model = resnet50(n_classes, sizes)
        groups = plan_of_pruner(pruner_of(model, sizes, torch.device("cpu"))).groups
        batches = batches_of(n_classes, sizes, device)
        model.to(device)

        def score(model: nn.Module = model, batches: Batches = batches, groups: Any = groups) -> DamageTable:
            return collect_damage(model, batches, groups, progress=False)

        def plain(model: nn.Module = model, batches: Batches = batches) -> None:
            plain_pass(model, batches)

        target = 1.1 * (n_classes - 1)
        rows += costs({"scoring": (score, target)}, plain, sizes, device, f"ResNet-50, K = {n_classes}: ")
    return rows


def attention(kernel: SDPBackend, sizes: Sizes, device: torch.device) -> list[Row]:
    """ViT-B/16 of 10 classes in bfloat16 under a kernel of attention; flash attention knows no float32."""
    sizes = replace(sizes, batch=max(1, sizes.batch // 2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VisionTransformer(10, sizes).eval().to(device)
    batches, groups = batches_of(10, sizes, device), groups_of_vit(sizes)

    def score() -> DamageTable:
        return collect_damage(model, batches, groups, progress=False)

    named: Any = {"scoring": (score, 1.1 * 9)}
    with torch.autocast(device.type, torch.bfloat16):
        with sdpa_kernel(SDPBackend.MATH):
            reference = score()
        with sdpa_kernel(kernel):
            largest, own = differences(score(), reference)
            rows = costs(named, lambda: plain_pass(model, batches), sizes, device, "ViT-B/16, K = 10: ")
    if kernel != SDPBackend.MATH:
        rows.append(Row("damages: largest difference from math", largest, "of layer's largest"))
        rows.append(Row("damages: median difference from math", own, "of its own"))
    return rows


def agreement(sizes: Sizes, device: torch.device) -> list[Row]:
    """Damages of ResNet-50 of 2 classes there, in each precision, beside those of the CPU in float64."""
    sizes = replace(sizes, pixels=min(sizes.pixels, 112), batch=min(sizes.batch, 16), batches=1)
    model, cpu = resnet50(2, sizes), torch.device("cpu")
    groups = plan_of_pruner(pruner_of(model, sizes, cpu)).groups
    batches = batches_of(2, sizes, cpu)
    exact = [(x.double(), y, a) for x, y, a in batches]
    reference = collect_damage(model.double(), exact, groups, progress=False)
    model.float().to(device)
    there = [(x.to(device), y.to(device), a) for x, y, a in batches]
    precisions: dict[str, tuple[bool, AbstractContextManager[Any]]] = {"float32": (False, nullcontext())}
    if device.type == "cuda":
        precisions["TF32"] = True, nullcontext()
        precisions["float16 autocast"] = False, torch.autocast("cuda", torch.float16)
    if device.type in ("cpu", "cuda"):
        precisions["bfloat16 autocast"] = False, torch.autocast(device.type, torch.bfloat16)
    rows = []
    for name, (fast, precision) in precisions.items():
        with tensor_cores(fast), precision:
            largest, own = differences(collect_damage(model, there, groups, progress=False), reference)
        rows.append(Row(f"{name}: largest difference from float64", largest, "of layer's largest"))
        rows.append(Row(f"{name}: median difference from float64", own, "of its own"))
    return rows


def saliency(sizes: Sizes, device: torch.device) -> list[Row]:
    """Squared gradients of all weights of ResNet-50, 2 classes."""
    sizes = replace(sizes, batch=max(1, sizes.batch // 4), batches=min(sizes.batches, 2))
    model, batches = resnet50(2, sizes).to(device), batches_of(2, sizes, device)
    named: Any = {"squared_gradients": (lambda: squared_gradients(model, batches, progress=False), None)}
    return costs(named, lambda: plain_pass(model, batches), sizes, device, "ResNet-50, K = 2: ")


def refit(sizes: Sizes, device: torch.device) -> list[Row]:
    """Half of the channels of ResNet-50 chosen for the refit, removed, and refitted."""
    model, batches = resnet50(2, sizes).to(device), batches_of(2, sizes, device)
    importance = MeanDamageImportance(compensated=True, per="macs", progress=False)
    pruner = pruner_of(model, sizes, device, importance)
    groups = plan_of_pruner(pruner).groups

    def with_moments() -> None:
        with input_moments(model, groups) as moments:
            collect_damage(model, batches, groups, progress=False)
            moments.read()

    def step() -> None:
        with reconstructed(pruner, batches, progress=False):
            pruner.step()

    named: Any = {"scoring with moments of inputs": (with_moments, None)}
    rows = costs(named, lambda: plain_pass(model, batches), replace(sizes, repetitions=1), device, "ResNet-50: ")
    fitting = seconds(lambda: importance.fit(pruner, batches), device)
    rows.append(Row("ResNet-50: fit, the same and the choice", fitting, "s"))
    return [*rows, Row("ResNet-50: removal and refit", seconds(step, device), "s")]


def products(sizes: Sizes, device: torch.device) -> list[Row]:
    """Σ of activation · gradient over positions, what a gate adds to a backward pass, beside the product alone."""
    rows = []
    for channels, pixels in ((4 * sizes.width, sizes.pixels // 4), (32 * sizes.width, sizes.pixels // 32)):
        x, g = (torch.rand(sizes.batch, channels, pixels**2, device=device) for _ in range(2))
        forms: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "einsum": partial(torch.einsum, "ncl,ncl->nc"),
            "vecdot": torch.linalg.vecdot,
            "product and sum": lambda x, g: (x * g).sum(2),
        }
        for name, form in forms.items():
            both = partial(form, x, g), partial(torch.mul, x, g)
            pairs = [[seconds(each, device) for each in both] for _ in range(10)]
            share = statistics.median(one / other for one, other in pairs[1:])
            rows.append(Row(f"{channels} x {pixels} x {pixels}, {name}", share, "of x * g"))
    return rows


def waits(sizes: Sizes, device: torch.device) -> list[Row]:
    """How often the CPU waits for the device and copies to it: for a batch more, and for a whole run beside that."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stem, blocks = convolution(3, 8, 3), [Residual(8) for _ in range(9)]
        images = nn.Sequential(stem, nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
        linear = [layer for _ in range(5) for layer in (nn.Linear(6, 6), nn.ReLU())]
        table = nn.Sequential(*linear, nn.Linear(6, 4))
        x, y, a = torch.randn(96, 3, 8, 8), torch.randint(0, 4, (96,)), torch.arange(96) % 3
    places = [name for name, module in images.named_modules() if isinstance(module, nn.Conv2d)]
    groups = [ChannelGroup(name, 8, (ChannelPlace(name, "output", range(8), range(8)),)) for name in places]
    runs: dict[str, tuple[nn.Module, Tensor, Callable[..., Any]]] = {
        f"collect_damage, {len(groups)} places, 10 classes": (
            images,
            x,
            lambda model, batches: collect_damage(model, batches, groups, progress=False),
        ),
        "squared_gradients, 6 layers": (
            table,
            x.flatten(1)[:, :6],
            lambda model, batches: squared_gradients(model, batches, progress=False),
        ),
    }
    rows = []
    for name, (model, inputs, function) in runs.items():
        batches = list(zip(*(torch.split(each, 16) for each in (inputs, y, a)), strict=True))
        with counted_waits(device) as (there, counts):
            model.eval().to(there)
            seen = [counts()]
            for n_batches in (2, 6):
                function(model, batches[:n_batches])
                seen.append(counts())
        for what in seen[0]:
            few, many = seen[1][what] - seen[0][what], seen[2][what] - seen[1][what]
            a_batch = (many - few) / 4
            rows.append(Row(f"{name}: {what}", a_batch, "a batch"))
            rows.append(Row(f"{name}: {what} beside", few - 2 * a_batch, "a run"))
    return rows


def operations(sizes: Sizes, device: torch.device) -> list[Row]:
    """What scoring computes and moves beside a plain pass, as counted on the meta device: an estimate without a GPU.

    One batch, its forward pass and K − 1 backward passes to the gates; sums over samples, which are small beside
    them, are left out, and so is the look at the first batch.
    """
    rows, meta = [], torch.device("meta")
    x = torch.empty(sizes.batch, 3, sizes.pixels, sizes.pixels, device=meta)
    y = torch.zeros(sizes.batch, dtype=torch.long, device=meta)
    for classes in (2, 10):
        model = resnet50(classes, sizes)
        groups = plan_of_pruner(pruner_of(model, sizes, torch.device("cpu"))).groups
        model.to(meta)
        with Operations() as plain, kept_bytes(model) as kept:
            plain_pass(model, [(x, y, y)])
            memory = [kept()]
        sites, n_columns = channel_sites(model, groups), sum(group.size for group in groups)
        with hooked_gates(model, sites, n_columns) as gates, Operations() as scored, kept_bytes(model) as kept:
            gates.start(sizes.batch)
            scores = model(x)
            for k in range(classes - 1):
                gates.gradients(scores, torch.ones_like(scores), keep_graph=k < classes - 2)
            memory.append(kept())
        of, (total, moved) = f"ResNet-50, K = {classes}: ", plain.counts.tolist()
        if classes == 2:
            rows += [Row(f"{of}plain pass, operations", total / 1e12, "10^12")]
            rows += [Row(f"{of}plain pass, bytes", moved / 1e9, "10^9")]
            rows += [Row(f"{of}plain pass, kept for the backward pass", memory[0] / 2**30, "GiB")]
        for what, value in zip(("operations", "bytes"), (scored.counts / plain.counts).tolist(), strict=True):
            rows.append(Row(f"{of}scoring, {what}", value, "plain passes", 1.1 * (classes - 1)))
        rows.append(Row(f"{of}scoring, kept", memory[1] / memory[0], "plain pass's"))
        told = estimate_scoring(model, (x, y), groups)
        rows.append(Row(f"{of}scoring, memory as estimated", told.peak_bytes / 2**30, "GiB"))
    return rows


FIGURES: dict[str, tuple[Callable[[Sizes, torch.device], list[Row]], int]] = {
    "scoring": (scoring, 180),
    "agreement": (agreement, 90),
    "attention-math": (partial(attention, SDPBackend.MATH), 90),
    "attention-flash": (partial(attention, SDPBackend.FLASH_ATTENTION), 90),
    "attention-memory-efficient": (partial(attention, SDPBackend.EFFICIENT_ATTENTION), 90),
    "waits": (waits, 60),
    "products": (products, 30),
    "saliency": (saliency, 90),
    "refit": (refit, 300),
    "operations": (operations, 60),
}
"""What is read, in this order, and the most seconds each may take."""
