"""A report of networks compared on the same people, and its three forms."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fairtrim import InputError
from fairtrim.files.atomic_file import write_text

from .contents import Changed, Data, Flag, Method, Network, Picture, Table, Timing, from_plain, to_plain

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

__all__ = ["Report"]

FORMAT, FORMAT_VERSION = "fairtrim report", 1


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is known about networks compared on the same people, and what is not.

    ``report_networks`` and ``report_sweep`` make one.

    Attributes:
        title: Of the report.
        date: When it was made, ISO 8601.
        data: The people.
        reference: Name of the network that changes are measured from.
        networks: The networks.
        methods: What the criteria and post-processors do, and to whom.
        settings: What all networks share, by name.
        versions: Of Python and of the packages.
        seeds: Of the runs; empty if not recorded.
        intervals: Whether figures have intervals over people.
        n_boot: Bootstrap samples of the intervals; None if there are none, or not recorded.
        timing: How latencies were measured; None if they were not.
        flags: What makes figures mean less than they seem to.
        objectives: ``max`` or ``min`` by column, of the Pareto set; empty if there is none.
        changed: Samples whose predicted label differs from the reference's, by network.
        pictures: The pictures.
        runs: Every run of a sweep; None for networks.
        limits: What the figures can't tell.
        not_measured: What is absent.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fairtrim_adapters.report import report_networks
        >>> people = [(torch.eye(4), torch.tensor([0, 1, 0, 1]), ["a", "a", "b", "b"])]
        >>> report = report_networks(
        ...     {"dense": nn.Linear(4, 2)}, {"test": people}, latency_rounds=0, pictures=False, progress=False
        ... )
        >>> Report.from_json(report.to_json()) == report
        True
    """

    title: str
    date: str
    data: Data
    reference: str
    networks: tuple[Network, ...]
    methods: tuple[Method, ...]
    settings: dict[str, str]
    versions: dict[str, str]
    seeds: tuple[int, ...]
    intervals: bool
    n_boot: int | None
    timing: Timing | None
    flags: tuple[Flag, ...]
    objectives: dict[str, str]
    changed: tuple[Changed, ...]
    pictures: tuple[Picture, ...]
    runs: Table | None
    limits: tuple[str, ...]
    not_measured: tuple[str, ...]

    def to_json(self) -> str:
        """Everything, pictures too.

        Returns:
            Strict JSON: what was not measured is null.
        """
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **to_plain(self)}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The inverse of ``to_json``.

        Args:
            text: JSON.

        Returns:
            The report, equal to the one that was written.

        Raises:
            InputError: It is no JSON, or not that of a report of this version.
        """
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"the text is no JSON ({error}); expected what Report.to_json wrote") from error
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            raise InputError(f"the JSON is not of a report; expected an object whose format is {FORMAT!r}")
        if content.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"the report has format_version {content.get('format_version')!r}; this version of fairtrim reads "
                f"{FORMAT_VERSION}: make the report again, or install the version that wrote it"
            )
        entries = {name: entry for name, entry in content.items() if name not in ("format", "format_version")}
        report: Report = from_plain(cls, entries)
        return report

    def to_html(self) -> str:
        """One page that needs nothing else: styles and pictures are in it, and it asks the network for nothing.

        Returns:
            HTML.

        Raises:
            InputError: jinja2 is not installed.
        """
        from .html import to_html

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
        from .markdown import to_markdown

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
        from .model_card import to_model_card

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
