"""The steps by which a root gets a further network; every one looks first whether it was done.

The founder enters it on the root and names its bridge, operators join it with keys of their own, somebody begins its
first epoch, and only then its contracts are deployed, because its mirror begins with that epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from deaios.ledger.artifacts import FURTHER_NAMES, load_artifact
from deaios.ledger.client.bound import BoundContract
from deaios.ledger.client.bridge import Bridge
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.credit import Credit
from deaios.ledger.client.deployment import InvalidDeployment, Progress, deploy_steps
from deaios.ledger.client.messages import Inbox, Outbox
from deaios.ledger.client.mirror import ValsetMirror
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.further import FurtherAddresses, Root, plan_addresses, plan_further
from deaios.ledger.networks import build_network_id
from deaios.ledger.valset import Epoch
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Refused
from deaios.primitives.keys import ZERO_ADDRESS, Address, PrivateKey

SALT = bytes(32)
"""A chain is entered once by one founder."""


class RefusedRetired(Refused):
    """The network was given up; its id is spent."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A network as it is to be entered on the root.

    Attributes:
        deployer: whose first transactions deploy its contracts there.
        services: ids of what it hosts.
    """

    founder: Address
    genesis_hash: bytes
    chain_id: int
    deployer: Address
    services: tuple[bytes, ...] = ()

    @property
    def id(self) -> bytes:
        """What it is called on the root and in every signature."""
        return build_network_id(self.founder, self.genesis_hash, self.chain_id, SALT)

    @property
    def addresses(self) -> FurtherAddresses:
        """Where its contracts are, or will be."""
        return plan_addresses(self.deployer, 0)


class FurtherContracts:
    """The contracts of a further network behind one object."""

    def __init__(self, rpc: Rpc, addresses: FurtherAddresses) -> None:
        self.rpc = rpc
        self.addresses = addresses
        self.credit = Credit(rpc, addresses.credit)
        self.mirror = ValsetMirror(rpc, addresses.mirror)
        self.outbox = Outbox(rpc, addresses.outbox)
        self.inbox = Inbox(rpc, addresses.inbox)
        self.bridge = Bridge(rpc, addresses.bridge)


async def enter_network(contracts: Contracts, sender: Sender, entry: Entry) -> None:
    """Enter a network on the root and connect its bridge; the founder pays the bond.

    Raises:
        RefusedRetired: it was given up before.
    """
    assert sender.address == entry.founder, "the founder enters a network"
    networks = contracts.networks
    record = await networks.network_of(entry.id)
    if record is not None and record.retired_at:
        raise RefusedRetired(f"network {encode_hex(entry.id)} was given up; its chain cannot be entered again")
    if record is None:
        bond = int(await networks.contract.read_one("bond"))
        await contracts.credit.ensure_allowance(sender, networks.address, bond)
        await networks.add(sender, entry.genesis_hash, entry.chain_id, entry.addresses.mirror, SALT, entry.services)
    if await contracts.bridge.bridge_of(entry.id) == ZERO_ADDRESS:
        await contracts.bridge.connect(sender, entry.id, entry.addresses.bridge)


async def join_network(contracts: Contracts, sender: Sender, chain_id: int, network: bytes, key: PrivateKey) -> None:
    """Join a network as an operator with a key that is for it alone; the sender has a stake in `consensus`."""
    if await contracts.networks.key_of(network, sender.address) is None:
        await contracts.networks.join(sender, network, key, chain_id)


async def ensure_first_epoch(contracts: Contracts, sender: Sender, network: bytes) -> Epoch:
    """The epoch that the root has of a network; begins the first one where there is none."""
    epoch = await contracts.networks.epoch_of(network)
    return epoch if epoch.number else (await contracts.networks.begin_epoch(sender, network)).value.epoch


async def deploy_further(
    sender: Sender, rpc: Rpc, network: bytes, root: Root, epochs: Sequence[Epoch], progress: Progress | None = None
) -> FurtherAddresses:
    """Deploy what is missing of a network's contracts; safe to repeat.

    Args:
        sender: the deployer; its key sends nothing else before and meanwhile.
        rpc: the further chain.
        network: its id.
        root: what it knows of the root.
        epochs: all of this network that the root began, the newest last; the mirror begins with one of them.
        progress: told each contract that stands.

    Raises:
        ConfigError: the deployer's nonce does not fit the plan.
        InvalidDeployment: other contracts are there, or they were deployed for another root.
    """
    addresses, steps = plan_further(sender.address, 0, network, root, epochs[-1])
    await deploy_steps(sender, rpc, sender.address, steps, progress)
    await verify_further(rpc, addresses, network, root, epochs)
    return addresses


async def verify_further(
    rpc: Rpc, addresses: FurtherAddresses, network: bytes, root: Root, epochs: Sequence[Epoch]
) -> None:
    """Check that a chain holds a network's contracts as they must be for this root.

    Raises:
        InvalidDeployment: one is missing, is another one, or knows another root.
    """
    at = dict(zip(FURTHER_NAMES, addresses.by_field().values(), strict=True))
    for name, address in at.items():
        if await rpc.get_code(address) != load_artifact(name).runtime:
            raise InvalidDeployment(f"{name} is not at {encode_hex(address)}")
    registry, settings = root.contracts.networks, root.settings
    expected = {
        ("Credit", "bridge"): addresses.bridge,
        ("Credit", "supplyMax"): settings.credit_supply,
        ("ValsetMirror", "network"): network,
        ("ValsetMirror", "rootChainId"): root.chain_id,
        ("ValsetMirror", "registry"): registry,
        ("ValsetMirror", "trustSeconds"): settings.network_trust_s,
        ("Outbox", "network"): network,
        ("Inbox", "network"): network,
        ("Inbox", "sets"): addresses.mirror,
        ("Inbox", "rootChainId"): root.chain_id,
        ("Inbox", "registry"): registry,
        ("Bridge", "network"): network,
        ("Bridge", "hub"): root.id,
        ("Bridge", "token"): addresses.credit,
        ("Bridge", "outbox"): addresses.outbox,
        ("Bridge", "inbox"): addresses.inbox,
        ("Bridge", "registry"): ZERO_ADDRESS,
        ("Channels", "token"): addresses.credit,
    }
    for (name, view), value in expected.items():
        found = await BoundContract(rpc, name, at[name]).read_one(view)
        if found != value:
            raise InvalidDeployment(f"{name}.{view} is {found!r}, {value!r} expected")
    if await Bridge(rpc, addresses.bridge).bridge_of(root.id) != root.contracts.bridge:
        raise InvalidDeployment("the bridge knows another bridge of the root")
    known = await ValsetMirror(rpc, addresses.mirror).epoch_of(network)
    if known not in epochs:
        raise InvalidDeployment(f"the mirror holds epoch {known.number}, which the root did not begin")
