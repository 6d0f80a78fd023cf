"""Samples keep their index whatever the loader does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    get_worker_info,
)

from fairtrim import InputError
from fairtrim.data.indexed_samples import IndexedSamples

CPU = torch.device("cpu")

N = 23


class Entries(Dataset[Any]):
    """x_n = (n, n²), y_n = n mod 3, and more things behind; a class of the module, so that workers can have it."""

    def __init__(self, n_things: int = 2, n_samples: int = N) -> None:
        self.n_things, self.n_samples = n_things, n_samples

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, n: int) -> tuple[Any, ...]:
        return (torch.tensor([float(n), float(n * n)]), n % 3, f"person {n}", {"place": n % 2})[: self.n_things]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(Entries())

    def __len__(self) -> int:
        return N


class Unsized(Dataset[Any]):
    def __getitem__(self, n: int) -> Any:
        return Entries()[n]


def _by_hand(entries: list[tuple[Tensor, int]]) -> tuple[dict[str, Tensor], Tensor]:
    """A collate function of the user's: inputs in a dict."""
    return {"x": torch.stack([x for x, _ in entries])}, torch.tensor([y for _, y in entries])


def _check(batches: Any) -> list[int]:
    """Every index stands beside its own sample; returns the indices."""
    seen: list[int] = []
    for number, (indices, batch) in enumerate(batches):
        x = batch.inputs["x"] if isinstance(batch.inputs, dict) else batch.inputs
        assert x.tolist() == [[n, n * n] for n in indices.tolist()]
        assert batch.target.tolist() == [n % 3 for n in indices.tolist()]
        assert batch.target.dtype == torch.int64 and batch.index == number
        seen += indices.tolist()
    return seen


def _generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "plain": lambda: DataLoader(Entries(), batch_size=5),
    "shuffled": lambda: DataLoader(Entries(), batch_size=5, shuffle=True),
    "last dropped": lambda: DataLoader(Entries(), batch_size=5, shuffle=True, drop_last=True),
    "two workers": lambda: DataLoader(Entries(), batch_size=5, shuffle=True, num_workers=2),
    "collate": lambda: DataLoader(Entries(), batch_size=5, shuffle=True, collate_fn=_by_hand),
    "three things": lambda: DataLoader(Entries(3), batch_size=5, shuffle=True),
    "four things": lambda: DataLoader(Entries(4), batch_size=5, shuffle=True),
    "batch sampler": lambda: DataLoader(
        Entries(), batch_sampler=BatchSampler(torch.utils.data.SequentialSampler(Entries()), 5, False)
    ),
    "own generator": lambda: DataLoader(Entries(), batch_size=5, shuffle=True, generator=_generator()),
}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # of forking, in Python 3.12
@pytest.mark.parametrize("name", LOADERS)
def test_index_stays_with_its_sample(name: str) -> None:
    """In order, shuffled and drawn by weight; the order never depends on the loader's own."""
    samples = IndexedSamples(LOADERS[name]())
    assert (samples.n_samples, len(samples)) == (N, 5)
    assert _check(samples.in_order(CPU)) == list(range(N))
    plain = IndexedSamples(LOADERS["plain"]())
    for weights in (None, torch.arange(N) % 4):
        order = _check(samples.shuffled(CPU, _generator(), weights))
        assert len(order) == N and order == _check(plain.shuffled(CPU, _generator(), weights))
        assert order != _check(samples.shuffled(CPU, _generator(4), weights))
        if weights is None:
            assert sorted(order) == list(range(N)) and order != list(range(N))
        else:
            assert all(n % 4 for n in order)  # no sample of weight 0


def test_draws_follow_the_weights() -> None:
    samples = IndexedSamples(LOADERS["plain"]())
    generator, counts = _generator(), torch.zeros(N)
    weights = torch.ones(N, dtype=torch.float64)
    weights[7] = N - 1  # half of the draws
    for _ in range(60):
        for indices, _ in samples.shuffled(CPU, generator, weights):
            counts += torch.bincount(indices, minlength=N)
    assert counts.sum() == 60 * N
    assert float(counts[7] / counts.sum()) == pytest.approx(0.5, abs=0.05)
    assert float(counts.min()) > 0


def test_subset_has_indices_of_its_own() -> None:
    samples = IndexedSamples(DataLoader(Subset(Entries(), [4, 2, 9]), batch_size=2, shuffle=True))
    found = {
        n: x for indices, b in samples.in_order(CPU) for n, x in zip(indices.tolist(), b.inputs.tolist(), strict=True)
    }
    assert found == {0: [4, 16], 1: [2, 4], 2: [9, 81]}


REFUSED: dict[str, tuple[Any, str]] = {
    "list of batches": ([(torch.zeros(4, 2), torch.zeros(4))], "the loader is a list; expected a DataLoader"),
    "stream": (DataLoader(Stream()), "the dataset is a Stream, which has no stable indices"),
    "no length": (DataLoader(Unsized(), sampler=range(N)), "the dataset is a Unsized, which has no stable indices"),
    "one sample": (DataLoader(Entries(2, 1)), "the dataset has 1 samples; expected at least 2"),
    "no sample": (DataLoader(Entries(2, 0)), "the dataset has 0 samples"),
    "sampler of a subset": (
        DataLoader(Entries(), sampler=SubsetRandomSampler([3, 1])),
        r"pass torch.utils.data.Subset\(dataset, indices\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_no_stable_indices(name: str) -> None:
    loader, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        IndexedSamples(loader)


X = torch.randn(4, 2)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (TensorDataset(X), "is a list of 1; expected .inputs, target."),
        (TensorDataset(X, torch.rand(4)), r"the target is torch.float32 of shape \(4,\); expected integer labels"),
        (TensorDataset(X, torch.ones(4, 1).long()), r"of shape \(4, 1\); expected integer labels"),
        ([{"x": x, "y": 1} for x in X], "is a dict of .*; expected the target under 'labels'"),
        (list(X), "is a Tensor of 4; expected"),
        ([(x, "cat") for x in X], "expected integer labels"),
    ],
    ids=["no target", "float target", "column of targets", "dict", "tensor", "words"],
)
def test_what_the_dataset_yields(dataset: Any, message: str) -> None:
    samples = IndexedSamples(DataLoader(dataset, batch_size=4))
    with pytest.raises(InputError, match=message):
        next(iter(samples.in_order(CPU)))


def test_loader_that_leaves_batches_to_the_dataset() -> None:
    """batch_size=None: an entry is a batch, so the samples have no index."""
    dataset = [(X, torch.tensor([0, 1, 0, 1])), (X, torch.tensor([1, 1, 0, 1]))]
    with pytest.raises(InputError, match="batch_size"):
        next(iter(IndexedSamples(DataLoader(dataset, batch_size=None)).in_order(CPU)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "weights",
    [
        torch.ones(N - 1),
        torch.ones(N, 1),
        torch.zeros(N),
        torch.ones(N).index_fill(0, torch.tensor([2]), -1),
        torch.ones(N).index_fill(0, torch.tensor([2]), torch.nan),
        torch.ones(N).index_fill(0, torch.tensor([2]), torch.inf),
    ],
    ids=["too few", "two axes", "all zero", "negative", "NaN", "infinite"],
)
def test_wrong_weights(weights: Tensor) -> None:
    samples = IndexedSamples(LOADERS["plain"]())
    with pytest.raises(InputError, match=rf"sample weights .*for {N} samples; expected one finite weight"):
        samples.shuffled(CPU, _generator(), weights)


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": [0, 1, 2]},
        {"sampler": SubsetRandomSampler([0, 1, 2])},
        {"batch_sampler": BatchSampler(SubsetRandomSampler([0, 1, 2]), 2, False)},
    ],
    ids=["list", "subset", "batches of a subset"],
)
def test_loader_of_a_subset_is_not_widened(options: dict[str, Any]) -> None:
    data = TensorDataset(torch.randn(9, 2), torch.arange(9) % 2)
    with pytest.raises(InputError, match=r"every sample of the dataset is used.*torch\.utils\.data\.Subset"):
        IndexedSamples(DataLoader(data, **options))


class Opened(Dataset[Any]):
    """Its handle is opened in each worker, as files are."""

    handle: int | None = None

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        assert self.handle is not None
        return torch.full((2,), float(index)), index % 2


class Slow(Entries):
    """The first samples take long."""

    def __getitem__(self, n: int) -> tuple[Any, ...]:
        time.sleep(0.2 if n < 2 else 0)
        return super().__getitem__(n)


def _open(worker: int) -> None:
    information = get_worker_info()
    assert information is not None
    information.dataset.handle = worker


def test_workers_meet_the_user_s_own_dataset() -> None:
    samples = IndexedSamples(DataLoader(Opened(), batch_size=2, num_workers=1, worker_init_fn=_open))
    for indices, batch in samples.in_order(torch.device("cpu")):
        assert batch.inputs[:, 0].tolist() == indices.tolist()


def test_settings_of_the_loader_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "num_workers": 1, "prefetch_factor": 3, "persistent_workers": True, "multiprocessing_context": "spawn",
        "worker_init_fn": _open, "timeout": 7.0, "collate_fn": _by_hand, "pin_memory": True,
    }  # fmt: skip
    samples, made = IndexedSamples(DataLoader(Entries(), batch_size=4, **given)), []

    class Noted(DataLoader[Any]):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            made.append(self)

        def __iter__(self) -> Any:
            return iter([])  # without starting workers

    monkeypatch.setattr("fairtrim.data.indexed_samples.DataLoader", Noted)
    with pytest.raises(ValueError, match="zip"):
        next(samples.in_order(CPU))
    for name in (*given, "pin_memory_device"):
        assert getattr(made[0], name) == getattr(samples.loader, name)


def test_batches_come_in_order_whatever_the_loader() -> None:
    loader = DataLoader(Slow(), batch_size=2, num_workers=2, in_order=False)
    for indices, batch in IndexedSamples(loader).in_order(CPU):
        assert batch.inputs[:, 0].tolist() == indices.tolist()
