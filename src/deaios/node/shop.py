"""Where an auditor buys: the market's buyer behind `alignment.ports.Shop`."""

from collections.abc import Sequence

from deaios.alignment.evidence import Evidence
from deaios.ledger.structs import Level
from deaios.market.orders import Order
from deaios.node.network import Trade
from deaios.primitives.keys import Address


class Shop:
    """The market's buyer as an auditor uses it: `alignment.ports.Shop`."""

    def __init__(self, trade: Trade) -> None:
        self._trade = trade

    async def list_providers(self, model_record_id: bytes) -> Sequence[Address]:
        """Providers of a model that sell now what an ordinary question can check: levels 0 and 1 are not audited."""
        found = await self._trade.directory.fetch_candidates()
        return [
            candidate.provider
            for candidate in found
            if not candidate.paused
            and candidate.signed_offer.offer.model_record_id == model_record_id
            and candidate.signed_offer.offer.level >= Level.SEEDED
        ]

    async def fetch_level(self, model_record_id: bytes, provider: Address) -> int:
        """The highest level that one of them sells; what ordinary questions ask for where its offer has gone."""
        offers = [item.signed_offer.offer for item in await self._trade.directory.fetch_candidates()]
        found = [item.level for item in offers if (item.provider, item.model_record_id) == (provider, model_record_id)]
        return max(found, default=int(Level.SEEDED))

    async def buy(self, order: Order) -> Evidence:
        """Buy one answer to its end."""
        purchase = await self._trade.buyer.purchase(order)
        async for _delta in purchase:
            pass
        return Evidence(purchase.opening, order.prompt_ids)
