"""Networks that are wrapped, compiled, scripted, sharded, or have no values: used as they are, or refused in words.

Every entry point meets every kind; what looks into a network needs the network itself, a forward pass doesn't.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import (
    POST_PROCESSORS,
    ChannelGroup,
    ChannelPlace,
    CounterfactualUnlearning,
    FairtrimError,
    InputError,
    LossMiner,
    SentencePairs,
    UnsupportedModelError,
    ValidationSet,
    biased_attributes,
    changed_samples,
    collect_damage,
    estimate_scoring,
    fine_tune,
    influence_of_sentences,
    influence_on_bias,
    load_pruned,
    measure_latency,
    predict,
    prune_by_group_saliency,
    recalibrate_batchnorm,
    recalibrate_output,
    save_pruned,
    unlearn_samples,
)
from fairtrim.damage.input_moments import input_moments
from fairtrim.damage.measured_change import measured_change
from fairtrim.damage.parity_gradient import parity_gradient
from fairtrim.damage.weight_saliency import squared_gradients
from fairtrim.data.data_splits import DataSplits
from fairtrim.files.resumption import fingerprint
from fairtrim.mining import KnownSamples
from fairtrim.mining.contrastive_objective import ContrastiveObjective
from fairtrim.mining.contrastive_weight_masks import learn_weight_masks
from fairtrim.reconstruction import Reader, reconstruct
from fairtrim_adapters.fairlearn import RepairedClassifier
from fairtrim_adapters.torch_pruning import (
    AccumulatedConfidence,
    MeanDamageImportance,
    dcwp,
    denp,
    prune_copy,
    prune_to,
    reconstructed,
    smallest,
)
from tests.snapshot import Snapshot

N = 20
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
PEOPLE: list[Any] = [(X[:11], Y[:11], ["a", "b", "b"] * 3 + ["a", "b"]), (X[11:], Y[11:], ["b", "a", "b"] * 3)]
LOADER: DataLoader[Any] = DataLoader(TensorDataset(X, Y), batch_size=10)
SPLITS = DataSplits(test=PEOPLE, scoring=PEOPLE)
VALIDATION = ValidationSet.from_loader(PEOPLE, progress=False)
FLAGS = torch.arange(N) % 7 == 0
GROUPS = [ChannelGroup("0", 5, (ChannelPlace("3", "input", range(5), range(5), channel_axis=-1),))]
PAIRS = SentencePairs.of_tokens([[1, 5], [1, 6]] * 3, [[2, 5], [2, 6]] * 3)
TEXTS = [{"input_ids": torch.tensor([[1, 5, 7], [2, 6, 8]]), "attention_mask": torch.ones(2, 3, dtype=torch.long)}] * 4


def _network() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)).eval()


OTHER = _network()
with torch.no_grad():
    OTHER[3].weight.neg_()
TABLE = collect_damage(_network(), PEOPLE, GROUPS, progress=False)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.blocks = nn.Embedding(9, 4), nn.ModuleList([nn.Linear(4, 4)])
        self.head = nn.Linear(4, 9)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x: Tensor = self.words(input_ids)
        for block in self.blocks:
            x = block(x).tanh()
        out: Tensor = self.head(x)
        return out


def _moments(model: nn.Module) -> Any:
    with input_moments(model, GROUPS) as watched:
        model(X)
    return watched.read()


def _pruner(model: Any, importance: Any) -> tp.pruner.BasePruner:
    *_, last = (module for module in model.modules())
    return tp.pruner.BasePruner(model, X[:2], importance, pruning_ratio=0.5, ignored_layers=[last])


def _fit(model: nn.Module) -> Any:
    pruner = _pruner(model, importance := MeanDamageImportance(progress=False))
    return importance.fit(pruner, PEOPLE)


def _reconstructed(model: nn.Module) -> None:
    with reconstructed(_pruner(model, tp.importance.MagnitudeImportance()), PEOPLE, progress=False):
        pass


def _repair(method: Any, model: nn.Module) -> Any:
    return method.repair(model, PEOPLE, progress=False)


METHODS: dict[str, Any] = dict(POST_PROCESSORS.items())
OPTIONS: dict[str, dict[str, Any]] = {
    "column-erasure": {"columns": [0]},
    "counterfactual-unlearning": {"counterfactual": lambda x: -x},
}
quiet: dict[str, Any] = {"progress": False}

FORWARD: dict[str, Callable[[Any], Any]] = {
    "predict": lambda m: predict(m, PEOPLE, **quiet).scores["model"],
    "measured change": lambda m: measured_change(m, PEOPLE, TABLE, **quiet).change,
    "changed samples": lambda m: changed_samples(OTHER, m, PEOPLE, **quiet).row,
    "latency": lambda m: measure_latency(m, X[:2], rounds=6, warm_up=1).calls,
    "known samples": lambda m: KnownSamples(FLAGS).mine(m, LOADER, **quiet).scores,
}
"""Entry points that run a network and no more."""

INSIDE: dict[str, Callable[[Any], Any]] = {
    "damage": lambda m: collect_damage(m, PEOPLE, GROUPS, **quiet),
    "parity gradient": lambda m: parity_gradient(m, PEOPLE, GROUPS, privileged="a", **quiet),
    "estimate": lambda m: estimate_scoring(m, PEOPLE[0], GROUPS),
    "moments": _moments,
    "saliency": lambda m: squared_gradients(m, PEOPLE, **quiet),
    "masks": lambda m: prune_by_group_saliency(m, PEOPLE, privileged="a", pruning_ratio=0.1, **quiet),
    "gates of weights": lambda m: learn_weight_masks(
        m, LOADER, ContrastiveObjective(conflicting=FLAGS), iterations=1, **quiet
    ),
    "output layer": lambda m: recalibrate_output(m, PEOPLE, **quiet),
    "attributes": lambda m: biased_attributes(m, VALIDATION, {"all": lambda x: -x}),
    "influence": lambda m: influence_on_bias(m, LOADER, VALIDATION, measure="equal_opportunity_difference", **quiet),
    "unlearning": lambda m: unlearn_samples(m, LOADER, [0], **quiet),
    "refit": lambda m: reconstruct(m, _network(), PEOPLE, [Reader("3", [0, 1])], **quiet),
    "refit to": lambda m: reconstruct(_network(), m, PEOPLE, [Reader("3", [0, 1])], **quiet),
    "accumulated confidence": lambda m: AccumulatedConfidence(epochs=0, levels=[0.4]).mine(m, LOADER, **quiet),
    "fit": _fit,
    "reconstructed": _reconstructed,
    "pruned copy": lambda m: prune_copy(m, MeanDamageImportance(**quiet), SPLITS, 0.5, **quiet),
    "budget": lambda m: prune_to(m, PEOPLE, X[:1], parameters=0.5, **quiet),
    "smallest": lambda m: smallest(m, PEOPLE, X[:1], held_out=PEOPLE, max_drop={"accuracy": 0.5}, **quiet),
    "denp": lambda m: denp(m, LOADER, iterative_steps=1, final_epochs=1, miner=FLAGS, **quiet),
    "dcwp": lambda m: dcwp(m, LOADER, fine_tuning={"epochs": 1}, miner=FLAGS, **quiet),
    "classifier": lambda m: RepairedClassifier(m, METHODS["threshold-selection"](), prefit=True).fit(
        X.numpy(), Y.numpy(), sensitive_features=["a", "b"] * (N // 2)
    ),
    **{
        name: partial(_repair, cls(**OPTIONS.get(name, {})))
        for name, cls in METHODS.items()
        if cls.__module__.startswith("fairtrim.")
    },
}
"""Entry points that listen to layers, or change them."""

LANGUAGE: dict[str, Callable[[Any], Any]] = {
    "influence of sentences": lambda m: influence_of_sentences(m, TEXTS, PAIRS, **quiet),
    "unlearning of sentences": lambda m: CounterfactualUnlearning(random_state=0).repair(
        m, PAIRS, texts=TEXTS, **quiet
    ),
}

COMPILED_IN_PLACE = {"masks", "unlearning"}
"""Entry points that take a copy, which is compiled no more."""

BY_THE_HOST = {"fit", "reconstructed"}
"""Torch-Pruning runs the network before it is handed over."""


def _compiled(model: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(model, backend="eager")


def _compiled_in_place(model: Any) -> Any:
    torch._dynamo.reset()
    model.compile(backend="eager")
    return model


def _scripted(model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(model)


KINDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "compiled": (_compiled, r"compiled by torch\.compile; expected the network itself, model\._orig_mod"),
    "compiled in place": (_compiled_in_place, r"compiled in place .*copy\.deepcopy\(model\)"),
    "scripted": (_scripted, r"ScriptModule.*expected the network that was scripted or traced"),
    "DataParallel": (nn.DataParallel, r"wrapped in DataParallel.*expected the network itself, model\.module"),
    "meta": (lambda model: model.to("meta"), "meta device|wants weights"),
}


# the first compilation takes seconds
_KINDS = [pytest.param(kind, marks=pytest.mark.slow if "compiled" in kind else ()) for kind in KINDS]


@pytest.mark.parametrize("kind", _KINDS)
def test_the_network_itself_is_needed(kind: str) -> None:
    make, words = KINDS[kind]
    entries = {**{name: (entry, _network) for name, entry in INSIDE.items()}}
    entries |= {name: (entry, Words) for name, entry in LANGUAGE.items()}
    for name, (entry, network) in entries.items():
        if (name in COMPILED_IN_PLACE and kind == "compiled in place") or (kind == "meta" and name == "estimate"):
            entry(make(network()))
            continue
        if name in BY_THE_HOST and kind != "DataParallel":
            continue
        model = make(network())
        with pytest.raises(FairtrimError, match=words):
            entry(model)


@pytest.mark.parametrize("kind", _KINDS)
def test_a_forward_pass_is_enough(kind: str) -> None:
    make, words = KINDS[kind]
    for name, entry in FORWARD.items():
        model = make(_network())
        if kind == "meta":
            with pytest.raises(FairtrimError, match=words):
                entry(model)
        elif name == "latency":
            entry(model)
        else:
            torch.testing.assert_close(entry(model), entry(_network()))
    if kind == "meta":
        return
    # what trains or counts through forward passes alone gives what it gives without the wrapper
    plain, model = _network(), make(_network())
    for network in (plain, model):
        if kind != "scripted":
            recalibrate_batchnorm(network, PEOPLE, **quiet)
        fine_tune(network, LOADER, epochs=1, random_state=0, **quiet)
    for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    if kind != "scripted":
        assert len(LossMiner(epochs=1).mine(make(_network()), LOADER, **quiet).scores) == N


@pytest.mark.parametrize("kind", ["scripted", "DataParallel"])
def test_files_are_of_the_network_itself(kind: str, tmp_path: Path) -> None:
    model = KINDS[kind][0](_network())
    save_pruned(tmp_path / "x.safetensors", _network())
    for use in (save_pruned, load_pruned):
        with pytest.raises(InputError, match=r"expected itself: model\.|expected the network that was scripted"):
            use(tmp_path / "x.safetensors", model)


# Batches without values ----------------------------------------------------------------------------------------


class MetaSamples(TensorDataset):
    """Made under ``torch.device("meta")`` by mistake."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        x, y = super().__getitem__(index)
        return x.to("meta"), y


META = [(X.to("meta"), Y, ["a", "b"] * (N // 2))]
BATCHES: dict[str, Callable[[Any], Any]] = {
    "damage": lambda m: collect_damage(m, META, GROUPS, **quiet),
    "targets": lambda m: collect_damage(m, [(X, Y.to("meta"))], GROUPS, **quiet),
    "saliency": lambda m: squared_gradients(m, META, **quiet),
    "predict": lambda m: predict(m, META, **quiet),
    "validation set": lambda m: ValidationSet.from_loader(META, **quiet),
    "repair": lambda m: METHODS["threshold-selection"]().repair(m, META, **quiet),
    "refit": lambda m: reconstruct(m, _network(), META, [Reader("3", [0, 1])], **quiet),
    "training": lambda m: fine_tune(m, DataLoader(MetaSamples(X, Y), batch_size=10), epochs=1, **quiet),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_without_values(name: str) -> None:
    model = _network()
    before = Snapshot(model)
    with pytest.raises(
        InputError, match="batch 0 lies on the meta device, where tensors have no values; expected data"
    ):
        BATCHES[name](model)
    before.assert_unchanged()


def test_estimates_need_no_values() -> None:
    """Neither of weights nor of samples."""
    model, batch = _network().to("meta"), PEOPLE[0]
    assert estimate_scoring(model, batch, GROUPS) == estimate_scoring(model, [t.to("meta") for t in batch[:2]], GROUPS)


# Sharded by FSDP2 ------------------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path: Path) -> Iterator[Callable[[Any], Any]]:
    """One process that is alone; see ``processes_script.sharded`` for two."""
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard") or not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("torch 2.6 shards on no CPU")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        yield lambda model: fsdp.fully_shard(model, mesh=mesh)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("after", ["as it is", "a forward pass"])
def test_sharded(sharded: Callable[[Any], Any], after: str) -> None:
    """After a forward pass its parameters are ordinary tensors, for a while."""

    def made(network: Callable[[], Any]) -> Any:
        model = sharded(network())
        if after == "a forward pass":
            with torch.no_grad():
                model(X) if network is _network else model(TEXTS[0]["input_ids"])
            assert not any(hasattr(parameter, "device_mesh") for parameter in model.parameters())
        return model

    works = {"damage", "parity gradient", "estimate", "moments", "attributes"}
    entries = {name: (entry, _network) for name, entry in INSIDE.items()}
    for name, (entry, network) in (entries | {name: (entry, Words) for name, entry in LANGUAGE.items()}).items():
        if name in works:
            entry(made(network))
            continue
        with pytest.raises(UnsupportedModelError, match=r"each process keeps a part \(fully_shard\)"):
            entry(made(network))
    for name, entry in FORWARD.items():
        if name != "latency":
            torch.testing.assert_close(entry(made(_network)), entry(_network()))
    assert fingerprint(made(_network)) == fingerprint(_network())
    with pytest.raises(UnsupportedModelError, match=r"each process keeps a part \(fully_shard\)"):
        fine_tune(made(_network), LOADER, epochs=1, **quiet)
