"""The gateway as one HTTP application: keys, models, chat completions, proofs of receipts, blobs.

`build_gateway_application` is what `node` starts. It is handed a buyer, the models, the keys, time and dice; it reads
no configuration.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from deaios.gateway import openai_wire as wire
from deaios.gateway.batch_records import BatchRecords
from deaios.gateway.batch_worker import BatchWorker
from deaios.gateway.batches import BatchesDoor
from deaios.gateway.blobs import BlobDoor, BlobLimits
from deaios.gateway.budgets import Budgets
from deaios.gateway.chat import ChatDoor
from deaios.gateway.completions import CompletionsDoor
from deaios.gateway.desk import Desk, Limits
from deaios.gateway.embeddings import EmbeddingsDoor
from deaios.gateway.endpoints import SUPPORTED_PARAMETERS, EndpointsDoor, price_text
from deaios.gateway.errors import RefusedKey, RefusedModel, render_error
from deaios.gateway.file_records import FileRecords
from deaios.gateway.files import FilesDoor
from deaios.gateway.keys import KEY_CHARS_MAX, KEY_PREFIX, KeyRecord
from deaios.gateway.messages import MessagesDoor
from deaios.gateway.publishing import BlobNetwork
from deaios.gateway.purchasing import Purchasing, ServedModel, ServedModels
from deaios.gateway.reckoning import Reckoner
from deaios.gateway.records import RecordStore
from deaios.gateway.responses import ResponsesDoor
from deaios.gateway.store import KeyStore
from deaios.gateway.usage import UsageDoor
from deaios.gateway.x402 import PaymentDoor, Payments, add_payments
from deaios.market.fields import BODY_BYTES_MAX, InvalidParameter
from deaios.primitives.encoding import InvalidEncoding, decode_decimal, encode_hex
from deaios.primitives.keys import parse_address
from deaios.runtime.clock import Clock
from deaios.runtime.dice import Dice
from deaios.runtime.errors import NotFound
from deaios.runtime.http import METRICS_KEY, build_application, json_response

PROOF_S = 30.0
COUNTER_BITS = 64
_BEARER = "bearer "
KEY_HEADER = "x-api-key"
"""Where Anthropic SDKs put the key."""
_ASKING_KEY: web.RequestKey[KeyRecord] = web.RequestKey("asking_key", KeyRecord)
_Handler = Callable[[web.Request, KeyRecord, str], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class _Door:
    """The routes beside chat."""

    buyer: Purchasing
    models: ServedModels
    keys: KeyStore
    clock: Clock
    payments: PaymentDoor | None

    def keyed(self, handler: _Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """A handler that only a valid key reaches, or a payment where requests may pay for themselves."""

        async def handle(request: web.Request) -> web.StreamResponse:
            if self.payments is not None and self.payments.wants(request):
                return await self.payments.serve(request, handler)
            record, text = self._authenticate(request)
            request[_ASKING_KEY] = record
            return await handler(request, record, text)

        return handle

    def _authenticate(self, request: web.Request) -> tuple[KeyRecord, str]:
        header = request.headers.get("Authorization")
        text = request.headers.get(KEY_HEADER, "") if header is None else header[len(_BEARER) :].strip()
        if (header is not None and header[: len(_BEARER)].lower() != _BEARER) or not text:
            raise RefusedKey("no API key: send the header 'Authorization: Bearer sk-...' or 'x-api-key: sk-...'")
        record = self.keys.find(text) if text.startswith(KEY_PREFIX) and len(text) <= KEY_CHARS_MAX else None
        reason = "this API key is not known here" if record is None else record.refuse_reason(self.clock.now_ms())
        if record is None or reason is not None:
            raise RefusedKey(f"incorrect API key provided: {reason}")
        return record, text

    async def list_models(self, _request: web.Request, key: KeyRecord, _text: str) -> web.Response:
        """`GET /v1/models`."""
        served = [model for model in self.models.models if key.may_use(*model.names)]
        return json_response(wire.ModelList([_describe(model) for model in served]))

    async def show_model(self, request: web.Request, key: KeyRecord, _text: str) -> web.Response:
        """`GET /v1/models/{name}`."""
        name = request.match_info["name"]
        model = self.models.find(name)
        if model is None or not key.may_use(*model.names):
            raise RefusedModel(f"the model {name[:128]!r} does not exist or this key may not use it")
        return json_response(_describe(model))

    async def fetch_proof(self, request: web.Request, _key: KeyRecord, _text: str) -> web.Response:
        """`GET /v1/receipts/{provider}/{counter}/proof`: waits until the receipt's batch is on chain."""
        try:
            provider = parse_address(request.match_info["provider"])
            counter = decode_decimal(request.match_info["counter"], COUNTER_BITS)
        except InvalidEncoding as error:
            raise InvalidParameter("url", f"not a receipt: {error}") from error
        opening = await self.buyer.fetch_opening(provider, counter)
        if opening is None:
            raise NotFound(f"this gateway holds no receipt {counter} of {encode_hex(provider)}")
        proof = await self.buyer.fetch_proof(opening, PROOF_S)
        return json_response({"receiptDigest": encode_hex(opening.receipt_digest), "proof": proof.encode_json()})


def build_gateway_application(
    *,
    network_id: bytes,
    buyer: Purchasing,
    models: ServedModels,
    keys: KeyStore,
    clock: Clock,
    dice: Dice,
    limits: Limits | None = None,
    blobs: BlobNetwork | None = None,
    blob_limits: BlobLimits | None = None,
    records: RecordStore | None = None,
    payments: Payments | None = None,
) -> web.Application:
    """The gateway's HTTP application.

    Args:
        network_id: genesis hash, 32 bytes.
        buyer: who buys; opened and closed by the caller.
        models: what may be asked for.
        keys: who may ask; opened and closed by the caller.
        clock: time.
        dice: randomness of nonces, salts and answer ids.
        limits: bounds; the defaults where None.
        blobs: data availability; without it, there are no routes for blobs.
        blob_limits: bounds of these routes.
        records: what is kept for users; opened and closed by the caller. Without it, there are no routes for responses.
        payments: how requests without a key may pay (x402); without it, they are refused.
    """
    limits, budgets = limits or Limits(), Budgets(keys)
    application = build_application("gateway", body_bytes_max=BODY_BYTES_MAX, render_error=render_error)
    desk = Desk(
        network_id=network_id,
        buyer=buyer,
        models=models,
        budgets=budgets,
        clock=clock,
        dice=dice,
        limits=limits,
        metrics=application[METRICS_KEY],
    )
    chat = ChatDoor(desk)
    paid = None
    if payments is not None:
        metrics = application[METRICS_KEY]
        paid = PaymentDoor(payments, models, keys, budgets, clock, metrics, limits.body_s)
        add_payments(application, paid)
    door = _Door(buyer, models, keys, clock, paid)
    router = application.router
    router.add_post("/v1/chat/completions", door.keyed(chat.complete))
    router.add_post("/v1/completions", door.keyed(CompletionsDoor(desk).complete))
    router.add_post("/v1/embeddings", door.keyed(EmbeddingsDoor(desk).embed))
    messages = MessagesDoor(desk)
    router.add_post("/v1/messages", door.keyed(messages.create))
    router.add_post("/v1/messages/count_tokens", door.keyed(messages.count_tokens))
    router.add_get("/v1/models", door.keyed(door.list_models))
    router.add_get("/v1/models/{name:.+}/endpoints", door.keyed(EndpointsDoor(buyer, models).show))
    router.add_get("/v1/models/{name:.+}", door.keyed(door.show_model))
    router.add_get("/v1/receipts/{provider}/{counter}/proof", door.keyed(door.fetch_proof))

    if records is not None:
        _add_responses(router, door, ResponsesDoor(desk, records))
        worker = BatchWorker(desk, BatchRecords(records), keys, buyer, budgets, clock, dice)
        _add_files(application, door, FileRecords(records), BatchRecords(records), worker, dice)
    if blobs is not None:
        limits_of_blobs, metrics = blob_limits or BlobLimits(), application[METRICS_KEY]
        blob_door = BlobDoor(blobs, budgets, clock=clock, dice=dice, limits=limits_of_blobs, metrics=metrics)
        _add_blobs(application, door, blob_door)
    router.add_get("/v1/usage", door.keyed(UsageDoor(keys, clock).show))

    async def note_rates(request: web.Request, response: web.StreamResponse) -> None:
        key = request.get(_ASKING_KEY)
        if key is not None:
            response.headers.update(desk.rates.describe(key))

    application.on_response_prepare.append(note_rates)
    reckoner = Reckoner(buyer, keys, clock, limits.reckon_s)

    async def reckon(_application: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(reckoner.run(), name="reckoner")
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def close(_application: web.Application) -> None:
        await desk.close()

    application.cleanup_ctx.append(reckon)
    application.on_shutdown.append(close)
    return application


def _add_responses(router: web.UrlDispatcher, door: _Door, responses: ResponsesDoor) -> None:
    router.add_post("/v1/responses", door.keyed(responses.create))
    router.add_post("/v1/responses/input_tokens", door.keyed(responses.count_tokens))
    router.add_get("/v1/responses/{id}", door.keyed(responses.show))
    router.add_delete("/v1/responses/{id}", door.keyed(responses.delete))
    router.add_get("/v1/responses/{id}/input_items", door.keyed(responses.list_items))


def _add_files(
    application: web.Application,
    door: _Door,
    files: FileRecords,
    batches: BatchRecords,
    worker: BatchWorker,
    dice: Dice,
) -> None:
    router, clock = application.router, door.clock
    file_door = FilesDoor(files, clock, dice)
    router.add_post("/v1/files", door.keyed(file_door.create))
    router.add_get("/v1/files", door.keyed(file_door.show_all))
    router.add_get("/v1/files/{id}", door.keyed(file_door.show))
    router.add_get("/v1/files/{id}/content", door.keyed(file_door.read))
    router.add_delete("/v1/files/{id}", door.keyed(file_door.delete))
    router.add_post("/v1/uploads", door.keyed(file_door.begin_upload))
    router.add_post("/v1/uploads/{id}/parts", door.keyed(file_door.add_part))
    router.add_post("/v1/uploads/{id}/complete", door.keyed(file_door.complete_upload))
    router.add_post("/v1/uploads/{id}/cancel", door.keyed(file_door.cancel_upload))
    batch_door = BatchesDoor(batches, files, worker, clock, dice)
    router.add_post("/v1/batches", door.keyed(batch_door.create))
    router.add_get("/v1/batches", door.keyed(batch_door.show_all))
    router.add_get("/v1/batches/{id}", door.keyed(batch_door.show))
    router.add_post("/v1/batches/{id}/cancel", door.keyed(batch_door.cancel))
    working: list[asyncio.Task[None]] = []

    async def begin(_application: web.Application) -> None:
        working.append(asyncio.create_task(worker.run(), name="batches"))

    async def end(_application: web.Application) -> None:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)

    application.on_startup.append(begin)
    application.on_shutdown.append(end)


def _add_blobs(application: web.Application, door: _Door, blobs: BlobDoor) -> None:
    router = application.router
    router.add_post("/blobs", door.keyed(blobs.put))
    router.add_get("/blobs/{id}", door.keyed(blobs.get))
    router.add_get("/blobs/{id}/status", door.keyed(blobs.status))
    router.add_get("/blobs/{id}/proof", door.keyed(blobs.prove))

    async def close(_application: web.Application) -> None:
        await blobs.close()

    application.on_shutdown.append(close)


def _describe(model: ServedModel) -> wire.Model:
    return wire.Model(
        id=model.names[0],
        created=model.created_s,
        owned_by=model.owned_by,
        context_length=model.record.context_tokens,
        pricing=wire.Pricing(price_text(model.input_price), price_text(model.output_price)),
        record_id=encode_hex(model.record_id),
        supported_parameters=SUPPORTED_PARAMETERS,
    )
