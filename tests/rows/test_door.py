"""The door of every keeper of rows: ranges, signed requests that are no rows, bounded waiting."""

import asyncio
import threading

import msgspec
import pytest

from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Refused
from deaios.primitives.keys import PrivateKey
from deaios.rows import service as service_module
from deaios.rows.service import RowDoor, read_row_name
from deaios.rows.store import RowStore
from deaios.runtime.authentication import sign_request
from deaios.runtime.client import HttpClient, RefusedByPeer
from deaios.runtime.clock import SystemClock
from deaios.runtime.http import build_application, json_response, serve

NETWORK = b"\x11" * 32
KEY = PrivateKey(b"\x22" * 32)
STRANGER = PrivateKey(b"\x33" * 32)
A = b"\xaa" * 32
ROW = bytes(range(256)) * 10
PATH = f"/rows/{encode_hex(A)}/1"


def admit_known(signer):
    if signer != KEY.address:
        raise Refused("a stranger")


class Keeper:
    """A role with routes of its own over the door."""

    def __init__(self, store):
        self.store = store
        self.door = RowDoor(store, network_id=NETWORK, clock=SystemClock(), executor=None, admit=admit_known)
        self.blocked = threading.Event()
        self.blocked.set()

    def read(self, commitment, index):
        self.blocked.wait(60)
        return self.store.get_row(commitment, index)

    async def put(self, request):
        name = read_row_name(request)
        return await self.door.put(request, lambda body: self.store.put_row(*name, body))

    async def get(self, request):
        name = read_row_name(request)
        return await self.door.send(request, lambda: self.read(*name))

    async def head(self, request):
        name = read_row_name(request)
        return await self.door.head(lambda: self.store.get_row_size(*name))

    async def say(self, request):
        signer, body = await self.door.read_signed(request, 100)
        return json_response({"signer": str(signer), "body": body.decode()})


@pytest.fixture
async def keeper(tmp_path):
    store = RowStore(tmp_path / "rows", 1 << 20)
    keeper = Keeper(store)
    application = build_application("keeper", body_bytes_max=1 << 16)
    application.router.add_get("/rows/{commitment}/{index}", keeper.get, allow_head=False)
    application.router.add_head("/rows/{commitment}/{index}", keeper.head)
    application.router.add_put("/rows/{commitment}/{index}", keeper.put)
    application.router.add_post("/say", keeper.say)
    async with serve(application) as url, HttpClient() as http:
        keeper.url, keeper.http = url, http
        yield keeper
        keeper.blocked.set()
    store.close()


async def ask(keeper, headers, method="GET"):
    async with keeper.http.session.request(method, keeper.url + PATH, headers=headers) as response:
        body = await response.read()
        shown = {name: response.headers.get(name) for name in ("Content-Range", "Accept-Ranges", "Content-Length")}
        return response.status, shown, body


def sign(method, path, body, key=KEY, nonce=1):
    return sign_request(key, NETWORK, method, path, body, SystemClock().now_ms(), nonce.to_bytes(16))


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [("bytes=0-0", 0, 0), ("bytes=5-99", 5, 99), ("bytes=2559-", 2559, 2559), ("bytes=-10", 2550, 2559),
     ("bytes=100-99999", 100, 2559), ("bytes=0-", 0, 2559)],
)  # fmt: skip
async def test_one_range_of_a_row_is_served(keeper, header, first, last):
    keeper.store.put_row(A, 1, ROW)
    expected = ROW[first : last + 1]
    shown = {
        "Content-Range": f"bytes {first}-{last}/{len(ROW)}",
        "Accept-Ranges": "bytes",
        "Content-Length": str(len(expected)),
    }
    assert await ask(keeper, {"Range": header}) == (206, shown, expected)


@pytest.mark.parametrize(
    "headers",
    [{}, {"Range": "rows=0-1"}, {"Range": "bytes=0-0,5-9"}, {"Range": "bytes=0-0", "If-Range": '"some other version"'}],
)
async def test_the_whole_row_is_served_where_no_single_range_counts(keeper, headers):
    keeper.store.put_row(A, 1, ROW)
    shown = {"Content-Range": None, "Accept-Ranges": "bytes", "Content-Length": str(len(ROW))}
    assert await ask(keeper, headers) == (200, shown, ROW)
    assert await ask(keeper, {"Range": "bytes=0-0"}, "HEAD") == (200, shown, b""), "ranges are for GET alone"


async def test_a_range_that_is_not_there_is_refused_with_a_type_and_the_size(keeper):
    assert (await ask(keeper, {"Range": "bytes=0-0"}))[0] == 404
    keeper.store.put_row(A, 1, ROW)
    status, shown, body = await ask(keeper, {"Range": f"bytes={len(ROW)}-"})
    assert (status, shown["Content-Range"]) == (416, f"bytes */{len(ROW)}")
    assert msgspec.json.decode(body) == {
        "type": "about:blank",
        "title": "RefusedRange",
        "status": 416,
        "detail": f"range 'bytes={len(ROW)}-' has none of the {len(ROW)} bytes",
    }
    status, _, body = await ask(keeper, {"Range": "bytes=9-5"})
    assert (status, msgspec.json.decode(body)["title"]) == (400, "InvalidRange")


async def test_a_signed_request_that_is_no_row_says_who_sent_it(keeper):
    url, body = keeper.url + "/say", b'"a word"'
    signed = sign("POST", "/say", body)
    answer = await keeper.http.post_body(url, body, dict, signed)
    assert answer == {"signer": str(KEY.address), "body": '"a word"'}
    for headers, status, title in (
        (signed, 401, "RefusedStale"),
        ({}, 401, "InvalidSignature"),
        (sign("POST", "/say", body, STRANGER), 403, "Refused"),
        (sign("PUT", "/say", body, nonce=2), 403, "Refused"),
    ):
        with pytest.raises(RefusedByPeer) as caught:
            await keeper.http.post_body(url, body, dict, headers)
        assert (caught.value.status, caught.value.title) == (status, title)


async def test_a_row_is_put_once_and_a_full_store_refuses_before_the_body(keeper):
    signed = sign("PUT", PATH, ROW)
    assert await keeper.http.put_bytes(keeper.url + PATH, ROW, signed) == b'{"stored":true}'
    assert await keeper.http.put_bytes(keeper.url + PATH, ROW, sign("PUT", PATH, ROW, nonce=2)) == b'{"stored":false}'
    keeper.store._quota_bytes = keeper.store.used_bytes + 10
    with pytest.raises(RefusedByPeer) as caught:
        await keeper.http.put_bytes(keeper.url + PATH[:-1] + "2", ROW, {})
    assert (caught.value.status, caught.value.title) == (507, "RefusedFull")


async def test_who_comes_when_too_many_wait_is_told_to_come_back(keeper, monkeypatch):
    monkeypatch.setattr(keeper.door._slots, "waiting_max", 1)
    keeper.store.put_row(A, 1, ROW)
    keeper.blocked.clear()
    asked = [asyncio.create_task(ask(keeper, {})) for _ in range(service_module.SLOTS + 3)]
    refused, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    assert {task.result()[0] for task in refused} == {429}
    keeper.blocked.set()
    answers = [*(await asyncio.gather(*waiting)), *(task.result() for task in refused)]
    assert sorted({status for status, _, _ in answers}) == [200, 429]
    assert sum(status == 429 for status, _, _ in answers) == 2
