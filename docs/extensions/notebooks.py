"""Runs the notebooks of the guides and keeps what they print and draw: ``python docs/extensions/notebooks.py``.

The site shows them as they are stored, without running them. ``tests/test_notebooks.py`` runs a copy.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

GUIDES = Path(__file__).parent.parent / "guides"

_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
"""What is stored of the machine that ran them: nothing."""


def executed(path: Path, folder: Path) -> Any:
    """Run a notebook in a new kernel.

    Args:
        path: Of the notebook; left as it is.
        folder: Where its files go.

    Returns:
        The notebook with its outputs, as ``nbformat`` has it.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raises.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    # tqdm asks for ipywidgets as soon as it is imported; the cells show no bars
    environment = {**os.environ, "PYTHONWARNINGS": "ignore:IProgress not found"}
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata.clear()
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if {"text/html", "image/png"} & set(data):  # as text it would hold addresses
                data.pop("text/plain", None)
    notebook.metadata = nbformat.from_dict(_METADATA)
    return notebook


def main() -> None:
    """Run each notebook in a folder that is thrown away, and store its outputs."""
    import tempfile

    import nbformat

    for path in sorted(GUIDES.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(executed(path, Path(folder)), path)
        print(path.name)


if __name__ == "__main__":
    main()
