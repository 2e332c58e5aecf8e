"""A key's place in a network: funded by the faucet, staked, registered.

Every step looks first and may be repeated.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec

from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.fees import GWEI, FeePolicy
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.descriptor import NetworkDescriptor
from deaios.ledger.eip712 import Domain
from deaios.ledger.structs import protocol_domain
from deaios.node.config import ChainConfig
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Refused, Unavailable
from deaios.primitives.keys import Address, PrivateKey
from deaios.primitives.units import format_credit
from deaios.runtime.client import HttpClient, RefusedByPeer

FAUCET_ATTEMPTS = 5
FAUCET_PAUSE_S = 2.0
"""Between two: a faucet whose process died is back within seconds."""
BUSY_STATUS = 429
FULL_CAP_BPS = 10_000
"""A role here serves one service with all of its stake."""


class RefusedUnfunded(Refused):
    """The key lacks gas or credit, and there is no faucet that would give it some."""


class _FaucetAnswer(msgspec.Struct):
    native: str
    credit: str


@dataclass(frozen=True, slots=True)
class Member:
    """One key with its connections to one network."""

    descriptor: NetworkDescriptor
    key: PrivateKey
    http: HttpClient
    rpc: Rpc
    contracts: Contracts
    sender: Sender

    @property
    def address(self) -> Address:
        """The key's address."""
        return self.key.address

    @property
    def domain(self) -> Domain:
        """Domain of the protocol's signatures on this network."""
        return network_domain(self.descriptor)

    async def ensure_funded(self, credit_min: int) -> None:
        """Have gas and, with what is already staked, at least `credit_min`; asks the faucet when not.

        Raises:
            RefusedUnfunded: no faucet, or it gave too little; names the address to fund.
            UnavailablePeer: the faucet cannot be reached.
        """
        if await self._is_funded(credit_min):
            return
        url = self.descriptor.faucet_url
        if url is not None:
            await self._ask_faucet(url, credit_min)
        if not await self._is_funded(credit_min):
            raise RefusedUnfunded(
                f"{encode_hex(self.address)} needs gas and {format_credit(credit_min)} credit; send it some"
                + ("" if url is None else f" (the faucet at {url} gives once)")
            )

    async def _ask_faucet(self, url: str, credit_min: int) -> None:
        """Ask for a share; again where the faucet is away or busy, unless what was asked for came all the same."""
        for attempt in range(FAUCET_ATTEMPTS):
            try:
                await self.http.post_json(url, {"address": encode_hex(self.address)}, _FaucetAnswer)
            except (Unavailable, RefusedByPeer) as error:
                if await self._is_funded(credit_min):
                    return
                is_for_good = isinstance(error, RefusedByPeer) and error.status != BUSY_STATUS
                if is_for_good or attempt == FAUCET_ATTEMPTS - 1:
                    raise
                await self.rpc.clock.sleep(FAUCET_PAUSE_S)
            else:
                return

    async def _is_funded(self, credit_min: int) -> bool:
        native = await self.rpc.get_balance(self.address)
        credit = await self.contracts.credit.balance_of(self.address)
        return native > 0 and credit + await self.contracts.staking.stake_of(self.address) >= credit_min

    async def ensure_staked(self, service: bytes, amount: int) -> None:
        """Be a member of a service with at least `amount` at stake; what was slashed is for people to put back."""
        staking, credit = self.contracts.staking, self.contracts.credit
        missing = amount - await staking.stake_of(self.address)
        if missing > 0 and await staking.slashed_of(service, self.address) == 0:
            await credit.ensure_allowance(self.sender, staking.address, missing)
            await staking.stake(self.sender, missing)
        if await staking.cap_of(service, self.address) == 0:
            await staking.opt_in(self.sender, service, FULL_CAP_BPS)


def network_domain(descriptor: NetworkDescriptor) -> Domain:
    """Domain of the protocol's signatures on a network."""
    return protocol_domain(descriptor.chain_id, descriptor.contracts.disputes)


def build_fees(config: ChainConfig) -> FeePolicy:
    """What this machine pays for gas."""
    return FeePolicy(fee_max=config.fee_max_gwei * GWEI, tip_max=config.tip_max_gwei * GWEI)


def open_rpc(descriptor: NetworkDescriptor, url: str | None = None) -> Rpc:
    """A client of a network's chain, which knows how deep that may be reorganised."""
    return Rpc(
        url or descriptor.rpc_urls[0], confirmations=descriptor.confirmations, first_block=descriptor.first_block
    )


@asynccontextmanager
async def open_member(
    descriptor: NetworkDescriptor, key: PrivateKey, rpc_url: str | None = None, fees: FeePolicy | None = None
) -> AsyncIterator[Member]:
    """Connect a key to its network."""
    async with HttpClient() as http, open_rpc(descriptor, rpc_url) as rpc:
        sender = Sender(rpc, key, descriptor.chain_id, fees=fees)
        try:
            yield Member(descriptor, key, http, rpc, Contracts(rpc, descriptor.contracts), sender)
        finally:
            await sender.close()
