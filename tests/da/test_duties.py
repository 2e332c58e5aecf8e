"""A member's duties when things go wrong: nothing that is promised is let go, nobody's trouble is another's."""

import asyncio
import random
import threading
from dataclasses import replace

import pytest

from deaios.da.service import duties as duties_module
from deaios.da.store import Pledge
from deaios.ledger.client.rpc import UnavailableChain
from deaios.ledger.settings import DEFAULT, LOCAL
from deaios.ledger.suite import DATA_AVAILABILITY
from deaios.node.network import BatchShelf
from deaios.rows.client import UnavailableRows
from deaios.runtime.errors import NotFound

HOUR = 3600


def make_bytes(size, seed=1):
    return random.Random(seed).randbytes(size)


async def begin(village):
    await village.start_members()
    await village.begin_epoch()
    return village.client()


def rows_of(member, commitment):
    return [row for name, row in member.store.list_rows(None, 1000) if name == commitment]


async def test_a_member_that_was_away_lets_nothing_go_before_it_has_read_the_chain(hamlet):
    """All members slept while a blob was certified; when they woke, an hour later, they deleted it before they knew."""
    client = await begin(hamlet)
    blob_id = await client.put_bytes(make_bytes(10_000), 3 * HOUR)
    for member in hamlet.members:
        assert member.pledges.count() == (0, 1)
        await member.stop()
    await hamlet.pass_time(2 * HOUR)
    await asyncio.gather(*(member.start() for member in hamlet.members))
    for member in hamlet.members:
        await member.duties.let_go()  # the chain did not answer yet
        assert len(rows_of(member, blob_id.commitment)) == 4
    for member in hamlet.members:
        await member.do_duties()
        assert member.pledges.count() == (1, 0)
    assert await hamlet.client().get_bytes(blob_id, 1 << 20) == make_bytes(10_000)


async def test_a_chain_that_is_away_keeps_promises_alive(hamlet, monkeypatch):
    """The last look at the chain counts, not the clock."""
    client = await begin(hamlet)
    member = hamlet.members[0]
    await member.do_duties()
    blob_id = await client.put_bytes(make_bytes(10_000), 3 * HOUR)

    async def fail(*_arguments):
        raise UnavailableChain("away")

    await hamlet.pass_time(2 * HOUR)
    with monkeypatch.context() as patch:
        patch.setattr(member.duties._availability, "fetch_certified", fail)
        with pytest.raises(UnavailableChain):
            await member.duties.scan()
        await member.duties.let_go()
    assert len(rows_of(member, blob_id.commitment)) == 4
    await member.do_duties()
    assert member.pledges.count() == (1, 0)


async def test_a_challenge_that_cannot_be_answered_keeps_no_other_waiting(hamlet, kit):
    """One lost row cost every seat that was doubted at the same time."""
    client = await begin(hamlet)
    ids = [await client.put_bytes(make_bytes(9_000, seed), HOUR) for seed in range(3)]
    certificates = [await client.reader.fetch_certificate(one.commitment) for one in ids]
    committee = await hamlet.contracts.availability.committee(1)
    member = hamlet.members[0]
    seats = list(committee.members[committee.find_place(member.address)].rows)
    lost = certificates[0]
    for one in hamlet.members:  # nobody has the first blob any more
        one.store.delete_rows([(lost.attestation.commitment, row) for row in range(12)])
    challenger = hamlet.challenger()
    bets = [await challenger.open(certificate, seat) for certificate in certificates for seat in seats]
    await hamlet.speak()
    await member.duties.scan()
    await member.duties.answer_challenges()
    states = [await hamlet.contracts.availability.challenge_of(bet.id) for bet in bets]
    assert [state.is_open for state in states] == [True] * 4 + [False] * 8
    await hamlet.pass_time(hamlet.settings.da_challenge_s_max + 1)
    before = await hamlet.contracts.staking.slice_of(DATA_AVAILABILITY, member.address)
    ends = [await challenger.wait(bet) for bet in bets]
    assert [end.is_answered for end in ends] == [False] * 4 + [True] * 8
    after = await hamlet.contracts.staking.slice_of(DATA_AVAILABILITY, member.address)
    assert before - after == 4 * hamlet.settings.da_penalty


async def test_answers_wait_for_their_blocks_together(hamlet, monkeypatch):
    """One after another, a crowd of challenges with one deadline would be a way to slash an honest member."""
    client = await begin(hamlet)
    blob_id = await client.put_bytes(make_bytes(9_000), HOUR)
    certificate = await client.reader.fetch_certificate(blob_id.commitment)
    committee = await hamlet.contracts.availability.committee(1)
    member = hamlet.members[1]
    challenger = hamlet.challenger()
    for seat in committee.members[committee.find_place(member.address)].rows:
        await challenger.open(certificate, seat)
    await hamlet.speak()
    await member.duties.scan()
    running, most, real = 0, 0, member.duties._availability.answer

    async def answer(*arguments):
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return await real(*arguments)
        finally:
            running -= 1

    monkeypatch.setattr(member.duties._availability, "answer", answer)
    await member.duties.answer_challenges()
    assert most == 4
    assert member.duties._memory.challenges == {}


async def test_a_matrix_that_cannot_be_healed_keeps_no_other_from_it(hamlet, monkeypatch):
    client = await begin(hamlet)
    ids = sorted([(await client.put_bytes(make_bytes(9_000, seed), HOUR)).commitment for seed in range(4)])
    member = hamlet.members[0]
    await member.duties.scan()
    member.store.delete_rows([(name, row) for name in ids for row in range(12)])
    for other in hamlet.members[1:]:
        other.store.delete_rows([(ids[0], row) for row in range(12)])
    monkeypatch.setattr(duties_module, "LOOKED_AFTER", 2)
    for _ in range(3):
        await member.duties.heal()
    assert [len(rows_of(member, name)) for name in ids] == [0, 4, 4, 4]


async def test_healing_stops_in_time_and_goes_on_where_it_was(hamlet, monkeypatch):
    client = await begin(hamlet)
    ids = sorted([(await client.put_bytes(make_bytes(9_000, seed), HOUR)).commitment for seed in range(3)])
    member = hamlet.members[0]
    await member.duties.scan()
    member.store.delete_rows([(name, row) for name in ids for row in range(12)])
    monkeypatch.setattr(duties_module, "HEAL_S_MAX", -1.0)
    for healed in range(1, 4):
        await member.duties.heal()
        assert [len(rows_of(member, name)) for name in ids] == [4] * healed + [0] * (3 - healed)


async def test_a_certificate_for_rows_that_were_let_go_brings_them_back(hamlet):
    """It was certified at the last moment, while this member had no chain."""
    client = await begin(hamlet)
    blob_id = await client.put_bytes(make_bytes(20_000), 3 * HOUR)
    member = hamlet.members[2]
    before = {row: member.store.get_row(blob_id.commitment, row) for row in rows_of(member, blob_id.commitment)}
    now_s = hamlet.clock.now_ms() // 1000
    assert duties_module.release(member.pledges, member.store, now_s, now_s + 10, now_s + 10) == 1
    assert rows_of(member, blob_id.commitment) == []
    await member.do_duties()
    assert {row: member.store.get_row(blob_id.commitment, row) for row in before} == before
    assert member.pledges.count() == (1, 0)


async def test_what_cannot_be_settled_keeps_nothing_behind_it_waiting(hamlet, monkeypatch):
    """A challenge that nobody ends held the fees of all later blobs, and their rows, for ever."""
    client = await begin(hamlet)
    ids = [await client.put_bytes(make_bytes(3_000, seed), 120 + seed) for seed in range(3)]
    certificates = [await client.reader.fetch_certificate(one.commitment) for one in ids]
    committee = await hamlet.contracts.availability.committee(1)
    accused = hamlet.members[0]
    seat = committee.members[committee.find_place(accused.address)].first_seat
    await hamlet.challenger().open(certificates[0], seat)
    for member in hamlet.members:
        await member.duties.scan()
    monkeypatch.setattr(duties_module, "SETTLED_MAX", 1)
    await hamlet.pass_time(130 + 121)
    availability, judge = hamlet.contracts.availability, hamlet.members[1]
    for _ in range(12):
        await judge.duties.collect()
        await hamlet.pass_time(hamlet.settings.da_challenge_s_max // 8)
    left = [await availability.signers_of(certificate.digest) for certificate in certificates]
    assert [bool(signers) for signers in left[1:]] == [False, False]
    assert await availability.open_challenges(certificates[0].digest) == 0, "an overdue challenge is ended by members"
    assert not left[0]


# Races


async def test_rows_do_not_expire_between_the_look_and_the_promise(hamlet):
    """Threads: some ask for attestations of rows that are about to be nobody's, one lets such rows go."""
    await begin(hamlet)
    member, kit_now = hamlet.members[0], hamlet.clock.now_ms() // 1000
    seat = member.door.seating.find_seat(1)[1]
    signed, refused, over = [], [], threading.Event()
    dice = random.Random(5)
    names = [bytes([number]) * 32 for number in range(24)]

    def promise():
        own = random.Random(dice.random())
        for turn in range(120):
            name = own.choice(names)
            with member.pledges.guard:
                member.pledges.note_arrival(name, kit_now - 10_000)
                for row in seat.rows:
                    member.store.put_row(name, row, b"row")
            attestation = duties_module.RowAttestation(name, 1, kit_now - turn, kit_now + HOUR)
            try:
                member.door._sign(attestation)
            except NotFound as error:
                refused.append(error)
            else:
                signed.append(attestation)

    def let_go():
        while not over.is_set():
            duties_module.release(member.pledges, member.store, 0, 0, kit_now)

    workers = [threading.Thread(target=promise) for _ in range(3)]
    releasing = threading.Thread(target=let_go)
    for thread in (*workers, releasing):
        thread.start()
    await asyncio.to_thread(lambda: [thread.join() for thread in workers])
    over.set()
    await asyncio.to_thread(releasing.join)
    assert len(signed) + len(refused) == 360
    assert signed
    for attestation in signed:
        assert [member.store.get_row_size(attestation.commitment, row) for row in seat.rows] == [3] * 4
        assert member.pledges.is_pledged(attestation.commitment)


async def test_two_clients_publish_one_blob_at_the_same_second(hamlet, kit):
    """Whoever came second with the same attestation was told that its blob could not be certified, though it was."""
    await begin(hamlet)
    content = make_bytes(50_000)
    now_ms = hamlet.clock.now_ms()

    class Stopped(kit.MovableClock):
        def now_ms(self):
            return now_ms

    clients = [hamlet.client(clock=Stopped()) for _ in range(2)]
    ids = await asyncio.gather(*(client.put_bytes(content, HOUR) for client in clients))
    assert ids[0] == ids[1]
    certificates = await hamlet.contracts.availability.fetch_certificates(ids[0].commitment)
    assert len(certificates) == 1
    assert await hamlet.client().get_bytes(ids[0], 1 << 20) == content


async def test_an_epoch_that_turns_in_the_middle_of_a_dispersal(hamlet):
    client = await begin(hamlet)
    roster = await client.reader._committees.fetch_current()
    assert roster.committee.epoch == 1
    await hamlet.pass_time(hamlet.settings.da_epoch_s + 1)
    for member in hamlet.members:
        await member.duties.tend_epoch()
    assert await hamlet.contracts.availability.current_epoch() == 2
    blob_id = await client.put_bytes(make_bytes(9_000), HOUR)  # still to the seats of before
    certificate = await client.reader.fetch_certificate(blob_id.commitment)
    assert certificate.attestation.epoch == 1
    assert await hamlet.client().get_bytes(blob_id, 1 << 20) == make_bytes(9_000)
    for member in hamlet.members:
        await member.do_duties()
        assert member.pledges.count() == (1, 0)


async def test_members_that_have_not_heard_of_the_new_epoch_are_asked_again(hamlet):
    """In the first second of every epoch each of them refused rows as another's, and the blob with them."""
    await begin(hamlet)
    await hamlet.pass_time(hamlet.settings.da_epoch_s + 1)
    await hamlet.contracts.availability.begin_epoch(hamlet.user)
    putting = asyncio.create_task(hamlet.client().put_bytes(make_bytes(9_000), HOUR))
    await asyncio.sleep(0.7)
    await asyncio.gather(*(member.duties.tend_epoch() for member in hamlet.members))
    blob_id = await putting
    certificate = await hamlet.client().reader.fetch_certificate(blob_id.commitment)
    assert certificate.attestation.epoch == 2


async def test_a_healed_row_is_no_other_row(hamlet):
    """Members may lie to who heals: what does not verify is not kept."""
    client = await begin(hamlet)
    blob_id = await client.put_bytes(make_bytes(9_000), HOUR)
    certificate = await client.reader.fetch_certificate(blob_id.commitment)
    member, liars = hamlet.members[0], hamlet.members[1:]
    await member.duties.scan()
    rows = rows_of(member, blob_id.commitment)
    member.store.delete_rows([(blob_id.commitment, row) for row in rows])
    for liar in liars:
        real = liar.store.get_row
        liar.store.get_row = lambda name, row, real=real: flip(real(name, row))
    await member.duties.heal()
    assert rows_of(member, blob_id.commitment) == []
    place = (await hamlet.contracts.availability.committee(1)).find_place(member.address)
    with pytest.raises(UnavailableRows):
        await hamlet.client().reader.fetch_rows(certificate, (place,))


async def test_rot_is_found_and_healed_before_anybody_asks(hamlet):
    client = await begin(hamlet)
    blob_id = await client.put_bytes(make_bytes(9_000), HOUR)
    member = hamlet.members[0]
    await member.duties.scan()
    rows = rows_of(member, blob_id.commitment)
    kept = [member.store.get_row(blob_id.commitment, row) for row in rows]
    (pack,) = (member.folder / "rows").glob("*.pack")
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    member.duties._memory.scrubbed_s = -1e9
    await member.duties.heal()
    assert [member.store.get_row(blob_id.commitment, row) for row in rows] == kept


def flip(data):
    return None if data is None else data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("windows", [LOCAL, DEFAULT, replace(LOCAL, da_term_max_s=3600, opening_retention_s=1800)])
def test_receipt_batches_ask_for_no_longer_a_term_than_members_promise(windows):
    """On a public network twice the retention was the longest term itself, and no batch could ever be published."""
    assert BatchShelf(None, windows)._term_s <= windows.da_term_max_s


def test_pledges_name_contiguous_rows():
    attestation = duties_module.RowAttestation(bytes(32), 1, 2, 3)
    assert list(Pledge(attestation, 4, 3, is_certified=True).indices) == [4, 5, 6]
