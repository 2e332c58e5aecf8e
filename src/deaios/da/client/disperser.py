"""Disperse a payload: code it, give every member its rows, gather attestations up to the quorum, certify on chain.

Stateless and trusted by nobody: rows prove themselves to members, attestations are checked before they count, and a
dispersal that was cut is taken up by doing it again: members keep what they have, and what the chain has certified for
long enough is not sent at all.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from deaios.coding.matrix import CodedMatrix, encode
from deaios.coding.workers import ALONE, Workers
from deaios.da.client.committees import Committees, Roster
from deaios.da.wire import AttestationAnswer, InvalidAttestation, encode_attestation, read_signature
from deaios.ledger.client.availability import Certificate
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.rpc import Reverted
from deaios.ledger.client.sender import Sender
from deaios.ledger.eip712 import Domain, recover_signer
from deaios.ledger.structs import RowAttestation
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import DeaiosError, Unavailable
from deaios.primitives.hashing import sha256
from deaios.rows.attempts import join_reasons
from deaios.rows.message import build_message
from deaios.runtime.client import RefusedByPeer
from deaios.runtime.clock import Clock
from deaios.runtime.logs import get_logger

BEGIN_SLACK_S = 15
"""A term begins this much before our clock, so that no member and no block finds its begin in the future."""
TERM_SLACK_S = 60
"""A certificate this much shorter than wanted is taken for what was wanted."""
LINGER_MIN_S = 0.1
LINGER_SHARE = 0.25
"""After the quorum, others may still finish for this share of the time it took."""
ATTEMPTS = 2
"""Times that a member which failed is tried."""
RETRY_S = 2.0
"""Before a member is tried again: members learn of a new epoch, and of their seats in it, about a second after us."""
RETRIED = (403, 404, 429)
"""Refusals that another try may change: seats of another epoch, rows that went meanwhile, a full house."""
ALLOWANCE_FEES = 1000
"""Fees approved at once, so that not every certificate costs two transactions."""

_log = get_logger("da.disperser")


class UnavailableQuorum(Unavailable):
    """Too few seats attested; nothing was certified or paid."""


@dataclass(slots=True)
class Bill:
    """What a put has cost so far, and how long all of it is kept: also of a put that failed on its way.

    Attributes:
        fee: of the certificates that were made for it; what was certified before costs nothing.
        expires_at: earliest end of a certificate, Unix seconds; None while there is none.
    """

    fee: int = 0
    expires_at: int | None = None

    def add(self, certificate: Certificate, *, is_new: bool) -> None:
        """Note a certificate that the put stands on."""
        self.fee += certificate.fee if is_new else 0
        ends = certificate.attestation.expires_at
        self.expires_at = ends if self.expires_at is None else min(ends, self.expires_at)


@dataclass(slots=True)
class _Gathering:
    """Attestations of one dispersal so far."""

    attestation: RowAttestation
    signatures: dict[int, bytes] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


class Disperser:
    """Disperses for one key, which pays."""

    def __init__(
        self,
        contracts: Contracts,
        sender: Sender,
        committees: Committees,
        domain: Domain,
        clock: Clock,
        workers: Workers = ALONE,
    ) -> None:
        self._contracts = contracts
        self._sender = sender
        self._committees = committees
        self._domain = domain
        self._clock = clock
        self._workers = workers
        self._paying = asyncio.Lock()
        self._at_work: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()

    async def disperse(self, payload: bytes | memoryview, term_s: int, bill: Bill | None = None) -> Certificate:
        """Make a payload available for a term that begins `BEGIN_SLACK_S` before now.

        Args:
            payload: what is coded.
            term_s: at most `da_term_max_s`; what is certified for nearly as long already is not sent.
            bill: where the certificate is noted, and its fee if it is new.

        Raises:
            UnavailableQuorum: too few members took their rows.
            UnavailableCommittee: there is no committee.
            Reverted: the contract refuses, for want of credit for example.
        """
        roster = await self._committees.fetch_current()
        profile = roster.committee.profile
        matrix = await roster.nodes.run(lambda: encode(payload, profile, self._workers))
        # The same payload at the same time, as in a file of zeros: the second one finds the certificate of the first.
        async with self._at_work.setdefault(matrix.commitment, asyncio.Lock()):
            certificate = await self._find(matrix.commitment, term_s)
            is_new = certificate is None
            if certificate is None:
                try:
                    certificate = await self._disperse(roster, matrix, term_s)
                except Reverted:  # somebody else may have certified the very same attestation meanwhile
                    certificate, is_new = await self._find(matrix.commitment, term_s), False
                    if certificate is None:
                        raise
        if bill is not None:
            bill.add(certificate, is_new=is_new)
        return certificate

    async def _disperse(self, roster: Roster, matrix: CodedMatrix, term_s: int) -> Certificate:
        begins_at = self._clock.now_ms() // 1000 - BEGIN_SLACK_S
        ends_at = begins_at + term_s
        gathering = _Gathering(RowAttestation(matrix.commitment, roster.committee.epoch, begins_at, ends_at))
        await self._gather(roster, matrix, gathering)
        return await self._certify(matrix, gathering)

    async def _find(self, commitment: bytes, term_s: int) -> Certificate | None:
        """A certificate that is long enough already, and that no reorganisation takes back."""
        until = self._clock.now_ms() // 1000 + term_s - TERM_SLACK_S
        certificates = await self._contracts.settled.availability.fetch_certificates(commitment)
        return next((item for item in reversed(certificates) if item.attestation.expires_at >= until), None)

    async def _gather(self, roster: Roster, matrix: CodedMatrix, gathering: _Gathering) -> None:
        committee, clock = roster.committee, self._clock
        started_s = clock.monotonic_s()
        tasks = {
            asyncio.create_task(self._serve(roster, node, matrix, gathering)): place
            for node, place in enumerate(roster.places)
        }
        try:
            waiting = set(tasks)
            while waiting and _count_seats(roster, gathering.signatures) < committee.quorum:
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if waiting:
                linger_s = max(LINGER_MIN_S, LINGER_SHARE * (clock.monotonic_s() - started_s))
                await asyncio.wait(waiting, timeout=linger_s)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        seats = _count_seats(roster, gathering.signatures)
        if seats < committee.quorum:
            silent = len(committee.members) - len(roster.places)
            nameless = f"; {silent} members have no URL" if silent else ""
            raise UnavailableQuorum(
                f"{seats} of {committee.seats} seats attested, {committee.quorum} are needed: "
                f"{join_reasons(gathering.reasons)}{nameless}"
            )

    async def _serve(self, roster: Roster, node: int, matrix: CodedMatrix, gathering: _Gathering) -> None:
        """Give one member its rows and take its attestation; failures are noted, not raised."""
        for attempt in range(ATTEMPTS):
            try:
                await self._serve_once(roster, node, matrix, gathering, again=attempt > 0)
            except (DeaiosError, TimeoutError) as error:
                reason = str(error) or "no answer in time"
                _log.info("member did not attest", node=roster.urls[node], error=reason)
                status = error.status if isinstance(error, RefusedByPeer) else None
                if attempt == ATTEMPTS - 1 or (status is not None and status not in RETRIED):
                    gathering.reasons.append(f"{roster.urls[node]}: {reason}")
                    return
                if status != 404:
                    await self._clock.sleep(RETRY_S)
            else:
                return

    async def _serve_once(
        self, roster: Roster, node: int, matrix: CodedMatrix, gathering: _Gathering, *, again: bool
    ) -> None:
        place = roster.places[node]
        member = roster.committee.members[place]
        commitment = encode_hex(matrix.commitment)
        for row in range(member.first_seat, member.first_seat + member.seats):
            await roster.nodes.store(
                f"/rows/{commitment}/{row}",
                node,
                lambda row=row: build_message(matrix, row).encode(),  # type: ignore[misc] # bound now
                looks_first=not again,
            )
        body = encode_attestation(gathering.attestation)
        answer = await roster.nodes.post("/attestations", node, body, AttestationAnswer)
        signature = read_signature(answer)
        signer = recover_signer(self._domain, gathering.attestation, signature)
        if signer != member.address:
            raise InvalidAttestation(f"signed by 0x{signer.hex()}, 0x{member.address.hex()} has these seats")
        gathering.signatures[place] = signature

    async def _certify(self, matrix: CodedMatrix, gathering: _Gathering) -> Certificate:
        availability, head = self._contracts.availability, matrix.head
        attestation = gathering.attestation
        fee = await availability.fee_of(head.parameters.length, attestation.expires_at - attestation.begins_at)
        async with self._paying:
            allowance = await self._contracts.credit.allowance(self._sender.address, availability.address)
            if allowance < ALLOWANCE_FEES * fee // 2:
                await self._contracts.credit.approve(self._sender, availability.address, ALLOWANCE_FEES * fee)
        try:
            outcome = await availability.certify(
                self._sender,
                attestation,
                head.root,
                sha256(head.y),
                head.parameters.length,
                sorted(gathering.signatures.items()),
            )
        except Reverted:
            self._committees.forget_current()
            raise
        return outcome.value


def _count_seats(roster: Roster, signatures: Mapping[int, bytes]) -> int:
    return sum(roster.committee.members[place].seats for place in signatures)
