"""What the README and the pages under docs/ show, runs: their blocks of Python, and the commands with their options."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import io
import re
import shlex
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch_pruning as tp

import fairtrim
import fairtrim_adapters
from fairtrim_adapters.torch_pruning import IMPORTANCES, forget_layer
from tests.registries import keep

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
_GENERATED = {"_build", "gallery", "gallery_sources"}
PAGES = sorted(p for p in DOCS.rglob("*.md") if not _GENERATED & set(p.relative_to(DOCS).parts))
TEXTS = [ROOT / "README.md", *PAGES]

# Warnings that are part of what a page shows.
_WARNS = {"huggingface.md": "BertConfig can't say that heads have 8 dimensions"}


# Pages about a library that is an extra.
_NEEDS = {"skorch_and_pipelines.md": "skorch", "aif360_and_pandas_3.md": "aif360"}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.S)


def _blocks_and_outputs(path: Path) -> list[tuple[str, str]]:
    """Blocks of Python, each with the block of text right below it, which shows what it prints."""
    return re.findall(r"```python\n(.*?)```(?:\n+```text\n(.*?)```)?", path.read_text(encoding="utf-8"), re.S)


_NUMBER = re.compile(r"[-+]?\d*\.\d+|[-+]?\d+")


def _assert_prints(printed: str, shown: str) -> None:
    """The same words; numbers as close as processors are (points two, others 0.02), and what is a whole number exactly.

    Of a text that ends in a line of dots the beginning is shown.
    """
    if shown.endswith("\n...\n"):
        shown = shown.removesuffix("...\n")
        printed = "".join(printed.splitlines(keepends=True)[: len(shown.splitlines())])
    assert _NUMBER.sub("#", printed).split() == _NUMBER.sub("#", shown).split(), printed
    for number, expected in zip(_NUMBER.findall(printed), _NUMBER.findall(shown), strict=True):
        allowed = {0: 0.0, 1: 2.0}.get(len(expected.partition(".")[2]), 0.02)
        assert float(number) == pytest.approx(float(expected), abs=allowed), printed


# Blocks of Python.


@pytest.fixture
def undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files go into a folder of their own; what a page registers is taken back."""
    monkeypatch.chdir(tmp_path)
    if importlib.util.find_spec("matplotlib"):
        importlib.import_module("matplotlib").use("Agg")
    for registry in (IMPORTANCES, fairtrim.POST_PROCESSORS, fairtrim.MINERS):
        keep(registry, monkeypatch)
    before = dict(vars(tp.importance))
    with torch.random.fork_rng(devices=[]):
        yield
    for name in set(vars(tp.importance)) - set(before):
        delattr(tp.importance, name)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.mark.parametrize("page", [p for p in TEXTS if _blocks(p, "python")], ids=_name)
@pytest.mark.usefixtures("undone")
def test_blocks_of_a_page_run_in_order(page: Path, request: pytest.FixtureRequest) -> None:
    if page.name == "huggingface.md":
        request.getfixturevalue("transformers")
    if page.name in _NEEDS:
        pytest.importorskip(_NEEDS[page.name])
    names: dict[str, Any] = {"__name__": "page"}
    expected = _WARNS.get(page.name)
    with pytest.warns(UserWarning, match=expected) if expected else contextlib.nullcontext():
        for number, (block, shown) in enumerate(_blocks_and_outputs(page)):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block, f"{page.name}, block {number + 1}", "exec", dont_inherit=True), names)
            if shown:
                _assert_prints(printed.getvalue(), shown)
    if "describe_layer" in names:
        forget_layer(names["Transposed"])
    if page.name == "huggingface.md":
        assert len(_blocks(page, "python")[0].splitlines()) <= 25
        assert torch.equal(names["loader"][0][1][:, :-1] >= 0, names["mask"][:, 1:] == 1)


def test_criterion_of_ones_own_is_short() -> None:
    assert len(_blocks(DOCS / "adding_a_criterion.md", "python")[0].splitlines()) < 20


def test_output_that_differs_would_be_seen() -> None:
    _assert_prints("a  0.512 of 3 [-1.20,\n+4]", "a 0.514 of 3 [-1.21, +4]")
    for wrong in ("b 0.514 of 3 [-1.21, +4]", "a 0.614 of 3 [-1.21, +4]", "a 0.514 of 4 [-1.21, +4]", "a 0.514 of 3"):
        with pytest.raises(AssertionError):
            _assert_prints("a  0.512 of 3 [-1.20,\n+4]", wrong)
    _assert_prints("12.3 points\n0.51\nand more\n", "13.9 points\n0.50\n...\n")
    for wrong in ("9.9 points\n0.50\n...\n", "13.9 points\n0.61\n...\n", "13.9 points\n0.50\nother\n...\n"):
        with pytest.raises(AssertionError):
            _assert_prints("12.3 points\n0.51\nand more\n", wrong)
    shown = [shown for _, shown in _blocks_and_outputs(ROOT / "README.md") if shown]
    assert len(shown) == 2  # of README there is something to compare
    assert "magnitude costs minority" in shown[0] and "repaired" in shown[1]


# What is to be installed.


def test_extras_that_are_named_are_there_and_in_the_readme() -> None:
    """Messages, pages and scripts name extras of pyproject.toml; README tells of all of them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not {extra for extra in extras if f"`{extra}`" not in readme and f".[{extra}]" not in readme}
    rooms = ("plugins", "adapters", "examples", "benchmarks")
    named: dict[str, set[str]] = {}
    for file in [*TEXTS, *(path for room in rooms for path in (ROOT / room).rglob("*.py"))]:
        for names in re.findall(r"(?:fairtrim|\.)\[([a-z0-9,]+)\]\\?'", file.read_text(encoding="utf-8")):
            for name in names.split(","):
                named.setdefault(name, set()).add(_name(file))
    assert set(named) <= extras, {name: files for name, files in named.items() if name not in extras}
    assert {"plot", "cli", "examples"} <= set(named)


# Commands.

_COMMAND = re.compile(r"(?:(?:\S*python3?|torchrun [-\w ]*?\d) (?:-m benchmarks\.|examples/)|fairtrim )[^`\n]*")


def _code(path: Path) -> Iterator[str]:
    """Lines of shell blocks, and inline code."""
    text = path.read_text(encoding="utf-8")
    for block in re.findall(r"```sh\n(.*?)```", text, re.S):
        yield from block.splitlines()
    outside = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    yield from (code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", outside))


def _commands(path: Path) -> Iterator[list[str]]:
    for code in _code(path):
        for part in re.split(r"&&|#|;", code):
            found = _COMMAND.match(part.strip())
            if found:
                yield shlex.split(found[0])


COMMANDS = sorted({tuple(command) for path in TEXTS for command in _commands(path)})


def test_commands_are_found(tmp_path: Path) -> None:
    """The search sees commands in blocks, behind others, and in inline code, also across a line's end."""
    page = tmp_path / "page.md"
    page.write_text(
        "Try `python -m\nbenchmarks.x --a 1` or `fairtrim report b.pt`; not `python -m pip`.\n\n"
        "```sh\ncd x && .venv/bin/python examples/y.py --b  # z\n```\n\n```python\nz = '`python examples/no.py`'\n```\n"
    )
    assert list(_commands(page)) == [
        [".venv/bin/python", "examples/y.py", "--b"],
        ["python", "-m", "benchmarks.x", "--a", "1"],
        ["fairtrim", "report", "b.pt"],
    ]
    assert ("python", "examples/repair_adult.py") in COMMANDS


class _ParsedError(Exception):
    """The arguments are understood; nothing is to run."""


def _loaded(module: str, file: Path) -> ModuleType:
    """A script as a module, from its file."""
    spec = importlib.util.spec_from_file_location(module, file)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module] = loaded  # dataclasses look their module up
    spec.loader.exec_module(loaded)
    return loaded


def _parse(main: Callable[[], None], arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a script parse its arguments, and stop it there."""
    original = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *given: Any) -> None:
        original(self, *given)
        raise _ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    with pytest.raises(_ParsedError):
        main()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] != "fairtrim"], ids=" ".join)
def test_command_names_a_script_that_understands_it(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at = next(i for i, word in enumerate(command) if word.startswith(("examples/", "benchmarks.")))
    file = ROOT / (command[at] if command[at].endswith(".py") else f"{command[at].replace('.', '/')}.py")
    assert file.is_file(), f"{command[at]} is not there"
    arguments = list(command[at + 1 :])
    if "ArgumentParser" not in file.read_text(encoding="utf-8"):
        assert not arguments, f"{file.name} takes no arguments"
        return
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.syspath_prepend(str(file.parent))  # scripts import what is beside them
    before = dict(sys.modules)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages that are imported here for the first time
            main = _loaded(f"documented_{file.stem}", file).main
        try:
            _parse(main, arguments, monkeypatch)
        except SystemExit:
            pytest.fail(capsys.readouterr().err)
    finally:
        for name in set(sys.modules) - set(before):
            if name.partition(".")[0] in ("benchmarks", "prune_adult", f"documented_{file.stem}"):
                del sys.modules[name]


def test_wrong_option_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--known", choices=["a"])
        parser.parse_args()

    _parse(main, ["--known", "a"], monkeypatch)
    for arguments in (["--unknown"], ["--known", "b"]):
        with pytest.raises(SystemExit):
            _parse(main, arguments, monkeypatch)


def _understood(arguments: Sequence[str]) -> None:
    """Let the command line parse arguments, without reading the files they name."""
    typer = pytest.importorskip("typer")
    app = importlib.import_module("fairtrim_adapters.command_line.app").app
    group = typer.main.get_command(app)
    name, *rest = [argument for argument in arguments if argument not in ("--help", "--version")] or ["check"]
    context = group.context_class(group, info_name="fairtrim")
    command = group.get_command(context, name)
    assert command is not None, f"fairtrim {name} is no command; expected one of {group.list_commands(context)}"
    command.make_parser(command.context_class(command, info_name=name, parent=context)).parse_args(rest)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] == "fairtrim"], ids=" ".join)
def test_command_line_understands_it(command: tuple[str, ...]) -> None:
    _understood(command[1:])


def test_wrong_command_or_option_of_the_command_line_would_be_seen() -> None:
    _understood(["check", "--max", "accuracy"])
    with pytest.raises(Exception, match="No such option"):  # typer's click may be its own
        _understood(["check", "--maximum-of-all", "1"])
    with pytest.raises(AssertionError, match="expected one of"):
        _understood(["chek"])


# The reference.


def _public() -> Iterator[str]:
    yield from (f"fairtrim.{name}" for name in fairtrim.__all__)
    for folder in fairtrim_adapters.__path__:
        for path in sorted(Path(folder).iterdir()):
            if path.stem.startswith("_") or not (path.suffix == ".py" or (path / "__init__.py").exists()):
                continue
            yield f"fairtrim_adapters.{path.stem}"


def test_reference_has_every_public_name() -> None:
    """Names of the core one by one; adapters, whose pages list what is in ``__all__``, as a whole."""
    shown = set()
    for page in (DOCS / "api").glob("*.md"):
        module = ""
        for directive, what in re.findall(r"^\.\. (\w+):: (\S+)", page.read_text(encoding="utf-8"), re.M):
            module = what if directive == "currentmodule" else module
            shown |= {what, f"{module}.{what}"}
    missing = sorted(set(_public()) - shown)
    assert not missing, f"add a page docs/api/adapters_*.md, or a line to one of docs/api/, for {missing}"


def test_reference_names_what_exists() -> None:
    for page in (DOCS / "api").glob("*.md"):
        module = ""
        for directive, what in re.findall(r"^\.\. (\w+):: (\S+)", page.read_text(encoding="utf-8"), re.M):
            if directive == "currentmodule":
                module = what
            elif directive == "automodule":
                if what == "fairtrim_adapters.aif360":
                    pytest.importorskip("aif360")
                assert importlib.import_module(what).__all__, f"{what} says nothing in __all__"
            else:
                full = what if "." in what else f"{module}.{what}"
                value = getattr(importlib.import_module(full.rpartition(".")[0]), full.rpartition(".")[2])
                assert inspect.getdoc(value)


def test_every_page_is_in_the_site() -> None:
    """Sphinx would warn of a page that no toctree names; this tells without building."""
    for page in PAGES:
        if page.name in ("index.md",):
            continue
        index = page.parent / "index.md"
        named = re.findall(r"^(?:.*<)?([\w/*]+)>?$", index.read_text(encoding="utf-8"), re.M)
        assert any(page.match(f"{name}.md") for name in named), f"{_name(page)} is not in {_name(index)}"
