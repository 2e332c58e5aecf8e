"""What a follower keeps when a chain lies: two signed headers for one height, or one signed block that cannot be.

Equivocation stands by signatures alone, so a contract can judge it: two `Header` records of one height with another
hash each, and one key's signature under both. A divergence is judged by running the block on its parent's state.
Canonical JSON; frozen in docs/spec/chain.md.
"""

from dataclasses import dataclass

import msgspec

from deaios.chain.blocks import BlockHeader, header_record
from deaios.chain.consensus import SIGNED_FIELDS, DivergentBlock, Identity, SealedBlock, is_signed, recover_operator
from deaios.ledger.eip712 import decode_json, encode_json, hash_struct, recover_signer
from deaios.ledger.structs import Header, header_domain
from deaios.primitives.encoding import Json, decode_hex, encode_canonical_json, encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import Address, InvalidSignature

EQUIVOCATION = "deaios/chain/equivocation/1"
DIVERGENCE = "deaios/chain/divergence/1"
EQUIVOCATION_BYTES_MAX = 64 << 10


class InvalidEvidence(Invalid):
    """A file that proves no equivocation."""


@dataclass(frozen=True, slots=True)
class SignedHeader:
    """One of the operator's records with its signature."""

    header: Header
    signature: bytes


@dataclass(frozen=True, slots=True)
class Equivocation:
    """Two different records that one key signed at one height."""

    chain_id: int
    operator: Address
    first: SignedHeader
    second: SignedHeader


def find_equivocation(
    identity: Identity, ours: tuple[BlockHeader, bytes], theirs: tuple[BlockHeader, bytes]
) -> Equivocation | None:
    """The proof that two headers with their signatures make; None where they make none."""
    first, second = (
        SignedHeader(header_record(identity.genesis_hash, header), signature) for header, signature in (ours, theirs)
    )
    is_proof = (
        first.header.height == second.header.height
        and first.header != second.header
        and all(is_signed(identity, header, signature) for header, signature in (ours, theirs))
    )
    return Equivocation(identity.chain_id, identity.operator, first, second) if is_proof else None


def encode_equivocation(proof: Equivocation) -> bytes:
    """The file of a proof."""
    return encode_canonical_json(
        {
            "type": EQUIVOCATION,
            "chainId": proof.chain_id,
            "operator": encode_hex(proof.operator),
            "first": _encode_signed(proof.first),
            "second": _encode_signed(proof.second),
        }
    )


def _encode_signed(signed: SignedHeader) -> Json:
    return {"header": encode_json(signed.header), "signature": encode_hex(signed.signature)}


class _SignedJson(msgspec.Struct, forbid_unknown_fields=True):
    header: dict[str, object]
    signature: str


class _EquivocationJson(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    chainId: int  # noqa: N815 # wire spelling
    operator: str
    first: _SignedJson
    second: _SignedJson


def decode_equivocation(data: bytes) -> Equivocation:
    """Read a proof and check it.

    Raises:
        InvalidEvidence: not such a file, or one that proves nothing.
    """
    if len(data) > EQUIVOCATION_BYTES_MAX:
        raise InvalidEvidence(f"evidence has {len(data)} bytes, at most {EQUIVOCATION_BYTES_MAX}")
    try:
        record = msgspec.json.decode(data, type=_EquivocationJson)
        operator = Address(decode_hex(record.operator, 20))
        first, second = (
            SignedHeader(decode_json(Header, item.header), decode_hex(item.signature, 65))
            for item in (record.first, record.second)
        )
    except (msgspec.DecodeError, UnicodeError, RecursionError, Invalid) as error:
        raise InvalidEvidence(f"not an equivocation: {error}") from error
    if record.type != EQUIVOCATION or not 0 < record.chainId < 1 << 64:
        raise InvalidEvidence(f"type {record.type!r} of chain {record.chainId}, {EQUIVOCATION!r} expected")
    proof = Equivocation(record.chainId, operator, first, second)
    _validate_equivocation(proof)
    return proof


def _validate_equivocation(proof: Equivocation) -> None:
    first, second = proof.first.header, proof.second.header
    if first.height != second.height or first.genesis_hash != second.genesis_hash:
        raise InvalidEvidence(f"records of heights {first.height} and {second.height}, or of two chains")
    if hash_struct(first) == hash_struct(second):
        raise InvalidEvidence(f"both records of height {first.height} are the same")
    for signed in (proof.first, proof.second):
        try:
            signer = recover_signer(header_domain(proof.chain_id), signed.header, signed.signature)
        except InvalidSignature as error:
            raise InvalidEvidence(f"record of height {first.height}: {error}") from error
        if signer != proof.operator:
            raise InvalidEvidence(f"signed by {encode_hex(signer)}, not by {encode_hex(proof.operator)}")


def encode_divergence(identity: Identity, parent: BlockHeader, block: SealedBlock, found: DivergentBlock) -> bytes:
    """The file that says in what a block differs, with the block and its parent's header.

    `operatorLied` is true where the operator's signature covers what is wrong; otherwise whoever served the block may
    have changed it.
    """
    signer = recover_operator(identity, block.header, block.signature)
    is_covered = found.field in SIGNED_FIELDS or found.field.startswith("transaction ")
    return encode_canonical_json(
        {
            "type": DIVERGENCE,
            "chainId": identity.chain_id,
            "operator": encode_hex(identity.operator),
            "signer": encode_hex(signer) if isinstance(signer, bytes) else signer,
            "operatorLied": is_covered and signer == identity.operator,
            "number": found.number,
            "field": found.field,
            "theirs": found.theirs,
            "ours": found.ours,
            "parent": encode_hex(parent.encoded),
            "record": encode_json(header_record(identity.genesis_hash, block.header)),
            "header": encode_hex(block.header.encoded),
            "signature": encode_hex(block.signature),
            "transactions": [encode_hex(transaction.raw) for transaction in block.transactions],
        }
    )
