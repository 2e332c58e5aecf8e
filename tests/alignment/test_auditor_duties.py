"""Auditors over a chain in memory: from a found violation to the end, through crashes, absences and lies."""

import asyncio
import heapq
from collections import Counter

import pytest
from alignment_chain import COMMIT_S, SETTINGS, Killed
from alignment_purchases import PROVIDER, RIVAL, key_of
from alignment_town import Town, invent

from deaios.alignment.auditor.store import AuditorStore, CaseState, KeptVerdict
from deaios.alignment.duty import CRANK_PATIENCE_S
from deaios.alignment.evidence import encode_evidence
from deaios.ledger.client.rpc import UnavailableChain
from deaios.ledger.phases import BeaconPhase, Decision, DisputePhase
from deaios.ledger.structs import Judgement, Level
from deaios.primitives.errors import Unavailable
from deaios.primitives.hashing import ZERO32, sha256
from deaios.primitives.units import CREDIT


@pytest.fixture
def town(tmp_path):
    town = Town(tmp_path)
    yield town
    town.close()


def assert_clean(town):
    """Nobody was penalised, every committed juror revealed once, every round had all its reveals."""
    assert town.chain.penalised == []
    for state in town.chain.rounds:
        assert set(state.revealed) == set(state.committed)
    for ballot in town.chain.ballots.values():
        assert ballot.judgement != 0


# ---- the whole way


async def test_a_found_violation_ends_in_a_slash(town):
    await town.find_cheat()
    await town.run_until(town.is_closed)
    (dispute,) = town.chain.disputes
    accuser = town.members[0]
    assert dispute.accuser == accuser.key.address
    assert dispute.decision is Decision.GUILTY
    assert town.chain.providers[PROVIDER.address] == 40 * CREDIT
    assert town.chain.balances[accuser.key.address] == 40 * CREDIT
    assert accuser.key.address not in town.chain.juries[1, 1]
    case = accuser.store.find_case(dispute.receipt_digest)
    assert (case.state, case.dispute) == (CaseState.OPENED, 1)
    assert_clean(town)


async def test_common_steps_are_paid_by_one_auditor_each(town):
    await town.find_cheat()
    await town.run_until(town.is_closed)
    counts = Counter(name for name, _ in town.chain.sent)
    assert counts == {
        "commit_evidence": 1,
        "approve": 1,
        "open": 1,
        "beacon.commit": 4,
        "beacon.reveal": 4,
        "draw": 1,
        "commit_verdict": 3,
        "reveal_verdict": 3,
        "tally": 1,
        "finalize": 1,
    }
    assert town.chain.refused == []


async def test_when_an_auditor_is_down_the_next_one_takes_its_step(town):
    await town.find_cheat()
    first = sorted(member.key.address for member in town.members)[1]  # dispute 1 begins with the second
    await town.run_until(lambda: town.chain.payers("beacon.reveal").__len__() == 4)
    down = next(member for member in town.members if member.key.address == first)
    down.is_down = True
    before = town.chain.now
    await town.run_until(lambda: town.chain.payers("draw"))
    assert town.chain.payers("draw") != [first]
    assert town.chain.now - before <= CRANK_PATIENCE_S + 2
    down.is_down = False
    await town.run_until(town.is_closed)
    assert town.chain.disputes[0].decision is Decision.GUILTY


async def test_an_honest_provider_is_never_accused(town):
    for _ in range(10):
        for member in town.members:
            assert await member.auditor.audit_once() is True
    for _ in range(20):
        await town.turn()
    assert town.chain.sent == []
    assert town.members[0].store.summary() == [(PROVIDER.address, 10, 30, 0)]


async def test_a_violation_that_replay_explains_accuses_nobody(town):
    sale = invent("noisy")
    town.recheck.noisy.add(sale.sign().receipt_digest)

    async def buy(order):
        return sale.evidence

    town.shop.buy = buy
    assert await town.members[0].auditor.audit_once() is False
    for _ in range(5):
        await town.turn()
    case = town.members[0].store.find_case(sale.sign().receipt_digest)
    assert (case.state, case.evidence) == (CaseState.CLEARED, b"")
    assert town.chain.sent == []


async def test_without_replay_nobody_is_accused(town):
    town.recheck.can_replay = False
    await town.find_cheat()
    for _ in range(5):
        await town.turn()
    assert town.chain.sent == []
    assert town.members[0].store.open_cases() == []


async def test_auditors_buy_where_they_looked_least(town):
    town.shop.providers = [PROVIDER, RIVAL]
    for _ in range(10):
        await town.members[0].auditor.audit_once()
    assert Counter(order.provider for order in town.shop.orders) == {PROVIDER.address: 5, RIVAL.address: 5}
    town.shop.providers = []
    assert await town.members[0].auditor.audit_once() is None


async def test_a_provider_that_never_serves_does_not_keep_auditors_from_the_others(town):
    """Whoever is never audited is due next: without a bound, one stake would buy all cheats freedom from audits."""
    town.shop.providers, town.shop.mute = [PROVIDER, RIVAL], {RIVAL}
    auditor, served = town.members[0].auditor, 0
    for _ in range(12):
        try:
            served += await auditor.audit_once() is True
        except Unavailable:
            continue
    assert served >= 4
    assert RIVAL.address in {order.provider for order in town.shop.orders}


async def test_tokens_that_nobody_promised_accuse_nobody(town):
    town.shop.level = Level.SIGNED
    town.shop.cheats = {PROVIDER}
    assert await town.members[0].auditor.audit_once() is True
    assert not town.members[0].store.open_cases()
    (row,) = town.members[0].store.summary()
    assert row[3] == 0


async def test_orders_differ_in_everything_that_could_link_them(town):
    for _ in range(8):
        await town.members[0].auditor.audit_once()
    for name in ("nonce", "salt", "client_nonce", "body"):
        assert len({getattr(order, name) for order in town.shop.orders}) >= 7


# ---- crashes

_TRANSACTIONS = (
    "commit_evidence",
    "approve",
    "open",
    "beacon.commit",
    "beacon.reveal",
    "draw",
    "commit_verdict",
    "reveal_verdict",
    "tally",
    "finalize",
)
_ENTRIES = ("suspected", "found", "committed", "opening", "opened", "secret", "verdict")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", _TRANSACTIONS)
async def test_a_crash_around_any_transaction_changes_nothing(town, name, when):
    """Everybody dies once at this step: before it was sent, or after it landed and before anybody knew."""
    died = set()

    def gate(moment, sent, sender):
        if (moment, sent) == (when, name) and sender not in died:
            died.add(sender)
            raise Killed

    town.chain.gates.append(gate)
    await town.find_cheat()
    await town.run_until(town.is_closed)
    assert died
    assert len(town.chain.disputes) == 1
    assert town.chain.disputes[0].decision is Decision.GUILTY
    assert town.chain.balances[town.members[0].key.address] == 40 * CREDIT
    assert town.members[0].store.open_cases() == []
    assert_clean(town)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("entry", _ENTRIES)
async def test_a_crash_around_any_journal_entry_loses_nothing(town, entry, when):
    died = []

    def gate(moment, what):
        if (moment, what) == (when, entry) and not died:
            died.append(entry)
            raise Killed

    for member in town.members:
        member.store.gate = gate
    town.shop.cheats = {PROVIDER}
    try:
        await town.members[0].auditor.audit_once()
    except Killed:
        town.members[0].kill()
        town.members[0].start()
    if (entry, when) == ("suspected", "before"):
        assert town.members[0].store.open_cases() == []  # nothing was promised yet
        await town.members[0].auditor.audit_once()
    await town.run_until(town.is_closed)
    assert died == [entry]
    assert len(town.chain.disputes) == 1
    assert town.chain.disputes[0].decision is Decision.GUILTY
    assert_clean(town)


async def test_a_dispute_that_closed_while_its_accuser_was_down_is_not_opened_again(town):
    dying = []

    def gate(moment, sent, sender):
        if (moment, sent) == ("after", "open") and not dying:
            dying.append(sender)
            town.members[0].is_down = True
            raise Killed

    town.chain.gates.append(gate)
    town.recheck.false.clear()
    await town.find_cheat()
    await town.run_until(lambda: bool(dying))
    town.recheck.false.clear()  # the jury will find nothing
    await town.run_until(town.is_closed)
    assert town.chain.disputes[0].decision is Decision.ACQUITTED
    town.members[0].is_down = False
    for _ in range(20):
        await town.turn()
    assert len(town.chain.disputes) == 1
    case = town.members[0].store.find_case(town.chain.disputes[0].receipt_digest)
    assert (case.state, case.dispute) == (CaseState.OPENED, 1)


async def test_no_secret_is_shown_before_its_commitment_or_twice(town):
    await town.find_cheat()
    await town.run_until(town.is_closed)
    secrets = [secret for shown in town.revealed_secrets for secret in shown.values()]
    assert len(secrets) == len(set(secrets)) == 4
    salts = [verdict.salt for member in town.members for verdict in member.store.verdicts(1).values()]
    assert len(salts) == len(set(salts)) == 3


# ---- the beacon


async def test_a_commitment_that_lands_in_the_next_attempt_is_opened_all_the_same(town):
    """The transaction was decided in attempt 0 and came into a block in attempt 1."""
    slow = town.members[0]
    beacon = slow.auditor.beacon._beacon
    await town.find_cheat(1)
    await town.run_until(lambda: town.chain.disputes and True)
    state = town.chain.rounds[0]
    for member in town.members:
        member.is_down = True
    state.committed.clear()

    def gate(moment, sent, sender):
        if (moment, sent, sender) == ("before", "beacon.commit", slow.key.address) and state.attempt == 0:
            town.chain.now = state.reveal_deadline
            state.attempt = 1
            beacon._begin_attempt(state)

    town.chain.gates.append(gate)
    state.commit_deadline = town.chain.now + COMMIT_S
    state.reveal_deadline = state.commit_deadline + COMMIT_S
    await slow.auditor.beacon.tend()
    assert state.attempt == 1
    assert slow.key.address in state.committed
    assert list(slow.store.beacon_secrets(1)) == [0]
    for member in town.members:
        member.is_down = False
    await town.run_until(town.is_closed)
    assert slow.key.address in state.revealed
    assert_clean(town)


async def test_a_newer_round_does_not_hide_an_older_one(town):
    """A second dispute asks for a value while secrets of the first round are being revealed."""
    await town.find_cheat(0)
    beacon = town.chain.contracts().beacon
    await town.run_until(lambda: town.chain.rounds and beacon.phase_now(1) == BeaconPhase.REVEAL)
    await town.find_cheat(1)
    for member in town.members[2:]:
        member.is_down = True  # they have committed and not revealed yet
    for _ in range(8):
        await town.turn()
    first, second = town.chain.rounds
    assert (len(first.committed), len(first.revealed), first.final) == (4, 2, ZERO32)
    assert len(second.committed) == 2
    for member in town.members[2:]:
        member.is_down = False
    town.members[1].is_down = True  # it has shown its first secret; the second round waits for it
    await town.run_until(lambda: first.final != ZERO32, turns_max=5)
    assert second.final == ZERO32
    town.members[1].is_down = False
    await town.run_until(lambda: town.is_closed(1) and town.is_closed(2))
    assert [dispute.decision for dispute in town.chain.disputes] == [Decision.GUILTY, Decision.GUILTY]
    assert_clean(town)


async def test_a_silent_member_is_penalised_and_the_round_goes_on(town):
    await town.find_cheat()
    beacon = town.chain.contracts().beacon
    silent = town.members[3]

    def gate(moment, sent, sender):
        if (moment, sent, sender) == ("before", "beacon.reveal", silent.key.address):
            silent.is_down = True
            raise Killed

    town.chain.gates.append(gate)
    await town.run_until(lambda: town.chain.rounds and beacon.phase_now(1) == BeaconPhase.FINAL)
    assert town.chain.penalised == [("beacon", 1, silent.key.address)]
    assert len(town.chain.payers("beacon.finalize")) == 1


# ---- juries


async def test_evidence_that_cannot_be_had_acquits_and_silences_nobody(town):
    await town.find_cheat()
    await town.run_until(lambda: bool(town.chain.disputes))
    town.shelf.lost.add(town.chain.disputes[0].evidence_manifest)
    await town.run_until(town.is_closed)
    (dispute,) = town.chain.disputes
    assert dispute.decision is Decision.ACQUITTED
    assert dispute.reveals == 3
    assert_clean(town)


async def test_evidence_that_comes_late_still_convicts(town):
    await town.find_cheat()
    await town.run_until(lambda: bool(town.chain.disputes))
    town.shelf.is_away = True
    disputes = town.chain.contracts().disputes
    await town.run_until(lambda: disputes.phase_now(1) == DisputePhase.COMMIT)
    for _ in range(SETTINGS.commit_seconds // 2):
        await town.turn()
    assert town.chain.ballots == {}
    town.shelf.is_away = False
    await town.run_until(town.is_closed)
    assert town.chain.disputes[0].decision is Decision.GUILTY


async def test_a_dispute_without_evidence_does_not_delay_another(town):
    await town.find_cheat(0)
    await town.find_cheat(1)
    await town.run_until(lambda: len(town.chain.disputes) == 2)
    town.shelf.lost.add(town.chain.disputes[1].evidence_manifest)
    await town.run_until(lambda: town.is_closed(1))
    assert town.chain.disputes[0].decision is Decision.GUILTY
    assert not town.is_closed(2)
    await town.run_until(lambda: town.is_closed(2))
    assert town.chain.disputes[1].decision is Decision.ACQUITTED
    assert_clean(town)


@pytest.mark.parametrize("data", [b"no evidence", b"{}", b"x" * (9 << 20)])
async def test_evidence_that_is_nonsense_acquits(town, data):
    await town.find_cheat()
    await town.run_until(lambda: bool(town.chain.disputes))
    town.shelf.kept[town.chain.disputes[0].evidence_manifest] = data
    await town.run_until(town.is_closed)
    assert town.chain.disputes[0].decision is Decision.ACQUITTED
    assert town.recheck.replayed == 1  # the accuser's own


async def test_evidence_about_another_receipt_acquits(town):
    await town.find_cheat()
    await town.run_until(lambda: bool(town.chain.disputes))
    other = encode_evidence(invent("another").evidence)
    town.shelf.kept[town.chain.disputes[0].evidence_manifest] = other
    await town.run_until(town.is_closed)
    assert town.chain.disputes[0].decision is Decision.ACQUITTED


async def test_an_engine_that_is_away_makes_a_juror_acquit_in_time(town):
    await town.find_cheat()
    await town.run_until(lambda: bool(town.chain.disputes))
    town.recheck.is_away = True
    await town.run_until(town.is_closed)
    assert town.chain.disputes[0].decision is Decision.ACQUITTED
    assert_clean(town)


async def test_a_lonely_liar_on_the_jury_changes_nothing_and_a_split_jury_is_drawn_again(tmp_path):
    town = Town(tmp_path, count=7)
    liar = town.members[-1]
    liar.kill()
    liar.recheck = type(town.recheck)()  # finds nothing
    liar.start()
    town.chain.choose_jury = lambda item, size: tuple(member.key.address for member in town.members[-3:])
    await town.find_cheat()
    await town.run_until(town.is_closed)
    assert town.chain.disputes[0].decision is Decision.GUILTY
    assert (town.chain.disputes[0].guilty, town.chain.disputes[0].acquit) == (2, 1)
    town.close()


async def test_a_juror_that_never_shows_its_verdict_forces_a_redraw_with_fresh_verdicts(tmp_path):
    town = Town(tmp_path, count=7)
    silent = {town.members[-1].key.address, town.members[-2].key.address}
    town.chain.choose_jury = lambda item, size: tuple(
        member.key.address for member in (town.members[-3:] if item.draws == 0 else town.members[-5:-2])
    )

    def gate(moment, sent, sender):
        if (moment, sent) == ("before", "reveal_verdict") and sender in silent:
            raise Killed

    town.chain.gates.append(gate)
    await town.find_cheat()
    await town.run_until(town.is_closed)
    (dispute,) = town.chain.disputes
    assert (dispute.draws, dispute.redrawn, dispute.decision) == (2, True, Decision.GUILTY)
    assert {who for kind, _, who in town.chain.penalised if kind == "jury"} == silent
    twice = town.members[-3].store.verdicts(1)
    assert list(twice) == [1, 2]
    assert twice[1].salt != twice[2].salt
    assert len(town.chain.payers("draw")) == 2
    town.close()


# ---- accusing


async def test_a_missing_bond_is_waited_for(town):
    accuser = town.members[0].key.address
    town.chain.balances[accuser] = 0
    await town.find_cheat()
    for _ in range(30):
        await town.turn()
    assert town.chain.disputes == []
    assert len([1 for name, _, _ in town.chain.refused if name == "open"]) < 10
    town.chain.balances[accuser] = 5 * CREDIT
    await town.run_until(town.is_closed)
    assert town.chain.disputes[0].decision is Decision.GUILTY


async def test_a_provider_without_stake_is_left_alone(town):
    town.chain.providers[PROVIDER.address] = 0
    await town.find_cheat()
    for _ in range(10):
        await town.turn()
    assert town.members[0].store.open_cases() == []
    assert town.chain.disputes == []


async def test_somebody_elses_dispute_over_the_receipt_shields_no_cheat(town):
    """A friend of the cheat disputes the receipt first, without evidence; it is acquitted; then the truth comes."""
    await town.find_cheat()
    (case,) = town.members[0].store.open_cases()
    friend = town.members[3]
    disputes = friend.auditor.accuser._disputes
    evidence = invent("shield").evidence
    opening = next(iter(town.members[0].store.open_cases()))
    town.chain.allowances[friend.key.address] = 5 * CREDIT
    from deaios.alignment.evidence import decode_evidence

    real = decode_evidence(opening.evidence).opening
    sender = friend.auditor.accuser._sender
    await disputes.commit_evidence(sender, sha256(b"root"), sha256(b"salt"))
    await disputes.open(
        sender,
        real.request,
        real.request_signature,
        real.receipt,
        real.receipt_signature,
        sha256(b"root"),
        await town.shelf.put_bytes(encode_evidence(evidence)),
        sha256(b"salt"),
    )
    await town.run_until(lambda: town.is_closed(1))
    assert town.chain.disputes[0].decision is Decision.ACQUITTED
    await town.run_until(lambda: town.is_closed(2))
    assert town.chain.disputes[1].decision is Decision.GUILTY
    assert town.chain.disputes[1].bond == 2 * SETTINGS.bond
    assert town.members[0].store.find_case(case.receipt_digest).state is CaseState.OPENED


async def test_a_bond_that_was_doubled_too_often_is_not_paid(town):
    await town.find_cheat()
    (case,) = town.members[0].store.open_cases()
    town.chain.openings[case.receipt_digest] = 4
    for _ in range(10):
        await town.turn()
    assert town.members[0].store.find_case(case.receipt_digest).state is CaseState.DROPPED


async def test_storage_that_is_away_delays_one_case_and_loses_none(town):
    await town.find_cheat()
    town.shelf.is_away = True
    for _ in range(20):
        await town.turn()
    assert [case.state for case in town.members[0].store.open_cases()] == [CaseState.COMMITTED]
    town.shelf.is_away = False
    await town.run_until(town.is_closed)
    assert town.chain.disputes[0].decision is Decision.GUILTY
    assert len(town.chain.payers("commit_evidence")) == 1


# ---- the journal


def test_what_was_kept_first_stays(tmp_path):
    store = AuditorStore(tmp_path / "a.db")
    assert store.keep_beacon_secret(3, 0, b"\x01" * 32) == b"\x01" * 32
    assert store.keep_beacon_secret(3, 0, b"\x02" * 32) == b"\x01" * 32
    first = KeptVerdict(int(Judgement.GUILTY), b"\x03" * 32, b"\x04" * 32)
    assert store.keep_verdict(1, 0, first) == first
    assert store.keep_verdict(1, 0, KeptVerdict(int(Judgement.ACQUIT), b"\x05" * 32, b"\x06" * 32)) == first
    store.close()
    again = AuditorStore(tmp_path / "a.db")
    assert again.beacon_secrets(3) == {0: b"\x01" * 32}
    assert again.verdicts(1) == {0: first}
    again.keep_beacon_secret(1_003, 2, b"\x07" * 32)
    assert again.beacon_secrets(3) == {}
    again.close()


def test_keys_in_this_town_differ(town):
    assert len({member.key.address for member in town.members} | {PROVIDER.address, key_of("x").address}) == 6


async def test_a_round_that_begins_again_is_closed_by_one_auditor_each_time(town):
    beacon = town.chain.contracts().beacon

    def gate(moment, sent, sender):
        if (moment, sent) == ("before", "beacon.reveal") and town.chain.rounds[0].attempt < 2:
            raise UnavailableChain("the node is away")

    town.chain.gates.append(gate)
    await town.find_cheat()
    await town.run_until(lambda: town.chain.rounds and beacon.phase_now(1) == BeaconPhase.FINAL)
    assert town.chain.rounds[0].attempt == 2
    assert len(town.chain.payers("beacon.finalize")) == 2
    assert [name for name, _, _ in town.chain.refused] == []
    await town.run_until(town.is_closed)
    assert town.chain.disputes[0].decision is Decision.GUILTY


# ---- the loops


class SteppedClock:
    """Sleepers wake in the order of their times; time passes only when everybody sleeps."""

    def __init__(self, chain):
        self._chain = chain
        self._start = chain.now
        self.time_s = 0.0
        self._sleepers = []
        self._count = 0

    def now_ms(self):
        return int((self._start + self.time_s) * 1000)

    def monotonic_s(self):
        return self.time_s

    async def sleep(self, seconds):
        woken = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self.time_s + seconds, self._count, woken))
        await woken

    async def run(self, condition, seconds_max):
        while not condition():
            for _ in range(20):  # until all that can run has run: nothing here waits for anything but this clock
                await asyncio.sleep(0)
            at, _, woken = heapq.heappop(self._sleepers)
            assert at <= seconds_max, f"not within {seconds_max} s: {self._chain.sent}"
            self.time_s = max(self.time_s, at)
            self._chain.now = self._start + int(self.time_s)
            if not woken.done():
                woken.set_result(None)


async def test_the_loops_alone_find_judge_and_slash_a_cheat(town):
    clock = SteppedClock(town.chain)
    town.clock = clock
    town.shop.providers = [PROVIDER, RIVAL]
    town.shop.cheats = {PROVIDER}
    for member in town.members:
        member.kill()
        member.start()
    running = [asyncio.create_task(member.auditor.run()) for member in town.members]
    await clock.run(town.is_closed, seconds_max=300)
    assert all(not task.done() for task in running)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert town.chain.disputes[0].decision is Decision.GUILTY
    assert {dispute.provider for dispute in town.chain.disputes} == {PROVIDER.address}
    assert town.chain.penalised == []
    assert len(town.shop.orders) >= 4
