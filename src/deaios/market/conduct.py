"""What a provider says beside its offer about what it is shown: the key prompts are sealed to, and what it promises.

Pure. The offer's struct is what contracts judge; this is what they cannot judge, in a document of its own, signed by
the same key: tagged_sha256("deaios/conduct/1", network id, canonical JSON). The sealing key is *enforced*: without its
secret half nobody on the way reads a thing. Retention and use are *promised*: a signature that can be held up to who
broke it, and no more. Without trusted hardware the provider itself sees every prompt that it runs.

`enforced` is said only by who did the mathematics: a gateway that sealed papers itself may say it of sealing; a reader
of a saved answer may not, because no signature of the provider covers how its papers came.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import msgspec

from deaios.primitives.encoding import InvalidEncoding, Json, decode_hex, encode_canonical_json, encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import tagged_sha256
from deaios.primitives.keys import SIGNATURE_SIZE, Address, PrivateKey, recover_address

CONDUCT_TAG = "deaios/conduct/1"
SEALING_KEY_SIZE = 32
CONDUCT_LIFETIME_MS_MAX = 30 * 24 * 3600 * 1000
"""As offers."""
RETAINS_MS_MAX = 10 * 365 * 24 * 3600 * 1000
TIME_MS_MAX = (1 << 48) - 1
"""A number in JSON that every reader keeps."""
_KEYS = frozenset({"sealingKey", "retainsMs", "trains", "validUntil", "signature"})
_UNBACKED = "no stake answers for it"


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


class Kind(StrEnum):
    """On what a statement about privacy rests."""

    ENFORCED = "enforced"
    """Who would break it cannot: mathematics that this side has done or checked itself."""
    PROMISED = "promised"
    """The provider signed it. Nothing would notice a breach, so no stake answers for it."""
    CLAIMED = "claimed"
    """The gateway says so, and nothing in the papers shows it."""
    UNPROMISED = "not promised"
    """Nobody says so."""


@dataclass(frozen=True, slots=True)
class PrivacyFact:
    """One thing that can be said of an answer about who saw what of it."""

    fact: Literal["public", "sealed", "retention", "training"]
    kind: Kind
    says: str


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


def _conduct_of(body: ConductBody) -> Conduct:
    sealing_key = None if body.sealing_key is None else decode_hex(body.sealing_key, SEALING_KEY_SIZE)
    return Conduct(sealing_key, body.retains_ms, body.trains, body.valid_until)


def validate_conduct(network_id: bytes, body: ConductBody, provider: Address, now_ms: int) -> Conduct:
    """Check a statement as received.

    Raises:
        InvalidConduct: another signer, over, or out of bounds.
        InvalidEncoding: hex that is not canonical.
    """
    conduct = _conduct_of(body)
    if not 0 <= conduct.retains_ms <= RETAINS_MS_MAX:
        raise InvalidConduct(f"retention of {conduct.retains_ms} ms, 0 to {RETAINS_MS_MAX} allowed")
    if not is_in_force(body, now_ms):
        raise InvalidConduct(f"statement ends at {conduct.valid_until} ms, now is {now_ms} ms")
    signer = recover_stater(network_id, body)
    if signer != provider:
        raise InvalidConduct(f"statement of 0x{provider.hex()} is signed by 0x{signer.hex()}")
    return conduct


def read_conduct(value: object) -> ConductBody:
    """A statement from JSON, by its form alone: every key, no other, one spelling.

    Raises:
        InvalidConduct: what is wrong, and in which leaf.
    """
    if not isinstance(value, Mapping) or value.keys() != _KEYS:
        found = sorted(str(key) for key in value) if isinstance(value, Mapping) else type(value).__name__
        raise InvalidConduct(f"conduct has keys {found}, expected {sorted(_KEYS)}"[:400])
    sealing_key, signature = value["sealingKey"], value["signature"]
    for name, text, size in (("sealingKey", sealing_key, SEALING_KEY_SIZE), ("signature", signature, SIGNATURE_SIZE)):
        try:
            if text is not None or name == "signature":
                decode_hex(text, size)
        except InvalidEncoding as error:
            raise InvalidConduct(f"{name}: {error}") from error
    for name, bound in (("retainsMs", RETAINS_MS_MAX), ("validUntil", TIME_MS_MAX)):
        if type(value[name]) is not int or not 0 <= value[name] <= bound:
            raise InvalidConduct(f"{name}: {value[name]!r:.80} is not an unsigned integer of at most {bound}")
    if type(value["trains"]) is not bool:
        raise InvalidConduct(f"trains: {value['trains']!r:.80} is neither true nor false")
    return ConductBody(sealing_key, value["retainsMs"], value["trains"], value["validUntil"], signature)


def encode_conduct(body: ConductBody) -> dict[str, Json]:
    """The same as JSON."""
    return {
        "sealingKey": body.sealing_key,
        "retainsMs": body.retains_ms,
        "trains": body.trains,
        "validUntil": body.valid_until,
        "signature": body.signature,
    }


def recover_stater(network_id: bytes, body: ConductBody) -> Address:
    """Who signed a statement.

    Raises:
        InvalidSignature: nobody can have.
        InvalidEncoding: hex that is not canonical.
    """
    return recover_address(_digest(network_id, _conduct_of(body)), decode_hex(body.signature, SIGNATURE_SIZE))


def is_in_force(body: ConductBody, at_ms: int) -> bool:
    """Can a statement have been the one of a moment? It has an end, and no statement lasts longer than the bound."""
    return at_ms < body.valid_until <= at_ms + CONDUCT_LIFETIME_MS_MAX


def list_privacy(body: ConductBody | None, at_ms: int, *, has_sealed: bool) -> tuple[PrivacyFact, ...]:
    """What may be said of a purchase under a statement whose signature was checked.

    Args:
        body: the statement; None where the provider made none, or where it is not known any more.
        at_ms: when the answer was given.
        has_sealed: whether who asks sealed the papers itself, or takes the gateway's word that they were.
    """
    public = "chain and batches hold salted digests, counts and the fee, neither prompt nor answer"
    facts = [PrivacyFact("public", Kind.ENFORCED, public)]
    if body is None or not is_in_force(body, at_ms):
        why = "not stated" if body is None else "not stated for then: the statement shown is of another time"
        unsaid: tuple[Literal["sealed", "retention", "training"], ...] = ("sealed", "retention", "training")
        return (*facts, *(PrivacyFact(fact, Kind.UNPROMISED, why) for fact in unsaid))
    if body.sealing_key is None:
        facts.append(PrivacyFact("sealed", Kind.UNPROMISED, "the provider has no key to seal papers to"))
    elif has_sealed:
        sealed = "sealed to the provider's key: nobody between gateway and provider can read prompt or answer"
        facts.append(PrivacyFact("sealed", Kind.ENFORCED, sealed))
    else:
        sealed = (
            f"that papers went sealed to the provider's key {body.sealing_key}, which it signed, is the gateway's word"
        )
        facts.append(PrivacyFact("sealed", Kind.CLAIMED, sealed))
    kept = f"kept for {_duration(body.retains_ms)} at most" if body.retains_ms else "not kept once the answer is given"
    facts.append(PrivacyFact("retention", Kind.PROMISED, f"prompt and answer are {kept}; {_UNBACKED}"))
    if body.trains:
        facts.append(PrivacyFact("training", Kind.UNPROMISED, "the provider says that it uses prompts for more"))
    else:
        used = "prompt and answer are used for nothing but answering, disputes and audits"
        facts.append(PrivacyFact("training", Kind.PROMISED, f"{used}; {_UNBACKED}"))
    return tuple(facts)


def list_promises(conduct: Conduct | None) -> frozenset[str]:
    """What a statement promises of what users ask for: `no_training`, `no_retention`."""
    if conduct is None:
        return frozenset()
    promises = {"no_training": not conduct.trains, "no_retention": conduct.retains_ms == 0}
    return frozenset(name for name, is_promised in promises.items() if is_promised)


def _duration(size_ms: int) -> str:
    """In the largest unit that leaves no rest."""
    for unit, unit_ms in (("days", 86_400_000), ("hours", 3_600_000), ("seconds", 1000)):
        if size_ms % unit_ms == 0:
            return f"{size_ms // unit_ms} {unit}"
    return f"{size_ms} ms"
