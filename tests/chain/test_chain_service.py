"""The service in this process: JSON-RPC edges, batches, errors, beat, restart, refusals."""

import asyncio
import contextlib
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import pytest
from chain_values import GWEI, OPERATOR, USERS, transaction, transfer

from deaios.chain.genesis import ETHER, Allocation, Genesis
from deaios.chain.service import ChainService, Limits, build_application
from deaios.chain.store import UnavailableStore
from deaios.ledger.eip712 import decode_json, recover_signer
from deaios.ledger.structs import Header, header_domain
from deaios.ledger.transactions import ACCESS_LIST, LEGACY, Transaction, sign_transaction
from deaios.primitives.encoding import decode_hex
from deaios.primitives.errors import ConfigError, Unavailable
from deaios.primitives.keys import Address, PrivateKey
from deaios.runtime.client import UnavailablePeer
from deaios.runtime.clock import SystemClock
from deaios.runtime.http import serve

GENESIS = Genesis(
    b"\x31" * 32, OPERATOR.address, 1_700_000_000, tuple(Allocation(user.address, 100 * ETHER) for user in USERS)
)
CHAIN_ID = GENESIS.chain_id
TO = b"\x66" * 20
ME = "0x" + USERS[0].address.hex()
# Error("no")
REVERT_TEXT = "08c379a0" + (32).to_bytes(32).hex() + (2).to_bytes(32).hex() + b"no".hex().ljust(64, "0")


class Client:
    def __init__(self, url, session, chain):
        self.url, self.session, self.chain = url, session, chain

    async def post(self, body):
        data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
        async with self.session.post(self.url, data=data, headers={"Content-Type": "application/json"}) as response:
            text = await response.read()
            return response.status, json.loads(text) if text else None

    async def ask(self, method, *params):
        _, answer = await self.post({"jsonrpc": "2.0", "id": 7, "method": method, "params": list(params)})
        assert answer["id"] == 7
        return answer

    async def result(self, method, *params):
        answer = await self.ask(method, *params)
        assert "error" not in answer, answer
        return answer["result"]

    async def error(self, method, *params):
        return (await self.ask(method, *params))["error"]

    async def send(self, signed):
        return await self.result("eth_sendRawTransaction", "0x" + signed.raw.hex())

    async def receipt(self, transaction_hash):
        async with asyncio.timeout(20):
            while (found := await self.result("eth_getTransactionReceipt", transaction_hash)) is None:
                await asyncio.sleep(0)
        return found


@contextlib.asynccontextmanager
async def running(path, *, deadline=None, genesis=GENESIS, key=OPERATOR, limits=None):
    with ThreadPoolExecutor(3) as executor:
        chain = await ChainService.start(
            path / "chain.db",
            key,
            genesis,
            executor=executor,
            clock=SystemClock(),
            deadline=deadline,
            limits=limits or Limits(block_ms=20, gather_ms=1),
        )
        task = asyncio.create_task(chain.run())
        try:
            async with serve(build_application(chain)) as url, aiohttp.ClientSession() as session:
                yield Client(url, session, chain)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await chain.close()


@pytest.fixture
async def client(tmp_path):
    async with running(tmp_path) as found:
        yield found


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", -32700),
        (b"{", -32700),
        (b"\xff\xfe", -32700),
        (b"[" * 100_000, -32700),
        (b"[]", -32600),
        (b"1", -32600),
        (b'"x"', -32600),
        (b"null", -32600),
        (b"{}", -32600),
        (b'{"jsonrpc":"1.0","id":1,"method":"eth_chainId"}', -32600),
        (b'{"jsonrpc":"2.0","id":[],"method":"eth_chainId"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":5}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"anvil_setBalance"}', -32601),
        (b'{"jsonrpc":"2.0","id":1,"method":"eth_getBalance","params":[]}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"eth_getBalance","params":{"a":1}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"eth_getBalance","params":["0x12"]}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"eth_getBalance","params":[null,1,2]}', -32602),
        (b"[" + b",".join([b"1"] * 1001) + b"]", -32600),
    ],
    ids=range(18),
)
async def test_hostile_bodies_get_typed_errors(client, body, code):
    status, answer = await client.post(body)
    if isinstance(answer, list):  # a batch that is too large is answered by a batch of one, as by geth
        (answer,) = answer
    assert (status, answer["error"]["code"], answer["jsonrpc"]) == (200, code, "2.0")


async def test_bodies_above_the_bound_are_refused(client):
    status, answer = await client.post(b'"' + b"x" * (9 << 20) + b'"')
    assert (status, answer["error"]["code"]) == (413, -32600)


async def test_batches_answer_in_order_and_notifications_are_silent(client):
    def request(number, method, *params):
        return {"jsonrpc": "2.0", "id": number, "method": method, "params": list(params)}

    raws = ["0x" + transfer(USERS[0], CHAIN_ID, nonce, TO, 1).raw.hex() for nonce in range(3)]
    body = [
        request("a", "eth_chainId"),
        request(1, "eth_sendRawTransaction", raws[0]),
        request(2, "eth_sendRawTransaction", "0x02"),
        request(3, "eth_sendRawTransaction", raws[1]),
        request(4, "eth_sendRawTransaction"),
        {"jsonrpc": "2.0", "method": "eth_chainId"},
        17,
        request(5, "eth_getTransactionCount", ME, "pending"),
        request(6, "eth_sendRawTransaction", raws[2]),
    ]
    _, answers = await client.post(body)
    assert [answer["id"] for answer in answers] == ["a", 1, 2, 3, 4, None, 5, 6]
    assert ["error" in answer for answer in answers] == [False, False, True, False, True, True, False, False]
    assert answers[6]["result"] == "0x2"
    _, answer = await client.post([{"jsonrpc": "2.0", "method": "eth_chainId"}])
    assert answer is None


async def test_all_three_types_are_included_and_types_three_and_four_refused(client):
    legacy = sign_transaction(
        USERS[0], Transaction(LEGACY, CHAIN_ID, 0, 3 * GWEI, 3 * GWEI, 21_000, Address(TO), 1, b"")
    )
    listed = sign_transaction(
        USERS[0],
        Transaction(ACCESS_LIST, CHAIN_ID, 1, 3 * GWEI, 3 * GWEI, 30_000, Address(TO), 1, b"", ((Address(TO), (1,)),)),
    )
    dynamic = transfer(USERS[0], CHAIN_ID, 2, TO, 1)
    for kind, signed in enumerate((legacy, listed, dynamic)):
        receipt = await client.receipt(await client.send(signed))
        assert (receipt["type"], receipt["status"]) == (hex(kind), "0x1")
        shown = await client.result("eth_getTransactionByHash", "0x" + signed.hash.hex())
        assert (shown["type"], int(shown["v"], 16), int(shown["r"], 16)) == (hex(kind), signed.v, signed.r)
    for kind, name in ((3, "blob"), (4, "set-code")):
        error = await client.error("eth_sendRawTransaction", "0x" + (bytes([kind]) + dynamic.raw[1:]).hex())
        assert error["code"] == -32000
        assert error["message"].startswith(f"transaction type not supported: type {kind} ({name}")


async def test_admission_errors_have_geths_words(client):
    async def refusal(signed):
        return (await client.error("eth_sendRawTransaction", "0x" + signed.raw.hex()))["message"]

    await client.receipt(await client.send(transfer(USERS[0], CHAIN_ID, 0, TO, 1)))
    assert await refusal(transfer(USERS[0], CHAIN_ID, 0, TO, 2)) == "nonce too low: next nonce 1, tx nonce 0"
    assert "insufficient funds for gas * price + value" in await refusal(transfer(USERS[0], CHAIN_ID, 1, TO, 10**24))
    assert "invalid chain id for signer: have 1 want" in await refusal(transfer(USERS[0], 1, 1, TO, 1))
    gapped = transfer(USERS[0], CHAIN_ID, 5, TO, 1)
    await client.send(gapped)
    assert await refusal(gapped) == "already known"
    assert "replacement transaction underpriced" in await refusal(transfer(USERS[0], CHAIN_ID, 5, TO, 2))


async def deploy(client, runtime, nonce=0):
    head = bytes.fromhex(f"61{len(runtime):04x}600e60003961{len(runtime):04x}6000f3")
    signed = transaction(USERS[0], CHAIN_ID, nonce, None, data=head + runtime, gas=900_000)
    receipt = await client.receipt(await client.send(signed))
    assert receipt["status"] == "0x1"
    return receipt["contractAddress"]


async def test_reverts_carry_code_three_reason_and_data(client):
    size = len(REVERT_TEXT) // 2
    runtime = bytes.fromhex(f"60{size:02x}600c60003960{size:02x}6000fd" + REVERT_TEXT)
    address = await deploy(client, runtime)
    for method in ("eth_call", "eth_estimateGas"):
        error = await client.error(method, {"from": ME, "to": address})
        assert error == {"code": 3, "message": "execution reverted: no", "data": "0x" + REVERT_TEXT}
    panic = bytes.fromhex("4e487b71" + (0x11).to_bytes(32).hex())
    address = await deploy(client, bytes.fromhex("6024600c60003960246000fd") + panic, 1)
    error = await client.error("eth_call", {"to": address})
    assert error["message"] == "execution reverted: arithmetic underflow or overflow (0x11)"
    address = await deploy(client, bytes.fromhex("60006000fd"), 2)
    assert await client.error("eth_call", {"to": address}) == {"code": 3, "message": "execution reverted", "data": "0x"}
    address = await deploy(client, b"\xfe", 3)
    assert await client.error("eth_call", {"to": address}) == {"code": -32000, "message": "invalid opcode: INVALID"}
    error = await client.error("eth_estimateGas", {"to": address, "from": ME})
    assert error["code"] == -32000
    failed = await client.receipt(
        await client.send(transaction(USERS[0], CHAIN_ID, 4, bytes.fromhex(address[2:]), gas=60_000))
    )
    assert (failed["status"], failed["gasUsed"]) == ("0x0", hex(60_000))


async def test_forbidden_opcodes_are_refused_at_the_door_with_the_way_out(client):
    for runtime, name in ((b"\x48\x00", "BASEFEE"), (b"\x5f\x40\x00", "BLOCKHASH")):
        head = bytes.fromhex(f"60{len(runtime):02x}600c60003960{len(runtime):02x}6000f3")
        data = "0x" + (head + runtime).hex()
        signed = transaction(USERS[0], CHAIN_ID, 0, None, data=head + runtime, gas=200_000)
        for error in (
            await client.error("eth_sendRawTransaction", "0x" + signed.raw.hex()),
            await client.error("eth_estimateGas", {"from": ME, "data": data}),
            await client.error("eth_call", {"from": ME, "data": data}),
        ):
            assert error["code"] == -32000
            assert name in error["message"]
            assert "--chain URL" in error["message"]
    assert await client.result("eth_getTransactionCount", ME, "pending") == "0x0"


async def test_a_factory_that_leaves_one_behind_gets_a_failed_receipt_with_the_reason(client):
    child = bytes.fromhex("6148006000526002601ef3")
    factory = (
        bytes([0x5F + len(child)]) + child + bytes.fromhex("600052") + bytes([0x60, len(child), 0x60, 32 - len(child)])
    )
    address = await deploy(client, factory + bytes.fromhex("6000f000"))
    signed = transaction(USERS[0], CHAIN_ID, 1, bytes.fromhex(address[2:]), gas=300_000)
    receipt = await client.receipt(await client.send(signed))
    assert (receipt["status"], receipt["gasUsed"], receipt["logs"]) == ("0x0", hex(300_000), [])
    assert "BASEFEE" in receipt["refusal"]


async def test_a_block_is_shown_when_it_is_the_head_and_not_before(client, monkeypatch):
    """It is on disk a moment earlier; whoever saw its receipt then would ask the latest block and find nothing."""
    durable, may_show = threading.Event(), threading.Event()
    store = client.chain._store
    append = store.append

    def append_and_wait(block, *rest, **named):
        append(block, *rest, **named)
        if block.receipts:
            durable.set()
            assert may_show.wait(20)

    monkeypatch.setattr(store, "append", append_and_wait)
    try:
        sent = await client.send(transfer(USERS[0], CHAIN_ID, 0, TO, 5))
        assert await asyncio.to_thread(durable.wait, 20)
        number = client.chain.head.number + 1
        assert store.fetch_receipt(decode_hex(sent)) is not None
        block_hash = "0x" + store.fetch_block(number).header.hash.hex()
        assert await client.result("eth_getTransactionReceipt", sent) is None
        assert (await client.result("eth_getTransactionByHash", sent))["blockHash"] is None
        assert await client.result("eth_getBlockByHash", block_hash, False) is None
    finally:
        may_show.set()
    receipt = await client.receipt(sent)
    assert int(await client.result("eth_blockNumber"), 16) >= int(receipt["blockNumber"], 16) == number
    assert (await client.result("eth_getBlockByHash", block_hash, False))["hash"] == receipt["blockHash"]


async def test_logs_are_found_by_address_topics_range_and_block(client):
    # LOG3 with topics (input word, 2, 3)
    address = await deploy(client, bytes.fromhex("6003" + "6002" + "600035" + "6020" + "6000" + "a300"))
    hashes = []
    for nonce, word in enumerate((5, 6, 5), start=1):
        signed = transaction(USERS[0], CHAIN_ID, nonce, bytes.fromhex(address[2:]), data=word.to_bytes(32), gas=100_000)
        hashes.append((await client.receipt(await client.send(signed)))["blockHash"])

    def topic(number):
        return "0x" + number.to_bytes(32).hex()

    async def count(**wanted):
        return len(await client.result("eth_getLogs", {"fromBlock": "0x0", **wanted}))

    assert await count() == 3
    assert await count(address=address) == 3
    assert await count(address=[address.upper().replace("0X", "0x"), ME]) == 3
    assert await count(address=ME) == 0
    assert await count(topics=[topic(5)]) == 2
    assert await count(topics=[[topic(5), topic(6)]]) == 3
    assert await count(topics=[None, topic(2)]) == 3
    assert await count(topics=[None, topic(3)]) == 0
    assert await count(topics=[None, None, topic(3), None]) == 0  # four positions, three topics: as in geth
    assert await count(topics=[None, None, None, topic(1)]) == 0
    assert len(await client.result("eth_getLogs", {"blockHash": hashes[1]})) == 1
    assert await client.result("eth_getLogs", {"fromBlock": "0x64"}) == []
    assert (await client.error("eth_getLogs", {"fromBlock": "0x3", "toBlock": "0x1"}))["code"] == -32602
    assert (await client.error("eth_getLogs", {"blockHash": hashes[0], "toBlock": "0x1"}))["code"] == -32602
    (log,) = await client.result("eth_getLogs", {"blockHash": hashes[1]})
    assert log["topics"] == [topic(6), topic(2), topic(3)]
    receipt = await client.receipt(log["transactionHash"])
    assert receipt["logs"] == [log]


async def test_only_the_newest_state_is_answered_for(client):
    await client.receipt(await client.send(transfer(USERS[0], CHAIN_ID, 0, TO, 9)))
    head = await client.result("eth_getBlockByNumber", "latest", False)
    name = "0x" + TO.hex()
    for ref in ("latest", "pending", "safe", "finalized", head["number"], head["hash"], {"blockHash": head["hash"]}):
        assert await client.result("eth_getBalance", name, ref) == "0x9"
    error = await client.error("eth_getBalance", name, "0x0")
    assert "historical state is not available: block 0 asked" in error["message"]
    assert (await client.error("eth_getBalance", name, "0x63"))["message"] == "header not found"
    assert await client.result("eth_getBlockByNumber", "0x63", False) is None
    assert (await client.result("eth_getBlockByNumber", "earliest", True))["number"] == "0x0"
    pending = await client.result("eth_getBlockByNumber", "pending", False)
    assert (pending["hash"], pending["parentHash"]) == (None, head["hash"])


async def test_headers_are_signed_from_the_first_block_on(client):
    await client.receipt(await client.send(transfer(USERS[0], CHAIN_ID, 0, TO, 9)))
    previous = b"\0" * 32
    for number in range(2):
        async with asyncio.timeout(5):
            while (found := await client.result("deaios_getHeader", number))["signature"] is None:
                await asyncio.sleep(0)
        record = decode_json(Header, found["header"])
        assert (record.height, record.previous_hash, record.genesis_hash) == (
            number,
            previous,
            client.chain.genesis_hash,
        )
        signer = recover_signer(header_domain(CHAIN_ID), record, decode_hex(found["signature"]))
        assert signer == OPERATOR.address == decode_hex(found["operator"])
        block = await client.result("eth_getBlockByNumber", hex(number), False)
        assert (block["hash"], block["stateRoot"]) == (found["blockHash"], found["header"]["stateCommitment"])
        previous = decode_hex(block["hash"])
    assert await client.result("deaios_getHeader", "0x9") is None


async def test_an_idle_chain_makes_no_blocks_and_a_deadline_makes_it_beat(tmp_path):
    asked = []

    async def deadline():
        asked.append(len(asked))
        # The second answer, after the first transaction, asks for one more second.
        return 0 if len(asked) == 1 else SystemClock().now_ms() // 1000 + 1

    async with running(tmp_path, deadline=deadline) as client:
        assert await client.result("eth_blockNumber") == "0x0"
        receipt = await client.receipt(await client.send(transfer(USERS[0], CHAIN_ID, 0, TO, 9)))
        assert receipt["blockNumber"] == "0x1"
        until = client.chain.head.timestamp + 1
        async with asyncio.timeout(10):
            while client.chain.head.timestamp <= until:
                await asyncio.sleep(0.01)
        assert client.chain.head.number > 3
        assert asked == [0, 1]
        # Calls see the present, although the chain is idle again.
        assert client.chain.pending_context().timestamp >= SystemClock().now_ms() // 1000 - 1


async def test_a_restart_goes_on_where_it_was(tmp_path):
    async with running(tmp_path) as client:
        receipt = await client.receipt(await client.send(transfer(USERS[0], CHAIN_ID, 0, TO, 9)))
        address = await deploy(client, bytes.fromhex("602a60005500"), 1)
        await client.receipt(
            await client.send(transaction(USERS[0], CHAIN_ID, 2, bytes.fromhex(address[2:]), gas=90_000))
        )
        await client.send(transfer(USERS[0], CHAIN_ID, 4, TO, 9))
        before = [await client.result(*question) for question in questions(receipt, address)]
    async with running(tmp_path, genesis=None) as client:
        assert [await client.result(*question) for question in questions(receipt, address)] == before
        assert await client.result("eth_getStorageAt", address, "0x0") == "0x" + (42).to_bytes(32).hex()
        # The gapped transaction still waits, and runs once the gap is filled.
        await client.send(transfer(USERS[0], CHAIN_ID, 3, TO, 9))
        async with asyncio.timeout(10):
            while await client.result("eth_getTransactionCount", ME) != "0x5":
                await asyncio.sleep(0)


def questions(receipt, address):
    return [
        ("eth_chainId",),
        ("eth_blockNumber",),
        ("eth_getBlockByNumber", "latest", True),
        ("eth_getBlockByHash", receipt["blockHash"], True),
        ("eth_getTransactionReceipt", receipt["transactionHash"]),
        ("eth_getTransactionByHash", receipt["transactionHash"]),
        ("eth_getBalance", ME),
        ("eth_getTransactionCount", ME, "pending"),
        ("eth_getCode", address),
        ("eth_feeHistory", "0x5", "latest", [50]),
    ]


async def test_another_genesis_or_operator_is_the_operators_mistake(tmp_path):
    with pytest.raises(ConfigError, match="holds no chain yet"):
        async with running(tmp_path, genesis=None):
            pass
    async with running(tmp_path):
        pass
    with pytest.raises(ConfigError, match="another genesis"):
        async with running(tmp_path, genesis=Genesis(b"\2" * 32, OPERATOR.address, 1)):
            pass
    with pytest.raises(ConfigError, match="use the key that made this chain"):
        async with running(tmp_path, key=PrivateKey(b"\x21" * 32)):
            pass


async def test_a_client_that_leaves_does_not_take_its_transaction_along(client):
    """handler cancellation: the caller drops the connection right after sending."""
    signed = transfer(USERS[1], CHAIN_ID, 0, TO, 1)
    body = json.dumps(
        {"jsonrpc": "2.0", "id": 1, "method": "eth_sendRawTransaction", "params": ["0x" + signed.raw.hex()]}
    )
    host, port = client.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body.encode())
    await writer.drain()
    async with asyncio.timeout(10):
        while client.chain.pool.get(signed.hash) is None and await client.chain.receipt(signed.hash) is None:
            await asyncio.sleep(0)
    writer.close()
    receipt = await client.receipt("0x" + signed.hash.hex())
    assert receipt["status"] == "0x1"
    assert reader is not None


async def test_the_browser_may_ask_from_any_page(client):
    async with client.session.options(client.url) as response:
        assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (204, "*")


async def test_a_deadline_that_cannot_be_had_is_asked_for_again_on_an_idle_chain(tmp_path):
    answers = [UnavailablePeer("not up yet"), SystemClock().now_ms() // 1000 + 3600]

    async def deadline():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with running(tmp_path, deadline=deadline) as client, asyncio.timeout(10):
        while client.chain.head.number < 3:
            await asyncio.sleep(0.01)
    assert answers == []


async def test_a_full_disk_refuses_the_sender_and_stops_the_chain(tmp_path):
    """SQLite is told that no page more may be had: the very error that a full disk gives."""
    with ThreadPoolExecutor(3) as executor:
        chain = await ChainService.start(
            tmp_path / "chain.db", OPERATOR, GENESIS, executor=executor, clock=SystemClock(), limits=Limits(20, 1)
        )
        store = chain._store._writer
        pages = store.execute("PRAGMA page_count").fetchone()[0]
        store.execute(f"PRAGMA max_page_count={pages}")
        task = asyncio.create_task(chain.run())
        raws = [transaction(USERS[0], CHAIN_ID, nonce, TO, data=bytes(100_000), gas=900_000).raw for nonce in range(20)]
        with pytest.raises(UnavailableStore, match="full"):
            await chain.submit(raws)
        with pytest.raises(UnavailableStore, match="full"):
            await task
        with pytest.raises(Unavailable):
            await chain.submit([transfer(USERS[1], CHAIN_ID, 0, TO, 1).raw])
        await chain.close()
    async with running(tmp_path, genesis=None) as client:
        await client.receipt(await client.send(transfer(USERS[1], CHAIN_ID, 0, TO, 1)))
