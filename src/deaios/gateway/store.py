"""Where keys and what they spent are kept: one SQLite journal.

Invariants: a charge is on disk before it is answered for; one answer, and one receipt, is charged at most once; what a
key has spent never exceeds its budget. Only keyed hashes of keys are stored. Reads and writes have connections of
their own, so that a read never waits for a write's fsync.
"""

import json
import sqlite3
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from deaios.gateway.keys import AMOUNT_MAX, KEY_ID_SIZE, KEY_SECRET_SIZE, RATE_MAX, KeyRecord, build_key_text, hash_key
from deaios.market.preferences import DataPolicy
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import Address
from deaios.runtime.dice import Dice
from deaios.runtime.errors import NotFound
from deaios.runtime.journal import open_journal, transaction

PEPPER_SIZE = 32
NAME_CHARS_MAX = 128
MODELS_MAX = 256
_COLUMNS = (
    "key_id, name, budget, spent, models, created_at_ms, expires_at_ms, revoked_at_ms, "
    "requests_per_minute, tokens_per_minute, data_policy"
)
_CHARGE_COLUMNS = (
    "answer_id, key_id, amount, prompt_tokens, completion_tokens, at_ms, provider, counter, request, purchase, repeats"
)
REPEATS_MAX = 2
"""How many repetitions a charge counts for: as often as OpenAI SDKs repeat a request by default."""
_MIGRATIONS = (
    """
    CREATE TABLE keys (
        key_id TEXT PRIMARY KEY,
        hash BLOB NOT NULL UNIQUE,
        name TEXT NOT NULL,
        budget INTEGER CHECK (budget >= 0),
        spent INTEGER NOT NULL DEFAULT 0 CHECK (spent >= 0 AND (budget IS NULL OR spent <= budget)),
        models TEXT,
        created_at_ms INTEGER NOT NULL,
        expires_at_ms INTEGER,
        revoked_at_ms INTEGER
    ) STRICT;
    CREATE TABLE charges (
        answer_id TEXT PRIMARY KEY,
        key_id TEXT NOT NULL REFERENCES keys (key_id),
        amount INTEGER NOT NULL CHECK (amount >= 0),
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        provider BLOB,
        counter INTEGER,
        at_ms INTEGER NOT NULL,
        UNIQUE (provider, counter)
    ) STRICT;
    CREATE INDEX charges_by_key ON charges (key_id, at_ms);
    """,
    """
    ALTER TABLE charges ADD COLUMN request BLOB;
    CREATE INDEX charges_by_request ON charges (request, at_ms) WHERE request IS NOT NULL;
    ALTER TABLE charges ADD COLUMN purchase BLOB;
    CREATE INDEX charges_provisional ON charges (at_ms) WHERE purchase IS NOT NULL;
    """,
    """
    ALTER TABLE charges ADD COLUMN cost INTEGER NOT NULL DEFAULT 0 CHECK (cost >= amount);
    UPDATE charges SET cost = amount;
    ALTER TABLE charges ADD COLUMN repeats TEXT;
    CREATE INDEX charges_by_repeats ON charges (repeats) WHERE repeats IS NOT NULL;
    """,
    """
    ALTER TABLE keys ADD COLUMN requests_per_minute INTEGER CHECK (requests_per_minute > 0);
    ALTER TABLE keys ADD COLUMN tokens_per_minute INTEGER CHECK (tokens_per_minute > 0);
    """,
    """
    ALTER TABLE keys ADD COLUMN data_policy TEXT NOT NULL DEFAULT 'any' CHECK (data_policy IN ('any', 'deny', 'zdr'));
    """,
)


class InvalidKeyTerms(Invalid):
    """Terms of a key that cannot be kept."""


@dataclass(frozen=True, slots=True)
class Charge:
    """What one answer cost a key.

    `provider` and `counter` name the receipt, where there is one: two answers with one receipt are paid once.
    `request` identifies the request as `retries.identify` does. `purchase` is set while the charge is provisional: the
    digest of the purchase whose receipt is not known yet. `repeats` is the charge of an answer that never reached its
    client and that this one makes good: given to `KeyStore.charge`, `amount` is what the answer cost; kept is what that
    is above what the last `REPEATS_MAX` attempts were charged.
    """

    answer_id: str
    key_id: str
    amount: int
    prompt_tokens: int
    completion_tokens: int
    at_ms: int
    provider: Address | None = None
    counter: int | None = None
    request: bytes | None = None
    purchase: bytes | None = None
    repeats: str | None = None


@dataclass(frozen=True, slots=True)
class Spending:
    """What a key bought in one span of time; the amount in smallest units."""

    from_ms: int
    purchases: int
    prompt_tokens: int
    completion_tokens: int
    amount: int


class KeyStore:
    """Keys and charges on disk. Its methods block; `charge` waits for the disk."""

    def __init__(self, reader: sqlite3.Connection, writer: sqlite3.Connection, pepper: bytes) -> None:
        self._reader = reader
        self._writer = writer
        self._pepper = pepper
        # Charges and corrections are written from threads, over one connection.
        self._writing = threading.Lock()

    @classmethod
    def open(cls, path: Path, pepper: bytes) -> Self:
        """Open or create the journal.

        Args:
            path: the database file.
            pepper: 32 secret bytes that key hashes depend on; kept by the caller, outside the database.
        """
        assert len(pepper) == PEPPER_SIZE
        writer = open_journal(path, _MIGRATIONS)
        return cls(open_journal(path, _MIGRATIONS), writer, pepper)

    def close(self) -> None:
        """Close both connections, after a write that a thread is in; SQLite does not survive to be closed under one."""
        with self._writing:
            self._reader.close()
            self._writer.close()

    def create(
        self,
        dice: Dice,
        now_ms: int,
        *,
        name: str,
        budget: int | None = None,
        models: Collection[str] | None = None,
        expires_at_ms: int | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        data_policy: DataPolicy = DataPolicy.ANY,
    ) -> tuple[str, KeyRecord]:
        """Make a key.

        Returns:
            Its text, which is nowhere kept, and its record.

        Raises:
            InvalidKeyTerms: name, budget, models or rates are out of bounds.
        """
        _validate_terms(name, budget, models)
        _validate_rates(requests_per_minute, tokens_per_minute)
        text = build_key_text(dice.token_bytes(KEY_SECRET_SIZE))
        record = KeyRecord(
            key_id="key_" + dice.token_bytes(KEY_ID_SIZE).hex(),
            name=name,
            budget=budget,
            spent=0,
            models=None if models is None else frozenset(models),
            created_at_ms=now_ms,
            expires_at_ms=expires_at_ms,
            revoked_at_ms=None,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            data_policy=data_policy,
        )
        listed = None if record.models is None else json.dumps(sorted(record.models))
        rates = (requests_per_minute, tokens_per_minute)
        hashed = hash_key(text, self._pepper)
        values = (record.key_id, name, budget, 0, listed, now_ms, expires_at_ms, None, *rates, data_policy, hashed)
        with self._writing, transaction(self._writer) as connection:
            connection.execute(f"INSERT INTO keys ({_COLUMNS}, hash) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)", values)  # noqa: S608 # a constant
        return text, record

    def adopt(self, key_id: str, name: str, now_ms: int) -> str:
        """A key that nobody can show, for somebody who is known otherwise; made at first use, with nothing to spend.

        Returns:
            A text that only this store can derive, from which draws may follow.
        """
        text = hash_key(key_id, self._pepper).hex()
        with self._writing, transaction(self._writer) as connection:
            connection.execute(
                "INSERT INTO keys (key_id, hash, name, budget, created_at_ms) VALUES (?,?,?,0,?) "
                "ON CONFLICT DO NOTHING",
                (key_id, hash_key(text, self._pepper), name, now_ms),
            )
        return text

    def allow(self, key_id: str, budget: int) -> None:
        """Let an adopted key spend so much in all; what it has spent already, at least."""
        with self._writing, transaction(self._writer) as connection:
            connection.execute("UPDATE keys SET budget = max(spent, ?) WHERE key_id = ?", (budget, key_id))

    def find(self, text: str) -> KeyRecord | None:
        """The record of a key somebody shows, revoked and expired ones included."""
        return self._read("hash", hash_key(text, self._pepper))

    def get(self, key_id: str) -> KeyRecord:
        """The record of a key by its public name.

        Raises:
            NotFound: no such key.
        """
        record = self._read("key_id", key_id)
        if record is None:
            raise NotFound(f"no API key has the id {key_id!r:.80}")
        return record

    def list_keys(self) -> list[KeyRecord]:
        """All keys, oldest first."""
        rows = self._reader.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY created_at_ms, key_id")  # noqa: S608 # a constant
        return [_build_record(row) for row in rows]

    def revoke(self, key_id: str, now_ms: int) -> None:
        """Refuse a key from now on; revoking twice keeps the first time.

        Raises:
            NotFound: no such key.
        """
        self.get(key_id)
        with self._writing, transaction(self._writer) as connection:
            connection.execute(
                "UPDATE keys SET revoked_at_ms = coalesce(revoked_at_ms, ?) WHERE key_id = ?", (now_ms, key_id)
            )

    def set_budget(self, key_id: str, budget: int | None) -> None:
        """Change what a key may spend in all.

        Raises:
            NotFound: no such key.
            InvalidKeyTerms: less than it has spent already.
        """
        record = self.get(key_id)
        _validate_terms(record.name, budget, record.models)
        try:
            with self._writing, transaction(self._writer) as connection:
                connection.execute("UPDATE keys SET budget = ? WHERE key_id = ?", (budget, key_id))
        except sqlite3.IntegrityError as error:
            raise InvalidKeyTerms(f"budget {budget} is below what was spent, {self.get(key_id).spent}") from error

    def set_rates(self, key_id: str, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        """Change how much a key may ask for in a minute.

        Raises:
            NotFound: no such key.
            InvalidKeyTerms: not a positive number.
        """
        self.get(key_id)
        _validate_rates(requests_per_minute, tokens_per_minute)
        with self._writing, transaction(self._writer) as connection:
            connection.execute(
                "UPDATE keys SET requests_per_minute = ?, tokens_per_minute = ? WHERE key_id = ?",
                (requests_per_minute, tokens_per_minute, key_id),
            )

    def sum_charges(self, key_id: str, from_ms: int, to_ms: int, width_ms: int) -> list[Spending]:
        """What a key bought from one moment up to another, in spans that have something, oldest first."""
        rows = self._reader.execute(
            """
            SELECT at_ms / ? * ?, count(*), sum(prompt_tokens), sum(completion_tokens), sum(amount) FROM charges
            WHERE key_id = ? AND at_ms >= ? AND at_ms < ? GROUP BY 1 ORDER BY 1
            """,
            (width_ms, width_ms, key_id, from_ms, to_ms),
        )
        return [Spending(*row) for row in rows]

    def charge(self, charges: Sequence[Charge]) -> list[bool]:
        """Record what answers cost, in one transaction; on return it is on disk.

        An amount is cut to what the budget still holds: a budget lowered meanwhile is the gateway's loss.

        Returns:
            For each charge, False where its answer or its receipt was charged before, and nothing changed.
        """
        with self._writing, transaction(self._writer) as connection:
            return [_apply_charge(connection, charge) for charge in charges]

    def list_charges(self, key_id: str, count_max: int) -> list[Charge]:
        """The newest charges of a key, newest first."""
        rows = self._reader.execute(
            f"SELECT {_CHARGE_COLUMNS} FROM charges WHERE key_id = ? ORDER BY at_ms DESC, answer_id LIMIT ?",  # noqa: S608 # a constant
            (key_id, count_max),
        )
        return [Charge(*row) for row in rows]

    def find_charges(self, request: bytes, from_ms: int, to_ms: int) -> list[Charge]:
        """What a request was charged from one moment up to another and no later charge repeats, newest first."""
        rows = self._reader.execute(
            f"""
            SELECT {_CHARGE_COLUMNS} FROM charges AS kept WHERE request = ? AND at_ms >= ? AND at_ms < ?
            AND NOT EXISTS (SELECT 1 FROM charges AS later WHERE later.repeats = kept.answer_id) ORDER BY at_ms DESC
            """,  # noqa: S608 # a constant
            (request, from_ms, to_ms),
        )
        return [Charge(*row) for row in rows]

    def list_provisional(self, count_max: int) -> list[Charge]:
        """Charges whose receipt is not known yet, oldest first."""
        rows = self._reader.execute(
            f"SELECT {_CHARGE_COLUMNS} FROM charges WHERE purchase IS NOT NULL ORDER BY at_ms LIMIT ?",  # noqa: S608 # a constant
            (count_max,),
        )
        return [Charge(*row) for row in rows]

    def sum_provisional(self, key_id: str) -> int:
        """What of a key's spending has no receipt yet, and may still become less."""
        (amount,) = self._reader.execute(
            "SELECT coalesce(sum(amount), 0) FROM charges WHERE key_id = ? AND purchase IS NOT NULL", (key_id,)
        ).fetchone()
        return int(amount)

    def correct(self, answer_id: str, cost: int, provider: Address | None, counter: int | None) -> None:
        """Make a provisional charge final, and right what repeats it.

        The key gets the difference back, or pays it as far as its budget goes.
        """
        with self._writing, transaction(self._writer) as connection:
            cursor = connection.execute(
                "UPDATE charges SET provider = ?, counter = ?, purchase = NULL "
                "WHERE answer_id = ? AND purchase IS NOT NULL",
                (provider, counter, answer_id),
            )
            if not cursor.rowcount:
                return
            changed = [(answer_id, cost)]
            while changed:
                answer_id, cost = changed.pop()
                _set_amount(connection, answer_id, cost)
                changed += connection.execute("SELECT answer_id, cost FROM charges WHERE repeats = ?", (answer_id,))

    def _read(self, column: str, value: object) -> KeyRecord | None:
        row = self._reader.execute(f"SELECT {_COLUMNS} FROM keys WHERE {column} = ?", (value,)).fetchone()  # noqa: S608 # constants
        return None if row is None else _build_record(row)


def _apply_charge(connection: sqlite3.Connection, charge: Charge) -> bool:
    cursor = connection.execute(
        f"INSERT INTO charges ({_CHARGE_COLUMNS}, cost) VALUES (?,?,0,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",  # noqa: S608 # a constant
        (
            charge.answer_id,
            charge.key_id,
            charge.prompt_tokens,
            charge.completion_tokens,
            charge.at_ms,
            charge.provider,
            charge.counter,
            charge.request,
            charge.purchase,
            charge.repeats,
            charge.amount,
        ),
    )
    if not cursor.rowcount:
        return False
    _set_amount(connection, charge.answer_id, charge.amount)
    return True


def _set_amount(connection: sqlite3.Connection, answer_id: str, cost: int) -> None:
    """Let a charge be what its cost is above what the attempts before it were charged; the key pays the difference."""
    key_id, before, repeats = connection.execute(
        "SELECT key_id, amount, repeats FROM charges WHERE answer_id = ?", (answer_id,)
    ).fetchone()
    amount = max(0, cost - _sum_repeated(connection, repeats))
    connection.execute("UPDATE charges SET amount = ?, cost = ? WHERE answer_id = ?", (amount, cost, answer_id))
    connection.execute(
        "UPDATE keys SET spent = max(0, min(spent + ?, coalesce(budget, spent + ?))) WHERE key_id = ?",
        (amount - before, amount - before, key_id),
    )


def _sum_repeated(connection: sqlite3.Connection, repeats: str | None) -> int:
    total = 0
    for _ in range(REPEATS_MAX):
        row = connection.execute("SELECT amount, repeats FROM charges WHERE answer_id = ?", (repeats,)).fetchone()
        if row is None:
            break
        amount, repeats = row
        total += amount
    return total


def _build_record(row: tuple[Any, ...]) -> KeyRecord:  # Any: STRICT tables hold the declared types
    fields = dict(zip(_COLUMNS.split(", "), row, strict=True))
    listed, policy = fields["models"], DataPolicy(fields["data_policy"])
    return KeyRecord(
        **fields | {"models": None if listed is None else frozenset(json.loads(listed)), "data_policy": policy}
    )


def _validate_rates(requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
    for name, rate in (("requests_per_minute", requests_per_minute), ("tokens_per_minute", tokens_per_minute)):
        if rate is not None and not 0 < rate <= RATE_MAX:
            raise InvalidKeyTerms(f"{name} is {rate}, allowed are 1 to {RATE_MAX}")


def _validate_terms(name: str, budget: int | None, models: Collection[str] | None) -> None:
    if not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
        raise InvalidKeyTerms(
            f"a key's name has {len(name)} characters, 1 to {NAME_CHARS_MAX} printable ones are allowed"
        )
    if budget is not None and not 0 <= budget <= AMOUNT_MAX:
        raise InvalidKeyTerms(f"budget is {budget}, allowed are 0 to {AMOUNT_MAX}")
    if models is not None and not 0 < len(models) <= MODELS_MAX:
        raise InvalidKeyTerms(f"{len(models)} models, allowed are 1 to {MODELS_MAX}")
