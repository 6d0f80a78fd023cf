"""Progress bars: one line each, on a terminal or in a notebook, and none for what is done within two seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from fairtrim.errors import InputError

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["progress_bar", "say_beside_bars"]

T = TypeVar("T")

VARIABLE = "FAIRTRIM_PROGRESS"
"""Environment variable: ``always`` shows bars in log files, too, and at once; ``never`` shows none anywhere."""

_DELAY = 2.0  # seconds


@overload
def progress_bar(
    iterable: None = None,
    *,
    description: str,
    shown: bool = True,
    unit: str = "it",
    total: int | None = None,
    **options: Any,
) -> tqdm[NoReturn]: ...


@overload
def progress_bar(
    iterable: Iterable[T],
    *,
    description: str,
    shown: bool = True,
    unit: str = "it",
    total: int | None = None,
    **options: Any,
) -> tqdm[T]: ...


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    description: str,
    shown: bool = True,
    unit: str = "it",
    total: int | None = None,
    **options: Any,
) -> tqdm[Any]:
    """A progress bar that leaves nothing behind.

    It shows where somebody may look: where the standard error is a terminal, or in a notebook. The environment variable
    ``FAIRTRIM_PROGRESS`` says otherwise: ``always`` or ``never``.

    Args:
        iterable: What is gone through; None where ``update`` is called.
        description: What is done.
        shown: False for no bar, whatever the variable says.
        unit: Of what is counted.
        total: How many there are, where the iterable doesn't know.
        options: Further ones of tqdm.

    Returns:
        tqdm's bar: iterate over it, or use it as a context manager with ``update``.

    Raises:
        InputError: The variable holds something else.

    Example:
        >>> list(progress_bar("ab", description="letters"))
        ['a', 'b']
    """
    from tqdm.auto import tqdm

    told = os.environ.get(VARIABLE, "")
    if told not in ("", "always", "never"):
        raise InputError(f"{VARIABLE}={told!r} in the environment; expected always or never, or leave it out")
    return tqdm(
        iterable,
        desc=description,
        disable=not shown or told == "never" or (told == "" and not _is_looked_at()),
        unit=unit,
        total=total,
        leave=False,
        delay=0.0 if told == "always" else _DELAY,
        **options,
    )


def say_beside_bars(text: str) -> None:
    """One line to the standard error, not behind a bar that is open.

    Args:
        text: The line.
    """
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


def _is_looked_at() -> bool:
    return (sys.stderr is not None and sys.stderr.isatty()) or _in_notebook()


def _in_notebook() -> bool:
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = get_ipython() if callable(get_ipython) else None
    return shell is not None and "IPKernelApp" in shell.config
