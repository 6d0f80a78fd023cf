"""What can go wrong, by what the user can do about it."""

from __future__ import annotations

__all__ = ["FairtrimError", "InputError", "NotFittedError", "ProcessError", "StaleTableError", "UnsupportedModelError"]


class FairtrimError(Exception):
    """Base class of every error that fairtrim raises on purpose."""


class InputError(FairtrimError, ValueError):
    """An argument or the data is wrong: change it and call again."""


class UnsupportedModelError(FairtrimError, RuntimeError):
    """The network can't be scored as it is: the message names the layer and the remedy."""


class NotFittedError(FairtrimError, RuntimeError):
    """There is no damage table yet: fit first."""


class StaleTableError(NotFittedError):
    """The network has changed since the damage table was computed: fit again."""


class ProcessError(FairtrimError, RuntimeError):
    """Another of the processes that work together failed or is gone: mend that one and start all of them again."""
