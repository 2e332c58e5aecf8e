"""One member's door over real files and sockets, with a committee set by hand and no chain. Not a test module.

Run as a program, `member_door.py FOLDER`, it starts a member for every line that comes in, says its process id and
URL, and leaves it to be killed; one started with the word `releasing` lets rows go and compacts all the time.
"""

import asyncio
import json
import os
import signal
import sys
import threading
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from deaios.coding.matrix import encode
from deaios.coding.parameters import build_committee_profile
from deaios.da.seating import Seating
from deaios.da.service.door import MemberDoor, build_member_application
from deaios.da.service.duties import release
from deaios.da.store import PledgeStore
from deaios.da.wire import encode_attestation
from deaios.ledger.committee import Committee, CommitteeMember
from deaios.ledger.eip712 import recover_signer
from deaios.ledger.structs import RowAttestation, availability_domain
from deaios.primitives.encoding import encode_hex
from deaios.primitives.hashing import sha256
from deaios.primitives.keys import Address, PrivateKey
from deaios.rows import store as rows_module
from deaios.rows.message import build_message, validate_message
from deaios.rows.store import RowStore
from deaios.runtime.authentication import sign_request
from deaios.runtime.clock import SystemClock
from deaios.runtime.http import serve

NETWORK = b"\x77" * 32
ME, USER = PrivateKey(b"\x11" * 32), PrivateKey(b"\x22" * 32)
OTHER = PrivateKey(b"\x33" * 32).address
DOMAIN = availability_domain(31337, Address(b"\x44" * 20))
SEATS = 12
PROFILE = build_committee_profile(SEATS)
MINE = range(4, 8)
"""Rows of this member in the current epoch, 9."""
TERM_MAX = 12 * 3600
HOUR = 3600
QUOTA = 1 << 30
RELEASE_S = 0.02
"""Between two looks for what is over; in life it is a second."""


def committee_of(epoch, first):
    """Twelve seats, four of which are this member's; the others have one owner on either side."""
    members = [CommitteeMember(OTHER, 0, first)] if first else []
    members.append(CommitteeMember(ME.address, first, 4))
    if first + 4 < SEATS:
        members.append(CommitteeMember(Address(b"\x55" * 20), first + 4, SEATS - first - 4))
    return Committee(epoch, 0, tuple(members), SEATS)


def seating_of(*committees):
    return Seating(ME.address, committees or (committee_of(9, 4), committee_of(8, 0)), TERM_MAX)


def code(payload, profile=PROFILE):
    return encode(payload, profile)


def row_path(matrix, index):
    return f"/rows/{encode_hex(matrix.commitment)}/{index}"


def attestation_of(matrix, **changes):
    now_s = SystemClock().now_ms() // 1000
    fields = {"commitment": matrix.commitment, "epoch": 9, "begins_at": now_s - 15, "expires_at": now_s + HOUR}
    return RowAttestation(**{**fields, **changes})


def sign(method, path, body, *, key=USER, network=NETWORK, now_ms=None, nonce=None):
    now_ms = SystemClock().now_ms() if now_ms is None else now_ms
    return sign_request(key, network, method, path, body, now_ms, nonce or os.urandom(16))


async def ask(session, url, method, path, body=None, headers=None):
    """Status, title of a refusal or None, and the body."""
    async with session.request(method, url + path, data=body, headers=headers or {}) as response:
        data = await response.read()
        title = json.loads(data)["title"] if response.status >= 400 and data else None
        return response.status, title, data


async def put_row(session, url, matrix, index, body=None):
    body, path = build_message(matrix, index).encode() if body is None else body, row_path(matrix, index)
    return await ask(session, url, "PUT", path, body, sign("PUT", path, body))


async def attest(session, url, attestation):
    body = attestation if isinstance(attestation, bytes) else encode_attestation(attestation)
    return await ask(session, url, "POST", "/attestations", body, sign("POST", "/attestations", body))


def check_signature(attestation, answer):
    """Did this member sign exactly that?"""
    said = json.loads(answer)
    assert said["place"] == 1
    assert recover_signer(DOMAIN, attestation, bytes.fromhex(said["signature"][2:])) == ME.address


def open_stores(folder):
    return RowStore(folder / "rows", QUOTA), PledgeStore(folder / "pledges.db")


@asynccontextmanager
async def serve_member(folder, *, clock=None, store=None, limits=None):
    """The door with its stores, seated."""
    async with AsyncExitStack() as stack:
        rows, pledges = open_stores(folder)
        stack.callback(rows.close)
        stack.callback(pledges.close)
        rows = store(rows) if store else rows
        door = MemberDoor(ME, DOMAIN, rows, pledges, network_id=NETWORK, clock=clock)
        door.seating = seating_of()
        url = await stack.enter_async_context(serve(build_member_application(door, rows, pledges), limits=limits))
        door.url, door.rows, door.pledges = url, rows, pledges
        yield door


def payload_of(number):
    return sha256(number.to_bytes(8)) * 100


async def _run(folder, releases):
    rows_module.PACK_BYTES_MAX = 100_000
    async with serve_member(folder) as door:
        os.write(sys.stdout.fileno(), f"{os.getpid()} {door.url}\n".encode())

        def let_go():
            """Everything that was settled is over; what is not certified has its time."""
            while not threading.Event().wait(RELEASE_S):
                now_s = SystemClock().now_ms() // 1000
                release(door.pledges, door.rows, 1 << 60, now_s - 600, now_s - 600)

        if releases:
            threading.Thread(target=let_go, daemon=True).start()
        await asyncio.Event().wait()


def _fork(folder, releases):
    """A member in a process of its own, which ends only when it is killed."""
    if os.fork():
        return
    try:
        asyncio.run(_run(folder, releases))
    finally:
        os._exit(1)


def _warm_up():
    """Everything that is loaded or compiled at its first use, once for all lives."""
    matrix = code(payload_of(0))
    validate_message(matrix.commitment, 4, build_message(matrix, 4).encode())


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    _warm_up()
    for line in sys.stdin:
        _fork(Path(sys.argv[1]), line.strip() == "releasing")
