"""Files that are written completely or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fairtrim.errors import InputError

__all__ = ["file_path", "replacing", "write_text"]


def file_path(path: str | os.PathLike[str], example: str) -> Path:
    """The path of a file that is to be written, checked before anything is computed.

    Example:
        >>> file_path("note.txt", "note.txt").name
        'note.txt'
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected the name of a file, such as {example}")
    if not path.parent.is_dir():
        raise InputError(f"folder {path.parent} doesn't exist; create it first")
    return path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty file beside the wanted one, which takes its place if the block ends well and is deleted otherwise.

    Readers see the file as it was before or as it is after, never half of it. Whoever may read new files of the process
    may read this one.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/note.txt") as temporary:
        ...         _ = temporary.write_text("all of it")
        ...     [(file.name, file.read_text()) for file in Path(folder).iterdir()]
        [('note.txt', 'all of it')]
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")  # names end at 255 bytes
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # a temporary file is private, this one is not
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text completely or not at all, in UTF-8 and with its line ends as they are.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(f"{folder}/note.txt", "all of it")
        ...     Path(folder, "note.txt").read_text()
        'all of it'
    """
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())
