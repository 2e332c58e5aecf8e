"""The journal of promises: what it lets go of, what it never does, and that a failing disk changes nothing."""

import contextlib
import sqlite3
import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deaios.da import store as store_module
from deaios.da.service.duties import release
from deaios.da.store import Pledge, PledgeStore
from deaios.ledger.structs import RowAttestation
from deaios.rows.store import RowStore
from deaios.runtime.disk import UnavailableDisk
from deaios.runtime.errors import RefusedFull

A, B, C = (bytes([letter]) * 32 for letter in b"abc")


def make_pledge(commitment=A, *, epoch=1, begins_at=100, expires_at=1000, first_row=4, rows=4, certified=False):
    return Pledge(RowAttestation(commitment, epoch, begins_at, expires_at), first_row, rows, certified)


@pytest.fixture
def open_store(tmp_path):
    """Opens the journal, again after a restart."""
    opened = []

    def open_again():
        if opened:
            opened.pop().close()
        opened.append(PledgeStore(tmp_path / "pledges.db"))
        return opened[0]

    yield open_again
    opened[0].close()


@pytest.fixture
def pledges(open_store):
    return open_store()


def fill_disk(pledges):
    """The journal may not grow by a page any more: SQLite's own "database or disk is full"."""
    pledges._journal.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (pages,) = pledges._journal.execute("PRAGMA page_count").fetchone()
    pledges._journal.execute(f"PRAGMA max_page_count={pages}")


def make_room(pledges):
    pledges._journal.execute("PRAGMA max_page_count=1000000")


def test_a_promise_survives_a_restart_and_stays_as_it_was_made(open_store):
    pledges = open_store()
    assert (pledges.scanned, pledges.count(), pledges.is_pledged(A)) == (-1, (0, 0), False)
    pledges.note_arrival(A, 90)
    pledges.add(make_pledge())
    pledges.add(make_pledge(first_row=0, rows=1))
    pledges.note_chain([make_pledge(B, certified=True)], 17)
    for _ in range(2):
        assert (pledges.scanned, pledges.count()) == (17, (1, 1))
        assert [pledges.is_pledged(name) for name in (A, B, C)] == [True, True, False]
        assert pledges.list_certified(None, 10) == [make_pledge(B, certified=True)]
        pledges = open_store()
    pledges.note_chain([make_pledge(first_row=0, rows=1, certified=True)], 18)
    assert pledges.list_certified(None, 10) == [make_pledge(certified=True), make_pledge(B, certified=True)]
    pledges.add(make_pledge())
    assert pledges.count() == (2, 0), "what is certified is not made less so by a second request"


def test_one_page_of_promises_after_another_leaves_none_out(pledges):
    """Also where one matrix has more promises than a page: it was skipped from the second on."""
    made = [
        make_pledge(name, epoch=epoch, begins_at=begins, expires_at=begins + 500, certified=True)
        for name in (A, B, C)
        for epoch in (1, 2)
        for begins in (100, 200)
    ]
    pledges.note_chain(reversed(made), None)
    pledges.add(make_pledge(B, epoch=9))
    for size in (1, 2, 5, 12, 50):
        found, last = [], None
        while page := pledges.list_certified(last, size):
            found, last = found + page, page[-1]
        assert found == made
        found, last = [], None
        while page := pledges.list_unsettled(10**9, last, size):
            found, last = found + page, page[-1]
        assert found == sorted(made, key=by_end)


def by_end(pledge):
    said = pledge.attestation
    return said.expires_at, said.commitment, said.epoch, said.begins_at


def test_unsettled_are_certified_over_and_not_yet_shared(pledges):
    first, second = make_pledge(B, expires_at=500, certified=True), make_pledge(A, expires_at=600, certified=True)
    pledges.note_chain([first, second, make_pledge(C, expires_at=500)], None)
    assert pledges.list_unsettled(500, None, 10) == []
    assert pledges.list_unsettled(501, None, 10) == [first]
    assert pledges.list_unsettled(601, None, 10) == [first, second]
    pledges.mark_settled(first)
    assert pledges.list_unsettled(601, None, 10) == [second]
    assert pledges.count() == (2, 1)
    pledges.note_chain([first], None)
    assert pledges.list_unsettled(601, None, 10) == [second], "seen again on chain, it is not shared again"


@pytest.mark.parametrize(
    ("certified", "settled", "times", "is_over"),
    [
        (False, False, (0, 100, 0), False),
        (False, False, (0, 101, 0), True),
        (False, False, (10**9, 100, 0), False),
        (True, False, (10**9, 10**9, 10**9), False),
        (True, True, (1000, 10**9, 10**9), False),
        (True, True, (1001, 0, 0), True),
    ],
)
def test_when_a_promise_is_over(pledges, certified, settled, times, is_over):
    pledge = make_pledge(certified=certified)
    pledges.add(pledge)
    if settled:
        pledges.mark_settled(pledge)
    assert pledges.list_expired(*times) == [A] * is_over
    pledges.note_arrival(A, 50)
    certified_before, begun_before, _ = times
    assert pledges.list_expired(certified_before, begun_before, 50) == []
    assert pledges.list_expired(certified_before, begun_before, 51) == [A] * is_over


def test_rows_that_nobody_was_promised_wait_for_their_time(pledges):
    pledges.note_arrival(A, 50)
    pledges.note_arrival(B, 60)
    pledges.note_arrival(A, 70)
    assert pledges.list_expired(10**9, 10**9, 60) == []
    assert pledges.list_expired(10**9, 10**9, 61) == [B]
    assert pledges.list_expired(10**9, 10**9, 71) == [A, B]
    pledges.forget([B])
    assert pledges.list_expired(10**9, 10**9, 71) == [A]


def test_one_live_promise_keeps_the_matrix(pledges):
    over, live = make_pledge(certified=True), make_pledge(epoch=2, expires_at=5000, certified=True)
    pledges.note_chain([over, live, make_pledge(epoch=3)], None)
    pledges.mark_settled(over)
    assert pledges.list_expired(2000, 2000, 2000) == []
    assert pledges.prune(2000, 2000, 2000) == 2
    assert (pledges.count(), pledges.list_certified(None, 9)) == ((1, 0), [live])
    assert pledges.prune(6000, 6000, 6000) == 0, "the last one is never pruned: it says that rows are here"
    pledges.mark_settled(live)
    assert pledges.list_expired(6000, 6000, 6000) == [A]


def test_promises_of_one_matrix_do_not_add_up(pledges):
    """Anybody may ask for another term every second; while the matrix lived, every one of them stayed for ever."""
    pledges.note_chain([make_pledge(expires_at=10**6, certified=True)], None)
    pledges.note_chain([make_pledge(begins_at=begins_at) for begins_at in range(3000)], None)
    assert pledges.count() == (1, 3000)
    dropped = [pledges.prune(0, 2500, 0) for _ in range(4)]
    assert dropped == [store_module.PRUNED_MAX, store_module.PRUNED_MAX, 2500 - 2 * store_module.PRUNED_MAX, 0]
    assert pledges.count() == (1, 500)


def test_letting_go_is_bounded_ordered_and_ends(pledges):
    names = [number.to_bytes(32) for number in range(store_module.EXPIRED_MAX + 10)]
    pledges.note_chain(map(make_pledge, reversed(names)), None)
    first = pledges.list_expired(0, 101, 0)
    assert first == names[: store_module.EXPIRED_MAX]
    pledges.forget(first)
    assert pledges.list_expired(0, 101, 0) == names[store_module.EXPIRED_MAX :]
    assert pledges.count() == (0, 10)


def test_what_is_over_is_found_without_a_look_at_what_is_kept(pledges):
    """Once a second, under the guard that every write waits for."""
    for query in (store_module._EXPIRED, store_module._OUTLIVED, store_module._UNSETTLED):
        names = {"certified": 1, "begun": 1, "arrived": 1, "limit": 1}
        values = (1, -1, b"", -1, -1, 1) if query is store_module._UNSETTLED else names
        plan = [row[3] for row in pledges._journal.execute(f"EXPLAIN QUERY PLAN {query}", values)]
        scans = [step for step in plan if step.startswith(("SCAN pledges", "SCAN arrivals", "SCAN other"))]
        assert scans == [], plan


def test_counting_waits_for_nobody(pledges):
    """It is asked on the event loop, and the guard may be held for as long as a disk takes."""
    pledges.add(make_pledge())
    held, over = threading.Event(), threading.Event()

    def hold():
        with pledges.guard:
            held.set()
            over.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    answers = []
    asking = threading.Thread(target=lambda: answers.append(pledges.count()))
    asking.start()
    asking.join(5)
    over.set()
    holder.join()
    asking.join()
    assert answers == [(0, 1)]
    assert not asking.is_alive()


def test_a_full_disk_is_said_with_a_type_and_nothing_is_promised(pledges):
    fill_disk(pledges)
    names = iter(number.to_bytes(32) for number in range(10_000))

    def until_it_fails(write):
        """Writes until one is refused; how many were not, and what the refused one was about."""
        for count, name in enumerate(names):
            try:
                write(name)
            except RefusedFull as error:
                return count, name, str(error)
        raise AssertionError("the disk never was full")

    promised, refused, reason = until_it_fails(lambda name: pledges.add(make_pledge(name)))
    assert reason == "the disk is full; nothing was promised"
    assert (pledges.count(), pledges.is_pledged(refused)) == ((0, promised), False)
    _, _, reason = until_it_fails(lambda name: pledges.note_arrival(name, 1))
    assert reason == "the disk is full; an arrival was not noted"
    make_room(pledges)
    pledges.add(make_pledge(refused))
    assert (pledges.count(), pledges.is_pledged(refused)) == ((0, promised + 1), True)


def test_a_failing_disk_is_said_with_a_type_and_the_counts_stay_true(pledges, monkeypatch):
    pledges.note_chain([make_pledge(certified=True), make_pledge(B)], 5)
    real = store_module.transaction

    @contextlib.contextmanager
    def fail_to_commit(connection):
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        with real(connection) as begun:
            yield begun
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "transaction", fail_to_commit)
        for work in (
            lambda: pledges.add(make_pledge(C)),
            lambda: pledges.note_chain([make_pledge(B, certified=True)], 6),
            lambda: pledges.forget([A, B]),
            lambda: pledges.mark_settled(make_pledge(certified=True)),
            lambda: pledges.note_arrival(C, 1),
            lambda: pledges.prune(10**9, 10**9, 10**9),
        ):
            with pytest.raises(UnavailableDisk, match="disk I/O error"):
                work()
    assert (pledges.scanned, pledges.count(), pledges.is_pledged(C)) == (5, (1, 1), False)


# A plain model


CHALLENGE_S, COLLECT_S, ARRIVAL_S = 30, 60, 20
LONGEST_S = 100


@dataclass
class Model:
    """What may be gone and what may not, said as sets."""

    now: int = 1000
    arrivals: dict = field(default_factory=dict)
    pledges: dict = field(default_factory=dict)
    """(is certified, is settled) by attestation."""

    @property
    def times(self):
        return self.now - CHALLENGE_S, self.now - COLLECT_S, self.now - ARRIVAL_S

    def is_needed(self, said):
        certified, settled = self.pledges[said]
        if certified:
            return not settled or said.expires_at >= self.now - CHALLENGE_S
        return said.begins_at >= self.now - COLLECT_S

    def must_stay(self, commitment):
        is_promised = any(self.is_needed(said) for said in self.pledges if said.commitment == commitment)
        return is_promised or self.arrivals.get(commitment, -1) >= self.now - ARRIVAL_S

    @property
    def known(self):
        return {said.commitment for said in self.pledges} | self.arrivals.keys()

    def let_go(self):
        gone = {name for name in self.known if not self.must_stay(name)}
        self.arrivals = {name: at for name, at in self.arrivals.items() if name not in gone}
        self.pledges = {said: state for said, state in self.pledges.items() if said.commitment not in gone}
        self.pledges = {
            said: state
            for said, state in self.pledges.items()
            if self.is_needed(said) or not any(map(self.is_needed, self.others(said)))
        }
        return gone

    def others(self, said):
        return [other for other in self.pledges if other.commitment == said.commitment and other != said]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.sampled_from([A, B, C])),
        st.tuples(
            st.just("pledge"),
            st.sampled_from([A, B, C]),
            st.integers(1, 2),
            st.integers(-10, 10),
            st.integers(1, LONGEST_S),
        ),
        st.tuples(st.sampled_from(["certify", "settle"]), st.integers(0, 100)),
        st.tuples(st.just("pass"), st.integers(1, 60)),
        st.tuples(st.just("release")),
        st.tuples(st.just("restart")),
    ),
    max_size=40,
)


@settings(max_examples=50, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(steps=STEPS)
def test_any_history_lets_go_of_what_is_over_and_of_nothing_else(steps, tmp_path_factory):
    folder = tmp_path_factory.mktemp("history")
    model, rows = Model(), RowStore(folder / "rows", 1 << 20)
    pledges = PledgeStore(folder / "pledges.db")
    seats = {1: 0, 2: 4}

    def release_and_compare():
        before = {name for name, _ in rows.list_rows(None, 1000)}
        gone = model.let_go()
        assert release(pledges, rows, *model.times) == len(gone)
        assert {name for name, _ in rows.list_rows(None, 1000)} == before - gone
        kept = sum(certified for certified, _ in model.pledges.values())
        assert pledges.count() == (kept, len(model.pledges) - kept)

    for step in steps:
        match step:
            case ("arrive", commitment):
                with pledges.guard:
                    pledges.note_arrival(commitment, model.now)
                    rows.put_row(commitment, 0, b"row")
                model.arrivals[commitment] = model.now
            case ("pledge", commitment, epoch, lag, term):
                said = RowAttestation(commitment, epoch, model.now + lag, model.now + lag + term)
                if rows.get_row_size(commitment, 0) is not None:
                    pledges.add(Pledge(said, seats[epoch], 4, is_certified=False))
                    model.pledges.setdefault(said, (False, False))
            case ("certify", number) if model.pledges:
                said = list(model.pledges)[number % len(model.pledges)]
                pledges.note_chain([Pledge(said, seats[said.epoch], 4, is_certified=True)], number)
                model.pledges[said] = (True, model.pledges[said][1])
            case ("settle", number):
                over = pledges.list_unsettled(model.now, None, 100)
                expected = {
                    said
                    for said, state in model.pledges.items()
                    if state == (True, False) and said.expires_at < model.now
                }
                assert {pledge.attestation for pledge in over} == expected
                for pledge in over[: number % 3]:
                    pledges.mark_settled(pledge)
                    model.pledges[pledge.attestation] = (True, True)
            case ("pass", seconds):
                model.now += seconds
            case ("release",):
                release_and_compare()
            case ("restart",):
                pledges.close()
                pledges = PledgeStore(folder / "pledges.db")
    for said in list(model.pledges):
        model.pledges[said] = (model.pledges[said][0], True)
    model.now += LONGEST_S + CHALLENGE_S + COLLECT_S + 100
    for pledge in pledges.list_unsettled(model.now, None, 1000):
        pledges.mark_settled(pledge)
    release_and_compare()
    assert (model.known, pledges.count(), rows.list_rows(None, 9)) == (set(), (0, 0), [])
    pledges.close()
    rows.close()


def test_what_nobody_paid_for_is_counted_until_it_is_certified_or_gone(tmp_path):
    pledges = PledgeStore(tmp_path / "pledges.db")
    a, b = b"\x0a" * 32, b"\x0b" * 32
    pledges.note_arrival(a, 1000, 70)
    pledges.note_arrival(a, 1001, 30)
    pledges.note_arrival(b, 1001, 5)
    assert pledges.waiting_bytes == 105
    attestation = RowAttestation(a, 1, 1000, 5000)
    pledges.add(Pledge(attestation, 0, 2, is_certified=False))
    assert (pledges.waiting_bytes, pledges.is_certified(a)) == (105, False)
    pledges.close()
    pledges = PledgeStore(tmp_path / "pledges.db")
    assert pledges.waiting_bytes == 105
    pledges.note_chain((Pledge(attestation, 0, 2, is_certified=True),), 7)
    assert (pledges.waiting_bytes, pledges.is_certified(a)) == (5, True)
    pledges.note_chain((Pledge(attestation, 0, 2, is_certified=True),), 8)
    assert pledges.waiting_bytes == 5
    pledges.forget([b])
    assert pledges.waiting_bytes == 0
    pledges.close()
