"""Hashes that contracts compute too: commitments of beacon and evidence, the nonce of a channel deposit.

Each is keccak-256 over standard ABI encoding, as docs/contracts.md gives it. A verdict's commitment is the struct hash
of `structs.Verdict`.
"""

from deaios.ledger.abi import encode_values
from deaios.ledger.structs import ChannelConfig, ReceiveWithAuthorization
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address


def commit_secret(round_id: int, member: Address, secret: bytes) -> bytes:
    """What a member commits to in a beacon round; a new secret is needed for every attempt."""
    return keccak256(encode_values(("uint256", "address", "bytes32"), (round_id, member, secret)))


def commit_evidence(accuser: Address, evidence_root: bytes, salt: bytes) -> bytes:
    """What an accuser commits to before opening a dispute, so that its evidence cannot be taken over."""
    return keccak256(encode_values(("address", "bytes32", "bytes32"), (accuser, evidence_root, salt)))


def commit_lie(prover: Address, first: bytes, second: bytes, salt: bytes) -> bytes:
    """What a prover of an equivocation commits to: digests of what was signed; zero for no second."""
    kinds = ("address", "bytes32", "bytes32", "bytes32")
    return keccak256(encode_values(kinds, (prover, first, second, salt)))


def compute_deposit_nonce(channel_id: bytes, salt: int) -> bytes:
    """EIP-3009 nonce of a deposit: it binds the payer's authorization to one channel (x402 `batch-settlement`)."""
    return keccak256(encode_values(("bytes32", "uint256"), (channel_id, salt)))


def build_deposit_authorization(
    config: ChannelConfig,
    channel_id: bytes,
    channels: Address,
    amount: int,
    *,
    valid_after: int,
    valid_before: int,
    salt: int,
) -> ReceiveWithAuthorization:
    """What the payer of a channel signs, under the token's domain, to deposit into it.

    Args:
        config: the channel.
        channel_id: its typed-data digest.
        channels: the Channels contract, which pulls the money.
        amount: in the token's smallest unit.
        valid_after: Unix seconds, exclusive.
        valid_before: Unix seconds, exclusive.
        salt: distinguishes deposits into one channel.
    """
    nonce = compute_deposit_nonce(channel_id, salt)
    return ReceiveWithAuthorization(config.payer, channels, amount, valid_after, valid_before, nonce)


def encode_collector_data(valid_after: int, valid_before: int, salt: int, signature: bytes) -> bytes:
    """The `collectorData` of a deposit."""
    kinds = ("uint256", "uint256", "uint256", "bytes")
    return encode_values(kinds, (valid_after, valid_before, salt, signature))
