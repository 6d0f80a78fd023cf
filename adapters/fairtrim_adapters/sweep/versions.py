"""What a result was made with."""

from __future__ import annotations

import platform
from importlib.metadata import version

__all__ = ["versions"]

PACKAGES = ("fairtrim", "torch", "torch-pruning", "fairlearn", "numpy", "pandas", "scikit-learn")


def versions() -> dict[str, str]:
    """What a result was made with.

    Returns:
        Versions of Python and of the packages that figures depend on, by name.

    Example:
        >>> sorted(versions())[:2]
        ['fairlearn', 'fairtrim']
    """
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}
