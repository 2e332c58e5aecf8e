"""Buyers that pay with what is not theirs or is leaving, deny what they signed, or sue an honest provider."""

import asyncio
from dataclasses import replace

import pytest
from cheating_buyer import FRAMES, sue, write_papers
from cheats_world import build_order

from deaios.ledger.eip712 import sign_struct
from deaios.ledger.phases import Decision
from deaios.ledger.settings import LOCAL
from deaios.ledger.structs import Voucher, protocol_domain
from deaios.ledger.suite import COMPUTE
from deaios.market.admission import InvalidPurchase, RefusedPurchase
from deaios.market.channel import RefusedDeposit
from deaios.market.receipts import InvalidRequest, validate_opening
from deaios.market.wire import encode_papers

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_nobody_pays_with_somebody_elses_voucher_or_one_from_elsewhere(world):
    async with (
        world.selling("seller", world.machine.generate) as seller,
        world.buying("victim") as victim,
        world.buying("thief") as thief,
    ):
        await victim.buy(build_order(seller.address))
        rich = await world.wealth_of(victim)
        own = seller.seller.desk.channels[victim.channel_with(seller.address).channel_id]
        voucher = own.state.signed, own.voucher_signature
        desk, order = seller.seller.desk, build_order(seller.address)
        # The victim's channel and voucher under the thief's order.
        papers = await write_papers(world, thief, seller, order, channel=own.config, voucher=voucher)
        with pytest.raises(RefusedPurchase, match="payer authorizer of the channel must be the buyer"):
            await desk.purchase(encode_papers(papers))
        # The victim's name on an order that the thief signed.
        forged = replace(papers, ask=replace(papers.ask, buyer=victim.address))
        with pytest.raises(InvalidPurchase, match="request is for another ask"):
            await desk.purchase(encode_papers(forged))
        # A channel of the thief's, with a voucher of the victim's, of another network's, and of nobody's.
        channel = replace(own.config, payer=thief.address, payer_authorizer=thief.address)
        await thief.buyer.wallet.fetch_account(seller.address)
        await thief.buyer.wallet.deposit(await thief.buyer.wallet.fetch_account(seller.address), 1)
        channel = thief.channel_with(seller.address).config
        amount = LOCAL.voucher_window
        paid = Voucher(world.terms.channel_id(channel), amount)
        elsewhere = replace(world.terms, chain_id=world.terms.chain_id + 1)
        for signature in (own.voucher_signature, sign_struct(thief.key, elsewhere.vouchers, paid)):
            papers = await write_papers(world, thief, seller, order, channel=channel, voucher=(amount, signature))
            with pytest.raises(InvalidPurchase, match="voucher is signed by"):
                await desk.purchase(encode_papers(papers))
        assert await world.wealth_of(victim) == rich
        assert seller.seller.desk.last_counter == 1


async def test_who_withdraws_while_it_buys_pays_all_that_it_ordered(world):
    """Initiated with a purchase open: the provider is paid, and sells no more on that channel."""
    gate = asyncio.Event()

    async def generate(wanted):
        async for piece in world.machine.generate(wanted):
            if piece.finish is not None:
                await gate.wait()
            yield piece

    async with world.selling("seller", generate) as seller, world.buying("leaver") as leaver:
        start, rich = await world.wealth(seller), await world.wealth_of(leaver)
        purchase = await leaver.buyer.purchase(build_order(seller.address))
        row = leaver.channel_with(seller.address)
        assert await leaver.buyer.wallet.initiate_withdraw(seller.address) == LOCAL.channel_deposit
        channel = seller.seller.desk.channels[row.channel_id]
        # Another minute later no cached view of the channel is left.
        await world.pass_time(61)
        papers = await write_papers(
            world,
            leaver,
            seller,
            build_order(seller.address),
            channel=row.config,
            voucher=(channel.state.signed, channel.voucher_signature),
        )
        with pytest.raises(RefusedDeposit):
            await seller.seller.desk.purchase(encode_papers(papers))
        gate.set()
        fee = (await purchase.wait()).receipt.fee
        assert await seller.seller.collector.claim(only_withdrawing=True) == fee > 0
        await world.pass_time(LOCAL.withdraw_delay_min_s)
        await leaver.buyer.wallet.finalize_withdraw(seller.address)
        assert await world.wealth(seller) == start + fee
        assert await world.wealth_of(leaver) == await world.wealth(leaver) == rich - fee
        # The voucher was for more than the fee; there is nothing left that it could take.
        assert channel.state.signed > fee
        assert await seller.seller.collector.claim() == 0


async def test_who_denies_an_order_has_signed_it_and_pays(world):
    """The provider needs nobody's word: papers convince a stranger, and the voucher is in its hand."""
    async with world.selling("seller", world.machine.generate) as seller, world.buying("denier") as denier:
        start = await world.wealth(seller)
        opening = (await denier.buy(build_order(seller.address))).opening
        # From here on the buyer neither answers nor signs, and says that it ordered something else.
        validate_opening(world.terms.protocol, opening)
        for lie in (
            replace(opening, ask=replace(opening.ask, nonce=bytes(32))),
            replace(opening, request=replace(opening.request, max_fee=0)),
        ):
            with pytest.raises(InvalidRequest):
                validate_opening(world.terms.protocol, lie)
        with pytest.raises(InvalidRequest):
            validate_opening(protocol_domain(world.terms.chain_id + 1, world.terms.disputes), opening)
        await world.settle(seller)
        assert await world.wealth(seller) == start + opening.receipt.fee


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: frame.__name__)
async def test_who_sues_an_honest_provider_loses_its_bond_to_it(world, frame):
    c = world.contracts
    async with world.selling("honest", world.machine.generate) as honest, world.buying("framer") as framer:
        order = build_order(honest.address)
        opening = (await framer.buy(order)).opening
        await world.settle(honest)
        start, rich = await world.wealth(honest), await world.wealth_of(framer)
        jurors = [await world.wealth(watcher) for watcher in world.watchers]
        dispute_id = await sue(world, framer, opening, frame(order, opening))
        dispute = await world.run_until_closed(dispute_id, world.defend(honest))
        assert dispute.decision == Decision.ACQUITTED
        assert await world.wealth_of(framer) == rich - LOCAL.dispute_bond
        assert await world.wealth(honest) == start + LOCAL.dispute_bond // 2
        assert await c.staking.slashed_of(COMPUTE, honest.address) == 0
        paid = [await world.wealth(watcher) - before for watcher, before in zip(world.watchers, jurors, strict=True)]
        assert sorted(paid) == [0, *[LOCAL.juror_fee] * LOCAL.jury_size]
        # The second try over the same receipt costs twice as much.
        assert await c.disputes.bond_of(opening.receipt_digest) == 2 * LOCAL.dispute_bond
