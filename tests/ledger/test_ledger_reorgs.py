"""The sender and the readers on a chain that takes blocks back: nothing is lost, nothing is done twice."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from fake_node import FakeNode, NodeError, VirtualClock
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.ledger.client.fees import GWEI, FeePolicy, RefusedFee
from deaios.ledger.client.rpc import RefusedLogRange, Rpc, UnavailableChain
from deaios.ledger.client.sender import Patience, Sender, UnavailableInclusion
from deaios.ledger.transactions import Transaction
from deaios.primitives.keys import Address, PrivateKey

KEY = PrivateKey(b"\x21" * 32)
TO = Address(b"\x31" * 20)
CHAIN_ID = 4242
DEPTH = 4
"""Confirmations, and one more than any reorganisation here takes back."""


@pytest.fixture
async def deep(node: FakeNode, clock: VirtualClock) -> AsyncIterator[Rpc]:
    async with Rpc(node.url, clock=clock, confirmations=DEPTH) as rpc:
        yield rpc


@pytest.fixture
async def sender(deep: Rpc) -> AsyncIterator[Sender]:
    made = Sender(deep, KEY, CHAIN_ID)
    yield made
    await made.close()


async def settle(condition: Any) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("condition never held")


def mine_by_calls(node: FakeNode, every: int = 12) -> None:
    """A block every so many questions, so that time passes as long as somebody asks."""
    count = 0

    def tick(_method: str) -> None:
        nonlocal count
        count += 1
        if count % every == 0:
            node.mine()

    node.after.append(tick)


async def test_a_receipt_counts_when_enough_blocks_hold_it(node: FakeNode, sender: Sender) -> None:
    task = asyncio.create_task(sender.send(TO, b"\x01"))
    await settle(lambda: node.calls.count("eth_getTransactionReceipt") > 5)
    node.mine()
    node.mine()
    polls = node.calls.count("eth_getTransactionReceipt")
    await settle(lambda: node.calls.count("eth_getTransactionReceipt") > polls + 3)
    assert not task.done()
    node.mine()
    receipt = await task
    assert receipt.block_number + DEPTH - 1 == node.height


async def test_whoever_needs_one_block_only_waits_for_one_and_it_is_watched_on(node: FakeNode, sender: Sender) -> None:
    receipt = await sender.send(TO, b"\x01", confirmations=1)
    assert receipt.block_number == node.height
    (first,) = node.reorganise(1)
    await settle(lambda: node.mined == [first])
    mine_by_calls(node)
    await sender.send(TO, b"\x02")
    assert [(item.nonce, item.data) for item in node.mined] == [(0, b"\x01"), (1, b"\x02")]


async def test_what_a_reorganisation_drops_is_sent_again_at_once_byte_for_byte(node: FakeNode, deep: Rpc) -> None:
    """Nothing else sends it again here: the time after which anything is repeated never comes."""
    sender = Sender(deep, KEY, CHAIN_ID, patience=Patience(rebroadcast_s=1e9))
    tasks = [asyncio.create_task(sender.send(TO, bytes([1, i]))) for i in range(3)]
    await settle(lambda: len(node.mined) == 3 and all(item.included_at for item in sender._flights.values()))
    before = list(node.mined)
    assert node.reorganise(3)
    await settle(lambda: node.mined == before)
    mine_by_calls(node)
    receipts = await asyncio.gather(*tasks)
    await sender.close()
    assert [item.raw for item in node.mined] == [item.raw for item in before]
    assert all(node.hash_of(item.block_number) == item.block_hash for item in receipts)


async def test_included_again_elsewhere_gives_the_receipt_of_there(node: FakeNode, sender: Sender) -> None:
    task = asyncio.create_task(sender.send(TO, b"\x01"))
    await settle(lambda: len(node.mined) == 1)
    first = node.receipts[node.mined[0].hash]
    node.mine()
    node.reorganise(2, [(1, node.mined[0])])
    mine_by_calls(node)
    receipt = await task
    assert receipt.block_number == int(first["blockNumber"], 16) + 1
    assert receipt.block_hash == node.hash_of(receipt.block_number)
    assert len(node.mined) == 1


async def test_a_receipt_of_another_branch_does_not_count(node: FakeNode, sender: Sender) -> None:
    """A node behind a balancer may still tell of the old block."""
    task = asyncio.create_task(sender.send(TO, b"\x01"))
    await settle(lambda: len(node.mined) == 1)
    stale = dict(node.receipts[node.mined[0].hash], blockHash="0x" + "77" * 32)
    true = node.eth_get_transaction_receipt
    node.eth_get_transaction_receipt = lambda text: stale  # type: ignore[method-assign]
    for _ in range(DEPTH + 2):
        node.mine()
    polls = node.calls.count("eth_getTransactionReceipt")
    await settle(lambda: node.calls.count("eth_getTransactionReceipt") > polls + 5)
    assert not task.done()
    node.eth_get_transaction_receipt = true  # type: ignore[method-assign]
    assert (await task).block_hash == node.hash_of(int(stale["blockNumber"], 16))


async def test_deeper_than_promised_is_restored_before_what_comes_after_it(node: FakeNode, sender: Sender) -> None:
    task = asyncio.create_task(sender.send(TO, b"\x01"))
    await settle(lambda: len(node.mined) == 1)
    for _ in range(DEPTH):
        node.mine()
    await task
    assert node.reorganise(DEPTH + 1)
    mine_by_calls(node)
    await sender.send(TO, b"\x02")
    assert [(item.nonce, item.data) for item in node.mined] == [(0, b"\x01"), (1, b"\x02")]


async def test_a_chain_that_stands_still_ends_the_waiting(node: FakeNode, sender: Sender, clock: VirtualClock) -> None:
    with pytest.raises(UnavailableInclusion, match=r"in block 2, not settled, after 300.0 s"):
        await sender.send(TO, b"\x01")
    assert clock.time_s > 300


async def test_waiting_for_many_blocks_is_no_standstill(node: FakeNode, deep: Rpc, clock: VirtualClock) -> None:
    slow = Sender(deep, KEY, CHAIN_ID, patience=Patience(poll_min_s=1.5, inclusion_s=20.0))
    mine_by_calls(node, every=30)
    started_s = clock.time_s
    assert (await slow.send(TO, b"\x01")).is_success
    assert clock.time_s - started_s > 30.0
    await slow.close()


async def test_already_known_and_underpriced_are_no_errors(node: FakeNode, sender: Sender) -> None:
    """Pools refuse what they have, and a replacement that pays too little; the transaction is under way anyway."""
    node.is_mining = False
    task = asyncio.create_task(sender.send(TO, b"\x01"))
    await settle(lambda: len(node.pool) == 1)
    (first,) = node.pool.values()
    old = sender._fees
    sender._fees = FeePolicy(replacement_percent=105)  # pools want 110
    await settle(lambda: node.calls.count("eth_sendRawTransaction") > 8)
    assert list(node.pool.values()) == [first]
    sender._fees = old
    node.is_mining = True
    mine_by_calls(node)
    receipt = await task
    assert receipt.transaction_hash == first.hash


async def test_fees_have_a_ceiling(node: FakeNode, deep: Rpc) -> None:
    thrifty = Sender(deep, KEY, CHAIN_ID, fees=FeePolicy(fee_max=GWEI + 50, tip_max=7))
    mine_by_calls(node)
    await thrifty.send(TO, b"\x01")
    assert (node.mined[0].max_fee, node.mined[0].tip) == (GWEI + 50, 7)
    await thrifty.close()
    poor = Sender(deep, KEY, CHAIN_ID, fees=FeePolicy(fee_max=GWEI - 1))
    with pytest.raises(RefusedFee, match=f"costs {GWEI} wei now, at most {GWEI - 1}"):
        await poor.send(TO, b"\x02")
    await poor.close()


async def test_at_the_ceiling_nothing_is_replaced(node: FakeNode, deep: Rpc) -> None:
    thrifty = Sender(deep, KEY, CHAIN_ID, fees=FeePolicy(fee_max=2 * GWEI + 100))
    node.is_mining = False
    with pytest.raises(UnavailableInclusion) as caught:
        await thrifty.send(TO, b"\x01")
    assert len(caught.value.hashes) == 1
    await thrifty.close()


async def test_a_node_that_suggests_no_tip(node: FakeNode, sender: Sender) -> None:
    def unknown() -> str:
        raise NodeError(-32601, "the method eth_maxPriorityFeePerGas does not exist")

    node.eth_max_priority_fee_per_gas = unknown  # type: ignore[method-assign]
    node.eth_gas_price = lambda: hex(GWEI + 33)  # type: ignore[attr-defined]
    mine_by_calls(node)
    await sender.send(TO, b"\x01")
    assert (node.mined[0].max_fee, node.mined[0].tip) == (2 * GWEI + 33, 33)


async def test_too_many_requests_are_waited_out_as_asked(node: FakeNode, deep: Rpc, clock: VirtualClock) -> None:
    left = [2]

    def limit(_method: str) -> web.StreamResponse | None:
        left[0] -= 1
        return web.Response(status=429, headers={"Retry-After": "7"}) if left[0] >= 0 else None

    node.faults.append(limit)
    assert await deep.chain_id() == CHAIN_ID
    assert clock.time_s == pytest.approx(14.0)
    node.faults.append(lambda _method: web.Response(status=429, headers={"Retry-After": "86400"}))
    with pytest.raises(UnavailableChain, match="429"):
        await deep.chain_id()
    assert clock.time_s == pytest.approx(14.0 + 4 * 10.0)


# -- a property: whatever happens above the settled depth ------------------------------------------------------------

ACTIONS = st.one_of(
    st.just(("mine",)),
    st.tuples(st.just("reorganise"), st.integers(1, DEPTH - 1), st.lists(st.integers(0, 2), max_size=3)),
    st.just(("lose pool",)),
    st.just(("refuse",)),
)


@asynccontextmanager
async def served(node: FakeNode) -> AsyncIterator[str]:
    application = web.Application(client_max_size=1 << 24)
    application.router.add_post("/", node.handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    bound: Any = runner.addresses[0]
    try:
        yield f"http://127.0.0.1:{bound[1]}"
    finally:
        await runner.cleanup()


def play(node: FakeNode, script: list[Any], every: int = 5) -> None:
    """Do the script's next action every so many questions; afterwards make blocks."""
    count = 0

    def tick(_method: str) -> None:
        nonlocal count
        count += 1
        if count % every:
            return
        action: tuple[Any, ...] = script.pop(0) if script else ("mine",)
        match action:
            case ("mine",):
                node.mine()
            case ("reorganise", depth, places):
                node.reorganise(depth, list(zip(places, node.mined[-3:], strict=False)))
            case ("lose pool",):
                node.pool.clear()
            case ("refuse",):
                node.fail_times("eth_sendRawTransaction", 1)

    node.after.append(tick)


@settings(max_examples=40, deadline=None)
@given(script=st.lists(ACTIONS, max_size=25), count=st.integers(1, 5), recovers=st.booleans())
def test_every_transaction_is_in_the_chain_once_whatever_is_taken_back(
    script: list[Any], count: int, recovers: bool
) -> None:
    asyncio.run(check_script(script, count, recovers))


async def check_script(script: list[Any], count: int, recovers: bool) -> None:
    node, clock = FakeNode(), VirtualClock()
    node.nodes_pool_recovers = recovers
    node.is_mining = False
    play(node, list(script))
    async with served(node) as url, Rpc(url, clock=clock, confirmations=DEPTH) as rpc:
        sender = Sender(rpc, KEY, CHAIN_ID)
        receipts = await asyncio.gather(*(sender.send(TO, bytes([1, i])) for i in range(count)))
        await sender.close()
    chain: list[Transaction] = [item for height in sorted(node.blocks) for item in node.blocks[height]]
    assert [item.nonce for item in chain] == list(range(count))
    assert sorted(item.data for item in chain) == [bytes([1, i]) for i in range(count)]
    by_hash = {item.hash: item for item in chain}
    for i, receipt in enumerate(receipts):
        assert by_hash[receipt.transaction_hash].data == bytes([1, i])
        assert node.hash_of(receipt.block_number) == receipt.block_hash
        assert receipt.block_number + DEPTH - 1 <= node.height


# -- readers ---------------------------------------------------------------------------------------------------------


async def test_settled_reads_name_the_settled_block(node: FakeNode, deep: Rpc) -> None:
    asked: list[str] = []
    node.eth_call = lambda call, tag: asked.append(tag) or "0x01"  # type: ignore[method-assign,func-returns-value]
    node.height = 100
    assert await deep.settled.block_number() == 97
    await deep.settled.eth_call(TO, b"\x01")
    await deep.eth_call(TO, b"\x01")
    await deep.settled.eth_calls([(TO, b"\x01"), (TO, b"\x02")])
    assert asked == ["0x61", "latest", "0x61", "0x61"]
    assert (await deep.settled.fetch_latest()).number == 97
    node.height = 99  # a node behind a balancer that is behind: what was settled stays settled
    assert await deep.settled.block_number() == 97
    node.height = 1
    assert await deep.settled.block_number() == 1


async def test_where_nothing_is_taken_back_settled_is_latest(node: FakeNode, rpc: Rpc) -> None:
    assert rpc.settled is rpc
    node.eth_call = lambda call, tag: "0x" + tag.encode().hex()  # type: ignore[method-assign]
    assert await rpc.settled.eth_call(TO, b"\x01") == b"latest"


REFUSALS = [
    (-32005, "query returned more than 10000 results"),
    (-32602, "eth_getLogs and eth_newFilter are limited to a 10,000 blocks range"),
    (-32000, "exceed maximum block range: 2000"),
    (-32600, "block range is too large"),
    (-32602, "Log response size exceeded. this block range should work: [0x0, 0x3]"),
]


@pytest.mark.parametrize(("code", "message"), REFUSALS)
async def test_ranges_narrow_to_what_a_node_serves(node: FakeNode, deep: Rpc, code: int, message: str) -> None:
    spans: list[int] = []

    def logs(criteria: dict[str, str]) -> list[Any]:
        span = int(criteria["toBlock"], 16) - int(criteria["fromBlock"], 16) + 1
        if span > 700:
            raise NodeError(code, message)
        spans.append(span)
        return []

    node.eth_get_logs = logs  # type: ignore[attr-defined]
    node.height = 9_999
    assert await deep.get_logs(TO) == ()
    assert sum(spans) == 10_000
    assert max(spans) == 625
    refused = node.calls.count("eth_getLogs") - len(spans)
    await deep.get_logs(TO)
    assert node.calls.count("eth_getLogs") - len(spans) == refused, "what a node serves is remembered"


async def test_a_node_that_serves_no_logs_and_one_that_is_busy(node: FakeNode, deep: Rpc) -> None:
    def refuse(criteria: dict[str, str]) -> list[Any]:
        raise NodeError(-32000, "block range is too large")

    node.eth_get_logs = refuse  # type: ignore[attr-defined]
    node.height = 100
    with pytest.raises(RefusedLogRange):
        await deep.get_logs(TO)

    def hurry(criteria: dict[str, str]) -> list[Any]:
        raise NodeError(-32005, "daily request rate exceeded its limit")

    node.eth_get_logs = hurry  # type: ignore[attr-defined]
    with pytest.raises(UnavailableChain):
        await deep.get_logs(TO)


async def test_logs_from_before_the_network_are_not_asked_for(node: FakeNode, clock: VirtualClock) -> None:
    asked: list[str] = []
    node.eth_get_logs = lambda criteria: asked.append(criteria["fromBlock"]) or []  # type: ignore[attr-defined]
    node.height = 500
    async with Rpc(node.url, clock=clock, confirmations=DEPTH, first_block=490) as rpc:
        await rpc.get_logs(TO)
        await rpc.settled.get_logs(TO)
        await rpc.get_logs(TO, from_block=495)
    assert asked == [hex(490), hex(490), hex(495)]
