"""Sealed papers: what goes over the wire says nothing, what was changed is noticed, and old keys are forgotten."""

import asyncio
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from deaios.ledger.eip712 import sign_struct
from deaios.ledger.structs import Cancel
from deaios.market.conduct import (
    CONDUCT_LIFETIME_MS_MAX,
    Conduct,
    InvalidConduct,
    list_promises,
    sign_conduct,
    validate_conduct,
)
from deaios.market.sealing import framing
from deaios.market.sealing.client import SealedRequest, post_sealed, stream_purchase
from deaios.market.sealing.framing import ChunkReader, InvalidSealing
from deaios.market.sealing.service import ROTATE_MS, SealedAnswer, SealingKeys
from deaios.market.sealing.suite import derive_public, open_body_chunk, open_recipient
from deaios.market.seller.service import Seller
from deaios.market.seller.service.privacy import Privacy
from deaios.market.wire import (
    CancelBody,
    Finished,
    OfferAnswer,
    OutcomeAnswer,
    Tokens,
    decode_line,
    encode_papers,
    read_offer,
    read_outcome,
)
from deaios.primitives.encoding import encode_hex
from deaios.primitives.keys import PrivateKey
from deaios.primitives.units import CREDIT
from deaios.runtime.client import HttpClient, RefusedByPeer, UnavailablePeer
from deaios.runtime.dice import SystemDice
from deaios.runtime.http import build_application, read_body, serve

KEY = PrivateKey(b"\x07" * 32)
NETWORK = b"n" * 32
NOW_MS = 1_800_000_000_000
SECRET = bytes(range(32))

# Made with tinfoil-ehbp 0.4.1, the protocol's own client, which also opened the answer.
PEER_ENCAPSULATED = bytes.fromhex("cbeecb1de35620ada056313c815e419caacbde28f75e8978d2d01f1243b9060e")
PEER_BODY = bytes.fromhex("0000001d734b6722e965f931555eaa86b65d3dead083bf90ea0b19efa075a54b46")
PEER_EXPORTED = bytes.fromhex("f359bc1edced6044624e9065f1130aef95848c49006130f489dac6d646a39a57")
PEER_ANSWER = bytes.fromhex(
    "00000016b2adb60bc0354a581c5892d01a4e80154c709c1401d400000017220b79366d041419da7beb04f0df9670535ba083e723f4"
)


class MovingClock:
    """Wall time by hand."""

    def __init__(self, now_ms=NOW_MS):
        self.ms = now_ms

    def now_ms(self):
        return self.ms

    def monotonic_s(self):
        return self.ms / 1000

    async def sleep(self, seconds):
        await asyncio.sleep(seconds)


def test_bytes_are_those_of_the_protocol_s_own_client():
    context = open_recipient(SECRET, PEER_ENCAPSULATED, framing.REQUEST_INFO)
    reader = ChunkReader()
    assert [open_body_chunk(context, chunk) for chunk in reader.push(PEER_BODY)] == [b'{"model":"x"}']
    assert context.export(framing.EXPORT_LABEL, 32) == PEER_EXPORTED
    answer = SealedAnswer(PEER_EXPORTED, PEER_ENCAPSULATED, bytes(range(32, 64)))
    assert answer.seal(b"first\n") + answer.seal(b"second\n") == PEER_ANSWER
    assert answer.headers == {"Ehbp-Response-Nonce": bytes(range(32, 64)).hex()}


@given(st.lists(st.binary(max_size=50), max_size=6), st.data())
def test_chunks_come_whole_however_they_are_cut(chunks, data):
    wire = b"".join(map(framing.frame_chunk, chunks))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=5)))
    reader, found = ChunkReader(), []
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        found += reader.push(wire[start:end])
    reader.finish()
    assert found == [chunk for chunk in chunks if chunk]


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_cut(data):
    reader = ChunkReader()
    try:
        reader.push(data)
        reader.finish()
    except InvalidSealing:
        pass


@pytest.fixture
def keys(tmp_path):
    return SealingKeys(tmp_path / "sealing.json", MovingClock(), SystemDice())


def reopened(keys, later_ms=0):
    return SealingKeys(keys._path, MovingClock(NOW_MS + later_ms), SystemDice())


async def read_answer(sealed, wire, nonce):
    async def pieces():
        for start in range(0, len(wire), 7):
            yield wire[start : start + 7]

    return [chunk async for chunk in sealed.open_answer(nonce, pieces())]


async def test_a_body_of_any_size_is_opened_and_answered(keys):
    plain = bytes(range(256)) * 10_000
    sealed = SealedRequest(keys.public_key, plain)
    opened, answer = keys.open(sealed.headers, sealed.body)
    assert opened == plain
    wire = answer.seal(b"one\n") + answer.seal(b"two\n")
    assert await read_answer(sealed, wire, answer.headers["Ehbp-Response-Nonce"]) == [b"one\n", b"two\n"]
    assert keys.open({}, b"in the open")[0] == b"in the open"


async def test_whatever_is_changed_on_the_way_is_noticed(keys):
    sealed = SealedRequest(keys.public_key, b"papers")
    name = framing.ENCAPSULATED_KEY_HEADER
    for headers, body in (
        (sealed.headers, sealed.body[:-1] + bytes([sealed.body[-1] ^ 1])),
        (sealed.headers, sealed.body[:-1]),
        (sealed.headers, sealed.body + sealed.body),
        ({name: "00" * 32}, sealed.body),
        ({name: "zz"}, sealed.body),
        ({name: SealedRequest(keys.public_key, b"papers").headers[name]}, sealed.body),
    ):
        with pytest.raises(InvalidSealing):
            keys.open(headers, body)
    _, answer = keys.open(sealed.headers, sealed.body)
    first, second = answer.seal(b"one"), answer.seal(b"two")
    nonce = answer.headers[framing.RESPONSE_NONCE_HEADER]
    other = SealedRequest(keys.public_key, b"papers")
    for asked, wire, told in (
        (sealed, second + first, nonce),
        (sealed, first + first, nonce),
        (sealed, first[:-1], nonce),
        (sealed, first, "00" * 32),
        (sealed, first, None),
        (sealed, first, "x"),
        (other, first, nonce),  # a copy of the body, sent by somebody else, is answered to nobody's use
    ):
        with pytest.raises(InvalidSealing):
            await read_answer(asked, wire, told)


def test_keys_outlive_a_restart_and_are_forgotten_in_time(keys):
    sealed = SealedRequest(keys.public_key, b"papers")
    assert keys._path.stat().st_mode & 0o777 == 0o600
    assert reopened(keys).public_key == keys.public_key
    assert reopened(keys).open(sealed.headers, sealed.body)[0] == b"papers"
    later = reopened(keys, ROTATE_MS)
    assert later.public_key != keys.public_key
    assert later.open(sealed.headers, sealed.body)[0] == b"papers"
    last = reopened(keys, 2 * ROTATE_MS)
    with pytest.raises(InvalidSealing, match="fetch the offer again"):
        last.open(sealed.headers, sealed.body)
    keys._path.write_text("{")
    assert len(reopened(keys).public_key) == 32


def test_a_key_that_cannot_be_sealed_to_is_refused():
    for key in (bytes(32), b"short"):
        with pytest.raises(InvalidSealing, match="sealing key"):
            SealedRequest(key, b"papers")


def test_a_statement_is_its_provider_s_and_of_now():
    conduct = Conduct(derive_public(SECRET), 5, False, NOW_MS + 1)
    body = sign_conduct(KEY, NETWORK, conduct)
    assert validate_conduct(NETWORK, body, KEY.address, NOW_MS) == conduct
    forged = sign_conduct(PrivateKey(b"\x08" * 32), NETWORK, conduct)
    too_long = sign_conduct(KEY, NETWORK, replace(conduct, valid_until=NOW_MS + CONDUCT_LIFETIME_MS_MAX + 1))
    for network, stated, now_ms in (
        (b"m" * 32, body, NOW_MS),
        (NETWORK, forged, NOW_MS),
        (NETWORK, body, NOW_MS + 1),
        (NETWORK, too_long, NOW_MS),
        (NETWORK, sign_conduct(KEY, NETWORK, replace(conduct, retains_ms=-1)), NOW_MS),
    ):
        with pytest.raises(InvalidConduct):
            validate_conduct(network, stated, KEY.address, now_ms)


def test_what_a_statement_promises_of_what_users_ask_for():
    assert list_promises(Conduct(None, 0, False, NOW_MS + 1)) == {"no_training", "no_retention"}
    assert list_promises(Conduct(None, 5, True, NOW_MS + 1)) == list_promises(None) == frozenset()


class Wire:
    """Somebody on the way: passes bodies on, remembers all bytes, and may change some."""

    def __init__(self, target, http):
        self.seen, self.change, self._target, self._http = bytearray(), None, target, http

    async def pass_on(self, request):
        body = await read_body(request)
        self.seen += body
        headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host",)}
        async with self._http.session.post(f"{self._target}{request.path}", data=body, headers=headers) as answer:
            data = await answer.read()
        self.seen += data
        if self.change is not None:
            data = self.change(data)
        kept = {
            name: value for name, value in answer.headers.items() if name.lower().startswith(("ehbp", "content-type"))
        }
        return web.Response(body=data, status=answer.status, headers=kept)


@asynccontextmanager
async def open_way(kit, journal, tmp_path):
    """A provider with a key, and a wire to it."""
    chain = kit.FakeChain()
    chain.put(kit.build_config(), 5 * CREDIT)
    clock = MovingClock(kit.NOW_MS)
    keys = SealingKeys(tmp_path / "sealing.json", clock, SystemDice())
    privacy = Privacy(kit.SELLER, kit.TERMS.network_id, keys, clock, retains_ms=5, trains=False)
    seller = Seller(
        kit.SELLER, kit.TERMS, kit.build_settings(), journal, chain, kit.FakeGenerator(), kit.FakeVault(),
        clock=clock, privacy=privacy,
    )  # fmt: skip
    async with seller, serve(seller.application) as url, HttpClient() as http:
        wire = Wire(url, http)
        application = build_application("wire", body_bytes_max=4 << 20)
        application.router.add_post("/{tail:.*}", wire.pass_on)
        async with serve(application) as way:
            answer = await http.get_json(f"{url}/offer", OfferAnswer)
            conduct = validate_conduct(kit.TERMS.network_id, answer.conduct, kit.SELLER.address, kit.NOW_MS)
            offer, signature = read_offer(answer)
            signed = replace(kit.build_offer(), offer=offer, signature=signature)
            signed = replace(signed, digest=kit.hash_struct(offer))
            yield wire, way, http, signed, conduct.sealing_key


async def buy(http, way, papers, sealing_key):
    lines = stream_purchase(http, f"{way}/purchases", encode_papers(papers), sealing_key, idle_s=10)
    async with aclosing(lines):
        return [decode_line(line) async for line in lines]


async def test_nobody_on_the_way_sees_prompt_or_answer(kit, journal, tmp_path):
    async with open_way(kit, journal, tmp_path) as (wire, way, http, offer, sealing_key):
        papers = kit.build_papers(offer, kit.build_order(prompt=(11, 12, 13)))
        lines = await buy(http, way, papers, sealing_key)
        ids = [token for line in lines if isinstance(line, Tokens) for token in line.ids]
        assert isinstance(lines[-1], Finished)
        cancel = Cancel(request_digest=papers.request_digest, tokens=3)
        body = CancelBody(3, encode_hex(sign_struct(kit.BUYER, kit.TERMS.protocol, cancel)))
        url = f"{way}/purchases/{encode_hex(papers.request_digest)}/cancel"
        outcome = read_outcome(await post_sealed(http, url, body, OutcomeAnswer, sealing_key))
        assert outcome[0] == tuple(ids)
        for words in (b"promptIds", b"ids", b"receipt", b"ask", papers.salt.hex().encode(), b"tokens"):
            assert words not in wire.seen
        clear = len(wire.seen)
        assert await buy(http, way, papers, None)  # the same papers in the open show what the test would notice
        assert b"promptIds" in wire.seen[clear:]


async def test_whoever_changes_something_on_the_way_is_no_lying_provider(kit, journal, tmp_path):
    async with open_way(kit, journal, tmp_path) as (wire, way, http, offer, sealing_key):
        papers = kit.build_papers(offer, kit.build_order())
        for change in (
            lambda data: data[:-1],
            lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
            lambda _data: b"{}\n",
        ):
            wire.change = change
            with pytest.raises(UnavailablePeer, match="changed on the way"):
                await buy(http, way, papers, sealing_key)
        wire.change = None
        with pytest.raises(RefusedByPeer, match="InvalidSealing"):
            await buy(http, way, papers, derive_public(SECRET))
        assert isinstance((await buy(http, way, papers, sealing_key))[-1], Finished)
