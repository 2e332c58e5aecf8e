"""Client of `Sponsorship`, and of the debts that `Channels` keeps for it."""

from dataclasses import dataclass
from enum import IntEnum

from deaios.ledger.client.bound import BoundContract
from deaios.ledger.client.channels import Channels
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.records import TransactionReceipt
from deaios.ledger.sponsorship import SponsorTerms
from deaios.primitives.keys import Address


class Phase(IntEnum):
    """What became of a backing."""

    NONE = 0
    PROMISED = 1
    BACKED = 2
    RECALLED = 4


@dataclass(frozen=True, slots=True)
class Loan:
    """A newcomer's sponsorship; the zero address and `Phase.NONE` where there is none. `until` in Unix seconds."""

    sponsor: Address
    backing: int
    until: int
    phase: Phase


@dataclass(frozen=True, slots=True)
class Debt:
    """Whom a receiver pledged its earnings to last, and what of that is left to repay."""

    creditor: Address
    left: int


class Sponsorship:
    """Lent first stakes."""

    def __init__(self, rpc: Rpc, address: Address, channels: Channels) -> None:
        self.contract = BoundContract(rpc, "Sponsorship", address)
        self.address = address
        self._channels = channels.contract

    async def loan_of(self, newcomer: Address) -> Loan:
        """A newcomer's sponsorship."""
        sponsor, backing, until, phase = await self.contract.read("loanOf", newcomer)
        return Loan(sponsor, backing, until, Phase(phase))

    async def debt_of(self, receiver: Address) -> Debt:
        """What a receiver owes from its earnings."""
        return Debt(*await self._channels.read("debtOf", receiver))

    async def pledge_nonce(self, receiver: Address) -> int:
        """Nonce of a receiver's next pledge."""
        return int(await self._channels.read_one("pledgeNonce", receiver))

    async def sponsor(
        self, sender: Sender, newcomer: Address, terms: SponsorTerms, deadline: int, signature: bytes
    ) -> TransactionReceipt:
        """Lend, as the sponsor, who has approved seed and backing."""
        assert terms.sponsor == sender.address
        arguments = (newcomer, terms.seed, terms.backing, terms.owed, terms.term_s, deadline, signature)
        return await self.contract.send(sender, "sponsor", *arguments)

    async def back(self, sender: Sender, newcomer: Address) -> TransactionReceipt:
        """Have the backing delegated, once the seed is staked; anyone may send it."""
        return await self.contract.send(sender, "back", newcomer)

    async def recall(self, sender: Sender, newcomer: Address) -> TransactionReceipt:
        """Take the backing back after the term, as the sponsor."""
        return await self.contract.send(sender, "recall", newcomer)

    async def collect(self, sender: Sender, newcomer: Address) -> TransactionReceipt:
        """Hand the sponsor what has unbonded; anyone may send it."""
        return await self.contract.send(sender, "collect", newcomer)
