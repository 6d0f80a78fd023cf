"""What pictures share: axes with a title, and sheets of images; ``styles`` has the colours and markers."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from fairtrim import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "as_picture",
    "draw_images",
    "import_pyplot",
    "new_axes",
    "require_drawn",
    "sheet_size",
    "titled",
    "wrapped",
]

_LINE = 0.155  # inches that a line of a title takes
_COLUMNS = 10


def import_pyplot() -> Any:
    """The module that opens figures, imported only now.

    Returns:
        ``matplotlib.pyplot``.

    Raises:
        InputError: It is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError:
        raise InputError("plotting needs matplotlib: pip install 'fairtrim[plot]'") from None
    return pyplot


def require_drawn(given: object, kind: type, maker: str) -> None:
    """Refuse what a picture isn't of.

    Args:
        given: What is to be drawn.
        kind: What the picture is of.
        maker: What gives it, for the message.

    Raises:
        InputError: It is something else.

    Example:
        >>> require_drawn("sweep.csv", list, "sorted")
        Traceback (most recent call last):
        fairtrim.errors.InputError: got a str; expected a list, which sorted gives
    """
    if not isinstance(given, kind):
        raise InputError(f"got a {type(given).__name__}; expected a {kind.__name__}, which {maker} gives")


def new_axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The axes given, or new ones.

    Args:
        ax: Where to draw, or None.
        size: Width and height of a new figure, in inches.

    Returns:
        The axes.

    Raises:
        InputError: matplotlib is not installed.
    """
    pyplot = import_pyplot()
    if ax is None:
        _, ax = pyplot.subplots(figsize=size, layout="constrained")
    return ax


def titled(ax: Axes, verdict: str, width: int = 68) -> None:
    """A sentence above the axes, on as many lines as it needs, and a quiet grid.

    Args:
        ax: Where.
        verdict: The sentence: who is better where.
        width: Most characters of a line.
    """
    ax.set_title("\n".join(textwrap.wrap(verdict, width)), fontsize=10.5)
    ax.grid(color="0.92", linewidth=0.6)
    ax.set_axisbelow(True)


def sheet_size(number: int, n_lines: int) -> tuple[float, float]:
    """A figure that a sheet of images fits into.

    Args:
        number: Of images.
        n_lines: Lines of the longest title.

    Returns:
        Width and height in inches.
    """
    return 11.0, max(1, -(-number // _COLUMNS)) * (1.0 + _LINE * n_lines)


def as_picture(image: Any) -> npt.NDArray[np.float64]:
    """An image as it is drawn.

    Args:
        image: (H, W) or (C, H, W), of any range; with one or two channels the first is drawn in grey, of more the first
            three in colours.

    Returns:
        (H, W) or (H, W, 3), from 0 to 1.

    Raises:
        InputError: It has another shape.

    Example:
        >>> as_picture(torch.tensor([[[3, 5]]])).tolist()
        [[0.0, 1.0]]
    """
    picture = np.asarray(torch.as_tensor(image, device="cpu").detach(), dtype=float)
    if picture.ndim not in (2, 3) or not picture.size:
        raise InputError(f"an image has shape {picture.shape}; expected (H, W) or (C, H, W)")
    if picture.ndim == 3:
        picture = picture.transpose(1, 2, 0)[:, :, :3] if picture.shape[0] >= 3 else picture[0]
    low, high = picture.min(), picture.max()
    scaled: npt.NDArray[np.float64] = (picture - low) / (high - low if high > low else 1)
    return scaled


def draw_images(ax: Axes, pictures: Sequence[Any], titles: Sequence[str], colours: Sequence[str] | None = None) -> None:
    """Draw images in rows of at most ten, with a title above each.

    Args:
        ax: Where; its frame is switched off.
        pictures: From ``as_picture``.
        titles: As many.
        colours: Of the titles; default black.
    """
    ax.set_axis_off()
    columns = min(_COLUMNS, max(1, len(pictures)))
    height = 1 / max(1, -(-len(pictures) // columns))
    inches = ax.get_window_extent().height / ax.figure.get_dpi() * height
    n_lines = max((title.count("\n") + 1 for title in titles), default=0)
    share = max(0.4, 1 - _LINE * (n_lines + 0.3) / inches)  # of a row that is left for the image
    for place, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        box = (place % columns / columns, 1 - (place // columns + 1) * height, 0.9 / columns, share * height)
        inset = ax.inset_axes(box)
        inset.imshow(picture, cmap="gray" if picture.ndim == 2 else None)
        inset.set_title(title, fontsize=8, pad=3, color="black" if colours is None else colours[place])
        inset.set_axis_off()


def wrapped(text: str, width: int = 17, n_lines: int = 2) -> str:
    """A text on a few short lines, the rest replaced by dots.

    Args:
        text: Any.
        width: Most characters of a line.
        n_lines: Most lines.

    Returns:
        The text with line breaks.

    Example:
        >>> print(wrapped("Female, Native American or Pacific Islander", n_lines=2))
        Female, Native
        American or …
    """
    return "\n".join(textwrap.wrap(text, width, max_lines=n_lines, placeholder=" …"))
