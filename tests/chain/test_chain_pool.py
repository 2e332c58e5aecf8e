import pytest
from chain_values import GWEI, USERS, transaction
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from deaios.chain.evm import Account, State
from deaios.chain.pool import AlreadyKnown, InvalidForPool, Pool, PoolLimits, RefusedByPool

CHAIN_ID = 5
TO = b"\x44" * 20
ETHER = 10**18
BLOCK_GAS = 30_000_000


def state_of(**nonces):
    state = State()
    for index, user in enumerate(USERS):
        state.accounts[user.address] = Account(nonces.get(f"u{index}", 0), ETHER)
    return state


def fresh(limits=None):
    return Pool(limits or PoolLimits(), BLOCK_GAS)


def send(pool, state, user=0, nonce=0, base_fee=1, **fields):
    signed = transaction(USERS[user], CHAIN_ID, nonce, fields.pop("to", TO), **fields)
    pool.add(signed, USERS[user].address, state, base_fee)
    return signed


def drain(pool, state, base_fee=1, gas=BLOCK_GAS):
    candidates = pool.candidates(state, base_fee)
    taken = []
    while waiting := candidates.take(gas):
        gas -= waiting.transaction.gas
        taken.append(waiting.transaction)
        candidates.follow(waiting)
    return taken


def test_nonces_run_in_order_and_gaps_wait():
    pool, state = fresh(), state_of()
    second, fourth = send(pool, state, nonce=1), send(pool, state, nonce=3)
    assert not pool.has_work(state)
    assert drain(pool, state) == []
    first = send(pool, state, nonce=0)
    assert pool.has_work(state)
    assert pool.pending_nonce(USERS[0].address, state) == 2
    assert drain(pool, state) == [first, second]
    assert pool.get(fourth.hash) is not None


def test_tips_order_senders_and_arrival_breaks_ties():
    pool, state = fresh(), state_of()
    low = send(pool, state, user=0, tip=1)
    first, second = send(pool, state, user=1, tip=9), send(pool, state, user=2, tip=9)
    behind = send(pool, state, user=0, nonce=1, tip=100)
    assert drain(pool, state) == [first, second, low, behind]


def test_what_the_base_fee_outgrew_waits_for_it_to_fall():
    pool, state = fresh(), state_of()
    cheap = send(pool, state, max_fee=50, tip=1, base_fee=50)
    assert drain(pool, state, base_fee=51) == []
    assert pool.has_work(state)
    assert drain(pool, state, base_fee=49) == [cheap]


def test_a_block_passes_over_what_does_not_fit():
    pool, state = fresh(), state_of()
    send(pool, state, user=0, gas=60_000, tip=9)
    small = send(pool, state, user=1, gas=21_000, tip=1)
    assert drain(pool, state, gas=50_000) == [small]


def test_replacements_pay_a_tenth_more():
    pool, state = fresh(), state_of()
    old = send(pool, state, max_fee=100 * GWEI, tip=100)
    for max_fee, tip in ((109 * GWEI, 110), (110 * GWEI, 109), (100 * GWEI, 100)):
        with pytest.raises(RefusedByPool, match="replacement transaction underpriced"):
            send(pool, state, max_fee=max_fee, tip=tip, value=1)
    new = send(pool, state, max_fee=110 * GWEI, tip=110)
    assert drain(pool, state) == [new]
    assert (pool.get(old.hash), len(pool)) == (None, 1)


def test_free_transactions_are_not_replaced_for_free():
    pool, state = fresh(), state_of()
    send(pool, state, max_fee=10, tip=0)
    with pytest.raises(RefusedByPool, match="tip 0, at least 1 needed"):
        send(pool, state, max_fee=11, tip=0)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"nonce": 1}, InvalidForPool, "nonce too low: next nonce 2, tx nonce 1"),
        ({"gas": 20_999}, InvalidForPool, "intrinsic gas too low: gas 20999, minimum needed 21000"),
        ({"gas": BLOCK_GAS + 1}, InvalidForPool, "exceeds block gas limit: gas 30000001, limit 30000000"),
        (
            {"value": ETHER},
            InvalidForPool,
            r"insufficient funds for gas \* price \+ value: balance 1000000000000000000",
        ),
        ({"max_fee": 6, "tip": 1}, RefusedByPool, "max fee per gas less than block base fee"),
        ({"to": None, "data": bytes(49_153), "gas": 9_000_000}, InvalidForPool, "max initcode size exceeded"),
        ({"nonce": 2 + 4_096}, RefusedByPool, "account limit exceeded"),
        ({"nonce": (1 << 64) - 2}, RefusedByPool, "account limit exceeded"),
    ],
    ids=["nonce", "intrinsic", "block-gas", "funds", "base-fee", "initcode", "gap", "last-nonce"],
)
def test_refusals_carry_geths_words(fields, error, message):
    with pytest.raises(error, match=message):
        send(fresh(), state_of(u0=2), **{"nonce": 2, "base_fee": 7} | fields)


def test_the_same_bytes_twice():
    pool, state = fresh(), state_of()
    send(pool, state)
    with pytest.raises(AlreadyKnown, match="already known"):
        send(pool, state)


def test_the_balance_covers_everything_that_waits():
    pool, state = fresh(), state_of()
    send(pool, state, value=ETHER // 2)
    with pytest.raises(InvalidForPool, match="cost of all waiting"):
        send(pool, state, nonce=1, value=ETHER // 2)
    send(pool, state, nonce=1, value=ETHER // 4)


def test_a_sender_has_its_share_and_no_more():
    state = state_of()
    with pytest.raises(RefusedByPool, match="account limit exceeded"):
        send(fresh(PoolLimits(per_sender=1)), state, nonce=1)
    with pytest.raises(RefusedByPool, match="txpool is full: 0 transactions"):
        send(fresh(PoolLimits(size_bytes=300)), state, data=bytes(300), gas=100_000)


def add(pool, state, user, base_fee=1, **fields):
    """Admit one and return (it, hashes that it displaced)."""
    signed = transaction(USERS[user], CHAIN_ID, fields.pop("nonce", 0), TO, **fields)
    waiting, displaced = pool.add(signed, USERS[user].address, state, base_fee)
    assert waiting.transaction == signed
    return signed, [(item.waiting.transaction.hash, item.reason) for item in displaced]


def test_a_full_pool_gives_the_cheapest_last_place_to_who_pays_a_tenth_more():
    pool, state = fresh(PoolLimits(transactions=3)), state_of()
    first, _ = add(pool, state, 0, tip=100)
    last, _ = add(pool, state, 0, nonce=1, tip=500)
    other, _ = add(pool, state, 1, tip=300)
    # The cheapest of all, `first`, stays: without it `last` could not run.
    with pytest.raises(RefusedByPool, match=r"txpool is full: 3 transactions.*underpriced: tip 329 is not 10 % above"):
        add(pool, state, 2, tip=329)
    assert {item.transaction.hash for item in pool} == {first.hash, last.hash, other.hash}
    dear, displaced = add(pool, state, 2, tip=330)
    assert displaced == [(other.hash, f"evicted from a full pool by 0x{dear.hash.hex()}, which pays more")]
    assert drain(pool, state) == [dear, first, last]


def test_who_waits_behind_a_missing_nonce_or_below_the_base_fee_goes_first():
    pool, state = fresh(PoolLimits(transactions=2)), state_of()
    stranded, _ = add(pool, state, 0, nonce=1, tip=10**9)
    unpayable, _ = add(pool, state, 1, max_fee=50, tip=50)
    with pytest.raises(RefusedByPool, match="underpriced"):
        add(pool, state, 2, nonce=5, base_fee=60, tip=10**9)  # stranded itself, and no dearer than the other
    assert add(pool, state, 2, base_fee=60, tip=0)[1][0][0] == stranded.hash
    assert add(pool, state, 0, base_fee=60, tip=0)[1][0][0] == unpayable.hash


def test_bytes_are_made_room_for_too_and_a_refusal_takes_nothing():
    pool, state = fresh(PoolLimits(size_bytes=600)), state_of()
    small = [add(pool, state, user, tip=user + 1, data=bytes(20), gas=30_000)[0] for user in range(3)]
    with pytest.raises(RefusedByPool, match="underpriced"):
        add(pool, state, 3, tip=3, data=bytes(450), gas=50_000)
    assert len(pool) == 3
    _, displaced = add(pool, state, 3, tip=100, data=bytes(450), gas=50_000)
    assert [found for found, _ in displaced] == [item.hash for item in small]


def test_nobody_evicts_its_own():
    pool, state = fresh(PoolLimits(transactions=1)), state_of()
    add(pool, state, 0, tip=1)
    with pytest.raises(RefusedByPool, match="txpool is full"):
        add(pool, state, 0, nonce=1, tip=1000)


class PoolMachine(RuleBasedStateMachine):
    """Whatever is admitted, replaced, included: counts, costs and order stay right."""

    def __init__(self):
        super().__init__()
        self.pool, self.state = fresh(PoolLimits(transactions=12, per_sender=5)), state_of()

    @rule(
        user=st.integers(0, 2), ahead=st.integers(-1, 5), fee=st.integers(1, 5), value=st.sampled_from([0, ETHER // 3])
    )
    def arrive(self, user, ahead, fee, value):
        nonce = max(0, self.state.account(USERS[user].address).nonce + ahead)
        try:
            send(self.pool, self.state, user, nonce, max_fee=fee * GWEI, tip=fee, value=value)
        except (InvalidForPool, RefusedByPool):
            return

    @rule(gas=st.sampled_from([21_000, 63_000, BLOCK_GAS]), base_fee=st.integers(1, 4 * GWEI))
    def include(self, gas, base_fee):
        for item in drain(self.pool, self.state, base_fee, gas):
            sender = next(user.address for user in USERS if self.pool.get(item.hash).sender == user.address)
            account = self.state.account(sender)
            assert item.nonce == account.nonce
            assert item.max_fee >= base_fee
            assert account.balance >= item.gas * item.max_fee + item.value
            self.state.accounts[sender] = Account(
                account.nonce + 1, account.balance - item.gas * item.max_fee - item.value
            )
            self.pool.settle(sender, account.nonce + 1)

    @invariant()
    def sums_agree(self):
        waiting = list(self.pool)
        assert len(waiting) == len(self.pool) <= 12
        assert self.pool._size_bytes == sum(len(item.transaction.raw) for item in waiting)
        for user in USERS[:3]:
            own = [item for item in waiting if item.sender == user.address]
            assert self.pool._cost.get(user.address, 0) == sum(item.cost for item in own)
            assert sum(item.cost for item in own) <= self.state.account(user.address).balance


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
