"""What strangers sign: every EIP-712 struct of the protocol, its enumerations and its domains.

Field names and order are the wire format (docs/spec/protocol.md); a change is a new version and a decision. Money is
in the token's smallest unit, sampling parameters in milli-units, times in milliseconds since the epoch unless named
seconds.
"""

from enum import IntEnum
from typing import Annotated

from deaios.ledger.eip712 import Domain, eip712_struct
from deaios.primitives.keys import Address

Bytes32 = Annotated[bytes, "bytes32"]
AddressField = Annotated[Address, "address"]
Uint8 = Annotated[int, "uint8"]
Uint32 = Annotated[int, "uint32"]
Uint40 = Annotated[int, "uint40"]
Uint64 = Annotated[int, "uint64"]
Uint128 = Annotated[int, "uint128"]
Uint256 = Annotated[int, "uint256"]

PROTOCOL_NAME = "DeAIOS"
PROTOCOL_VERSION = "1"
HEADER_NAME = "DeAIOS Header"
NETWORKS_NAME = "DeAIOS Networks"
CHANNELS_NAME = "x402 Batch Settlement"

GREEDY = 0
"""temperature_milli of 0 means argmax."""
TEMPERATURE_MILLI_MAX = 2000
TOP_P_OFF = 1000
TOP_K_OFF = 0
MAX_TOKENS_LIMIT = 32768
STOPS_MAX = 16


class Level(IntEnum):
    """What a receipt lets a stranger check (docs/spec/protocol.md §7)."""

    SIGNED = 0
    GREEDY = 1
    SEEDED = 2
    FINGERPRINTED = 3
    REPLAYABLE = 4


class AuditPolicy(IntEnum):
    """Who besides the buyer may be given the opening."""

    BUYER_ONLY = 0
    OPEN = 1


class FinishReason(IntEnum):
    """Why the output ended."""

    STOP_TOKEN = 0
    """The last sampled id is an end-of-generation id or one of the ask's stop ids."""
    STOP_STRING = 1
    """The decoded text came to contain a stop string; `stop_index` says which."""
    LENGTH = 2
    """max_tokens ids were sampled."""
    CANCELLED = 3
    FAILED = 4


class State(IntEnum):
    """What became of a request; a fee above zero only for `SERVED`, or for a cancel that the buyer signed."""

    SERVED = 0
    REFUSED = 1
    FAILED_PROVIDER = 2
    FAILED_CLIENT = 3
    CANCELLED = 4


class Judgement(IntEnum):
    """A juror's verdict."""

    ACQUIT = 1
    GUILTY = 2


@eip712_struct
class Params:
    """Sampling parameters, integers only."""

    temperature_milli: Uint32
    top_k: Uint32
    top_p_milli: Uint32
    max_tokens: Uint32
    stop_ids: Annotated[tuple[int, ...], "uint32[]"]
    stop_strings: Annotated[tuple[str, ...], "string[]"]
    mask_hash: Bytes32


@eip712_struct
class Ask:
    """What is wanted, independent of who serves it; its digest fixes the seed."""

    buyer: AddressField
    model_record_id: Bytes32
    prompt_commitment: Bytes32
    prompt_count: Uint32
    context_hash: Bytes32
    params: Params
    client_digest: Bytes32
    min_level: Uint8
    audit_policy: Uint8
    nonce: Bytes32


@eip712_struct
class Request:
    """A purchase order for one provider, signed by the buyer. `offer_digest` binds the price."""

    ask_digest: Bytes32
    provider: AddressField
    offer_digest: Bytes32
    channel_id: Bytes32
    max_fee: Uint128
    anchor_block_hash: Bytes32
    deadline_block: Uint64


@eip712_struct
class Receipt:
    """What was delivered, signed by the provider; counters are gap-free per provider, `prev_receipt` chains digests."""

    request_digest: Bytes32
    counter: Uint64
    prev_receipt: Bytes32
    output_commitment: Bytes32
    prompt_tokens: Uint32
    cached_tokens: Uint32
    completion_tokens: Uint32
    finish_reason: Uint8
    stop_index: Uint32
    state: Uint8
    level: Uint8
    engine_profile: Bytes32
    fingerprint_root: Bytes32
    fee: Uint128
    channel_id: Bytes32
    charged_cumulative: Uint128
    batch_deadline_block: Uint64
    started_at_ms: Uint64
    first_token_at_ms: Uint64
    finished_at_ms: Uint64


@eip712_struct
class Cancel:
    """The buyer ends a purchase early and acknowledges so many tokens: all that its receipt may then cover."""

    request_digest: Bytes32
    tokens: Uint32


@eip712_struct
class Batch:
    """A run of receipts without gaps; one Merkle leaf (the receipt digest) per counter."""

    provider: AddressField
    first_counter: Uint64
    last_counter: Uint64
    previous_root: Bytes32
    root: Bytes32
    da_commitment: Bytes32


@eip712_struct
class Offer:
    """A posted price, signed by the provider. Prices are smallest units per million tokens."""

    provider: AddressField
    model_record_id: Bytes32
    engine_profile: Bytes32
    level: Uint8
    input_price: Uint128
    output_price: Uint128
    context_tokens: Uint32
    streams_max: Uint32
    withdraw_delay_min: Uint64
    url: Annotated[str, "string"]
    valid_until: Uint64


@eip712_struct
class Verdict:
    """What a juror commits to and later reveals; the commitment is this struct's hash."""

    dispute_id: Uint256
    juror: AddressField
    judgement: Uint8
    evidence_root: Bytes32
    salt: Bytes32


@eip712_struct
class RowAttestation:
    """A member of a committee holds all rows of its seats in `epoch`, and will until `expires_at`; Unix seconds.

    It names no seats, so that all members sign one message.
    """

    commitment: Bytes32
    epoch: Uint64
    begins_at: Uint64
    expires_at: Uint64


@eip712_struct
class Header:
    """The operator's signed record of one block of the embedded chain."""

    genesis_hash: Bytes32
    height: Uint64
    previous_hash: Bytes32
    transactions_root: Bytes32
    logs_root: Bytes32
    state_commitment: Bytes32
    timestamp: Uint64


@eip712_struct
class KeyAssignment:
    """A key's consent to be an operator's key of one network; signed once, by that key."""

    network: Bytes32
    operator: AddressField


@eip712_struct
class ValsetUpdate:
    """What the root says about a network's validators in an epoch; `validators_hash` as in `ledger.networks`.

    The root has the true one, so that a single signature under another one is a proven lie.
    """

    network: Bytes32
    epoch: Uint64
    begun_at: Uint64
    validators_hash: Bytes32


@eip712_struct
class Checkpoint:
    """What the first `count` messages from one network to another are; `root` as in `ledger.messages`.

    There is one root for every count, so that validators need not agree where to cut.
    """

    source: Bytes32
    destination: Bytes32
    count: Uint64
    root: Bytes32


@eip712_struct
class Message:
    """What a contract of one network says to one of another; nobody signs it, its struct hash is a leaf."""

    source: Bytes32
    destination: Bytes32
    nonce: Uint64
    sender: AddressField
    target: AddressField
    payload: Annotated[bytes, "bytes"]


@eip712_struct
class ChannelConfig:
    """x402 `batch-settlement`: a payment channel's terms. Its typed-data digest is the channel id."""

    payer: AddressField
    payer_authorizer: AddressField
    receiver: AddressField
    receiver_authorizer: AddressField
    token: AddressField
    withdraw_delay: Uint40
    salt: Bytes32


@eip712_struct
class Voucher:
    """x402 `batch-settlement`: the most the receiver may claim in total."""

    channel_id: Bytes32
    max_claimable_amount: Uint128


@eip712_struct
class Refund:
    """x402 `batch-settlement`: the receiver gives money back."""

    channel_id: Bytes32
    nonce: Uint256
    amount: Uint128


@eip712_struct
class ReceiveWithAuthorization:
    """EIP-3009, under the token's own domain; `from_`, because `from` is a Python keyword, is written `from`."""

    from_: AddressField
    to: AddressField
    value: Uint256
    valid_after: Uint256
    valid_before: Uint256
    nonce: Bytes32


def protocol_domain(chain_id: int, disputes: Address) -> Domain:
    """Domain of ask, request, receipt, cancel, batch, offer and verdict: the contract that judges them."""
    return Domain(PROTOCOL_NAME, PROTOCOL_VERSION, chain_id, disputes)


def availability_domain(chain_id: int, availability: Address) -> Domain:
    """Domain of row attestations: the contract that certifies them."""
    return Domain(PROTOCOL_NAME, PROTOCOL_VERSION, chain_id, availability)


def header_domain(chain_id: int) -> Domain:
    """Domain of block headers; it names no contract, because headers exist before contracts do."""
    return Domain(HEADER_NAME, PROTOCOL_VERSION, chain_id)


def networks_domain(root_chain_id: int, networks: Address) -> Domain:
    """Domain of key assignments, validator sets and checkpoints on every chain: the registry on the root."""
    return Domain(NETWORKS_NAME, PROTOCOL_VERSION, root_chain_id, networks)


def channels_domain(chain_id: int, channels: Address) -> Domain:
    """Domain of x402 vouchers and channel ids."""
    return Domain(CHANNELS_NAME, "1", chain_id, channels)


def token_domain(name: str, version: str, chain_id: int, token: Address) -> Domain:
    """Domain of an EIP-3009 token."""
    return Domain(name, version, chain_id, token)
