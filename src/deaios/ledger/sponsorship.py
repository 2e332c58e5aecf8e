"""A newcomer's first stake, lent: what is signed, and how little has to be its own.

Pure. The newcomer signs one `Pledge` in the domain of `Channels`: what it earns repays the sponsor first. The pledge
names the contract that lends (`Sponsorship`) and a hash of what that contract must give for it, so a signature that is
shown anywhere else, or with less given, binds nobody.
"""

from dataclasses import dataclass
from typing import Annotated

from deaios.ledger.eip712 import Domain, eip712_struct, recover_signer, sign_struct
from deaios.ledger.structs import channels_domain
from deaios.ledger.suite import SuiteAddresses
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address, PrivateKey

OWN_MULTIPLE = 20
"""Of an operator's stake, at most so many times its own counts (SharedStaking)."""
TERM_S_MAX = 366 * 86400
"""As the contract has it."""


class InvalidPledge(Invalid):
    """A pledge that the newcomer did not sign, or that does not fit the terms."""


@eip712_struct
class Pledge:
    """A receiver's word that its earnings over channels go to a creditor first."""

    receiver: Annotated[bytes, "address"]
    lender: Annotated[bytes, "address"]
    creditor: Annotated[bytes, "address"]
    amount: Annotated[int, "uint128"]
    terms: Annotated[bytes, "bytes32"]
    nonce: Annotated[int, "uint256"]
    deadline: Annotated[int, "uint256"]


@dataclass(frozen=True, slots=True)
class SponsorTerms:
    """What a sponsor offers; amounts in the token's smallest unit.

    Attributes:
        sponsor: who lends, and is repaid.
        seed: is given to the newcomer: its own stake, and working money.
        backing: is delegated to it and stays the sponsor's.
        owed: repaid from the first earnings, nine tenths of each: the seed, and what gas and trouble cost.
        term_s: seconds before which the backing cannot be recalled.
    """

    sponsor: Address
    seed: int
    backing: int
    owed: int
    term_s: int

    def digest(self) -> bytes:
        """What the pledge binds beside creditor and amount: keccak256(abi.encode(seed, backing, term))."""
        return keccak256(self.seed.to_bytes(32) + self.backing.to_bytes(32) + self.term_s.to_bytes(32))


def split_stake(stake_min: int) -> tuple[int, int]:
    """The least own stake with which a service's minimum counts in full, and the rest, which may be delegated."""
    seed = -(-stake_min // OWN_MULTIPLE)
    return seed, stake_min - seed


def build_pledge(
    terms: SponsorTerms, addresses: SuiteAddresses, newcomer: Address, nonce: int, deadline: int
) -> Pledge:
    """What a newcomer signs to accept terms.

    Args:
        terms: as offered.
        addresses: the network's contracts.
        newcomer: whose earnings are pledged.
        nonce: of its next pledge, as `Channels` says.
        deadline: Unix seconds until which the sponsor may use it.
    """
    return Pledge(
        receiver=newcomer,
        lender=addresses.sponsorship,
        creditor=terms.sponsor,
        amount=terms.owed,
        terms=terms.digest(),
        nonce=nonce,
        deadline=deadline,
    )


def pledge_domain(chain_id: int, addresses: SuiteAddresses) -> Domain:
    """Domain of pledges: the contract that pays them."""
    return channels_domain(chain_id, addresses.channels)


def sign_pledge(key: PrivateKey, domain: Domain, pledge: Pledge) -> bytes:
    """Accept as the newcomer; 65 bytes."""
    if pledge.receiver != key.address:
        raise InvalidPledge(f"pledge is of 0x{pledge.receiver.hex()}, the key is 0x{key.address.hex()}")
    return sign_struct(key, domain, pledge)


def validate_pledge(domain: Domain, pledge: Pledge, signature: bytes) -> None:
    """Check before any money moves.

    Raises:
        InvalidPledge: another signer than the newcomer.
    """
    signer = recover_signer(domain, pledge, signature)
    if signer != pledge.receiver:
        raise InvalidPledge(f"pledge of 0x{pledge.receiver.hex()} is signed by 0x{signer.hex()}")
