"""The receiving end of x402 channels: which vouchers are taken, what was charged, what may be claimed.

Every channel is a key of the gateway (`KeyStore.adopt`) whose budget is its highest voucher, so that reservations,
charges, retries and corrections are those of every other key. Two figures stand for what a payer owes. *Earned* is
what its answers really cost: the key's `spent`. *Charged* is what it was told, from which its next voucher starts: at a
stream's head the whole quote, because nothing can be said in a header later; what the answer then costs less is the
payer's credit, used up before charged rises again. Only what is earned is ever claimed.

Invariants: earned <= charged <= signed <= deposit once a request in strict mode has ended; a voucher is on disk before
anything is served for it; nothing is admitted on a channel whose payer takes its money back; state changes of a channel
happen under its lock.
"""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from deaios.gateway.budgets import Budgets
from deaios.gateway.keys import AMOUNT_MAX, KeyRecord
from deaios.gateway.store import KeyStore
from deaios.gateway.x402_store import ChannelRow, PaymentStore
from deaios.gateway.x402_terms import CLOCK_SLACK_S, PaymentChain, TillTerms
from deaios.ledger.client.channels import VoucherClaim
from deaios.ledger.client.settlement import SettlementChannel
from deaios.ledger.commitments import build_deposit_authorization
from deaios.ledger.eip712 import hash_typed_data, recover_signer
from deaios.ledger.structs import ChannelConfig, Voucher
from deaios.ledger.x402 import COLLECTOR, WindowRequest
from deaios.market import x402
from deaios.market.x402 import ChannelPayment, Deposit, InvalidPayment
from deaios.market.x402_window import SEQUENCE_STEP, RefusedReplay, Seen
from deaios.primitives.errors import Refused
from deaios.primitives.hashing import sha256
from deaios.primitives.keys import ZERO_ADDRESS, Address, InvalidSignature
from deaios.runtime.clock import Clock
from deaios.runtime.logs import get_logger

ACCOUNTS_MAX = 10_000
"""Channels kept in memory; what is not used is read again."""
FRESH_S = 10.0
"""How old the chain's side of a channel may be when something is served on it; far below any withdraw delay."""
log = get_logger("gateway")


@dataclass(slots=True)
class Account:
    """One channel in memory.

    Attributes:
        key_text: what draws follow from; empty until it has held money.
        synced_s: when the chain's side was read, on the monotonic clock.
        running: requests under way.
        open_quotes: what these may cost at most.
    """

    row: ChannelRow
    seen: Seen
    synced_s: float
    key_text: str = ""
    running: int = 0
    open_quotes: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def key_id(self) -> str:
        """The key that its requests are charged to."""
        return channel_key_id(self.row.channel_id)


@dataclass(slots=True)
class Admission:
    """A request that a channel pays for.

    Attributes:
        quote: what it may cost its payer at most.
        charged_before: what the payer had been told that it owes.
        deposit: hash and amount of the deposit that came with it.
        is_window: whether many may be under way.
    """

    account: Account
    key: KeyRecord
    quote: int
    charged_before: int
    is_window: bool
    deposit: tuple[bytes, int] | None = None

    @property
    def payer(self) -> Address:
        """Whose channel it is."""
        return self.account.row.config.payer


class RefusedVoucher(InvalidPayment):
    """A voucher that does not fit its channel; its payer is told where the channel is.

    Attributes:
        account: the channel, for x402's correction; None where it is not to be shown.
        needed: the voucher that would do, in window mode.
    """

    def __init__(self, reason: str, message: str, account: Account | None = None, needed: int | None = None) -> None:
        super().__init__(reason, message)
        self.account = account
        self.needed = needed


def channel_key_id(channel_id: bytes) -> str:
    """The key that stands for a channel."""
    return "x402_" + channel_id.hex()


class Till:
    """Channels of all payers."""

    def __init__(
        self,
        terms: TillTerms,
        store: PaymentStore,
        keys: KeyStore,
        budgets: Budgets,
        chain: PaymentChain,
        clock: Clock,
    ) -> None:
        self.terms = terms
        self._store = store
        self._keys = keys
        self._budgets = budgets
        self._chain = chain
        self._clock = clock
        self._accounts: OrderedDict[bytes, Account] = OrderedDict()

    # What a channel stands at

    def earned(self, account: Account) -> int:
        """What the answers so far cost the payer."""
        return self.terms.price(self._keys.get(account.key_id).spent) if account.key_text else 0

    def claimable(self, account: Account) -> int | None:
        """The total to claim now: what receipts prove; None where nothing is new."""
        key_id, row = account.key_id, account.row
        if not account.key_text:
            return None
        proven = self._keys.get(key_id).spent - self._keys.sum_provisional(key_id)
        total = min(self.terms.price(max(0, proven)), row.signed, row.chain.balance)
        return total if total > row.chain.total_claimed else None

    def build_claim(self, account: Account) -> VoucherClaim | None:
        """The claim of what is new, as the contract takes it."""
        total = self.claimable(account)
        row = account.row
        return None if total is None else VoucherClaim(row.config, row.signed, row.signature, total)

    # Requests

    async def admit(self, payment: ChannelPayment, quote: int, body: bytes) -> Admission:
        """Let a channel pay for a request.

        Args:
            payment: what came with it.
            quote: what the request may cost the payer at most.
            body: the request's exact body, which window mode binds.

        Raises:
            InvalidPayment: x402's reason why not.
            Unavailable…: chain or disk.
        """
        self._check_terms(payment)
        account = self._open(payment)
        async with account.lock:
            await self._refresh(account)
            self._check_staying(account)
            if payment.window is None:
                await self._check_strict(account, payment, quote)
            charged = account.row.charged
            deposit = await self._take_deposit(account, payment)
            self._check_covered(account, payment)
            if payment.window is not None:
                await self._check_window(account, payment, quote, body)
            await self._take_voucher(account, payment)
            account.running += 1
            account.open_quotes += quote
            key = self._keys.get(account.key_id)
            return Admission(account, key, quote, charged, payment.window is not None, deposit)

    async def raise_voucher(self, payment: ChannelPayment) -> Account:
        """Take a higher voucher without a request.

        Raises:
            InvalidPayment: it is not one of a channel here.
        """
        self._check_terms(payment)
        account = self._open(payment)
        async with account.lock:
            await self._refresh(account)
            self._check_staying(account)
            if payment.maximum < account.row.signed:
                message = f"a voucher of {payment.maximum} is lower than the {account.row.signed} of before"
                raise RefusedVoucher(x402.AMOUNT_MISMATCH, message, account)
            await self._take_deposit(account, payment)
            self._check_covered(account, payment)
            await self._take_voucher(account, payment)
        return account

    async def note_head(self, admission: Admission, *, is_stream: bool) -> int:
        """What the payer is told at the head of an answer that it owes for it; on disk when this returns.

        Args:
            admission: of the request.
            is_stream: the answer is still to come, so that its whole quote is set aside.
        """
        account = admission.account
        async with account.lock:
            target = self.earned(account) + (admission.quote if is_stream else 0)
            if target > account.row.charged:
                await self._keep(account, replace(account.row, charged=target))
            return account.row.charged - admission.charged_before

    def end(self, admission: Admission) -> None:
        """The request's answer was sent, or will not be."""
        admission.account.running -= 1
        admission.account.open_quotes -= admission.quote

    # Refunds and claims

    async def refund(self, payment: ChannelPayment) -> tuple[Account, bytes, int]:
        """Give a payer back what it asks for of what is left, claiming what was earned in the same transaction.

        Returns:
            The channel, the transaction's hash, and the amount.

        Raises:
            InvalidPayment: nothing is left, requests are under way, or the voucher is not the channel's.
        """
        assert payment.refund is not None
        self._check_terms(payment)
        account = self._open(payment)
        async with account.lock:
            await self._refresh(account, force=True)
            await self._sync_charged(account)
            row = account.row
            if payment.maximum != row.charged:
                message = f"a refund's voucher is {payment.maximum}, {row.charged} was charged"
                raise RefusedVoucher(x402.AMOUNT_MISMATCH, message, account)
            self._check_quiet(account)
            left = row.chain.balance - max(self.earned(account), row.chain.total_claimed)
            amount = min(payment.refund or left, left)
            if amount <= 0:
                raise InvalidPayment(x402.REFUND_NO_BALANCE, "nothing is left in this channel")
            claim = self.build_claim(account)
            try:
                transaction = await self._chain.refund([] if claim is None else [claim], row.config, amount)
            except Refused as error:
                raise InvalidPayment(x402.REFUND_FAILED, f"the chain refused the refund: {error}") from error
            await self._refresh(account, force=True)
            if amount == left:
                # Its payer forgets the channel, and would begin anew from what the chain says.
                await self._keep(account, replace(account.row, charged=self.earned(account)))
            log.info("refunded", channel=row.channel_id.hex(), amount=amount)
            return account, transaction, amount

    async def list_channels(self) -> list[bytes]:
        """Every channel that may hold money."""
        return [row.channel_id for row in await asyncio.to_thread(self._store.list_channels)]

    async def load(self, channel_ids: Sequence[bytes]) -> list[Account]:
        """The accounts of channels that paid here before, far fewer than are kept in memory."""
        accounts = []
        for channel_id in channel_ids:
            known = self._accounts.get(channel_id)
            row = known.row if known is not None else self._store.find_channel(channel_id)
            assert row is not None, "channels are never forgotten on disk"
            accounts.append(self._load(row))
            await self._adopt(accounts[-1])
        return accounts

    async def look(self, accounts: Sequence[Account]) -> None:
        """Read the chain's side of several channels in one exchange."""
        began = [account.synced_s for account in accounts]
        states = await self._chain.fetch_channels([account.row.channel_id for account in accounts])
        for account, state, synced_s in zip(accounts, states, began, strict=True):
            async with account.lock:
                if account.synced_s == synced_s:  # else somebody has read it meanwhile
                    await self._note_chain(account, state)

    async def _note_chain(self, account: Account, state: SettlementChannel) -> None:
        account.synced_s = self._clock.monotonic_s()
        row = account.row
        if state == row.chain:
            return
        charged = row.charged
        if not row.chain.balance and not row.signature:
            # A payer of a lost journal: what was claimed was earned, what was not is this gateway's loss.
            charged = max(charged, state.total_claimed)
        account.row = replace(row, chain=state, charged=charged)
        if state.balance or row.chain.balance:
            await asyncio.to_thread(self._store.keep_channels, [account.row])

    # One by one

    def _check_terms(self, payment: ChannelPayment) -> None:
        config, terms = payment.config, self.terms
        for reason, is_right in (
            (x402.RECEIVER_MISMATCH, config.receiver == terms.receiver),
            (x402.AUTHORIZER_MISMATCH, config.receiver_authorizer == terms.receiver),
            (x402.TOKEN_MISMATCH, config.token == terms.token),
            (x402.DELAY_MISMATCH, config.withdraw_delay == terms.withdraw_delay),
            (x402.CHANNEL_ID_MISMATCH, payment.channel_id == hash_typed_data(terms.domain, config)),
        ):
            if not is_right:
                raise InvalidPayment(reason, "the channel's terms are not those that were offered")

    def _open(self, payment: ChannelPayment) -> Account:
        """The payment's account, its voucher's signature checked; nothing is written for one without money."""
        known = self._accounts.get(payment.channel_id)
        row = known.row if known is not None else self._store.find_channel(payment.channel_id)
        if row is None or (row.signed, row.signature) != (payment.maximum, payment.signature):
            voucher = Voucher(payment.channel_id, payment.maximum)
            if not self._is_signed(payment.config, voucher, payment.signature):
                raise InvalidPayment(x402.VOUCHER_SIGNATURE, "the voucher is not signed by the channel's payer")
        return self._load(row or ChannelRow(payment.channel_id, payment.config))

    def _is_signed(self, config: ChannelConfig, struct: object, signature: bytes) -> bool:
        signer = config.payer_authorizer if config.payer_authorizer != ZERO_ADDRESS else config.payer
        try:
            return recover_signer(self.terms.domain, struct, signature) == signer
        except InvalidSignature:
            return False

    def _load(self, row: ChannelRow) -> Account:
        """The account in memory; the same object for everybody."""
        account = self._accounts.get(row.channel_id)
        if account is None:
            account = Account(row, Seen.after_restart(row.sequence), synced_s=-math.inf)
            self._accounts[row.channel_id] = account
        self._accounts.move_to_end(row.channel_id)
        self._forget()
        return account

    async def _adopt(self, account: Account) -> None:
        """Give a channel that holds money its key."""
        if not account.key_text:
            name = f"x402 payer 0x{account.row.config.payer.hex()}"
            now_ms = self._clock.now_ms()
            account.key_text = await asyncio.to_thread(self._keys.adopt, account.key_id, name, now_ms)

    def _forget(self) -> None:
        """Drop the account that was used longest ago, once it is idle; request numbers go on from what was written."""
        if len(self._accounts) > ACCOUNTS_MAX:
            channel_id, account = next(iter(self._accounts.items()))
            if account.running or account.lock.locked():
                self._accounts.move_to_end(channel_id)
            else:
                del self._accounts[channel_id]

    async def _refresh(self, account: Account, *, force: bool = False) -> None:
        """Know the chain's side; a channel that holds money there is kept from then on."""
        # One without money may have been given some at any time; it is asked about only with its payer's voucher.
        if force or not account.row.chain.balance or self._clock.monotonic_s() - account.synced_s > FRESH_S:
            (state,) = await self._chain.fetch_channels([account.row.channel_id])
            await self._note_chain(account, state)
        if account.row.chain.balance:
            await self._adopt(account)

    def _check_staying(self, account: Account) -> None:
        if account.row.chain.withdraw_started_at:
            raise InvalidPayment(x402.WITHDRAWING, "the payer is taking its money out of this channel")

    async def _take_deposit(self, account: Account, payment: ChannelPayment) -> tuple[bytes, int] | None:
        """Carry out a deposit that came with the voucher; without money there is no channel."""
        deposit = payment.deposit
        if deposit is not None:
            return await self._deposit(account, payment, deposit), deposit.amount
        if not account.row.chain.balance:
            raise InvalidPayment(x402.CHANNEL_NOT_FOUND, "this channel holds no money")
        return None

    async def _keep(self, account: Account, row: ChannelRow) -> None:
        account.row = row
        await asyncio.to_thread(self._store.keep_channels, [row])

    async def _deposit(self, account: Account, payment: ChannelPayment, deposit: Deposit) -> bytes:
        terms = self.terms
        if deposit.amount < terms.deposit_min:
            message = f"deposit {deposit.amount} is below the least, {terms.deposit_min}"
            raise InvalidPayment(x402.DEPOSIT_TOO_SMALL, message)
        if deposit.amount > AMOUNT_MAX:
            raise InvalidPayment(x402.DEPOSIT_PAYLOAD, f"deposit {deposit.amount} is more than there is")
        if deposit.valid_before < self._clock.now_ms() // 1000 + CLOCK_SLACK_S:
            raise InvalidPayment(x402.DEPOSIT_EXPIRED, "the deposit's authorization has expired")
        authorization = build_deposit_authorization(
            payment.config,
            payment.channel_id,
            COLLECTOR,
            deposit.amount,
            valid_after=deposit.valid_after,
            valid_before=deposit.valid_before,
            salt=deposit.salt,
        )
        try:
            signer = recover_signer(terms.money, authorization, deposit.signature)
        except InvalidSignature:
            signer = ZERO_ADDRESS
        if signer != payment.config.payer:
            raise InvalidPayment(x402.DEPOSIT_SIGNATURE, "the deposit is not signed by the payer")
        account.synced_s = -math.inf  # whatever becomes of the transaction, what was seen before it is old
        try:
            transaction = await self._chain.deposit(payment.config, deposit)
        except Refused as error:
            raise InvalidPayment(x402.DEPOSIT_FAILED, f"the chain refused the deposit: {error}") from error
        await self._refresh(account, force=True)
        log.info("deposited", channel=payment.channel_id.hex(), amount=deposit.amount)
        return transaction

    async def _sync_charged(self, account: Account) -> None:
        """Charged never lags behind earned when the payer's next voucher is looked at."""
        earned = self.earned(account)
        if earned > account.row.charged:
            await self._keep(account, replace(account.row, charged=earned))

    def _check_quiet(self, account: Account) -> None:
        if account.running or self._budgets.reserved(account.key_id):
            raise InvalidPayment(x402.CHANNEL_BUSY, "a request of this channel is under way")

    async def _check_strict(self, account: Account, payment: ChannelPayment, quote: int) -> None:
        """x402's own rule: one request at a time, and a voucher of exactly what was charged and this price."""
        self._check_quiet(account)
        await self._sync_charged(account)
        row = account.row
        expected = row.charged + quote
        if payment.maximum != expected:
            message = f"voucher is {payment.maximum}, {row.charged} charged and {quote} for this make {expected}"
            raise RefusedVoucher(x402.AMOUNT_MISMATCH, message, account)

    async def _check_window(self, account: Account, payment: ChannelPayment, quote: int, body: bytes) -> None:
        """Our rule: any voucher that is not below what is needed, and a request that was not seen before."""
        assert payment.window is not None
        window, row = payment.window, account.row
        request = WindowRequest(row.channel_id, window.sequence, sha256(body))
        if not self._is_signed(row.config, request, window.signature):
            raise InvalidPayment(x402.REQUEST_SIGNATURE, "the request is not signed by the channel's payer")
        # An answer that everybody left holds its reservation a moment longer than its request.
        reserved = max(account.open_quotes, self.terms.price(self._budgets.reserved(account.key_id)))
        needed = self.earned(account) + reserved + quote
        covered = min(max(row.signed, payment.maximum), row.chain.available)
        if needed > covered:
            message = f"voucher and deposit cover {covered}, this request needs {needed}"
            raise RefusedVoucher(x402.VOUCHER_NEEDED, message, account, needed)
        try:
            account.seen = account.seen.use(window.sequence)
        except RefusedReplay as error:
            raise RefusedVoucher(x402.REQUEST_REPLAYED, str(error), account) from error
        if account.seen.highest > row.sequence:
            await self._keep(account, replace(row, sequence=account.seen.highest + SEQUENCE_STEP))

    def _check_covered(self, account: Account, payment: ChannelPayment) -> None:
        available = account.row.chain.available
        if payment.maximum > min(available, AMOUNT_MAX):
            message = f"voucher {payment.maximum} exceeds the deposit of {available}"
            raise InvalidPayment(x402.EXCEEDS_BALANCE, message)

    async def _take_voucher(self, account: Account, payment: ChannelPayment) -> None:
        """Keep the highest voucher, on disk, and let the key spend up to it."""
        if payment.maximum > account.row.signed:
            row = replace(account.row, signed=payment.maximum, signature=payment.signature)
            await self._keep(account, row)
        budget = self.terms.cover(min(account.row.signed, account.row.chain.available))
        if self._keys.get(account.key_id).budget != budget:
            await asyncio.to_thread(self._keys.allow, account.key_id, budget)
