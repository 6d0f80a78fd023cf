"""Importances, recipes and what looks before a step, on a device other than the CPU: the same channels go."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import SentencePairs
from fairtrim.data.data_splits import DataSplits
from fairtrim_adapters.torch_pruning import (
    IMPORTANCES,
    AccumulatedConfidence,
    ParameterAxis,
    describe_layer,
    forget_layer,
    prune_copy,
    traceable,
)
from tests.pretend_accelerator import Accelerator, PretendAccelerator
from tests.recipe_cases import data_of_recipes, mlp_of, run_recipe

CPU = torch.device("cpu")
N = 8
MINED = torch.arange(N) % 4 == 1

MAKERS: dict[str, Callable[[], Any]] = {
    "accumulated-confidence": lambda: IMPORTANCES["accumulated-confidence"](MINED),
    "contrastive": lambda: IMPORTANCES["contrastive"](MINED, iterations=3, cost="macs"),
    "group-saliency": lambda: IMPORTANCES["group-saliency"](privileged=1, level="weight", selection="single"),
    "mean-damage": lambda: IMPORTANCES["mean-damage"](compensated=True, per="macs"),
    "parity-gradient": lambda: IMPORTANCES["parity-gradient"](),
    "share-balanced": lambda: IMPORTANCES["share-balanced"](),
    "tail-risk": lambda: IMPORTANCES["tail-risk"](interactions="sketched"),
    "worst-group": lambda: IMPORTANCES["worst-group"](),
}


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(N, 4, generator=generator), torch.arange(N) % 3, torch.arange(N) % 2


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def loader_on(device: torch.device) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*(tensor.to(device) for tensor in tensors())), batch_size=5)


def pruned(importance: Any, device: torch.device, data: torch.device) -> dict[str, Any]:
    model = network().to(device)
    pruner = tp.pruner.BasePruner(
        model, torch.ones(1, 4, device=device), importance=importance, pruning_ratio=0.5, ignored_layers=[model[3]]
    )
    importance.fit(pruner, loader_on(data), progress=False)
    pruner.step()
    report = importance.report(measure=isinstance(importance, IMPORTANCES["worst-group"]))
    return {
        "scores": importance.selection_.scores,
        "weights": list(model.state_dict().values()),
        "removed": list(report.layers["removed"]),
        "report": report.predicted.select_dtypes("number").to_numpy().tolist(),
    }


def of_adapters(counted: Any) -> dict[Any, int]:
    """What was counted at lines of the adapters."""
    return {key: n for key, n in counted.items() if "adapters/" in (key if isinstance(key, str) else key[1])}


@pytest.mark.usefixtures("same_draws")
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_the_same_channels_go(name: str, accelerator: Accelerator) -> None:
    if name == "contrastive" and not isinstance(accelerator, PretendAccelerator):
        pytest.skip("a real device has draws of its own")
    # data already there: for one of them, which is enough of what all read in the same way
    data = accelerator.device if name == "worst-group" else CPU
    accelerator.check_same(pruned(MAKERS[name](), accelerator.device, data), pruned(MAKERS[name](), CPU, CPU))


def test_waits_don_t_grow_with_the_layers(pretend: PretendAccelerator) -> None:
    waits = []
    for depth in (1, 3):
        layers = (layer for _ in range(depth) for layer in (nn.Linear(6, 6), nn.ReLU()))
        model = nn.Sequential(*layers, nn.Linear(6, 3)).to(pretend.device)
        importance = IMPORTANCES["mean-damage"]()
        pruner = tp.pruner.BasePruner(
            model, torch.ones(1, 6, device=pretend.device), importance=importance, pruning_ratio=0.5,
            ignored_layers=[model[-1]],
        )  # fmt: skip
        pretend.forget()
        importance.fit(pruner, [(torch.randn(9, 6), torch.arange(9) % 3)], progress=False)
        waits.append(sum(of_adapters(pretend.waits).values()))
        assert not of_adapters(pretend.float64)
        pretend.forget()
        pruner.step()
        assert not pretend.waits
    assert waits[0] == waits[1] <= 6, pretend.told()


class Language(nn.Module):
    """The next token by the one before."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.embed, self.up, self.out = nn.Embedding(11, 4), nn.Linear(4, 6), nn.Linear(6, 11)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        scores: Tensor = self.out(self.up(self.embed(input_ids)).relu())
        return scores


def test_pair_damage(accelerator: Accelerator) -> None:
    pairs = SentencePairs.of_tokens([[k, 0, 3] for k in range(4, 8)], [[k, 1, 3] for k in range(4, 8)])
    ids = torch.arange(20).reshape(4, 5) % 11

    def table(device: torch.device) -> Any:
        model, importance = Language().to(device), IMPORTANCES["pair-damage"](pairs, folds=2)
        pruner = tp.pruner.BasePruner(
            model, ids[:1].to(device), importance=importance, pruning_ratio=0.5, ignored_layers=[model.out, model.embed]
        )
        importance.fit(pruner, [(ids, ids.roll(-1, 1))], progress=False)
        return importance.pair_damage_

    found, expected = table(accelerator.device), table(CPU)
    accelerator.check_same([found.damage, found.loss], [expected.damage, expected.loss], other_kernels=True)


HOSTS: dict[str, Callable[[], Any]] = {
    "magnitude": tp.importance.GroupMagnitudeImportance,
    "Taylor": tp.importance.GroupTaylorImportance,
    "Hessian": tp.importance.GroupHessianImportance,
    "BNScale": tp.importance.BNScaleImportance,
}


@pytest.mark.parametrize("name", HOSTS)
def test_importances_of_the_host(name: str, accelerator: Accelerator) -> None:
    def copy_on(device: torch.device) -> list[Tensor]:
        splits = DataSplits(test=loader_on(CPU), scoring=loader_on(device))
        model = prune_copy(
            network().to(device), HOSTS[name](), splits, 0.4, iterative_steps=2, reconstruct=False, progress=False
        )
        return list(model.state_dict().values())

    if isinstance(accelerator, PretendAccelerator):
        accelerator.forget()
    accelerator.check_same(copy_on(accelerator.device), copy_on(CPU), other_kernels=name == "Hessian")
    if isinstance(accelerator, PretendAccelerator):
        assert not of_adapters(accelerator.float64)


def test_a_copy_is_trained_with_draws_of_a_generator_of_the_device(accelerator: Accelerator) -> None:
    splits = DataSplits(test=loader_on(CPU), train=DataLoader(TensorDataset(*tensors()), batch_size=5, pin_memory=True))

    def copy_on(device: torch.device, random_state: Any) -> list[Tensor]:
        model = prune_copy(
            network().to(device), IMPORTANCES["worst-group"](), splits, 0.4, fine_tuning=1, reconstruct=False,
            random_state=random_state, progress=False,
        )  # fmt: skip
        assert {parameter.device for parameter in model.parameters()} == {device}
        return list(model.state_dict().values())

    generators = [torch.Generator(accelerator.device).manual_seed(4) for _ in range(2)]
    first, second = (copy_on(accelerator.device, generator) for generator in generators)
    accelerator.check_same(first, second)
    accelerator.check_same(copy_on(accelerator.device, 3), copy_on(CPU, 3))


@pytest.mark.slow
@pytest.mark.usefixtures("same_draws")
@pytest.mark.parametrize("recipe", ["denp", "dcwp"])
def test_recipes(recipe: str, accelerator: Accelerator) -> None:
    pinned = DataLoader(data_of_recipes().dataset, batch_size=30, shuffle=True, pin_memory=True)
    few = {"iterative_steps": 1} if recipe == "denp" else {"iterations": 2}

    def run(device: torch.device) -> Any:
        return run_recipe(recipe, mlp_of(6, 5).to(device), pinned, **few)

    found, expected = run(accelerator.device), run(CPU)
    accelerator.check_same(found.model.state_dict(), expected.model.state_dict())
    accelerator.check_same([found.mined.scores, found.conflicting], [expected.mined.scores, expected.conflicting])
    pd.testing.assert_frame_equal(found.history, expected.history)
    assert {parameter.device for parameter in found.model.parameters()} == {accelerator.device}


@pytest.mark.parametrize("criterion", ["random", "magnitude"])
def test_a_miner_that_prunes_gradually(criterion: Any, accelerator: Accelerator) -> None:
    miner = AccumulatedConfidence(criterion, levels=(0.4,), random_state=2)
    found, expected = (
        miner.mine(network().to(device), loader_on(device), progress=False) for device in (accelerator.device, CPU)
    )
    accelerator.check_same(found.scores, expected.scores)


class Moved(nn.Module):
    """Between the layers an operation that Torch-Pruning doesn't see through, or a norm of one's own."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.a, self.b, self.head = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1), nn.Linear(6, 3)
            self.operation = copy.deepcopy(operation)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.b(self.operation(self.a(x)).relu()).relu().mean((2, 3)))
        return scores


class ImageNorm(nn.LayerNorm):
    """Over the channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normed


@pytest.mark.parametrize(
    ("operation", "left"),
    [(ImageNorm(8), False), (lambda h: h.roll(1, 1), True), (lambda h: h.cumsum(1), True)],
    ids=["norm", "roll", "cumulative sum"],
)
@pytest.mark.filterwarnings("ignore:.*fairtrim leaves these dependency groups", "ignore:Unwrapped parameters")
def test_what_looks_before_a_step(operation: Callable[[Tensor], Tensor], left: bool, accelerator: Accelerator) -> None:
    images = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))

    def unscored(device: torch.device) -> tuple[list[str], list[Tensor]]:
        model, importance = Moved(operation).to(device), IMPORTANCES["worst-group"]()
        pruner = tp.pruner.BasePruner(
            model, images[:1].to(device), importance=importance, pruning_ratio=0.5, ignored_layers=[model.head]
        )
        importance.fit(pruner, [(images, torch.arange(5) % 3, torch.arange(5) % 2)], progress=False)
        pruner.step()
        return list(importance.plan_.unscored), list(model.state_dict().values())

    found, expected = unscored(accelerator.device), unscored(CPU)
    accelerator.check_same(found, expected)
    assert ("a" in found[0]) == left


class Scaled(nn.Linear):
    """A layer that is described, in front of a norm that Torch-Pruning doesn't know."""


@pytest.mark.skipif(not hasattr(nn, "RMSNorm"), reason="needs nn.RMSNorm")
def test_layers_that_are_described(accelerator: Accelerator) -> None:
    weights = [ParameterAxis("weight", 0), ParameterAxis("bias", 0)]
    describe_layer(Scaled, channel_axis=-1, input_parameters={"weight": 1}, output_parameters=weights)

    def pruned_on(device: torch.device) -> list[Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            layers = Scaled(4, 6), nn.RMSNorm(6, elementwise_affine=False), nn.ReLU(), Scaled(6, 5), nn.Linear(5, 3)
        model, importance = nn.Sequential(*layers).to(device), IMPORTANCES["worst-group"]()
        with traceable(model) as pruners:
            pruner = tp.pruner.BasePruner(
                model, torch.ones(1, 4, device=device), importance=importance, pruning_ratio=0.5,
                ignored_layers=[model[4]],
                customized_pruners={**pruners, Scaled: tp.pruner.function.LinearPruner()},
                root_module_types=[nn.Linear, Scaled],
            )  # fmt: skip
        importance.fit(pruner, loader_on(CPU), progress=False)
        pruner.step()
        return list(model.state_dict().values())

    try:
        found, expected = pruned_on(accelerator.device), pruned_on(CPU)
    finally:
        forget_layer(Scaled)
    accelerator.check_same(found, expected)
    assert len(expected[0]) == 3
