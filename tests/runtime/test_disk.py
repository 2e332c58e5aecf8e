from pathlib import Path

import pytest

from deaios.runtime.disk import PRIVATE, UnavailableDisk, write_atomic


def test_content_is_replaced_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    write_atomic(path, b"one")
    write_atomic(path, b"two", PRIVATE)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == PRIVATE
    assert [p.name for p in path.parent.iterdir()] == ["b"]


def test_a_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    (path / "inside").mkdir(parents=True)
    with pytest.raises(UnavailableDisk, match="cannot write"):
        write_atomic(path, b"x")
    assert (path / "inside").is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder"]
