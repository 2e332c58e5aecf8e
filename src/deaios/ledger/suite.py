"""The contracts of one network as a set: their addresses and the plan that deploys them.

Contracts name each other in their constructors before they exist, so every address is computed from the deployer's
nonce (CREATE); a plan is a function of deployer, first nonce, settings and holder, and nothing else. The deployer is a
key that sends nothing else, or a *workshop*: a contract of one owner that does nothing but create, and that CREATE2
puts where owner and salt say. With it the addresses are the same on every chain, whatever else the owner's key sends.
Does no I/O.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from deaios.ledger.abi import Value, encode_values
from deaios.ledger.artifacts import NAMES, load_artifact
from deaios.ledger.rlp import encode_integer, encode_rlp
from deaios.ledger.settings import NetworkSettings
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import ADDRESS_SIZE, ZERO_ADDRESS, Address

CREDIT_NAME = "DeAIOS Credit"
CREDIT_SYMBOL = "CREDIT"
CREDIT_VERSION = "1"

COMPUTE = keccak256(b"compute")
AUDIT = keccak256(b"audit")
STORAGE = keccak256(b"storage")
DATA_AVAILABILITY = keccak256(b"da")
CONSENSUS = keccak256(b"consensus")
"""Service ids of SharedStaking."""
OWN_ID = bytes(32)
"""Stands for the root's id in constructors there: its chain id."""


class InvalidSuite(Invalid):
    """A set of addresses that is not one contract each."""


@dataclass(frozen=True, slots=True)
class SuiteAddresses:
    """Where the contracts of a network are."""

    credit: Address
    identities: Address
    catalogue: Address
    receipts: Address
    channels: Address
    staking: Address
    beacon: Address
    disputes: Address
    forks: Address
    availability: Address
    networks: Address
    equivocation: Address
    outbox: Address
    inbox: Address
    bridge: Address
    sponsorship: Address

    def __post_init__(self) -> None:
        addresses = list(self.by_field().values())
        if any(len(address) != ADDRESS_SIZE or address == ZERO_ADDRESS for address in addresses):
            raise InvalidSuite("a contract has no address")
        if len(set(addresses)) != len(addresses):
            raise InvalidSuite("two contracts have one address")

    def by_field(self) -> Mapping[str, Address]:
        """Addresses by field name, in order of deployment."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


CONTRACT_OF_FIELD: Mapping[str, str] = MappingProxyType(
    dict(zip((field.name for field in fields(SuiteAddresses)), NAMES, strict=True))
)
"""The contract's name by field of `SuiteAddresses`."""


@dataclass(frozen=True, slots=True)
class Step:
    """One deployment."""

    contract: str
    nonce: int
    address: Address
    creation: bytes
    """Creation code with its arguments."""
    runtime: bytes


@dataclass(frozen=True, slots=True)
class SuitePlan:
    """All deployments of a network, in order."""

    deployer: Address
    addresses: SuiteAddresses
    steps: tuple[Step, ...]


def compute_contract_address(deployer: Address, nonce: int) -> Address:
    """Where CREATE puts what `deployer` deploys with its transaction `nonce`."""
    return Address(keccak256(encode_rlp([deployer, encode_integer(nonce)]))[-ADDRESS_SIZE:])


CREATE2_PROXY = Address(bytes.fromhex("4e59b44847b379578588920ca78fbf26c0b4956c"))
CREATE2_PROXY_CODE = bytes.fromhex(
    "7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffe0"
    "3601600081602082378035828234f58015156039578182fd5b8082525050506014600cf3"
)
"""The deterministic deployment proxy that most networks carry: call data are a salt and creation code for CREATE2.
https://github.com/Arachnid/deterministic-deployment-proxy"""
WORKSHOP_FIRST_NONCE = 1
"""Of what a contract creates (EIP-161)."""
_WORKSHOP_HEAD = bytes.fromhex("60358060095f395ff3")
"""Creation code: return the 0x35 bytes that follow."""
_WORKSHOP_TAIL = bytes.fromhex("18602d57365f5f37365f5ff08015602d575f5260205ff35b3d5f5f3e3d5ffd")


def build_workshop(owner: Address) -> tuple[bytes, bytes]:
    """Creation and runtime code of an owner's workshop: what its owner calls it with, it creates; nobody else may.

    In words: caller xor owner: jump to the end; copy the call data to memory; CREATE; where that gave zero: jump to
    the end; return the address. The end: revert with what the creation said.
    """
    runtime = b"\x33\x73" + owner + _WORKSHOP_TAIL
    return _WORKSHOP_HEAD + runtime, runtime


def compute_workshop_address(owner: Address, salt: bytes) -> Address:
    """Where the proxy's CREATE2 puts an owner's workshop (EIP-1014)."""
    creation, _ = build_workshop(owner)
    return Address(keccak256(b"\xff" + CREATE2_PROXY + salt + keccak256(creation))[-ADDRESS_SIZE:])


def plan_suite(deployer: Address, first_nonce: int, settings: NetworkSettings, holder: Address) -> SuitePlan:
    """What to deploy, in order.

    Args:
        deployer: whose nonces name the addresses.
        first_nonce: nonce of the first deployment; the others follow without a gap.
        settings: windows and amounts.
        holder: who gets the whole supply of Credit.
    """
    nonces = range(first_nonce, first_nonce + len(NAMES))
    addresses = SuiteAddresses(*(compute_contract_address(deployer, nonce) for nonce in nonces))
    arguments = build_arguments(addresses, settings, holder)
    steps = []
    for nonce, (field, name) in zip(nonces, CONTRACT_OF_FIELD.items(), strict=True):
        artifact = load_artifact(name)
        creation = artifact.creation + encode_values(artifact.abi.constructor, arguments[name], f"{name} constructor")
        steps.append(Step(name, nonce, addresses.by_field()[field], creation, artifact.runtime))
    return SuitePlan(deployer, addresses, tuple(steps))


def build_arguments(
    addresses: SuiteAddresses, settings: NetworkSettings, holder: Address
) -> Mapping[str, tuple[Value, ...]]:
    """Constructor arguments by contract (docs/contracts.md, "Order of deployment")."""
    judges = (
        (COMPUTE, addresses.disputes),
        (COMPUTE, addresses.forks),
        (AUDIT, addresses.disputes),
        (AUDIT, addresses.beacon),
        (DATA_AVAILABILITY, addresses.availability),
        (CONSENSUS, addresses.equivocation),
    )
    minimums = (
        (COMPUTE, settings.compute_stake_min),
        (AUDIT, settings.audit_stake_min),
        (DATA_AVAILABILITY, settings.da_stake_min),
        (CONSENSUS, settings.consensus_stake_min),
    )
    jury = (
        settings.jury_size,
        settings.dispute_open_blocks,
        settings.verdict_commit_s,
        settings.verdict_reveal_s,
        settings.appeal_s,
        settings.dispute_bond,
        settings.appeal_bond,
        settings.slash_floor,
        settings.juror_fee,
        settings.juror_penalty,
    )
    token, staking = addresses.credit, addresses.staking
    return {
        "Credit": (
            CREDIT_NAME,
            CREDIT_SYMBOL,
            CREDIT_VERSION,
            holder,
            settings.credit_supply,
            addresses.bridge,
            settings.credit_supply,
        ),
        "IdentityRegistry": (),
        "Catalogue": (),
        "Receipts": (),
        "Channels": (token, settings.withdraw_delay_min_s, settings.withdraw_delay_max_s),
        "SharedStaking": (
            token,
            settings.unbonding_s,
            settings.jail_s,
            settings.slash_payout_s,
            settings.slash_payout_max,
            judges,
            minimums,
        ),
        "Beacon": (staking, settings.beacon_commit_s, settings.beacon_reveal_s, settings.beacon_penalty),
        "Disputes": (token, staking, addresses.beacon, addresses.channels, jury),
        "Forks": (
            token,
            staking,
            addresses.receipts,
            addresses.channels,
            addresses.disputes,
            settings.claim_challenge_s,
            settings.claim_bond,
            settings.fork_penalty,
        ),
        "DataAvailability": (
            token,
            staking,
            addresses.beacon,
            settings.da_seats_size,
            settings.da_epoch_s,
            settings.da_term_max_s,
            settings.da_answer_s,
            settings.da_challenge_bond,
            settings.da_penalty,
            settings.da_fee_base,
            settings.da_fee_gib_day,
        ),
        "Networks": (
            token,
            staking,
            addresses.equivocation,
            settings.network_epoch_s,
            settings.network_trust_s,
            settings.evidence_s,
            settings.network_bond,
        ),
        "Equivocation": (token, staking, addresses.networks, settings.equivocation_slash_bps),
        "Outbox": (OWN_ID,),
        "Inbox": (OWN_ID, addresses.networks, 0, addresses.networks),
        "Bridge": (token, addresses.outbox, addresses.inbox, addresses.networks, OWN_ID, ZERO_ADDRESS),
        "Sponsorship": (token, addresses.channels, staking),
    }
