"""What save_pruned writes load_pruned reads, with equal outputs, whatever was done to the network; or it is refused."""

from __future__ import annotations

import copy
import enum
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_pruning as tp
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from fairtrim import InputError, load_pruned, save_pruned


class Block(nn.Module):
    """A network whose plain attributes matter to what it gives."""

    def __init__(self, width: int = 8, n_scores: int = 2) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(6, width), nn.ReLU(), nn.Linear(width, n_scores)
        self.width: Any = None
        self.scale, self.mode, self.sizes, self.steps = 1.0, "sum", {"out": 1}, [1, 1]
        self.device = torch.device("cpu")
        self.place = "cpu"
        self.register_buffer("shift", torch.zeros(width), persistent=False)
        self.register_buffer("seen", None)
        self.shift: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.width is None:
            self.width, self.seen = x.shape[-1], torch.ones(1)
        assert self.place == "cpu"
        hidden = self.act(self.first(x.to(self.device))) + self.shift
        factor = self.scale * self.sizes["out"] * sum(self.steps) * (2 if self.mode == "twice" else 1) * self.width
        scores: Tensor = self.last(hidden) * factor
        return scores


masks: Any = prune
X = torch.linspace(-1, 1, 24).reshape(4, 6)


def _round_trip(path: Path, model: nn.Module, fresh: nn.Module, x: Any = X) -> Any:
    model.eval(), fresh.eval()
    expected = model(x)
    save_pruned(path / "network.safetensors", model)
    loaded = load_pruned(path / "network.safetensors", fresh)
    assert loaded is fresh
    torch.testing.assert_close(loaded(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)  # which is as it was
    return loaded


def _state(model: nn.Module) -> dict[str, Any]:
    plain = {
        (name, key): repr(value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if not key.startswith("_")
    }
    return plain | {name: (id(tensor), tensor.tolist()) for name, tensor in model.state_dict(keep_vars=True).items()}


def _refused(path: Path, model: Any, fresh: Any, message: str) -> None:
    save_pruned(path / "network.safetensors", model)
    before = _state(fresh)
    with pytest.raises(InputError, match=message):
        load_pruned(path / "network.safetensors", fresh)
    assert _state(fresh) == before


ATTRIBUTES: dict[str, Any] = {
    "an integer": ("hidden_size", 16),
    "of numpy": ("hidden_size", np.int64(16)),
    "a float of numpy": ("scale", np.float32(0.5)),
    "of a layer below": ("first.hidden_size", 16),
    "None before": ("width", 3),
    "another number": ("scale", 0.25),
    "no number": ("scale", float("inf")),
    "another type": ("scale", 3),
    "a tuple for a list": ("steps", (2, 3)),
    "a longer list": ("steps", [1, 2, 3]),
    "nested": ("sizes", {"out": 3, "more": [(1, 2.5), {"a": None}], 3: True}),
    "a word": ("mode", "twice"),
    "a flag": ("first.pruned", True),
    "a size": ("input_size", torch.Size([3, 4])),
    "a device": ("last.device", torch.device("cpu")),
    "the name of a device": ("place_of_work", "cuda:3"),
    "an object": ("config", object()),
    "a function": ("hook", print),
    "a tensor": ("kept", torch.ones(3)),
    "a constant of the class": ("call_super_init", True),
}


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_attributes_that_a_script_adds(kind: str, tmp_path: Path) -> None:
    where, value = ATTRIBUTES[kind]
    owner, _, name = where.rpartition(".")
    model = Block(5)
    setattr(model.get_submodule(owner), name, value)
    loaded = _round_trip(tmp_path, model, Block())
    kept = getattr(loaded.get_submodule(owner), name, None)
    if kind in ("a device", "the name of a device", "an object", "a function"):
        assert kept is None
    elif kind == "a tensor":
        assert torch.equal(kept, value)
    else:
        assert kept == value and isinstance(kept, tuple) == isinstance(value, tuple)


def test_attributes_of_the_fresh_network_alone(tmp_path: Path) -> None:
    fresh: Any = Block()
    fresh.first.note, fresh.config, fresh.probe = 7, object(), nn.Dropout()
    loaded = _round_trip(tmp_path, Block(3), fresh)
    assert loaded.first.note == 7 and hasattr(loaded, "config")


def test_what_runs_a_network_stays_the_networks_own(tmp_path: Path) -> None:
    model, fresh = Block(3), Block().train()
    model.eval().place = "cuda:0"
    fresh.last.requires_grad_(False)
    save_pruned(tmp_path / "network.safetensors", model)
    load_pruned(tmp_path / "network.safetensors", fresh)
    assert fresh.training and fresh.first.training and fresh.place == "cpu" and not fresh.last.weight.requires_grad


def test_modules_that_a_script_adds(tmp_path: Path) -> None:
    model: Any = Block(3)
    model.criterion = nn.CrossEntropyLoss()
    model.first.probe = nn.Sequential(nn.Identity(), nn.Dropout())
    loaded = _round_trip(tmp_path, model, Block())
    assert not hasattr(loaded, "criterion") and not hasattr(loaded.first, "probe")
    model.measured = nn.Linear(2, 2)
    _refused(tmp_path, model, Block(), r"holds \['measured.bias', 'measured.weight'\], which the network doesn't have")


def test_buffers_that_a_state_dict_leaves_out(tmp_path: Path) -> None:
    model = Block(3)
    model.shift = torch.arange(3.0)
    model.register_buffer("cache", torch.ones(2), persistent=False)  # of the script
    loaded = _round_trip(tmp_path, model, Block())
    assert loaded.shift.tolist() == [0, 1, 2] and loaded.seen.tolist() == [1] and not hasattr(loaded, "cache")
    save_pruned(tmp_path / "unused.safetensors", Block(3))  # before any forward pass
    assert load_pruned(tmp_path / "unused.safetensors", loaded).seen is None


def test_another_number_of_scores(tmp_path: Path) -> None:
    def two_heads(a: int, b: int, width: int = 8) -> nn.Module:
        return nn.ModuleDict({"body": nn.Linear(6, width), "a": nn.Linear(width, a), "b": nn.Linear(width, b)})

    def convolutions(n_scores: int, width: int = 8) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(width * 4, n_scores),
        )  # fmt: skip

    for model, fresh, layer, n_scores in (
        (Block(8, 2), Block(8, 10), "last", 2),
        (Block(5, 2), Block(8, 10), "last", 2),
        (Block(8, 10), Block(8, 2), "last", 10),
        (Block(8, 1), Block(8, 2), "last", 1),
        (two_heads(2, 3), two_heads(5, 3), "a", 2),
        (two_heads(2, 3, 4), two_heads(2, 5), "b", 3),
        (convolutions(2, 4), convolutions(10), "5", 2),
        (nn.Linear(3, 1), nn.Linear(3, 2), "the network", 1),
        (parametrizations.weight_norm(nn.Linear(3, 1)), parametrizations.weight_norm(nn.Linear(3, 2)), "", 1),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)), nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 9, 1)),
         "1", 5),
    ):  # fmt: skip
        _refused(tmp_path, model, fresh, f"another number of scores: {layer}.* gives {n_scores} in the file and")


class Concatenated(nn.Module):
    """The layer that gives the scores comes first, and two layers feed one, which is between them."""

    def __init__(self, a: int = 8, b: int = 6) -> None:
        super().__init__()
        self.head, self.a = nn.Linear(6, 3), nn.Linear(6, a)
        self.mix, self.b = nn.Linear(a + b, 6), nn.Linear(6, b)
        self.raw = nn.Parameter(torch.eye(6))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.mix(torch.cat([self.a(x), self.b(x)], 1)) @ self.raw)
        return scores


def test_layers_that_are_read_elsewhere_may_shrink(tmp_path: Path) -> None:
    _round_trip(tmp_path, Concatenated(5, 6), Concatenated())
    model = Concatenated(8, 6)
    model.mix, model.raw = nn.Linear(14, 4), nn.Parameter(torch.randn(4, 6))  # read by a parameter of its own
    _round_trip(tmp_path, model, Concatenated())


# Masks and reparametrizations ---------------------------------------------------------------------------------


class EveryOther(prune.BasePruningMethod):
    """A mask of one's own."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        mask = default_mask.clone()
        mask.view(-1)[::2] = 0
        return mask


MASKS: dict[str, Callable[[Block], Any]] = {
    "unstructured": lambda model: masks.l1_unstructured(model.first, "weight", 0.3),
    "structured": lambda model: masks.ln_structured(model.first, "weight", 0.5, n=2, dim=0),
    "of a bias": lambda model: masks.random_unstructured(model.first, "bias", 0.5),
    "of both": lambda model: [masks.l1_unstructured(model.first, name, 0.3) for name in ("weight", "bias")],
    "twice": lambda model: [masks.l1_unstructured(model.first, "weight", 0.3) for _ in range(2)],
    "of one's own": lambda model: EveryOther.apply(model.first, "weight"),
    "given": lambda model: masks.custom_from_mask(model.last, "weight", torch.eye(2, model.last.in_features)),
    "identity": lambda model: masks.identity(model.first, "weight"),
    "global": lambda model: masks.global_unstructured(
        [(model.first, "weight"), (model.last, "weight")], masks.L1Unstructured, amount=0.5
    ),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_are_baked_in(kind: str, tmp_path: Path) -> None:
    model = Block(5).eval()
    MASKS[kind](model)
    model(X)
    before = _state(model)
    _round_trip(tmp_path, model, Block())
    assert _state(model) == before  # the masks are still there
    masked = Block()
    masks.l1_unstructured(masked.first, "weight", 0.5)
    _refused(tmp_path, model, masked, "pass one without masks of torch.nn.utils.prune, which save_pruned bakes in")


def test_masks_in_half_precision_and_after_a_change_of_weights(tmp_path: Path) -> None:
    model: Any = Block(5)
    masks.l1_unstructured(model.first, "weight", 0.4)
    with torch.no_grad():
        model.first.weight_orig.mul_(2)  # .weight is computed anew in the next forward pass only
    save_pruned(tmp_path / "network.safetensors", model.half())
    loaded: Any = load_pruned(tmp_path / "network.safetensors", Block())
    assert loaded.first.weight.dtype == torch.float16
    assert torch.equal(loaded.first.weight, model.first.weight_orig * model.first.weight_mask)


REPARAMETRIZATIONS: dict[str, Callable[[nn.Linear], Any]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": lambda layer: parametrizations.orthogonal(layer, orthogonal_map="householder"),
    "old spectral norm": nn.utils.spectral_norm,
    "of one's own": lambda layer: parametrize.register_parametrization(layer, "bias", nn.Softplus()),
}


@pytest.mark.parametrize("kind", REPARAMETRIZATIONS)
def test_reparametrizations_are_kept(kind: str, tmp_path: Path) -> None:
    model, fresh = Block(5), Block()
    for network in (model, fresh):
        REPARAMETRIZATIONS[kind](network.first)
    _round_trip(tmp_path, model, fresh)
    _refused(tmp_path, model, Block(), "must be on both: put the same ones on the network")
    _refused(tmp_path, Block(5), fresh, "must be on both: put the same ones on the network")


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_the_old_weight_norm_is_kept(tmp_path: Path) -> None:
    model, fresh = Block(5), Block()
    for network in (model, fresh):
        nn.utils.weight_norm(network.first)
    _round_trip(tmp_path, model, fresh)
    _refused(tmp_path, model, Block(), "must be on both: put the same ones on the network")


# Kinds of networks and of tensors -----------------------------------------------------------------------------


class Lists(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.matrices = nn.ParameterList([torch.ones(6, width), torch.ones(width, 2)])
        self.named = nn.ParameterDict({"shift": torch.full((width,), 0.5), "more": torch.zeros(2)})

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = x @ self.matrices[0] + self.named["shift"]
        return hidden @ self.matrices[1] + self.named["more"]


class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(6, width, batch_first=True), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.cells(x[:, None])[0][:, -1])
        return scores


class Tied(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.there, self.back = nn.Linear(6, width, bias=False), nn.Linear(6, width, bias=False)
        self.back.weight = self.there.weight
        self.act = nn.ReLU()
        self.layers = nn.Sequential(self.act, nn.Linear(width, 2), self.act)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(self.there(x) + self.back(x))
        return scores


@pytest.mark.parametrize("network", [Lists, Recurrent, Tied])
def test_kinds_of_parameters(network: Callable[[int], nn.Module], tmp_path: Path) -> None:
    loaded = _round_trip(tmp_path, network(3), network(8))
    if isinstance(loaded, Tied):
        assert loaded.there.weight is loaded.back.weight
    _round_trip(tmp_path, network(3).bfloat16(), network(8), X.bfloat16())


def test_a_tied_network_goes_into_an_untied_one(tmp_path: Path) -> None:
    fresh = Tied(8)
    fresh.back.weight = nn.Parameter(fresh.there.weight.detach().clone())
    loaded = _round_trip(tmp_path, Tied(3), fresh)
    assert loaded.there.weight is not loaded.back.weight


def test_a_mask_on_one_of_two_tied_layers(tmp_path: Path) -> None:
    model = Tied(3)
    masks.l1_unstructured(model.there, "weight", 0.5)
    _refused(tmp_path, model, Tied(8), "differ, but the network shares them; pass an untied network")


def test_weights_that_are_not_numbers(tmp_path: Path) -> None:
    model = Tied(3)
    with torch.no_grad():
        model.there.weight[0, 0] = torch.nan
    save_pruned(tmp_path / "network.safetensors", model)
    loaded: Any = load_pruned(tmp_path / "network.safetensors", Tied(8))
    assert torch.equal(loaded.there.weight.isnan(), model.there.weight.isnan())


def test_batchnorm_with_and_without_statistics(tmp_path: Path) -> None:
    def network(track: bool) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=track), nn.Linear(4, 2))

    for saved in (True, False):
        _round_trip(tmp_path, network(saved), network(not saved))


def test_subclasses(tmp_path: Path) -> None:
    class Wider(Block):
        def __init__(self) -> None:
            super().__init__()
            self.kind = "wider"

    assert _round_trip(tmp_path, Block(3), Wider()).kind == "wider"
    assert _round_trip(tmp_path, Wider(), Block()).kind == "wider"


def test_other_networks_with_the_same_tensors(tmp_path: Path) -> None:
    def of(*layers: nn.Module) -> nn.Sequential:
        return nn.Sequential(nn.Linear(6, 2), *layers)

    for model, fresh, message in (
        (of(nn.ReLU()), of(nn.GELU()), "'1' was a ReLU, the network's is a GELU"),
        (of(nn.ReLU()), of(), r"layer '1' \(ReLU\) has no counterpart in the network"),
        (of(), of(nn.ReLU()), r"layer '1' \(ReLU\) has no counterpart in the file"),
        (of(), of(nn.Linear(2, 2)), r"lacks \['1.bias', '1.weight'\]; pass a network .* that was saved \(Sequential\)"),
    ):
        _refused(tmp_path, model, fresh, message)
    optional: Any = Block()
    optional.act = None
    _refused(tmp_path, Block(), optional, r"'act' \(ReLU\) has no counterpart in the network")


def test_sizes_that_a_script_left_behind(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].weight, model[0].bias = (nn.Parameter(p[:3].detach()) for p in (model[0].weight, model[0].bias))
    model[2].weight = nn.Parameter(model[2].weight[:, :3].detach())
    _round_trip(tmp_path, model, nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)))


def test_networks_that_cannot_be_saved_or_loaded_into(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"a": 1}

    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("graph", torch.eye(3).to_sparse())

    lazy = nn.Sequential(nn.LazyLinear(4))
    model: Any
    for model, message in (
        (lazy, "'0.weight' has no shape yet; run one batch through the network first"),
        (Extra(2, 2), "the state dict holds '_extra_state', a dict that is no parameter or buffer"),
        (Sparse(), "'graph' is a Tensor .*sparse.*expected ordinary dense tensors"),
        (nn.Linear(2, 2, device="meta"), "'weight' is a Parameter .*meta.*expected ordinary dense tensors"),
        (nn.DataParallel(nn.Linear(2, 2)), "wrapped in DataParallel; expected itself: model.module"),
        (torch.compile(nn.Linear(2, 2), backend="eager"), "wrapped in OptimizedModule; expected itself: model._orig_"),
    ):
        with pytest.raises(InputError, match=message):
            save_pruned(tmp_path / "network.safetensors", model)
    assert not list(tmp_path.iterdir())
    save_pruned(tmp_path / "network.safetensors", nn.Sequential(nn.Linear(3, 4)))
    with pytest.raises(InputError, match=r"'0.*' of the network has no shape yet; run one batch"):
        load_pruned(tmp_path / "network.safetensors", nn.Sequential(nn.LazyLinear(4)))
    lazy(torch.ones(1, 3))
    load_pruned(tmp_path / "network.safetensors", lazy)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_quantised_layers_are_refused(tmp_path: Path) -> None:
    quantization: Any = torch.ao.quantization
    layer = quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(InputError, match=r"the state dict holds .* that is no parameter or buffer"):
        save_pruned(tmp_path / "network.safetensors", layer)

    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))

    with pytest.raises(InputError, match=r"'table' is a Tensor \(quantised\); expected ordinary dense tensors"):
        save_pruned(tmp_path / "network.safetensors", Quantised())


def test_pruned_saved_loaded_pruned_again_and_saved(tmp_path: Path) -> None:
    def half(model: Any) -> Any:
        importance = tp.importance.GroupMagnitudeImportance()
        pruner = tp.pruner.BasePruner(model, X, importance, pruning_ratio=0.5, ignored_layers=[model[-1]])
        pruner.step()
        return model

    def network() -> Any:
        return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 2))

    once = _round_trip(tmp_path, half(network()), network())
    twice = _round_trip(tmp_path, half(once), network())
    assert [twice[0].out_features, twice[3].out_features] == [4, 2]
    _round_trip(tmp_path, network(), copy.deepcopy(twice))  # the file decides, whatever the network had


def test_files_of_the_first_version(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2, 2))
    modules = {
        "0": {"in_channels": 3, "out_channels": 2, "kernel_size": [1, 1], "groups": 1},
        "1": {"start_dim": 1, "end_dim": -1},
        "2": {"in_features": 2, "out_features": 2},
    }
    header = {"format": "fairtrim-pruned", "version": 1, "aliases": {}, "modules": modules}
    save_file(model.state_dict(), tmp_path / "old.st", metadata={"fairtrim-pruned": json.dumps(header)})
    fresh: Any = nn.Sequential(nn.Conv2d(3, 9, 1), nn.Flatten(), nn.Linear(9, 2))
    x = torch.ones(1, 3, 1, 1)
    assert torch.equal(load_pruned(tmp_path / "old.st", fresh)(x), model(x))
    assert fresh[0].kernel_size == (1, 1)


# Attributes that are no plain values, and names that modules use -------------------------------------------------


class Choosing(nn.Module):
    """A network that keeps tensors and arrays which are neither parameters nor buffers."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.type, self.half, self.to = "mlp", 4, 1.0
        self.first, self.last = nn.Linear(4, width), nn.Linear(width, 2)
        self.keep: Any = torch.arange(4)
        self.factors: Any = np.ones(4, np.float32)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.last(self.first(x[:, self.keep] * torch.as_tensor(self.factors))) * self.half
        return scores


def _chosen() -> Choosing:
    model = Choosing(6)
    model.keep, model.factors = torch.tensor([5, 0, 3, 3]), np.array([1, -2, 0.5, 4], np.float32)
    model.type, model.half, model.to = "cnn", 3, 0.5
    return model


def test_attributes_named_as_methods_are(tmp_path: Path) -> None:
    loaded = _round_trip(tmp_path, _chosen(), Choosing())
    assert (loaded.type, loaded.half, loaded.to) == ("cnn", 3, 0.5)
    added: Any = Block(3)
    added.double, added.first.cpu = True, [1]
    loaded = _round_trip(tmp_path, added, Block())
    assert loaded.double is True and loaded.first.cpu == [1]
    added.apply = "everywhere"  # the modules around it would call it
    with pytest.warns(UserWarning, match="^apply: not stored"):
        _round_trip(tmp_path, added, Block())


def test_plain_tensors_and_arrays_come_back(tmp_path: Path) -> None:
    model, fresh = _chosen(), Choosing()
    loaded = _round_trip(tmp_path, model, fresh)
    assert type(loaded.keep) is Tensor and type(loaded.factors) is np.ndarray
    assert loaded.keep is not model.keep and loaded.factors.flags.writeable
    values: dict[str, Any] = {
        "a scalar": torch.tensor(2.5),
        "no entries": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "transposed": torch.arange(6).reshape(2, 3).t(),
        "a parameter's": model.first.weight.data,
        "a scalar array": np.array(3),
        "other bytes": np.arange(3, dtype=">i4"),
        "a transposed array": np.arange(6.0).reshape(2, 3).T,
        "a reversed array": np.arange(5)[::-1],
        "flags of numpy": np.array([True, False]),
        "of a layer": None,
    }
    for name, value in values.items():
        setattr(model, name, value)
    model.first.seen = torch.arange(3)
    loaded = _round_trip(tmp_path, model, Choosing())
    for name, value in values.items():
        mine = getattr(loaded, name)
        assert type(mine) is type(value), name
        if value is not None:
            assert mine.shape == value.shape and (mine == value).all(), name
        if isinstance(value, Tensor):
            assert mine.dtype is value.dtype
    assert loaded.first.seen.tolist() == [0, 1, 2]


def test_tensors_with_and_without_a_counterpart(tmp_path: Path) -> None:
    model = _chosen()
    model.first.probe = nn.Dropout()
    model.first.probe.seen = torch.ones(2)  # of a layer that the other lacks
    _round_trip(tmp_path, model, Choosing())
    fresh: Any = Choosing()
    fresh.keep = None
    assert _round_trip(tmp_path, model, fresh).keep.tolist() == [5, 0, 3, 3]
    model.keep = None
    save_pruned(tmp_path / "network.safetensors", model)
    assert load_pruned(tmp_path / "network.safetensors", Choosing()).keep is None
    other: Any = Choosing()
    del other.keep
    other.keep = nn.Identity()
    _refused(tmp_path, _chosen(), other, r"the network itself: keep = tensor.* has no counterpart in the network")
    with_buffer: Any = Choosing()
    del with_buffer.keep
    with_buffer.register_buffer("keep", torch.arange(4))
    _refused(tmp_path, _chosen(), with_buffer, r"lacks \['keep'\]")


def test_damaged_descriptions_of_plain_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    model = _chosen()
    model.keep = model.keep.bfloat16()
    for kept, message in (
        ({"keep": "array", "factors": "array"}, "'keep' holds torch.bfloat16 and is said to be 'array'"),
        ({"keep": "list", "factors": "array"}, "'keep' holds torch.bfloat16 and is said to be 'list'"),
        ({"factors": "array"}, r"holds \['keep'\], which the network doesn't have"),
        ({"keep": "tensor", "factors": "array", "last.bias": "tensor"}, r"lacks \['last.bias'\]"),
        (["keep"], "its header says something else"),
    ):
        save_pruned(path, model)
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["fairtrim-pruned"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header.pop("digest")  # or nothing else would be looked at
        save_file(tensors, path, metadata={"fairtrim-pruned": json.dumps(header | {"kept": kept})})
        fresh = Choosing()
        before = _state(fresh)
        with pytest.raises(InputError, match=message):
            load_pruned(path, fresh)
        assert _state(fresh) == before


def test_results_of_a_pass_are_not_stored(tmp_path: Path) -> None:
    model: Any = Block(3)
    model.last_seen = model.first(X)
    assert not hasattr(_round_trip(tmp_path, model, Block()), "last_seen")


class Color(enum.Enum):
    RED = 1


def test_data_that_cannot_be_stored_is_named(tmp_path: Path) -> None:
    model: Any = Block(3)
    model.hook, model.kind, model.log, model.empty = print, torch.float32, logging.getLogger("x"), set()
    model.parts, model.table, model.config = [nn.ReLU(), print], {"a": object()}, object()
    save_pruned(tmp_path / "network.safetensors", model)  # without a warning
    model.groups, model.first.words = {1, 2}, np.array(["a", None], dtype=object)
    model.raw, model.color, model.waves = b"x", Color.RED, torch.ones(2, dtype=torch.complex64)
    model.last.scales = {"a": [torch.ones(2)]}
    message = "^groups, raw, color, waves, first.words, last.scales: not stored, .*; set them again after loading$"
    with pytest.warns(UserWarning, match=message) as caught:
        _round_trip(tmp_path, model, Block())
    assert len(caught) == 1 and caught[0].filename == __file__


# Which layer gives the scores -----------------------------------------------------------------------------------


class HeadFirst(nn.Module):
    """The layer that gives the scores is registered first, and reads two others beside each other."""

    def __init__(self, h: int = 16, g: int = 16) -> None:
        super().__init__()
        self.head, self.a, self.b = nn.Linear(h + g, 2), nn.Linear(6, h), nn.Linear(6, g)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.cat([self.a(x), self.b(x)], 1))
        return scores


class BesideTheInput(nn.Module):
    """The layer that gives the scores is registered first, and reads another one beside the inputs."""

    def __init__(self, h: int = 16) -> None:
        super().__init__()
        self.fc, self.c = nn.Linear(h + 3, 2), nn.Linear(3, h)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.fc(torch.cat([self.c(x), x], 1))
        return scores


def test_heads_that_come_first_and_read_a_concatenation(tmp_path: Path) -> None:
    _round_trip(tmp_path, HeadFirst(12, 8), HeadFirst())
    _round_trip(tmp_path, HeadFirst(16, 8), HeadFirst())
    _round_trip(tmp_path, BesideTheInput(10), BesideTheInput(), X[:, :3])


def test_two_heads_with_other_numbers_of_scores(tmp_path: Path) -> None:
    def network(width: int, a: int, b: int) -> nn.Module:
        return nn.ModuleDict({"body": nn.Linear(6, width), "a": nn.Linear(width, a), "b": nn.Linear(width, b)})

    _refused(tmp_path, network(5, 2, 3), network(8, 4, 6), "another number of scores")
