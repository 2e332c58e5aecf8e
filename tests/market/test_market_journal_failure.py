"""A disk that fails under a provider or a buyer: nothing without a receipt on disk is claimed, and the role ends.

Both were found by the simulated world (a full disk): a provider claimed charges whose receipts were lost with the
process, and a buyer went on for ever with a journal that took nothing any more.
"""

import asyncio

import pytest

from deaios.market.buyer.client import Buyer, BuyerSettings
from deaios.market.seller.service import Seller
from deaios.market.store import UnavailableJournal
from deaios.market.wire import encode_papers
from deaios.primitives.units import CREDIT
from deaios.runtime.client import HttpClient, UnavailablePeer
from deaios.runtime.http import serve


def refuse_writes(store):
    """From now on SQLite itself refuses every write of this journal, as on a disk that became read-only."""
    store._journal._connection.execute("PRAGMA query_only=ON")


async def read_all(stream):
    async for _line in stream:
        pass


async def test_charges_that_are_not_on_disk_are_never_claimed(kit, journal):
    chain = kit.FakeChain()
    chain.put(kit.build_config(), 5 * CREDIT)
    gate = asyncio.Semaphore(0)
    generator = kit.FakeGenerator(gate=gate)
    seller = Seller(kit.SELLER, kit.TERMS, kit.build_settings(), journal, chain, generator, kit.FakeVault())
    await seller.__aenter__()
    async with HttpClient() as http, serve(seller.application) as url:
        papers = kit.build_papers(await seller.desk.fetch_current_offer())
        stream = http.stream_lines(f"{url}/purchases", encode_papers(papers))
        await anext(stream)
        refuse_writes(seller._store)
        for _ in range(16):
            gate.release()
        with pytest.raises(UnavailablePeer):
            await read_all(stream)
        assert await seller.collector.claim() == 0
        with pytest.raises(UnavailableJournal):
            await seller.watch()
    with pytest.raises(UnavailableJournal):
        await seller.__aexit__(None, None, None)
    assert chain.claims == []


async def test_a_buyer_whose_journal_failed_says_so_to_its_role(kit, tmp_path):
    async with HttpClient() as http:
        chain, directory = kit.FakeChain(), kit.FakeDirectory()
        path = tmp_path / "buyer.db"
        async with Buyer(kit.BUYER, kit.TERMS, BuyerSettings(), path, chain, directory, http) as buyer:
            watching = asyncio.create_task(buyer.watch())
            refuse_writes(buyer._store)
            with pytest.raises(UnavailableJournal):
                await buyer.wallet.fetch_account(kit.SELLER.address)
            with pytest.raises(UnavailableJournal, match="started again"):
                await watching
