"""The faucet of a network: gives a new address gas and Credit, once.

The chain is the journal: an address that the faucet ever paid Credit to has had its share, also after a restart. Gas is
sent first and only where it is missing, so a crash in between costs at most one more gas gift. Knows nothing of HTTP.
"""

from dataclasses import dataclass

from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.sender import RefusedOutOfGasMoney, Sender
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Refused, Unavailable
from deaios.primitives.keys import ADDRESS_SIZE, ZERO_ADDRESS, Address
from deaios.runtime.errors import RefusedBusy

GRANTS_AT_ONCE_MAX = 32
GRANTS_MAX = 100_000
"""In one run of the process; the faucet's balance is the other bound."""


class RefusedGrant(Refused):
    """This address gets nothing: it had its share, or it is not an account of a key."""


class UnavailableFaucet(Unavailable):
    """The faucet has run dry."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What an address was given; a hash is None where nothing had to be sent."""

    address: Address
    native_amount: int
    credit_amount: int
    native_hash: bytes | None
    credit_hash: bytes


class Faucet:
    """Gives each address its share once; the sender's key holds the money."""

    def __init__(
        self, sender: Sender, contracts: Contracts, native_amount: int, credit_amount: int, *, first_block: int = 0
    ) -> None:
        self.native_amount = native_amount
        self.credit_amount = credit_amount
        self._sender = sender
        self._contracts = contracts
        self._first_block = first_block
        self._pending: set[Address] = set()
        self._granted = 0

    async def give(self, address: Address, native_amount: int | None = None) -> Grant:
        """Give an address gas and Credit.

        Args:
            address: whom.
            native_amount: wei for this one, where it is not what everybody gets.

        Raises:
            RefusedGrant: it had its share, or is no account of a key.
            RefusedBusy: too many grants at once, or this one is under way.
            UnavailableFaucet: the faucet has run dry.
        """
        if len(address) != ADDRESS_SIZE or address in (ZERO_ADDRESS, self._sender.address):
            raise RefusedGrant(f"{encode_hex(address)} is not an address that can be given anything")
        if address in self._pending:
            raise RefusedBusy(f"a grant to {encode_hex(address)} is under way")
        if len(self._pending) >= GRANTS_AT_ONCE_MAX or self._granted >= GRANTS_MAX:
            raise RefusedBusy(f"{len(self._pending)} grants are under way and {self._granted} were given; ask later")
        self._pending.add(address)
        try:
            grant = await self._give(address, self.native_amount if native_amount is None else native_amount)
        finally:
            self._pending.discard(address)
        self._granted += 1
        return grant

    async def _give(self, address: Address, native_amount: int) -> Grant:
        credit, rpc = self._contracts.credit, self._contracts.rpc
        if await self.has_given(address):
            raise RefusedGrant(f"{encode_hex(address)} had its share already")
        if await rpc.get_code(address):
            raise RefusedGrant(f"{encode_hex(address)} is a contract")
        available, needed = await credit.balance_of(self._sender.address), self.credit_amount * len(self._pending)
        if available < needed:
            raise UnavailableFaucet(f"the faucet has {available} of Credit, the grants under way need {needed}")
        try:
            native_hash: bytes | None = None
            if await rpc.get_balance(address) < native_amount:
                # One block is enough: the Credit comes after it, by the same key.
                sent = await self._sender.send(address, value=native_amount, confirmations=1)
                native_hash = sent.transaction_hash
            receipt = await credit.transfer(self._sender, address, self.credit_amount)
        except RefusedOutOfGasMoney as error:
            raise UnavailableFaucet(f"the faucet has no native coin left: {error}") from error
        return Grant(
            address,
            native_amount if native_hash is not None else 0,
            self.credit_amount,
            native_hash,
            receipt.transaction_hash,
        )

    async def has_given(self, address: Address) -> bool:
        """Did the faucet ever pay Credit to an address?"""
        transfers = await self._contracts.credit.contract.fetch_events(
            "Transfer", from_block=self._first_block, sender=self._sender.address, receiver=address
        )
        return bool(transfers)
