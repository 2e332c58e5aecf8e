"""Which record a model's name means, by the catalogue alone.

Rules, the same for everybody who reads the chain:
- `0x…` of 32 bytes is a record's id.
- `name` means the operator's default model where that is its name; else the newest record of that name by whoever
  published one first. Nobody else can take it over.
- `0xADDRESS/name` means the newest record of that name by that publisher.
"""

from dataclasses import dataclass, field
from typing import Final

from deaios.compute.records import InvalidRecord, ModelRecord, decode_record
from deaios.ledger.client.contracts import Contracts
from deaios.primitives.encoding import InvalidEncoding, decode_hex, encode_hex
from deaios.primitives.errors import Unavailable
from deaios.primitives.keys import Address
from deaios.runtime.logs import get_logger

RECORDS_MAX: Final = 4096
"""Records of a catalogue that are read; later ones are reached by their id."""

_log = get_logger("names")


class UnavailableName(Unavailable):
    """No record of that name or id is in the catalogue."""


@dataclass(frozen=True, slots=True)
class Published:
    """A record as the catalogue holds it."""

    record_id: bytes
    record: ModelRecord
    publisher: Address

    @property
    def full_name(self) -> str:
        """Its name with its publisher, which nobody else can use."""
        return f"{encode_hex(self.publisher)}/{self.record.name}"


@dataclass(slots=True)
class Names:
    """The catalogue's names, read once and then only what is new."""

    contracts: Contracts
    default_record_id: bytes
    _published: list[Published] = field(default_factory=list)
    _count: int = 0

    async def refresh(self) -> None:
        """Read records that were published since.

        Raises:
            UnavailableChain: the chain does not answer.
        """
        catalogue = self.contracts.catalogue
        count = min(RECORDS_MAX, await catalogue.record_count())
        while self._count < count:
            record_id = await catalogue.record_at(self._count)
            data, publisher = await catalogue.record_of(record_id), await catalogue.publisher_of(record_id)
            self._count += 1
            if data is None or publisher is None:
                continue
            try:
                self._published.append(Published(record_id, decode_record(data), publisher))
            except InvalidRecord as error:
                _log.info("record left out", record=encode_hex(record_id), reason=str(error))

    def all(self) -> tuple[Published, ...]:
        """Every record that is known by now, the oldest first."""
        return tuple(self._published)

    def find(self, record_id: bytes) -> Published | None:
        """A record that is known by now."""
        return next((item for item in self._published if item.record_id == record_id), None)

    def resolve(self, name: str) -> Published | None:
        """What a name means, by the rules above."""
        owner, slash, plain = name.rpartition("/")
        if slash:
            return self._newest(plain, owner)
        if name.startswith("0x"):
            try:
                return self.find(decode_hex(name, 32))
            except InvalidEncoding:
                return None
        default = self.find(self.default_record_id)
        if default is not None and default.record.name == name:
            return default
        first = next((item for item in self._published if item.record.name == name), None)
        return None if first is None else self._newest(name, encode_hex(first.publisher))

    def names_of(self, published: Published) -> tuple[str, ...]:
        """Names that mean this record now, the shortest first; its id is always one of them."""
        wanted = (published.record.name, published.full_name)
        means = [name for name in wanted if (found := self.resolve(name)) and found.record_id == published.record_id]
        return (*means, encode_hex(published.record_id))

    def _newest(self, name: str, owner: str) -> Published | None:
        owned = [
            item for item in self._published if item.record.name == name and encode_hex(item.publisher) == owner.lower()
        ]
        return owned[-1] if owned else None


async def find_model(contracts: Contracts, default_record_id: bytes, name: str) -> Published:
    """The record that a name or id means now.

    Raises:
        UnavailableName: none.
    """
    names = Names(contracts, default_record_id)
    await names.refresh()
    found = names.resolve(name)
    if found is None:
        raise UnavailableName(f"the catalogue has no model {name[:120]!r}; `deaios models` lists what there is")
    return found
