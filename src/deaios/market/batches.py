"""Batches: gap-free runs of receipts under one Merkle root on chain.

Pure. The stored batch is one canonical byte string, so that everybody who fetches it by its commitment computes the
same root. Invariants: one leaf (the receipt's digest) per counter, each receipt names the digest of the one before it,
each batch starts where the last one ended and names its root.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from deaios.ledger.eip712 import Domain, decode_json, encode_json, hash_struct, recover_signer
from deaios.ledger.structs import Batch, Receipt
from deaios.primitives.encoding import Json, decode_hex, encode_canonical_json, encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import SIGNATURE_SIZE, Address, parse_address
from deaios.primitives.merkle import build_root, prove_leaf, tree_depth, verify_leaf

RECEIPTS_TAG = "deaios/receipts/1"
BATCH_VERSION = 1
BATCH_RECEIPTS_MAX = 1024
"""Receipts per batch, so that the stored bytes stay below 2 MiB; the contract allows 65,536."""
BATCH_BYTES_MAX = 4 << 20
PATH_NODES_MAX = 16
DEADLINE_MARGIN_BLOCKS = 60
"""Publishing begins this long before the promised block, whatever the interval."""


class InvalidBatch(Invalid):
    """Receipts, roots or proofs that do not fit together."""


@dataclass(frozen=True, slots=True)
class SignedReceipt:
    """One receipt with its provider's signature."""

    receipt: Receipt
    signature: bytes

    @property
    def digest(self) -> bytes:
        """The batch leaf."""
        return hash_struct(self.receipt)


@dataclass(frozen=True, slots=True)
class BatchProof:
    """Where on chain a receipt is, and the path to its batch's root."""

    index: int
    first_counter: int
    last_counter: int
    previous_root: bytes
    root: bytes
    da_commitment: bytes
    path: tuple[bytes, ...]

    def encode_json(self) -> dict[str, Json]:
        """The proof as a JSON object."""
        return {
            "index": self.index,
            "firstCounter": self.first_counter,
            "lastCounter": self.last_counter,
            "previousRoot": encode_hex(self.previous_root),
            "root": encode_hex(self.root),
            "daCommitment": encode_hex(self.da_commitment),
            "path": [encode_hex(node) for node in self.path],
        }

    @classmethod
    def decode_json(cls, value: object) -> "BatchProof":
        """Read a proof from parsed JSON.

        Raises:
            InvalidBatch: not of that form.
        """
        try:
            wire = msgspec.convert(value, _ProofWire)
        except msgspec.ValidationError as error:
            raise InvalidBatch(f"not a batch proof: {error}") from error
        return cls(
            index=wire.index,
            first_counter=wire.first_counter,
            last_counter=wire.last_counter,
            previous_root=decode_hex(wire.previous_root, 32),
            root=decode_hex(wire.root, 32),
            da_commitment=decode_hex(wire.da_commitment, 32),
            path=tuple(decode_hex(node, 32) for node in wire.path),
        )


class _ProofWire(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    index: int
    first_counter: int
    last_counter: int
    previous_root: str
    root: str
    da_commitment: str
    path: list[str]

    def __post_init__(self) -> None:
        if min(self.index, self.first_counter - 1, self.last_counter - self.first_counter) < 0:
            raise ValueError(f"index {self.index}, counters {self.first_counter} to {self.last_counter}")
        if len(self.path) > PATH_NODES_MAX:
            raise ValueError(f"path has {len(self.path)} nodes, at most {PATH_NODES_MAX}")


class _EntryWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    receipt: dict[str, object]
    signature: str


class _BatchWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    version: int
    provider: str
    receipts: list[_EntryWire]


def is_batch_due(waiting: int, age_ms: int, interval_ms: int, deadline_block: int, head: int) -> bool:
    """Is it time to publish?

    Args:
        waiting: receipts without a batch.
        age_ms: since the oldest of them ended.
        interval_ms: how long receipts may be collected.
        deadline_block: the oldest receipt's promise.
        head: the latest block.
    """
    if waiting == 0:
        return False
    return waiting >= BATCH_RECEIPTS_MAX or age_ms >= interval_ms or head + DEADLINE_MARGIN_BLOCKS >= deadline_block


def build_batch(
    provider: Address, receipts: Sequence[SignedReceipt], previous_root: bytes, da_commitment: bytes
) -> Batch:
    """The batch over consecutive receipts."""
    _validate_run(receipts)
    return Batch(
        provider=provider,
        first_counter=receipts[0].receipt.counter,
        last_counter=receipts[-1].receipt.counter,
        previous_root=previous_root,
        root=build_root(RECEIPTS_TAG, [entry.digest for entry in receipts]),
        da_commitment=da_commitment,
    )


def _validate_run(receipts: Sequence[SignedReceipt]) -> None:
    if not 1 <= len(receipts) <= BATCH_RECEIPTS_MAX:
        raise InvalidBatch(f"batch has {len(receipts)} receipts, 1 to {BATCH_RECEIPTS_MAX} allowed")
    for before, after in pairwise(receipts):
        if after.receipt.counter != before.receipt.counter + 1:
            raise InvalidBatch(f"counter {after.receipt.counter} follows {before.receipt.counter}")
        if after.receipt.prev_receipt != before.digest:
            raise InvalidBatch(f"receipt {after.receipt.counter} does not name the digest of the one before it")


def encode_batch(provider: Address, receipts: Sequence[SignedReceipt]) -> bytes:
    """The canonical bytes that are stored; their commitment goes on chain."""
    return encode_canonical_json(
        {
            "version": BATCH_VERSION,
            "provider": encode_hex(provider),
            "receipts": [
                {"receipt": encode_json(entry.receipt), "signature": encode_hex(entry.signature)} for entry in receipts
            ],
        }
    )


def decode_batch(data: bytes) -> tuple[Address, tuple[SignedReceipt, ...]]:
    """Read stored batch bytes: form, counters and the chain of digests; signatures are `validate_batch`'s.

    Raises:
        InvalidBatch: too large, malformed, not canonical, or with a gap.
    """
    if len(data) > BATCH_BYTES_MAX:
        raise InvalidBatch(f"batch has {len(data)} bytes, at most {BATCH_BYTES_MAX} allowed")
    try:
        wire = msgspec.json.decode(data, type=_BatchWire)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidBatch(f"not a batch: {error}") from error
    if wire.version != BATCH_VERSION:
        raise InvalidBatch(f"batch version {wire.version}, this program reads {BATCH_VERSION}")
    if len(wire.receipts) > BATCH_RECEIPTS_MAX:
        raise InvalidBatch(f"batch has {len(wire.receipts)} receipts, 1 to {BATCH_RECEIPTS_MAX} allowed")
    provider = parse_address(wire.provider)
    receipts = tuple(
        SignedReceipt(decode_json(Receipt, entry.receipt), decode_hex(entry.signature, SIGNATURE_SIZE))
        for entry in wire.receipts
    )
    _validate_run(receipts)
    if encode_batch(provider, receipts) != data:
        raise InvalidBatch("batch bytes are not in canonical form")
    return provider, receipts


def validate_batch(domain: Domain, batch: Batch, data: bytes) -> tuple[SignedReceipt, ...]:
    """Check stored bytes against what the chain says of the batch.

    Returns:
        The receipts, every signature checked.

    Raises:
        InvalidBatch: another provider, run or root, or a receipt signed by somebody else.
    """
    provider, receipts = decode_batch(data)
    found = build_batch(provider, receipts, batch.previous_root, batch.da_commitment)
    if found != batch:
        raise InvalidBatch(f"stored batch has root 0x{found.root.hex()}, the chain has 0x{batch.root.hex()}")
    for entry in receipts:
        signer = recover_signer(domain, entry.receipt, entry.signature)
        if signer != provider:
            raise InvalidBatch(f"receipt {entry.receipt.counter} is signed by 0x{signer.hex()}")
    return receipts


def prove_receipt(batch: Batch, index: int, digests: Sequence[bytes], counter: int) -> BatchProof:
    """The proof that the receipt with this counter is in the batch at `index` on chain."""
    return BatchProof(
        index=index,
        first_counter=batch.first_counter,
        last_counter=batch.last_counter,
        previous_root=batch.previous_root,
        root=batch.root,
        da_commitment=batch.da_commitment,
        path=prove_leaf(digests, counter - batch.first_counter),
    )


def verify_receipt(proof: BatchProof, counter: int, digest: bytes) -> bool:
    """Does the proof's root hold this receipt at this counter? Whether the root is on chain is asked elsewhere."""
    if not 1 <= proof.first_counter <= counter <= proof.last_counter:
        return False
    count = proof.last_counter - proof.first_counter + 1
    if tree_depth(count) > PATH_NODES_MAX:
        return False
    return verify_leaf(RECEIPTS_TAG, proof.root, count, counter - proof.first_counter, digest, proof.path)
