"""Names of the figures of language models."""

from __future__ import annotations

__all__ = ["CHANGE", "SCORE", "SHARE", "TIMES"]

SHARE, SCORE, CHANGE, TIMES = "stereotype preferred", "stereotype score", "change of preference", "times reference"
