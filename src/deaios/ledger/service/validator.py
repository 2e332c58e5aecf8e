"""A validator: sees the root's epochs and the outboxes of networks for itself, and signs what it sees.

    GET /valsets/{network}/{epoch}                        an epoch of a network, for that network's mirror
    GET /checkpoints/{source}/{destination}/{count}       the first messages from one network to another

Invariant: it signs only what its own nodes have confirmed, and every slot (network and epoch; source, destination and
count) once: the content is in the journal before there is a signature. Anyone may ask. Which of its keys speaks is the
contracts' rule: on a further network its own validators' keys, on the root the source's.
"""

import asyncio
from collections.abc import Mapping
from typing import TypeVar

import msgspec
from aiohttp import web

from deaios.ledger.client.messages import OutboxView
from deaios.ledger.client.mirror import EpochView
from deaios.ledger.eip712 import Domain, hash_struct, sign_struct
from deaios.ledger.store import PromiseStore
from deaios.ledger.structs import Checkpoint, ValsetUpdate
from deaios.primitives.encoding import decode_decimal, decode_hex, encode_hex
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.primitives.hashing import HASH_BYTES, keccak256
from deaios.primitives.keys import PrivateKey
from deaios.runtime.clock import Clock
from deaios.runtime.errors import NotFound
from deaios.runtime.http import METRICS_KEY, build_application, json_response
from deaios.runtime.logs import get_logger

INTERVAL_S = 0.5
"""Between looks at a chain."""
RETRY_S = 5.0
"""After a chain did not answer."""
LOOK_S = 0.1
"""Between looks that questions cause: whoever asks for what is new does not wait for the next round."""
BODY_BYTES_MAX = 1024
"""Nobody has anything to send."""

_log = get_logger("validator")
Claim = TypeVar("Claim", ValsetUpdate, Checkpoint)


class SignedAnswer(msgspec.Struct, frozen=True):
    """A signature, and the address of the key that made it."""

    key: str
    signature: str


class ValidatorDoor:
    """Handlers over what one operator's validator sees."""

    def __init__(
        self,
        *,
        root: bytes,
        domain: Domain,
        keys: Mapping[bytes, PrivateKey],
        epochs: EpochView,
        outboxes: Mapping[bytes, OutboxView],
        promises: PromiseStore,
        clock: Clock,
    ) -> None:
        """A door; see `build_validator_application`.

        Args:
            root: the root's id.
            domain: of all that validators sign.
            keys: this operator's key of each network that it joined.
            epochs: the root's.
            outboxes: of all networks that are listened to, the root's included.
            promises: the journal; the caller closes it.
            clock: between looks.
        """
        self._root = root
        self._domain = domain
        self._keys = keys
        self._epochs = epochs
        self._outboxes = outboxes
        self._promises = promises
        self._clock = clock
        self._looked_s: dict[EpochView | OutboxView, float] = {}

    async def run(self) -> None:
        """Look at every chain until cancelled; one that does not answer keeps no other from being looked at."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(self._epochs))
            for view in self._outboxes.values():
                group.create_task(self._follow(view))

    async def _follow(self, view: EpochView | OutboxView) -> None:
        while True:
            pause = INTERVAL_S
            try:
                await view.sync()
            except (Unavailable, Refused, Invalid) as error:
                _log.info("chain cannot be followed", error=str(error))
                pause = RETRY_S
            await self._clock.sleep(pause)

    async def get_valset(self, request: web.Request) -> web.Response:
        """`GET /valsets/…`."""
        network = decode_hex(request.match_info["network"], HASH_BYTES)
        number = decode_decimal(request.match_info["epoch"], 64)
        key = self._require_key(network)
        if self._epochs.get(network, number) is None:
            await self._look(self._epochs)
        valset = self._epochs.get(network, number)
        if valset is None:
            raise NotFound(f"epoch {number} of {encode_hex(network)} is not confirmed here")
        return await self._sign(key, valset.epoch.to_update(network), network + number.to_bytes(8))

    async def get_checkpoint(self, request: web.Request) -> web.Response:
        """`GET /checkpoints/…`."""
        source, destination = (decode_hex(request.match_info[name], HASH_BYTES) for name in ("source", "destination"))
        count = decode_decimal(request.match_info["count"], 64)
        key = self._require_key(source if destination == self._root else destination)
        view = self._outboxes.get(source)
        if view is None:
            raise NotFound(f"network {encode_hex(source)} is not listened to here")
        if count > view.count(destination):
            await self._look(view)
        if not 0 < count <= view.count(destination):
            raise NotFound(
                f"{view.count(destination)} messages from {encode_hex(source)} to {encode_hex(destination)} are "
                f"confirmed here, {count} asked for"
            )
        checkpoint = Checkpoint(source, destination, count, view.trees[destination].root(count))
        return await self._sign(key, checkpoint, source + destination + count.to_bytes(8))

    async def _look(self, view: EpochView | OutboxView) -> None:
        now = self._clock.monotonic_s()
        if now - self._looked_s.get(view, -LOOK_S) < LOOK_S:
            return
        self._looked_s[view] = now
        try:
            await view.sync()
        except (Unavailable, Refused, Invalid) as error:
            _log.info("chain cannot be followed", error=str(error))

    def _require_key(self, network: bytes) -> PrivateKey:
        key = self._keys.get(network)
        if key is None:
            raise NotFound(f"no key of network {encode_hex(network)} here")
        return key

    async def _sign(self, key: PrivateKey, claim: Claim, place: bytes) -> web.Response:
        slot = keccak256(type(claim).__name__.encode() + key.address + place)
        await asyncio.to_thread(self._promises.promise, slot, hash_struct(claim))
        signature = sign_struct(key, self._domain, claim)
        return json_response(SignedAnswer(encode_hex(key.address), encode_hex(signature)))


def build_validator_application(door: ValidatorDoor, promises: PromiseStore) -> web.Application:
    """The validator's application over a door; the caller closes the journal."""
    application = build_application("validator", body_bytes_max=BODY_BYTES_MAX)
    application[METRICS_KEY].gauge("validator_promises", "What was signed").set_function(promises.count)
    application.router.add_get("/valsets/{network}/{epoch}", door.get_valset)
    application.router.add_get("/checkpoints/{source}/{destination}/{count}", door.get_checkpoint)
    return application
