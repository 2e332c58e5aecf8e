"""A node takes only signed, verified bytes, answers every bad request with a type, and loses nothing on restart."""

import random

import pytest

from deaios.coding.matrix import encode
from deaios.coding.parameters import PROFILE_LOCAL
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Refused
from deaios.primitives.keys import PrivateKey
from deaios.rows.manifest import Manifest, Segment
from deaios.rows.message import build_message
from deaios.rows.store import RowStore
from deaios.runtime.authentication import sign_request
from deaios.runtime.client import HttpClient, RefusedByPeer, UnavailablePeer
from deaios.runtime.clock import SystemClock
from deaios.runtime.http import serve
from deaios.storage.service import build_storage_application

NETWORK = b"\x11" * 32
KEY = PrivateKey(b"\x22" * 32)
STRANGER = PrivateKey(b"\x33" * 32)
MATRIX = encode(random.Random(1).randbytes(3_000_000), PROFILE_LOCAL)
ROW_PATH = f"/rows/{encode_hex(MATRIX.commitment)}/1"
ROW = build_message(MATRIX, 1).encode()
MANIFEST = Manifest(PROFILE_LOCAL, 3_000_000, bytes(32), (Segment(MATRIX.commitment, 3_000_000),))
MANIFEST_PATH = f"/manifests/{encode_hex(MANIFEST.manifest_id)}"


def admit_known(signer):
    if signer != KEY.address:
        raise Refused("only the operator's own key may write")


@pytest.fixture
async def node(tmp_path):
    store = RowStore(tmp_path / "rows", 8 << 20)
    application = build_storage_application(store, network_id=NETWORK, admit=admit_known)
    async with serve(application) as url, HttpClient() as http:
        yield Node(url, http, store)
    store.close()


class Node:
    def __init__(self, url, http, store):
        self.url = url
        self.http = http
        self.store = store
        self.nonce = 0

    def sign(self, path, body, key=KEY, network=NETWORK, age_ms=0):
        self.nonce += 1
        return sign_request(key, network, "PUT", path, body, SystemClock().now_ms() - age_ms, self.nonce.to_bytes(16))

    async def put(self, path, body, **options):
        return await self.http.put_bytes(self.url + path, body, self.sign(path, body, **options))

    async def refusal(self, path, body, headers):
        with pytest.raises(RefusedByPeer) as caught:
            await self.http.put_bytes(self.url + path, body, headers)
        return caught.value.status, caught.value.title


async def test_rows_and_manifests_are_kept_once_and_served(node):
    for path, body in ((ROW_PATH, ROW), (MANIFEST_PATH, MANIFEST.encode())):
        with pytest.raises(RefusedByPeer) as caught:
            await node.http.get_bytes(node.url + path, 1)
        assert caught.value.status == 404
        with pytest.raises(RefusedByPeer):
            await node.http.request("HEAD", node.url + path)
        assert await node.put(path, body) == b'{"stored":true}'
        assert await node.put(path, body) == b'{"stored":false}'
        assert await node.http.get_bytes(node.url + path, len(body)) == body
        async with node.http.session.head(node.url + path) as response:
            assert (response.status, response.headers["Content-Length"]) == (200, str(len(body)))


async def test_ranges_of_rows_and_manifests_are_served(node):
    for path, body in ((ROW_PATH, ROW), (MANIFEST_PATH, MANIFEST.encode())):
        await node.put(path, body)
        part = await node.http.get_bytes(node.url + path, 10, {"Range": "bytes=5-14"})
        assert part == body[5:15]
        with pytest.raises(RefusedByPeer, match="416 RefusedRange"):
            await node.http.get_bytes(node.url + path, 10, {"Range": f"bytes={len(body)}-"})


async def test_only_fresh_signed_requests_of_admitted_keys_write(node):
    signed = node.sign(ROW_PATH, ROW)
    other_path = ROW_PATH[:-1] + "2"
    assert await node.refusal(ROW_PATH, ROW, {}) == (401, "InvalidSignature")
    assert await node.refusal(other_path, ROW, signed) == (403, "Refused")
    assert await node.refusal(ROW_PATH, ROW[:-1] + b"\1", signed) == (403, "Refused")
    assert await node.refusal(ROW_PATH, ROW, node.sign(ROW_PATH, ROW, network=bytes(32))) == (403, "Refused")
    assert await node.refusal(ROW_PATH, ROW, node.sign(ROW_PATH, ROW, key=STRANGER)) == (403, "Refused")
    assert await node.refusal(ROW_PATH, ROW, node.sign(ROW_PATH, ROW, age_ms=120_000)) == (401, "RefusedStale")
    assert node.store.used_bytes == 0
    await node.http.put_bytes(node.url + ROW_PATH, ROW, signed)
    assert await node.refusal(ROW_PATH, ROW, signed) == (401, "RefusedStale")


async def test_wrong_rows_and_manifests_are_refused(node):
    for path, body in (
        (ROW_PATH, ROW[:-1] + bytes([ROW[-1] ^ 1])),
        (ROW_PATH, ROW[:-1]),
        (ROW_PATH, b""),
        (ROW_PATH[:-1] + "2", ROW),
        (f"/rows/{encode_hex(bytes(32))}/1", ROW),
        (MANIFEST_PATH, MANIFEST.encode() + b"\0"),
        (MANIFEST_PATH, b""),
        (f"/manifests/{encode_hex(bytes(32))}", MANIFEST.encode()),
    ):
        assert (await node.refusal(path, body, node.sign(path, body)))[0] == 400
    assert node.store.used_bytes == 0


@pytest.mark.parametrize(
    "path", ["/rows/0x12/1", "/rows/zz/1", f"/rows/{'0x' + 'AA' * 32}/1", f"/rows/{'0x' + 'aa' * 32}/01",
             f"/rows/{'0x' + 'aa' * 32}/65536", f"/rows/{'0x' + 'aa' * 32}/-1", "/manifests/0x"]
)  # fmt: skip
async def test_malformed_names_are_refused(node, path):
    assert (await node.refusal(path, ROW, node.sign(path, ROW)))[0] == 400
    with pytest.raises(RefusedByPeer, match="400"):
        await node.http.get_bytes(node.url + path, 1)


async def test_a_full_node_refuses_before_it_promises(node, tmp_path):
    big = encode(random.Random(2).randbytes(15 << 20), PROFILE_LOCAL)
    path = f"/rows/{encode_hex(big.commitment)}/0"
    for index in range(3):
        await node.put(f"{ROW_PATH[:-1]}{index}", build_message(MATRIX, index).encode())
    used = node.store.used_bytes
    body = build_message(big, 0).encode()
    try:
        status = (await node.refusal(path, body, node.sign(path, body)))[0]
    except UnavailablePeer:  # the node may close the door while the body is still on its way
        status = 507
    assert status == 507
    assert node.store.used_bytes == used
    assert node.store.get_row(big.commitment, 0) is None


async def test_larger_bodies_than_any_row_are_refused(node):
    body = bytes((16 << 20) + (65 << 10))
    node.store._quota_bytes = 1 << 30
    assert await node.refusal(ROW_PATH, body, node.sign(ROW_PATH, body)) == (413, "RefusedTooLarge")


async def test_metrics_name_the_space(node):
    await node.put(MANIFEST_PATH, MANIFEST.encode())
    text = (await node.http.get_bytes(node.url + "/metrics", 1 << 20)).decode()
    assert f"deaios_storage_used_bytes {float(node.store.used_bytes)}" in text


async def test_rot_is_reported_as_unavailable_then_missing(node, tmp_path):
    await node.put(ROW_PATH, ROW)
    pack = tmp_path / "rows/00000000.pack"
    pack.write_bytes(bytes(10) + pack.read_bytes()[10:])
    with pytest.raises(UnavailablePeer, match="503 UnavailableEntry"):
        await node.http.get_bytes(node.url + ROW_PATH, len(ROW))
    with pytest.raises(RefusedByPeer, match="404"):
        await node.http.get_bytes(node.url + ROW_PATH, len(ROW))
    assert await node.put(ROW_PATH, ROW) == b'{"stored":true}'
    assert await node.http.get_bytes(node.url + ROW_PATH, len(ROW)) == ROW
