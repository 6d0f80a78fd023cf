"""Criteria of other packages: seen without register(), loaded when asked for, and troubling nobody else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch_pruning as tp

from fairtrim import InputError
from fairtrim_adapters.sweep.named_methods import criteria_by_label
from fairtrim_adapters.torch_pruning import IMPORTANCES, MeanDamageImportance, WorstGroupImportance, register
from tests.registries import keep

GROUP = "fairtrim.criteria"


class OthersImportance(MeanDamageImportance):
    """What another package would announce."""


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    keep(IMPORTANCES, monkeypatch)
    found: list[EntryPoint] = []
    monkeypatch.setattr("fairtrim.registry.entry_points", lambda group: list(found))
    yield found
    for cls in IMPORTANCES._known.values():
        if hasattr(tp.importance, cls.__name__):
            delattr(tp.importance, cls.__name__)


def test_seen_without_register(announced: list[EntryPoint]) -> None:
    announced.append(EntryPoint("others", f"{__name__}:OthersImportance", GROUP))
    assert "others" in IMPORTANCES and "others" in list(IMPORTANCES) and len(IMPORTANCES) == len(list(IMPORTANCES))
    assert IMPORTANCES["others"] is OthersImportance
    (make,) = criteria_by_label("others:selection=single").values()
    importance = make(0)
    assert isinstance(importance, OthersImportance) and importance.selection == "single"
    assert register()["others"] is OthersImportance
    assert vars(tp.importance)["OthersImportance"] is OthersImportance


def test_installed_after_the_first_look_up(announced: list[EntryPoint]) -> None:
    with pytest.raises(InputError, match="'others' is unknown"):
        IMPORTANCES["others"]
    announced.append(EntryPoint("others", f"{__name__}:OthersImportance", GROUP))
    assert IMPORTANCES["others"] is OthersImportance


BROKEN: dict[str, tuple[str, str]] = {
    "no such module": ("nowhere.at.all:Thing", "ModuleNotFoundError"),
    "no such name": ("fairtrim:Thing", "AttributeError"),
    "no importance": ("builtins:dict", "expected a subclass of torch_pruning's Importance"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_one_troubles_only_who_asks_for_it(kind: str, announced: list[EntryPoint]) -> None:
    value, message = BROKEN[kind]
    announced += [EntryPoint("broken", value, GROUP), EntryPoint("others", f"{__name__}:OthersImportance", GROUP)]
    assert IMPORTANCES["worst-group"] is WorstGroupImportance and IMPORTANCES["others"] is OthersImportance
    assert list(criteria_by_label(["worst-group", "magnitude", "others"])) == ["worst-group", "magnitude", "others"]
    for ask in (lambda: IMPORTANCES["broken"], lambda: criteria_by_label("broken")):
        with pytest.raises(InputError, match=f"importance 'broken' of the package .* can't be loaded .*{message}"):
            ask()
    with pytest.warns(UserWarning, match="left out: importance 'broken' of the package"):
        registered = register()
    assert "broken" not in registered and registered["others"] is OthersImportance
    with pytest.raises(InputError, match=r"expected one of \['accumulated-confidence', 'broken',"):
        IMPORTANCES["nobody"]


def test_names_that_are_taken(announced: list[EntryPoint]) -> None:
    announced += [
        EntryPoint("worst-group", f"{__name__}:OthersImportance", GROUP),
        EntryPoint("twice", f"{__name__}:OthersImportance", GROUP),
        EntryPoint("twice", "fairtrim_adapters.torch_pruning:MeanDamageImportance", GROUP),
    ]
    assert IMPORTANCES["worst-group"] is WorstGroupImportance
    with pytest.raises(InputError, match="'twice' is announced by several packages"):
        IMPORTANCES["twice"]
    with pytest.warns(UserWarning) as caught:
        assert "twice" not in register()
    texts = "\n".join(str(warning.message) for warning in caught)
    assert "announced by several" in texts and "announces 'worst-group', which is fairtrim's own" in texts


def test_of_an_installed_package(tmp_path: Path) -> None:
    """A real distribution on the path, which registers itself by the decorator, too; nothing is loaded at import."""
    (tmp_path / "others.py").write_text(
        "from fairtrim_adapters.torch_pruning import MeanDamageImportance, register_importance\n"
        "@register_importance('from-afar')\n"
        "class FarImportance(MeanDamageImportance):\n"
        "    pass\n"
    )
    information = tmp_path / "others-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        f"[{GROUP}]\nfrom-afar = others:FarImportance\nfrom-nowhere = nowhere:Thing\n"
    )
    script = (
        "import sys\n"
        "from fairtrim_adapters.sweep.named_methods import criteria_by_label\n"
        "assert 'others' not in sys.modules\n"
        "criteria_by_label('worst-group')\n"
        "assert 'others' not in sys.modules\n"
        "print(type(criteria_by_label('from-afar')['from-afar'](0)).__name__)\n"
        "try:\n"
        "    criteria_by_label('from-nowhere')\n"
        "except Exception as error:\n"
        "    print(error)\n"
    )
    environment: Any = {"PYTHONPATH": ":".join([str(tmp_path), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    name, error = done.stdout.splitlines()
    assert name == "FarImportance" and "importance 'from-nowhere' of the package others can't be loaded" in error
