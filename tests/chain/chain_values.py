"""Keys and transactions that several chain tests share. Not a test module."""

from deaios.ledger.transactions import DYNAMIC_FEE, Transaction, sign_transaction
from deaios.primitives.keys import Address, PrivateKey

OPERATOR = PrivateKey(b"\x0f" * 32)
USERS = tuple(PrivateKey(bytes([number]) * 32) for number in range(1, 7))
GWEI = 10**9


def transaction(key, chain_id, nonce, to, *, value=0, data=b"", gas=21_000, max_fee=3 * GWEI, tip=GWEI // 1000):
    """A signed EIP-1559 transaction."""
    receiver = None if to is None else Address(to)
    return sign_transaction(key, Transaction(DYNAMIC_FEE, chain_id, nonce, max_fee, tip, gas, receiver, value, data))


def transfer(key, chain_id, nonce, to, value):
    """Plain money."""
    return transaction(key, chain_id, nonce, to, value=value)
