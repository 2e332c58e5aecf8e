"""A member's door, over real sockets and without a chain: whatever comes, it signs only what it keeps."""

import asyncio
import errno
import json
import random
import threading
import tracemalloc

import aiohttp
import msgspec
import pytest

from deaios.coding.head import Head
from deaios.coding.matrix import CodedMatrix, RowVerifier, encode
from deaios.coding.parameters import LEAF_BYTES, Parameters, Profile
from deaios.coding.tree import build_levels, hash_rows, seal_root
from deaios.da import wire
from deaios.da.service import door as door_module
from deaios.da.store import Pledge
from deaios.da.wire import InvalidLeaves, LeavesAnswer, read_leaves
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Invalid, Refused
from deaios.primitives.keys import PrivateKey
from deaios.rows import store as rows_module
from deaios.rows.message import build_message
from deaios.runtime.authentication import WINDOW_MS
from deaios.runtime.clock import SystemClock
from deaios.runtime.errors import RefusedFull

HOUR = 3600
SMALL, LARGE = b"some bytes of a blob" * 40, random.Random(1).randbytes(300_000)


@pytest.fixture
async def member(tmp_path, member_door):
    async with member_door.serve_member(tmp_path) as door, aiohttp.ClientSession() as session:
        door.kit, door.session = member_door, session
        yield door


async def put(member, matrix, index, body=None):
    return (await member.kit.put_row(member.session, member.url, matrix, index, body))[:2]


async def put_mine(member, matrix):
    assert [await put(member, matrix, index) for index in member.kit.MINE] == [(201, None)] * 4


async def attest(member, attestation):
    return await member.kit.attest(member.session, member.url, attestation)


async def get(member, path, **headers):
    async with member.session.get(member.url + path, headers=headers) as response:
        return response.status, await response.read()


def assert_nothing_is_promised(member):
    assert member.pledges.count() == (0, 0)


async def test_rows_go_in_and_an_attestation_comes_out(member):
    kit, matrix = member.kit, member.kit.code(LARGE)
    await put_mine(member, matrix)
    assert await put(member, matrix, 5) == (200, None), "again is no new row"
    attestation = kit.attestation_of(matrix)
    status, _, answer = await attest(member, attestation)
    assert status == 200
    kit.check_signature(attestation, answer)
    assert member.pledges.count() == (0, 1)
    status, _, again = await attest(member, attestation)
    assert (status, again, member.pledges.count()) == (200, answer, (0, 1))
    for index in kit.MINE:
        status, body = await get(member, kit.row_path(matrix, index))
        assert (status, body) == (200, build_message(matrix, index).encode())
    async with member.session.head(member.url + kit.row_path(matrix, 4)) as response:
        assert (response.status, response.content_length) == (200, len(body))
    async with member.session.head(member.url + kit.row_path(matrix, 9)) as response:
        assert response.status == 404


async def test_rows_of_the_epoch_before_are_taken_while_it_is_known(member):
    """The disperser may have begun just before the seats turned."""
    kit, matrix = member.kit, member.kit.code(SMALL)
    assert [await put(member, matrix, index) for index in range(4)] == [(201, None)] * 4
    before = kit.attestation_of(matrix, epoch=8)
    status, _, answer = await attest(member, before)
    assert status == 200
    assert json.loads(answer)["place"] == 0
    member.seating = kit.seating_of(kit.committee_of(10, 8), kit.committee_of(9, 4))
    assert (await attest(member, before))[:2] == (403, "RefusedTerm")
    assert await put(member, matrix, 0) == (403, "RefusedRow")
    assert await put(member, matrix, 9) == (201, None)


async def test_rows_that_are_not_this_member_s(member):
    matrix = member.kit.code(SMALL)
    for index in (8, 9, 10, 11):
        assert await put(member, matrix, index) == (403, "RefusedRow")
    for profile in (Profile(4, 13), Profile(3, 12), Profile(5, 12), Profile(2, 3), Profile(1024, 4096)):
        index = min(4, profile.rows - 1)
        assert await put(member, encode(SMALL, profile), index) == (403, "RefusedRow"), profile
    assert member.rows.list_rows(None, 9) == []


async def test_a_row_under_another_name_is_not_taken(member):
    matrix, other = member.kit.code(SMALL), member.kit.code(SMALL[::-1])
    for commitment_of, index, body_of, row in ((other, 4, matrix, 4), (matrix, 5, matrix, 4), (matrix, 4, other, 4)):
        body = build_message(body_of, row).encode()
        assert (await put(member, commitment_of, index, body))[0] == 400
    assert await put(member, matrix, 4) == (201, None), "what was cached of the head by then is right"
    assert member.rows.list_rows(None, 9) == [(matrix.commitment, 4)]


async def test_a_flipped_bit_anywhere_is_refused(member):
    matrix = member.kit.code(SMALL)
    whole = build_message(matrix, 6).encode()
    places = range(len(whole)) if len(whole) < 300 else sorted(random.Random(3).sample(range(len(whole)), 150))
    head = range(len(whole) - matrix.head.parameters.row_bytes)
    for place in (*random.Random(4).sample(head, 100), *places):
        body = bytearray(whole)
        body[place] ^= 1 << place % 8
        status, title = await put(member, matrix, 6, bytes(body))
        assert (status in (400, 403), title is not None) == (True, True), place
    for body in (b"", whole[:-1], whole + b"\0", whole[1:], whole[:15], bytes(len(whole))):
        assert (await put(member, matrix, 6, body))[0] == 400
    assert member.rows.list_rows(None, 9) == []
    assert await put(member, matrix, 6, whole) == (201, None)


async def test_a_wrongly_coded_row_convicts_itself_at_the_door(member):
    """A publisher who commits to rows that are no codeword finds no member that takes them."""
    kit = member.kit
    matrix = kit.code(LARGE)
    rows = matrix.rows.copy()
    rows[5, 77] ^= 1
    levels = build_levels(hash_rows(rows))
    head = Head(matrix.head.parameters, seal_root(levels[-1].tobytes()), matrix.head.y)
    forged = CodedMatrix(head, rows, levels)
    results = [await put(member, forged, index) for index in kit.MINE]
    assert results[1] == (400, "InvalidRow")
    assert (await attest(member, kit.attestation_of(forged)))[:2] == (404, "NotFound")
    assert_nothing_is_promised(member)


async def test_signed_requests_that_are_stale_replayed_or_for_others(member):
    kit, matrix = member.kit, member.kit.code(SMALL)
    body, path = build_message(matrix, 4).encode(), member.kit.row_path(matrix, 4)
    now = SystemClock().now_ms()
    wrong = {
        "early": kit.sign("PUT", path, body, now_ms=now - WINDOW_MS - 5000),
        "late": kit.sign("PUT", path, body, now_ms=now + WINDOW_MS + 5000),
    }
    for headers in wrong.values():
        assert (await kit.ask(member.session, member.url, "PUT", path, body, headers))[:2] == (401, "RefusedStale")
    assert (await kit.ask(member.session, member.url, "PUT", path, body))[:2] == (401, "InvalidSignature")
    for name, value in (("X-DeAIOS-Time", "x"), ("X-DeAIOS-Time", "9" * 4000), ("X-DeAIOS-Signature", "0x")):
        headers = kit.sign("PUT", path, body) | {name: value}
        assert (await kit.ask(member.session, member.url, "PUT", path, body, headers))[0] in (400, 401), (name, value)
    good = kit.sign("PUT", path, body)
    assert (await kit.ask(member.session, member.url, "PUT", path, body, good))[0] == 201
    assert (await kit.ask(member.session, member.url, "PUT", path, body, good))[:2] == (401, "RefusedStale")
    for index in (5, 6, 7):
        await put(member, matrix, index)
    asked = wire.encode_attestation(kit.attestation_of(matrix))
    signed = kit.sign("POST", "/attestations", asked)
    assert (await kit.ask(member.session, member.url, "POST", "/attestations", asked, signed))[0] == 200
    assert (await kit.ask(member.session, member.url, "POST", "/attestations", asked, signed))[:2] == (
        401,
        "RefusedStale",
    )
    assert (await kit.ask(member.session, member.url, "POST", "/attestations", asked))[:2] == (401, "InvalidSignature")


async def test_a_policy_of_whose_rows_are_taken_holds_for_attestations_too(tmp_path, member_door):
    def refuse_strangers(signer):
        if signer != PrivateKey(b"\x66" * 32).address:
            raise Refused("not a customer")

    async with member_door.serve_member(tmp_path) as door, aiohttp.ClientSession() as session:
        door._door._admit = refuse_strangers
        matrix = member_door.code(SMALL)
        assert (await member_door.put_row(session, door.url, matrix, 4))[:2] == (403, "Refused")
        assert (await member_door.attest(session, door.url, member_door.attestation_of(matrix)))[:2] == (403, "Refused")
        assert (door.rows.list_rows(None, 9), door.pledges.count()) == ([], (0, 0))


async def test_nothing_is_attested_before_all_rows_are_there(member):
    kit, matrix = member.kit, member.kit.code(SMALL)
    for index in (4, 5, 7):
        await put(member, matrix, index)
        status, title, body = await attest(member, kit.attestation_of(matrix))
        assert (status, title) == (404, "NotFound")
    assert "rows [6]" in json.loads(body)["detail"]
    assert_nothing_is_promised(member)
    await put(member, matrix, 6)
    assert (await attest(member, kit.attestation_of(matrix)))[0] == 200


async def test_terms_and_epochs_that_are_not_promised(member):
    kit, matrix = member.kit, member.kit.code(SMALL)
    await put_mine(member, matrix)
    now = SystemClock().now_ms() // 1000
    for changes in (
        {"epoch": 7},
        {"epoch": 10},
        {"epoch": 0},
        {"epoch": 8, "expires_at": now},
        {"begins_at": now - 700},
        {"begins_at": now + 700},
        {"begins_at": 0},
        {"expires_at": now - 1},
        {"expires_at": now - 15},
        {"expires_at": 0},
        {"expires_at": now - 15 + kit.TERM_MAX + 10},
        {"expires_at": 2**64 - 1},
        {"begins_at": 2**64 - 1, "expires_at": 2**64 - 1},
    ):
        assert (await attest(member, kit.attestation_of(matrix, **changes)))[:2] == (403, "RefusedTerm"), changes
    assert_nothing_is_promised(member)
    longest = kit.attestation_of(matrix, begins_at=now, expires_at=now + kit.TERM_MAX)
    assert (await attest(member, longest))[0] == 200


async def test_requests_that_are_no_attestation(member):
    matrix = member.kit.code(SMALL)
    await put_mine(member, matrix)
    good = json.loads(wire.encode_attestation(member.kit.attestation_of(matrix)))
    bodies = [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        b"[" * 4000,
        b'{"x":' * 600,
        *(json.dumps(good | {name: value}).encode() for name, value in wrong_values()),
        *(json.dumps({other: good[other] for other in good if other != name}).encode() for name in good),
        json.dumps(good | {"unheardOf": 1}).encode(),
        json.dumps(good | {"unheardOf": [[[[[]]]]]}).encode(),
    ]
    for body in bodies:
        status, title, answer = await attest(member, body)
        assert status == 400, (body[:80], answer)
        assert title in {"InvalidBody", "InvalidAttestation", "InvalidEncoding"}, (title, body[:80])
    large = json.dumps(good | {"commitment": "0x" + "00" * 5000}).encode()
    assert (await attest(member, large))[:2] == (413, "RefusedTooLarge")
    assert_nothing_is_promised(member)


def wrong_values():
    numbers = (-1, 2**64, 10**30, 1.5, "1", None, True, [], {})
    names = ("epoch", "beginsAt", "expiresAt")
    yield from ((name, value) for name in names for value in numbers)
    texts = ("", "0x", "0x00", "0X" + "00" * 32, "0x" + "AB" * 32, "ab" * 32, "0x" + "00" * 33, 7, None)
    yield from (("commitment", text) for text in texts)


async def test_a_request_of_many_bytes_is_refused_before_they_are_read(member):
    for body in (bytes(1 << 20), b"[" * (1 << 20)):
        assert (await attest(member, body))[:2] == (413, "RefusedTooLarge")

    async def pieces():
        for _ in range(64):
            yield bytes(1 << 16)

    headers = member.kit.sign("POST", "/attestations", b"")
    async with member.session.post(member.url + "/attestations", data=pieces(), headers=headers) as response:
        assert response.status == 413


async def test_without_seats_nothing_is_taken_and_everything_is_read(member):
    matrix = member.kit.code(SMALL)
    await put_mine(member, matrix)
    member.seating = None
    assert await put(member, matrix, 4) == (503, "UnavailableSeat")
    assert (await attest(member, member.kit.attestation_of(matrix)))[:2] == (503, "UnavailableSeat")
    assert (await get(member, member.kit.row_path(matrix, 4)))[0] == 200
    assert_nothing_is_promised(member)


async def test_ranges_of_rows(member):
    matrix = member.kit.code(LARGE)
    await put_mine(member, matrix)
    path, whole = member.kit.row_path(matrix, 4), build_message(matrix, 4).encode()
    assert await get(member, path, Range="bytes=5-9") == (206, whole[5:10])
    assert await get(member, path, Range="bytes=-7") == (206, whole[-7:])
    assert await get(member, path, Range=f"bytes={len(whole) - 1}-") == (206, whole[-1:])
    assert (await get(member, path, Range=f"bytes={len(whole)}-"))[0] == 416
    assert await get(member, path, Range="bytes=0-1,5-9") == (200, whole)


# Leaves


async def fetch_leaves(member, matrix, index, first, last):
    status, body = await get(member, f"{member.kit.row_path(matrix, index)}/leaves/{first}-{last}")
    return status, body


async def test_leaves_prove_themselves(member):
    matrix = member.kit.code(LARGE)
    await put_mine(member, matrix)
    count = matrix.head.parameters.leaves_per_row
    row = bytes(matrix.get_row(5))
    for first, last in ((0, 0), (0, 63), (count - 1, count - 1), (count - 5, count - 1)):
        status, body = await fetch_leaves(member, matrix, 5, first, last)
        assert status == 200
        leaves = read_leaves(matrix.commitment, 5, range(first, last + 1), msgspec.json.decode(body, type=LeavesAnswer))
        assert b"".join(leaves) == row[first * LEAF_BYTES : (last + 1) * LEAF_BYTES]
    for first, last, status in ((0, 64, 413), (5, 4, 413), (count, count, 404), (0, 99999, 400), (99999, 99999, 400)):
        assert (await fetch_leaves(member, matrix, 5, first, last))[0] == status, (first, last)
    assert (await fetch_leaves(member, matrix, 9, 0, 0))[0] == 404
    assert (await get(member, member.kit.row_path(matrix, 5) + "/leaves/-1-0"))[0] == 404
    assert (await get(member, member.kit.row_path(matrix, 5) + "/leaves/٣-٣"))[0] in (400, 404)


async def test_hostile_leaves_are_refused(member):
    kit, matrix = member.kit, member.kit.code(LARGE)
    await put_mine(member, matrix)
    _, body = await fetch_leaves(member, matrix, 5, 2, 4)
    good = json.loads(body)
    other = kit.code(LARGE[::-1])
    wrong = [
        good | {"row": 6},
        good | {"row": -1},
        good | {"parameters": encode_hex(Parameters(kit.PROFILE, len(LARGE) - 1).encode())},
        good | {"parameters": "0x"},
        good | {"root": encode_hex(other.root)},
        good | {"root": "0x" + "00" * 31},
        good | {"combinationsHash": "0x" + "00" * 32},
        good | {"leaves": good["leaves"][:2]},
        good | {"leaves": good["leaves"][::-1]},
        good | {"leaves": [*good["leaves"], good["leaves"][0]]},
        good | {"leaves": []},
    ]
    for place in range(3):
        leaf = good["leaves"][place]
        flipped = "0x" + ("1" if leaf["data"][2] == "0" else "0") + leaf["data"][3:]
        for changed in (
            {"leaf": leaf["leaf"] + 1},
            {"leaf": -1},
            {"data": flipped},
            {"data": leaf["data"][:-2]},
            {"data": leaf["data"] + "00"},
            {"path": leaf["path"][:-1]},
            {"path": [*leaf["path"], leaf["path"][0]]},
            {"path": leaf["path"][::-1]},
            {"path": ["0x" + "00" * 32, *leaf["path"][1:]]},
            {"path": ["0x", *leaf["path"][1:]]},
            {"path": []},
        ):
            leaves = [leaf | changed if at == place else one for at, one in enumerate(good["leaves"])]
            wrong.append(good | {"leaves": leaves})
    for answer in wrong:
        with pytest.raises(Invalid):
            read_leaves(matrix.commitment, 5, range(2, 5), msgspec.convert(answer, LeavesAnswer))
    with pytest.raises(InvalidLeaves):
        read_leaves(other.commitment, 5, range(2, 5), msgspec.convert(good, LeavesAnswer))


async def test_many_leaves_cost_one_tree(member, monkeypatch):
    """Anybody may ask; a row was hashed once for each leaf, a gigabyte for one small question."""
    matrix = member.kit.code(LARGE)
    await put_mine(member, matrix)
    calls, real = [], wire.hash_leaves
    monkeypatch.setattr(wire, "hash_leaves", lambda row: calls.append(len(row)) or real(row))
    assert (await fetch_leaves(member, matrix, 5, 0, 63))[0] == 200
    assert calls == [matrix.head.parameters.row_bytes]


# Disks


async def test_a_full_quota_refuses_before_anything_is_said(member):
    kit, matrix = member.kit, member.kit.code(LARGE)
    for index in (4, 5, 6):
        await put(member, matrix, index)
    member.rows._quota_bytes = member.rows.used_bytes + 100
    assert await put(member, matrix, 7) == (507, "RefusedFull")
    assert (await attest(member, kit.attestation_of(matrix)))[:2] == (404, "NotFound")
    assert_nothing_is_promised(member)
    assert len(member.rows.list_rows(None, 9)) == 3
    member.rows._quota_bytes = 1 << 30
    assert await put(member, matrix, 7) == (201, None)
    assert (await attest(member, kit.attestation_of(matrix)))[0] == 200


async def test_a_disk_that_is_full_in_the_middle_of_a_row(member, monkeypatch):
    matrix = member.kit.code(LARGE)
    assert await put(member, matrix, 4) == (201, None)
    real = rows_module.os.pwrite

    def write_half(descriptor, data, offset):
        if len(data) < 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[: len(data) // 2], offset)

    for code, expected in ((errno.ENOSPC, (507, "RefusedFull")), (errno.EIO, (503, "UnavailableDisk"))):
        with monkeypatch.context() as patch:
            patch.setattr(rows_module.os, "pwrite", write_half)
            if code == errno.EIO:
                patch.setattr(rows_module.os, "fsync", fail_with(code))
                patch.setattr(rows_module.os, "pwrite", real)
            assert await put(member, matrix, 5) == expected
        assert member.rows.list_rows(None, 9) == [(matrix.commitment, 4)]
    for index in (5, 6, 7):
        assert await put(member, matrix, index) == (201, None)
    for index in member.kit.MINE:
        assert (await get(member, member.kit.row_path(matrix, index)))[1] == build_message(matrix, index).encode()


def fail_with(code):
    def fail(*_arguments):
        raise OSError(code, "no")

    return fail


async def test_a_journal_on_a_full_disk_signs_nothing(member):
    """It was an internal fault, 500, where a full disk has a type."""
    kit, matrix = member.kit, member.kit.code(SMALL)
    await put_mine(member, matrix)
    journal = member.pledges._journal
    journal.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (pages,) = journal.execute("PRAGMA page_count").fetchone()
    journal.execute(f"PRAGMA max_page_count={pages}")
    now = SystemClock().now_ms() // 1000
    statuses = set()
    for later in range(400):
        status, title, _ = await attest(
            member, kit.attestation_of(matrix, begins_at=now - later, expires_at=now + HOUR)
        )
        statuses.add((status, title))
        if status != 200:
            break
    assert statuses == {(200, None), (507, "RefusedFull")}
    assert member.pledges.count() == (0, later)
    journal.execute("PRAGMA max_page_count=1000000")
    assert (await attest(member, kit.attestation_of(matrix)))[0] == 200


async def test_a_row_that_rotted_is_said_to_be_gone_and_is_not_promised_again(member):
    kit, matrix = member.kit, member.kit.code(LARGE)
    await put_mine(member, matrix)
    (pack,) = (member.rows._folder).glob("*.pack")
    data = bytearray(pack.read_bytes())
    data[2000] ^= 1
    pack.write_bytes(data)
    statuses = [(await get(member, kit.row_path(matrix, index)))[0] for index in kit.MINE]
    assert sorted(statuses) == [200, 200, 200, 503]
    assert (await attest(member, kit.attestation_of(matrix)))[:2] == (404, "NotFound")
    for index in kit.MINE:
        await put(member, matrix, index)
    assert (await attest(member, kit.attestation_of(matrix)))[0] == 200


# Bombs and crowds


async def test_claimed_sizes_cost_nothing(member):
    """Parameters of the largest codes and payloads in a few hundred bytes: refused by their size, unallocated."""
    start = b"deaios/row/1" + (4).to_bytes(2)
    claims = [
        (data_rows.to_bytes(2) + rows.to_bytes(2) + length.to_bytes(8))
        for data_rows, rows in ((4, 12), (1, 65535), (32767, 65535), (128, 256), (0, 0), (65535, 65535), (85, 256))
        for length in (0, 1, 64 << 20, (64 << 20) + 1, 2**64 - 1)
    ]
    bodies = [start + claim + bytes(size) for claim in claims for size in (0, 32, 3000)]
    matrix = member.kit.code(SMALL)
    await put(member, matrix, 4, bodies[0])
    tracemalloc.start()
    for body in bodies:
        assert (await put(member, matrix, 4, body))[0] in (400, 403)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
    assert member.rows.list_rows(None, 9) == []


async def test_checks_of_many_heads_are_remembered_within_a_bound(member):
    kit = member.kit
    for number in range(door_module.VERIFIERS_MAX + 4):
        assert await put(member, kit.code(SMALL + bytes([number])), 4) == (201, None)
    assert len(member._verifiers) == door_module.VERIFIERS_MAX
    assert all(isinstance(one, RowVerifier) for one in member._verifiers.values())


async def test_two_clients_with_one_blob_at_the_same_moment(member):
    """Rows of one matrix from two publishers, and both want the attestation."""
    kit, matrix = member.kit, member.kit.code(LARGE)
    puts = [put(member, matrix, index) for index in kit.MINE for _ in range(4)]
    results = await asyncio.gather(*puts)
    assert sorted(results) == [(200, None)] * 12 + [(201, None)] * 4
    asked = [kit.attestation_of(matrix, expires_at=kit.attestation_of(matrix).expires_at + more) for more in range(4)]
    answers = await asyncio.gather(*(attest(member, one) for one in asked for _ in range(3)))
    for attestation, (status, _, answer) in zip([one for one in asked for _ in range(3)], answers, strict=True):
        assert status == 200
        kit.check_signature(attestation, answer)
    assert member.pledges.count() == (0, 4)


async def test_metrics_do_not_wait_for_a_disk(member):
    """The guard may be held while rows are deleted; the loop must go on."""
    held, over = threading.Event(), threading.Event()

    def hold():
        with member.pledges.guard:
            held.set()
            over.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        async with asyncio.timeout(10):
            status, body = await get(member, "/metrics")
    finally:
        over.set()
        holder.join()
    assert status == 200
    assert b"deaios_da_pledges 0.0" in body


async def test_rows_that_nobody_pays_for_do_not_fill_the_disk(member):
    kit, matrix, other = member.kit, member.kit.code(LARGE), member.kit.code(LARGE[::-1])
    await put_mine(member, matrix)
    waiting = member.pledges.waiting_bytes
    assert waiting == sum(member.rows.get_row_size(matrix.commitment, index) for index in kit.MINE)
    member._waiting_bytes_max = waiting + 1000
    assert (await put(member, other, 4))[:2] == (507, "RefusedFull")
    assert (await put(member, matrix, 4))[0] == 200  # it is there: nothing more waits for it
    attestation = kit.attestation_of(matrix)
    assert (await attest(member, attestation))[0] == 200
    assert member.pledges.waiting_bytes == waiting
    member.pledges.note_chain((Pledge(attestation, 4, 4, is_certified=True),), 1)
    assert member.pledges.waiting_bytes == 0
    assert (await put(member, other, 4))[0] == 201


async def test_a_row_that_could_not_be_stored_waits_for_nothing(member, monkeypatch):
    def refuse(*_arguments):
        raise RefusedFull("no room")

    monkeypatch.setattr(member.rows, "put_row", refuse)
    matrix = member.kit.code(SMALL)
    assert (await put(member, matrix, 4))[:2] == (507, "RefusedFull")
    assert member.pledges.waiting_bytes == 0
