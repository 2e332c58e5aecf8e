"""The provider's journal: what it promised and signed survives `kill -9`.

Invariants on disk: a purchase is admitted before its first token is sent; a receipt, its counter, its output and its
charge are one row set written together before the receipt is signed (signatures are deterministic, RFC 6979, so they
need no row of their own); counters have no gaps; a batch is planned on disk before it is sent to the chain.
"""

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deaios.ledger.eip712 import decode_json, hash_struct
from deaios.ledger.structs import Batch, ChannelConfig, Offer, Receipt
from deaios.market.channel import SellerChannel
from deaios.market.offers import SignedOffer
from deaios.market.receipts import FIRST_LINK, Link
from deaios.market.seller.sales import Sales
from deaios.market.store import Journal, UnavailableJournal, spell
from deaios.primitives.keys import Address

SELLER_MIGRATIONS = (
    """
    CREATE TABLE offers (digest BLOB PRIMARY KEY, offer TEXT NOT NULL, signature BLOB NOT NULL,
                         valid_until INTEGER NOT NULL);
    CREATE TABLE channels (channel_id BLOB PRIMARY KEY, config TEXT NOT NULL, signed TEXT NOT NULL,
                           voucher_signature BLOB NOT NULL, charged TEXT NOT NULL);
    CREATE TABLE purchases (request_digest BLOB PRIMARY KEY, channel_id BLOB NOT NULL, papers BLOB,
                            offer_digest BLOB NOT NULL, quote TEXT NOT NULL, admitted_at_ms INTEGER NOT NULL,
                            counter INTEGER UNIQUE, output_ids BLOB, cancel_tokens INTEGER, cancel_signature BLOB);
    CREATE INDEX purchases_open ON purchases (admitted_at_ms) WHERE counter IS NULL;
    CREATE TABLE receipts (counter INTEGER PRIMARY KEY, digest BLOB NOT NULL, receipt TEXT NOT NULL,
                           batch_deadline_block INTEGER NOT NULL);
    CREATE TABLE batches (first_counter INTEGER PRIMARY KEY, last_counter INTEGER NOT NULL UNIQUE,
                          batch TEXT NOT NULL, chain_index INTEGER UNIQUE, transaction_hash BLOB)
    """,
    """
    CREATE TABLE voided (number INTEGER PRIMARY KEY AUTOINCREMENT, request_digest BLOB NOT NULL,
                         signer BLOB NOT NULL, UNIQUE (request_digest, signer))
    """,
    """
    ALTER TABLE purchases ADD COLUMN fingerprints BLOB
    """,
)
VOIDED_MAX = 16_384
"""Cancels of requests that had not come, kept so that these requests are refused when they come after all."""
CHANNELS_MAX = 65_536
"""Channels one provider tracks, all in memory; new ones are refused beyond it."""


@dataclass(frozen=True, slots=True)
class ChannelRow:
    """A channel as the journal holds it."""

    config: ChannelConfig
    state: SellerChannel
    voucher_signature: bytes


@dataclass(frozen=True, slots=True)
class PurchaseRow:
    """A purchase as the journal holds it; `receipt` is None while it is open, `papers` once they were pruned."""

    request_digest: bytes
    papers: bytes | None
    offer_digest: bytes
    quote: int
    admitted_at_ms: int
    output_ids: tuple[int, ...]
    receipt: Receipt | None
    fingerprints: bytes = b""


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch, planned, or published when `chain_index` is set."""

    batch: Batch
    chain_index: int | None
    transaction_hash: bytes


@dataclass(frozen=True, slots=True)
class SellerState:
    """What a restart begins from."""

    channels: dict[bytes, ChannelRow]
    open_purchases: tuple[PurchaseRow, ...]
    last: Link
    voided: tuple[tuple[bytes, Address], ...]
    """(request digest, signer) of each cancel that came before its request, oldest first."""


def _encode_ids(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, "<u4").tobytes()


def _decode_ids(data: bytes | None) -> tuple[int, ...]:
    return () if data is None else tuple(np.frombuffer(data, "<u4").tolist())


class SellerStore:
    """Typed reads and writes over the journal."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path, SELLER_MIGRATIONS)

    async def open(self) -> SellerState:
        """Open the file and read where the last run stopped."""
        await self._journal.open()
        return await self._journal.read(_load)

    async def close(self) -> None:
        """Write what waits, then close."""
        await self._journal.close()

    async def watch(self) -> None:
        """Return only by raising: when the journal has failed."""
        await self._journal.watch()

    def keep_offer(self, offer: SignedOffer) -> "asyncio.Future[None]":
        """Remember an offer that was posted, because requests will refer to it."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR IGNORE INTO offers VALUES (?, ?, ?, ?)",
                (offer.digest, spell(offer.offer), offer.signature, offer.offer.valid_until),
            )

        return self._journal.write(change)

    async def fetch_offer(self, digest: bytes) -> SignedOffer | None:
        """An offer posted before."""

        def query(connection: sqlite3.Connection) -> SignedOffer | None:
            row = connection.execute("SELECT offer, signature FROM offers WHERE digest = ?", (digest,)).fetchone()
            return None if row is None else SignedOffer(decode_json(Offer, json.loads(row[0])), row[1], digest)

        return await self._journal.read(query)

    async def fetch_latest_offer(self) -> SignedOffer | None:
        """The offer that was posted last."""

        def query(connection: sqlite3.Connection) -> SignedOffer | None:
            row = connection.execute(
                "SELECT offer, signature, digest FROM offers ORDER BY rowid DESC LIMIT 1"
            ).fetchone()
            return None if row is None else SignedOffer(decode_json(Offer, json.loads(row[0])), row[1], row[2])

        return await self._journal.read(query)

    def admit(self, purchase: PurchaseRow, channel_id: bytes, channel: ChannelRow) -> "asyncio.Future[None]":
        """Admit a purchase and keep the voucher that covers it."""

        def change(connection: sqlite3.Connection) -> None:
            _save_channel(connection, channel_id, channel)
            connection.execute(
                "INSERT INTO purchases (request_digest, channel_id, papers, offer_digest, quote, admitted_at_ms)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (
                    purchase.request_digest,
                    channel_id,
                    purchase.papers,
                    purchase.offer_digest,
                    str(purchase.quote),
                    purchase.admitted_at_ms,
                ),
            )

        return self._journal.write(change)

    def void(self, request_digest: bytes, signer: Address) -> "asyncio.Future[None]":
        """Keep the cancel of a request that has not come; the oldest make room."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR IGNORE INTO voided (request_digest, signer) VALUES (?, ?)", (request_digest, signer)
            )
            connection.execute("DELETE FROM voided WHERE number <= (SELECT max(number) FROM voided) - ?", (VOIDED_MAX,))

        return self._journal.write(change)

    def finish(
        self,
        receipt: Receipt,
        output_ids: tuple[int, ...],
        cancel: tuple[int, bytes] | None,
        channel: ChannelRow,
        fingerprints: bytes = b"",
    ) -> "asyncio.Future[None]":
        """Number a purchase: receipt, output and charge in one write, before anything is signed."""
        tokens, signature = cancel or (None, None)

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO receipts VALUES (?, ?, ?, ?)",
                (receipt.counter, hash_struct(receipt), spell(receipt), receipt.batch_deadline_block),
            )
            connection.execute(
                "UPDATE purchases SET counter = ?, output_ids = ?, cancel_tokens = ?, cancel_signature = ?,"
                " fingerprints = ? WHERE request_digest = ? AND counter IS NULL",
                (
                    receipt.counter,
                    _encode_ids(output_ids),
                    tokens,
                    signature,
                    fingerprints or None,
                    receipt.request_digest,
                ),
            )
            _save_channel(connection, receipt.channel_id, channel)

        return self._journal.write(change)

    async def fetch_purchase(self, request_digest: bytes) -> PurchaseRow | None:
        """A purchase, open or ended."""

        def query(connection: sqlite3.Connection) -> PurchaseRow | None:
            rows = _select_purchases(connection, "WHERE request_digest = ?", (request_digest,))
            return rows[0] if rows else None

        return await self._journal.read(query)

    async def fetch_receipts(self, first: int, count_max: int) -> list[Receipt]:
        """Receipts from a counter on, in order."""

        def query(connection: sqlite3.Connection) -> list[Receipt]:
            rows = connection.execute(
                "SELECT receipt FROM receipts WHERE counter >= ? ORDER BY counter LIMIT ?", (first, count_max)
            )
            return [decode_json(Receipt, json.loads(row[0])) for row in rows]

        return await self._journal.read(query)

    async def fetch_waiting(self, first: int) -> tuple[int, Receipt | None]:
        """How many receipts there are from a counter on, and the first of them."""

        def query(connection: sqlite3.Connection) -> tuple[int, Receipt | None]:
            count = connection.execute("SELECT count(*) FROM receipts WHERE counter >= ?", (first,)).fetchone()[0]
            row = connection.execute("SELECT receipt FROM receipts WHERE counter = ?", (first,)).fetchone()
            return count, None if row is None else decode_json(Receipt, json.loads(row[0]))

        return await self._journal.read(query)

    async def fetch_last_receipt_of(self, channel_id: bytes) -> Receipt | None:
        """The newest receipt of a channel: the one that charges most."""

        def query(connection: sqlite3.Connection) -> Receipt | None:
            row = connection.execute(
                "SELECT r.receipt FROM receipts r JOIN purchases p ON p.counter = r.counter"
                " WHERE p.channel_id = ? ORDER BY r.counter DESC LIMIT 1",
                (channel_id,),
            ).fetchone()
            return None if row is None else decode_json(Receipt, json.loads(row[0]))

        return await self._journal.read(query)

    async def fetch_digests(self, first: int, last: int) -> list[bytes]:
        """Receipt digests of a run of counters."""

        def query(connection: sqlite3.Connection) -> list[bytes]:
            rows = connection.execute(
                "SELECT digest FROM receipts WHERE counter BETWEEN ? AND ? ORDER BY counter", (first, last)
            )
            return [row[0] for row in rows]

        return await self._journal.read(query)

    def plan_batch(self, batch: Batch) -> "asyncio.Future[None]":
        """Keep a batch before it is sent, so that a restart sends the same one or none."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO batches (first_counter, last_counter, batch) VALUES (?, ?, ?)",
                (batch.first_counter, batch.last_counter, spell(batch)),
            )

        return self._journal.write(change)

    def publish_batch(self, batch: Batch, chain_index: int, transaction_hash: bytes) -> "asyncio.Future[None]":
        """Keep where on chain a batch is."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE batches SET chain_index = ?, transaction_hash = ? WHERE first_counter = ?",
                (chain_index, transaction_hash, batch.first_counter),
            )

        return self._journal.write(change)

    async def fetch_planned_batch(self) -> BatchRow | None:
        """The batch that is not known to be on chain, if any; there is at most one."""
        return await self._fetch_batch("chain_index IS NULL", ())

    async def fetch_last_batch(self) -> BatchRow | None:
        """The last batch known to be on chain."""
        return await self._fetch_batch("chain_index IS NOT NULL", ())

    async def fetch_batch_of(self, counter: int) -> BatchRow | None:
        """The published batch that holds a counter."""
        return await self._fetch_batch(
            "chain_index IS NOT NULL AND first_counter <= ? AND last_counter >= ?", (counter, counter)
        )

    async def fetch_batch_at(self, index: int) -> BatchRow | None:
        """The published batch with this index on chain."""
        return await self._fetch_batch("chain_index = ?", (index,))

    async def _fetch_batch(self, condition: str, values: tuple[int, ...]) -> BatchRow | None:
        def query(connection: sqlite3.Connection) -> BatchRow | None:
            row = connection.execute(
                "SELECT batch, chain_index, transaction_hash FROM batches"  # noqa: S608 # conditions are literals above
                f" WHERE {condition} ORDER BY first_counter DESC LIMIT 1",
                values,
            ).fetchone()
            if row is None:
                return None
            return BatchRow(decode_json(Batch, json.loads(row[0])), row[1], row[2] or b"")

        return await self._journal.read(query)

    def prune(self, before_ms: int, last_published: int) -> "asyncio.Future[int]":
        """Forget prompts and outputs of published purchases admitted before a time; receipts stay.

        Returns:
            How many were forgotten.
        """

        def change(connection: sqlite3.Connection) -> int:
            return connection.execute(
                "UPDATE purchases SET papers = NULL, output_ids = NULL, fingerprints = NULL"
                " WHERE papers IS NOT NULL AND admitted_at_ms < ? AND counter <= ?",
                (before_ms, last_published),
            ).rowcount

        return self._journal.write(change)


def read_sales(path: Path, since_ms: int, now_ms: int) -> Sales:
    """Sums over the receipts of a journal that another process may be writing; blocks.

    Args:
        path: the journal.
        since_ms: purchases admitted earlier do not count; those that were pruned have no time and count from 0 only.
        now_ms: wall time.

    Raises:
        UnavailableJournal: it cannot be read.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            row = connection.execute(
                "SELECT COUNT(*), SUM(json_extract(r.receipt, '$.completionTokens')),"
                " SUM(CAST(json_extract(r.receipt, '$.fee') AS INTEGER)), MIN(p.admitted_at_ms)"
                " FROM receipts r LEFT JOIN purchases p ON p.counter = r.counter"
                " WHERE COALESCE(p.admitted_at_ms, 0) >= ?",
                (since_ms,),
            ).fetchone()
    except sqlite3.Error as error:
        raise UnavailableJournal(f"journal {path} cannot be read: {error}") from error
    return Sales(row[0], row[1] or 0, row[2] or 0, 0 if row[3] is None else max(0, now_ms - row[3]))


def _save_channel(connection: sqlite3.Connection, channel_id: bytes, row: ChannelRow) -> None:
    connection.execute(
        "INSERT INTO channels VALUES (?, ?, ?, ?, ?) ON CONFLICT (channel_id) DO UPDATE SET"
        " signed = excluded.signed, voucher_signature = excluded.voucher_signature, charged = excluded.charged",
        (channel_id, spell(row.config), str(row.state.signed), row.voucher_signature, str(row.state.charged)),
    )


def _select_purchases(
    connection: sqlite3.Connection, condition: str, values: tuple[object, ...]
) -> tuple[PurchaseRow, ...]:
    rows = connection.execute(
        "SELECT p.request_digest, p.papers, p.offer_digest, p.quote, p.admitted_at_ms, p.output_ids, r.receipt,"  # noqa: S608 # conditions are literals of this module
        f" p.fingerprints FROM purchases p LEFT JOIN receipts r ON r.counter = p.counter {condition}",
        values,
    ).fetchall()
    return tuple(
        PurchaseRow(
            request_digest=row[0],
            papers=row[1],
            offer_digest=row[2],
            quote=int(row[3]),
            admitted_at_ms=row[4],
            output_ids=_decode_ids(row[5]),
            receipt=None if row[6] is None else decode_json(Receipt, json.loads(row[6])),
            fingerprints=row[7] or b"",
        )
        for row in rows
    )


def _load(connection: sqlite3.Connection) -> SellerState:
    open_purchases = _select_purchases(connection, "WHERE p.counter IS NULL ORDER BY p.admitted_at_ms", ())
    reservations: dict[bytes, dict[bytes, int]] = {}
    for digest, channel_id, quote in connection.execute(
        "SELECT request_digest, channel_id, quote FROM purchases WHERE counter IS NULL"
    ):
        reservations.setdefault(channel_id, {})[digest] = int(quote)
    channels = {
        channel_id: ChannelRow(
            config=decode_json(ChannelConfig, json.loads(config)),
            state=SellerChannel(int(signed), int(charged), reservations.get(channel_id, {})),
            voucher_signature=signature,
        )
        for channel_id, config, signed, signature, charged in connection.execute(
            "SELECT channel_id, config, signed, voucher_signature, charged FROM channels"
        )
    }
    row = connection.execute("SELECT counter, digest FROM receipts ORDER BY counter DESC LIMIT 1").fetchone()
    last = FIRST_LINK if row is None else Link(counter=row[0], digest=row[1], charged=0)
    voided = tuple(
        (digest, Address(signer))
        for digest, signer in connection.execute("SELECT request_digest, signer FROM voided ORDER BY number")
    )
    return SellerState(channels=channels, open_purchases=open_purchases, last=last, voided=voided)
