"""Files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fairtrim.files.atomic_file import replacing, write_text


def test_the_new_file_takes_the_place_of_the_old_one_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "figures.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("half-way"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "figures.txt"
    path.write_text("old")
    with pytest.raises(type(error)), replacing(path) as temporary:
        temporary.write_text("ne")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(OSError), replacing(path) as temporary:
        temporary.write_text("new")
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_deleted_its_file_raises_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), replacing(tmp_path / "figures.txt") as temporary:
        temporary.unlink()
        raise ValueError("mine")


def test_the_file_may_be_read_by_whom_the_process_lets_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "figures.txt", "new")
        assert os.umask(0o027) == 0o027  # the mask itself is as it was
    finally:
        os.umask(before)
    assert (tmp_path / "figures.txt").stat().st_mode & 0o777 == 0o640


def test_long_names_and_line_ends_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)
    write_text(path, "a\r\nb\nü")
    assert path.read_bytes() == "a\r\nb\nü".encode()
