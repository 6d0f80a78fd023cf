"""What each of two processes does in test_processes: it checks, and writes down what didn't hold."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import InputError, ProcessError, collect_damage, share_of_process
from fairtrim import processes as processes_module
from fairtrim.damage import sample_sketch as sketch_module
from fairtrim.damage.measured_change import measured_change
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
from tests.processes_cases import (
    ALL,
    CASE,
    COLLECT,
    GROUPS,
    SENSITIVE,
    SHARES,
    WEIGHTS,
    BrokenError,
    BrokenLoader,
    N,
    X,
    Y,
    check_everywhere,
    check_same,
    loader_of,
    removed_sets,
)
from tests.processes_failing import (
    SECONDS_OF_PATIENCE,
    cut_short,
    errors,
    errors_at_the_start,
    errors_of_a_fit,
    gone,
    heard_at_the_next_meeting,
    nobody_has_samples,
    other_features,
    other_networks,
    slow_one,
)
from tests.snapshot import Snapshot


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
                alone = collect_damage(model, loader_of(ALL, sensitive), GROUPS, distributed=False, **options)
                table = collect_damage(model, loader_of(rows[rank], sensitive, 5 + rank), GROUPS, **options)
                try:
                    check_same(table, alone)
                except AssertionError as error:
                    raise AssertionError(f"{share}, {people}, {interactions}: {error}") from error
                check_everywhere(table.damage)
                if interactions == "exact":
                    check_everywhere(table.interactions)
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
        check_same(table, alone)


def full_sketches(rank: int) -> None:
    """More rows than a sketch holds: the same everywhere, and as far from the truth as is said."""
    model, rows = CASE.model(), SHARES["uneven"][rank]
    exact = collect_damage(
        model, loader_of(ALL, ALL % 2), GROUPS, interactions="exact", distributed=False, progress=False
    )
    sizes = sketch_module.SELECTION_ROWS, sketch_module.HELD_OUT_ROWS
    sketch_module.SELECTION_ROWS, sketch_module.HELD_OUT_ROWS = 24, 16
    try:
        table = collect_damage(model, loader_of(rows, ALL % 2), GROUPS, interactions="sketched", progress=False)
    finally:
        sketch_module.SELECTION_ROWS, sketch_module.HELD_OUT_ROWS = sizes
    check_same(table, exact, pairs=False)
    for channels in removed_sets()[1:]:
        error = table.prediction_error(channels)
        assert bool((error > 0).all())
        assert bool(((table.predict(channels) - exact.predict(channels)).abs() < 5 * error).all())
        check_everywhere(table.predict(channels))


def weight_level(rank: int) -> None:
    model = CASE.model()
    before = Snapshot(model)
    for rows in SHARES.values():
        for sensitive in (SENSITIVE["groups that one process sees"], WEIGHTS):
            options: dict[str, Any] = {"progress": False, "sensitive_weights": sensitive is WEIGHTS}
            alone = squared_gradients(model, loader_of(ALL, sensitive), distributed=False, **options)
            found = squared_gradients(model, loader_of(rows[rank], sensitive), **options)
            assert found[0].sensitive_groups == alone[0].sensitive_groups and found[1].keys() == alone[1].keys()
            for name, value in alone[1].items():
                torch.testing.assert_close(found[1][name], value, rtol=1e-6, atol=1e-14)
    rows = SHARES["uneven"][rank]
    alone = collect_weight_saliency(model, loader_of(ALL, ALL % 3), GROUPS, distributed=False, progress=False)
    check_same(collect_weight_saliency(model, loader_of(rows, ALL % 3), GROUPS, progress=False), alone)
    before.assert_unchanged()


def weighted_losses(rank: int) -> None:
    """The mean weight is that of everybody; of weights that are hidden only ratios are known, so they are refused."""
    model = CASE.model()
    loss = nn.CrossEntropyLoss(weight=torch.linspace(1, 9, model(X[:1]).shape[1], dtype=torch.float64))
    for rows in (SHARES["even"], SHARES["uneven"], SHARES["empty first"]):
        alone = collect_damage(model, loader_of(ALL, ALL % 2), GROUPS, loss_fn=loss, distributed=False, progress=False)
        check_same(collect_damage(model, loader_of(rows[rank], ALL % 2), GROUPS, loss_fn=loss, progress=False), alone)
    hidden: dict[str, Any] = {"loss_fn": lambda scores, y: loss(scores, y), "progress": False}
    for collect in (collect_damage, collect_weight_saliency):
        try:
            collect(model, loader_of(ALL[rank::2], ALL % 2), GROUPS, **hidden)
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
        check_everywhere(pruned[0])
    # by index, each process reads all samples
    model = CASE.model()
    importance = AccumulatedConfidenceImportance(ALL % 5 == 0, progress=False)
    importance.fit(CASE.pruner(model, importance), DataLoader(TensorDataset(X, Y), batch_size=8))
    assert importance._table.counts.tolist() == [12, 48]


def alone(rank: int) -> None:
    """``distributed=False`` waits for nobody."""
    if rank == 0:
        for collect in (collect_damage, collect_weight_saliency):
            options: dict[str, Any] = {"distributed": False, "progress": False}
            assert collect(CASE.model(), loader_of(ALL, ALL % 2), GROUPS, **options).counts.sum() == N


def on_devices(rank: int) -> None:
    """Each process scores on a device of its own, or both on one, without ``torch.cuda.set_device``."""
    device = torch.device("cuda", rank % torch.cuda.device_count())
    model, rows = CASE.model(), SHARES["uneven"][rank]
    alone = collect_damage(model, loader_of(ALL, ALL % 2), GROUPS, distributed=False, progress=False)
    for collect in COLLECT.values():
        collect(model.to(device), loader_of(rows, ALL % 2))
    table = collect_damage(model, loader_of(rows, ALL % 2), GROUPS, progress=False)
    assert table.sensitive_groups == alone.sensitive_groups
    for name in ("counts", "loss", "slope", "curvature"):
        torch.testing.assert_close(getattr(table, name), getattr(alone, name), rtol=1e-6, atol=1e-12, msg=name)
    pruner = CASE.pruner(model, importance := WorstGroupImportance(progress=False))
    importance.fit(pruner, loader_of(rows, ALL % 2))
    pruner.step()
    weights = torch.cat([parameter.detach().cpu().flatten() for parameter in model.parameters()]).tolist()
    told = Processes(None, model).exchange(weights)
    assert told[0] == told[1]


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
    check_same(table, alone)
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
