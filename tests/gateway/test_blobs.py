"""Blobs through the gateway's door and a real committee: certified, paid once, charged what was paid, said exactly."""

import asyncio
import importlib.util
import io
import random
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from deaios.da.blob import parse_blob_id
from deaios.da.client import blobs as client_module
from deaios.da.proof import decode_proof, verify_item
from deaios.gateway import blobs as door_module
from deaios.gateway.blobs import BlobLimits
from deaios.gateway.publishing import BUNDLED_BYTES_MAX, BlobNetwork, PutLimits
from deaios.gateway.purchasing import ServedModels
from deaios.gateway.service import build_gateway_application
from deaios.gateway.store import KeyStore
from deaios.ledger.client.rpc import Reverted
from deaios.runtime.dice import SystemDice
from deaios.runtime.http import serve

HOUR = 3600
SEGMENT = 1 << 18


def make_bytes(size, seed=1):
    return random.Random(seed).randbytes(size)


@pytest.fixture(scope="session")
def village_kit():
    if "da_village" not in sys.modules:
        path = Path(__file__).parents[1] / "da" / "da_village.py"
        spec = importlib.util.spec_from_file_location("da_village", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules["da_village"] = module
        spec.loader.exec_module(module)
    return sys.modules["da_village"]


@dataclass
class Town:
    """A committee, and a gateway that anybody with a key may put blobs through."""

    village: object
    client: object
    keys: KeyStore
    url: str
    session: aiohttp.ClientSession
    key: str
    key_id: str
    running: AsyncExitStack

    def add_key(self, budget=None):
        text, record = self.keys.create(SystemDice(), 0, name="another", budget=budget)
        return {"Authorization": f"Bearer {text}"}, record.key_id

    @property
    def headers(self):
        return {"Authorization": f"Bearer {self.key}"}

    async def ask(self, method, path, *, headers=None, **options):
        """Status, headers, and the body, decoded where it is JSON."""
        given = {**self.headers, **(headers or {})}
        async with self.session.request(method, self.url + path, headers=given, **options) as response:
            body = await (response.json() if "json" in response.content_type else response.read())
            return response.status, response.headers, body

    async def put(self, content, query="", headers=None):
        status, _, body = await self.ask("POST", "/blobs" + query, data=io.BytesIO(content), headers=headers)
        assert status == 201, body
        return body

    def spent(self, key_id=None):
        return self.keys.get(key_id or self.key_id).spent

    async def wait_for_puts(self, count):
        while f"gateway_puts_running {count}.0" not in (await self.ask("GET", "/metrics"))[2].decode():
            await asyncio.sleep(0.01)

    async def certified(self):
        return await self.village.contracts.availability.fetch_certified(0)

    async def fees(self):
        return sum(one.fee for one in await self.certified())


@pytest.fixture
def open_town(village_kit, tmp_path):
    @asynccontextmanager
    async def start(limits=None):
        async with village_kit.open_village(tmp_path, members=3, seats=12) as village:
            await village.start_members()
            await village.begin_epoch()
            keys = KeyStore.open(tmp_path / "keys.sqlite", b"p" * 32)
            key, record = keys.create(SystemDice(), 0, name="test")
            client = village.client()
            application = build_gateway_application(
                network_id=village.network_id,
                buyer=None,
                models=ServedModels(()),
                keys=keys,
                clock=village.clock,
                dice=SystemDice(),
                blobs=BlobNetwork(client, village.contracts.availability, village.settings.da_term_max_s),
                blob_limits=limits or BlobLimits(puts=PutLimits(gather_s=0.3)),
            )
            async with aiohttp.ClientSession() as session, AsyncExitStack() as running:
                village.stack.callback(keys.close)
                url = await running.enter_async_context(serve(application))
                yield Town(village, client, keys, url, session, key, record.key_id, running)

    return start


@pytest.fixture
async def town(open_town):
    async with open_town() as opened:
        yield opened


@pytest.fixture
def short_segments(monkeypatch):
    monkeypatch.setattr(client_module, "SINGLE_BYTES_MAX", SEGMENT)
    monkeypatch.setattr(client_module, "SEGMENT_BYTES_MAX", SEGMENT)


async def test_small_blobs_that_come_together_share_a_bundle_and_its_fee(town):
    contents = [make_bytes(100 + 50 * number, number) for number in range(40)]
    other, other_id = town.add_key()
    answers = await asyncio.gather(
        *(
            town.put(content, f"?term={HOUR * (1 + number % 2)}", other if number % 2 else None)
            for number, content in enumerate(contents)
        )
    )
    (certificate,) = await town.certified()
    ids = [parse_blob_id(answer["id"]) for answer in answers]
    assert {one.commitment for one in ids} == {certificate.attestation.commitment}
    assert sorted(one.number for one in ids) == list(range(40))
    assert certificate.fee <= sum(answer["fee"] for answer in answers) < certificate.fee + 40
    assert town.spent() == sum(answer["fee"] for answer in answers[::2])
    assert town.spent(other_id) == sum(answer["fee"] for answer in answers[1::2])
    charges = town.keys.list_charges(town.key_id, 99)
    assert sorted(charge.amount for charge in charges) == sorted(answer["fee"] for answer in answers[::2])
    assert all(charge.answer_id.startswith("blob-") for charge in charges)
    now_s = town.village.clock.now_ms() // 1000
    for number in (0, 1, 39):
        answer, content = answers[number], contents[number]
        term_s = HOUR * (1 + number % 2)
        assert answer.keys() == {"id", "size_bytes", "expires_at", "fee"}
        assert answer["size_bytes"] == len(content)
        assert now_s + term_s - 30 <= answer["expires_at"] <= now_s + term_s
        status, headers, body = await town.ask("GET", f"/blobs/{answer['id']}")
        assert (status, body, headers["Content-Type"]) == (200, content, "application/octet-stream")
        status, _, body = await town.ask("GET", f"/blobs/{answer['id']}/proof")
        proven = verify_item(ids[number], decode_proof(body))
        assert (status, proven.content, proven.expires_at) == (200, content, answer["expires_at"])
    status, _, problem = await town.ask("GET", f"/blobs/{answers[0]['id'].partition('.')[0]}")
    assert (status, problem["title"]) == (404, "NotFound")
    assert "bundle" in problem["detail"]
    status, _, problem = await town.ask("GET", f"/blobs/{answers[0]['id'].partition('.')[0]}.40")
    assert (status, "outside 40 items" in problem["detail"]) == (404, True)


async def test_a_large_blob_is_split_streamed_and_read_by_ranges(town, short_segments):
    content = make_bytes(3 * SEGMENT + 999)
    answer = await town.put(content)
    assert len(await town.certified()) == 5
    assert town.spent() == answer["fee"] == await town.fees()
    path = f"/blobs/{answer['id']}"
    status, headers, body = await town.ask("GET", path)
    assert (status, body == content, headers["Content-Length"]) == (200, True, str(len(content)))
    assert (headers["ETag"], headers["Accept-Ranges"]) == (f'"{answer["id"]}"', "bytes")
    assert headers["Cache-Control"].endswith("immutable")
    for asked, first, last in (
        ("bytes=0-9", 0, 9),
        (f"bytes={SEGMENT - 1}-{SEGMENT}", SEGMENT - 1, SEGMENT),
        ("bytes=-7", len(content) - 7, len(content) - 1),
        (f"bytes={2 * SEGMENT}-", 2 * SEGMENT, len(content) - 1),
    ):
        status, headers, body = await town.ask("GET", path, headers={"Range": asked})
        assert (status, body == content[first : last + 1]) == (206, True)
        assert headers["Content-Range"] == f"bytes {first}-{last}/{len(content)}"
    status, headers, problem = await town.ask("GET", path, headers={"Range": f"bytes={len(content)}-"})
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(content)}")
    assert problem["title"] == "RefusedRange"
    status, _, body = await town.ask("GET", path, headers={"Range": "bytes=0-9", "If-Range": '"else"'})
    assert (status, len(body)) == (200, len(content))
    status, headers, body = await town.ask("GET", path, headers={"If-None-Match": f'"{answer["id"]}"'})
    assert (status, body) == (304, b"")
    status, headers, body = await town.ask("HEAD", path)
    assert (status, headers["Content-Length"], body) == (200, str(len(content)), b"")
    status, _, known = await town.ask("GET", path + "/status")
    assert (status, known["kind"], known["size_bytes"], len(known["segments"])) == (200, "large", len(content), 4)
    assert (known["data_rows"], known["rows"], known["payer"]) == (4, 12, "0x" + town.village.user.address.hex())
    assert len(known["seats_signed"]) >= 8
    status, _, problem = await town.ask("GET", path + "/proof")
    assert (status, "4 segments" in problem["detail"]) == (404, True)


async def test_a_single_proves_itself_and_costs_nothing_twice(town):
    content = make_bytes(BUNDLED_BYTES_MAX + 1)
    answer = await town.put(content)
    blob_id = parse_blob_id(answer["id"])
    assert blob_id.number is None
    assert town.spent() == answer["fee"] == await town.fees() > 0
    _, _, proof = await town.ask("GET", f"/blobs/{blob_id}/proof")
    assert verify_item(blob_id, decode_proof(proof)).content == content
    other, other_id = town.add_key(budget=10**6)
    again = await town.put(content, headers=other)
    assert (again["id"], again["fee"], town.spent(other_id)) == (answer["id"], 0, 0)
    assert len(await town.certified()) == 1


async def test_a_retry_joins_the_put_and_pays_nothing(town):
    small, content = b"small", make_bytes(100_000)
    both = await asyncio.gather(town.put(small), town.put(small), town.put(content), town.put(content))
    assert both[0] == both[1]
    assert both[2] == both[3]
    assert await town.put(small) == both[0], "also when it has ended"
    assert town.spent() == both[0]["fee"] + both[2]["fee"] == await town.fees()
    await town.village.pass_time(2)  # in the same second it would be the same bundle, which is certified already
    labelled = await town.put(small, headers={"Idempotency-Key": "one"})
    assert labelled["id"] != both[0]["id"]
    assert await town.put(small, headers={"Idempotency-Key": "one"}) == labelled
    assert (await town.put(small, "?term=1800"))["id"] not in {labelled["id"], both[0]["id"]}
    assert len(town.keys.list_charges(town.key_id, 99)) == 4


async def test_a_client_that_leaves_ends_nothing_and_its_retry_has_the_answer(open_town):
    async with open_town(BlobLimits(puts=PutLimits(gather_s=1.0))) as town:
        leaving = asyncio.create_task(town.put(b"left alone"))
        await town.wait_for_puts(1)
        leaving.cancel()
        await asyncio.wait([leaving])
        answer = await town.put(b"left alone")
        assert town.spent() == answer["fee"] == await town.fees()
        assert len(town.keys.list_charges(town.key_id, 9)) == 1


async def test_what_a_key_cannot_pay_is_refused_before_anything_is_sent(town, short_segments):
    for size in (10, 100_000, 2 * SEGMENT):
        headers, key_id = town.add_key(budget=99)
        status, _, problem = await town.ask("POST", "/blobs", data=make_bytes(size), headers=headers)
        assert (status, problem["title"]) == (402, "RefusedBudget")
        assert town.spent(key_id) == 0
    for member in town.village.members:
        assert member.pledges.count() == (0, 0)
        assert member.store.list_rows(None, 9) == []
    assert await town.certified() == ()


async def test_a_put_that_fails_on_its_way_is_charged_for_what_was_certified(town, short_segments, monkeypatch):
    disperser = town.client._disperser
    certify = disperser._certify
    left = 2

    async def fail_after_two(*arguments):
        nonlocal left
        if not left:
            raise Reverted("availability: no credit", b"")
        left -= 1
        return await certify(*arguments)

    monkeypatch.setattr(disperser, "_certify", fail_after_two)
    content = make_bytes(3 * SEGMENT)
    status, _, problem = await town.ask("POST", "/blobs", data=content)
    assert (status, problem["title"]) == (503, "UnavailableBlobs")
    assert "no credit" in problem["detail"]
    assert town.spent() == await town.fees() > 0
    monkeypatch.setattr(disperser, "_certify", certify)
    answer = await town.put(content)
    assert (await town.ask("GET", f"/blobs/{answer['id']}"))[2] == content
    assert town.spent() == await town.fees()
    assert len(await town.certified()) == 4


async def test_what_cannot_be_had_is_said_exactly(town):
    answer = await town.put(make_bytes(100_000), "?term=600")
    item = await town.put(b"of a bundle", "?term=600")
    paths = [f"/blobs/{answer['id']}", f"/blobs/{item['id']}"]
    await town.village.members[0].stop()
    await town.village.members[1].stop()
    assert (await town.ask("GET", paths[0]))[0] == 200, "four seats of twelve are enough"
    await town.village.members[2].stop()
    for path in paths:
        status, headers, problem = await town.ask("GET", path)
        assert (status, problem["title"], "Retry-After" in headers) == (503, "UnavailableRows", True)
        assert "0 of 4 rows found" in problem["detail"]
    await town.village.pass_time(601)
    for path in paths:
        for what in ("", "/status"):
            status, headers, problem = await town.ask("GET", path + what)
            assert (status, problem["title"], "Retry-After" in headers) == (410, "UnavailableExpired", False)
            assert "was kept until" in problem["detail"]


async def test_an_item_expires_before_its_bundle(town):
    short, long = await asyncio.gather(town.put(b"short", "?term=600"), town.put(b"long", f"?term={HOUR}"))
    await town.village.pass_time(601)
    assert (await town.ask("GET", f"/blobs/{short['id']}"))[0] == 410
    assert (await town.ask("GET", f"/blobs/{long['id']}"))[2] == b"long"


async def test_wrong_turns_are_problem_details(town, monkeypatch):
    monkeypatch.setattr(door_module, "CONTENT_BYTES_MAX", 200_000)
    unknown = "0x" + "ab" * 32
    most = town.village.settings.da_term_max_s
    for method, path, body, status, title, words in (
        ("GET", f"/blobs/{unknown}", None, 404, "NotFound", "no certificate"),
        ("GET", f"/blobs/{unknown}.3/status", None, 404, "NotFound", "no certificate"),
        ("GET", f"/blobs/{unknown}/proof", None, 404, "NotFound", "no certificate"),
        ("GET", "/blobs/0xAB", None, 400, "InvalidEncoding", "lower-case"),
        ("GET", f"/blobs/{unknown}.01", None, 400, "InvalidEncoding", "canonical"),
        ("GET", f"/blobs/{unknown}.65536", None, 400, "InvalidEncoding", "bits"),
        ("GET", "/blobs/%ff", None, 400, "InvalidEncoding", "lower-case"),
        ("GET", f"/blobs/{unknown}/nothing", None, 404, "HTTPNotFound", ""),
        ("GET", "/blobs", None, 405, "HTTPMethodNotAllowed", ""),
        ("POST", "/blobs", b"", 400, "InvalidPut", "0 bytes"),
        ("POST", "/blobs?term=119", b"x", 400, "InvalidPut", f"120 to {most}"),
        ("POST", f"/blobs?term={most + 1}", b"x", 400, "InvalidPut", f"120 to {most}"),
        ("POST", "/blobs?term=1e3", b"x", 400, "InvalidPut", "1e3"),
        ("POST", "/blobs?term=600&term=700", b"x", 400, "InvalidPut", "2 terms"),
        ("POST", "/blobs?trem=600", b"x", 400, "InvalidPut", "'trem'"),
        ("POST", "/blobs", bytes(200_001), 413, "RefusedTooLarge", "200001 bytes"),
    ):
        found, headers, problem = await town.ask(method, path, data=body)
        assert (found, problem["title"]) == (status, title), path
        assert words in problem["detail"]
        assert headers["Content-Type"] == "application/problem+json"
    for path in ("/blobs", f"/blobs/{unknown}", f"/blobs/{unknown}/status", f"/blobs/{unknown}/proof"):
        method = "POST" if path == "/blobs" else "GET"
        found, _, problem = await town.ask(method, path, headers={"Authorization": "Bearer nothing"})
        assert (found, problem["title"]) == (401, "RefusedKey")
    found, _, error = await town.ask("GET", "/v1/nothing")
    assert (found, error["error"]["code"]) == (404, "unknown_url")
    assert await town.certified() == ()


async def test_the_longest_term_and_a_body_above_the_chat_bound_are_taken(town):
    most = town.village.settings.da_term_max_s
    content = bytes(9 << 20)
    one, two = await asyncio.gather(town.put(b"small", f"?term={most}"), town.put(content, f"?term={most}"))
    for answer in (one, two):
        assert most - 60 < answer["expires_at"] - town.village.clock.now_ms() / 1000 <= most
    status, _, body = await town.ask("GET", f"/blobs/{two['id']}")
    assert (status, body == content) == (200, True)


async def test_more_than_is_put_at_once_is_told_to_come_back(open_town):
    async with open_town(BlobLimits(puts=PutLimits(puts_max=4, gather_s=1.0))) as town:
        results = await asyncio.gather(*(town.ask("POST", "/blobs", data=bytes([number])) for number in range(5)))
        assert sorted(status for status, _, _ in results) == [201, 201, 429, 429, 429]
        assert town.spent() == sum(body["fee"] for status, _, body in results if status == 201)


async def test_a_stopped_gateway_ends_its_puts_first(open_town):
    async with open_town(BlobLimits(puts=PutLimits(gather_s=0.5))) as town:
        putting = asyncio.create_task(town.put(b"last words"))
        await town.wait_for_puts(1)
        await town.running.aclose()
        answer = await putting
        assert town.spent() == answer["fee"] == await town.fees()
