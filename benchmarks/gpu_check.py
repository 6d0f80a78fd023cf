"""Check a CUDA device in fifteen minutes: the tests marked cuda, what scoring costs there, and how far results agree.

    python -m benchmarks.gpu_check --output gpu_check.json
    python -m benchmarks.gpu_check --device cpu    # the same with tiny networks: whether the check itself runs
    python -m benchmarks.gpu_check --device cpu --only waits operations --no-small    # what can be told without a GPU

Costs are ratios to a plain forward and backward pass, in eval mode, over the same batches in the same run: medians of
pairs that take turns. ResNet-50 and ViT-B/16 with random weights, 224 pixels. Each figure is read in a process and a
time box of its own; one that fails is told with its error, and the rest goes on. Without a device nothing is run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu.figures import FIGURES
from benchmarks.gpu.networks import FULL, SMALL, Sizes

ROOT = Path(__file__).parent.parent
SECONDS_OF_TESTS = 300


def marked_tests(limit: float) -> dict[str, Any]:
    """Run the fast tests that are marked cuda.

    Args:
        limit: Seconds.

    Returns:
        How many there are, how many were skipped, and what failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda and not slow", "tests"]
        try:
            run = subprocess.run(
                [*command, f"--junitxml={report}"], cwd=ROOT, capture_output=True, text=True, timeout=limit
            )
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {limit:.0f} s"}
        if not report.exists():
            said = (run.stdout + run.stderr).strip()[-2000:]
            return {"error": f"pytest gave no report (pip install pytest hypothesis): {said}"}
        return told_by(ElementTree.parse(report).getroot())


def told_by(report: ElementTree.Element) -> dict[str, Any]:
    """Counts and failures of a report of tests.

    Args:
        report: Root of JUnit's XML.

    Returns:
        ``tests``, ``skipped``, and ``failures``: name and message of each.
    """
    cases = list(report.iter("testcase"))
    failures = {
        f"{case.get('classname')}::{case.get('name')}": (problem.text or problem.get("message") or "")[-2000:]
        for case in cases
        for problem in case
        if problem.tag in ("failure", "error")
    }
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {"tests": len(cases), "skipped": skipped, "failures": failures}


def _send(name: str, sizes: Sizes, device: str, connection: Any) -> None:
    """In a process of its own: read one figure and send it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            connection.send({"rows": [asdict(row) for row in FIGURES[name][0](sizes, torch.device(device))]})
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        connection.send({"error": text, "traceback": traceback.format_exc()[-4000:]})


def boxed(name: str, sizes: Sizes, device: str, limit: float) -> dict[str, Any]:
    """Read one figure in a process of its own, which ends when its time is up.

    Args:
        name: Of the figure.
        sizes: Of networks and data.
        device: Where.
        limit: Seconds.

    Returns:
        ``rows``, or ``error``; and ``seconds``.
    """
    start, spawn = time.perf_counter(), multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_send, args=(name, sizes, device, theirs))
    process.start()
    theirs.close()
    try:
        said = ours.recv() if ours.poll(limit) else {"error": f"not done after {limit:.0f} s"}
        process.join(10 if "rows" in said else 0)  # one that ends by itself tidies up
    except EOFError:
        process.join()
        said = {"error": f"its process ended with exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()
    return {**said, "seconds": round(time.perf_counter() - start, 1)}


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were read on.

    Args:
        device: Where.

    Returns:
        Versions and names.
    """
    told: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version(), "device": str(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        told |= {"name": properties.name, "GiB": round(properties.total_memory / 2**30, 1)}
        told |= {"capability": f"{properties.major}.{properties.minor}", "CUDA": torch.version.cuda}
        told["cuDNN"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return told


def table_of(result: dict[str, Any]) -> str:
    """All figures, a line each, at most 100 columns.

    Args:
        result: What goes into the file.

    Returns:
        The table.
    """
    lines = [", ".join(f"{key} {value}" for key, value in result["machine"].items())]
    if result["sizes"]["layers"] != FULL.layers:
        lines.append("networks are tiny: figures show that the check runs, not what a device can do")
    tests = result.get("tests")
    if tests is not None:
        ran = tests.get("tests", 0) - tests.get("skipped", 0)
        counted = f"{ran} ran, {tests.get('skipped', 0)} skipped, {len(tests.get('failures', ()))} failed"
        lines.append(f"tests: {tests.get('error') or counted}")
        lines += [f"  {name}" for name in tests.get("failures", ())]
    for name, figure in result["figures"].items():
        lines.append(f"{name} ({figure['seconds']} s)" if "seconds" in figure else name)
        if "error" in figure:
            lines.append(f"  failed: {figure['error'].splitlines()[0]}")
        for row in figure.get("rows", ()):
            target, missed = "", row["target"] is not None and row["value"] > row["target"]
            if row["target"] is not None:
                target = f" ({'MISSED, ' if missed else ''}at most {row['target']:.3g})"
            lines.append(f"  {row['what']:<54}{row['value']:>10.3g} {row['unit']}{target}")
    if result["left_out"]:
        lines.append(f"left out on this device: {', '.join(result['left_out'])}")
    return "\n".join(line[:100] for line in lines)


def check(
    names: Sequence[str], sizes: Sizes, device: str, minutes: float, file: Path | None, left_out: Sequence[str] = ()
) -> dict[str, Any]:
    """Read figures one after the other, and write after each what there is.

    Args:
        names: Of them; ``"tests"`` among them stands for the tests that are marked cuda.
        sizes: Of networks and data.
        device: Where.
        minutes: For all of it.
        file: Where the JSON goes.
        left_out: Figures that aren't for this device.

    Returns:
        What the file has.
    """
    end = time.perf_counter() + 60 * minutes
    result: dict[str, Any] = {
        "machine": machine(torch.device(device)), "sizes": asdict(sizes), "left_out": list(left_out), "figures": {}
    }  # fmt: skip
    for name in names:
        left = end - time.perf_counter()
        if name == "tests":
            result["tests"] = marked_tests(min(SECONDS_OF_TESTS, left)) if left > 0 else {"error": "no time was left"}
        elif left > 0:
            result["figures"][name] = boxed(name, sizes, device, min(FIGURES[name][1], left))
        else:
            result["figures"][name] = {"error": "no time was left"}
        if file is not None:
            file.write_text(json.dumps(result, indent=1) + "\n")
    return result


def main() -> None:
    every = ["tests", *FIGURES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ..., or cpu, where all is small")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="where all of it goes, errors in full")
    parser.add_argument("--minutes", type=float, default=15.0, help="for all of it")
    parser.add_argument("--only", nargs="+", choices=every, metavar="NAME", help=f"of {', '.join(every)}")
    parser.add_argument("--small", action=argparse.BooleanOptionalAction, help="tiny networks; default: on the CPU")
    parser.add_argument("--batch", type=int, help=f"images a batch; default {FULL.batch}")
    parser.add_argument("--pixels", type=int, help=f"width and height of an image; default {FULL.pixels}")
    arguments = parser.parse_args()
    try:
        device = torch.device(arguments.device)
    except RuntimeError:
        parser.error(f"--device {arguments.device!r} is none that torch knows; expected cuda, cuda:1, ..., or cpu")
    if device.type not in ("cpu", "cuda"):
        parser.error(f"--device {device} is not read; expected cuda, cuda:1, ..., or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        print(f"there is no {device} here, as this torch ({torch.__version__}) sees it: nothing was run")
        return
    small = device.type == "cpu" if arguments.small is None else arguments.small
    # what is for CUDA alone, and what needs no device
    left_out = {"operations"} if device.type == "cuda" else {"tests", "attention-memory-efficient"}
    left_out = set() if arguments.only else left_out
    names = arguments.only or [name for name in every if name not in left_out]
    given = {name: value for name in ("batch", "pixels") if (value := getattr(arguments, name)) is not None}
    sizes = replace(SMALL if small else FULL, **given)
    result = check(names, sizes, str(device), arguments.minutes, arguments.output, sorted(left_out))
    print(table_of(result))


if __name__ == "__main__":
    main()
