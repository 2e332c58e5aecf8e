r"""The archive format: a chain's blocks, or its state after one block, as one stream that is written and read once.

    file    = "DeAIOS chain\n" || version (1) || compression (1) || record*
    record  = kind (1) || size (4) || body (size) || check (8)          (integers big-endian)
    check   = first 8 bytes of SHA-256 over everything in the file before it

Compression 1 is zlib, body by body; 0 is none. The first record is the genesis, the last one END. A record's check
covers all before it, so that a cut, altered, moved or repeated record is found at that record. It guards against
accidents; against forgers guard the operator's signatures, the state commitment and execution, which whoever imports
checks. A state lists codes, accounts and words in rising order, so that nothing stands in it twice. Version 1 is frozen
in docs/spec/chain.md. Owns no file: bytes come from and go to functions.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from deaios.chain.consensus import SealedBlock, decode_sealed_block
from deaios.chain.evm import EMPTY_CODE_HASH
from deaios.ledger.rlp import decode_rlp, encode_rlp
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import Address

MAGIC = b"DeAIOS chain\n"
VERSION = 1
HEAD_SIZE = len(MAGIC) + 2
CHECK_SIZE = 8
BODY_BYTES_MAX = 65 << 20
"""Stored or inflated: the largest genesis and a little more."""
BLOCK_BYTES_MAX = 32 << 20
"""Four times what 30 million gas pay for, and bounded further because what is decoded takes more room."""
CHUNK_BYTES = 1 << 20
"""About how many bytes of state stand in one record."""
CHUNK_BYTES_MAX = 2 * CHUNK_BYTES
"""The last entry may go beyond the bytes above; a contract's code has 24,576 at most."""
HEIGHT_MAX = (1 << 62) - 1
"""What a store can count on from; no chain comes near it."""
LEVEL = 6
DEFLATE_SLACK = 64 << 10
"""What cannot be made smaller grows by a few bytes in each block of 16 KiB."""


class InvalidArchive(Invalid):
    """Bytes that are not a whole archive of this version."""


class Compression(IntEnum):
    """How bodies are stored."""

    NONE = 0
    ZLIB = 1


class Kind(IntEnum):
    """What a record holds."""

    END = 0
    """RLP [records before it, SHA-256 over all before it]."""
    GENESIS = 1
    """As `genesis.encode_genesis` writes it."""
    BLOCK = 2
    """RLP [header, signature, [raw transaction, ...]]."""
    STATE = 3
    """RLP [header, signature]: what follows is the state after this block."""
    CODES = 4
    """RLP [code, ...], by rising keccak-256."""
    ACCOUNTS = 5
    """Rows of address (20), nonce (8), balance (32), code hash (32), by rising address."""
    SLOTS = 6
    """Rows of address (20), slot (32), value (32), by rising address and slot."""


ACCOUNT_SIZE = 92
SLOT_SIZE = 84
_NEXT = {
    None: (Kind.GENESIS,),
    Kind.GENESIS: (Kind.BLOCK, Kind.STATE, Kind.END),
    Kind.BLOCK: (Kind.BLOCK, Kind.END),
    Kind.STATE: (Kind.CODES, Kind.ACCOUNTS, Kind.SLOTS, Kind.END),
    Kind.CODES: (Kind.CODES, Kind.ACCOUNTS, Kind.SLOTS, Kind.END),
    Kind.ACCOUNTS: (Kind.ACCOUNTS, Kind.SLOTS, Kind.END),
    Kind.SLOTS: (Kind.SLOTS, Kind.END),
}


_SIZE_MAX = {
    Kind.END: 64,
    Kind.GENESIS: BODY_BYTES_MAX,
    Kind.BLOCK: BLOCK_BYTES_MAX,
    Kind.STATE: 4096,
    Kind.CODES: CHUNK_BYTES_MAX,
    Kind.ACCOUNTS: CHUNK_BYTES_MAX,
    Kind.SLOTS: CHUNK_BYTES_MAX,
}


@dataclass(frozen=True, slots=True)
class Record:
    """One record, its check done and its body inflated."""

    kind: Kind
    body: bytes


class ArchiveWriter:
    """Makes the bytes of one archive, record by record."""

    def __init__(self, write: Callable[[bytes], object], compression: Compression = Compression.ZLIB) -> None:
        """Begin; `write` takes bytes in order and is the only thing that owns a file."""
        self._write = write
        self._compression = compression
        self._digest = hashlib.sha256()
        self._records = 0
        self.size_bytes = 0
        self._put(MAGIC + bytes((VERSION, compression)))

    def put(self, kind: Kind, body: bytes) -> None:
        """Append a record.

        Raises:
            InvalidArchive: the body is larger than its kind may be.
        """
        if len(body) > _SIZE_MAX[kind]:
            raise InvalidArchive(f"{kind.name} of {len(body)} bytes, an archive takes {_SIZE_MAX[kind]}")
        stored = body if self._compression is Compression.NONE else zlib.compress(body, LEVEL)
        self._put(bytes((kind,)) + len(stored).to_bytes(4) + stored)
        self._put(self._digest.digest()[:CHECK_SIZE])
        self._records += 1

    def finish(self) -> None:
        """Append the last record."""
        self.put(Kind.END, encode_rlp([self._records.to_bytes(8), self._digest.digest()]))

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        self._write(data)
        self.size_bytes += len(data)


def read_archive(read: Callable[[int], bytes]) -> Iterator[Record]:
    """Every record but END, each checked before it is given; returns only at a whole archive's end.

    Args:
        read: gives up to so many next bytes; none at the end of the file.

    Raises:
        InvalidArchive: not an archive of this version, cut, altered, or with records in another order.
    """
    digest = hashlib.sha256()

    def take(size: int, what: str) -> bytes:
        data = read(size)
        while len(data) < size:  # bounded: each round adds bytes or ends
            more = read(size - len(data))
            if not more:
                raise InvalidArchive(f"archive is cut: {len(data)} of {size} bytes of {what}")
            data += more
        return data

    head = take(HEAD_SIZE, "its head")
    if head[:-2] != MAGIC:
        raise InvalidArchive("not an archive of a chain")
    if head[-2] != VERSION or head[-1] not in Compression.__members__.values():
        raise InvalidArchive(
            f"archive version {head[-2]}, compression {head[-1]}; this program reads {VERSION}, 0 or 1"
        )
    digest.update(head)
    before: Kind | None = None
    count = 0
    while True:
        start = take(5, f"record {count}")
        size = int.from_bytes(start[1:])
        allowed = _NEXT[before]
        if start[0] not in allowed or size > _SIZE_MAX[Kind(start[0])] + DEFLATE_SLACK:
            raise InvalidArchive(f"record {count} has kind {start[0]} and {size} bytes after {before!r}")
        stored = take(size, f"record {count}")
        whole = digest.digest()
        digest.update(start + stored)
        check = take(CHECK_SIZE, f"record {count}")
        if check != digest.digest()[:CHECK_SIZE]:
            raise InvalidArchive(f"record {count} is altered: check {check.hex()}, {digest.hexdigest()[:16]} expected")
        digest.update(check)
        kind = Kind(start[0])
        body = _inflate(head[-1], stored, _SIZE_MAX[kind], count)
        if kind is Kind.END:
            if body != encode_rlp([count.to_bytes(8), whole]) or read(1):
                raise InvalidArchive(f"end record does not fit {count} records, or bytes follow it")
            return
        yield Record(kind, body)
        before = kind
        count += 1


def _inflate(compression: int, stored: bytes, size_max: int, index: int) -> bytes:
    if compression == Compression.NONE:
        body, is_whole = stored, len(stored) <= size_max
    else:
        inflater = zlib.decompressobj()
        try:
            body = inflater.decompress(stored, size_max)
        except zlib.error as error:
            raise InvalidArchive(f"record {index} cannot be inflated: {error}") from error
        is_whole = inflater.eof and not inflater.unused_data
    if not is_whole:
        raise InvalidArchive(f"record {index} inflates to more than {size_max} bytes, or holds more than a body")
    return body


def encode_block(header: bytes, signature: bytes, raws: Sequence[bytes]) -> bytes:
    """Body of a BLOCK."""
    return encode_rlp([header, signature, list(raws)])


def decode_block(body: bytes) -> SealedBlock:
    """Read the body of a BLOCK.

    Raises:
        Invalid: not a block.
    """
    match decode_rlp(body):
        case [bytes(header), bytes(signature), list(raws)] if all(isinstance(raw, bytes) for raw in raws):
            return decode_sealed_block(header, signature, [raw for raw in raws if isinstance(raw, bytes)])
        case _:
            raise InvalidArchive("block record is not [header, signature, [transaction, ...]]")


def decode_state_head(body: bytes) -> SealedBlock:
    """Read the body of a STATE: a block without its transactions.

    Raises:
        Invalid: not a header with its signature.
    """
    match decode_rlp(body):
        case [bytes(header), bytes(signature)]:
            block = decode_sealed_block(header, signature, ())
            if block.header.number > HEIGHT_MAX:
                raise InvalidArchive(f"state after block {block.header.number}, at most {HEIGHT_MAX}")
            return block
        case _:
            raise InvalidArchive("state record is not [header, signature]")


def encode_state_head(header: bytes, signature: bytes) -> bytes:
    """Body of a STATE."""
    return encode_rlp([header, signature])


def encode_codes(codes: Sequence[bytes]) -> bytes:
    """Body of CODES."""
    return encode_rlp(list(codes))


def decode_codes(body: bytes) -> list[bytes]:
    """Read the body of CODES.

    Raises:
        Invalid: not a list of strings.
    """
    codes = decode_rlp(body)
    if not isinstance(codes, list) or not codes:
        raise InvalidArchive("codes record is not a list")
    found = [code for code in codes if isinstance(code, bytes) and code]
    if len(found) != len(codes):
        raise InvalidArchive("codes record holds what is no code")
    return found


def encode_account(address: Address, nonce: int, balance: int, code_hash: bytes) -> bytes:
    """One row of ACCOUNTS."""
    return address + nonce.to_bytes(8) + balance.to_bytes(32) + code_hash


def decode_accounts(body: bytes) -> Iterator[tuple[Address, int, int, bytes]]:
    """Read the rows of ACCOUNTS.

    Raises:
        InvalidArchive: a row is cut, or an account is empty.
    """
    for row in _rows(body, ACCOUNT_SIZE, "accounts"):
        nonce, balance = int.from_bytes(row[20:28]), int.from_bytes(row[28:60])
        if not nonce and not balance and row[60:] == EMPTY_CODE_HASH:
            raise InvalidArchive("an empty account stands among the accounts")
        yield Address(row[:20]), nonce, balance, row[60:]


def encode_slot(address: Address, slot: int, value: int) -> bytes:
    """One row of SLOTS."""
    return address + slot.to_bytes(32) + value.to_bytes(32)


def decode_slots(body: bytes) -> Iterator[tuple[Address, int, int]]:
    """Read the rows of SLOTS.

    Raises:
        InvalidArchive: a row is cut, or a word is zero.
    """
    for row in _rows(body, SLOT_SIZE, "slots"):
        value = int.from_bytes(row[52:])
        if not value:
            raise InvalidArchive("a word of zero stands among the slots")
        yield Address(row[:20]), int.from_bytes(row[20:52]), value


def _rows(body: bytes, size: int, what: str) -> Iterator[bytes]:
    if not body or len(body) % size:
        raise InvalidArchive(f"{what} record has {len(body)} bytes, a multiple of {size} expected")
    for start in range(0, len(body), size):
        yield body[start : start + size]


class Rising:
    """Sees that keys strictly rise over all records of a kind."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._last = b""

    def see(self, key: bytes) -> None:
        """Take the next key.

        Raises:
            InvalidArchive: it is not above the one before it.
        """
        if key <= self._last:
            raise InvalidArchive(f"{self._what} do not rise: 0x{key.hex()} after 0x{self._last.hex()}")
        self._last = key
