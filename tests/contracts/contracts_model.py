"""The money of the suite in plain Python: what every call must move, written from docs/contracts.md.

It holds balances by address and nothing of the contracts' bookkeeping, so that a recount from it is independent.
Phases and time come from the caller; a method is called when the contract let the call through, and `can_…` says
beforehand whether it should.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

BPS = 10_000
FEE_MULTIPLE = 1000
SHARE_SCALE = 10**9
"""Shares of a pot that nobody holds; one unit of money that nobody put in stands behind them."""
OWN_MULTIPLE = 20
"""Of an operator's active stake, at most so many times its own counts."""
ACQUIT, GUILTY, NO_QUORUM = 1, 2, 3


@dataclass
class Channel:
    payer: str
    receiver: str
    withdraw_delay: int
    balance: int = 0
    claimed: int = 0
    voucher_max: int = 0
    refund_nonce: int = 0
    pending: int = 0
    ready_at: int | None = None

    @property
    def unclaimed(self) -> int:
        return self.balance - self.claimed


@dataclass
class Pot:
    """Money that many hold shares of, rounded in the pot's favour."""

    money: int = 0
    shares: dict[str, int] = field(default_factory=dict)

    @property
    def all_shares(self) -> int:
        return sum(self.shares.values()) + SHARE_SCALE

    def worth(self, who: str) -> int:
        return self.shares.get(who, 0) * (self.money + 1) // self.all_shares

    def shares_for(self, amount: int) -> int:
        return amount * self.all_shares // (self.money + 1)

    def put(self, who: str, amount: int) -> None:
        self.shares[who] = self.shares.get(who, 0) + self.shares_for(amount)
        self.money += amount

    def take(self, who: str, amount: int) -> None:
        everything = amount == self.worth(who)
        burned = self.shares[who] if everything else -(-amount * self.all_shares // (self.money + 1))
        self.shares[who] -= burned
        self.money -= amount

    def lose(self, amount: int) -> None:
        self.money -= amount
        if self.money == 0:
            self.shares.clear()


@dataclass
class Operator:
    name: str
    active: Pot = field(default_factory=Pot)
    pending: Pot = field(default_factory=Pot)
    releases: dict[str, int] = field(default_factory=dict)
    commission_bps: int = 0
    next_commission: tuple[int, int] | None = None
    jailed_until: dict[bytes, int] = field(default_factory=dict)
    caps: dict[bytes, int] = field(default_factory=dict)
    leaving_at: dict[bytes, int] = field(default_factory=dict)
    slashed: dict[bytes, int] = field(default_factory=dict)
    staked_ever: int = 0
    lost_ever: int = 0
    withdrawn_ever: int = 0

    @property
    def stake(self) -> int:
        return self.active.money

    @property
    def unbonding(self) -> int:
        return self.pending.money

    @property
    def total(self) -> int:
        return self.stake + self.unbonding

    def commission(self, now: int) -> int:
        if self.next_commission is not None and now >= self.next_commission[1]:
            return self.next_commission[0]
        return self.commission_bps

    def weight(self, service: bytes) -> int:
        """Power of a seated member, before the service's minimum."""
        if service in self.jailed_until or self.total == 0:
            return 0
        counted = min(self.stake, OWN_MULTIPLE * self.active.worth(self.name))
        return self.slice_of(service) * counted // self.total

    def slice_of(self, service: bytes) -> int:
        mine = self.slashed.get(service, 0)
        whole = self.caps.get(service, 0) * (self.total + sum(self.slashed.values())) // BPS
        return min(self.total, max(0, whole - mine))


@dataclass
class Dispute:
    accuser: str
    provider: str
    buyer: str
    digest: bytes
    fee: int
    bond: int
    juries: list[dict[str, int]] = field(default_factory=list)
    """Judgement by juror of every jury so far; 0 is silence."""
    redrawn: bool = False
    verdict: int = 0
    first_verdict: int = 0
    appellant: str | None = None
    appeal_bond: int = 0


@dataclass
class Challenge:
    challenger: str
    provider: str
    total: int


@dataclass
class Promise:
    """A certificate: whose seats still count, and who doubts which of them."""

    fee: int
    seats: dict[int, str]
    doubts: dict[int, str] = field(default_factory=dict)


class Model:
    """Balances, and what each contract owes to whom."""

    def __init__(self, balances: dict[str, int], contracts: dict[str, str], services: tuple[bytes, bytes]) -> None:
        self.balances = dict(balances)
        self.at = contracts
        self.compute, self.audit = services
        self.supply = sum(balances.values())
        self.channels: list[Channel] = []
        self.earned: dict[str, int] = {}
        self.settled: dict[str, int] = {}
        self.operators: dict[str, Operator] = {}
        self.disputes: dict[int, Dispute] = {}
        self.closed: dict[int, Dispute] = {}
        self.openings: dict[bytes, int] = {}
        self.challenges: dict[int, Challenge] = {}
        self.shown: dict[int, int] = {}
        self.proven: set[tuple[str, str, object]] = set()
        self.promises: dict[int, Promise] = {}
        self.earned_by_rows: dict[str, int] = {}
        self.paid_out: dict[bytes, tuple[int, int]] = {}
        self.clock: Callable[[], int] = lambda: 0

    def move(self, payer: str, to: str, amount: int) -> None:
        assert 0 <= amount <= self.balances[payer]
        self.balances[payer] -= amount
        self.balances[to] += amount

    def burn(self, holder: str, amount: int) -> None:
        assert 0 <= amount <= self.balances[holder]
        self.balances[holder] -= amount
        self.supply -= amount

    def owed(self) -> dict[str, int]:
        """What each contract must be able to pay out now."""
        in_channels = sum(channel.unclaimed for channel in self.channels)
        unsettled = sum(self.earned.values()) - sum(self.settled.values())
        return {
            "channels": in_channels + unsettled,
            "staking": sum(operator.total for operator in self.operators.values()),
            "beacon": 0,
            "disputes": sum(dispute.bond + dispute.appeal_bond for dispute in self.disputes.values()),
            "forks": len(self.challenges) * self.claim_bond,
            "availability": sum(self.earned_by_rows.values())
            + sum(promise.fee + len(promise.doubts) * self.row_bond for promise in self.promises.values()),
        }

    # Amounts that the suite was deployed with; set by who makes the model.

    payout_s, payout_max = 1, 0
    claim_bond = fork_penalty = beacon_penalty = row_bond = row_penalty = 0
    bond = appeal_bond = slash_floor = juror_fee = juror_penalty = 0

    # Channels

    def deposit(self, which: int, amount: int) -> None:
        channel = self.channels[which]
        self.move(channel.payer, self.at["channels"], amount)
        channel.balance += amount

    def can_claim(self, which: int, total: int, ceiling: int) -> bool:
        channel = self.channels[which]
        return total <= channel.claimed or total <= min(ceiling, channel.balance)

    def claim(self, which: int, total: int, ceiling: int) -> None:
        channel = self.channels[which]
        if total > channel.claimed:
            self.earned[channel.receiver] = self.earned.get(channel.receiver, 0) + total - channel.claimed
            channel.claimed = total
            channel.voucher_max = max(channel.voucher_max, ceiling)

    def settle(self, receiver: str) -> None:
        earned = self.earned.get(receiver, 0)
        self.move(self.at["channels"], receiver, earned - self.settled.get(receiver, 0))
        self.settled[receiver] = earned

    def can_initiate(self, which: int, amount: int) -> bool:
        channel = self.channels[which]
        return channel.ready_at is None and 0 < amount <= channel.unclaimed

    def initiate(self, which: int, amount: int, now: int) -> None:
        channel = self.channels[which]
        channel.pending, channel.ready_at = amount, now + channel.withdraw_delay

    def can_finalize_withdraw(self, which: int, now: int) -> bool:
        ready_at = self.channels[which].ready_at
        return ready_at is not None and now >= ready_at

    def finalize_withdraw(self, which: int) -> None:
        channel = self.channels[which]
        amount = min(channel.pending, channel.unclaimed)
        channel.balance -= amount
        channel.pending, channel.ready_at = 0, None
        self.move(self.at["channels"], channel.payer, amount)

    def refund(self, which: int, amount: int) -> None:
        channel = self.channels[which]
        channel.refund_nonce += 1
        amount = min(amount, channel.unclaimed)
        channel.balance -= amount
        if channel.ready_at is not None and amount > 0:
            channel.pending = max(0, channel.pending - amount)
            channel.ready_at = channel.ready_at if channel.pending else None
        self.move(self.at["channels"], channel.payer, amount)

    # Stake

    def can_delegate(self, whom: str, holder: str, amount: int) -> bool:
        own = self.operators[whom].active.worth(whom)
        if self.operators[whom].active.shares_for(amount) == 0:
            return False
        return self.balances[holder] >= amount and (own > 0 or holder == whom)

    def stake(self, whom: str, holder: str, amount: int) -> None:
        operator = self.operators[whom]
        self.move(holder, self.at["staking"], amount)
        operator.active.put(holder, amount)
        operator.staked_ever += amount

    def can_reward(self, whom: str, payer: str, amount: int) -> bool:
        return self.balances[payer] >= amount and sum(self.operators[whom].active.shares.values()) > 0

    def reward(self, whom: str, payer: str, amount: int, now: int) -> None:
        operator = self.operators[whom]
        self.move(payer, self.at["staking"], amount)
        commission = amount * operator.commission(now) // BPS
        operator.active.money += amount - commission
        operator.active.put(whom, commission)
        operator.staked_ever += amount

    def set_commission(self, who: str, bps: int, now: int, wait: int) -> None:
        operator = self.operators[who]
        operator.commission_bps = current = operator.commission(now)
        operator.next_commission = None
        if bps <= current:
            operator.commission_bps = bps
        else:
            operator.next_commission = (bps, now + wait)

    def unbond(self, whom: str, holder: str, amount: int, release: int) -> None:
        operator = self.operators[whom]
        operator.active.take(holder, amount)
        operator.pending.put(holder, amount)
        operator.releases[holder] = release

    def can_withdraw(self, whom: str, holder: str, now: int) -> bool:
        operator = self.operators[whom]
        return operator.pending.shares.get(holder, 0) > 0 and now >= operator.releases[holder]

    def withdraw(self, whom: str, holder: str) -> None:
        operator = self.operators[whom]
        total, amount = operator.total, operator.pending.worth(holder)
        left = total - amount
        operator.slashed = {service: lost * left // total for service, lost in operator.slashed.items()}
        operator.withdrawn_ever += amount
        operator.pending.take(holder, amount)
        operator.releases[holder] = 0
        self.move(self.at["staking"], holder, amount)

    def leave(self, who: str, service: bytes, until: int) -> None:
        self.operators[who].leaving_at[service] = until

    def can_complete_leaving(self, who: str, service: bytes, now: int) -> bool:
        return now >= self.operators[who].leaving_at.get(service, now + 1)

    def complete_leaving(self, who: str, service: bytes) -> None:
        operator = self.operators[who]
        for entries in (operator.caps, operator.leaving_at, operator.slashed, operator.jailed_until):
            entries.pop(service, None)

    def payout_left(self, service: bytes) -> int:
        """What a service's judges can be paid now: `payout_max`, and less for what they were paid of late."""
        spent, at = self.paid_out.get(service, (0, 0))
        worn_off = min(self.clock() - at, self.payout_s) * self.payout_max // self.payout_s
        return self.payout_max - max(0, spent - worn_off)

    def slash(self, service: bytes, who: str, amount: int, judge: str) -> int:
        """What the judge is paid."""
        operator = self.operators[who]
        taken = min(amount, operator.slice_of(service))
        if taken == 0:
            return 0
        from_unbonding = taken * operator.unbonding // operator.total
        operator.active.lose(taken - from_unbonding)
        operator.pending.lose(from_unbonding)
        operator.slashed[service] = operator.slashed.get(service, 0) + taken
        operator.lost_ever += taken
        left = self.payout_left(service)
        paid = min(taken, left)
        self.paid_out[service] = (self.payout_max - left + paid, self.clock())
        self.move(self.at["staking"], judge, paid)
        self.burn(self.at["staking"], taken - paid)
        return paid

    def slash_and_burn(self, service: bytes, who: str, amount: int, judge: str) -> None:
        self.burn(judge, self.slash(service, who, amount, judge))

    # Proofs and challenges

    def can_punish(self, provider: str, kind: str, subject: object) -> bool:
        fresh = (provider, kind, subject) not in self.proven
        at_stake = min(self.operators[provider].slice_of(self.compute), self.payout_left(self.compute))
        return fresh and at_stake > 0

    def punish(self, provider: str, kind: str, subject: object, prover: str) -> None:
        self.proven.add((provider, kind, subject))
        self._share_penalty(provider, prover)

    def _share_penalty(self, provider: str, prover: str) -> None:
        taken = self.slash(self.compute, provider, self.fork_penalty, self.at["forks"])
        self.move(self.at["forks"], prover, taken // 10)
        self.burn(self.at["forks"], taken - taken // 10)

    def can_challenge(self, which: int) -> bool:
        channel = self.channels[which]
        at_stake = self.operators[channel.receiver].slice_of(self.compute)
        return which not in self.challenges and channel.claimed > self.shown.get(which, 0) and at_stake > 0

    def challenge(self, which: int, challenger: str) -> None:
        channel = self.channels[which]
        self.challenges[which] = Challenge(challenger, channel.receiver, channel.claimed)
        self.move(challenger, self.at["forks"], self.claim_bond)

    def show(self, which: int, charged: int) -> None:
        challenge = self.challenges.pop(which)
        self.shown[which] = charged
        self.move(self.at["forks"], challenge.provider, self.claim_bond)

    def finalize_claim(self, which: int) -> None:
        challenge = self.challenges.pop(which)
        self.shown[which] = challenge.total
        self.move(self.at["forks"], challenge.challenger, self.claim_bond)
        self._share_penalty(challenge.provider, challenge.challenger)

    # Rows

    def certify(self, number: int, payer: str, promise: Promise) -> None:
        self.move(payer, self.at["availability"], promise.fee)
        self.promises[number] = promise

    def can_doubt(self, number: int, seat: int, challenger: str) -> bool:
        promise = self.promises[number]
        return seat in promise.seats and seat not in promise.doubts and self.balances[challenger] >= self.row_bond

    def doubt(self, number: int, seat: int, challenger: str) -> None:
        self.move(challenger, self.at["availability"], self.row_bond)
        self.promises[number].doubts[seat] = challenger

    def show_row(self, number: int, seat: int, who: str) -> None:
        del self.promises[number].doubts[seat]
        self.move(self.at["availability"], who, self.row_bond)

    def end_doubt(self, number: int, seat: int, service: bytes, *, was_asked: bool) -> None:
        """Nobody answered; without a value of the beacon there was no question."""
        promise, here = self.promises[number], self.at["availability"]
        challenger = promise.doubts.pop(seat)
        self.move(here, challenger, self.row_bond)
        if was_asked:
            taken = self.slash(service, promise.seats.pop(seat), self.row_penalty, here)
            self.move(here, challenger, taken // 10)
            self.burn(here, taken - taken // 10)

    def settle_rows(self, number: int) -> None:
        promise = self.promises.pop(number)
        if not promise.seats:
            self.burn(self.at["availability"], promise.fee)
            return
        share, dust = divmod(promise.fee, len(promise.seats))
        for seat, member in promise.seats.items():
            rest = dust if seat == min(promise.seats) else 0
            self.earned_by_rows[member] = self.earned_by_rows.get(member, 0) + share + rest

    def withdraw_rows(self, member: str) -> None:
        self.move(self.at["availability"], member, self.earned_by_rows.pop(member))

    # Disputes

    def open(self, dispute_id: int, dispute: Dispute) -> None:
        assert dispute.bond == self.bond << self.openings.get(dispute.digest, 0)
        self.openings[dispute.digest] = self.openings.get(dispute.digest, 0) + 1
        self.move(dispute.accuser, self.at["disputes"], dispute.bond)
        self.disputes[dispute_id] = dispute

    def count(self, dispute: Dispute) -> int:
        """The verdict of the jury that sits: two thirds of all its seats agree, or nobody has said anything."""
        votes = list(dispute.juries[-1].values())
        for judgement in (GUILTY, ACQUIT):
            if 3 * votes.count(judgement) >= 2 * len(votes):
                return judgement
        return NO_QUORUM

    def punish_silence(self, dispute: Dispute) -> None:
        for juror, judgement in dispute.juries[-1].items():
            if judgement == 0:
                self.slash_and_burn(self.audit, juror, self.juror_penalty, self.at["disputes"])

    def appeal(self, dispute: Dispute, appellant: str) -> None:
        dispute.appellant, dispute.appeal_bond = appellant, self.appeal_bond
        dispute.first_verdict, dispute.verdict, dispute.redrawn = dispute.verdict, 0, False
        self.move(appellant, self.at["disputes"], self.appeal_bond)

    def go_on_without_jury(self, dispute: Dispute) -> None:
        dispute.verdict = dispute.first_verdict or NO_QUORUM
        if dispute.appellant is not None:
            self.move(self.at["disputes"], dispute.appellant, dispute.appeal_bond)
            dispute.appeal_bond = 0

    def finalize(self, dispute_id: int) -> None:
        """Divide the bonds and the slash; whatever nobody gets is burned."""
        dispute = self.disputes.pop(dispute_id)
        self.closed[dispute_id] = dispute
        here, left = self.at["disputes"], dispute.bond
        if dispute.verdict == GUILTY:
            self.move(here, dispute.accuser, dispute.bond)
            wanted = max(self.slash_floor, FEE_MULTIPLE * dispute.fee)
            left = taken = self.slash(self.compute, dispute.provider, wanted, here)
            half = taken // 2
            refund = min(dispute.fee, half)
            bounty = min(taken // 10, half - refund)
            self.move(here, dispute.buyer, refund)
            self.move(here, dispute.accuser, bounty)
            left -= refund + bounty + self._pay_jurors(dispute, half - refund - bounty)
            assert 2 * left >= taken
            assert 10 * bounty <= taken
        elif dispute.verdict == ACQUIT:
            half = dispute.bond // 2
            self.move(here, dispute.provider, half)
            left -= half + self._pay_jurors(dispute, dispute.bond - half)
        else:
            self.move(here, dispute.accuser, dispute.bond)
            left = 0
        self.burn(here, left + self._end_appeal(dispute))
        dispute.bond = dispute.appeal_bond = 0

    def _pay_jurors(self, dispute: Dispute, pool: int) -> int:
        revealed = [juror for jury in dispute.juries for juror, judgement in jury.items() if judgement]
        if not revealed:
            return 0
        fee = min(self.juror_fee, pool // len(revealed))
        for juror in revealed:
            self.move(self.at["disputes"], juror, fee)
        return fee * len(revealed)

    def _end_appeal(self, dispute: Dispute) -> int:
        """What is burned of the appeal bond."""
        if not dispute.appeal_bond:
            return 0
        assert dispute.appellant is not None
        if dispute.verdict != dispute.first_verdict:
            self.move(self.at["disputes"], dispute.appellant, dispute.appeal_bond)
            return 0
        other = dispute.accuser if dispute.appellant == dispute.provider else dispute.provider
        self.move(self.at["disputes"], other, dispute.appeal_bond // 2)
        return dispute.appeal_bond - dispute.appeal_bond // 2
