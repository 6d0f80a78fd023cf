"""A report as one HTML page that needs nothing else."""

from __future__ import annotations

from fairtrim import InputError

from .contents import ReportContents
from .headline import headline
from .sections import sections

__all__ = ["to_html"]


def to_html(report: ReportContents) -> str:
    """The report as HTML; ``Report.to_html`` tells all.

    Args:
        report: The report.

    Returns:
        HTML.

    Raises:
        InputError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise InputError("HTML needs jinja2: pip install 'fairtrim[report]'; to_json and to_markdown don't") from None
    environment = Environment(
        loader=PackageLoader("fairtrim_adapters.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.get_template("report.html.jinja")
    return template.render(report=report, top=headline(report), sections=sections(report))
