"""Buyer, providers and discovery over the embedded chain with the real contracts; only the model is a fake."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest

from deaios.chain.genesis import ETHER, Allocation, Genesis
from deaios.chain.service import ChainService, Limits
from deaios.chain.service import build_application as build_chain_application
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.deployment import deploy_suite
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Patience, Sender
from deaios.ledger.eip712 import hash_struct
from deaios.ledger.settings import LOCAL
from deaios.ledger.structs import State
from deaios.ledger.suite import COMPUTE, CREDIT_NAME, CREDIT_VERSION
from deaios.market.buyer.client import Buyer, BuyerSettings
from deaios.market.client import LedgerChain
from deaios.market.directory.client import Directory
from deaios.market.receipts import validate_opening
from deaios.market.seller.service import Seller
from deaios.market.terms import Terms
from deaios.primitives.hashing import sha256
from deaios.primitives.keys import PrivateKey
from deaios.primitives.units import CREDIT
from deaios.runtime.client import HttpClient
from deaios.runtime.clock import SystemClock
from deaios.runtime.http import serve

FAST = Patience(poll_min_s=0.01, poll_max_s=0.05)


@dataclass
class Network:
    """A chain with contracts and money for whoever joins."""

    kit: object
    path: object
    stack: AsyncExitStack
    rpc: Rpc
    contracts: Contracts
    operator: Sender
    terms: Terms

    async def join(self, key: PrivateKey, credit: int) -> Sender:
        await self.operator.send(key.address, value=ETHER)
        await self.contracts.credit.transfer(self.operator, key.address, credit)
        sender = Sender(self.rpc, key, self.terms.chain_id, patience=FAST)
        self.stack.push_async_callback(sender.close)
        return sender

    async def add_seller(self, name, generator, *, stake=50 * CREDIT):
        key = self.kit.build_key(name)
        sender = await self.join(key, max(stake, CREDIT))
        if stake:
            await self.contracts.credit.approve(sender, self.contracts.staking.address, stake)
            await self.contracts.staking.stake(sender, stake)
            await self.contracts.staking.opt_in(sender, COMPUTE, 10_000)
        port = self.kit.free_port()
        await self.contracts.identities.ensure_registered(sender, f"http://127.0.0.1:{port}", "provider")
        return key, sender, port, generator

    @asynccontextmanager
    async def running(self, member, vault):
        key, sender, port, generator = member
        seller = Seller(
            key,
            self.terms,
            self.kit.build_settings(f"http://127.0.0.1:{port}"),
            self.path / f"{key.address.hex()}.db",
            LedgerChain(self.contracts, sender),
            generator,
            vault,
        )
        async with seller, serve(seller.application, port=port):
            yield seller


@pytest.fixture
async def network(kit, tmp_path):
    operator = kit.build_key("operator")
    genesis = Genesis(
        seed=sha256(b"market test"),
        operator=operator.address,
        timestamp=SystemClock().now_ms() // 1000,
        allocations=(Allocation(operator.address, 1000 * ETHER),),
    )
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(4))
        chain = await ChainService.start(
            tmp_path / "chain.db",
            operator,
            genesis,
            executor=executor,
            clock=SystemClock(),
            limits=Limits(block_ms=10, gather_ms=1),
        )
        stack.push_async_callback(chain.close)
        running = asyncio.create_task(chain.run())
        stack.callback(running.cancel)
        url = await stack.enter_async_context(serve(build_chain_application(chain)))
        rpc = await stack.enter_async_context(Rpc(url))
        sender = Sender(rpc, operator, chain.chain_id, patience=FAST)
        stack.push_async_callback(sender.close)
        contracts = Contracts(rpc, await deploy_suite(sender, rpc, LOCAL))
        first = await rpc.get_block(0)
        terms = Terms(
            chain_id=chain.chain_id,
            network_id=first.hash,
            disputes=contracts.addresses.disputes,
            channels=contracts.addresses.channels,
            token=contracts.addresses.credit,
            token_name=CREDIT_NAME,
            token_version=CREDIT_VERSION,
        )
        yield Network(kit, tmp_path, stack, rpc, contracts, sender, terms)


async def read(purchase):
    return tuple([token async for delta in purchase for token in delta.ids])


async def test_money_flows_only_where_receipts_say(kit, network):
    contracts, vault = network.contracts, kit.FakeVault()
    honest = await network.add_seller("honest", kit.FakeGenerator())
    broken = await network.add_seller("broken", kit.FakeGenerator(fail_after=0, error=RuntimeError("broken")))
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
                honest[0].address, proof.index, openings[4].receipt.counter, hash_struct(openings[4].receipt), proof.path
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

    # A restart goes on where the journal and the chain are.
    async with network.running(honest, vault) as seller:
        assert seller.desk.last_counter == await contracts.receipts.last_counter(honest[0].address) == 10
    count = await contracts.receipts.batch_count(broken[0].address)
    failed = await contracts.receipts.last_counter(broken[0].address)
    assert (count, failed >= 1) == (1, True) if failed else (0, False)
    assert await contracts.credit.total_supply() == supply
