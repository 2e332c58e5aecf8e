"""DataAvailability: seats by stake, certificates of two thirds, bonded challenges, fees for who was not caught."""

import json
from dataclasses import replace
from pathlib import Path

import boa
import numpy as np
import pytest
import vyper
from contracts_world import (
    ANSWER_SECONDS,
    AUDIT,
    CHALLENGE_BOND,
    DA,
    EPOCH_SECONDS,
    FEE_BASE,
    FEE_GIB_DAY,
    HOLDER_MIN,
    ROUND_SECONDS,
    ROW_PENALTY,
    TERM_SECONDS_MAX,
    UNBONDING,
    ZERO32,
    address_of,
    create_address,
    deploy,
    make_actor,
    secret_of,
    struct_tuple,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from vyper.compiler.input_bundle import FilesystemInputBundle
from vyper.compiler.settings import Settings

import deaios.ledger
from deaios.coding.matrix import verify_leaf
from deaios.coding.parameters import Parameters, build_committee_profile
from deaios.ledger import structs
from deaios.ledger.committee import apportion, build_committee, decode_committee
from deaios.ledger.eip712 import sign_struct
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address
from deaios.primitives.units import CREDIT

GRACE = 600
POWER_MAX = 2**96 - 1
PAYOUTS = (1, 1, POWER_MAX)
"""Jail and payouts of a SharedStaking that nothing here reaches."""
QUORUM = 8
powers = st.integers(1, 6) | st.integers(1, POWER_MAX) | st.just(POWER_MAX)


@pytest.fixture(scope="module")
def harness():
    contracts = Path(deaios.ledger.__file__).parent / "contracts"
    bundle = FilesystemInputBundle([contracts, Path(__file__).parent])
    output = vyper.compile_from_file_input(
        bundle.load_file(Path("CommitteeHarness.vy")),
        input_bundle=bundle,
        output_formats=["abi", "bytecode"],
        settings=Settings(evm_version="cancun"),
    )
    address, _ = boa.env.deploy_code(bytecode=bytes.fromhex(output["bytecode"][2:]))
    return boa.loads_abi(json.dumps(output["abi"]), name="CommitteeHarness").at(address)


@pytest.fixture
def seated(world):
    """Four members of unequal stake in the first epoch: 4, 3, 3 and 2 of twelve seats."""
    world.availability.beginEpoch(sender=world.stranger.text)
    return world


@pytest.fixture
def certified(seated):
    return seated.certify(seated.make_blob())


def held(world):
    return world.balance(world.availability)


# Seats


@given(
    stakes=st.lists(powers, min_size=1, max_size=40),
    seats=st.integers(3, 12) | st.integers(3, 256),
)
@example(stakes=[5] * 40, seats=3)
@example(stakes=[POWER_MAX, 1], seats=256)
@example(stakes=[1, 1, 1, 97], seats=100)
@settings(max_examples=150, deadline=None)
def test_python_gives_the_seats_that_the_contract_gives(harness, stakes, seats):
    given_seats = apportion(stakes, seats)
    assert list(given_seats) == harness.apportion(stakes, seats)
    assert sum(given_seats) == seats
    kept = [power for power, count in zip(stakes, given_seats, strict=True) if count]
    left_out = [power for power, count in zip(stakes, given_seats, strict=True) if not count]
    assert min(kept) * seats >= sum(kept)
    assert all(power <= min(kept) and power * seats < sum(kept) + power for power in left_out)
    for power, count in zip(stakes, given_seats, strict=True):
        assert count == 0 or abs(count * sum(kept) - power * seats) < sum(kept)


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256])
def test_numbers_are_sorted(harness, count):
    numbers = [int.from_bytes(keccak256((count << 8 | i).to_bytes(4))) for i in range(count)]
    assert harness.sort_descending(numbers) == sorted(numbers, reverse=True)


def test_seats_follow_the_stake_and_turn_with_the_epoch(world):
    roster = [(holder.address, world.staking.power(DA, holder.text)) for holder in world.holders]
    assert apportion([power for _, power in roster], 12) == (4, 3, 3, 2)
    for epoch in (1, 2, 3, 4, 5):
        assert world.availability.beginEpoch(sender=world.stranger.text) == epoch
        committee = world.committee()
        assert committee == build_committee(epoch, world.now, roster, 12)
        assert committee.members[0].address == world.holders[epoch % 4].address
        assert world.availability.epochOf(epoch) == (world.now, 4)
        assert world.availability.currentEpoch() == epoch
        world.wait(EPOCH_SECONDS)
    assert world.availability.epochOf(6) == (0, 0)
    assert world.availability.committeeOf(6) == []


def test_an_epoch_lasts_its_time(seated):
    seated.wait(EPOCH_SECONDS - 1)
    with boa.reverts("availability: the epoch is not over"):
        seated.availability.beginEpoch()
    seated.wait(1)
    assert seated.availability.beginEpoch() == 2


def test_an_epoch_needs_a_member_and_one_is_enough(make_world):
    world = make_world(holder_stakes=())
    with boa.reverts("availability: nobody has stake in da"):
        world.availability.beginEpoch()
    world.join(world.accuser, DA, HOLDER_MIN)
    world.availability.beginEpoch()
    (member,) = world.committee().members
    assert (member.address, member.first_seat, member.seats) == (world.accuser.address, 0, 12)


def test_who_left_or_unbonds_has_no_seat(world):
    world.staking.optOut(DA, sender=world.holders[0].text)
    world.staking.beginUnbond(60 * CREDIT, sender=world.holders[1].text)
    world.availability.beginEpoch()
    assert {member.address for member in world.committee().members} == {world.holders[i].address for i in (2, 3)}


def test_a_member_below_one_seat_gets_none(make_world):
    world = make_world(holder_stakes=(500 * CREDIT, HOLDER_MIN, 500 * CREDIT))
    world.availability.beginEpoch()
    assert [(member.address, member.seats) for member in world.committee().members] == [
        (world.holders[2].address, 6),
        (world.holders[0].address, 6),
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seats": 2}, "seats out of range"),
        ({"seats": 257}, "seats out of range"),
        ({"epoch": 0}, "a window is out of range"),
        ({"term": 0}, "a window is out of range"),
        ({"answer": 0}, "a window is out of range"),
        ({"answer": 30 * 86_400 + 1}, "a window is out of range"),
        ({"bond": 0}, "an amount is out of range"),
        ({"penalty": 0}, "an amount is out of range"),
        ({"fee_base": 0}, "an amount is out of range"),
        ({"fee_gib_day": 2**96}, "an amount is out of range"),
    ],
)
def test_deployment_checks_its_settings(world, deploy_contract, deployment_reverts, changes, reason):
    staking = deploy_judged(world, deploy_contract)
    with deployment_reverts(f"availability: {reason}"):
        deploy_contract("DataAvailability", *world.availability_arguments(staking=staking, **changes))


def deploy_judged(world, deploy_contract, token=None):
    """A staking contract that knows as judge of `da` what the stranger deploys after it."""
    nonce = boa.env.evm.vm.state.get_nonce(world.stranger.address)
    judge = create_address(world.stranger.address, nonce + 1)
    credit = token or world.credit.address
    return deploy_contract("SharedStaking", credit, UNBONDING, *PAYOUTS, [(DA, judge)], [(DA, 1)]).address


def test_deployment_checks_its_judge_token_and_the_time_that_stake_stays(world, deploy_contract, deployment_reverts):
    with deployment_reverts("availability: staking does not know this judge"):
        deploy_contract("DataAvailability", *world.availability_arguments())
    staking = deploy_judged(world, deploy_contract, token=world.forks.address)
    with deployment_reverts("availability: staking holds another token"):
        deploy_contract("DataAvailability", *world.availability_arguments(staking=staking))
    answer = UNBONDING - 2 * EPOCH_SECONDS - GRACE - TERM_SECONDS_MAX - ROUND_SECONDS
    staking = deploy_judged(world, deploy_contract)
    with deployment_reverts("availability: stake could leave before an answer"):
        deploy_contract("DataAvailability", *world.availability_arguments(staking=staking, answer=answer))
    staking = deploy_judged(world, deploy_contract)
    made = deploy_contract("DataAvailability", *world.availability_arguments(staking=staking, answer=answer - 1))
    assert made.answerSeconds() == answer - 1


# Certificates


def test_a_certificate_is_one_event_one_slot_and_a_fee(seated):
    blob = seated.make_blob()
    before, fee = seated.balance(seated.buyer), seated.availability.feeOf(6, 300)
    seated.certify(blob, places=(0, 2, 3))
    (event,) = [item for item in seated.availability.get_logs() if type(item).__name__ == "Certified"]
    members = seated.committee().members
    signers = sum(1 << seat for place in (0, 2, 3) for seat in members[place].rows)
    assert (bytes(event.commitment), event.epoch, event.payer) == (blob.matrix.commitment, 1, seated.buyer.text)
    assert (event.beginsAt, event.expiresAt) == (blob.attestation.begins_at, blob.attestation.expires_at)
    assert (bytes(event.root), bytes(event.combinationsHash), event.length) == blob.head
    assert (event.signers, event.fee) == (signers, fee)
    assert seated.availability.signersOf(blob.digest) == signers
    assert before - seated.balance(seated.buyer) == held(seated) == fee
    with boa.reverts("availability: certified before"):
        seated.certify(blob)


def test_two_thirds_of_the_seats_and_not_one_less(make_world):
    """Every set of members: a certificate where their seats are eight of twelve or more."""
    world = make_world(holder_stakes=tuple(CREDIT * n for n in (20, 20, 20, 10, 50)))
    world.availability.beginEpoch()
    seats = [member.seats for member in world.committee().members]
    assert sorted(seats) == [1, 2, 2, 2, 5]
    blob, counts = world.make_blob(), set()
    for chosen in range(2**5):
        places = [place for place in range(5) if chosen >> place & 1]
        counts.add(count := sum(seats[place] for place in places))
        with boa.env.anchor():
            if count >= QUORUM:
                world.certify(blob, places)
            else:
                with boa.reverts("availability: too few seats signed"):
                    world.certify(blob, places)
    assert {QUORUM - 1, QUORUM} <= counts


@pytest.mark.parametrize("seats", [3, 4, 5, 64, 256])
def test_quorum_of_every_size(make_world, seats):
    """One member a seat: the last signature of ⌈2n/3⌉ makes the certificate."""
    world = make_world(holder_stakes=(HOLDER_MIN,) * min(seats, 256), seats=seats)
    world.availability.beginEpoch()
    blob, quorum = world.make_blob(), world.committee().quorum
    assert 3 * (quorum - 1) < 2 * seats <= 3 * quorum
    with boa.reverts("availability: too few seats signed"):
        world.certify(blob, range(quorum - 1))
    world.certify(blob, range(seats))
    assert world.availability.signersOf(blob.digest) == 2**seats - 1


def test_hostile_signatures(seated):
    blob = seated.make_blob()
    good = seated.sign_rows(blob)
    seated.approve(seated.buyer, seated.availability)
    other_domain = structs.protocol_domain(seated.chain_id, address_of(seated.disputes))
    holder = seated.holder_of(0)
    for bad, reason in (
        ([good[1], good[0], *good[2:]], "places do not ascend"),
        ([good[0], good[0], *good[1:]], "places do not ascend"),
        ([*good, (4, good[0][1])], "no member at this place"),
        ([*good[:3], (65_535, good[3][1])], "no member at this place"),
        ([(0, good[1][1]), *good[1:]], "signature is not the member's"),
        ([(0, b""), *good[1:]], "signature is not the member's"),
        ([(0, bytes(65)), *good[1:]], "signature is not the member's"),
        ([(0, good[0][1][:64]), *good[1:]], "signature is not the member's"),
        ([(0, sign_struct(holder.key, other_domain, blob.attestation)), *good[1:]], "signature is not the member's"),
        ([], "too few seats signed"),
    ):
        with boa.reverts(f"availability: {reason}"):
            seated.availability.certify(*blob.tuples, bad, sender=seated.buyer.text)
    s = int.from_bytes(good[0][1][32:64])
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    restated = good[0][1][:32] + (order - s).to_bytes(32) + bytes([55 - good[0][1][64]])
    with boa.reverts("availability: signature is not the member's"):
        seated.availability.certify(*blob.tuples, [(0, restated), *good[1:]], sender=seated.buyer.text)
    # One field changed: all signatures are of something else.
    for field, value in (
        ("expires_at", blob.attestation.expires_at + 1),
        ("begins_at", blob.attestation.begins_at - 1),
    ):
        changed = replace(blob, attestation=replace(blob.attestation, **{field: value}))
        with boa.reverts("availability: signature is not the member's"):
            seated.availability.certify(*changed.tuples, good, sender=seated.buyer.text)


def test_a_head_must_be_the_commitment_s(seated):
    blob = seated.make_blob()
    root, combinations, length = blob.head
    seated.approve(seated.buyer, seated.availability)
    signatures = seated.sign_rows(blob)
    for head, reason in (
        ((ZERO32, combinations, length), "commitment is of another head"),
        ((root, ZERO32, length), "commitment is of another head"),
        ((root, combinations, length + 1), "commitment is of another head"),
        ((root, combinations, 0), "length out of range"),
        ((root, combinations, 2**26 + 1), "length out of range"),
    ):
        with boa.reverts(f"availability: {reason}"):
            seated.availability.certify(blob.tuples[0], head, signatures, sender=seated.buyer.text)


def test_the_term(seated):
    now = seated.now
    for begins, expires, reason in (
        (now + 1, now + 300, "term has not begun"),
        (now - 3601, now + 1, "term began too long ago"),
        (now, now, "term has ended"),
        (now - 10, now - 5, "term has ended"),
        (now, now + TERM_SECONDS_MAX + 1, "term is too long"),
        (now, 2**64 - 1, "term is too long"),
        (2**64 - 1, 2**64 - 1, "term has not begun"),
    ):
        with boa.reverts(f"availability: {reason}"):
            seated.certify(seated.make_blob(begins_at=begins, expires_at=expires))
    seated.certify(seated.make_blob(begins_at=now, expires_at=now + TERM_SECONDS_MAX))
    seated.certify(seated.make_blob(begins_at=now - TERM_SECONDS_MAX + 1, expires_at=now + 1))


def test_a_blob_may_be_certified_again_for_another_term(seated):
    first, second = seated.make_blob(), seated.make_blob(expires_at=seated.now + 301)
    assert first.matrix.commitment == second.matrix.commitment
    seated.certify(first)
    seated.certify(second)


def test_an_epoch_is_good_while_it_is_current_and_a_little_longer(seated):
    with boa.reverts("availability: epoch is not the current one"):
        seated.certify(seated.make_blob(epoch=0))
    with boa.reverts("availability: epoch is not the current one"):
        seated.certify(seated.make_blob(epoch=2))
    with boa.reverts("availability: epoch is not the current one"):
        seated.certify(seated.make_blob(epoch=2**64 - 1))
    seated.wait(EPOCH_SECONDS)
    seated.availability.beginEpoch()
    seated.wait(EPOCH_SECONDS - 1)
    # Two epochs after its begin the stake behind it may be on its way out: grace or not, it is stale.
    seated.certify(seated.make_blob(epoch=1))
    seated.wait(1)
    with boa.reverts("availability: epoch is stale"):
        seated.certify(seated.make_blob(epoch=1))
    seated.certify(seated.make_blob(epoch=2))
    seated.availability.beginEpoch()
    with boa.reverts("availability: epoch is not the current one"):
        seated.certify(seated.make_blob(epoch=1))


def test_the_grace_ends(make_world, deploy_contract):
    """Epochs longer than the grace: the one before is good for 600 seconds, the current one for two epochs."""
    world = make_world()
    nonce = boa.env.evm.vm.state.get_nonce(world.stranger.address)
    judge = create_address(world.stranger.address, nonce + 1)
    staking = deploy_contract("SharedStaking", world.credit.address, 10**5, *PAYOUTS, [(DA, judge)], [(DA, 1)])
    arguments = world.availability_arguments(staking=staking.address, epoch=1000)
    world.staking, world.availability = staking, deploy("DataAvailability", *arguments, sender=world.stranger.text)
    world.join(world.holders[0], DA, CREDIT)
    with boa.reverts("availability: no epoch has begun"):
        world.availability.certify(*world.make_blob().tuples, [], sender=world.buyer.text)
    world.availability.beginEpoch()
    world.wait(1000)
    world.availability.beginEpoch()
    world.wait(GRACE - 1)
    world.certify(world.make_blob(epoch=1))
    world.wait(1)
    with boa.reverts("availability: epoch is not the current one"):
        world.certify(world.make_blob(epoch=1))
    world.wait(2000 - GRACE - 1)
    world.certify(world.make_blob())
    world.wait(1)
    with boa.reverts("availability: epoch is stale"):
        world.certify(world.make_blob())


def test_a_payer_without_money_certifies_nothing(seated):
    blob = seated.make_blob()
    poor = make_actor("poor")
    with boa.reverts():
        seated.certify(blob, payer=poor)
    assert seated.availability.signersOf(blob.digest) == 0


@given(length=st.integers(1, 2**26), term=st.integers(1, TERM_SECONDS_MAX) | st.integers(1, 30 * 86_400))
@settings(max_examples=50, deadline=None)
def test_fees_are_rounded_up(deployed, length, term):
    parameters = Parameters(build_committee_profile(12), length)
    held_bytes = 12 * parameters.row_bytes
    expected = FEE_BASE - (-held_bytes * term * FEE_GIB_DAY // (2**30 * 86_400))
    assert deployed.availability.feeOf(length, term) == expected


def test_the_largest_question_for_a_fee_has_an_answer(world):
    assert world.availability.feeOf(2**64 - 1, 2**64 - 1) > world.availability.feeOf(2**26, 2**64 - 1) > 0
    assert world.availability.feeOf(0, 0) == FEE_BASE


# Challenges


def run_round(world, challenge_id):
    world.run_beacon(world.availability.challengeOf(challenge_id)[2])


@pytest.mark.parametrize(
    "length", [1, 1024 * 4, 1024 * 4 + 1, 1024 * 12, 1024 * 16, 1024 * 4 * 33, 300_000], ids=lambda n: f"{n}B"
)
def test_a_row_answers_a_challenge_and_earns_the_bond(seated, length):
    """One leaf a row, two, three, four and many; the first row and the last."""
    blob = seated.certify(seated.make_blob(bytes(range(1, 252)) * (length // 251) + b"\x01" * (length % 251)))
    parameters = blob.matrix.head.parameters
    assert parameters.length == length
    fee = held(seated)
    for seat in (0, 11):
        challenge_id = seated.challenge_row(blob, seat)
        holder = seated.holder_of(seat)
        deadline = seated.now + ROUND_SECONDS + ANSWER_SECONDS
        challenger, member, number, found = seated.availability.challengeOf(challenge_id)
        assert (challenger, member, found) == (seated.stranger.text, holder.text, deadline)
        assert (seated.availability.deadline(), seated.availability.openChallenges(blob.digest)) == (deadline, 1)
        assert held(seated) == fee + CHALLENGE_BOND
        assert seated.availability.picksOf(challenge_id, length) == []
        with boa.reverts("availability: the beacon has no value yet"):
            seated.availability.answer(*blob.tuples, seat, [], [])
        value = seated.run_beacon(number)
        picks = seated.availability.picksOf(challenge_id, length)
        expected = [
            int.from_bytes(keccak256(value + challenge_id + i.to_bytes(32))) % parameters.leaves_per_row
            for i in range(min(4, parameters.leaves_per_row))
        ]
        assert picks == expected
        for pick, leaf, path in zip(picks, *blob.show(seat, picks), strict=True):
            assert verify_leaf(blob.matrix.root, parameters, seat, pick, leaf, tuple(path))
        before = seated.balance(holder)
        seated.answer_row(blob, seat)
        assert seated.balance(holder) == before + CHALLENGE_BOND
        assert held(seated) == fee
        assert seated.availability.challengeOf(challenge_id)[3] == 0
        assert (seated.availability.deadline(), seated.availability.openChallenges(blob.digest)) == (0, 0)
        with boa.reverts("availability: no challenge is open"):
            seated.answer_row(blob, seat)
        with boa.reverts("availability: no challenge is open"):
            seated.availability.finalize(challenge_id)


def test_hostile_answers(seated):
    content = np.random.default_rng(5).bytes(20_000)  # equal leaves would have equal paths, and be right anywhere
    blob = seated.certify(seated.make_blob(content))
    other = seated.make_blob(content[::-1])
    challenge_id = seated.challenge_row(blob, 5)
    run_round(seated, challenge_id)
    picks = seated.availability.picksOf(challenge_id, 20_000)
    assert blob.matrix.head.parameters.leaves_per_row == 5
    leaves, paths = blob.show(5, picks)
    shown_by_another = blob.show(4, picks)
    shown_of_another = other.show(5, picks)
    moved = [(pick + 1) % 5 for pick in picks]
    short = ([leaf[:1023] for leaf in leaves], paths)
    inner = [paths[0][0].ljust(1024, b"\0"), *leaves[1:]]
    for shown, reason in (
        (shown_by_another, "a leaf is not in this row"),
        (shown_of_another, "a leaf is not in this row"),
        (blob.show(5, moved), "a leaf is not in this row"),
        ((inner, paths), "a leaf is not in this row"),
        (([b"\0" * 1024, *leaves[1:]], paths), "a leaf is not in this row"),
        (short, "a leaf has another size"),
        (([b""] * 4, paths), "a leaf has another size"),
        ((leaves, [path[:-1] for path in paths]), "a path has another length"),
        ((leaves, [[*path, ZERO32] for path in paths]), "a path has another length"),
        ((leaves, [paths[0][1:], *paths[1:]]), "a path has another length"),
        ((leaves, [[], *paths[1:]]), "a path has another length"),
        ((leaves[:3], paths[:3]), "another number of leaves was picked"),
        (([], []), "another number of leaves was picked"),
        ((leaves, paths[:3]), "another number of leaves was picked"),
    ):
        with boa.reverts(f"availability: {reason}"):
            seated.availability.answer(*blob.tuples, 5, *shown)
    root, combinations, _ = blob.head
    with boa.reverts("availability: commitment is of another head"):
        seated.availability.answer(blob.tuples[0], (root, combinations, 4096), 5, leaves, paths)
    with boa.reverts("availability: no challenge is open"):
        seated.availability.answer(*blob.tuples, 4, *shown_by_another)
    with boa.reverts("availability: no challenge is open"):
        seated.availability.answer(*other.tuples, 5, *shown_of_another)
    with boa.reverts():
        seated.availability.answer(*blob.tuples, 5, [leaf + b"\0" for leaf in leaves], paths)
    with boa.reverts():
        seated.availability.answer(*blob.tuples, 5, leaves, [path * 4 for path in paths])
    seated.availability.answer(*blob.tuples, 5, leaves, paths, sender=seated.accuser.text)


def test_who_cannot_answer_is_slashed(seated, certified):
    before, supply = seated.balance(seated.stranger), seated.credit.totalSupply()
    fee, signers = held(seated), seated.availability.signersOf(certified.digest)
    challenge_id = seated.challenge_row(certified, 7)
    holder = seated.holder_of(7)
    stake = seated.staking.stakeOf(holder.text)
    run_round(seated, challenge_id)
    asked_at = seated.beacon.finalizedAt(seated.availability.challengeOf(challenge_id)[2])
    assert seated.availability.endsAt(challenge_id) == asked_at + ANSWER_SECONDS
    seated.wait(asked_at + ANSWER_SECONDS - seated.now - 1)
    with boa.reverts("availability: the member may still answer"):
        seated.availability.finalize(challenge_id)
    seated.wait(1)
    assert seated.availability.finalize(challenge_id, sender=seated.accuser.text) == ROW_PENALTY
    assert seated.balance(seated.stranger) == before + ROW_PENALTY // 10
    assert seated.credit.totalSupply() == supply - ROW_PENALTY * 9 // 10 == seated.total_held()
    assert seated.staking.stakeOf(holder.text) == stake - ROW_PENALTY
    assert held(seated) == fee
    assert seated.availability.signersOf(certified.digest) == signers ^ (1 << 7)
    assert (seated.availability.deadline(), seated.availability.openChallenges(certified.digest)) == (0, 0)
    with boa.reverts("availability: no challenge is open"):
        seated.availability.finalize(challenge_id)
    with boa.reverts("availability: no challenge is open"):
        seated.answer_row(certified, 7)


def test_a_caught_seat_is_not_challenged_again_and_others_are(make_world):
    world = make_world()
    world.availability.beginEpoch()
    blob = world.certify(world.make_blob(expires_at=world.now + TERM_SECONDS_MAX))
    for seat in (7, 8):
        challenge_id = world.challenge_row(blob, seat)
        run_round(world, challenge_id)
        world.wait(ROUND_SECONDS + ANSWER_SECONDS)
        world.availability.finalize(challenge_id)
        with boa.reverts("availability: seat did not sign"):
            world.challenge_row(blob, seat)


def test_an_answer_is_possible_until_somebody_finalizes(seated, certified):
    challenge_id = seated.challenge_row(certified, 3)
    run_round(seated, challenge_id)
    seated.wait(10_000)
    seated.answer_row(certified, 3)
    assert seated.availability.deadline() == 0


def test_a_value_that_comes_late_still_leaves_the_whole_time_to_answer(seated, certified):
    challenge_id = seated.challenge_row(certified, 3)
    deadline = seated.availability.endsAt(challenge_id)
    number = seated.availability.challengeOf(challenge_id)[2]
    for auditor in seated.auditors:
        seated.beacon.commit(number, seated.beacon_commitment(number, auditor), sender=auditor.text)
    seated.beacon.reveal(number, secret_of(seated.auditors[0]), sender=seated.auditors[0].text)
    seated.wait(deadline - seated.now + 1000)
    assert seated.availability.endsAt(challenge_id) == deadline
    seated.beacon.finalize(number)  # the chain stood still, or nobody cared to
    assert seated.availability.endsAt(challenge_id) == seated.now + ANSWER_SECONDS
    with boa.reverts("availability: the member may still answer"):
        seated.availability.finalize(challenge_id)
    seated.wait(ANSWER_SECONDS - 1)
    with boa.env.anchor():
        seated.answer_row(certified, 3)
    seated.wait(1)
    assert seated.availability.finalize(challenge_id) == ROW_PENALTY


@pytest.mark.parametrize("fails", [True, False], ids=["failed", "still open"])
def test_without_a_value_nobody_was_asked(seated, certified, fails):
    before, fee = seated.balance(seated.stranger), held(seated)
    challenge_id = seated.challenge_row(certified, 3)
    number = seated.availability.challengeOf(challenge_id)[2]
    for _ in range(4 if fails else 1):
        seated.wait(40)
        seated.beacon.finalize(number)
    assert (seated.beacon.phase(number) == 5) == fails
    seated.wait(ROUND_SECONDS + ANSWER_SECONDS)
    assert seated.availability.finalize(challenge_id) == 0
    assert seated.balance(seated.stranger) == before
    assert held(seated) == fee
    assert seated.availability.signersOf(certified.digest) == 2**12 - 1
    assert (seated.availability.deadline(), seated.availability.openChallenges(certified.digest)) == (0, 0)


def test_who_can_be_challenged_and_when(seated):
    blob = seated.certify(seated.make_blob(), places=(0, 1, 3))
    absent = seated.committee().members[2]
    seated.approve(seated.stranger, seated.availability)
    for seat in (absent.first_seat, absent.rows[-1]):
        with boa.reverts("availability: seat did not sign"):
            seated.challenge_row(blob, seat)
    for seat in (12, 255, 256, 2**256 - 1):
        with boa.reverts("availability: no such seat"):
            seated.availability.challenge(struct_tuple(blob.attestation), seat, sender=seated.stranger.text)
    with boa.reverts("availability: seat did not sign"):
        seated.challenge_row(seated.make_blob(b"another"), 0)
    seated.challenge_row(blob, 0)
    with boa.reverts("availability: a challenge is open"):
        seated.challenge_row(blob, 0, seated.accuser)
    seated.challenge_row(blob, 1, seated.accuser)
    assert seated.availability.openChallenges(blob.digest) == 2
    seated.wait(299)
    seated.challenge_row(blob, 2)
    seated.wait(1)
    with boa.reverts("availability: term has ended"):
        seated.challenge_row(blob, 3)


def test_the_owner_of_every_seat_is_found(seated, certified):
    for seat in range(12):
        challenge_id = seated.challenge_row(certified, seat)
        assert seated.availability.challengeOf(challenge_id)[1] == seated.holder_of(seat).text


def test_stake_is_slashable_until_the_last_challenge_of_the_last_certificate_is_over(seated):
    """A member leaves the moment its epoch has begun; the last certificate of the epoch, and its last challenge."""
    for holder in seated.holders:
        seated.staking.beginUnbond(seated.staking.stakeOf(holder.text), sender=holder.text)
    seated.wait(2 * EPOCH_SECONDS - 1)
    blob = seated.certify(seated.make_blob(expires_at=seated.now + TERM_SECONDS_MAX))
    seated.wait(TERM_SECONDS_MAX - 1)
    challenge_id = seated.challenge_row(blob, 0)
    run_round(seated, challenge_id)
    seated.wait(ROUND_SECONDS + ANSWER_SECONDS)
    holder = seated.holder_of(0)
    with boa.reverts("staking: unbonding time has not passed"):
        seated.staking.withdraw(sender=holder.text)
    assert seated.availability.finalize(challenge_id) == ROW_PENALTY


def test_an_empty_slice_ends_a_challenge_without_a_bounty(seated, certified):
    before = seated.balance(seated.stranger)
    challenge_id = seated.challenge_row(certified, 0)
    run_round(seated, challenge_id)
    holder = seated.holder_of(0)
    seated.staking.beginUnbond(seated.staking.stakeOf(holder.text), sender=holder.text)
    seated.wait(UNBONDING)
    seated.staking.withdraw(sender=holder.text)
    assert seated.staking.sliceOf(DA, holder.text) == 0
    assert seated.availability.finalize(challenge_id) == 0
    assert seated.balance(seated.stranger) == before
    assert seated.availability.signersOf(certified.digest) == 2**12 - 2


def test_the_longest_path_of_any_committee_fits(harness):
    for seats in range(3, 257):
        parameters = Parameters(build_committee_profile(seats), 2**26)
        profile = parameters.profile
        assert parameters.leaf_depth + profile.depth <= harness.path_max()
        if seats % 16 in (0, 3):
            assert harness.depths(2**26, profile.data_rows, seats) == (parameters.leaf_depth, profile.depth)
            assert harness.leaves_per_row(2**26, profile.data_rows) == parameters.leaves_per_row


# Fees


def settle(world, *blobs, sender=None):
    sender = sender or world.stranger
    world.availability.settle([blob.tuples for blob in blobs], sender=sender.text)


def test_fees_are_shared_by_seats_and_withdrawn(seated):
    blobs = [seated.certify(seated.make_blob(bytes([i + 1]) * 3000 * (i + 1))) for i in range(4)]
    blobs.append(seated.certify(seated.make_blob(b"few"), places=(1, 2, 3)))
    seated.wait(299)
    with boa.reverts("availability: term has not ended"):
        settle(seated, *blobs)
    seated.wait(1)
    total = held(seated)
    members = seated.committee().members
    expected = dict.fromkeys((member.address for member in members), 0)
    for index, blob in enumerate(blobs):
        paid = members if index < 4 else members[1:]
        fee, count = seated.availability.feeOf(blob.head[2], blob.term_s), sum(member.seats for member in paid)
        for member in paid:
            expected[member.address] += fee // count * member.seats
        expected[paid[0].address] += fee % count
    assert sum(expected.values()) == total
    settle(seated, *blobs)
    by_address = {holder.address: holder for holder in seated.holders}
    for address, amount in expected.items():
        holder = by_address[address]
        assert seated.availability.earnedOf(holder.text) == amount
        before = seated.balance(holder)
        assert seated.availability.withdraw(sender=holder.text) == amount
        assert seated.balance(holder) == before + amount
        with boa.reverts("availability: nothing is earned"):
            seated.availability.withdraw(sender=holder.text)
    assert held(seated) == 0
    assert [seated.availability.signersOf(blob.digest) for blob in blobs] == [0] * 5


def test_what_cannot_be_settled(seated, certified):
    seated.certify(other := seated.make_blob(b"other"))
    unknown = seated.make_blob(b"unknown")
    seated.wait(EPOCH_SECONDS)
    seated.availability.beginEpoch()
    later = seated.certify(seated.make_blob(b"later"))
    seated.wait(EPOCH_SECONDS)
    for blobs, reason in (
        ((), "nothing to settle"),
        ((certified, later), "certificates of several epochs"),
        ((certified, certified), "not certified, or settled before"),
        ((certified, unknown), "not certified, or settled before"),
    ):
        with boa.reverts(f"availability: {reason}"):
            settle(seated, *blobs)
    root, combinations, length = certified.head
    with boa.reverts("availability: commitment is of another head"):
        seated.availability.settle([(certified.tuples[0], (root, combinations, length + 1))])
    settle(seated, certified)
    with boa.reverts("availability: not certified, or settled before"):
        settle(seated, certified)
    settle(seated, other)
    settle(seated, later)
    with boa.reverts():
        settle(seated, *[later] * 17)


def test_an_open_challenge_keeps_a_certificate_from_being_settled(seated, certified):
    fee = held(seated)
    challenge_id = seated.challenge_row(certified, 0)
    run_round(seated, challenge_id)
    seated.wait(1000)
    with boa.reverts("availability: a challenge is open"):
        settle(seated, certified)
    seated.availability.finalize(challenge_id)
    settle(seated, certified)
    first = seated.holder_of(0)
    # Eleven seats share it; the lowest of those left gets the rest.
    shares = {member.address: member.seats for member in seated.committee().members}
    shares[first.address] -= 1
    expected = {address: fee // 11 * count for address, count in shares.items()}
    expected[seated.holder_of(1).address] += fee % 11
    assert {holder.address: seated.availability.earnedOf(holder.text) for holder in seated.holders} == expected
    assert held(seated) == fee


def test_a_fee_that_nobody_earned_is_burned_and_the_certificate_stays_used(make_world):
    world = make_world(holder_stakes=(HOLDER_MIN * 20,))
    world.availability.beginEpoch()
    blob = world.certify(world.make_blob(expires_at=world.now + TERM_SECONDS_MAX))
    fee = held(world)
    ids = [world.challenge_row(blob, seat) for seat in range(12)]
    run_round(world, ids[0])
    world.wait(ROUND_SECONDS + ANSWER_SECONDS)
    for challenge_id in ids:
        assert world.availability.finalize(challenge_id) == ROW_PENALTY
    assert world.availability.signersOf(blob.digest) == 0
    assert world.availability.isForfeited(blob.digest)
    with boa.reverts("availability: certified before"):
        world.certify(blob)
    world.wait(TERM_SECONDS_MAX)
    supply = world.credit.totalSupply()
    settle(world, blob)
    assert world.credit.totalSupply() == supply - fee
    assert held(world) == 0
    with boa.reverts("availability: not certified, or settled before"):
        settle(world, blob)


@given(bits=st.integers(0, 2**256 - 1))
@example(bits=2**256 - 1)
@example(bits=2**255)
@settings(max_examples=60, deadline=None)
def test_a_word_of_a_committee_is_read_back(bits):
    words = [(bits & (2**160 - 1)) | 3 << 176]
    (member,) = decode_committee(1, 2, words, 3).members
    assert member.address == Address((bits & (2**160 - 1)).to_bytes(20))


@pytest.mark.slow
def test_a_full_committee_is_paid_to_the_unit(make_world):
    """All 256 bits of the slot in use, by one member and by one member a seat."""
    seats = 256
    for stakes in ((HOLDER_MIN,), (HOLDER_MIN,) * 256):
        world = make_world(holder_stakes=stakes, seats=seats)
        world.availability.beginEpoch()
        blob = world.certify(world.make_blob())
        fee = held(world)
        world.wait(300)
        settle(world, blob)
        earned = [world.availability.earnedOf(holder.text) for holder in world.holders]
        assert sum(earned) == fee
        assert sorted(earned)[-2:] == [fee // seats, fee // seats + fee % seats] if len(stakes) > 1 else [fee]


def test_auditors_hold_no_rows(seated):
    """The services are told apart: an auditor's stake gives no seat."""
    assert seated.staking.power(AUDIT, seated.auditors[0].text) > 0
    assert seated.committee().find_place(seated.auditors[0].address) is None
