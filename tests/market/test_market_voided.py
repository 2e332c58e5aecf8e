"""Papers that come after their cancel: the buyer has its room back, so nothing of them may ever be charged.

Found by the simulated world: papers captured while their provider was down were sent again later, admitted and billed,
and the buyer, who had been told that nothing was admitted, took the honest provider for a liar.
"""

import asyncio
from contextlib import asynccontextmanager

import pytest

from deaios.ledger.eip712 import encode_json, sign_struct
from deaios.ledger.structs import Cancel
from deaios.market.buyer.client import Buyer, BuyerSettings
from deaios.market.buyer.errors import UnavailableProviders
from deaios.market.seller import store as seller_store
from deaios.market.seller.service import Seller
from deaios.market.wire import CancelBody, OfferAnswer, OutcomeAnswer, encode_papers
from deaios.primitives.encoding import encode_hex
from deaios.primitives.units import CREDIT
from deaios.runtime.client import HttpClient, RefusedByPeer, UnavailablePeer
from deaios.runtime.clock import SystemClock
from deaios.runtime.errors import NotFound, RefusedBusy
from deaios.runtime.http import build_application, json_response, serve


class Till:
    """One provider's journal over several lives, and a client without manners."""

    def __init__(self, kit, journal, http):
        self.kit, self.journal, self.http = kit, journal, http
        self.chain = kit.FakeChain()
        self.chain.put(kit.build_config(), 5 * CREDIT)

    def open(self):
        settings = self.kit.build_settings()
        generator, vault = self.kit.FakeGenerator(), self.kit.FakeVault()
        return Seller(self.kit.SELLER, self.kit.TERMS, settings, self.journal, self.chain, generator, vault)

    async def cancel(self, url, digest, key):
        signature = sign_struct(key, self.kit.TERMS.protocol, Cancel(request_digest=digest, tokens=0))
        body = CancelBody(tokens=0, signature=encode_hex(signature))
        await self.http.post_json(f"{url}/purchases/{encode_hex(digest)}/cancel", body, OutcomeAnswer)

    async def count_lines(self, url, papers):
        return len([line async for line in self.http.stream_lines(f"{url}/purchases", encode_papers(papers))])


async def test_papers_that_come_after_their_cancel_are_refused_also_after_a_restart(kit, journal):
    async with HttpClient() as http:
        till = Till(kit, journal, http)
        async with till.open() as seller, serve(seller.application) as url:
            papers = kit.build_papers(await seller.desk.fetch_current_offer())
            with pytest.raises(RefusedByPeer, match="none will be"):
                await till.cancel(url, papers.request_digest, kit.BUYER)
            with pytest.raises(RefusedByPeer, match="cancelled this request before it came"):
                await till.count_lines(url, papers)
        async with till.open() as seller, serve(seller.application) as url:
            with pytest.raises(RefusedByPeer, match="cancelled this request before it came"):
                await till.count_lines(url, papers)
            assert seller.desk.last_counter == 0


async def test_a_strangers_cancel_stops_nobody(kit, journal):
    async with HttpClient() as http:
        till = Till(kit, journal, http)
        async with till.open() as seller, serve(seller.application) as url:
            papers = kit.build_papers(await seller.desk.fetch_current_offer())
            with pytest.raises(RefusedByPeer, match="none will be"):
                await till.cancel(url, papers.request_digest, kit.build_key("stranger"))
            assert await till.count_lines(url, papers) > 2


async def test_kept_cancels_are_bounded(kit, journal, monkeypatch):
    monkeypatch.setattr(seller_store, "VOIDED_MAX", 3)
    async with HttpClient() as http:
        till = Till(kit, journal, http)
        async with till.open() as seller:
            for number in range(5):
                await seller._store.void(number.to_bytes(32), kit.BUYER.address)
        store = seller_store.SellerStore(journal)
        state = await store.open()
        await store.close()
    assert [int.from_bytes(digest) for digest, _ in state.voided] == [2, 3, 4]


@asynccontextmanager
async def busy_provider(kit, directory, promises):
    """Refuses all papers; promises never to admit them only once the event is set."""
    key, port = kit.build_key("busy"), kit.free_port()
    url = f"http://127.0.0.1:{port}"
    offer = kit.build_offer(key, url, valid_until=SystemClock().now_ms() + 3_600_000)
    application = build_application("busy", body_bytes_max=1 << 20)

    async def get_offer(_request):
        return json_response(
            OfferAnswer(version=1, offer=encode_json(offer.offer), signature=encode_hex(offer.signature))
        )

    async def refuse(_request):
        raise RefusedBusy("busy")

    async def cancel(_request):
        if promises.is_set():
            raise NotFound("no purchase with this request digest was admitted here, and none will be")
        raise UnavailablePeer("the journal does not answer")

    application.router.add_get("/offer", get_offer)
    application.router.add_post("/purchases", refuse)
    application.router.add_post("/purchases/{digest}/cancel", cancel)
    directory.urls[key.address] = url
    async with serve(application, port=port):
        yield


async def test_refused_papers_are_released_only_with_the_providers_promise(kit, tmp_path):
    """A provider that refuses papers and cannot be asked for that promise keeps the room taken."""
    promises = asyncio.Event()
    async with HttpClient() as http:
        directory, chain = kit.FakeDirectory(), kit.FakeChain()
        settings = BuyerSettings(resolve_interval_s=0.02, providers_max=1)
        async with busy_provider(kit, directory, promises):
            path = tmp_path / "buyer.db"
            async with Buyer(kit.BUYER, kit.TERMS, settings, path, chain, directory, http) as buyer:
                with pytest.raises(UnavailableProviders):
                    await buyer.purchase(kit.build_order())
                (account,) = buyer.accounts
                assert account.state.reserved > 0
                promises.set()
                await kit.wait_for(lambda: buyer.accounts[0].state.reserved == 0)
