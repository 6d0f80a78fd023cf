"""The arrows between the rooms: which may lean on which, no circle, no host in the core, nothing private."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def _rooms() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "extensions" / "rooms.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rooms"] = module
    spec.loader.exec_module(module)
    return module


rooms = _rooms()
IMPORTS = rooms.imports(ROOT)
OURS = rooms.modules(ROOT)


@pytest.mark.parametrize(("package", "lines"), [("fairtrim", rooms.CORE), ("fairtrim_adapters", rooms.ADAPTERS)])
def test_no_room_leans_on_a_later_one(package: str, lines: tuple[tuple[str, ...], ...]) -> None:
    line_of = {room: k for k, line in enumerate(lines) for room in line}
    wrong = []
    for entry in IMPORTS:
        if entry.module.split(".")[0] != package or entry.target.split(".")[0] != package:
            continue
        room, other = rooms.room_of(entry.module), rooms.room_of(entry.target)
        if room and other and room != other and not line_of[other] < line_of[room]:
            wrong.append(f"{entry}: {room} may not lean on {other}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("package", "lines"), [("fairtrim", rooms.CORE), ("fairtrim_adapters", rooms.ADAPTERS)])
def test_every_room_has_its_place(package: str, lines: tuple[tuple[str, ...], ...]) -> None:
    planned = {"reconstruction"}
    there = {rooms.room_of(module) for module in OURS if module.split(".")[0] == package} - {""}
    assert there == {room for line in lines for room in line} - {""} - (planned - there)


def test_modules_import_each_other_in_no_circle() -> None:
    leans: dict[str, set[str]] = {module: set() for module in OURS}
    for entry in IMPORTS:
        if entry.target in OURS and entry.target != entry.module:
            leans[entry.module].add(entry.target)
    assert rooms.circle(leans) == []


def test_the_core_knows_no_host_and_no_adapter_and_not_its_own_door() -> None:
    wrong = [
        str(entry)
        for entry in IMPORTS
        if entry.module.startswith("fairtrim.")
        and (entry.target.split(".")[0] in rooms.HOSTS or entry.target == "fairtrim")
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_private_of_another_room_is_imported() -> None:
    wrong = [
        str(entry)
        for entry in IMPORTS
        if entry.target in OURS
        and entry.name is not None
        and entry.name.startswith("_")
        and not entry.name.startswith("__")
        and entry.module.rpartition(".")[0] != entry.target.rpartition(".")[0]
    ]
    assert not wrong, "\n".join(wrong)


def test_faults_are_found(tmp_path: Path) -> None:
    """The checks themselves, on a tree that breaks each rule once."""
    for name, text in {
        "plugins/fairtrim/__init__.py": "",
        "plugins/fairtrim/data/__init__.py": "",
        "plugins/fairtrim/data/a.py": "def late():\n    from fairtrim.network.b import _c\n",
        "plugins/fairtrim/network/__init__.py": "",
        "plugins/fairtrim/network/b.py": "import fairlearn\nfrom fairtrim.data import a\nfrom ..data.a import late\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = [(entry.module, entry.target, entry.name) for entry in rooms.imports(tmp_path)]
    assert sorted(found, key=str) == [
        ("fairtrim.data.a", "fairtrim.network.b", "_c"),
        ("fairtrim.network.b", "fairlearn", None),
        ("fairtrim.network.b", "fairtrim.data.a", "late"),
        ("fairtrim.network.b", "fairtrim.data.a", None),
    ]
    assert rooms.arrows(rooms.imports(tmp_path), "fairtrim") == {"data": {"network"}, "network": {"data"}}
    assert rooms.circle({"data": {"network"}, "network": {"data"}})


def test_the_pictures_and_the_page_show_the_rooms_there_are(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for drawn in rooms.write_pictures(ROOT, tmp_path):
        kept = ROOT / "docs" / drawn.name
        assert kept.read_text(encoding="utf-8") == drawn.read_text(encoding="utf-8"), (
            "the rooms have changed: python docs/extensions/rooms.py draws them anew"
        )
        assert drawn.name in page
    for module in OURS:
        room = rooms.room_of(module)
        assert room in ("", "top") or f"`{room}" in page, f"docs/architecture.md doesn't say what {room} is for"
