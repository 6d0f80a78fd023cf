"""What importing fairtrim costs beside torch: seconds of processor time, the least of some processes.

    python -m benchmarks.import_time

Each import is a process of its own; the time is its user and system time, so that other work on the machine counts
little. "beyond torch" is what a script that has torch anyway waits for longer.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import pandas as pd

CODES = {
    "torch": "import torch",
    "torch, torch_pruning, fairlearn": "import torch, torch_pruning, fairlearn.metrics",
    "fairtrim": "import torch, fairtrim",
    "fairtrim_adapters.torch_pruning": "import torch, fairtrim_adapters.torch_pruning",
    "fairtrim_adapters.fairlearn": "import torch, fairtrim_adapters.fairlearn",
    "fairtrim --help": "from fairtrim_adapters.command_line import main; main(['--help'])",
    "fairtrim --version": "from fairtrim_adapters.command_line import main; main(['--version'])",
}
"""What is imported, by the name of its row."""


def seconds(code: str) -> float:
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5, help="processes of each row")
    repetitions = parser.parse_args().repetitions
    least = {name: min(seconds(code) for _ in range(repetitions)) for name, code in CODES.items()}
    table = pd.DataFrame({"seconds": least})
    table["beyond torch"] = table["seconds"] - least["torch"]
    table["times torch"] = table["seconds"] / least["torch"]
    print(table.round(2).to_string())


if __name__ == "__main__":
    main()
