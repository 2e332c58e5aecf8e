"""Providers that lie about numbers, fork or hide receipts, or claim what they did not charge."""

import asyncio

import pytest
from cheating_provider import WRONG_NUMBERS, build_lying_door, cut_short, sign_receipt
from cheats_world import build_order

from deaios.ledger.client.channels import VoucherClaim
from deaios.ledger.client.rpc import Reverted
from deaios.ledger.eip712 import sign_struct
from deaios.ledger.settings import LOCAL
from deaios.ledger.structs import Voucher
from deaios.ledger.suite import COMPUTE
from deaios.market.batches import RECEIPTS_TAG, SignedReceipt, encode_batch
from deaios.market.buyer.errors import RefusedByMarket, UnavailableProof
from deaios.market.channel import InvalidCharge
from deaios.market.receipts import InvalidReceipt
from deaios.primitives.errors import ConfigError
from deaios.primitives.hashing import ZERO32, sha256
from deaios.primitives.merkle import build_root, prove_leaf

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def is_excluded(customer, provider):
    """Wait until the buyer, who draws its conclusions beside the caller, has excluded exactly this provider."""
    while not customer.buyer.excluded:  # the test's own time limit is the bound
        await asyncio.sleep(0.001)
    assert set(customer.buyer.excluded) == {provider.address}


@pytest.mark.parametrize("lie", WRONG_NUMBERS, ids=lambda lie: lie.__name__)
async def test_who_bills_wrongly_is_paid_once_at_most_and_never_bought_from_again(world, lie):
    told = {"is_honest": True}

    def front(key, url):
        return build_lying_door(world, key, url, lambda receipt: receipt if told["is_honest"] else lie(receipt))

    async with (
        world.selling(lie.__name__, world.machine.generate, front=front) as cheat,
        world.selling("honest", world.machine.generate) as honest,
        world.buying("customer") as customer,
    ):
        starts = [await world.wealth(person) for person in (cheat, honest)]
        rich = await world.wealth_of(customer)
        first = await customer.buy(build_order(cheat.address))
        told["is_honest"] = False
        with pytest.raises((InvalidReceipt, InvalidCharge)):
            await customer.buy(build_order(cheat.address))
        await is_excluded(customer, cheat)
        with pytest.raises(RefusedByMarket):
            await customer.buy(build_order(cheat.address))
        # Whoever does not ask for somebody by name is served by the honest one from now on.
        opened = [(await customer.buy(build_order())).opening for _ in range(3)]
        await world.settle(cheat, honest)

        gains = [await world.wealth(person) - start for person, start in zip((cheat, honest), starts, strict=True)]
        assert gains[1] == sum(opening.receipt.fee for opening in opened)
        # The seller behind the lie charged two true fees; the one that was lied about is all that was lost.
        lost = rich - await world.wealth_of(customer) - gains[1] - first.opening.receipt.fee
        assert 0 <= lost == gains[0] - first.opening.receipt.fee <= LOCAL.voucher_window
        assert gains[0] < gains[1]


async def test_three_tokens_are_not_the_length_that_was_ordered(world):
    async with world.selling("short", cut_short(world)) as cheat, world.buying("customer") as customer:
        start, rich = await world.wealth(cheat), await world.wealth_of(customer)
        with pytest.raises(InvalidReceipt, match="finished by length after 3 tokens, maximum is 24"):
            await customer.buy(build_order(cheat.address))
        await is_excluded(customer, cheat)
        await world.settle(cheat)
        lost = rich - await world.wealth_of(customer)
        # The true price of three tokens, once; there is no second time.
        assert lost == await world.wealth(cheat) - start == 3 + 3 * 4


async def sell_once(world, cheat, customer):
    purchase = await customer.buy(build_order(cheat.address))
    opening = purchase.opening
    return opening.receipt, opening.receipt_signature, opening


@pytest.mark.parametrize("kind", ["counter", "request"])
async def test_two_receipts_where_one_may_be_cost_a_stake_and_pay_who_shows_them(world, kind):
    c, victim = world.contracts, world.watchers[1]
    async with world.selling("fork", world.machine.generate) as cheat, world.buying("customer") as customer:
        first = (await sell_once(world, cheat, customer))[:2]
        changes = {"request_digest": sha256(b"another")} if kind == "counter" else {"counter": 77}
        second = sign_receipt(world, cheat, first[0], **changes)
        before, shower = await world.wealth(cheat), await world.wealth(victim)
        prove = c.forks.prove_double_counter if kind == "counter" else c.forks.prove_double_request
        await prove(victim.sender, *first, *second)
        assert await world.wealth(cheat) == before - LOCAL.fork_penalty
        assert await world.wealth(victim) == shower + LOCAL.fork_penalty // 10
        assert await c.staking.power(COMPUTE, cheat.address) == 0
        with pytest.raises(Reverted, match="proven before"):
            await prove(victim.sender, *first, *second)


async def test_a_batch_that_leaves_a_receipt_out_is_noticed_by_its_buyer_and_slashed(world):
    """The history that a cheat publishes has another receipt where the buyer holds one."""
    seller_stops = pytest.raises(ConfigError, match="another process sells under this key")
    selling, buying = world.selling("two histories", world.machine.generate), world.buying("customer")
    slashed = []
    with seller_stops:  # an honest seller beside the cheat does not go on under a history that is not its own
        await show_another_history(world, selling, buying, slashed)
    assert slashed == [LOCAL.fork_penalty]


async def show_another_history(world, selling, buying, slashed):
    c = world.contracts
    async with selling as cheat, buying as customer:
        receipt, signature, opening = await sell_once(world, cheat, customer)
        other = SignedReceipt(*sign_receipt(world, cheat, receipt, fee=0, charged_cumulative=0))
        manifest = await world.shelf.put_bytes(encode_batch(cheat.address, [other]))
        root = build_root(RECEIPTS_TAG, [other.digest])
        index = (await c.receipts.publish(cheat.sender, 1, 1, ZERO32, root, manifest)).value
        with pytest.raises(InvalidReceipt, match=r"counter 1 is 0x.* on chain, the receipt held is"):
            await customer.buyer.fetch_proof(opening, 20)
        before, rich = await world.wealth(cheat), await world.wealth_of(customer)
        path = prove_leaf([other.digest], 0)
        await c.forks.prove_batch_mismatch(customer.sender, receipt, signature, index, other.digest, path)
        assert await world.wealth_of(customer) == rich + LOCAL.fork_penalty // 10
        # Leaving the block may raise in its turn; what was seen is said outside of it.
        slashed.append(before - await world.wealth(cheat))


async def test_receipts_that_are_never_published_are_noticed(world):
    """Nothing on chain forces a batch out. It shelters no wrong answer: those are slashed without any batch."""
    async with world.selling("hider", world.machine.generate) as cheat, world.buying("customer") as customer:
        opening = (await sell_once(world, cheat, customer))[2]
        with pytest.raises(UnavailableProof, match="the provider has not published it"):
            await customer.buyer.fetch_proof(opening, 0.3)


def serving_once(world):
    """Serves one answer; from the second order on it takes the money's promise and gives nothing."""
    served = []

    async def generate(wanted):
        served.append(wanted.seed)
        if len(served) > 1:
            await asyncio.Event().wait()
        async for piece in world.machine.generate(wanted):
            yield piece

    return generate


async def take_and_claim(world, cheat, customer):
    """A second order is taken and left; then the cheat claims the highest voucher that it was ever handed.

    Gives the channel's row, what was claimed, and the order that is left open.
    """
    order = build_order(cheat.address)
    waiting = asyncio.create_task(customer.buy(order))
    while not cheat.seller.desk.open_count:  # the test's own time limit is the bound
        await asyncio.sleep(0.001)
    row = customer.channel_with(cheat.address)
    channel = cheat.seller.desk.channels[row.channel_id]
    claim = VoucherClaim(row.config, channel.state.signed, channel.voucher_signature, channel.state.signed)
    await world.contracts.channels.claim(cheat.sender, [claim])
    waiting.cancel()
    await asyncio.wait({waiting})
    return row, channel.state.signed


async def test_a_claim_without_a_receipt_is_slashed_and_pays_who_doubted_it(world):
    c, doubter = world.contracts, world.watchers[2]
    async with world.selling("claimer", serving_once(world)) as cheat, world.buying("customer") as customer:
        start, rich, doubt = await world.wealth(cheat), await world.wealth_of(customer), await world.wealth(doubter)
        fee = (await sell_once(world, cheat, customer))[0].fee
        row, taken = await take_and_claim(world, cheat, customer)
        assert fee < taken <= LOCAL.voucher_window
        await c.credit.ensure_allowance(doubter.sender, c.forks.address, LOCAL.claim_bond)
        await c.forks.challenge_claim(doubter.sender, row.config)
        # What the real seller can show does not reach.
        assert await cheat.seller.collector.answer_challenges() == 0
        await world.pass_time(LOCAL.claim_challenge_s)
        await c.forks.finalize_claim(world.operator, row.channel_id)
        assert await world.wealth(cheat) == start + taken - LOCAL.fork_penalty < start
        assert await world.wealth(doubter) == doubt + LOCAL.fork_penalty // 10
        assert rich - await world.wealth_of(customer) == taken


async def test_a_made_up_receipt_answers_a_challenge_and_takes_one_window_at_most(world):
    """As built a claim is answered by any receipt that its own signer makes up: README, what you still trust.

    Bounded by the window for the buyer and by the bond for who doubts. What is made up stays in the open: it bears a
    counter, and a second receipt with that counter convicts.
    """
    c, doubter = world.contracts, world.watchers[2]
    async with world.selling("inventor", serving_once(world)) as cheat, world.buying("customer") as customer:
        rich, doubt = await world.wealth_of(customer), await world.wealth(doubter)
        receipt = (await sell_once(world, cheat, customer))[0]
        row, taken = await take_and_claim(world, cheat, customer)
        await c.credit.ensure_allowance(doubter.sender, c.forks.address, LOCAL.claim_bond)
        await c.forks.challenge_claim(doubter.sender, row.config)
        made_up = {"request_digest": sha256(b"nobody's"), "counter": 2, "fee": taken, "charged_cumulative": taken}
        shown = sign_receipt(world, cheat, receipt, **made_up)
        await c.forks.show_receipt(cheat.sender, row.channel_id, *shown)
        assert rich - await world.wealth_of(customer) == taken <= LOCAL.voucher_window
        assert await world.wealth(doubter) == doubt - LOCAL.claim_bond
        # Going on under the counter that it used up convicts it.
        second = sign_receipt(world, cheat, receipt, counter=2)
        before = await world.wealth(cheat)
        await c.forks.prove_double_counter(doubter.sender, *shown, *second)
        assert await world.wealth(cheat) == before - LOCAL.fork_penalty


async def test_a_voucher_signed_for_somebody_else_pays_nobody(world):
    async with (
        world.selling("thief", world.machine.generate) as thief,
        world.selling("payee", world.machine.generate) as payee,
        world.buying("customer") as customer,
    ):
        for provider in (thief, payee):
            await customer.buy(build_order(provider.address))
        stolen = payee.seller.desk.channels[customer.channel_with(payee.address).channel_id]
        own = customer.channel_with(thief.address)
        start, rich = await world.wealth(thief), await world.wealth_of(customer)
        amount = stolen.state.signed
        elsewhere = sign_struct(customer.key, world.terms.protocol, Voucher(own.channel_id, amount))
        for config, signature in (
            (stolen.config, stolen.voucher_signature),
            (own.config, stolen.voucher_signature),
            (own.config, elsewhere),
        ):
            claim = VoucherClaim(config, amount, signature, amount)
            with pytest.raises(Reverted, match="channels: "):
                await world.contracts.channels.claim(thief.sender, [claim])
        assert (await world.wealth(thief), await world.wealth_of(customer)) == (start, rich)
