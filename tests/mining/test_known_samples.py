"""Flags and scores that are known, in the place of a miner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import InputError, MinedSamples
from fairtrim.files.run_settings import plain_settings
from fairtrim.mining import KnownSamples
from tests.snapshot import Snapshot

N = 11
FLAGS = torch.arange(N) % 4 == 1
Y = torch.arange(N) % 3
LOADER: DataLoader[Any] = DataLoader(TensorDataset(torch.eye(N, 5), Y), batch_size=4, shuffle=True)


def _read_only(flags: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """As pandas gives the values of a series."""
    flags.setflags(write=False)
    return flags


@pytest.mark.parametrize(
    "given",
    [
        FLAGS,
        FLAGS.numpy(),
        FLAGS.tolist(),
        tuple(FLAGS.tolist()),
        FLAGS.flip(0).numpy()[::-1],
        _read_only(FLAGS.numpy().copy()),
    ],
)
def test_flags_are_given_back_with_the_labels(given: Any) -> None:
    model = nn.Linear(5, 3).train()
    before = Snapshot(model)
    mined = KnownSamples(given).mine(model, LOADER, progress=False)
    before.assert_unchanged()
    assert torch.equal(mined.conflicting(), FLAGS) and torch.equal(mined.target, Y)
    assert torch.equal(mined.scores, FLAGS.double()) and mined.scores.dtype == torch.float64


def test_what_is_known_is_not_the_caller_s_tensor() -> None:
    flags = FLAGS.clone()
    known = KnownSamples(flags)
    flags[:] = False
    assert known.flags is not None and torch.equal(known.flags, FLAGS)
    known.mine(nn.Linear(5, 3), LOADER).conflicting()[:] = True
    assert torch.equal(known.flags, FLAGS)


def test_scores_from_before() -> None:
    scored = MinedSamples(torch.linspace(0, 1, N).double(), Y)
    known = KnownSamples(scored)
    assert known.flags is None and known.mine(nn.Linear(5, 3), LOADER) is scored


def test_a_call_of_its_own() -> None:
    def first(model: nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        return model(inputs[:, :2]), None

    known = KnownSamples(FLAGS, forward_fn=first, output_transform=lambda output: output[0])
    assert torch.equal(known.mine(nn.Linear(2, 3), LOADER).conflicting(), FLAGS)


def test_other_flags_are_another_run() -> None:
    assert plain_settings(KnownSamples(FLAGS)) == plain_settings(KnownSamples(FLAGS.numpy()))
    assert plain_settings(KnownSamples(FLAGS)) != plain_settings(KnownSamples(FLAGS.roll(1)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (FLAGS.int(), r"the known flags are int32 of shape \(11,\); expected one boolean for each sample"),
        (FLAGS[None], r"the known flags are bool of shape \(1, 11\)"),
        (np.array(["a"] * N), "the known flags are <U1"),
        (None, r"the known flags are object of shape \(\)"),
        ([[True], [True, False]], "the known flags are no table"),
        (FLAGS & False, "no sample is bias-conflicting; expected some that are"),
        (FLAGS | True, "all 11 samples are bias-conflicting; expected some that are, and others"),
    ],
)
def test_flags_that_are_none(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        KnownSamples(given)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (FLAGS[1:], "10 samples are known and the loader's dataset has 11; expected one flag or score for each"),
        (MinedSamples(torch.rand(12), Y.repeat(2)[:12]), "12 samples are known"),
        (MinedSamples(torch.rand(N), Y.flip(0)), "the labels of the known samples are not those of"),
    ],
)
def test_another_dataset(known: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        KnownSamples(known).mine(nn.Linear(5, 3), LOADER)
