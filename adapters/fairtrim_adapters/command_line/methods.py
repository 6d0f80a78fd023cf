"""Help that lists the methods that may be named."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

from fairtrim_adapters.sweep.named_methods import what_methods_do

__all__ = ["ListingGroup", "listing"]

_TITLES = {"criterion": "Criteria", "post-processor": "Post-processors"}


def _list(formatter: Any, *kinds: str) -> None:
    for kind in kinds:
        with formatter.section(_TITLES[kind]):
            formatter.write_dl(list(what_methods_do(kind).items()))


def listing(*kinds: str) -> type[TyperCommand]:
    """A command whose help lists methods, looked up when help is asked for.

    Args:
        kinds: ``criterion``, ``post-processor``.

    Returns:
        Its class.
    """

    class Listing(TyperCommand):
        def format_epilog(self, ctx: Any, formatter: Any) -> None:
            _list(formatter, *kinds)
            super().format_epilog(ctx, formatter)

    return Listing


class ListingGroup(TyperGroup):
    """Commands whose common help lists all methods."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the lists, and what else stands at the end."""
        _list(formatter, *_TITLES)
        super().format_epilog(ctx, formatter)
