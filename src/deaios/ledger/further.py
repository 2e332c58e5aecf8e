"""A further network: its contracts, the plan that deploys them, and what a descriptor says about it.

Addresses follow from the deployer's nonces as in `ledger.suite`, so that the root can be told of a network's mirror
before there is one, and the mirror can begin with the epoch that the root has by then. Does no I/O.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from deaios.ledger.abi import Value, encode_values
from deaios.ledger.artifacts import FURTHER_NAMES, load_artifact
from deaios.ledger.settings import NetworkSettings
from deaios.ledger.suite import (
    CREDIT_NAME,
    CREDIT_SYMBOL,
    CREDIT_VERSION,
    Step,
    SuiteAddresses,
    compute_contract_address,
)
from deaios.ledger.valset import Epoch, build_root_id
from deaios.primitives.keys import ZERO_ADDRESS, Address


@dataclass(frozen=True, slots=True)
class FurtherAddresses:
    """Where the contracts of a further network are; the order is that of deployment."""

    credit: Address
    mirror: Address
    outbox: Address
    inbox: Address
    bridge: Address
    channels: Address

    def by_field(self) -> Mapping[str, Address]:
        """Addresses by field name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class Root:
    """What a further network has to know about the root."""

    chain_id: int
    contracts: SuiteAddresses
    settings: NetworkSettings

    @property
    def id(self) -> bytes:
        """What the root is called in messages."""
        return build_root_id(self.chain_id)


def plan_addresses(deployer: Address, first_nonce: int) -> FurtherAddresses:
    """Where a deployer's contracts will be."""
    return FurtherAddresses(
        *(compute_contract_address(deployer, first_nonce + place) for place in range(len(FURTHER_NAMES)))
    )


def plan_further(
    deployer: Address, first_nonce: int, network: bytes, root: Root, epoch: Epoch
) -> tuple[FurtherAddresses, tuple[Step, ...]]:
    """What to deploy on a further network, in order.

    Args:
        deployer: whose nonces name the addresses.
        first_nonce: nonce of the first deployment; the others follow without a gap.
        network: its id.
        root: the root.
        epoch: of this network as the root has it; the mirror begins with it.
    """
    addresses = plan_addresses(deployer, first_nonce)
    arguments = build_further_arguments(addresses, network, root, epoch)
    steps = []
    for place, (name, address) in enumerate(zip(FURTHER_NAMES, addresses.by_field().values(), strict=True)):
        artifact = load_artifact(name)
        creation = artifact.creation + encode_values(artifact.abi.constructor, arguments[name], f"{name} constructor")
        steps.append(Step(name, first_nonce + place, address, creation, artifact.runtime))
    return addresses, tuple(steps)


def build_further_arguments(
    addresses: FurtherAddresses, network: bytes, root: Root, epoch: Epoch
) -> Mapping[str, tuple[Value, ...]]:
    """Constructor arguments by contract (docs/contracts.md, "Further networks")."""
    settings, registry = root.settings, root.contracts.networks
    return {
        # Nothing exists at first, so it does not matter who holds it.
        "Credit": (
            CREDIT_NAME,
            CREDIT_SYMBOL,
            CREDIT_VERSION,
            addresses.bridge,
            0,
            addresses.bridge,
            settings.credit_supply,
        ),
        "ValsetMirror": (
            network,
            root.chain_id,
            registry,
            settings.network_trust_s,
            epoch.number,
            epoch.begun_at,
            epoch.validators_hash,
        ),
        "Outbox": (network,),
        "Inbox": (network, addresses.mirror, root.chain_id, registry),
        "Bridge": (addresses.credit, addresses.outbox, addresses.inbox, ZERO_ADDRESS, root.id, root.contracts.bridge),
        "Channels": (addresses.credit, settings.withdraw_delay_min_s, settings.withdraw_delay_max_s),
    }
