"""Receipts and openings: honest ones pass, every single lie is found; batches: gap-free, provable, canonical."""

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.ledger.eip712 import hash_struct, sign_struct
from deaios.ledger.structs import FinishReason, State
from deaios.market.batches import (
    BATCH_RECEIPTS_MAX,
    BatchProof,
    InvalidBatch,
    SignedReceipt,
    build_batch,
    decode_batch,
    encode_batch,
    is_batch_due,
    prove_receipt,
    validate_batch,
    verify_receipt,
)
from deaios.market.opening import InvalidOpening, Opening
from deaios.market.receipts import FIRST_LINK, InvalidReceipt, InvalidRequest, Link, validate_opening
from deaios.primitives.encoding import encode_canonical_json
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import ZERO32, sha256
from deaios.primitives.keys import InvalidSignature


@pytest.fixture
def honest(kit):
    offer = kit.build_offer()
    return kit.build_opening(kit.build_papers(offer), offer, (20, 21, kit.STOP))


def test_honest_opening_passes_and_survives_json(kit, honest):
    validate_opening(kit.TERMS.protocol, honest)
    assert Opening.decode_json(honest.encode_json()) == honest
    assert honest.receipt.fee == -(-(3 * 1_000_000 + 3 * 4_000_000) // 1_000_000)


LIES = [
    {"request_digest": sha256(b"x")},
    {"channel_id": sha256(b"x")},
    {"output_commitment": sha256(b"x")},
    {"prompt_tokens": 4},
    {"completion_tokens": 4},
    {"cached_tokens": 4},
    {"engine_profile": ZERO32},
    {"level": 3},
    {"counter": 0},
    {"counter": 1 << 63},
    {"fee": 16, "charged_cumulative": 16},
    {"charged_cumulative": 14},
    {"finish_reason": FinishReason.LENGTH},
    {"finish_reason": FinishReason.CANCELLED},
    {"finish_reason": FinishReason.STOP_STRING},
    {"finish_reason": 200},
    {"state": State.CANCELLED},
    {"state": State.FAILED_PROVIDER},
    {"state": 77},
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: "-".join(f"{name}-{value!s:.12}" for name, value in lie.items()))
def test_signed_lie_is_found(kit, lie):
    offer = kit.build_offer()
    opening = kit.build_opening(kit.build_papers(offer), offer, (20, 21, kit.STOP), receipt=lie)
    with pytest.raises(InvalidReceipt):
        validate_opening(kit.TERMS.protocol, opening)


def test_receipt_of_another_key_is_found(kit):
    offer = kit.build_offer()
    opening = kit.build_opening(kit.build_papers(offer), offer, (kit.STOP,), seller=kit.build_key("other"))
    with pytest.raises(InvalidReceipt, match="signed by"):
        validate_opening(kit.TERMS.protocol, opening)


def test_changed_part_is_found(kit, honest):
    """Change any one leaf of the JSON form: it never passes."""
    leaves = []

    def walk(value, path):
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in items:
            if isinstance(item, dict) or (isinstance(item, list) and item):
                walk(item, [*path, key])
            elif not isinstance(item, list):
                leaves.append([*path, key])

    def change(value):
        if isinstance(value, int):
            return value + 1
        return value[:-1] + ("0" if value[-1] != "0" else "1") if value else "x"

    walk(honest.encode_json(), [])
    assert len(leaves) > 50
    for path in leaves:
        document = honest.encode_json()
        place = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = change(place[path[-1]])
        with pytest.raises(Invalid):
            validate_opening(kit.TERMS.protocol, Opening.decode_json(document))


def test_spliced_openings_are_found(kit, honest):
    offer = kit.build_offer()
    other = kit.build_opening(kit.build_papers(offer, kit.build_order("other")), offer, (30, kit.STOP))
    for field in fields(Opening):
        if getattr(other, field.name) == getattr(honest, field.name):
            continue
        spliced = replace(honest, **{field.name: getattr(other, field.name)})
        with pytest.raises((InvalidRequest, InvalidReceipt, InvalidSignature)):
            validate_opening(kit.TERMS.protocol, spliced)


@pytest.mark.parametrize("state", [State.REFUSED, State.FAILED_PROVIDER, State.FAILED_CLIENT])
def test_failures_are_free(kit, state):
    offer = kit.build_offer()
    papers = kit.build_papers(offer)
    opening = kit.build_opening(papers, offer, (), state=state, reason=FinishReason.FAILED)
    validate_opening(kit.TERMS.protocol, opening)
    assert (opening.receipt.fee, opening.receipt.completion_tokens) == (0, 0)
    paid = kit.build_opening(
        papers, offer, (), state=state, reason=FinishReason.FAILED, receipt={"fee": 1, "charged_cumulative": 1}
    )
    with pytest.raises(InvalidReceipt, match="fee"):
        validate_opening(kit.TERMS.protocol, paid)


def test_cancel_costs_what_was_acknowledged(kit):
    offer = kit.build_offer()
    papers = kit.build_papers(offer)
    opening = kit.build_opening(papers, offer, (20, 21), state=State.CANCELLED, reason=FinishReason.CANCELLED)
    validate_opening(kit.TERMS.protocol, opening, acknowledged=2)
    assert opening.receipt.fee == 3 + 8
    with pytest.raises(InvalidReceipt, match="acknowledged 1"):
        validate_opening(kit.TERMS.protocol, opening, acknowledged=1)
    nothing = kit.build_opening(papers, offer, (), state=State.CANCELLED, reason=FinishReason.CANCELLED)
    validate_opening(kit.TERMS.protocol, nothing, acknowledged=0)
    assert nothing.receipt.fee == 0


@pytest.mark.parametrize("value", [None, [], {}, {"ask": {}}, "x", 3])
def test_malformed_openings_are_refused(value):
    with pytest.raises(InvalidOpening):
        Opening.decode_json(value)


@pytest.mark.parametrize("ids", [[-1], [1 << 32], [True], ["1"], [1.0], None, list(range(40_000))])
def test_malformed_output_ids_are_refused(honest, ids):
    with pytest.raises(Invalid):
        Opening.decode_json(honest.encode_json() | {"outputIds": ids})


def build_run(kit, count, first=1):
    offer = kit.build_offer()
    entries, link = [], replace(FIRST_LINK, counter=first - 1)
    for number in range(count):
        papers = kit.build_papers(offer, kit.build_order(f"run {number}"))
        receipt = kit.build_opening(papers, offer, (kit.STOP,), link=link)
        entries.append(SignedReceipt(receipt.receipt, receipt.receipt_signature))
        link = Link(receipt.receipt.counter, hash_struct(receipt.receipt), receipt.receipt.charged_cumulative)
    return entries


def test_batch_is_canonical_provable_and_complete(kit):
    entries = build_run(kit, 5, first=8)
    data = encode_batch(kit.SELLER.address, entries)
    assert decode_batch(data) == (kit.SELLER.address, tuple(entries))
    batch = build_batch(kit.SELLER.address, entries, sha256(b"before"), sha256(data))
    assert (batch.first_counter, batch.last_counter) == (8, 12)
    assert validate_batch(kit.TERMS.protocol, batch, data) == tuple(entries)
    digests = [entry.digest for entry in entries]
    for entry in entries:
        proof = prove_receipt(batch, 3, digests, entry.receipt.counter)
        assert BatchProof.decode_json(proof.encode_json()) == proof
        assert verify_receipt(proof, entry.receipt.counter, entry.digest)
        assert not verify_receipt(proof, entry.receipt.counter + 1, entry.digest)
        assert not verify_receipt(proof, entry.receipt.counter, sha256(b"other"))
        assert not verify_receipt(replace(proof, last_counter=99), entry.receipt.counter, entry.digest)
        assert not verify_receipt(replace(proof, path=proof.path[1:]), entry.receipt.counter, entry.digest)


def test_batches_with_gaps_forks_or_strangers_are_refused(kit):
    entries = build_run(kit, 4)
    for broken in ([], [entries[0], entries[2]], [entries[1], entries[0]], [entries[0], entries[0]]):
        with pytest.raises(InvalidBatch):
            build_batch(kit.SELLER.address, broken, ZERO32, ZERO32)
    fork = replace(entries[2].receipt, prev_receipt=sha256(b"x"))
    with pytest.raises(InvalidBatch, match="digest of the one before"):
        build_batch(kit.SELLER.address, [*entries[:2], SignedReceipt(fork, entries[2].signature)], ZERO32, ZERO32)
    stranger = [
        replace(entry, signature=sign_struct(kit.build_key("x"), kit.TERMS.protocol, entry.receipt))
        for entry in entries
    ]
    data = encode_batch(kit.SELLER.address, stranger)
    batch = build_batch(kit.SELLER.address, stranger, ZERO32, ZERO32)
    with pytest.raises(InvalidBatch, match="signed by"):
        validate_batch(kit.TERMS.protocol, batch, data)
    honest = encode_batch(kit.SELLER.address, entries)
    with pytest.raises(InvalidBatch, match="root"):
        validate_batch(kit.TERMS.protocol, replace(batch, root=ZERO32), honest)
    with pytest.raises(InvalidBatch, match="canonical"):
        decode_batch(honest + b" ")
    with pytest.raises(InvalidBatch, match="version 2"):
        decode_batch(honest.replace(b'"version":1', b'"version":2'))
    with pytest.raises(InvalidBatch):
        decode_batch(encode_canonical_json({"version": 1, "provider": "0x" + "00" * 20, "receipts": []}))


@given(st.binary(max_size=200))
@settings(max_examples=50)
def test_hostile_batches_and_proofs_are_typed(data):
    with pytest.raises(Invalid):
        decode_batch(data)
    with pytest.raises(InvalidBatch):
        BatchProof.decode_json({"index": -1, "path": data.hex()})


def test_batch_is_due_by_count_age_or_promise():
    assert not is_batch_due(0, 10**9, 1, 0, 10**6)
    assert not is_batch_due(1, 999, 1000, 10_000, 100)
    assert is_batch_due(1, 1000, 1000, 10_000, 100)
    assert is_batch_due(BATCH_RECEIPTS_MAX, 0, 1000, 10_000, 100)
    assert is_batch_due(1, 0, 1000, 160, 100)
