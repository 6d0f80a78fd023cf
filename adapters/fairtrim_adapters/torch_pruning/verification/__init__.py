"""A step is tried before the first channel goes."""

from .verified import checked_step, verified

__all__ = ["checked_step", "verified"]
