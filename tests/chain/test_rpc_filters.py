"""Filters: what is new since they were asked, once; few, small and forgotten in time."""

import pytest
from rpc_world import EMITTER, running, word

from deaios.chain.service import Limits, filters
from deaios.chain.service.methods import logs

TO = b"\x66" * 20


@pytest.fixture
async def world(tmp_path):
    async with running(tmp_path) as found:
        yield found


async def test_each_kind_is_told_what_is_new_once(world):
    address = await world.deploy(EMITTER)
    blocks = await world.result("eth_newBlockFilter")
    arrivals = await world.result("eth_newPendingTransactionFilter")
    whole = await world.result("eth_newPendingTransactionFilter", True)
    wanted = await world.result("eth_newFilter", {"address": address, "topics": [word(5)]})
    assert len({blocks, arrivals, whole, wanted}) == 4
    receipts = [await world.emit(address, number) for number in (5, 6, 5)]
    hashes = [receipt["transactionHash"] for receipt in receipts]
    assert await world.result("eth_getFilterChanges", blocks) == [receipt["blockHash"] for receipt in receipts]
    assert await world.result("eth_getFilterChanges", arrivals) == hashes
    assert [item["hash"] for item in await world.result("eth_getFilterChanges", whole)] == hashes
    found = [*receipts[0]["logs"], *receipts[2]["logs"]]
    assert await world.result("eth_getFilterChanges", wanted) == found
    assert await world.result("eth_getFilterLogs", wanted) == receipts[2]["logs"]  # its range is the newest block
    for identity in (blocks, arrivals, whole, wanted):
        assert await world.result("eth_getFilterChanges", identity) == []
        assert await world.result("eth_uninstallFilter", identity) is True
        assert await world.result("eth_uninstallFilter", identity) is False
        missing = {"code": -32000, "message": "filter not found"}
        assert await world.error("eth_getFilterChanges", identity) == missing
        assert await world.error("eth_getFilterLogs", identity) == missing


async def test_a_range_bounds_what_a_log_filter_tells(world):
    address = await world.deploy(EMITTER)
    head = world.chain.head.number
    later = await world.result("eth_newFilter", {"fromBlock": hex(head + 2)})
    short = await world.result("eth_newFilter", {"fromBlock": "earliest", "toBlock": hex(head + 1)})
    receipts = [await world.emit(address, number) for number in (1, 2, 3)]
    assert [log["blockNumber"] for log in await world.result("eth_getFilterChanges", later)] == [
        receipt["blockNumber"] for receipt in receipts[1:]
    ]
    assert await world.result("eth_getFilterChanges", short) == receipts[0]["logs"]
    assert await world.result("eth_getFilterLogs", short) == receipts[0]["logs"]
    for wanted, words in (
        ({"fromBlock": "0x5", "toBlock": "0x4"}, "invalid block range params"),
        ({"toBlock": "0x4"}, "invalid block range params"),
        ({"toBlock": "pending"}, "pending logs are not supported"),
        ({"topics": [None] * 5}, "invalid argument 0: exceed max topics"),
        ({"topics": 5}, "invalid argument 0: invalid topic(s)"),
    ):
        assert await world.error("eth_newFilter", wanted) == {"code": -32602, "message": words}


async def test_filters_are_refused_beyond_the_bound_and_idle_ones_make_room(world, monkeypatch):
    monkeypatch.setattr(filters, "FILTERS_MAX", 30)
    request = {"jsonrpc": "2.0", "id": 1, "method": "eth_newBlockFilter", "params": []}
    made = refused = 0
    for _ in range(2):
        _, answers = await world.post([request] * 50)
        made += sum("result" in answer for answer in answers)
        refused += sum(answer.get("error", {}).get("code") == -32005 for answer in answers)
    assert (made, refused) == (30, 70)
    assert "too many filters" in (await world.error("eth_newBlockFilter"))["message"]
    monkeypatch.setattr(filters, "IDLE_S", -1.0)
    await world.result("eth_newBlockFilter")


async def test_filters_may_not_name_too_much_together(world, monkeypatch):
    monkeypatch.setattr(filters, "NAMED_MAX", 10)
    wanted = {"address": ["0x" + "11" * 20] * 4, "topics": [[word(1), word(2)]]}
    first = await world.result("eth_newFilter", wanted)
    assert "6 are named, this one names 6" in (await world.error("eth_newFilter", wanted))["message"]
    await world.result("eth_uninstallFilter", first)
    await world.result("eth_newFilter", wanted)


async def test_a_filter_that_nobody_asks_is_forgotten(world, monkeypatch):
    identity = await world.result("eth_newBlockFilter")
    assert await world.result("eth_getFilterChanges", identity) == []
    monkeypatch.setattr(filters, "IDLE_S", -1.0)
    assert (await world.error("eth_getFilterChanges", identity))["message"] == "filter not found"
    assert await world.result("eth_uninstallFilter", identity) is False


async def test_logs_too_many_for_one_answer_come_in_whole_blocks(world, monkeypatch):
    monkeypatch.setattr(logs, "LOGS_MAX", 3)
    address = await world.deploy(EMITTER)
    identity = await world.result("eth_newFilter", {"address": address})
    wanted = [log for number in range(8) for log in (await world.emit(address, number))["logs"]]
    found = []
    while part := await world.result("eth_getFilterChanges", identity):
        assert len(part) <= 3
        found += part
    assert found == wanted
    # Four in one block: more than an answer's bound, and still told whole.
    raws = [
        "0x" + world.sign(bytes.fromhex(address[2:]), data=number.to_bytes(32), gas=100_000).raw.hex()
        for number in range(40)
    ]
    body = [
        {"jsonrpc": "2.0", "id": index, "method": "eth_sendRawTransaction", "params": [raw]}
        for index, raw in enumerate(raws)
    ]
    _, answers = await world.post(body)
    receipts = [await world.receipt(answer["result"]) for answer in answers]
    assert len({receipt["blockNumber"] for receipt in receipts}) < 11
    found = []
    while part := await world.result("eth_getFilterChanges", identity):
        found += part
    assert found == [log for receipt in receipts for log in receipt["logs"]]


async def test_a_filter_that_lost_transactions_says_so_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(filters, "ARRIVALS_KEPT", 2)
    async with running(tmp_path, limits=Limits(block_ms=20, gather_ms=1)) as world:
        identity = await world.result("eth_newPendingTransactionFilter")
        sent = [await world.send(TO, value=1) for _ in range(2)]
        assert await world.result("eth_getFilterChanges", identity) == sent
        for _ in range(3):
            await world.send(TO, value=1)
        error = await world.error("eth_getFilterChanges", identity)
        assert error["code"] == -32005
        assert "the filter lost 1 transactions" in error["message"]
        sent = [await world.send(TO, value=1)]
        assert await world.result("eth_getFilterChanges", identity) == sent


async def test_edges_of_eth_get_logs_are_geths(world):
    address = await world.deploy(EMITTER)
    receipt = await world.emit(address, 5)
    head = int(receipt["blockNumber"], 16)
    (log,) = receipt["logs"]

    async def words(**wanted):
        error = await world.error("eth_getLogs", wanted)
        return error["code"], error["message"]

    assert await words(fromBlock="0x2", toBlock="0x1") == (-32602, "invalid block range params")
    assert await words(fromBlock="0x99", toBlock="0x98") == (-32602, "invalid block range params")
    assert await words(toBlock="0x1") == (-32602, "invalid block range params")
    assert await words(fromBlock="pending") == (-32602, "pending logs are not supported")
    assert await words(blockHash=word(9)) == (-32000, "unknown block")
    both = "cannot specify both BlockHash and FromBlock/ToBlock, choose one or the other"
    assert await words(blockHash=receipt["blockHash"], fromBlock="0x1") == (-32602, f"invalid argument 0: {both}")
    assert await words(topics=[None] * 5) == (-32602, "invalid argument 0: exceed max topics")
    assert await words(topics=[[word(1)] * 1001]) == (-32602, "invalid argument 0: exceed max topics")
    assert (await words(topics=[["0x12"]]))[0] == -32602
    assert (await words(address=[None]))[0] == -32602
    assert (await words(address=["0x" + "11" * 20] * 1001))[0] == -32602
    assert (await words(fromBlock=receipt["blockHash"]))[0] == -32602

    async def count(**wanted):
        return len(await world.result("eth_getLogs", wanted))

    assert await world.result("eth_getLogs", {}) == [log]
    assert await count(fromBlock=hex(head + 1)) == 0
    assert await count(fromBlock="earliest", toBlock=hex(head + 100)) == 1
    assert await count(fromBlock="earliest", topics=[[]]) == 1
    assert await count(fromBlock="earliest", topics=[[None, word(9)]]) == 1
    assert await count(fromBlock="earliest", topics=[[word(9), word(5)], [], [word(3)]]) == 1
    assert await count(fromBlock="earliest", topics=[None, None, None, None]) == 0
    assert await count(fromBlock="earliest", topics=None, address=None) == 1
    assert await count(fromBlock="earliest", address=[]) == 1
