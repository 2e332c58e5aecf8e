"""Money and milli-units. Money is an int of the token's smallest unit, never a float."""

CREDIT_DECIMALS = 6
CREDIT = 10**CREDIT_DECIMALS
"""One credit in its smallest unit."""

MILLI = 1000
MILLION = 1_000_000


def format_credit(amount: int) -> str:
    """An amount for people: `1.25` credit; all six digits only where they matter."""
    sign, amount = ("-", -amount) if amount < 0 else ("", amount)
    whole, part = divmod(amount, CREDIT)
    digits = f"{part:06d}".rstrip("0")
    return f"{sign}{whole:,}" + (f".{digits:0<2}" if digits else "")


def compute_fee(prompt_tokens: int, completion_tokens: int, input_price: int, output_price: int) -> int:
    """Fee in the smallest unit, rounded up once.

    Args:
        prompt_tokens: tokens read.
        completion_tokens: tokens sampled, the stopping one included.
        input_price: smallest units per million prompt tokens.
        output_price: smallest units per million sampled tokens.
    """
    return -(-(prompt_tokens * input_price + completion_tokens * output_price) // MILLION)
