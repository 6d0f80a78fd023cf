"""What two processes do when one fails, is slow, or disappears; ``processes_script`` runs it."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fairtrim import InputError, ProcessError, collect_damage
from fairtrim.damage import scoring_run as streaming_module
from fairtrim.damage.parity_gradient import parity_gradient
from fairtrim_adapters.torch_pruning import (
    WorstGroupImportance,
)
from tests.processes_cases import (
    ALL,
    CASE,
    COLLECT,
    GROUPS,
    SHARES,
    BrokenError,
    X,
    Y,
    check_same,
    loader_of,
)
from tests.snapshot import Snapshot


def _failing(rows: Tensor, after: int) -> Iterator[tuple[Any, ...]]:
    yield from loader_of(rows, ALL % 2)[:after]
    raise BrokenError("no such file")


def errors(rank: int) -> None:
    """One raises what happened, the others that it did; the networks are as before, and the next call works."""
    for collect in COLLECT.values():
        for broken in (0, 1):
            for after in (0, 1, 4):
                model = CASE.model().train()
                before = Snapshot(model)
                rows = SHARES["even"][rank]
                loader: Any = _failing(rows, after) if rank == broken else loader_of(rows, ALL % 2)
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
        assert collect(model, loader_of(rows, ALL % 2)).counts.tolist() == [30, 30]


def errors_at_the_start(rank: int) -> None:
    model = CASE.model()
    refused = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), model)
    for groups, network in (((), model), (GROUPS, refused)):
        wrong = (model, GROUPS) if rank else (network, groups)
        kind = "InputError" if network is model else "Error"
        try:
            collect_damage(wrong[0], loader_of(ALL, ALL % 2), wrong[1], progress=False)
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
    loader: Any = _failing(rows, 2) if rank else loader_of(rows, ALL % 2)
    with contextlib.suppress(BrokenError, ProcessError):
        importance.fit(pruner, loader)
    before.assert_unchanged()
    assert not hasattr(importance, "selection_") and pruner.importance is importance and pruner.current_step == 0
    importance.fit(pruner, loader_of(rows, ALL % 2))
    pruner.step()


def other_networks(rank: int) -> None:
    """Nobody could use the sums of two networks."""
    model = CASE.model()
    with torch.no_grad():
        next(model.parameters()).add_(rank)
    for collect in COLLECT.values():
        try:
            collect(model, loader_of(ALL, ALL % 2))
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


def cut_short(rank: int, folder: Path) -> None:
    """Each process keeps its own sums; all go on together."""
    model, rows = CASE.model(), SHARES["uneven"][rank]
    n_calls = [0]
    model.register_forward_pre_hook(lambda module, args: n_calls.__setitem__(0, n_calls[0] + 1))
    streaming_module.SECONDS_BETWEEN_SAVES = 0.0
    for interactions in ("exact", "sketched"):
        options: dict[str, Any] = {"interactions": interactions, "progress": False, "folder": folder}
        loader: Any = _failing(rows, 3) if rank == 0 else loader_of(rows, ALL % 2)
        n_calls[0] = 0
        with contextlib.suppress(BrokenError, ProcessError):
            collect_damage(model, loader, GROUPS, **options)
        assert (folder / f"damage-{rank}.safetensors").exists()
        table = collect_damage(model, loader_of(rows, ALL % 2), GROUPS, **options)
        assert n_calls[0] == len(loader_of(rows, ALL % 2))
        dist.barrier()
        assert not list(folder.iterdir())
        options = {**options, "folder": None, "distributed": False}
        check_same(table, collect_damage(model, loader_of(ALL, ALL % 2), GROUPS, **options))


SECONDS_OF_PATIENCE = 3.0  # of the backend


def slow_one(rank: int) -> None:
    """One has done its share long before the other, and waits longer in all than the backend would let it."""
    model, rows = CASE.model(), SHARES["uneven"][1 - rank]

    def slow() -> Iterator[tuple[Any, ...]]:
        for batch in loader_of(rows, ALL % 2, 3):
            time.sleep(rank * 1.3 * SECONDS_OF_PATIENCE / 17)
            yield batch

    start = time.monotonic()
    table = collect_damage(model, slow(), GROUPS, progress=False)
    assert time.monotonic() - start > SECONDS_OF_PATIENCE
    check_same(table, collect_damage(model, loader_of(ALL, ALL % 2), GROUPS, distributed=False, progress=False))


def _endless(rows: Tensor, fail: Callable[[], None]) -> Iterator[tuple[Any, ...]]:
    for number in itertools.count():
        if number == 3:
            fail()
        yield from loader_of(rows, ALL % 2)[:1]


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
    assert COLLECT["gates"](model, loader_of(SHARES["even"][rank], ALL % 2)).counts.tolist() == [30, 30]


def gone(rank: int) -> None:
    """A process disappears without a word."""
    model = CASE.model().train()
    before = Snapshot(model)

    def leaving() -> Iterator[tuple[Any, ...]]:
        yield from loader_of(ALL, ALL % 2)[:2]
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
            run(leaving() if rank else loader_of(ALL, ALL % 2))
        except ProcessError as error:
            assert "another process is gone" in str(error) and "start all processes again" in str(error)
        else:
            raise AssertionError("nothing was raised")
        before.assert_unchanged()
    assert time.monotonic() - start < 20
    assert not hasattr(importance, "selection_")
