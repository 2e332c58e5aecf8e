"""What a provider says beside its offer about what it is shown: the key prompts are sealed to, and what it promises.

Pure. The offer's struct is what contracts judge; this is what they cannot judge, in a document of its own, signed by
the same key: tagged_sha256("deaios/conduct/1", network id, canonical JSON). The sealing key is *enforced*: without its
secret half nobody on the way reads a thing. Retention and use are *promised*: a signature that can be held up to who
broke it, and no more. Without trusted hardware the provider itself sees every prompt that it runs.
"""

from dataclasses import dataclass
from typing import Literal

import msgspec

from deaios.primitives.encoding import Json, decode_hex, encode_canonical_json, encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import tagged_sha256
from deaios.primitives.keys import SIGNATURE_SIZE, Address, PrivateKey, recover_address

CONDUCT_TAG = "deaios/conduct/1"
SEALING_KEY_SIZE = 32
CONDUCT_LIFETIME_MS_MAX = 30 * 24 * 3600 * 1000
"""As offers."""
RETAINS_MS_MAX = 10 * 365 * 24 * 3600 * 1000


class InvalidConduct(Invalid):
    """A statement that its provider did not sign, or that is over."""


@dataclass(frozen=True, slots=True)
class Conduct:
    """A provider's statement.

    Attributes:
        sealing_key: X25519 public key (RFC 9180 DHKEM) that papers may be sealed to; None for none.
        retains_ms: how long prompts and answers are kept; 0 for not beyond the answer.
        trains: whether they are used for anything but answering, disputes and audits.
        valid_until: milliseconds since the Unix epoch.
    """

    sealing_key: bytes | None
    retains_ms: int
    trains: bool
    valid_until: int


class ConductBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    """As it travels in `GET /offer`."""

    sealing_key: str | None
    retains_ms: int
    trains: bool
    valid_until: int
    signature: str


@dataclass(frozen=True, slots=True)
class PrivacyFact:
    """One thing an answer can say about who saw its prompt, and whether that is enforced or only promised."""

    fact: Literal["sealed_to_provider", "no_training", "no_retention"]
    kind: Literal["enforced", "promised"]


def _fields(conduct: Conduct) -> dict[str, Json]:
    return {
        "sealingKey": None if conduct.sealing_key is None else encode_hex(conduct.sealing_key),
        "retainsMs": conduct.retains_ms,
        "trains": conduct.trains,
        "validUntil": conduct.valid_until,
    }


def _digest(network_id: bytes, conduct: Conduct) -> bytes:
    return tagged_sha256(CONDUCT_TAG, network_id, encode_canonical_json(_fields(conduct)))


def sign_conduct(key: PrivateKey, network_id: bytes, conduct: Conduct) -> ConductBody:
    """State it under one's own key.

    Args:
        key: the provider's.
        network_id: genesis hash.
        conduct: what is stated.
    """
    signature = key.sign_digest(_digest(network_id, conduct))
    sealing_key = None if conduct.sealing_key is None else encode_hex(conduct.sealing_key)
    return ConductBody(sealing_key, conduct.retains_ms, conduct.trains, conduct.valid_until, encode_hex(signature))


def validate_conduct(network_id: bytes, body: ConductBody, provider: Address, now_ms: int) -> Conduct:
    """Check a statement as received.

    Raises:
        InvalidConduct: another signer, over, or out of bounds.
        InvalidEncoding: hex that is not canonical.
    """
    sealing_key = None if body.sealing_key is None else decode_hex(body.sealing_key, SEALING_KEY_SIZE)
    conduct = Conduct(sealing_key, body.retains_ms, body.trains, body.valid_until)
    if not 0 <= conduct.retains_ms <= RETAINS_MS_MAX:
        raise InvalidConduct(f"retention of {conduct.retains_ms} ms, 0 to {RETAINS_MS_MAX} allowed")
    if not now_ms < conduct.valid_until <= now_ms + CONDUCT_LIFETIME_MS_MAX:
        raise InvalidConduct(f"statement ends at {conduct.valid_until} ms, now is {now_ms} ms")
    signer = recover_address(_digest(network_id, conduct), decode_hex(body.signature, SIGNATURE_SIZE))
    if signer != provider:
        raise InvalidConduct(f"statement of 0x{provider.hex()} is signed by 0x{signer.hex()}")
    return conduct


def list_privacy(conduct: Conduct | None) -> tuple[PrivacyFact, ...]:
    """What may be said of a purchase under a statement; nothing where there is none."""
    if conduct is None:
        return ()
    facts: list[PrivacyFact] = []
    if conduct.sealing_key is not None:
        facts.append(PrivacyFact("sealed_to_provider", "enforced"))
    if not conduct.trains:
        facts.append(PrivacyFact("no_training", "promised"))
    if conduct.retains_ms == 0:
        facts.append(PrivacyFact("no_retention", "promised"))
    return tuple(facts)
