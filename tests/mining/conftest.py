"""A network that has learned the shortcut."""

from __future__ import annotations

import pytest
from torch import nn

from fairtrim.network.fine_tuning import fine_tune
from tests.mining_cases import loader_of_shortcut, mlp


@pytest.fixture(scope="module")
def trained() -> nn.Sequential:
    return fine_tune(mlp(), loader_of_shortcut(), epochs=10, learning_rate=0.01, progress=False)  # type: ignore[return-value]
