"""Doctests of adapters whose host is not installed are left out."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

collect_ignore = [
    "conftest.py",
    *([] if find_spec("aif360") else ["fairtrim_adapters/aif360"]),
    *([] if find_spec("typer") else ["fairtrim_adapters/command_line"]),
    *([] if find_spec("onnxruntime") and find_spec("onnxscript") else ["fairtrim_adapters/onnx_export.py"]),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Examples of single functions that draw need matplotlib; the rest of their module doesn't."""
    if find_spec("matplotlib") is None:
        for item in items:
            examples = getattr(getattr(item, "dtest", None), "examples", ())
            if any("matplotlib" in example.source for example in examples):
                item.add_marker(pytest.mark.skip(reason="needs matplotlib"))


@pytest.fixture(autouse=True)
def _same_networks() -> Iterator[None]:
    """Examples draw the same fresh networks whichever tests ran before them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
