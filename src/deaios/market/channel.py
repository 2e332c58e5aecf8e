"""The two ends of a payment channel as pure machines: many purchases at once on one deposit.

A voucher is cumulative: it lets the seller claim up to its amount in total, and covers a window, not a request
(x402 `batch-settlement` types with a looser rule: any higher voucher is taken, any number of requests may be open).

Invariants, held for every sequence of steps:
- seller: charged + reserved <= min(signed, balance - withdrawing at admission); charged never falls; every
  reservation ends exactly once; charged is the sum of all fees.
- buyer: signed - settled <= window, where settled is the sum of fees of accepted receipts; signed never falls and never
  exceeds the balance; charges that no receipt explains are covered by purchases still open, or are a lie.
Neither end knows the chain, a clock or a key; amounts are smallest units.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from deaios.primitives.errors import Invalid, Refused
from deaios.runtime.errors import RefusedPayment

RESERVATIONS_MAX = 4096
"""Open purchases on one channel; more would be a leak, not a load."""


class RefusedVoucher(RefusedPayment):
    """The highest voucher does not cover the purchase; `needed` is the voucher that would."""

    def __init__(self, needed: int, signed: int) -> None:
        super().__init__(f"voucher covers {signed}, this purchase needs a voucher of at least {needed}")
        self.needed = needed


class RefusedDeposit(RefusedPayment):
    """The channel's deposit does not cover the purchase; `needed` is the total deposit that would."""

    def __init__(self, needed: int, available: int) -> None:
        super().__init__(f"deposit covers {available}, this purchase needs a deposit of at least {needed} in total")
        self.needed = needed


class RefusedWindow(Refused):
    """The buyer would have more at risk than its window; room comes back as open purchases end."""


class RefusedOpen(Refused):
    """Too many open purchases on the channel, or this one is open already."""


class InvalidCharge(Invalid):
    """The seller charged what no receipt and no open purchase explains."""


@dataclass(frozen=True, slots=True)
class ChainState:
    """A channel as the contract sees it.

    Attributes:
        balance: all deposits so far, less what was withdrawn or refunded.
        total_claimed: what the receiver claimed of it.
        withdrawing: what the payer asked to take back.
        withdraw_started: whether a withdrawal is pending.
    """

    balance: int = 0
    total_claimed: int = 0
    withdrawing: int = 0
    withdraw_started: bool = False

    @property
    def available(self) -> int:
        """The highest cumulative amount that the deposit still backs."""
        return max(0, self.balance - self.withdrawing)


@dataclass(frozen=True, slots=True)
class SellerChannel:
    """The receiving end.

    Attributes:
        signed: amount of the highest valid voucher.
        charged: sum of the fees of all receipts on this channel.
        reservations: quote per open purchase, by request digest.
    """

    signed: int = 0
    charged: int = 0
    reservations: Mapping[bytes, int] = field(default_factory=dict)

    @property
    def reserved(self) -> int:
        """Sum of the open purchases' quotes."""
        return sum(self.reservations.values())

    def accept_voucher(self, amount: int) -> "SellerChannel":
        """Keep the higher of the vouchers; an older, lower one that arrives late changes nothing."""
        return replace(self, signed=max(self.signed, amount))

    def admit(self, digest: bytes, quote: int, chain: ChainState) -> "SellerChannel":
        """Reserve a purchase's quote.

        Raises:
            RefusedDeposit: the deposit, less what is being withdrawn, does not cover it.
            RefusedVoucher: the highest voucher does not cover it.
            RefusedOpen: open already, or too many.
        """
        if digest in self.reservations or len(self.reservations) >= RESERVATIONS_MAX:
            raise RefusedOpen(f"purchase is open already, or the channel has {RESERVATIONS_MAX} open purchases")
        needed = self.charged + self.reserved + quote
        if needed > chain.available:
            raise RefusedDeposit(needed + chain.withdrawing, chain.available)
        if needed > self.signed:
            raise RefusedVoucher(needed, self.signed)
        return replace(self, reservations={**self.reservations, digest: quote})

    def settle(self, digest: bytes, fee: int) -> "SellerChannel":
        """End a purchase: release its reservation and charge the fee, which is within it."""
        quote = self.reservations[digest]
        assert 0 <= fee <= quote, f"fee {fee} outside the reservation {quote}"
        rest = {key: value for key, value in self.reservations.items() if key != digest}
        return replace(self, charged=self.charged + fee, reservations=rest)

    def claimable(self, chain: ChainState) -> int | None:
        """The total to claim now, or None when nothing new can be claimed; never above the fees charged."""
        total = min(self.charged, self.signed, chain.balance)
        return total if total > chain.total_claimed else None


@dataclass(frozen=True, slots=True)
class BuyerChannel:
    """The paying end.

    Attributes:
        window: the most that may be signed beyond accepted receipts.
        balance: the deposit.
        signed: the highest voucher handed out.
        charged: receipts accepted without a gap from zero: the sum of their fees, and their charged total.
        held: accepted (start, end) charges above `charged`, whose predecessors have not arrived yet; sorted.
        reservations: quote per open purchase, by request digest.
    """

    window: int
    balance: int = 0
    signed: int = 0
    charged: int = 0
    held: tuple[tuple[int, int], ...] = ()
    reservations: Mapping[bytes, int] = field(default_factory=dict)

    @property
    def reserved(self) -> int:
        """Sum of the open purchases' quotes."""
        return sum(self.reservations.values())

    @property
    def settled(self) -> int:
        """Sum of the fees of all accepted receipts."""
        return self.charged + sum(end - start for start, end in self.held)

    @property
    def at_risk(self) -> int:
        """What the seller could take beyond accepted receipts."""
        return self.signed - self.settled

    def reserve(self, digest: bytes, quote: int) -> "BuyerChannel":
        """Open a purchase, raising the voucher to a full window when it must rise at all.

        Raises:
            RefusedWindow: open purchases and this one exceed the window.
            RefusedDeposit: the deposit must grow first.
            RefusedOpen: open already, or too many.
        """
        if digest in self.reservations or len(self.reservations) >= RESERVATIONS_MAX:
            raise RefusedOpen(f"purchase is open already, or the channel has {RESERVATIONS_MAX} open purchases")
        exposure = self.reserved + quote
        if exposure > self.window:
            raise RefusedWindow(f"{exposure} would be at risk with this provider, the window is {self.window}")
        needed = self.settled + exposure
        if needed > self.balance:
            raise RefusedDeposit(needed, self.balance)
        signed = self.signed if needed <= self.signed else min(self.settled + self.window, self.balance)
        return replace(self, signed=signed, reservations={**self.reservations, digest: quote})

    def raise_voucher(self, amount: int) -> "BuyerChannel":
        """Sign more at the seller's word, within window and deposit.

        Raises:
            RefusedWindow: more would be at risk than the window.
            RefusedDeposit: the deposit must grow first.
        """
        if amount > self.settled + self.window:
            raise RefusedWindow(
                f"seller asks for a voucher of {amount}, receipts justify {self.settled} and a window of {self.window}"
            )
        if amount > self.balance:
            raise RefusedDeposit(amount, self.balance)
        return replace(self, signed=max(self.signed, amount))

    def release(self, digest: bytes) -> "BuyerChannel":
        """End a purchase that was never admitted, so that no receipt can come.

        Raises:
            InvalidCharge: charges already seen can then no longer be explained.
        """
        rest = {key: value for key, value in self.reservations.items() if key != digest}
        assert len(rest) == len(self.reservations) - 1, "released a purchase that is not open"
        released = replace(self, reservations=rest)
        _validate_explained(released)
        return released

    def settle(self, digest: bytes, fee: int, charged_cumulative: int) -> "BuyerChannel":
        """End a purchase by its receipt, in whatever order receipts arrive.

        Raises:
            InvalidCharge: the fee exceeds the quote, the same charge was billed twice, or the total is not the sum.
        """
        quote = self.reservations[digest]
        start = charged_cumulative - fee
        if not 0 <= fee <= quote or start < 0:
            raise InvalidCharge(f"fee {fee} of total {charged_cumulative} exceeds the quote {quote} or the total")
        charged, held = self.charged, self.held
        if fee > 0:
            if start < charged or any(start < end and begin < charged_cumulative for begin, end in held):
                raise InvalidCharge(f"charge {start}..{charged_cumulative} overlaps charges already accepted")
            held = tuple(sorted((*held, (start, charged_cumulative))))
        while held and held[0][0] == charged:
            charged, held = held[0][1], held[1:]
        rest = {key: value for key, value in self.reservations.items() if key != digest}
        settled = replace(self, charged=charged, held=held, reservations=rest)
        _validate_explained(settled, charged_cumulative)
        return settled

    def deposited(self, balance: int) -> "BuyerChannel":
        """The deposit as the chain shows it."""
        return replace(self, balance=balance)


def _validate_explained(channel: BuyerChannel, charged_cumulative: int = 0) -> None:
    top = max(channel.charged, charged_cumulative, channel.held[-1][1] if channel.held else 0)
    unexplained = top - channel.settled
    if unexplained > channel.reserved:
        raise InvalidCharge(
            f"total charged {top} exceeds the receipts' {channel.settled} by {unexplained}, "
            f"open purchases explain at most {channel.reserved}"
        )
