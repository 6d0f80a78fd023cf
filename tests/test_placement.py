"""Networks whose weights lie elsewhere between calls: scored as they are, refused where weights are changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch_pruning as tp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import (
    LayerwiseOptimization,
    SentencePairs,
    UnsupportedModelError,
    collect_damage,
    fine_tune,
    influence_on_bias,
    load_pruned,
    predict,
    prune_by_group_saliency,
    recalibrate_output,
    save_pruned,
    unlearn_samples,
)
from fairtrim.damage.input_moments import input_moments
from fairtrim.damage.measured_change import measured_change
from fairtrim.damage.parity_gradient import parity_gradient
from fairtrim.damage.weight_saliency import squared_gradients
from fairtrim.data.data_splits import DataSplits
from fairtrim.data.validation_set import ValidationSet
from fairtrim.devices import model_device
from fairtrim.files.resumption import fingerprint
from fairtrim.reconstruction import Reader, reconstruct
from fairtrim_adapters.sweep import sweep
from fairtrim_adapters.torch_pruning import MeanDamageImportance, prune_copy, prune_for_pairs, prune_to, reconstructed
from tests.large_cases import feed_forward, llama, offload, texts
from tests.networks import CASES
from tests.pretend_accelerator import PretendAccelerator

CASE = CASES["mlp"]
PEOPLE = [(*CASE.batch(12), ["a", "b", "b"] * 4)]


def _held(model: nn.Module) -> list[Any]:
    """Where weights lie, and what is on each module."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    of_modules = [
        (id(vars(m).get("_hf_hook")), [list(getattr(m, h)) for h in hooks], m.training) for m in model.modules()
    ]
    return [[(n, str(p.device), p.requires_grad, p.grad) for n, p in model.named_parameters()], of_modules]


def test_scored_as_it_is() -> None:
    """Tables, moments, changes and predictions are those of the network with its weights at home, to the last bit."""
    dense, groups = CASE.model(), CASE.plan(CASE.model()).groups
    away = offload(CASE.model())
    before = _held(away)
    assert {p.device.type for p in away.parameters()} == {"meta"}
    assert model_device(away) == torch.device("cpu")
    tables, moments = [], []
    for model in (dense, away):
        with input_moments(model, groups) as watched:
            tables.append(collect_damage(model, PEOPLE, groups, interactions=True, progress=False))
        moments.append(watched.read())
    for name in ("loss", "slope", "curvature", "interactions"):
        assert torch.equal(getattr(tables[0], name), getattr(tables[1], name)), name
    for mine, other in zip(moments[0].readers, moments[1].readers, strict=True):
        assert torch.equal(mine.weight, other.weight) and torch.equal(mine.moments, other.moments)
    assert not measured_change(away, PEOPLE, tables[0], progress=False).change.any()
    assert (
        predict(away, PEOPLE, progress=False).scores["model"] == predict(dense, PEOPLE, progress=False).scores["model"]
    ).all()
    slopes = [parity_gradient(m, PEOPLE, groups, privileged="a", progress=False).slopes for m in (dense, away)]
    assert all(torch.equal(slopes[0][name], slopes[1][name]) for name in slopes[0])
    assert fingerprint(away) == fingerprint(dense)
    assert _held(away) == before


def test_taken_up_again(tmp_path: Path) -> None:
    """The fingerprint of a run that may be cut short reads each weight from where it lies."""
    groups = CASE.plan(CASE.model()).groups
    table = collect_damage(offload(CASE.model()), PEOPLE, groups, folder=tmp_path, progress=False)
    assert torch.equal(table.slope, collect_damage(CASE.model(), PEOPLE, groups, progress=False).slope)


def _pruner(model: Any, importance: Any = None) -> tp.pruner.BasePruner:
    """Made while the weights were at home."""
    return CASE.pruner(model, importance or MeanDamageImportance(progress=False))


def _loader() -> DataLoader[Any]:
    x, y, _ = PEOPLE[0]
    return DataLoader(TensorDataset(x, y), batch_size=4)


def _fit(model: nn.Module) -> None:
    pruner = _pruner(model)
    offload(model)
    pruner.importance.fit(pruner, PEOPLE)


def _self_collecting(model: nn.Module) -> None:
    pruner = _pruner(model, MeanDamageImportance(model=model, loader=PEOPLE, progress=False))
    offload(model)
    pruner.step()


def _reconstructed(model: nn.Module) -> None:
    pruner = _pruner(model)
    offload(model)
    with reconstructed(pruner, PEOPLE, progress=False):
        pruner.step()


PAIRS = SentencePairs.of_tokens([[1, 2]] * 3, [[3, 2]] * 3)
SPLITS = DataSplits(test=PEOPLE, scoring=PEOPLE)
CHANGES: dict[str, Callable[[Any], object]] = {
    "saliency": lambda m: squared_gradients(offload(m), PEOPLE, progress=False),
    "mask": lambda m: prune_by_group_saliency(offload(m), PEOPLE, privileged="a", pruning_ratio=0.1, progress=False),
    "repair": lambda m: LayerwiseOptimization(random_state=0).repair(offload(m), PEOPLE, progress=False),
    "output layer": lambda m: recalibrate_output(offload(m), PEOPLE, progress=False),
    "training": lambda m: fine_tune(offload(m), _loader(), epochs=1, progress=False),
    "influence": lambda m: influence_on_bias(
        offload(m), _loader(), ValidationSet.from_loader(PEOPLE), measure="equal_opportunity_difference", progress=False
    ),
    "unlearning": lambda m: unlearn_samples(offload(m), _loader(), [0], progress=False),
    "refit": lambda m: reconstruct(offload(m), CASE.model(), PEOPLE, [Reader("4", [0, 1, 2])], progress=False),
    "fit": _fit,
    "self-collecting": _self_collecting,
    "reconstructed": _reconstructed,
    "pruned copy": lambda m: prune_copy(offload(m), MeanDamageImportance(progress=False), SPLITS, 0.5, progress=False),
    "pairs": lambda m: prune_for_pairs(
        offload(m), PAIRS, PEOPLE, held_out=PAIRS, held_out_texts=PEOPLE, progress=False
    ),
    "budget": lambda m: prune_to(offload(m), PEOPLE, PEOPLE[0][0][:1], parameters=0.5, progress=False),
    "sweep": lambda m: sweep(offload(m), SPLITS, ["mean-damage"], [0.5], seeds=1, progress=False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_refused_where_weights_are_changed(name: str) -> None:
    model = CASE.model()
    with pytest.raises(UnsupportedModelError, match=r"lie elsewhere .*remove_hook_from_module\(model, recurse=True\)"):
        CHANGES[name](model)
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(UnsupportedModelError, match="lie elsewhere"):
        save_pruned(path, offload(CASE.model()))
    assert not path.exists()
    save_pruned(path, CASE.model())
    with pytest.raises(UnsupportedModelError, match="lie elsewhere"):
        load_pruned(path, offload(CASE.model()))


def test_weights_that_nobody_brings() -> None:
    groups = CASE.plan(CASE.model()).groups
    with pytest.raises(UnsupportedModelError, match=r"meta device, which computes nothing.*load them"):
        collect_damage(CASE.model().to("meta"), PEOPLE, groups, progress=False)
    model = CASE.model()
    model[4].to("meta")
    with pytest.raises(UnsupportedModelError, match=r"'4\.weight' lies on the meta device"):
        collect_damage(model, PEOPLE, groups, progress=False)


def test_two_devices_without_hooks(pretend: PretendAccelerator) -> None:
    model: Any = CASE.model()
    model[4].to(pretend.device)
    with pytest.raises(UnsupportedModelError, match=r"2 devices \(cpu, pretend:0\).*accelerate's dispatch_model"):
        collect_damage(model, PEOPLE, CASE.plan(CASE.model()).groups, progress=False)


# With accelerate itself --------------------------------------------------------------------------------------


@pytest.fixture
def accelerate() -> Any:
    return pytest.importorskip("accelerate")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["cpu", "disk", "in place"])
def test_accelerate(transformers: Any, accelerate: Any, tmp_path: Path, where: str) -> None:
    """A language model as accelerate lays it out: the same table, the hooks where they were."""
    dense = llama(transformers)
    model = llama(transformers)
    if where == "cpu":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        elsewhere = "disk" if where == "disk" else "cpu"
        layers = {"model.layers.0": elsewhere, "model.layers.1": "cpu", "lm_head": elsewhere}
        rest = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb"), "cpu")
        accelerate.dispatch_model(model, {**rest, **layers}, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    groups, before = feed_forward(dense), _held(model)
    expected = collect_damage(dense, texts(), groups, progress=False)
    table = collect_damage(model, texts(), groups, progress=False)
    assert torch.equal(table.slope, expected.slope) and torch.equal(table.curvature, expected.curvature)
    assert not measured_change(model, texts(), table, progress=False).change.any()
    assert fingerprint(model) == fingerprint(dense)
    assert _held(model) == before
    if where == "in place":  # weights at home: nothing to refuse
        squared_gradients(model, texts(), parameters=["model.layers.0.mlp.down_proj.weight"], progress=False)
        return
    with pytest.raises(UnsupportedModelError, match="remove_hook_from_module"):
        squared_gradients(model, texts(), progress=False)
    if where == "cpu":  # the remedy works
        accelerate.hooks.remove_hook_from_module(model, recurse=True)
        model.to("cpu")
        _, squares = squared_gradients(
            model, texts(), parameters=["model.layers.0.mlp.down_proj.weight"], progress=False
        )
        assert all(bool(square.any()) for square in squares.values())


# Sharded by FSDP2 --------------------------------------------------------------------------------------------


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    """One process that is alone; see ``processes_script.sharded`` for two."""
    if not dist.is_available() or not hasattr(pytest.importorskip("torch.distributed.fsdp"), "fully_shard"):
        pytest.skip("needs fully_shard")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        yield dist.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="torch 2.6 shards on no CPU")
def test_sharded(mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    dense, model, groups = CASE.model(), CASE.model(), CASE.plan(CASE.model()).groups
    fully_shard(model, mesh=mesh)
    table = collect_damage(model, PEOPLE, groups, interactions=True, progress=False)
    expected = collect_damage(dense, PEOPLE, groups, interactions=True, progress=False)
    for name in ("loss", "slope", "curvature", "interactions"):
        torch.testing.assert_close(getattr(table, name), getattr(expected, name))
    assert not measured_change(model, PEOPLE, table, progress=False).change.any()
    assert fingerprint(model) == fingerprint(dense)
    assert all(hasattr(p, "device_mesh") and p.grad is None for p in model.parameters())
    refused: list[Callable[[], object]] = [
        lambda: squared_gradients(model, PEOPLE, progress=False),
        lambda: LayerwiseOptimization(random_state=0).repair(model, PEOPLE, progress=False),
        lambda: fine_tune(model, _loader(), epochs=1, progress=False),
        lambda: prune_to(model, PEOPLE, PEOPLE[0][0][:1], parameters=0.5, progress=False),
    ]
    for change in refused:
        with pytest.raises(UnsupportedModelError, match=r"each process keeps a part \(fully_shard\)"):
            change()
