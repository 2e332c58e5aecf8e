"""What passed once is not checked again on this boot, and whatever its result rests on brings the check back."""

import os
import threading
from pathlib import Path

import pytest

from deaios.node import passed
from deaios.node.passed import PassedChecks


def wants(home: Path, file: Path, *facts: object) -> bool:
    with PassedChecks(home).once("root", file, *facts) as is_wanted:
        return is_wanted


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    return path


def test_a_check_is_made_once(tmp_path: Path, file: Path) -> None:
    assert [wants(tmp_path, file, 1), wants(tmp_path, file, 1)] == [True, False]


def test_another_file_fact_or_boot_is_checked_anew(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wants(tmp_path, file, 1)
    assert wants(tmp_path, file, 2)
    state = file.stat()
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert wants(tmp_path, file, 1), "the same size and time of writing, but other bytes"
    assert not wants(tmp_path, file, 1)
    copy = tmp_path / "copy"
    copy.write_bytes(file.read_bytes())
    copy.replace(file)
    assert wants(tmp_path, file, 1)
    other = tmp_path / "boot"
    other.write_text("another boot\n")
    monkeypatch.setattr(passed, "_BOOT_ID", other)
    assert wants(tmp_path, file, 1)
    assert [path.name.split("-")[0] for path in (tmp_path / "passed").iterdir() if path.suffix != ".lock"] == [
        "another boot"
    ]


def test_what_failed_or_changed_meanwhile_is_not_remembered(tmp_path: Path, file: Path) -> None:
    with pytest.raises(ValueError, match="broken"), PassedChecks(tmp_path).once("root", file):
        raise ValueError("broken")
    with PassedChecks(tmp_path).once("root", file) as is_wanted:
        assert is_wanted
        file.write_bytes(b"other weights")
    assert wants(tmp_path, file)


def test_nothing_is_remembered_without_a_boot_id(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passed, "_BOOT_ID", tmp_path / "none")
    assert [wants(tmp_path, file), wants(tmp_path, file)] == [True, True]


def test_who_wants_the_same_check_waits_for_it(tmp_path: Path, file: Path) -> None:
    began, end, seen = threading.Event(), threading.Event(), []

    def first() -> None:
        with PassedChecks(tmp_path).once("root", file) as is_wanted:
            began.set()
            end.wait(30)
            seen.append(is_wanted)

    def second() -> None:
        seen.append(wants(tmp_path, file))

    one, two = threading.Thread(target=first), threading.Thread(target=second)
    one.start()
    assert began.wait(30)
    two.start()
    end.set()
    one.join()
    two.join()
    assert seen == [True, False]
