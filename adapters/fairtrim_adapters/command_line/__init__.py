"""The command ``fairtrim``: sweep, prune, smallest, audit, repair, report, check.

Exit codes: 0, done, and every bound holds; 1, a bound of ``check`` or ``repair --require-bound`` failed, ``check``
can't tell, or ``prune`` can't get as small as asked; 2, the command line, the data or the network is wrong; 3,
something failed that fairtrim didn't foresee; 130, interrupted.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

__all__ = ["main"]

FAILED_BOUND, WRONG_INPUT, UNFORESEEN, INTERRUPTED = 1, 2, 3, 130

_ANYWHERE = ("--debug", "--verbose", "-v")

_RENAMED = {"--ratio": "--pruning-ratio", "--steps": "--iterative-steps", "--fine-tune": "--fine-tuning"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What stands after ``fairtrim``; default the process's own.

    Returns:
        The exit code.

    Example:
        >>> main(["check", "--max", "accuracy"])
        2
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"] and (installed := _installed_version()):  # without torch, whose import takes seconds
        print(f"fairtrim {installed}")
        return 0
    try:
        import typer
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        print("fairtrim: the command line needs typer: pip install 'fairtrim[cli]'", file=sys.stderr)
        return WRONG_INPUT
    from .app import app

    debug = "--debug" in arguments
    level = _level(arguments)
    arguments = [argument for argument in arguments if argument not in _ANYWHERE]
    try:
        with _noting(level):
            code = int(app(arguments, standalone_mode=False, prog_name="fairtrim") or 0)
        return _interrupted() if code == INTERRUPTED else code  # some releases of typer say nothing
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except SystemExit as error:  # of code that was called: its 0 would pass for a gate that holds
        _say(f"the code that was called stopped: exit code {error.code!r}")
        return WRONG_INPUT
    except Exception as error:
        from fairtrim import FairtrimError

        if debug:
            traceback.print_exc()
        if (option := getattr(error, "option_name", None)) in _RENAMED:
            _say(f"there is no {option}; it is called {_RENAMED[option]}")
            return WRONG_INPUT
        if callable(show := getattr(error, "show", None)):  # of the command line itself: typer brings its own classes
            show()
            return WRONG_INPUT
        if isinstance(error, FairtrimError):
            _say(_one_line(error))
            return WRONG_INPUT
        said = f"{type(error).__name__}: {_one_line(error)}"
        _say(f"not foreseen: {said}" + ("" if debug else "; --debug shows where"))
        return UNFORESEEN


def _installed_version() -> str | None:
    try:
        return version("fairtrim")
    except PackageNotFoundError:  # only on the path
        return None


def _level(arguments: Sequence[str]) -> int:
    """Which notes are shown."""
    if {"--verbose", "-v"} & set(arguments):
        return logging.DEBUG
    return logging.WARNING if {"--quiet", "-q"} & set(arguments) else logging.INFO


@contextmanager
def _noting(level: int) -> Iterator[None]:
    """Write what the library notes to the standard error, above the progress bars."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    logger, handler = logging.getLogger("fairtrim"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        with logging_redirect_tqdm([logger], tqdm):
            yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


def _say(text: str) -> None:
    """One line to the standard error, not behind a progress bar that was left open."""
    from fairtrim.progress import say_beside_bars

    say_beside_bars(f"fairtrim: {text}")


def _interrupted() -> int:
    _say("interrupted; a sweep goes on with the same command")
    return INTERRUPTED


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
