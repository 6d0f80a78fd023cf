"""What results print: sentences, figures and tables in under 100 columns, and the same as HTML in notebooks."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral

__all__ = ["WIDTH", "Block", "Printed", "TextTable", "count", "figure", "flag_lines", "movement", "percent", "points"]

WIDTH = 99  # printed lines stay under 100 columns
_GAP = "  "
_NAMES = 28  # what a name keeps where a table would be too wide


def figure(
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    *,
    digits: int = 3,
    sign: bool = False,
) -> str:
    """A figure as it is printed everywhere, with its interval where there is one.

    Args:
        value: The figure; an ``int`` is a count.
        low: Lower end of the interval.
        high: Upper end.
        digits: After the point.
        sign: Show a plus, too: of changes.

    Returns:
        Text; "-" for what there is no figure of.

    Example:
        >>> figure(0.8789, 0.866, 0.892), figure(16281), figure(float("nan")), figure(-0.0502, sign=True)
        ('0.879 [0.866, 0.892]', '16,281', '-', '-0.050')
    """
    if value is None or math.isnan(value):
        return "-"
    plus = "+" if sign else ""
    if isinstance(value, Integral):
        return f"{int(value):{plus},}"
    ends = [end for end in (low, high) if end is not None and not math.isnan(end)]
    shown = [f"{_without_minus_zero(part, digits):{plus}.{digits}f}" for part in (value, *ends)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]" if len(ends) == 2 else shown[0]


def count(number: float) -> str:
    """How many people, or what their weights add up to.

    Args:
        number: A whole one, or of weights a fraction.

    Returns:
        Text; "-" for NaN.

    Example:
        >>> count(1234567.0), count(1200.25), count(float("nan"))
        ('1,234,567', '1,200.2', '-')
    """
    if math.isnan(number):
        return "-"
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.1f}"


def percent(share: float, *, digits: int = 1, sign: bool = False) -> str:
    """A share in percent.

    Args:
        share: Such as 0.5.
        digits: After the point.
        sign: Show a plus, too.

    Returns:
        Text.

    Example:
        >>> percent(0.1234), percent(0.5, digits=0), percent(0.05, sign=True)
        ('12.3 %', '50 %', '+5.0 %')
    """
    shown = figure(100 * float(share), digits=digits, sign=sign)
    return shown if shown == "-" else f"{shown} %"


def points(change: float, low: float = math.nan, high: float = math.nan, *, sign: bool = True) -> str:
    """A change of a share in points of a hundred, as part of a sentence.

    Args:
        change: Of the share.
        low: Lower end of its interval.
        high: Upper end.
        sign: Show a plus, too.

    Returns:
        Text; "-" for NaN.

    Example:
        >>> points(-0.054), points(0.012, 0.001, 0.023), points(0.054, sign=False), points(-0.0001)
        ('-5.4 points', '+1.2 points [+0.1, +2.3]', '5.4 points', '0.0 points')
    """
    if math.isnan(change):
        return "-"
    number, _, interval = figure(100.0 * change, 100 * low, 100 * high, digits=1, sign=sign).partition(" ")
    return f"{'0.0' if number == '+0.0' else number} points {interval}".rstrip()


def movement(before: float, after: float, *, digits: int = 3, sided: bool = False) -> str:
    """What a figure did, as part of a sentence.

    Args:
        before: The figure before.
        after: And now.
        digits: After the point.
        sided: Above and below zero are two sides, so that neither direction is down.

    Returns:
        Text.

    Example:
        >>> movement(0.25, 0.125), movement(0.5, 0.5001)
        ('falls from 0.250 to 0.125', 'stays at 0.500')
    """
    shown = [figure(float(value), digits=digits) for value in (before, after)]
    if shown[0] == shown[1]:
        return f"stays at {shown[1]}"
    verb = "goes" if sided else "rises" if after > before else "falls"
    return f"{verb} from {shown[0]} to {shown[1]}"


def flag_lines(flags: Iterable[str]) -> Iterator[str]:
    """What a user should know, as a block of lines that begin with "! "; no block where there is nothing.

    Args:
        flags: Sentences.

    Yields:
        The block.

    Example:
        >>> list(flag_lines(["too few people"])), list(flag_lines([]))
        (['! too few people'], [])
    """
    if lines := [f"! {flag}" for flag in flags]:
        yield "\n".join(lines)


def _without_minus_zero(value: float, digits: int) -> float:
    return 0.0 if abs(value) < 0.5 * 10**-digits else value


@dataclass(frozen=True)
class TextTable:
    """A table of texts; too wide for the page it is continued below, its names repeated.

    Attributes:
        heads: Of the columns.
        rows: Texts, as many in each as there are heads.
        names: How many of the first columns say what a row is of: they stand on the left, and the first of them isn't
            repeated from row to row.
        title: A line above, or nothing.

    Example:
        >>> print(TextTable(["model", "group", "accuracy"], [["dense", "a", "0.9"], ["dense", "b", "0.8"]], names=2))
        model  group  accuracy
        dense  a           0.9
               b           0.8
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1
    title: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.heads), (row, self.heads)

    def _named_once(self) -> Iterator[Sequence[str]]:
        last = None
        for row in self.rows:
            yield ["", *row[1:]] if self.names > 1 and row[0] == last else row
            last = row[0]

    def lines(self, width: int = WIDTH) -> Iterator[str]:
        """The table's lines.

        Args:
            width: Characters that a line may have.

        Yields:
            Lines; names that leave no room are shortened.
        """
        if self.title:
            yield from textwrap.wrap(self.title, width)
        table = [list(self.heads), *map(list, self._named_once())]
        widths = [max(len(row[column]) for row in table) for column in range(len(self.heads))]
        values = range(self.names, len(widths))
        widest = max((widths[column] for column in values), default=0)
        if sum(widths[: self.names]) + len(_GAP) * self.names + widest > width:
            left = width - sum(len(_GAP) + widths[column] for column in values) - len(_GAP) * (self.names - 1)
            most = max(_NAMES, left // self.names)
            widths[: self.names] = [min(name, most) for name in widths[: self.names]]
        taken = sum(widths[: self.names]) + len(_GAP) * (self.names - 1)
        blocks: list[list[int]] = [[]]
        room = width - taken
        for column in values:
            room -= len(_GAP) + widths[column]
            if room < 0 and blocks[-1]:
                blocks.append([])
                room = width - taken - len(_GAP) - widths[column]
            blocks[-1].append(column)
        for number, block in enumerate(blocks):
            if number:
                yield ""
            for row in table:
                names = [_shortened(row[column], widths[column]).ljust(widths[column]) for column in range(self.names)]
                yield _GAP.join([*names, *(row[column].rjust(widths[column]) for column in block)]).rstrip()

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def to_html(self) -> str:
        """The table as HTML.

        Returns:
            A ``<table>``, its texts escaped.
        """
        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        heads = "".join(f"<th>{html.escape(head)}</th>" for head in self.heads)
        body = "".join(
            "<tr>"
            + "".join(
                f"<{tag}>{html.escape(text)}</{tag}>"
                for tag, text in ((("th" if column < self.names else "td"), text) for column, text in enumerate(row))
            )
            + "</tr>"
            for row in self._named_once()
        )
        return f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _shortened(text: str, width: int) -> str:
    """Both ends of it: names of layers begin alike."""
    end = (width - 1) // 2
    return text if len(text) <= width else f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


Block = str | TextTable


class Printed:
    """Prints its ``blocks()``, and shows them as HTML in a notebook.

    Example:
        >>> class Result(Printed):
        ...     def blocks(self):
        ...         return ["All is well.", TextTable(["group", "people"], [["a", figure(1200)]])]
        >>> print(Result())
        All is well.
        <BLANKLINE>
        group  people
        a       1,200
    """

    def blocks(self) -> Iterable[Block]:
        """What there is to show, the verdict first: sentences and tables."""
        raise NotImplementedError

    def __str__(self) -> str:
        return "\n\n".join("\n".join(_lines(block)) for block in self.blocks())

    def _repr_html_(self) -> str:
        return "".join(
            block.to_html()
            if isinstance(block, TextTable)
            else "<p>" + "<br>".join(html.escape(block).splitlines()) + "</p>"
            for block in self.blocks()
        )


def _lines(block: Block) -> Iterator[str]:
    if isinstance(block, TextTable):
        yield from block.lines()
        return
    for line in block.splitlines():
        yield from textwrap.wrap(line, WIDTH, subsequent_indent="  ") or [""]
