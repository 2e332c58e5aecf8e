"""Gas money for the keys of one folder on a foreign chain: topped up by the operator, within a budget for each run.

Knows the folder's own keys only; a key that has nothing yet asks at the operator's counter (`node.office`).
"""

import asyncio

from deaios.ledger.client.fees import FeePolicy, fetch_fee
from deaios.ledger.client.rpc import BATCH_MAX
from deaios.ledger.client.sender import Sender
from deaios.ledger.records import read_quantity
from deaios.node.folder import StateFolder
from deaios.node.foreign import GRANT_GAS, OPERATOR, ForeignChain
from deaios.node.keystore import Keystore
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.primitives.keys import Address
from deaios.runtime.clock import Clock
from deaios.runtime.logs import get_logger

INTERVAL_S = 3.0
RETRY_S = 15.0
REFILL_DIVISOR = 2
"""A key is topped up when it has less than this part of a grant at the fee of now."""

_log = get_logger("operator")


class GasPurse:
    """The budget, and who gets of it.

    Attributes:
        left: wei of the budget that are left.
    """

    def __init__(
        self,
        folder: StateFolder,
        keystore: Keystore,
        chain: ForeignChain,
        sender: Sender,
        fees: FeePolicy,
        budget: int,
        clock: Clock,
    ) -> None:
        self.left = budget
        self._folder = folder
        self._keystore = keystore
        self._chain = chain
        self._sender = sender
        self._fees = fees
        self._clock = clock
        self._addresses: dict[str, Address] = {}

    async def find_grant(self, address: Address) -> int:
        """Wei for a newcomer: for the folder's own keys within the budget, for strangers none."""
        own = await self._list_own()
        return min(self._chain.gas_grant_wei, self.left) if address in own.values() else 0

    def spend(self, amount: int) -> None:
        """Note what was given at the counter."""
        self.left -= amount

    async def run(self) -> None:
        """Look after the keys for ever, once the network is founded; what fails is tried again."""
        while True:
            pause = INTERVAL_S
            try:
                if self._folder.descriptor_path.exists():
                    await self.top_up()
            except (Unavailable, Refused, Invalid) as error:
                _log.error("gas money was not handed out", error=str(error))
                pause = RETRY_S
            await self._clock.sleep(pause)

    async def top_up(self) -> int:
        """Give every own key that runs low what a grant is at the fee of now.

        Returns:
            How many were given something.

        Raises:
            RefusedOutOfGasMoney: the operator's key has too little itself.
            UnavailableChain: it cannot be asked.
        """
        own = await self._list_own()
        target = GRANT_GAS * await fetch_fee(self._sender.rpc, self._fees)
        given = 0
        for name, balance in (await self._fetch_balances(own)).items():
            if not 0 < balance < target // REFILL_DIVISOR:  # who has nothing yet asks at the counter
                continue
            amount = target - balance
            if amount > self.left:
                _log.error("the gas budget is spent", name=name, left=self.left, wanted=amount)
                continue
            self.left -= amount
            await self._sender.send(own[name], value=amount, confirmations=1)
            given += 1
            _log.info("gas money", name=name, address=encode_hex(own[name]), amount=amount, left=self.left)
        return given

    async def _list_own(self) -> dict[str, Address]:
        """Addresses of the folder's keys by name, but the operator's; each is opened once."""
        for name in self._keystore.names():
            if name != OPERATOR and name not in self._addresses:
                self._addresses[name] = (await asyncio.to_thread(self._keystore.open_key, name)).address
        return self._addresses

    async def _fetch_balances(self, own: dict[str, Address]) -> dict[str, int]:
        names = list(own)
        balances: dict[str, int] = {}
        for start in range(0, len(names), BATCH_MAX):
            part = names[start : start + BATCH_MAX]
            answers = await self._sender.rpc.batch(
                [("eth_getBalance", [encode_hex(own[name]), "latest"]) for name in part]
            )
            balances |= {name: read_quantity(item, "balance") for name, item in zip(part, answers, strict=True)}
        return balances
