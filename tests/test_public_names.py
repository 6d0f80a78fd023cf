"""Names that a door offers say what they take, give and raise, most in a running example; all others say what they are.

A class may refer for its Args and Attributes to one that describes them: "See ``XOptions``".
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
EXTRAS = {"aif360", "cma", "jinja2", "matplotlib", "typer"}

DOORS = {"fairtrim", *(f"fairtrim.{room}" for room in ("damage", "mining", "repair", "selection", "unlearning"))}
"""Modules that users import from; the adapters and what docs/api shows are such, too."""

REFERENCE = r"^(?:\S.*)?\bSee ``(\w+)``"

WITHOUT_EXAMPLE = {
    "FairtrimError": "an error: users meet it, and don't make it",
    "InputError": "an error",
    "NotFittedError": "an error",
    "ProcessError": "an error",
    "StaleTableError": "an error",
    "UnsupportedModelError": "an error",
}
"""Names offered by packages that have no example, and why."""


def _modules() -> list[str]:
    names = []
    for source in ("plugins", "adapters"):
        for path in sorted((ROOT / source).rglob("*.py")):
            parts = path.relative_to(ROOT / source).with_suffix("").parts
            if path.name != "conftest.py" and not any(part.startswith("_") and part != "__init__" for part in parts):
                names.append(".".join(part for part in parts if part != "__init__"))
    return names


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if (error.name or "").split(".")[0] in EXTRAS:
            pytest.skip(f"needs {error.name}")
        raise


def _public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Classes and functions in ``__all__`` that are ours."""
    for name in getattr(module, "__all__", []):
        value = getattr(module, name)
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__.startswith("fairtrim"):
            yield name, value


def _is_offered(module: str) -> bool:
    """Whether users import from it: packages, and adapters of a single file."""
    adapter = module.startswith("fairtrim_adapters.") and module.count(".") == 1
    return module == "fairtrim" or adapter


@cache
def _offered() -> set[Any]:
    """All that a door offers."""
    pages = "".join(page.read_text() for page in sorted((ROOT / "docs" / "api").glob("*.md")))
    shown = set(re.findall(r":: (fairtrim[\w.]+)", pages))
    found = set()
    for module in _modules():
        door = module in DOORS or module in shown or _is_offered(module)
        try:
            names = _public(importlib.import_module(module))
            found |= {value for name, value in names if door or f"{module}.{name}" in shown}
        except ImportError as error:  # what it offers can't be imported elsewhere either
            assert (error.name or "").split(".")[0] in EXTRAS, error
    return found


def _methods(cls: type) -> Iterator[tuple[str, Any]]:
    for name, value in vars(cls).items():
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if not name.startswith("_") and (inspect.isfunction(function) or isinstance(function, property)):
            yield name, function


def _section(doc: str, title: str) -> str:
    """Text of a section, up to the next one of the same indentation."""
    found = re.search(rf"^{title}:\n((?:(?: .*)?\n)*(?: .*)?)", inspect.cleandoc(doc), re.MULTILINE)
    return found.group(1) if found else ""


def _described(doc: str) -> set[str]:
    """Names that Args or Attributes describe."""
    entries = _section(doc, "Args") + "\n" + _section(doc, "Attributes")
    return set(re.findall(r"^ {4}\*{0,2}(\w+):", entries, re.MULTILINE))


def _described_by(cls: type) -> set[str]:
    """Names that a class describes, or its bases, or one that it refers to: ``See ``Name```` outside of any section."""
    doc = inspect.cleandoc(cls.__doc__ or "")
    others = [vars(sys.modules[cls.__module__])[name] for name in re.findall(REFERENCE, doc, re.MULTILINE)]
    bases = getattr(cls, "__orig_bases__", cls.__bases__)  # a TypedDict forgets its bases
    others += (base for base in bases if getattr(base, "__module__", "").startswith("fairtrim"))
    return _described(doc).union(*map(_described_by, others))


def _raised(function: Any) -> set[str]:
    """Names of the errors that the function itself raises, nested functions left out."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError):  # made by dataclass
        return set()
    found: set[str] = set()
    left: list[ast.AST] = list(tree.body[0].body) if isinstance(tree.body[0], ast.FunctionDef) else []
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            found.add(node.exc.func.id)
        left.extend(ast.iter_child_nodes(node))
    return found


def _parameters(function: Any) -> set[str]:
    return {name for name in inspect.signature(function).parameters if name not in ("self", "cls")}


def _faults_of_function(name: str, function: Any) -> list[str]:
    doc = inspect.getdoc(function)
    if not doc:
        return [f"{name} has no docstring"]
    if "; see ``" in doc:  # implements what a base class describes
        return []
    faults = [f"{name}: Args lacks {parameter!r}" for parameter in sorted(_parameters(function) - _described(doc))]
    given = inspect.signature(function).return_annotation
    # a getter's sentence is what it gives; what always raises gives nothing
    silent = given in (None, "None", "NoReturn") or not _parameters(function)
    silent = silent or "Error: Always." in _section(doc, "Raises")
    if not silent and not (_section(doc, "Returns") or _section(doc, "Yields")):
        faults.append(f"{name} gives {given} and has no Returns")
    raises = _section(doc, "Raises")
    return faults + [f"{name}: Raises lacks {error}" for error in sorted(_raised(function)) if error not in raises]


def _faults_of_class(name: str, cls: type) -> list[str]:
    doc = inspect.cleandoc(cls.__doc__ or "")
    if not doc:
        return [f"{name} has no docstring"]
    faults = []
    ours = [base for base in cls.__mro__ if base.__module__.startswith("fairtrim")]
    described = _described_by(cls)
    makers = [vars(base)[maker] for base in ours for maker in ("__init__", "__post_init__") if maker in vars(base)]
    if makers and not issubclass(cls, Exception):
        parameters = {entry for entry in _parameters(cls) if not entry.startswith("_")}
        faults += [f"{name}: Args lacks {entry!r}" for entry in sorted(parameters - described)]
    own = [vars(cls)[maker] for maker in ("__init__", "__post_init__") if maker in vars(cls)]
    for error in sorted({error for maker in own for error in _raised(maker)}):
        if error not in _section(doc, "Raises"):
            faults.append(f"{name}: Raises lacks {error}")
    for method_name, method in _methods(cls):
        if isinstance(method, property):
            faults += [] if method.__doc__ else [f"{name}.{method_name} has no docstring"]
        elif method.__module__.startswith("fairtrim"):
            faults += _faults_of_function(f"{name}.{method_name}", method)
    return faults


def _without_docstring(name: str, value: Any) -> list[str]:
    """Itself and its methods, where nothing at all is said."""
    parts = [(name, value), *((f"{name}.{part}", method) for part, method in _methods(value))]
    return [f"{part} has no docstring" for part, method in parts if not inspect.getdoc(method)]


def _has_example(value: Any, names: dict[str, Any]) -> bool:
    """Whether there is one, or a word which class or sibling has one that will do: ``Example: see ``Name``; ...``."""
    doc = inspect.cleandoc(value.__doc__ or "")
    seen = re.search(r"^Example: see ``(\w+)``", doc, re.MULTILINE)
    bases = {base.__name__: base for base in getattr(value, "__mro__", ())}
    shown = {**bases, **names}.get(seen.group(1)) if seen else value
    return shown is not None and ">>>" in _section(shown.__doc__ or "", "Example")


@pytest.mark.parametrize("module", _modules())
def test_every_public_name_is_described(module: str) -> None:
    found = _imported(module)
    assert found.__doc__, f"{module} has no docstring"
    faults = []
    for name, value in _public(found):
        if value not in _offered():
            faults += _without_docstring(name, value)
        else:
            faults += _faults_of_class(name, value) if inspect.isclass(value) else _faults_of_function(name, value)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("module", [name for name in _modules() if _is_offered(name)])
def test_every_offered_name_has_an_example(module: str) -> None:
    names = dict(_public(_imported(module)))
    without = [name for name, value in names.items() if name not in WITHOUT_EXAMPLE and not _has_example(value, names)]
    assert not without, f"{module}: no Example in {without}"


def test_exceptions_from_the_rule_are_used() -> None:
    import fairtrim

    offered = dict(_public(fairtrim))
    for name in WITHOUT_EXAMPLE:
        assert ">>>" not in (offered[name].__doc__ or ""), f"{name} has an example by now; take it off the list"


def test_faults_are_found() -> None:
    """The checks themselves, on names that break each rule once."""

    def silent(first: int) -> int:
        if first:
            raise ValueError("no")
        return first

    assert _faults_of_function("silent", silent) == ["silent has no docstring"]
    silent.__doc__ = "Says little.\n\nArgs:\n    second: Not there.\n"
    assert _faults_of_function("silent", silent) == [
        "silent: Args lacks 'first'",
        "silent gives int and has no Returns",
        "silent: Raises lacks ValueError",
    ]
    silent.__doc__ = "Enough.\n\nArgs:\n    first: It.\n\nReturns:\n    It.\n\nRaises:\n    ValueError: Always.\n"
    assert _faults_of_function("silent", silent) == []
    assert not _has_example(silent, {"silent": silent})
    silent.__doc__ = "Little.\n\nExample: see ``loud``; quieter."
    assert not _has_example(silent, {"silent": silent})

    def loud() -> None:
        """Shows it.

        Example:
            >>> loud()
        """

    assert _has_example(silent, {"silent": silent, "loud": loud})


def test_class_may_refer_to_one_that_describes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Options:
        """All.

        Attributes:
            second: Of them.
        """

    class Steps:
        """Those. See ``Options``.

        Args:
            first: Of them; see ``Steps``.
        """

        def __init__(self, first: int, second: int) -> None: ...

    monkeypatch.setattr(sys.modules[__name__], "Options", Options, raising=False)
    for cls in (Options, Steps):
        monkeypatch.setattr(cls, "__module__", __name__)
    assert _described_by(Steps) == {"first", "second"}
    Options.__doc__ = "Nothing."
    assert _described_by(Steps) == {"first"}
