"""The models that a gateway can sell: the default one, and whatever staked providers offer.

Looks at the offers now and then, fetches the language of a record that it does not know yet (never the weights), and
lists it under the names that the catalogue gives it. A model that nobody offers any more goes after a while.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from deaios.gateway.purchasing import ServedModel, ServedModels
from deaios.market.directory.client import Directory
from deaios.node.folder import StateFolder
from deaios.node.member import Member
from deaios.node.models import ensure_language
from deaios.node.names import Names, Published
from deaios.node.network import open_storage
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import ConfigError, Invalid, Refused, Unavailable
from deaios.runtime.clock import Clock
from deaios.runtime.logs import get_logger

LOOK_S: Final = 3.0
"""Between looks at the offers."""
RETRY_S: Final = 60.0
"""Before a model that could not be had is tried again."""
FORGET_S: Final = 600.0
"""After its last offer a model stays listed so long: its provider may be back."""
OFFERED_MAX: Final = 64
"""Models beside the default that a gateway keeps tokenizers of, some 50 MB each for large vocabularies."""

_log = get_logger("stock")


@dataclass(slots=True)
class Stock:
    """Keeps `models` in step with the offers."""

    member: Member
    folder: StateFolder
    directory: Directory
    models: ServedModels
    default: ServedModel
    clock: Clock
    _served: dict[bytes, ServedModel] = field(default_factory=dict)
    _offered_at_s: dict[bytes, float] = field(default_factory=dict)
    _retry_at_s: dict[bytes, float] = field(default_factory=dict)

    async def watch(self) -> None:
        """Look at the offers until cancelled."""
        names = Names(self.member.contracts, self.default.record_id)
        while True:
            try:
                await self.look(names)
            except (Unavailable, Refused, Invalid) as error:
                _log.info("offers not read", reason=str(error))
            await self.clock.sleep(LOOK_S)

    async def look(self, names: Names) -> None:
        """Read the offers once and serve what they name."""
        now_s = self.clock.monotonic_s()
        prices = await self._read_offers()
        for record_id in prices:
            self._offered_at_s[record_id] = now_s
        unknown = [item for item in prices if item not in self._served and now_s >= self._retry_at_s.get(item, 0.0)]
        if unknown:
            await names.refresh()
        for record_id in unknown:
            if len(self._served) >= OFFERED_MAX:
                break
            await self._take_in(names, record_id, prices[record_id])
        for record_id in [item for item, at_s in self._offered_at_s.items() if now_s - at_s > FORGET_S]:
            del self._offered_at_s[record_id]
            self._served.pop(record_id, None)
        self._list(names, prices)

    async def _read_offers(self) -> Mapping[bytes, tuple[int, int]]:
        """The highest prices asked for each record but the default: what a budget must reserve."""
        prices: dict[bytes, tuple[int, int]] = {}
        for candidate in await self.directory.fetch_candidates():
            offer = candidate.signed_offer.offer
            if offer.model_record_id == self.default.record_id:
                continue
            known = prices.get(offer.model_record_id, (0, 0))
            prices[offer.model_record_id] = (max(known[0], offer.input_price), max(known[1], offer.output_price))
        return dict(sorted(prices.items()))

    async def _take_in(self, names: Names, record_id: bytes, prices: tuple[int, int]) -> None:
        try:
            published = names.find(record_id)
            if published is None:
                raise ConfigError("its record is not in the catalogue")
            self._served[record_id] = await self._open(published, prices)
            _log.info("model listed", record=encode_hex(record_id), name=published.full_name)
        except (Unavailable, Refused, Invalid, ConfigError) as error:
            self._retry_at_s[record_id] = self.clock.monotonic_s() + RETRY_S
            while len(self._retry_at_s) > OFFERED_MAX * 4:
                del self._retry_at_s[next(iter(self._retry_at_s))]
            _log.info("model left out", record=encode_hex(record_id), reason=str(error))

    async def _open(self, published: Published, prices: tuple[int, int]) -> ServedModel:
        storage = await open_storage(self.member, self.clock)
        tokenizer, template = await ensure_language(self.folder, published.record, storage, _log.info)
        return await asyncio.to_thread(
            ServedModel.build,
            published.record,
            tokenizer,
            template,
            input_price=prices[0],
            output_price=prices[1],
            created_s=self.clock.now_ms() // 1000,
            owned_by=encode_hex(published.publisher),
        )

    def _list(self, names: Names, prices: Mapping[bytes, tuple[int, int]]) -> None:
        """Serve what is known, under the names that it has now: a newer record may have taken one over."""
        listed = []
        for record_id, model in sorted(self._served.items()):
            published = names.find(record_id)
            assert published is not None, "only published records are served"
            first, *others = names.names_of(published)
            input_price, output_price = prices.get(record_id, (model.input_price, model.output_price))
            wanted = replace(
                model,
                name=first,
                aliases=tuple(name for name in others if name != encode_hex(record_id)),
                input_price=input_price,
                output_price=output_price,
            )
            self._served[record_id] = wanted
            listed.append(wanted)
        self.models.replace((self.default, *listed))
