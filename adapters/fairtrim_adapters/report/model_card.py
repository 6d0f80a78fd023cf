"""A report as a section of a Hugging Face model card."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fairtrim import InputError

from .contents import ReportContents
from .markdown import to_markdown

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

__all__ = ["to_model_card"]

BEGIN, END = "<!-- fairtrim:begin -->", "<!-- fairtrim:end -->"


def _with_section(text: str, section: str) -> str:
    """A text with a section between two comments, in place of an earlier one or else at its end."""
    numbers = text.count(BEGIN), text.count(END)
    begin, end = text.find(BEGIN), text.find(END)
    if numbers not in ((0, 0), (1, 1)) or begin > end:
        raise InputError(
            f"the card has {numbers[0]} times {BEGIN} and {numbers[1]} times {END}; expected one after the other, once "
            "each, or none: mend the card by hand"
        )
    between = f"{BEGIN}\n{section.strip()}\n{END}"
    if numbers == (0, 0):
        space = "" if not text or text.endswith("\n\n") else "\n" if text.endswith("\n") else "\n\n"
        return f"{text}{space}{between}\n"
    return text[:begin] + between + text[end + len(END) :]


def to_model_card(
    report: ReportContents, card: ModelCard | str | os.PathLike[str], folder: str | os.PathLike[str] | None = None
) -> ModelCard:
    """The model card with a report; ``Report.to_model_card`` tells all.

    Args:
        report: The report.
        card: A model card, its text, or the path of its file.
        folder: For pictures.

    Returns:
        A new model card.

    Raises:
        InputError: huggingface_hub is not installed, the file is missing, or the comments don't pair up.
    """
    try:
        from huggingface_hub import ModelCard
    except ImportError:
        raise InputError("model cards need huggingface_hub: pip install 'fairtrim[card]'") from None
    if isinstance(card, os.PathLike):
        if not Path(card).is_file():
            raise InputError(f"{Path(card)} is no file; expected a model card: README.md, its text, or a ModelCard")
        text = Path(card).read_bytes().decode("utf-8")  # line ends stay as they are
    elif isinstance(card, str | ModelCard):
        text = str(card)
    else:
        raise InputError(f"card is a {type(card).__name__}; expected a ModelCard, its text, or the path of its file")
    _with_section(text, "")  # refused before pictures are written
    return ModelCard(_with_section(text, to_markdown(report, folder)))
