"""Disputes: the whole path of an accusation, who may take each step, exact quorum edges, and where money goes."""

from dataclasses import replace

import boa
import pytest

from deaios.ledger import structs
from deaios.ledger.eip712 import hash_struct, hash_typed_data, sign_struct
from deaios.ledger.selection import decode_snapshot, draw_jury
from deaios.primitives.hashing import keccak256
from deaios.primitives.units import CREDIT

COMPUTE, AUDIT = keccak256(b"compute"), keccak256(b"audit")
ACQUIT, GUILTY, NO_QUORUM = 1, 2, 3
BEACON, DRAW, COMMIT, REVEAL, TALLY, APPEAL, FINALIZE, CLOSED = range(1, 9)
FEE = CREDIT // 100
ROOT, MANIFEST, SALT = b"\x07" * 32, b"\x09" * 32, b"\x08" * 32


@pytest.fixture
def config(world):
    config = world.make_config()
    world.deposit(config, 5 * CREDIT)
    return config


@pytest.fixture
def purchase(world, config):
    return world.make_receipt(config, FEE)


@pytest.fixture
def dispute_id(world, purchase):
    return world.open_dispute(purchase)


def balances(world):
    return {actor: world.balance(actor) for actor in world.everyone}


def changes(world, before):
    return {actor: now - before[actor] for actor, now in balances(world).items() if now != before[actor]}


def tally(world, dispute_id):
    world.disputes.tally(dispute_id, sender=world.stranger.text)


def finalize(world, dispute_id):
    world.wait(8)
    world.disputes.finalize(dispute_id, sender=world.stranger.text)


def judge(world, dispute_id, judgements):
    """Seat a jury, let it vote, tally; the jurors."""
    jurors = world.seat_jury(dispute_id)
    world.vote(dispute_id, judgements)
    if None in judgements:
        world.wait(30)
    tally(world, dispute_id)
    return jurors


def test_digests_are_those_of_the_python_side(world, purchase):
    request, _, receipt, _ = purchase
    assert bytes(world.disputes.requestDigest(world.tuple_of(request))) == hash_struct(request)
    assert bytes(world.disputes.receiptDigest(world.tuple_of(receipt))) == hash_struct(receipt)
    assert bytes(world.disputes.domainSeparator()) == world.domain().separator()
    verdict = structs.Verdict(7, world.buyer.address, 2, ROOT, SALT)
    on_chain = world.disputes.verdictDigest(7, world.buyer.text, 2, ROOT, SALT)
    assert bytes(on_chain) == hash_struct(verdict)


def test_every_field_of_request_and_receipt_is_in_the_digest(world, purchase):
    request, _, receipt, _ = purchase
    for struct, contract in ((request, world.disputes.requestDigest), (receipt, world.disputes.receiptDigest)):
        for name, value in struct.__dict__.items():
            changed = value + 1 if isinstance(value, int) else bytes([value[0] ^ 1]) + value[1:]
            other = replace(struct, **{name: changed})
            assert bytes(contract(world.tuple_of(other))) == hash_struct(other) != hash_struct(struct)


def test_guilty_slashes_refunds_burns_and_pays(world, purchase, dispute_id):
    disputes, supply = world.disputes, world.credit.totalSupply()
    assert world.balance(disputes) == 2 * CREDIT
    assert disputes.isPaused(world.provider.text)
    assert disputes.openDisputeOf(hash_struct(purchase[2])) == dispute_id == disputes.disputeCount()
    assert disputes.phaseOf(dispute_id) == BEACON
    jurors = world.seat_jury(dispute_id)
    assert disputes.phaseOf(dispute_id) == COMMIT
    assert disputes.deadline() == world.now + 90
    world.vote(dispute_id, [GUILTY, GUILTY, ACQUIT])
    assert disputes.phaseOf(dispute_id) == TALLY
    tally(world, dispute_id)
    assert disputes.phaseOf(dispute_id) == APPEAL
    assert world.dispute(dispute_id).verdict == GUILTY
    with boa.reverts("disputes: dispute cannot be finalized now"):
        disputes.finalize(dispute_id)
    before = balances(world)
    finalize(world, dispute_id)
    slashed = 10 * CREDIT
    paid = {world.buyer: FEE, world.accuser: 2 * CREDIT + slashed // 10}
    paid |= dict.fromkeys(jurors, CREDIT // 5)
    assert changes(world, before) == paid
    assert world.staking.stakeOf(world.provider.text) == 40 * CREDIT
    burned = slashed - FEE - slashed // 10 - 3 * CREDIT // 5
    assert burned >= slashed / 2
    assert world.credit.totalSupply() == supply - burned == world.total_held()
    closed = world.dispute(dispute_id)
    assert (closed.slashed, closed.refunded, closed.bounty, closed.burned) == (slashed, FEE, slashed // 10, burned)
    assert disputes.phaseOf(dispute_id) == CLOSED
    assert not disputes.isPaused(world.provider.text)
    assert (world.balance(disputes), disputes.deadline(), disputes.openDisputeOf(hash_struct(purchase[2]))) == (0, 0, 0)
    with boa.reverts("disputes: dispute cannot be finalized now"):
        disputes.finalize(dispute_id)
    with boa.reverts("disputes: receipt was found guilty"):
        world.open_dispute(purchase, world.stranger)


def test_acquitted_the_accuser_pays_the_accused_and_the_jury(world, dispute_id):
    supply = world.credit.totalSupply()
    jurors = judge(world, dispute_id, [ACQUIT] * 3)
    before = balances(world)
    finalize(world, dispute_id)
    assert changes(world, before) == {world.provider: CREDIT} | dict.fromkeys(jurors, CREDIT // 5)
    assert world.credit.totalSupply() == supply - (CREDIT - 3 * (CREDIT // 5)) == world.total_held()
    assert world.staking.stakeOf(world.provider.text) == 50 * CREDIT


@pytest.mark.parametrize(
    ("judgements", "verdict"),
    [
        ([GUILTY, GUILTY, None], GUILTY),
        ([GUILTY, GUILTY, ACQUIT], GUILTY),
        ([GUILTY, ACQUIT, ACQUIT], ACQUIT),
        ([GUILTY, ACQUIT, None], None),
        ([GUILTY, None, None], None),
        ([None, None, None], None),
    ],
)
def test_quorum_of_three_is_two(world, dispute_id, judgements, verdict):
    judge(world, dispute_id, judgements)
    dispute = world.dispute(dispute_id)
    if verdict is None:
        assert (dispute.verdict, dispute.redrawn, world.disputes.phaseOf(dispute_id)) == (0, True, BEACON)
    else:
        assert (dispute.verdict, dispute.redrawn) == (verdict, False)


@pytest.mark.parametrize(("size", "needed"), [(1, 1), (2, 2), (4, 3), (5, 4), (6, 4), (7, 5)])
def test_guilty_needs_two_thirds_of_the_jury_rounded_up(make_world, world, size, needed):
    settings = replace(world.settings, jury_size=size)
    for guilty in (needed - 1, needed):
        with boa.env.anchor():
            other = make_world(settings, auditors=7)
            config = other.make_config()
            other.deposit(config, CREDIT)
            dispute_id = other.open_dispute(other.make_receipt(config))
            judge(other, dispute_id, [GUILTY] * guilty + [None] * (size - guilty))
            assert (other.dispute(dispute_id).verdict == GUILTY) == (guilty == needed)


def test_without_quorum_twice_everyone_gets_the_bond_back_but_silent_jurors_pay(world, dispute_id):
    supply = world.credit.totalSupply()
    first = judge(world, dispute_id, [None, None, None])
    assert [world.staking.stakeOf(juror.text) for juror in first] == [19 * CREDIT] * 3
    with boa.reverts("disputes: no appeal is possible now"):
        world.disputes.appeal(dispute_id, sender=world.accuser.text)
    assert world.dispute(dispute_id).round == world.beacon.openRound() == 2
    judge(world, dispute_id, [GUILTY, ACQUIT, None])
    dispute = world.dispute(dispute_id)
    assert (dispute.verdict, dispute.draws) == (NO_QUORUM, 2)
    assert world.disputes.phaseOf(dispute_id) == FINALIZE
    before = balances(world)
    world.disputes.finalize(dispute_id, sender=world.stranger.text)
    assert changes(world, before) == {world.accuser: 2 * CREDIT}
    assert world.credit.totalSupply() == supply - 4 * CREDIT == world.total_held()


def test_when_no_second_jury_can_be_had_the_dispute_ends_at_once(world, dispute_id):
    jurors = world.seat_jury(dispute_id)
    world.vote(dispute_id, [None] * 3)
    for auditor in world.auditors:
        if auditor not in jurors:
            world.staking.optOut(AUDIT, sender=auditor.text)
    world.staking.optOut(AUDIT, sender=jurors[0].text)
    world.wait(30)
    tally(world, dispute_id)
    assert world.dispute(dispute_id).verdict == NO_QUORUM
    assert world.staking.stakeOf(jurors[0].text) == 19 * CREDIT
    world.disputes.finalize(dispute_id)


def test_a_guilty_provider_appeals_and_is_acquitted_by_a_wider_jury(world, dispute_id):
    first = judge(world, dispute_id, [GUILTY] * 3)
    for stranger in (world.accuser, world.buyer, world.stranger):
        with boa.reverts("disputes: caller did not lose"):
            world.disputes.appeal(dispute_id, sender=stranger.text)
    world.approve(world.provider, world.disputes)
    world.disputes.appeal(dispute_id, sender=world.provider.text)
    assert world.balance(world.disputes) == 6 * CREDIT
    second = world.seat_jury(dispute_id)
    assert len(second) == len(world.auditors) == 5
    world.vote(dispute_id, [ACQUIT] * 4 + [GUILTY])
    tally(world, dispute_id)
    dispute = world.dispute(dispute_id)
    assert (dispute.verdict, dispute.firstVerdict) == (ACQUIT, GUILTY)
    assert world.disputes.phaseOf(dispute_id) == FINALIZE
    with boa.reverts("disputes: no appeal is possible now"):
        world.disputes.appeal(dispute_id, sender=world.accuser.text)
    before = balances(world)
    world.disputes.finalize(dispute_id)
    fees = dict.fromkeys(second, CREDIT // 8)
    for juror in first:
        fees[juror] += CREDIT // 8
    assert changes(world, before) == {world.provider: CREDIT + 4 * CREDIT} | fees
    assert world.balance(world.disputes) == 0
    assert world.total_held() == world.credit.totalSupply()


def test_a_lost_appeal_costs_the_appellant(world, dispute_id):
    judge(world, dispute_id, [ACQUIT] * 3)
    world.disputes.appeal(dispute_id, sender=world.accuser.text)
    judge(world, dispute_id, [ACQUIT] * 5)
    before = balances(world)
    world.disputes.finalize(dispute_id)
    assert changes(world, before)[world.provider] == CREDIT + 2 * CREDIT
    assert world.accuser not in changes(world, before)
    assert world.balance(world.disputes) == 0
    assert world.total_held() == world.credit.totalSupply()


def test_an_accuser_wins_on_appeal(world, dispute_id):
    judge(world, dispute_id, [ACQUIT] * 3)
    world.disputes.appeal(dispute_id, sender=world.accuser.text)
    judge(world, dispute_id, [GUILTY] * 4 + [ACQUIT])
    before = balances(world)
    world.disputes.finalize(dispute_id)
    assert changes(world, before)[world.accuser] == 2 * CREDIT + CREDIT + 4 * CREDIT
    assert world.balance(world.disputes) == 0


def test_an_appeal_without_quorum_twice_acquits_and_nobody_loses_a_bond(world, dispute_id):
    judge(world, dispute_id, [GUILTY] * 3)
    world.approve(world.provider, world.disputes)
    world.disputes.appeal(dispute_id, sender=world.provider.text)
    for _ in range(2):
        judge(world, dispute_id, [GUILTY] * 3 + [ACQUIT] * 2)
    dispute = world.dispute(dispute_id)
    assert (dispute.verdict, dispute.draws) == (NO_QUORUM, 3)
    before = balances(world)
    world.disputes.finalize(dispute_id)
    assert changes(world, before) == {world.accuser: 2 * CREDIT, world.provider: 4 * CREDIT}


def test_the_longest_path_pays_everyone_who_revealed_in_any_of_four_juries(world, dispute_id):
    judge(world, dispute_id, [GUILTY, ACQUIT, None])
    judge(world, dispute_id, [GUILTY] * 3)
    world.approve(world.provider, world.disputes)
    world.disputes.appeal(dispute_id, sender=world.provider.text)
    judge(world, dispute_id, [GUILTY] * 3 + [ACQUIT] * 2)
    judge(world, dispute_id, [ACQUIT] * 5)
    dispute = world.dispute(dispute_id)
    assert (dispute.draws, dispute.verdict, dispute.firstVerdict) == (4, ACQUIT, GUILTY)
    before = balances(world)
    world.disputes.finalize(dispute_id)
    paid = changes(world, before)
    assert paid.pop(world.provider) == CREDIT + 4 * CREDIT
    assert sum(paid.values()) == 15 * (CREDIT // 15)
    assert world.balance(world.disputes) == 0
    assert world.total_held() == world.credit.totalSupply()


def test_the_appeal_window_closes(world, dispute_id):
    judge(world, dispute_id, [GUILTY] * 3)
    world.approve(world.provider, world.disputes)
    world.wait(8)
    with boa.reverts("disputes: no appeal is possible now"):
        world.disputes.appeal(dispute_id, sender=world.provider.text)
    world.disputes.finalize(dispute_id)


def fail_beacon(world):
    for _ in range(4):
        world.wait(40)
        world.beacon.finalize(world.beacon.roundCount())


def test_a_failed_beacon_ends_the_dispute_without_loss(world, dispute_id):
    with boa.reverts("disputes: no jury is to be drawn now"):
        world.disputes.draw(dispute_id)
    fail_beacon(world)
    assert world.disputes.phaseOf(dispute_id) == DRAW
    world.disputes.draw(dispute_id)
    assert world.disputes.phaseOf(dispute_id) == FINALIZE
    before = balances(world)
    world.disputes.finalize(dispute_id)
    assert changes(world, before) == {world.accuser: 2 * CREDIT}


def test_a_failed_beacon_leaves_the_first_verdict_and_returns_the_appeal_bond(world, dispute_id):
    judge(world, dispute_id, [GUILTY] * 3)
    world.approve(world.provider, world.disputes)
    before = balances(world)
    world.disputes.appeal(dispute_id, sender=world.provider.text)
    fail_beacon(world)
    world.disputes.draw(dispute_id)
    assert changes(world, before) == {}
    world.disputes.finalize(dispute_id)
    assert world.dispute(dispute_id).verdict == GUILTY
    assert world.staking.stakeOf(world.provider.text) == 40 * CREDIT
    assert world.balance(world.disputes) == 0


def test_the_jury_is_the_one_that_python_draws(world, dispute_id):
    roster = decode_snapshot(world.disputes.snapshotOf(dispute_id))
    assert roster == tuple((auditor.address, 20 * CREDIT) for auditor in world.auditors)
    jurors = world.seat_jury(dispute_id)
    value = bytes(world.beacon.value(world.dispute(dispute_id).round))
    assert tuple(juror.address for juror in jurors) == draw_jury(value, dispute_id, 0, roster, 3)


def test_juries_are_numbered_from_one(world, dispute_id):
    assert world.disputes.jurorsOf(dispute_id) == world.disputes.juryAt(dispute_id, 0) == []
    first = judge(world, dispute_id, [GUILTY, ACQUIT, None])
    second = world.seat_jury(dispute_id)
    assert world.dispute(dispute_id).draws == 2
    for number, jury in ((1, first), (2, second)):
        assert world.disputes.juryAt(dispute_id, number) == [juror.text for juror in jury]
    assert world.disputes.ballotOf(dispute_id, 1, first[0].text)[1] == GUILTY
    assert world.disputes.ballotOf(dispute_id, 2, first[0].text)[1] == 0


def test_stake_moved_after_opening_does_not_change_the_draw(world, dispute_id):
    before = world.disputes.snapshotOf(dispute_id)
    world.join(world.stranger, AUDIT, 500 * CREDIT)
    world.staking.optOut(AUDIT, sender=world.auditors[0].text)
    assert world.disputes.snapshotOf(dispute_id) == before


def test_accuser_accused_and_buyer_never_sit(world, config):
    """All three are auditors too; with them the jury could be seated, without them it cannot."""
    world.join(world.buyer, AUDIT, 20 * CREDIT)
    world.join(world.accuser, AUDIT, 20 * CREDIT)
    world.join(world.stranger, AUDIT, 20 * CREDIT)
    world.approve(world.provider, world.staking)
    world.staking.stake(50 * CREDIT, sender=world.provider.text)
    world.staking.optOut(COMPUTE, sender=world.provider.text)
    world.wait(3600)
    world.staking.completeOptOut(COMPUTE, world.provider.text)
    world.staking.optIn(COMPUTE, 5000, sender=world.provider.text)
    world.staking.optIn(AUDIT, 5000, sender=world.provider.text)
    config = world.make_config(payer_authorizer=world.stranger.address, salt=b"\x01" * 32)
    world.deposit(config, CREDIT)
    dispute_id = world.open_dispute(world.make_receipt(config))
    seated = {member for member, _ in decode_snapshot(world.disputes.snapshotOf(dispute_id))}
    assert seated == {auditor.address for auditor in world.auditors}


def test_too_few_auditors_refuse_the_dispute(world, purchase):
    for auditor in world.auditors[:3]:
        world.staking.optOut(AUDIT, sender=auditor.text)
    with boa.reverts("disputes: too few auditors for a jury"):
        world.open_dispute(purchase)
    assert not world.disputes.isPaused(world.provider.text)


def test_evidence_is_committed_before_and_bound_to_its_accuser(world, purchase):
    with boa.reverts("disputes: evidence was not committed"):
        world.open_dispute(purchase, commit=False)
    commitment = keccak256(world.accuser.address.rjust(32, b"\0") + ROOT + SALT)
    world.disputes.commitEvidence(commitment, sender=world.accuser.text)
    with boa.reverts("disputes: evidence was committed in this block"):
        world.open_dispute(purchase, commit=False)
    world.wait(1)
    world.disputes.commitEvidence(commitment, sender=world.stranger.text)
    with boa.reverts("disputes: evidence was not committed"):
        world.open_dispute(purchase, world.stranger, commit=False)
    assert world.open_dispute(purchase, commit=False) == 1


def test_what_cannot_be_disputed(world, config, purchase):
    request, request_signature, receipt, receipt_signature = purchase

    def refuse(message, *changed, accuser=None):
        with boa.env.anchor(), boa.reverts(message):
            world.open_dispute(changed, accuser)

    domain = world.domain()
    other_request = replace(request, max_fee=1)
    refuse("disputes: receipt is for another request", other_request, request_signature, receipt, receipt_signature)
    other_receipt = replace(receipt, channel_id=b"\x01" * 32)
    refuse("disputes: receipt names another channel", request, request_signature, other_receipt, receipt_signature)
    forged = sign_struct(world.stranger.key, domain, receipt)
    refuse("disputes: receipt is not signed by the provider", request, request_signature, receipt, forged)
    refuse("disputes: receipt is not signed by the provider", request, request_signature, receipt, b"")
    changed = replace(receipt, fee=receipt.fee + 1)
    refuse("disputes: receipt is not signed by the provider", request, request_signature, changed, receipt_signature)
    for bad in (sign_struct(world.accuser.key, domain, request), b"", bytes(65)):
        refuse("disputes: request is not signed by the channel's payer", request, bad, receipt, receipt_signature)
    refuse("disputes: accuser is the accused", *purchase, accuser=world.provider)
    empty = world.make_config(salt=b"\x02" * 32)
    refuse("disputes: channel is unknown", *world.make_receipt(empty))
    unstaked = world.make_receipt(config, provider=world.stranger)
    refuse("disputes: provider has no stake in compute", *unstaked)


def test_a_receipt_can_be_disputed_until_its_block(world, purchase):
    world.commit_evidence(world.accuser)
    last = purchase[0].deadline_block + world.settings.open_blocks
    boa.env.time_travel(blocks=last + 1 - boa.env.evm.patch.block_number)
    with boa.reverts("disputes: too late for this receipt"):
        world.open_dispute(purchase, commit=False)
    boa.env.evm.patch.block_number = last
    world.open_dispute(purchase, commit=False)


def test_a_friend_s_dispute_does_not_use_up_the_time_to_open(world, purchase, dispute_id):
    """The provider's friend disputes first, with worthless evidence, and lets the window pass meanwhile."""
    judge(world, dispute_id, [ACQUIT] * 3)
    last = purchase[0].deadline_block + world.settings.open_blocks
    boa.env.time_travel(blocks=last + 1 - boa.env.evm.patch.block_number)
    world.disputes.finalize(dispute_id, sender=world.stranger.text)
    closed = boa.env.evm.patch.block_number
    world.commit_evidence(world.stranger, salt=ROOT)
    boa.env.evm.patch.block_number = closed + world.settings.open_blocks + 1
    with boa.reverts("disputes: too late for this receipt"):
        world.open_dispute(purchase, world.stranger, salt=ROOT, commit=False)
    boa.env.evm.patch.block_number = closed + world.settings.open_blocks
    again = world.open_dispute(purchase, world.stranger, salt=ROOT, commit=False)
    assert world.dispute(again).bond == 4 * CREDIT


def test_one_dispute_at_a_time_and_the_next_costs_twice(world, purchase, dispute_id):
    digest = hash_struct(purchase[2])
    with boa.reverts("disputes: receipt is in dispute"):
        world.open_dispute(purchase, world.stranger)
    judge(world, dispute_id, [ACQUIT] * 3)
    finalize(world, dispute_id)
    assert world.disputes.bondOf(digest) == 4 * CREDIT
    again = world.open_dispute(purchase, world.stranger, salt=ROOT)
    assert world.dispute(again).bond == world.balance(world.disputes) == 4 * CREDIT
    judge(world, again, [GUILTY] * 3)
    finalize(world, again)
    assert world.dispute(again).refunded == FEE


def test_jurors_commit_once_and_reveal_what_they_committed(world, dispute_id):
    jurors = world.seat_jury(dispute_id)
    spectator = next(auditor for auditor in world.auditors if auditor not in jurors)
    commitments = {juror: hash_struct(world.verdict(dispute_id, juror, GUILTY)) for juror in jurors}
    for stranger in (spectator, world.accuser, world.provider):
        with boa.reverts("disputes: caller is not a juror"):
            world.disputes.commitVerdict(dispute_id, SALT, sender=stranger.text)
    with boa.reverts("disputes: commitment is zero"):
        world.disputes.commitVerdict(dispute_id, bytes(32), sender=jurors[0].text)
    world.disputes.commitVerdict(dispute_id, commitments[jurors[0]], sender=jurors[0].text)
    with boa.reverts("disputes: juror has committed"):
        world.disputes.commitVerdict(dispute_id, SALT, sender=jurors[0].text)
    with boa.reverts("disputes: jury is not in its reveal phase"):
        world.reveal_verdict(dispute_id, jurors[0], GUILTY)
    with boa.reverts("disputes: nothing to tally now"):
        tally(world, dispute_id)
    # A copied commitment cannot be opened: the juror is inside it.
    world.disputes.commitVerdict(dispute_id, commitments[jurors[0]], sender=jurors[1].text)
    world.wait(60)
    assert world.disputes.phaseOf(dispute_id) == REVEAL
    with boa.reverts("disputes: jury is not in its commit phase"):
        world.disputes.commitVerdict(dispute_id, SALT, sender=jurors[2].text)
    for juror, judgement in ((jurors[0], ACQUIT), (jurors[1], GUILTY), (jurors[2], GUILTY)):
        with boa.reverts("disputes: verdict does not open the commitment"):
            world.reveal_verdict(dispute_id, juror, judgement)
    for judgement in (0, 3):
        with boa.reverts("disputes: judgement is neither 1 nor 2"):
            world.disputes.revealVerdict(dispute_id, judgement, ROOT, SALT, sender=jurors[0].text)
    world.reveal_verdict(dispute_id, jurors[0], GUILTY)
    with boa.reverts("disputes: juror has revealed"):
        world.reveal_verdict(dispute_id, jurors[0], GUILTY)
    ballot = world.disputes.ballotOf(dispute_id, world.dispute(dispute_id).draws, jurors[0].text)
    assert ballot == (commitments[jurors[0]], GUILTY, b"\x05" * 32)


def test_the_reveal_phase_ends_when_all_who_committed_revealed(world, dispute_id):
    jurors = world.seat_jury(dispute_id)
    for juror in jurors[:2]:
        commitment = hash_struct(world.verdict(dispute_id, juror, GUILTY))
        world.disputes.commitVerdict(dispute_id, commitment, sender=juror.text)
    world.wait(60)
    for juror in jurors[:2]:
        world.reveal_verdict(dispute_id, juror, GUILTY)
    assert world.disputes.phaseOf(dispute_id) == TALLY
    tally(world, dispute_id)
    assert world.dispute(dispute_id).verdict == GUILTY
    assert [world.staking.stakeOf(juror.text) for juror in jurors] == [20 * CREDIT] * 2 + [19 * CREDIT]


def test_an_operator_cannot_unbond_out_of_an_open_dispute(world, dispute_id):
    staking, provider = world.staking, world.provider.text
    staking.optOut(COMPUTE, sender=provider)
    staking.beginUnbond(50 * CREDIT, sender=provider)
    judge(world, dispute_id, [GUILTY] * 3)
    with boa.reverts("staking: unbonding time has not passed"):
        staking.withdraw(sender=provider)
    finalize(world, dispute_id)
    assert staking.unbondingOf(provider)[0] == 40 * CREDIT


def test_the_slash_grows_with_the_fee_and_stays_in_the_slice(world, config):
    for fee, slashed in ((CREDIT // 50, 20 * CREDIT), (CREDIT, 30 * CREDIT)):
        dispute_id = world.open_dispute(world.make_receipt(config, fee), salt=fee.to_bytes(32))
        judge(world, dispute_id, [GUILTY] * 3)
        finalize(world, dispute_id)
        dispute = world.dispute(dispute_id)
        assert (dispute.slashed, dispute.refunded) == (slashed, fee)
        assert dispute.burned >= slashed // 2
    assert world.staking.stakeOf(world.provider.text) == 0
    with boa.reverts("disputes: provider has no stake in compute"):
        world.open_dispute(world.make_receipt(config), salt=SALT)


def test_the_refund_never_takes_from_the_burned_half(world, config):
    """The fee is most of the slice: the refund is half of what was slashed, and no bounty is left."""
    dispute_id = world.open_dispute(world.make_receipt(config, 40 * CREDIT))
    judge(world, dispute_id, [GUILTY] * 3)
    finalize(world, dispute_id)
    dispute = world.dispute(dispute_id)
    assert (dispute.slashed, dispute.refunded, dispute.bounty) == (50 * CREDIT, 25 * CREDIT, 0)
    assert dispute.burned == 25 * CREDIT
    assert world.total_held() == world.credit.totalSupply()


def test_several_disputes_share_one_beacon_round_and_pause_until_the_last_is_closed(world, config):
    ids = [
        world.open_dispute(world.make_receipt(config), salt=bytes([n]) * 32, accuser=accuser)
        for n, accuser in enumerate((world.accuser, world.stranger), 1)
    ]
    assert len({world.dispute(dispute_id).round for dispute_id in ids}) == 1
    world.run_beacon(world.dispute(ids[0]).round)
    for dispute_id in ids:
        world.disputes.draw(dispute_id)
        world.vote(dispute_id, [ACQUIT] * 3)
        tally(world, dispute_id)
    world.wait(8)
    world.disputes.finalize(ids[0])
    assert world.disputes.isPaused(world.provider.text)
    world.disputes.finalize(ids[1])
    assert not world.disputes.isPaused(world.provider.text)


def test_signatures_of_another_network_do_not_count(world, purchase):
    request, request_signature, receipt, _ = purchase
    for domain in (
        structs.protocol_domain(world.chain_id + 1, world.domain().contract),
        structs.protocol_domain(world.chain_id, world.stranger.address),
    ):
        forged = world.provider.key.sign_digest(hash_typed_data(domain, receipt))
        with boa.env.anchor(), boa.reverts("disputes: receipt is not signed by the provider"):
            world.open_dispute((request, request_signature, receipt, forged))


def test_unknown_disputes_have_no_phase(world):
    for call in (world.disputes.draw, world.disputes.tally, world.disputes.finalize, world.disputes.appeal):
        with boa.reverts():
            call(1)
    assert world.disputes.phaseOf(1) == 0
    assert world.disputes.jurorsOf(1) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"jury_size": 0}, "disputes: jury size out of range"),
        ({"jury_size": 32}, "disputes: jury size out of range"),
        ({"bond": 0}, "disputes: a bond is zero"),
        ({"appeal_bond": 2**96}, "disputes: a bond is too large"),
        ({"open_blocks": 0}, "disputes: opening window out of range"),
        ({"reveal_seconds": 0}, "disputes: a window is out of range"),
        ({"appeal_seconds": 30 * 86400 + 1}, "disputes: a window is out of range"),
        ({"appeal_seconds": 3600 - 4 * (4 * 40 + 90)}, "disputes: stake could leave before a verdict"),
        ({"appeal_seconds": 3600 - 4 * (4 * 40 + 90) - 1}, None),
    ],
)
def test_deployment_refuses_unsound_settings(make_world, world, deployment_reverts, change, reason):
    settings = replace(world.settings, **change)
    if reason is None:
        make_world(settings, auditors=0)
    else:
        with deployment_reverts(reason):
            make_world(settings, auditors=0)


def test_deployment_checks_its_judges(world, deploy_contract, deployment_reverts):
    addresses = [getattr(world, name).address for name in ("credit", "staking", "beacon", "channels")]
    with deployment_reverts("disputes: staking does not know this judge of compute"):
        deploy_contract("Disputes", *addresses, world.settings.astuple())
    with deployment_reverts("disputes: staking holds another token"):
        deploy_contract("Disputes", world.buyer.text, *addresses[1:], world.settings.astuple())
