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

    Args:
        path: Where to.
        example: A name for the message.

    Returns:
        The path.

    Raises:
        InputError: It is a folder, or its folder doesn't exist.

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

    Args:
        path: The wanted file, in a folder that exists; an existing file is replaced.

    Yields:
        The file to write to.

    Raises:
        OSError: The folder can't be written to, or ``path`` is a folder.

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

    Args:
        path: Where to, in a folder that exists; an existing file is replaced.
        text: Its content.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(f"{folder}/note.txt", "all of it")
        ...     Path(folder, "note.txt").read_text()
        'all of it'
    """
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())
