"""A member's HTTP door: rows in, attestations out, rows and leaves out.

    PUT, GET, HEAD /rows/{commitment}/{index}     GET /rows/{commitment}/{index}/leaves/{first}-{last}
    POST /attestations                            {"commitment", "epoch", "beginsAt", "expiresAt"}

Invariant: 201 or 200 to a PUT means that the row is this member's, was verified and is on disk; an attestation means
that all rows of the member's seats are, and that the promise to keep them is in the journal. Writes are signed
requests. Reads are open, since every row proves itself; a GET of a row takes a range.
"""

import threading
from collections import OrderedDict
from concurrent.futures import Executor

import msgspec
from aiohttp import web

from deaios.coding.head import Head
from deaios.coding.matrix import RowVerifier
from deaios.da.seating import Seating
from deaios.da.store import Pledge, PledgeStore
from deaios.da.wire import AttestationAnswer, AttestationBody, build_leaves, read_attestation
from deaios.ledger.eip712 import Domain, sign_struct
from deaios.ledger.structs import RowAttestation
from deaios.primitives.encoding import decode_decimal, encode_hex
from deaios.primitives.errors import Refused, Unavailable
from deaios.primitives.keys import PrivateKey
from deaios.rows.message import MESSAGE_BYTES_MAX, InvalidRow, RowMessage, decode_message
from deaios.rows.service import Admit, RowDoor, admit_all, read_row_name
from deaios.rows.store import RowStore
from deaios.runtime.clock import Clock, SystemClock
from deaios.runtime.errors import InvalidBody, NotFound, RefusedFull, RefusedTooLarge
from deaios.runtime.http import METRICS_KEY, build_application, json_response

LEAVES_MAX = 64
"""Leaves in one answer."""
REQUEST_BYTES_MAX = 4096
"""Of a request for an attestation: many times what one takes, and nothing that a parser could be bombed with."""
WAITING_BYTES_MAX = 4 << 30
"""Rows that nobody has paid for, unless the operator says otherwise."""
VERIFIERS_MAX = 8
"""Matrices whose checks are kept set up: a member's rows of one matrix come one after another."""
_LEAVES = "/rows/{commitment}/{index}/leaves/{first:[0-9]+}-{last:[0-9]+}"


class UnavailableSeat(Unavailable):
    """This member does not know its seats yet."""


class MemberDoor:
    """Handlers over one member's rows and pledges; `seating` is set whenever the committee is known anew."""

    def __init__(
        self,
        key: PrivateKey,
        domain: Domain,
        store: RowStore,
        pledges: PledgeStore,
        *,
        network_id: bytes,
        clock: Clock | None = None,
        executor: Executor | None = None,
        admit: Admit = admit_all,
        waiting_bytes_max: int = WAITING_BYTES_MAX,
    ) -> None:
        """A door; see `build_member_application`.

        Args:
            key: the member's.
            domain: of attestations.
            store: the rows; the caller closes it.
            pledges: the promises; the caller closes them.
            network_id: genesis hash that signed requests must name.
            clock: times of promises, age of signed requests.
            executor: threads for hashing, verification and disk; the loop's own by default.
            admit: raises a `Refused` for keys whose writes are not taken.
            waiting_bytes_max: most bytes of rows that nobody has paid for yet; they must not fill the disk.
        """
        self.seating: Seating | None = None
        self._key = key
        self._domain = domain
        self._store = store
        self._pledges = pledges
        self._waiting_bytes_max = waiting_bytes_max
        self._clock = clock or SystemClock()
        self._door = RowDoor(store, network_id=network_id, clock=self._clock, executor=executor, admit=admit)
        self._verifiers: OrderedDict[Head, RowVerifier] = OrderedDict()
        self._verifiers_lock = threading.Lock()

    async def put_row(self, request: web.Request) -> web.Response:
        """`PUT /rows/…`."""
        commitment, index = read_row_name(request)
        seating = self._require_seating()

        def keep(body: bytes) -> bool:
            message = decode_message(body)
            seating.validate_row(message.head.parameters, index)
            self._verify(commitment, index, message)
            with self._pledges.guard:
                now_s, waiting = self._now_s(), self._count_waiting(commitment, index, body)
                self._pledges.note_arrival(commitment, now_s, waiting)
                try:
                    return self._store.put_row(commitment, index, body)
                except (Refused, Unavailable):
                    self._pledges.note_arrival(commitment, now_s, -waiting)
                    raise

        return await self._door.put(request, keep)

    async def get_row(self, request: web.Request) -> web.StreamResponse:
        """`GET /rows/…`."""
        commitment, index = read_row_name(request)
        return await self._door.send(request, lambda: self._store.get_row(commitment, index))

    async def head_row(self, request: web.Request) -> web.Response:
        """`HEAD /rows/…`."""
        commitment, index = read_row_name(request)
        return await self._door.head(lambda: self._store.get_row_size(commitment, index))

    async def get_leaves(self, request: web.Request) -> web.StreamResponse:
        """`GET /rows/…/leaves/{first}-{last}`: leaves with their paths, as JSON."""
        commitment, index = read_row_name(request)
        first, last = (decode_decimal(request.match_info[name], 16) for name in ("first", "last"))
        if not 0 <= last - first < LEAVES_MAX:
            raise RefusedTooLarge(f"leaves {first} to {last}; 1 to {LEAVES_MAX} in one answer")

        def read() -> bytes | None:
            body = self._store.get_row(commitment, index)
            if body is None:
                return None
            message = decode_message(body)
            count = message.head.parameters.leaves_per_row
            if last >= count:
                raise NotFound(f"leaf {last} of a row of {count} leaves")
            return msgspec.json.encode(build_leaves(message, range(first, last + 1)))

        return await self._door.send(request, read)

    async def attest(self, request: web.Request) -> web.Response:
        """`POST /attestations`."""
        _signer, body = await self._door.read_signed(request, REQUEST_BYTES_MAX)
        try:
            attestation = read_attestation(msgspec.json.decode(body, type=AttestationBody))
        except (msgspec.DecodeError, UnicodeError) as error:
            raise InvalidBody(f"body is not a request for an attestation: {error}") from error
        place, signature = await self._door.run(lambda: self._sign(attestation))
        return json_response(AttestationAnswer(place, encode_hex(signature)))

    def _sign(self, attestation: RowAttestation) -> tuple[int, bytes]:
        place, seats = self._require_seating().validate_attestation(attestation, self._now_s())
        pledge = Pledge(attestation, seats.first_seat, seats.seats, is_certified=False)
        with self._pledges.guard:
            missing = [row for row in pledge.indices if self._store.get_row_size(attestation.commitment, row) is None]
            if missing:
                raise NotFound(f"rows {missing} of 0x{attestation.commitment.hex()} are not kept here; send them first")
            self._pledges.add(pledge)
        return place, sign_struct(self._key, self._domain, attestation)

    def _count_waiting(self, commitment: bytes, index: int, body: bytes) -> int:
        """What a row adds to those that wait for a certificate.

        Raises:
            RefusedFull: too many wait.
        """
        if self._store.get_row_size(commitment, index) is not None or self._pledges.is_certified(commitment):
            return 0
        if self._pledges.waiting_bytes + len(body) > self._waiting_bytes_max:
            raise RefusedFull(
                f"{self._pledges.waiting_bytes} bytes of rows wait for their certificates; {self._waiting_bytes_max} "
                "at most; retry later"
            )
        return len(body)

    def _verify(self, commitment: bytes, index: int, message: RowMessage) -> None:
        with self._verifiers_lock:
            verifier = self._verifiers.pop(message.head, None)
        if verifier is None or message.head.commitment != commitment:
            verifier = RowVerifier(commitment, message.head)
        if message.index != index or not verifier.verify(index, message.row, message.proof):
            raise InvalidRow(f"row {index} does not verify against commitment {commitment.hex()}")
        with self._verifiers_lock:
            self._verifiers[message.head] = verifier
            while len(self._verifiers) > VERIFIERS_MAX:
                self._verifiers.popitem(last=False)

    def _require_seating(self) -> Seating:
        if self.seating is None:
            raise UnavailableSeat("the committee is not known here yet; retry shortly")
        return self.seating

    def _now_s(self) -> int:
        return self._clock.now_ms() // 1000


def build_member_application(door: MemberDoor, store: RowStore, pledges: PledgeStore) -> web.Application:
    """The member's application over a door; the caller closes the stores."""
    application = build_application("da", body_bytes_max=MESSAGE_BYTES_MAX)
    metrics = application[METRICS_KEY]
    metrics.gauge("da_used_bytes", "Bytes counted against the quota").set_function(lambda: store.used_bytes)
    metrics.gauge("da_free_bytes", "Bytes the quota leaves").set_function(lambda: store.free_bytes)
    metrics.gauge("da_pledges", "Certified matrices kept").set_function(lambda: pledges.count()[0])
    router = application.router
    router.add_get("/rows/{commitment}/{index}", door.get_row, allow_head=False)
    router.add_head("/rows/{commitment}/{index}", door.head_row)
    router.add_put("/rows/{commitment}/{index}", door.put_row)
    router.add_get(_LEAVES, door.get_leaves)
    router.add_post("/attestations", door.attest)
    return application
