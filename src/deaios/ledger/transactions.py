"""Ethereum transactions as bytes: legacy, access-list (EIP-2930) and dynamic-fee (EIP-1559).

A decoded transaction re-encodes to the very bytes it came from, so its hash names it. Signatures have low s (EIP-2).
Blob (type 3) and set-code (type 4) transactions are refused, not skipped. Knows nothing of state, balances or gas
prices in force; that is the chain's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from deaios.ledger.rlp import (
    Decoded,
    InvalidRlp,
    Rlp,
    decode_integer,
    decode_rlp,
    encode_integer,
    encode_rlp,
    wrap_list,
)
from deaios.primitives.errors import Invalid, Refused
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import ADDRESS_SIZE, Address, InvalidSignature, PrivateKey, recover_address

LEGACY = 0
ACCESS_LIST = 1
DYNAMIC_FEE = 2
TRANSACTION_BYTES_MAX = 128 << 10
"""As geth's pool (txMaxSize): four 32 KiB slots."""
NONCE_MAX = (1 << 64) - 2
"""EIP-2681."""
CHAIN_ID_MAX = (1 << 64) // 2 - 36
"""EIP-2294's bound; v of a legacy signature stays within 64 bits."""
ACCESS_ITEMS_MAX = 4096
"""Addresses plus keys of one access list; at 1,900 gas or more each it could not be paid for anyway."""
_ENVELOPE_BYTE_MAX = 0x7F
_FIELD_BYTES = (
    (8, 32, 8, 0, 32, 0, 8, 32, 32),
    (8, 8, 32, 8, 0, 32, 0, 0, 8, 32, 32),
    (8, 8, 32, 32, 8, 0, 32, 0, 0, 8, 32, 32),
)
"""By type, the most bytes of each field that is an integer; 0 for recipient, data and access list."""

_DATA_PLACE = 7
_USUAL_FIELDS = 11
"""Of type 2: where the data stands, and how many fields there are beside the access list."""

AccessList = tuple[tuple[Address, tuple[int, ...]], ...]


class InvalidTransaction(Invalid):
    """Bytes that are not a transaction of a known type, or break a rule that needs no state."""


class InvalidChainId(InvalidTransaction):
    """Signed for another chain, or for any chain (no EIP-155 replay protection)."""


class RefusedTransactionType(Refused):
    """A well-formed type that this ledger does not carry."""


@dataclass(frozen=True)
class Transaction:
    """One transaction; unsigned while `r` is 0. Ranges are checked by `decode_transaction` and `validate_ranges`.

    Attributes:
        kind: EIP-2718 type: 0, 1 or 2.
        chain_id: None only for a legacy transaction from before EIP-155, which is refused at the edge.
        max_fee: gas price of types 0 and 1; most that a gas unit may cost in type 2. Wei.
        tip: equal to `max_fee` for types 0 and 1.
        to: None creates a contract.
        parity: 0 or 1.
    """

    kind: int
    chain_id: int | None
    nonce: int
    max_fee: int
    tip: int
    gas: int
    to: Address | None
    value: int
    data: bytes
    access_list: AccessList = ()
    parity: int = 0
    r: int = 0
    s: int = 0

    @cached_property
    def raw(self) -> bytes:
        """The signed bytes that travel."""
        return encode_transaction(self)

    @cached_property
    def hash(self) -> bytes:
        """keccak-256 of the signed bytes."""
        return keccak256(self.raw)

    @cached_property
    def signing_hash(self) -> bytes:
        """The 32 bytes that the sender signs."""
        return compute_signing_hash(self)

    @property
    def v(self) -> int:
        """The v that JSON-RPC shows: EIP-155 for legacy, parity for the others."""
        if self.kind != LEGACY:
            return self.parity
        return self.parity + (27 if self.chain_id is None else 35 + 2 * self.chain_id)


def encode_transaction(transaction: Transaction) -> bytes:
    """The signed bytes of a transaction."""
    signature = [encode_integer(transaction.v), encode_integer(transaction.r), encode_integer(transaction.s)]
    body = encode_rlp([*_fields(transaction), *signature])
    return body if transaction.kind == LEGACY else bytes((transaction.kind,)) + body


def compute_signing_hash(transaction: Transaction) -> bytes:
    """The 32 bytes that the sender signs."""
    fields = _fields(transaction)
    if transaction.kind != LEGACY:
        return keccak256(bytes((transaction.kind,)) + encode_rlp(fields))
    if transaction.chain_id is not None:
        fields += [encode_integer(transaction.chain_id), b"", b""]
    return keccak256(encode_rlp(fields))


def _fields(transaction: Transaction) -> list[Rlp]:
    integers = [transaction.nonce, transaction.max_fee, transaction.gas]
    if transaction.kind == DYNAMIC_FEE:
        integers.insert(1, transaction.tip)
    if transaction.kind != LEGACY:
        integers.insert(0, transaction.chain_id or 0)
    fields: list[Rlp] = [encode_integer(value) for value in integers]
    fields += [transaction.to or b"", encode_integer(transaction.value), transaction.data]
    if transaction.kind != LEGACY:
        fields.append([[address, [key.to_bytes(32) for key in keys]] for address, keys in transaction.access_list])
    return fields


def sign_transaction(key: PrivateKey, transaction: Transaction) -> Transaction:
    """The transaction with the key's signature (RFC 6979, low s)."""
    signature = key.sign_digest(compute_signing_hash(transaction))
    return replace(
        transaction,
        r=int.from_bytes(signature[:32]),
        s=int.from_bytes(signature[32:64]),
        parity=signature[64] - 27,
    )


def recover_sender(transaction: Transaction) -> Address:
    """Who signed a transaction.

    Raises:
        InvalidTransaction: the signature is out of range, has a high s, or recovers to no key.
    """
    signature = transaction.r.to_bytes(32) + transaction.s.to_bytes(32) + bytes((27 + transaction.parity,))
    try:
        return recover_address(transaction.signing_hash, signature)
    except InvalidSignature as error:
        raise InvalidTransaction(f"invalid sender: {error}") from error


def validate_chain_id(transaction: Transaction, chain_id: int) -> None:
    """Refuse what was signed for another chain.

    Raises:
        InvalidChainId: another chain id, or none.
    """
    if transaction.chain_id is None:
        raise InvalidChainId("only replay-protected (EIP-155) transactions allowed over RPC")
    if transaction.chain_id != chain_id:
        raise InvalidChainId(f"invalid chain id for signer: have {transaction.chain_id} want {chain_id}")


def decode_transaction(raw: bytes) -> Transaction:
    """Read signed transaction bytes.

    Raises:
        InvalidTransaction: too long, malformed, out of range, or a second spelling of another transaction.
        RefusedTransactionType: blob (3) or set-code (4).
    """
    if not raw:
        raise InvalidTransaction("transaction has no bytes")
    if len(raw) > TRANSACTION_BYTES_MAX:
        raise InvalidTransaction(f"oversized data: transaction size {len(raw)}, limit {TRANSACTION_BYTES_MAX}")
    kind = raw[0] if raw[0] <= _ENVELOPE_BYTE_MAX else LEGACY
    if kind == LEGACY and raw[0] < 0xC0:
        raise InvalidTransaction(f"transaction type not supported: first byte 0x{raw[0]:02x}")
    if kind in (3, 4):
        name, standard = ("blob", "EIP-4844") if kind == 3 else ("set-code", "EIP-7702")
        raise RefusedTransactionType(
            f"transaction type not supported: type {kind} ({name}, {standard}); this ledger takes types 0, 1 and 2"
        )
    if kind > DYNAMIC_FEE:
        raise InvalidTransaction(f"transaction type not supported: type {kind}; this ledger takes types 0, 1 and 2")
    raw = bytes(raw)
    usual = _decode_usual(raw) if kind == DYNAMIC_FEE else None
    return usual if usual is not None else _decode_any(kind, raw)


def _decode_any(kind: int, raw: bytes) -> Transaction:
    """Every form that a transaction of a known type may have, and the words for what is none."""
    try:
        transaction = _from_fields(kind, decode_rlp(raw if kind == LEGACY else raw[1:]))
    except InvalidRlp as error:
        raise InvalidTransaction(f"rlp: {error}") from error
    # Fills cached properties: decoding is strict, so these are the bytes, and what was signed is a part of them.
    transaction.__dict__["raw"] = raw
    transaction.__dict__["signing_hash"] = _cut_signing_hash(transaction, raw)
    return transaction


def _decode_usual(raw: bytes) -> Transaction | None:
    """Type 2 without access list and with less than 256 bytes of data: nearly all there are, in half the time.

    None for whatever is not plainly that; `_decode_any` reads or refuses it. So this one never takes what that refuses,
    and may leave to it what is valid (an address that begins with a zero byte).
    """
    size = len(raw)
    start = 3 if raw[1:2] == b"\xf8" else 4
    if size <= start or raw[1] not in (0xF8, 0xF9) or not 55 < int.from_bytes(raw[2:start]) == size - start:
        return None
    if start == 4 and not raw[2]:
        return None
    fields: list[bytes] = []
    position, signed = start, 0
    while position < size:  # bounded: each field moves on
        first = raw[position]
        if first == 0x80:
            fields.append(b"")
            position += 1
        elif 0 < first < 0x80:
            fields.append(raw[position : position + 1])
            position += 1
        elif 0x80 < first < 0xB8:
            field = raw[position + 1 : position + first - 0x7F]
            if field < (b"\x80" if first == 0x81 else b"\x01"):  # its own encoding, or a leading zero byte
                return None
            fields.append(field)
            position += first - 0x7F
        elif first == 0xB8 and len(fields) == _DATA_PLACE and position + 1 < size and raw[position + 1] > 55:
            follows = position + 2 + raw[position + 1]
            fields.append(raw[position + 2 : follows])
            position = follows
        elif first == 0xC0 and len(fields) == _DATA_PLACE + 1 and not signed:
            position = signed = position + 1
        else:
            return None
    if position != size or len(fields) != _USUAL_FIELDS or not signed:
        return None
    to, data = fields[_DATA_PLACE - 2], fields[_DATA_PLACE]
    del fields[_DATA_PLACE], fields[_DATA_PLACE - 2]
    chain_id, nonce, tip, max_fee, gas, value, parity, r, s = map(int.from_bytes, fields)
    is_in_range = chain_id <= CHAIN_ID_MAX and nonce <= NONCE_MAX and tip <= max_fee and parity <= 1
    if not is_in_range or gas >> 64 or (max_fee | value | r | s) >> 256 or len(to) not in (0, ADDRESS_SIZE):
        return None
    transaction = Transaction.__new__(Transaction)
    transaction.__dict__.update(
        kind=DYNAMIC_FEE,
        chain_id=chain_id,
        nonce=nonce,
        max_fee=max_fee,
        tip=tip,
        gas=gas,
        to=Address(to) if to else None,
        value=value,
        data=data,
        access_list=(),
        parity=parity,
        r=r,
        s=s,
        raw=raw,
        signing_hash=keccak256(b"\x02" + wrap_list((raw[start:signed],))),
    )
    return transaction


def _cut_signing_hash(transaction: Transaction, raw: bytes) -> bytes:
    """The signing hash from the signed bytes: the fields before the signature, under a list head of their own."""
    start = 0 if transaction.kind == LEGACY else 1
    first = raw[start]
    start += 1 if first < 0xF8 else first - 0xF6
    end = len(raw) - sum([_integer_size(value) for value in (transaction.v, transaction.r, transaction.s)])
    if transaction.kind != LEGACY:
        return keccak256(raw[:1] + wrap_list((raw[start:end],)))
    if transaction.chain_id is None:
        return keccak256(wrap_list((raw[start:end],)))
    return keccak256(wrap_list((raw[start:end], encode_rlp(encode_integer(transaction.chain_id)), b"\x80\x80")))


def _integer_size(value: int) -> int:
    """Bytes of an integer's RLP."""
    return 1 if value < 0x80 else 1 + (value.bit_length() + 7) // 8


def _from_fields(kind: int, fields: Decoded) -> Transaction:
    sizes = _FIELD_BYTES[kind]
    if not isinstance(fields, list) or len(fields) != len(sizes):
        found = f"{len(fields)} fields" if isinstance(fields, list) else "a string"
        raise InvalidTransaction(f"type {kind} transaction is {found}, {len(sizes)} fields expected")
    # `decode_integer` in one loop: it is asked only where something is wrong, and then says what.
    numbers = [
        int.from_bytes(field)
        if isinstance(field, bytes) and len(field) <= size and field[:1] != b"\0"
        else decode_integer(field, 8 * size)
        for field, size in zip(fields, sizes, strict=True)
        if size
    ]
    to_place = len(fields) - (6 if kind == LEGACY else 7)
    to, data = _read_to(fields[to_place]), fields[to_place + 2]
    if not isinstance(data, bytes):
        raise InvalidTransaction("data is a list")
    access_list = _read_access_list(fields[to_place + 3]) if kind != LEGACY else ()
    *numbers, value, v, r, s = numbers
    chain_id: int | None
    if kind == DYNAMIC_FEE:
        chain_id, nonce, tip, max_fee, gas = numbers
    elif kind == ACCESS_LIST:
        chain_id, nonce, max_fee, gas = numbers
        tip = max_fee
    else:
        nonce, max_fee, gas = numbers
        tip = max_fee
    parity = v
    if kind == LEGACY:
        if v not in (27, 28) and v < 35:
            raise InvalidTransaction(f"invalid transaction v, r, s values: v is {v}")
        chain_id, parity = (None, v - 27) if v < 35 else ((v - 35) // 2, (v - 35) % 2)
    elif v > 1:
        raise InvalidTransaction(f"invalid transaction v, r, s values: parity is {v}, 0 or 1 expected")
    transaction = Transaction.__new__(Transaction)
    # A frozen dataclass sets its fields one call at a time; every transaction of every block comes through here.
    transaction.__dict__.update(
        kind=kind,
        chain_id=chain_id,
        nonce=nonce,
        max_fee=max_fee,
        tip=tip,
        gas=gas,
        to=to,
        value=value,
        data=data,
        access_list=access_list,
        parity=parity,
        r=r,
        s=s,
    )
    validate_ranges(transaction)
    return transaction


def validate_ranges(transaction: Transaction) -> None:
    """The rules between fields that need no state.

    Raises:
        InvalidTransaction: the nonce cannot grow, the tip exceeds the fee cap, or the chain id is out of range.
    """
    if transaction.nonce > NONCE_MAX:
        raise InvalidTransaction(f"nonce has max value: nonce {transaction.nonce}, at most {NONCE_MAX} (EIP-2681)")
    if transaction.tip > transaction.max_fee:
        raise InvalidTransaction(
            f"max priority fee per gas higher than max fee per gas: maxPriorityFeePerGas: {transaction.tip}, "
            f"maxFeePerGas: {transaction.max_fee}"
        )
    if transaction.chain_id is not None and transaction.chain_id > CHAIN_ID_MAX:
        raise InvalidTransaction(f"chain id {transaction.chain_id} exceeds {CHAIN_ID_MAX} (EIP-2294)")


def _read_to(field: Decoded) -> Address | None:
    if isinstance(field, bytes) and len(field) == ADDRESS_SIZE:
        return Address(field)
    if not isinstance(field, bytes) or field:
        size = len(field) if isinstance(field, bytes) else "a list of"
        raise InvalidTransaction(f"recipient has {size} bytes, 0 or {ADDRESS_SIZE} expected")
    return None


def _read_access_list(field: Decoded) -> AccessList:
    if not isinstance(field, list):
        raise InvalidTransaction("access list is a string")
    if not field:
        return ()
    entries: list[tuple[Address, tuple[int, ...]]] = []
    for entry in field:
        match entry:
            case [bytes(address), list(keys)] if len(address) == ADDRESS_SIZE:
                entries.append((Address(address), tuple(_read_key(key) for key in keys)))
            case _:
                raise InvalidTransaction("access list entry is not [address, [keys]]")
    validate_access_list(entries)
    return tuple(entries)


def validate_access_list(entries: Sequence[tuple[Address, Sequence[int]]]) -> None:
    """Bound an access list.

    Raises:
        InvalidTransaction: more than `ACCESS_ITEMS_MAX` addresses and keys.
    """
    items = len(entries) + sum(len(keys) for _, keys in entries)
    if items > ACCESS_ITEMS_MAX:
        raise InvalidTransaction(f"access list names {items} addresses and keys, at most {ACCESS_ITEMS_MAX}")


def _read_key(field: Decoded) -> int:
    if not isinstance(field, bytes) or len(field) != 32:
        raise InvalidTransaction("access list key is not 32 bytes")
    return int.from_bytes(field)
