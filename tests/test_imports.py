"""What importing the library brings along: torch, and nothing else that takes long."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys

import pytest

import fairtrim
import fairtrim_adapters.fairlearn

HEAVY = [
    "IPython",
    "fairlearn",
    "ipywidgets",
    "joblib",
    "matplotlib",
    "onnx",
    "pandas",
    "scipy",
    "sklearn",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "torch.utils.flop_counter",
    "torchvision",
    "transformers",
    "triton",
]
"""Each takes from a tenth of a second to seconds, and is imported by what needs it, when it is called."""


def _run(code: str) -> str:
    """A process without what this one has imported."""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


def test_only_torch_is_imported() -> None:
    modules = ["fairtrim", "fairtrim_adapters.fairlearn", "fairtrim_adapters.torch_pruning"]
    if importlib.util.find_spec("typer") is not None:
        modules.append("fairtrim_adapters.command_line.app")
    text = _run(
        "import sys, torch, importlib\n"
        "before = set(sys.modules)\n"
        f"for module in {modules}:\n"
        "    importlib.import_module(module)\n"
        f"    print(module, *sorted(({set(HEAVY)} & set(sys.modules)) - before))\n"
    )
    assert text.splitlines() == modules


def test_version_needs_no_torch() -> None:
    try:
        importlib.metadata.version("fairtrim")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("fairtrim is not installed, only on the path")
    text = _run(
        "import sys\nfrom fairtrim_adapters.command_line import main\n"
        "print(main(['--version']), 'torch' in sys.modules)"
    )
    assert text == f"fairtrim {fairtrim.__version__}\n0 False\n"


def test_names_imported_when_they_are_asked_for_are_seen() -> None:
    assert set(fairtrim_adapters.fairlearn.__all__) <= set(dir(fairtrim_adapters.fairlearn))
    names: dict[str, object] = {}
    exec("from fairtrim_adapters.fairlearn import *", names)
    assert set(fairtrim_adapters.fairlearn.__all__) <= set(names)
    with pytest.raises(AttributeError, match="has no attribute 'RepairedClasifier'"):
        _ = fairtrim_adapters.fairlearn.RepairedClasifier  # type: ignore[attr-defined]
