"""The rooms of the code and the arrows between them, read from the imports, and a picture of both."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from html import escape
from pathlib import Path

SOURCES = ("plugins", "adapters")

TOP = (
    "arguments",
    "devices",
    "errors",
    "placement",
    "precision",
    "preservation",
    "printing",
    "processes",
    "progress",
    "registry",
)
"""Files of the core that every room leans on; in the picture one box."""

CORE = (
    ("", "", "top"),
    ("", "files", "measures"),
    ("", "", "data"),
    ("", "", "network"),
    ("", "damage", "repair", "comparison"),
    ("criteria",),
    ("selection", "mining", "unlearning", "oracle", "reconstruction"),
)
"""Rooms of fairtrim; one may lean on those of the lines above it, not on its neighbours. The empty places are the
picture's, so that no arrow runs behind a room."""

ADAPTERS = (
    ("", "torch_pruning.graph", "", "pareto", "onnx_export", "aif360"),
    ("", "torch_pruning.verification", "", "plots"),
    ("", "torch_pruning.importances", "fairlearn"),
    ("huggingface", "torch_pruning.reconstruction"),
    ("torch_pruning.recipes", "torch_pruning.prune_copy"),
    ("", "torch_pruning.budget"),
    ("", "", "sweep"),
    ("", "", "", "report"),
    ("", "", "", "", "command_line"),
)
"""Rooms of fairtrim_adapters, in the same way."""

HOSTS = ("torch_pruning", "fairlearn", "aif360", "transformers", "fairtrim_adapters")


class Import:
    """One name that a module imports.

    Attributes:
        module: The importing module.
        target: The module it imports from.
        name: The name; None for a module as a whole.
        line: Where.
    """

    def __init__(self, module: str, target: str, name: str | None, line: int) -> None:
        self.module, self.target, self.name, self.line = module, target, name, line

    def __repr__(self) -> str:
        return f"{self.module}:{self.line} imports {self.name or 'all'} of {self.target}"


def modules(root: Path) -> dict[str, Path]:
    """Every module of the two packages.

    Args:
        root: The repository.

    Returns:
        Files by dotted name; a package's file by the package's name.
    """
    found = {}
    for source in SOURCES:
        for path in sorted((root / source).rglob("*.py")):
            parts = path.relative_to(root / source).with_suffix("").parts
            if path.name != "conftest.py":
                found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(root: Path) -> list[Import]:
    """Every import of a module of the two packages, wherever in the file it stands, and of hosts.

    Args:
        root: The repository.

    Returns:
        One entry a name.
    """
    known = modules(root)
    return [
        entry
        for module, path in known.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for entry in _of_node(module, path.name == "__init__.py", node, known)
    ]


def _of_node(module: str, is_package: bool, node: ast.AST, known: Mapping[str, Path]) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(module, alias.name, None, node.lineno)
    if isinstance(node, ast.ImportFrom):
        parts = module.split(".")
        package = parts[: len(parts) - node.level + is_package] if node.level else []
        target = ".".join([*package, *([node.module] if node.module else [])])
        for alias in node.names:
            whole = f"{target}.{alias.name}"  # from package import module
            yield (
                Import(module, whole, None, node.lineno)
                if whole in known
                else Import(module, target, alias.name, node.lineno)
            )


def room_of(module: str) -> str:
    """The room that a module is in.

    Args:
        module: Its dotted name.

    Returns:
        ``measures``, ``torch_pruning.graph``, ...; "" for the door of a whole package.

    Example:
        >>> room_of("fairtrim.damage.table"), room_of("fairtrim.errors"), room_of("fairtrim_adapters.sweep.cell")
        ('damage', 'top', 'sweep')
    """
    package, *rest = module.split(".")
    if package == "fairtrim":
        return "" if not rest else "top" if rest[0] in TOP else rest[0]
    if rest[:1] == ["torch_pruning"]:
        return ".".join(rest[:2]) if len(rest) > 1 else ""
    return rest[0] if rest else ""


def arrows(found: Iterable[Import], package: str) -> dict[str, set[str]]:
    """Which rooms of a package lean on which.

    Args:
        found: The imports.
        package: ``fairtrim`` or ``fairtrim_adapters``.

    Returns:
        For each room those that it imports from; doors of whole packages are no rooms.
    """
    leans: dict[str, set[str]] = {}
    for entry in found:
        room = room_of(entry.module)
        if room and entry.module.split(".")[0] == package:
            other = room_of(entry.target) if entry.target.split(".")[0] == package else ""
            leans.setdefault(room, set()).update({other} - {room, ""})
    return leans


def circle(leans: Mapping[str, Iterable[str]]) -> list[str]:
    """A circle, if there is one.

    Args:
        leans: What each leans on.

    Returns:
        The members in order, the first again at the end; empty without one.

    Example:
        >>> circle({"a": ["b"], "b": []}), circle({"a": ["b"], "b": ["a"]})
        ([], ['a', 'b', 'a'])
    """
    try:
        TopologicalSorter(leans).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def shown(leans: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The arrows without those that a longer way shows, too.

    Args:
        leans: What each leans on, without a circle.

    Returns:
        The rest.

    Example:
        >>> shown({"a": set(), "b": {"a"}, "c": {"a", "b"}})["c"]
        {'b'}
    """

    def reached(room: str) -> set[str]:
        return {far for near in leans.get(room, ()) for far in {near} | reached(near)}

    return {room: {o for o in others if not any(o in reached(p) for p in others)} for room, others in leans.items()}


# The picture -----------------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 148, 34, 22, 34, 14


def picture(lines: Iterable[Iterable[str]], leans: Mapping[str, set[str]], title: str) -> str:
    """Rooms and arrows as SVG; what is leant on stands above.

    Args:
        lines: Rooms line by line.
        leans: What each leans on.
        title: Says what is shown.

    Returns:
        The picture.
    """
    place = {
        room: (_MARGIN + _WIDTH / 2 + column * (_WIDTH + _GAP_X), _MARGIN + row * (_HEIGHT + _GAP_Y))
        for row, line in enumerate(lines)
        for column, room in enumerate(line)
        if room in leans
    }
    width = max(x for x, _ in place.values()) + _WIDTH / 2 + _MARGIN
    height = max(y for _, y in place.values()) + _HEIGHT + _MARGIN
    drawn = []
    for room, others in sorted(shown(leans).items()):
        for other in sorted(others):
            (x, y), (far_x, far_y) = place[room], place[other]
            bend = (y - far_y - _HEIGHT) / 2
            drawn.append(
                f'<path d="M {x:g} {y:g} C {x:g} {y - bend:g} {far_x:g} {far_y + _HEIGHT + bend:g} '
                f'{far_x:g} {far_y + _HEIGHT + 5:g}" class="arrow" marker-end="url(#head)"/>'
            )
    for room, (x, y) in place.items():
        drawn.append(f'<rect x="{x - _WIDTH / 2:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="5"/>')
        label = room.removeprefix("torch_pruning.") if room.startswith("torch_pruning.") else room
        drawn.append(f'<text x="{x:g}" y="{y + _HEIGHT / 2 + 4:g}">{escape(label)}</text>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img">',
            f"<title>{escape(title)}</title>",
            "<style>rect { fill: #eef3f8; stroke: #33617f; } text { font: 13px sans-serif; text-anchor: middle; "
            "fill: #12303f; } .arrow { fill: none; stroke: #8a98a3; stroke-width: 1.3; }</style>",
            '<rect width="100%" height="100%" style="fill: #ffffff; stroke: none"/>',
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M 0 0 L 8 4 L 0 8 z" fill="#8a98a3"/></marker></defs>',
            *drawn,
            "</svg>",
            "",
        ]
    )


def write_pictures(root: Path, folder: Path) -> list[Path]:
    """Draw both packages.

    Args:
        root: The repository.
        folder: Where to.

    Returns:
        The files.

    Raises:
        ValueError: Rooms lean on each other in a circle.
    """
    found = imports(root)
    files = []
    for package, lines in (("fairtrim", CORE), ("fairtrim_adapters", ADAPTERS)):
        if round_trip := circle(arrows(found, package)):
            raise ValueError(
                f"rooms of {package} lean on each other in a circle: {round_trip}; tests/test_rooms.py says where"
            )
        path = folder / f"rooms_{package}.svg"
        text = picture(lines, arrows(found, package), f"Rooms of {package}: an arrow points to what a room leans on")
        path.write_text(text, encoding="utf-8")
        files.append(path)
    return files


if __name__ == "__main__":  # python docs/extensions/rooms.py
    for file in write_pictures(Path(__file__).parents[2], Path(__file__).parents[1]):
        print(file)
