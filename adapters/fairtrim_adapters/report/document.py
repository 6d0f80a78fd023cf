"""A report of networks compared on the same people, with what writes it: HTML, Markdown, JSON, a model card."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fairtrim import InputError
from fairtrim.files.atomic_file import write_text

from .contents import ReportContents
from .headline import headline
from .html import to_html
from .markdown import to_markdown
from .model_card import to_model_card

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

__all__ = ["Report"]

FORMAT, FORMAT_VERSION = "fairtrim report", 1


@dataclass(frozen=True, kw_only=True)
class Report(ReportContents):
    """What is known about networks compared on the same people, and what is not, to be written.

    ``report_networks`` and ``report_sweep`` make one. Its attributes are those of ``contents.ReportContents``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fairtrim_adapters.report import report_networks
        >>> people = [(torch.eye(4), torch.tensor([0, 1, 0, 1]), ["a", "a", "b", "b"])]
        >>> report = report_networks(
        ...     {"dense": nn.Linear(4, 2)}, {"test": people}, latency_rounds=0, pictures=False, progress=False
        ... )
        >>> json.loads(report.to_json())["data"]["people"]
        {'a': 2, 'b': 2}
    """

    def verdict(self) -> str:
        """Who pays how much for which network, in one sentence.

        Returns:
            The sentence that HTML, Markdown and model cards begin with.
        """
        return headline(self).verdict

    def to_json(self) -> str:
        """Everything, pictures too.

        Returns:
            Strict JSON: what was not measured is null.
        """
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_html(self) -> str:
        """One page that needs nothing else: styles and pictures are in it, and it asks the network for nothing.

        Returns:
            HTML.

        Raises:
            InputError: jinja2 is not installed.
        """
        return to_html(self)

    def to_markdown(self, folder: str | os.PathLike[str] | None = None) -> str:
        """A section for a model card or a README.

        Args:
            folder: Where to write pictures as PNG; made if need be. The text names them relative to the folder that
                holds this one. None leaves them out, and the text says so.

        Returns:
            Markdown, from a heading of level 2.

        Raises:
            InputError: The folder is a file.
        """
        return to_markdown(self, folder)

    def to_model_card(
        self, card: ModelCard | str | os.PathLike[str], folder: str | os.PathLike[str] | None = None
    ) -> ModelCard:
        """The model card with this report as a section, between two comments; the other text is untouched.

        A section of an earlier report is replaced, else the section comes last.

        Args:
            card: A model card of huggingface_hub; a string is its text, a path (``pathlib.Path``) its file. Neither is
                changed.
            folder: For pictures, as for ``to_markdown``; best beside the card.

        Returns:
            A new model card; ``save`` writes it.

        Raises:
            InputError: huggingface_hub is not installed, the file is missing, or the comments don't pair up.
        """
        return to_model_card(self, card, folder)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the report, completely or not at all; the suffix tells the form.

        Args:
            path: ``.html``, ``.md`` (pictures go to a folder ``…_pictures`` beside it) or ``.json``.

        Returns:
            The path.

        Raises:
            InputError: The suffix is another, or there is no such folder.
        """
        path = Path(path)
        if path.suffix not in (".html", ".md", ".json"):
            raise InputError(f"{path} ends in {path.suffix!r}; expected .html, .md or .json")
        if not path.parent.is_dir() or path.is_dir():
            raise InputError(f"{path}: expected a file name in a folder that exists")
        if path.suffix == ".md":
            text = self.to_markdown(path.with_name(f"{path.stem}_pictures") if self.pictures else None)
        else:
            text = self.to_html() if path.suffix == ".html" else self.to_json()
        write_text(path, text)
        return path
