"""Files survive missing, slow, lying and full nodes; no unverified byte reaches a target."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deaios.primitives.errors import ConfigError
from deaios.rows.manifest import Manifest
from deaios.runtime.errors import RefusedTooLarge
from deaios.storage.client import InvalidContent, StorageClient, UnavailableRows
from deaios.storage.client import files as files_module
from deaios.storage.placement import compute_home, order_attempts, order_nodes

sys.path.insert(0, str(Path(__file__).parent))
from storage_nodes import (
    NETWORK,
    TIMINGS,
    CountingStore,
    ForgettingStore,
    LyingStore,
    StalledStore,
    StalledWriter,
    build_file,
    open_cluster,
)

HONEST = (CountingStore, CountingStore, CountingStore)
SEGMENT = 20_000


@pytest.fixture
async def cluster(tmp_path, monkeypatch):
    monkeypatch.setattr(files_module, "SEGMENT_BYTES_MAX", SEGMENT)
    async with open_cluster(tmp_path) as opened:
        await opened.start()
        yield opened


def replace_node(index, kind):
    return tuple(kind if i == index else honest for i, honest in enumerate(HONEST))


@pytest.mark.parametrize("size", [0, 1, SEGMENT, SEGMENT + 1, 5 * SEGMENT - 7])
async def test_files_come_back_whole(cluster, tmp_path, size):
    data = build_file(tmp_path / "source", size)
    seen = []
    manifest_id = await cluster.client().put_file(tmp_path / "source", lambda *step: seen.append(step))
    assert seen == [(min(done, size), size) for done in range(SEGMENT, size + SEGMENT, SEGMENT)]
    seen.clear()
    manifest = await cluster.client().get_file(manifest_id, tmp_path / "to/target", lambda *step: seen.append(step))
    assert (tmp_path / "to/target").read_bytes() == data
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["target"]
    assert seen == [(min(done, size), size) for done in range(SEGMENT, size + SEGMENT, SEGMENT)]
    assert (manifest.manifest_id, manifest.size_bytes) == (manifest_id, size)
    assert await cluster.client().put_bytes(data) == manifest_id
    assert await cluster.client().get_bytes(manifest_id, size) == data


@pytest.mark.parametrize("bad", [None, LyingStore, StalledStore, ForgettingStore])
@pytest.mark.parametrize("index", [0, 1, 2])
async def test_one_bad_node_of_three_does_not_matter_to_readers(cluster, tmp_path, bad, index):
    data = build_file(tmp_path / "source", 4 * SEGMENT)
    if bad is ForgettingStore:
        await cluster.start(replace_node(index, bad))
    manifest_id = await cluster.client().put_file(tmp_path / "source")
    await cluster.start(replace_node(index, bad))
    await cluster.client().get_file(manifest_id, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == data
    if bad is not None:
        assert cluster.stores[index].rows_read > 0, "the fault never happened"
    if bad is StalledStore:
        cluster.stores[index].over.set()


@pytest.mark.parametrize("index", [0, 1, 2])
async def test_one_missing_node_does_not_matter_to_writers(cluster, tmp_path, index):
    data = build_file(tmp_path / "source", 3 * SEGMENT)
    await cluster.start(replace_node(index, None))
    manifest_id = await cluster.client().put_file(tmp_path / "source")
    await cluster.start()
    await cluster.client().get_file(manifest_id, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == data


async def test_one_stalled_node_delays_a_writer_once(cluster, tmp_path):
    data = build_file(tmp_path / "source", 4 * SEGMENT)
    await cluster.start((CountingStore, StalledWriter, CountingStore))
    manifest_id = await cluster.client(timings=replace(TIMINGS, transfer_s=1.0)).put_file(tmp_path / "source")
    assert cluster.stores[1].writes_stalled == 1
    cluster.stores[1].over.set()
    await cluster.start((CountingStore, None, CountingStore))
    await cluster.client().get_file(manifest_id, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == data


async def test_two_lost_nodes_of_three_are_reported_and_nothing_is_left(cluster, tmp_path):
    build_file(tmp_path / "source", 2 * SEGMENT)
    manifest_id = await cluster.client().put_file(tmp_path / "source")
    await cluster.start((LyingStore, None, CountingStore))
    with pytest.raises(UnavailableRows, match="1 of 2 rows found on 3 nodes"):
        await cluster.client().get_file(manifest_id, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    await cluster.start((None, None, CountingStore))
    with pytest.raises(UnavailableRows, match="rows lie on 1 nodes"):
        await cluster.client().put_file(tmp_path / "source")
    await cluster.start((None, None, None))
    with pytest.raises(UnavailableRows, match="no node took"):
        await cluster.client().put_file(tmp_path / "source")
    with pytest.raises(UnavailableRows, match="0 of 1"):
        await cluster.client().fetch_manifest(manifest_id)


async def test_a_client_that_lost_two_nodes_of_three_writes_again_once_they_are_back(cluster):
    client = cluster.client()
    for index in (1, 2):
        cluster.stores[index]._quota_bytes = 0
    with pytest.raises(UnavailableRows, match="rows lie on 1 nodes"):
        await client.put_bytes(b"while two have no room")
    for index in (1, 2):
        cluster.stores[index]._quota_bytes = 1 << 30
    manifest_id = await client.put_bytes(b"afterwards")
    await cluster.start((None, CountingStore, CountingStore))
    assert await cluster.client().get_bytes(manifest_id, 100) == b"afterwards"


async def test_full_nodes_take_nothing_and_say_so(cluster, tmp_path):
    build_file(tmp_path / "source", SEGMENT)
    await cluster.start(quota=1000)
    with pytest.raises(UnavailableRows, match="RefusedFull"):
        await cluster.client().put_file(tmp_path / "source")
    assert all(store.used_bytes == 0 for store in cluster.stores.values())


async def test_an_interrupted_get_goes_on_where_it_stopped(cluster, tmp_path):
    data = build_file(tmp_path / "source", 6 * SEGMENT)
    manifest_id = await cluster.client().put_file(tmp_path / "source")

    class InterruptionError(Exception):
        pass

    def interrupt(done, _total):
        if done == 4 * SEGMENT:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        await cluster.client().get_file(manifest_id, tmp_path / "target", interrupt)
    assert not (tmp_path / "target").exists()
    await cluster.start()
    await cluster.client().get_file(manifest_id, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == data
    assert cluster.rows_read == 2 * 2


async def test_a_damaged_partial_file_is_fetched_again(cluster, tmp_path):
    data = build_file(tmp_path / "source", 3 * SEGMENT)
    manifest_id = await cluster.client().put_file(tmp_path / "source")
    partial = tmp_path / f".target.{manifest_id.hex()[:16]}.part"
    partial.write_bytes(b"\xff" * (2 * SEGMENT + 5))
    await cluster.client().get_file(manifest_id, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == data
    assert not partial.exists()


async def test_a_right_target_is_left_alone_and_a_wrong_one_replaced(cluster, tmp_path):
    data = build_file(tmp_path / "source", 2 * SEGMENT)
    manifest_id = await cluster.client().put_file(tmp_path / "source")
    target = tmp_path / "target"
    target.write_bytes(bytes(len(data)))
    await cluster.client().get_file(manifest_id, target)
    assert target.read_bytes() == data
    before = (target.stat().st_mtime_ns, target.stat().st_ino, cluster.rows_read)
    await cluster.client().get_file(manifest_id, target)
    assert (target.stat().st_mtime_ns, target.stat().st_ino, cluster.rows_read) == before


async def test_a_repeated_put_sends_nothing_again(cluster, tmp_path):
    build_file(tmp_path / "source", 2 * SEGMENT)
    first = await cluster.client().put_file(tmp_path / "source")
    used = [store.used_bytes for store in cluster.stores.values()]
    assert await cluster.client().put_file(tmp_path / "source") == first
    assert [store.used_bytes for store in cluster.stores.values()] == used


async def test_a_manifest_that_lies_about_its_content_is_found_out(cluster, tmp_path):
    data = build_file(tmp_path / "source", 2 * SEGMENT)
    client = cluster.client()
    honest = await client.fetch_manifest(await client.put_file(tmp_path / "source"))
    forged = Manifest(honest.profile, honest.size_bytes, b"\x07" * 32, honest.segments)
    swapped = Manifest(honest.profile, honest.size_bytes, honest.content_id, honest.segments[::-1])
    for manifest in (forged, swapped):
        await client._put_manifest(manifest)
        with pytest.raises(InvalidContent, match="content id"):
            await client.get_file(manifest.manifest_id, tmp_path / "target")
        with pytest.raises(InvalidContent, match="content id"):
            await client.get_bytes(manifest.manifest_id, len(data))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["source"]


async def test_small_reads_are_bounded_and_writes_need_a_key(cluster):
    manifest_id = await cluster.client().put_bytes(b"x" * 100)
    with pytest.raises(RefusedTooLarge, match="100 bytes, at most 99"):
        await cluster.client().get_bytes(manifest_id, 99)
    reader = StorageClient(cluster.http, cluster.urls, None, NETWORK, timings=TIMINGS)
    assert await reader.get_bytes(manifest_id, 100) == b"x" * 100
    with pytest.raises(ConfigError, match="no key"):
        await reader.put_bytes(b"y")
    with pytest.raises(ConfigError, match="0 nodes configured"):
        StorageClient(cluster.http, [], None, NETWORK)


async def test_a_file_that_shrinks_while_it_is_read_is_refused(cluster, tmp_path):
    source = tmp_path / "source"
    build_file(source, 3 * SEGMENT)
    with pytest.raises(InvalidContent, match="file ended"):
        await cluster.client().put_file(source, lambda *_: source.write_bytes(b""))


def test_homes_rotate_and_every_row_can_be_asked_of_every_node():
    commitment = (7).to_bytes(8) + bytes(24)
    assert [compute_home(commitment, row, 3) for row in range(3)] == [1, 2, 0]
    assert order_nodes(commitment, 0, 3, ()) == [1, 2, 0]
    assert order_nodes(commitment, 0, 3, {1}) == [2, 0, 1]
    attempts = order_attempts(commitment, 3, 3, {0})
    assert len(set(attempts)) == 9
    assert [attempt.node for attempt in attempts[-3:]] == [0, 0, 0]
    assert [(a.row, a.node) for a in attempts[:2]] == [(0, 1), (1, 2)]
