"""Checks of arguments, for whoever wants them before hours of work and not in the middle of it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from .errors import InputError

__all__ = ["require_known", "require_number"]


def require_number(
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    whole: bool = False,
    remedy: str = "",
) -> None:
    """Refuse what is no number, not finite or out of range.

    Args:
        name: Of the argument.
        value: What was given.
        at_least: The smallest allowed.
        above: The largest that is too small.
        below: The smallest that is too large.
        whole: Whether it has to be a whole number.
        remedy: More for the message.

    Raises:
        InputError: It is refused.

    Example:
        >>> require_number("steps", 0, at_least=1, whole=True)
        Traceback (most recent call last):
        fairtrim.errors.InputError: steps=0; expected at least 1
    """
    right_type = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if (
        right_type
        and math.isfinite(value)
        and (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (below is None or value < below)
    ):
        return
    bounds = [f"at least {at_least:g}"] if at_least is not None else [f"above {above:g}"] if above is not None else []
    bounds += [f"below {below:g}"] if below is not None else []
    if not right_type or not bounds or not math.isfinite(value):
        bounds.insert(0, "a whole number" if whole else "a finite number")
    raise InputError(f"{name}={value!r}; expected {', '.join(bounds)}{remedy}")


def require_known(what: str, names: Iterable[Any], known: Iterable[str]) -> None:
    """Refuse names that nothing has.

    Args:
        what: Is named.
        names: Those given.
        known: Those there are.

    Raises:
        InputError: One is unknown; the message says which was meant.

    Example:
        >>> require_known("cut", ["shares"], ["share"])
        Traceback (most recent call last):
        fairtrim.errors.InputError: cut has no 'shares' (did you mean 'share'?); expected some of ['share']
    """
    choices = list(known)
    for name in names:
        if name not in choices:
            near = difflib.get_close_matches(str(name), choices, 1, cutoff=0.4)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise InputError(f"{what} has no {name!r}{meant}; expected some of {choices}")
