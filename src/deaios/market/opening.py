"""The opening: everything a stranger needs to check one purchase, each value bound by a signature.

Pure. `decode_opening` checks form only; `receipts.validate_opening` checks that the parts belong together. It holds the
output as token ids, the prompt only as its commitment: who opens a receipt hands the prompt over separately.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from deaios.compute.constraint import CONSTRAINT_BYTES_MAX
from deaios.compute.fingerprints import LEAF_BYTES, split_leaves
from deaios.ledger.eip712 import decode_json, encode_json, hash_struct
from deaios.ledger.structs import MAX_TOKENS_LIMIT, Ask, Offer, Receipt, Request
from deaios.market.conduct import ConductBody, encode_conduct, read_conduct
from deaios.primitives.encoding import InvalidEncoding, Json, decode_hex, encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import SIGNATURE_SIZE

SALT_SIZE = 32
_KEYS = frozenset(
    {
        "ask",
        "salt",
        "offer",
        "offerSignature",
        "request",
        "requestSignature",
        "outputIds",
        "receipt",
        "receiptSignature",
    }
)
_CONSTRAINT, _CONDUCT, _FINGERPRINTS = "constraint", "conduct", "fingerprints"
_OPTIONAL = frozenset({_CONSTRAINT, _CONDUCT, _FINGERPRINTS})
"""Keys that are left out where there is nothing to say."""


class InvalidOpening(Invalid):
    """A JSON value that is not a well-formed opening."""


@dataclass(frozen=True, slots=True)
class Opening:
    """One purchase as buyer and provider hold it.

    Attributes:
        constraint: what the ask's mask hash stands for.
        conduct: what the provider stated about prompts when this was bought; bound by its signature alone, so who holds
            an opening can put in another statement of the same provider, and no statement of anybody else.
        fingerprints: what the receipt's fingerprint root stands for, one leaf for each output id.
    """

    ask: Ask
    salt: bytes
    offer: Offer
    offer_signature: bytes
    request: Request
    request_signature: bytes
    output_ids: tuple[int, ...]
    receipt: Receipt
    receipt_signature: bytes
    constraint: bytes | None = None
    conduct: ConductBody | None = None
    fingerprints: bytes = b""

    @property
    def receipt_digest(self) -> bytes:
        """The batch leaf."""
        return hash_struct(self.receipt)

    def encode_json(self) -> dict[str, Json]:
        """The opening as a JSON object in its one canonical form."""
        value: dict[str, Json] = {
            "ask": encode_json(self.ask),
            "salt": encode_hex(self.salt),
            "offer": encode_json(self.offer),
            "offerSignature": encode_hex(self.offer_signature),
            "request": encode_json(self.request),
            "requestSignature": encode_hex(self.request_signature),
            "outputIds": list(self.output_ids),
            "receipt": encode_json(self.receipt),
            "receiptSignature": encode_hex(self.receipt_signature),
        }
        if self.constraint is not None:
            value[_CONSTRAINT] = self.constraint.decode()
        if self.conduct is not None:
            value[_CONDUCT] = encode_conduct(self.conduct)
        if self.fingerprints:
            value[_FINGERPRINTS] = encode_hex(self.fingerprints)
        return value

    @classmethod
    def decode_json(cls, value: object) -> "Opening":
        """Read an opening from parsed JSON.

        Raises:
            InvalidOpening: missing or unknown keys, or ids that are not a bounded list of 32-bit integers.
            InvalidFingerprints: fingerprints that are not one for each id.
            InvalidStruct, InvalidConduct: a part is not well formed.
        """
        if not isinstance(value, Mapping) or value.keys() - _OPTIONAL != _KEYS:
            found = sorted(str(key) for key in value) if isinstance(value, Mapping) else type(value).__name__
            raise InvalidOpening(f"opening has keys {found}, expected {sorted(_KEYS)}")
        output_ids = read_ids(value["outputIds"], MAX_TOKENS_LIMIT)
        return cls(
            ask=decode_json(Ask, value["ask"]),
            salt=_read_hex(value, "salt", SALT_SIZE),
            offer=decode_json(Offer, value["offer"]),
            offer_signature=_read_hex(value, "offerSignature", SIGNATURE_SIZE),
            request=decode_json(Request, value["request"]),
            request_signature=_read_hex(value, "requestSignature", SIGNATURE_SIZE),
            output_ids=output_ids,
            receipt=decode_json(Receipt, value["receipt"]),
            receipt_signature=_read_hex(value, "receiptSignature", SIGNATURE_SIZE),
            constraint=read_constraint(value[_CONSTRAINT]) if _CONSTRAINT in value else None,
            conduct=read_conduct(value[_CONDUCT]) if _CONDUCT in value else None,
            fingerprints=_read_fingerprints(value, len(output_ids)) if _FINGERPRINTS in value else b"",
        )


def _read_fingerprints(value: Mapping[str, object], count: int) -> bytes:
    """The leaves of so many ids: no more text is read than they take, and an empty text is no second spelling."""
    if not count:
        raise InvalidOpening("fingerprints: none go with an output without ids")
    data = _read_hex(value, _FINGERPRINTS, count * LEAF_BYTES)
    split_leaves(data, count)
    return data


def _read_hex(value: Mapping[str, object], name: str, size_bytes: int) -> bytes:
    try:
        return decode_hex(value[name], size_bytes)  # type: ignore[arg-type]  # decode_hex refuses what is not text
    except InvalidEncoding as error:
        raise InvalidOpening(f"{name}: {error}") from error


def read_constraint(value: object) -> bytes:
    """A constraint's bytes from JSON, where they are text; what they say is checked elsewhere.

    Raises:
        InvalidOpening: not text with a UTF-8 form, or too long.
    """
    try:
        data = value.encode() if isinstance(value, str) else None
    except UnicodeEncodeError:
        data = None
    if data is None or len(data) > CONSTRAINT_BYTES_MAX:
        raise InvalidOpening(f"constraint: expected text of at most {CONSTRAINT_BYTES_MAX} bytes")
    return data


def read_ids(value: object, count_max: int) -> tuple[int, ...]:
    """A JSON list as token ids.

    Raises:
        InvalidOpening: not a list, too long, or an item that is no unsigned 32-bit integer.
    """
    if not isinstance(value, list) or len(value) > count_max:
        raise InvalidOpening(f"token ids are not a list of at most {count_max}")
    for item in value:
        if type(item) is not int or not 0 <= item < 1 << 32:
            raise InvalidOpening(f"token id {item!r} is not an unsigned 32-bit integer")
    return tuple(value)
