"""API keys: their text, the keyed hash that is all we keep of them, and what a key may do.

Pure. Invariant: nothing stored can be turned back into a key; a hash without the gateway's secret tells nothing, not
even whether a guessed key exists. It does not know where records are kept.
"""

import base64
import hmac
from dataclasses import dataclass

from deaios.market.preferences import DataPolicy
from deaios.market.question import PLAIN_CHAT, Part
from deaios.primitives.hashing import sha256, tagged_sha256
from deaios.primitives.keys import PrivateKey
from deaios.primitives.units import CREDIT

KEYS_FILE = "keys.db"
KEY_PREFIX = "sk-deaios-"
KEY_SECRET_SIZE = 32
KEY_CHARS_MAX = 256
KEY_ID_SIZE = 8
AMOUNT_MAX = 10**12 * CREDIT
"""More than all credit there is; keeps every sum inside SQLite's 64-bit integers."""
RATE_MAX = 10**9
_HASH_TAG = b"deaios/api-key/1"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What the gateway knows of one key.

    Attributes:
        key_id: public name, for logs and listings.
        name: what its owner calls it.
        budget: most that it may spend in all, in smallest units; None for no limit.
        spent: what it has spent.
        models: names and record ids (0x hex) it may use; None for all.
        created_at_ms: wall time.
        expires_at_ms: wall time from which it is refused; None for never.
        revoked_at_ms: wall time since which it is refused; None for not revoked.
        requests_per_minute: how many it may send; None for no limit.
        tokens_per_minute: how many it may buy, prompt and answer together; None for no limit.
        data_policy: what providers of its answers must promise; no request loosens it.
    """

    key_id: str
    name: str
    budget: int | None
    spent: int
    models: frozenset[str] | None
    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    data_policy: DataPolicy = DataPolicy.ANY

    def refuse_reason(self, now_ms: int) -> str | None:
        """Why the key is refused now, or None."""
        if self.revoked_at_ms is not None:
            return "this API key was revoked"
        if self.expires_at_ms is not None and now_ms >= self.expires_at_ms:
            return "this API key has expired"
        return None

    def may_use(self, *names: str) -> bool:
        """Is a model with these names open to the key?"""
        return self.models is None or not self.models.isdisjoint(names)


def build_key_text(secret: bytes) -> str:
    """The key as its owner sees it, once."""
    assert len(secret) == KEY_SECRET_SIZE
    return KEY_PREFIX + base64.urlsafe_b64encode(secret).rstrip(b"=").decode()


def hash_key(text: str, pepper: bytes) -> bytes:
    """The 32 bytes kept of a key, under the gateway's own secret."""
    return hmac.digest(pepper, _HASH_TAG + text.encode(errors="replace"), "sha256")


@dataclass(frozen=True, slots=True)
class Draws:
    """The three 32-byte values that make one purchase's commitments its own."""

    client_nonce: bytes
    nonce: bytes
    salt: bytes


def derive_draws(key_text: str, seed: int, body: bytes, part: Part = PLAIN_CHAT) -> Draws:
    """Draws that are the same for the same key, seed, body and part, and unpredictable without the key."""
    return derive_from(sha256(key_text.encode(errors="replace")), seed, body, part)


def derive_from(secret: bytes, seed: int, body: bytes, part: Part) -> Draws:
    """The same from a secret of 32 bytes; two parts of one request share nothing but the client's nonce."""
    base = seed.to_bytes(8, signed=True) + sha256(body)
    client_nonce = hmac.digest(secret, b"deaios/gateway/client-nonce/1" + base, "sha256")
    if not part.is_plain_chat:
        base += sha256(part.api.encode()) + part.index.to_bytes(8)
    names = (b"nonce", b"salt")
    return Draws(
        client_nonce, *(hmac.digest(secret, b"deaios/gateway/" + name + b"/1" + base, "sha256") for name in names)
    )


def derive_pepper(key: PrivateKey) -> bytes:
    """The secret that hashes of API keys depend on, from the gateway's own key."""
    return tagged_sha256("deaios/gateway-pepper/1", key.secret)
