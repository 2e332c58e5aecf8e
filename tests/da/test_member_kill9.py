"""A member under `kill -9`: what it attested to is there after every restart, whatever it was doing."""

import asyncio
import contextlib
import random
import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import psutil
import pytest

from deaios.da.store import Pledge
from deaios.rows.message import validate_message
from deaios.runtime.clock import SystemClock

HERE = Path(__file__).parent
KILLS = 16
LIFE_ROWS = (1, 40)
"""A life ends once so many rows were acknowledged, and a little later."""
LATER_S = 0.05
WORKERS = 4


@dataclass
class Told:
    """Everything that clients were told."""

    attested: list = field(default_factory=list)
    """(matrix number, attestation)."""
    events: Counter = field(default_factory=Counter)


class Client:
    """Disperses one small matrix after another to the one member, as a disperser does."""

    def __init__(self, kit, told):
        self.kit, self.told, self.number = kit, told, 0
        self.matrices = {}

    def next_matrix(self):
        self.number += 1
        self.matrices[self.number] = self.kit.code(self.kit.payload_of(self.number))
        return self.number, self.matrices[self.number]

    async def work(self, session, url):
        """Until the member is gone."""
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            while True:
                number, matrix = self.next_matrix()
                for index in self.kit.MINE:
                    status, _, _ = await self.kit.put_row(session, url, matrix, index)
                    assert status in (200, 201)
                    self.told.events["row"] += 1
                attestation = self.kit.attestation_of(matrix)
                status, _, answer = await self.kit.attest(session, url, attestation)
                assert status == 200
                self.kit.check_signature(attestation, answer)
                self.told.attested.append((number, attestation))


@pytest.fixture
def start_member(tmp_path):
    """Starts a member in `tmp_path / "member"`, forked from a process that has loaded everything."""
    folder = tmp_path / "member"
    command = [sys.executable, str(HERE / "member_door.py"), str(folder)]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as nursery,
    ):
        lives = []

        def start(*, releases):
            nursery.stdin.write("releasing\n" if releases else "quiet\n")
            nursery.stdin.flush()
            while not (words := nursery.stdout.readline().split()) or not words[0].isdecimal():
                assert nursery.poll() is None, (tmp_path / "log").read_text()[-2000:]
            lives.append(psutil.Process(int(words[0])))
            return lives[-1], words[1]

        yield start
        for life in lives:
            end(life)
        nursery.stdin.close()


def end(life):
    """`kill -9`, and wait until its files are nobody's."""
    with contextlib.suppress(psutil.NoSuchProcess):
        life.kill()
        life.wait(30)


async def live_once(client, start_member, dice, *, releases):
    """One life under load, ended at a random instant."""
    life, url = await asyncio.to_thread(start_member, releases=releases)
    async with aiohttp.ClientSession() as session:
        working = [asyncio.create_task(client.work(session, url)) for _ in range(WORKERS)]
        target = client.told.events["row"] + dice.randint(*LIFE_ROWS) * (2 if releases else 1)
        async with asyncio.timeout(60):
            while client.told.events["row"] < target:
                await asyncio.sleep(0.005)
        await asyncio.sleep(dice.uniform(0, LATER_S))
        await asyncio.to_thread(end, life)
        await asyncio.gather(*working)


def check_promises(kit, folder, promised):
    """Every row behind every promise is there and verifies, and the promise is in the journal."""
    rows, pledges = kit.open_stores(folder)
    try:
        for number, attestation in promised:
            pledge = Pledge(attestation, kit.MINE.start, len(kit.MINE), is_certified=False)
            assert pledges.is_pledged(attestation.commitment), number
            for index in kit.MINE:
                body = rows.get_row(attestation.commitment, index)
                assert body is not None, (number, index)
                validate_message(attestation.commitment, index, body)
            pledges.note_chain([replace(pledge, is_certified=True)], None)
        certified = {pledge.attestation for pledge in pledges.list_certified(None, 100_000)}
        assert {attestation for _, attestation in promised} <= certified
        assert pledges.count()[0] == len(certified)
        return pledges.count()
    finally:
        pledges.close()
        rows.close()


@pytest.mark.timeout(180)
async def test_every_attestation_outlives_its_member(tmp_path, member_door, start_member):
    dice, told = random.Random(9), Told()
    client, folder = Client(member_door, told), tmp_path / "member"
    for _ in range(KILLS):
        before = len(told.attested)
        await live_once(client, start_member, dice, releases=False)
        check_promises(member_door, folder, told.attested[before:])
    check_promises(member_door, folder, told.attested)
    assert len(told.attested) > 2 * KILLS
    assert told.events["row"] > 4 * len(told.attested), "no life ended in the middle of a dispersal"


@pytest.mark.timeout(180)
async def test_killed_while_letting_go_it_loses_nothing_that_is_still_promised(tmp_path, member_door, start_member):
    """Between two lives half of what was promised is made to be over; the next life lets go of it while it serves."""
    dice, told = random.Random(10), Told()
    client, folder = Client(member_door, told), tmp_path / "member"
    live, over = [], []
    packs_gone = 0
    for _ in range(6):
        before = len(told.attested)
        names = {path.name for path in (folder / "rows").glob("*.pack")}
        await live_once(client, start_member, dice, releases=True)
        packs_gone += len(names - {path.name for path in (folder / "rows").glob("*.pack")})
        live += told.attested[before:]
        check_promises(member_door, folder, live)
        dice.shuffle(live)
        cut = 2 * len(live) // 3
        over, live = over + live[:cut], live[cut:]
        end_promises(member_door, folder, over)
    life, _ = await asyncio.to_thread(start_member, releases=True)
    await until_gone(folder, over)
    end(life)
    check_promises(member_door, folder, live)
    rows, pledges = member_door.open_stores(folder)
    gone = [number for number, said in over if rows.get_row_size(said.commitment, 4) is None]
    assert len(gone) == len(over) > 10
    assert packs_gone > 0, "nothing was ever given back"
    rows.close()
    pledges.close()


def end_promises(kit, folder, over):
    """Their terms are over and their fees shared out; what was never certified has waited long enough."""
    rows, pledges = kit.open_stores(folder)
    for _, said in over:
        if pledges.is_pledged(said.commitment):
            pledge = Pledge(said, kit.MINE.start, len(kit.MINE), is_certified=True)
            pledges.note_chain([pledge], None)
            pledges.mark_settled(pledge)
            pledges.note_arrival(said.commitment, SystemClock().now_ms() // 1000 - 10_000)
    pledges.close()
    rows.close()


async def until_gone(folder, over):
    """Until the journal knows of none of them, read beside its owner."""
    names = {said.commitment for _, said in over}
    async with asyncio.timeout(30):
        while True:
            with contextlib.closing(sqlite3.connect(f"file:{folder / 'pledges.db'}?mode=ro", uri=True)) as journal:
                left = {bytes(row[0]) for row in journal.execute("SELECT commitment FROM pledges")}
            if not names & left:
                return
            await asyncio.sleep(0.05)
