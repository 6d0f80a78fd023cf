"""Criteria and post-processors by name, with their settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch_pruning as tp

import fairtrim
import fairtrim_adapters.sweep
from fairtrim import InputError, ParityFineTuning
from fairtrim_adapters.report import report_sweep
from fairtrim_adapters.sweep.named_methods import criteria_by_label, parse_named, post_processors_by_label
from fairtrim_adapters.torch_pruning import IMPORTANCES, WorstGroupImportance
from tests.sweep_cases import announced, network, quick, splits


def test_names_with_settings() -> None:
    assert parse_named("a:x=1,y=b c,z=null") == ("a", {"x": 1, "y": "b c", "z": None})
    with pytest.raises(InputError, match="'x' is no setting"):
        parse_named("a:x")
    made = criteria_by_label("worst-group:selection=single")["worst-group:selection=single"](0)
    assert made.selection == "single"
    assert post_processors_by_label({"mine": ParityFineTuning(epsilon=0.3)})["mine"].epsilon == 0.3
    assert post_processors_by_label(None) == {}


def test_methods_of_other_packages_without_register(tmp_path: Path) -> None:
    with announced():
        table = quick(network(), splits(), "others", 0.5, post_processors="other-threshold", folder=tmp_path)
        assert set(table["criterion"]) == {"dense", "others"}
        assert set(table["post_processor"]) == {"none", "other-threshold"}
        criterion, repair = report_sweep(tmp_path, pictures=False).methods
        assert (criterion.does, criterion.link) == ("what others do", "https://others.example/paper")
        assert criterion.standing == "published; their own words"
        assert (repair.does, repair.source) == ("moves a threshold elsewhere", "others")
        assert repair.settings["method"] == "OtherThreshold"
    with pytest.raises(InputError, match="criterion 'others' is unknown"):
        criteria_by_label("others")
    with pytest.raises(InputError, match="post-processor 'other-threshold' is unknown"):
        post_processors_by_label("other-threshold")


def test_a_criterion_of_others_with_a_name_of_torch_prunings() -> None:
    try:
        IMPORTANCES.add(WorstGroupImportance, "magnitude")
        with pytest.warns(UserWarning, match="'magnitude' is Torch-Pruning's here, .* pass a function"):
            made = criteria_by_label("magnitude")["magnitude"](0)
        assert isinstance(made, tp.importance.GroupMagnitudeImportance)
        with pytest.raises(InputError) as refused:
            criteria_by_label("nothing")
        assert str(refused.value).count("'magnitude'") == 1
    finally:
        IMPORTANCES.remove("magnitude")


def test_the_registry_is_the_cores() -> None:
    assert fairtrim_adapters.sweep.POST_PROCESSORS is fairtrim.POST_PROCESSORS
