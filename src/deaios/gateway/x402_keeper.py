"""What a gateway does for its money between requests: claims in batches, watches withdrawals, gives back what it owes.

Invariant: a payer that begins to withdraw takes back only what was not earned, while a round comes every `watch_s` and
claims at once; a withdrawal takes 15 minutes at least.
"""

from collections.abc import Sequence

from deaios.gateway.x402_exact import Counter
from deaios.gateway.x402_terms import PaymentChain
from deaios.gateway.x402_till import Account, Till
from deaios.ledger.client.channels import CLAIMS_MAX
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.runtime.clock import Clock
from deaios.runtime.logs import get_logger

LOOK_AT_ONCE = 100
"""Channels read in one exchange."""
_log = get_logger("gateway")


class Keeper:
    """The rounds."""

    def __init__(
        self, till: Till, counter: Counter, chain: PaymentChain, clock: Clock, *, watch_s: float, claim_s: float
    ) -> None:
        self._till = till
        self._counter = counter
        self._chain = chain
        self._clock = clock
        self._watch_s = watch_s
        self._claim_s = claim_s
        self._claimed_s = clock.monotonic_s()

    async def run(self) -> None:
        """Make rounds for ever; what fails is tried again in the next."""
        while True:
            try:
                await self.make_round(is_claim_due=self._clock.monotonic_s() - self._claimed_s >= self._claim_s)
            except (Unavailable, Refused, Invalid) as error:
                _log.error("payments could not be looked after", error=str(error))
            await self._clock.sleep(self._watch_s)

    async def make_round(self, *, is_claim_due: bool) -> None:
        """Look at every channel; claim what is due, and at once where a payer is leaving."""
        await self._counter.tidy()
        channel_ids = await self._till.list_channels()
        for start in range(0, len(channel_ids), LOOK_AT_ONCE):
            accounts = await self._till.load(channel_ids[start : start + LOOK_AT_ONCE])
            await self._till.look(accounts)
            await self._claim([it for it in accounts if is_claim_due or it.row.chain.withdraw_started_at])
        if is_claim_due:
            self._claimed_s = self._clock.monotonic_s()
            amount = await self._chain.sweep()
            if amount:
                _log.info("was paid what was claimed", amount=amount)

    async def _claim(self, accounts: Sequence[Account]) -> None:
        """Claim what is new, so many in a transaction."""
        due = [account for account in accounts if self._till.claimable(account) is not None]
        for start in range(0, len(due), CLAIMS_MAX):
            batch = due[start : start + CLAIMS_MAX]
            claims = [claim for account in batch if (claim := self._till.build_claim(account)) is not None]
            if claims:
                await self._chain.claim(claims)
                await self._till.look(batch)
                _log.info("claimed", channels=len(claims))
