"""Level 3 as it is sold and bought: leaves beside ids, their root in the receipt, from stream, cancel and journal."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from deaios.compute.fingerprints import LEAF_BYTES, LEAVES_MAX, build_fingerprint_root
from deaios.ledger.structs import Level, State
from deaios.market.admission import RefusedPurchase, Shelf, validate_ask
from deaios.market.batches import SignedReceipt
from deaios.market.buyer.errors import UnavailableProviders
from deaios.market.receipts import validate_opening
from deaios.market.wire import Finished, build_finished, decode_line, encode_line
from deaios.primitives.hashing import ZERO32


def leaf_of(token):
    return bytes([127, *(token >> shift & 0x3F for shift in range(15))]) + b"\x00\x2c"


class Printing:
    """A generator that says a leaf for every token, and remembers what it was asked for."""

    def __init__(self, generator, change=lambda leaf: leaf):
        self.generator, self.change, self.asked = generator, change, []

    async def __call__(self, wanted):
        self.asked.append((wanted.is_printed, wanted.is_exact))
        async for piece in self.generator(wanted):
            yield replace(piece, leaf=self.change(leaf_of(piece.token)))


@pytest.fixture
async def world(buyer_world):
    async with AsyncExitStack() as stack:
        yield buyer_world(stack)


async def read(purchase):
    return tuple([token async for delta in purchase for token in delta.ids])


@pytest.mark.parametrize("level", [Level.SEEDED, Level.FINGERPRINTED, Level.REPLAYABLE])
async def test_what_is_ordered_decides_what_is_owed(kit, world, level):
    generator = Printing(kit.FakeGenerator())
    await world.add_seller("a", generator, level=Level.REPLAYABLE)
    async with world.buyer() as buyer:
        purchase = await buyer.purchase(kit.build_order(min_level=level))
        ids = await read(purchase)
        opening = purchase.opening
        validate_opening(kit.TERMS.protocol, opening)
        assert await buyer.fetch_opening(opening.request.provider, 1) == opening
    assert generator.asked == [(level >= Level.FINGERPRINTED, level == Level.REPLAYABLE)]
    if level == Level.SEEDED:
        assert (opening.fingerprints, opening.receipt.fingerprint_root) == (b"", ZERO32)
        return
    assert opening.fingerprints == b"".join(map(leaf_of, ids))
    assert opening.receipt.fingerprint_root == build_fingerprint_root(opening.fingerprints, len(ids))


async def test_a_cancel_leaves_the_leaves_of_what_is_paid(kit, world):
    generator = kit.FakeGenerator(gate=asyncio.Semaphore(3))
    await world.add_seller("a", Printing(generator), level=Level.FINGERPRINTED)
    async with world.buyer() as buyer:
        purchase = await buyer.purchase(kit.build_order(min_level=Level.FINGERPRINTED))
        deltas = aiter(purchase)
        ids = []
        while len(ids) < 3:
            ids += (await anext(deltas)).ids
        await purchase.cancel()
        opening = purchase.opening
    assert opening.receipt.state == State.CANCELLED
    assert opening.fingerprints == b"".join(map(leaf_of, opening.output_ids))
    assert len(opening.output_ids) == 3


@pytest.mark.parametrize(
    "change", [lambda _leaf: b"", lambda leaf: leaf[:-1], lambda leaf: bytes(len(leaf))], ids=["none", "short", "zero"]
)
async def test_a_generator_without_proper_leaves_sells_nothing(kit, world, change):
    await world.add_seller("a", Printing(kit.FakeGenerator(), change), level=Level.FINGERPRINTED)
    async with world.buyer() as buyer:
        with pytest.raises(UnavailableProviders):
            await read(await buyer.purchase(kit.build_order(min_level=Level.FINGERPRINTED)))
    assert world.chain.deposits == 1


def test_more_leaves_than_fit_a_line_are_refused(kit):
    params = kit.build_params(max_tokens=LEAVES_MAX + 1)
    order = kit.build_order(min_level=Level.FINGERPRINTED, params=params)
    offer = kit.build_offer(level=Level.FINGERPRINTED, context_tokens=1 << 17)
    with pytest.raises(RefusedPurchase, match="with fingerprints"):
        validate_ask(kit.build_papers(offer, order), offer.offer, Shelf(vocabulary_size=kit.VOCABULARY))


def test_the_last_line_of_the_longest_answer_fits_what_a_client_reads(kit):
    offer = kit.build_offer()
    opening = kit.build_opening(kit.build_papers(offer), offer, (20, kit.STOP))
    leaves = leaf_of(5) * LEAVES_MAX
    line = encode_line(build_finished(SignedReceipt(opening.receipt, opening.receipt_signature), None, leaves))
    found = decode_line(line)
    assert isinstance(found, Finished)
    assert found.fingerprints == leaves
    assert len(leaves) == LEAVES_MAX * LEAF_BYTES
    assert len(line) * 4 // 3 < 1 << 20  # sealed, it is base64 once more


async def test_the_journal_keeps_the_leaves_for_who_asks_again(kit, world):
    generator = Printing(kit.FakeGenerator())
    await world.add_seller("a", generator, level=Level.FINGERPRINTED)
    async with world.buyer() as buyer:
        purchase = await buyer.purchase(kit.build_order(min_level=Level.FINGERPRINTED))
        await read(purchase)
        opening = purchase.opening
    await world.stop_seller("a")
    again = await world.add_seller("a", generator, level=Level.FINGERPRINTED)
    run = await again.desk._find(purchase.request_digest)
    assert run.outcome.fingerprints == opening.fingerprints
    assert len(generator.asked) == 1
