"""The provider's HTTP door. It translates; every decision is the desk's.

`GET /offer` · `POST /purchases` · `POST /purchases/{digest}/cancel` · `GET /receipts/{counter}/proof` ·
`GET /batches/{index}`.
"""

import msgspec
from aiohttp import web

from deaios.ledger.eip712 import encode_json, sign_struct
from deaios.market.batches import prove_receipt
from deaios.market.channel import RefusedDeposit, RefusedVoucher
from deaios.market.seller.service.desk import Desk
from deaios.market.seller.service.privacy import Privacy, content_type_of, open_body
from deaios.market.seller.store import SellerStore
from deaios.market.terms import Terms
from deaios.market.wire import (
    PURCHASE_BYTES_MAX,
    WIRE_VERSION,
    Admitted,
    BatchAnswer,
    OfferAnswer,
    ProofAnswer,
    build_finished,
    build_outcome,
    build_problem,
    build_tokens,
    decode_cancel,
    encode_line,
)
from deaios.primitives.encoding import decode_decimal, decode_hex, encode_hex
from deaios.primitives.errors import Unavailable
from deaios.primitives.keys import PrivateKey
from deaios.runtime.errors import NotFound
from deaios.runtime.http import build_application, json_response, problem_details, read_body
from deaios.runtime.metrics import Metrics

COUNTER_BITS = 63


class UnavailableProof(Unavailable):
    """The receipt is not in a published batch yet; ask again after the next one."""


class Door:
    """Handlers over one desk."""

    def __init__(
        self, key: PrivateKey, terms: Terms, desk: Desk, store: SellerStore, privacy: Privacy | None = None
    ) -> None:
        self._privacy = privacy
        self._key = key
        self._terms = terms
        self._desk = desk
        self._store = store

    def build_application(self, metrics: Metrics | None = None) -> web.Application:
        """The door as an application to serve."""
        application = build_application(
            "provider", body_bytes_max=PURCHASE_BYTES_MAX, render_error=render_error, metrics=metrics
        )
        application.router.add_get("/offer", self.get_offer)
        application.router.add_post("/purchases", self.purchase)
        application.router.add_post("/purchases/{digest}/cancel", self.cancel)
        application.router.add_get("/receipts/{counter}/proof", self.get_proof)
        application.router.add_get("/batches/{index}", self.get_batch)
        return application

    async def get_offer(self, _request: web.Request) -> web.Response:
        """The current signed offer."""
        offer = await self._desk.fetch_current_offer()
        return json_response(
            OfferAnswer(
                version=WIRE_VERSION,
                offer=dict(encode_json(offer.offer)),
                signature=encode_hex(offer.signature),
                conduct=msgspec.UNSET if self._privacy is None else self._privacy.state(),
            )
        )

    async def purchase(self, request: web.Request) -> web.StreamResponse:
        """Admit papers and stream what comes; a stream that ends without its last line is resumed by asking again."""
        body, answer = open_body(self._privacy, request.headers, await read_body(request))
        run = await self._desk.purchase(body)
        await run.wait_admitted()
        kind = content_type_of(answer, "application/x-ndjson")
        response = web.StreamResponse(headers={"Content-Type": kind, "Cache-Control": "no-store", **answer.headers})
        await response.prepare(request)
        began = len(run.papers.prefix)
        await response.write(answer.seal(encode_line(Admitted(began, self._desk.waiting_count))))
        async for portion in run.follow():
            line = build_tokens(portion.ids, portion.logprobs) if portion.ids else Admitted(began)
            await response.write(answer.seal(encode_line(line)))
        outcome = await run.wait_outcome()
        finished = build_finished(outcome.entry, outcome.violation, outcome.fingerprints)
        await response.write_eof(answer.seal(encode_line(finished)))
        return response

    async def cancel(self, request: web.Request) -> web.Response:
        """End a purchase at the buyer's word."""
        digest = decode_hex(request.match_info["digest"], 32)
        data, answer = open_body(self._privacy, request.headers, await read_body(request))
        body = decode_cancel(data)
        outcome = await self._desk.cancel(digest, body.tokens, decode_hex(body.signature, 65))
        told = answer.seal(msgspec.json.encode(build_outcome(outcome.output_ids, outcome.entry, outcome.fingerprints)))
        return web.Response(body=told, content_type=content_type_of(answer, "application/json"), headers=answer.headers)

    async def get_proof(self, request: web.Request) -> web.Response:
        """Where on chain a receipt is."""
        counter = decode_decimal(request.match_info["counter"], COUNTER_BITS)
        if not 1 <= counter <= self._desk.last_counter:
            raise NotFound(f"receipt {counter} does not exist, the last one is {self._desk.last_counter}")
        row = await self._store.fetch_batch_of(counter)
        if row is None or row.chain_index is None:
            raise UnavailableProof(f"receipt {counter} is not in a published batch yet")
        digests = await self._store.fetch_digests(row.batch.first_counter, row.batch.last_counter)
        proof = prove_receipt(row.batch, row.chain_index, digests, counter)
        digest = digests[counter - row.batch.first_counter]
        return json_response(ProofAnswer(receipt_digest=encode_hex(digest), proof=dict(proof.encode_json())))

    async def get_batch(self, request: web.Request) -> web.Response:
        """A published batch, signed; its receipts are the content of the blob `daCommitment`."""
        index = decode_decimal(request.match_info["index"], COUNTER_BITS)
        row = await self._store.fetch_batch_at(index)
        if row is None:
            raise NotFound(f"no batch {index} was published here")
        return json_response(
            BatchAnswer(
                index=index,
                batch=dict(encode_json(row.batch)),
                signature=encode_hex(sign_struct(self._key, self._terms.protocol, row.batch)),
                transaction=encode_hex(row.transaction_hash),
            )
        )


def render_error(request: web.Request | None, status: int, error: BaseException) -> web.Response:
    """Problem details, with the amount that would do where money was short."""
    if isinstance(error, RefusedVoucher | RefusedDeposit):
        response = json_response(build_problem(status, error, error.needed), status)
        response.content_type = "application/problem+json"
        return response
    return problem_details(request, status, error)
