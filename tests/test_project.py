"""What the project's files say of it agrees: the version, the lowest versions, what a release checks."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import fairtrim

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_one_version() -> None:
    version = PROJECT["version"]
    cited = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    headings = re.findall(r"^## \[(.+?)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert cited == [version] and fairtrim.__version__ == version
    assert headings[0][0] == version
    assert all(re.fullmatch(r"20\d\d-[01]\d-[0-3]\d", date) for _, date in headings[1:]), "earlier releases have a date"
    assert re.fullmatch(r"unreleased|20\d\d-[01]\d-[0-3]\d", headings[0][1])


def _pinned(name: str) -> dict[str, Version]:
    lines = (ROOT / ".ci" / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower(): Version(version) for name, version in pairs}


def test_lowest_versions_that_are_tested_are_those_that_are_admitted() -> None:
    """Of every dependency and every extra; what builds the site and checks the style aside."""
    extras = {name: wanted for name, wanted in PROJECT["optional-dependencies"].items() if name != "docs"}
    wanted = [
        Requirement(text) for text in [*PROJECT["dependencies"], *(text for own in extras.values() for text in own)]
    ]
    tools = {"fairtrim", "mypy", "ruff", "types-tqdm"}
    lowest = {}
    for one in wanted:
        if one.name.lower() not in tools:
            (bound,) = one.specifier
            assert bound.operator in (">=", "=="), f"{one} has no lowest version"
            lowest[one.name.lower()] = Version(bound.version)
    core, of_extras = _pinned("lowest.txt"), _pinned("lowest_extras.txt")
    assert not core.keys() & of_extras.keys()
    pinned = core | of_extras
    pinned.pop("pyparsing")  # matplotlib's own
    assert pinned == lowest
    assert {Requirement(text).name.lower() for text in PROJECT["dependencies"]} <= core.keys()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "the tag is v9.9; expected v"),
        ({"CHANGELOG.md": "## [0.0.1] - unreleased\n"}, "expected the section of"),
        ({"CITATION.cff": "version: 0.0.1\n"}, "CITATION.cff has another version"),
        ({"plugins/fairtrim/__init__.py": '__version__ = "0.0.1"\n'}, "fairtrim.__version__ is not"),
    ],
)
def test_release_is_refused_before_anything_is_built(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name in (".ci/release", "pyproject.toml", "CITATION.cff", "CHANGELOG.md", "plugins/fairtrim/__init__.py"):
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(files.get(name, (ROOT / name).read_text(encoding="utf-8")), encoding="utf-8")
    command = ["bash", str(tmp_path / ".ci/release"), "--tag", "v9.9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("release: ") and message in done.stderr
    assert not (tmp_path / "dist").exists()


def test_publishing_needs_a_date(tmp_path: Path) -> None:
    version = PROJECT["version"]
    for name in (".ci/release", "pyproject.toml", "CITATION.cff", "plugins/fairtrim/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text(f"## [{version}] - unreleased\n")
    command = ["bash", str(tmp_path / ".ci/release"), "--tag", f"v{version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "expected its date" in done.stderr
