"""Window mode as rules: numbers are used once, and a payer's risk is bounded, in whatever order things happen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deaios.market.x402_window import REORDER_MAX, Payer, RefusedReplay, RefusedRoom, Seen


@given(st.lists(st.integers(1, 3 * REORDER_MAX), max_size=60))
def test_a_number_is_used_once(numbers):
    seen, used = Seen(), set()
    for number in numbers:
        is_old = used and number <= max(used) - REORDER_MAX
        if number in used or is_old:
            with pytest.raises(RefusedReplay):
                seen.use(number)
        else:
            seen = seen.use(number)
            used.add(number)


@given(st.integers(0, 1 << 40), st.integers(1, REORDER_MAX))
def test_after_a_restart_only_new_numbers_are_taken(written, ahead):
    seen = Seen.after_restart(written)
    with pytest.raises(RefusedReplay):
        seen.use(written)
    assert seen.use(written + ahead).highest == written + ahead


@given(
    window=st.integers(0, 100),
    deposit=st.integers(0, 150),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 50)), max_size=40),
)
def test_a_payer_never_signs_beyond_its_window(window, deposit, steps):
    payer, running = Payer(window, deposit), []
    for is_new, amount, cost in steps:
        if is_new:
            try:
                payer = payer.open(amount)
                running.append(amount)
            except RefusedRoom:
                continue
        elif running:
            quote = running.pop()
            if cost > quote:
                with pytest.raises(RefusedRoom):
                    payer.close(quote, cost)
                running.append(quote)
            else:
                payer = payer.close(quote, cost)
        assert payer.signed - payer.settled <= window
        assert payer.settled + payer.reserved <= payer.signed <= deposit
        assert payer.reserved == sum(running)
