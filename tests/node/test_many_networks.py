"""Four networks behind one stake: what is staked once counts on all, a lie on one is slashed on the root, and Credit
goes around while networks stand still and relayers die."""

import asyncio
import importlib.util
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from deaios.ledger.eip712 import sign_struct
from deaios.ledger.structs import Checkpoint
from deaios.ledger.suite import CONSENSUS
from deaios.primitives.units import CREDIT

WAIT_S = 90.0
"""Long, for a machine with much else to do; every wait is for a condition."""


def load_module(name):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


kit = load_module("archipelago")


@asynccontextmanager
async def founded(path, operators, further):
    opened = kit.Archipelago(path, operators, further)
    try:
        await opened.found()
        await asyncio.gather(*(opened.start_validator(number) for number in range(operators)))
        yield opened
    finally:
        await opened.close()


@pytest.fixture
async def islands(tmp_path):
    async with founded(tmp_path, operators=4, further=3) as opened:
        await opened.start_liars()
        yield opened


@pytest.fixture
async def island(tmp_path):
    async with founded(tmp_path, operators=1, further=1) as opened:
        yield opened


async def wait_for(condition, timeout_s=WAIT_S):
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.05)


async def powers_on(islands, place):
    """What the mirror's set weighs, by key, as the root has that set."""
    known = await (await islands.further(place)).mirror.epoch_of(place.id)
    view, _, _ = await islands.views(keeps_messages=False)
    await view.sync()
    valset = view.get(place.id, known.number)
    return {} if valset is None else {item.key: item.power for item in valset.validators}


@pytest.mark.slow
async def test_one_stake_behind_four_networks(islands):
    travellers = kit.Travellers(islands, seed=1)
    await travellers.begin()
    total = sum(await islands.supplies())
    async with islands.relaying():
        await _raise_stake_once(islands)
        for destination in (1, 2, 3):
            await travellers.send(0, destination, 100 * CREDIT)
        await travellers.wait_until_arrived(WAIT_S)
        for pair in ((1, 2), (2, 3), (3, 1), (1, 0), (2, 0)):
            await travellers.send(*pair, 7 * CREDIT)
        await travellers.wait_until_arrived(WAIT_S)
    assert sum(await islands.supplies()) == total
    burned = await _slash_a_double_sign(islands)
    await _stand_still(islands, travellers)
    assert sum(await islands.supplies()) == total - burned
    outstanding = [await islands.contracts.bridge.outstanding(place.id) for place in islands.places]
    assert outstanding == (await islands.supplies())[1:]


async def _raise_stake_once(islands):
    """One transaction on the root; every mirror follows."""
    key = islands.operators[0]
    await islands.contracts.staking.stake(islands.on_root[key.address], 50 * CREDIT)

    async def counts(number, place):
        return (await powers_on(islands, place)).get(islands.network_key(number, place).address)

    for place in islands.places:
        await wait_for(lambda place=place: _equals(counts(0, place), kit.STAKE + 50 * CREDIT))


async def _equals(value, wanted):
    return await value == wanted


async def _slash_a_double_sign(islands):
    """The third network's key of an operator signs two histories; a stranger has it slashed on the root."""
    third, liar = islands.places[2], 3
    key = islands.network_key(liar, third)
    truth = Checkpoint(islands.root.id, third.id, 1, b"\1" * 32)
    lie = replace(truth, root=b"\2" * 32)
    contracts, stranger = islands.contracts, islands.on_root[islands.stranger.address]
    signed = [(item, sign_struct(key, islands.domain, item)) for item in (truth, lie)]
    salt = b"\3" * 32
    await contracts.equivocation.commit(stranger, truth, lie, salt)
    before = await contracts.credit.total_supply()
    await contracts.equivocation.prove_checkpoints(stranger, *signed, salt)
    operator = islands.operators[liar].address
    assert await contracts.staking.slice_of(CONSENSUS, operator) == kit.STAKE // 2
    assert await contracts.credit.balance_of(stranger.address) > 0
    async with islands.relaying():
        # It counts no more on the third network, and is in jail on all others.
        for place in islands.places:
            wanted = {islands.network_key(number, place).address for number in range(3)}

            async def has_gone(place=place, wanted=wanted):
                return set(await powers_on(islands, place)) == wanted

            await wait_for(has_gone)
    return before - await contracts.credit.total_supply()


async def _stand_still(islands, travellers):
    """A network stops; relayers die in the middle and two run at once; the others go on, and it catches up."""
    still = islands.places[1].chain
    for _ in range(3):
        await travellers.send(2, 0, 5 * CREDIT)
        await travellers.send(0, 2, CREDIT)
    await still.stop()
    for number in range(5):
        async with islands.relaying(number % 2):
            await asyncio.gather(
                *(travellers.send(*pair, CREDIT) for pair in ((0, 1), (1, 3), (3, 0), (0, 3), (3, 1), (1, 2), (3, 2)))
            )
            # Cut off at another place each time.
            await asyncio.sleep(0.1 * number)
    async with islands.relaying(0), islands.relaying(1):
        # What is on its way to the network that stands still, or waits on it, is all that is missing elsewhere.
        await wait_for(lambda: _has_arrived_elsewhere(islands, travellers))
        await still.start()
        await travellers.wait_until_arrived(WAIT_S)


async def _has_arrived_elsewhere(islands, travellers):
    missing = 0
    for number in (0, 1, 3):
        for person in islands.people:
            missing += travellers.held[number, person.address] - await travellers.credits[number].balance_of(
                person.address
            )
    return missing == 15 * CREDIT


async def test_a_validator_signs_what_it_saw_and_no_second_thing(island):
    """Doors answer the same for ever; what is not confirmed, or not theirs, is not signed."""
    from deaios.runtime.client import HttpClient, RefusedByPeer

    place, url = island.places[0], island.urls[0]
    async with HttpClient() as http:

        async def ask(path):
            return (await http.request("GET", f"{url}/{path}")).decode()

        async def is_known():
            try:
                await ask(f"valsets/0x{place.id.hex()}/1")
            except RefusedByPeer:
                return False
            return True

        await wait_for(is_known)
        first = await ask(f"valsets/0x{place.id.hex()}/1")
        assert await ask(f"valsets/0x{place.id.hex()}/1") == first
        assert island.promises[0].count() == 1
        for path in (
            f"valsets/0x{place.id.hex()}/2",
            f"valsets/0x{'11' * 32}/1",
            f"valsets/0x{place.id.hex()[2:]}/1",
            f"valsets/0x{place.id.hex()}/01",
            f"valsets/0x{place.id.hex()}/{1 << 64}",
            f"checkpoints/0x{place.id.hex()}/0x{island.root.id.hex()}/0",
            f"checkpoints/0x{place.id.hex()}/0x{island.root.id.hex()}/1",
            f"checkpoints/0x{'11' * 32}/0x{place.id.hex()}/1",
        ):
            with pytest.raises(RefusedByPeer):
                await ask(path)
        assert island.promises[0].count() == 1
    assert (await island.registry.epoch_of(place.id)).number == 1
