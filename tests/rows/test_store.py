"""The row store keeps what it acknowledged, through kill -9, torn writes, rot and a full quota."""

import errno
import os
import random
import signal
import subprocess
import sys
import textwrap

import pytest

from deaios.primitives.errors import ConfigError
from deaios.rows import store as store_module
from deaios.rows.store import ENTRY_OVERHEAD_BYTES, RowStore, UnavailableEntry
from deaios.runtime import journal
from deaios.runtime.disk import UnavailableDisk
from deaios.runtime.errors import RefusedFull

QUOTA = 1 << 30
A, B = b"\xaa" * 32, b"\xbb" * 32


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "rows"


def open_store(folder, quota=QUOTA):
    return RowStore(folder, quota)


def test_what_was_put_can_be_got_and_survives_reopening(folder):
    store = open_store(folder)
    assert store.put_row(A, 0, b"row zero")
    assert store.put_row(A, 1, b"row one")
    assert store.put_manifest(A, b"manifest")
    assert not store.put_row(A, 0, b"something else")
    used = store.used_bytes
    assert used == 8 + 7 + 8 + 3 * ENTRY_OVERHEAD_BYTES
    store.close()
    store = open_store(folder)
    assert [store.get_row(A, 0), store.get_row(A, 1), store.get_row(A, 2), store.get_row(B, 0)] == [
        b"row zero",
        b"row one",
        None,
        None,
    ]
    assert (store.get_manifest(A), store.get_manifest(B)) == (b"manifest", None)
    assert (store.get_row_size(A, 1), store.get_row_size(B, 1), store.get_manifest_size(A)) == (7, None, 8)
    assert store.used_bytes == used
    store.close()


def test_packs_roll_over_and_reopen_in_the_last_one(folder, monkeypatch):
    monkeypatch.setattr(store_module, "PACK_BYTES_MAX", 1000)
    dice = random.Random(1)
    kept = {index: dice.randbytes(dice.randrange(1, 1500)) for index in range(30)}
    for first in (0, 15):
        store = open_store(folder)
        for index in range(first, first + 15):
            store.put_row(A, index, kept[index])
        store.close()
    store = open_store(folder)
    assert {index: store.get_row(A, index) for index in kept} == kept
    assert len(list(folder.glob("*.pack"))) > 10
    store.close()


def test_quota_is_refused_before_anything_is_written(folder):
    store = open_store(folder, quota=1000 + ENTRY_OVERHEAD_BYTES)
    with pytest.raises(RefusedFull, match="quota"):
        store.put_row(A, 0, bytes(1001))
    assert not list(folder.glob("*.pack"))
    assert store.put_row(A, 0, bytes(1000))
    assert store.free_bytes == 0
    with pytest.raises(RefusedFull):
        store.put_row(A, 1, b"")
    store.close()
    smaller = open_store(folder, quota=10)
    assert smaller.get_row(A, 0) == bytes(1000)
    assert smaller.free_bytes == 0
    smaller.close()


def test_a_torn_write_is_overwritten(folder):
    store = open_store(folder)
    store.put_row(A, 0, b"kept")
    store.close()
    with (folder / "00000000.pack").open("ab") as pack:
        pack.write(b"half of a row that was never acknowledged")
    store = open_store(folder)
    store.put_row(A, 1, b"next")
    assert (store.get_row(A, 0), store.get_row(A, 1)) == (b"kept", b"next")
    store.close()
    assert (folder / "00000000.pack").read_bytes().startswith(b"keptnext")


@pytest.mark.parametrize("rot", ["flip", "truncate", "remove"])
def test_rot_is_reported_once_and_can_be_repaired(folder, rot):
    store = open_store(folder)
    store.put_row(A, 0, b"kept")
    store.put_row(A, 1, b"rotten")
    pack = folder / "00000000.pack"
    data = pack.read_bytes()
    if rot == "flip":
        pack.write_bytes(data[:-1] + b"?")
    elif rot == "truncate":
        pack.write_bytes(data[:-1])
    else:
        pack.unlink()
    with pytest.raises(UnavailableEntry, match="rotted"):
        store.get_row(A, 1)
    assert store.get_row(A, 1) is None
    assert store.put_row(A, 1, b"rotten")
    assert store.get_row(A, 1) == b"rotten"
    if rot != "remove":
        assert store.get_row(A, 0) == b"kept"
    store.close()


@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, RefusedFull), (errno.EIO, UnavailableDisk)])
def test_a_failing_disk_acknowledges_nothing(folder, monkeypatch, code, error):
    store = open_store(folder)
    store.put_row(A, 0, b"kept")
    used = store.used_bytes

    def fail(descriptor):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(store_module.os, "fsync", fail)
        with pytest.raises(error):
            store.put_row(A, 1, b"lost")
    assert (store.get_row(A, 1), store.used_bytes) == (None, used)
    assert store.put_row(A, 1, b"found")
    assert (store.get_row(A, 0), store.get_row(A, 1)) == (b"kept", b"found")
    store.close()


def test_a_full_index_rolls_back_and_lives_on(folder):
    store = open_store(folder)
    store.put_row(A, 0, b"kept")
    pages = store._index.execute("PRAGMA page_count").fetchone()[0]
    store._index.execute(f"PRAGMA max_page_count={pages}")
    accepted = []

    def fill():
        for index in range(1, 1000):
            store.put_row(A, index, b"x")
            accepted.append(index)

    with pytest.raises(RefusedFull, match="disk is full"):
        fill()
    store._index.execute("PRAGMA max_page_count=1000000")
    assert store.put_row(B, 0, b"after")
    assert store.get_row(A, accepted[-1]) == b"x"
    assert store.get_row(A, accepted[-1] + 1) is None
    store.close()


WRITER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from deaios.rows.store import RowStore
    store = RowStore(Path(sys.argv[1]), 1 << 30)
    index = 0
    while True:
        store.put_row(bytes(32), index, index.to_bytes(4, "big") * 5000)
        print(index, flush=True)
        index += 1
    """
)


def test_nothing_acknowledged_is_lost_by_kill_9_and_one_process_at_a_time(folder, monkeypatch):
    monkeypatch.setattr(journal, "BUSY_TIMEOUT_MS", 1)
    with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True) as writer:
        acknowledged = [int(writer.stdout.readline()) for _ in range(20)]
        with pytest.raises(ConfigError):
            open_store(folder)
        writer.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
    store = open_store(folder)
    for index in acknowledged:
        assert store.get_row(bytes(32), index) == index.to_bytes(4) * 5000
    assert store.put_row(bytes(32), 60_000, b"goes on")
    store.close()
