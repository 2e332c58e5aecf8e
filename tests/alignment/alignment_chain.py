"""Beacon, disputes, staking and credit in memory, with the contracts' own rules and a log of who paid for what.

Every write passes one gate, at which a test may kill the sender's process before the transaction is sent or after it
landed. Sources of the rules: src/deaios/ledger/contracts/Beacon.vy and Disputes.vy.
"""

import asyncio
import copy
from collections import Counter
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

from deaios.ledger.client.beacon import BeaconRound
from deaios.ledger.client.bound import Outcome
from deaios.ledger.client.disputes import Ballot, Dispute, DisputeSettings
from deaios.ledger.client.rpc import Reverted
from deaios.ledger.commitments import commit_evidence, commit_secret
from deaios.ledger.eip712 import hash_struct
from deaios.ledger.phases import BeaconPhase, Decision, DisputePhase
from deaios.ledger.selection import draw_jury, jury_size, quorum
from deaios.ledger.structs import Verdict
from deaios.primitives.hashing import ZERO32, keccak256
from deaios.primitives.keys import ZERO_ADDRESS
from deaios.primitives.units import CREDIT

COMMIT_S, REVEAL_S = 20, 20
ATTEMPTS_MAX = 4
SETTINGS = DisputeSettings(3, 1_000, 60, 30, 8, 5 * CREDIT, 5 * CREDIT, 10 * CREDIT, CREDIT // 10, CREDIT)
BEACON_PENALTY = CREDIT
_ZERO_DISPUTE = dict.fromkeys(Dispute.__dataclass_fields__, 0) | {
    "accuser": ZERO_ADDRESS,
    "provider": ZERO_ADDRESS,
    "buyer": ZERO_ADDRESS,
    "authorizer": ZERO_ADDRESS,
    "appellant": ZERO_ADDRESS,
    "receipt_digest": ZERO32,
    "evidence_root": ZERO32,
    "evidence_manifest": ZERO32,
    "redrawn": False,
}


class Killed(BaseException):
    """The process of a sender ends here, as by `kill -9`."""


@dataclass
class Round:
    attempt: int = 0
    commit_deadline: int = 0
    reveal_deadline: int = 0
    committed: dict = field(default_factory=dict)
    revealed: dict = field(default_factory=dict)
    final: bytes = ZERO32
    failed: bool = False


@dataclass
class Chain:
    """State of all contracts, block time in seconds, and the record of every transaction."""

    now: int = 1_790_000_000
    height: int = 1
    powers: dict = field(default_factory=dict)
    providers: dict = field(default_factory=dict)
    balances: Counter = field(default_factory=Counter)
    allowances: Counter = field(default_factory=Counter)
    rounds: list = field(default_factory=list)
    disputes: list = field(default_factory=list)
    juries: dict = field(default_factory=dict)
    snapshots: dict = field(default_factory=dict)
    ballots: dict = field(default_factory=dict)
    evidence: dict = field(default_factory=dict)
    openings: Counter = field(default_factory=Counter)
    convicted: set = field(default_factory=set)
    penalised: list = field(default_factory=list)
    sent: list = field(default_factory=list)
    refused: list = field(default_factory=list)
    gates: list = field(default_factory=list)
    choose_jury: object = None
    lag: int = 0
    """Turns until what was written is settled."""
    history: list = field(default_factory=list)

    def wait(self, seconds=1):
        """Blocks beat while a deadline is open."""
        if self.lag:
            self.history.append(copy.deepcopy(replace(self, gates=[], history=[])))
        self.now += seconds
        self.height += 1

    def settled(self):
        """The chain as of the newest turn that nothing takes back."""
        return self.history[-self.lag] if len(self.history) >= self.lag else Chain(now=self.now, powers=self.powers)

    async def transact(self, sender, name, effect):
        for gate in list(self.gates):
            gate("before", name, sender.address)
        await asyncio.sleep(0)  # everybody else reads before this lands
        try:
            value = effect()
        except Reverted as error:
            self.refused.append((name, sender.address, error.reason))
            raise
        self.height += 1
        self.sent.append((name, sender.address))
        for gate in list(self.gates):
            gate("after", name, sender.address)
        return value, SimpleNamespace(transaction_hash=keccak256(f"{name} {self.height}".encode()))

    def payers(self, name):
        return [sender for sent, sender in self.sent if sent == name]

    def contracts(self):
        contracts = Contracts(self)
        if self.lag:
            contracts.settled = Contracts(Lagging(self))
        return contracts


class Lagging:
    """For readers: every attribute is that of the settled chain."""

    def __init__(self, chain):
        self._chain = chain

    def __getattr__(self, name):
        return getattr(self._chain.settled(), name)


def require(holds, reason):
    if not holds:
        raise Reverted(reason)


class Contracts:
    def __init__(self, chain):
        self.settled = self
        self.rpc = FakeRpc(chain)
        self.credit = FakeCredit(chain)
        self.staking = FakeStaking(chain)
        self.beacon = FakeBeacon(chain)
        self.disputes = FakeDisputes(chain, self.beacon)


class FakeRpc:
    def __init__(self, chain):
        self.chain = chain

    async def get_block(self, block="latest"):
        return SimpleNamespace(number=self.chain.height, timestamp=self.chain.now)


class FakeCredit:
    def __init__(self, chain):
        self.chain = chain

    async def ensure_allowance(self, sender, spender, amount):
        if self.chain.allowances[sender.address] >= amount:
            return None

        def approve():
            self.chain.allowances[sender.address] = amount

        return (await self.chain.transact(sender, "approve", approve))[1]


class FakeStaking:
    def __init__(self, chain):
        self.chain = chain

    async def members(self, service):
        return tuple(self.chain.powers)


class FakeBeacon:
    address = b"\xbe" * 20

    def __init__(self, chain):
        self.chain = chain

    def _round(self, round_id):
        known = round_id <= len(self.chain.rounds)
        return self.chain.rounds[round_id - 1] if known else Round()  # storage that nobody wrote is zero

    def phase_now(self, round_id):
        state = self._round(round_id)
        if state.final != ZERO32:
            return BeaconPhase.FINAL
        if state.failed:
            return BeaconPhase.FAILED
        if self.chain.now < state.commit_deadline:
            return BeaconPhase.COMMIT
        if self.chain.now < state.reveal_deadline and state.committed:
            return BeaconPhase.REVEAL
        return BeaconPhase.FINALIZE

    def _begin_attempt(self, state):
        state.committed, state.revealed = {}, {}
        state.commit_deadline = self.chain.now + COMMIT_S
        state.reveal_deadline = state.commit_deadline + REVEAL_S

    def request(self):
        newest = len(self.chain.rounds)
        phase = self.phase_now(newest) if newest else BeaconPhase.FINAL
        begins_again = phase == BeaconPhase.FINALIZE and not self._round(newest).revealed
        if phase != BeaconPhase.COMMIT and not begins_again:
            state = Round()
            self._begin_attempt(state)
            self.chain.rounds.append(state)
            newest += 1
        return newest

    async def pending_rounds(self):
        newest = len(self.chain.rounds)
        over = (BeaconPhase.FINAL, BeaconPhase.FAILED)
        return tuple(item for item in range(newest, max(0, newest - 16), -1) if self.phase_now(item) not in over)

    async def phase(self, round_id):
        return self.phase_now(round_id)

    async def round_of(self, round_id):
        state = self._round(round_id)
        return BeaconRound(
            state.attempt, state.commit_deadline, state.reveal_deadline, len(state.committed), len(state.revealed)
        )

    async def is_committed(self, round_id, member):
        return member in self._round(round_id).committed

    async def is_revealed(self, round_id, member):
        return member in self._round(round_id).revealed

    async def commit(self, sender, round_id, secret):
        commitment = commit_secret(round_id, sender.address, secret)

        def effect():
            state = self._round(round_id)
            require(self.phase_now(round_id) == BeaconPhase.COMMIT, "beacon: round is not in its commit phase")
            require(sender.address in self.chain.powers, "beacon: caller is not a staked auditor")
            require(sender.address not in state.committed, "beacon: caller has committed")
            state.committed[sender.address] = commitment
            if set(state.committed) >= set(self.chain.powers):
                state.commit_deadline = self.chain.now
                state.reveal_deadline = self.chain.now + REVEAL_S

        return (await self.chain.transact(sender, "beacon.commit", effect))[1]

    async def reveal(self, sender, round_id, secret):
        def effect():
            state = self._round(round_id)
            require(self.phase_now(round_id) == BeaconPhase.REVEAL, "beacon: round is not in its reveal phase")
            require(sender.address not in state.revealed, "beacon: caller has revealed")
            opened = commit_secret(round_id, sender.address, secret)
            require(state.committed.get(sender.address) == opened, "beacon: secret does not open the commitment")
            state.revealed[sender.address] = secret
            if len(state.revealed) == len(state.committed):
                self._finish(round_id)

        return (await self.chain.transact(sender, "beacon.reveal", effect))[1]

    async def finalize(self, sender, round_id):
        def effect():
            state = self._round(round_id)
            require(self.phase_now(round_id) == BeaconPhase.FINALIZE, "beacon: round cannot be finalized now")
            silent = [member for member in state.committed if member not in state.revealed]
            self.chain.penalised += [("beacon", round_id, member) for member in silent]
            if state.revealed:
                self._finish(round_id)
            elif state.attempt + 1 < ATTEMPTS_MAX:
                state.attempt += 1
                self._begin_attempt(state)
            else:
                state.failed = True

        return (await self.chain.transact(sender, "beacon.finalize", effect))[1]

    def _finish(self, round_id):
        state = self._round(round_id)
        state.final = keccak256(b"".join(state.revealed[member] for member in sorted(state.revealed)))


class FakeDisputes:
    address = b"\xd1" * 20

    def __init__(self, chain, beacon):
        self.chain = chain
        self.beacon = beacon

    # views

    async def dispute_count(self):
        return len(self.chain.disputes)

    async def dispute_of(self, dispute_id):
        return self.chain.disputes[dispute_id - 1]

    async def phase_of(self, dispute_id):
        return self.phase_now(dispute_id)

    async def jurors_of(self, dispute_id):
        draws = self.chain.disputes[dispute_id - 1].draws
        return self.chain.juries[dispute_id, draws] if draws else ()

    async def ballot_of(self, dispute_id, draw, juror):
        return self.chain.ballots.get((dispute_id, draw, juror), Ballot(ZERO32, 0, ZERO32))

    async def is_paused(self, provider):
        return any(item.provider == provider and item.stage < 4 for item in self.chain.disputes)

    async def is_convicted(self, digest):
        return digest in self.chain.convicted

    async def bond_of(self, digest):
        return SETTINGS.bond << self.chain.openings[digest]

    async def open_dispute_of(self, digest):
        return self._open_of(digest)

    async def settings(self):
        return SETTINGS

    def _open_of(self, digest):
        found = (number for number, item in enumerate(self.chain.disputes, 1) if item.receipt_digest == digest)
        return next((number for number in found if self.chain.disputes[number - 1].stage < 4), None)

    def phase_now(self, dispute_id):
        item, now = self.chain.disputes[dispute_id - 1], self.chain.now
        if item.stage == 1:
            over = self.beacon.phase_now(item.round) in (BeaconPhase.FINAL, BeaconPhase.FAILED)
            return DisputePhase.DRAW if over else DisputePhase.BEACON
        if item.stage == 2:
            if now < item.commit_deadline:
                return DisputePhase.COMMIT
            return (
                DisputePhase.REVEAL
                if item.reveals < item.commits and now < item.reveal_deadline
                else DisputePhase.TALLY
            )
        if item.stage == 3:
            return DisputePhase.APPEAL if now < item.appeal_deadline else DisputePhase.FINALIZE
        return DisputePhase.CLOSED

    # writes

    def _set(self, dispute_id, **changes):
        self.chain.disputes[dispute_id - 1] = replace(self.chain.disputes[dispute_id - 1], **changes)

    async def commit_evidence(self, sender, evidence_root, salt):
        commitment = commit_evidence(sender.address, evidence_root, salt)
        effect = lambda: self.chain.evidence.setdefault(commitment, self.chain.height)  # noqa: E731
        return (await self.chain.transact(sender, "commit_evidence", effect))[1]

    async def open(
        self, sender, request, request_signature, receipt, receipt_signature, evidence_root, evidence_manifest, salt
    ):
        digest = hash_struct(receipt)
        commitment = commit_evidence(sender.address, evidence_root, salt)

        def effect():
            require(commitment in self.chain.evidence, "disputes: evidence was not committed")
            require(
                self.chain.evidence[commitment] < self.chain.height, "disputes: evidence was committed in this block"
            )
            require(self.chain.providers.get(request.provider, 0) > 0, "disputes: provider has no stake in compute")
            require(digest not in self.chain.convicted, "disputes: receipt was found guilty")
            require(self._open_of(digest) is None, "disputes: receipt is in dispute")
            eligible = self._eligible(sender.address, request.provider)
            require(len(eligible) >= SETTINGS.jury_size, "disputes: too few auditors for a jury")
            bond = SETTINGS.bond << self.chain.openings[digest]
            self._take(sender, bond)
            del self.chain.evidence[commitment]
            self.chain.openings[digest] += 1
            self.chain.disputes.append(
                Dispute(
                    **_ZERO_DISPUTE
                    | {
                        "accuser": sender.address,
                        "provider": request.provider,
                        "receipt_digest": digest,
                        "evidence_root": evidence_root,
                        "evidence_manifest": evidence_manifest,
                        "fee": receipt.fee,
                        "bond": bond,
                        "opened_at": self.chain.now,
                    }
                )
            )
            assert self._await_jury(len(self.chain.disputes))
            return len(self.chain.disputes)

        value, result = await self.chain.transact(sender, "open", effect)
        return Outcome(value, result)

    def _take(self, sender, amount):
        require(self.chain.allowances[sender.address] >= amount, "credit: allowance too low")
        require(self.chain.balances[sender.address] >= amount, "credit: balance too low")
        self.chain.balances[sender.address] -= amount

    def _eligible(self, accuser, provider):
        return [(who, power) for who, power in self.chain.powers.items() if who not in (accuser, provider)]

    def _await_jury(self, dispute_id):
        item = self.chain.disputes[dispute_id - 1]
        eligible = self._eligible(item.accuser, item.provider)
        if len(eligible) < SETTINGS.jury_size:
            return False
        self.chain.snapshots[dispute_id] = eligible
        self._set(dispute_id, stage=1, round=self.beacon.request())
        return True

    async def draw(self, sender, dispute_id):
        def effect():
            require(self.phase_now(dispute_id) == DisputePhase.DRAW, "disputes: no jury is to be drawn now")
            item = self.chain.disputes[dispute_id - 1]
            if self.beacon.phase_now(item.round) == BeaconPhase.FAILED:
                verdict = item.first_verdict if item.appellant != ZERO_ADDRESS else Decision.NO_QUORUM
                self._give_verdict(dispute_id, verdict)
                return
            roster = self.chain.snapshots[dispute_id]
            size = jury_size(SETTINGS.jury_size, len(roster), appealed=item.appellant != ZERO_ADDRESS)
            value = self.chain.rounds[item.round - 1].final
            jurors = draw_jury(value, dispute_id, item.draws, roster, size)
            if self.chain.choose_jury is not None:
                jurors = self.chain.choose_jury(item, size) or jurors
            self.chain.juries[dispute_id, item.draws + 1] = jurors
            deadline = self.chain.now + SETTINGS.commit_seconds
            self._set(
                dispute_id,
                draws=item.draws + 1,
                jurors=len(jurors),
                commits=0,
                reveals=0,
                guilty=0,
                acquit=0,
                stage=2,
                commit_deadline=deadline,
                reveal_deadline=deadline + SETTINGS.reveal_seconds,
            )

        return (await self.chain.transact(sender, "draw", effect))[1]

    async def commit_verdict(self, sender, verdict):
        dispute_id, commitment = verdict.dispute_id, hash_struct(verdict)

        def effect():
            require(self.phase_now(dispute_id) == DisputePhase.COMMIT, "disputes: jury is not in its commit phase")
            item = self.chain.disputes[dispute_id - 1]
            jurors = self.chain.juries[dispute_id, item.draws]
            require(sender.address in jurors, "disputes: caller is not a juror")
            key = (dispute_id, item.draws, sender.address)
            require(key not in self.chain.ballots, "disputes: juror has committed")
            self.chain.ballots[key] = Ballot(commitment, 0, ZERO32)
            self._set(dispute_id, commits=item.commits + 1)
            if item.commits + 1 == len(jurors):
                now = self.chain.now
                self._set(dispute_id, commit_deadline=now, reveal_deadline=now + SETTINGS.reveal_seconds)

        return (await self.chain.transact(sender, "commit_verdict", effect))[1]

    async def reveal_verdict(self, sender, verdict):
        dispute_id = verdict.dispute_id

        def effect():
            require(self.phase_now(dispute_id) == DisputePhase.REVEAL, "disputes: jury is not in its reveal phase")
            item = self.chain.disputes[dispute_id - 1]
            key = (dispute_id, item.draws, sender.address)
            ballot = self.chain.ballots.get(key, Ballot(ZERO32, 0, ZERO32))
            require(ballot.judgement == 0, "disputes: juror has revealed")
            opened = hash_struct(
                Verdict(dispute_id, sender.address, verdict.judgement, verdict.evidence_root, verdict.salt)
            )
            require(ballot.commitment == opened, "disputes: verdict does not open the commitment")
            self.chain.ballots[key] = replace(ballot, judgement=verdict.judgement, evidence_root=verdict.evidence_root)
            side = {"guilty": item.guilty + 1} if verdict.judgement == 2 else {"acquit": item.acquit + 1}
            self._set(dispute_id, reveals=item.reveals + 1, **side)

        return (await self.chain.transact(sender, "reveal_verdict", effect))[1]

    async def tally(self, sender, dispute_id):
        def effect():
            require(self.phase_now(dispute_id) == DisputePhase.TALLY, "disputes: nothing to tally now")
            item = self.chain.disputes[dispute_id - 1]
            needed, verdict = quorum(item.jurors), Decision.NO_QUORUM
            if item.guilty >= needed:
                verdict = Decision.GUILTY
            elif item.acquit >= needed:
                verdict = Decision.ACQUITTED
            for juror in self.chain.juries[dispute_id, item.draws]:
                ballot = self.chain.ballots.get((dispute_id, item.draws, juror))
                if ballot is None or ballot.judgement == 0:
                    self.chain.penalised.append(("jury", dispute_id, juror))
            if verdict == Decision.NO_QUORUM and not item.redrawn and self._await_jury(dispute_id):
                self._set(dispute_id, redrawn=True)
            else:
                self._give_verdict(dispute_id, verdict)

        return (await self.chain.transact(sender, "tally", effect))[1]

    def _give_verdict(self, dispute_id, verdict):
        item = self.chain.disputes[dispute_id - 1]
        final = verdict == Decision.NO_QUORUM or item.appellant != ZERO_ADDRESS
        deadline = self.chain.now + (0 if final else SETTINGS.appeal_seconds)
        self._set(dispute_id, stage=3, verdict=int(verdict), appeal_deadline=deadline)

    async def appeal(self, sender, dispute_id):
        def effect():
            require(self.phase_now(dispute_id) == DisputePhase.APPEAL, "disputes: no appeal is possible now")
            item = self.chain.disputes[dispute_id - 1]
            loser = item.provider if item.verdict == Decision.GUILTY else item.accuser
            require(sender.address == loser, "disputes: caller did not lose")
            eligible = self._eligible(item.accuser, item.provider)
            require(len(eligible) >= SETTINGS.jury_size, "disputes: too few auditors for a jury")
            self._take(sender, SETTINGS.appeal_bond)
            self._set(
                dispute_id,
                appellant=sender.address,
                appeal_bond=SETTINGS.appeal_bond,
                first_verdict=item.verdict,
                verdict=0,
                redrawn=False,
            )
            assert self._await_jury(dispute_id)

        return (await self.chain.transact(sender, "appeal", effect))[1]

    async def finalize(self, sender, dispute_id):
        def effect():
            require(self.phase_now(dispute_id) == DisputePhase.FINALIZE, "disputes: dispute cannot be finalized now")
            item = self.chain.disputes[dispute_id - 1]
            self._set(dispute_id, stage=4)
            if item.verdict == Decision.GUILTY:
                self.chain.convicted.add(item.receipt_digest)
                taken = min(self.chain.providers[item.provider], SETTINGS.slash_floor)
                self.chain.providers[item.provider] -= taken
            if item.verdict != Decision.ACQUITTED:
                self.chain.balances[item.accuser] += item.bond
            if item.appeal_bond and item.verdict != item.first_verdict:
                self.chain.balances[item.appellant] += item.appeal_bond

        return (await self.chain.transact(sender, "finalize", effect))[1]
