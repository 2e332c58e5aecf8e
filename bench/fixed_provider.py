"""A provider whose engine answers after a fixed delay: `python -m bench.fixed_provider FOLDER DELAY_MS`.

Everything but the engine is the product's: stake, registration, offer, admission, journal, receipts, batches, claims.
It says the same sixteen tokens to everybody, so nobody may audit it; the bench's network has no auditors.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.servers import ANSWER, run_until_orphaned
from deaios.ledger.structs import FinishReason
from deaios.ledger.suite import COMPUTE
from deaios.market.client import LedgerChain
from deaios.market.ports import Assignment, Piece
from deaios.market.seller.service import Seller, SellerSettings
from deaios.node.folder import StateFolder
from deaios.node.keystore import open_keystore
from deaios.node.member import open_member
from deaios.node.network import open_default_model, open_storage, terms_of
from deaios.node.ports import HOST, keep_port
from deaios.runtime.clock import SystemClock
from deaios.runtime.garbage import spare_collector
from deaios.runtime.http import serve
from deaios.runtime.logs import configure_logs

NAME = "provider-1"
STREAMS_MAX = 64
TOKENS = 16


@asynccontextmanager
async def serve_provider(root: str, delay_ms: str) -> AsyncIterator[str]:
    """Stake, register, sell until the block ends."""
    folder, clock = StateFolder(Path(root)), SystemClock()
    configure_logs(NAME, folder.log(NAME), "info")
    descriptor = folder.load_descriptor()
    async with open_member(descriptor, open_keystore(folder).open_key(NAME)) as member:
        stake = descriptor.windows.compute_stake_min
        await member.ensure_funded(stake)
        await member.ensure_staked(COMPUTE, stake)
        files = await open_default_model(member, folder, clock, lambda _text: None)
        tokenizer = files.open_tokenizer()
        ids = tokenizer.encode_plain(ANSWER)
        ids = (ids * TOKENS)[:TOKENS]
        delay_s = int(delay_ms) / 1000

        async def generate(wanted: Assignment) -> AsyncIterator[Piece]:
            await asyncio.sleep(delay_s)
            count = min(TOKENS, wanted.params.max_tokens)
            for place in range(count):
                yield Piece(ids[place], FinishReason.LENGTH if place == count - 1 else None)

        data = folder.role(NAME)
        data.mkdir(parents=True, exist_ok=True)
        port = keep_port(data, 0)
        settings = SellerSettings(
            url=f"http://{HOST}:{port}",
            model_record_id=descriptor.default_model_record_id,
            engine_profile=files.record.replay_profiles[0],
            vocabulary_size=tokenizer.vocabulary_size,
            context_tokens=files.record.context_tokens,
            streams_max=STREAMS_MAX,
            withdraw_delay_min=descriptor.windows.withdraw_delay_min_s,
            batch_deadline_blocks=descriptor.windows.batch_blocks,
        )
        shelf = await open_storage(member, clock)
        chain = LedgerChain(member.contracts, member.sender)
        seller = Seller(
            member.key,
            terms_of(descriptor),
            settings,
            data / "seller.db",
            chain,
            generate,
            shelf.put_bytes,
            clock=clock,
        )
        async with seller, serve(seller.application, HOST, port) as url:
            await member.contracts.identities.ensure_registered(member.sender, url, "provider")
            spare_collector()
            watching = asyncio.create_task(seller.watch())
            try:
                yield url
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(run_until_orphaned(serve_provider(*sys.argv[1:])))
