"""What happens in a history: trade under faults, or a court with cheats; all of it drawn from the seed.

Every story ends with healing and with what must then come true: purchases are resolved, receipts are on chain, claims
equal receipts, deposits come back, disputes are closed, cheats have paid, and the recount is exact.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from deaios.alignment.auditor.service import Auditor
from deaios.alignment.ports import Recheck
from deaios.ledger.phases import Decision
from deaios.node.simulation.cheats import (
    FORKS,
    GENERATION_CHEATS,
    REFUSED_LIES,
    AlwaysFine,
    AlwaysGuilty,
    Proof,
    copy_verdicts,
    fall_silent,
    live_cheating_provider,
    prove_all,
    withhold_secrets,
)
from deaios.node.simulation.checks import Checks
from deaios.node.simulation.faults import count_faults, lay_faults
from deaios.node.simulation.mischief import GATEWAY_CHEATS, MISCHIEF
from deaios.node.simulation.people import User
from deaios.node.simulation.roles import live_auditor
from deaios.node.simulation.town import AUDITORS, CHAIN, GATEWAY, NEIGHBOUR, PROVIDERS, SHELF, key_of
from deaios.node.simulation.world import Violation, World, until
from deaios.primitives.errors import Refused, Unavailable

HONEST, CHEAT = PROVIDERS
COURT_EVERY = 25
"""One seed in so many is a court: a dispute takes as long to simulate as a dozen trades."""
LOAD_S = 6.0
SETTLE_S = 150.0
COURT_S = 400.0
NEVER_S = 1e9

TRADE_CHEATS = (*REFUSED_LIES, *FORKS, "batch without the receipt", "claims above receipts")
COURTS: tuple[tuple[str, str], ...] = (
    *((cheat, "honest") for cheat in GENERATION_CHEATS),
    ("requantised model", "always-fine juror"),
    ("invented tokens", "silent juror"),
    ("smaller model", "copied verdict"),
    ("other seed", "withheld beacon secret"),
    ("stale model", "silent jury"),
    ("false accusation", "honest"),
    ("false accusation", "bribed jurors"),
    ("false accusation", "silent juror"),
    ("exact replay acquits", "honest"),
)
"""(what the provider or the accuser does, who sits on the jury)."""


@dataclass(slots=True)
class Outcome:
    """What one history was, and what happened in it."""

    seed: int
    kind: str
    counts: Counter[str]
    log: list[str]
    seconds: float


def tell(seed: int, kind: str | None = None) -> Outcome:
    """Run the history of a seed.

    Raises:
        Violation: a promise that did not hold; the log is in its notes.
    """
    with World(seed) as world:
        court = seed // COURT_EVERY % len(COURTS) if seed % COURT_EVERY == 0 else None
        if kind is not None:
            court = int(kind.removeprefix("court-")) if kind.startswith("court-") else None
        name = "trade" if court is None else f"court-{court}"
        try:
            world.add_infrastructure()
            story = _Trade(world) if court is None else _Court(world, *COURTS[court])
            world.run(story.run())
        except BaseException as error:  # whatever a history ends with, its last events belong to it
            error.add_note("\n".join(world.log[-400:]))
            raise
        count_faults(world)
        return Outcome(seed, name, world.counts, world.log, world.loop.time() - world.town.start_s)


class _Story:
    """What trade and court share."""

    def __init__(self, world: World, honest: frozenset[str]) -> None:
        self.world = world
        self.random = Random(world.random.random())
        self.checks = Checks(world, honest)
        self.proofs: list[Proof] = []

    def finish(self) -> None:
        """Count what the chain saw."""
        self.checks.check_kept()
        self.checks.close()
        self.world.counts.update(self.checks.events)
        self.world.counts["answer continued elsewhere"] += sum(buyer.continued for buyer in self.world.buyers)

    async def are_receipts_settled(self, names: tuple[str, ...]) -> bool:
        """Every receipt is in a batch, and every charge is claimed."""
        for name in names:
            fees, count = self.checks.sum_receipts(name)
            if self.checks.published[name] != count or self.checks.claimed_by(name) != fees:
                return False
        return True


class _Trade(_Story):
    """A gateway with users, one or two providers, perhaps one that cheats with money; faults on all of them."""

    def __init__(self, world: World) -> None:
        random = Random(world.seed ^ 0x7ADE)
        self.cheat = random.choice(TRADE_CHEATS) if random.random() < 0.35 else None
        self.has_two = self.cheat is not None or random.random() < 0.4
        self.withdraws = random.random() < 0.25
        self.challenges = random.random() < 0.15
        self.mischief = random.choice(list(MISCHIEF)) if random.random() < 0.4 else None
        honest = frozenset(PROVIDERS[:1] if self.cheat or not self.has_two else PROVIDERS)
        super().__init__(world, honest)
        self.honest = tuple(sorted(honest))

    async def run(self) -> None:
        """Tell it."""
        world = self.world
        world.add_provider(HONEST)
        if self.cheat is not None:
            world.add(CHEAT, live_cheating_provider(world, CHEAT, self.cheat, self.proofs))
        elif self.has_two:
            world.add_provider(CHEAT)
        if self.mischief is not None:
            MISCHIEF[self.mischief](world, self.random, HONEST, LOAD_S)
        altered = self.mischief if self.mischief in GATEWAY_CHEATS else None
        world.add_gateway()
        world.add(NEIGHBOUR, lambda life: prove_all(world, life, self.proofs, self.checks, greedy=self.challenges))
        users = [
            User(world, self.checks, f"user-{number}", Random(self.random.random()), expects_altered=altered)
            for number in range(1 + (self.random.random() < 0.3))
        ]
        names = (CHAIN, SHELF, GATEWAY, *self.honest, *self.honest)
        lay_faults(world, self.random, names, LOAD_S, self.random.randrange(4))
        end_s = world.loop.time() + LOAD_S
        await asyncio.gather(*(user.ask_until(end_s) for user in users))
        world.heal()
        await self._settle()
        if self.withdraws:
            await self._withdraw()
        self.finish()

    async def _settle(self) -> None:
        world = self.world
        await until(world, self._is_resolved, SETTLE_S, "purchases are resolved")
        await until(
            world, partial(self.are_receipts_settled, self.honest), SETTLE_S, "receipts are on chain and claimed"
        )
        await until(world, self._has_cheat_paid, SETTLE_S, f"{self.cheat} has paid")
        self.checks.check_books(self.honest)

    async def _is_resolved(self) -> bool:
        """The buyer waits for nothing from those that are honest, and no user's charge waits for its receipt."""
        role = self.world.roles[GATEWAY]
        if not role.process.is_alive or self.world.buyer is None:
            return False
        honest = {key_of(name).address for name in self.honest}
        return not any(row.state.reservations for row in self.world.buyer.accounts if row.provider in honest)

    async def _has_cheat_paid(self) -> bool:
        """What a cheat did was seen: it is slashed, or never paid and bought from no more."""
        done = self.world.counts[f"cheat: {self.cheat}"]
        if self.cheat is None or not done:
            return True
        events = self.checks.events
        if self.cheat in REFUSED_LIES:
            buyer = self.world.buyer
            return buyer is not None and (
                key_of(CHEAT).address in buyer.excluded or not self.checks.was_bought_from(CHEAT)
            )
        return events["slash of provider by Forks"] > 0

    async def _withdraw(self) -> None:
        """The gateway's buyer takes back what it did not spend."""
        world = self.world
        buyer = world.buyer
        assert buyer is not None, "purchases were resolved by it"
        for name in self.honest:
            provider = key_of(name).address
            if all(row.provider != provider for row in buyer.accounts):
                continue
            amount = await _patiently(lambda provider=provider: buyer.wallet.initiate_withdraw(provider))  # type: ignore[misc] # bound now
            if not amount and not self.world.counts["cheat: withdrawal while buying"]:
                continue
            await asyncio.sleep(world.town.descriptor.windows.withdraw_delay_min_s + 1)
            await _patiently(lambda provider=provider: buyer.wallet.finalize_withdraw(provider))  # type: ignore[misc] # bound now
            world.counts["refund arrived"] += 1
        self.checks.check_books(self.honest)


class _Court(_Story):
    """Auditors that buy and judge, and somebody who cheats or accuses falsely."""

    def __init__(self, world: World, cheat: str, jury: str) -> None:
        self.cheat = cheat
        self.jury = jury
        self.has_faults = False
        self.is_provider_guilty = cheat in GENERATION_CHEATS
        super().__init__(world, frozenset(() if self.is_provider_guilty else (HONEST,)))
        self.provider = CHEAT if self.is_provider_guilty else HONEST

    async def run(self) -> None:
        """Tell it."""
        world = self.world
        if self.is_provider_guilty:
            world.add(CHEAT, live_cheating_provider(world, CHEAT, self.cheat, self.proofs))
        else:
            world.add_provider(HONEST, with_defender=True)
        for number, name in enumerate(AUDITORS):
            self._add_auditor(number, name)
        names = (*AUDITORS, CHAIN, SHELF) if self.jury == "honest" else (SHELF, CHAIN)
        await until(world, self._has_begun, COURT_S, "somebody is accused")
        count = self.random.randrange(3)
        self.has_faults = count > 0
        lay_faults(world, self.random, names, 10.0, count)
        world.at(12.0, world.heal)
        await until(world, self._is_closed, COURT_S, "the dispute is closed")
        self._check_verdict()
        self.finish()

    def _add_auditor(self, number: int, name: str) -> None:
        world = self.world
        recheck: Recheck | None = None
        alter: Callable[[Auditor], None] | None = None
        interval_s = 2.0 if number == 0 else NEVER_S
        if number == 0 and self.cheat in ("false accusation", "exact replay acquits"):
            recheck = AlwaysGuilty(world, self.cheat, replays=self.cheat == "exact replay acquits")
        if number == 1 and self.jury == "always-fine juror":
            recheck = AlwaysFine()
            world.counts["cheat: always-fine juror"] += 1
        if number in (1, 2) and self.jury == "bribed jurors":
            recheck = AlwaysGuilty(world, "bribed juror")
        if (number == 1 and self.jury == "silent juror") or (number > 0 and self.jury == "silent jury"):
            alter = fall_silent(world)
        if number == 1 and self.jury == "copied verdict":
            alter = copy_verdicts(world)
        if number == 1 and self.jury == "withheld beacon secret":
            alter = withhold_secrets(world)
        if number == 0:
            alter = self._stop_when_accused
        world.add(name, lambda life: live_auditor(life, interval_s=interval_s, recheck=recheck, alter=alter))

    def _stop_when_accused(self, auditor: Auditor) -> None:
        """One dispute is enough for one history."""
        audit_once = auditor.audit_once

        async def audit() -> bool | None:
            return None if self.checks.events["Disputes.EvidenceCommitted"] else await audit_once()

        auditor.audit_once = audit  # type: ignore[method-assign] # the story's end, not the role's

    async def _has_begun(self) -> bool:
        if self.cheat == "exact replay acquits":
            return bool(self.world.counts["cheat: exact replay acquits"])
        return self.checks.events["Disputes.Opened"] > 0

    async def _is_closed(self) -> bool:
        if self.cheat == "exact replay acquits":
            return self.world.loop.time() > self.world.town.start_s + 40
        return self.checks.events["Disputes.Closed"] > 0

    def _check_verdict(self) -> None:
        events = self.checks.events
        if self.cheat == "exact replay acquits":
            if events["Disputes.Opened"]:
                raise Violation("a case that exact replay cleared came before a jury")
            self.world.counts["exact replay acquits"] += 1
            return
        closed = next(event for event in self.checks.history if event.name == "Closed")
        verdict = Decision(closed.values["verdict"])
        self.world.counts[f"closed {verdict.name.lower()}"] += 1
        # Jurors whom faults keep from two draws in a row leave no quorum; that acquits, and the docs say so.
        is_hindered = verdict == Decision.NO_QUORUM and self.has_faults
        is_certain = (
            self.is_provider_guilty
            and self.jury in ("honest", "copied verdict", "withheld beacon secret")
            and not is_hindered
        )
        if is_certain and verdict != Decision.GUILTY:
            raise Violation(
                f"a provider with {self.cheat} was not found guilty by an honest majority, but {verdict.name}"
            )
        if not self.is_provider_guilty and verdict == Decision.GUILTY:
            raise Violation("an honest provider was found guilty")


async def _patiently(work: Callable[[], Awaitable[int | None]]) -> int | None:
    """Try until it is done; the world has healed, so a few times are enough."""
    for _ in range(20):
        try:
            return await work()
        except (Unavailable, Refused):
            await asyncio.sleep(2.0)
    return await work()
