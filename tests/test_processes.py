"""Two processes that share the data give the table of one, fail together, and notice when one is gone."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fairtrim import InputError, ProcessError, collect_damage, share_of_process
from fairtrim import processes as processes_module
from fairtrim.damage.weight_saliency import collect_weight_saliency
from fairtrim.processes import Processes
from fairtrim_adapters.torch_pruning import WorstGroupImportance
from tests.networks import CASES
from tests.pretend_accelerator import PretendAccelerator
from tests.shares import CountedCalls, ThreadProcesses, in_processes

CASE = CASES["mlp"]


def _launch(what: str, folder: Path, backend: str = "gloo") -> list[tuple[int, str]]:
    """Run the script in two processes; their exit codes and outputs."""
    environment, root = _environment()
    command = [sys.executable, "-m", "tests.processes_script", str(folder), what, backend]
    started = [
        subprocess.Popen(
            command,
            cwd=root,
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, output) for process, output in zip(started, outputs, strict=True)]


def _environment() -> tuple[dict[str, str], Path]:
    root = Path(__file__).parent.parent
    paths = [str(Path(p).resolve()) for p in sys.path if p] + [str(root)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    return environment, root


def _failures(folder: Path, rank: int, output: str) -> dict[str, str]:
    path = folder / f"result-{rank}.json"
    assert path.exists(), output
    failures: dict[str, str] = json.loads(path.read_text())
    return failures


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """See ``processes_script.TOGETHER``: one launch for all of it, because each costs seconds."""
    results = _launch("together", tmp_path)
    for rank, (code, output) in enumerate(results):
        failures = _failures(tmp_path, rank, output)
        assert not failures, "\n".join(failures.values())
        assert code == 0
        assert output.count(" s\n") >= 13  # all of it ran


@pytest.mark.slow
def test_process_that_is_gone(tmp_path: Path) -> None:
    (code, output), (other, _) = _launch("gone", tmp_path)
    assert other == 3 and code == 0
    failures = _failures(tmp_path, 0, output)
    assert not failures, "\n".join(failures.values())


@pytest.mark.slow
def test_meetings(tmp_path: Path) -> None:
    """Under torchrun, with a backend of little patience; see ``processes_script.MEETINGS``."""
    environment, root = _environment()
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.processes_script"]
    command = [sys.executable, "-m", *launcher, str(tmp_path), "meetings", "gloo"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=240, check=False)
    for rank in range(2):
        failures = _failures(tmp_path, rank, done.stdout + done.stderr)
        assert not failures, "\n".join(failures.values())
    assert done.returncode == 0 and done.stdout.count(" s\n") == 6


@pytest.mark.cuda
@pytest.mark.parametrize("backend", ["nccl", "cuda:nccl", "cpu:gloo,cuda:nccl", "gloo"])
def test_devices(tmp_path: Path, backend: str) -> None:
    needed = 2 if backend in ("nccl", "cuda:nccl") else 1  # NCCL wants a device for each
    if torch.cuda.device_count() < needed:
        pytest.skip(f"needs {needed} CUDA devices")
    for rank, (code, output) in enumerate(_launch("devices", tmp_path, backend)):
        failures = _failures(tmp_path, rank, output)
        assert not failures, "\n".join(failures.values())
        assert code == 0


def test_alone() -> None:
    """Without ``torch.distributed`` there is one process, and asking for others is an error."""
    processes = Processes()
    assert (processes.count, processes.rank) == (1, 0)
    assert processes.exchange({"a": (1, 2)}) == [{"a": [1, 2]}]
    tensor = torch.ones(2)
    assert processes.sum(tensor) is tensor
    data = TensorDataset(torch.arange(5))
    assert [int(entry[0]) for entry in share_of_process(data)] == [0, 1, 2, 3, 4]
    model, batch = CASE.model(), (*CASE.batch(4), [0, 1, 1, 0])
    groups = CASE.plan(model).groups
    for collect in (collect_damage, collect_weight_saliency):
        with pytest.raises(InputError, match=r"distributed=True, but torch\.distributed is not initialised; start"):
            collect(model, [batch], groups, distributed=True, progress=False)
    importance = WorstGroupImportance(distributed=True, progress=False)
    with pytest.raises(InputError, match="not initialised"):
        importance.fit(CASE.pruner(model, importance), [batch])


def test_threads_play_processes() -> None:
    """What the other tests play with does what processes do."""

    def work(processes: Processes) -> tuple[list[object], torch.Tensor]:
        assert isinstance(processes, ThreadProcesses)
        total = processes.sum(torch.tensor([processes.rank + 1.0]))
        return processes.exchange([processes.rank]), total

    found = in_processes([work] * 3)
    assert all(told == [[0], [1], [2]] and total.item() == 6 for told, total in found)


# Meetings, with threads for processes --------------------------------------------------------------------------


class BrokenError(Exception):
    pass


def _raise(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(("seconds", "meetings"), [(0.0, 8), (60.0, 1)])
def test_uneven_shares_are_no_fault(monkeypatch: pytest.MonkeyPatch, seconds: float, meetings: int) -> None:
    """Whoever is done comes to every meeting until all are, and nobody meets more often than is time for."""
    monkeypatch.setattr(processes_module, "SECONDS_BETWEEN_MEETINGS", seconds)
    lengths = (3, 0, 7)

    def work(processes: Processes) -> tuple[list[int], int]:
        met = CountedCalls(processes, "sum")
        with processes.together():
            read = list(processes.attending(range(lengths[processes.rank])))
        return read, met.calls

    for (read, met), length in zip(in_processes([work] * 3), lengths, strict=True):
        assert read == list(range(length)) and met == meetings


@pytest.mark.parametrize("error", [BrokenError("no such file"), KeyboardInterrupt(), SystemExit(2)])
def test_a_failure_is_heard_at_the_next_meeting(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Even by those whose shares have no end; the next block works."""
    monkeypatch.setattr(processes_module, "SECONDS_BETWEEN_MEETINGS", 0.0)

    def work(processes: Processes) -> tuple[BaseException | None, int]:
        number, raised = 0, None
        try:
            with processes.together():
                for number in processes.attending(itertools.count()):
                    if number == 3 and processes.rank == 1:
                        raise error
        except BaseException as caught:
            raised = caught
        with processes.together():
            return raised, number

    found = in_processes([work] * 3)
    assert [number for _, number in found] == [3, 3, 3] and found[1][0] is error
    for raised, _ in (found[0], found[2]):
        assert isinstance(raised, ProcessError)
        name = type(error).__name__ + (f": {error}" if str(error) else "")
        assert str(raised) == f"process 1 of 3 failed, so nothing was computed here: {name}"


def test_a_failure_in_a_block_within_a_block() -> None:
    """Each block tells of its own: nobody waits for a meeting that others don't come to."""

    def work(processes: Processes) -> str:
        inner = copy.copy(processes)
        try:
            with processes.together(), inner.together():
                if processes.rank == 0:
                    raise BrokenError("no such file")
        except (BrokenError, ProcessError) as error:
            return str(error)
        return ""

    told = in_processes([work] * 2)
    assert told[0] == "no such file" and told[1].startswith("process 0 of 2 failed")


def test_layers_that_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a sharded network nobody begins a batch that another can't: they meet before each."""
    monkeypatch.setattr(processes_module, "is_sharded", lambda model: True)

    def work(processes: Processes) -> int:
        processes._model = nn.Linear(2, 1)
        begun = 0
        with contextlib.suppress(BrokenError, ProcessError), processes.together():
            batches = (_raise(BrokenError()) if n == 2 and processes.rank else n for n in range(5))
            for _ in processes.attending(batches):
                begun += 1
        return begun

    assert in_processes([work] * 2) == [2, 2]


# Where tensors are exchanged -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "bound", "expected"),
    [
        ("gloo", None, "cpu"),
        ("cpu:gloo,cuda:fake", "cuda:1", "cpu"),
        (None, None, "cpu"),
        ("cuda:fake", "cuda:1", "cuda:1"),
    ],
)
def test_backends(tmp_path: Path, backend: str | None, bound: str | None, expected: str) -> None:
    """As torch itself writes them; where the CPU has a backend, it is the one."""
    pytest.importorskip("torch.testing._internal.distributed.fake_pg")  # knows "fake" from here on
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about the fake one's timeout
        dist.init_process_group(backend, init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        if bound is not None:
            dist.group.WORLD.bound_device_id = torch.device(bound)  # as init_process_group(device_id=) does
        assert str(Processes(None, nn.Linear(2, 1))._device()) == expected
    finally:
        dist.destroy_process_group()


def test_the_networks_device(monkeypatch: pytest.MonkeyPatch, pretend: PretendAccelerator) -> None:
    """Whichever is the current one: a backend of devices gets tensors of the device that the network is on."""
    heard: list[torch.device] = []

    def gathered(parts: list[Tensor], own: Tensor) -> None:
        for part in parts:
            heard.append(part.device)
            part.copy_(own)

    answers: dict[str, Any] = {
        "is_initialized": lambda: True,
        "get_world_size": lambda: 2,
        "get_rank": lambda: 1,
        "get_backend_config": lambda: "pretend:nccl",
        "all_gather": gathered,
        "all_reduce": lambda tensor: tensor.mul_(2),
        "broadcast": lambda tensor, source: heard.append(tensor.device),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(dist, name, answer)
    monkeypatch.setattr(torch.get_device_module("pretend"), "current_device", lambda: 3)
    processes = Processes(None, nn.Linear(2, 1).to(pretend.device))
    assert processes.exchange({"a": [1.5, "é"]}) == [{"a": [1.5, "é"]}] * 2
    assert processes.sum(torch.tensor([1.5, 2.0])).tolist() == [3.0, 4.0]
    assert set(heard) == {pretend.device} and str(Processes()._device()) == "pretend:3"
