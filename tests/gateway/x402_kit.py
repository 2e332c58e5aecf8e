"""A real chain with x402's contracts and a token, and payers; loaded by its path from the tests beside it."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from deaios.chain.genesis import ETHER, Allocation, Genesis
from deaios.chain.service import ChainService, Limits, build_application
from deaios.gateway.x402 import Payments
from deaios.gateway.x402_chain import SettlementChain
from deaios.gateway.x402_store import PaymentStore
from deaios.gateway.x402_terms import TillTerms
from deaios.ledger.abi import encode_values
from deaios.ledger.artifacts import load_artifact
from deaios.ledger.client.credit import Credit
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Patience, Sender
from deaios.ledger.client.settlement import Settlement
from deaios.ledger.x402 import list_predeploys
from deaios.primitives.hashing import sha256
from deaios.primitives.keys import ZERO_ADDRESS, Address, PrivateKey
from deaios.primitives.units import CREDIT
from deaios.runtime.clock import Clock, SystemClock
from deaios.runtime.http import serve

FAST = Patience(poll_min_s=0.01, poll_max_s=0.05)
WEALTH = 100 * CREDIT


def build_key(name: str) -> PrivateKey:
    return PrivateKey(sha256(b"x402 " + name.encode()))


@dataclass
class Bank:
    """The chain, its money, and the gateway's key on it."""

    stack: AsyncExitStack
    url: str
    rpc: Rpc
    chain: ChainService
    operator: Sender
    gateway: PrivateKey
    sender: Sender
    token: Credit
    token_name: str
    token_version: str
    settlement: Settlement

    async def open_payer(self, name: str, *, wealth: int = WEALTH, gas: int = 0) -> PrivateKey:
        """A key with money and, unless asked, no gas: stock clients need none."""
        key = build_key(name)
        await self.token.transfer(self.operator, key.address, wealth)
        if gas:
            await self.operator.send(key.address, b"", value=gas)
        return key

    def open_sender(self, key: PrivateKey) -> Sender:
        sender = Sender(self.rpc, key, self.chain.chain_id, patience=FAST)
        self.stack.push_async_callback(sender.close)
        return sender

    @property
    def terms(self) -> TillTerms:
        return TillTerms(
            chain_id=self.chain.chain_id,
            receiver=self.gateway.address,
            token=self.token.address,
            token_name=self.token_name,
            token_version=self.token_version,
            deposit_min=1000,
        )

    def open_payments(self, folder: Path, **changes: object) -> Payments:
        """What the gateway is given; its rounds come only where a test calls them."""
        store = PaymentStore.open(folder / "x402.db")
        self.stack.callback(store.close)
        terms = self.terms
        chain = SettlementChain(self.rpc, self.sender, self.gateway, self.token.address, terms.money)
        settings = {"watch_s": 3600.0, "claim_s": 3600.0} | changes
        return Payments(terms, store, chain, **settings)


async def deploy_token(sender: Sender, name: str, symbol: str, version: str, holder: Address) -> Address:
    artifact = load_artifact("Credit")
    values = (name, symbol, version, holder, 10**6 * CREDIT, ZERO_ADDRESS, 10**6 * CREDIT)
    code = artifact.creation + encode_values(artifact.abi.constructor, values, "token")
    receipt = await sender.send(None, code)
    assert receipt.contract is not None
    return receipt.contract


@asynccontextmanager
async def open_bank(
    folder: Path, token_name: str = "DeAIOS Credit", token_version: str = "1", clock: Clock | None = None
) -> AsyncIterator[Bank]:
    operator, gateway = build_key("operator"), build_key("gateway")
    genesis = Genesis(
        seed=sha256(b"x402 test"),
        operator=operator.address,
        timestamp=SystemClock().now_ms() // 1000,
        allocations=(
            Allocation(operator.address, 1000 * ETHER),
            Allocation(gateway.address, 1000 * ETHER),
            *(Allocation(address, nonce=1, code=code) for address, code in list_predeploys()),
        ),
    )
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(2))
        limits = Limits(block_ms=10, gather_ms=1)
        chain = await ChainService.start(
            folder / "chain.db", operator, genesis, executor=executor, clock=clock or SystemClock(), limits=limits
        )
        stack.push_async_callback(chain.close)
        running = asyncio.create_task(chain.run())
        stack.callback(running.cancel)
        url = await stack.enter_async_context(serve(build_application(chain)))
        rpc = await stack.enter_async_context(Rpc(url))
        senders = [Sender(rpc, key, chain.chain_id, patience=FAST) for key in (operator, gateway)]
        for sender in senders:
            stack.push_async_callback(sender.close)
        address = await deploy_token(senders[0], token_name, "MONEY", token_version, operator.address)
        token, settlement = Credit(rpc, address), Settlement(rpc)
        assert await settlement.is_there()
        yield Bank(
            stack, url, rpc, chain, senders[0], gateway, senders[1], token, token_name, token_version, settlement
        )
