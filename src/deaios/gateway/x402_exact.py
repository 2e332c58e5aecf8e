"""x402 `exact`: one signed transfer pays for one request, taken on the chain before anything is served.

What is quoted is what is charged: an answer that comes out shorter gives nothing back; that is the scheme. What is not
served goes back whole, by a transfer of the gateway's own whose EIP-3009 nonce follows from the payment's, so that the
chain itself lets it happen once.

Invariants: a payment is on disk before it is sent to the chain; every payment that was taken ends as served or
returned, whoever dies when. After a restart nothing is being served, so what was paid for and not marked as served
goes back, also where the answer had been charged: its client never got all of it.
"""

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass

from deaios.gateway.budgets import Budgets
from deaios.gateway.keys import AMOUNT_MAX, KeyRecord
from deaios.gateway.store import KeyStore
from deaios.gateway.x402_store import PaymentRow, PaymentState, PaymentStore
from deaios.gateway.x402_terms import CLOCK_SLACK_S, PaymentChain, TillTerms
from deaios.ledger.eip712 import recover_signer
from deaios.ledger.x402 import TransferWithAuthorization
from deaios.market import x402
from deaios.market.x402 import ExactPayment, InvalidPayment
from deaios.primitives.errors import Refused, Unavailable
from deaios.primitives.hashing import tagged_sha256
from deaios.primitives.keys import ZERO_ADDRESS, Address, InvalidSignature
from deaios.runtime.clock import Clock
from deaios.runtime.logs import get_logger

PAYMENTS_AT_ONCE = 64
"""Looked at in one round of tidying."""
FOR_EVER_S = (1 << 63) - 1
DROP_S = 3600
"""So long after its end, an authorization that no settled block used never will be used."""
log = get_logger("gateway")


@dataclass(slots=True)
class Receipt:
    """A payment that was taken, with the request that it pays for."""

    payment: ExactPayment
    key: KeyRecord
    key_text: str
    transaction: bytes

    @property
    def payer(self) -> Address:
        """Who paid."""
        return self.payment.authorization.from_

    @property
    def nonce(self) -> bytes:
        """What makes it the payer's only one."""
        return self.payment.authorization.nonce


def payment_key_id(payer: Address, nonce: bytes) -> str:
    """The key that stands for one payment."""
    return "x402_" + tagged_sha256("deaios/x402-payment/1", payer, nonce).hex()


def build_return(authorization: TransferWithAuthorization, receiver: Address) -> TransferWithAuthorization:
    """The transfer that gives a payment back; the same for the same payment, so that it can happen only once."""
    nonce = tagged_sha256("deaios/x402-return/1", authorization.from_, authorization.nonce)
    return TransferWithAuthorization(receiver, authorization.from_, authorization.value, 0, FOR_EVER_S, nonce)


class Counter:
    """Payments, one by one."""

    def __init__(
        self,
        terms: TillTerms,
        store: PaymentStore,
        keys: KeyStore,
        budgets: Budgets,
        chain: PaymentChain,
        clock: Clock,
    ) -> None:
        self._terms = terms
        self._store = store
        self._keys = keys
        self._budgets = budgets
        self._chain = chain
        self._clock = clock
        self._serving: set[tuple[Address, bytes]] = set()

    async def take(self, payment: ExactPayment, quote: int) -> Receipt:
        """Take a payment on the chain.

        Raises:
            InvalidPayment: x402's reason why not.
            Unavailable…: the chain; whether it was taken is found out later, and it then goes back.
        """
        authorization = payment.authorization
        self._check(payment, quote)
        name = (authorization.from_, authorization.nonce)
        if name in self._serving:
            raise InvalidPayment(x402.EXACT_USED, "this authorization is being used")
        self._serving.add(name)
        with ExitStack() as undo:
            undo.callback(self._serving.discard, name)  # whatever ends it, cancellation too: nothing is served for it
            receipt = await self._settle(payment, quote)
            undo.pop_all()
        return receipt

    async def _settle(self, payment: ExactPayment, quote: int) -> Receipt:
        """On disk, then on the chain, then a key that may spend it."""
        authorization, now_ms = payment.authorization, self._clock.now_ms()
        name = (authorization.from_, authorization.nonce)
        if not await asyncio.to_thread(self._store.begin_payment, authorization, now_ms):
            raise InvalidPayment(x402.EXACT_USED, "this authorization was used for another request")
        try:
            transaction = await self._chain.pay(authorization, payment.signature)
        except Refused as error:
            # It may have been taken all the same, by somebody who sent it before: the next round finds out.
            raise InvalidPayment(x402.EXACT_FAILED, f"the chain refused the transfer: {error}") from error
        await asyncio.to_thread(self._store.move_payment, *name, PaymentState.PAID, settled=transaction)
        key_id = payment_key_id(*name)
        text = await asyncio.to_thread(self._keys.adopt, key_id, f"x402 payment of 0x{name[0].hex()}", now_ms)
        await asyncio.to_thread(self._keys.allow, key_id, self._terms.cover(quote))
        return Receipt(payment, self._keys.get(key_id), text, transaction)

    async def end(self, receipt: Receipt, *, is_served: bool | None) -> None:
        """The request's answer was sent, or will not be.

        Args:
            receipt: of the payment.
            is_served: whether the client got its answer; None where nobody can tell, because it may have left: then
                who was sent something has been served as far as it wanted.
        """
        name, key_id = (receipt.payer, receipt.nonce), receipt.key.key_id
        if is_served is None:
            is_served = self._keys.get(key_id).spent > 0 or self._budgets.reserved(key_id) > 0
        state = PaymentState.SERVED if is_served else PaymentState.OWED
        await asyncio.to_thread(self._store.move_payment, *name, state)
        self._serving.discard(name)

    async def tidy(self) -> None:
        """Find out what became of payments whose end nobody saw, and give back what is owed.

        Raises:
            Unavailable…: the chain.
        """
        for row in await self._list(PaymentState.PAYING):
            await self._find_out(row)
        for row in await self._list(PaymentState.PAID):
            await self._move(row, PaymentState.OWED)
        for row in await self._list(PaymentState.OWED):
            await self._give_back(row)

    async def _list(self, state: PaymentState) -> list[PaymentRow]:
        rows = await asyncio.to_thread(self._store.list_payments, state, PAYMENTS_AT_ONCE)
        return [row for row in rows if (row.authorization.from_, row.authorization.nonce) not in self._serving]

    async def _find_out(self, row: PaymentRow) -> None:
        authorization = row.authorization
        if await self._chain.is_used(authorization.from_, authorization.nonce):
            # Used by a cancellation, or for another transfer, it has brought nothing.
            was_taken = await self._chain.was_taken(authorization)
            await self._move(row, PaymentState.OWED if was_taken else PaymentState.DROPPED)
        elif self._clock.now_ms() // 1000 > authorization.valid_before + DROP_S:
            await self._move(row, PaymentState.DROPPED)

    async def _give_back(self, row: PaymentRow) -> None:
        back = build_return(row.authorization, self._terms.receiver)
        transaction = None
        if not await self._chain.is_used(back.from_, back.nonce):
            try:
                transaction = await self._chain.pay_back(back)
            except Refused as error:
                if not await self._chain.is_used(back.from_, back.nonce):
                    raise Unavailable(f"a payment could not be given back: {error}") from error
        await self._move(row, PaymentState.RETURNED, transaction)
        log.info("gave a payment back", payer=row.authorization.from_.hex(), amount=row.authorization.value)

    async def _move(self, row: PaymentRow, state: PaymentState, returned: bytes | None = None) -> None:
        name = (row.authorization.from_, row.authorization.nonce)
        await asyncio.to_thread(self._store.move_payment, *name, state, returned=returned)

    def _check(self, payment: ExactPayment, quote: int) -> None:
        authorization = payment.authorization
        now_s = self._clock.now_ms() // 1000
        for reason, is_right in (
            (x402.EXACT_RECIPIENT, authorization.to == self._terms.receiver),
            (x402.EXACT_VALUE, authorization.value == quote <= AMOUNT_MAX),
            (x402.EXACT_EXPIRED, authorization.valid_before >= now_s + CLOCK_SLACK_S),
            (x402.EXACT_EARLY, authorization.valid_after <= now_s),
        ):
            if not is_right:
                raise InvalidPayment(reason, "the transfer is not the one that was asked for")
        try:
            signer = recover_signer(self._terms.money, authorization, payment.signature)
        except InvalidSignature:
            signer = ZERO_ADDRESS
        if signer != authorization.from_:
            raise InvalidPayment(x402.EXACT_SIGNATURE, "the transfer is not signed by its payer")
