"""The buyer's journal: what it signed, what is open, what it holds as evidence.

Invariants on disk: a voucher and the purchase it covers are written together before either is sent; a purchase leaves
the open list in the same write in which its charge is accepted; openings are kept for audit and dispute windows.
"""

import asyncio
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from deaios.ledger.eip712 import decode_json
from deaios.ledger.structs import ChannelConfig, Offer
from deaios.market.channel import BuyerChannel
from deaios.market.offers import SignedOffer
from deaios.market.opening import Opening
from deaios.market.receipts import COUNTER_MAX
from deaios.market.store import Journal, spell
from deaios.primitives.encoding import encode_canonical_json
from deaios.primitives.keys import Address

BUYER_MIGRATIONS = (
    """
    CREATE TABLE channels (channel_id BLOB PRIMARY KEY, provider BLOB NOT NULL UNIQUE, config TEXT NOT NULL,
                           salt_index INTEGER NOT NULL, balance TEXT NOT NULL, signed TEXT NOT NULL,
                           charged TEXT NOT NULL, held TEXT NOT NULL);
    CREATE TABLE open_purchases (request_digest BLOB PRIMARY KEY, provider BLOB NOT NULL, papers BLOB NOT NULL,
                                 offer TEXT NOT NULL, offer_signature BLOB NOT NULL, offer_digest BLOB NOT NULL,
                                 quote TEXT NOT NULL, acknowledged INTEGER);
    CREATE TABLE openings (request_digest BLOB PRIMARY KEY, provider BLOB NOT NULL, counter INTEGER NOT NULL,
                           opening TEXT NOT NULL, kept_at_ms INTEGER NOT NULL);
    CREATE INDEX openings_by_counter ON openings (provider, counter);
    CREATE TABLE excluded (provider BLOB PRIMARY KEY, reason TEXT NOT NULL, at_ms INTEGER NOT NULL)
    """,
    """
    CREATE TABLE released (request_digest BLOB PRIMARY KEY, at_ms INTEGER NOT NULL);
    CREATE INDEX released_by_time ON released (at_ms)
    """,
    """
    ALTER TABLE openings ADD COLUMN ask BLOB;
    CREATE INDEX openings_by_ask ON openings (ask) WHERE ask IS NOT NULL
    """,
    """
    CREATE TABLE refused (place INTEGER PRIMARY KEY AUTOINCREMENT, provider BLOB NOT NULL,
                          request_digest BLOB NOT NULL UNIQUE, opening TEXT NOT NULL, kept_at_ms INTEGER NOT NULL);
    CREATE INDEX refused_by_provider ON refused (provider)
    """,
)
REFUSED_PER_PROVIDER_MAX = 16
"""Refused receipts kept of one provider, each worth a penalty; it is never bought from again, so few can come."""


@dataclass(frozen=True, slots=True)
class AccountRow:
    """One provider's channel as the journal holds it; reservations are the open purchases."""

    provider: Address
    channel_id: bytes
    config: ChannelConfig
    salt_index: int
    state: BuyerChannel


@dataclass(frozen=True, slots=True)
class OpenRow:
    """A purchase that was sent and has no receipt yet; `acknowledged` is set before a cancel is sent."""

    request_digest: bytes
    provider: Address
    papers: bytes
    offer: SignedOffer
    quote: int
    acknowledged: int | None


@dataclass(frozen=True, slots=True)
class BuyerState:
    """What a restart begins from."""

    accounts: tuple[AccountRow, ...]
    open_purchases: tuple[OpenRow, ...]
    excluded: dict[Address, str]


class BuyerStore:
    """Typed reads and writes over the journal."""

    def __init__(self, path: Path, window: int) -> None:
        self._journal = Journal(path, BUYER_MIGRATIONS)
        self._window = window

    async def open(self) -> BuyerState:
        """Open the file and read where the last run stopped."""
        await self._journal.open()
        return await self._journal.read(lambda connection: _load(connection, self._window))

    async def close(self) -> None:
        """Write what waits, then close."""
        await self._journal.close()

    async def watch(self) -> None:
        """Return only by raising: when the journal has failed."""
        await self._journal.watch()

    def keep_account(self, account: AccountRow) -> "asyncio.Future[None]":
        """Keep a channel's state."""
        return self._journal.write(lambda connection: _save_account(connection, account))

    def send(self, account: AccountRow, purchase: OpenRow) -> "asyncio.Future[None]":
        """Keep a voucher and the purchase it covers, before they are sent."""

        def change(connection: sqlite3.Connection) -> None:
            _save_account(connection, account)
            connection.execute(
                "INSERT OR REPLACE INTO open_purchases VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    purchase.request_digest,
                    purchase.provider,
                    purchase.papers,
                    spell(purchase.offer.offer),
                    purchase.offer.signature,
                    purchase.offer.digest,
                    str(purchase.quote),
                    purchase.acknowledged,
                ),
            )

        return self._journal.write(change)

    def acknowledge(self, request_digest: bytes, tokens: int) -> "asyncio.Future[None]":
        """Keep what a cancel acknowledges, before it is sent; the highest counts."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE open_purchases SET acknowledged = max(coalesce(acknowledged, 0), ?) WHERE request_digest = ?",
                (tokens, request_digest),
            )

        return self._journal.write(change)

    def settle(self, account: AccountRow, opening: Opening, now_ms: int) -> "asyncio.Future[None]":
        """Keep an accepted receipt with its opening, and close the purchase."""
        digest, receipt = opening.receipt.request_digest, opening.receipt
        text = encode_canonical_json(opening.encode_json()).decode()

        def change(connection: sqlite3.Connection) -> None:
            _save_account(connection, account)
            connection.execute("DELETE FROM open_purchases WHERE request_digest = ?", (digest,))
            connection.execute(
                "INSERT OR REPLACE INTO openings VALUES (?, ?, ?, ?, ?, ?)",
                (digest, account.provider, receipt.counter, text, now_ms, opening.request.ask_digest),
            )

        return self._journal.write(change)

    def release(self, account: AccountRow, request_digest: bytes, now_ms: int) -> "asyncio.Future[None]":
        """Close a purchase that was never admitted; its digest is kept, because it must not be asked for again."""

        def change(connection: sqlite3.Connection) -> None:
            _save_account(connection, account)
            connection.execute("INSERT OR IGNORE INTO released VALUES (?, ?)", (request_digest, now_ms))
            connection.execute("DELETE FROM open_purchases WHERE request_digest = ?", (request_digest,))

        return self._journal.write(change)

    def exclude(self, provider: Address, reason: str, now_ms: int) -> "asyncio.Future[None]":
        """Never buy from a provider again."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR IGNORE INTO excluded VALUES (?, ?, ?)", (provider, reason, now_ms))

        return self._journal.write(change)

    def keep_refused(self, opening: Opening, now_ms: int) -> "asyncio.Future[None]":
        """Keep an opening whose receipt was refused and convicts its provider by itself; of each the first ones.

        It is evidence, not a purchase: nothing is owed for it.
        """
        provider, digest = opening.request.provider, opening.receipt.request_digest
        text = encode_canonical_json(opening.encode_json()).decode()

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR IGNORE INTO refused (provider, request_digest, opening, kept_at_ms) SELECT ?, ?, ?, ?"
                " WHERE (SELECT count(*) FROM refused WHERE provider = ?) < ?",
                (provider, digest, text, now_ms, provider, REFUSED_PER_PROVIDER_MAX),
            )

        return self._journal.write(change)

    async def fetch_refused_after(self, place: int, count_max: int) -> list[tuple[int, Opening]]:
        """Refused openings kept after a place, each with its own, in the order in which they were kept."""

        def query(connection: sqlite3.Connection) -> list[tuple[int, Opening]]:
            rows = connection.execute(
                "SELECT place, opening FROM refused WHERE place > ? ORDER BY place LIMIT ?", (place, count_max)
            )
            return [(row[0], Opening.decode_json(json.loads(row[1]))) for row in rows]

        return await self._journal.read(query)

    async def fetch_opening(self, provider: Address, counter: int) -> Opening | None:
        """An opening by the receipt's provider and counter."""

        def query(connection: sqlite3.Connection) -> Opening | None:
            row = connection.execute(
                "SELECT opening FROM openings WHERE provider = ? AND counter = ?", (provider, counter)
            ).fetchone()
            return None if row is None else Opening.decode_json(json.loads(row[0]))

        return await self._journal.read(query)

    async def fetch_twins_after(self, place: int, count_max: int) -> tuple[int, list[tuple[Opening, Opening]]]:
        """Openings kept after a place, each with the first one that has the same provider and counter.

        An honest provider gives none, so only what is wrong is read.

        Returns:
            The place to go on from, and pairs of the first opening and a later one.
        """

        def query(connection: sqlite3.Connection) -> tuple[int, list[tuple[Opening, Opening]]]:
            (last,) = connection.execute("SELECT coalesce(max(rowid), 0) FROM openings").fetchone()
            after = place if place <= last else 0  # places begin anew where all that was kept has aged out
            rows = connection.execute(
                "SELECT late.rowid, early.opening, late.opening FROM openings AS late JOIN openings AS early"
                " ON early.rowid = (SELECT min(rowid) FROM openings WHERE (provider, counter) ="
                " (late.provider, late.counter)) WHERE late.rowid > ? AND early.rowid < late.rowid"
                " ORDER BY late.rowid LIMIT ?",
                (after, count_max),
            ).fetchall()
            first, second = ([Opening.decode_json(json.loads(row[column])) for row in rows] for column in (1, 2))
            return rows[-1][0] if len(rows) == count_max else last, list(zip(first, second, strict=True))

        return await self._journal.read(query)

    async def fetch_openings(self, provider: Address, first_counter: int, last_counter: int) -> list[Opening]:
        """Openings of a provider with counters in a run; two with one counter where it signed such."""

        def query(connection: sqlite3.Connection) -> list[Opening]:
            rows = connection.execute(
                "SELECT opening FROM openings WHERE provider = ? AND counter BETWEEN ? AND ? ORDER BY counter, rowid",
                (provider, first_counter, min(last_counter, COUNTER_MAX)),
            )
            return [Opening.decode_json(json.loads(row[0])) for row in rows]

        return await self._journal.read(query)

    async def fetch_outcome(self, request_digest: bytes) -> tuple[bool, Opening | None]:
        """Whether a purchase is open, and its opening once it was accepted."""

        def query(connection: sqlite3.Connection) -> tuple[bool, Opening | None]:
            digest = (request_digest,)
            is_open = connection.execute("SELECT 1 FROM open_purchases WHERE request_digest = ?", digest).fetchone()
            row = connection.execute("SELECT opening FROM openings WHERE request_digest = ?", digest).fetchone()
            return is_open is not None, None if row is None else Opening.decode_json(json.loads(row[0]))

        return await self._journal.read(query)

    async def find_openings(self, ask_digest: bytes) -> tuple[list[bytes], list[Opening]]:
        """Papers of all purchases that are open, and the openings of those that were made for one ask."""

        def query(connection: sqlite3.Connection) -> tuple[list[bytes], list[Opening]]:
            found = connection.execute("SELECT opening FROM openings WHERE ask = ? ORDER BY kept_at_ms", (ask_digest,))
            openings = [Opening.decode_json(json.loads(row[0])) for row in found]
            return [row[0] for row in connection.execute("SELECT papers FROM open_purchases")], openings

        return await self._journal.read(query)

    async def has_purchase(self, request_digest: bytes) -> bool:
        """Whether a request was sent before, open or ended."""

        def query(connection: sqlite3.Connection) -> bool:
            tables = ("open_purchases", "openings", "released")
            return any(
                connection.execute(f"SELECT 1 FROM {table} WHERE request_digest = ?", (request_digest,)).fetchone()  # noqa: S608 # names are literals above
                for table in tables
            )

        return await self._journal.read(query)

    def prune(self, before_ms: int) -> "asyncio.Future[int]":
        """Forget openings, refused ones and voided requests kept before a time; says how many of the first."""

        def change(connection: sqlite3.Connection) -> int:
            connection.execute("DELETE FROM released WHERE at_ms < ?", (before_ms,))
            connection.execute("DELETE FROM refused WHERE kept_at_ms < ?", (before_ms,))
            return connection.execute("DELETE FROM openings WHERE kept_at_ms < ?", (before_ms,)).rowcount

        return self._journal.write(change)


def _save_account(connection: sqlite3.Connection, account: AccountRow) -> None:
    state = account.state
    connection.execute(
        "INSERT INTO channels VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (channel_id) DO UPDATE SET"
        " balance = excluded.balance, signed = excluded.signed, charged = excluded.charged, held = excluded.held",
        (
            account.channel_id,
            account.provider,
            spell(account.config),
            account.salt_index,
            str(state.balance),
            str(state.signed),
            str(state.charged),
            json.dumps([[str(start), str(end)] for start, end in state.held]),
        ),
    )


def _load(connection: sqlite3.Connection, window: int) -> BuyerState:
    open_purchases = tuple(
        OpenRow(
            request_digest=row[0],
            provider=Address(row[1]),
            papers=row[2],
            offer=SignedOffer(decode_json(Offer, json.loads(row[3])), row[4], row[5]),
            quote=int(row[6]),
            acknowledged=row[7],
        )
        for row in connection.execute(
            "SELECT request_digest, provider, papers, offer, offer_signature, offer_digest, quote, acknowledged"
            " FROM open_purchases ORDER BY request_digest"
        )
    )
    reservations: dict[bytes, dict[bytes, int]] = {}
    for purchase in open_purchases:
        reservations.setdefault(purchase.provider, {})[purchase.request_digest] = purchase.quote
    accounts = tuple(
        AccountRow(
            provider=Address(row[1]),
            channel_id=row[0],
            config=decode_json(ChannelConfig, json.loads(row[2])),
            salt_index=row[3],
            state=BuyerChannel(
                window=window,
                balance=int(row[4]),
                signed=int(row[5]),
                charged=int(row[6]),
                held=tuple((int(start), int(end)) for start, end in json.loads(row[7])),
                reservations=reservations.get(row[1], {}),
            ),
        )
        for row in connection.execute(
            "SELECT channel_id, provider, config, salt_index, balance, signed, charged, held FROM channels"
        )
    )
    excluded = {Address(row[0]): row[1] for row in connection.execute("SELECT provider, reason FROM excluded")}
    return BuyerState(accounts, open_purchases, excluded)
