"""Rounds of a real committee of sixteen with five liars drawn at random: whatever is certified stays available.

The members and what the bad ones do are those of `tests/da/da_village.py`. Each round: random blobs are put; those that
are certified are read back by a stranger; every liar that signed is called to account, and so are all who signed one of
the blobs; then honest members are stopped, up to five, as far as `k` rows of each blob stay with honest ones, and all
is read again. A seed fixes what is drawn, not how real sockets interleave.
"""

import asyncio
import importlib.util
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from deaios.da.blob import BlobId, Item, encode_bundle
from deaios.da.client.disperser import UnavailableQuorum
from deaios.ledger.client.availability import Certificate
from deaios.ledger.suite import DATA_AVAILABILITY
from deaios.primitives.errors import DeaiosError
from deaios.runtime.logs import configure_logs
from soak.searches import Finding

TESTS = Path(__file__).resolve().parents[1] / "tests" / "da"
KEPT = Path(__file__).parent / "found" / "da_byzantine.txt"
"""Seeds that once found something, one a line; they come before all others."""
MEMBERS = 16
DATA_ROWS = MEMBERS // 3
LIARS = 5
STOPPED_MAX = 5
BLOBS_MAX = 4
SIZE_BITS_MAX = 20
ITEMS_MAX = 40
TERM_S = 3600
BLOB_BYTES_MAX = 1 << 24

SIGNS = ("forget", "corrupt", "delay reads")
"""Liars whose signatures may be on a certificate; who forgets or stalls lets challenges pass, who corrupts answers."""
REFUSES = ("delay writes", "drop", "equivocate", "full")
"""Those whose attestation never counts."""

Village = Any  # Any: `da_village.Village`, from a module that is loaded by its path


@dataclass
class Tally:
    """What happened, by name."""

    counts: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))


@dataclass(frozen=True)
class Put:
    """A blob that was certified."""

    id: BlobId
    content: bytes
    certificate: Certificate


def command_of(seed: int) -> str:
    return f"python -m soak.da byzantine --rounds 1 --seed {seed}"


def load_kit() -> ModuleType:
    """The village, which the tests own."""
    if "da_village" not in sys.modules:
        spec = importlib.util.spec_from_file_location("da_village", TESTS / "da_village.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules["da_village"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["da_village"])
    return sys.modules["da_village"]


def run_rounds(home: Path, rounds: int, seed: int, seconds: float, tally: Tally) -> int:
    """Kept seeds, then fresh ones, until there were `rounds` of these or the time is over.

    Returns:
        How many rounds were run.

    Raises:
        Finding: a round broke a promise; its seed is kept.
    """
    configure_logs("soak", home / "soak.log", "info")
    kit, end_s, done = load_kit(), time.monotonic() + seconds, 0
    kept = [int(line) for line in KEPT.read_text().split()] if KEPT.exists() and rounds != 1 else []
    try:
        for one in [*kept, *range(seed, seed + rounds)]:
            if done and time.monotonic() > end_s:
                break
            try:
                asyncio.run(run_round(kit, home, one, tally))
            except Finding:
                KEPT.parent.mkdir(exist_ok=True)
                if one not in kept:
                    KEPT.write_text("\n".join(map(str, [*kept, one])) + "\n")
                raise
            done += 1
            print(f"  seed {one}: {tally}", flush=True)
    finally:
        if kit.found_village.cache_info().currsize:
            shutil.rmtree(kit.found_village(MEMBERS, MEMBERS).parent, ignore_errors=True)
            kit.found_village.cache_clear()
    return done


async def run_round(kit: ModuleType, home: Path, seed: int, tally: Tally) -> None:
    """One round.

    Raises:
        Finding: a promise was broken.
    """
    dice = random.Random(seed)
    liars = {number: dice.choice((*SIGNS, *REFUSES)) for number in dice.sample(range(MEMBERS), LIARS)}
    tally.counts.update(liars.values())
    stores = {
        "forget": kit.ForgettingStore,
        "corrupt": kit.CorruptingStore,
        "delay reads": kit.StallingStore,
        "delay writes": kit.StallingWriter,
        "full": kit.FullStore,
    }
    doors = {"drop": kit.RefusingDoor, "equivocate": kit.EquivocatingDoor}
    with tempfile.TemporaryDirectory(dir=home) as place:
        async with kit.open_village(Path(place), MEMBERS, MEMBERS) as village:
            try:
                await village.start_members(
                    {number: stores[kind] for number, kind in liars.items() if kind in stores},
                    {number: doors[kind] for number, kind in liars.items() if kind in doors},
                )
                await village.begin_epoch()
                await _Round(kit, village, dice, liars, seed, tally).run()
            except (DeaiosError, TimeoutError, OSError) as error:
                raise Finding(f"seed {seed}: {type(error).__name__}: {error}", command_of(seed)) from error


class _Round:
    """One village's story."""

    def __init__(
        self, kit: ModuleType, village: Village, dice: random.Random, liars: dict[int, str], seed: int, tally: Tally
    ) -> None:
        self._kit = kit
        self._village = village
        self._dice = dice
        self._liars = liars
        self._seed = seed
        self._counts = tally.counts

    async def run(self) -> None:
        client = self._village.client()
        tried = [await self._put(client) for _ in range(self._dice.randint(1, BLOBS_MAX))]
        puts = list({put.certificate.digest: put for put in tried if put}.values())  # tiny ones may be alike
        await self._read(puts)
        if puts:
            await self._call_to_account(puts)
            await self._stop_some(puts)
            await self._read(puts)

    async def _put(self, client: Any) -> Put | None:  # Any: `BlobClient` of the village's making
        """A single or a bundle; None where it was refused."""
        size = self._dice.randint(1, 1 << self._dice.randint(1, SIZE_BITS_MAX))
        try:
            if self._dice.random() < 0.3:
                until = 1 << 40
                sizes = [1 + size // ITEMS_MAX] * self._dice.randint(1, ITEMS_MAX)
                items = [Item(self._dice.randbytes(each), until) for each in sizes]
                certificate = await client.disperse(encode_bundle(items), TERM_S)
                number = self._dice.randrange(len(items))
                put = BlobId(certificate.attestation.commitment, number), bytes(items[number].content)
            else:
                content = self._dice.randbytes(size)
                put = await client.put_bytes(content, TERM_S), content
        except UnavailableQuorum:
            self._counts["puts refused"] += 1
            return None
        self._counts["puts certified"] += 1
        found = await client.reader.fetch_certificate(put[0].commitment)
        for number, kind in self._liars.items():
            if kind in REFUSES:
                self._demand(
                    not found.has_seat(await self._seat_of(found, number)), f"member {number} ({kind}) counts as signer"
                )
        return Put(*put, found)

    async def _read(self, puts: list[Put]) -> None:
        """What was certified can be had, by somebody who knows nobody."""
        client = self._village.client()
        for put in puts:
            content = await client.get_bytes(put.id, BLOB_BYTES_MAX)
            self._demand(content == put.content, f"{put.id} came back as other bytes")
            self._counts["reads"] += 1

    async def _call_to_account(self, puts: list[Put]) -> None:
        """Challenge all signers of one blob and the lying signers of all; only liars pay, and all of them do."""
        village, challenger = self._village, self._village.challenger()
        slices = await self._read_slices()
        whole = self._dice.choice(puts)
        bets = []
        for put in puts:
            for number in range(MEMBERS):
                seat = await self._seat_of(put.certificate, number)
                if put.certificate.has_seat(seat) and (put is whole or number in self._liars):
                    bets.append((number, await challenger.open(put.certificate, seat)))
        await village.speak()
        for member in village.members:
            if self._liars.get(member.number) in (None, "corrupt"):
                await member.duties.scan()
                await member.duties.answer_challenges()
        await village.pass_time(village.settings.da_challenge_s_max + 1)
        lost: Counter[int] = Counter()
        for number, bet in bets:
            verdict = await challenger.wait(bet)
            is_liar = number in self._liars
            who = f"member {number} ({self._liars.get(number, 'honest')})"
            self._demand(verdict.is_answered != is_liar, f"{who} answered: {verdict.is_answered}")
            lost[number] += verdict.slashed
            self._counts["liars convicted" if is_liar else "honest members answered"] += 1
        penalty = village.settings.da_penalty
        for number, after in (await self._read_slices()).items():
            convictions = sum(one == number for one, _ in bets) if number in self._liars else 0
            self._demand(
                slices[number] - after == lost[number] == min(slices[number], convictions * penalty),
                f"member {number} lost {slices[number] - after} after {convictions} convictions of {penalty}",
            )

    async def _stop_some(self, puts: list[Put]) -> None:
        """Honest members go, in random order, as long as each blob keeps `k` honest signers."""
        signers = []
        for put in puts:
            seats = {number: await self._seat_of(put.certificate, number) for number in range(MEMBERS)}
            signers.append({n for n, seat in seats.items() if n not in self._liars and put.certificate.has_seat(seat)})
        honest = [member for member in self._village.members if member.number not in self._liars]
        stopped = 0
        for member in self._dice.sample(honest, len(honest)):
            left = [one - {member.number} for one in signers]
            if stopped < STOPPED_MAX and all(len(one) >= DATA_ROWS for one in left):
                await member.stop()
                signers, stopped = left, stopped + 1
        self._counts["honest members stopped"] += stopped

    async def _seat_of(self, certificate: Certificate, number: int) -> int:
        committee = await self._village.contracts.availability.committee(certificate.attestation.epoch)
        place = committee.find_place(self._village.members[number].address)
        return committee.members[place].first_seat

    async def _read_slices(self) -> dict[int, int]:
        staking = self._village.contracts.staking
        return {
            member.number: await staking.slice_of(DATA_AVAILABILITY, member.address) for member in self._village.members
        }

    def _demand(self, holds: bool, what: str) -> None:
        if not holds:
            raise Finding(f"seed {self._seed}: {what}; liars: {self._liars}", command_of(self._seed))
