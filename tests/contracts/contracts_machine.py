"""Any order of calls by anyone over the whole suite, beside a model in plain Python.

After every step each balance, stake, slice and channel equals the model's, the balances sum to the supply, and each
contract holds what it owes. A refused call changes nothing; a repeated one is refused. At the end nobody acts but a
stranger who pokes, and every bond comes out.
"""

from collections import Counter
from dataclasses import replace
from typing import ClassVar

import boa
from boa.contracts.base_evm_contract import BoaError
from contracts_model import Channel, Dispute, Model, Operator, Promise
from contracts_stakes import OTHER_CAP_BPS, PROVIDERS_AND_AUDITORS, Stakes, amounts, people
from contracts_world import (
    ACQUIT,
    AUDIT,
    BEACON_PENALTY,
    CHALLENGE_BOND,
    CLAIM_BOND,
    COMPUTE,
    DA,
    EPOCH_SECONDS,
    FORK_PENALTY,
    GUILTY,
    PAYOUT_SECONDS,
    ROW_PENALTY,
    STORAGE,
    UNBONDING,
    ZERO32,
    secret_of,
    struct_tuple,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from deaios.ledger import structs
from deaios.ledger.eip712 import hash_struct, sign_struct
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import checksum_address
from deaios.primitives.merkle import build_root, prove_leaf
from deaios.primitives.units import CREDIT

BEACON, DRAW, COMMIT, REVEAL, TALLY, APPEAL, FINALIZE, CLOSED = range(1, 9)
CLOSABLE, FAILED = 3, 5
SILENT, ABSENT = 0, -1
JURIES = (
    [GUILTY] * 7,
    [ACQUIT] * 7,
    [GUILTY, ACQUIT] * 4,
    [GUILTY, ACQUIT, SILENT] * 3,
    [SILENT] * 7,
    [ABSENT] * 7,
    [GUILTY, GUILTY, ABSENT, GUILTY, GUILTY, SILENT, GUILTY],
)
DRAIN_STEPS_MAX = 40
"""Longest path of a dispute: four juries, each after a beacon round of four attempts, and both ends."""
channels = st.integers(0, 2)


class Suite(Stakes, RuleBasedStateMachine):
    """Buyer, two providers, accuser, five auditors, four holders of rows, a second judge and a poker."""

    world = None
    seen: ClassVar = Counter()
    """What happened, over all runs of one machine class."""

    @initialize()
    def begin(self):
        self.anchor = boa.env.anchor()
        self.anchor.__enter__()
        world = self.world
        world.counter = 0
        self.other, self.poker, self.judge = world.stranger, world.faucet, world.deployer
        self.backers = (world.accuser, self.poker, self.other)
        world.join(self.other, COMPUTE, 100 * CREDIT, OTHER_CAP_BPS)
        world.staking.optIn(STORAGE, 2500, sender=self.other.text)
        self.operators = [world.provider, self.other, *world.auditors, *world.holders, *world.validators]
        for actor in (world.accuser, self.poker, *self.operators):
            for contract in (world.disputes, world.forks, world.staking, world.availability):
                world.approve(actor, contract)
        self.holders = [self.judge, *world.everyone]
        self.configs = [world.make_config(salt=bytes([n]) * 32) for n in range(2)]
        self.configs.append(world.make_config(receiver=self.other))
        self.ids = [world.channel_id(config) for config in self.configs]
        self.receivers = (world.provider, world.provider, self.other)
        self.make_model()
        self.serial = 0
        self.receipts = []
        self.history = []
        self.sliced = {}
        self.beacon_parts = {}
        self.batches = Counter()
        self.blobs = {}
        for which in range(3):
            self.deposit(which, 5 * CREDIT)
        self.claim(0, CREDIT, 0)

    def make_model(self):
        world = self.world
        names = ("channels", "staking", "beacon", "disputes", "forks", "availability")
        at = {name: getattr(world, name).address for name in names}
        balances = {actor.text: world.balance(actor) for actor in self.holders}
        balances |= {address: world.credit.balanceOf(address) for address in at.values()}
        model = self.model = Model(balances, at, (COMPUTE, AUDIT))
        model.claim_bond, model.fork_penalty, model.beacon_penalty = CLAIM_BOND, FORK_PENALTY, BEACON_PENALTY
        model.payout_s, model.payout_max, model.clock = PAYOUT_SECONDS, world.payout_max, lambda: self.world.now
        model.row_bond, model.row_penalty = CHALLENGE_BOND, ROW_PENALTY
        for name in ("bond", "appeal_bond", "slash_floor", "juror_fee", "juror_penalty"):
            setattr(model, name, getattr(world.settings, name))
        for config, receiver in zip(self.configs, self.receivers, strict=True):
            model.channels.append(Channel(world.buyer.text, receiver.text, config.withdraw_delay))
        for who, operator in enumerate(self.operators):
            stake = world.staking.stakeOf(operator.text)
            service = self.service_of(who)
            caps = {COMPUTE: OTHER_CAP_BPS, STORAGE: 2500} if operator is self.other else {service: 10_000}
            mine = model.operators[operator.text] = Operator(operator.text, caps=caps, staked_ever=stake)
            mine.active.put(operator.text, stake)

    def teardown(self):
        if not hasattr(self, "anchor"):
            return
        try:
            self.drain()
        finally:
            self.anchor.__exit__(None, None, None)

    # Calls

    def call(self, function, *arguments, sender, expected=None, once=False):
        """Was the call let through? `expected`: what the model says; `once`: it must be refused when repeated."""
        name = str(function).split(".")[-1].split("(")[0]
        try:
            function(*arguments, sender=sender.text)
        except BoaError:
            through = False
        else:
            through = True
        assert expected is None or through == expected, f"{name}{arguments} by {sender.text}: {through}"
        self.seen[f"{name}{'' if through else ' refused'}"] += 1
        if through and once:
            self.history.append((function, arguments, sender))
        return through

    @precondition(lambda self: self.history)
    @rule(data=st.data())
    def repeat(self, data):
        """A voucher's claim may be repeated without effect; everything else that was used up is refused."""
        function, arguments, sender = data.draw(st.sampled_from(self.history))
        self.call(function, *arguments, sender=sender, expected=function is self.world.channels.claim)
        self.seen["call repeated"] += 1

    # Channels

    @rule(which=channels, amount=amounts)
    def deposit(self, which, amount):
        self.serial += 1
        config = self.configs[which]
        data = self.world.collector_data(config, amount, self.world.buyer, self.serial)
        arguments = (struct_tuple(config), amount, self.world.channels.address, data)
        if self.call(self.world.channels.deposit, *arguments, sender=self.poker, expected=True, once=True):
            self.model.deposit(which, amount)

    @rule(which=channels, amount=amounts, surplus=st.integers(-1, 2))
    def claim(self, which, amount, surplus):
        total = self.model.channels[which].claimed + amount
        row = self.world.make_claim(self.configs[which], total, total + surplus)
        expected = self.model.can_claim(which, total, total + surplus)
        call = (self.world.channels.claim, [row, row])
        if self.call(*call, sender=self.receivers[which], expected=expected, once=True):
            self.model.claim(which, total, total + surplus)

    @rule(which=channels)
    def settle(self, which):
        receiver = self.receivers[which].text
        self.call(self.world.channels.settle, receiver, self.world.credit.address, sender=self.poker, expected=True)
        self.model.settle(receiver)

    @rule(which=channels, amount=amounts)
    def initiate_withdraw(self, which, amount):
        call = (self.world.channels.initiateWithdraw, struct_tuple(self.configs[which]), amount)
        if self.call(*call, sender=self.world.buyer, expected=self.model.can_initiate(which, amount)):
            self.model.initiate(which, amount, self.world.now)

    @rule(which=channels)
    def finalize_withdraw(self, which):
        expected = self.model.can_finalize_withdraw(which, self.world.now)
        call = (self.world.channels.finalizeWithdraw, struct_tuple(self.configs[which]))
        if self.call(*call, sender=self.world.buyer, expected=expected):
            self.model.finalize_withdraw(which)
            self.seen["withdrawal while a dispute is open"] += bool(self.model.disputes)

    @rule(which=channels, amount=amounts, signed=st.booleans())
    def refund(self, which, amount, signed):
        terms, receiver = struct_tuple(self.configs[which]), self.receivers[which]
        if signed:
            nonce = self.model.channels[which].refund_nonce
            item = structs.Refund(self.ids[which], nonce, amount)
            signature = sign_struct(receiver.key, self.world.channels_domain(), item)
            arguments = (terms, amount, nonce, signature)
            self.call(self.world.channels.refundWithSignature, *arguments, sender=self.poker, expected=True, once=True)
        else:
            self.call(self.world.channels.refund, terms, amount, sender=receiver, expected=True)
        self.seen["refund after a claim"] += self.model.channels[which].claimed > 0
        self.model.refund(which, amount)

    # Purchases, proofs, challenges

    def sign(self, receipt, which):
        return (struct_tuple(receipt), sign_struct(self.receivers[which].key, self.world.domain(), receipt))

    @rule(which=channels, fee=st.integers(0, CREDIT) | st.sampled_from([0, 1]))
    def buy(self, which, fee):
        purchase = self.world.make_receipt(self.configs[which], fee, provider=self.receivers[which])
        self.receipts.append((which, purchase))

    @precondition(lambda self: self.receipts)
    @rule(data=st.data(), kind=st.sampled_from(["counter", "request"]), honest=st.booleans())
    def prove_double(self, data, kind, honest):
        self.prove_pair(*data.draw(st.sampled_from(self.receipts)), kind, honest=honest)

    def prove_pair(self, which, purchase, kind, *, honest):
        receipt, provider = purchase[2], self.receivers[which].text
        self.serial += 1
        changes = {"fee": receipt.fee + self.serial}
        if kind == "counter":
            changes |= {"request_digest": keccak256(self.serial.to_bytes(8))}
            subject, prove = receipt.counter, self.world.forks.proveDoubleCounter
        else:
            changes |= {"counter": 10_000 + self.serial}
            subject, prove = receipt.request_digest, self.world.forks.proveDoubleRequest
        other = receipt if honest else replace(receipt, **changes)
        expected = not honest and self.model.can_punish(provider, kind, subject)
        arguments = (*self.sign(receipt, which), *self.sign(other, which))
        if self.call(prove, *arguments, sender=self.poker, expected=expected, once=True):
            self.model.punish(provider, kind, subject, self.poker.text)

    @precondition(lambda self: self.receipts)
    @rule(data=st.data(), honest=st.booleans())
    def publish_and_compare(self, data, honest):
        """The provider publishes one leaf for the next counter; somebody compares it with a receipt for it."""
        self.publish_leaf(*data.draw(st.sampled_from(self.receipts)), honest=honest)

    def publish_leaf(self, which, purchase, *, honest):
        provider = self.receivers[which]
        counter = self.batches[provider.text] + 1
        signed = replace(purchase[2], counter=counter)
        leaves = [hash_struct(signed if honest else replace(signed, fee=signed.fee + 1))]
        root = build_root("deaios/receipts/1", leaves)
        count = self.world.receipts.batchCount(provider.text)
        before = bytes(self.world.receipts.batchAt(provider.text, count - 1)[3]) if count else ZERO32
        batch = (counter, counter, before, root, ZERO32)
        self.call(self.world.receipts.publish, *batch, sender=provider, expected=True, once=True)
        self.batches[provider.text] = counter
        expected = not honest and self.model.can_punish(provider.text, "counter", counter)
        arguments = (*self.sign(signed, which), count, leaves[0], list(prove_leaf(leaves, 0)))
        if self.call(self.world.forks.proveBatchMismatch, *arguments, sender=self.poker, expected=expected, once=True):
            self.model.punish(provider.text, "counter", counter, self.poker.text)

    @rule(which=channels)
    def challenge_claim(self, which):
        challenger = self.world.accuser
        expected = self.model.can_challenge(which) and self.model.balances[challenger.text] >= CLAIM_BOND
        terms = struct_tuple(self.configs[which])
        if self.call(self.world.forks.challengeClaim, terms, sender=challenger, expected=expected):
            self.model.challenge(which, challenger.text)

    @rule(which=channels, short_by=st.sampled_from([0, 0, 1, -CREDIT]))
    def show_receipt(self, which, short_by):
        """Possible after the deadline too, until somebody finalizes; more than was asked for may be shown."""
        challenge = self.model.challenges.get(which)
        charged = max(0, (challenge.total if challenge else self.model.channels[which].claimed) - short_by)
        receipt = self.world.make_receipt(
            self.configs[which], provider=self.receivers[which], charged_cumulative=charged
        )[2]
        expected = challenge is not None and charged >= challenge.total
        arguments = (self.ids[which], *self.sign(receipt, which))
        if self.call(self.world.forks.showReceipt, *arguments, sender=self.poker, expected=expected):
            self.model.show(which, charged)

    def finalize_claim(self, which):
        if which in self.model.challenges and self.call(
            self.world.forks.finalizeClaim, self.ids[which], sender=self.poker
        ):
            self.model.finalize_claim(which)

    # Rows

    @rule()
    def begin_epoch(self):
        availability = self.world.availability
        current = availability.currentEpoch()
        is_due = current == 0 or self.world.now >= availability.epochOf(current)[0] + EPOCH_SECONDS
        expected = is_due and len(self.world.staking.members(DA)) > 0
        self.call(availability.beginEpoch, sender=self.poker, expected=expected)

    @rule(absent=st.sampled_from([0, 0, 1, 2]), term_s=st.sampled_from([1, 100, 600]))
    def certify(self, absent, term_s):
        """All but the last members sign; the poker pays."""
        world, availability = self.world, self.world.availability
        epoch = availability.currentEpoch()
        if epoch == 0:
            return
        self.serial += 1
        blob = world.make_blob(self.serial.to_bytes(8), expires_at=world.now + term_s)
        members = world.committee().members
        signing = members[: max(0, len(members) - absent)]
        seats = {seat: checksum_address(member.address) for member in signing for seat in member.rows}
        fee = availability.feeOf(8, term_s)
        expected = 3 * len(seats) >= 2 * world.seats and world.now < availability.epochOf(epoch)[0] + 2 * EPOCH_SECONDS
        arguments = (*blob.tuples, world.sign_rows(blob, range(len(signing))))
        if self.call(availability.certify, *arguments, sender=self.poker, expected=expected, once=True):
            self.blobs[self.serial] = blob
            self.model.certify(self.serial, self.poker.text, Promise(fee, seats))

    @precondition(lambda self: self.model.promises)
    @rule(data=st.data(), seat=st.integers(0, 11))
    def doubt(self, data, seat):
        self.doubt_seat(data.draw(st.sampled_from(sorted(self.model.promises))), seat)

    def doubt_seat(self, number, seat):
        blob, challenger = self.blobs[number], self.world.accuser
        expected = self.model.can_doubt(number, seat, challenger.text) and self.world.now < blob.attestation.expires_at
        arguments = (struct_tuple(blob.attestation), seat)
        if self.call(self.world.availability.challenge, *arguments, sender=challenger, expected=expected):
            self.model.doubt(number, seat, challenger.text)

    def list_doubts(self):
        return [(number, seat) for number, promise in self.model.promises.items() for seat in promise.doubts]

    @precondition(lambda self: self.list_doubts())
    @rule(data=st.data(), who=people, honest=st.booleans())
    def show_row(self, data, who, honest):
        self.show_seat(*data.draw(st.sampled_from(self.list_doubts())), who, honest=honest)

    def show_seat(self, number, seat, who, *, honest):
        """Anyone may show the row, also after the deadline, until somebody finalizes."""
        blob, availability = self.blobs[number], self.world.availability
        picks = availability.picksOf(blob.challenge_id(seat), 8)
        assert picks in ([], [0])
        arguments = (*blob.tuples, seat, *blob.show(seat if honest else (seat + 4) % 12, [0]))
        expected = bool(picks) and honest
        answerer = self.operators[who]
        if self.call(availability.answer, *arguments, sender=answerer, expected=expected, once=True):
            self.seen["row shown"] += 1
            self.model.show_row(number, seat, answerer.text)

    @rule(who=people)
    def withdraw_rows(self, who):
        member = self.operators[who]
        expected = self.model.earned_by_rows.get(member.text, 0) > 0
        if self.call(self.world.availability.withdraw, sender=member, expected=expected):
            self.model.withdraw_rows(member.text)

    def finalize_row(self, number, seat):
        availability, challenge_id = self.world.availability, self.blobs[number].challenge_id(seat)
        _, _, round_number, _ = availability.challengeOf(challenge_id)
        expected = self.world.now >= availability.endsAt(challenge_id)
        if self.call(availability.finalize, challenge_id, sender=self.poker, expected=expected):
            was_asked = self.world.beacon.value(round_number) != ZERO32
            self.seen["row not shown" if was_asked else "doubt without a value"] += 1
            self.model.end_doubt(number, seat, DA, was_asked=was_asked)

    def settle_rows(self, number):
        promise, blob = self.model.promises[number], self.blobs[number]
        expected = not promise.doubts and self.world.now >= blob.attestation.expires_at
        arguments = ([blob.tuples],)
        if self.call(self.world.availability.settle, *arguments, sender=self.poker, expected=expected, once=True):
            self.seen["fee shared" if promise.seats else "fee burned"] += 1
            self.model.settle_rows(number)

    # Beacon and disputes

    @rule(which=channels, fee=st.sampled_from([0, 1, CREDIT // 50, CREDIT]), judgements=st.sampled_from(JURIES))
    def accuse_and_judge(self, which, fee, judgements):
        self.accuse(False, which, fee)
        if self.model.disputes:
            self.judge_by_jury(max(self.model.disputes), judgements)

    @rule(again=st.booleans(), which=channels, fee=st.sampled_from([0, 1, CREDIT // 50, CREDIT]))
    def accuse(self, again, which, fee):
        """Over a new receipt, or once more over the last one, for twice the bond."""
        if not (again and self.receipts):
            self.buy(which, fee)
        which, purchase = self.receipts[-1]
        request, request_signature, receipt, receipt_signature = purchase
        accuser, digest = self.world.accuser, hash_struct(receipt)
        self.serial += 1
        salt = self.serial.to_bytes(32)
        self.world.commit_evidence(accuser, salt=salt)
        arguments = (
            struct_tuple(request),
            request_signature,
            struct_tuple(receipt),
            receipt_signature,
            b"\x07" * 32,
            b"\x09" * 32,
            salt,
        )
        before = self.world.disputes.disputeCount()
        if self.call(self.world.disputes.open, *arguments, sender=accuser, once=True):
            bond = self.model.bond << self.model.openings.get(digest, 0)
            dispute = Dispute(
                accuser.text, self.receivers[which].text, self.world.buyer.text, digest, receipt.fee, bond
            )
            self.model.open(before + 1, dispute)
            self.seen["opened again for twice the bond"] += bond > self.model.bond
        assert self.world.disputes.disputeCount() == len(self.model.disputes) + len(self.model.closed)

    @rule(commits=st.sampled_from([5, 5, 5, 3, 0]), silent=st.sampled_from([0, 0, 0, 2, 5]))
    def run_beacon(self, commits, silent):
        """In the newest round: of those who commit, the last `silent` do not reveal."""
        number = self.world.beacon.openRound()
        if number:
            self.run_round(number, commits, silent)

    def run_round(self, number, commits, silent):
        beacon = self.world.beacon
        attempt = beacon.roundOf(number)[0]
        committers, revealers = self.beacon_parts.setdefault((number, attempt), ([], []))
        for auditor in self.world.auditors[:commits]:
            commitment = self.world.beacon_commitment(number, auditor)
            if self.call(beacon.commit, number, commitment, sender=auditor):
                committers.append(auditor.text)
        if commits < 5:
            self.wait(20)
        for auditor in self.world.auditors[: max(0, commits - silent)]:
            if self.call(beacon.reveal, number, secret_of(auditor), sender=auditor):
                revealers.append(auditor.text)

    def finalize_round(self, number):
        beacon = self.world.beacon
        attempt = beacon.roundOf(number)[0]
        if beacon.phase(number) == CLOSABLE and self.call(beacon.finalize, number, sender=self.poker, expected=True):
            committers, revealers = self.beacon_parts.get((number, attempt), ([], []))
            for member in committers:
                if member not in revealers:
                    self.seen["beacon penalty"] += 1
                    self.model.slash_and_burn(AUDIT, member, BEACON_PENALTY, self.model.at["beacon"])
            self.seen["beacon failed"] += beacon.phase(number) == FAILED

    def draw(self, dispute_id):
        world, dispute = self.world, self.model.disputes[dispute_id]
        if not self.call(world.disputes.draw, dispute_id, sender=self.poker):
            return
        if world.disputes.phaseOf(dispute_id) == COMMIT:
            jurors = [juror.text for juror in world.jury(dispute_id)]
            assert not {dispute.accuser, dispute.provider, dispute.buyer} & set(jurors)
            assert len(set(jurors)) == len(jurors)
            dispute.juries.append(dict.fromkeys(jurors, 0))
        else:
            self.seen["went on without a jury"] += 1
            self.model.go_on_without_jury(dispute)

    @precondition(lambda self: self.model.disputes)
    @rule(data=st.data(), judgements=st.sampled_from(JURIES))
    def judge_dispute(self, data, judgements):
        self.judge_by_jury(data.draw(st.sampled_from(sorted(self.model.disputes))), judgements)

    def judge_by_jury(self, dispute_id, judgements):
        """Beacon, draw and votes, as far as they are due and can be had, and the count."""
        world = self.world
        if world.disputes.phaseOf(dispute_id) == BEACON:
            number = world.dispute(dispute_id).round
            self.finalize_round(number)
            self.run_round(number, 5, 0)
        if world.disputes.phaseOf(dispute_id) == DRAW:
            self.draw(dispute_id)
        if world.disputes.phaseOf(dispute_id) != COMMIT:
            return
        jurors = list(zip(world.jury(dispute_id), judgements, strict=False))
        for juror, judgement in jurors:
            if judgement != ABSENT:
                commitment = hash_struct(world.verdict(dispute_id, juror, judgement or ACQUIT))
                self.call(world.disputes.commitVerdict, dispute_id, commitment, sender=juror, once=True)
        if any(judgement == ABSENT for _, judgement in jurors):
            self.wait(60)
        for juror, judgement in jurors:
            if judgement > 0:
                verdict = world.verdict(dispute_id, juror, judgement)
                arguments = (dispute_id, judgement, verdict.evidence_root, verdict.salt)
                if self.call(world.disputes.revealVerdict, *arguments, sender=juror, once=True):
                    self.model.disputes[dispute_id].juries[-1][juror.text] = judgement
        if any(judgement in (SILENT, ABSENT) for _, judgement in jurors):
            self.wait(30)
        self.tally(dispute_id)

    def tally(self, dispute_id):
        world, dispute = self.world, self.model.disputes[dispute_id]
        if not self.call(world.disputes.tally, dispute_id, sender=self.poker):
            return
        verdict = self.model.count(dispute)
        self.model.punish_silence(dispute)
        if world.disputes.phaseOf(dispute_id) == BEACON:
            assert (verdict, dispute.redrawn) == (3, False)
            dispute.redrawn = True
            self.seen["jury drawn anew"] += 1
        else:
            dispute.verdict = verdict
            self.seen[f"verdict {verdict}{' on appeal' if dispute.appellant else ''}"] += 1
        assert world.dispute(dispute_id).verdict == dispute.verdict

    @precondition(lambda self: self.model.disputes)
    @rule(data=st.data())
    def appeal(self, data):
        self.appeal_by_anyone(data.draw(st.sampled_from(sorted(self.model.disputes))))

    def appeal_by_anyone(self, dispute_id):
        dispute = self.model.disputes[dispute_id]
        for who in (self.world.accuser, self.world.provider, self.other):
            if self.call(self.world.disputes.appeal, dispute_id, sender=who, once=True):
                loser = dispute.provider if dispute.verdict == GUILTY else dispute.accuser
                assert who.text == loser
                self.model.appeal(dispute, who.text)

    def finalize(self, dispute_id):
        if self.call(self.world.disputes.finalize, dispute_id, sender=self.poker, once=True):
            operator = self.model.operators[self.model.disputes[dispute_id].provider]
            lost = operator.lost_ever
            self.model.finalize(dispute_id)
            slashed = operator.lost_ever > lost
            self.seen["slashed while unbonding"] += slashed and operator.unbonding > 0
            self.seen["slash by a jury"] += slashed

    @rule(seconds=st.sampled_from([1, 1, 10, 10, 30, 60, 60, 900, UNBONDING]))
    def wait(self, seconds):
        self.world.wait(seconds)

    @rule()
    def poke(self):
        """What anyone may do to go on."""
        for number in self.world.beacon.pendingRounds():
            self.finalize_round(number)
        steps = {DRAW: self.draw, TALLY: self.tally, FINALIZE: self.finalize}
        for dispute_id in sorted(self.model.disputes):
            phase = self.world.disputes.phaseOf(dispute_id)
            if phase in steps:
                steps[phase](dispute_id)
        for which in range(3):
            self.finalize_claim(which)
        for number, seat in self.list_doubts():
            self.finalize_row(number, seat)
        for number in sorted(self.model.promises):
            self.settle_rows(number)

    def drain(self):
        """Nobody acts any more but a stranger who pokes: every bond comes out."""
        for _ in range(DRAIN_STEPS_MAX):
            self.world.wait(100)
            self.poke()
            self.money_is_where_the_model_has_it()
            if not self.model.disputes and not self.model.challenges and not self.model.promises:
                break
        world = self.world
        assert [world.balance(contract) for contract in (world.disputes, world.forks, world.beacon)] == [0, 0, 0]
        assert (world.disputes.deadline(), world.forks.deadline()) == (0, 0)
        assert not world.disputes.isPaused(world.provider.text)
        assert not world.disputes.isPaused(self.other.text)
        for which in range(3):
            self.settle(which)
        for who in range(PROVIDERS_AND_AUDITORS, len(self.operators)):
            self.withdraw_rows(who)
        assert (world.balance(world.availability), world.availability.deadline()) == (0, 0)
        self.sliced.clear()
        self.stakes_and_slices_are_the_model_s()
        self.money_is_where_the_model_has_it()

    # What must always hold

    @invariant()
    def money_is_where_the_model_has_it(self):
        if not hasattr(self, "model"):
            return
        credit, model = self.world.credit, self.model
        found = {address: credit.balanceOf(address) for address in model.balances}
        assert found == model.balances
        assert sum(found.values()) == credit.totalSupply() == model.supply
        assert {name: found[model.at[name]] for name in model.at} == model.owed()

    @invariant()
    def channels_are_the_model_s(self):
        if not hasattr(self, "model"):
            return
        for channel_id, mine in zip(self.ids, self.model.channels, strict=True):
            assert self.world.channels.channels(channel_id) == (mine.balance, mine.claimed)
            assert mine.claimed <= min(mine.voucher_max, mine.balance)
            pending, started = self.world.channels.pendingWithdrawals(channel_id)
            assert pending == mine.pending <= mine.balance
            assert (started > 0) == (mine.ready_at is not None)


def run_machine(machine, examples, steps, *, keep=True):
    """Run a machine class; hypothesis adds the steps that fail to the error.

    Args:
        keep: keep what failed in hypothesis's folder and try it first next time; else only the machine's seed counts.
    """
    wanted = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(machine, settings=wanted if keep else settings(wanted, database=None))
