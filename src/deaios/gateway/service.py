"""The gateway as one HTTP application: keys, models, chat completions, proofs of receipts, blobs.

`build_gateway_application` is what `node` starts. It is handed a buyer, the models, the keys, time and dice; it reads
no configuration.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from deaios.gateway import openai_wire as wire
from deaios.gateway.blobs import BlobDoor, BlobLimits
from deaios.gateway.budgets import Budgets
from deaios.gateway.chat import ChatDoor, Limits
from deaios.gateway.errors import RefusedKey, RefusedModel, render_error
from deaios.gateway.keys import KEY_CHARS_MAX, KEY_PREFIX, KeyRecord
from deaios.gateway.publishing import BlobNetwork
from deaios.gateway.purchasing import Purchasing, ServedModel, ServedModels
from deaios.gateway.reckoning import Reckoner
from deaios.gateway.store import KeyStore
from deaios.market.chat import BODY_BYTES_MAX, InvalidParameter
from deaios.primitives.encoding import InvalidEncoding, decode_decimal, encode_hex
from deaios.primitives.keys import parse_address
from deaios.primitives.units import CREDIT_DECIMALS
from deaios.runtime.clock import Clock
from deaios.runtime.dice import Dice
from deaios.runtime.errors import NotFound
from deaios.runtime.http import METRICS_KEY, build_application, json_response

PROOF_S = 30.0
COUNTER_BITS = 64
PRICE_DECIMALS = CREDIT_DECIMALS + 6
"""Prices are per million tokens."""
_BEARER = "bearer "
_Handler = Callable[[web.Request, KeyRecord, str], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class _Door:
    """The routes beside chat."""

    buyer: Purchasing
    models: ServedModels
    keys: KeyStore
    clock: Clock

    def keyed(self, handler: _Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """A handler that only a valid key reaches."""

        async def handle(request: web.Request) -> web.StreamResponse:
            return await handler(request, *self._authenticate(request))

        return handle

    def _authenticate(self, request: web.Request) -> tuple[KeyRecord, str]:
        header = request.headers.get("Authorization", "")
        text = header[len(_BEARER) :].strip()
        if header[: len(_BEARER)].lower() != _BEARER or not text:
            raise RefusedKey("no API key: send the header 'Authorization: Bearer sk-...'")
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
    """
    limits, budgets = limits or Limits(), Budgets(keys)
    application = build_application("gateway", body_bytes_max=BODY_BYTES_MAX, render_error=render_error)
    chat = ChatDoor(
        network_id=network_id,
        buyer=buyer,
        models=models,
        budgets=budgets,
        clock=clock,
        dice=dice,
        limits=limits,
        metrics=application[METRICS_KEY],
    )
    door = _Door(buyer, models, keys, clock)
    router = application.router
    router.add_post("/v1/chat/completions", door.keyed(chat.complete))
    router.add_get("/v1/models", door.keyed(door.list_models))
    router.add_get("/v1/models/{name:.+}", door.keyed(door.show_model))
    router.add_get("/v1/receipts/{provider}/{counter}/proof", door.keyed(door.fetch_proof))

    if blobs is not None:
        limits_of_blobs, metrics = blob_limits or BlobLimits(), application[METRICS_KEY]
        blob_door = BlobDoor(blobs, budgets, clock=clock, dice=dice, limits=limits_of_blobs, metrics=metrics)
        _add_blobs(application, door, blob_door)
    reckoner = Reckoner(buyer, keys, clock, limits.reckon_s)

    async def reckon(_application: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(reckoner.run(), name="reckoner")
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def close(_application: web.Application) -> None:
        await chat.close()

    application.cleanup_ctx.append(reckon)
    application.on_shutdown.append(close)
    return application


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
        id=model.record.name,
        created=model.created_s,
        owned_by=model.owned_by,
        context_length=model.record.context_tokens,
        pricing=wire.Pricing(_price_text(model.input_price), _price_text(model.output_price)),
        record_id=encode_hex(model.record_id),
    )


def _price_text(price: int) -> str:
    """Credits per token from smallest units per million tokens, exactly."""
    digits = str(price).rjust(PRICE_DECIMALS + 1, "0")
    whole, part = digits[:-PRICE_DECIMALS], digits[-PRICE_DECIMALS:].rstrip("0")
    return f"{whole}.{part}" if part else whole
