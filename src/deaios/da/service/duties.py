"""What a member does for the chain: it knows its seats, keeps its promises there, answers for them and is paid.

Every step looks at the chain first and may be repeated; a step that fails is tried again at the next look, and what
fails about one matrix keeps no other from being looked after. A promise counts as certified once its certificate was
seen; rows are let go only after the last promise for them can no longer be called on, and never on the word of a clock
alone: a promise without a certificate is over once the chain was looked through after its time. Certificates with our
seats whose rows are gone are healed from other members. What is written down, here or in the journal, is settled: read
where no reorganisation takes it back; what is done on chain is decided by the latest block, and done again if need be.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import choice
from typing import TypeVar

from deaios.coding.matrix import prove_leaf
from deaios.coding.parameters import LEAF_BYTES, VERIFIABLE_ROWS_MAX
from deaios.da.client.healing import Healer
from deaios.da.seating import Seating
from deaios.da.service.door import MemberDoor
from deaios.da.store import Pledge, PledgeStore
from deaios.ledger.client.availability import SETTLED_MAX, Certificate, OpenedChallenge
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.rpc import Reverted
from deaios.ledger.client.sender import Sender
from deaios.ledger.committee import Committee
from deaios.ledger.structs import RowAttestation
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.rows.message import decode_message
from deaios.rows.store import RowStore, UnavailableEntry
from deaios.runtime.clock import Clock
from deaios.runtime.logs import get_logger

INTERVAL_S = 1.0
RETRY_S = 5.0
FIRST_EPOCH_WAIT_S = 60.0
"""The first epoch is the founder's to begin, once all its members are there; after this time any member does."""
COLLECT_S_MAX = 3600
"""How long after its term's begin a blob can still be certified, as the contract has it."""
CLOCK_SLACK_S = 120
"""Between a block's time and ours."""
ARRIVAL_S_MAX = 900
"""Rows that nobody asked us to attest to are let go after this."""
SCAN_BLOCKS = 5_000
"""Blocks looked through in one question."""
LOOKED_AFTER = 64
"""Certified matrices whose rows are looked for in one step."""
SCRUB_S = 10.0
"""Between matrices whose rows are read whole, so that rot is found before a reader or a challenge does."""
HEAL_S_MAX = 5.0
"""After so long a step makes no further rows anew: challenges must be answered meanwhile."""
ANSWERS_MAX = 16
"""Challenges answered at once: each answer waits for its block, and many may have one deadline."""
COMPACT_BYTES = 256 << 20
"""Bytes moved at most in one step to give space back."""
TURN_S = 30
"""Between those who may settle the same certificates."""
WITHDRAW_S = 600.0
"""Between withdrawals: each costs gas."""

POSTPONED = (Unavailable, Refused, Invalid)
"""What a chain or a peer can do to a step: it is tried again."""

_log = get_logger("da.member")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DutySettings:
    """Windows of the network, in seconds."""

    epoch_s: int
    term_s_max: int
    challenge_s_max: int
    """Longest time from a challenge to its deadline."""


@dataclass(slots=True)
class _Memory:
    """What is remembered between steps; all of it can be read again from the chain."""

    epoch: int = 0
    committees: dict[int, Committee] = field(default_factory=dict)
    challenges: dict[bytes, OpenedChallenge] | None = None
    scanned_s: int | None = None
    """Up to which time the chain was last looked through, Unix seconds."""
    looked_up_to: Pledge | None = None
    collected_up_to: Pledge | None = None
    scrubbed_s: float = 0.0
    withdrawn_s: float = 0.0


class Duties:
    """One member's duties; `run` until cancelled."""

    def __init__(
        self,
        *,
        contracts: Contracts,
        sender: Sender,
        door: MemberDoor,
        store: RowStore,
        pledges: PledgeStore,
        healer: Healer,
        settings: DutySettings,
        clock: Clock,
    ) -> None:
        self._contracts = contracts
        self._availability = contracts.availability
        self._settled = contracts.settled.availability
        self._sender = sender
        self._door = door
        self._store = store
        self._pledges = pledges
        self._healer = healer
        self._settings = settings
        self._clock = clock
        self._started_s = clock.monotonic_s()
        self._memory = _Memory()

    async def run(self) -> None:
        """Do what is due until cancelled; an unreachable chain or peer makes it wait, not end."""
        while True:
            pause = INTERVAL_S
            for duty in (self.tend_epoch, self.scan, self.answer_challenges, self.heal, self.let_go, self.collect):
                try:
                    await duty()
                except POSTPONED as error:
                    _log.warning("duty postponed", duty=duty.__name__, error=str(error))
                    pause = RETRY_S
            await self._clock.sleep(pause)

    async def tend_epoch(self) -> None:
        """Begin the next epoch when it is due, and know the committees of now."""
        epoch = await self._settled.current_epoch()
        if await self._is_epoch_due(epoch):
            try:
                epoch = (await self._availability.begin_epoch(self._sender)).value
                _log.info("epoch begun", epoch=epoch)
            except Reverted as error:  # another member was first
                _log.info("epoch not begun here", reason=error.reason)
                epoch = await self._settled.current_epoch()
        if epoch == 0 or (epoch == self._memory.epoch and self._door.seating is not None):
            return
        committees = tuple([await self._find_committee(number) for number in (epoch, epoch - 1) if number > 0])
        self._memory.epoch = epoch
        self._door.seating = Seating(self._sender.address, committees, self._settings.term_s_max)
        found = self._door.seating.find_seat(epoch)
        _log.info("seated", epoch=epoch, seats=0 if found is None else found[1].seats)

    async def scan(self) -> None:
        """Look through newly settled blocks for certificates and challenges that are about our seats."""
        memory, me, now_s = self._memory, self._sender.address, self._now_s()
        block = await self._contracts.rpc.settled.fetch_latest()
        head = block.number
        if self._settled is not self._availability:  # blocks that are not settled yet were not looked through
            now_s = min(now_s, block.timestamp)
        if memory.challenges is None:
            opened = await self._settled.fetch_challenges_of(me)
            memory.challenges = {challenge.id: challenge for challenge in opened}
        scanned = await self._run(lambda: self._pledges.scanned)
        while scanned < head:
            last = min(head, scanned + SCAN_BLOCKS)
            ours = []
            for certificate in await self._settled.fetch_certified(scanned + 1, last):
                pledge = await self._read_pledge(certificate)
                if pledge is not None:
                    ours.append(pledge)
            for challenge in await self._settled.fetch_challenges_of(me, scanned + 1, last):
                memory.challenges[challenge.id] = challenge
            await self._run(partial(self._pledges.note_chain, ours, last))
            scanned = last
        memory.scanned_s = now_s

    async def answer_challenges(self) -> None:
        """Show leaves to whoever doubts us, to several at once; one that cannot be answered keeps no other waiting."""
        slots = asyncio.Semaphore(ANSWERS_MAX)

        async def answer(challenge: OpenedChallenge) -> None:
            async with slots:
                try:
                    await self._answer_if_due(challenge)
                except POSTPONED as error:
                    _log.warning("challenge not answered yet", challenge=encode_hex(challenge.id), error=str(error))

        async with asyncio.TaskGroup() as group:
            for challenge in list((self._memory.challenges or {}).values()):
                group.create_task(answer(challenge))

    async def heal(self) -> None:
        """Look for rows that we promised and have no more, a few matrices at a time, and make them anew."""
        memory = self._memory

        def look() -> list[tuple[Pledge, list[int]]]:
            looked = self._pledges.list_certified(memory.looked_up_to, LOOKED_AFTER)
            if looked and self._clock.monotonic_s() - memory.scrubbed_s > SCRUB_S:
                memory.scrubbed_s = self._clock.monotonic_s()
                self._scrub(choice(looked))  # noqa: S311 # any will do; nobody gains by guessing which
            return [(pledge, self._list_missing(pledge)) for pledge in looked]

        looked = await self._run(look)
        memory.looked_up_to = None
        now_s, started_s = self._now_s(), self._clock.monotonic_s()
        for place, (pledge, missing) in enumerate(looked):
            if missing and pledge.attestation.expires_at > now_s:
                try:
                    await self._heal(pledge, missing)
                except POSTPONED as error:
                    commitment = encode_hex(pledge.attestation.commitment)
                    _log.warning("rows not made anew yet", commitment=commitment, error=str(error))
            if place == LOOKED_AFTER - 1 or self._clock.monotonic_s() - started_s > HEAL_S_MAX:
                memory.looked_up_to = pledge
                return

    async def let_go(self) -> None:
        """Delete rows that nobody can call on any more, and give their space back."""
        now_s, scanned_s = self._now_s(), self._memory.scanned_s
        if scanned_s is None:  # nobody here knows yet what was certified while this member was away
            return
        times = (
            now_s - self._settings.challenge_s_max - CLOCK_SLACK_S,
            min(now_s, scanned_s) - COLLECT_S_MAX - CLOCK_SLACK_S,
            now_s - ARRIVAL_S_MAX,
        )
        count = await self._run(lambda: release(self._pledges, self._store, *times))
        if count:
            _log.info("rows let go", matrices=count)

    async def collect(self) -> None:
        """Share out the fees of what has expired, and take our part of them."""
        memory, expired_before = self._memory, self._now_s() - CLOCK_SLACK_S
        pledges = await self._run(
            lambda: self._pledges.list_unsettled(expired_before, memory.collected_up_to, SETTLED_MAX)
        )
        due: list[Certificate] = []
        for pledge in pledges:
            certificate = await self._find_certificate(pledge.attestation)
            if certificate is None or await self._settled.signers_of(certificate.digest) == 0:
                await self._run(partial(self._pledges.mark_settled, pledge))
            elif await self._is_our_turn(certificate):
                if not await self._availability.open_challenges(certificate.digest):
                    due.append(certificate)
                else:
                    await self._end_overdue(certificate)
        # Those that cannot be settled yet must not keep the ones behind them waiting.
        memory.collected_up_to = pledges[-1] if len(pledges) == SETTLED_MAX else None
        together = [item for item in due if item.attestation.epoch == due[0].attestation.epoch]
        if together:
            await self._availability.settle(self._sender, together)
        monotonic_s = self._clock.monotonic_s()
        if monotonic_s - self._memory.withdrawn_s > WITHDRAW_S:
            self._memory.withdrawn_s = monotonic_s
            if await self._availability.earned_of(self._sender.address):
                outcome = await self._availability.withdraw(self._sender)
                _log.info("fees taken", amount=outcome.value)

    async def _is_epoch_due(self, epoch: int) -> bool:
        if epoch == 0:
            return self._clock.monotonic_s() - self._started_s > FIRST_EPOCH_WAIT_S
        committee = await self._find_committee(epoch)
        return self._now_s() >= committee.begun_at + self._settings.epoch_s

    async def _find_committee(self, epoch: int) -> Committee:
        committees = self._memory.committees
        if epoch not in committees:
            committees[epoch] = await self._settled.committee(epoch)
            for old in [number for number in committees if number < epoch - self._epochs_kept]:
                del committees[old]
        return committees[epoch]

    @property
    def _epochs_kept(self) -> int:
        return self._settings.term_s_max // self._settings.epoch_s + 2

    async def _is_our_turn(self, certificate: Certificate) -> bool:
        """One settles for all: the first signer at once, each further one later, in case those before it sleep."""
        committee = await self._find_committee(certificate.attestation.epoch)
        signed = [member.address for member in committee.members if certificate.has_seat(member.first_seat)]
        rank = signed.index(self._sender.address)
        return self._now_s() >= certificate.attestation.expires_at + CLOCK_SLACK_S + rank * TURN_S

    async def _end_overdue(self, certificate: Certificate) -> None:
        """End challenges of others' seats that nobody answered and nobody ended: until then no fee is shared."""
        events = await self._availability.contract.fetch_events(
            "Challenged", commitment=certificate.attestation.commitment
        )
        for event in events:
            challenge_id = bytes(event.values["id"])
            challenge = await self._availability.challenge_of(challenge_id)
            is_of_others = challenge.is_open and challenge.member != self._sender.address
            if not is_of_others or event.values["digest"] != certificate.digest:
                continue
            if self._now_s() > await self._availability.ends_at(challenge_id) + CLOCK_SLACK_S:
                outcome = await self._availability.finalize(self._sender, challenge_id)
                _log.info("challenge ended", challenge=encode_hex(challenge_id), slashed=outcome.value)

    async def _read_pledge(self, certificate: Certificate) -> Pledge | None:
        """Our part of a certificate; None where none of our seats signed."""
        attestation = certificate.attestation
        committee = await self._find_committee(attestation.epoch)
        place = committee.find_place(self._sender.address)
        if place is None:
            return None
        member = committee.members[place]
        if not certificate.has_seat(member.first_seat):
            return None
        return Pledge(attestation, member.first_seat, member.seats, is_certified=True)

    async def _answer_if_due(self, challenge: OpenedChallenge) -> None:
        state = await self._availability.challenge_of(challenge.id)
        if not state.is_open or state.round != challenge.round:
            known = state if self._settled is self._availability else await self._settled.challenge_of(challenge.id)
            if not known.is_open or known.round != challenge.round:
                self._forget(challenge)
            return
        certificates = await self._availability.fetch_certificates(challenge.commitment)
        certificate = next((item for item in certificates if item.digest == challenge.digest), None)
        if certificate is None:
            return
        picks = await self._availability.picks_of(challenge.id, certificate.length)
        if picks:
            await self._answer(challenge, certificate, picks)

    async def _answer(self, challenge: OpenedChallenge, certificate: Certificate, picks: tuple[int, ...]) -> None:
        try:
            body = await self._run(lambda: self._store.get_row(challenge.commitment, challenge.seat))
        except UnavailableEntry as error:  # it rotted, and is forgotten now; `heal` puts it back
            _log.warning("row rotted", commitment=encode_hex(challenge.commitment), error=str(error))
            body = None
        if body is None:
            place = (await self._find_committee(certificate.attestation.epoch)).find_place(self._sender.address)
            rows = range(challenge.seat, challenge.seat + 1)
            body = (await self._healer.rebuild(certificate, rows, place))[challenge.seat]
        row_message = decode_message(body)

        def prove() -> tuple[list[bytes], list[tuple[bytes, ...]]]:
            row, parameters = row_message.row, row_message.head.parameters
            leaves = [bytes(row[pick * LEAF_BYTES : (pick + 1) * LEAF_BYTES]) for pick in picks]
            return leaves, [prove_leaf(parameters, row, row_message.proof, pick) for pick in picks]

        leaves, paths = await self._run(prove)
        try:
            await self._availability.answer(self._sender, certificate, challenge.seat, leaves, paths)
        except Reverted as error:  # somebody else showed them, or it is over
            _log.warning("answer was refused", challenge=encode_hex(challenge.id), reason=error.reason)
        else:
            _log.info("challenge answered", challenge=encode_hex(challenge.id), seat=challenge.seat)
            self._forget(challenge)

    def _list_missing(self, pledge: Pledge) -> list[int]:
        commitment = pledge.attestation.commitment
        return [row for row in pledge.indices if self._store.get_row_size(commitment, row) is None]

    def _scrub(self, pledge: Pledge) -> None:
        """Read a matrix's rows to find rot: what rotted is forgotten by the store, and so missing."""
        for row in pledge.indices:
            try:
                self._store.get_row(pledge.attestation.commitment, row)
            except UnavailableEntry as error:
                _log.warning("row rotted", commitment=encode_hex(pledge.attestation.commitment), error=str(error))

    async def _heal(self, pledge: Pledge, missing: list[int]) -> None:
        attestation = pledge.attestation
        certificate = await self._find_certificate(attestation)
        if certificate is None:  # the chain has it no more: a reorganisation, or another chain
            return
        place = (await self._find_committee(attestation.epoch)).find_place(self._sender.address)
        bodies = await self._healer.rebuild(certificate, pledge.indices, place)

        def keep() -> None:
            for row in missing:
                self._store.put_row(attestation.commitment, row, bodies[row])

        await self._run(keep)
        _log.info("rows made anew", commitment=encode_hex(attestation.commitment), rows=missing)

    async def _find_certificate(self, attestation: RowAttestation) -> Certificate | None:
        found = await self._settled.fetch_certificates(attestation.commitment)
        return next((item for item in found if item.attestation == attestation), None)

    def _forget(self, challenge: OpenedChallenge) -> None:
        if self._memory.challenges is not None:
            self._memory.challenges.pop(challenge.id, None)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)

    def _now_s(self) -> int:
        return self._clock.now_ms() // 1000


def release(
    pledges: PledgeStore, store: RowStore, certified_before: int, begun_before: int, arrived_before: int
) -> int:
    """Let rows go of which nothing needs to be kept any more; for a thread.

    A crash between any two of its steps leaves a pledge without rows that is over, which the next one forgets.

    Args:
        pledges: what was promised.
        store: the rows.
        certified_before: as `PledgeStore.list_expired`.
        begun_before: as `PledgeStore.list_expired`.
        arrived_before: as `PledgeStore.list_expired`.

    Returns:
        How many matrices.

    Raises:
        UnavailableDisk, RefusedFull: the disk failed or has no room to note it; nothing that is promised is gone.
    """
    with pledges.guard:
        expired = pledges.list_expired(certified_before, begun_before, arrived_before)
        if expired:
            store.delete_rows((commitment, row) for commitment in expired for row in range(VERIFIABLE_ROWS_MAX))
            pledges.forget(expired)
        pledges.prune(certified_before, begun_before, arrived_before)
    store.compact(COMPACT_BYTES)
    return len(expired)
