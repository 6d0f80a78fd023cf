"""Sensitive features beside a loader of (inputs, target): every sample gets its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from fairtrim import (
    ChannelGroup,
    ChannelPlace,
    InputError,
    ThresholdSelection,
    ValidationSet,
    changed_samples,
    collect_damage,
    predict,
    prune_by_group_saliency,
    with_sensitive_features,
)
from fairtrim.damage.weight_saliency import squared_gradients
from fairtrim.data.batches import iterate_batches
from fairtrim.data.data_splits import DataSplits
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.data.sensitive_groups import SensitiveEncoder
from fairtrim.preservation import preserved_random_state
from fairtrim_adapters.fairlearn import compare_models, metric_frame
from fairtrim_adapters.torch_pruning import WorstGroupImportance, prune_to, reconstructed, smallest
from fairtrim_adapters.torch_pruning.prune_copy import prune_copy
from fairtrim_adapters.torch_pruning.reconstruction.measuring import shares_samples

N = 23
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, 3, generator=GENERATOR)
Y = (X[:, 0] + X[:, 1] > 0).long()
TEAM = [["red", "blue", "red", "green"][k % 4] for k in range(N)]
OLD = torch.arange(N) % 3
FRAME = pd.DataFrame({"team": TEAM, "old": OLD.numpy()}, index=range(900, 900 + N)[::-1])
"""By position, whatever the index says."""


class Entries(Dataset[Any]):
    """One class for both loaders; of three entries the last is one that the default collate function takes."""

    def __init__(self, n_entries: int) -> None:
        self.n_entries = n_entries

    def __len__(self) -> int:
        return N

    def __getitem__(self, n: int) -> tuple[Any, ...]:
        return (X[n] + 0.01 * torch.rand(3), Y[n], {"team": TEAM[n], "old": int(OLD[n])})[: self.n_entries]


class Stream(IterableDataset[Any]):
    def __init__(self, n_entries: int) -> None:
        self.entries = Entries(n_entries)

    def __iter__(self) -> Iterator[Any]:
        return iter([self.entries[n] for n in range(N)])


class Batches(Dataset[Any]):
    """Whole batches by their number."""

    def __init__(self, n_entries: int) -> None:
        self.loader = list(DataLoader(Entries(n_entries), batch_size=6))

    def __len__(self) -> int:
        return len(self.loader)

    def __getitem__(self, k: int) -> Any:
        return self.loader[range(len(self.loader))[k]]


class Doubled(DataLoader[Any]):
    """Somebody's own class, that gives another type of inputs and asks its batch sampler."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        assert self.batch_sampler is not None
        assert self.batch_sampler.batch_size == 5  # type: ignore[attr-defined]
        for x, y, *sensitive in super().__iter__():
            yield (x.double(), y, *sensitive)


class Rows(Dataset[Any]):
    """Takes many samples at once."""

    def __init__(self, n_entries: int) -> None:
        self.n_entries = n_entries

    def __len__(self) -> int:
        return N

    def __getitem__(self, n: list[int]) -> tuple[Any, ...]:
        return (X[n], Y[n], {"team": [TEAM[k] for k in n], "old": OLD[n]})[: self.n_entries]


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def _as_dict(entries: list[Any]) -> dict[str, Any]:
    found = {"x": torch.stack([entry[0] for entry in entries]), "labels": torch.stack([entry[1] for entry in entries])}
    return found | ({"sensitive_features": [entry[2] for entry in entries]} if len(entries[0]) == 3 else {})


def _in_dict(entries: list[Any]) -> dict[str, Any]:
    batch = _as_dict(entries)
    if "sensitive_features" in batch:
        batch["sensitive_features"] = {name: [s[name] for s in batch["sensitive_features"]] for name in ("team", "old")}
    return batch


def _every_third(n_entries: int) -> Subset[Any]:
    return Subset(Entries(n_entries), range(0, N, 3))


LOADERS: dict[str, Callable[[int], Any]] = {
    "in order": lambda n: DataLoader(Entries(n), batch_size=5),
    "shuffled": lambda n: DataLoader(Entries(n), batch_size=5, shuffle=True, generator=_seeded()),
    "shuffled by the global state": lambda n: DataLoader(Entries(n), batch_size=5, shuffle=True),
    "incomplete batches left out": lambda n: DataLoader(Entries(n), batch_size=5, shuffle=True, drop_last=True),
    "with repetition": lambda n: DataLoader(
        Entries(n), batch_size=5, sampler=WeightedRandomSampler([k + 1.0 for k in range(N)], 40, generator=_seeded())
    ),
    "batches by hand": lambda n: DataLoader(Entries(n), batch_sampler=[[3, 3, 22], [-1, 0]]),
    "batches of a sampler": lambda n: DataLoader(
        Rows(n), batch_size=None, sampler=BatchSampler(RandomSampler(range(N), generator=_seeded()), 4, drop_last=False)
    ),
    "many at once": lambda n: DataLoader(
        TensorDataset(X, Y, OLD) if n == 3 else TensorDataset(X, Y), batch_size=5, shuffle=True, generator=_seeded()
    ),
    "collated into dicts": lambda n: DataLoader(
        Entries(n), batch_size=5, shuffle=True, generator=_seeded(), collate_fn=_in_dict
    ),
    "workers": lambda n: DataLoader(
        Entries(n),
        batch_size=3,
        shuffle=True,
        generator=_seeded(),
        num_workers=2,
        persistent_workers=True,
        prefetch_factor=3,
    ),
    "another class": lambda n: Doubled(Entries(n), batch_size=5, shuffle=True, generator=_seeded()),
    "a list of batches": lambda n: list(DataLoader(Entries(n), batch_size=5)),
    "a stream": lambda n: DataLoader(Stream(n), batch_size=5),
    "whole batches": lambda n: DataLoader(Batches(n), batch_size=None),
}


def _features(kind: str) -> Any:
    return FRAME[["old"]] if kind == "many at once" else FRAME


def _read(made: Callable[[], Any], passes: int = 2) -> list[Any]:
    torch.manual_seed(3)
    loader, encoder = made(), SensitiveEncoder()
    return [
        (batch.inputs, batch.target, list(encoder.named_columns(batch.sensitive, len(batch)).values()))
        for _ in range(passes)
        for batch in iterate_batches(loader, None, progress=False)
    ]


@pytest.mark.parametrize("kind", LOADERS)
def test_equals_a_loader_of_three_entries(kind: str) -> None:
    passes = 1 if kind == "workers" else 2  # those of a loader go on drawing, others are started anew
    found = _read(lambda: with_sensitive_features(LOADERS[kind](2), _features(kind)), passes)
    expected = _read(lambda: LOADERS[kind](3), passes)
    torch.testing.assert_close([f[:2] for f in found], [e[:2] for e in expected], rtol=0, atol=0)
    assert [f[2] for f in found] == [e[2] for e in expected]


def test_of_a_subset_the_rows_are_the_subsets() -> None:
    loader = DataLoader(_every_third(2), batch_size=4, shuffle=True, generator=_seeded())
    expected = DataLoader(_every_third(3), batch_size=4, shuffle=True, generator=_seeded())
    found = _read(lambda: with_sensitive_features(loader, FRAME.iloc[::3]))
    assert [f[2] for f in found] == [e[2] for e in _read(lambda: expected)]
    with pytest.raises(InputError, match=r"has 23 rows and the loader's dataset 8 samples.*iloc\[subset\.indices\]"):
        with_sensitive_features(loader, FRAME)


FORMS: dict[str, tuple[Any, list[str]]] = {
    "a tensor": (OLD, ["sensitive"]),
    "a tensor of one column": (OLD[:, None], ["sensitive"]),
    "a tensor of two": (torch.stack([OLD, OLD], 1), ["sensitive_0", "sensitive_1"]),
    "an array": (OLD.numpy(), ["sensitive"]),
    "a list": (OLD.tolist(), ["sensitive"]),
    "a list of rows": ([(a, b) for a, b in zip(OLD.tolist(), TEAM, strict=True)], ["sensitive_0", "sensitive_1"]),
    "a series": (FRAME["old"], ["old"]),
    "a series without a name": (pd.Series(OLD.tolist()), ["sensitive"]),
    "a categorical series": (FRAME["team"].astype("category"), ["team"]),
    "integers of pandas": (FRAME["old"].astype("Int64"), ["old"]),
    "a frame": (FRAME, ["team", "old"]),
    "a dict": ({"team": TEAM, "old": OLD, "one": FRAME["old"]}, ["team", "old", "one"]),
    "a dict of one-column arrays": ({"old": OLD.numpy()[:, None]}, ["old"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    given, names = FORMS[form]
    loader = with_sensitive_features(DataLoader(TensorDataset(torch.arange(N), Y), 4, shuffle=True), given)
    n_seen = 0
    for place, target, sensitive in loader:
        columns = SensitiveEncoder().named_columns(sensitive, len(target))
        assert list(columns) == names
        for column in columns.values():
            team = column[0] in ("red", "blue", "green")
            assert column == [TEAM[k] if team else str(int(OLD[k])) for k in place.tolist()]
        n_seen += len(target)
    assert n_seen == N


def test_none_gives_the_loader_itself() -> None:
    loader = DataLoader(Entries(3))
    assert with_sensitive_features(loader, None) is loader


def test_leaves_the_loader_as_it_is() -> None:
    loader = DataLoader(Entries(2), batch_size=5, shuffle=True, generator=_seeded(), num_workers=0)
    before, own = dict(vars(loader)), loader.generator
    assert own is not None
    state, everywhere = own.get_state(), torch.get_rng_state()
    beside = with_sensitive_features(loader, FRAME)
    assert torch.equal(own.get_state(), state)
    with preserved_random_state(beside):
        for _ in beside:
            break
        list(beside)
    assert torch.equal(own.get_state(), state) and torch.equal(torch.get_rng_state(), everywhere)
    assert vars(loader) == before and len(next(iter(loader))) == 2
    assert len(beside) == len(loader)
    assert shares_samples(loader, beside)
    assert len(list(copy.copy(beside))) == 5


def test_two_passes_at_once() -> None:
    beside = with_sensitive_features(DataLoader(TensorDataset(torch.arange(N), Y), 4, shuffle=True), TEAM)
    for one, other in zip(beside, beside, strict=True):
        for place, _, team in (one, other):
            assert team.tolist() == [TEAM[k] for k in place.tolist()]


def test_indexed_samples_of_it() -> None:
    beside = with_sensitive_features(DataLoader(TensorDataset(X, Y), 4, shuffle=True), TEAM)
    found = torch.cat([batch.inputs for _, batch in IndexedSamples(beside).in_order(None)])
    assert torch.equal(found, X)


# Refused ------------------------------------------------------------------------------------------------------


class Restless:
    """Another order each time."""

    def __init__(self) -> None:
        self.turn = 0

    def __iter__(self) -> Iterator[Any]:
        self.turn += 1
        order = torch.arange(N).roll(self.turn)
        return iter([(X[order], Y[order])])


class Unsized(Dataset[Any]):
    def __getitem__(self, n: int) -> Any:
        return X[n], Y[n]


class Drawn(SequentialSampler):
    def __iter__(self) -> Iterator[Any]:
        return iter(["a", "b"])


def _two() -> Any:
    return DataLoader(Entries(2), batch_size=5)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "too few": (
        lambda: (_two(), TEAM[:-1]),
        "has 22 rows and the loader's dataset 23 samples; expected one row",
    ),
    "too many": (lambda: (_two(), [*TEAM, "red"]), "has 24 rows and the loader's dataset 23 samples"),
    "too few of a list": (lambda: (list(_two()), TEAM[:-1]), "has 22 rows and the loader 23 samples"),
    "too many of a stream": (lambda: (DataLoader(Stream(2)), [*TEAM, "red"]), "has 24 rows and the loader 23 samples"),
    "too few of a stream": (lambda: (DataLoader(Stream(2)), TEAM[:4]), "has 4 rows and the loader gives more samples"),
    "columns of two lengths": (lambda: (_two(), {"a": TEAM, "b": TEAM[1:]}), "different lengths: {'a': 23, 'b': 22}"),
    "a generator": (lambda: ((batch for batch in _two()), TEAM), "beside a generator, whose order can't be seen"),
    "no loader": (lambda: (None, TEAM), "beside no loader"),
    "people": (
        lambda: (ValidationSet.from_loader(DataLoader(Entries(3)), progress=False), TEAM),
        "beside a ValidationSet; expected them beside a DataLoader",
    ),
    "a stream with workers": (lambda: (DataLoader(Stream(2), num_workers=2), TEAM), "Stream with 2 workers, whose sam"),
    "whole batches shuffled": (
        lambda: (DataLoader(Batches(2), batch_size=None, shuffle=True), TEAM),
        "whole batches, drawn by a RandomSampler",
    ),
    "another order each time": (lambda: (Restless(), TEAM), "batch 0 of the loader has other targets than the first"),
    "no length": (
        lambda: (DataLoader(Unsized(), sampler=range(N)), TEAM),
        "a loader of a Unsized without __len__, of which nobody can tell",
    ),
    "twice, in a list": (lambda: (list(DataLoader(Entries(3))), TEAM), "batch 0 of the loader has sensitive features"),
    "twice, in a dict": (
        lambda: (DataLoader(Entries(3), batch_size=4, collate_fn=_in_dict), TEAM),
        "batch 0 of the loader has sensitive features, and sensitive_features was given; expected them once",
    ),
    "twice, beside it": (lambda: (with_sensitive_features(_two(), TEAM), TEAM), "has sensitive features already"),
    "missing": (
        lambda: (_two(), pd.Series([None, *TEAM[1:]], name="team")),
        "'team' is missing for 1 of 23 people; leave those people out",
    ),
    "three axes": (lambda: (_two(), np.zeros((N, 2, 2))), r"of shape \(23, 2, 2\); expected \(N,\), or \(N, S\)"),
    "two axes of a column": (lambda: (_two(), {"a": np.zeros((N, 2))}), r"\['a'\] is of shape \(23, 2\); expected \(N"),
    "a number": (lambda: (_two(), 3), "sensitive_features is a int; expected an array"),
    "a name": (lambda: (_two(), "sex"), r"is the string 'sex'; expected the values, e\.g\. frame\['sex'\]"),
    "lists of several lengths": (lambda: (_two(), [[1]] * (N - 1) + [[1, 2]]), "is lists of different lengths"),
    "equal names": (
        lambda: (_two(), pd.DataFrame([[1, 2]] * N, columns=["a", "a"])),
        r"columns \['a', 'a'\]; expected different names",
    ),
    "samples that the collate function drops": (
        lambda: (DataLoader(Entries(2), batch_size=5, collate_fn=lambda entries: _as_dict(entries[1:])), TEAM),
        "4 targets of 5 samples that were drawn",
    ),
    "indices that are none": (
        lambda: (DataLoader({"a": (X[0], Y[0]), "b": (X[1], Y[1])}, sampler=Drawn([])), TEAM[:2]),  # type: ignore[arg-type]
        r"draws \['a'\]; expected whole numbers",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind: str) -> None:
    made, message = REFUSED[kind]
    loader, given = made()
    with pytest.raises(InputError, match=message):
        list(with_sensitive_features(loader, given))


def test_another_order_later() -> None:
    loader = with_sensitive_features(batches := _Changing(), TEAM)
    assert len(list(loader)) == len(loader) == 1
    batches.roll = 1
    with pytest.raises(InputError, match="batch 0 of the loader has other targets than the first time"):
        list(loader)


class _Changing:
    roll = 0

    def __iter__(self) -> Iterator[Any]:
        return iter([(X.roll(self.roll, 0), Y.roll(self.roll, 0))])


# Everywhere ---------------------------------------------------------------------------------------------------


def _network() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


MANY = 200
MANY_X = torch.randn(MANY, 3, generator=torch.Generator().manual_seed(1))
MANY_Y = (MANY_X.sum(1) > 0).long()
MANY_GROUP = np.array(["a", "b", "b"] * MANY)[:MANY]


def _loader(part: slice, n_entries: int) -> DataLoader[Any]:
    entries = (MANY_X, MANY_Y, torch.as_tensor(MANY_GROUP == "b").long())
    dataset = TensorDataset(*(entry[part] for entry in entries[:n_entries]))
    return DataLoader(dataset, batch_size=32, shuffle=True, generator=_seeded())


FIRST, REST = slice(0, 120), slice(120, MANY)
NAMES = {"team": ["a", "b"]}
QUIET: Any = {"sensitive_names": NAMES, "progress": False}


def _hidden() -> list[ChannelGroup]:
    return [ChannelGroup("1", 8, (ChannelPlace("2", "input", range(8), range(8), channel_axis=-1),))]


def _values(model: nn.Module, name: str) -> Tensor:
    return model.get_parameter(name).detach()


def _pruner(model: Any, importance: Any) -> Any:
    settings = {"importance": importance, "pruning_ratio": 0.5, "ignored_layers": [model[2]]}
    return tp.pruner.BasePruner(model, torch.ones(1, 3), **settings)


def _self_collecting(loader: Any, **given: Any) -> Any:
    model = _network()
    importance = WorstGroupImportance(model=model, loader=loader, **given, **QUIET)
    _pruner(model, importance).step()
    return importance.damage_.to_frame(), str(importance.report()), model[0].weight.detach()


def _fitted(loader: Any, **given: Any) -> Any:
    importance = WorstGroupImportance()
    importance.fit(_pruner(_network(), importance), loader, **given, **QUIET)
    return importance.damage_.to_frame()


def _made_with(loader: Any, **given: Any) -> Any:
    importance = WorstGroupImportance(**given, **QUIET)
    importance.fit(_pruner(_network(), importance), loader)
    return importance.damage_.to_frame()


def _reconstructed(loader: Any, other: Any, given: Mapping[str, Any]) -> Any:
    model = _network()
    pruner = _pruner(model, tp.importance.GroupMagnitudeImportance())
    with reconstructed(pruner, loader, held_out=other, weigh_groups=True, **given, **QUIET) as refit:
        pruner.step()
    return refit.measured, model[2].weight.detach()


def _prune_copy(loader: Any, other: Any, given: Mapping[str, Any]) -> Any:
    of_splits = {}
    if given:
        of_splits = {"scoring": given["sensitive_features"], "test": given["held_out_sensitive_features"]}
    splits = DataSplits(test=other, scoring=loader, sensitive_features=of_splits, sensitive_names=NAMES)
    return _values(prune_copy(_network(), WorstGroupImportance(), splits, 0.5, progress=False), "0.weight")


def _repaired(loader: Any, other: Any, given: Mapping[str, Any]) -> Any:
    given = {name.replace("held_out", "selection"): rows for name, rows in given.items()}
    repair = ThresholdSelection(epsilon=0.9).repair(_network(), loader, selection_loader=other, **given, **QUIET)
    return str(repair), _values(repair.model, "2.bias")


def _pruned_to(loader: Any, other: Any, given: Mapping[str, Any]) -> Any:
    settings: Any = {"macs": 0.6, "steps": 1, "importance": tp.importance.GroupMagnitudeImportance()}
    done = prune_to(_network(), loader, torch.ones(1, 3), held_out=other, **settings, **given, **QUIET)
    return done.measured, _values(done.model, "0.weight")


def _smallest(loader: Any, other: Any, given: Mapping[str, Any]) -> Any:
    allowed: Any = {"max_drop": {"accuracy": 0.5}, "confidence": None}
    done = smallest(_network(), loader, torch.ones(1, 3), held_out=other, **allowed, **given, **QUIET)
    return done.measured, done.history


def _by_group_saliency(loader: Any, other: Any, given: Mapping[str, Any]) -> Any:
    steps: Any = {"iterative_steps": 2, "measure": "demographic_parity_difference"}
    done = prune_by_group_saliency(_network(), loader, held_out=other, **steps, **given, **QUIET)
    return str(done), _values(done.model, "0.weight")


def _first_only(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda loader, _, given: function(loader, **{k: v for k, v in given.items() if k == "sensitive_features"})


def _table(loader: Any, **given: Any) -> Any:
    return collect_damage(_network(), loader, _hidden(), **given, **QUIET).to_frame()


def _people(loader: Any, **given: Any) -> Any:
    people = ValidationSet.from_loader(loader, **given, **QUIET)
    return people.inputs, people.target, people.group, list(people.groups)


def _predicted(loader: Any, **given: Any) -> Any:
    found = predict(_network(), loader, **given, **QUIET)
    return found.target, found.label["model"], found.sensitive["team"].tolist()


def _changed(loader: Any, **given: Any) -> Any:
    return changed_samples(_network(), nn.Linear(3, 2).eval(), loader, **given, **QUIET).people


def _compared(loader: Any, **given: Any) -> Any:
    return compare_models({"dense": _network(), "as it is": _network()}, loader, **given, **QUIET).by_group


EVERYWHERE: dict[str, Callable[..., Any]] = {
    "an importance of its own loader": _first_only(_self_collecting),
    "fit": _first_only(_fitted),
    "an importance that is fitted": _first_only(_made_with),
    "reconstructed": _reconstructed,
    "prune_copy": _prune_copy,
    "repair": _repaired,
    "prune_to": _pruned_to,
    "smallest": _smallest,
    "group saliency": _by_group_saliency,
    "collect_damage": _first_only(_table),
    "squared_gradients": _first_only(lambda loader, **k: squared_gradients(_network(), loader, **k, **QUIET)[1]),
    "ValidationSet": _first_only(_people),
    "predict": _first_only(_predicted),
    "changed_samples": _first_only(_changed),
    "metric_frame": _first_only(lambda loader, **k: metric_frame(_network(), loader, **k, **QUIET).by_group),
    "compare_models": _first_only(_compared),
}


def _same(one: Any, other: Any) -> None:
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            _same(a, b)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        _same(tuple(one.values()), tuple(other.values()))
    elif isinstance(one, Tensor | np.ndarray):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    else:
        assert one == other


@pytest.mark.parametrize("kind", EVERYWHERE)
def test_everywhere(kind: str) -> None:
    function = EVERYWHERE[kind]
    series = pd.Series(MANY_GROUP == "b", name="team").astype(int)
    given = {"sensitive_features": series[FIRST], "held_out_sensitive_features": series[REST]}
    loader, other = _loader(FIRST, 2), _loader(REST, 2)
    own = (loader.generator, other.generator)
    states = [generator.get_state() for generator in own if generator is not None]
    torch.manual_seed(5)
    expected = function(_loader(FIRST, 3), _loader(REST, 3), {})
    torch.manual_seed(5)
    _same(function(loader, other, given), expected)
    assert len(states) == 2
    assert all(torch.equal(g.get_state(), s) for g, s in zip(own, states, strict=True) if g is not None)
    with pytest.raises(InputError, match="has 119 rows and the loader's dataset 120 samples"):
        function(loader, other, {**given, "sensitive_features": series[1:120]})


def test_splits() -> None:
    rows = pd.Series(TEAM, name="team")
    splits = DataSplits(test=_two(), train=_two(), sensitive_features={"test": rows, "train": rows})
    assert splits.sensitive_features is None
    assert splits.first_batch("scoring", torch.device("cpu")).sensitive["team"].tolist() == TEAM[:5]
    with pytest.raises(InputError, match=r"sensitive_features\['test'\] has 22 rows"):
        DataSplits(test=_two(), sensitive_features={"test": rows[1:]})
    with pytest.raises(InputError, match=r"no 'tests' \(did you mean 'test'\?\)"):
        DataSplits(test=_two(), sensitive_features={"tests": rows})
    with pytest.raises(InputError, match="a Series; expected them by split"):
        DataSplits(test=_two(), sensitive_features=rows)
    with pytest.raises(InputError, match=r"sensitive_features\['train'\] beside no loader"):
        DataSplits(test=_two(), sensitive_features={"train": rows})
