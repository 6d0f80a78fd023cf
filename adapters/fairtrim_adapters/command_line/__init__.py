"""The command ``fairtrim``: sweep, prune, audit, repair, report, check.

Exit codes: 0, done, and every bound holds; 1, a bound of ``check`` failed; 2, the command line, the data or the network
is wrong; 3, something failed that fairtrim didn't foresee; 130, interrupted.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from fairtrim import FairtrimError

__all__ = ["main"]

FAILED_BOUND, WRONG_INPUT, UNFORESEEN, INTERRUPTED = 1, 2, 3, 130


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
    try:
        import typer
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        print("fairtrim: the command line needs typer: pip install 'fairtrim[cli]'", file=sys.stderr)
        return WRONG_INPUT
    from .app import app

    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return int(app(arguments, standalone_mode=False, prog_name="fairtrim") or 0)
    except (KeyboardInterrupt, typer.Abort):
        print("fairtrim: interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as error:  # of code that was called: its 0 would pass for a gate that holds
        print(f"fairtrim: the code that was called stopped: exit code {error.code!r}", file=sys.stderr)
        return WRONG_INPUT
    except Exception as error:
        if debug:
            traceback.print_exc()
        if callable(show := getattr(error, "show", None)):  # of the command line itself: typer brings its own classes
            show()
            return WRONG_INPUT
        if isinstance(error, FairtrimError):
            print(f"fairtrim: {_one_line(error)}", file=sys.stderr)
            return WRONG_INPUT
        said = f"{type(error).__name__}: {_one_line(error)}"
        print(f"fairtrim: not foreseen: {said}" + ("" if debug else "; --debug shows where"), file=sys.stderr)
        return UNFORESEEN


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
