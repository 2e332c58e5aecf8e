"""Doubt and offences as rules: whatever order things come in, an honest provider gives no cause."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from deaios.market.channel import BuyerChannel, ChainState, RefusedDeposit, RefusedVoucher, RefusedWindow, SellerChannel
from deaios.market.slashing.offences import is_claim_unexplained

WINDOW, BALANCE = 100, 1_000


@given(st.lists(st.tuples(st.sampled_from(["buy", "serve", "hear", "claim"]), st.integers(0, 40)), max_size=60))
def test_no_claim_of_an_honest_provider_is_doubted_in_any_order(steps: list[tuple[str, int]]) -> None:
    buyer, seller = BuyerChannel(WINDOW, BALANCE), SellerChannel()
    chain, number = ChainState(balance=BALANCE), 0
    said: list[tuple[bytes, int, int]] = []
    for what, amount in steps:
        if what == "buy":
            number += 1
            digest = number.to_bytes(32)
            try:
                buyer = buyer.reserve(digest, amount)
            except (RefusedWindow, RefusedDeposit):
                continue
            try:
                seller = seller.accept_voucher(buyer.signed).admit(digest, amount, chain)
            except RefusedVoucher:
                continue
        elif what == "serve" and seller.reservations:
            digest = sorted(seller.reservations)[amount % len(seller.reservations)]
            fee = min(amount, seller.reservations[digest])
            seller = seller.settle(digest, fee)
            said.append((digest, fee, seller.charged))
        elif what == "hear" and said:
            buyer = buyer.settle(*said.pop(amount % len(said)))
        elif what == "claim" and (total := seller.claimable(chain)) is not None:
            chain = replace(chain, total_claimed=total)
        assert not is_claim_unexplained(chain.total_claimed, buyer)


def test_a_claim_of_all_that_is_signed_is_doubted() -> None:
    buyer = BuyerChannel(WINDOW, BALANCE).reserve(bytes(32), 40)
    assert buyer.signed == WINDOW
    assert is_claim_unexplained(buyer.signed, buyer)
    assert not is_claim_unexplained(40, buyer)
