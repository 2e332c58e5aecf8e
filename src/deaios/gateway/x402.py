"""x402 at the doors that sell tokens: a request without an API key may pay for itself.

Without a payment it is answered 402 with what it would cost at most; with one it is served like a key's. Stock x402 v2
clients pay by `batch-settlement` (a channel to this gateway, which pays any provider: one deposit for all) or `exact`.
This gateway is its own facilitator: it verifies by itself and sends the transactions.

Nothing is buffered: a stream's PAYMENT-RESPONSE goes out with its head, when the price is not known yet, and says that
the quote was charged; what the answer costs less is the payer's credit (`x402_till`), and the stream's last event has
the provider's receipt with the exact fee. An answer that fails is not charged.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from deaios.gateway.budgets import Budgets
from deaios.gateway.errors import MESSAGE_DOORS, build_message_error
from deaios.gateway.keys import KeyRecord
from deaios.gateway.messages_wire import MessageErrorAnswer
from deaios.gateway.openai_wire import ErrorAnswer, ErrorBody
from deaios.gateway.purchasing import ServedModels
from deaios.gateway.store import KeyStore
from deaios.gateway.telling import ANSWER_FAILED, BODY_READ
from deaios.gateway.x402_exact import Counter, Receipt
from deaios.gateway.x402_keeper import Keeper
from deaios.gateway.x402_quote import READERS, quote
from deaios.gateway.x402_store import PaymentStore
from deaios.gateway.x402_terms import PaymentChain, TillTerms
from deaios.gateway.x402_till import Account, Admission, RefusedVoucher, Till
from deaios.market import x402
from deaios.market.x402 import Accepted, ChannelPayment, InvalidPayment, Payment, Required, Requirements, Settled
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import DeaiosError
from deaios.primitives.keys import checksum_address
from deaios.runtime.clock import Clock
from deaios.runtime.http import json_response, read_body
from deaios.runtime.metrics import Metrics

DEPOSIT_QUOTES = 10
"""How many requests a deposit is advised to cover, as x402's own servers advise."""
QUOTES_AT_ONCE = 8
"""Bodies of strangers that are read and rendered at a time, to tell what they cost."""
VOUCHERS_PATH = "/v1/x402/vouchers"
_Handler = Callable[[web.Request, KeyRecord, str], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Payments:
    """What a gateway needs to be paid by x402.

    Attributes:
        terms: what it asks.
        store: its journal; opened and closed by the caller.
        chain: where the money is.
        has_channels: whether x402's contracts lie on that chain; without them there is only `exact`.
        watch_s: between looks at channels for withdrawals.
        claim_s: between claims of what was earned; each costs gas.
    """

    terms: TillTerms
    store: PaymentStore
    chain: PaymentChain
    has_channels: bool = True
    watch_s: float = 10.0
    claim_s: float = 60.0


@dataclass(slots=True)
class _Paid:
    """A payment on its way through a request."""

    admission: Admission | None = None
    receipt: Receipt | None = None


DOOR_KEY: web.AppKey["PaymentDoor"] = web.AppKey("x402_door")
"""Where an application keeps its door."""
_PAID: web.RequestKey[_Paid] = web.RequestKey("x402_paid", _Paid)


class PaymentDoor:
    """Requests that pay for themselves."""

    def __init__(
        self,
        payments: Payments,
        models: ServedModels,
        keys: KeyStore,
        budgets: Budgets,
        clock: Clock,
        metrics: Metrics,
        body_s: float,
    ) -> None:
        terms, store, chain = payments.terms, payments.store, payments.chain
        self._payments = payments
        self._models = models
        self._body_s = body_s
        self._quoting = asyncio.Semaphore(QUOTES_AT_ONCE)
        self.till = Till(terms, store, keys, budgets, chain, clock)
        self.counter = Counter(terms, store, keys, budgets, chain, clock)
        self.keeper = Keeper(self.till, self.counter, chain, clock, watch_s=payments.watch_s, claim_s=payments.claim_s)
        self._outcomes = metrics.counter("gateway_x402_requests_total", "Requests that paid", ("scheme", "outcome"))

    def wants(self, request: web.Request) -> bool:
        """Is this a request that shows no key, at a door that can be paid?"""
        has_key = "Authorization" in request.headers or "x-api-key" in request.headers
        return not has_key and request.path in READERS

    async def serve(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Have a request answered once it is paid for, or say what it costs."""
        body = await read_body(request, self._body_s)
        request[BODY_READ] = body
        async with self._quoting:
            price = max(1, self._payments.terms.price(await quote(request.path, body, self._models)))
        header = request.headers.get(x402.SIGNATURE_HEADER)
        if header is None:
            return self._ask(request, price, InvalidPayment(x402.PAYMENT_REQUIRED, "payment required"))
        try:
            payment = x402.decode_payment(header)
            if isinstance(payment.body, ChannelPayment) and payment.body.refund is not None:
                return await self._refund(request, payment.body)
            self._match(payment.accepted, price)
            return await self._serve_paid(request, handler, payment, price, body)
        except InvalidPayment as refusal:
            self._outcomes.labels("any", "refused").inc()
            return self._ask(request, price, refusal)

    async def _serve_paid(
        self, request: web.Request, handler: _Handler, payment: Payment, price: int, body: bytes
    ) -> web.StreamResponse:
        if isinstance(payment.body, ChannelPayment):
            admission = await self.till.admit(payment.body, price, body)
            request[_PAID] = _Paid(admission=admission)
            try:
                return await handler(request, admission.key, admission.account.key_text)
            finally:
                self.till.end(admission)
        receipt = await self.counter.take(payment.body, max(price, self._payments.terms.payment_min))
        request[_PAID] = _Paid(receipt=receipt)
        is_served: bool | None = None
        try:
            response = await handler(request, receipt.key, receipt.key_text)
        except DeaiosError:
            is_served = False
            raise
        else:
            if isinstance(response, web.Response):
                is_served = response.status < web.HTTPBadRequest.status_code
            elif request.get(ANSWER_FAILED):
                is_served = False
            return response
        finally:
            # Shielded: a client that goes away must not keep its payment's end from being written.
            await asyncio.shield(self.counter.end(receipt, is_served=is_served))

    async def note_response(self, request: web.Request, response: web.StreamResponse) -> None:
        """Say at an answer's head what became of its payment."""
        paid = request.get(_PAID)
        if paid is None:
            return
        is_good = response.status < web.HTTPBadRequest.status_code
        if paid.admission is not None:
            is_stream = is_good and not isinstance(response, web.Response)
            settled = await self._describe_charge(paid.admission, is_stream=is_stream)
            scheme = x402.CHANNEL_SCHEME
        else:
            assert paid.receipt is not None
            settled = self._describe_payment(paid.receipt, is_good=is_good)
            scheme = x402.EXACT_SCHEME
        self._outcomes.labels(scheme, "served" if is_good else "failed_provider").inc()
        response.headers[x402.RESPONSE_HEADER] = x402.encode_header(settled)
        response.headers["Access-Control-Expose-Headers"] = x402.EXPOSED_HEADERS
        response.headers.setdefault("Cache-Control", "private")

    async def _describe_charge(self, admission: Admission, *, is_stream: bool) -> Settled:
        account, deposit = admission.account, admission.deposit
        extra: dict[str, Any] = {}  # Any: JSON
        if admission.is_window:
            extra["channelState"] = self._state(account)
        else:
            charged = await self.till.note_head(admission, is_stream=is_stream)
            extra |= {"chargedAmount": str(charged), "channelState": self._state(account)}
        return Settled(
            success=True,
            transaction="" if deposit is None else encode_hex(deposit[0]),
            network=self._payments.terms.network,
            payer=checksum_address(admission.payer),
            amount="" if deposit is None else str(deposit[1]),
            extra=extra,
        )

    def _describe_payment(self, receipt: Receipt, *, is_good: bool) -> Settled:
        return Settled(
            success=True,
            transaction=encode_hex(receipt.transaction),
            network=self._payments.terms.network,
            payer=checksum_address(receipt.payer),
            amount=str(receipt.payment.authorization.value),
            extra=None if is_good else {"state": "owed"},
        )

    # Without an answer

    async def show_price(self, request: web.Request) -> web.Response:
        """`GET` at a paid route: what stock clients probe before a refund, and how they ask for one."""
        header = request.headers.get(x402.SIGNATURE_HEADER)
        if header is None:
            return self._ask(request, 1, InvalidPayment(x402.PAYMENT_REQUIRED, "payment required"))
        try:
            payment = x402.decode_payment(header)
            if not isinstance(payment.body, ChannelPayment) or payment.body.refund is None:
                raise InvalidPayment(x402.PAYLOAD_TYPE, "only refunds are asked for with GET")
            return await self._refund(request, payment.body)
        except InvalidPayment as refusal:
            return self._ask(request, 1, refusal)

    async def take_voucher(self, request: web.Request) -> web.Response:
        """`POST /v1/x402/vouchers`: a higher voucher, or a deposit, while answers are under way."""
        try:
            payment = x402.decode_payment(request.headers.get(x402.SIGNATURE_HEADER, ""))
            if not isinstance(payment.body, ChannelPayment) or payment.body.refund is not None:
                raise InvalidPayment(x402.PAYLOAD_TYPE, "a voucher or a deposit is expected")
            self._match(payment.accepted, payment.accepted.amount)
            account = await self.till.raise_voucher(payment.body)
        except InvalidPayment as refusal:
            return self._ask(request, 1, refusal)
        return json_response(self._state(account))

    async def _refund(self, request: web.Request, payment: ChannelPayment) -> web.Response:
        terms = self._payments.terms
        payer = checksum_address(payment.config.payer)
        try:
            account, transaction, amount = await self.till.refund(payment)
        except RefusedVoucher:
            raise
        except InvalidPayment as refusal:
            failed = Settled(False, "", terms.network, payer, error_reason=refusal.reason)
            answer = self._ask(request, 1, refusal)
            answer.headers[x402.RESPONSE_HEADER] = x402.encode_header(failed)
            return answer
        state = self._state(account)
        settled = Settled(
            True, encode_hex(transaction), terms.network, payer, str(amount), extra={"channelState": state}
        )
        headers = {x402.RESPONSE_HEADER: x402.encode_header(settled)}
        return json_response({"message": "refunded", "amount": str(amount), "channel": state}, headers=headers)

    def _match(self, accepted: Accepted, price: int) -> None:
        terms = self._payments.terms
        wanted = max(price, terms.payment_min) if accepted.scheme == x402.EXACT_SCHEME else price
        is_offered = accepted.scheme == x402.EXACT_SCHEME or self._payments.has_channels
        found = (accepted.network, accepted.asset, accepted.pay_to, accepted.amount)
        if not is_offered or found != (terms.network, terms.token, terms.receiver, wanted):
            raise InvalidPayment(x402.NO_MATCH, "the payment meets none of the requirements that are offered here")

    def _ask(self, request: web.Request, price: int, refusal: InvalidPayment) -> web.Response:
        """The 402."""
        required = Required(
            x402_version=x402.VERSION,
            error=refusal.reason if refusal.reason != x402.PAYMENT_REQUIRED else None,
            accepts=self._list_requirements(price, refusal),
            resource=x402.Resource(str(request.url), "Tokens of a language model", "application/json"),
        )
        headers = {
            x402.REQUIRED_HEADER: x402.encode_header(required),
            "Access-Control-Expose-Headers": x402.EXPOSED_HEADERS,
            "Cache-Control": "no-store",
        }
        status = 400 if refusal.reason == x402.INVALID_PAYLOAD else 402
        if request.path in MESSAGE_DOORS:
            return json_response(MessageErrorAnswer(build_message_error(status, refusal)), status, headers)
        said = ErrorBody(str(refusal), "payment_required", None, refusal.reason)
        return json_response(ErrorAnswer(said), status, headers)

    def _list_requirements(self, price: int, refusal: InvalidPayment) -> list[Requirements]:
        terms = self._payments.terms
        token = {"name": terms.token_name, "version": terms.token_version, "assetTransferMethod": "eip3009"}
        found = []
        if self._payments.has_channels:
            extra: dict[str, Any] = token | {  # Any: JSON
                "receiverAuthorizer": checksum_address(terms.receiver),
                "withdrawDelay": terms.withdraw_delay,
                "minDeposit": str(max(terms.deposit_min, DEPOSIT_QUOTES * price)),
            }
            if isinstance(refusal, RefusedVoucher) and refusal.account is not None:
                extra |= self._correct(refusal, refusal.account)
            found.append(self._require(x402.CHANNEL_SCHEME, price, extra))
        found.append(self._require(x402.EXACT_SCHEME, max(price, terms.payment_min), dict(token)))
        return found

    def _require(self, scheme: str, price: int, extra: dict[str, Any]) -> Requirements:
        terms = self._payments.terms
        asset, receiver = checksum_address(terms.token), checksum_address(terms.receiver)
        return Requirements(scheme, terms.network, str(price), asset, receiver, terms.timeout_s, extra)

    def _correct(self, refusal: RefusedVoucher, account: Account) -> dict[str, Any]:
        """Where the channel is, for a payer that lost count; its own last signature proves it."""
        row = account.row
        extra: dict[str, Any] = {"channelState": self._state(account)}
        if row.signature:
            extra["voucherState"] = {
                "signedMaxClaimable": str(row.signed),
                "signature": encode_hex(row.signature),
            }
        if refusal.needed is not None:
            extra["needed"] = str(refusal.needed)
        return extra

    def _state(self, account: Account) -> dict[str, Any]:
        row, earned = account.row, self.till.earned(account)
        return {
            "channelId": encode_hex(row.channel_id),
            "balance": str(row.chain.balance),
            "totalClaimed": str(row.chain.total_claimed),
            "withdrawRequestedAt": row.chain.withdraw_started_at,
            "refundNonce": str(row.chain.refund_nonce),
            "chargedCumulativeAmount": str(row.charged),
            "earnedCumulativeAmount": str(earned),
            "signedMaxClaimable": str(row.signed),
            "nextSequence": str(account.seen.highest + 1),
        }


def add_payments(application: web.Application, door: PaymentDoor) -> None:
    """The routes and rounds of a gateway that is paid by x402."""
    application[DOOR_KEY] = door
    router = application.router
    for path in READERS:
        router.add_get(path, door.show_price)
    router.add_post(VOUCHERS_PATH, door.take_voucher)
    application.on_response_prepare.append(door.note_response)
    rounds: list[asyncio.Task[None]] = []

    async def begin(_application: web.Application) -> None:
        rounds.append(asyncio.create_task(door.keeper.run(), name="payments"))

    async def end(_application: web.Application) -> None:
        for task in rounds:
            task.cancel()
        await asyncio.gather(*rounds, return_exceptions=True)

    application.on_startup.append(begin)
    application.on_shutdown.append(end)
