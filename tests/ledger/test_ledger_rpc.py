"""The JSON-RPC client: retries of reads only, bounds, hostile answers, typed errors."""

import json
from typing import Any

import pytest
from aiohttp import web

from deaios.ledger.client import rpc as rpc_module
from deaios.ledger.client.rpc import ATTEMPTS, InvalidLogRange, RefusedByChain, Reverted, Rpc, UnavailableChain
from deaios.ledger.records import InvalidAnswer, Log, read_block, read_logs, read_quantity, read_receipt
from deaios.primitives.keys import Address

ADDRESS = Address(b"\x41" * 20)


async def test_reads(rpc: Rpc) -> None:
    assert await rpc.chain_id() == 4242
    assert await rpc.block_number() == 1
    block = await rpc.fetch_latest()
    assert (block.number, block.timestamp, block.base_fee) == (1, 1001, 1_000_000_000)
    assert await rpc.get_block(0) is not None
    assert await rpc.get_block(99) is None
    assert await rpc.get_balance(ADDRESS) == 10**20
    assert await rpc.get_receipt(bytes(32)) is None


async def test_batch_keeps_order(node: Any, rpc: Rpc) -> None:
    calls: list[tuple[str, list[Any]]] = [("eth_chainId", []), ("eth_blockNumber", []), ("eth_chainId", [])]
    assert await rpc.batch(calls) == [hex(4242), hex(1), hex(4242)]
    node.raw_answer = json.dumps([{"jsonrpc": "2.0", "id": i, "result": hex(i)} for i in (5, 3, 4)]).encode()
    assert await rpc.batch(calls) == [hex(3), hex(4), hex(5)]


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_read_is_retried(node: Any, rpc: Rpc, status: int) -> None:
    node.fail_times("eth_blockNumber", ATTEMPTS - 1, status)
    assert await rpc.block_number() == 1
    assert node.calls == ["eth_blockNumber"] * ATTEMPTS


async def test_attempts_are_bounded(node: Any, rpc: Rpc, clock: Any) -> None:
    node.fail_times("eth_blockNumber", ATTEMPTS)
    with pytest.raises(UnavailableChain, match="503"):
        await rpc.block_number()
    assert len(node.calls) == ATTEMPTS
    assert clock.time_s == pytest.approx(0.1 + 0.2 + 0.4 + 0.8)


async def test_submission_is_not_retried(node: Any, rpc: Rpc) -> None:
    node.fail_times("eth_sendRawTransaction", 1)
    with pytest.raises(UnavailableChain):
        await rpc.send_raw_transaction(b"\x01")
    assert node.calls == ["eth_sendRawTransaction"]


async def test_nobody_listens(clock: Any) -> None:
    async with Rpc("http://127.0.0.1:9", clock=clock) as rpc:
        with pytest.raises(UnavailableChain):
            await rpc.chain_id()


async def test_hanging_node(node: Any, clock: Any) -> None:
    import asyncio

    never = asyncio.Event()

    async def hang(_request: web.Request) -> web.Response:
        await never.wait()
        return web.Response()

    application = web.Application()
    application.router.add_post("/", hang)
    runner = web.AppRunner(application, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    bound: Any = runner.addresses[0]
    async with Rpc(f"http://127.0.0.1:{bound[1]}", clock=clock, attempts=1, total_s=0.05) as rpc:
        with pytest.raises(UnavailableChain):
            await rpc.chain_id()
    never.set()
    await runner.cleanup()


HOSTILE = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b"<html>",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"jsonrpc":"2.0","id":99,"result":"0x1"}',
    b'{"jsonrpc":"2.0","id":0,"result":1}',
    b'{"jsonrpc":"2.0","id":0,"result":null}',
    b'{"jsonrpc":"2.0","id":0,"result":"0xg"}',
    b'{"jsonrpc":"2.0","id":0,"result":"0x"}',
    b'{"jsonrpc":"2.0","id":0,"result":"0x' + b"f" * 65 + b'"}',
    b'{"jsonrpc":"2.0","id":"0","result":"0x1"}',
    b'{"jsonrpc":"2.0","id":0,"error":"bad"}',
    b'{"jsonrpc":"2.0","id":0,"error":{"message":"no code"}}',
    b'[{"jsonrpc":"2.0","id":7,"result":"0x1"}]',
]


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
async def test_hostile_answer(node: Any, rpc: Rpc, answer: bytes) -> None:
    node.raw_answer = answer
    with pytest.raises(InvalidAnswer):
        await rpc.block_number()


async def test_answer_is_bounded(node: Any, rpc: Rpc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_module, "RESPONSE_BYTES_MAX", 1000)
    node.raw_answer = b" " * 1001
    with pytest.raises(InvalidAnswer, match="more than 1000 bytes"):
        await rpc.block_number()


def error(code: int, message: str, data: Any = None) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 0, "error": {"code": code, "message": message, "data": data}}).encode()


async def test_errors_are_typed(node: Any, clock: Any) -> None:
    cases: list[tuple[bytes, type[Exception], str]] = [
        (error(-32601, "method not found"), RefusedByChain, "-32601 method not found"),
        (error(-32000, "nonce too low"), RefusedByChain, "nonce too low"),
        (error(-32005, "limit exceeded"), UnavailableChain, "limit exceeded"),
        (error(3, "execution reverted", "0x"), Reverted, "reverted"),
        (error(3, "execution reverted: because"), Reverted, "because"),
        (error(-32000, "execution reverted", "0x4e487b71" + "00" * 31 + "12"), Reverted, "panic 0x12"),
        (error(3, "execution reverted", "0xzz"), InvalidAnswer, "revert data"),
        (error(3, "execution reverted", {"odd": 1}), Reverted, "execution reverted"),
        (error(-32000, "m" * 10_000), RefusedByChain, "m" * 300),
    ]
    for answer, kind, message in cases:
        node.raw_answer = answer
        async with Rpc(node.url, clock=clock, attempts=1) as rpc:
            with pytest.raises(kind) as caught:
                await rpc.block_number()
        assert message in str(caught.value)
        assert len(str(caught.value)) < 500


async def test_error_for_a_whole_batch(node: Any, rpc: Rpc) -> None:
    node.raw_answer = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"batch too large"}}'
    with pytest.raises(RefusedByChain, match="batch too large"):
        await rpc.batch([("eth_chainId", []), ("eth_chainId", [])])


async def test_error_in_a_batch(node: Any, rpc: Rpc) -> None:
    with pytest.raises(Reverted, match="it is dead"):
        await rpc.batch([("eth_chainId", []), ("eth_call", [{"data": "0xdead"}, "latest"])])


async def test_http_refusal(node: Any, rpc: Rpc) -> None:
    node.fail_times("eth_chainId", 1, 401)
    with pytest.raises(RefusedByChain, match="401"):
        await rpc.chain_id()


async def test_closed_client_opens_again(rpc: Rpc) -> None:
    assert await rpc.chain_id() == 4242
    await rpc.close()
    assert await rpc.chain_id() == 4242


LOG = {
    "address": "0x" + "41" * 20,
    "topics": ["0x" + "01" * 32],
    "data": "0x0203",
    "blockNumber": "0x5",
    "transactionHash": "0x" + "07" * 32,
    "logIndex": "0x0",
}


async def test_logs_are_asked_for_in_steps(node: Any, rpc: Rpc) -> None:
    asked: list[dict[str, Any]] = []

    def logs(criteria: dict[str, Any]) -> list[Any]:
        asked.append(criteria)
        return [LOG]

    node.eth_get_logs = logs
    node.height = 25_000
    found = await rpc.get_logs(ADDRESS, [b"\x01" * 32, None, [b"\x02" * 32]], from_block=3)
    assert found == (Log(ADDRESS, (b"\x01" * 32,), b"\x02\x03", 5, b"\x07" * 32, 0),) * 3
    assert [(item["fromBlock"], item["toBlock"]) for item in asked] == [
        (hex(3), hex(10_002)),
        (hex(10_003), hex(20_002)),
        (hex(20_003), hex(25_000)),
    ]
    assert asked[0]["topics"] == ["0x" + "01" * 32, None, ["0x" + "02" * 32]]
    with pytest.raises(InvalidLogRange):
        await rpc.get_logs(ADDRESS, to_block=10**9)
    assert await rpc.get_logs(ADDRESS, from_block=30_000) == ()


@pytest.mark.parametrize(
    "change",
    [
        {"address": "0x41"},
        {"address": None},
        {"topics": ["0x01"]},
        {"topics": ["0x" + "01" * 32] * 5},
        {"topics": {}},
        {"data": "0x1"},
        {"data": "0x" + "00" * (300 << 10)},
        {"blockNumber": 5},
        {"blockNumber": None},
        {"logIndex": "0x" + "f" * 80},
        {"transactionHash": "0x"},
    ],
)
def test_hostile_log(change: dict[str, Any]) -> None:
    assert len(read_logs([LOG])) == 1
    with pytest.raises(InvalidAnswer):
        read_logs([{**LOG, **change}])


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, {"number": "0x1"}])
def test_not_a_block_or_receipt(value: Any) -> None:
    with pytest.raises(InvalidAnswer):
        read_block(value)
    with pytest.raises(InvalidAnswer):
        read_receipt(value)


@pytest.mark.parametrize(
    "value", ["0x", "1", "0x-1", "0x1 ", "0x1_0", "\u0660x1", 1, None, True, "0x" + "1" * 65], ids=range(10)
)
def test_hostile_quantity(value: Any) -> None:
    with pytest.raises(InvalidAnswer):
        read_quantity(value)
