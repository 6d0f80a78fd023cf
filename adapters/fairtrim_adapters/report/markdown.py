"""A report as Markdown, for a model card or a README."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from fairtrim import InputError
from fairtrim.files.atomic_file import replacing

from .blocks import Block, Bullets, Entry, Fold, Grid, Image, Paragraph
from .contents import Picture, ReportContents
from .headline import headline
from .sections import sections

__all__ = ["escaped", "to_markdown"]


def escaped(text: str) -> str:
    r"""Text that Markdown shows as it is, in one line.

    Args:
        text: Any.

    Returns:
        With signs that mean something escaped.

    Example:
        >>> print(escaped("a|b *c* <d>"))
        a\|b \*c\* &lt;d&gt;
    """
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_|\[\]~$#])", r"\\\1", text)
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"^([-+=]|\d+[.)])(?=\s|$)", _escaped_start, text)


def _escaped_start(match: re.Match[str]) -> str:
    """A hyphen, a plus or a number at the beginning would open a list."""
    mark = match.group(1)
    return f"{mark[:-1]}\\{mark[-1]}"


def to_markdown(report: ReportContents, folder: str | os.PathLike[str] | None = None) -> str:
    """The report as Markdown; ``Report.to_markdown`` tells all.

    Args:
        report: The report.
        folder: For the pictures.

    Returns:
        Markdown.

    Raises:
        InputError: The folder is a file.
    """
    path = None if folder is None else Path(folder)
    if path is not None and path.exists() and not path.is_dir():
        raise InputError(f"folder {path} is a file; expected a folder, or a name that is free")
    top = headline(report)
    parts = [f"## {escaped(report.title)}", f"**{escaped(top.verdict)}**"]
    parts.append("\n".join(
        f"- **{escaped(entry.value)}** {escaped(entry.words)}{f' ({escaped(entry.note)})' if entry.note else ''}"
        for entry in top.figures
    ))  # fmt: skip
    if report.pictures and path is None:
        number = len(report.pictures)
        parts.append(f"*{number} picture{'s are' if number > 1 else ' is'} left out: they need a folder.*")
    for section in sections(report):
        parts.append(f"### {escaped(section.title)}")
        parts += [part for block in section.blocks for part in _block(block, path)]
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
        for picture in report.pictures:
            with replacing(path / _file_name(picture)) as temporary:
                temporary.write_bytes(base64.b64decode(picture.png))
    return "\n\n".join(parts) + "\n"


def _block(block: Block, folder: Path | None) -> Iterator[str]:
    if isinstance(block, Paragraph):
        yield escaped(block.text)
    elif isinstance(block, Bullets):
        yield "\n".join(f"- {escaped(item)}" for item in block.items)
    elif isinstance(block, Grid):
        yield f"**{escaped(block.caption)}**"
        yield _table(block)
    elif isinstance(block, Image):
        if folder is not None:
            yield _image(block.picture, folder)
            yield f"*{escaped(block.picture.caption)}*"
    elif isinstance(block, Fold):
        summary = escaped(block.summary)
        yield f"<details>\n<summary>{summary}</summary>"
        for inner in block.blocks:
            yield from _block(inner, folder)
        yield "</details>"


def _table(grid: Grid) -> str:
    lines = [_line([_cell(entry) for entry in grid.header])]
    lines.append(_line(["---", *(["---" if grid.words else "---:"] * (len(grid.header) - 1))]))
    lines += [_line([_cell(entry) for entry in row]) for row in grid.rows]
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(entry: Entry) -> str:
    text = f"[{escaped(entry.text)}]({entry.link})" if entry.link else escaped(entry.text)
    details = [f"**{escaped(detail)}**" if noticed else escaped(detail) for detail, noticed in entry.details]
    return "<br>".join([text, *details])


def _image(picture: Picture, folder: Path) -> str:
    return f"![{escaped(picture.description)}]({quote(folder.name)}/{_file_name(picture)})"


def _file_name(picture: Picture) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", picture.name) + ".png"
