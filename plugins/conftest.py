"""Doctests of modules whose extra is not installed are left out."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

collect_ignore = ["conftest.py", *([] if find_spec("cma") else ["fairtrim/repair/layerwise_optimization.py"])]


@pytest.fixture(autouse=True)
def _same_networks() -> Iterator[None]:
    """Examples draw the same fresh networks whichever tests ran before them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
