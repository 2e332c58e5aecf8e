"""Gas that a transaction costs before any code runs, and the exact search for how much it needs.

Sources: Yellow Paper appendix G, EIP-2028, EIP-2930, EIP-3860. Knows no prices and no state.
"""

from collections.abc import Callable, Sequence

from deaios.ledger.transactions import AccessList

TRANSACTION_GAS = 21_000
CREATION_GAS = 32_000
ZERO_BYTE_GAS = 4
OTHER_BYTE_GAS = 16
INIT_CODE_WORD_GAS = 2
ACCESS_ADDRESS_GAS = 2_400
ACCESS_KEY_GAS = 1_900
SEARCH_STEPS_MAX = 64
"""A binary search over 64-bit gas ends sooner."""


def compute_intrinsic_gas(is_creation: bool, data: bytes, access_list: AccessList = ()) -> int:
    """Gas for being a transaction at all."""
    zeros = data.count(0)
    gas = TRANSACTION_GAS + ZERO_BYTE_GAS * zeros + OTHER_BYTE_GAS * (len(data) - zeros)
    if is_creation:
        gas += CREATION_GAS + INIT_CODE_WORD_GAS * -(-len(data) // 32)
    return gas + sum(ACCESS_ADDRESS_GAS + ACCESS_KEY_GAS * len(keys) for _, keys in access_list)


def search_gas(succeeds: Callable[[int], bool], low: int, high: int, guesses: Sequence[int]) -> int:
    """The least gas with which a message succeeds.

    Args:
        succeeds: runs the message with a gas limit.
        low: known or assumed to fail.
        high: known to succeed.
        guesses: tried first, because a good one ends the search or halves it many times over.
    """
    left = list(guesses)
    for _ in range(SEARCH_STEPS_MAX + len(guesses)):
        if high - low <= 1:
            break
        middle = left.pop(0) if left else (low + high) // 2
        if not low < middle < high:
            continue
        if succeeds(middle):
            high = middle
        else:
            low = middle
    return high
