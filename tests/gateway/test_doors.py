"""The HTTP door itself: typed errors for every wrong turn, bounded bodies, nonces, proofs, random bytes."""

import asyncio
import io
import json
from urllib.parse import urlsplit

import aiohttp
import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deaios.gateway.desk import Limits
from deaios.market.fields import BODY_BYTES_MAX
from deaios.market.opening import Opening
from deaios.primitives.errors import Unavailable

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
async def session():
    async with aiohttp.ClientSession() as opened:
        yield opened


async def ask(session, world, body=BODY, **headers):
    data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
    async with session.post(
        world.base_url + "/chat/completions", data=data, headers=world.headers | headers
    ) as response:
        return response.status, await response.json()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("POST", "/", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/tiny", 405, "method_not_allowed"),
        ("POST", "/v1/images/generations", 404, "unknown_url"),
        ("GET", "/v1/receipts/0x12/1/proof", 400, "invalid_value"),
        ("GET", "/v1/receipts/0x" + "22" * 20 + "/01/proof", 400, "invalid_value"),
        ("GET", "/v1/receipts/0x" + "22" * 20 + "/1/proof", 404, "not_found"),
    ],
)
async def test_wrong_turns_have_openai_errors(world, session, method, path, status, code):
    async with session.request(method, world.url + path, headers=world.headers) as response:
        answer = await response.json()
    assert response.status == status
    assert answer["error"]["code"] == code
    assert answer["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer sk-deaios-" + "a" * 43, "Bearer x"]
)
async def test_every_route_wants_a_key(world, session, header):
    headers = {} if header is None else {"Authorization": header}
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/v1/receipts/a/1/proof")):
        async with session.request(method, world.url + path, headers=headers) as response:
            assert response.status == 401
            assert (await response.json())["error"]["code"] == "invalid_api_key"


async def test_revoked_and_expired_keys_are_refused(world, session):
    old, _ = world.keys.create(FixedDice(b"\x01"), 0, name="old", expires_at_ms=1)
    gone, record = world.keys.create(FixedDice(b"\x02"), 0, name="gone")
    world.keys.revoke(record.key_id, 5)
    for key, word in ((old, "expired"), (gone, "revoked")):
        async with session.get(world.base_url + "/models", headers={"Authorization": f"Bearer {key}"}) as response:
            assert response.status == 401
            assert word in (await response.json())["error"]["message"]


class FixedDice:
    def __init__(self, byte):
        self.byte = byte

    def token_bytes(self, size):
        return self.byte * size


async def test_a_key_sees_and_uses_only_its_models(world, session):
    key, _ = world.keys.create(FixedDice(b"\x03"), 0, name="narrow", models=["another"])
    headers = {"Authorization": f"Bearer {key}"}
    async with session.get(world.base_url + "/models", headers=headers) as response:
        assert (await response.json())["data"] == []
    status, answer = await ask(session, world, **headers)
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_health_and_metrics_are_open(world, session):
    await ask(session, world)
    async with session.get(world.url + "/healthz") as response:
        assert (response.status, await response.json()) == (200, {"status": "ok", "role": "gateway"})
    async with session.get(world.url + "/metrics") as response:
        text = await response.text()
    assert 'deaios_gateway_answers_total{outcome="served"} 1.0' in text
    assert 'deaios_gateway_tokens_total{kind="completion"} 15.0' in text


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"[" * 60_000, 400, "invalid_json"),
        (b'{"a":' * 20_000, 400, "invalid_json"),
        (b'{"model": NaN}', 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b'{"\\ud800": 1}', 400, "unknown_parameter"),
        (b'{"model": "\\ud800"}', 400, "invalid_value"),
        (b" " * (BODY_BYTES_MAX + 1), 413, "request_too_large"),
    ],
)
async def test_hostile_bodies_are_refused(world, session, body, status, code):
    found, answer = await ask(session, world, body)
    assert (found, answer["error"]["code"]) == (status, code)


async def test_a_compressed_body_is_refused(world, session):
    async with session.post(
        world.base_url + "/chat/completions",
        data=b"not deflated",
        headers=world.headers | {"Content-Encoding": "deflate"},
    ) as response:
        assert response.status == 415
        assert (await response.json())["error"]["code"] == "unsupported_encoding"


async def test_a_body_that_never_comes_is_a_timeout(start_gateway):
    async with start_gateway(limits=Limits(body_s=0.05)) as world:
        reader, writer = await connect(world)
        writer.write(head(world, 100))
        answer = await reader.readuntil(b'"code":"request_timeout"}}')
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408")


async def connect(world):
    url = urlsplit(world.url)
    return await asyncio.open_connection(url.hostname, url.port)


def head(world, length):
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.key}\r\n"
        f"Content-Length: {length}\r\nConnection: close\r\n\r\n"
    ).encode()


async def test_the_users_nonce_is_bought_and_returned(world, session):
    nonce = "0x" + "ab" * 32
    _, answer = await ask(session, world, **{"X-DeAIOS-Nonce": nonce})
    order = world.buyer.orders[0]
    assert answer["deaios"]["clientNonce"] == nonce
    assert order.client_nonce == b"\xab" * 32
    assert order.body == json.dumps(BODY).encode()


async def test_without_seed_every_draw_is_fresh(world, session):
    for _ in range(2):
        await ask(session, world)
    first, second = world.buyer.orders
    for name in ("client_nonce", "nonce", "salt"):
        assert getattr(first, name) != getattr(second, name)
        assert len(getattr(first, name)) == 32


async def test_with_seed_the_same_call_of_the_same_key_is_the_same_ask(world, session):
    other, _ = world.keys.create(FixedDice(b"\x04"), 0, name="other")
    body = BODY | {"seed": 7}
    await ask(session, world, body)
    await ask(session, world, body)
    await ask(session, world, body, Authorization=f"Bearer {other}")
    await ask(session, world, BODY | {"seed": 8})
    await ask(session, world, body, **{"X-DeAIOS-Nonce": "0x" + "01" * 32})
    same, again, foreign, reseeded, own = world.buyer.orders
    assert same == again
    assert len({order.nonce for order in (same, foreign, reseeded)}) == 3
    assert len({order.salt for order in (same, foreign, reseeded)}) == 3
    assert len({same.client_nonce, same.nonce, same.salt}) == 3
    assert (own.nonce, own.salt, own.client_nonce) == (same.nonce, same.salt, b"\x01" * 32)


async def test_the_order_holds_what_the_body_says(world, session):
    body = BODY | {"deaios": {"min_level": 4, "audit_policy": "open", "provider": "0x" + "22" * 20}}
    await ask(session, world, body)
    order = world.buyer.orders[0]
    assert (order.min_level, order.audit_policy, order.provider) == (4, 1, b"\x22" * 20)
    assert order.prompt_ids == tuple(b"user:hello\n")
    assert json.loads(order.context) == {
        "messages": BODY["messages"],
        "now": "",
        "template": "0x" + "09" * 32,
        "tools": None,
    }


async def test_a_large_body_takes_the_same_way(start_gateway, session):
    async with start_gateway(context_tokens=100_000) as world:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 50_000}]}
        status, answer = await ask(session, world, body)
    assert status == 200
    assert answer["usage"]["prompt_tokens"] == len("user:\n") + 50_000


async def test_proof_of_a_receipt_is_passed_on(world, session):
    _, answer = await ask(session, world)
    opening = Opening.decode_json(answer["deaios"]["opening"])
    url = f"{world.base_url}/receipts/0x{'22' * 20}/{opening.receipt.counter}/proof"
    async with session.get(url, headers=world.headers) as response:
        found = await response.json()
    assert found["receiptDigest"] == "0x" + opening.receipt_digest.hex()
    assert found["proof"]["firstCounter"] == opening.receipt.counter

    def late(_opening, timeout_s):
        raise Unavailable(f"not on chain within {timeout_s} s")

    world.buyer.proof = late
    async with session.get(url, headers=world.headers) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "1")


async def test_tokens_outside_the_vocabulary_are_the_providers_fault(world, session):
    world.buyer.reply = lambda order: world.script([(72, 999)])
    status, answer = await ask(session, world)
    assert (status, answer["error"]["type"]) == (503, "server_error")
    assert world.buyer.purchases[0].cancelled
    assert world.spent == 0


async def test_our_own_fault_is_a_500_without_a_trace(world, session):
    world.buyer.reply = lambda order: ZeroDivisionError("secret detail")
    status, answer = await ask(session, world)
    assert (status, answer["error"]["code"]) == (500, "internal_error")
    assert "secret" not in json.dumps(answer)


async def exchange(world, data):
    reader, writer = await connect(world)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()
        await writer.wait_closed()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_requests_never_make_a_500(data, start_gateway):
    method = data.draw(st.just("POST") | st.sampled_from(["GET", "PUT", "HEAD", "OPTIONS", "\x00", "X"]))
    path = data.draw(
        st.sampled_from(
            ["/v1/chat/completions", "/v1/models", "/v1/models/%ff%00", "/v1/receipts/a/b/proof", "/%2e%2e", "*"]
        )
    )
    header = data.draw(st.just(b"plain") | st.binary(max_size=40))
    body = data.draw(st.one_of(st.binary(max_size=200), near_bodies()))

    async def run():
        async with start_gateway() as world:
            lines = [
                f"{method} {path} HTTP/1.1",
                "Host: x",
                f"Authorization: Bearer {world.key}",
                f"Content-Length: {len(body)}",
            ]
            head = "\r\n".join(lines).encode() + b"\r\nX-DeAIOS-Extra: " + header + b"\r\nConnection: close\r\n\r\n"
            return await exchange(world, head + body)

    answer = asyncio.run(run())
    status = answer.split(b" ", 2)[1]
    hypothesis.event(status.decode())
    assert status in (b"200", b"400", b"401", b"404", b"405", b"503")
    assert b"Traceback" not in answer


def near_bodies():
    values = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | st.lists(st.integers(), max_size=2)
    )
    names = st.sampled_from(
        ["temperature", "stop", "seed", "stream", "max_tokens", "top_p", "model", "messages", "n", "x"]
    )
    return st.dictionaries(names, values, max_size=3).map(lambda extra: json.dumps(BODY | extra).encode())
