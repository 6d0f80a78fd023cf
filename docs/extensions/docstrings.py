"""The library's docstrings are plain text with equations; keep reStructuredText from reading signs as markup."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

LITERAL = re.compile(r"(``.+?``|(?<!\w):\w+:`[^`]+`)")
EMPHASIS = re.compile(r"(?<![\w*])\*(\w[^*]*\w)\*(?![\w*])")


def escaped(line: str) -> str:
    r"""A line in which bars, stars and trailing underscores stand for themselves.

    Args:
        line: Of a docstring; what stands in double backticks, and emphasis, is left alone.

    Returns:
        The line.

    Example:
        >>> print(escaped("|a| of ``|b|``, *never* x * y_"))
        \|a\| of ``|b|``, *never* x \* y\_
    """
    parts = LITERAL.split(line)
    for i in range(0, len(parts), 2):
        part = EMPHASIS.sub("\0\\1\0", parts[i]).replace("|", r"\|").replace("*", r"\*").replace("\0", "*")
        parts[i] = re.sub(r"(?<=\w)_(?!\w)", r"\\_", part)
    return "".join(parts)


def prepared(lines: list[str]) -> Iterator[str]:
    """Lines as reStructuredText: signs escaped, and indented paragraphs (equations) as literal blocks.

    Args:
        lines: Of a docstring.

    Yields:
        Lines.
    """
    in_doctest, block, before = False, None, ""
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            in_doctest = False
            yield line
            continue
        in_doctest = in_doctest or line.lstrip().startswith(">>>")
        if block is not None and indent < block:
            block = None
        last = len(before) - len(before.lstrip())
        starts = i > 0 and not lines[i - 1].strip() and indent > last
        if block is None and starts and not before.lstrip().startswith(("-", ">>>", "..")):
            block = indent
            if not before.endswith("::"):
                yield from (f"{' ' * last}::", "")
        yield line if in_doctest or block is not None else escaped(line)
        before = line


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = list(prepared(lines))


def _types(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Types that napoleon wrote from annotations: ``numpy.str_`` is no reference."""
    lines[:] = [re.sub(r"(?<=\w)_(?!\w)", r"\\_", line) if line.startswith(":vartype ") else line for line in lines]


def setup(app: Sphinx) -> dict[str, Any]:
    """Listen before napoleon does, and after it.

    Args:
        app: Sphinx.

    Returns:
        That pages can be read and written in parallel.
    """
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("autodoc-process-docstring", _types, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
