"""Every tensor of a batch's inputs is met, in whatever the loader puts them."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fairtrim.data.batches import slice_samples, tensors_of
from fairtrim.devices import map_tensors


class Pair(NamedTuple):
    first: Tensor
    second: Any


X = torch.arange(6.0).reshape(3, 2)
KINDS: dict[str, Any] = {
    "tensor": X,
    "tuple": (X, "a", [X]),
    "named tuple": Pair(X, {"deep": X}),
    "ordered dict": OrderedDict(x=X, flag=True),
    "mapping of one's own": UserDict(x=X, none=None),  # such as the batches of Hugging Face's tokenizers
}


@pytest.mark.parametrize("kind", KINDS)
def test_structures_of_tensors(kind: str) -> None:
    inputs = KINDS[kind]
    assert all(tensor is X for tensor in tensors_of(inputs)) and tensors_of(inputs)
    for samples in (slice(1, 2), torch.tensor([1])):
        part = slice_samples(inputs, samples)
        assert [tensor.tolist() for tensor in tensors_of(part)] == [[[2.0, 3.0]]] * len(tensors_of(inputs))
    doubled = map_tensors(inputs, lambda tensor: 2 * tensor)
    assert isinstance(doubled, dict if kind.endswith(("dict", "own")) else type(inputs))
    assert torch.equal(tensors_of(doubled)[-1], 2 * X)


def test_what_is_no_tensor_stays() -> None:
    assert slice_samples({"x": X, "return_dict": True, "none": None}, slice(0, 1))["return_dict"] is True
    assert tensors_of(["a", 1, None]) == [] and slice_samples(None, slice(0, 1)) is None
