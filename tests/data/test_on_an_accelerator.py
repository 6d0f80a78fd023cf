"""What loaders and tables give, on a device: equal to the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import ColumnFlip, SensitiveBins, SentencePairs, with_sensitive_features
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.data.padding import real_tokens
from fairtrim.data.token_rows import token_rows
from tests.pretend_accelerator import Accelerator, PretendAccelerator

CPU = torch.device("cpu")
TABLE = torch.tensor([[0.0, 1.0, 0.5, 1.5, 7.0], [1.0, 0.0, -2.0, 3.0, 8.0], [0.0, 1.0, 3.0, 1.5, 9.0]])


def _indexed(device: torch.device) -> list[Any]:
    n = 11
    found = []
    for loader in (
        DataLoader(TensorDataset(torch.eye(n), torch.arange(n) % 3), batch_size=4, pin_memory=device.type != "cpu"),
        DataLoader(TensorDataset(torch.eye(n).to(device), (torch.arange(n) % 3).to(device)), batch_size=4),
    ):
        samples, among, weights = IndexedSamples(loader), (torch.arange(n) % 2 == 0).to(device), torch.arange(n) / n
        for batches in (
            samples.in_order(device),
            samples.in_order(None, among=among),
            samples.shuffled(device, 3, among=among),
            samples.shuffled(device, 3, weights.to(device)),
        ):
            found += [(indices, batch.inputs, batch.target) for indices, batch in batches]
        found.append(samples.first(device).inputs)
    return found


def _pairs(device: torch.device) -> list[Any]:
    plain = SentencePairs.of_tokens([[1, 5, 6], [1, 5, 7]], [[2, 5, 6], [2, 5, 7]], categories=["a", "b"])
    pairs = SentencePairs(plain.input_ids.to(device), plain.attention_mask.to(device), plain.shared.to(device))
    part = pairs.take(torch.tensor([1]).to(device))
    loaded = next(iter(DataLoader(pairs, batch_size=2, pin_memory=device.type != "cpu")))
    return [vars(pairs), vars(part), vars(pairs.in_folds(2)), loaded]


def _beside(device: torch.device) -> list[Any]:
    n = 11
    codes = torch.arange(n)
    table = TensorDataset(torch.eye(n), codes % 3)
    there = TensorDataset(torch.eye(n).to(device), (codes % 3).to(device))
    loaders = (
        DataLoader(table, 4, shuffle=True, generator=torch.Generator(), pin_memory=device.type != "cpu"),
        list(DataLoader(there, 4)),
    )
    return [list(with_sensitive_features(loader, {"code": codes.to(device)})) for loader in loaders]


EVERYTHING: dict[str, Callable[[torch.device], Any]] = {
    "one-hot columns": lambda device: ColumnFlip(one_hot=[0, 1], interactions={4: [0, 2]})(TABLE.to(device)),
    "coded columns": lambda device: ColumnFlip(codes={3: (1.5, 3.0, 4.0)}, other="random")(TABLE.to(device)),
    "every value": lambda device: [flip(TABLE.to(device)) for flip in ColumnFlip(codes={3: (1.5, 3.0, 4.0)}).every()],
    "bins": lambda device: (
        vars(bins := SensitiveBins.of(TABLE[:, 4].to(device), bins=3)),
        vars(SensitiveBins(bins.edges.float().to(device), bins.names)),
        bins({"age": TABLE[:, 4].to(device)}),
    ),
    "pairs": _pairs,
    "samples": _indexed,
    "sensitive features beside a loader": _beside,
    "tokens": lambda device: token_rows(
        ["a b", "c"],
        lambda texts: {
            "input_ids": torch.tensor([[5, 6], [0, 7]]).to(device),
            "attention_mask": torch.tensor([[1, 1], [0, 1]]).to(device),
        },
    ),
    "padding": lambda device: (
        real_tokens({"attention_mask": torch.tensor([[1, 1, 0], [0, 1, 1]]).to(device)}),
        real_tokens({"input_ids": torch.ones(1, 4).long().to(device)}, torch.tensor([[-100, 7, -100, 8]]).to(device)),
        real_tokens({"attention_mask": torch.tensor([[0.0, -1e4]]).to(device)}),
    ),
}


@pytest.mark.parametrize("what", EVERYTHING)
def test_equal_to_the_cpu(accelerator: Accelerator, what: str) -> None:
    if isinstance(accelerator, PretendAccelerator):
        accelerator.refuses_float64 = True
    accelerator.check_same(EVERYTHING[what](accelerator.device), EVERYTHING[what](CPU))


def test_flipped_tables_stay_where_they_were(accelerator: Accelerator) -> None:
    for rows in (TABLE, TABLE[:0]):
        assert ColumnFlip(one_hot=[0, 1])(rows.to(accelerator.device)).device == accelerator.device


def test_generators_of_the_device_draw(accelerator: Accelerator) -> None:
    def drawn() -> Tensor:
        generator = torch.Generator(accelerator.device).manual_seed(6)
        flip = ColumnFlip(codes={3: (1.5, 3.0, 4.0)}, other="random", random_state=generator)
        return torch.stack([flip(TABLE.to(accelerator.device)) for _ in range(5)])

    accelerator.check_same(drawn(), drawn())
    assert len(torch.unique(drawn().cpu(), dim=0)) > 1


def test_a_table_waits_once_and_a_batch_never(pretend: PretendAccelerator) -> None:
    table = TABLE.to(pretend.device)
    pretend.forget()
    ColumnFlip(one_hot=[0, 1], codes={3: (1.5, 3.0)}, interactions={4: [0, 2]})(table)
    assert (sum(pretend.waits.values()), sum(pretend.copies.values())) == (1, 1)
    samples = IndexedSamples(DataLoader(TensorDataset(torch.eye(9), torch.arange(9)), batch_size=4, pin_memory=True))
    pretend.forget()
    n_batches = sum(1 for _ in samples.in_order(pretend.device))
    assert not pretend.waits
    assert {kind for kind, _ in pretend.copies} == {"non_blocking"}
    assert sum(pretend.copies.values()) == 2 * n_batches
