"""Frozen formats of the market: changing a vector is a decision."""

import json
from dataclasses import replace
from pathlib import Path

from deaios.compute.constraint import json_object
from deaios.ledger.eip712 import encode_type, hash_struct, hash_typed_data, sign_struct
from deaios.ledger.structs import Cancel
from deaios.market.batches import SignedReceipt, build_batch, encode_batch
from deaios.market.wire import build_tokens, decode_line, decode_papers, encode_line, encode_papers
from deaios.primitives.encoding import encode_hex
from deaios.primitives.hashing import ZERO32, sha256

VECTORS = Path(__file__).parents[2] / "docs" / "spec" / "market-vectors.json"

RANKINGS = (((20, -9_000_000), (4, -500_000), (900, -1_000_000)), ((21, 0), (21, 0), (3, -9_999_000_000)))


def build_constrained(kit, offer):
    """Papers for an answer that is a JSON object."""
    constraint = json_object()
    params = kit.build_params(mask_hash=constraint.mask_hash())
    return kit.build_papers(offer, kit.build_order(params=params, constraint=constraint.encode()))


def build_vectors(kit):
    offer = kit.build_offer()
    papers = kit.build_papers(offer)
    opening = kit.build_opening(papers, offer, (20, 21, kit.STOP))
    entry = SignedReceipt(opening.receipt, opening.receipt_signature)
    data = encode_batch(kit.SELLER.address, [entry])
    batch = build_batch(kit.SELLER.address, [entry], ZERO32, sha256(data))
    cancel = Cancel(request_digest=papers.request_digest, tokens=2)
    return {
        "buyerSecret": encode_hex(kit.BUYER.secret),
        "sellerSecret": encode_hex(kit.SELLER.secret),
        "purchase": encode_papers(papers).decode(),
        "purchaseWithLogprobs": encode_papers(replace(papers, logprobs=2)).decode(),
        "constrainedPurchase": encode_papers(build_constrained(kit, offer)).decode(),
        "tokensLine": encode_line(build_tokens((20, 21), None)).decode(),
        "tokensLineWithLogprobs": encode_line(build_tokens((20, 21), RANKINGS)).decode(),
        "channelId": encode_hex(kit.TERMS.channel_id(papers.channel)),
        "requestDigest": encode_hex(papers.request_digest),
        "opening": opening.encode_json(),
        "cancelType": encode_type(Cancel),
        "cancelDigest": encode_hex(hash_typed_data(kit.TERMS.protocol, cancel)),
        "cancelSignature": encode_hex(sign_struct(kit.BUYER, kit.TERMS.protocol, cancel)),
        "batchBytes": data.decode(),
        "batchRoot": encode_hex(batch.root),
        "batchDigest": encode_hex(hash_struct(batch)),
    }


def test_formats_are_frozen(kit):
    vectors = json.loads(VECTORS.read_text())
    assert build_vectors(kit) == vectors
    papers = decode_papers(vectors["purchase"].encode())
    assert encode_hex(papers.request_digest) == vectors["requestDigest"]
    assert decode_papers(vectors["purchaseWithLogprobs"].encode()) == replace(papers, logprobs=2)
    assert decode_papers(vectors["constrainedPurchase"].encode()) == build_constrained(kit, kit.build_offer())
    for name, rankings in (("tokensLine", None), ("tokensLineWithLogprobs", RANKINGS)):
        assert decode_line(vectors[name].encode()) == build_tokens((20, 21), rankings)
