"""Two processes that share the data give the table of one, fail together, and notice when one is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from fairtrim import InputError, collect_damage, share_of_process
from fairtrim.damage.weight_saliency import collect_weight_saliency
from fairtrim.processes import Processes
from fairtrim_adapters.torch_pruning import WorstGroupImportance
from tests.networks import CASES
from tests.shares import ThreadProcesses, in_processes

CASE = CASES["mlp"]


def _launch(what: str, folder: Path) -> list[tuple[int, str]]:
    """Run the script in two processes; their exit codes and outputs."""
    root = Path(__file__).parent.parent
    paths = [str(Path(p).resolve()) for p in sys.path if p] + [str(root)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    command = [sys.executable, "-m", "tests.processes_script"]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(folder), what],
            cwd=root,
            env=environment,
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
