"""The program that sends proofs and doubts claims: cheats are slashed by it alone, the honest never."""

import contextlib
from dataclasses import replace

import pytest
from cheating_provider import build_lying_door, inflated_fee, inflated_prompt, sign_receipt
from cheats_world import build_order
from test_cheating_receipts import is_excluded, serving_once, take_and_claim

from deaios.ledger.settings import LOCAL
from deaios.market.batches import RECEIPTS_TAG, SignedReceipt, encode_batch
from deaios.market.receipts import InvalidReceipt
from deaios.market.slashing.client import Slasher, SlasherCounts
from deaios.primitives.errors import ConfigError
from deaios.primitives.hashing import ZERO32
from deaios.primitives.merkle import build_root

pytestmark = pytest.mark.asyncio(loop_scope="session")


def open_slasher(world, customer):
    return Slasher(
        customer.buyer,
        world.terms,
        world.contracts,
        customer.sender,
        customer.chain,
        world.shelf.get_bytes,
        LOCAL.claim_bond,
        world.clock,
    )


async def test_a_counter_used_twice_is_proven_once_by_the_program(world):
    counters = iter((1, 1))

    def front(key, url):
        return build_lying_door(world, key, url, lambda receipt: replace(receipt, counter=next(counters)))

    async with world.selling("twice", world.machine.generate, front=front) as cheat, world.buying("customer") as buyer:
        for _ in range(2):
            await buyer.buy(build_order(cheat.address))
        before, rich = await world.wealth(cheat), await world.wealth_of(buyer)
        slasher = open_slasher(world, buyer)
        await slasher.tend()
        assert slasher.counts == SlasherCounts(proven=1)
        assert await world.wealth(cheat) == before - LOCAL.fork_penalty
        assert await world.wealth_of(buyer) == rich + LOCAL.fork_penalty // 10
        # Neither a second look nor a restarted program sends it again.
        again = open_slasher(world, buyer)
        for program in (slasher, again):
            await program.tend()
        assert again.counts == SlasherCounts()
        assert await world.wealth(cheat) == before - LOCAL.fork_penalty


@pytest.mark.parametrize("lie", [inflated_prompt, inflated_fee], ids=lambda lie: lie.__name__)
async def test_a_fee_that_nothing_allows_is_proven_once_by_the_program(world, lie):
    """The buyer refuses the receipt and keeps it; the stake is gone, and nothing is proven again after a restart."""
    honest = {"first": True}

    def front(key, url):
        return build_lying_door(
            world, key, url, lambda receipt: receipt if honest.pop("first", False) else lie(receipt)
        )

    async with world.selling("dear", world.machine.generate, front=front) as cheat, world.buying("customer") as buyer:
        await buyer.buy(build_order(cheat.address))
        slasher = open_slasher(world, buyer)
        await slasher.tend()
        assert slasher.counts == SlasherCounts()
        with pytest.raises(InvalidReceipt):
            await buyer.buy(build_order(cheat.address))
        await is_excluded(buyer, cheat)
        before, rich = await world.wealth(cheat), await world.wealth_of(buyer)
        restarted = open_slasher(world, buyer)
        for program in (slasher, slasher, restarted):
            await program.tend()
        assert (slasher.counts, restarted.counts) == (SlasherCounts(proven=1), SlasherCounts())
        assert await world.wealth(cheat) == before - LOCAL.fork_penalty
        assert await world.wealth_of(buyer) == rich + LOCAL.fork_penalty // 10


async def test_another_receipt_in_the_batch_is_proven_by_the_program(world):
    slashed = []
    with contextlib.suppress(ConfigError):  # the real seller beside the cheat sees a history that is not its own
        async with world.selling("rewriter", world.machine.generate) as cheat, world.buying("customer") as customer:
            receipt = (await customer.buy(build_order(cheat.address))).opening.receipt
            other = SignedReceipt(*sign_receipt(world, cheat, receipt, fee=0, charged_cumulative=0))
            manifest = await world.shelf.put_bytes(encode_batch(cheat.address, [other]))
            await world.contracts.receipts.publish(
                cheat.sender, 1, 1, ZERO32, build_root(RECEIPTS_TAG, [other.digest]), manifest
            )
            before, slasher = await world.wealth(cheat), open_slasher(world, customer)
            await slasher.tend()
            assert slasher.counts == SlasherCounts(proven=1)
            slashed.append(before - await world.wealth(cheat))
    assert slashed == [LOCAL.fork_penalty]


async def test_a_batch_that_hides_its_leaves_holds_up_no_look(world):
    with contextlib.suppress(ConfigError):
        async with world.selling("hides", world.machine.generate) as cheat, world.buying("customer") as customer:
            await customer.buy(build_order(cheat.address))
            await world.contracts.receipts.publish(cheat.sender, 1, 1, ZERO32, b"\x07" * 32, b"\x08" * 32)
            slasher = open_slasher(world, customer)
            for _ in range(30):
                await slasher.tend()
            assert slasher.counts == SlasherCounts(batches_unread=1)


async def test_a_claim_without_a_receipt_is_doubted_and_slashed_by_the_program(world):
    async with world.selling("claims", serving_once(world)) as cheat, world.buying("customer") as customer:
        await customer.buy(build_order(cheat.address))
        row, taken = await take_and_claim(world, cheat, customer)
        assert taken <= LOCAL.voucher_window
        before, slasher = await world.wealth(cheat), open_slasher(world, customer)
        await slasher.tend()
        assert slasher.counts == SlasherCounts(challenged=1)
        await slasher.tend()  # its time is not over
        await world.pass_time(LOCAL.claim_challenge_s)
        restarted = open_slasher(world, customer)
        await restarted.tend()
        assert (slasher.counts, restarted.counts) == (SlasherCounts(challenged=1), SlasherCounts(finalized=1))
        assert await world.wealth(cheat) == before - LOCAL.fork_penalty
        assert not (await world.contracts.forks.challenge_of(row.channel_id)).deadline


async def test_the_honest_are_neither_accused_nor_doubted(world):
    async with world.selling("honest", world.machine.generate) as seller, world.buying("customer") as customer:
        slasher = open_slasher(world, customer)
        before = await world.wealth(seller)
        paid = 0
        for _ in range(3):
            paid += (await customer.buy(build_order(seller.address))).opening.receipt.fee
            await seller.seller.publisher.publish()
            await world.settle(seller)
            await slasher.tend()
        assert slasher.counts == SlasherCounts()
        assert await world.wealth(seller) == before + paid
