"""Doubt and offences as rules: whatever order things come in, an honest provider gives no cause."""

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deaios.ledger.eip712 import sign_struct
from deaios.ledger.structs import State
from deaios.market.buyer.store import REFUSED_PER_PROVIDER_MAX, AccountRow, BuyerStore
from deaios.market.channel import BuyerChannel, ChainState, RefusedDeposit, RefusedVoucher, RefusedWindow, SellerChannel
from deaios.market.slashing.offences import find_wrong_fee, is_claim_unexplained

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


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])  # the kit has no state
@given(
    state=st.sampled_from(list(State)),
    ids=st.integers(0, 16),
    prices=st.tuples(st.integers(0, 10**7), st.integers(0, 10**7)),
)
def test_no_fee_that_a_seller_builds_is_an_offence(kit, state, ids, prices) -> None:
    offer = kit.build_offer(input_price=prices[0], output_price=prices[1])
    opening = kit.build_opening(kit.build_papers(offer), offer, (20,) * ids, state=state)
    assert find_wrong_fee(kit.TERMS.protocol, opening) is None
    lie = replace(opening.receipt, fee=opening.receipt.fee + 1)
    for key, convicts in ((kit.SELLER, True), (kit.BUYER, False)):
        signature = sign_struct(key, kit.TERMS.protocol, lie)
        found = find_wrong_fee(kit.TERMS.protocol, replace(opening, receipt=lie, receipt_signature=signature))
        assert (found is not None) == convicts
    other = replace(opening, receipt=lie, request=replace(opening.request, deadline_block=0))
    signature = sign_struct(kit.SELLER, kit.TERMS.protocol, lie)
    assert find_wrong_fee(kit.TERMS.protocol, replace(other, receipt_signature=signature)) is None


async def test_refused_receipts_are_kept_first_come_a_few_of_each_provider_until_they_age_out(kit, tmp_path) -> None:
    def refused(number: int, seller=kit.SELLER):
        offer = kit.build_offer(seller)
        said = {"fee": 1, "request_digest": number.to_bytes(32)}
        return kit.build_opening(kit.build_papers(offer), offer, (20, kit.STOP), receipt=said, seller=seller)

    many = [refused(number) for number in range(REFUSED_PER_PROVIDER_MAX + 2)]
    another = refused(999, kit.build_key("another seller"))
    store = BuyerStore(tmp_path / "buyer.db", WINDOW)
    await store.open()
    try:
        for opening in (many[0], *many, another):
            await store.keep_refused(opening, 1000)
        kept = await store.fetch_refused_after(0, 100)
        assert [opening for _, opening in kept] == [*many[:REFUSED_PER_PROVIDER_MAX], another]
        assert await store.fetch_refused_after(kept[-2][0], 100) == kept[-1:]
        assert await store.fetch_refused_after(0, 3) == kept[:3]
        await store.prune(2000)
        assert await store.fetch_refused_after(0, 100) == []
        await store.keep_refused(another, 3000)
        assert [opening for _, opening in await store.fetch_refused_after(kept[-1][0], 100)] == [another]
    finally:
        await store.close()


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
