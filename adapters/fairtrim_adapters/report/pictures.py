"""Figures of matplotlib as pictures of a report."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from fairtrim import InputError

from .contents import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["closed_picture", "need_matplotlib"]

LARGEST_SVG = 400_000
"""Bytes; what is larger, such as a cloud of points, is shown as PNG alone."""


def need_matplotlib() -> None:
    """Refuse before anything runs.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("pictures need matplotlib: pip install 'fairtrim[report]', or pass pictures=False") from None


def closed_picture(
    axes: Axes,
    name: str,
    caption: str,
    description: str,
    section: str,
    *,
    network: str = "",
    vector: bool = True,
) -> Picture:
    """Draw a figure as SVG and PNG, the same bytes for the same figure, and close it.

    Args:
        axes: Any panel of the figure.
        name: File name without suffix.
        caption: Below the picture.
        description: For those who don't see it.
        section: Heading under which it stands.
        network: Which it shows; empty for several.
        vector: Whether SVG is of use; not for photographs.

    Returns:
        The picture.
    """
    import matplotlib
    from matplotlib import pyplot

    figure = axes.get_figure(root=True)
    assert figure is not None
    png, svg = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "fairtrim", "svg.fonttype": "path"}):
        figure.savefig(png, format="png", dpi=144, facecolor="white", bbox_inches="tight", metadata={"Software": None})
        if vector:
            figure.savefig(svg, format="svg", facecolor="white", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    small = svg.getvalue() if len(svg.getvalue()) <= LARGEST_SVG else b""
    encoded = (base64.b64encode(data).decode("ascii") for data in (png.getvalue(), small))
    return Picture(name, caption, description, section, network, *encoded)
