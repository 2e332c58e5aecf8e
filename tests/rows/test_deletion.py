"""What was deleted stays deleted, what was not stays, and the disk gets its bytes back, whatever befalls the store."""

import contextlib
import errno
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from deaios.rows import store as store_module
from deaios.rows.store import ENTRY_OVERHEAD_BYTES, RowStore, UnavailableEntry
from deaios.runtime.disk import UnavailableDisk
from deaios.runtime.errors import RefusedFull

QUOTA = 1 << 30
EVERYTHING = 1 << 40
A, B, C = b"\xaa" * 32, b"\xbb" * 32, b"\xcc" * 32


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "rows"


@pytest.fixture(autouse=True)
def small_packs(monkeypatch):
    monkeypatch.setattr(store_module, "PACK_BYTES_MAX", 1000)
    monkeypatch.setattr(store_module, "COPY_BYTES_MAX", 250)


def fill(store, count, size=100, commitment=A):
    for index in range(count):
        store.put_row(commitment, index, bytes([index % 256]) * size)


def packs(folder):
    return sorted(int(path.stem) for path in folder.glob("*.pack"))


def disk_bytes(folder):
    return sum(path.stat().st_size for path in folder.glob("*.pack"))


def assert_honest(store, folder, entries):
    assert store.used_bytes == disk_bytes(folder) + entries * ENTRY_OVERHEAD_BYTES


def test_deleted_rows_are_gone_and_the_others_are_not(folder):
    store = RowStore(folder, QUOTA)
    fill(store, 3)
    store.put_manifest(A, b"manifest")
    assert store.delete_rows([(A, 1), (A, 7), (B, 0)]) == 1
    assert store.delete_rows([(A, 1)]) == 0
    assert store.delete_rows([]) == 0
    assert (store.get_row(A, 1), store.get_row_size(A, 1)) == (None, None)
    assert (store.get_row(A, 0), store.get_row(A, 2), store.get_manifest(A)) == (bytes(100), b"\2" * 100, b"manifest")
    store.close()
    store = RowStore(folder, QUOTA)
    assert [store.get_row(A, index) for index in range(3)] == [bytes(100), None, b"\2" * 100]
    assert store.put_row(A, 1, b"again")
    assert store.get_row(A, 1) == b"again"
    store.close()


def test_rows_are_listed_in_order_piece_by_piece(folder):
    store = RowStore(folder, QUOTA)
    assert store.list_rows(None, 10) == []
    kept = [(commitment, index) for commitment in (A, B, C) for index in (0, 1, 255, 256, 65_535)]
    for commitment, index in random.Random(1).sample(kept, len(kept)):
        store.put_row(commitment, index, b"x")
        store.put_manifest(commitment, b"manifest")
    seen, after = [], None
    while page := store.list_rows(after, 4):
        assert len(page) <= 4
        seen += page
        after = page[-1]
    assert seen == kept
    assert store.list_rows((B, 2), 2) == [(B, 255), (B, 256)], "the row after which it goes on need not be there"
    store.delete_rows(kept[:6])
    assert store.list_rows(None, 100) == kept[6:]
    store.close()


def test_dead_bytes_count_until_they_are_given_back(folder):
    store = RowStore(folder, QUOTA)
    fill(store, 30)
    assert packs(folder) == [0, 1, 2]
    store.delete_rows([(A, index) for index in range(8)])
    assert store.used_bytes == 3000 + 22 * ENTRY_OVERHEAD_BYTES, "dead bytes lie on the disk"
    store.delete_rows([(A, 8), (A, 9)])
    assert packs(folder) == [1, 2], "a pack without entries goes at once"
    assert store.used_bytes == 2000 + 20 * ENTRY_OVERHEAD_BYTES
    store.delete_rows([(A, index) for index in range(20, 30)])
    assert packs(folder) == [1], "the current one too"
    assert_honest(store, folder, 10)
    store.put_row(A, 0, b"x" * 100)
    assert packs(folder) == [1, 3], "no number is used twice in one life"
    store.delete_rows([(A, 0), *((A, index) for index in range(10, 20))])
    assert (packs(folder), store.used_bytes, store.free_bytes) == ([], 0, QUOTA)
    store.close()


def test_a_full_store_refuses_until_it_is_compacted(folder):
    store = RowStore(folder, quota_bytes=3000 + 30 * ENTRY_OVERHEAD_BYTES)
    fill(store, 30)
    store.delete_rows([(A, index) for index in range(30) if index % 5])
    assert disk_bytes(folder) == 3000
    with pytest.raises(RefusedFull, match="quota"):
        store.put_row(B, 0, bytes(3000 + 24 * ENTRY_OVERHEAD_BYTES))
    assert store.compact(EVERYTHING) == 2400
    assert disk_bytes(folder) == 600
    assert_honest(store, folder, 6)
    assert store.put_row(B, 0, bytes(2000))
    assert [store.get_row(A, index) is not None for index in range(30)] == [index % 5 == 0 for index in range(30)]
    store.close()


def test_only_packs_that_are_mostly_dead_are_emptied_and_within_the_bound(folder):
    store = RowStore(folder, QUOTA)
    fill(store, 40)
    store.delete_rows([(A, index) for index in (*range(5), *range(10, 16), *range(20, 28))])
    before = packs(folder)
    assert before == [0, 1, 2, 3]
    assert store.compact(100) == 0
    assert packs(folder) == before
    assert store.compact(599) == 800, "pack 2 first, as it has the least to copy; then 1 has more than what is left"
    assert packs(folder) == [0, 1, 3, 4]
    assert store.compact(EVERYTHING) == 600
    assert packs(folder) == [0, 3, 4], "half alive is not mostly dead"
    assert store.compact(EVERYTHING) == 0
    assert_honest(store, folder, 21)
    for index in (*range(5, 10), *range(16, 20), 28, 29, *range(30, 40)):
        assert store.get_row(A, index) == bytes([index]) * 100
    store.close()


def test_what_a_crash_left_is_removed_and_other_files_are_left_alone(folder):
    store = RowStore(folder, QUOTA)
    fill(store, 15)
    store.close()
    (folder / "00000007.pack").write_bytes(b"copies that nothing refers to")
    (folder / "notes.pack").write_bytes(b"not ours")
    with (folder / "00000001.pack").open("ab") as pack:
        pack.write(b"torn")
    store = RowStore(folder, QUOTA)
    assert sorted(path.name for path in folder.glob("*.pack")) == ["00000000.pack", "00000001.pack", "notes.pack"]
    assert store.used_bytes == 1500 + 15 * ENTRY_OVERHEAD_BYTES
    store.close()


def test_rotten_rows_are_moved_as_they_are_and_their_reader_is_told(folder):
    store = RowStore(folder, QUOTA)
    fill(store, 10)
    fill(store, 1, commitment=B)
    pack = folder / "00000000.pack"
    data = bytearray(pack.read_bytes())
    data[850] ^= 1
    pack.write_bytes(data[:950])
    store.delete_rows([(A, index) for index in range(7)])
    assert store.compact(EVERYTHING) > 0
    assert not pack.exists()
    assert store.get_row(A, 7) == b"\7" * 100
    for index in (8, 9):
        with pytest.raises(UnavailableEntry, match="rotted"):
            store.get_row(A, index)
        assert store.get_row(A, index) is None
    store.close()


def test_a_random_history_is_that_of_a_dictionary(folder):
    dice = random.Random(7)
    store, kept = RowStore(folder, QUOTA), {}
    compacted = 0
    for step in range(600):
        key = (dice.choice((A, B, C)), dice.randrange(40))
        match dice.choices(("put", "delete", "compact", "reopen"), (60, 30, 5, 2))[0]:
            case "put":
                data = dice.randbytes(dice.choice((0, 1, 50, 300, 1500)))
                assert store.put_row(*key, data) == (key not in kept)
                kept.setdefault(key, data)
            case "delete":
                keys = [key, *dice.sample(sorted(kept), min(len(kept), dice.randrange(12)))]
                assert store.delete_rows(keys) == len(kept.keys() & set(keys))
                kept = {other: data for other, data in kept.items() if other not in keys}
            case "compact":
                compacted += store.compact(dice.choice((200, EVERYTHING)))
            case "reopen":
                store.close()
                store = RowStore(folder, QUOTA)
        assert_honest(store, folder, len(kept))
        assert store.get_row(*key) == kept.get(key), step
    assert store.list_rows(None, 1000) == sorted(kept)
    assert {key: store.get_row(*key) for key in kept} == kept
    assert compacted > 1000, "nothing was ever compacted"
    store.close()


class Died(BaseException):
    """The process is gone."""


class Crashing:
    """Lets the store die at its n-th step on the disk; every other write of a dying one is torn."""

    def __init__(self, monkeypatch, at):
        self.steps = 0
        self.at = at
        self.patch = monkeypatch
        for holder, name in (
            (store_module.os, "pwrite"),
            (store_module.os, "fsync"),
            (store_module, "transaction"),
            (Path, "unlink"),
        ):
            monkeypatch.setattr(holder, name, self.wrap(name, getattr(holder, name)))

    def wrap(self, name, real):
        def step(*arguments, **options):
            self.steps += 1
            if self.steps != self.at:
                return real(*arguments, **options)
            if name == "pwrite":
                descriptor, data, offset = arguments
                real(descriptor, data[: len(data) // 2], offset)
            elif name == "transaction":
                return self.die_inside(real(*arguments))
            raise Died

        return step

    @contextlib.contextmanager
    def die_inside(self, real):
        with real as connection:
            yield connection
            raise Died


def test_a_crash_at_any_step_loses_nothing_and_brings_nothing_back(tmp_path, monkeypatch):
    """Put, delete, compact, put; dying at the first, second, … step until there is none left."""
    gone = [(A, index) for index in range(20) if index % 4]
    deaths = 0
    for at in range(1, 200):
        folder = tmp_path / str(at)
        store = RowStore(folder, QUOTA)
        fill(store, 20)
        acknowledged = {(A, index): bytes([index]) * 100 for index in range(20)}
        uncertain = set()
        with monkeypatch.context() as patch:
            Crashing(patch, at)
            try:
                uncertain = set(gone)
                store.delete_rows(gone)
                uncertain = set()
                acknowledged = {key: data for key, data in acknowledged.items() if key not in gone}
                store.compact(EVERYTHING)
                uncertain = {(B, 0)}
                store.put_row(B, 0, b"last")
                acknowledged[B, 0], uncertain = b"last", set()
                died = False
            except Died:
                died = True
        store._index.close()
        deaths += died
        store = RowStore(folder, QUOTA)
        found = {key: store.get_row(*key) for key in store.list_rows(None, 100)}
        certain = {key: data for key, data in acknowledged.items() if key not in uncertain}
        assert {key: data for key, data in found.items() if key not in uncertain} == certain, at
        assert_honest(store, folder, len(found))
        assert store.put_row(C, 0, b"and on")
        assert store.get_row(C, 0) == b"and on"
        store.close()
        if not died:
            break
    assert deaths == at - 1 > 10
    assert len(packs(folder)) == 1


@pytest.mark.parametrize("failing", ["fsync", "commit"])
def test_a_disk_that_fails_under_compaction_leaves_every_row_where_it_was(folder, monkeypatch, failing):
    store = RowStore(folder, QUOTA)
    fill(store, 30)
    store.delete_rows([(A, index) for index in range(30) if index % 5])

    def fail(_descriptor):
        raise OSError(errno.EIO, "no")

    @contextlib.contextmanager
    def fail_to_commit(index):
        with real_transaction(index) as connection:
            yield connection
            raise sqlite3.OperationalError("no")

    real_transaction = store_module.transaction
    with monkeypatch.context() as patch:
        if failing == "fsync":
            patch.setattr(store_module.os, "fsync", fail)
        else:
            patch.setattr(store_module, "transaction", fail_to_commit)
        with pytest.raises(UnavailableDisk, match="pack 0 was not emptied"):
            store.compact(EVERYTHING)
        with pytest.raises(UnavailableDisk, match="1 rows were not deleted" if failing == "commit" else "not stored"):
            store.delete_rows([(A, 0)]) if failing == "commit" else store.put_row(B, 0, b"x")
    assert_honest(store, folder, 6)
    assert [store.get_row(A, index) for index in range(0, 30, 5)] == [bytes([i]) * 100 for i in range(0, 30, 5)]
    store.compact(EVERYTHING)
    assert_honest(store, folder, 6)
    assert disk_bytes(folder) in {600, 800}, "copies of the failed attempt may be left beside those that count"
    assert [store.get_row(A, index) for index in range(0, 30, 5)] == [bytes([i]) * 100 for i in range(0, 30, 5)]
    store.close()


def test_readers_beside_deletion_and_compaction_see_the_row_or_nothing(folder):
    store = RowStore(folder, QUOTA)
    fill(store, 32)
    stays = {index: bytes([index]) * 100 for index in range(0, 32, 8)}
    over = threading.Event()
    wrong, reads = [], [0] * 2

    def read(reader):
        dice = random.Random(reader)
        while not over.is_set():
            index = dice.randrange(32)
            try:
                data = store.get_row(A, index)
            except UnavailableEntry as error:
                wrong.append(error)
                continue
            reads[reader] += 1
            if data != bytes([index]) * 100 and (data is not None or index in stays):
                wrong.append((index, data))

    readers = [threading.Thread(target=read, args=(reader,)) for reader in range(len(reads))]
    for reader in readers:
        reader.start()
    dice, freed = random.Random(9), 0
    for _ in range(10):
        goes = [index for index in range(32) if index not in stays and dice.random() < 0.7]
        store.delete_rows([(A, index) for index in goes])
        freed += store.compact(EVERYTHING)
        for index in goes:
            store.put_row(A, index, bytes([index]) * 100)
    over.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert freed > 0
    assert min(reads) > 10
    assert {index: store.get_row(A, index) for index in stays} == stays
    store.close()


def test_a_reader_whose_row_moved_between_look_up_and_read_gets_it(folder, monkeypatch):
    store = RowStore(folder, QUOTA)
    fill(store, 10)
    real, happened = store._read, []

    def read(pack, offset, size):
        if not happened:
            happened.append(pack)
            store.delete_rows([(A, index) for index in range(9)])
            store.compact(EVERYTHING)
        return real(pack, offset, size)

    monkeypatch.setattr(store, "_read", read)
    assert store.get_row(A, 9) == b"\x09" * 100
    assert (happened, packs(folder)) == ([0], [1])
    happened.clear()

    def read_deleted(pack, offset, size):
        if not happened:
            happened.append(pack)
            store.delete_rows([(A, 9)])
        return real(pack, offset, size)

    monkeypatch.setattr(store, "_read", read_deleted)
    assert store.get_row(A, 9) is None
    assert (happened, packs(folder)) == ([1], [])
    store.close()


WORKER = textwrap.dedent(
    """
    import random, sys, threading
    from pathlib import Path
    from deaios.rows import store as store_module
    from deaios.rows.store import RowStore

    store_module.PACK_BYTES_MAX = 100_000
    life = int(sys.argv[2])
    store = RowStore(Path(sys.argv[1]), 1 << 30)
    lock = threading.Lock()

    def say(*words):
        with lock:
            print(*words, flush=True)

    def compact():
        while True:
            say("freed", store.compact(1 << 30), 0)

    threading.Thread(target=compact, daemon=True).start()
    dice, kept, index = random.Random(life), [], 0
    while True:
        store.put_row(bytes([life]) * 32, index, index.to_bytes(4, "big") * 1000)
        say("put", index, index)
        kept.append(index)
        index += 1
        if len(kept) > 60:
            dice.shuffle(kept)
            gone, kept = kept[:50], kept[50:]
            say("deleting", *gone)
            store.delete_rows([(bytes([life]) * 32, row) for row in gone])
            say("deleted", *gone)
    """
)


def test_kill_9_under_deletion_and_compaction(folder):
    held, gone, freed = {}, set(), 0
    for life in range(3):
        commitment, doubtful, puts = bytes([life]) * 32, set(), 0
        with subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), str(life)], stdout=subprocess.PIPE, text=True
        ) as worker:
            for line in worker.stdout:
                if not line.endswith("\n"):
                    break
                word, *numbers = line.split()
                keys = {(commitment, int(number)) for number in numbers}
                match word:
                    case "put":
                        puts += 1
                        held |= {key: key[1].to_bytes(4) * 1000 for key in keys}
                        if puts == 130 + 37 * life:
                            worker.send_signal(signal.SIGKILL)
                    case "deleting":
                        doubtful |= keys
                    case "deleted":
                        doubtful -= keys
                        gone |= keys
                    case "freed":
                        freed += int(numbers[0])
        for key in gone | doubtful:
            held.pop(key, None)
        store = RowStore(folder, QUOTA)
        assert {key: store.get_row(*key) for key in held} == held
        assert {key for key in gone if store.get_row(*key) is not None} == set()
        for key in doubtful:
            assert store.get_row(*key) in (None, key[1].to_bytes(4) * 1000)
        listed = store.list_rows(None, 10_000)
        assert_honest(store, folder, len(listed))
        store.delete_rows(doubtful)
        gone |= doubtful
        store.close()
    assert freed > 0, "nothing was ever compacted"
    assert len(gone) > 100
