"""Registries of methods in tests: whatever is added is forgotten afterwards."""

from __future__ import annotations

import pytest

from fairtrim.registry import Registry


def keep(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test add to a registry, and to the packages that announce methods for it."""
    assert len(registry)  # read before it is copied
    monkeypatch.setattr(registry, "_known", dict(registry._known))
    monkeypatch.setattr(registry, "_announced", None)
