"""Providers on real sockets, a chain in memory, buyers: for tests of the buyer."""

from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web

from deaios.ledger.eip712 import encode_json
from deaios.market.batches import SignedReceipt
from deaios.market.buyer.client import Buyer, BuyerSettings
from deaios.market.receipts import Link
from deaios.market.seller.service import Seller
from deaios.market.wire import OfferAnswer, build_finished, decode_papers, encode_line
from deaios.primitives.encoding import encode_hex
from deaios.primitives.hashing import ZERO32
from deaios.runtime.client import HttpClient
from deaios.runtime.clock import SystemClock
from deaios.runtime.http import build_application, json_response, read_body, serve


class World:
    """Providers, a chain, a directory and buyers; everything ends with the test."""

    def __init__(self, kit, tmp_path, stack):
        self.kit, self.path, self.stack = kit, tmp_path, stack
        self.chain, self.directory, self.observer = kit.FakeChain(), kit.FakeDirectory(), kit.FakeObserver()
        self.vault = kit.FakeVault()
        self.sellers = {}

    async def add_seller(self, name, generator=None, port=None, **settings):
        kit, key = self.kit, self.kit.build_key(name)
        port = port or kit.free_port()
        url = f"http://127.0.0.1:{port}"
        stack = await self.stack.enter_async_context(AsyncExitStack())
        seller = Seller(
            key,
            kit.TERMS,
            kit.build_settings(url, **settings),
            self.path / f"{name}.db",
            self.chain,
            generator or kit.FakeGenerator(),
            self.vault,
        )
        await stack.enter_async_context(seller)
        await stack.enter_async_context(serve(seller.application, port=port))
        self.directory.urls[key.address] = url
        self.sellers[name] = (seller, stack, port)
        return seller

    async def stop_seller(self, name):
        await self.sellers.pop(name)[1].aclose()

    @asynccontextmanager
    async def buyer(self, **settings):
        defaults = {"resolve_interval_s": 0.02, "first_token_s": 5.0, "idle_s": 5.0}
        async with HttpClient() as http:
            buyer = Buyer(
                self.kit.BUYER,
                self.kit.TERMS,
                BuyerSettings(**(defaults | settings)),
                self.path / "buyer.db",
                self.chain,
                self.directory,
                http,
                observer=self.observer,
                get_bytes=self.get_bytes,
            )
            async with buyer:
                yield buyer

    async def get_bytes(self, blob_id, bytes_max):
        return self.vault.blobs[blob_id]

    async def add_cheater(self, name, answer):
        """A provider whose purchases are answered by `answer(papers, offer, respond)`."""
        kit, key = self.kit, self.kit.build_key(name)
        port = kit.free_port()
        url = f"http://127.0.0.1:{port}"
        offer = kit.build_offer(key, url, valid_until=SystemClock().now_ms() + 3_600_000)
        application = build_application("cheater", body_bytes_max=1 << 20)
        cheater = Cheater(kit, key, offer)

        async def get_offer(_request):
            return json_response(
                OfferAnswer(version=1, offer=encode_json(offer.offer), signature=encode_hex(offer.signature))
            )

        async def purchase(request):
            papers = decode_papers(await read_body(request))
            cheater.papers.append(papers)
            response = web.StreamResponse()
            await response.prepare(request)
            for line in answer(cheater, papers):
                await response.write(encode_line(line))
            return response

        application.router.add_get("/offer", get_offer)
        application.router.add_post("/purchases", purchase)
        await self.stack.enter_async_context(serve(application, port=port))
        self.directory.urls[key.address] = url
        return cheater


class Cheater:
    """Signs whatever its script says."""

    def __init__(self, kit, key, offer):
        self.kit, self.key, self.offer = kit, key, offer
        self.papers = []
        self.charged = 0

    def finish(self, papers, ids, **changes):
        link = changes.pop("link", Link(len(self.papers) - 1, ZERO32, self.charged))
        opening = self.kit.build_opening(papers, self.offer, ids, seller=self.key, link=link, **changes)
        self.charged = opening.receipt.charged_cumulative
        return build_finished(SignedReceipt(opening.receipt, opening.receipt_signature))
