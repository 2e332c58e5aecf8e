"""Channels: both ends under any interleaving of many purchases, late receipts, refusals, lies."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from deaios.market.channel import (
    BuyerChannel,
    ChainState,
    InvalidCharge,
    RefusedDeposit,
    RefusedOpen,
    RefusedVoucher,
    RefusedWindow,
    SellerChannel,
)
from deaios.primitives.hashing import sha256

CHAIN = ChainState(balance=1000)


class ChannelMachine(RuleBasedStateMachine):
    """One buyer and one seller; messages are delivered in any order, receipts arrive late and shuffled."""

    sent = Bundle("sent")
    admitted = Bundle("admitted")
    receipts = Bundle("receipts")

    @initialize(window=st.integers(1, 400), balance=st.integers(0, 3000))
    def start(self, window, balance):
        self.chain = ChainState(balance=balance)
        self.buyer = BuyerChannel(window=window, balance=balance)
        self.seller = SellerChannel()
        self.fees = 0
        self.accepted_fees = 0
        self.count = 0
        self.signed_before = 0
        self.ended = set()

    @rule(target=sent, quote=st.integers(0, 120))
    def send(self, quote):
        self.count += 1
        digest = sha256(self.count.to_bytes(8))
        try:
            self.buyer = self.buyer.reserve(digest, quote)
        except (RefusedWindow, RefusedDeposit, RefusedOpen):
            return None
        return digest, quote, self.buyer.signed

    @rule(target=admitted, message=consumes(sent))
    def admit(self, message):
        if message is None:
            return None
        digest, quote, signed = message
        # The buyer's rule alone is enough: an honest seller never has to refuse.
        self.seller = self.seller.accept_voucher(signed).admit(digest, quote, self.chain)
        return digest, quote

    @rule(message=consumes(sent))
    def lose(self, message):
        if message is not None:
            self.buyer = self.buyer.release(message[0])

    @rule(target=receipts, purchase=consumes(admitted), part=st.integers(0, 100))
    def finish(self, purchase, part):
        if purchase is None:
            return None
        digest, quote = purchase
        fee = quote * part // 100
        assert digest not in self.ended
        self.ended.add(digest)
        self.seller = self.seller.settle(digest, fee)
        self.fees += fee
        return digest, fee, self.seller.charged

    @rule(receipt=consumes(receipts))
    def receive(self, receipt):
        if receipt is not None:
            digest, fee, charged = receipt
            self.buyer = self.buyer.settle(digest, fee, charged)
            self.accepted_fees += fee

    @invariant()
    def holds(self):
        if not hasattr(self, "buyer"):
            return
        buyer, seller = self.buyer, self.seller
        assert 0 <= seller.charged + seller.reserved <= min(max(seller.signed, 0), self.chain.available)
        assert seller.charged == self.fees
        assert 0 <= buyer.at_risk <= buyer.window
        assert buyer.signed <= buyer.balance
        assert buyer.settled == self.accepted_fees
        assert buyer.signed >= seller.signed
        assert buyer.signed >= self.signed_before
        self.signed_before = buyer.signed
        claimable = seller.claimable(self.chain)
        assert claimable is None or self.chain.total_claimed < claimable <= seller.charged


ChannelMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestChannelMachine = ChannelMachine.TestCase


@pytest.mark.parametrize("streams", [8, 256])
def test_many_streams_share_one_channel(streams):
    quote = 7
    buyer, seller = BuyerChannel(window=streams * quote, balance=10_000), SellerChannel()
    chain = ChainState(balance=10_000)
    digests = [sha256(n.to_bytes(4)) for n in range(streams)]
    for digest in digests:
        buyer = buyer.reserve(digest, quote)
        seller = seller.accept_voucher(buyer.signed).admit(digest, quote, chain)
    assert len(seller.reservations) == streams
    with pytest.raises(RefusedWindow):
        buyer.reserve(sha256(b"one more"), 1)
    order = list(digests)
    random.Random(3).shuffle(order)
    receipts = []
    for number, digest in enumerate(order):
        seller = seller.settle(digest, number % (quote + 1))
        receipts.append((digest, number % (quote + 1), seller.charged))
    random.Random(4).shuffle(receipts)
    for receipt in receipts:
        buyer = buyer.settle(*receipt)
    assert (buyer.charged, buyer.held, buyer.reservations) == (seller.charged, (), {})
    assert seller.reservations == {}


def test_refusals_name_the_amount_that_would_do():
    seller = SellerChannel(signed=50, charged=10)
    with pytest.raises(RefusedVoucher) as voucher:
        seller.admit(b"a", 41, CHAIN)
    assert voucher.value.needed == 51
    assert seller.accept_voucher(51).admit(b"a", 41, CHAIN).reserved == 41
    withdrawing = ChainState(balance=100, withdrawing=60, withdraw_started=True)
    with pytest.raises(RefusedDeposit) as deposit:
        seller.admit(b"a", 31, withdrawing)
    assert deposit.value.needed == 101
    buyer = BuyerChannel(window=100, balance=20)
    with pytest.raises(RefusedDeposit) as short:
        buyer.reserve(b"a", 21)
    assert short.value.needed == 21


def test_reservation_is_released_once():
    seller = SellerChannel(signed=100).admit(b"a", 10, CHAIN)
    with pytest.raises(RefusedOpen):
        seller.admit(b"a", 10, CHAIN)
    settled = seller.settle(b"a", 4)
    assert (settled.charged, settled.reserved) == (4, 0)
    with pytest.raises(KeyError):
        settled.settle(b"a", 4)


def test_older_voucher_changes_nothing():
    assert SellerChannel(signed=9).accept_voucher(5) == SellerChannel(signed=9)


@pytest.mark.parametrize(
    ("fee", "total", "why"),
    [
        (11, 11, "above the quote"),
        (5, 16, "more charged than receipts and open purchases explain"),
        (5, 4, "total below the fee"),
    ],
)
def test_overcharge_is_a_lie(fee, total, why):
    buyer = BuyerChannel(window=100, balance=100).reserve(b"a", 10)
    with pytest.raises(InvalidCharge):
        buyer.settle(b"a", fee, total)


def test_unexplained_charge_is_a_lie_once_the_open_purchase_ends():
    buyer = BuyerChannel(window=100, balance=100).reserve(b"a", 10).reserve(b"b", 10)
    # a's receipt says 9 were charged before it: only b can explain that.
    buyer = buyer.settle(b"a", 1, 10)
    assert buyer.held == ((9, 10),)
    with pytest.raises(InvalidCharge):
        buyer.settle(b"b", 3, 3)
    with pytest.raises(InvalidCharge):
        buyer.release(b"b")
    assert buyer.settle(b"b", 9, 9).charged == 10


def test_same_charge_twice_is_a_lie():
    buyer = BuyerChannel(window=100, balance=100).reserve(b"a", 10).reserve(b"b", 10).settle(b"a", 5, 5)
    with pytest.raises(InvalidCharge):
        buyer.settle(b"b", 5, 5)


@given(st.lists(st.integers(0, 50), max_size=30), st.randoms(use_true_random=False))
def test_one_inflated_total_is_found_whatever_the_order(fees, shuffle):
    """A seller that adds one unit anywhere is caught by the time all receipts are in."""
    buyer = BuyerChannel(window=10_000, balance=10_000)
    total, lie_at = 0, shuffle.randrange(len(fees) + 1)
    receipts = []
    for number, fee in enumerate([*fees, 1]):
        digest = number.to_bytes(4)
        buyer = buyer.reserve(digest, 50)
        total += fee + (number == lie_at)
        receipts.append((digest, fee, total))
    shuffle.shuffle(receipts)

    def settle_all(channel):
        for receipt in receipts:
            channel = channel.settle(*receipt)

    with pytest.raises(InvalidCharge):
        settle_all(buyer)


def test_claim_is_bounded_by_charges_voucher_and_balance():
    assert SellerChannel(signed=9, charged=5).claimable(ChainState(balance=100, total_claimed=2)) == 5
    assert SellerChannel(signed=9, charged=5).claimable(ChainState(balance=3, total_claimed=2)) == 3
    assert SellerChannel(signed=9, charged=5).claimable(ChainState(balance=9, total_claimed=5)) is None
