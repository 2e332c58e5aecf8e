"""Buyer, providers and discovery over the embedded chain with the real contracts; only the model is a fake."""

import asyncio

from deaios.ledger.eip712 import hash_struct
from deaios.ledger.settings import LOCAL
from deaios.ledger.structs import State
from deaios.market.buyer.client import Buyer, BuyerSettings
from deaios.market.client import LedgerChain
from deaios.market.directory.client import Directory
from deaios.market.receipts import validate_opening
from deaios.primitives.units import CREDIT
from deaios.runtime.client import HttpClient


async def read(purchase):
    return tuple([token async for delta in purchase for token in delta.ids])


async def test_money_flows_only_where_receipts_say(kit, network):
    contracts, vault = network.contracts, kit.FakeVault()
    honest = await network.add_seller("honest", kit.FakeGenerator())
    broken = await network.add_seller(
        "broken", kit.FakeGenerator(fail_after=0, error=kit.UnavailableFakeChain("engine is gone"))
    )
    await network.add_seller("unstaked", kit.FakeGenerator(), stake=0)
    buyer_sender = await network.join(kit.BUYER, 20 * CREDIT)
    supply = await contracts.credit.total_supply()

    async with network.running(honest, vault) as seller, network.running(broken, vault), HttpClient() as http:
        directory = Directory(contracts, network.terms, http)
        network.stack.push_async_callback(directory.close)
        found = await directory.fetch_candidates()
        assert sorted(c.provider for c in found) == sorted([honest[0].address, broken[0].address])
        buyer = Buyer(
            kit.BUYER,
            network.terms,
            BuyerSettings(),
            network.path / "buyer.db",
            LedgerChain(contracts, buyer_sender),
            directory,
            http,
        )
        async with buyer:
            purchases = await asyncio.gather(*(buyer.purchase(kit.build_order(f"o{n}")) for n in range(10)))
            await asyncio.gather(*(read(purchase) for purchase in purchases))
            openings = [purchase.opening for purchase in purchases]
            for opening in openings:
                validate_opening(network.terms.protocol, opening)
                assert (opening.receipt.state, opening.request.provider) == (State.SERVED, honest[0].address)
            fees = sum(opening.receipt.fee for opening in openings)
            assert fees == 670

            # The chain holds every receipt under the published root.
            published = await seller.publisher.publish()
            proof = await buyer.fetch_proof(openings[4], 20)
            assert proof.index == published.chain_index
            assert await contracts.receipts.verify_receipt(
                honest[0].address,
                proof.index,
                openings[4].receipt.counter,
                hash_struct(openings[4].receipt),
                proof.path,
            )

            # A withdrawal is answered by a claim of exactly the fees; the payer gets the rest.
            before = await contracts.credit.balance_of(honest[0].address)
            assert await buyer.wallet.initiate_withdraw(honest[0].address) == 5 * CREDIT
            assert await seller.collector.claim(only_withdrawing=True) == fees
            assert await contracts.credit.balance_of(honest[0].address) == before + fees
            assert await seller.collector.claim() == 0
            row = next(row for row in buyer.accounts if row.provider == honest[0].address)
            money = await contracts.channels.balance_of(row.channel_id)
            assert (money.balance, money.total_claimed) == (5 * CREDIT, fees)

            # Anybody may doubt a claim; the provider shows the receipt behind it and earns the doubter's bond.
            await contracts.credit.approve(network.operator, contracts.forks.address, LOCAL.claim_bond)
            await contracts.forks.challenge_claim(network.operator, row.config)
            assert await seller.collector.answer_challenges() == 1
            assert await contracts.forks.shown_up_to(row.channel_id) == fees
            assert await contracts.credit.balance_of(honest[0].address) == before + fees + LOCAL.claim_bond

    # A restart goes on where the journal and the chain are.
    async with network.running(honest, vault) as seller:
        assert seller.desk.last_counter == await contracts.receipts.last_counter(honest[0].address) == 10
    count = await contracts.receipts.batch_count(broken[0].address)
    failed = await contracts.receipts.last_counter(broken[0].address)
    assert (count, failed >= 1) == (1, True) if failed else (0, False)
    assert await contracts.credit.total_supply() == supply
