"""The sender against a node that fails in every way nodes fail: nonces, money, lost pools, cancelled callers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from deaios.ledger.abi import DATA_BYTES_MAX
from deaios.ledger.client.fees import GAS_MARGIN, GAS_MARGIN_PERCENT
from deaios.ledger.client.rpc import RefusedByChain, Reverted, Rpc, UnavailableChain
from deaios.ledger.client.sender import (
    Patience,
    RefusedOutOfGasMoney,
    Sender,
    UnavailableInclusion,
)
from deaios.ledger.records import InvalidAnswer
from deaios.primitives.keys import Address, PrivateKey

KEY = PrivateKey(b"\x21" * 32)
TO = Address(b"\x31" * 20)
CHAIN_ID = 4242


@pytest.fixture
async def sender(rpc: Rpc) -> AsyncIterator[Sender]:
    made = Sender(rpc, KEY, CHAIN_ID)
    yield made
    await made.close()


async def settle(condition: Any) -> None:
    """Give the loop turns until a condition holds."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("condition never held")


async def test_concurrent_sends_share_nonces_without_gaps(node: Any, sender: Sender) -> None:
    receipts = await asyncio.gather(*(sender.send(TO, bytes([1, i])) for i in range(60)))
    assert [item.nonce for item in node.mined] == list(range(60))
    assert {item.data for item in node.mined} == {bytes([1, i]) for i in range(60)}
    by_hash = {item.hash: item.data for item in node.mined}
    assert [by_hash[receipt.transaction_hash] for receipt in receipts] == [bytes([1, i]) for i in range(60)]


async def test_fees_and_gas(node: Any, sender: Sender) -> None:
    await sender.send(TO, b"\x01")
    await sender.send(TO, b"\x02", gas=123_456)
    first, second = node.mined
    assert (first.tip, first.max_fee) == (100, 2 * 1_000_000_000 + 100)
    assert first.gas == 40_000 * (100 + GAS_MARGIN_PERCENT) // 100 + GAS_MARGIN
    assert second.gas == 123_456
    assert node.calls.count("eth_estimateGas") == 1


async def test_gas_stays_within_a_block(node: Any, sender: Sender) -> None:
    node.eth_estimate_gas = lambda call: hex(29_999_999)
    await sender.send(TO, b"\x01")
    assert node.mined[0].gas == 30_000_000


async def test_revert_is_found_before_sending(node: Any, sender: Sender) -> None:
    with pytest.raises(Reverted) as caught:
        await sender.send(TO, b"\xde\xad")
    assert (caught.value.reason, caught.value.receipt) == ("it is dead", None)
    assert "eth_sendRawTransaction" not in node.calls
    await sender.send(TO, b"\x01")
    assert [item.nonce for item in node.mined] == [0]


async def test_revert_in_a_block_keeps_its_receipt(node: Any, sender: Sender) -> None:
    node.estimate_reverts = False
    with pytest.raises(Reverted) as caught:
        await sender.send(TO, b"\xde\xad")
    assert caught.value.reason == "it is dead"
    assert caught.value.receipt is not None
    assert caught.value.receipt.transaction_hash == node.mined[0].hash


async def test_revert_by_gas_is_named(node: Any, sender: Sender) -> None:
    node.estimate_reverts = False
    with pytest.raises(Reverted, match="out of gas: 21000 of 21000 were used"):
        await sender.send(TO, b"\xde\xad", gas=21_000)


async def test_want_of_gas_is_estimated_again_once(node: Any, sender: Sender) -> None:
    estimates = [1000, 90_000]
    node.eth_estimate_gas = lambda call: hex(estimates.pop(0))
    build = node.build_receipt

    def run_out(transaction: Any) -> dict[str, Any]:
        if transaction.gas > 150_000:
            return build(transaction)
        return {**build(transaction), "status": "0x0", "gasUsed": hex(transaction.gas - 1000)}

    node.build_receipt = run_out
    receipt = await sender.send(TO, b"\x01")
    assert receipt.is_success
    assert [item.nonce for item in node.mined] == [0, 1]
    node.build_receipt = lambda item: {**build(item), "status": "0x0", "gasUsed": hex(item.gas)}
    estimates += [1000, 1000]
    with pytest.raises(Reverted, match="out of gas"):
        await sender.send(TO, b"\x02")
    assert len(node.mined) == 4


async def test_out_of_gas_money_names_both_values_and_frees_the_nonce(node: Any, sender: Sender) -> None:
    node.balances[KEY.address] = 5
    with pytest.raises(RefusedOutOfGasMoney, match="it has 5 wei, the transaction may cost") as caught:
        await sender.send(TO, b"\x01")
    assert caught.value.balance == 5
    assert caught.value.needed == node_cost(40_000)
    node.balances[KEY.address] = 10**20
    await sender.send(TO, b"\x01")
    assert [item.nonce for item in node.mined] == [0]


def node_cost(estimate: int) -> int:
    return (estimate * (100 + GAS_MARGIN_PERCENT) // 100 + GAS_MARGIN) * (2 * 1_000_000_000 + 100)


async def test_out_of_gas_money_among_others(node: Any, sender: Sender) -> None:
    node.is_mining = False
    fine = [asyncio.create_task(sender.send(TO, bytes([1, i]))) for i in range(3)]
    await settle(lambda: len(node.pool) == 3)
    node.balances[KEY.address] = 0
    with pytest.raises(RefusedOutOfGasMoney):
        await sender.send(TO, b"\x09")
    node.balances[KEY.address] = 10**20
    node.is_mining = True
    await sender.send(TO, b"\x0a")
    await asyncio.gather(*fine)
    assert [item.nonce for item in node.mined] == [0, 1, 2, 3]


async def test_other_refusal_is_passed_on(node: Any, sender: Sender) -> None:
    def refuse(text: str) -> str:
        raise type(node.revert())(-32000, "transaction type not supported")

    node.eth_send_raw_transaction = refuse
    with pytest.raises(RefusedByChain, match="type not supported"):
        await sender.send(TO, b"\x01")


async def test_answer_lost_after_acceptance(node: Any, sender: Sender) -> None:
    def drop(method: str) -> None:
        if method == "eth_sendRawTransaction":
            node.after.clear()
            raise web.HTTPServiceUnavailable

    node.after.append(drop)
    receipt = await sender.send(TO, b"\x01")
    assert [item.hash for item in node.mined] == [receipt.transaction_hash]


async def test_node_away_while_submitting(node: Any, sender: Sender) -> None:
    node.fail_times("eth_sendRawTransaction", 3)
    receipts = await asyncio.gather(*(sender.send(TO, bytes([1, i])) for i in range(4)))
    assert [item.nonce for item in node.mined] == [0, 1, 2, 3]
    assert len({item.transaction_hash for item in receipts}) == 4


async def test_node_away_while_waiting(node: Any, sender: Sender) -> None:
    node.is_mining = False
    task = asyncio.create_task(sender.send(TO, b"\x01"))
    await settle(lambda: len(node.pool) == 1)
    node.fail_times("eth_getTransactionCount", 12)
    node.mine()
    assert (await task).is_success


async def test_node_away_before_anything_is_signed(node: Any, sender: Sender) -> None:
    node.fail_times("eth_getBlockByNumber", 5)
    with pytest.raises(UnavailableChain):
        await sender.send(TO, b"\x01")
    await sender.send(TO, b"\x02")
    assert [(item.nonce, item.data) for item in node.mined] == [(0, b"\x02")]


async def test_lost_pool_is_broadcast_again_in_order(node: Any, sender: Sender) -> None:
    node.keeps_pool = False
    tasks = [asyncio.create_task(sender.send(TO, bytes([1, i]))) for i in range(3)]
    await settle(lambda: node.calls.count("eth_sendRawTransaction") >= 3)
    assert node.pool == {}
    node.keeps_pool = True
    await asyncio.gather(*tasks)
    assert [item.nonce for item in node.mined] == [0, 1, 2]


async def test_stuck_transaction_is_replaced_at_a_higher_fee(node: Any, sender: Sender, clock: Any) -> None:
    node.price_floor = 2 * 1_000_000_000 * 140 // 100
    node.is_mining = False
    tasks = [asyncio.create_task(sender.send(TO, bytes([1, i]))) for i in range(2)]
    await settle(lambda: len(node.pool) == 2)
    node.is_mining = True
    receipts = await asyncio.wait_for(asyncio.gather(*tasks), 20)
    assert [item.nonce for item in node.mined] == [0, 1]
    assert node.mined[0].max_fee >= node.price_floor
    assert [item.transaction_hash for item in receipts] == [item.hash for item in node.mined]
    assert clock.time_s > Patience().replace_s


async def test_two_senders_of_one_key_both_succeed(node: Any, rpc: Rpc, sender: Sender) -> None:
    other = Sender(rpc, KEY, CHAIN_ID)
    await sender.send(TO, b"\x01")
    await other.send(TO, b"\x02")
    await sender.send(TO, b"\x03")
    await other.send(TO, b"\x04")
    await other.close()
    assert [(item.nonce, item.data[0]) for item in node.mined] == [(0, 1), (1, 2), (2, 3), (3, 4)]


async def test_nonce_spent_elsewhere_while_waiting_is_said(node: Any, rpc: Rpc, sender: Sender) -> None:
    node.is_mining = False
    task = asyncio.create_task(sender.send(TO, b"\x01"))
    await settle(lambda: len(node.pool) == 1)
    node.pool.clear()
    node.nonces[KEY.address] = 1
    with pytest.raises(UnavailableInclusion, match="nonce 0 was spent by another transaction"):
        await task
    node.is_mining = True
    await sender.send(TO, b"\x02")
    assert [(item.nonce, item.data) for item in node.mined] == [(1, b"\x02")]


async def test_inclusion_has_a_limit_and_the_nonce_is_used_again(node: Any, sender: Sender, clock: Any) -> None:
    node.is_mining = False
    task = asyncio.create_task(sender.send(TO, b"\x01"))
    with pytest.raises(UnavailableInclusion, match=r"in no block after 300.0 s") as caught:
        await task
    assert clock.time_s > 300
    assert len(caught.value.hashes) > 1
    node.pool.clear()
    node.is_mining = True
    await sender.send(TO, b"\x02")
    assert [(item.nonce, item.data) for item in node.mined] == [(0, b"\x02")]


async def test_cancelled_caller_does_not_lose_the_transaction(node: Any, sender: Sender) -> None:
    node.is_mining = False
    task = asyncio.create_task(sender.send(TO, b"\x01"))
    await settle(lambda: len(node.pool) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    node.pool.clear()
    node.is_mining = True
    await sender.send(TO, b"\x02")
    await settle(lambda: len(node.mined) == 2)
    assert [(item.nonce, item.data) for item in node.mined] == [(0, b"\x01"), (1, b"\x02")]


async def test_cancelled_while_broadcasting(node: Any, sender: Sender) -> None:
    reached = asyncio.Event()
    node.after.append(lambda method: reached.set() if method == "eth_sendRawTransaction" else None)
    task = asyncio.create_task(sender.send(TO, b"\x01"))
    await reached.wait()
    task.cancel()
    await asyncio.wait([task])
    await sender.send(TO, b"\x02")
    assert [(item.nonce, item.data) for item in node.mined] == [(0, b"\x01"), (1, b"\x02")]


async def test_close_leaves_nobody_waiting(node: Any, sender: Sender) -> None:
    node.is_mining = False
    tasks = [asyncio.create_task(sender.send(TO, bytes([1, i]))) for i in range(3)]
    await settle(lambda: len(node.pool) == 3)
    await sender.close()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, UnavailableInclusion)


async def test_hostile_receipt_is_refused(node: Any, sender: Sender) -> None:
    build = node.build_receipt
    node.build_receipt = lambda transaction: {**build(transaction), "logs": [{"topics": [], "address": "0x"}]}
    with pytest.raises(InvalidAnswer, match="log address has 0 bytes"):
        await sender.send(TO, b"\x01")


async def test_data_is_bounded_by_the_codec_not_the_sender(node: Any, sender: Sender) -> None:
    await sender.send(None, bytes(100_000))
    assert len(node.mined[0].data) == 100_000 < DATA_BYTES_MAX
