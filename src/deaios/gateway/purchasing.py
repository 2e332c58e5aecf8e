"""What the gateway needs from the market, and what it serves.

Protocols with two versions each: the live one and the tests' fake. No I/O here.
"""

import re
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from deaios.compute.logprobs import Ranking
from deaios.compute.masks.service import MaskService
from deaios.compute.records import ModelRecord, encode_record
from deaios.compute.records import record_id as compute_record_id
from deaios.compute.template import ChatTemplate
from deaios.compute.tokenizer import Tokenizer
from deaios.compute.tools import Tool
from deaios.market.batches import BatchProof
from deaios.market.buyer.endpoints import Endpoint
from deaios.market.opening import Opening
from deaios.market.orders import Order
from deaios.primitives.encoding import Json, encode_hex
from deaios.primitives.errors import ConfigError
from deaios.primitives.keys import Address

MODELS_MAX = 256
_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", re.ASCII)


class Delta(Protocol):
    """Sampled ids as they arrive."""

    @property
    def ids(self) -> tuple[int, ...]:
        """At least one id."""

    @property
    def logprobs(self) -> tuple[Ranking, ...] | None:
        """A ranking for each id where the order asked for them; None also where they were lost."""


class Purchase(Protocol):
    """One running purchase: iterate it for deltas, to the end."""

    @property
    def request_digest(self) -> bytes:
        """What names it, for ever."""

    def __aiter__(self) -> AsyncIterator[Delta]:
        """Deltas until the receipt has been checked."""

    async def wait(self) -> Opening:
        """All signed papers, once the purchase has ended.

        Raises:
            Unavailable: it ended without a receipt that is worth anything.
        """

    async def cancel(self) -> None:
        """End the purchase early, for what was received so far; nothing happens where it has ended."""


class Purchasing(Protocol):
    """The buyer: it finds providers, pays, checks every signature and fee, and fails over before the first token."""

    async def purchase(self, order: Order) -> Purchase:
        """Buy.

        Raises:
            Unavailable: no provider answered.
            Refused: no provider offers this.
        """

    async def fetch_opening(self, provider: Address, counter: int) -> Opening | None:
        """The papers of a purchase that this buyer made and still keeps."""

    async def fetch_outcome(self, request_digest: bytes) -> tuple[bool, Opening | None]:
        """Whether a purchase is still open, and its papers once there is a receipt; none where it never began."""

    async def find_purchases(self, order: Order) -> tuple[bool, list[Opening]]:
        """What became of an order that may have been bought before a restart: is one open, and all openings."""

    async def list_endpoints(self, model_record_id: bytes) -> Sequence[Endpoint]:
        """Everybody who sells a model, and what this buyer saw of them."""

    async def fetch_proof(self, opening: Opening, timeout_s: float) -> BatchProof:
        """Where on chain the receipt is; waits until it is there.

        Raises:
            Unavailable: not within the time.
        """


class Render(Protocol):
    """A chat template with its tokenizer."""

    def __call__(self, messages: Sequence[Mapping[str, Json]], tools: Sequence[Tool]) -> tuple[int, ...]:
        """Prompt ids of messages and tools.

        Raises:
            Invalid: the template refuses them.
        """


@dataclass(frozen=True)
class ServedModel:
    """One model that users may ask for.

    Attributes:
        record_id: names it on every signature.
        record: its published record.
        tokenizer: of the record.
        render: messages to prompt ids.
        input_price: most that is paid, smallest units per million prompt tokens; what budgets reserve.
        output_price: the same per million sampled tokens.
        created_s: when it was published, seconds since the epoch.
        owned_by: publisher, for people.
        aliases: further names.
        name: what users call it, and lists show; the record's own name otherwise.
        masks: of the tokenizer.
    """

    record_id: bytes
    record: ModelRecord
    tokenizer: Tokenizer
    render: Render
    input_price: int
    output_price: int
    created_s: int
    owned_by: str
    aliases: tuple[str, ...] = ()
    name: str = ""
    masks: MaskService = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "masks", MaskService(self.tokenizer))

    @classmethod
    def build(
        cls,
        record: ModelRecord,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        input_price: int,
        output_price: int,
        created_s: int,
        owned_by: str,
        aliases: tuple[str, ...] = (),
        name: str = "",
    ) -> "ServedModel":
        """Serve a published record with the tokenizer and template of its files.

        Raises:
            ConfigError: tokenizer or template are not the record's.
        """
        for what, ours, published in (
            ("tokenizer", tokenizer.tokenizer_hash, record.tokenizer_hash),
            ("chat template", template.template_hash, record.template_hash),
        ):
            if ours != published:
                raise ConfigError(
                    f"the {what} of {record.name} hashes to {encode_hex(ours)}, "
                    f"its record says {encode_hex(published)}; fetch the record's own files"
                )
        per_thread = threading.local()  # a template counts its own steps, so no two threads may share one

        def render(messages: Sequence[Mapping[str, Json]], tools: Sequence[Tool]) -> tuple[int, ...]:
            if not hasattr(per_thread, "template"):
                per_thread.template = ChatTemplate(template.source)
            own: ChatTemplate = per_thread.template
            return own.render_ids(messages, tokenizer, tools=tools)

        return cls(
            record_id=compute_record_id(encode_record(record)),
            record=record,
            tokenizer=tokenizer,
            render=render,
            input_price=input_price,
            output_price=output_price,
            created_s=created_s,
            owned_by=owned_by,
            aliases=aliases,
            name=name,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that `model` may say; the first is what lists show."""
        return (self.name or self.record.name, encode_hex(self.record_id), *self.aliases)


class ServedModels:
    """The models of one gateway, in the order in which they are listed; which those are may change.

    Attributes:
        models: as of now.
    """

    def __init__(self, models: tuple[ServedModel, ...]) -> None:
        self.models: tuple[ServedModel, ...] = ()
        self._by_name: dict[str, ServedModel] = {}
        self.replace(models)

    def replace(self, models: tuple[ServedModel, ...]) -> None:
        """Serve these from now on; answers in the making keep theirs.

        Raises:
            ConfigError: too many, or one name twice; the old ones stay.
        """
        if len(models) > MODELS_MAX:
            raise ConfigError(f"{len(models)} models are served, at most {MODELS_MAX} are allowed")
        by_name: dict[str, ServedModel] = {}
        for model in models:
            for name in model.names:
                if not _MODEL_ID.fullmatch(name):
                    raise ConfigError(f"model name {name!r} does not match {_MODEL_ID.pattern}")
                if name in by_name:
                    raise ConfigError(f"two served models are called {name!r}; rename one")
                by_name[name] = model
        self.models, self._by_name = models, by_name

    def find(self, name: str) -> ServedModel | None:
        """The model of that name."""
        return self._by_name.get(name)
