"""The HTTP protocol between buyer and provider: JSON bodies and NDJSON lines, read strictly.

Pure. `POST /purchases` takes papers and answers a stream of lines: admitted, tokens…, finished. Sending the same papers
again attaches to the same purchase, running or ended, and never bills twice. `POST /purchases/{digest}/cancel` ends a
purchase. Refusals are problem details (RFC 9457) with the amount that would do. Unknown keys are refused. Papers may
ask for log probabilities: every token then comes with them, save in a stream that began after the purchase had ended.

Papers may carry a `prefix`: the ids with which another provider began the answer to the same ask. The provider checks
each against its own model, sends only what follows, and its receipt covers both. `admitted` says after how many ids the
stream begins, and is said again whenever nothing else was for a while, so that a provider that works is told apart from
one that is gone. `finished` says at which id of the prefix the provider's model disagrees, where it does.
"""

from collections.abc import Mapping
from typing import Annotated

import msgspec

from deaios.compute.constraint import CONSTRAINT_BYTES_MAX
from deaios.compute.fingerprints import LEAF_BYTES, LEAVES_MAX
from deaios.compute.logprobs import LOGPROBS_MAX, Ranking
from deaios.ledger.eip712 import decode_json, encode_json
from deaios.ledger.structs import (
    MAX_TOKENS_LIMIT,
    Ask,
    Batch,
    ChannelConfig,
    Offer,
    Receipt,
    Request,
    Voucher,
)
from deaios.market.batches import BatchProof, SignedReceipt
from deaios.market.conduct import ConductBody
from deaios.market.opening import SALT_SIZE, read_constraint, read_ids
from deaios.market.orders import Papers
from deaios.primitives.encoding import Json, decode_decimal, decode_hex, encode_canonical_json, encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import SIGNATURE_SIZE

WIRE_VERSION = 1
PROMPT_IDS_MAX = 1 << 18
"""The largest context of common models."""
PURCHASE_BYTES_MAX = 3 << 20
"""So many ids of at most ten digits, and the papers."""
AMOUNT_BITS = 128
Fingerprints = Annotated[bytes, msgspec.Meta(min_length=1, max_length=LEAVES_MAX * LEAF_BYTES)]
"""Leaves, one after another, as base64."""


class InvalidMessage(Invalid):
    """A body or line that is not in the protocol."""


class PurchaseBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    """Body of `POST /purchases`."""

    version: int
    ask: dict[str, object]
    salt: str
    prompt_ids: list[int]
    request: dict[str, object]
    request_signature: str
    channel: dict[str, object]
    voucher: dict[str, object]
    voucher_signature: str
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=LOGPROBS_MAX)] | msgspec.UnsetType = msgspec.UNSET
    constraint: Annotated[str, msgspec.Meta(max_length=CONSTRAINT_BYTES_MAX)] | msgspec.UnsetType = msgspec.UNSET
    prefix: list[int] | msgspec.UnsetType = msgspec.UNSET


class Admitted(
    msgspec.Struct, tag_field="kind", tag="admitted", forbid_unknown_fields=True, frozen=True, omit_defaults=True
):
    """The purchase is journalled: from here on it ends with a receipt.

    Attributes:
        prefix: ids of the papers' prefix, after which the tokens of this stream begin.
        waiting: purchases that wait for a place before it.
    """

    prefix: int = 0
    waiting: int = 0


class Tokens(msgspec.Struct, tag_field="kind", tag="tokens", forbid_unknown_fields=True, frozen=True):
    """The next sampled ids, and one ranking for each of them where the purchase asked for log probabilities."""

    ids: list[int]
    logprobs: list[tuple[tuple[int, int], ...]] | msgspec.UnsetType = msgspec.UNSET


class Finished(msgspec.Struct, tag_field="kind", tag="finished", forbid_unknown_fields=True, frozen=True):
    """The receipt; the ids it covers are the first of prefix and those sent, as many as it counts.

    Attributes:
        violation: index of the first id of the prefix that this provider's model could not have sampled; a claim.
        fingerprints: of the ids that it covers, the prefix included, where the ask is owed them; base64.
    """

    receipt: dict[str, object]
    signature: str
    violation: Annotated[int, msgspec.Meta(ge=0, lt=MAX_TOKENS_LIMIT)] | msgspec.UnsetType = msgspec.UNSET
    fingerprints: Fingerprints | msgspec.UnsetType = msgspec.UNSET


Line = Admitted | Tokens | Finished


class CancelBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Body of `POST /purchases/{digest}/cancel`: tokens acknowledged and the signature over `Cancel`."""

    tokens: int
    signature: str


class OutcomeAnswer(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Answer to a cancel: how the purchase ended, with all ids that the receipt covers."""

    ids: list[int]
    receipt: dict[str, object]
    signature: str
    fingerprints: Fingerprints | msgspec.UnsetType = msgspec.UNSET


class OfferAnswer(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Answer of `GET /offer`; `conduct` is there where the provider states one."""

    version: int
    offer: dict[str, object]
    signature: str
    conduct: ConductBody | msgspec.UnsetType = msgspec.UNSET


class BatchAnswer(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    """Answer of `GET /batches/{index}`; its receipts are the content of the blob `daCommitment`."""

    index: int
    batch: dict[str, object]
    signature: str
    transaction: str


class ProofAnswer(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    """Answer of `GET /receipts/{counter}/proof`."""

    receipt_digest: str
    proof: dict[str, object]


class Problem(msgspec.Struct, frozen=True):
    """A problem document as far as buyers read it; `needed` is the amount that would do, as decimal text."""

    title: str = ""
    status: int = 0
    detail: str = ""
    needed: str | None = None


def encode_papers(papers: Papers) -> bytes:
    """The exact bytes a buyer sends, and keeps until the purchase has ended."""
    body: dict[str, Json] = {
        "version": WIRE_VERSION,
        "ask": encode_json(papers.ask),
        "salt": encode_hex(papers.salt),
        "promptIds": list(papers.prompt_ids),
        "request": encode_json(papers.request),
        "requestSignature": encode_hex(papers.request_signature),
        "channel": encode_json(papers.channel),
        "voucher": encode_json(papers.voucher),
        "voucherSignature": encode_hex(papers.voucher_signature),
    }
    if papers.logprobs is not None:
        body["logprobs"] = papers.logprobs
    if papers.constraint is not None:
        body["constraint"] = papers.constraint.decode()
    if papers.prefix:
        body["prefix"] = list(papers.prefix)
    return encode_canonical_json(body)


def decode_papers(data: bytes) -> Papers:
    """Read a purchase's body.

    Raises:
        InvalidMessage: not JSON of that form, or another version.
        InvalidStruct: a struct is not well formed.
        InvalidEncoding: hex that is not canonical.
    """
    body = _decode(data, PurchaseBody)
    if body.version != WIRE_VERSION:
        raise InvalidMessage(f"purchase version {body.version}, this provider reads {WIRE_VERSION}")
    return Papers(
        ask=decode_json(Ask, body.ask),
        salt=decode_hex(body.salt, SALT_SIZE),
        prompt_ids=read_ids(body.prompt_ids, PROMPT_IDS_MAX),
        request=decode_json(Request, body.request),
        request_signature=decode_hex(body.request_signature, SIGNATURE_SIZE),
        channel=decode_json(ChannelConfig, body.channel),
        voucher=decode_json(Voucher, body.voucher),
        voucher_signature=decode_hex(body.voucher_signature, SIGNATURE_SIZE),
        logprobs=None if body.logprobs is msgspec.UNSET else body.logprobs,
        constraint=None if body.constraint is msgspec.UNSET else read_constraint(body.constraint),
        prefix=() if body.prefix is msgspec.UNSET else read_ids(body.prefix, MAX_TOKENS_LIMIT),
    )


def decode_cancel(data: bytes) -> CancelBody:
    """Read a cancel's body.

    Raises:
        InvalidMessage: not JSON of that form.
    """
    try:
        return msgspec.json.decode(data, type=CancelBody)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise InvalidMessage(f"body is not a valid cancel: {error}") from error


def build_tokens(ids: tuple[int, ...], logprobs: tuple[Ranking, ...] | None) -> Tokens:
    """The line for some ids."""
    return Tokens(ids=list(ids), logprobs=msgspec.UNSET if logprobs is None else list(logprobs))


def encode_line(line: Line) -> bytes:
    """One NDJSON line with its newline."""
    return msgspec.json.encode(line) + b"\n"


def decode_line(data: bytes) -> Line:
    """Read one line.

    Raises:
        InvalidMessage: not a line of this protocol.
    """
    try:
        return _LINE.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidMessage(f"not a line of a purchase: {error}") from error


_LINE: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


def build_finished(entry: SignedReceipt, violation: int | None = None, fingerprints: bytes = b"") -> Finished:
    """The last line."""
    return Finished(
        receipt=dict(encode_json(entry.receipt)),
        signature=encode_hex(entry.signature),
        violation=msgspec.UNSET if violation is None else violation,
        fingerprints=fingerprints or msgspec.UNSET,
    )


def read_receipt(receipt: Mapping[str, object], signature: str) -> SignedReceipt:
    """The receipt in a finished line or an outcome; its content is checked elsewhere."""
    return SignedReceipt(decode_json(Receipt, receipt), decode_hex(signature, SIGNATURE_SIZE))


def build_outcome(ids: tuple[int, ...], entry: SignedReceipt, fingerprints: bytes = b"") -> OutcomeAnswer:
    """The answer to a cancel."""
    return OutcomeAnswer(
        ids=list(ids),
        receipt=dict(encode_json(entry.receipt)),
        signature=encode_hex(entry.signature),
        fingerprints=fingerprints or msgspec.UNSET,
    )


def read_outcome(answer: OutcomeAnswer) -> tuple[tuple[int, ...], SignedReceipt]:
    """Ids and receipt of a cancelled purchase."""
    return read_ids(answer.ids, MAX_TOKENS_LIMIT), read_receipt(answer.receipt, answer.signature)


def read_fingerprints(answer: Finished | OutcomeAnswer) -> bytes:
    """The leaves that come with a receipt; empty where none do."""
    return b"" if answer.fingerprints is msgspec.UNSET else answer.fingerprints


def read_offer(answer: OfferAnswer) -> tuple[Offer, bytes]:
    """Offer and signature, unchecked.

    Raises:
        InvalidMessage: another version.
        InvalidStruct: not well formed.
    """
    if answer.version != WIRE_VERSION:
        raise InvalidMessage(f"offer version {answer.version}, this program reads {WIRE_VERSION}")
    return decode_json(Offer, answer.offer), decode_hex(answer.signature, SIGNATURE_SIZE)


def read_proof(answer: ProofAnswer) -> tuple[bytes, BatchProof]:
    """Receipt digest and proof, unchecked."""
    return decode_hex(answer.receipt_digest, 32), BatchProof.decode_json(answer.proof)


def read_batch(answer: BatchAnswer) -> tuple[Batch, bytes]:
    """Batch and signature, unchecked."""
    return decode_json(Batch, answer.batch), decode_hex(answer.signature, SIGNATURE_SIZE)


def read_needed(body: bytes) -> int | None:
    """The amount a refusal names, if it is a problem document that names one."""
    try:
        problem = msgspec.json.decode(body, type=Problem)
        return None if problem.needed is None else decode_decimal(problem.needed, AMOUNT_BITS)
    except (msgspec.DecodeError, UnicodeError, RecursionError, Invalid):
        return None


def build_problem(status: int, error: BaseException, needed: int | None) -> dict[str, Json]:
    """A problem document; `needed` is the amount that would do."""
    problem: dict[str, Json] = {
        "type": "about:blank",
        "title": type(error).__name__,
        "status": status,
        "detail": str(error),
    }
    if needed is not None:
        problem["needed"] = str(needed)
    return problem


def _decode(data: bytes, kind: type[PurchaseBody]) -> PurchaseBody:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise InvalidMessage(f"body is not a valid purchase: {error}") from error
