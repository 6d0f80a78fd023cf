"""The pieces that a report is laid out in, whatever its form."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from .contents import Picture

__all__ = ["Block", "Bullets", "Entry", "Fold", "Grid", "Image", "Paragraph", "Section"]


@dataclass(frozen=True)
class Entry:
    """A cell.

    Attributes:
        text: The figure.
        details: What stands below it: text, and whether it is to be noticed.
        link: Address that the text leads to.
    """

    text: str
    details: tuple[tuple[str, bool], ...] = ()
    link: str = ""


@dataclass(frozen=True)
class Paragraph:
    """Words.

    Attributes:
        text: One paragraph.
    """

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Bullets:
    """Words, point by point.

    Attributes:
        items: The points.
    """

    kind: ClassVar[str] = "bullets"
    items: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A table; the first cell of a row names it.

    Attributes:
        caption: What the table shows.
        header: Names of the columns.
        rows: The cells, one tuple a row.
        words: Whether the cells are words, not figures, which are aligned differently.
    """

    kind: ClassVar[str] = "grid"
    caption: str
    header: tuple[Entry, ...]
    rows: tuple[tuple[Entry, ...], ...]
    words: bool = False


@dataclass(frozen=True)
class Image:
    """A picture.

    Attributes:
        picture: With its caption.
    """

    kind: ClassVar[str] = "image"
    picture: Picture


@dataclass(frozen=True)
class Fold:
    """What is only seen when asked for.

    Attributes:
        summary: What is seen at once.
        blocks: What is folded.
    """

    kind: ClassVar[str] = "fold"
    summary: str
    blocks: tuple[Paragraph | Bullets | Grid | Image, ...]


Block = Paragraph | Bullets | Grid | Image | Fold


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it.

    Attributes:
        title: The heading.
        blocks: What stands below.
    """

    title: str
    blocks: tuple[Block, ...]

    @property
    def anchor(self) -> str:
        """Name to link to."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")
