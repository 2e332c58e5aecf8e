"""What a network stands on, and what is looked at whenever it starts: is the chain its own, and has a committee a seat.

Loads no more than a client of the chain needs: the supervisor, which asks, lives as long as the network.
"""

from dataclasses import dataclass, field

from deaios.ledger.client.deployment import fetch_network_id
from deaios.ledger.client.rpc import Reverted, Rpc
from deaios.node.config import ChainConfig
from deaios.node.folder import StateFolder
from deaios.node.foreign import OPERATOR as FOREIGN_OPERATOR
from deaios.node.foreign import ForeignChain
from deaios.node.keystore import Keystore
from deaios.node.member import build_fees, open_member
from deaios.primitives.errors import ConfigError

OPERATOR = "chain"
"""The operator's key is the chain role's key."""
FOUNDER = "founder"
"""Key of what is sent at the start of a network on a foreign chain while another process sends for the operator's."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What a network is founded on.

    Attributes:
        url: Ethereum JSON-RPC of the chain.
        office_url: where the operator serves descriptor and faucet.
        foreign: what is noted of a chain that is not ours; None for the embedded one.
        config: what is paid for gas.
        has_sponsor: whether the office lends newcomers their first stake.
    """

    url: str
    office_url: str
    foreign: ForeignChain | None = None
    config: ChainConfig = field(default_factory=ChainConfig)
    has_sponsor: bool = False

    @property
    def operator(self) -> str:
        """Name of the operator's key."""
        return OPERATOR if self.foreign is None else FOREIGN_OPERATOR

    def open_rpc(self) -> Rpc:
        """A client of the chain."""
        foreign = self.foreign
        if foreign is None:
            return Rpc(self.url)
        return Rpc(self.url, confirmations=foreign.confirmations, first_block=foreign.first_block)


async def validate_chain(folder: StateFolder, rpc: Rpc) -> None:
    """Is the chain that runs the one of the folder's descriptor?

    Raises:
        ConfigError: it is another.
    """
    if folder.load_descriptor().network_id != await fetch_network_id(rpc):
        raise ConfigError(f"{folder.descriptor_path} is of another chain than the one in {folder.root}")


async def begin_first_epoch(folder: StateFolder, keystore: Keystore, ground: Ground) -> None:
    """Seat the first committee, now that its members have staked; later epochs are the members' own to begin."""
    descriptor = folder.load_descriptor()
    key = keystore.open_key(OPERATOR if ground.foreign is None else FOUNDER)
    async with open_member(descriptor, key, ground.url, build_fees(ground.config)) as founder:
        if await founder.contracts.availability.current_epoch() == 0:
            await founder.ensure_funded(0)
            try:
                await founder.contracts.availability.begin_epoch(founder.sender)
            except Reverted:  # a member was first
                if await founder.contracts.availability.current_epoch() == 0:
                    raise
