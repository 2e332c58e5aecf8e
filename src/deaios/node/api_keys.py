"""Keys of a folder's gateway: made, listed, limited and revoked beside it, whether it runs or not."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal

import msgspec

from deaios.gateway.keys import KEYS_FILE, KeyRecord, derive_pepper
from deaios.gateway.store import InvalidKeyTerms, KeyStore
from deaios.market.preferences import DataPolicy
from deaios.node.folder import StateFolder
from deaios.node.keystore import open_keystore
from deaios.primitives.errors import ConfigError
from deaios.primitives.units import CREDIT_DECIMALS, format_credit
from deaios.runtime.clock import SystemClock
from deaios.runtime.dice import SystemDice

GATEWAY = "gateway"
DAY_MS = 24 * 3600 * 1000
DAYS_MAX = 36_500


class ApiKey(msgspec.Struct, frozen=True):
    """One key, for people; `key` is its text, which is shown once, when it is made."""

    id: str
    name: str
    spent: str
    budget: str | None
    models: list[str] | None
    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    data_policy: str
    key: str | None = None


def create_key(
    folder: StateFolder,
    name: str,
    *,
    budget: Decimal | None = None,
    models: Sequence[str] = (),
    days: int | None = None,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    data_policy: DataPolicy = DataPolicy.ANY,
) -> ApiKey:
    """Make a key.

    Args:
        folder: of the gateway.
        name: for people.
        budget: most that it may spend, in credits.
        models: names or record ids that it may use; all where there is none.
        days: until it expires.
        requests_per_minute: how many it may send.
        tokens_per_minute: how many it may buy.
        data_policy: what providers of its answers must promise.

    Raises:
        ConfigError: the folder has no gateway.
        InvalidKeyTerms: a term is out of bounds.
    """
    now_ms = SystemClock().now_ms()
    if days is not None and not 0 < days <= DAYS_MAX:
        raise InvalidKeyTerms(f"a key of {days} days, allowed are 1 to {DAYS_MAX}")
    with _open(folder) as keys:
        text, record = keys.create(
            SystemDice(),
            now_ms,
            name=name,
            budget=None if budget is None else _read_credit(budget),
            models=models or None,
            expires_at_ms=None if days is None else now_ms + days * DAY_MS,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            data_policy=data_policy,
        )
    return _describe(record, text)


def list_keys(folder: StateFolder) -> list[ApiKey]:
    """All keys, oldest first."""
    with _open(folder) as keys:
        return [_describe(record) for record in keys.list_keys()]


def limit_key(
    folder: StateFolder,
    key_id: str,
    *,
    budget: Decimal | None,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
) -> ApiKey:
    """Set a key's budget and rates to what is given, and to no limit where nothing is.

    Raises:
        NotFound: no such key.
        InvalidKeyTerms: a term is out of bounds, or the budget is below what was spent.
    """
    with _open(folder) as keys:
        keys.set_budget(key_id, None if budget is None else _read_credit(budget))
        keys.set_rates(key_id, requests_per_minute, tokens_per_minute)
        return _describe(keys.get(key_id))


def revoke_key(folder: StateFolder, key_id: str) -> ApiKey:
    """Refuse a key from now on.

    Raises:
        NotFound: no such key.
    """
    with _open(folder) as keys:
        keys.revoke(key_id, SystemClock().now_ms())
        return _describe(keys.get(key_id))


@contextmanager
def _open(folder: StateFolder) -> Iterator[KeyStore]:
    path = folder.role(GATEWAY) / KEYS_FILE
    if not path.exists():
        raise ConfigError(f"{folder.root} has no gateway yet; start one with `deaios up`")
    keys = KeyStore.open(path, derive_pepper(open_keystore(folder).open_key(GATEWAY)))
    try:
        yield keys
    finally:
        keys.close()


def _read_credit(amount: Decimal) -> int:
    units = amount.scaleb(CREDIT_DECIMALS)
    if units != units.to_integral_value():
        raise InvalidKeyTerms(f"{amount} credit is finer than {CREDIT_DECIMALS} decimals")
    return int(units)


def _describe(record: KeyRecord, text: str | None = None) -> ApiKey:
    return ApiKey(
        id=record.key_id,
        name=record.name,
        spent=format_credit(record.spent),
        budget=None if record.budget is None else format_credit(record.budget),
        models=None if record.models is None else sorted(record.models),
        created_at_ms=record.created_at_ms,
        expires_at_ms=record.expires_at_ms,
        revoked_at_ms=record.revoked_at_ms,
        requests_per_minute=record.requests_per_minute,
        tokens_per_minute=record.tokens_per_minute,
        data_policy=record.data_policy,
        key=text,
    )
