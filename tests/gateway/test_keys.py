"""Keys, their store and their budgets: nothing secret on disk, nothing spent twice, nothing overdrawn."""

import asyncio
import sqlite3
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deaios.gateway.budgets import Budgets, UnavailableLedger
from deaios.gateway.errors import InternalFault, RefusedBudget
from deaios.gateway.keys import KEY_PREFIX, build_key_text, derive_draws, hash_key
from deaios.gateway.store import Charge, InvalidKeyTerms, KeyStore
from deaios.primitives.keys import Address
from deaios.runtime.errors import NotFound

PEPPER = b"p" * 32


@pytest.fixture
def store(tmp_path):
    opened = KeyStore.open(tmp_path / "keys.sqlite", PEPPER)
    yield opened
    opened.close()


def charge_of(key_id, amount, answer="a", provider=None, counter=None, **more):
    return Charge(answer, key_id, amount, 1, 2, 3, provider, counter, **more)


def test_a_key_is_found_by_its_text_only_and_its_text_is_nowhere_on_disk(tmp_path, counting_dice):
    path = tmp_path / "keys.sqlite"
    store = KeyStore.open(path, PEPPER)
    text, record = store.create(counting_dice, 5, name="one", budget=10, models=["m"], expires_at_ms=9)
    assert text.startswith(KEY_PREFIX)
    assert store.find(text) == store.get(record.key_id) == record
    assert store.find(text[:-1]) is store.find("") is store.find("\ud800") is None
    store.close()
    files = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert text.removeprefix(KEY_PREFIX).encode() not in files
    other = KeyStore.open(path, b"q" * 32)
    assert other.find(text) is None
    other.close()


def test_the_frozen_form_of_key_hash_and_draws():
    text = build_key_text(bytes(range(32)))
    assert text == "sk-deaios-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    assert hash_key(text, PEPPER).hex() == "adeab6771d960bb1ac5d471ef17ee544d824ec870160b5045e3241d122eea9fb"
    draws = derive_draws(text, -1, b"{}")
    assert (draws.client_nonce.hex()[:16], draws.nonce.hex()[:16], draws.salt.hex()[:16]) == (
        "19e4d2aa11101402",
        "619bcb890962d3b7",
        "843d7eb9ef92ef8b",
    )


def test_terms_out_of_bounds_are_refused(store, counting_dice):
    for terms in (
        {"name": ""},
        {"name": "a\n"},
        {"name": "x" * 129},
        {"name": "x", "budget": -1},
        {"name": "x", "models": []},
    ):
        with pytest.raises(InvalidKeyTerms):
            store.create(counting_dice, 0, **terms)
    assert store.list_keys() == []


def test_charges_survive_and_count_once(tmp_path, counting_dice):
    store = KeyStore.open(tmp_path / "k.sqlite", PEPPER)
    _, record = store.create(counting_dice, 0, name="one", budget=100)
    provider = Address(b"\x01" * 20)
    assert store.charge([charge_of(record.key_id, 30, "a", provider, 1)]) == [True]
    assert store.charge([charge_of(record.key_id, 30, "a", provider, 2)]) == [False]
    assert store.charge([charge_of(record.key_id, 30, "b", provider, 1)]) == [False]
    assert store.charge([charge_of(record.key_id, 5, "c")]) == [True]
    assert store.charge([charge_of(record.key_id, 5, "d")]) == [True]
    store.close()
    store = KeyStore.open(tmp_path / "k.sqlite", PEPPER)
    assert store.get(record.key_id).spent == 40
    assert [charge.answer_id for charge in store.list_charges(record.key_id, 2)] == ["a", "c"]
    store.close()


def amounts_of(store, key_id):
    return {charge.answer_id: charge.amount for charge in store.list_charges(key_id, 99)}


def test_a_repetition_costs_what_it_is_above_the_attempts_before_it(store, counting_dice):
    _, record = store.create(counting_dice, 0, name="one", budget=100)
    store.charge([charge_of(record.key_id, 30, "first")])
    store.charge([charge_of(record.key_id, 20, "second", repeats="first")])
    store.charge([charge_of(record.key_id, 36, "third", repeats="second")])
    assert amounts_of(store, record.key_id) == {"first": 30, "second": 0, "third": 6}
    assert store.get(record.key_id).spent == 36
    store.charge([charge_of(record.key_id, 10, "unknown", repeats="nothing")])
    assert store.get(record.key_id).spent == 46


def test_a_charge_counts_for_so_many_repetitions_and_no_more(store, counting_dice):
    _, record = store.create(counting_dice, 0, name="one")
    for number in range(5):
        store.charge([charge_of(record.key_id, 10, str(number), repeats=str(number - 1))])
    assert amounts_of(store, record.key_id) == {"0": 10, "1": 0, "2": 0, "3": 10, "4": 0}


def test_a_correction_rights_what_repeats_it(store, counting_dice):
    _, record = store.create(counting_dice, 0, name="one", budget=100)
    store.charge([charge_of(record.key_id, 30, "first", purchase=b"p")])
    store.charge([charge_of(record.key_id, 36, "second", repeats="first")])
    store.charge([charge_of(record.key_id, 40, "third", repeats="second")])
    store.correct("first", 0, None, None)
    assert amounts_of(store, record.key_id) == {"first": 0, "second": 36, "third": 4}
    assert store.get(record.key_id).spent == 40
    store.correct("first", 50, None, None)
    assert store.get(record.key_id).spent == 40, "a final charge stays"


@given(
    attempts=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.booleans()), min_size=1, max_size=6),
    data=st.data(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_attempts_within_reach_cost_the_dearest_of_them_whenever_receipts_come(
    tmp_path_factory, counting_dice, attempts, data
):
    """Corrections in any order, between or after the repetitions."""
    store = KeyStore.open(tmp_path_factory.mktemp("keys") / "k.sqlite", PEPPER)
    _, record = store.create(counting_dice, 0, name="one")
    attempts = attempts[:3]
    waiting, costs = {}, {}
    for number, (first, final, is_provisional) in enumerate(attempts):
        purchase = bytes([number]) if is_provisional else None
        store.charge([charge_of(record.key_id, first, str(number), repeats=str(number - 1), purchase=purchase)])
        costs[number] = first
        if is_provisional:
            waiting[number] = final
        while waiting and data.draw(st.booleans()):
            chosen = data.draw(st.sampled_from(sorted(waiting)))
            costs[chosen] = waiting.pop(chosen)
            store.correct(str(chosen), costs[chosen], None, None)
        assert store.get(record.key_id).spent == max(costs.values()) == sum(amounts_of(store, record.key_id).values())
    store.close()


def test_closing_waits_for_a_write_in_another_thread(tmp_path, counting_dice):
    keys = KeyStore.open(tmp_path / "keys.db", b"p" * 32)
    _, record = keys.create(counting_dice, 0, name="k")
    other = sqlite3.connect(tmp_path / "keys.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    charged = []
    writing = threading.Thread(
        target=lambda: charged.extend(keys.charge([Charge("a", record.key_id, 5, 1, 1, 1)])), daemon=True
    )
    writing.start()
    while not keys._writing.locked():
        writing.join(0.001)
    closing = threading.Thread(target=keys.close, daemon=True)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    other.execute("ROLLBACK")
    writing.join()
    closing.join()
    assert charged == [True]
    assert other.execute("SELECT spent FROM keys").fetchone() == (5,)
    other.close()


def test_a_lowered_budget_is_never_exceeded(store, counting_dice):
    _, record = store.create(counting_dice, 0, name="one", budget=100)
    store.charge([charge_of(record.key_id, 30)])
    with pytest.raises(InvalidKeyTerms):
        store.set_budget(record.key_id, 29)
    store.set_budget(record.key_id, 40)
    store.charge([charge_of(record.key_id, 30, "late")])
    assert store.get(record.key_id).spent == 40


def test_unknown_keys_are_not_found(store):
    for call in (store.get, lambda key: store.revoke(key, 1), lambda key: store.set_budget(key, 1)):
        with pytest.raises(NotFound):
            call("key_none")


async def test_a_reservation_counts_until_the_charge_is_on_disk(store, counting_dice):
    _, record = store.create(counting_dice, 0, name="one", budget=100)
    budgets = Budgets(store)
    first = budgets.reserve(record.key_id, 60)
    with pytest.raises(RefusedBudget):
        budgets.reserve(record.key_id, 41)
    second = budgets.reserve(record.key_id, 40)
    await asyncio.gather(
        budgets.settle(first, charge_of(record.key_id, 10, "a")),
        budgets.settle(second, charge_of(record.key_id, 0, "b")),
    )
    assert (budgets.reserved(record.key_id), store.get(record.key_id).spent) == (0, 10)
    budgets.release(budgets.reserve(record.key_id, 90))


async def test_a_failed_write_gives_the_reservation_back(store, counting_dice):
    _, record = store.create(counting_dice, 0, name="one", budget=100)
    budgets = Budgets(store)
    store._writer.execute("PRAGMA query_only=ON")
    with pytest.raises(UnavailableLedger):
        await budgets.settle(budgets.reserve(record.key_id, 60), charge_of(record.key_id, 10))
    assert (budgets.reserved(record.key_id), store.get(record.key_id).spent) == (0, 0)


async def test_a_fault_of_ours_fails_its_own_charges_and_no_others(store, counting_dice, monkeypatch):
    """Not as if the client had gone, and those that came meanwhile are written."""
    _, record = store.create(counting_dice, 0, name="one", budget=100)
    budgets = Budgets(store)
    begun, may_fail = threading.Event(), threading.Event()
    charge = store.charge

    def fail_once(charges):
        monkeypatch.setattr(store, "charge", charge)
        begun.set()
        assert may_fail.wait(20)
        raise TypeError("a bug")

    monkeypatch.setattr(store, "charge", fail_once)
    faulty = asyncio.create_task(budgets.settle(budgets.reserve(record.key_id, 60), charge_of(record.key_id, 10, "a")))
    assert await asyncio.to_thread(begun.wait, 20)
    queued = asyncio.create_task(budgets.settle(budgets.reserve(record.key_id, 20), charge_of(record.key_id, 7, "b")))
    await asyncio.sleep(0)
    may_fail.set()
    with pytest.raises(InternalFault):
        await faulty
    async with asyncio.timeout(20):
        assert await queued
    assert (budgets.reserved(record.key_id), store.get(record.key_id).spent) == (0, 7)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 100)), max_size=12), st.integers(0, 120))
def test_no_sequence_of_answers_overdraws(store, counting_dice, answers, budget):
    async def run():
        _, record = store.create(counting_dice, 0, name="one", budget=budget)
        budgets, running = Budgets(store), []
        for number, (most, share) in enumerate(answers):
            try:
                reservation = budgets.reserve(record.key_id, most)
            except RefusedBudget:
                if running:
                    await running.pop(0)
                continue
            charge = charge_of(record.key_id, most * share // 100, f"{record.key_id}/{number}")
            running.append(budgets.settle(reservation, charge))
            now = store.get(record.key_id)
            assert now.spent + budgets.reserved(record.key_id) <= budget
        await asyncio.gather(*running)
        assert store.get(record.key_id).spent <= budget
        assert budgets.reserved(record.key_id) == 0

    asyncio.run(run())
