"""WebSocket: the same methods as HTTP, and subscriptions; bounded in every direction."""

import asyncio
import contextlib
import json

import aiohttp
import frames
import pytest
from rpc_world import CHAIN_ID, EMITTER, ME, running, word

from deaios.chain.service import subscriptions, websocket

TO = b"\x66" * 20


@pytest.fixture
async def world(tmp_path):
    async with running(tmp_path) as found:
        yield found


async def test_every_kind_of_request_is_answered_as_over_http(world):
    async with world.websocket() as socket:
        assert await socket.result("eth_chainId") == hex(CHAIN_ID)
        assert (await socket.error("eth_getBalance", "0x12"))["code"] == -32602
        batch = [
            {"jsonrpc": "2.0", "id": "a", "method": "eth_blockNumber"},
            {"jsonrpc": "2.0", "method": "eth_blockNumber"},
            {"jsonrpc": "2.0", "id": 2, "method": "eth_nothing"},
        ]
        await socket.socket.send_json(batch)
        answers = await socket.read()
        assert [(item["id"], "error" in item) for item in answers] == [("a", False), (2, True)]
        for body, code in ((b"{", -32700), (b"[]", -32600), (b"1", -32600), (b"\xff", -32700), (b"[" * 1000, -32700)):
            await socket.socket.send_bytes(body)
            assert (await socket.read())["error"]["code"] == code
        await socket.socket.send_json({"jsonrpc": "2.0", "method": "eth_blockNumber"})
        assert await socket.result("net_version") == str(CHAIN_ID)


async def test_news_come_in_order_behind_the_id_and_until_unsubscribed(world):
    address = await world.deploy(EMITTER)
    async with world.websocket() as socket:
        heads = await socket.result("eth_subscribe", "newHeads")
        logs = await socket.result("eth_subscribe", "logs", {"address": address, "topics": [[word(5), word(6)]]})
        hashes = await socket.result("eth_subscribe", "newPendingTransactions")
        whole = await socket.result("eth_subscribe", "newPendingTransactions", True)
        assert len({heads, logs, hashes, whole}) == 4
        receipt = await world.emit(address, 5)
        told = await socket.news(4)
        assert [name for name, _ in told] == [hashes, whole, heads, logs]
        assert told[0][1] == receipt["transactionHash"]
        assert (told[1][1]["hash"], told[1][1]["from"]) == (receipt["transactionHash"], ME)
        block = await world.result("eth_getBlockByHash", receipt["blockHash"], False)
        assert told[2][1] == {key: block[key] for key in told[2][1]}
        assert told[3][1] == receipt["logs"][0]
        assert await socket.result("eth_unsubscribe", hashes) is True
        assert await socket.error("eth_unsubscribe", hashes) == {"code": -32000, "message": "subscription not found"}
        for kind in (whole, heads):
            await socket.result("eth_unsubscribe", kind)
        await world.emit(address, 7)  # of no interest
        receipt = await world.emit(address, 6)
        assert await socket.news(1) == [(logs, receipt["logs"][0])]


async def test_what_cannot_be_subscribed_to_is_refused_in_geths_words(world):
    async with world.websocket() as socket:
        for params, code, words in (
            (["syncing"], -32601, 'no "syncing" subscription in eth namespace'),
            ([], -32602, "expected subscription name as first argument"),
            ([5], -32602, "expected subscription name as first argument"),
            (["logs"], -32602, "missing value for required argument 1"),
            (["newHeads", {}], -32602, "too many arguments, want at most 1"),
            (["logs", {"fromBlock": "0x5", "toBlock": "0x4"}], -32602, "invalid block range params"),
            (["logs", {"fromBlock": "pending"}], -32602, "pending logs are not supported"),
            (["newPendingTransactions", 1], -32602, "invalid argument 1: fullTx is '1', a boolean expected"),
        ):
            assert await socket.error("eth_subscribe", *params) == {"code": code, "message": words}
        for _ in range(subscriptions.SUBSCRIPTIONS_MAX):
            await socket.result("eth_subscribe", "newHeads")
        assert (await socket.error("eth_subscribe", "newHeads"))["code"] == -32005
    assert await world.error("eth_subscribe", "newHeads") == {"code": -32601, "message": "notifications not supported"}


async def test_a_subscription_in_a_batch_is_answered_before_its_news(world):
    """The transaction in the same batch is admitted after the subscription began and before its id is known."""
    async with world.websocket() as socket:
        raw = "0x" + world.sign(TO, value=1).raw.hex()
        await socket.socket.send_json(
            [
                {"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["newPendingTransactions"]},
                {"jsonrpc": "2.0", "id": 2, "method": "eth_sendRawTransaction", "params": [raw]},
            ]
        )
        first, second = await socket.read()
        assert await socket.news(1) == [(first["result"], second["result"])]


async def test_a_subscriber_that_does_not_read_is_cut_off_and_others_are_told_everything(world, monkeypatch):
    monkeypatch.setattr(subscriptions, "NEWS_MAX", 50)
    monkeypatch.setattr(subscriptions, "NEWS_BYTES_MAX", 1 << 20)
    address = await world.deploy(EMITTER)
    host, port = world.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.transport.pause_reading()
    ask = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["newPendingTransactions", True]})
    writer.write(frames.handshake() + b"".join(frames.frame(1, ask.encode()) for _ in range(32)))
    async with world.websocket() as socket:
        heads = await socket.result("eth_subscribe", "newHeads")
        async with asyncio.timeout(60):
            while await dismissed(world, "unread news") == 0:
                await world.include(bytes.fromhex(address[2:]), data=bytes(60_000), gas=900_000)
        assert (await socket.news(1))[0][0] == heads
    writer.close()
    assert reader is not None


async def dismissed(world, reason):
    async with world.session.get(world.url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    name = f'deaios_http_connections_dismissed_total{{reason="{reason}"}}'
    return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0)


def test_what_is_too_long_here_is_too_long_there():
    assert frames.MESSAGE_BYTES_MAX == websocket.MESSAGE_BYTES_MAX


@pytest.mark.parametrize("name", frames.GARBAGE)
async def test_broken_frames_end_the_connection_and_nothing_else(world, name):
    host, port = world.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(frames.handshake())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    writer.write(frames.GARBAGE[name])
    if name == "not masked":
        # aiohttp takes it; RFC 6455 5.1 would have it refused. It means what it says, so it is answered.
        assert b"invalid request" in await reader.readuntil(b"}}")
    else:
        async with asyncio.timeout(20):
            await reader.read()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    assert await world.result("eth_chainId") == hex(CHAIN_ID)


async def test_places_are_bounded_and_the_silent_give_way_first(world, monkeypatch):
    monkeypatch.setattr(websocket, "WEBSOCKETS_MAX", 2)
    async with world.websocket() as first, world.websocket() as second:
        await first.result("eth_subscribe", "newHeads")
        assert await second.result("eth_chainId") == hex(CHAIN_ID)
        async with world.websocket() as third:
            message = await second.socket.receive()
            assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR, aiohttp.WSMsgType.CLOSE)
            await third.result("eth_subscribe", "newHeads")
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with world.websocket():
                    pass
            assert refused.value.status == 429
            assert await first.result("eth_chainId") == hex(CHAIN_ID)


async def test_a_silent_peer_is_pinged_and_one_that_does_not_answer_is_cut(world, monkeypatch):
    monkeypatch.setattr(websocket, "HEARTBEAT_S", 0.2)
    host, port = world.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(frames.handshake())
    await reader.readuntil(b"\r\n\r\n")
    async with asyncio.timeout(20):
        for _ in range(3):
            assert await reader.readexactly(2) == b"\x89\x00"
            writer.write(frames.frame(10, b""))
        assert await reader.readexactly(2) == b"\x89\x00"
        assert await reader.read() == b""
    writer.close()


async def test_the_chain_says_goodbye(tmp_path):
    async with running(tmp_path) as world:
        session = aiohttp.ClientSession()
        socket = await session.ws_connect(world.url)
        receiving = asyncio.create_task(socket.receive())
        await asyncio.sleep(0)
    message = await receiving
    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.GOING_AWAY)
    await session.close()


async def test_a_flood_on_one_connection_is_answered_in_order(world):
    async with world.websocket() as socket:
        sending = asyncio.create_task(flood(socket, 2000))
        for number in range(2000):
            assert (await socket.read())["id"] == number
        await sending


async def flood(socket, count):
    for number in range(count):
        await socket.socket.send_json({"jsonrpc": "2.0", "id": number, "method": "eth_blockNumber"})


async def test_a_plain_get_says_that_somebody_is_here(world):
    async with world.session.get(world.url) as response:
        assert (response.status, await response.read()) == (200, b"")
