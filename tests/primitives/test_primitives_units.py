"""Fees round up once; amounts read as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deaios.primitives.units import CREDIT, MILLION, compute_fee, format_credit

COUNT = st.integers(0, 10**7)
PRICE = st.integers(0, 10**12)


def test_fees_are_frozen():
    assert compute_fee(0, 0, CREDIT, 4 * CREDIT) == 0
    assert compute_fee(1, 0, 1, 0) == 1
    assert compute_fee(1000, 200, CREDIT, 4 * CREDIT) == 1800
    assert compute_fee(MILLION, MILLION, 3, 5) == 8


@given(COUNT, COUNT, PRICE, PRICE)
def test_fees_round_up_and_never_shrink(prompt, completion, input_price, output_price):
    fee = compute_fee(prompt, completion, input_price, output_price)
    exact = prompt * input_price + completion * output_price
    assert exact <= fee * MILLION < exact + MILLION
    assert compute_fee(prompt + 1, completion, input_price, output_price) >= fee
    assert compute_fee(prompt, completion + 1, input_price, output_price) >= fee


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0"),
        (CREDIT, "1"),
        (1_250_000, "1.25"),
        (1_500_000, "1.50"),
        (1, "0.000001"),
        (-250_000, "-0.25"),
        (1_234_567 * CREDIT + 100, "1,234,567.0001"),
    ],
)
def test_amounts_for_people(amount, text):
    assert format_credit(amount) == text
