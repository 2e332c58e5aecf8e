"""x402 v2 over HTTP as bytes: what is asked for, what comes as payment, what is said about it.

Every header is base64 of JSON. Pure; nothing here knows a chain, a clock or an account. A payment is read into values
of fixed size or refused by x402's own reason; keys that it has besides are other extensions' matter and are ignored.
Two schemes: `batch-settlement` (a channel, cumulative vouchers) and `exact` (one EIP-3009 transfer). A channel's
payment may carry a `window`, which is ours: the request is signed by itself, and many may be under way at once.
Source: x402-foundation/x402, specs/x402-specification-v2.md, specs/transports-v2/http.md, specs/schemes.
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import msgspec

from deaios.ledger.structs import ChannelConfig
from deaios.ledger.x402 import TransferWithAuthorization
from deaios.primitives.encoding import InvalidEncoding, decode_decimal, decode_hex, encode_hex, validate_json_depth
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import SIGNATURE_SIZE, Address, checksum_address, parse_address

VERSION = 2
REQUIRED_HEADER = "PAYMENT-REQUIRED"
SIGNATURE_HEADER = "PAYMENT-SIGNATURE"
RESPONSE_HEADER = "PAYMENT-RESPONSE"
EXPOSED_HEADERS = f"{REQUIRED_HEADER}, {RESPONSE_HEADER}"
"""What a browser may show to a page."""
CHANNEL_SCHEME = "batch-settlement"
EXACT_SCHEME = "exact"
AMOUNT_BITS = 128
WORD_BITS = 256

_CHANNEL = "invalid_batch_settlement_evm_"
CHANNEL_NOT_FOUND = _CHANNEL + "channel_not_found"
CHANNEL_ID_MISMATCH = _CHANNEL + "channel_id_mismatch"
RECEIVER_MISMATCH = _CHANNEL + "receiver_mismatch"
AUTHORIZER_MISMATCH = _CHANNEL + "receiver_authorizer_mismatch"
TOKEN_MISMATCH = _CHANNEL + "token_mismatch"
DELAY_MISMATCH = _CHANNEL + "withdraw_delay_mismatch"
VOUCHER_SIGNATURE = _CHANNEL + "voucher_signature"
EXCEEDS_BALANCE = _CHANNEL + "cumulative_exceeds_balance"
AMOUNT_MISMATCH = _CHANNEL + "cumulative_amount_mismatch"
CHANNEL_BUSY = _CHANNEL + "channel_busy"
DEPOSIT_PAYLOAD = _CHANNEL + "deposit_payload"
DEPOSIT_SIGNATURE = _CHANNEL + "receive_authorization_signature"
DEPOSIT_EXPIRED = _CHANNEL + "payload_authorization_valid_before"
DEPOSIT_TOO_SMALL = _CHANNEL + "deposit_below_min_deposit"
DEPOSIT_FAILED = _CHANNEL + "deposit_transaction_failed"
PAYLOAD_TYPE = _CHANNEL + "payload_type"
REFUND_AMOUNT = _CHANNEL + "refund_amount_invalid"
REFUND_NO_BALANCE = _CHANNEL + "refund_no_balance"
REFUND_FAILED = _CHANNEL + "refund_transaction_failed"
WITHDRAWING = _CHANNEL + "withdrawal_pending"
"""Ours: x402 names no reason for a channel whose payer takes its money back."""
VOUCHER_NEEDED = _CHANNEL + "voucher_needed"
"""Ours, in window mode: the highest voucher does not cover the request; `extra.needed` is the one that would."""
REQUEST_REPLAYED = _CHANNEL + "request_replayed"
REQUEST_SIGNATURE = _CHANNEL + "request_signature"
_EXACT = "invalid_exact_evm_"
EXACT_PAYLOAD = _EXACT + "payload"
EXACT_SIGNATURE = _EXACT + "payload_signature"
EXACT_VALUE = _EXACT + "payload_authorization_value"
EXACT_RECIPIENT = _EXACT + "payload_recipient_mismatch"
EXACT_EXPIRED = _EXACT + "payload_authorization_valid_before"
EXACT_EARLY = _EXACT + "payload_authorization_valid_after"
EXACT_USED = _EXACT + "nonce_already_used"
EXACT_FAILED = _EXACT + "transaction_failed"
NO_MATCH = "no_matching_payment_requirements"
INVALID_PAYLOAD = "invalid_payload"
PAYMENT_REQUIRED = "payment_required"


class InvalidPayment(Invalid):
    """A payment that is not taken.

    Attributes:
        reason: x402's word for it.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Accepted:
    """Which of the offered requirements a payment says it meets."""

    scheme: str
    network: str
    amount: int
    asset: Address
    pay_to: Address


@dataclass(frozen=True, slots=True)
class Deposit:
    """Money for a channel by EIP-3009; times in Unix seconds."""

    amount: int
    valid_after: int
    valid_before: int
    salt: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class Window:
    """What makes a request in window mode its own: a number never used before, signed with the body's hash."""

    sequence: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class ChannelPayment:
    """A voucher of a channel, and what comes with it.

    Attributes:
        channel_id: as claimed; whether it is the config's is the account's matter.
        deposit: with `type` deposit.
        refund: with `type` refund: the amount wanted back, 0 for all that is left; None otherwise.
        window: in window mode.
    """

    config: ChannelConfig
    channel_id: bytes
    maximum: int
    signature: bytes
    deposit: Deposit | None = None
    refund: int | None = None
    window: Window | None = None


@dataclass(frozen=True, slots=True)
class ExactPayment:
    """One transfer that its owner signed."""

    authorization: TransferWithAuthorization
    signature: bytes


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment header, read."""

    accepted: Accepted
    body: ChannelPayment | ExactPayment


class Requirements(msgspec.Struct, frozen=True, rename="camel"):
    """One way to pay."""

    scheme: str
    network: str
    amount: str
    asset: str
    pay_to: str
    max_timeout_seconds: int
    extra: dict[str, Any]  # Any: JSON of the scheme


class Resource(msgspec.Struct, frozen=True, rename="camel"):
    """What is paid for."""

    url: str
    description: str
    mime_type: str


class Required(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The 402's header, and its body's `x402`."""

    x402_version: int = msgspec.field(name="x402Version")
    accepts: list[Requirements]
    resource: Resource
    error: str | None = None


class Settled(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What became of a payment."""

    success: bool
    transaction: str
    network: str
    payer: str | None = None
    amount: str | None = None
    error_reason: str | None = None
    extra: dict[str, Any] | None = None  # Any: JSON of the scheme


class _Accepted(msgspec.Struct, rename="camel"):
    scheme: str
    network: str
    amount: str
    asset: str
    pay_to: str


class _Config(msgspec.Struct, rename="camel"):
    payer: str
    payer_authorizer: str
    receiver: str
    receiver_authorizer: str
    token: str
    withdraw_delay: int
    salt: str


class _Voucher(msgspec.Struct, rename="camel"):
    channel_id: str
    max_claimable_amount: str
    signature: str


class _Erc3009(msgspec.Struct, rename="camel"):
    valid_after: str
    valid_before: str
    salt: str
    signature: str


class _Authorizations(msgspec.Struct, rename="camel"):
    erc3009_authorization: _Erc3009


class _Deposit(msgspec.Struct):
    amount: str
    authorization: _Authorizations


class _Window(msgspec.Struct):
    sequence: str
    signature: str


class _ChannelBody(msgspec.Struct, rename="camel"):
    type: str
    channel_config: _Config
    voucher: _Voucher
    deposit: _Deposit | None = None
    amount: str | None = None
    window: _Window | None = None


class _Authorization(msgspec.Struct, rename="camel"):
    sender: str = msgspec.field(name="from")
    to: str
    value: str
    valid_after: str
    valid_before: str
    nonce: str


class _ExactBody(msgspec.Struct):
    authorization: _Authorization
    signature: str


class _Header(msgspec.Struct, rename="camel"):
    x402_version: int = msgspec.field(name="x402Version")
    accepted: _Accepted
    payload: msgspec.Raw


def encode_header(value: msgspec.Struct) -> str:
    """A value as x402 puts it into a header."""
    return base64.b64encode(msgspec.json.encode(value)).decode()


def decode_payment(header: str) -> Payment:
    """Read a `PAYMENT-SIGNATURE` header.

    Raises:
        InvalidPayment: it is not a payment of one of the two schemes.
    """
    try:
        data = base64.b64decode(header.encode(), validate=True)
        validate_json_depth(data)
        read = msgspec.json.decode(data, type=_Header)
        if read.x402_version != VERSION:
            raise InvalidPayment(INVALID_PAYLOAD, f"x402 version {read.x402_version}, {VERSION} is spoken here")
        accepted = _read_accepted(read.accepted)
        if accepted.scheme == CHANNEL_SCHEME:
            return Payment(accepted, _read_channel(msgspec.json.decode(read.payload, type=_ChannelBody)))
        if accepted.scheme == EXACT_SCHEME:
            return Payment(accepted, _read_exact(msgspec.json.decode(read.payload, type=_ExactBody)))
    except (msgspec.DecodeError, UnicodeError, binascii.Error, InvalidEncoding) as error:
        raise InvalidPayment(INVALID_PAYLOAD, f"not a payment: {error}") from error
    raise InvalidPayment(NO_MATCH, f"scheme {accepted.scheme[:40]!r} is not taken")


def _read_accepted(value: _Accepted) -> Accepted:
    return Accepted(
        value.scheme,
        value.network,
        decode_decimal(value.amount, AMOUNT_BITS),
        _address(value.asset),
        _address(value.pay_to),
    )


def _read_channel(value: _ChannelBody) -> ChannelPayment:
    if value.type not in ("deposit", "voucher", "refund") or (value.type == "deposit") != (value.deposit is not None):
        raise InvalidPayment(PAYLOAD_TYPE, f"payload type {value.type[:40]!r} with these parts is not taken")
    refund = None
    if value.type == "refund":
        refund = 0 if value.amount is None else decode_decimal(value.amount, AMOUNT_BITS)
        if value.amount is not None and not refund:
            raise InvalidPayment(REFUND_AMOUNT, "a refund of nothing")
    return ChannelPayment(
        config=_read_config(value.channel_config),
        channel_id=_word(value.voucher.channel_id),
        maximum=decode_decimal(value.voucher.max_claimable_amount, AMOUNT_BITS),
        signature=_signature(value.voucher.signature),
        deposit=None if value.deposit is None else _read_deposit(value.deposit),
        refund=refund,
        window=None if value.window is None else _read_window(value.window),
    )


def _read_config(value: _Config) -> ChannelConfig:
    if not 0 <= value.withdraw_delay < 1 << 40:
        raise InvalidEncoding(f"withdraw delay {value.withdraw_delay} is not a uint40")
    return ChannelConfig(
        payer=_address(value.payer),
        payer_authorizer=_address(value.payer_authorizer),
        receiver=_address(value.receiver),
        receiver_authorizer=_address(value.receiver_authorizer),
        token=_address(value.token),
        withdraw_delay=value.withdraw_delay,
        salt=_word(value.salt),
    )


def _read_deposit(value: _Deposit) -> Deposit:
    terms = value.authorization.erc3009_authorization
    return Deposit(
        amount=decode_decimal(value.amount, AMOUNT_BITS),
        valid_after=decode_decimal(terms.valid_after, WORD_BITS),
        valid_before=decode_decimal(terms.valid_before, WORD_BITS),
        salt=int.from_bytes(_word(terms.salt)),
        signature=_signature(terms.signature),
    )


def _read_window(value: _Window) -> Window:
    return Window(decode_decimal(value.sequence, 64), _signature(value.signature))


def _read_exact(value: _ExactBody) -> ExactPayment:
    terms = value.authorization
    authorization = TransferWithAuthorization(
        from_=_address(terms.sender),
        to=_address(terms.to),
        value=decode_decimal(terms.value, WORD_BITS),
        valid_after=decode_decimal(terms.valid_after, WORD_BITS),
        valid_before=decode_decimal(terms.valid_before, WORD_BITS),
        nonce=_word(terms.nonce),
    )
    return ExactPayment(authorization, _signature(value.signature))


def encode_config(config: ChannelConfig) -> dict[str, str | int]:
    """A channel's terms as payments carry them."""
    return {
        "payer": checksum_address(config.payer),
        "payerAuthorizer": checksum_address(config.payer_authorizer),
        "receiver": checksum_address(config.receiver),
        "receiverAuthorizer": checksum_address(config.receiver_authorizer),
        "token": checksum_address(config.token),
        "withdrawDelay": config.withdraw_delay,
        "salt": encode_hex(config.salt),
    }


def decode_config(value: bytes) -> ChannelConfig:
    """Read a channel's terms from JSON.

    Raises:
        InvalidPayment: it is something else.
    """
    try:
        return _read_config(msgspec.json.decode(value, type=_Config))
    except (msgspec.DecodeError, InvalidEncoding) as error:
        raise InvalidPayment(INVALID_PAYLOAD, f"not a channel's terms: {error}") from error


def _address(text: str) -> Address:
    """An address in any case: clients write their checksums, and some write none."""
    return parse_address(text.lower())


def _word(text: str) -> bytes:
    return decode_hex(text.lower(), 32)


def _signature(text: str) -> bytes:
    return decode_hex(text.lower(), SIGNATURE_SIZE)
