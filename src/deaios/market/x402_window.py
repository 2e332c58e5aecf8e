"""Window mode: which requests of a channel were seen, and how far its payer may go.

x402's own rule lets one request be under way on a channel, because each voucher must equal what was charged plus the
next price. In window mode a voucher covers a window of requests: any number may be under way while what they may cost
is within what was signed. A request then needs a signature of its own, with a number never used before, or whoever saw
one header could buy again; a payer needs a bound, or whoever it pays could claim all of its deposit. Pure.
"""

from dataclasses import dataclass, replace

from deaios.ledger.eip712 import sign_struct
from deaios.ledger.structs import Voucher
from deaios.ledger.x402 import WindowRequest, settlement_domain
from deaios.primitives.errors import Refused
from deaios.primitives.hashing import sha256
from deaios.primitives.keys import PrivateKey
from deaios.runtime.errors import RefusedPayment

REORDER_MAX = 4096
"""How far behind the highest number a late request may be."""
SEQUENCE_STEP = 4096
"""How far ahead numbers are written down, so that not every request waits for the disk."""


class RefusedReplay(Refused):
    """The number was used, or is too old to tell."""


class RefusedRoom(RefusedPayment):
    """The payer would have more at risk than its window."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Which request numbers a channel has used (the anti-replay window of RFC 4303, section 3.4.3).

    Attributes:
        highest: the highest number used; numbers start at 1.
        bits: bit i says whether `highest - i` was used.
        floor: numbers up to here are refused whatever the bits say: a process before this one may have seen them.
    """

    highest: int = 0
    bits: int = 0
    floor: int = 0

    @classmethod
    def after_restart(cls, written: int) -> "Seen":
        """What is known when only the number written ahead is."""
        return cls(highest=written, bits=0, floor=written)

    def use(self, sequence: int) -> "Seen":
        """Use a number up.

        Raises:
            RefusedReplay: it was used, or may have been.
        """
        if sequence <= self.floor or sequence <= self.highest - REORDER_MAX:
            raise RefusedReplay(f"request number {sequence} is too old; go on from {self.highest + 1}")
        if sequence > self.highest:
            shift = sequence - self.highest
            bits = 1 if shift >= REORDER_MAX else (self.bits << shift | 1) & ((1 << REORDER_MAX) - 1)
            return replace(self, highest=sequence, bits=bits)
        bit = 1 << self.highest - sequence
        if self.bits & bit:
            raise RefusedReplay(f"request number {sequence} was used already")
        return replace(self, bits=self.bits | bit)


@dataclass(frozen=True, slots=True)
class Payer:
    """The paying end of a channel in window mode.

    Invariant: signed - settled <= window, where settled is the sum of what answers were found to cost.

    Attributes:
        window: the most that is signed beyond answers that were received and checked.
        deposit: what the channel holds.
        signed: the highest voucher handed out.
        settled: what the answers so far cost.
        reserved: the most that requests under way may cost.
        sequence: the number of the last request.
    """

    window: int
    deposit: int
    signed: int = 0
    settled: int = 0
    reserved: int = 0
    sequence: int = 0

    def open(self, quote: int) -> "Payer":
        """Begin a request, raising the voucher as far as it must.

        Raises:
            RefusedRoom: window or deposit do not cover it.
        """
        needed = self.settled + self.reserved + quote
        limit = min(self.settled + self.window, self.deposit)
        if needed > limit:
            raise RefusedRoom(f"a voucher of {needed} would be needed, window and deposit allow {limit}")
        signed = self.signed if needed <= self.signed else limit
        return replace(self, signed=signed, reserved=self.reserved + quote, sequence=self.sequence + 1)

    def close(self, quote: int, cost: int) -> "Payer":
        """End a request.

        Raises:
            RefusedRoom: it cost more than it was said to cost at most.
        """
        if not 0 <= cost <= quote:
            raise RefusedRoom(f"an answer cost {cost}, at most {quote} was agreed")
        return replace(self, reserved=self.reserved - quote, settled=self.settled + cost)


def sign_window(
    key: PrivateKey, chain_id: int, channel_id: bytes, payer: Payer, body: bytes
) -> tuple[int, bytes, int, bytes]:
    """The voucher and the request that a payer in window mode sends.

    Returns:
        The voucher's amount and signature, the request's number and signature.
    """
    domain = settlement_domain(chain_id)
    voucher = sign_struct(key, domain, Voucher(channel_id, payer.signed))
    request = sign_struct(key, domain, WindowRequest(channel_id, payer.sequence, sha256(body)))
    return payer.signed, voucher, payer.sequence, request
