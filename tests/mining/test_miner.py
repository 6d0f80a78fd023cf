"""What all miners share: data they refuse, and no trace."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fairtrim import InputError
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.mining import (
    EpochEnsemble,
    GeneralizedCrossEntropyMiner,
    GivenConfidence,
    LossMiner,
    Miner,
    MisclassifiedMiner,
    label_probabilities,
)
from fairtrim_adapters.torch_pruning import AccumulatedConfidence
from tests.mining_cases import CASE, data_of
from tests.networks import CASES
from tests.snapshot import Snapshot


def test_label_probabilities_equal_a_loop() -> None:
    model, (x, y) = CASE.model().train(), CASE.batch(13)
    before = Snapshot(model)
    p, correct, target = label_probabilities(model, IndexedSamples(data_of()))
    before.assert_unchanged()
    model.eval()
    with torch.no_grad():
        rows = [torch.softmax(model(x[n : n + 1]), 1)[0] for n in range(13)]
    torch.testing.assert_close(p, torch.stack([row[y[n]] for n, row in enumerate(rows)]))
    assert correct.tolist() == [int(row.argmax()) == int(y[n]) for n, row in enumerate(rows)]
    assert torch.equal(target, y)


# No trace -------------------------------------------------------------------------------------------------


class Noisy(TensorDataset):
    """Draws from every random state there is."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        x, y = super().__getitem__(index)
        return x + random.random() * 1e-3 + np.random.rand() * 1e-3 + torch.rand(()) * 1e-3, y


@pytest.mark.parametrize(
    "miner",
    [
        GeneralizedCrossEntropyMiner(epochs=1),
        EpochEnsemble(epochs=1),
        LossMiner(epochs=1),
        MisclassifiedMiner(epochs=1),
        GivenConfidence(),
        AccumulatedConfidence(levels=(0.2, 0.4)),
        AccumulatedConfidence("magnitude", levels=(0.4,)),
    ],
    ids=lambda miner: type(miner).__name__,
)
def test_mining_leaves_no_trace(miner: Miner) -> None:
    case = CASES["residual"]
    model = case.model().train()
    model.norm.eval()
    x, y = case.batch(4)
    F.cross_entropy(model(x), y).backward()
    model.stem.bias.requires_grad_(False)
    model.head.register_forward_pre_hook(lambda module, args: None)
    loader = DataLoader(Noisy(*case.batch(9)), batch_size=4, shuffle=True)
    before = Snapshot(model)
    miner.mine(model, loader, progress=False)
    before.assert_unchanged()


FAULTS: dict[str, tuple[Any, str]] = {
    "single class": (lambda x, y: (x, torch.ones_like(y)), "every sample has label 1; expected at least two classes"),
    "label too large": (lambda x, y: (x, y + 1), "labels reach from .* to 3; expected 0 to 2"),
    "negative label": (lambda x, y: (x, y - 1), "labels reach from -1 to .*; expected 0 to 2"),
    "NaN": (lambda x, y: (x * torch.nan, y), "not finite|is nan"),
    "float target": (lambda x, y: (x, y / 2), "expected integer labels"),
}


@pytest.mark.parametrize(
    "miner",
    [LossMiner(), AccumulatedConfidence(levels=(0.4,)), GivenConfidence()],
    ids=["training", "pruning", "given"],
)
@pytest.mark.parametrize("fault", FAULTS)
def test_data_that_can_t_be_mined(miner: Miner, fault: str) -> None:
    make, message = FAULTS[fault]
    model = CASE.model()
    dataset: Dataset[Any] = TensorDataset(*make(*CASE.batch(13)))
    before = Snapshot(model)
    with pytest.raises(InputError, match=message):
        miner.mine(model, DataLoader(dataset, batch_size=5), progress=False)
    before.assert_unchanged()


@pytest.mark.parametrize("miner", [LossMiner(epochs=1), AccumulatedConfidence(levels=(0.3,), epochs=0)])
def test_single_logit_networks_are_told_what_to_do(miner: Miner) -> None:
    loader = DataLoader(TensorDataset(torch.randn(12, 3), torch.arange(12) % 2), batch_size=4)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    with pytest.raises(InputError, match=r"output_transform=lambda f: torch\.cat"):
        miner.mine(model, loader, progress=False)


# Old names.


def test_what_a_miner_used_to_be_called() -> None:
    with pytest.raises(AttributeError, match="LossMiner has no fit; it is called mine"):
        LossMiner().fit(CASE.model(), data_of())
    with pytest.raises(InputError, match="Old implements fit; expected mine, as it is called now"):

        class Old(Miner):
            def fit(self, model: nn.Module, loader: DataLoader[Any], *, progress: bool = True) -> Any:
                raise NotImplementedError


@pytest.mark.parametrize("miner", [LossMiner, EpochEnsemble, MisclassifiedMiner, GeneralizedCrossEntropyMiner])
def test_the_seed_s_name(miner: Any) -> None:
    with pytest.raises(InputError, match=f"{miner.__name__} has no seed=; it is called random_state="):
        miner(seed=1)


def test_a_generator_goes_on_drawing_and_a_seed_does_not() -> None:
    def mined(miner: Miner) -> Tensor:
        return miner.mine(CASE.model(), data_of(), progress=False).scores

    seeded, drawing = (
        LossMiner(epochs=1, random_state=3),
        LossMiner(epochs=1, random_state=torch.Generator().manual_seed(3)),
    )
    first, second = mined(drawing), mined(drawing)
    assert torch.equal(mined(seeded), first) and torch.equal(mined(seeded), first)
    assert not torch.equal(first, second)
    gradual = AccumulatedConfidence(levels=(0.5,), epochs=0, random_state=torch.Generator().manual_seed(3))
    assert not torch.equal(mined(gradual), mined(gradual))
    with pytest.raises(InputError, match=r"random_state=0\.5; expected a whole number or a torch\.Generator"):
        LossMiner(random_state=0.5)  # type: ignore[arg-type]
