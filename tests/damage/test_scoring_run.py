"""A pass that was cut short goes on: the same table, no batch twice; whatever else has changed is refused."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import ChannelGroup, ChannelPlace, DamageTable, InputError, collect_damage
from fairtrim.damage import sample_sketch as sketch_module
from fairtrim.damage import scoring_run as streaming_module
from fairtrim.damage.sample_sketch import SampleSketch
from fairtrim_adapters.torch_pruning import GroupSaliencyImportance, WorstGroupImportance
from tests.networks import CASES
from tests.recipe_cases import Evil
from tests.snapshot import Snapshot

CASE = CASES["plain"]
GROUPS = CASE.plan(CASE.model()).groups
N_BATCHES = 6
FILE = "damage-0.safetensors"


class CutShortError(Exception):
    pass


@pytest.fixture(autouse=True)
def save_after_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming_module, "SECONDS_BETWEEN_SAVES", 0.0)


def _batches(*, change: Callable[[int, list[Any]], None] | None = None) -> list[tuple[Any, ...]]:
    """The third group appears in the third batch, a batch of one is among them."""
    x, y = CASE.batch(25)
    a = [str(n % 2) if n < 13 else str(n % 3) for n in range(25)]
    cuts = [0, 5, 9, 10, 16, 21, 25]
    found = []
    for number in range(N_BATCHES):
        part = slice(cuts[number], cuts[number + 1])
        entry: list[Any] = [x[part], y[part], a[part]]
        if change is not None:
            change(number, entry)
        found.append(tuple(entry))
    return found


def _cut(batches: list[Any], after: int, error: BaseException) -> Iterator[Any]:
    yield from batches[:after]
    raise error


class Counted:
    """Calls of a network."""

    def __init__(self, model: nn.Module) -> None:
        self.n = 0
        model.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, args: Any) -> None:
        self.n += 1


def _model(seed: int = 0) -> tuple[nn.Module, Counted]:
    model = CASE.model(seed).train()
    return model, Counted(model)


def _assert_same(left: DamageTable, right: DamageTable) -> None:
    assert left.sensitive_groups == right.sensitive_groups and left.features == right.features
    for name in ("counts", "loss", "slope", "curvature"):
        assert torch.equal(getattr(left, name), getattr(right, name)), name
    if isinstance(left.interactions, SampleSketch):
        assert isinstance(right.interactions, SampleSketch)
        assert left.interactions.n_rows == right.interactions.n_rows
        for kind in ("selection", "held_out"):
            for one, other in zip(getattr(left.interactions, kind), getattr(right.interactions, kind), strict=True):
                assert torch.equal(one, other)
    elif left.interactions is not None:
        # a save works off the rows that wait, so that products are cut elsewhere
        torch.testing.assert_close(left.interactions, right.interactions, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("error", [CutShortError(), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("after", range(N_BATCHES + 1))
@pytest.mark.parametrize("interactions", [False, "exact", "sketched"])
def test_pass_that_was_cut_short_goes_on(
    interactions: Any,
    after: int,
    error: BaseException,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "fairtrim.damage")
    monkeypatch.setattr(sketch_module, "SELECTION_ROWS", 16)  # full after the first batches
    monkeypatch.setattr(sketch_module, "HELD_OUT_ROWS", 8)
    model, counted = _model()
    options: dict[str, Any] = {"interactions": interactions, "progress": False}
    whole = collect_damage(model, _batches(), GROUPS, **options)
    assert counted.n == N_BATCHES
    before = Snapshot(model)
    with pytest.raises(type(error)):
        collect_damage(model, _cut(_batches(), after, error), GROUPS, folder=tmp_path, **options)
    before.assert_unchanged()
    assert [path.name for path in tmp_path.iterdir()] == ([FILE] if after else [])
    assert counted.n == N_BATCHES + after
    _assert_same(collect_damage(model, _batches(), GROUPS, folder=tmp_path, **options), whole)
    assert counted.n == 2 * N_BATCHES  # none twice
    assert caplog.messages == [f"scoring goes on after {after} batches, kept in {tmp_path / FILE}"] * (after > 0)
    assert not list(tmp_path.iterdir())
    before.assert_unchanged()


def test_cut_short_again_and_again(tmp_path: Path) -> None:
    model, counted = _model()
    whole = collect_damage(model, _batches(), GROUPS, interactions=True, progress=False)
    for after in (1, 3, 3, 5):
        with pytest.raises(CutShortError):
            loader = _cut(_batches(), after, CutShortError())
            collect_damage(model, loader, GROUPS, interactions=True, folder=tmp_path, progress=False)
    table = collect_damage(model, _batches(), GROUPS, interactions=True, folder=tmp_path, progress=False)
    _assert_same(table, whole)
    assert counted.n == 2 * N_BATCHES


def test_saves_are_a_minute_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming_module, "SECONDS_BETWEEN_SAVES", 60.0)
    now = iter(
        [0.0, 59.0, 60.0, 61.0, 119.0, 125.0, 125.0, 130.0]
    )  # of the start, and at each batch; a save asks twice
    monkeypatch.setattr(streaming_module.time, "monotonic", lambda: next(now))
    saved: list[int] = []
    save = streaming_module.Resumption.save
    monkeypatch.setattr(
        streaming_module.Resumption, "save", lambda self, step, *rest: (saved.append(step), save(self, step, *rest))
    )
    with pytest.raises(CutShortError):
        loader = _cut(_batches(), 5, CutShortError())
        collect_damage(_model()[0], loader, GROUPS, folder=tmp_path, progress=False)
    assert saved == [2, 4]


def test_loader_that_shuffles_with_a_seed(tmp_path: Path) -> None:
    """The loader's generator is as before after an error, so the same object gives the same order again."""
    x, y = CASE.batch(25)
    data = TensorDataset(x, y, torch.arange(25) % 2)
    loader: Any = DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(2))
    model, counted = _model()
    whole = collect_damage(model, loader, GROUPS, progress=False)

    def failing(network: nn.Module, inputs: Tensor) -> Tensor:
        if counted.n == 7 + 3:
            raise CutShortError
        return network(inputs)

    with pytest.raises(CutShortError):
        collect_damage(model, loader, GROUPS, folder=tmp_path, forward_fn=failing, progress=False)

    def going_on(network: nn.Module, inputs: Tensor) -> Tensor:
        return network(inputs)

    going_on.__qualname__ = failing.__qualname__
    again = collect_damage(model, loader, GROUPS, folder=tmp_path, forward_fn=going_on, progress=False)
    _assert_same(again, whole)
    assert counted.n == 2 * 7


def test_importance_takes_the_folder(tmp_path: Path) -> None:
    tables = []
    for folder in (None, tmp_path):
        model, counted = _model()
        importance = WorstGroupImportance(progress=False)
        pruner = CASE.pruner(model, importance)
        n_before = counted.n
        if folder is not None:
            with pytest.raises(CutShortError):
                importance.fit(pruner, _cut(_batches(), 4, CutShortError()), folder=folder)
        importance.fit(pruner, _batches(), **({} if folder is None else {"folder": folder}))
        # before anything is scored: two passes as it is, one each for the map, the gates and the order of channels,
        # three on trial; and three for the step on trial. No batch is scored twice
        assert counted.n - n_before == N_BATCHES + 11 + (0 if folder is None else 8)
        pruner.step()
        tables.append(({k: v.shape for k, v in model.state_dict().items()}, importance.selection_.order))
    assert tables[0][0] == tables[1][0] and torch.equal(tables[0][1], tables[1][1])
    weights = GroupSaliencyImportance("0", level="weight", selection="single", folder=tmp_path, progress=False)
    model, _ = _model()
    with pytest.raises(InputError, match="leave folder= out"):
        weights.fit(CASE.pruner(model, weights), _batches())


# What may not change --------------------------------------------------------------------------------------


def _other_inputs(number: int, entry: list[Any]) -> None:
    if number == 1:
        entry[0] = entry[0].clone()
        entry[0][0, 0, 0, 0] += 1e-9


def _other_labels(number: int, entry: list[Any]) -> None:
    if number == 2:
        entry[1] = 2 - entry[1]


def _other_people(number: int, entry: list[Any]) -> None:
    entry[2] = entry[2][::-1]


def _other_form(number: int, entry: list[Any]) -> None:
    entry[2] = {"age": entry[2]}


CHANGES: dict[str, Any] = {
    "an input": _other_inputs,
    "a label": _other_labels,
    "sensitive features": _other_people,
    "names of the features": _other_form,
}


def _interrupted(folder: Path, after: int = 3, **options: Any) -> bytes:
    with pytest.raises(CutShortError):
        loader = _cut(_batches(), after, CutShortError())
        collect_damage(_model()[0], loader, GROUPS, folder=folder, progress=False, **options)
    return (folder / FILE).read_bytes()


@pytest.mark.parametrize("change", [*CHANGES, "order", "fewer batches", "other cuts"])
def test_other_batches_are_refused(change: str, tmp_path: Path) -> None:
    left = _interrupted(tmp_path)
    batches = _batches(change=CHANGES.get(change))
    if change == "order":
        batches = [batches[1], batches[0], *batches[2:]]
    elif change == "fewer batches":
        batches = batches[:2]
    elif change == "other cuts":
        whole = [torch.cat([b[k] for b in batches]) for k in (0, 1)]
        batches = [(*(w[:7] for w in whole), [a for b in batches for a in b[2]][:7])] * 4
    model, counted = _model()
    before = Snapshot(model)
    with pytest.raises(InputError, match=r"features changed|not those that were scored .*shuffle=False"):
        collect_damage(model, batches, GROUPS, folder=tmp_path, progress=False)
    before.assert_unchanged()
    assert counted.n == (change == "names of the features") and (tmp_path / FILE).read_bytes() == left


@pytest.mark.parametrize(
    "columns",
    [
        lambda a: np.array([int(v) for v in a]),
        lambda a: pd.Series(a),
        lambda a: pd.DataFrame({"s": a, "t": a}),
        lambda a: {"s": a, "t": torch.arange(len(a))},
        lambda a: torch.nn.functional.one_hot(torch.tensor([int(v) for v in a]), 3).double(),
    ],
)
def test_people_are_told_apart_in_every_form(columns: Callable[[list[str]], Any], tmp_path: Path) -> None:
    def form(number: int, entry: list[Any]) -> None:
        entry[2] = columns(entry[2])

    def changed(number: int, entry: list[Any]) -> None:
        entry[2] = columns(entry[2] if number else entry[2][1:] + entry[2][:1])

    model, counted = _model()
    whole = collect_damage(model, _batches(change=form), GROUPS, progress=False)
    with pytest.raises(CutShortError):
        loader = _cut(_batches(change=form), 4, CutShortError())
        collect_damage(model, loader, GROUPS, folder=tmp_path, progress=False)
    with pytest.raises(InputError, match="not those that were scored"):
        collect_damage(model, _batches(change=changed), GROUPS, folder=tmp_path, progress=False)
    _assert_same(collect_damage(model, _batches(change=form), GROUPS, folder=tmp_path, progress=False), whole)
    assert counted.n == 2 * N_BATCHES


OTHER: dict[str, dict[str, Any]] = {
    "curvature": {"curvature": "empirical"},
    "interactions": {"interactions": True},
    "sensitive_names": {"sensitive_names": ["group"]},
    "loss_fn": {"loss_fn": nn.MultiMarginLoss()},
    "output_transform": {"output_transform": torch.Tensor.double},
    "forward_fn": {"forward_fn": nn.Module.__call__},
}


@pytest.mark.parametrize("name", [*OTHER, "smoothing", "network", "sizes", "processes"])
def test_other_settings_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"loss_fn": nn.CrossEntropyLoss(label_smoothing=0.1)} if name == "smoothing" else {}
    left = _interrupted(tmp_path, **kept)
    (model, counted), groups, options = _model(int(name == "network")), GROUPS, dict(OTHER.get(name, {}))
    if name == "smoothing":
        options["loss_fn"] = nn.CrossEntropyLoss(label_smoothing=0.2)
    elif name == "sizes":
        groups = GROUPS[:1]
    elif name == "processes":
        init = streaming_module.ScoringRun.__init__

        class Two:
            count, rank = 2, 0

        monkeypatch.setattr(
            streaming_module.ScoringRun, "__init__", lambda self, folder, s, _: init(self, folder, s, Two())
        )
    key = {"smoothing": "loss_fn"}.get(name, name)
    with pytest.raises(InputError, match=rf"of a run with another .*{key}.*use another folder, or delete it"):
        collect_damage(model, _batches(), groups, folder=tmp_path, progress=False, **options)
    assert counted.n == 0 and (tmp_path / FILE).read_bytes() == left


def _edited(path: Path, data: bytes) -> None:
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["slope"][0, 0] += 1e-9
    save_file(tensors, path, header)


def _skipping(path: Path, data: bytes) -> None:
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["fairtrim-recipe"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header["step"] = 1
    save_file(tensors, path, {"fairtrim-recipe": json.dumps(header)})


DAMAGE: dict[str, Callable[[Path, bytes], Any]] = {
    "cut short": lambda path, data: path.write_bytes(data[:-9]),
    "half": lambda path, data: path.write_bytes(data[: len(data) // 2]),
    "empty": lambda path, data: path.write_bytes(b""),
    "an edited sum": _edited,
    "an edited step": _skipping,
    "another version": lambda path, data: path.write_bytes(data.replace(b'\\"version\\": 1', b'\\"version\\": 2')),
    "no metadata": lambda path, data: save_file({"slope": torch.ones(3)}, path),
    "pickle": lambda path, data: path.write_bytes(pickle.dumps(Evil(path.with_name("evil")))),
    "torch.save": lambda path, data: torch.save(Evil(path.with_name("evil")), path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    data = _interrupted(tmp_path)
    path = tmp_path / FILE
    DAMAGE[damage](path, data)
    left = path.read_bytes()
    assert left != data
    model, counted = _model()
    before = Snapshot(model)
    with pytest.raises(InputError, match="delete it to begin again"):
        collect_damage(model, _batches(), GROUPS, folder=tmp_path, progress=False)
    before.assert_unchanged()
    assert counted.n == 0 and path.read_bytes() == left and [p.name for p in tmp_path.iterdir()] == [FILE]


def test_save_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, counted = _model()
    whole = collect_damage(model, _batches(), GROUPS, progress=False)
    n_saves = [0]
    save = save_file

    def failing(*args: Any, **options: Any) -> None:
        n_saves[0] += 1
        if n_saves[0] == 4:
            raise OSError("no space left on device")
        save(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr("fairtrim.files.resumption.save_file", failing)
        collect_damage(model, _batches(), GROUPS, folder=tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    counted.n = 0
    _assert_same(collect_damage(model, _batches(), GROUPS, folder=tmp_path, progress=False), whole)
    assert counted.n == N_BATCHES - 3


def test_tokens_in_dicts(tmp_path: Path) -> None:
    """Labels at positions, inputs by name, crossings of features."""
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    groups = [ChannelGroup("1", 6, (ChannelPlace("3", "input", range(6), range(6), -1),))]
    generator = torch.Generator().manual_seed(0)
    batches = [
        {
            "input": torch.randint(0, 5, (3, 4), generator=generator),
            "labels": torch.randint(0, 3, (3, 4), generator=generator),
            "sensitive_features": {"sex": ["f", "m", "f"], "age": torch.tensor([k % 2, 1, 0])},
        }
        for k in range(4)
    ]
    whole = collect_damage(model, batches, groups, interactions=True, progress=False)
    assert ("f", "0") in whole.sensitive_groups
    with pytest.raises(CutShortError):
        loader = _cut(batches, 2, CutShortError())
        collect_damage(model, loader, groups, interactions=True, folder=tmp_path, progress=False)
    _assert_same(collect_damage(model, batches, groups, interactions=True, folder=tmp_path, progress=False), whole)
