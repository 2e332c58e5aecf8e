"""Every method's answer against the OpenRPC schema of ethereum/execution-apis, and its refusals in geth's words.

`openrpc_schema.json` says where it is from. Methods that the schema does not know are named here, so that none is
forgotten.
"""

import json
from pathlib import Path

import jsonschema
import pytest
from chain_values import USERS
from rpc_world import CHAIN_ID, EMITTER, ME, running, word

from deaios.chain.blocks import decode_header
from deaios.chain.service import dispatch
from deaios.chain.service.methods import Methods, sending
from deaios.chain.service.methods.refused import REASONS
from deaios.ledger.rlp import decode_rlp
from deaios.ledger.transactions import ACCESS_LIST, LEGACY, Transaction, sign_transaction
from deaios.primitives.keys import Address

SCHEMA = json.loads((Path(__file__).parent / "openrpc_schema.json").read_text())
TO = b"\x66" * 20
NOBODY = "0x" + "77" * 20
UNLISTED = {
    *(
        "deaios_getBlocks",
        "deaios_getDropped",
        "deaios_getGenesis",
        "deaios_getHeader",
        "eth_getHeaderByHash",
        "eth_getHeaderByNumber",
    ),
    *("eth_getRawTransactionByBlockHashAndIndex", "eth_getRawTransactionByBlockNumberAndIndex"),
    *("eth_getRawTransactionByHash", "eth_getUncleByBlockHashAndIndex", "eth_getUncleByBlockNumberAndIndex"),
    *("eth_getUncleCountByBlockHash", "eth_getUncleCountByBlockNumber", "eth_sendRawTransactionSync"),
    *("net_listening", "net_peerCount", "rpc_modules", "txpool_inspect", "web3_clientVersion", "web3_sha3"),
}
"""Known to geth, and no part of the schema at its commit; looked at below."""


@pytest.fixture(scope="module")
def validators():
    """A validator for each method's result."""
    registry = {"$defs": SCHEMA["$defs"]}
    return {name: jsonschema.Draft202012Validator({**registry, **schema}) for name, schema in SCHEMA["methods"].items()}


@pytest.fixture
async def world(tmp_path):
    async with running(tmp_path) as found:
        yield found


async def test_every_method_answers_as_the_schema_says(world, validators):
    seen = set()

    async def ask(method, *params):
        result = await world.result(method, *params)
        seen.add(method)
        if method in validators:
            validators[method].validate(result)
        else:
            assert method in UNLISTED, method
        return result

    address = await world.deploy(EMITTER)
    made = world.chain.head.number
    receipt = await world.emit(address, 5)
    block_hash, number, included = receipt["blockHash"], receipt["blockNumber"], receipt["transactionHash"]
    for kind in (LEGACY, ACCESS_LIST):
        listed = ((Address(TO), (1,)),) if kind else ()
        fields = (kind, CHAIN_ID, world.nonces[0], 3 * 10**9, 3 * 10**9, 30_000, Address(TO), 1, b"", listed)
        world.nonces[0] += 1
        sent = await ask("eth_sendRawTransaction", "0x" + sign_transaction(USERS[0], Transaction(*fields)).raw.hex())
        typed = await world.receipt(sent)
        assert (await ask("eth_getTransactionByHash", sent))["type"] == hex(kind) == typed["type"]
    failed = await world.include(bytes.fromhex(address[2:]), data=b"", gas=21_500)
    assert failed["status"] == "0x0"
    for identity in (included, failed["transactionHash"], word(9)):
        await ask("eth_getTransactionReceipt", identity)
        await ask("eth_getTransactionByHash", identity)
        await ask("eth_getRawTransactionByHash", identity)
        await ask("debug_getRawTransaction", identity)
    for ref in ("latest", "earliest", "safe", "finalized", number, hex(made), "0x999"):
        for full in (True, False):
            await ask("eth_getBlockByNumber", ref, full)
        await ask("eth_getBlockTransactionCountByNumber", ref)
        await ask("eth_getUncleCountByBlockNumber", ref)
        await ask("eth_getBlockReceipts", ref)
        await ask("eth_getHeaderByNumber", ref)
        await ask("eth_getTransactionByBlockNumberAndIndex", ref, "0x0")
        await ask("eth_getRawTransactionByBlockNumberAndIndex", ref, "0x0")
        assert await ask("eth_getUncleByBlockNumberAndIndex", ref, "0x0") is None
    for wanted in (block_hash, word(9)):
        for full in (True, False):
            await ask("eth_getBlockByHash", wanted, full)
        await ask("eth_getBlockTransactionCountByHash", wanted)
        await ask("eth_getUncleCountByBlockHash", wanted)
        await ask("eth_getBlockReceipts", wanted)
        await ask("eth_getHeaderByHash", wanted)
        await ask("eth_getTransactionByBlockHashAndIndex", wanted, "0x0")
        await ask("eth_getRawTransactionByBlockHashAndIndex", wanted, "0x0")
        assert await ask("eth_getUncleByBlockHashAndIndex", wanted, "0x0") is None
    for name in ("eth_getBalance", "eth_getTransactionCount", "eth_getCode"):
        for who in (ME, address, NOBODY):
            await ask(name, who, "latest")
            await ask(name, who)
    await ask("eth_getStorageAt", address, "0x0", "latest")
    call = {"from": ME, "to": address, "data": word(5)}
    for name in ("eth_call", "eth_estimateGas", "eth_createAccessList"):
        await ask(name, call, "latest")
        await ask(name, {"from": ME, "data": "0x00"})
    await ask("eth_feeHistory", "0x5", "latest", [10, 50.5])
    await ask("eth_feeHistory", "0x1", "latest", [])
    for filter_method in (("eth_newFilter", {"address": address}), ("eth_newBlockFilter",)):
        identity = await ask(*filter_method)
        await world.emit(address, 6)
        assert await ask("eth_getFilterChanges", identity)
        if filter_method[0] == "eth_newFilter":
            await ask("eth_getFilterLogs", identity)
        assert await ask("eth_uninstallFilter", identity) is True
    identity = await ask("eth_newPendingTransactionFilter")
    await world.send(TO, value=1)
    assert await ask("eth_getFilterChanges", identity)
    assert await ask("eth_getLogs", {"fromBlock": "0x0"})
    await ask("eth_getLogs", {"blockHash": block_hash, "topics": [None, word(2)]})
    world.nonces[1] += 1
    await world.send(TO, user=1, value=1)  # waits behind a gap
    for name in ("txpool_content", "txpool_status", "txpool_inspect"):
        await ask(name)
    waiting = await ask("txpool_contentFrom", "0x" + USERS[1].address.hex())
    assert [item["nonce"] for item in waiting["queued"].values()] == ["0x1"]
    sent = await ask("eth_sendRawTransactionSync", "0x" + world.sign(TO, value=1).raw.hex())
    assert sent == await world.result("eth_getTransactionReceipt", sent["transactionHash"])
    for name in ("web3_clientVersion", "net_version", "net_listening", "net_peerCount", "rpc_modules"):
        await ask(name)
    for name in ("eth_chainId", "eth_syncing", "eth_accounts", "eth_coinbase", "eth_blockNumber", "eth_gasPrice"):
        await ask(name)
    for name in ("eth_baseFee", "eth_maxPriorityFeePerGas"):
        await ask(name)
    await ask("web3_sha3", "0x00")
    await check_raw(ask, number, receipt)
    await ask("deaios_getHeader", "0x0")
    assert await ask("deaios_getDropped", included) is None
    await ask("deaios_getGenesis")
    await ask("deaios_getBlocks", "0x0")
    assert seen == set(Methods(world.chain).names)
    assert set(SCHEMA["methods"]) <= seen
    assert seen >= UNLISTED


async def check_raw(ask, number, receipt):
    """Raw bytes are those that are hashed and hold what the objects show."""
    block = await ask("eth_getBlockByNumber", number, False)
    header = decode_header(bytes.fromhex((await ask("debug_getRawHeader", number))[2:]))
    assert "0x" + header.hash.hex() == block["hash"]
    fields, transactions, ommers = decode_rlp(bytes.fromhex((await ask("debug_getRawBlock", number))[2:]))
    assert (fields[0], ommers) == (header.parent_hash, [])
    raw = await ask("debug_getRawTransaction", receipt["transactionHash"])
    assert "0x" + transactions[0].hex() == raw
    (encoded,) = await ask("debug_getRawReceipts", number)
    status, gas_used, bloom, logs = decode_rlp(bytes.fromhex(encoded[4:]))
    assert encoded.startswith("0x02")
    assert (status, int.from_bytes(gas_used)) == (b"\x01", int(receipt["cumulativeGasUsed"], 16))
    assert "0x" + bloom.hex() == receipt["logsBloom"]
    assert [log[1] for log in logs] == [[bytes.fromhex(topic[2:]) for topic in receipt["logs"][0]["topics"]]]


async def test_the_pending_block_is_shown_as_geth_shows_it(world):
    pending = await world.result("eth_getBlockByNumber", "pending", False)
    assert (pending["hash"], pending["nonce"], pending["miner"]) == (None, None, None)
    assert pending["number"] == hex(world.chain.head.number + 1)


async def test_what_cannot_be_had_is_refused_with_the_reason_and_the_way_out(world):
    for name in REASONS:
        error = await world.error(name, 1, 2, 3)
        assert error["code"] == -32601
        assert error["message"].startswith(f"the method {name} does not exist/is not available: ")
        assert "--chain URL" in error["message"] or "sign the transaction" in error["message"]
    assert await world.error("eth_nothing") == {
        "code": -32601,
        "message": "the method eth_nothing does not exist/is not available",
    }
    assert (await world.error("x" * 3000))["code"] == -32600
    assert {"eth", "net", "web3", "txpool", "debug", "rpc"} <= set(await world.result("rpc_modules"))
    assert (await world.error("dev_mine"))["code"] == -32601


async def test_parameters_are_refused_in_geths_words(world):
    async def words(method, *params):
        error = await world.error(method, *params)
        return error["code"], error["message"]

    assert await words("eth_getBalance") == (-32602, "missing value for required argument 0")
    assert await words("eth_getBalance", None) == (-32602, "missing value for required argument 0")
    assert await words("eth_getBalance", ME, "latest", 1) == (-32602, "too many arguments, want at most 2")
    _, answer = await world.post({"jsonrpc": "2.0", "id": 1, "method": "eth_getBalance", "params": {"a": 1}})
    assert answer["error"] == {"code": -32602, "message": "non-array args"}
    code, message = await words("eth_getBalance", ME, "newest")
    assert (code, message.split(":")[0]) == (-32602, "invalid argument 1")
    code, message = await words("eth_getBalance", "0x12")
    assert (code, message.split(":")[0]) == (-32602, "invalid argument 0")
    assert (await words("eth_getBalance", ME, {}))[1].endswith("must specify either BlockHash or BlockNumber")
    both = {"blockHash": word(1), "blockNumber": "0x0"}
    assert "choose one or the other" in (await words("eth_getBalance", ME, both))[1]
    assert await words("eth_feeHistory", "0x1", "latest", [101]) == (-32000, "invalid reward percentile: 101.000000")
    assert await words("eth_feeHistory", "0x1", "latest", [5, 5]) == (
        -32000,
        "invalid reward percentile: #0:5.000000 >= #1:5.000000",
    )
    assert await words("eth_feeHistory", "0x1", "0x99", []) == (
        -32000,
        f"request beyond head block: requested 153, head {world.chain.head.number}",
    )
    assert await words("eth_call", {"data": "0x00", "input": "0x01"}) == (
        -32000,
        'both "data" and "input" are set and not equal; please use "input" to pass transaction call data',
    )
    assert (await words("eth_call", {"gasPrice": "0x1", "maxFeePerGas": "0x1"}))[0] == -32000
    assert (await words("eth_call", {"to": ME, "gasPrice": "0x1"}))[1].startswith(
        "max fee per gas less than block base fee"
    )
    assert (await words("eth_getStorageAt", ME, "0x" + "1" * 65))[0] == -32602
    assert await world.result("eth_getStorageAt", ME, "00") == word(0)
    assert (await words("eth_getBlockByNumber", "latest", 1))[0] == -32602
    assert await words("debug_getRawHeader", "0x99") == (-32000, "block not found")


async def test_what_was_pruned_is_named_with_geths_code(world):
    for _ in range(3):
        await world.include(TO, value=1)
    world.chain.oldest_block = 2
    for method, params in (
        ("eth_getBlockByNumber", ("0x1", False)),
        ("eth_getBlockReceipts", ("0x0",)),
        ("eth_getTransactionByBlockNumberAndIndex", ("0x1", "0x0")),
        ("eth_getLogs", ({"fromBlock": "0x0"},)),
    ):
        error = await world.error(method, *params)
        assert error["code"] == 4444
        assert error["message"].startswith("pruned history unavailable: ")
    assert (await world.result("eth_getBlockByNumber", "earliest", False))["number"] == "0x2"
    assert await world.result("eth_getLogs", {"fromBlock": "earliest"}) == []
    assert (await world.result("eth_getHeaderByNumber", "0x1"))["number"] == "0x1"  # headers are kept


async def test_fees_are_remembered_for_a_while(world):
    for _ in range(3):
        await world.include(TO, value=1)
    while world.chain.fees.oldest < 2:
        world.chain.fees._records.popleft()
    assert (await world.result("eth_feeHistory", "0x5", "latest", []))["oldestBlock"] == "0x2"
    error = await world.error("eth_feeHistory", "0x5", "0x1", [])
    assert error == {"code": -32000, "message": "fee history of block 1 is not kept, only from 2 on"}
    assert (await world.result("eth_feeHistory", "0x0", "latest", []))["oldestBlock"] == "0x0"


async def test_a_transaction_that_is_not_included_in_time_is_named(world, monkeypatch):
    world.nonces[2] += 1
    signed = world.sign(TO, user=2, value=1)
    error = await world.error("eth_sendRawTransactionSync", "0x" + signed.raw.hex(), "0x1")
    assert (error["code"], error["data"]) == (4, "0x" + signed.hash.hex())
    monkeypatch.setattr(sending, "WAITERS_MAX", 0)
    assert (await world.error("eth_sendRawTransactionSync", "0x" + signed.raw.hex()))["code"] == -32005


async def test_a_batch_whose_answers_grow_too_large_is_cut_with_errors(world, monkeypatch):
    monkeypatch.setattr(dispatch, "ANSWER_BYTES_MAX", 1000)
    request = {"jsonrpc": "2.0", "method": "eth_getBlockByNumber", "params": ["latest", False]}
    raw = "0x" + world.sign(TO, value=1).raw.hex()
    body = [
        request | {"id": 1},
        request | {"id": 2},
        {"jsonrpc": "2.0", "id": 3, "method": "eth_sendRawTransaction", "params": [raw]},
        {"jsonrpc": "2.0", "method": "eth_chainId"},
        {"jsonrpc": "2.0", "id": 4, "method": "eth_chainId"},
    ]
    _, answers = await world.post(body)
    too_large = {"code": -32003, "message": "response too large"}
    assert [(item["id"], item.get("error")) for item in answers] == [
        (1, too_large),
        *((n, too_large) for n in (2, 3, 4)),
    ]
    assert await world.result("eth_getTransactionCount", ME, "pending") == "0x0"  # what came after was not run
