"""Checks of arguments: what passes, what is refused in which words, and old names that say the new ones."""

from __future__ import annotations

import inspect
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import InputError, ValidationSet, fine_tune
from fairtrim.arguments import (
    Renamed,
    did_you_mean,
    drawn_seed,
    random_generator,
    renamed,
    require_choice,
    require_number,
    require_random_state,
)
from fairtrim.data.indexed_samples import IndexedSamples
from tests.pretend_accelerator import Accelerator


@pytest.mark.parametrize("value", [1, 1.0, np.float32(0.5), np.int64(3), Fraction(1, 2)])
def test_numbers_of_any_type(value: Any) -> None:
    require_number("share", value, above=0, at_least=0.5, below=4)


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (True, {}, "share=True; expected a finite number"),
        ("1", {}, "share='1'; expected a finite number"),
        (math.nan, {"above": 0}, "share=nan; expected a finite number, above 0"),
        (math.inf, {"at_least": 0}, "share=inf; expected a finite number, at least 0"),
        (2.0, {"whole": True}, "share=2.0; expected a whole number"),
        (0, {"above": 0}, "share=0; expected above 0"),
        (1, {"at_least": 0, "below": 1, "remedy": " (of the channels)"}, r"at least 0, below 1 \(of the channels\)"),
    ],
)
def test_numbers_that_are_refused(value: Any, bounds: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        require_number("share", value, **bounds)


def test_choices() -> None:
    require_choice("first_order", True, ("auto", True, False))
    with pytest.raises(InputError, match="first_order=None; expected one of 'auto', True, False"):
        require_choice("first_order", None, ("auto", True, False))
    assert did_you_mean(3, ["a"]) == did_you_mean("shares", []) == ""


def test_guesses() -> None:
    assert did_you_mean("nope", ["random", "magnitude"]) == did_you_mean("seed", ["privileged", "epsilon"]) == ""
    assert did_you_mean("ratio", ["cut", "pruning_ratio"]) == " (did you mean 'pruning_ratio'?)"
    assert did_you_mean("ratio", ["pruning_ratio", "ratio_of_something"]) == ""


def test_generators_of_a_device(accelerator: Accelerator) -> None:
    there, again, oracle = (torch.Generator(accelerator.device).manual_seed(3) for _ in range(3))
    seeds = [int(torch.randint(2**31, (), generator=oracle, device=accelerator.device)) for _ in range(3)]
    assert [random_generator(there).initial_seed(), drawn_seed(there)] == seeds[:2]  # one draw each
    drawn = torch.rand(2, generator=random_generator(there))
    assert torch.equal(drawn, torch.rand(2, generator=torch.Generator().manual_seed(seeds[2])))
    require_random_state(there)
    assert drawn_seed(there) == drawn_seed(oracle)  # and no draw for the check
    assert random_generator(again, accelerator.device) is again
    assert random_generator(3, accelerator.device).device == random_generator(torch.Generator(), again.device).device
    with torch.device(accelerator.device):
        assert drawn_seed(torch.Generator().manual_seed(1)) == drawn_seed(torch.Generator().manual_seed(1))


def test_generators_go_on_and_seeds_begin_again() -> None:
    generator = torch.Generator().manual_seed(3)
    assert random_generator(generator) is generator
    assert torch.equal(torch.rand(2, generator=random_generator(np.int64(3))), torch.rand(2, generator=generator))
    for wrong in (True, 1.0, "1", None):
        with pytest.raises(InputError, match=r"expected a whole number or a torch\.Generator"):
            random_generator(wrong)  # type: ignore[arg-type]


def test_old_names_of_functions_methods_and_classes() -> None:
    @renamed(ratio="pruning_ratio", steps="iterative_steps")
    class Plan:
        def __init__(self, pruning_ratio: float, *, iterative_steps: int = 1) -> None:
            self.settings = pruning_ratio, iterative_steps

        fit = Renamed("mine")

        @renamed(data="loader")
        def mine(self, loader: list[int]) -> int:
            """Counts."""
            return len(loader)

    assert Plan(0.5, iterative_steps=2).settings == (0.5, 2) and Plan(0.5).mine([1, 2]) == 2
    assert Plan.mine.__doc__ == "Counts." and list(inspect.signature(Plan.mine).parameters) == ["self", "loader"]
    for make, message in (
        (lambda: Plan(ratio=0.5), r"^Plan has no ratio=; it is called pruning_ratio="),  # type: ignore[call-arg]
        (lambda: Plan(0.5, steps=2), "it is called iterative_steps="),  # type: ignore[call-arg]
        (lambda: Plan(0.5).mine(data=[]), r"^Plan.mine has no data=; it is called loader="),  # type: ignore[call-arg]
    ):
        with pytest.raises(InputError, match=message):
            make()
    with pytest.raises(TypeError, match="unexpected keyword"):  # what was never a name
        Plan(0.5, size=3)  # type: ignore[call-arg]
    assert not hasattr(Plan(0.5), "fit")
    with pytest.raises(AttributeError, match="Plan has no fit; it is called mine"):
        Plan(0.5).fit([1])


def test_randomness_is_called_random_state() -> None:
    people = ValidationSet(torch.eye(4), torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1]), ("a", "b"))
    loader = DataLoader(TensorDataset(torch.eye(4), torch.tensor([0, 1, 0, 1])), batch_size=2)
    generator = torch.Generator()
    for call in (
        lambda: fine_tune(torch.nn.Linear(4, 2), loader, generator=generator),  # type: ignore[call-arg]
        lambda: people.split(0.5, generator=generator),  # type: ignore[call-arg]
        lambda: people.batches(2, torch.device("cpu"), generator=generator),  # type: ignore[call-arg]
        lambda: IndexedSamples(loader).shuffled(torch.device("cpu"), generator=generator),  # type: ignore[call-arg]
    ):
        with pytest.raises(InputError, match="has no generator=; it is called random_state="):
            call()
    same = people.split(0.5, 3), people.split(0.5, torch.Generator().manual_seed(3))
    assert all(torch.equal(one, other) for one, other in zip(*same, strict=True))
