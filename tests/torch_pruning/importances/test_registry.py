"""Importances by name."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch_pruning as tp

from fairtrim import InputError
from fairtrim.registry import Standing
from fairtrim_adapters import torch_pruning as adapter
from fairtrim_adapters.command_line import main
from fairtrim_adapters.report import report_sweep
from fairtrim_adapters.sweep import sweep
from fairtrim_adapters.torch_pruning import (
    IMPORTANCES,
    ChannelImportance,
    CollectOptions,
    ContrastiveImportance,
    DamageImportance,
    DamageOptions,
    GateTraining,
    GroupSaliencyImportance,
    ImportanceOptions,
    MeanDamageImportance,
    importances,
    register,
    register_importance,
)
from fairtrim_adapters.torch_pruning.importances.torch_pruning_importances import TORCH_PRUNING_CRITERIA
from tests.registries import keep
from tests.sweep_cases import network, splits


@pytest.fixture
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    keep(IMPORTANCES, monkeypatch)
    yield
    for cls in IMPORTANCES._known.values():
        if hasattr(tp.importance, cls.__name__) and cls.__module__.startswith(("fairtrim", "tests")):
            delattr(tp.importance, cls.__name__)


def test_registry(clean_registry: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class ThirdImportance(MeanDamageImportance):
        pass

    class EntryPoint:
        name = "third-party"

        @staticmethod
        def load() -> type:
            return ThirdImportance

    monkeypatch.setattr("fairtrim.registry.entry_points", lambda group: [EntryPoint])
    assert register()["third-party"] is ThirdImportance
    assert register() == IMPORTANCES  # twice is fine
    assert tp.importance.ThirdImportance is ThirdImportance
    assert tp.importance.GroupSaliencyImportance is GroupSaliencyImportance
    for name in ("group-saliency", "mean-damage", "worst-group", "tail-risk", "share-balanced"):
        assert IMPORTANCES[name].__name__ in adapter.__all__


def test_registry_says_what_there_is() -> None:
    for unknown in ("worst_group", "Worst-Group", "worst-grup"):
        message = rf"importance '{unknown}' is unknown \(did you mean 'worst-group'\?\); expected one of \['accum"
        with pytest.raises(InputError, match="^" + message):
            IMPORTANCES[unknown]
    with pytest.raises(KeyError, match=r"^importance 7 is unknown; expected"):
        IMPORTANCES[7]  # type: ignore[index]
    assert "worst_group" not in IMPORTANCES and IMPORTANCES.get("worst_group") is None


def test_registry_refusals(clean_registry: None) -> None:
    for name, cls, message in (
        ("worst-group", MeanDamageImportance, "taken by WorstGroupImportance"),
        ("Worst_Group", MeanDamageImportance, "lower-case words"),
        ("plain", dict, "subclass of torch_pruning's Importance"),
    ):
        with pytest.raises(InputError, match=message):
            register_importance(name)(cls)
    clash = type("LAMPImportance", (MeanDamageImportance,), {})
    register_importance("clash")(clash)
    with pytest.raises(InputError, match="exists already"):
        register()


NEW_FILE = """
from typing import Unpack

from torch import Tensor

from .damage_importances import DamageImportance, DamageOptions


def squared(damage: Tensor) -> Tensor:
    return damage.clamp_min(0).square().sum(0)


class SquaredDamageImportance(DamageImportance):
    \"\"\"Hurts that are shared evenly weigh less.\"\"\"

    name = "squared-damage"
    does = "removes first what hurts many a little, before what hurts few much"
    standing = "ours"

    def __init__(self, **options: Unpack[DamageOptions]) -> None:
        super().__init__(squared, **options)
"""


def test_a_new_criterion_is_one_new_file(
    clean_registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is found by its name in the registry, the sweep, the command line and the report, which says what it does."""
    (tmp_path / "squared_damage.py").write_text(NEW_FILE)
    monkeypatch.setattr(importances, "__path__", [*importances.__path__, str(tmp_path)])
    monkeypatch.setitem(sys.modules, f"{importances.__name__}.squared_damage", None)  # forgotten afterwards
    del sys.modules[f"{importances.__name__}.squared_damage"]
    monkeypatch.setattr(IMPORTANCES, "_read", False)
    cls = IMPORTANCES["squared-damage"]
    assert cls(selection="single").selection == "single"
    with pytest.raises(InputError, match=r"squared-damge' is unknown \(did you mean 'squared-damage'"):
        IMPORTANCES["squared-damge"]
    table = sweep(
        network(), splits(), "squared-damage:selection=single", 0.5, n_boot=None, latency_rounds=0, progress=False,
        folder=tmp_path / "sweep",
    )  # fmt: skip
    assert set(table["criterion"]) == {"dense", "squared-damage:selection=single"}
    assert cls.does in report_sweep(tmp_path / "sweep", pictures=False).to_markdown()
    pytest.importorskip("typer")
    output = tmp_path / "pruned.safetensors"
    arguments = ["--model", "tests.sweep_cases:network", "--data", "tests.sweep_cases:splits", "--bootstrap", "0"]
    assert main(["prune", *arguments, "--criterion", "squared-damage", "--output", str(output), "--quiet"]) == 0
    assert output.exists() and "removed" in capsys.readouterr().out


def test_every_criterion_describes_itself() -> None:
    for name, cls in {**IMPORTANCES, **TORCH_PRUNING_CRITERIA}.items():
        assert cls.name == name and cls.does and cls.source and cls.standing in get_args(Standing)
    for criterion in TORCH_PRUNING_CRITERIA.values():
        assert isinstance(criterion.importance(random_state=1), tp.importance.Importance)


def test_options_are_those_of_the_constructors() -> None:
    """What editors complete is what is taken: each name once, and no other."""
    for cls, options in ((ChannelImportance, ImportanceOptions), (DamageImportance, DamageOptions)):
        own = {
            name
            for base in cls.__mro__
            if base in (ChannelImportance, DamageImportance)
            for name in parameters_of(base)
        }
        assert own | set(CollectOptions.__annotations__) == set(get_type_hints(options))
    assert set(GateTraining.__annotations__) <= parameters_of(ContrastiveImportance)


def parameters_of(cls: type) -> set[str]:
    parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
