"""A relayer: begins epochs, brings them to mirrors, and carries messages between networks. Nobody has to trust it.

All that it needs to know is on the chains, so it can be killed anywhere and started anew, and any number of them may
run: who comes second is refused and goes on. Every pair of networks is served by a task of its own, so that a network
that stands still keeps no other one waiting; a message whose target refuses it is tried again ever more rarely.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import permutations
from typing import Any

from deaios.ledger.client.messages import Inbox, OutboxView
from deaios.ledger.client.mirror import EpochView, ValsetMirror
from deaios.ledger.client.networks import Networks
from deaios.ledger.client.rpc import Reverted
from deaios.ledger.client.sender import Sender
from deaios.ledger.eip712 import Domain, hash_typed_data
from deaios.ledger.service.validator import SignedAnswer
from deaios.ledger.structs import Checkpoint
from deaios.ledger.valset import Epoch, Quorum, Valset, build_quorum, has_signed
from deaios.primitives.encoding import decode_hex, encode_hex
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.primitives.keys import SIGNATURE_SIZE, Address, parse_address
from deaios.runtime.client import HttpClient
from deaios.runtime.clock import Clock
from deaios.runtime.logs import get_logger

INTERVAL_S = 0.5
"""Between looks where there was nothing to do."""
RETRY_S = 1.0
"""After a chain or a quorum of validators could not be had."""
DELIVERIES_MAX = 16
"""Messages delivered at once from one network to another."""
BATCH_MAX = 256
"""Messages of one look: more wait for the next one."""
REFUSED_PAUSE_S = 2.0
"""Before a message that its target refused is tried again; doubled each time."""
REFUSED_PAUSE_S_MAX = 3600.0
VALIDATORS_ASKED_MAX = 256
EPOCH_SHARE = 4
"""An epoch is renewed when this part of the trust period has passed, though nothing changed."""

POSTPONED = (Unavailable, Refused, Invalid)
"""What a chain or a peer can do to a step: it is tried again."""

FindValidators = Callable[[], Awaitable[Sequence[str]]]
"""URLs of validators; hostile until their signatures are checked."""

_log = get_logger("relayer")


class UnavailableQuorum(Unavailable):
    """Validators with more than two thirds of the power did not sign now."""


@dataclass(frozen=True, slots=True)
class Side:
    """A network as a relayer knows it; `mirror` is None for the root."""

    id: bytes
    view: OutboxView
    inbox: Inbox
    sender: Sender
    mirror: ValsetMirror | None = None


@dataclass(frozen=True, slots=True)
class EpochRules:
    """When the root's epochs may and should begin, in seconds."""

    epoch_s: int
    trust_s: int


@dataclass(slots=True)
class Route:
    """What is remembered of one pair of networks; all of it can be read again from the chains."""

    source: Side
    target: Side
    first: int = 0
    """All messages before this one are delivered."""
    refused: dict[int, tuple[float, float]] = field(default_factory=dict)
    """By nonce: when it may be tried again, and the pause before that."""


class Relayer:
    """Serves the root and some further networks; `run` until cancelled."""

    def __init__(
        self,
        *,
        root: Side,
        further: Sequence[Side],
        registry: Networks,
        epochs: EpochView,
        rules: EpochRules,
        domain: Domain,
        http: HttpClient,
        find_validators: FindValidators,
        clock: Clock,
    ) -> None:
        """A relayer; see the module.

        Args:
            root: the root's contracts, with a sender that has gas there.
            further: the networks to serve, likewise.
            registry: the root's Networks.
            epochs: view of it.
            rules: of epochs.
            domain: of all that validators sign.
            http: asks validators.
            find_validators: where they listen.
            clock: between looks.
        """
        self._root = root
        self._further = tuple(further)
        self._registry = registry
        self._epochs = epochs
        self._rules = rules
        self._domain = domain
        self._http = http
        self._find_validators = find_validators
        self._clock = clock

    async def run(self) -> None:
        """Serve every network and pair until cancelled."""
        sides = (self._root, *self._further)
        async with asyncio.TaskGroup() as group:
            for side in self._further:
                group.create_task(self._repeat("epoch", partial(self.tend_epoch, side)))
            for source, target in permutations(sides, 2):
                group.create_task(self._repeat("carry", partial(self.carry, Route(source, target))))

    async def _repeat(
        self, duty: str, work: Callable[[], Coroutine[Any, Any, bool]]
    ) -> None:  # Any: what coroutines yield
        while True:
            pause = INTERVAL_S
            try:
                if await work():
                    continue
            except POSTPONED as error:
                _log.info("postponed", duty=duty, error=str(error))
                pause = RETRY_S
            await self._clock.sleep(pause)

    # Sets of validators

    async def tend_epoch(self, side: Side) -> bool:
        """Begin a network's epoch on the root where one is due, and bring the newest to its mirror.

        Returns:
            True when there may be more to do at once.

        Raises:
            Unavailable, Refused, Invalid: not now.
        """
        assert side.mirror is not None, "the root has no mirror"
        await self._epochs.sync()
        newest = self._epochs.latest(side.id)
        if await self._is_epoch_due(side.id, newest):
            try:
                await self._registry.begin_epoch(self._root.sender, side.id)
            except Reverted as error:
                _log.info("epoch was not begun", network=encode_hex(side.id), error=str(error))
                return False
            return True
        if newest is None:
            return False
        known = await side.mirror.epoch_of(side.id)
        if known.number >= newest.epoch.number:
            return False
        update = newest.epoch.to_update(side.id)
        current = self._require_valset(side.id, known)
        quorum = await self._collect(
            current, hash_typed_data(self._domain, update), f"valsets/{encode_hex(side.id)}/{update.epoch}"
        )
        try:
            await side.mirror.update(side.sender, update, current, quorum)
        except Reverted:
            if (await side.mirror.epoch_of(side.id)).number < update.epoch:
                raise
        _log.info("epoch mirrored", network=encode_hex(side.id), epoch=update.epoch)
        return True

    async def _is_epoch_due(self, network: bytes, newest: Valset | None) -> bool:
        on_root = await self._registry.epoch_of(network)
        if newest is None or on_root.number != newest.epoch.number:
            return False
        age_s = self._clock.now_ms() // 1000 - on_root.begun_at
        if age_s * EPOCH_SHARE >= self._rules.trust_s and age_s >= self._rules.epoch_s:
            return True
        validators = await self._registry.validators_of(network)
        if not validators or validators == newest.validators:
            return False
        return age_s >= self._rules.epoch_s or await self._registry.is_urgent(network)

    def _require_valset(self, network: bytes, epoch: Epoch) -> Valset:
        valset = self._epochs.get(network, epoch.number)
        if valset is None or valset.epoch != epoch:
            raise UnavailableQuorum(f"epoch {epoch.number} of {encode_hex(network)} is not confirmed on the root here")
        return valset

    # Messages

    async def carry(self, route: Route) -> bool:
        """Deliver what one network said to another.

        Returns:
            True when there may be more to do at once.

        Raises:
            Unavailable, Refused, Invalid: not now.
        """
        source, target = route.source, route.target
        await source.view.sync()
        count = source.view.count(target.id)
        waiting = await self._find_waiting(route, count)
        if not waiting:
            return False
        tree = source.view.trees[target.id]
        root = tree.root(count)
        if await target.inbox.accepted_count(source.id, root) == 0:
            await self._accept(source, target, Checkpoint(source.id, target.id, count, root))
        slots = asyncio.Semaphore(DELIVERIES_MAX)

        async def deliver(nonce: int) -> None:
            async with slots:
                await self._deliver(route, nonce, root, tree.prove(nonce, count))

        results = await asyncio.gather(*map(deliver, waiting), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return True

    async def _find_waiting(self, route: Route, count: int) -> Sequence[int]:
        if route.first >= count:
            route.first = min(route.first, count)
            return ()
        undelivered = await route.target.inbox.fetch_undelivered(route.source.id, route.first, count)
        for nonce in range(route.first, undelivered[0] if undelivered else count):
            route.source.view.forget(route.target.id, nonce)
            route.refused.pop(nonce, None)
        route.first = undelivered[0] if undelivered else count
        now = self._clock.monotonic_s()
        return [nonce for nonce in undelivered if route.refused.get(nonce, (now, 0))[0] <= now][:BATCH_MAX]

    async def _accept(self, source: Side, target: Side, checkpoint: Checkpoint) -> None:
        speaker = source if target is self._root else target
        if target.mirror is None:
            epoch = await self._registry.epoch_of(speaker.id)
        else:
            epoch = await target.mirror.epoch_of(speaker.id)
        await self._epochs.sync()
        current = self._require_valset(speaker.id, epoch)
        path = f"checkpoints/{encode_hex(source.id)}/{encode_hex(target.id)}/{checkpoint.count}"
        quorum = await self._collect(current, hash_typed_data(self._domain, checkpoint), path)
        try:
            await target.inbox.accept(target.sender, checkpoint, current, quorum)
        except Reverted:
            if await target.inbox.accepted_count(source.id, checkpoint.root) == 0:
                raise

    async def _deliver(self, route: Route, nonce: int, root: bytes, path: Sequence[bytes]) -> None:
        source, target = route.source, route.target
        message = source.view.get_message(target.id, nonce)
        try:
            await target.inbox.deliver(target.sender, message, root, path)
        except Reverted as error:
            if await target.inbox.is_delivered(source.id, nonce):
                return
            pause = min(2 * route.refused.get(nonce, (0.0, REFUSED_PAUSE_S / 2))[1], REFUSED_PAUSE_S_MAX)
            route.refused[nonce] = (self._clock.monotonic_s() + pause, pause)
            _log.info("target refuses", source=encode_hex(source.id), nonce=nonce, error=str(error), pause_s=pause)

    # Signatures

    async def _collect(self, current: Valset, digest: bytes, path: str) -> Quorum:
        """Ask all validators at once, and stop at a quorum.

        Raises:
            UnavailableQuorum: too few signed.
        """
        urls = tuple(await self._find_validators())[:VALIDATORS_ASKED_MAX]
        found: dict[Address, bytes] = {}
        asking = [asyncio.create_task(self._ask(f"{url}/{path}")) for url in urls]
        try:
            for answer in asyncio.as_completed(asking):
                signed = await answer
                if signed is None or not current.has_key(signed[0]) or not has_signed(signed[0], digest, signed[1]):
                    continue
                found[signed[0]] = signed[1]
                quorum = build_quorum(current, digest, found)
                if quorum is not None:
                    return quorum
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        power = sum(item.power for item in current.validators if item.key in found)
        raise UnavailableQuorum(f"{path}: {power} of {current.total} of the power signed, more than two thirds needed")

    async def _ask(self, url: str) -> tuple[Address, bytes] | None:
        try:
            answer = await self._http.get_json(url, SignedAnswer)
            return parse_address(answer.key), decode_hex(answer.signature, SIGNATURE_SIZE)
        except POSTPONED as error:
            _log.debug("no signature", url=url, error=str(error))
            return None
