"""Recounting the money: every holder that the token's own log names, against the supply."""

from dataclasses import dataclass

from deaios.ledger.client.contracts import Contracts
from deaios.primitives.errors import Unavailable
from deaios.primitives.keys import ZERO_ADDRESS, Address

ATTEMPTS = 20


class UnavailableCount(Unavailable):
    """Money moved during every attempt to count it."""


@dataclass(frozen=True, slots=True)
class MoneyCount:
    """Credit in smallest units."""

    holders: int
    held: int
    burned: int
    founded: int

    @property
    def is_conserved(self) -> bool:
        """What is held and what was burned is what was founded."""
        return self.held + self.burned == self.founded


async def count_money(contracts: Contracts, founded: int) -> MoneyCount:
    """Sum the balances of all holders after one block, and what was burned by then.

    Args:
        contracts: the network's.
        founded: the supply at deployment.

    Raises:
        UnavailableCount: the chain was too busy for one consistent count.
    """
    token = contracts.settled.credit.contract
    for _ in range(ATTEMPTS):
        events = await token.fetch_events("Transfer")
        sides = [field.name for field in token.abi.get_event("Transfer").fields if field.is_indexed]
        names = sorted({Address(event.values[side]) for event in events for side in sides} - {ZERO_ADDRESS})
        found = await contracts.credit.fetch_balances(names)
        later = await token.fetch_events("Transfer")
        if len(later) == len(events):
            return MoneyCount(len(names), sum(found.amounts.values()), founded - found.total_supply, founded)
    raise UnavailableCount(f"credit moved during {ATTEMPTS} counts")
