"""What save_pruned and load_pruned refuse; round trips of pruned networks are in test_torch_pruning."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from fairtrim import InputError, load_pruned, save_pruned


def _network(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def _rewritten(path: Path, change: Any) -> None:
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["fairtrim-pruned"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header.pop("digest")  # or nothing else would be looked at
    change(header, tensors)
    save_file(tensors, path, metadata={"fairtrim-pruned": json.dumps(header)})


def test_tied_and_frozen_parameters_and_dtypes(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(5, width), nn.Linear(width, 5, bias=False)
            self.head.weight = self.embed.weight
            self.num_heads, self.grid = width // 2, (width, 1)

    small, large = Tied(4).half(), Tied(6)
    large.requires_grad_(False)
    save_pruned(tmp_path / "tied.safetensors", small)
    loaded = load_pruned(tmp_path / "tied.safetensors", large)
    assert loaded.head.weight is loaded.embed.weight and not loaded.head.weight.requires_grad
    assert loaded.embed.weight.dtype == torch.float16
    assert (loaded.num_heads, loaded.grid, loaded.embed.embedding_dim) == (2, (4, 1), 4)


def test_untied_weights_do_not_go_into_a_tied_network(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self, tied: bool) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            if tied:
                self.b.weight = self.a.weight

    save_pruned(tmp_path / "untied.safetensors", Two(tied=False))
    with pytest.raises(InputError, match=r"'a\.weight' and 'b\.weight' differ, but the network shares them"):
        load_pruned(tmp_path / "untied.safetensors", Two(tied=True))


def test_something_else_than_a_network(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got a OrderedDict; expected the network itself"):
        save_pruned(tmp_path / "x.safetensors", _network().state_dict())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="got a str; expected a fresh network"):
        load_pruned(_network(), str(tmp_path))  # type: ignore[arg-type]


def test_module_under_two_names(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.a = nn.Linear(3, width)
            self.b, self.head = self.a, nn.Linear(width, 2)

    save_pruned(tmp_path / "twice.safetensors", Twice(2))
    loaded = load_pruned(tmp_path / "twice.safetensors", Twice(5))
    assert loaded.b is loaded.a and loaded.a.out_features == len(loaded.a.weight) == 2


def test_tensors_that_are_too_many_or_too_few(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    save_pruned(path, nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2)))
    for fresh, message in (
        (nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), r"the file lacks \['0\.bias'\]; pass"),
        (nn.Sequential(nn.Linear(3, 2, bias=False)), r"the file holds \['1\.bias', '1\.weight'\], which the network"),
        (nn.Sequential(nn.Linear(3, 2)), r"the file lacks \['0\.bias'\] and the file holds \['1\.bias',"),
    ):
        with pytest.raises(InputError, match=f"is of another network: {message}"):
            load_pruned(path, fresh)


def test_saving_replaces_a_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    path.write_bytes(b"old")
    save_pruned(path, _network())
    assert [entry.name for entry in tmp_path.iterdir()] == ["network.safetensors"]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert load_pruned(path, _network(9))[0].out_features == 4
    with pytest.raises(InputError, match="doesn't exist; create it first"):
        save_pruned(tmp_path / "nowhere" / "network.safetensors", _network())


FAULTS: dict[str, tuple[Any, str]] = {
    "missing": (lambda path: path.unlink(), "doesn't exist"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "damaged or no safetensors"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"0.weight": 1})), "damaged or no safetensors"),
    "plain safetensors": (lambda path: save_file(_network().state_dict(), path), "not written by save_pruned"),
    "later version": (lambda path: _rewritten(path, lambda h, t: h.update(version=3)), "has version 3"),
    "other format": (lambda path: _rewritten(path, lambda h, t: h.update(format="x")), "not written by"),
    "no modules": (lambda path: _rewritten(path, lambda h, t: h.pop("modules")), "lacks the modules"),
    "shape of a tensor": (
        lambda path: _rewritten(path, lambda h, t: t.update({"2.weight": t["2.weight"][:, :3].contiguous()})),
        r"2.weight has shape \(2, 3\), expected \(2, 4\)",
    ),
    "modules that are no dict": (lambda path: _rewritten(path, lambda h, t: h.update(modules={"0": 1})), "lacks the"),
    "missing tensor": (lambda path: _rewritten(path, lambda h, t: t.pop("0.bias")), r"lacks \['0.bias'\]"),
    "surplus tensor": (lambda path: _rewritten(path, lambda h, t: t.update(z=t["0.bias"].clone())), r"holds \['z'\]"),
    "other axes": (
        lambda path: _rewritten(path, lambda h, t: t.update({"0.bias": torch.zeros(4, 1)})),
        "has 2 axes",
    ),
    "unknown module": (lambda path: _rewritten(path, lambda h, t: h["modules"].update(z={"k": 1})), "no counterpart"),
    "a method's name": (
        lambda path: _rewritten(path, lambda h, t: h["modules"]["0"].update(forward=1)),
        "0: forward = 1 has no counterpart",
    ),
    "a parameter's name": (
        lambda path: _rewritten(path, lambda h, t: h["modules"]["0"].update(weight=1)),
        "0: weight = 1 has no counterpart",
    ),
    "a layer's name": (
        lambda path: _rewritten(path, lambda h, t: h["modules"][""].update({"1": None})),
        "1 = None has no counterpart",
    ),
    "no plain value": (
        lambda path: _rewritten(path, lambda h, t: h["modules"]["0"].update(size={"set": [1]})),
        "is no number, word, flag",
    ),
    "no integer": (
        lambda path: _rewritten(path, lambda h, t: h["modules"]["0"].update(in_features="os.system")),
        r"0.weight has shape \(4, 3\), expected \(4, 'os.system'\)",
    ),
    "no size": (lambda path: _rewritten(path, lambda h, t: h["modules"]["0"].pop("in_features")), "what shape '0' has"),
    "integers where weights are trained": (
        lambda path: _rewritten(path, lambda h, t: t.update({"0.bias": torch.zeros(4).long()})),
        "'0.bias' holds torch.int64, the network's torch.float32 with a gradient",
    ),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder; expected a file"),
    "empty": (lambda path: path.write_bytes(b""), "damaged or no safetensors"),
    "private attribute": (
        lambda path: _rewritten(path, lambda h, t: h["modules"]["0"].update(_version=1)),
        "no counterpart",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_refused_files_change_nothing(name: str, tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    save_pruned(path, _network())
    damage, message = FAULTS[name]
    damage(path)
    fresh = _network(9)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load_pruned(path, fresh)
    assert str(fresh) == str(_network(9))
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())
