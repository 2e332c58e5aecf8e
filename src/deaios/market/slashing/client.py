"""The slasher: compares what its buyer holds with what is on chain, proves what excludes each other, doubts claims.

Invariants: before anything is sent the chain is asked whether it was done, so a restart repeats nothing; a claim is
doubted only where neither an accepted receipt nor an open purchase explains it. It keeps nothing on disk: openings are
the buyer's, proofs and challenges the chain's; after a restart all are compared again, which reads what is wrong only.
"""

import asyncio
from dataclasses import dataclass, field

from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.rpc import Reverted
from deaios.ledger.client.sender import Sender
from deaios.market.batches import BATCH_BYTES_MAX, InvalidBatch, SignedReceipt, build_batch, decode_batch
from deaios.market.buyer.client.buyer import Buyer
from deaios.market.buyer.client.proofs import GetBytes
from deaios.market.buyer.store import AccountRow
from deaios.market.opening import Opening
from deaios.market.ports import ChainPort, PublishedBatch
from deaios.market.slashing.offences import (
    BatchMismatch,
    DoubleCounter,
    DoubleRequest,
    Offence,
    WrongFee,
    find_batch_offences,
    find_double,
    find_wrong_fee,
    is_claim_unexplained,
)
from deaios.market.terms import Terms
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.primitives.keys import Address
from deaios.runtime.clock import Clock
from deaios.runtime.logs import get_logger

INTERVAL_S = 10.0
INTERVAL_S_MAX = 120.0
"""Longest pause after failures; a challenge stays open much longer."""
TWINS_PER_LOOK = 64
REFUSED_PER_LOOK = 64
BATCHES_PER_LOOK = 16
"""Batches of one provider that one look reads."""
BATCH_ATTEMPTS_MAX = 30
"""Looks after which a batch that cannot be had is passed over: nobody can prove what its leaves are."""

_log = get_logger("slasher")


@dataclass(slots=True)
class SlasherCounts:
    """What was done since the start."""

    proven: int = 0
    challenged: int = 0
    finalized: int = 0
    refused: int = 0
    batches_unread: int = 0


@dataclass(slots=True)
class _Walk:
    """How far one provider's batches were read."""

    next_index: int
    attempts: int = 0


@dataclass(slots=True)
class _Places:
    opening: int = 0
    refused: int = 0
    walks: dict[Address, _Walk] = field(default_factory=dict)


class Slasher:
    """Works for one buyer, with its key; run it beside."""

    def __init__(
        self,
        buyer: Buyer,
        terms: Terms,
        contracts: Contracts,
        sender: Sender,
        chain: ChainPort,
        get_bytes: GetBytes,
        claim_bond: int,
        clock: Clock,
    ) -> None:
        self._buyer = buyer
        self._terms = terms
        self._forks = contracts.forks
        self._credit = contracts.credit
        self._rpc = contracts.rpc
        self._sender = sender
        self._chain = chain
        self._get_bytes = get_bytes
        self._claim_bond = claim_bond
        self._clock = clock
        self._places = _Places()
        self.counts = SlasherCounts()

    async def run(self) -> None:
        """For ever; a chain or store that does not answer is asked again, ever more slowly up to a bound."""
        wait_s = INTERVAL_S
        while True:
            await self._clock.sleep(wait_s)
            try:
                await self.tend()
                wait_s = INTERVAL_S
            except (Unavailable, Refused, Invalid) as error:
                wait_s = min(wait_s * 2, INTERVAL_S_MAX)
                _log.warning("cannot look now", error=str(error), retry_s=wait_s)

    async def tend(self) -> None:
        """One look at everything."""
        await self._walk_openings()
        await self._walk_refused()
        for account in self._buyer.accounts:
            await self._walk_batches(account.provider)
            await self._tend_claim(account)

    async def _walk_openings(self) -> None:
        """Two accepted receipts with one counter."""
        is_done = False
        while not is_done:
            place, twins = await self._buyer.store.fetch_twins_after(self._places.opening, TWINS_PER_LOOK)
            for first, second in twins:
                provider = first.request.provider
                found = find_double(self._terms.protocol, provider, _entry_of(first), _entry_of(second))
                if found is not None:
                    await self._prove(found)
            self._places.opening, is_done = place, len(twins) < TWINS_PER_LOOK

    async def _walk_refused(self) -> None:
        """Receipts that were refused for a fee that nothing allows; the next look goes on where this one ends."""
        for place, opening in await self._buyer.store.fetch_refused_after(self._places.refused, REFUSED_PER_LOOK):
            found = find_wrong_fee(self._terms.protocol, opening)
            if found is not None:
                await self._prove(found)
            self._places.refused = place

    async def _walk_batches(self, provider: Address) -> None:
        """Each settled batch of a provider against the receipts held."""
        walk = self._places.walks.setdefault(provider, _Walk(0))
        count = min(await self._chain.fetch_batch_count(provider), walk.next_index + BATCHES_PER_LOOK)
        while walk.next_index < count:
            published = await self._chain.fetch_batch(provider, walk.next_index)
            if not await self._compare(published):
                walk.attempts += 1
                if walk.attempts < BATCH_ATTEMPTS_MAX:
                    return
                self._pass_over(published, "it cannot be had")
            walk.next_index, walk.attempts = walk.next_index + 1, 0

    async def _compare(self, published: PublishedBatch) -> bool:
        """Prove what a batch excludes; False where its bytes cannot be had now."""
        batch = published.batch
        held = await self._buyer.store.fetch_openings(batch.provider, batch.first_counter, batch.last_counter)
        if not held:
            return True
        try:
            data = await self._get_bytes(batch.da_commitment, BATCH_BYTES_MAX)
        except (Unavailable, Refused) as error:
            _log.info("batch cannot be read", provider=batch.provider.hex(), index=published.index, error=str(error))
            return False
        try:
            provider, entries = await asyncio.to_thread(decode_batch, data)
            if build_batch(provider, entries, batch.previous_root, batch.da_commitment) != batch:
                raise InvalidBatch("the stored bytes give another root")
        except Invalid as error:
            self._pass_over(published, str(error))
            return True
        entries_held = [_entry_of(opening) for opening in held]
        found = find_batch_offences(self._terms.protocol, provider, published.index, entries, entries_held)
        for offence in found:
            await self._prove(offence)
        return True

    def _pass_over(self, published: PublishedBatch, reason: str) -> None:
        self.counts.batches_unread += 1
        provider = published.batch.provider.hex()
        _log.warning("batch is not compared", provider=provider, index=published.index, reason=reason)

    async def _tend_claim(self, account: AccountRow) -> None:
        """Doubt a claim that nothing explains; end a challenge that was not answered in time."""
        challenge = await self._forks.challenge_of(account.channel_id)
        if challenge.deadline:
            if (await self._rpc.fetch_latest()).timestamp >= challenge.deadline:
                await self._finalize(account)
            return
        claimed = (await self._chain.fetch_channel(account.channel_id)).total_claimed
        # Looked up again after the claim was read: see `is_claim_unexplained`.
        state = next(row.state for row in self._buyer.accounts if row.channel_id == account.channel_id)
        if not is_claim_unexplained(claimed, state) or claimed <= await self._forks.shown_up_to(account.channel_id):
            return
        try:
            await self._credit.ensure_allowance(self._sender, self._forks.address, self._claim_bond)
            await self._forks.challenge_claim(self._sender, account.config)
        except Reverted as error:
            self._note_refused(account.provider, error)
            return
        self.counts.challenged += 1
        _log.warning("claim is challenged", provider=account.provider.hex(), claimed=claimed, settled=state.settled)

    async def _finalize(self, account: AccountRow) -> None:
        try:
            await self._forks.finalize_claim(self._sender, account.channel_id)
        except Reverted as error:  # answered, or ended by somebody else meanwhile
            self._note_refused(account.provider, error)
            return
        self.counts.finalized += 1
        _log.warning("claim was not explained and is slashed", provider=account.provider.hex())

    async def _prove(self, offence: Offence) -> None:
        if await self._forks.is_proven(offence.key):
            return
        forks, sender = self._forks, self._sender
        try:
            match offence:
                case DoubleCounter(_, one, two):
                    await forks.prove_double_counter(sender, one.receipt, one.signature, two.receipt, two.signature)
                case DoubleRequest(_, one, two):
                    await forks.prove_double_request(sender, one.receipt, one.signature, two.receipt, two.signature)
                case BatchMismatch(_, entry, index, leaf, path):
                    await forks.prove_batch_mismatch(sender, entry.receipt, entry.signature, index, leaf, path)
                case WrongFee(_, entry, request, offer):
                    await forks.prove_wrong_fee(sender, entry.receipt, entry.signature, request, offer)
        except Reverted as error:  # proven by somebody else meanwhile, or nothing is left to take
            self._note_refused(offence.provider, error)
            return
        self.counts.proven += 1
        _log.warning("offence is proven", provider=offence.provider.hex(), kind=type(offence).__name__)

    def _note_refused(self, provider: Address, error: Reverted) -> None:
        self.counts.refused += 1
        _log.info("contract refused", provider=provider.hex(), reason=error.reason)


def _entry_of(opening: Opening) -> SignedReceipt:
    return SignedReceipt(opening.receipt, opening.receipt_signature)
