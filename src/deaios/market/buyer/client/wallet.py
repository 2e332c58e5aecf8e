"""The buyer's channels: one per provider, opened and topped up when needed, never more than a window at risk.

Invariants: what is signed is on disk before it is sent; deposits carry a nonce derived from the balance they raise, so
a deposit repeated after a crash cannot be taken twice. State changes between two awaits only.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from deaios.ledger.commitments import build_deposit_authorization
from deaios.ledger.eip712 import sign_struct
from deaios.ledger.structs import ChannelConfig, Voucher
from deaios.market.buyer.client.settings import BuyerSettings
from deaios.market.buyer.store import AccountRow, BuyerState, BuyerStore, OpenRow
from deaios.market.channel import BuyerChannel, RefusedDeposit, RefusedWindow
from deaios.market.offers import SignedOffer
from deaios.market.opening import Opening
from deaios.market.ports import Authorization, BuyerChain
from deaios.market.terms import Terms
from deaios.primitives.hashing import tagged_sha256
from deaios.primitives.keys import Address, PrivateKey
from deaios.runtime.clock import Clock
from deaios.runtime.logs import get_logger

SALT_INDEX_MAX = 1024
"""Channels a buyer may have left behind with one provider; each search step is one read."""
DEPOSITS_PER_PURCHASE_MAX = 3
AUTHORIZATION_S = 3600

_log = get_logger("buyer")


@dataclass(slots=True)
class Account:
    """One provider's channel in memory."""

    row: AccountRow
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def state(self) -> BuyerChannel:
        """The channel machine's state."""
        return self.row.state

    def step(self, state: BuyerChannel) -> None:
        """Move to the next state and wake who waits for room."""
        self.row = replace(self.row, state=state)
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class Wallet:
    """Channels by provider."""

    def __init__(
        self,
        key: PrivateKey,
        terms: Terms,
        settings: BuyerSettings,
        store: BuyerStore,
        chain: BuyerChain,
        clock: Clock,
    ) -> None:
        self._key = key
        self._terms = terms
        self._settings = settings
        self._store = store
        self._chain = chain
        self._clock = clock
        self._accounts: dict[Address, Account] = {}
        self._opening = asyncio.Lock()
        self._vouchers: dict[tuple[bytes, int], bytes] = {}

    def load(self, state: BuyerState) -> None:
        """Take over what the journal holds."""
        self._accounts = {row.provider: Account(row) for row in state.accounts}

    @property
    def accounts(self) -> tuple[AccountRow, ...]:
        """Every channel, by provider address."""
        return tuple(self._accounts[provider].row for provider in sorted(self._accounts))

    async def fetch_account(self, provider: Address) -> Account:
        """The provider's channel, made up (not yet funded) if there is none."""
        if provider in self._accounts:
            return self._accounts[provider]
        async with self._opening:
            if provider not in self._accounts:
                self._accounts[provider] = Account(await self._create(provider))
        return self._accounts[provider]

    async def _create(self, provider: Address) -> AccountRow:
        """A fresh channel id: one that never held money, so that vouchers of a lost journal cannot count on it."""
        for index in range(SALT_INDEX_MAX):
            config = ChannelConfig(
                payer=self._key.address,
                payer_authorizer=self._key.address,
                receiver=provider,
                receiver_authorizer=provider,
                token=self._terms.token,
                withdraw_delay=self._settings.withdraw_delay,
                salt=tagged_sha256("deaios/channel-salt/1", self._key.address, provider, index.to_bytes(8)),
            )
            channel_id = self._terms.channel_id(config)
            chain = await self._chain.fetch_channel(channel_id)
            if chain.balance == 0 and chain.total_claimed == 0:
                row = AccountRow(provider, channel_id, config, index, BuyerChannel(window=self._settings.window))
                await self._store.keep_account(row)
                return row
        raise RefusedWindow(f"{SALT_INDEX_MAX} channels with 0x{provider.hex()} exist already; withdraw from them")

    async def reserve(
        self, account: Account, digest: bytes, quote: int, offer: SignedOffer, build: Callable[[Voucher, bytes], bytes]
    ) -> None:
        """Open a purchase: room in the window, money in the channel, voucher and papers on disk.

        Args:
            account: whose channel pays.
            digest: of the request.
            quote: the most it can cost.
            offer: what it is bought under.
            build: makes the papers around the voucher, as they will be sent.

        Raises:
            RefusedWindow: no room came free in time.
            Refused…, Unavailable…: the deposit failed.
        """
        try:
            account.step(account.state.reserve(digest, quote))
        except (RefusedWindow, RefusedDeposit):
            await self._wait_for_room(account, digest, quote)
        body = build(*self._sign(account, account.state.signed))
        await self._store.send(account.row, OpenRow(digest, account.row.provider, body, offer, quote, None))

    async def _wait_for_room(self, account: Account, digest: bytes, quote: int) -> None:
        try:
            async with asyncio.timeout(self._settings.window_wait_s):
                await self._take_room(account, digest, quote)
        except TimeoutError as error:
            raise RefusedWindow(
                f"no room for {quote} in the window of {account.state.window} within {self._settings.window_wait_s} s"
            ) from error

    async def _take_room(self, account: Account, digest: bytes, quote: int) -> None:
        deposits = 0
        while True:
            changed = account.changed
            try:
                account.step(account.state.reserve(digest, quote))
            except RefusedWindow:
                if account.state.reserved == 0:
                    raise
                await changed.wait()
            except RefusedDeposit as short:
                if deposits >= DEPOSITS_PER_PURCHASE_MAX:
                    raise
                deposits += 1
                # Shielded: a caller that gives up must not cut a deposit in half.
                await asyncio.shield(self.deposit(account, short.needed))
            else:
                return

    def _sign(self, account: Account, amount: int) -> tuple[Voucher, bytes]:
        voucher = Voucher(channel_id=account.row.channel_id, max_claimable_amount=amount)
        known = self._vouchers.get((account.row.channel_id, amount))
        if known is None:
            known = sign_struct(self._key, self._terms.vouchers, voucher)
            self._vouchers = {pair: value for pair, value in self._vouchers.items() if pair[0] != voucher.channel_id}
            self._vouchers[account.row.channel_id, amount] = known
        return voucher, known

    async def raise_voucher(
        self,
        account: Account,
        digest: bytes,
        quote: int,
        offer: SignedOffer,
        build: Callable[[Voucher, bytes], bytes],
        needed: int,
    ) -> None:
        """Follow a provider that needs a higher voucher, within window and deposit, on disk before it is sent.

        Raises:
            RefusedWindow: what it asks for is not justified by receipts and the window.
        """
        if needed > account.state.balance:
            await self.deposit(account, needed)
        account.step(account.state.raise_voucher(needed))
        body = build(*self._sign(account, account.state.signed))
        await self._store.send(account.row, OpenRow(digest, account.row.provider, body, offer, quote, None))

    async def deposit(self, account: Account, needed: int) -> None:
        """Bring the channel's deposit to at least `needed` in total; one deposit at a time.

        Raises:
            Refused…: the contract or the token refuses, most likely for lack of money.
            Unavailable…: the chain.
        """
        async with account.lock:
            row = account.row
            chain = await self._chain.fetch_channel(row.channel_id)
            if chain.available < needed:
                if chain.withdraw_started:
                    raise RefusedDeposit(needed, chain.available)
                amount = max(self._settings.deposit, needed - chain.available)
                await self._chain.deposit(row.config, amount, self._authorize(row, amount, chain.balance))
                chain = await self._chain.fetch_channel(row.channel_id)
                _log.info("deposited", provider=row.provider.hex(), amount=amount, balance=chain.balance)
            account.step(account.state.deposited(chain.available))
            await self._store.keep_account(account.row)

    def _authorize(self, row: AccountRow, amount: int, balance: int) -> Authorization:
        salt = tagged_sha256("deaios/deposit/1", row.channel_id, balance.to_bytes(16))
        valid_before = self._clock.now_ms() // 1000 + AUTHORIZATION_S
        authorization = build_deposit_authorization(
            row.config,
            row.channel_id,
            self._terms.channels,
            amount,
            valid_after=0,
            valid_before=valid_before,
            salt=int.from_bytes(salt),
        )
        return Authorization(0, valid_before, salt, sign_struct(self._key, self._terms.money, authorization))

    def settle(self, account: Account, opening: Opening) -> None:
        """Accept a checked receipt's charge. Nobody waits for the disk: after a crash the provider is asked again.

        Raises:
            InvalidCharge: its total is not the sum of what was bought.
            UnavailableJournal: the journal failed earlier.
        """
        receipt = opening.receipt
        account.step(account.state.settle(receipt.request_digest, receipt.fee, receipt.charged_cumulative))
        _ = self._store.settle(account.row, opening, self._clock.now_ms())

    async def release(self, account: Account, digest: bytes) -> None:
        """Give back the room of a purchase that was never admitted, and that its provider will not admit any more.

        Raises:
            InvalidCharge: it was charged nevertheless.
        """
        account.step(account.state.release(digest))
        await self._store.release(account.row, digest, self._clock.now_ms())

    async def initiate_withdraw(self, provider: Address) -> int:
        """Ask for everything back that the provider does not claim within the delay; nothing is bought there meanwhile.

        Returns:
            The amount asked for.
        """
        account = await self.fetch_account(provider)
        async with account.lock:
            chain = await self._chain.fetch_channel(account.row.channel_id)
            amount = chain.balance - chain.total_claimed
            if chain.withdraw_started or amount <= 0:
                return 0
            await self._chain.initiate_withdraw(account.row.config, amount)
            account.step(account.state.deposited(chain.balance - amount))
            await self._store.keep_account(account.row)
            return amount

    async def finalize_withdraw(self, provider: Address) -> None:
        """Take back what was asked for, after the delay."""
        account = await self.fetch_account(provider)
        async with account.lock:
            await self._chain.finalize_withdraw(account.row.config)
            chain = await self._chain.fetch_channel(account.row.channel_id)
            account.step(account.state.deposited(chain.available))
            await self._store.keep_account(account.row)
