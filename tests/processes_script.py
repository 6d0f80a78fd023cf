"""What each of two processes does in test_processes: it checks, and writes down what didn't hold."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import DamageTable, InputError, ProcessError, collect_damage, share_of_process
from fairtrim import processes as processes_module
from fairtrim.damage import sample_sketch as sketch_module
from fairtrim.damage import scoring_run as streaming_module
from fairtrim.damage.measured_change import measured_change
from fairtrim.damage.parity_gradient import parity_gradient
from fairtrim.damage.weight_saliency import collect_weight_saliency, squared_gradients
from fairtrim.processes import Processes
from fairtrim_adapters.torch_pruning import (
    AccumulatedConfidenceImportance,
    GroupSaliencyImportance,
    MeanDamageImportance,
    ParityGradientImportance,
    WorstGroupImportance,
)
from tests.networks import CASES
from tests.snapshot import Snapshot

CASE = CASES["residual"]
GROUPS = CASE.plan(CASE.model()).groups
N = 60
X, Y = CASE.batch(N)


def _sets() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(2)
    return [
        {g.name: torch.randperm(g.size, generator=generator)[:k].tolist() for g in GROUPS if k <= g.size}
        for k in (1, 2, 4)
    ]


def _loader(rows: Tensor, sensitive: Any, size: int = 7) -> list[tuple[Any, ...]]:
    """Batches of some samples."""
    batches = []
    for part in rows.split(size) if len(rows) else []:
        a = sensitive[part] if isinstance(sensitive, Tensor) else [sensitive[n] for n in part.tolist()]
        batches.append((X[part], Y[part], a))
    return batches


def _same(table: DamageTable, alone: DamageTable, *, pairs: bool = True) -> None:
    assert table.sensitive_groups == alone.sensitive_groups
    assert table.features == alone.features
    for name in ("counts", "loss", "slope", "curvature"):
        torch.testing.assert_close(getattr(table, name), getattr(alone, name), rtol=1e-6, atol=1e-12, msg=name)
    assert (table.interactions is None) == (alone.interactions is None)
    if pairs and table.interactions is not None:
        for channels in _sets():
            torch.testing.assert_close(table.predict(channels), alone.predict(channels), rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(
            table.interactions_between(torch.tensor([3])),
            alone.interactions_between(torch.tensor([3])),
            rtol=1e-6,
            atol=1e-12,
        )


def _everywhere_the_same(tensor: Tensor) -> None:
    told: list[Any] = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(told, tensor.contiguous())
    assert all(torch.equal(other, tensor) for other in told)


ALL = torch.arange(N)
SHARES: dict[str, tuple[Tensor, Tensor]] = {
    "even": (ALL[::2], ALL[1::2]),
    "uneven": (ALL[:49], ALL[49:]),
    "empty first": (ALL[:0], ALL),
    "empty second": (ALL, ALL[:0]),
}
WEIGHTS = torch.rand(N, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
SENSITIVE: dict[str, Any] = {
    "two groups": ALL % 2,
    "groups that one process sees": ["late" if n > 55 else "early" if n < 4 else "both" for n in range(N)],
    "a group for each": [f"person {7 * n % N}" for n in range(N)],
    "weights": WEIGHTS,
}


def tables(rank: int) -> None:
    """Every share, every kind of people, every kind of pairs."""
    model = CASE.model()
    before = Snapshot(model)
    for share, rows in SHARES.items():
        for people, sensitive in SENSITIVE.items():
            if people == "a group for each" and share != "uneven":  # a message a group
                continue
            for interactions in ("exact", "sketched") if share != "even" else (False,):
                options: dict[str, Any] = {"interactions": interactions, "progress": False}
                options["sensitive_weights"] = people == "weights"
                alone = collect_damage(model, _loader(ALL, sensitive), GROUPS, distributed=False, **options)
                table = collect_damage(model, _loader(rows[rank], sensitive, 5 + rank), GROUPS, **options)
                try:
                    _same(table, alone)
                except AssertionError as error:
                    raise AssertionError(f"{share}, {people}, {interactions}: {error}") from error
                _everywhere_the_same(table.damage)
                if interactions == "exact":
                    _everywhere_the_same(table.interactions)
    before.assert_unchanged()


def hundreds_of_groups(rank: int) -> None:
    generator = torch.Generator().manual_seed(3)
    x, y = CASE.batch(500)
    a = {"a": torch.randint(0, 20, (500,), generator=generator), "b": torch.randint(0, 15, (500,), generator=generator)}
    cut = [slice(0, 120), slice(120, 500)][rank]
    shares = [(x[cut], y[cut], {name: column[cut] for name, column in a.items()})]
    for interactions in ("exact", "sketched"):
        options: dict[str, Any] = {"interactions": interactions, "progress": False}
        alone = collect_damage(CASE.model(), [(x, y, a)], GROUPS, distributed=False, **options)
        start = time.monotonic()
        table = collect_damage(CASE.model(), shares, GROUPS, **options)
        assert time.monotonic() - start < 30
        assert len(table.sensitive_groups) > 200
        _same(table, alone)


def full_sketches(rank: int) -> None:
    """More rows than a sketch holds: the same everywhere, and as far from the truth as is said."""
    model, rows = CASE.model(), SHARES["uneven"][rank]
    exact = collect_damage(
        model, _loader(ALL, ALL % 2), GROUPS, interactions="exact", distributed=False, progress=False
    )
    sizes = sketch_module.SELECTION_ROWS, sketch_module.HELD_OUT_ROWS
    sketch_module.SELECTION_ROWS, sketch_module.HELD_OUT_ROWS = 24, 16
    try:
        table = collect_damage(model, _loader(rows, ALL % 2), GROUPS, interactions="sketched", progress=False)
    finally:
        sketch_module.SELECTION_ROWS, sketch_module.HELD_OUT_ROWS = sizes
    _same(table, exact, pairs=False)
    for channels in _sets()[1:]:
        error = table.prediction_error(channels)
        assert bool((error > 0).all())
        assert bool(((table.predict(channels) - exact.predict(channels)).abs() < 5 * error).all())
        _everywhere_the_same(table.predict(channels))


def weight_level(rank: int) -> None:
    model = CASE.model()
    before = Snapshot(model)
    for rows in SHARES.values():
        for sensitive in (SENSITIVE["groups that one process sees"], WEIGHTS):
            options: dict[str, Any] = {"progress": False, "sensitive_weights": sensitive is WEIGHTS}
            alone = squared_gradients(model, _loader(ALL, sensitive), distributed=False, **options)
            found = squared_gradients(model, _loader(rows[rank], sensitive), **options)
            assert found[0].sensitive_groups == alone[0].sensitive_groups and found[1].keys() == alone[1].keys()
            for name, value in alone[1].items():
                torch.testing.assert_close(found[1][name], value, rtol=1e-6, atol=1e-14)
    rows = SHARES["uneven"][rank]
    alone = collect_weight_saliency(model, _loader(ALL, ALL % 3), GROUPS, distributed=False, progress=False)
    _same(collect_weight_saliency(model, _loader(rows, ALL % 3), GROUPS, progress=False), alone)
    before.assert_unchanged()


def weighted_losses(rank: int) -> None:
    """The mean weight is that of everybody; of weights that are hidden only ratios are known, so they are refused."""
    model = CASE.model()
    loss = nn.CrossEntropyLoss(weight=torch.linspace(1, 9, model(X[:1]).shape[1], dtype=torch.float64))
    for rows in (SHARES["even"], SHARES["uneven"], SHARES["empty first"]):
        alone = collect_damage(model, _loader(ALL, ALL % 2), GROUPS, loss_fn=loss, distributed=False, progress=False)
        _same(collect_damage(model, _loader(rows[rank], ALL % 2), GROUPS, loss_fn=loss, progress=False), alone)
    hidden: dict[str, Any] = {"loss_fn": lambda scores, y: loss(scores, y), "progress": False}
    for collect in (collect_damage, collect_weight_saliency):
        try:
            collect(model, _loader(ALL[rank::2], ALL % 2), GROUPS, **hidden)
        except InputError as error:
            assert "a mean with weights of its own" in str(error)
        else:
            raise AssertionError("nothing was raised")


IMPORTANCES: dict[str, Callable[[], Any]] = {
    "worst group": lambda: WorstGroupImportance(progress=False),
    "sketched": lambda: MeanDamageImportance(interactions="sketched", progress=False),
    "parity gradient": lambda: ParityGradientImportance("equalized_odds_difference", progress=False),
    "single": lambda: GroupSaliencyImportance("1", selection="single", progress=False),
    "weights": lambda: GroupSaliencyImportance("1", selection="single", level="weight", progress=False),
}


def fits(rank: int) -> None:
    """Every process prunes the same channels, those that one alone would."""
    share = DataLoader(share_of_process(TensorDataset(X, Y, ALL % 2)), batch_size=8)
    whole = DataLoader(TensorDataset(X, Y, ALL % 2), batch_size=8)
    for make in IMPORTANCES.values():
        pruned = []
        for loader, distributed in ((share, None), (whole, False)):
            model = CASE.model()
            importance = make()
            pruner = CASE.pruner(model, importance, global_pruning=True)
            importance.fit(pruner, loader, distributed=distributed)
            pruner.step()
            pruned.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert torch.equal(*pruned)
        assert len(pruned[0]) < sum(p.numel() for p in CASE.model().parameters())
        _everywhere_the_same(pruned[0])
    # by index, each process reads all samples
    model = CASE.model()
    importance = AccumulatedConfidenceImportance(ALL % 5 == 0, progress=False)
    importance.fit(CASE.pruner(model, importance), DataLoader(TensorDataset(X, Y), batch_size=8))
    assert importance._table.counts.tolist() == [12, 48]


class BrokenError(Exception):
    pass


def _failing(rows: Tensor, after: int) -> Iterator[tuple[Any, ...]]:
    yield from _loader(rows, ALL % 2)[:after]
    raise BrokenError("no such file")


class BrokenLoader(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield self[0]
        raise BrokenError("no such file")


COLLECT: dict[str, Callable[..., Any]] = {
    "gates": lambda model, loader: collect_damage(model, loader, GROUPS, interactions=True, progress=False),
    "weights": lambda model, loader: collect_weight_saliency(model, loader, GROUPS, progress=False),
}


def errors(rank: int) -> None:
    """One raises what happened, the others that it did; the networks are as before, and the next call works."""
    for collect in COLLECT.values():
        for broken in (0, 1):
            for after in (0, 1, 4):
                model = CASE.model().train()
                before = Snapshot(model)
                rows = SHARES["even"][rank]
                loader: Any = _failing(rows, after) if rank == broken else _loader(rows, ALL % 2)
                try:
                    collect(model, loader)
                except BrokenError:
                    assert rank == broken
                except ProcessError as error:
                    assert rank != broken
                    assert f"process {broken} of 2 failed" in str(error) and "BrokenError: no such file" in str(error)
                else:
                    raise AssertionError("nothing was raised")
                before.assert_unchanged()
        assert collect(model, _loader(rows, ALL % 2)).counts.tolist() == [30, 30]


def errors_at_the_start(rank: int) -> None:
    model = CASE.model()
    refused = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), model)
    for groups, network in (((), model), (GROUPS, refused)):
        wrong = (model, GROUPS) if rank else (network, groups)
        kind = "InputError" if network is model else "Error"
        try:
            collect_damage(wrong[0], _loader(ALL, ALL % 2), wrong[1], progress=False)
        except ProcessError as error:
            assert rank == 1 and "process 0 of 2 failed, so nothing was computed here" in str(error)
            assert kind in str(error)
        except (InputError, RuntimeError):
            assert rank == 0
        else:
            raise AssertionError("nothing was raised")


def errors_of_a_fit(rank: int) -> None:
    model = CASE.model().train()
    importance = WorstGroupImportance(progress=False)
    pruner = CASE.pruner(model, importance)
    before = Snapshot(model)
    rows = SHARES["even"][rank]
    loader: Any = _failing(rows, 2) if rank else _loader(rows, ALL % 2)
    with contextlib.suppress(BrokenError, ProcessError):
        importance.fit(pruner, loader)
    before.assert_unchanged()
    assert not hasattr(importance, "selection_") and pruner.importance is importance and pruner.current_step == 0
    importance.fit(pruner, _loader(rows, ALL % 2))
    pruner.step()


def other_networks(rank: int) -> None:
    """Nobody could use the sums of two networks."""
    model = CASE.model()
    with torch.no_grad():
        next(model.parameters()).add_(rank)
    for collect in COLLECT.values():
        try:
            collect(model, _loader(ALL, ALL % 2))
        except InputError as error:
            assert "processes 0 and 1 have another network; expected the same" in str(error)
        else:
            raise AssertionError("nothing was raised")


def other_features(rank: int) -> None:
    """Nobody would know whose sums they are."""
    cases: list[tuple[Any, Any]] = [
        ({"sex": ALL % 2}, {"race": ALL % 2}),
        (ALL % 2, torch.stack([ALL % 2, ALL % 3], 1)),
    ]
    for first, second in cases:
        sensitive = (first, second)[rank]
        model = CASE.model()
        before = Snapshot(model)
        for collect in COLLECT.values():
            try:
                collect(model, [(X, Y, sensitive)])
            except InputError as error:
                assert "in another process; expected the same in every share" in str(error)
            else:
                raise AssertionError("nothing was raised")
        before.assert_unchanged()


def nobody_has_samples(rank: int) -> None:
    for collect in COLLECT.values():
        try:
            collect(CASE.model(), [])
        except InputError as error:
            assert "no process was given a sample" in str(error)
        else:
            raise AssertionError("nothing was raised")


def alone(rank: int) -> None:
    """``distributed=False`` waits for nobody."""
    if rank == 0:
        for collect in (collect_damage, collect_weight_saliency):
            options: dict[str, Any] = {"distributed": False, "progress": False}
            assert collect(CASE.model(), _loader(ALL, ALL % 2), GROUPS, **options).counts.sum() == N


def cut_short(rank: int, folder: Path) -> None:
    """Each process keeps its own sums; all go on together."""
    model, rows = CASE.model(), SHARES["uneven"][rank]
    n_calls = [0]
    model.register_forward_pre_hook(lambda module, args: n_calls.__setitem__(0, n_calls[0] + 1))
    streaming_module.SECONDS_BETWEEN_SAVES = 0.0
    for interactions in ("exact", "sketched"):
        options: dict[str, Any] = {"interactions": interactions, "progress": False, "folder": folder}
        loader: Any = _failing(rows, 3) if rank == 0 else _loader(rows, ALL % 2)
        n_calls[0] = 0
        with contextlib.suppress(BrokenError, ProcessError):
            collect_damage(model, loader, GROUPS, **options)
        assert (folder / f"damage-{rank}.safetensors").exists()
        table = collect_damage(model, _loader(rows, ALL % 2), GROUPS, **options)
        assert n_calls[0] == len(_loader(rows, ALL % 2))
        dist.barrier()
        assert not list(folder.iterdir())
        options = {**options, "folder": None, "distributed": False}
        _same(table, collect_damage(model, _loader(ALL, ALL % 2), GROUPS, **options))


def slow_one(rank: int) -> None:
    """One has done its share long before the other, and waits longer in all than the backend would let it."""
    model, rows = CASE.model(), SHARES["uneven"][1 - rank]

    def slow() -> Iterator[tuple[Any, ...]]:
        for batch in _loader(rows, ALL % 2, 3):
            time.sleep(rank * 1.3 * SECONDS_OF_PATIENCE / 17)
            yield batch

    start = time.monotonic()
    table = collect_damage(model, slow(), GROUPS, progress=False)
    assert time.monotonic() - start > SECONDS_OF_PATIENCE
    _same(table, collect_damage(model, _loader(ALL, ALL % 2), GROUPS, distributed=False, progress=False))


def _endless(rows: Tensor, fail: Callable[[], None]) -> Iterator[tuple[Any, ...]]:
    for number in itertools.count():
        if number == 3:
            fail()
        yield from _loader(rows, ALL % 2)[:1]


def _broken() -> None:
    raise BrokenError("no such file")


def _interrupted() -> None:
    os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C in one terminal of several
    time.sleep(1)


def heard_at_the_next_meeting(rank: int) -> None:
    """What happens to one is heard while the others still work: their shares have no end."""
    groups = {"parity": lambda m, loader: parity_gradient(m, loader, GROUPS, privileged="1", progress=False)}
    for collect in (COLLECT | groups).values():
        for which, (fail, told) in itertools.product(
            (0, 1), ((_broken, "BrokenError: no such file"), (_interrupted, "KeyboardInterrupt"))
        ):
            model = CASE.model().train()
            before, start = Snapshot(model), time.monotonic()
            try:
                collect(model, _endless(SHARES["even"][rank], fail if rank == which else lambda: None))
            except (BrokenError, KeyboardInterrupt):
                assert rank == which
            except ProcessError as error:
                assert rank != which
                assert f"process {which} of 2 failed" in str(error) and str(error).endswith(told), str(error)
            else:
                raise AssertionError("nothing was raised")
            assert time.monotonic() - start < SECONDS_OF_PATIENCE
            before.assert_unchanged()
    assert COLLECT["gates"](model, _loader(SHARES["even"][rank], ALL % 2)).counts.tolist() == [30, 30]


def on_devices(rank: int) -> None:
    """Each process scores on a device of its own, or both on one, without ``torch.cuda.set_device``."""
    device = torch.device("cuda", rank % torch.cuda.device_count())
    model, rows = CASE.model(), SHARES["uneven"][rank]
    alone = collect_damage(model, _loader(ALL, ALL % 2), GROUPS, distributed=False, progress=False)
    for collect in COLLECT.values():
        collect(model.to(device), _loader(rows, ALL % 2))
    table = collect_damage(model, _loader(rows, ALL % 2), GROUPS, progress=False)
    assert table.sensitive_groups == alone.sensitive_groups
    for name in ("counts", "loss", "slope", "curvature"):
        torch.testing.assert_close(getattr(table, name), getattr(alone, name), rtol=1e-6, atol=1e-12, msg=name)
    pruner = CASE.pruner(model, importance := WorstGroupImportance(progress=False))
    importance.fit(pruner, _loader(rows, ALL % 2))
    pruner.step()
    weights = torch.cat([parameter.detach().cpu().flatten() for parameter in model.parameters()]).tolist()
    told = Processes(None, model).exchange(weights)
    assert told[0] == told[1]


def gone(rank: int) -> None:
    """A process disappears without a word."""
    model = CASE.model().train()
    before = Snapshot(model)

    def leaving() -> Iterator[tuple[Any, ...]]:
        yield from _loader(ALL, ALL % 2)[:2]
        os._exit(3)

    start = time.monotonic()
    importance = WorstGroupImportance(progress=False)
    pruner = CASE.pruner(model, importance)
    before = Snapshot(model)
    runs: list[Callable[[Any], Any]] = [
        lambda loader: importance.fit(pruner, loader),
        lambda loader: COLLECT["gates"](model, loader),
        lambda loader: COLLECT["weights"](model, loader),
    ]
    for run in runs:
        try:
            run(leaving() if rank else _loader(ALL, ALL % 2))
        except ProcessError as error:
            assert "another process is gone" in str(error) and "start all processes again" in str(error)
        else:
            raise AssertionError("nothing was raised")
        before.assert_unchanged()
    assert time.monotonic() - start < 20
    assert not hasattr(importance, "selection_")


def sharded(rank: int) -> None:
    """A network of FSDP2, whose layers wait for each other: the table of one process, and loaders of one length."""
    fsdp = importlib.import_module("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        return
    case = CASES["mlp"]
    x, y = case.batch(12)
    model, groups = case.model(), case.plan(case.model()).groups
    batches = [(x[a : a + 3], y[a : a + 3], ["a", "b", "a"]) for a in (0, 3, 6, 9)]
    alone = collect_damage(model, batches, groups, distributed=False, progress=False)
    fsdp.fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (2,)))
    mine = batches[rank::2]
    table = collect_damage(model, mine, groups, progress=False)
    _same(table, alone)
    assert measured_change(model, mine, table, progress=False).change.abs().max() < 1e-12
    for loader, options in ((mine[: 1 + rank], {}), (iter(mine), {"max_batches": 1})):
        try:
            collect_damage(model, loader, groups, progress=False, **options)
        except InputError as error:
            assert "expected loaders with a length" in str(error)
        else:
            raise AssertionError("shares of different lengths were not refused")
    for run in (collect_damage, measured_change):
        broken: Any = BrokenLoader(mine) if rank else mine
        try:
            run(model, broken, groups if run is collect_damage else table, progress=False)
        except BrokenError:
            assert rank == 1
        except ProcessError as error:
            assert rank == 0 and "process 1 of 2 failed" in str(error)
        else:
            raise AssertionError("nothing was raised")


TOGETHER: list[Callable[[int], None]] = [
    tables,
    hundreds_of_groups,
    full_sketches,
    weight_level,
    weighted_losses,
    fits,
    errors,
    errors_at_the_start,
    errors_of_a_fit,
    other_networks,
    other_features,
    nobody_has_samples,
    alone,
    sharded,
]


MEETINGS: list[Callable[[int], None]] = [slow_one, heard_at_the_next_meeting, fits]
SECONDS_OF_PATIENCE = 3.0  # of the backend


def main() -> None:
    """Run what the command line says, and write what failed as JSON."""
    folder, what, backend = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "meeting"), 2)
    store.set(f"here {rank}", "")
    store.wait([f"here {other}" for other in range(2)], timedelta(seconds=120))  # one may start seconds after the other
    patience: dict[str, Any] = {}
    if what == "meetings":
        processes_module.SECONDS_BETWEEN_MEETINGS = 0.1
        patience = {"timeout": timedelta(seconds=SECONDS_OF_PATIENCE)}
    dist.init_process_group(backend, store=store, rank=rank, world_size=2, **patience)
    kept = folder / "kept"
    kept.mkdir(exist_ok=True)
    failed: dict[str, str] = {}
    checks = {
        "together": [*TOGETHER, lambda rank: cut_short(rank, kept)],
        "meetings": MEETINGS,
        "gone": [gone],
        "devices": [on_devices],
    }[what]
    for check in checks:
        name = getattr(check, "__name__", "").strip("<>").replace("lambda", "cut_short")
        start = time.monotonic()
        try:
            check(rank)
        except BaseException:
            failed[name] = traceback.format_exc()
            break  # the other may wait elsewhere now
        finally:
            print(rank, name, f"{time.monotonic() - start:.1f} s", flush=True)
    (folder / f"result-{rank}.json").write_text(json.dumps(failed))
    sys.stdout.flush()
    os._exit(0)  # whoever is gone, don't wait for it


if __name__ == "__main__":
    main()
