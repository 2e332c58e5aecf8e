"""One 32-byte commitment to the whole state: an order-free multiset hash that each block updates by what it wrote.

LtHash16 (Lewi, Kim, Maykov, Weis: "Securing update propagation with homomorphic hashing", 2019; also Solana's accounts
hash): every entry expands to 1,024 sixteen-bit lanes by BLAKE3, entries are added lane by lane and old entries
subtracted. Equal states give equal commitments whatever path led there, and a follower can recompute one from a dump.

    account entry = 0x01 || address || uint64 nonce || uint256 balance || keccak-256 of the code
    slot entry    = 0x02 || address || uint256 slot || uint256 value          (big-endian)
    commitment    = tagged_sha256("deaios/chain/state/1", lanes as little-endian uint16)

Empty accounts and zero slots have no entry.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import blake3
import numpy as np
from numpy.typing import NDArray

from deaios.chain.evm import Account, Changes, State
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import tagged_sha256
from deaios.primitives.keys import Address

LANES = 1024
SIZE_BYTES = 2 * LANES
BATCH = 1024
"""Entries expanded at once: 2 MiB."""


def encode_account_entry(address: Address, account: Account) -> bytes:
    """The bytes that stand for an account in the multiset."""
    return encode_account_code_entry(address, account.nonce, account.balance, account.code_hash)


def encode_account_code_entry(address: Address, nonce: int, balance: int, code_hash: bytes) -> bytes:
    """The same from an account's fields, where its code is not at hand."""
    return b"\x01" + address + nonce.to_bytes(8) + balance.to_bytes(32) + code_hash


def encode_slot_entry(address: Address, slot: int, value: int) -> bytes:
    """The bytes that stand for a storage word in the multiset."""
    return b"\x02" + address + slot.to_bytes(32) + value.to_bytes(32)


class StateCommitment:
    """The running multiset hash."""

    def __init__(self, lanes: bytes = bytes(SIZE_BYTES)) -> None:
        """Start from saved lanes, or from the empty state."""
        if len(lanes) != SIZE_BYTES:
            raise Invalid(f"state commitment has {len(lanes)} bytes, {SIZE_BYTES} expected")
        self._lanes = np.frombuffer(lanes, dtype="<u2").copy()

    def updated(self, before: State, changes: Changes) -> "StateCommitment":
        """The commitment after the changes were applied to the state `before`."""
        new: list[bytes] = []
        old: list[bytes] = []
        for address, account in changes.accounts.items():
            if not (known := before.account(address)).is_empty:
                old.append(encode_account_entry(address, known))
            if not account.is_empty:
                new.append(encode_account_entry(address, account))
        for (address, slot), value in changes.slots.items():
            if previous := before.slot(address, slot):
                old.append(encode_slot_entry(address, slot, previous))
            if value:
                new.append(encode_slot_entry(address, slot, value))
        after = self.added(new)
        for batch in batched(old):
            after._lanes -= _sum_lanes(batch)
        return after

    def added(self, entries: Iterable[bytes]) -> "StateCommitment":
        """The commitment with these entries put in."""
        after = StateCommitment(self.encode())
        for batch in batched(entries):
            after._lanes += _sum_lanes(batch)
        return after

    def encode(self) -> bytes:
        """The lanes, 2,048 bytes."""
        return self._lanes.astype("<u2").tobytes()

    def digest(self) -> bytes:
        """The 32 bytes that a header carries."""
        return tagged_sha256("deaios/chain/state/1", self.encode())


def batched(entries: Iterable[bytes]) -> Iterator[Sequence[bytes]]:
    """Entries in groups of up to `BATCH`."""
    rest = iter(entries)
    while batch := list(islice(rest, BATCH)):
        yield batch


def _sum_lanes(entries: Sequence[bytes]) -> NDArray[np.uint16]:
    """(1024,) uint16: the entries' lanes together, in one pass over all of them."""
    expanded = b"".join([blake3.blake3(entry).digest(length=SIZE_BYTES) for entry in entries])
    lanes = np.frombuffer(expanded, dtype="<u2").reshape(len(entries), LANES)
    total: NDArray[np.uint16] = lanes.sum(axis=0, dtype=np.uint16)
    return total
