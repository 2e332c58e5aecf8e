"""Recounting the money: every holder that the token's own log names, against the supply."""

from dataclasses import dataclass

from deaios.ledger.client.contracts import Contracts
from deaios.primitives.keys import ZERO_ADDRESS, Address


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
    """Sum the balances of all holders at one block, and what was sent to nobody."""
    block = await contracts.rpc.block_number()
    token = contracts.credit.contract
    events = await token.fetch_events("Transfer", to_block=block)
    sides = [key for key in events[0].values if key not in ("amount", "value")] if events else []
    holders: set[Address] = set()
    burned = 0
    for event in events:
        sender, receiver = (Address(event.values[side]) for side in sides)
        holders |= {sender, receiver} - {ZERO_ADDRESS}
        if receiver == ZERO_ADDRESS:
            burned += int(next(value for key, value in event.values.items() if key not in sides))
    held = 0
    for holder in sorted(holders):
        held += int(await token.read_one("balanceOf", holder, block=block))
    return MoneyCount(len(holders), held, burned, founded)
