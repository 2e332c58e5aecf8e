"""What x402 payers promised and paid: one SQLite journal beside the keys'.

Invariants: a voucher is on disk before anything is served for it; what a payer was told it owes never falls but by a
refund; a payment that was taken has a row until it was served for or given back. What requests really cost is not here:
every channel, and every exact payment, is a key of `KeyStore`, whose `spent` is that.
"""

import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import msgspec

from deaios.ledger.client.settlement import SettlementChannel
from deaios.ledger.structs import ChannelConfig
from deaios.ledger.x402 import TransferWithAuthorization
from deaios.market.x402 import decode_config, encode_config
from deaios.primitives.keys import Address
from deaios.runtime.journal import open_journal, transaction

_MIGRATIONS = (
    """
    CREATE TABLE channels (
        channel_id BLOB PRIMARY KEY,
        config BLOB NOT NULL,
        signed INTEGER NOT NULL CHECK (signed >= 0),
        signature BLOB NOT NULL,
        charged INTEGER NOT NULL CHECK (charged >= 0),
        sequence INTEGER NOT NULL,
        balance INTEGER NOT NULL,
        total_claimed INTEGER NOT NULL,
        withdrawing INTEGER NOT NULL,
        withdraw_started_at INTEGER NOT NULL,
        refund_nonce INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE payments (
        payer BLOB NOT NULL,
        nonce BLOB NOT NULL,
        receiver BLOB NOT NULL,
        value INTEGER NOT NULL CHECK (value >= 0),
        valid_after INTEGER NOT NULL,
        valid_before INTEGER NOT NULL,
        state TEXT NOT NULL,
        settled BLOB,
        returned BLOB,
        at_ms INTEGER NOT NULL,
        PRIMARY KEY (payer, nonce)
    ) STRICT;
    CREATE INDEX payments_open ON payments (state) WHERE state IN ('paying', 'paid', 'owed');
    """,
)
_CHANNEL = (
    "channel_id, config, signed, signature, charged, sequence, "
    "balance, total_claimed, withdrawing, withdraw_started_at, refund_nonce"
)
_PAYMENT = "payer, receiver, value, valid_after, valid_before, nonce, state, settled, returned, at_ms"


class PaymentState(StrEnum):
    """How far an exact payment is."""

    PAYING = "paying"
    """On its way to the chain: taken or not, nobody knows yet."""
    PAID = "paid"
    SERVED = "served"
    OWED = "owed"
    """Taken and not served for: it goes back."""
    RETURNED = "returned"
    DROPPED = "dropped"
    """It never was taken, and cannot be any more."""


@dataclass(frozen=True, slots=True)
class ChannelRow:
    """One payer's channel.

    Attributes:
        signed: amount of the highest voucher, whose `signature` this is.
        charged: what the payer was told that it owes: what its next voucher starts from.
        sequence: request numbers up to here may have been used (window mode).
        chain: the contract's side, as last seen.
    """

    channel_id: bytes
    config: ChannelConfig
    signed: int = 0
    signature: bytes = b""
    charged: int = 0
    sequence: int = 0
    chain: SettlementChannel = field(default_factory=SettlementChannel)


@dataclass(frozen=True, slots=True)
class PaymentRow:
    """One exact payment; `settled` and `returned` are hashes of the transactions that took it and gave it back."""

    authorization: TransferWithAuthorization
    state: PaymentState
    settled: bytes | None
    returned: bytes | None
    at_ms: int


class PaymentStore:
    """The journal. Its methods block; writes wait for the disk. `find_…` are for the event loop's thread only."""

    def __init__(self, reader: sqlite3.Connection, writer: sqlite3.Connection) -> None:
        self._reader = reader
        self._writer = writer
        self._writing = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or create the journal."""
        writer = open_journal(path, _MIGRATIONS)
        return cls(open_journal(path, _MIGRATIONS), writer)

    def close(self) -> None:
        """Close both connections, after a write that a thread is in."""
        with self._writing:
            self._reader.close()
            self._writer.close()

    def find_channel(self, channel_id: bytes) -> ChannelRow | None:
        """A channel that paid here before."""
        row = self._reader.execute(
            f"SELECT {_CHANNEL} FROM channels WHERE channel_id = ?",  # noqa: S608 # a constant
            (channel_id,),
        ).fetchone()
        return None if row is None else _build_channel(row)

    def list_channels(self) -> list[ChannelRow]:
        """Every channel that may hold money."""
        query = f"SELECT {_CHANNEL} FROM channels WHERE balance > total_claimed ORDER BY channel_id"  # noqa: S608 # a constant
        with self._writing:
            rows = self._writer.execute(query).fetchall()
        return [_build_channel(row) for row in rows]

    def keep_channels(self, rows: Sequence[ChannelRow]) -> None:
        """Write channels; on return they are on disk."""
        marks = ",".join("?" * 11)
        with self._writing, transaction(self._writer) as connection:
            connection.executemany(
                f"INSERT OR REPLACE INTO channels ({_CHANNEL}) VALUES ({marks})",  # noqa: S608 # constants
                [_encode_channel(row) for row in rows],
            )

    def begin_payment(self, authorization: TransferWithAuthorization, now_ms: int) -> bool:
        """Note a payment before it is sent to the chain; False where it is known already."""
        values = (
            authorization.from_,
            authorization.to,
            authorization.value,
            authorization.valid_after,
            # SQLite's integers end at 2^63 - 1; nobody waits that long.
            min(authorization.valid_before, (1 << 63) - 1),
            authorization.nonce,
            PaymentState.PAYING,
            now_ms,
        )
        with self._writing, transaction(self._writer) as connection:
            cursor = connection.execute(
                "INSERT INTO payments (payer, receiver, value, valid_after, valid_before, nonce, state, at_ms) "
                "VALUES (?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
                values,
            )
            return cursor.rowcount > 0

    def move_payment(
        self,
        payer: Address,
        nonce: bytes,
        state: PaymentState,
        *,
        settled: bytes | None = None,
        returned: bytes | None = None,
    ) -> None:
        """Note how far a payment is."""
        with self._writing, transaction(self._writer) as connection:
            connection.execute(
                "UPDATE payments SET state = ?, settled = coalesce(?, settled), returned = coalesce(?, returned) "
                "WHERE payer = ? AND nonce = ?",
                (state, settled, returned, payer, nonce),
            )

    def find_payment(self, payer: Address, nonce: bytes) -> PaymentRow | None:
        """A payment by what makes it its payer's only one."""
        row = self._reader.execute(
            f"SELECT {_PAYMENT} FROM payments WHERE payer = ? AND nonce = ?",  # noqa: S608 # a constant
            (payer, nonce),
        ).fetchone()
        return None if row is None else _build_payment(row)

    def list_payments(self, state: PaymentState, count_max: int) -> list[PaymentRow]:
        """Payments in a state, oldest first."""
        query = f"SELECT {_PAYMENT} FROM payments WHERE state = ? ORDER BY at_ms LIMIT ?"  # noqa: S608 # a constant
        with self._writing:
            rows = self._writer.execute(query, (state, count_max)).fetchall()
        return [_build_payment(row) for row in rows]


def _encode_channel(row: ChannelRow) -> tuple[object, ...]:
    chain = row.chain
    money = (chain.balance, chain.total_claimed, chain.withdrawing, chain.withdraw_started_at, chain.refund_nonce)
    config = msgspec.json.encode(encode_config(row.config))
    return (row.channel_id, config, row.signed, row.signature, row.charged, row.sequence, *money)


def _build_channel(row: tuple[Any, ...]) -> ChannelRow:  # Any: STRICT tables hold the declared types
    channel_id, config, signed, signature, charged, sequence, *money = row
    chain = SettlementChannel(*money)
    return ChannelRow(channel_id, decode_config(config), signed, signature, charged, sequence, chain)


def _build_payment(row: tuple[Any, ...]) -> PaymentRow:  # Any: as above
    payer, receiver, value, valid_after, valid_before, nonce, state, settled, returned, at_ms = row
    terms = TransferWithAuthorization(Address(payer), Address(receiver), value, valid_after, valid_before, nonce)
    return PaymentRow(terms, PaymentState(state), settled, returned, at_ms)
