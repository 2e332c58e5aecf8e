"""Forks: proofs by signatures alone, each punished once, and claims that must be backed by a receipt."""

from dataclasses import replace

import boa
import pytest
from contracts_world import offer_tuple
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deaios.ledger.eip712 import hash_struct, sign_struct
from deaios.market.offers import PRICE_MAX
from deaios.market.receipts import compute_fee_due
from deaios.primitives.merkle import build_root, prove_leaf
from deaios.primitives.units import CREDIT

PENALTY, BOND, SECONDS = 20 * CREDIT, CREDIT, 60


@pytest.fixture
def config(world):
    config = world.make_config()
    world.deposit(config, 5 * CREDIT)
    return config


def signed(world, receipt, actor=None):
    return sign_struct((actor or world.provider).key, world.domain(), receipt)


def pair(world, a, b):
    return (world.tuple_of(a), signed(world, a), world.tuple_of(b), signed(world, b))


def check_punished(world, before, supply):
    assert world.balance(world.stranger) == before + PENALTY // 10
    assert world.credit.totalSupply() == supply - PENALTY * 9 // 10 == world.total_held()
    assert world.balance(world.forks) == 0


def test_two_receipts_with_one_counter(world, config):
    before, supply = world.balance(world.stranger), world.credit.totalSupply()
    a = world.make_receipt(config)[2]
    b = replace(world.make_receipt(config)[2], counter=a.counter)
    assert world.forks.proveDoubleCounter(*pair(world, a, b), sender=world.stranger.text) == PENALTY
    check_punished(world, before, supply)
    third = replace(b, fee=1)
    for again in (pair(world, a, b), pair(world, b, a), pair(world, a, third)):
        with boa.reverts("forks: proven before"):
            world.forks.proveDoubleCounter(*again, sender=world.stranger.text)


def test_two_receipts_for_one_request(world, config):
    before, supply = world.balance(world.stranger), world.credit.totalSupply()
    a = world.make_receipt(config)[2]
    b = replace(a, counter=a.counter + 1)
    assert world.forks.proveDoubleRequest(*pair(world, a, b), sender=world.stranger.text) == PENALTY
    check_punished(world, before, supply)
    with boa.reverts("forks: proven before"):
        world.forks.proveDoubleRequest(*pair(world, b, a), sender=world.stranger.text)


def test_honest_receipts_prove_nothing(world, config):
    a, b = world.make_receipt(config)[2], world.make_receipt(config)[2]
    with boa.reverts("forks: one and the same receipt"):
        world.forks.proveDoubleCounter(*pair(world, a, a))
    with boa.reverts("forks: counters differ"):
        world.forks.proveDoubleCounter(*pair(world, a, b))
    with boa.reverts("forks: requests differ"):
        world.forks.proveDoubleRequest(*pair(world, a, b))
    framed = replace(a, fee=1)
    arguments = world.tuple_of(a), signed(world, a), world.tuple_of(framed), signed(world, framed, world.buyer)
    with boa.reverts("forks: signed by different keys"):
        world.forks.proveDoubleCounter(*arguments)
    arguments = world.tuple_of(a), b"", world.tuple_of(framed), b""
    with boa.reverts("forks: signature recovers to no key"):
        world.forks.proveDoubleCounter(*arguments)
    c = replace(a, fee=1)
    arguments = world.tuple_of(a), signed(world, a, world.buyer), world.tuple_of(c), signed(world, c, world.buyer)
    with boa.reverts("forks: provider has no stake in compute"):
        world.forks.proveDoubleCounter(*arguments)


def test_a_batch_that_differs_from_the_signed_receipt(world, config):
    receipts = [world.make_receipt(config)[2] for _ in range(3)]
    shown = replace(receipts[1], fee=1)
    leaves = [hash_struct(receipts[0]), hash_struct(shown), hash_struct(receipts[2])]
    root = build_root("deaios/receipts/1", leaves)
    first = receipts[0].counter
    assert first == 1
    world.receipts.publish(1, 3, bytes(32), root, bytes(32), sender=world.provider.text)

    def prove(receipt, index, leaf):
        path = list(prove_leaf(leaves, index))
        arguments = world.tuple_of(receipt), signed(world, receipt), 0, leaf, path
        return world.forks.proveBatchMismatch(*arguments, sender=world.stranger.text)

    with boa.reverts("forks: the batch holds this receipt"):
        prove(receipts[0], 0, leaves[0])
    with boa.reverts("forks: not a leaf of this batch"):
        prove(receipts[0], 1, leaves[1])
    with boa.reverts("forks: not a leaf of this batch"):
        prove(receipts[1], 1, leaves[0])
    before, supply = world.balance(world.stranger), world.credit.totalSupply()
    assert prove(receipts[1], 1, leaves[1]) == PENALTY
    check_punished(world, before, supply)
    with boa.reverts("forks: proven before"):
        world.forks.proveDoubleCounter(*pair(world, receipts[1], shown))


def show_fee(world, receipt, request, offer, actor=None):
    arguments = world.tuple_of(receipt), signed(world, receipt, actor), world.tuple_of(request), offer_tuple(offer)
    return world.forks.proveWrongFee(*arguments, sender=world.stranger.text)


def test_a_fee_that_its_offer_does_not_give_is_punished_once(world, config):
    offer = world.make_offer()
    request, _, receipt, _ = world.make_receipt(config, fee=7 + 9 * 4, offer=offer)
    with boa.reverts("forks: fee is the price of what was delivered"):
        show_fee(world, receipt, request, offer)
    lie = replace(receipt, fee=receipt.fee + 1)
    before, supply = world.balance(world.stranger), world.credit.totalSupply()
    assert show_fee(world, lie, request, offer) == PENALTY
    check_punished(world, before, supply)
    for again in (lie, replace(lie, fee=receipt.fee + 2)):
        with boa.reverts("forks: proven before"):
            show_fee(world, again, request, offer)


def test_a_fee_above_the_maximum_is_punished_though_it_is_the_price(world, config):
    offer = world.make_offer()
    request, _, receipt, _ = world.make_receipt(config, fee=7 + 9 * 4, offer=offer, max_fee=7 + 9 * 4 - 1)
    assert show_fee(world, receipt, request, offer) == PENALTY


def test_only_what_one_signature_binds_proves_a_fee(world, config):
    offer = world.make_offer()
    request, _, receipt, _ = world.make_receipt(config, fee=1, offer=offer)
    dearer, other = replace(request, max_fee=0), world.make_offer(input_price=0)
    with boa.reverts("forks: receipt is for another request"):
        show_fee(world, receipt, dearer, offer)
    with boa.reverts("forks: request refers to another offer"):
        show_fee(world, receipt, request, other)
    with boa.reverts("forks: not the provider's receipt and offer"):
        show_fee(world, receipt, request, offer, world.buyer)
    with boa.reverts("forks: signature recovers to no key"):
        arguments = world.tuple_of(receipt), b"", world.tuple_of(request), offer_tuple(offer)
        world.forks.proveWrongFee(*arguments)
    # Neither a request to somebody else nor somebody else's offer convicts who signed.
    theirs = world.make_offer(world.accuser)
    for named, sold in ((world.accuser, offer), (world.provider, theirs), (world.accuser, theirs)):
        wanted = replace(request, provider=named.address, offer_digest=hash_struct(sold))
        framed = replace(receipt, request_digest=hash_struct(wanted))
        with boa.reverts("forks: not the provider's receipt and offer"):
            show_fee(world, framed, wanted, sold)


COUNTS = st.sampled_from([0, 1, 2**32 - 1]) | st.integers(0, 2000)
PRICES = st.sampled_from([0, 1, 999_999, 10**6, 10**6 + 1, PRICE_MAX, 2**128 - 1]) | st.integers(0, 10**7)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])  # each example is undone
@given(
    state=st.integers(0, 5),
    prompt=COUNTS,
    completion=COUNTS,
    prices=st.tuples(PRICES, PRICES),
    off=st.sampled_from([0, 0, -1, 1]),
    slack=st.sampled_from([0, 0, -1, 1]),
)
def test_the_fee_due_is_the_provider_s_own_rule_to_the_unit(
    world, config, state, prompt, completion, prices, off, slack
):
    """Every state, rounding edge, price and maximum: punished exactly where the rule of buyers and sellers says."""
    offer = world.make_offer(input_price=prices[0], output_price=prices[1])
    due = compute_fee_due(offer, state, prompt, completion)
    fee = max(0, min(due + off, 2**128 - 1))
    limit = max(0, min(fee + slack, 2**128 - 1))
    counts = {"state": state, "prompt_tokens": prompt, "completion_tokens": completion}
    with boa.env.anchor():
        request, _, receipt, _ = world.make_receipt(config, fee=fee, offer=offer, max_fee=limit, **counts)
        if fee == due and fee <= limit:
            with boa.reverts("forks: fee is the price of what was delivered"):
                show_fee(world, receipt, request, offer)
        else:
            assert show_fee(world, receipt, request, offer) == PENALTY


@pytest.fixture
def claimed(world, config):
    world.channels.claim([world.make_claim(config, 2 * CREDIT)], sender=world.provider.text)
    return config


def challenge(world, config, challenger=None):
    challenger = challenger or world.stranger
    world.approve(challenger, world.forks)
    world.forks.challengeClaim(world.tuple_of(config), sender=challenger.text)
    return world.channel_id(config)


def test_a_receipt_answers_a_challenge_and_earns_the_bond(world, claimed):
    channel_id = challenge(world, claimed)
    expected = (world.stranger.text, world.provider.text, 2 * CREDIT, world.now + SECONDS)
    assert world.forks.challengeOf(channel_id) == expected
    assert world.forks.deadline() == world.now + SECONDS
    with boa.reverts("forks: a challenge is open"):
        challenge(world, claimed, world.accuser)
    receipt = world.make_receipt(claimed, charged_cumulative=2 * CREDIT)[2]
    less = replace(receipt, charged_cumulative=2 * CREDIT - 1)
    other = replace(receipt, channel_id=b"\x01" * 32)
    for bad, message in (
        (less, "forks: receipt charges less than was claimed"),
        (other, "forks: receipt names another channel"),
    ):
        with boa.reverts(message):
            world.forks.showReceipt(channel_id, world.tuple_of(bad), signed(world, bad))
    with boa.reverts("forks: receipt is not signed by the receiver"):
        world.forks.showReceipt(channel_id, world.tuple_of(receipt), signed(world, receipt, world.buyer))
    before = world.balance(world.provider)
    world.forks.showReceipt(channel_id, world.tuple_of(receipt), signed(world, receipt), sender=world.buyer.text)
    assert world.balance(world.provider) == before + BOND
    assert (world.forks.deadline(), world.forks.shownUpTo(channel_id), world.balance(world.forks)) == (0, 2 * CREDIT, 0)
    with boa.reverts("forks: nothing is claimed beyond what was shown"):
        challenge(world, claimed)
    with boa.reverts("forks: no challenge is open"):
        world.forks.finalizeClaim(channel_id)
    with boa.reverts("forks: no challenge is open"):
        world.forks.showReceipt(channel_id, world.tuple_of(receipt), signed(world, receipt))


def test_a_receiver_without_a_receipt_is_slashed(world, claimed):
    before, supply = world.balance(world.stranger), world.credit.totalSupply()
    channel_id = challenge(world, claimed)
    world.wait(SECONDS - 1)
    with boa.reverts("forks: the receiver may still answer"):
        world.forks.finalizeClaim(channel_id)
    world.wait(1)
    assert world.forks.finalizeClaim(channel_id, sender=world.buyer.text) == PENALTY
    check_punished(world, before, supply)
    with boa.reverts("forks: nothing is claimed beyond what was shown"):
        challenge(world, claimed)
    world.channels.claim([world.make_claim(claimed, 2 * CREDIT + 1)], sender=world.provider.text)
    challenge(world, claimed)


def test_only_staked_receivers_with_claims_can_be_challenged(world, config):
    with boa.reverts("forks: nothing is claimed beyond what was shown"):
        challenge(world, config)
    other = world.make_config(receiver=world.accuser)
    world.deposit(other, CREDIT)
    world.channels.claim([world.make_claim(other, 5)], sender=world.accuser.text)
    with boa.reverts("forks: receiver has no stake in compute"):
        challenge(world, other)


def test_deployment_checks_its_judge(world, deploy_contract, deployment_reverts):
    addresses = [getattr(world, name).address for name in ("credit", "staking", "receipts", "channels", "disputes")]
    with deployment_reverts("forks: staking does not know this judge"):
        deploy_contract("Forks", *addresses, 1, 1, 1)
