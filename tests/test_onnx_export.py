"""ONNX files compute what the network computes, and a file that doesn't is never left behind."""

from __future__ import annotations

import copy
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import InputError, UnsupportedModelError
from fairtrim_adapters import onnx_export
from fairtrim_adapters.onnx_export import export_onnx, onnx_outputs

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def _convolutional() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 8, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(8, 3),
    )
    with torch.no_grad():  # statistics that matter
        model(5 + 2 * torch.randn(31, 2, 6, 4, generator=torch.Generator().manual_seed(1)))
    return model.train()


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _compare(path: Path, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(x)
    (found,) = onnx_outputs(path, x).values()
    assert found.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_samples", [1, 4])
def test_pruned_networks_at_any_batch_size(n_samples: int, tmp_path: Path) -> None:
    model = _convolutional()
    x = torch.randn(7, 2, 6, 4)
    importance = tp.importance.MagnitudeImportance()
    tp.pruner.BasePruner(model, x, importance=importance, pruning_ratio=0.5, ignored_layers=[model[-1]]).step()
    assert model[0].out_channels == 2 and model[3].out_channels == 4
    path = export_onnx(tmp_path / "network.onnx", model, x[:n_samples])
    for size in (1, 2, 7):
        _compare(path, model, x[:size])
    assert _files(tmp_path) == ["network.onnx"]  # no file of weights, nothing temporary
    (argument,) = onnx.load(path).graph.input
    assert argument.name == "input" and argument.type.tensor_type.shape.dim[0].dim_param
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_batch_size_that_may_not_vary(tmp_path: Path) -> None:
    model, x = _convolutional(), torch.randn(3, 2, 6, 4)
    path = export_onnx(tmp_path / "network.onnx", model, x, dynamic_batch=False)
    _compare(path, model, x)
    with pytest.raises(InputError, match=r"doesn't take the inputs: .*; expected \{'input': 'tensor\(float\) \[3, 2"):
        onnx_outputs(path, x[:2])


class Named(nn.Module):
    """Several inputs, one without samples, and outputs in every container."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, ids: Tensor, scale: Tensor | None = None, flag: bool = False) -> dict[str, Any]:
        hidden = self.layer(ids)
        if scale is not None:
            hidden = hidden * scale
        return {"logits": hidden, "ids": (hidden.sum(1), None, [hidden + 1]), "flagged": hidden + float(flag)}


@pytest.mark.slow
def test_inputs_and_outputs_of_any_kind(tmp_path: Path) -> None:
    model, x, scale = Named().eval(), torch.randn(5, 4), torch.tensor([1.0, 2.0, 3.0])
    path = tmp_path / "network.onnx"
    for n_samples in (1, 2):
        export_onnx(path, model, {"ids": x[:n_samples], "scale": scale, "flag": True})
        found = onnx_outputs(path, {"ids": x, "scale": scale, "flag": True})
        with torch.no_grad():
            hidden = (model.layer(x) * scale).numpy()
        expected = {"logits": hidden, "ids_0": hidden.sum(1), "ids_2_0": hidden + 1, "flagged": hidden + 1}
        assert list(found) == list(expected)
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5)
        by_place = onnx_outputs(path, (x.numpy(), scale))
        assert all(np.array_equal(by_place[name], found[name]) for name in found)
    with pytest.raises(InputError, match=r"was given inputs \['ids'\]; expected \{'ids': .*, 'scale': .* \[3\]'\}"):
        onnx_outputs(path, {"ids": x})
    with pytest.raises(InputError, match="was given 1 inputs; expected"):
        onnx_outputs(path, x)
    export_onnx(path, model, (x,))
    assert onnx_outputs(path, [x])["logits"].shape == (5, 3)


class Tuple(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x + y, x - y


def test_tuples(tmp_path: Path) -> None:
    x, y = torch.randn(6, 2), torch.randn(6, 2)
    found = onnx_outputs(export_onnx(tmp_path / "a.onnx", Tuple(), (x[:2], y[:2])), (x, y))
    assert list(found) == ["output_0", "output_1"]
    np.testing.assert_allclose(found["output_1"], x - y, rtol=1e-6)


class Same(nn.Module):
    def forward(self, output: Tensor) -> Tensor:
        return output * 2


def test_output_named_as_an_input(tmp_path: Path) -> None:
    assert list(onnx_outputs(export_onnx(tmp_path / "a.onnx", Same(), torch.ones(2, 2)), torch.eye(2))) == [
        "output_output"
    ]


def test_operators_of_a_version(tmp_path: Path) -> None:
    path = export_onnx(tmp_path / "a.onnx", nn.Linear(2, 3), torch.ones(2, 2), opset=18)
    assert [entry.version for entry in onnx.load(path).opset_import if not entry.domain] == [18]


def test_network_is_left_as_it_was(tmp_path: Path) -> None:
    model = _convolutional()
    model[1].eval()
    model(torch.randn(3, 2, 6, 4)).sum().backward()
    handle = model[0].register_forward_hook(lambda *_: None)
    hooks = dict(model[0]._forward_hooks)
    flags = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [p.grad for p in model.parameters()]
    random_state = torch.get_rng_state()
    level = logging.getLogger("torch.onnx").level
    export_onnx(tmp_path / "network.onnx", model, torch.randn(2, 2, 6, 4, generator=torch.Generator().manual_seed(0)))
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True))
    assert dict(model[0]._forward_hooks) == hooks and torch.equal(torch.get_rng_state(), random_state)
    assert logging.getLogger("torch.onnx").level == level and torch.is_grad_enabled()
    handle.remove()


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Sometimes(nn.Module):
    """Other outputs with every call."""

    def __init__(self) -> None:
        super().__init__()
        self.n_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.n_calls += 1
        return x + self.n_calls


class Text(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "text"


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> None:
        return None


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (
            nn.Linear(5, 2),
            {},
            UnsupportedModelError,
            "fails on the example inputs: RuntimeError: .*; expected what",
        ),
        (Text(), {}, UnsupportedModelError, "the network returns a str; expected tensors, in tuples, lists or dicts"),
        (Nothing(), {}, UnsupportedModelError, r"returns tensors named \[\]; expected at least one"),
        (nn.Linear(4, 2), {"opset": 99}, InputError, r"opset=99, but the exporter wrote \[\d+\]|can't be exported"),
        (nn.Linear(4, 2), {"tolerance": -1}, InputError, "tolerance=-1; expected at least 0"),
    ],
)
@pytest.mark.parametrize("exists", [False, True])
def test_file_on_failure(
    model: nn.Module, options: dict[str, Any], error: type[Exception], message: str, exists: bool, tmp_path: Path
) -> None:
    path = tmp_path / "network.onnx"
    if exists:
        path.write_bytes(b"kept")
    with pytest.raises((error, UnsupportedModelError), match=message):
        export_onnx(path, model, torch.ones(2, 4), **options)
    assert _files(tmp_path) == (["network.onnx"] if exists else [])
    assert not exists or path.read_bytes() == b"kept"


@pytest.mark.skipif(not onnx_export._HAS_EXPORTER, reason="TorchScript records one branch")
def test_network_that_decides_by_values(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"can't be exported: .*torch\.where"):
        export_onnx(tmp_path / "network.onnx", Decides(), torch.ones(2, 4))
    assert _files(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("exists", [False, True])
def test_other_outputs_are_told(exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime is made to give something else, since exporters are right as a rule."""
    path = tmp_path / "network.onnx"
    if exists:
        path.write_bytes(b"kept")
    real: Callable[..., dict[str, Any]] = onnx_outputs

    def wrong(*arguments: Any) -> dict[str, Any]:
        return {name: values + 0.25 * (len(values) == 3) for name, values in real(*arguments).items()}

    monkeypatch.setattr(onnx_export, "onnx_outputs", wrong)
    message = r"output 'output' differs by up to 0\.25 between onnxruntime and torch at 3 samples; expected at"
    with pytest.raises(UnsupportedModelError, match=message):
        export_onnx(path, nn.Linear(4, 2), torch.ones(2, 4))
    assert _files(tmp_path) == (["network.onnx"] if exists else [])
    assert not exists or path.read_bytes() == b"kept"
    export_onnx(path, nn.Linear(4, 2), torch.ones(2, 4), dynamic_batch=False)
    assert path.read_bytes() != b"kept"
    export_onnx(path, nn.Linear(4, 2), torch.ones(2, 4), tolerance=0.3)
    export_onnx(path, nn.Linear(4, 2), torch.ones(2, 4), check=False)


def test_other_shapes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "onnx_outputs", lambda *_: {"output": np.zeros((2, 5), np.float32)})
    with pytest.raises(UnsupportedModelError, match=r"has shape \(2, 5\) under onnxruntime and \(1, 2\) in torch at 1"):
        export_onnx(tmp_path / "network.onnx", nn.Linear(4, 2), torch.ones(2, 4))


def test_network_that_changes_its_mind(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'output' differs by up to \d"):
        export_onnx(tmp_path / "network.onnx", Sometimes(), torch.zeros(2, 4))
    assert _files(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "model", "inputs", "message"),
    [
        ("absent/network.onnx", nn.Identity(), torch.ones(2, 4), "folder .*absent doesn't exist; create it first"),
        ("", nn.Identity(), torch.ones(2, 4), "is a folder; expected the name of a file"),
        ("a.onnx", torch.ones(2), torch.ones(2, 4), r"got a Tensor; expected the network itself: export_onnx\(path"),
        (
            "a.onnx",
            nn.Identity(),
            torch.ones(0, 4),
            r"a first tensor of shape \(0, 4\); expected tensors \(N, ...\)",
        ),
        ("a.onnx", nn.Identity(), torch.tensor(1.0), r"a first tensor of shape \(\); expected tensors"),
        ("a.onnx", nn.Identity(), {"x": "text"}, "the example inputs hold no tensor"),
    ],
)
def test_wrong_arguments(path: str, model: Any, inputs: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export_onnx(tmp_path / path, model, inputs)
    assert _files(tmp_path) == []


def test_weights_that_need_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "MOST_BYTES", 4 * 10)
    export_onnx(tmp_path / "network.onnx", nn.Linear(4, 2), torch.ones(2, 4))
    with pytest.raises(InputError, match=r"weights take 0\.00 GiB, and one ONNX file holds less than 2; write several"):
        export_onnx(tmp_path / "network.onnx", nn.Linear(4, 3), torch.ones(2, 4))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"doesn't exist; write it with export_onnx"):
        onnx_outputs(tmp_path / "absent.onnx", torch.ones(2, 4))
    path = tmp_path / "text.onnx"
    path.write_text("text")
    with pytest.raises(InputError, match="is damaged or no ONNX file"):
        onnx_outputs(path, torch.ones(2, 4))


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_without_a_package(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export_onnx(tmp_path / "network.onnx", nn.Linear(4, 2), torch.ones(2, 4))
    monkeypatch.setitem(sys.modules, missing, None)
    message = rf"ONNX files need {missing}: pip install 'fairtrim\[export\]'"
    with pytest.raises(InputError, match=message):
        export_onnx(tmp_path / "other.onnx", nn.Linear(4, 2), torch.ones(2, 4))
    if missing == "onnxruntime":
        with pytest.raises(InputError, match=message):
            onnx_outputs(path, torch.ones(2, 4))
        export_onnx(tmp_path / "unchecked.onnx", nn.Linear(4, 2), torch.ones(2, 4), check=False)


def test_half_precision(tmp_path: Path) -> None:
    x = torch.ones(2, 4, dtype=torch.float16)
    export_onnx(tmp_path / "half.onnx", nn.Linear(4, 2).half(), x, tolerance=0.01)
    assert onnx_outputs(tmp_path / "half.onnx", x)["output"].dtype == np.float16
    network = nn.Linear(4, 2).to(torch.bfloat16)
    with pytest.raises(
        UnsupportedModelError, match=r"onnxruntime doesn't run what was exported at 1 samples: .*check=False"
    ):
        export_onnx(tmp_path / "brain.onnx", network, x.to(torch.bfloat16), tolerance=0.1)
    assert _files(tmp_path) == ["half.onnx"]


def test_hugging_face(tmp_path: Path, transformers: Any) -> None:
    config = transformers.BertConfig(
        vocab_size=19, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=10, num_labels=3
    )
    model = transformers.BertForSequenceClassification(config).eval()
    words = torch.randint(19, (5, 7), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7) < torch.tensor([7, 3, 5, 2, 7])[:, None]).long()
    inputs = {"input_ids": words, "attention_mask": mask}
    path = export_onnx(tmp_path / "bert.onnx", model, inputs)
    inputs = {name: value[1:4] for name, value in inputs.items()}
    with torch.no_grad():
        expected = model(**inputs).logits
    np.testing.assert_allclose(onnx_outputs(path, inputs)["logits"], expected, rtol=0, atol=1e-5)
