"""A layer's rows times its matrix are its outputs, whatever kind of layer it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fairtrim.reconstruction.readers import LayerRows, layer_rows
from tests.reconstruction.cases import CASES, LayerCase


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("n_samples", [1, 3])
@torch.no_grad()
def test_rows_times_matrix_are_the_outputs(case: LayerCase, n_samples: int) -> None:
    module, x = case.make(6).double(), case.inputs(n_samples)
    output = module(x)
    rows = layer_rows(module, case.input_axis)
    assert isinstance(rows, LayerRows)
    count = rows.count(output, n_samples)
    assert count is not None and count * n_samples * rows.outputs == output.numel()
    positions = torch.rand(n_samples, count).argsort(1)[:, : max(1, count - 1)]
    patches, matrix = rows.input_rows(x, positions), rows.matrix()
    assert patches.shape == (positions.numel(), rows.groups, rows.width)
    assert matrix.shape == (rows.groups, rows.outputs // rows.groups, rows.width)
    expected = torch.einsum("rgd,god->rgo", patches, matrix).flatten(1)
    expected = expected if rows.bias is None else expected + rows.bias
    torch.testing.assert_close(rows.output_rows(output, positions), expected)
    assert torch.equal(rows.stored(matrix), rows.weight)


@torch.no_grad()
def test_layers_that_run_on_parts_of_samples_have_the_positions_of_all_parts() -> None:
    frames = torch.randn(3, 4, 2, 5, 6).double()  # three samples of four frames
    module = nn.Conv2d(2, 7, 3, padding=1).double()
    output = module(frames.flatten(0, 1))
    rows = layer_rows(module)
    assert isinstance(rows, LayerRows) and rows.count(output, 3) == 4 * 30
    positions = torch.randint(120, (3, 11))
    patches = rows.input_rows(frames.flatten(0, 1), positions)
    expected = torch.einsum("rgd,god->rgo", patches, rows.matrix()).flatten(1) + module.bias
    torch.testing.assert_close(rows.output_rows(output, positions), expected)
    assert rows.count(output[:-1], 3) is None


def test_what_is_no_linear_map_says_why() -> None:
    assert "Bilinear is no linear" in str(layer_rows(nn.Bilinear(2, 3, 4)))
    layer = nn.Linear(2, 3)
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Tanh())
    assert "computed from others" in str(layer_rows(layer))
    assert "expected two axes" in str(layer_rows(nn.Linear(2, 3), 2))
