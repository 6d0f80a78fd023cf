"""A registry over a package made for the test: what it reads, refuses, and takes from other packages."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path

import pytest

from fairtrim import InputError
from fairtrim.registry import Described, Registry

METHOD = """
from fairtrim.registry import Described
class {cls}(Described):
    name, does, standing = {name!r}, "nothing", "ours"
"""


class Others(Described):
    """What another package would announce."""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "methods_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "first.py").write_text(METHOD.format(cls="First", name="the-first") + "class Base(Described): pass\n")
    (folder / "second.py").write_text("from .first import First\n" + METHOD.format(cls="Second", name="second"))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    found: list[EntryPoint] = []
    monkeypatch.setattr("fairtrim.registry.entry_points", lambda group: list(found))
    return found


def _registry(package: Path) -> Registry:
    return Registry("method", package.name, Described, "fairtrim.methods")


def test_every_module_is_read_at_the_first_look_up(package: Path) -> None:
    registry = _registry(package)
    assert package.name not in sys.modules
    assert list(registry) == ["the-first", "second"] and len(registry) == 2 and "base" not in registry
    assert registry["the-first"].__name__ == "First" and repr(registry) == "methods ['second', 'the-first']"
    for unknown in ("the_first", "third"):
        with pytest.raises(InputError, match=f"^method '{unknown}' is unknown"):
            registry[unknown]
    with pytest.raises(KeyError):  # for whoever treats it as a dict
        registry["third"]
    assert registry.get("third") is None


def test_two_of_one_name(package: Path) -> None:
    (package / "third.py").write_text(METHOD.format(cls="Third", name="second"))
    with pytest.raises(InputError, match="method name 'second' is taken by Second; choose another"):
        list(_registry(package))


@pytest.mark.parametrize("name", ["Upper", "under_score", "two words", "", "end-", None])
def test_malformed_names(package: Path, name: str | None) -> None:
    with pytest.raises(InputError, match="expected lower-case words joined by hyphens"):
        _registry(package).add(Others, name)


def test_what_other_packages_announce(
    package: Path, announced: list[EntryPoint], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fairtrim.registry")
    registry = _registry(package)
    with pytest.raises(InputError, match="'others' is unknown"):
        registry["others"]
    announced.append(EntryPoint("others", f"{__name__}:Others", registry.group))
    assert registry["others"] is Others and set(registry.loaded()) == {"the-first", "second", "others"}
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("method 'others' is that of the package ")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nowhere.at.all:Thing", "ModuleNotFoundError"),
        ("fairtrim:Thing", "AttributeError"),
        ("builtins:dict", "expected a subclass of Described"),
    ],
)
def test_a_broken_one_troubles_only_who_asks_for_it(
    package: Path, announced: list[EntryPoint], value: str, message: str
) -> None:
    registry = _registry(package)
    announced.append(EntryPoint("broken", value, registry.group))
    assert registry["second"].__name__ == "Second" and "broken" in registry
    with pytest.raises(InputError, match=message):
        registry["broken"]
    with pytest.warns(UserWarning, match=message):
        assert "broken" not in registry.loaded()


def test_names_that_clash(package: Path, announced: list[EntryPoint]) -> None:
    registry = _registry(package)
    announced += [EntryPoint("others", value, registry.group) for value in (f"{__name__}:Others", "a_package:Others")]
    announced.append(EntryPoint("second", f"{__name__}:Others", registry.group))
    with pytest.raises(InputError, match="'others'"):
        registry["others"]
    assert registry["second"].__name__ == "Second"
    with pytest.warns(UserWarning) as warned:
        assert set(registry.loaded()) == {"the-first", "second"}
    told = " ".join(str(entry.message) for entry in warned)
    assert "announces 'second', which is fairtrim's own; rename it" in told and "'others'" in told


def test_a_module_that_ends_the_process(
    package: Path, announced: list[EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    (package.parent / "ends_the_process_of_a_test.py").write_text("raise SystemExit(3)")
    registry = _registry(package)
    announced.append(EntryPoint("broken", "ends_the_process_of_a_test:Thing", registry.group))
    with pytest.raises(InputError, match=r"'broken' of the package .* can't be loaded \(SystemExit: 3\)"):
        registry["broken"]


def test_values_and_items_are_of_what_can_be_loaded(package: Path, announced: list[EntryPoint]) -> None:
    registry = _registry(package)
    announced.append(EntryPoint("broken", "nowhere.at.all:Thing", registry.group))
    with pytest.warns(UserWarning, match="left out: method 'broken'"):
        assert [name for name, _ in registry.items()] == ["the-first", "second"]
    with pytest.warns(UserWarning, match="left out: method 'broken'"):
        assert [cls.__name__ for cls in registry.values()] == ["First", "Second"]
    with pytest.raises(InputError, match="'broken'"):
        registry.get("broken")


def test_what_is_known_needs_no_other_package(package: Path, announced: list[EntryPoint]) -> None:
    registry = _registry(package)
    announced.append(EntryPoint("others", f"{__name__}:Others", registry.group))
    assert set(registry.known()) == {"the-first", "second"}
    assert registry["others"] is registry.known()["others"]


def test_another_thread_sees_all_announced_or_asks_itself(
    package: Path, announced: list[EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = _registry(package)
    seen: list[dict[str, list[EntryPoint]] | None] = []

    def slow(group: str) -> Iterator[EntryPoint]:
        yield EntryPoint("one", "a:A", group)
        seen.append(registry._announced)
        yield EntryPoint("two", "a:A", group)

    monkeypatch.setattr("fairtrim.registry.entry_points", slow)
    assert set(registry.announced()) == {"one", "two"} and seen == [None]


def test_what_our_own_distribution_announces(package: Path, announced: list[EntryPoint], tmp_path: Path) -> None:
    """It is no other package's: who announces the same name is left out, and nobody is told to uninstall it."""
    metadata = tmp_path / "fairtrim-0.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: fairtrim\nVersion: 0.0\n")
    (metadata / "entry_points.txt").write_text(
        f"[fairtrim.methods]\nours = {__name__}:Others\ngone = nowhere.at.all:Thing\n"
    )
    announced += Distribution.at(metadata).entry_points
    registry = _registry(package)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert registry.loaded()["ours"] is Others
    assert len(told) == 1 and "expected fairtrim to be installed anew" in str(told[0].message)
    announced[:] = [announced[0], EntryPoint("ours", "elsewhere:Others", registry.group)]
    registry.refresh()
    assert registry["ours"] is Others
    with pytest.warns(
        UserWarning, match="left out: elsewhere:Others announces 'ours', which is fairtrim's own; rename"
    ):
        registry.loaded()
