"""Where x402's contracts lie, and what a chain of ours carries there from its first block.

Stock x402 clients know two addresses by heart: they sign vouchers for the one and deposits for the other. On a chain
that we begin, our own contracts lie at both (`BatchSettlement.vy`, `DepositCollector.vy`: no constructor and no
immutables, so that the shipped runtime code is all there is), and the genesis hash, which is the network's id, binds
them. On another chain x402's own contracts may be there. Does no I/O.
Source: x402-foundation/x402, specs/schemes/batch-settlement/scheme_batch_settlement_evm.md.
"""

from deaios.ledger.artifacts import load_artifact
from deaios.ledger.eip712 import Domain, eip712_struct
from deaios.ledger.structs import AddressField, Bytes32, Uint64, Uint256, channels_domain
from deaios.primitives.keys import Address

SETTLEMENT = Address(bytes.fromhex("4020074e9df2ce1dee5a9c1b5c3f541d02a10003"))
"""x402's `x402BatchSettlement` on every chain."""
COLLECTOR = Address(bytes.fromhex("4020806089470a89826cb9fb1f4059150b550004"))
"""x402's `ERC3009DepositCollector` on every chain."""
WITHDRAW_DELAY_MIN_S = 900
WITHDRAW_DELAY_MAX_S = 2_592_000


@eip712_struct
class TransferWithAuthorization:
    """EIP-3009, under the token's own domain: what x402 `exact` pays with."""

    from_: AddressField
    to: AddressField
    value: Uint256
    valid_after: Uint256
    valid_before: Uint256
    nonce: Bytes32


@eip712_struct
class WindowRequest:
    """What a payer in window mode signs for each request, under `settlement_domain`: its channel pays for it once.

    `sequence` is a number that the channel's requests have not used yet.
    """

    channel_id: Bytes32
    sequence: Uint64
    body_hash: Bytes32


def list_predeploys() -> tuple[tuple[Address, bytes], ...]:
    """Addresses and runtime code that a chain of ours begins with."""
    return (
        (SETTLEMENT, load_artifact("BatchSettlement").runtime),
        (COLLECTOR, load_artifact("DepositCollector").runtime),
    )


def settlement_domain(chain_id: int) -> Domain:
    """Domain of channel ids and vouchers of x402 `batch-settlement` on a chain."""
    return channels_domain(chain_id, SETTLEMENT)


def network_name(chain_id: int) -> str:
    """The chain as x402 names it (CAIP-2)."""
    return f"eip155:{chain_id}"
