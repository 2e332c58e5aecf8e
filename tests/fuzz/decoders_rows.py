"""Targets of the decoders of rows, manifests and blobs. Not a test module; `decoders.py` lists them."""

import msgspec
from fuzz_target import Broken, Target, as_text, as_typed

from deaios.coding import head, matrix, parameters
from deaios.da import blob
from deaios.da import proof as blob_proof
from deaios.da import wire as da_wire
from deaios.ledger import structs
from deaios.rows import manifest, message
from deaios.runtime import ranges


def rows_targets() -> list[Target]:
    coded = matrix.encode(b"some bytes to code" * 20, parameters.Profile(2, 3))
    row = message.build_message(coded, 1)
    made = manifest.Manifest(parameters.Profile(2, 3), 5, bytes(32), (manifest.Segment(coded.commitment, 5),))
    return [
        Target(
            "parameters",
            parameters.decode_parameters,
            ("coding.parameters.decode_parameters",),
            (coded.head.parameters.encode(),),
            lambda value: value.encode(),
        ),
        Target(
            "head",
            head.decode_head,
            ("coding.head.decode_head",),
            (coded.head.encode(),),
        ),
        Target(
            "row message",
            message.decode_message,
            ("rows.message.decode_message",),
            (row.encode(),),
            lambda value: value.encode(),
        ),
        Target(
            "row",
            lambda data: message.validate_message(coded.commitment, 1, data),
            ("rows.message.validate_message",),
            (row.encode(),),
            lambda value: value.encode(),
        ),
        Target(
            "manifest",
            manifest.decode_manifest,
            ("rows.manifest.decode_manifest", "rows.manifest.open_manifest"),
            (made.encode(),),
            lambda value: value.encode(),
        ),
        Target(
            "range",
            lambda data: ranges.decode_range(as_text(data), 1000),
            ("runtime.ranges.decode_range",),
            (b"bytes=0-499", b"bytes=500-", b"bytes=-1"),
        ),
    ]


def da_targets() -> list[Target]:
    profile = parameters.Profile(2, 7)
    items = [blob.Item(b"one", 1), blob.Item(b"two" * 500, 2**64 - 1), blob.Item(b"three", 0)]
    segment = manifest.Segment(bytes(32), 5)
    single, bundle = blob.encode_single(b"content"), blob.encode_bundle(items)
    large = blob.encode_large(manifest.Manifest(profile, 5, bytes(32), (segment,)))
    coded = matrix.encode(bundle, profile)
    proofs = [blob_proof.encode_proof(blob_proof.prove_item(coded, number)) for number in range(len(items))]
    proofs.append(blob_proof.encode_proof(blob_proof.prove_item(matrix.encode(single, profile), None)))
    name = "0x" + "11" * 32
    leaves = da_wire.build_leaves(message.build_message(coded, 1), range(1))
    attestation = structs.RowAttestation(bytes(32), 1, 2, 2**64 - 1)
    signature = da_wire.AttestationAnswer(3, "0x" + "11" * 65)
    return [
        Target(
            "attestation request",
            as_typed(da_wire.AttestationBody, da_wire.read_attestation),
            ("da.wire.read_attestation",),
            (da_wire.encode_attestation(attestation),),
        ),
        Target(
            "attestation answer",
            as_typed(da_wire.AttestationAnswer, da_wire.read_signature),
            ("da.wire.read_signature",),
            (msgspec.json.encode(signature),),
        ),
        Target(
            "leaves of a row",
            as_typed(
                da_wire.LeavesAnswer,
                lambda answer: _check_leaves(coded, da_wire.read_leaves(coded.commitment, 1, range(1), answer)),
            ),
            ("da.wire.read_leaves",),
            (msgspec.json.encode(leaves),),
        ),
        Target(
            "blob payload",
            blob.decode_payload,
            ("da.blob.decode_payload",),
            (single, bundle, large),
            _encode_payload,
        ),
        Target(
            "blob id",
            lambda data: blob.parse_blob_id(as_text(data)),
            ("da.blob.parse_blob_id",),
            (name.encode(), f"{name}.0".encode(), f"{name}.65535".encode()),
            lambda value: str(value).encode(),
        ),
        Target(
            "blob proof",
            lambda data: _check_proof(coded.commitment, items, blob_proof.decode_proof(data)),
            ("da.proof.decode_proof",),
            tuple(proofs),
            blob_proof.encode_proof,
        ),
    ]


def _encode_payload(payload: object) -> bytes:
    match payload:
        case blob.Single(content):
            return blob.encode_single(content)
        case blob.Bundle():
            return blob.encode_bundle(list(payload.iterate_items()))
        case blob.Large(made):
            return blob.encode_large(made)
    raise Broken(f"{payload!r} is no payload")


def _check_leaves(coded: matrix.CodedMatrix, found: list[bytes]) -> list[bytes]:
    """Whatever was sent, only what was committed to is read."""
    if found != [bytes(coded.get_row(1)[: parameters.LEAF_BYTES])]:
        raise Broken(f"leaf 0 is read as {found[0][:80]!r}")
    return found


def _check_proof(commitment: bytes, items: list[blob.Item], given: blob_proof.BlobProof) -> blob_proof.BlobProof:
    """Whatever was sent, only what is there is proven, and a proof under its own commitment breaks nothing."""
    for number, item in enumerate(items):
        proven = blob_proof.verify_item(blob.BlobId(commitment, number), given)
        if proven is not None and (proven.content, proven.expires_at) != (item.content, item.expires_at):
            raise Broken(f"item {number} is proven to be {proven.content[:80]!r}")
    for number in (None, 0):
        blob_proof.verify_item(blob.BlobId(given.commitment, number), given)
    return given
