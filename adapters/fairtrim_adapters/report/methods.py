"""What each criterion and post-processor does, to whom, and where it comes from: as its class says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairtrim import InputError
from fairtrim_adapters.sweep.named_methods import described_class, parse_named

from .contents import Method

__all__ = ["method_of"]


def method_of(kind: str, text: str, settings: Mapping[str, Any] | None = None) -> Method:
    """What is known about a criterion or a post-processor.

    Args:
        kind: ``criterion`` or ``post-processor``.
        text: Its name, with settings if need be: ``worst-group:selection=single``.
        settings: Further ones; those of a post-processor tell its method even if its name doesn't.

    Returns:
        The facts; one that is not known says so.

    Example:
        >>> method = method_of("criterion", "worst-group:selection=single")
        >>> method.standing, method.settings
        ('ours', {'selection': 'single'})
        >>> method_of("criterion", "my own").does
        'not described here'
    """
    name = text.partition(":")[0].strip()
    try:
        cls = described_class(kind, name)
        own = {} if cls is None else parse_named(text)[1]
    except InputError:  # a plug-in that can't be loaded, or a label that only looks like a name with settings
        cls, own = None, {}
    every = {key: str(value) for key, value in {**(settings or {}), **own}.items()}
    if "does" not in vars(cls or object):  # can't be loaded, or doesn't say
        return Method(text, kind, "not described here", "", "", "", every)
    facts = {entry: str(getattr(cls, entry, "")) for entry in ("does", "source", "link", "standing", "remark")}
    standing = "; ".join(filter(None, [facts["standing"], facts["remark"]]))
    return Method(text, kind, facts["does"], facts["source"], facts["link"], standing, every)
