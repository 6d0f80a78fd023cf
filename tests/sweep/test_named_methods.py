"""Criteria and post-processors by name, with their settings."""

from __future__ import annotations

import pytest

from fairtrim import InputError, ParityFineTuning
from fairtrim_adapters.sweep.named_methods import criteria_by_label, parse_named, post_processors_by_label


def test_names_with_settings() -> None:
    assert parse_named("a:x=1,y=b c,z=null") == ("a", {"x": 1, "y": "b c", "z": None})
    with pytest.raises(InputError, match="'x' is no setting"):
        parse_named("a:x")
    made = criteria_by_label("worst-group:selection=single")["worst-group:selection=single"](0)
    assert made.selection == "single"
    assert post_processors_by_label({"mine": ParityFineTuning(epsilon=0.3)})["mine"].epsilon == 0.3
    assert post_processors_by_label(None) == {}
