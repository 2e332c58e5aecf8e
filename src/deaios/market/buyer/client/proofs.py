"""Proof that a receipt is under a root on chain, from the provider or, without it, from the stored batch."""

import asyncio
from collections.abc import Awaitable, Callable

from deaios.market.batches import BATCH_BYTES_MAX, BatchProof, prove_receipt, validate_batch, verify_receipt
from deaios.market.buyer.errors import UnavailableProof
from deaios.market.opening import Opening
from deaios.market.ports import ChainPort, PublishedBatch
from deaios.market.receipts import InvalidReceipt
from deaios.market.terms import Terms
from deaios.market.wire import InvalidMessage, ProofAnswer, read_proof
from deaios.primitives.errors import Refused, Unavailable
from deaios.runtime.client import HttpClient, InvalidResponse
from deaios.runtime.clock import Clock

POLL_S = 0.25
POLL_S_MAX = 2.0
REQUEST_S = 5.0

GetBytes = Callable[[bytes, int], Awaitable[bytes]]
"""Fetches stored bytes by id, at most so many."""


class Proofs:
    """Looks receipts up on chain."""

    def __init__(
        self, terms: Terms, chain: ChainPort, http: HttpClient, clock: Clock, get_bytes: GetBytes | None
    ) -> None:
        self._terms = terms
        self._chain = chain
        self._http = http
        self._clock = clock
        self._get_bytes = get_bytes

    async def fetch(self, opening: Opening, timeout_s: float) -> BatchProof:
        """Where on chain a receipt is, waiting until its batch is published.

        Raises:
            UnavailableProof: it is not there within the time.
            InvalidReceipt: the chain holds another receipt under this counter.
        """
        wait_s, last = POLL_S, "the provider has not published it"
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        proof = await self._fetch_once(opening)
                        if proof is not None:
                            return proof
                    except (Unavailable, Refused, InvalidResponse, InvalidMessage) as error:
                        last = str(error)
                    await self._clock.sleep(wait_s)
                    wait_s = min(wait_s * 2, POLL_S_MAX)
        except TimeoutError as error:
            raise UnavailableProof(
                f"receipt {opening.receipt.counter} is not under a root on chain after {timeout_s} s: {last}"
            ) from error

    async def _fetch_once(self, opening: Opening) -> BatchProof | None:
        receipt, provider = opening.receipt, opening.request.provider
        if await self._chain.fetch_last_counter(provider) < receipt.counter:
            return None
        try:
            async with asyncio.timeout(REQUEST_S):
                return await self._ask(opening)
        except (Unavailable, Refused, InvalidResponse, TimeoutError) as error:
            if self._get_bytes is None:
                raise UnavailableProof(f"the provider does not prove it: {error!r}") from error
            return await self._rebuild(opening, self._get_bytes)

    async def _ask(self, opening: Opening) -> BatchProof:
        receipt, provider = opening.receipt, opening.request.provider
        url = f"{opening.offer.url.rstrip('/')}/receipts/{receipt.counter}/proof"
        digest, proof = read_proof(await self._http.get_json(url, ProofAnswer))
        batch = (await self._chain.fetch_batch(provider, proof.index)).batch
        on_chain = BatchProof(
            index=proof.index,
            first_counter=batch.first_counter,
            last_counter=batch.last_counter,
            previous_root=batch.previous_root,
            root=batch.root,
            da_commitment=batch.da_commitment,
            path=proof.path,
        )
        if on_chain != proof or not verify_receipt(proof, receipt.counter, digest):
            raise InvalidResponse(f"{url}: the proof does not lead to the root on chain")
        _validate_leaf(opening, digest)
        return proof

    async def _rebuild(self, opening: Opening, get_bytes: GetBytes) -> BatchProof:
        counter = opening.receipt.counter
        published = await self._find_batch(opening)
        batch = published.batch
        data = await get_bytes(batch.da_commitment, BATCH_BYTES_MAX)
        entries = await asyncio.to_thread(validate_batch, self._terms.protocol, batch, data)
        digests = [entry.digest for entry in entries]
        _validate_leaf(opening, digests[counter - batch.first_counter])
        return prove_receipt(batch, published.index, digests, counter)

    async def _find_batch(self, opening: Opening) -> PublishedBatch:
        """Binary search by counter; the caller knows that the chain has it."""
        provider = opening.request.provider
        low, high = 0, await self._chain.fetch_batch_count(provider) - 1
        while low < high:
            middle = (low + high + 1) // 2
            published = await self._chain.fetch_batch(provider, middle)
            if published.batch.first_counter <= opening.receipt.counter:
                low = middle
            else:
                high = middle - 1
        return await self._chain.fetch_batch(provider, low)


def _validate_leaf(opening: Opening, digest: bytes) -> None:
    if digest != opening.receipt_digest:
        raise InvalidReceipt(
            f"counter {opening.receipt.counter} is 0x{digest.hex()} on chain, the receipt held is "
            f"0x{opening.receipt_digest.hex()}"
        )
