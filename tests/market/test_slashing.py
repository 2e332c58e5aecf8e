"""Doubt and offences as rules: whatever order things come in, an honest provider gives no cause."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from deaios.market.buyer.store import AccountRow, BuyerStore
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


async def test_twins_are_found_once_a_few_at_a_time_and_again_when_places_begin_anew(kit, tmp_path) -> None:
    offer = kit.build_offer()
    papers = kit.build_papers(offer)
    account = AccountRow(kit.SELLER.address, bytes(32), papers.channel, 0, BuyerChannel(window=WINDOW, balance=BALANCE))

    def signed(counter: int, request: int):
        said = {"counter": counter, "request_digest": request.to_bytes(32)}
        return kit.build_opening(papers, offer, (20, kit.STOP), receipt=said)

    store = BuyerStore(tmp_path / "buyer.db", WINDOW)
    await store.open()
    try:
        kept = [signed(counter, number) for number, counter in enumerate((1, 2, 1, 3, 1, 2))]
        for opening in kept:
            await store.settle(account, opening, 1000)
        place, twins = await store.fetch_twins_after(0, 2)
        assert twins == [(kept[0], kept[2]), (kept[0], kept[4])]
        place, twins = await store.fetch_twins_after(place, 2)
        assert twins == [(kept[1], kept[5])]
        assert await store.fetch_twins_after(place, 2) == (place, [])
        await store.prune(2000)
        for opening in kept[:3]:
            await store.settle(account, opening, 3000)
        _, twins = await store.fetch_twins_after(place, 2)
        assert twins == [(kept[0], kept[2])]
    finally:
        await store.close()
